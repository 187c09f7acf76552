/* SPDX-License-Identifier: Apache-2.0 */
/* A target whose process ends before there is a session. */
#include <criterion/criterion.h>
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "uffd/target.h"

#define N_PAGES 16u
#define PAGE	4096u

TestSuite(uffd_target, .timeout = 30);

/* With memory at the same address as here. */
static pid_t start_process(void **memory)
{
	pid_t pid;

	*memory = mmap(NULL, N_PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
		       -1, 0);
	cr_assert_neq(*memory, MAP_FAILED);
	pid = fork();
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		for (;;)
			pause();
	}
	cr_assert_gt(pid, 0);
	return pid;
}

Test(uffd_target, a_process_that_has_ended_is_no_reason_to_wait)
{
	struct ferry_addr nowhere;
	struct ferry_failure f = {0};
	struct ferry_target *t;
	void *memory;
	pid_t pid = start_process(&memory);
	struct ferry_target_region region = {
		.desc = {.page_bytes = PAGE, .n_pages = N_PAGES},
		.start = {(uintptr_t)memory},
		.kind = FERRY_MAPPING_ANON,
		.is_private = true,
	};
	struct ferry_target_config config = {.regions = &region, .n_regions = 1};

	cr_assert_eq(ferry_addr_parse(&nowhere, "127.0.0.1:1", &f), 0, "%s", f.text);
	cr_assert_eq(ferry_uffd_attach(&config.uffd, pid, FERRY_TARGET_UFFD_FEATURES, &f), 0, "%s",
		     f.text);
	cr_assert_eq(ferry_target_new(&t, &config, &f), 0, "%s", f.text);
	cr_assert_eq(ferry_target_start(t, &f), 0, "%s", f.text);
	kill(pid, SIGKILL);
	cr_assert_eq(waitpid(pid, NULL, 0), pid);
	while (ferry_target_wait(t, -1, -1, &f) != FERRY_TARGET_GONE)
		;
	f = (struct ferry_failure){0};
	cr_assert_eq(ferry_target_dial(t, &nowhere, -1, &f), -ESRCH);
	cr_assert(strstr(f.text, "ended"), "%s", f.text);
	ferry_target_free(t);
}
