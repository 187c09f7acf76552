// SPDX-License-Identifier: Apache-2.0
/* Own userfaultfds, and what placing a run of pages does in each state that it can find. */
#include "uffd/place.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "uffd/kernel.h"
#include "uffd_support.h"

#define RUN 8u /* pages */

static struct ferry_uffd u = FERRY_UFFD_NONE;
static uint8_t *data; /* RUN pages, each filled with 'a' + its number */

static void set_up(void)
{
	struct ferry_failure f = {0};

	assert_ok(ferry_uffd_open(&u, UFFD_FEATURE_MISSING_SHMEM, &f), f);
	data = map_anon(RUN * PAGE);
	for (unsigned int i = 0; i < RUN; i++)
		memset(data + i * PAGE, 'a' + (int)i, PAGE);
}

static void tear_down(void)
{
	ferry_uffd_close(&u);
	huge_unreserve();
}

TestSuite(uffd_place, .init = set_up, .fini = tear_down, .timeout = 60);

static uint8_t *registered(uint8_t *mem, size_t len)
{
	int r = ferry_uffd_register(&u, hva(mem), len);

	cr_assert_eq(r, 0, "register: %s", strerror(-r));
	return mem;
}

static void expect_run(const uint8_t *mem, unsigned int first, unsigned int n)
{
	for (unsigned int i = 0; i < n; i++) {
		cr_assert_eq(memcmp(mem + i * PAGE, data + (first + i) * PAGE, PAGE), 0,
			     "page %u is not what was placed", first + i);
	}
}

static bool is_present(const uint8_t *mem)
{
	unsigned char in = 0;

	cr_assert(mincore((void *)(uintptr_t)mem, PAGE, &in) == 0);
	return in & 1;
}

static void serve_one_touch(uint8_t *mem, uint32_t page_bytes, const void *content)
{
	struct ferry_placed p;
	struct toucher t;
	uint64_t at;

	touch_start(&t, mem + page_bytes + 5);
	at = next_fault(&u) & ~(uint64_t)(page_bytes - 1);
	cr_assert_eq(at, hva(mem).v + page_bytes);
	cr_assert_eq(ferry_place_copy(&u, (struct ferry_hva){at}, content, 1, page_bytes, &p), 0);
	cr_assert_eq(p.n_new, 1);
	cr_assert_eq(p.n_dup, 0);
	cr_assert_eq(touch_end(&t), ((const uint8_t *)content)[5]);
}

Test(uffd_place, serves_a_touch_of_anonymous_memory)
{
	serve_one_touch(registered(map_anon(2 * PAGE), 2 * PAGE), PAGE, data);
}

Test(uffd_place, serves_a_touch_of_shared_memory)
{
	serve_one_touch(registered(map_shared(2 * PAGE, "guest"), 2 * PAGE), PAGE, data);
}

Test(uffd_place, serves_a_touch_of_huge_pages)
{
	uint8_t *content = map_anon(HUGE);

	huge_reserve(2);
	memset(content, 'h', HUGE);
	serve_one_touch(registered(map_huge(2 * HUGE), 2 * HUGE), HUGE, content);
}

Test(uffd_place, a_whole_run_is_new)
{
	uint8_t *mem = registered(map_anon(RUN * PAGE), RUN * PAGE);
	struct ferry_placed p;

	cr_assert_eq(ferry_place_copy(&u, hva(mem), data, RUN, PAGE, &p), 0);
	cr_assert_eq(p.n_new, RUN);
	cr_assert_eq(p.n_dup, 0);
	expect_run(mem, 0, RUN);
}

Test(uffd_place, an_empty_run_is_nothing)
{
	uint8_t *mem = registered(map_anon(PAGE), PAGE);
	struct ferry_placed p;

	cr_assert_eq(ferry_place_copy(&u, hva(mem), data, 0, PAGE, &p), 0);
	cr_assert_eq(p.n_new + p.n_dup, 0);
	cr_assert_not(is_present(mem));
}

/* Every subset of present pages: the first, the last, neighbours, all, none. */
Test(uffd_place, present_pages_are_stepped_over_and_left_alone)
{
	static const uint8_t theirs[PAGE] = {'X'};
	const unsigned int n = 5;

	for (unsigned int present = 0; present < 1u << n; present++) {
		uint8_t *mem = registered(map_anon(n * PAGE), n * PAGE);
		struct ferry_placed p;
		uint32_t n_present = (uint32_t)__builtin_popcount(present);

		for (unsigned int i = 0; i < n; i++) {
			if (present >> i & 1)
				ferry_place_copy(&u, hva(mem + i * PAGE), theirs, 1, PAGE, &p);
		}
		cr_assert_eq(ferry_place_copy(&u, hva(mem), data, n, PAGE, &p), 0);
		cr_assert_eq(p.n_new, n - n_present, "with %x present", present);
		cr_assert_eq(p.n_dup, n_present, "with %x present", present);
		for (unsigned int i = 0; i < n; i++) {
			if (present >> i & 1)
				cr_assert_eq(mem[i * PAGE], 'X', "page %u was overwritten", i);
			else
				expect_run(mem + i * PAGE, i, 1);
		}
		munmap(mem, n * PAGE);
	}
}

/* Whoever made the page present may have left its waiters asleep. */
Test(uffd_place, waiters_on_a_present_page_are_woken)
{
	uint8_t *mem = registered(map_anon(3 * PAGE), 3 * PAGE);
	struct uffdio_copy silent = {
		.dst = hva(mem).v + PAGE,
		.src = hva(data).v + PAGE,
		.len = PAGE,
		.mode = UFFDIO_COPY_MODE_DONTWAKE,
	};
	struct ferry_placed p;
	struct toucher t;

	touch_start(&t, mem + PAGE);
	next_fault(&u);
	cr_assert_eq(ioctl(u.fd, UFFDIO_COPY, &silent), 0);
	cr_assert_eq(ferry_place_copy(&u, hva(mem), data, 3, PAGE, &p), 0);
	cr_assert_eq(p.n_dup, 1);
	cr_assert_eq(touch_end(&t), 'b');
}

Test(uffd_place, a_run_may_cross_from_one_mapping_into_the_next)
{
	/* For every place where the mappings may meet. */
	for (unsigned int cut = 1; cut < RUN; cut++) {
		uint8_t *mem = map_anon(RUN * PAGE);
		struct ferry_placed p;

		cr_assert_eq(madvise(mem, cut * PAGE, MADV_DONTFORK), 0);
		registered(mem, RUN * PAGE);
		cr_assert_eq(ferry_place_copy(&u, hva(mem), data, RUN, PAGE, &p), 0);
		cr_assert_eq(p.n_new, RUN);
		expect_run(mem, 0, RUN);
		munmap(mem, RUN * PAGE);
	}
}

Test(uffd_place, the_end_of_the_mapping_is_an_error_that_says_how_far_it_came)
{
	uint8_t *mem = map_anon(RUN * PAGE);
	struct ferry_placed p;

	munmap(mem + 5 * PAGE, PAGE);
	registered(mem, 5 * PAGE);
	cr_assert_eq(ferry_place_copy(&u, hva(mem), data, RUN, PAGE, &p), -ENOENT);
	cr_assert_eq(p.n_new, 5);
	cr_assert_eq(p.n_dup, 0);
	expect_run(mem, 0, 5);
}

Test(uffd_place, memory_that_is_not_registered_is_an_error)
{
	uint8_t *mem = map_anon(RUN * PAGE);
	struct ferry_placed p;

	cr_assert_eq(ferry_place_copy(&u, hva(mem), data, RUN, PAGE, &p), -ENOENT);
	cr_assert_eq(p.n_new + p.n_dup, 0);
	cr_assert_not(is_present(mem));
}

struct remover {
	pthread_t thread;
	uint8_t *at;
};

static void *remove_page(void *arg)
{
	struct remover *r = arg;

	madvise(r->at, PAGE, MADV_DONTNEED);
	return NULL;
}

Test(uffd_place, while_the_mapping_changes_the_caller_is_told_to_read_events)
{
	struct ferry_failure f = {0};
	struct remover remover;
	struct pollfd poll_in;
	struct ferry_placed p;
	struct uffd_msg msg;
	uint8_t *mem;
	int r;

	ferry_uffd_close(&u);
	assert_ok(ferry_uffd_open(&u, UFFD_FEATURE_EVENT_REMOVE, &f), f);
	mem = registered(map_anon(4 * PAGE), 4 * PAGE);
	cr_assert_eq(ferry_place_copy(&u, hva(mem), data, 1, PAGE, &p), 0);

	remover.at = mem;
	cr_assert_eq(pthread_create(&remover.thread, NULL, remove_page, &remover), 0);
	poll_in = (struct pollfd){.fd = u.fd, .events = POLLIN};
	cr_assert_eq(poll(&poll_in, 1, -1), 1);
	cr_assert_eq(ferry_place_copy(&u, hva(mem + PAGE), data, 3, PAGE, &p), -EAGAIN);
	cr_assert_eq(p.n_new + p.n_dup, 0);

	cr_assert_eq(read(u.fd, &msg, sizeof(msg)), (ssize_t)sizeof(msg));
	cr_assert_eq(msg.event, UFFD_EVENT_REMOVE);
	/* Until the removing thread has run again the mapping is still changing. */
	while ((r = ferry_place_copy(&u, hva(mem + PAGE), data, 3, PAGE, &p)) == -EAGAIN)
		sched_yield();
	cr_assert_eq(r, 0);
	cr_assert_eq(p.n_new, 3);
	pthread_join(remover.thread, NULL);
}

static void expect_zeroes(uint8_t *mem, uint32_t page_bytes, bool is_hugetlb)
{
	uint8_t *zeroes = map_anon(page_bytes);
	uint8_t *theirs = map_anon(page_bytes);
	struct ferry_placed p;

	memset(theirs, 'X', page_bytes);
	mlock(zeroes, page_bytes);
	registered(mem, 3 * page_bytes);
	cr_assert_eq(ferry_place_copy(&u, hva(mem + page_bytes), theirs, 1, page_bytes, &p), 0);
	cr_assert_eq(ferry_place_zero(&u, hva(mem), zeroes, 3, page_bytes, is_hugetlb, &p), 0);
	cr_assert_eq(p.n_new, 2);
	cr_assert_eq(p.n_dup, 1);
	cr_assert_eq(memcmp(mem, zeroes, page_bytes), 0);
	cr_assert_eq(memcmp(mem + page_bytes, theirs, page_bytes), 0);
	cr_assert_eq(memcmp(mem + 2 * page_bytes, zeroes, page_bytes), 0);
}

Test(uffd_place, zero_pages_in_anonymous_memory)
{
	expect_zeroes(map_anon(3 * PAGE), PAGE, false);
}

Test(uffd_place, zero_pages_in_shared_memory)
{
	expect_zeroes(map_shared(3 * PAGE, "guest"), PAGE, false);
}

Test(uffd_place, zero_pages_in_huge_pages)
{
	huge_reserve(3);
	expect_zeroes(map_huge(3 * HUGE), HUGE, true);
}

/* The kernel says that the page is there when it is the pool that has none. */
static void expect_no_huge_page(int flags)
{
	uint8_t *content = map_anon(HUGE);
	uint8_t *hog, *mem;
	struct ferry_placed p;
	int r;

	huge_reserve(1);
	hog = map_huge(HUGE);
	while (mmap(NULL, HUGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0) !=
	       MAP_FAILED)
		;
	mem = mmap(NULL, HUGE, PROT_READ | PROT_WRITE,
		   MAP_ANONYMOUS | MAP_HUGETLB | MAP_NORESERVE | flags, -1, 0);
	cr_assert_neq(mem, MAP_FAILED);
	registered(mem, HUGE);
	memset(content, 'h', HUGE);
	r = ferry_place_copy(&u, hva(mem), content, 1, HUGE, &p);
	cr_assert_eq(r, -ENOMEM, "%d, %u new, %u dup", r, p.n_new, p.n_dup);
	cr_assert_eq(p.n_new + p.n_dup, 0);

	munmap(hog, HUGE);
	cr_assert_eq(ferry_place_copy(&u, hva(mem), content, 1, HUGE, &p), 0);
	cr_assert_eq(p.n_new, 1);
	cr_assert_eq(mem[HUGE - 1], 'h');
	cr_assert_eq(ferry_place_copy(&u, hva(mem), content, 1, HUGE, &p), 0);
	cr_assert_eq(p.n_dup, 1);
}

Test(uffd_place, without_a_free_huge_page_a_private_page_is_not_taken_for_present)
{
	expect_no_huge_page(MAP_PRIVATE);
}

Test(uffd_place, without_a_free_huge_page_a_shared_page_is_not_taken_for_present)
{
	expect_no_huge_page(MAP_SHARED);
}

Test(uffd_place, a_shared_huge_page_that_another_mapping_filled_is_present)
{
	_cleanup_close_ int fd = memfd_create("huge.ram", MFD_HUGETLB | MFD_CLOEXEC);
	uint8_t *content = map_anon(HUGE);
	uint8_t *mem, *other;
	struct ferry_placed p;

	huge_reserve(1);
	cr_assert_eq(ftruncate(fd, HUGE), 0);
	mem = mmap(NULL, HUGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	other = mmap(NULL, HUGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	cr_assert(mem != MAP_FAILED && other != MAP_FAILED);
	registered(mem, HUGE);
	memset(other, 'o', HUGE);
	cr_assert_eq(ferry_place_copy(&u, hva(mem), content, 1, HUGE, &p), 0);
	cr_assert_eq(p.n_dup, 1);
	cr_assert_eq(mem[0], 'o');
}

Test(uffd_place, a_zero_page_wakes_who_waits_for_it)
{
	uint8_t *mem = registered(map_anon(PAGE), PAGE);
	struct ferry_placed p;
	struct toucher t;

	touch_start(&t, mem);
	next_fault(&u);
	cr_assert_eq(ferry_place_zero(&u, hva(mem), data, 1, PAGE, false, &p), 0);
	cr_assert_eq(touch_end(&t), 0);
}

Test(uffd_place, unregistering_lets_the_memory_be_used_as_any_other)
{
	uint8_t *mem = registered(map_anon(2 * PAGE), 2 * PAGE);
	struct ferry_placed p;

	cr_assert_eq(ferry_place_copy(&u, hva(mem), data, 1, PAGE, &p), 0);
	cr_assert_eq(ferry_uffd_unregister(&u, hva(mem), 2 * PAGE), 0);
	cr_assert_eq(mem[0], 'a');
	cr_assert_eq(mem[PAGE], 0);
}

Test(uffd_place, a_wake_makes_waiters_fault_anew)
{
	uint8_t *mem = registered(map_anon(PAGE), PAGE);
	struct ferry_placed p;
	struct toucher t;

	touch_start(&t, mem);
	next_fault(&u);
	cr_assert_eq(ferry_uffd_wake(&u, hva(mem), PAGE), 0);
	cr_assert_eq(next_fault(&u), hva(mem).v);
	cr_assert_eq(ferry_place_copy(&u, hva(mem), data, 1, PAGE, &p), 0);
	cr_assert_eq(touch_end(&t), 'a');
}

Test(uffd_place, another_userfaultfd_cannot_take_a_range)
{
	uint8_t *mem = registered(map_anon(PAGE), PAGE);
	struct ferry_uffd other;
	struct ferry_failure f = {0};

	assert_ok(ferry_uffd_open(&other, 0, &f), f);
	cr_assert_eq(ferry_uffd_register(&other, hva(mem), PAGE), -EBUSY);
	ferry_uffd_close(&other);
}

Test(uffd_place, an_ordinary_file_cannot_be_registered)
{
	FILE *file = fopen("/proc/self/exe", "re");
	uint8_t *mem = mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE, fileno(file), 0);

	cr_assert_neq(mem, MAP_FAILED);
	cr_assert_eq(ferry_uffd_register(&u, hva(mem), PAGE), -EINVAL);
	fclose(file);
}

Test(uffd_place, features_that_the_kernel_lacks_are_left_out)
{
	struct ferry_failure f = {0};

	ferry_uffd_close(&u);
	assert_ok(ferry_uffd_open(&u, UINT64_C(1) << 62 | UFFD_FEATURE_THREAD_ID, &f), f);
	cr_assert_eq(u.features, UFFD_FEATURE_THREAD_ID);
}

Test(uffd_place, closing_twice_and_nothing_is_fine)
{
	ferry_uffd_close(&u);
	ferry_uffd_close(&u);
	ferry_uffd_close(NULL);
	ferry_uffd_release(&u);
	ferry_uffd_release(NULL);
	cr_assert_eq(u.fd, -1);
}

static int open_as_nobody(int in, int out, void *arg)
{
	struct ferry_failure f = {0};
	struct ferry_uffd mine;
	int r;

	(void)in;
	(void)arg;
	drop_to_nobody();
	r = ferry_uffd_open(&mine, 0, &f);
	if (write(out, f.text, strlen(f.text)) < 0)
		return 1;
	return -r;
}

Test(uffd_place, without_permission_the_text_says_how_to_get_it)
{
	struct child c = child_start(open_as_nobody, NULL);
	char text[FERRY_FAILURE_TEXT_MAX] = "";

	cr_assert(read(c.from, text, sizeof(text) - 1) > 0);
	cr_assert_eq(child_end(&c), EPERM);
	cr_assert(strstr(text, "sysctl vm.unprivileged_userfaultfd=1"), "%s", text);
	cr_assert(strstr(text, "setfacl"), "%s", text);
}
