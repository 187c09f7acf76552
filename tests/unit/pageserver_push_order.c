/* SPDX-License-Identifier: Apache-2.0 */
#include <criterion/criterion.h>
#include <stdlib.h>

#include "base/util.h"
#include "pageserver/push_order.h"

#define BIG (1u << 20)

struct order {
	struct ferry_layout layout;
	struct ferry_bitmap sent[FERRY_MAX_REGIONS];
	struct ferry_bitmap seen[FERRY_MAX_REGIONS];
	struct ferry_push_order *o;
};

static void setup(struct order *t, uint32_t n_regions, uint64_t n_pages, uint32_t page_bytes)
{
	*t = (struct order){.layout = {.n_regions = n_regions}};
	for (uint32_t i = 0; i < n_regions; i++) {
		t->layout.regions[i] = (struct ferry_region_desc){
			.id = i, .page_bytes = page_bytes, .n_pages = n_pages + i};
		cr_assert_eq(ferry_bitmap_init(&t->sent[i], n_pages + i), 0);
		cr_assert_eq(ferry_bitmap_init(&t->seen[i], n_pages + i), 0);
	}
	cr_assert_eq(ferry_push_order_new(&t->o, &t->layout, t->sent), 0);
}

static void teardown(struct order *t)
{
	ferry_push_order_free(t->o);
	for (uint32_t i = 0; i < t->layout.n_regions; i++) {
		ferry_bitmap_fini(&t->sent[i]);
		ferry_bitmap_fini(&t->seen[i]);
	}
}

/* The next run, with what must hold for every run checked. */
static bool next(struct order *t, uint32_t max_bytes, struct ferry_run *r)
{
	if (!ferry_push_order_next(t->o, max_bytes, r))
		return false;
	cr_assert_lt(r->region, t->layout.n_regions);
	cr_assert_geq(r->n_pages, 1);
	cr_assert_leq(r->first_page + r->n_pages, t->layout.regions[r->region].n_pages);
	if (r->n_pages > 1)
		cr_assert_leq(r->n_pages * t->layout.regions[r->region].page_bytes, max_bytes);
	cr_assert_eq(ferry_bitmap_set_range(&t->seen[r->region], r->first_page, r->n_pages),
		     r->n_pages, "a page was proposed twice");
	cr_assert_eq(ferry_bitmap_next_clear(&t->sent[r->region], r->first_page,
					     r->first_page + r->n_pages),
		     r->first_page + r->n_pages, "a run was not claimed");
	return true;
}

static void everything_was_seen(struct order *t)
{
	for (uint32_t i = 0; i < t->layout.n_regions; i++) {
		cr_assert_eq(ferry_bitmap_count(&t->seen[i]), t->layout.regions[i].n_pages);
		cr_assert_eq(ferry_bitmap_count(&t->sent[i]), t->layout.regions[i].n_pages);
	}
}

Test(push_order, without_faults_it_sweeps_in_long_aligned_runs)
{
	struct ferry_run r;
	struct order t;
	uint64_t expected = 0;

	setup(&t, 1, 1000, 4096);
	while (next(&t, BIG, &r)) {
		cr_assert_eq(r.first_page, expected);
		cr_assert_eq(r.first_page % 256, 0);
		expected += r.n_pages;
	}
	everything_was_seen(&t);
	teardown(&t);
}

Test(push_order, every_page_comes_exactly_once_whatever_the_faults)
{
	for (unsigned int seed = 1; seed <= 40; seed++) {
		uint32_t page_bytes = seed % 4 ? 4096 : 65536;
		struct ferry_run r;
		struct order t;
		uint64_t claimed = 0;

		srand(seed);
		setup(&t, 1 + seed % 3, 1 + (uint64_t)rand() % 20000, page_bytes);
		do {
			for (int n = rand() % 4; n; n--) {
				uint32_t region = (uint32_t)rand() % t.layout.n_regions;
				uint64_t pages = t.layout.regions[region].n_pages;
				uint64_t page = (uint64_t)rand() % pages;

				/* What is asked for is answered, and so counts as sent. */
				if (rand() % 2) {
					ferry_bitmap_test_and_set(&t.sent[region], page);
					claimed +=
						!ferry_bitmap_test_and_set(&t.seen[region], page);
				}
				ferry_push_order_fault(t.o, region, page);
			}
		} while (next(&t, 4096u << rand() % 9, &r));
		everything_was_seen(&t);
		cr_assert_not(next(&t, BIG, &r), "it goes on after its end");
		teardown(&t);
	}
}

Test(push_order, the_first_runs_after_a_fault_are_next_to_it_and_short)
{
	struct ferry_run r;
	struct order t;

	setup(&t, 1, 1 << 20, 4096);
	ferry_bitmap_test_and_set(&t.sent[0], 500000);
	ferry_push_order_fault(t.o, 0, 500000);
	cr_assert(next(&t, BIG, &r));
	cr_assert_eq(r.first_page, 500001, "ahead first");
	cr_assert_eq(r.n_pages, 4);
	cr_assert(next(&t, BIG, &r));
	cr_assert_eq(r.first_page + r.n_pages, 500000, "then behind");
	cr_assert(next(&t, BIG, &r));
	cr_assert_eq(r.first_page, 500005);
	cr_assert_gt(r.n_pages, 4);
	for (int i = 0; i < 10; i++)
		cr_assert(next(&t, BIG, &r));
	cr_assert_eq(r.n_pages, 256, "runs grow up to the limit");
	teardown(&t);
}

Test(push_order, a_new_fault_is_served_before_older_pivots_go_on)
{
	struct ferry_run r;
	struct order t;

	setup(&t, 1, 1 << 20, 4096);
	ferry_push_order_fault(t.o, 0, 100000);
	for (int i = 0; i < 5; i++)
		cr_assert(next(&t, BIG, &r));
	ferry_push_order_fault(t.o, 0, 900000);
	cr_assert(next(&t, BIG, &r));
	cr_assert_eq(r.first_page, 900000);
	cr_assert(next(&t, BIG, &r));
	cr_assert_lt(llabs((long long)r.first_page - 100000), 2000, "both take turns");
	cr_assert(next(&t, BIG, &r));
	cr_assert_lt(llabs((long long)r.first_page - 900000), 100);
	teardown(&t);
}

Test(push_order, eight_pivots_share_the_runs)
{
	unsigned int per_pivot[8] = {0};
	struct ferry_run r;
	struct order t;

	setup(&t, 1, 1 << 20, 4096);
	for (uint64_t i = 0; i < 8; i++)
		ferry_push_order_fault(t.o, 0, 50000 + i * 100000);
	for (int i = 0; i < 80; i++) {
		cr_assert(next(&t, BIG, &r));
		per_pivot[r.first_page / 100000]++;
	}
	for (int i = 0; i < 8; i++)
		cr_assert_eq(per_pivot[i], 10);
	teardown(&t);
}

Test(push_order, a_walk_through_memory_is_one_pivot_and_is_kept_ahead_of)
{
	struct ferry_run r;
	struct order t;
	int elsewhere = 0;

	setup(&t, 1, 1 << 18, 4096);
	/* Another place, which must not be pushed out by the steps of the walk. */
	ferry_push_order_fault(t.o, 0, 200000);
	for (uint64_t page = 1000; page < 1010; page++) {
		ferry_push_order_fault(t.o, 0, page);
		for (int i = 0; i < 2; i++) {
			cr_assert(next(&t, BIG, &r));
			cr_assert(r.first_page < 4000 || r.first_page > 190000);
			elsewhere += r.first_page > 190000;
		}
	}
	cr_assert_eq(elsewhere, 10, "one pivot each, in turn");
	cr_assert(ferry_bitmap_test(&t.sent[0], 1200));
	teardown(&t);
}

Test(push_order, pivots_end_and_the_sweep_takes_the_rest)
{
	bool swept = false;
	struct ferry_run r;
	struct order t;

	setup(&t, 1, 100000, 4096);
	ferry_push_order_fault(t.o, 0, 50000);
	while (next(&t, BIG, &r))
		swept |= r.first_page == 0;
	cr_assert(swept);
	everything_was_seen(&t);
	teardown(&t);
}

Test(push_order, faults_at_the_edges_and_in_the_last_region)
{
	struct ferry_run r;
	struct order t;

	setup(&t, FERRY_MAX_REGIONS, 10, 4096);
	ferry_push_order_fault(t.o, 0, 0);
	ferry_push_order_fault(t.o, FERRY_MAX_REGIONS - 1, 40);
	cr_assert(next(&t, BIG, &r));
	cr_assert_eq(r.region, FERRY_MAX_REGIONS - 1);
	cr_assert_eq(r.first_page, 40);
	cr_assert_eq(r.n_pages, 1);
	cr_assert(next(&t, BIG, &r));
	cr_assert_eq(r.region, 0);
	cr_assert_eq(r.first_page, 0);
	while (next(&t, BIG, &r))
		;
	everything_was_seen(&t);
	teardown(&t);
}

Test(push_order, a_page_larger_than_the_limit_still_comes)
{
	struct ferry_run r;
	struct order t;

	setup(&t, 1, 5, 2 << 20);
	ferry_push_order_fault(t.o, 0, 3);
	for (int i = 0; i < 5; i++) {
		cr_assert(next(&t, 4096, &r));
		cr_assert_eq(r.n_pages, 1);
		if (!i)
			cr_assert_eq(r.first_page, 3);
	}
	cr_assert_not(next(&t, 4096, &r));
	teardown(&t);
}

Test(push_order, a_burst_of_hints_loses_only_the_oldest)
{
	struct ferry_run r;
	struct order t;

	setup(&t, 1, 1 << 20, 4096);
	for (uint64_t i = 0; i < 1000; i++)
		ferry_push_order_fault(t.o, 0, i * 1000);
	cr_assert(next(&t, BIG, &r));
	cr_assert_eq(r.first_page, 999000);
	teardown(&t);
}
