/* SPDX-License-Identifier: Apache-2.0 */
/* Private memory that nobody touches while it comes is in large pages, and is right; what is kept back for that is so briefly. */
#include <criterion/criterion.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <fcntl.h>
#include <sys/ioctl.h>

#include "base/clock.h"
#include "engine_support.h"
#include "uffd/engine.h"
#include "uffd/gather.h"
#include "uffd/kernel.h"

#define BLOCK_PAGES 512u
#define N_PAGES	    (8 * BLOCK_PAGES)
#define BYTES	    ((size_t)N_PAGES * PAGE)
#define TRIES	    20

TestSuite(engine_gather, .timeout = 120);

/* Bytes of [@at, @at + BYTES) in large pages. */
static size_t in_large_pages(const void *at)
{
	struct page_region found[N_PAGES];
	struct pm_scan_arg arg = {.size = sizeof(arg),
				  .start = (uintptr_t)at,
				  .end = (uintptr_t)at + BYTES,
				  .vec = (uintptr_t)found,
				  .vec_len = N_PAGES,
				  .category_mask = PAGE_IS_HUGE,
				  .return_mask = PAGE_IS_HUGE};
	int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	int n = ioctl(fd, PAGEMAP_SCAN, &arg);
	size_t sum = 0;

	cr_assert_geq(n, 0);
	for (int i = 0; i < n; i++)
		sum += found[i].end - found[i].start;
	close(fd);
	return sum;
}

/* What the kernel gives to who asks for them; 0 also where it can't move them. */
static size_t large_pages_to_be_had(void)
{
	struct ferry_failure f = {0};
	struct ferry_uffd u;
	uint8_t *p;
	size_t n;
	bool can_move;

	if (ferry_uffd_open(&u, UFFD_FEATURE_MOVE, &f) < 0)
		cr_skip_test("no userfaultfd: run 'pageferry probe'");
	can_move = u.features & UFFD_FEATURE_MOVE;
	ferry_uffd_close(&u);
	if (!can_move)
		cr_skip_test("this kernel can't move pages (Linux 6.8)");
	if (ferry_engine_large_pages_are_off())
		cr_skip_test("large pages are switched off on this host");
	p = map_anon(BYTES);
	madvise(p, BYTES, MADV_HUGEPAGE);
	memset(p, 1, BYTES);
	n = in_large_pages(p);
	munmap(p, BYTES);
	return n;
}

/* One move; returns bytes in large pages. */
static size_t move(uint64_t flags)
{
	struct source s = {.n_pages = N_PAGES, .is_dense = true};
	struct target t = {.flags = flags};
	size_t n;

	source_start(&s);
	target_start(&t, &s);
	cr_assert_eq((uintptr_t)t.memory % HUGE, 0, "memory of this size begins at a multiple of 2 MiB");
	target_push(&t);
	target_await(&t, PAGEFERRY_COMPLETE);
	assert_all(&s, t.memory);
	cr_assert_eq(target_stats(&t).pages_pushed, N_PAGES);
	n = in_large_pages(t.memory);
	target_close(&t);
	source_end(&s);
	return n;
}

Test(engine_gather, idle_memory_comes_in_large_pages)
{
	size_t to_be_had = 0, got = 0;

	/* Whether the kernel has them varies, and a machine that stalls lets go what it keeps back. */
	for (int i = 0; i < TRIES && (!to_be_had || got < BYTES); i++) {
		to_be_had = large_pages_to_be_had();
		got = move(0);
	}
	cr_assert(got == BYTES || to_be_had < BYTES, "%zu bytes of %zu", got, to_be_had);
}

Test(engine_gather, none_where_they_are_not_wanted)
{
	cr_assert_eq(move(PAGEFERRY_NO_LARGE_PAGES), 0);
}

Test(engine_gather, what_is_kept_back_is_let_go_when_nothing_comes)
{
	struct source s = {.n_pages = N_PAGES, .is_dense = true};
	struct target t = {.max_bytes_per_second = 64 << 10}; /* a block in half a minute */
	uint64_t there;

	source_start(&s);
	target_start(&t, &s);
	target_push(&t);
	target_await_pages(&t, 1);
	there = target_stats(&t).pages_resident;
	cr_assert_lt(there, BLOCK_PAGES);
	for (uint64_t p = 0; p < there; p++)
		cr_assert(page_is(&s, p, t.memory + p * PAGE));
	pageferry_lazy_abandon(t.lazy);
	source_kill(&s);
}

Test(engine_gather, threads_have_the_right_pages_meanwhile)
{
	for (int i = 0; i < 8; i++) {
		struct source s = {.n_pages = N_PAGES, .is_dense = true};
		struct target t = {0};
		/* One block, a part of one, and all. */
		struct readers r = {.n_first = i % 3 == 0 ? BLOCK_PAGES : i % 3 == 1 ? 100 : 0};

		source_start(&s);
		target_start(&t, &s);
		readers_start(&r, &s, t.memory, 2000);
		target_push(&t);
		target_await(&t, PAGEFERRY_COMPLETE);
		readers_join(&r);
		cr_assert_eq(r.n_wrong, 0);
		assert_all(&s, t.memory);
		target_close(&t);
		source_end(&s);
	}
}

struct discarder {
	uint8_t *memory;
	atomic_bool stop;
	bool gone[N_PAGES];
};

static void *discard(void *arg)
{
	struct discarder *d = arg;
	unsigned int seed = 5;

	for (unsigned int n = 0; !d->stop && n < 200; n++) {
		size_t page = (size_t)rand_r(&seed) % N_PAGES;

		cr_assert_eq(madvise(d->memory + page * PAGE, PAGE, MADV_DONTNEED), 0);
		d->gone[page] = true;
		usleep(200);
	}
	return NULL;
}

Test(engine_gather, what_was_discarded_stays_zero)
{
	for (int i = 0; i < 8; i++) {
		struct source s = {.n_pages = N_PAGES, .is_dense = true};
		struct target t = {0};
		static struct discarder d;
		pthread_t thread;

		source_start(&s);
		target_start(&t, &s);
		d = (struct discarder){.memory = t.memory};
		cr_assert_eq(pthread_create(&thread, NULL, discard, &d), 0);
		target_push(&t);
		target_await(&t, PAGEFERRY_COMPLETE);
		d.stop = true;
		pthread_join(thread, NULL);
		for (size_t p = 0; p < N_PAGES; p++)
			cr_assert(d.gone[p] ? page_is_zero(t.memory + p * PAGE, PAGE)
					    : page_is(&s, p, t.memory + p * PAGE),
				  "page %zu, discarded: %d", p, d.gone[p]);
		target_close(&t);
		source_end(&s);
	}
}

/* --- what is begun, and when it is let go ------------------------------------------------------- */

#define FIRST 3u /* the first page that begins a block */

static struct ferry_target *target_of(struct ferry_gather *g)
{
	static struct ferry_target t;
	struct ferry_layout layout = {.n_regions = 2};
	struct ferry_failure f = {0};

	if (!large_pages_to_be_had())
		cr_skip_test("no large page is free");
	for (uint32_t i = 0; i < 2; i++) {
		layout.regions[i] = (struct ferry_region_desc){
			.id = i, .n_pages = 3 * BLOCK_PAGES, .page_bytes = PAGE};
		t.regions[i].info = (struct ferry_target_region){
			.desc = layout.regions[i], .kind = i ? FERRY_MAPPING_SHARED : FERRY_MAPPING_ANON};
		t.regions[i].start = 64ull * HUGE - FIRST * PAGE;
		t.regions[i].bytes = 3ull * HUGE;
	}
	t.n_regions = 2;
	cr_assert_eq(ferry_pager_init(&t.pager, &layout), 0);
	assert_ok(ferry_uffd_open(&t.uffd, FERRY_TARGET_UFFD_FEATURES, &f), f);
	ferry_gather_init(g, &t);
	cr_assert(g->map);
	return &t;
}

static struct ferry_run run(uint32_t region, uint64_t first, uint32_t n)
{
	return (struct ferry_run){.region = region, .n_pages = n, .first_page = first};
}

/* Receives @n pages from @first on. Return: were they to be gathered? */
static bool receive(struct ferry_gather *g, uint64_t first, uint32_t n)
{
	struct ferry_run r = run(0, first, n);
	uint8_t *room = ferry_gather_room(g, &r);

	if (!room)
		return false;
	cr_assert_eq(room, g->block + (size_t)g->held.n_pages * PAGE);
	memset(room, 7, (size_t)n * PAGE);
	ferry_gather_add(g, &r);
	return true;
}

static void done(struct ferry_gather *g, struct ferry_target *t)
{
	ferry_gather_fini(g);
	ferry_uffd_close(&t->uffd);
	ferry_pager_fini(&t->pager);
}

Test(engine_gather, a_block_goes_on_where_it_is)
{
	struct ferry_gather g;
	struct ferry_target *t = target_of(&g);
	struct ferry_run other = run(1, FIRST, 64);

	cr_assert_not(receive(&g, 0, 64), "it begins before the block");
	cr_assert_not(receive(&g, FIRST + 64, 64), "it begins in it");
	cr_assert_not(receive(&g, FIRST, BLOCK_PAGES + 1), "it ends behind it");
	cr_assert_not(receive(&g, FIRST + 2 * BLOCK_PAGES, 64), "the block is not all of the region's");
	cr_assert_null(ferry_gather_room(&g, &other), "it is shared memory");

	cr_assert(receive(&g, FIRST, 64));
	cr_assert_not(receive(&g, FIRST, 64), "it came before");
	cr_assert_not(receive(&g, FIRST + 128, 64), "some are left out");
	cr_assert(receive(&g, FIRST + 64, 192));
	cr_assert_not(receive(&g, FIRST + 256, 257), "it ends behind the block");
	cr_assert_not(ferry_gather_can_move(&g));
	cr_assert(receive(&g, FIRST + 256, 256));
	cr_assert(ferry_gather_can_move(&g) && ferry_gather_is_due(&g));
	cr_assert_eq(ferry_pager_fault(&t->pager, 0, FIRST + 7), FERRY_FAULT_ASK);
	cr_assert_not(ferry_gather_can_move(&g), "a thread waits for it");
	done(&g, t);
}

Test(engine_gather, what_somebody_knows_or_wants_is_not_begun)
{
	struct ferry_gather g;
	struct ferry_target *t = target_of(&g);
	struct ferry_run one = run(0, FIRST + BLOCK_PAGES - 1, 1);

	ferry_pager_placed(&t->pager, &one);
	cr_assert_not(receive(&g, FIRST, 64));
	cr_assert_eq(ferry_pager_fault(&t->pager, 0, FIRST + BLOCK_PAGES), FERRY_FAULT_ASK);
	cr_assert_not(receive(&g, FIRST + BLOCK_PAGES, 64));
	done(&g, t);
}

Test(engine_gather, who_waits_for_a_page_is_not_kept_waiting)
{
	struct ferry_gather g;
	struct ferry_target *t = target_of(&g);

	cr_assert(receive(&g, FIRST, 64));
	cr_assert_eq(ferry_pager_fault(&t->pager, 0, FIRST - 1), FERRY_FAULT_ASK);
	cr_assert_eq(ferry_pager_fault(&t->pager, 0, FIRST + 5), FERRY_FAULT_ASK);
	cr_assert(ferry_gather_is_due(&g));
	done(&g, t);
}

/* The next block is in a large page again. */
Test(engine_gather, what_is_left_of_a_block_that_was_torn_is_given_back)
{
	struct ferry_gather g;
	struct ferry_target *t = target_of(&g);
	uint32_t n = 0, n_new = 0;

	cr_assert(receive(&g, FIRST, BLOCK_PAGES));
	/* Nothing is registered where it belongs. */
	cr_assert_eq(ferry_gather_move(&g, &n, &n_new), 0);
	cr_assert_eq(n + n_new, 0);
	/* As the kernel does where it moves a part of it. */
	cr_assert_eq(madvise(g.block + PAGE, PAGE, MADV_DONTNEED), 0);
	ferry_gather_end(&g);
	cr_assert_eq(g.held.n_pages + g.block[0], 0);
	done(&g, t);
}

/* What is held is let go while the next run is being received behind it, whatever the kernel does
 * with large pages. */
Test(engine_gather, what_is_being_received_stays)
{
	struct ferry_gather g;
	struct ferry_target *t = target_of(&g);
	struct ferry_run next = run(0, FIRST + 64, 64);
	uint8_t *room;

	cr_assert(receive(&g, FIRST, 64));
	room = ferry_gather_room(&g, &next);
	cr_assert(room);
	memset(room, 8, 32 * PAGE);
	cr_assert_eq(madvise(g.block, PAGE, MADV_DONTNEED), 0);
	ferry_gather_end(&g);
	cr_assert(room[0] == 8 && room[31 * PAGE] == 8);
	done(&g, t);
}

Test(engine_gather, what_is_kept_back_too_long_is_due)
{
	struct ferry_gather g;
	struct ferry_target *t = target_of(&g);

	cr_assert_not(ferry_gather_is_due(&g), "there is nothing");
	cr_assert(receive(&g, FIRST, 64));
	g.since_ns -= 1000 * (uint64_t)FERRY_NS_PER_MS;
	cr_assert(ferry_gather_is_due(&g));
	done(&g, t);
}
