/* SPDX-License-Identifier: Apache-2.0 */
/* Lazy memory of each kind fills up with what the source has, while threads use it. */
#include <criterion/criterion.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "engine_support.h"

#define N_PAGES	     4096u
#define N_HUGE_PAGES 8u

TestSuite(engine_fill, .timeout = 120);

/* Microseconds. */
static double bucket_begin(int bucket)
{
	return bucket ? (double)(UINT64_C(1) << (bucket - 1)) : 0;
}

/* The buckets have each fault once, and fit the percentiles. */
static void assert_buckets(const struct pageferry_lazy_stats *st)
{
	uint64_t n = 0, n_below_p50 = 0;
	int last = 0;

	for (int b = 0; b < PAGEFERRY_FAULT_BUCKETS; b++) {
		n += st->fault_buckets[b];
		last = st->fault_buckets[b] ? b : last;
		if (bucket_begin(b + 1) <= st->fault_p50_us)
			n_below_p50 += st->fault_buckets[b];
	}
	cr_assert_gt(n, 0);
	cr_assert_eq(n, st->fault_n);
	cr_assert_leq(n_below_p50, (n + 1) / 2);
	/* The edges are right within 3.2 %. */
	cr_assert(st->fault_max_us > bucket_begin(last) * 0.968 &&
			  st->fault_max_us < bucket_begin(last + 1) * 1.032,
		  "bucket %d, longest %.1f us", last, st->fault_max_us);
}

static void fill_under_load(struct source *s)
{
	struct target t = {0};
	struct readers r = {0};
	struct pageferry_lazy_stats st;

	source_start(s);
	target_start(&t, s);
	readers_start(&r, s, t.memory, 4 * s->n_pages);
	/* Some fault, even where the push is faster than they are. */
	target_await_pages(&t, 1);
	target_push(&t);
	target_await(&t, PAGEFERRY_COMPLETE);
	readers_join(&r);
	assert_all(s, t.memory);
	st = target_stats(&t);
	cr_assert_eq(st.pages_resident, s->n_pages);
	cr_assert_eq(st.pages_total, s->n_pages);
	cr_assert_eq(st.pages_urgent + st.pages_pushed + st.pages_zero, s->n_pages);
	cr_assert(st.fault_p50_us <= st.fault_p99_us && st.fault_p99_us <= st.fault_p999_us &&
		  st.fault_p999_us <= st.fault_max_us);
	assert_buckets(&st);
	target_close(&t);
	source_end(s);
}

Test(engine_fill, anonymous_memory_while_threads_fault_at_random)
{
	struct source s = {.kind = MEMORY_ANON, .n_pages = N_PAGES};

	fill_under_load(&s);
}

Test(engine_fill, shared_memory_while_threads_fault_at_random)
{
	struct source s = {.kind = MEMORY_SHARED, .n_pages = N_PAGES};

	fill_under_load(&s);
}

Test(engine_fill, huge_pages_while_threads_fault_at_random, .fini = huge_unreserve)
{
	struct source s = {.kind = MEMORY_HUGE, .n_pages = N_HUGE_PAGES};

	huge_reserve(2 * N_HUGE_PAGES);
	fill_under_load(&s);
}

Test(engine_fill, without_a_push_only_what_is_touched_comes)
{
	struct source s = {.kind = MEMORY_ANON, .n_pages = N_PAGES};
	struct target t = {0};

	source_start(&s);
	target_start(&t, &s);
	cr_assert(page_is(&s, 0, t.memory));
	cr_assert(page_is(&s, 3, t.memory + 3 * PAGE));
	cr_assert(page_is(&s, N_PAGES - 1, t.memory + (N_PAGES - 1) * (size_t)PAGE));
	/* A thread goes on a moment before its page is counted. */
	target_await_pages(&t, 3);
	cr_assert_eq(target_stats(&t).pages_resident, 3);
	target_push(&t);
	target_await(&t, PAGEFERRY_COMPLETE);
	assert_all(&s, t.memory);
	target_close(&t);
	source_end(&s);
}

Test(engine_fill, pages_that_are_present_are_kept)
{
	struct source s = {.kind = MEMORY_ANON, .n_pages = 64};
	struct target t = {0};
	uint8_t *again;

	source_start(&s);
	target_start(&t, &s);
	target_push(&t);
	target_await(&t, PAGEFERRY_COMPLETE);
	target_close(&t);
	/* Lazy a second time: everything is there, so nothing is fetched nor overwritten. */
	again = t.memory;
	memset(again, 0x5a, PAGE);
	{
		struct pageferry_region region = {.start = again, .bytes = 64 * PAGE};
		struct pageferry_error e;

		cr_assert(pageferry_lazy_new(&t.lazy, &region, 1, NULL, &e) == 0, "%s", e.text);
		cr_assert(pageferry_lazy_connect(t.lazy, s.address, &e) == 0, "%s", e.text);
		target_push(&t);
		target_await(&t, PAGEFERRY_COMPLETE);
	}
	cr_assert_eq(target_stats(&t).pages_urgent + target_stats(&t).pages_pushed, 0);
	cr_assert_eq(again[PAGE - 1], 0x5a);
	cr_assert(page_is(&s, 63, again + 63 * PAGE));
	target_close(&t);
	source_end(&s);
}

/* What is in the file of shared memory is there, also where this process has never touched it. */
Test(engine_fill, pages_that_are_in_the_file_are_kept)
{
	struct source s = {.kind = MEMORY_SHARED, .n_pages = 64};
	struct target t = {0};
	struct pageferry_region region;
	struct pageferry_error e;

	source_start(&s);
	target_start(&t, &s);
	target_push(&t);
	target_await(&t, PAGEFERRY_COMPLETE);
	pageferry_lazy_close(t.lazy);
	cr_assert_eq(pwrite(t.fd, "mine", 4, 5 * PAGE), 4);
	region = (struct pageferry_region){.start = t.memory, .bytes = 64 * PAGE};
	cr_assert(pageferry_lazy_new(&t.lazy, &region, 1, NULL, &e) == 0, "%s", e.text);
	cr_assert(pageferry_lazy_connect(t.lazy, s.address, &e) == 0, "%s", e.text);
	target_push(&t);
	target_await(&t, PAGEFERRY_COMPLETE);
	cr_assert_eq(target_stats(&t).pages_urgent + target_stats(&t).pages_pushed, 0);
	cr_assert_eq(memcmp(t.memory + 5 * PAGE, "mine", 4), 0);
	cr_assert(page_is(&s, 6, t.memory + 6 * PAGE));
	target_close(&t);
	source_end(&s);
}

/* Of a large page that is written in part the kernel shows the rest as zeros: not to be written so. */
Test(engine_fill, files_of_large_pages_while_threads_fault_at_random)
{
	struct source s = {.kind = MEMORY_SHARED, .n_pages = N_PAGES};
	char folder[] = "/tmp/pageferry-XXXXXX";

	cr_assert(mkdtemp(folder));
	cr_assert_eq(unshare(CLONE_NEWNS), 0);
	cr_assert_eq(mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL), 0);
	cr_assert_eq(mount("large", folder, "tmpfs", 0, "huge=always"), 0);
	shared_memory_folder = folder;
	fill_under_load(&s);
	cr_assert_eq(umount2(folder, MNT_DETACH), 0);
	cr_assert_eq(rmdir(folder), 0);
}

struct writers {
	uint8_t *memory;
	_Atomic uint64_t counts[N_PAGES];
	_Atomic uint32_t next;
	_Atomic bool stop;
};

static _Atomic uint64_t *word_of(uint8_t *memory, uint64_t page)
{
	return (_Atomic uint64_t *)(memory + page * PAGE + PAGE / 2);
}

static void *write_at_random(void *arg)
{
	struct writers *w = arg;
	uint64_t x = (atomic_fetch_add(&w->next, 1) + 1) * UINT64_C(0x9e3779b97f4a7c15);

	while (!atomic_load(&w->stop)) {
		x ^= x << 13, x ^= x >> 7, x ^= x << 17;
		atomic_fetch_add(word_of(w->memory, x % N_PAGES), 1);
		atomic_fetch_add(&w->counts[x % N_PAGES], 1);
	}
	return NULL;
}

/* A page that came late, or twice, would take back what was written to it. */
static void fill_while_threads_write(enum memory_kind kind)
{
	struct source s = {.kind = kind, .n_pages = N_PAGES};
	struct target t = {0};
	struct writers *w = calloc(1, sizeof(*w));
	pthread_t threads[4];
	uint8_t page[PAGE];

	source_start(&s);
	target_start(&t, &s);
	w->memory = t.memory;
	for (int i = 0; i < 4; i++)
		cr_assert_eq(pthread_create(&threads[i], NULL, write_at_random, w), 0);
	/* Some wait already when the push begins, and meet it where it is. */
	target_await_pages(&t, 32);
	target_push(&t);
	target_await(&t, PAGEFERRY_COMPLETE);
	atomic_store(&w->stop, true);
	for (int i = 0; i < 4; i++)
		pthread_join(threads[i], NULL);
	for (uint64_t p = 0; p < N_PAGES; p++) {
		uint64_t was;

		page_expect(&s, p, page, PAGE);
		memcpy(&was, page + PAGE / 2, sizeof(was));
		cr_assert_eq(*word_of(t.memory, p) - was, w->counts[p], "page %llu has lost writes",
			     (unsigned long long)p);
	}
	free(w);
	target_close(&t);
	source_end(&s);
}

Test(engine_fill, what_is_written_meanwhile_stays)
{
	for (int i = 0; i < 4; i++) {
		fill_while_threads_write(MEMORY_SHARED);
		fill_while_threads_write(MEMORY_ANON);
	}
}

Test(engine_fill, zero_pages_are_said_to_be_zero)
{
	struct source s = {.kind = MEMORY_ANON, .n_pages = N_PAGES};
	struct target t = {0};
	struct pageferry_lazy_stats st;

	source_start(&s);
	target_start(&t, &s);
	target_push(&t);
	target_await(&t, PAGEFERRY_COMPLETE);
	st = target_stats(&t);
	cr_assert_eq(st.pages_zero, N_PAGES / 8);
	cr_assert_lt(st.wire_bytes, (N_PAGES * 7 / 8) * (uint64_t)PAGE * 102 / 100);
	assert_all(&s, t.memory);
	target_close(&t);
	source_end(&s);
}

static uint64_t allocated(int fd)
{
	struct stat st;

	cr_assert_eq(fstat(fd, &st), 0);
	return (uint64_t)st.st_blocks * 512;
}

Test(engine_fill, holes_of_shared_memory_stay_holes)
{
	struct source s = {.kind = MEMORY_SHARED,
			   .n_pages = 4 * N_PAGES,
			   .hole_first = N_PAGES,
			   .hole_end = 4 * N_PAGES};
	struct target t = {0};
	uint64_t before;

	source_start(&s);
	target_start(&t, &s);
	target_push(&t);
	target_await(&t, PAGEFERRY_COMPLETE);
	before = allocated(t.fd);
	cr_assert_leq(before, N_PAGES * (uint64_t)PAGE, "%llu bytes are allocated",
		      (unsigned long long)before);
	cr_assert_lt(target_stats(&t).wire_bytes, (N_PAGES + 16) * (uint64_t)PAGE);
	/* And read as zeros when they are looked at. */
	assert_all(&s, t.memory);
	target_close(&t);
	source_end(&s);
}

/* Holes are told first. From then on the kernel alone has to do with them, long before the end. */
Test(engine_fill, holes_cost_no_faults)
{
	struct source s = {.kind = MEMORY_ANON,
			   .n_pages = 2 * N_PAGES,
			   .hole_first = N_PAGES,
			   .hole_end = 2 * N_PAGES};
	struct target t = {.max_bytes_per_second = 64 << 10};
	uint64_t page, faults;

	source_start(&s);
	target_start(&t, &s);
	target_push(&t);
	target_await_pages(&t, N_PAGES);
	/* It is known a moment before it is left to the kernel. */
	for (page = s.hole_first; page < s.hole_end; page++) {
		faults = target_stats(&t).faults;
		cr_assert_eq(*(volatile uint8_t *)(t.memory + page * PAGE), 0);
		if (target_stats(&t).faults == faults)
			break;
	}
	cr_assert_lt(page, s.hole_end, "each page of the hole is a fault");
	cr_assert_lt(target_stats(&t).pages_resident, s.n_pages);
	pageferry_lazy_abandon(t.lazy);
	source_end(&s);
}

Test(engine_fill, state_travels_with_the_layout)
{
	static const uint32_t sizes[] = {0, 1, PAGEFERRY_MAX_STATE_BYTES};

	for (int i = 0; i < 3; i++) {
		struct source s = {.kind = MEMORY_ANON, .n_pages = 16, .state_bytes = sizes[i]};
		struct target t = {0};
		const uint8_t *state;
		uint32_t n;

		source_start(&s);
		target_start(&t, &s);
		state = pageferry_lazy_state(t.lazy, &n);
		cr_assert_eq(n, sizes[i]);
		cr_assert_eq(!state, !n);
		for (uint32_t b = 0; b < n; b++)
			cr_assert_eq(state[b], (uint8_t)(b * 7 + 1));
		target_push(&t);
		target_await(&t, PAGEFERRY_COMPLETE);
		target_close(&t);
		source_end(&s);
	}
}

Test(engine_fill, a_held_source_answers_once_it_serves)
{
	struct source s = {.kind = MEMORY_ANON, .n_pages = 64, .hold = true};
	struct target t = {0};
	struct toucher toucher;
	uint64_t before;

	source_start(&s);
	target_start(&t, &s);
	touch_start(&toucher, t.memory + 5 * PAGE);
	/* The source has the request and answers nothing. */
	do
		before = target_stats(&t).requests;
	while (!before);
	cr_assert_eq(target_stats(&t).pages_resident, 0);
	source_serve(&s);
	touch_end(&toucher);
	cr_assert(page_is(&s, 5, t.memory + 5 * PAGE));
	target_push(&t);
	target_await(&t, PAGEFERRY_COMPLETE);
	target_close(&t);
	source_end(&s);
}
