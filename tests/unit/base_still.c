/* SPDX-License-Identifier: Apache-2.0 */
#include <criterion/criterion.h>
#include <errno.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/still.h"

/* From none that is free up to some: then there are enough. */
Test(still, who_lacks_descriptors_to_look_takes_none_for_stopped)
{
	int lowest = dup(0), rc = 0;
	struct rlimit before, limit;

	cr_assert(lowest >= 0 && !close(lowest) && !getrlimit(RLIMIT_NOFILE, &before));
	for (rlim_t n = 0; n < 8; n++) {
		limit = (struct rlimit){(rlim_t)lowest + n, before.rlim_max};
		cr_assert_eq(setrlimit(RLIMIT_NOFILE, &limit), 0);
		rc = ferry_still_check(getpid()); /* who asks runs */
		cr_assert_eq(setrlimit(RLIMIT_NOFILE, &before), 0);
		cr_assert(rc == 0 || rc == -EMFILE, "%d, with %d descriptors", rc, (int)n);
	}
	cr_assert_eq(rc, 0);
}

Test(still, one_that_is_stopped_is_still_until_it_runs)
{
	struct ferry_still s;
	pid_t pid = fork();

	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		for (;;)
			kill(getpid(), SIGSTOP);
	}
	cr_assert_eq(waitpid(pid, NULL, WUNTRACED), pid);
	cr_assert_eq(ferry_still_open(&s, pid), 0);
	cr_assert_eq(ferry_still_look(&s), 1);
	cr_assert_eq(kill(pid, SIGCONT), 0);
	cr_assert_eq(waitpid(pid, NULL, WUNTRACED), pid);
	cr_assert_eq(ferry_still_look(&s), 0);
	cr_assert_eq(kill(pid, SIGKILL), 0);
	cr_assert_eq(waitpid(pid, NULL, 0), pid);
	cr_assert_eq(ferry_still_look(&s), -ESRCH);
	ferry_still_close(&s);
}
