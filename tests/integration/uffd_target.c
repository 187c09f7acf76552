/* SPDX-License-Identifier: Apache-2.0 */
/* A target without a session: its process ends, or touches what was not told of; its thread. */
#include <criterion/criterion.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "uffd/place.h"
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

static void *read_byte(void *at)
{
	const volatile uint8_t *byte = at;

	return (void *)(uintptr_t)*byte;
}

/* The owner of the userfaultfd has registered more than it tells of. */
Test(uffd_target, a_page_that_nobody_tracks_is_waited_for_and_is_not_zero)
{
	static _Alignas(PAGE) uint8_t content[PAGE] = {7};
	uint8_t *memory =
		mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct ferry_target_region region = {
		.desc = {.page_bytes = PAGE, .n_pages = 1},
		.start = {(uintptr_t)memory},
		.kind = FERRY_MAPPING_ANON,
	};
	struct ferry_target_config config = {.regions = &region, .n_regions = 1};
	struct ferry_hva untold = {(uintptr_t)memory + PAGE};
	struct ferry_failure f = {0};
	struct ferry_placed placed;
	struct ferry_target *t;
	struct ferry_uffd own;
	pthread_t thread;
	void *value;

	cr_assert_neq(memory, MAP_FAILED);
	cr_assert_eq(ferry_uffd_open(&own, FERRY_TARGET_UFFD_FEATURES, &f), 0, "%s", f.text);
	cr_assert_eq(ferry_uffd_register(&own, untold, PAGE), 0);
	config.uffd = own;
	config.uffd.fd = fcntl(own.fd, F_DUPFD_CLOEXEC, 0);
	cr_assert_geq(config.uffd.fd, 0);
	cr_assert_eq(ferry_target_new(&t, &config, &f), 0, "%s", f.text);
	cr_assert_eq(ferry_target_start(t, &f), 0, "%s", f.text);
	cr_assert_eq(pthread_create(&thread, NULL, read_byte, memory + PAGE), 0);
	cr_assert_eq(ferry_target_wait(t, -1, -1, &f), FERRY_TARGET_FAILED);
	cr_assert_eq(f.err, -EFAULT);
	cr_assert(strstr(f.text, "no region has"), "%s", f.text);
	/* With its end nothing was placed there, and nothing will be: it is for us to do. */
	ferry_target_free(t);
	cr_assert_eq(ferry_place_copy(&own, untold, content, 1, PAGE, &placed), 0);
	cr_assert_eq(placed.n_new, 1, "it was filled");
	cr_assert_eq(pthread_join(thread, &value), 0);
	cr_assert_eq((uintptr_t)value, 7);
	ferry_uffd_close(&own);
}

/* Of our threads. */
static int lowest_niceness(void)
{
	DIR *tasks = opendir("/proc/self/task");
	struct dirent *e;
	int lowest = 19;

	cr_assert(tasks);
	while ((e = readdir(tasks))) {
		int n = getpriority(PRIO_PROCESS, (id_t)strtoul(e->d_name, NULL, 10));

		lowest = e->d_name[0] != '.' && n < lowest ? n : lowest;
	}
	closedir(tasks);
	return lowest;
}

Test(uffd_target, its_fault_thread_comes_before_others_on_the_processor)
{
	void *memory = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct ferry_target_region region = {
		.desc = {.page_bytes = PAGE, .n_pages = 1},
		.start = {(uintptr_t)memory},
		.kind = FERRY_MAPPING_ANON,
	};
	struct ferry_target_config config = {.regions = &region, .n_regions = 1};
	struct ferry_failure f = {0};
	struct ferry_target *t;

	if (setpriority(PRIO_PROCESS, 0, -10) < 0)
		cr_skip_test("no thread may be raised: that takes CAP_SYS_NICE, or RLIMIT_NICE");
	cr_assert_eq(setpriority(PRIO_PROCESS, 0, 0), 0);
	cr_assert_eq(ferry_uffd_open(&config.uffd, FERRY_TARGET_UFFD_FEATURES, &f), 0, "%s",
		     f.text);
	cr_assert_eq(ferry_target_new(&t, &config, &f), 0, "%s", f.text);
	cr_assert_eq(lowest_niceness(), 0);
	cr_assert_eq(ferry_target_start(t, &f), 0, "%s", f.text);
	while (lowest_niceness() != -10)
		sched_yield();
	ferry_target_free(t);
}
