/* SPDX-License-Identifier: Apache-2.0 */
#include <criterion/criterion.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/bitmap.h"
#include "base/util.h"

static const size_t sizes[] = {1, 7, 8, 9, 63, 64, 65, 127, 128, 129, 200};

static uint64_t next_random(uint64_t *seed)
{
	*seed ^= *seed << 13;
	*seed ^= *seed >> 7;
	*seed ^= *seed << 17;
	return *seed;
}

/* The same questions, answered bit by bit. */
static size_t slow_next(const struct ferry_bitmap *b, size_t from, size_t end, bool wanted)
{
	for (size_t i = from; i < end; i++)
		if (ferry_bitmap_test(b, i) == wanted)
			return i;
	return end;
}

static size_t slow_prev_clear(const struct ferry_bitmap *b, size_t from, size_t begin)
{
	for (size_t i = from; i-- > begin;)
		if (!ferry_bitmap_test(b, i))
			return i;
	return SIZE_MAX;
}

static void check_clear_run(const struct ferry_bitmap *b, size_t from, size_t end, size_t max)
{
	size_t to, first = ferry_bitmap_next_clear_run(b, from, end, max, &to);

	cr_assert_eq(first, slow_next(b, from, end, false));
	cr_assert_eq(to, slow_next(b, first, max < end - first ? first + max : end, true));
}

static void fill_random(struct ferry_bitmap *b, uint64_t *seed, unsigned int density)
{
	ferry_bitmap_clear_range(b, 0, b->n_bits);
	for (size_t i = 0; i < b->n_bits; i++)
		if (next_random(seed) % 8 < density)
			ferry_bitmap_test_and_set(b, i);
}

static void check_tail(const struct ferry_bitmap *b)
{
	size_t n = b->n_bits, last = n / 64;

	if (n % 64)
		cr_assert_eq(b->words[last] >> (n % 64), 0, "bits past %zu", n);
}

Test(bitmap, starts_empty_and_may_have_no_bits)
{
	struct ferry_bitmap b;

	cr_assert_eq(ferry_bitmap_init(&b, 0), 0);
	cr_assert_eq(ferry_bitmap_count(&b), 0);
	cr_assert_eq(ferry_bitmap_next_set(&b, 0, 0), 0);
	cr_assert_eq(ferry_bitmap_next_clear(&b, 0, 0), 0);
	cr_assert_eq(ferry_bitmap_prev_clear(&b, 0, 0), SIZE_MAX);
	cr_assert_eq(ferry_bitmap_set_range(&b, 0, 0), 0);
	ferry_bitmap_fini(&b);
	ferry_bitmap_fini(&b);
}

Test(bitmap, single_bits_report_what_was_there)
{
	struct ferry_bitmap b;

	cr_assert_eq(ferry_bitmap_init(&b, 130), 0);
	for (size_t i = 0; i < 130; i++) {
		cr_assert_not(ferry_bitmap_test(&b, i));
		cr_assert_not(ferry_bitmap_test_and_set(&b, i));
		cr_assert(ferry_bitmap_test_and_set(&b, i));
		cr_assert(ferry_bitmap_test(&b, i));
		cr_assert_eq(ferry_bitmap_count(&b), 1);
		cr_assert(ferry_bitmap_test_and_clear(&b, i));
		cr_assert_not(ferry_bitmap_test_and_clear(&b, i));
	}
	ferry_bitmap_fini(&b);
}

/* Every range of every size around words: only its bits change, and the count is theirs. */
Test(bitmap, ranges_change_their_bits_and_no_others)
{
	for (size_t s = 0; s < FERRY_ARRAY_SIZE(sizes); s++) {
		struct ferry_bitmap b;
		size_t n = sizes[s];

		cr_assert_eq(ferry_bitmap_init(&b, n), 0);
		for (size_t first = 0; first <= n; first++) {
			for (size_t len = 0; first + len <= n; len++) {
				cr_assert_eq(ferry_bitmap_set_range(&b, first, len), len);
				cr_assert_eq(ferry_bitmap_set_range(&b, first, len), 0);
				cr_assert_eq(ferry_bitmap_count(&b), len);
				cr_assert_eq(ferry_bitmap_next_set(&b, 0, n), len ? first : n);
				cr_assert_eq(ferry_bitmap_next_clear(&b, first, n), first + len);
				check_tail(&b);
				cr_assert_eq(ferry_bitmap_clear_range(&b, first, len), len);
				cr_assert_eq(ferry_bitmap_clear_range(&b, first, len), 0);
				cr_assert_eq(ferry_bitmap_count(&b), 0);
			}
		}
		ferry_bitmap_fini(&b);
	}
}

Test(bitmap, a_range_counts_only_what_changed)
{
	struct ferry_bitmap b;

	cr_assert_eq(ferry_bitmap_init(&b, 200), 0);
	ferry_bitmap_test_and_set(&b, 63);
	ferry_bitmap_test_and_set(&b, 64);
	cr_assert_eq(ferry_bitmap_set_range(&b, 60, 10), 8);
	cr_assert_eq(ferry_bitmap_clear_range(&b, 0, 200), 10);
	ferry_bitmap_fini(&b);
}

Test(bitmap, searches_agree_with_looking_at_each_bit)
{
	uint64_t seed = 1;

	for (size_t s = 0; s < FERRY_ARRAY_SIZE(sizes); s++) {
		struct ferry_bitmap b;
		size_t n = sizes[s];

		cr_assert_eq(ferry_bitmap_init(&b, n), 0);
		for (unsigned int density = 0; density <= 8; density++) {
			fill_random(&b, &seed, density);
			for (size_t from = 0; from <= n; from++) {
				for (size_t end = 0; end <= n; end++) {
					size_t set = ferry_bitmap_next_set(&b, from, end);
					size_t clear = ferry_bitmap_next_clear(&b, from, end);
					size_t prev = ferry_bitmap_prev_clear(&b, from, end);

					cr_assert_eq(set, slow_next(&b, from, end, true));
					cr_assert_eq(clear, slow_next(&b, from, end, false));
					check_clear_run(&b, from, end, end);
					check_clear_run(&b, from, end, 2);
					cr_assert_eq(prev, slow_prev_clear(&b, from, end));
				}
			}
		}
		ferry_bitmap_fini(&b);
	}
}

/* The wire form is bit i % 8 of byte i / 8, and says nothing about bits past the end. */
Test(bitmap, export_and_import_are_each_others_reverse)
{
	uint64_t seed = 2;

	for (size_t s = 0; s < FERRY_ARRAY_SIZE(sizes); s++) {
		size_t n = sizes[s], first = 64, bytes = ferry_bitmap_n_bytes(n);
		struct ferry_bitmap from, to;
		uint8_t wire[32];

		cr_assert_eq(ferry_bitmap_init(&from, first + n + 70), 0);
		cr_assert_eq(ferry_bitmap_init(&to, first + n + 70), 0);
		fill_random(&from, &seed, 4);
		memset(wire, 0xaa, sizeof(wire));
		ferry_bitmap_export(&from, first, n, wire);
		cr_assert_eq(wire[bytes], 0xaa);
		for (size_t i = 0; i < bytes * 8; i++) {
			bool bit = wire[i / 8] >> (i % 8) & 1;

			cr_assert_eq(bit, i < n && ferry_bitmap_test(&from, first + i));
		}
		if (n % 8)
			wire[bytes - 1] |= (uint8_t)(0xff << (n % 8));
		ferry_bitmap_import(&to, first, n, wire);
		for (size_t i = 0; i < to.n_bits; i++) {
			bool inside = i >= first && i < first + n;

			cr_assert_eq(ferry_bitmap_test(&to, i),
				     inside && ferry_bitmap_test(&from, i));
		}
		ferry_bitmap_fini(&from);
		ferry_bitmap_fini(&to);
	}
}

Test(bitmap, import_keeps_what_is_set)
{
	struct ferry_bitmap b;
	uint8_t wire[2] = {0x01, 0x80};

	cr_assert_eq(ferry_bitmap_init(&b, 16), 0);
	ferry_bitmap_test_and_set(&b, 7);
	ferry_bitmap_import(&b, 0, 16, wire);
	cr_assert_eq(b.words[0], 0x8081);
	ferry_bitmap_fini(&b);
}

/* --- several threads ---------------------------------------------------------------------- */

#define N_THREADS 4
#define N_SHARED  20000u

struct shared {
	struct ferry_bitmap map;
	pthread_barrier_t start;
	_Atomic size_t won;
};

/* Each bit is claimed by exactly one thread, whichever way the threads go over it. */
static void *claim(void *arg)
{
	struct shared *s = arg;
	uint64_t seed = (uint64_t)(uintptr_t)&seed | 1;
	size_t won = 0;

	pthread_barrier_wait(&s->start);
	for (size_t i = 0; i < N_SHARED; i++) {
		size_t first = next_random(&seed) % N_SHARED, n = next_random(&seed) % 100;

		if (n > N_SHARED - first)
			n = N_SHARED - first;
		won += ferry_bitmap_set_range(&s->map, first, n);
		won += !ferry_bitmap_test_and_set(&s->map, first);
	}
	won += ferry_bitmap_set_range(&s->map, 0, N_SHARED);
	atomic_fetch_add(&s->won, won);
	return NULL;
}

Test(bitmap, threads_never_claim_the_same_bit)
{
	pthread_t threads[N_THREADS];
	struct shared s = {.won = 0};

	cr_assert_eq(ferry_bitmap_init(&s.map, N_SHARED), 0);
	pthread_barrier_init(&s.start, NULL, N_THREADS);
	for (size_t i = 0; i < N_THREADS; i++)
		cr_assert_eq(pthread_create(&threads[i], NULL, claim, &s), 0);
	for (size_t i = 0; i < N_THREADS; i++)
		pthread_join(threads[i], NULL);
	cr_assert_eq(s.won, N_SHARED);
	cr_assert_eq(ferry_bitmap_count(&s.map), N_SHARED);
	pthread_barrier_destroy(&s.start);
	ferry_bitmap_fini(&s.map);
}
