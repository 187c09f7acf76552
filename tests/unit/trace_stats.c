/* SPDX-License-Identifier: Apache-2.0 */
#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "trace/stats.h"

static int by_value(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

/* The definition: the smallest value that at least permille/1000 of the values don't exceed. */
static uint64_t by_counting(const uint64_t *v, size_t n, unsigned int permille)
{
	for (size_t i = 0; i < n; i++) {
		size_t not_above = 0;

		for (size_t k = 0; k < n; k++)
			not_above += v[k] <= v[i];
		if (not_above * 1000 >= n * permille)
			return v[i];
	}
	return 0;
}

Test(trace_stats, percentiles_are_those_of_an_exact_count)
{
	const unsigned int permilles[] = {0, 1, 500, 900, 990, 999, 1000};

	srand(11);
	for (size_t n = 1; n < 400; n = n < 20 ? n + 1 : n * 2 + 1) {
		struct ferry_series s = {0};
		uint64_t *v = malloc(n * sizeof(*v));

		for (size_t i = 0; i < n; i++) {
			v[i] = (uint64_t)rand() % 1000;
			cr_assert_eq(ferry_series_add(&s, v[i]), 0);
		}
		qsort(v, n, sizeof(*v), by_value);
		for (size_t p = 0; p < FERRY_ARRAY_SIZE(permilles); p++)
			cr_assert_eq(ferry_series_percentile(&s, permilles[p]),
				     by_counting(v, n, permilles[p]), "n %zu, permille %u", n,
				     permilles[p]);
		ferry_series_fini(&s);
		free(v);
	}
}

Test(trace_stats, an_empty_series_is_zero)
{
	struct ferry_series s = {0};

	cr_assert_eq(ferry_series_percentile(&s, 500), 0);
	cr_assert_eq(ferry_series_mean(&s), 0);
}

static struct ferry_trace_record fault(uint64_t id, uint32_t thread, uint64_t read, uint64_t took)
{
	return (struct ferry_trace_record){
		.type = FERRY_TRACE_FAULT,
		.time_ns = read,
		.fault = {.id = id,
			  .page = id,
			  .thread = thread,
			  .first_sent_ns = read + 1,
			  .sent_ns = read + 1,
			  .received_ns = read + took - 2,
			  .placed_ns = read + took,
			  .sends = 1},
	};
}

static struct ferry_trace_record push(uint32_t n, uint32_t n_new, uint32_t overtaken,
				      uint16_t flags)
{
	return (struct ferry_trace_record){
		.type = FERRY_TRACE_PUSH,
		.flags = flags,
		.time_ns = 5,
		.push = {.n_pages = n, .n_new = n_new, .overtaken = overtaken},
	};
}

Test(trace_stats, faults_are_counted_by_thread_and_by_what_became_of_them)
{
	struct ferry_trace_record faults[] = {fault(1, 10, 1000, 50), fault(2, 11, 1100, 30),
					      fault(3, 10, 1200, 70), fault(4, 11, 1300, 5)};
	struct ferry_trace_record joins[] = {fault(1, 12, 1010, 40)};
	struct ferry_trace_record pushes[] = {push(100, 90, 2, 0),
					      push(50, 50, 0, FERRY_PUSH_F_ZERO)};
	struct ferry_trace_log log = {
		.n_regions = 1,
		.regions = {{.n_pages = 1000, .page_bytes = 4096}},
		.faults = {.v = faults, .n = 4},
		.joins = {.v = joins, .n = 1},
		.pushes = {.v = pushes, .n = 2},
	};
	struct ferry_stats s;
	size_t slowest[3];

	faults[1].flags = FERRY_FAULT_F_PUSHED;
	faults[3].flags = FERRY_FAULT_F_LOCAL;
	cr_assert_eq(ferry_stats_init(&s, &log), 0);
	cr_assert_eq(s.n_messages, 5);
	cr_assert_eq(s.total.n, 3);
	cr_assert_eq(s.waits.n, 5);
	cr_assert_eq(s.n_pushed, 1);
	cr_assert_eq(s.n_local, 1);
	cr_assert_eq(s.n_joined, 1);
	cr_assert_eq(s.threads.n, 3);
	cr_assert_eq(s.threads.v[0].id, 10);
	cr_assert_eq(ferry_series_percentile(&s.threads.v[0].wait, 1000), 70);
	cr_assert_eq(s.threads.v[2].id, 12);
	cr_assert_eq(ferry_series_percentile(&s.threads.v[2].wait, 1000), 40);
	cr_assert_eq(s.regions.n, 1);
	cr_assert_eq(s.regions.v[0].wait.n, 5);
	cr_assert_eq(s.pages_pushed, 90);
	cr_assert_eq(s.pages_in_vain, 10);
	cr_assert_eq(s.pages_overtaken, 1);
	cr_assert_eq(s.pages_said_zero, 50);
	cr_assert_eq(ferry_stats_slowest(&s, &log, slowest, 3), 3);
	cr_assert_eq(slowest[0], 2);
	cr_assert_eq(slowest[1], 0);
	cr_assert_eq(slowest[2], 1);
	cr_assert_eq(ferry_stats_slowest(&s, &log, slowest, 0), 0);
	ferry_stats_fini(&s);
}

Test(trace_stats, live_figures_agree_with_exact_ones_within_a_bucket)
{
	enum { N = 5000 };
	struct ferry_trace_record *v = calloc(N, sizeof(*v));
	struct ferry_live_stats *live = calloc(1, sizeof(*live));
	struct ferry_trace_log log = {
		.n_regions = 1,
		.regions = {{.n_pages = N + 1, .page_bytes = 4096}},
		.faults = {.v = v, .n = N},
	};
	struct ferry_stats exact;

	srand(5);
	for (uint64_t i = 0; i < N; i++) {
		v[i] = fault(i + 1, 1, 1000 + i * 100, 20000 + (uint64_t)rand() % 900000);
		ferry_live_stats_add(live, &v[i]);
	}
	cr_assert_eq(ferry_stats_init(&exact, &log), 0);
	cr_assert_eq(live->n_faults, N);
	for (unsigned int p = 500; p <= 1000; p += 50) {
		uint64_t a = ferry_series_percentile(&exact.total, p);
		uint64_t b = ferry_histogram_percentile(&live->total, p);

		cr_assert(b >= a && b - a <= a / 31 + 1, "%llu %llu", (unsigned long long)a,
			  (unsigned long long)b);
	}
	ferry_stats_fini(&exact);
	free(live);
	free(v);
}
