/* SPDX-License-Identifier: Apache-2.0 */
/* The program discards and remaps memory while it is being filled. */
#include <criterion/criterion.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>

#include "engine_support.h"

#define N_PAGES	   4096u
#define SLOW	   (16u << 20) /* bytes per second: the push takes about a second */
#define RUN	   16u	       /* pages that are discarded at once */
#define N_STORMERS 8
#define N_ROUNDS   300

TestSuite(engine_discard, .timeout = 120);

Test(engine_discard, discarded_anonymous_pages_read_as_zero)
{
	struct source s = {.kind = MEMORY_ANON, .n_pages = N_PAGES};
	struct target t = {.max_bytes_per_second = SLOW};
	const size_t run_bytes = RUN * (size_t)PAGE;

	source_start(&s);
	target_start(&t, &s);
	target_push(&t);
	target_await_pages(&t, N_PAGES / 4);
	/* Every second run: some of it came already, some is on its way, some is still to come. */
	for (uint64_t p = 0; p < N_PAGES; p += 2 * RUN) {
		uint8_t *at = t.memory + p * PAGE;

		cr_assert_eq(madvise(at, run_bytes, MADV_DONTNEED), 0);
		cr_assert(page_is_zero(at, PAGE), "page %llu was discarded", (unsigned long long)p);
	}
	target_await(&t, PAGEFERRY_COMPLETE);
	for (uint64_t p = 0; p < N_PAGES; p++) {
		const uint8_t *at = t.memory + p * PAGE;

		if (p / RUN % 2)
			cr_assert(page_is(&s, p, at), "page %llu", (unsigned long long)p);
		else
			cr_assert(page_is_zero(at, PAGE), "page %llu", (unsigned long long)p);
	}
	target_close(&t);
	source_end(&s);
}

Test(engine_discard, discarded_private_huge_pages_read_as_zero, .fini = huge_unreserve)
{
	struct source s = {.kind = MEMORY_HUGE, .n_pages = 8};
	struct target t = {0};

	huge_reserve(16);
	source_start(&s);
	target_start(&t, &s);
	cr_assert(page_is(&s, 0, t.memory));
	/* One that came, and one that did not. */
	cr_assert_eq(madvise(t.memory, 2 * (size_t)HUGE, MADV_DONTNEED), 0);
	target_push(&t);
	target_await(&t, PAGEFERRY_COMPLETE);
	for (uint64_t p = 0; p < 8; p++)
		cr_assert(p < 2 ? page_is_zero(t.memory + p * HUGE, HUGE)
				: page_is(&s, p, t.memory + p * HUGE),
			  "page %llu", (unsigned long long)p);
	target_close(&t);
	source_end(&s);
}

struct storm {
	uint8_t *memory;
	const struct source *source;
	_Atomic uint64_t n_wrong;
	_Atomic uint32_t next;
};

/* Discard a run of one's own, see that it reads as zero, and that the neighbours are what they may
 * be. */
static void *stormer(void *arg)
{
	struct storm *w = arg;
	uint64_t mine = atomic_fetch_add(&w->next, 1), x = mine * 77 + 1;

	for (int i = 0; i < N_ROUNDS; i++) {
		uint64_t n_runs = N_PAGES / RUN / N_STORMERS, run, page;
		uint8_t *at;

		x ^= x << 13, x ^= x >> 7, x ^= x << 17;
		run = x % n_runs * N_STORMERS + mine;
		at = w->memory + run * RUN * PAGE;
		if (madvise(at, RUN * (size_t)PAGE, MADV_DONTNEED) < 0)
			atomic_fetch_add(&w->n_wrong, 1);
		if (!page_is_zero(at + x % RUN * PAGE, PAGE))
			atomic_fetch_add(&w->n_wrong, 1);
		page = x % N_PAGES;
		at = w->memory + page * PAGE;
		if (!page_is_zero(at, 1) && !page_is(w->source, page, at) &&
		    !page_is_zero(at, PAGE))
			atomic_fetch_add(&w->n_wrong, 1);
	}
	return NULL;
}

static void storm(struct target *t, const struct source *s)
{
	struct storm w = {.memory = t->memory, .source = s};
	pthread_t threads[N_STORMERS];

	for (int i = 0; i < N_STORMERS; i++)
		cr_assert_eq(pthread_create(&threads[i], NULL, stormer, &w), 0);
	for (int i = 0; i < N_STORMERS; i++)
		pthread_join(threads[i], NULL);
	cr_assert_eq(w.n_wrong, 0);
}

Test(engine_discard, a_storm_of_discards_never_hangs)
{
	struct source s = {.kind = MEMORY_ANON, .n_pages = N_PAGES};
	struct target t = {.max_bytes_per_second = SLOW};

	source_start(&s);
	target_start(&t, &s);
	target_push(&t);
	storm(&t, &s);
	target_await(&t, PAGEFERRY_COMPLETE);
	target_close(&t);
	source_end(&s);
}

static void *discard_all(void *arg)
{
	struct target *t = arg;

	for (int i = 0; i < N_ROUNDS; i++)
		for (uint64_t p = 0; p < N_PAGES; p += RUN)
			cr_assert_eq(
				madvise(t->memory + p * PAGE, RUN * (size_t)PAGE, MADV_DONTNEED),
				0);
	return NULL;
}

Test(engine_discard, discards_go_on_while_the_source_is_gone)
{
	struct source s = {.kind = MEMORY_ANON, .n_pages = N_PAGES};
	struct target t = {0};
	struct toucher touchers[N_STORMERS];
	pthread_t threads[2];

	source_start(&s);
	target_start(&t, &s);
	source_kill(&s);
	target_await(&t, PAGEFERRY_LINK_LOST);
	/* Threads wait for pages that nobody can give, until these are discarded. */
	for (int i = 0; i < N_STORMERS; i++)
		touch_start(&touchers[i], t.memory + (uint64_t)i * (N_PAGES / N_STORMERS) * PAGE);
	for (int i = 0; i < 2; i++)
		cr_assert_eq(pthread_create(&threads[i], NULL, discard_all, &t), 0);
	for (int i = 0; i < 2; i++)
		pthread_join(threads[i], NULL);
	for (int i = 0; i < N_STORMERS; i++)
		cr_assert_eq(touch_end(&touchers[i]), 0);
	/* All of it was discarded, so nothing is missing any more, source or not. */
	target_await(&t, PAGEFERRY_COMPLETE);
	target_close(&t);
}

static void unmap_during_push(enum memory_kind kind)
{
	struct source s = {.kind = kind, .n_pages = N_PAGES};
	struct target t = {.max_bytes_per_second = SLOW};

	source_start(&s);
	target_start(&t, &s);
	target_push(&t);
	target_await_pages(&t, N_PAGES / 8);
	cr_assert_eq(munmap(t.memory, N_PAGES * (size_t)PAGE), 0);
	target_await(&t, PAGEFERRY_COMPLETE);
	target_close(&t);
	source_end(&s);
}

Test(engine_discard, anonymous_memory_is_unmapped_during_the_push)
{
	unmap_during_push(MEMORY_ANON);
}

Test(engine_discard, shared_memory_is_unmapped_during_the_push)
{
	unmap_during_push(MEMORY_SHARED);
}

static void unmap_part_during_push(enum memory_kind kind)
{
	struct source s = {.kind = kind, .n_pages = N_PAGES};
	struct target t = {.max_bytes_per_second = SLOW};
	uint64_t first = N_PAGES / 2, n = N_PAGES / 4;

	source_start(&s);
	target_start(&t, &s);
	target_push(&t);
	target_await_pages(&t, N_PAGES / 8);
	cr_assert_eq(munmap(t.memory + first * PAGE, n * PAGE), 0);
	target_await(&t, PAGEFERRY_COMPLETE);
	for (uint64_t p = 0; p < N_PAGES; p++)
		if (p < first || p >= first + n)
			cr_assert(page_is(&s, p, t.memory + p * PAGE), "page %llu",
				  (unsigned long long)p);
	target_close(&t);
	source_end(&s);
}

Test(engine_discard, part_of_anonymous_memory_is_unmapped_during_the_push)
{
	unmap_part_during_push(MEMORY_ANON);
}

Test(engine_discard, part_of_shared_memory_is_unmapped_during_the_push)
{
	unmap_part_during_push(MEMORY_SHARED);
}

static void move_during_push(enum memory_kind kind)
{
	struct source s = {.kind = kind, .n_pages = N_PAGES};
	struct target t = {.max_bytes_per_second = SLOW};
	size_t bytes = N_PAGES * (size_t)PAGE;

	source_start(&s);
	target_start(&t, &s);
	target_push(&t);
	for (int i = 1; i <= 3; i++) {
		uint8_t *to = map_anon(bytes), *at;

		target_await_pages(&t, (uint64_t)i * N_PAGES / 8);
		at = mremap(t.memory, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, to);
		cr_assert(at == to, "mremap: %s", strerror(errno));
		t.memory = at;
		/* A page that has hardly come yet is fetched at the new place. */
		cr_assert(page_is(&s, N_PAGES - (uint64_t)i,
				  t.memory + (N_PAGES - (uint64_t)i) * PAGE));
	}
	target_await(&t, PAGEFERRY_COMPLETE);
	assert_all(&s, t.memory);
	target_close(&t);
	source_end(&s);
}

Test(engine_discard, anonymous_memory_moves_during_the_push)
{
	move_during_push(MEMORY_ANON);
}

Test(engine_discard, shared_memory_moves_during_the_push)
{
	move_during_push(MEMORY_SHARED);
}
