/* SPDX-License-Identifier: Apache-2.0 */
#include <criterion/criterion.h>
#include <pthread.h>
#include <stdlib.h>

#include "base/util.h"
#include "trace/histogram.h"

#define LIMIT (UINT64_C(1) << FERRY_HISTOGRAM_MAX_BITS)

static uint64_t next_random(uint64_t *seed)
{
	*seed ^= *seed << 13;
	*seed ^= *seed >> 7;
	*seed ^= *seed << 17;
	return *seed;
}

static int compare(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

Test(histogram, is_empty_at_first)
{
	static struct ferry_histogram h;

	cr_assert_eq(ferry_histogram_percentile(&h, 500), 0);
	cr_assert_eq(ferry_histogram_percentile(&h, 1000), 0);
}

/* One sample is each percentile of itself, exactly, whatever its size. */
Test(histogram, one_sample_is_exact)
{
	for (unsigned int bit = 0; bit < 64; bit++) {
		for (int d = -1; d <= 1; d++) {
			static const unsigned int permille[] = {0, 1, 500, 999, 1000};
			uint64_t v = (UINT64_C(1) << bit) + (uint64_t)d;

			for (size_t i = 0; i < FERRY_ARRAY_SIZE(permille); i++) {
				struct ferry_histogram h = {0};
				uint64_t got;

				ferry_histogram_add(&h, v);
				cr_assert_eq(h.n, 1);
				cr_assert_eq(h.sum_ns, v);
				cr_assert_eq(h.max_ns, v);
				got = ferry_histogram_percentile(&h, permille[i]);
				cr_assert_eq(got, v < LIMIT ? v : LIMIT - 1, "%llu: %llu",
					     (unsigned long long)v, (unsigned long long)got);
			}
		}
	}
}

/* With a larger sample beside it, the upper edge of the bucket shows: right within 1/32. */
Test(histogram, values_are_right_within_a_thirty_second)
{
	for (uint64_t v = 0; v < LIMIT; v = v < 4096 ? v + 1 : v + v / 37) {
		struct ferry_histogram h = {0};
		uint64_t got;

		ferry_histogram_add(&h, v);
		ferry_histogram_add(&h, LIMIT - 1);
		got = ferry_histogram_percentile(&h, 500);
		cr_assert(got >= v && (got - v) * 32 <= v, "%llu: %llu", (unsigned long long)v,
			  (unsigned long long)got);
	}
}

/* Nearest rank in @sorted, which has @n samples. */
static uint64_t exact(const uint64_t *sorted, size_t n, unsigned int permille)
{
	size_t rank = (n * permille + 999) / 1000;

	return sorted[rank ? rank - 1 : 0];
}

Test(histogram, percentiles_agree_with_sorting)
{
	static const unsigned int permille[] = {0, 1, 10, 100, 500, 900, 990, 999, 1000};
	static uint64_t samples[20000];
	uint64_t seed = 7;

	for (unsigned int round = 0; round < 60; round++) {
		static struct ferry_histogram h;
		size_t n = 1 + next_random(&seed) % FERRY_ARRAY_SIZE(samples);
		unsigned int bits = 1 + round % FERRY_HISTOGRAM_MAX_BITS;

		h = (struct ferry_histogram){0};
		for (size_t i = 0; i < n; i++) {
			/* Skewed like latencies: most are small. */
			unsigned int shift = (unsigned int)(next_random(&seed) % bits);

			samples[i] = next_random(&seed) % (UINT64_C(1) << bits) >> shift;
			ferry_histogram_add(&h, samples[i]);
		}
		qsort(samples, n, sizeof(samples[0]), compare);
		for (size_t i = 0; i < FERRY_ARRAY_SIZE(permille); i++) {
			uint64_t want = exact(samples, n, permille[i]);
			uint64_t got = ferry_histogram_percentile(&h, permille[i]);

			cr_assert(got >= want && (got - want) * 1000 <= want * 32,
				  "round %u, %u permille of %zu: %llu instead of %llu", round,
				  permille[i], n, (unsigned long long)got,
				  (unsigned long long)want);
		}
		cr_assert_eq(ferry_histogram_percentile(&h, 1000), samples[n - 1]);
	}
}

Test(histogram, merging_is_as_if_added_together)
{
	static struct ferry_histogram a, b, both;
	uint64_t seed = 3;

	for (unsigned int i = 0; i < 5000; i++) {
		uint64_t v = next_random(&seed) % 1000000;

		ferry_histogram_add(i % 3 ? &a : &b, v);
		ferry_histogram_add(&both, v);
	}
	ferry_histogram_merge(&a, &b);
	cr_assert_eq(a.n, both.n);
	cr_assert_eq(a.sum_ns, both.sum_ns);
	cr_assert_eq(a.max_ns, both.max_ns);
	for (unsigned int i = 0; i < FERRY_HISTOGRAM_BUCKETS; i++)
		cr_assert_eq(a.buckets[i], both.buckets[i]);
}

#define N_THREADS 4
#define N_EACH	  50000u

static void *add_many(void *arg)
{
	for (uint64_t i = 1; i <= N_EACH; i++)
		ferry_histogram_add(arg, i);
	return NULL;
}

Test(histogram, threads_lose_no_sample)
{
	static struct ferry_histogram h;
	pthread_t threads[N_THREADS];
	uint64_t n = 0;

	for (size_t i = 0; i < N_THREADS; i++)
		cr_assert_eq(pthread_create(&threads[i], NULL, add_many, &h), 0);
	for (size_t i = 0; i < N_THREADS; i++)
		pthread_join(threads[i], NULL);
	for (unsigned int i = 0; i < FERRY_HISTOGRAM_BUCKETS; i++)
		n += h.buckets[i];
	cr_assert_eq(n, N_THREADS * N_EACH);
	cr_assert_eq(h.n, N_THREADS * N_EACH);
	cr_assert_eq(h.max_ns, N_EACH);
	cr_assert_eq(h.sum_ns, (uint64_t)N_THREADS * N_EACH * (N_EACH + 1) / 2);
}
