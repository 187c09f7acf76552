/* SPDX-License-Identifier: Apache-2.0 */
#include "pageserver/bucket.h"

#include <criterion/criterion.h>

#include "base/clock.h"
#include "base/util.h"

#define SECOND_NS (1ull * FERRY_NS_PER_S)
#define START_NS  (12345 * SECOND_NS)
#define ALL	  INT32_MAX

static const uint64_t rates[] = {1, 2, 7, 100, 333, 999, 1000, 1001, 123457, 1000000007};

/* Bytes that flow in within @for_ns, when somebody looks every @step_ns. */
static int64_t flowed(uint64_t rate, uint64_t for_ns, uint64_t step_ns)
{
	struct ferry_bucket b = {.at_ns = START_NS};

	/* So that nothing is cut off. */
	ferry_bucket_take(&b, 1ull << 40);
	for (uint64_t at = step_ns; at <= for_ns; at += step_ns)
		cr_assert_gt(ferry_bucket_fill(&b, rate, ALL, START_NS + at), 0);
	return b.bytes + (1ll << 40);
}

Test(bucket, gives_what_the_rate_says_however_often_one_looks)
{
	static const uint64_t steps[] = {50000, 1000000, 1099999, 100000000, FERRY_NS_PER_S};

	for (size_t r = 0; r < FERRY_ARRAY_SIZE(rates); r++)
		for (size_t i = 0; i < FERRY_ARRAY_SIZE(steps); i++) {
			uint64_t for_ns = 10 * SECOND_NS / steps[i] * steps[i];
			double want = (double)rates[r] * (double)for_ns / (double)FERRY_NS_PER_S;
			int64_t got = flowed(rates[r], for_ns, steps[i]);

			/* A byte may be half there. */
			cr_expect(got > want - 1.001 && got < want + 1.001,
				  "rate %llu, steps of %llu ns: %lld bytes, not %.1f",
				  (unsigned long long)rates[r], (unsigned long long)steps[i],
				  (long long)got, want);
		}
}

Test(bucket, says_when_to_come_again)
{
	for (size_t r = 0; r < FERRY_ARRAY_SIZE(rates); r++) {
		struct ferry_bucket b = {.at_ns = START_NS};
		uint64_t now = START_NS, wait_ns;
		uint32_t n = 0;

		ferry_bucket_take(&b, rates[r] / 2 + 5);
		/* Pauses of more than a second count as one: nobody sleeps for longer. */
		while ((wait_ns = ferry_bucket_fill(&b, rates[r], 4096, now))) {
			now += FERRY_MIN(wait_ns, SECOND_NS);
			cr_assert_lt(++n, 20, "rate %llu: it never comes",
				     (unsigned long long)rates[r]);
		}
		cr_expect_geq((double)(now - START_NS) / FERRY_NS_PER_S * (double)rates[r],
			      (double)(rates[r] / 2 + 5));
	}
}

Test(bucket, no_rate_is_too_high_nor_debt_too_large)
{
	struct ferry_bucket b = {.at_ns = START_NS};

	cr_assert_eq(ferry_bucket_fill(&b, UINT64_MAX, 4096, START_NS + SECOND_NS), 0);
	cr_assert_eq(b.bytes, 4096);
	cr_assert(b.rest >= 0 && b.rest < 1);
	ferry_bucket_take(&b, 1ull << 62);
	cr_assert_eq(ferry_bucket_fill(&b, 1, 4096, START_NS + 2 * SECOND_NS), SECOND_NS);
}

Test(bucket, holds_no_more_than_it_does_and_forgets_without_a_limit)
{
	struct ferry_bucket b = {.at_ns = START_NS};

	cr_assert_eq(ferry_bucket_fill(&b, 1000, 100, START_NS + 99 * FERRY_NS_PER_MS), 0);
	cr_assert_eq(b.bytes, 99);
	cr_assert_eq(ferry_bucket_fill(&b, 1000, 100, START_NS + 101 * FERRY_NS_PER_MS), 0);
	cr_assert_eq(b.bytes, 100);
	/* An hour is worth a second. */
	cr_assert_eq(ferry_bucket_fill(&b, 1000, 5000, START_NS + 3600 * SECOND_NS), 0);
	cr_assert_eq(b.bytes, 1100);
	ferry_bucket_take(&b, 1000000);
	cr_assert_eq(ferry_bucket_fill(&b, 0, 5000, START_NS + 3600 * SECOND_NS), 0);
	cr_assert_eq(b.bytes, 0);
}
