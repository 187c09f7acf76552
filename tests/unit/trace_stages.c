/* SPDX-License-Identifier: Apache-2.0 */
/* Stages, and the clocks that they need. */
#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include "trace/stages.h"

/* A fault whose stages are 10, 20 (out), 30 (source), 40 (back), 50 us; the source's clock is
 * @offset_ns behind ours. */
static struct ferry_trace_record fault(uint64_t at_ns, int64_t offset_ns)
{
	return (struct ferry_trace_record){
		.type = FERRY_TRACE_FAULT,
		.time_ns = at_ns,
		.fault =
			{
				.id = 1,
				.first_sent_ns = at_ns + 10000,
				.sent_ns = at_ns + 10000,
				.source_received_ns = at_ns + 30000 - (uint64_t)offset_ns,
				.source_answered_ns = at_ns + 60000 - (uint64_t)offset_ns,
				.received_ns = at_ns + 100000,
				.placed_ns = at_ns + 150000,
				.sends = 1,
			},
	};
}

static uint64_t sum(const struct ferry_split *s)
{
	uint64_t n = 0;

	for (unsigned int i = 0; i < FERRY_N_SPANS; i++)
		if (ferry_split_has(s, i))
			n += s->ns[i];
	return n;
}

Test(trace_stages, with_clocks_that_agree_each_stage_is_exact)
{
	struct ferry_trace_record rec = fault(1000000000, 123456789);
	struct ferry_split s;

	ferry_split_at(&rec, true, 123456789, 5, &s);
	cr_assert_eq(s.total_ns, 150000);
	cr_assert_eq(s.ns[FERRY_SPAN_QUEUE], 10000);
	cr_assert_eq(s.ns[FERRY_SPAN_OUT], 20000);
	cr_assert_eq(s.ns[FERRY_SPAN_SOURCE], 30000);
	cr_assert_eq(s.ns[FERRY_SPAN_BACK], 40000);
	cr_assert_eq(s.ns[FERRY_SPAN_PLACE], 50000);
	cr_assert_eq(s.net_ns, 60000);
	cr_assert_eq(s.clamped_ns, 0);
	cr_assert_eq(sum(&s), s.total_ns);
	cr_assert_not(ferry_split_has(&s, FERRY_SPAN_OUTAGE));
}

/* Wrong by more than a direction took: that one becomes 0, the other all of the network, the sum
 * stays. */
static void check_clamp(int64_t error_ns, uint64_t out, uint64_t clamped)
{
	struct ferry_trace_record rec = fault(1000000, 0);
	struct ferry_split s;

	ferry_split_at(&rec, true, error_ns, 70000, &s);
	cr_assert_eq(s.ns[FERRY_SPAN_OUT], out);
	cr_assert_eq(s.ns[FERRY_SPAN_BACK], 60000 - out);
	cr_assert_eq(s.ns[FERRY_SPAN_SOURCE], 30000);
	cr_assert_eq(s.clamped_ns, clamped);
	cr_assert_eq(sum(&s), s.total_ns);
}

Test(trace_stages, wrong_clocks_shift_time_between_the_directions_only)
{
	check_clamp(-20000, 0, 0);
	check_clamp(-20001, 0, 1);
	check_clamp(-90000, 0, 70000);
	check_clamp(40000, 60000, 0);
	check_clamp(40001, 60000, 1);
	check_clamp(19999, 39999, 0);
}

Test(trace_stages, without_clocks_the_source_is_exact_and_the_network_one_figure)
{
	struct ferry_trace_record rec = fault(1000000, 77);
	struct ferry_split s;

	ferry_split_at(&rec, false, 0, 0, &s);
	cr_assert_eq(s.ns[FERRY_SPAN_NET], 60000);
	cr_assert_eq(s.ns[FERRY_SPAN_SOURCE], 30000);
	cr_assert_not(ferry_split_has(&s, FERRY_SPAN_OUT));
	cr_assert_eq(sum(&s), s.total_ns);
}

Test(trace_stages, source_times_that_can_not_be_are_not_used)
{
	struct ferry_trace_record rec = fault(1000000, 0);
	struct ferry_split s;

	rec.fault.source_answered_ns = rec.fault.source_received_ns + 90001; /* more than it took */
	ferry_split_at(&rec, true, 0, 0, &s);
	cr_assert_eq(s.ns[FERRY_SPAN_REMOTE], 90000);
	cr_assert_eq(sum(&s), s.total_ns);
	rec.fault.source_answered_ns = rec.fault.source_received_ns - 1;
	ferry_split_at(&rec, true, 0, 0, &s);
	cr_assert_eq(s.ns[FERRY_SPAN_REMOTE], 90000);
	rec.fault.source_received_ns = 0;
	rec.fault.source_answered_ns = 0;
	ferry_split_at(&rec, true, 0, 0, &s);
	cr_assert_eq(s.ns[FERRY_SPAN_REMOTE], 90000);
	cr_assert_not(ferry_split_has(&s, FERRY_SPAN_SOURCE));
}

Test(trace_stages, each_way_a_fault_can_end)
{
	struct ferry_trace_record rec = fault(1000000, 0);
	struct ferry_split s;

	/* Asked again after a loss. */
	rec.fault.first_sent_ns = 1002000;
	ferry_split_at(&rec, true, 0, 0, &s);
	cr_assert_eq(s.ns[FERRY_SPAN_QUEUE], 2000);
	cr_assert_eq(s.ns[FERRY_SPAN_OUTAGE], 8000);
	cr_assert_eq(sum(&s), s.total_ns);

	/* The push was faster, sent or not. */
	rec = fault(1000000, 0);
	rec.fault.received_ns = rec.fault.source_received_ns = rec.fault.source_answered_ns = 0;
	rec.flags = FERRY_FAULT_F_PUSHED;
	ferry_split_at(&rec, true, 0, 0, &s);
	cr_assert_eq(s.ns[FERRY_SPAN_QUEUE], 10000);
	cr_assert_eq(s.ns[FERRY_SPAN_PUSH], 140000);
	rec.fault.sent_ns = rec.fault.first_sent_ns = 0;
	ferry_split_at(&rec, true, 0, 0, &s);
	cr_assert_eq(s.ns[FERRY_SPAN_PUSH], 150000);
	cr_assert_eq(s.has, 1u << FERRY_SPAN_PUSH);

	/* From here. */
	rec.flags = FERRY_FAULT_F_LOCAL;
	ferry_split_at(&rec, true, 0, 0, &s);
	cr_assert_eq(s.ns[FERRY_SPAN_LOCAL], 150000);
	cr_assert_eq(s.has, 1u << FERRY_SPAN_LOCAL);
}

Test(trace_stages, random_times_in_any_order_still_add_up)
{
	srand(7);
	for (int i = 0; i < 100000; i++) {
		struct ferry_trace_record rec = {.type = FERRY_TRACE_FAULT};
		uint64_t *words = &rec.fault.first_sent_ns;
		struct ferry_split s;

		rec.time_ns = (uint64_t)rand() % 1000;
		for (int k = 0; k < 6; k++)
			words[k] = (uint64_t)rand() % 1200;
		ferry_split_at(&rec, rand() % 2, rand() % 2000 - 1000, 10, &s);
		cr_assert_eq(sum(&s), s.total_ns, "round %d", i);
	}
}

/* --- clocks ----------------------------------------------------------------------------------- */

static struct ferry_trace_record ping(uint64_t at_ns, int64_t offset_ns, uint64_t uncertainty_ns)
{
	return (struct ferry_trace_record){
		.type = FERRY_TRACE_CLOCK,
		.time_ns = at_ns,
		.clock = {.offset_ns = offset_ns, .uncertainty_ns = uncertainty_ns},
	};
}

Test(trace_clocks, the_truth_lies_within_the_uncertainty_and_good_samples_help_far_ones)
{
	const int64_t truth = -5000000;
	struct ferry_trace_record v[200];
	struct ferry_trace_log log = {.clocks = {.v = v, .n = 200}};
	struct ferry_clocks c;

	srand(3);
	for (int i = 0; i < 200; i++) {
		uint64_t u = 10000 + (uint64_t)rand() % 1000000;

		v[i] = ping(1000000000 + (uint64_t)i * 1000000,
			    truth + rand() % (int)(2 * u) - (int64_t)u, u);
	}
	cr_assert_eq(ferry_clocks_init(&c, &log), 0);
	for (uint64_t at = 1000000000; at < 1200000000; at += 777777) {
		int64_t offset;
		uint64_t u;

		cr_assert(ferry_clocks_at(&c, at, &offset, &u));
		cr_assert_leq(llabs(offset - truth), (int64_t)u);
		cr_assert_lt(u, 60000, "%llu", (unsigned long long)u);
	}
	ferry_clocks_fini(&c);
}

Test(trace_clocks, faults_compare_clocks_as_well_as_pings_do)
{
	struct ferry_trace_record v[2] = {fault(1000000, 250), fault(3000000, 250)};
	struct ferry_trace_log log = {.faults = {.v = v, .n = 2}};
	struct ferry_clocks c;
	int64_t offset;
	uint64_t u;

	cr_assert_eq(ferry_clocks_init(&c, &log), 0);
	cr_assert(ferry_clocks_at(&c, 2000000, &offset, &u));
	/* 20 us there, 40 us back: the middle is 10 us off, and the uncertainty says so. */
	cr_assert_leq(llabs(offset - 250), 10200);
	cr_assert_leq(llabs(offset - 250), (int64_t)u);
	cr_assert_leq(u, 30500);
	ferry_clocks_fini(&c);
}

Test(trace_clocks, uncertainty_grows_away_from_the_last_comparison)
{
	struct ferry_trace_record v = ping(1000000000, 42, 100);
	struct ferry_trace_log log = {.clocks = {.v = &v, .n = 1}};
	struct ferry_clocks c;
	uint64_t near, far;
	int64_t offset;

	cr_assert_eq(ferry_clocks_init(&c, &log), 0);
	cr_assert(ferry_clocks_at(&c, 1000000000, &offset, &near));
	cr_assert_eq(offset, 42);
	cr_assert(ferry_clocks_at(&c, 2000000000, &offset, &far));
	cr_assert_geq(far, near + 1000000000 / 1000000 * FERRY_CLOCK_DRIFT_PPM);
	cr_assert(ferry_clocks_at(&c, 0, &offset, &far));
	cr_assert_geq(far, near + 1000000000 / 1000000 * FERRY_CLOCK_DRIFT_PPM);
	ferry_clocks_fini(&c);
}

Test(trace_clocks, nothing_known_is_said)
{
	struct ferry_trace_log log = {0};
	struct ferry_clocks c;
	int64_t offset;
	uint64_t u;

	cr_assert_eq(ferry_clocks_init(&c, &log), 0);
	cr_assert_not(ferry_clocks_at(&c, 5, &offset, &u));
	ferry_clocks_fini(&c);
}
