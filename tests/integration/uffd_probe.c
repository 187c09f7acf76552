// SPDX-License-Identifier: Apache-2.0
/* What the host is said to allow, as root and as an ordinary user. */
#include "uffd/probe.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "uffd_support.h"

TestSuite(uffd_probe, .fini = huge_unreserve, .timeout = 120);

struct items {
	struct ferry_probe_item v[FERRY_PROBE_MAX];
	size_t n;
};

static const struct ferry_probe_item *find(const struct items *items, const char *id)
{
	for (size_t i = 0; i < items->n; i++) {
		if (strcmp(items->v[i].id, id) == 0)
			return &items->v[i];
	}
	cr_assert_fail("no item '%s'", id);
	return NULL;
}

static void expect(const struct items *items, const char *id, enum ferry_probe_verdict verdict)
{
	const struct ferry_probe_item *item = find(items, id);

	cr_assert_eq(item->verdict, verdict, "%s: %d: %s", id, item->verdict, item->detail);
}

Test(uffd_probe, on_this_host_root_has_all_that_is_required)
{
	struct items items;

	items.n = ferry_probe_run(items.v);
	cr_assert_gt(items.n, 20);
	for (size_t i = 0; i < items.n; i++) {
		if (items.v[i].required)
			expect(&items, items.v[i].id, FERRY_PROBE_OK);
	}
}

/* A trial that says "works" must have been able to say otherwise; here all of these do work. */
Test(uffd_probe, on_this_kernel_every_feature_works_when_it_is_used)
{
	static const char *const ids[] = {"events", "thread-id", "exact-address",    "minor",
					  "poison", "move",	 "dirty-tracking",   "seccomp",
					  "yama",   "io-uring",	 "process-vm-readv", "memlock"};
	struct items items;

	items.n = ferry_probe_run(items.v);
	for (size_t i = 0; i < sizeof(ids) / sizeof(ids[0]); i++)
		expect(&items, ids[i], FERRY_PROBE_OK);
}

Test(uffd_probe, every_item_has_a_word_of_its_own_and_a_mend_where_it_is_needed)
{
	struct items items;

	items.n = ferry_probe_run(items.v);
	for (size_t i = 0; i < items.n; i++) {
		const struct ferry_probe_item *item = &items.v[i];

		cr_assert_eq(find(&items, item->id), item, "'%s' is there twice", item->id);
		cr_assert(item->what[0] && item->detail[0], "%s", item->id);
		cr_assert_eq(item->mend[0] == '\0', item->verdict == FERRY_PROBE_OK, "%s",
			     item->id);
	}
}

Test(uffd_probe, huge_pages_are_limited_by_the_pool)
{
	struct items items;

	/* One for each test here that probes at the same time. */
	huge_reserve(8);
	items.n = ferry_probe_run(items.v);
	expect(&items, "hugetlb", FERRY_PROBE_OK);
	huge_unreserve();
}

Test(uffd_probe, no_child_and_no_descriptor_is_left_behind)
{
	size_t before = count_fds(getpid());
	struct items items;

	items.n = ferry_probe_run(items.v);
	cr_assert_eq(count_fds(getpid()), before);
	cr_assert_eq(waitpid(-1, NULL, WNOHANG), -1);
	cr_assert_eq(errno, ECHILD);
}

static int probe_as_nobody(int in, int out, void *arg)
{
	struct items *items = arg;

	(void)in;
	(void)out;
	drop_to_nobody();
	items->n = ferry_probe_run(items->v);
	return 0;
}

Test(uffd_probe, an_ordinary_user_is_told_what_to_mend)
{
	struct items *items = mmap(NULL, sizeof(*items), PROT_READ | PROT_WRITE,
				   MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	struct child c = child_start(probe_as_nobody, items);

	cr_assert_eq(child_end(&c), 0);
	expect(items, "userfaultfd", FERRY_PROBE_MISSING);
	expect(items, "userfaultfd-syscall", FERRY_PROBE_MISSING);
	expect(items, "userfaultfd-device", FERRY_PROBE_MISSING);
	expect(items, "kernel-faults", FERRY_PROBE_MISSING);
	expect(items, "attach", FERRY_PROBE_MISSING);
	expect(items, "seccomp", FERRY_PROBE_MISSING);
	cr_assert(strstr(find(items, "userfaultfd")->mend, "setfacl"));
}
