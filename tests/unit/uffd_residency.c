/* SPDX-License-Identifier: Apache-2.0 */
#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "uffd/pager.h"
#include "uffd/pending.h"

static struct ferry_pager *make(uint32_t n_regions, const uint64_t *n_pages)
{
	struct ferry_layout *layout = calloc(1, sizeof(*layout));
	struct ferry_pager *p = calloc(1, sizeof(*p));

	layout->n_regions = n_regions;
	for (uint32_t i = 0; i < n_regions; i++)
		layout->regions[i].n_pages = n_pages[i];
	cr_assert_eq(ferry_pager_init(p, layout), 0);
	free(layout);
	return p;
}

static void done(struct ferry_pager *p)
{
	ferry_pager_fini(p);
	free(p);
}

static void place(struct ferry_pager *p, uint32_t region, uint64_t first, uint32_t n)
{
	struct ferry_run run = {.region = region, .first_page = first, .n_pages = n};

	ferry_pager_placed(p, &run);
}

Test(claims, are_for_one_and_not_for_what_is_known)
{
	const uint64_t n_pages[] = {100};
	struct ferry_pager *p = make(1, n_pages);
	struct ferry_run run = {.first_page = 10, .n_pages = 20}, rest;

	place(p, 0, 25, 1);
	cr_assert_eq(ferry_pager_claim(p, &run), 15);
	cr_assert_eq(ferry_pager_claim(p, &run), 0);
	/* Behind the known page nothing was claimed. */
	rest = (struct ferry_run){.first_page = 26, .n_pages = 4};
	cr_assert_eq(ferry_pager_claim(p, &rest), 4);
	/* Up to where another's begins. */
	rest = (struct ferry_run){.first_page = 5, .n_pages = 20};
	cr_assert_eq(ferry_pager_claim(p, &rest), 5);
	rest = (struct ferry_run){.first_page = 12, .n_pages = 3};
	ferry_pager_unclaim(p, &rest);
	cr_assert_eq(ferry_pager_claim(p, &run), 0);
	cr_assert_eq(ferry_pager_claim(p, &rest), 3);
	done(p);
}

Test(residency, shares_of_small_memories_are_exact)
{
	const uint64_t sizes[][3] = {
		{1, 1, 1}, {63, 64, 65}, {100, 1, 27}, {5000, 77, 4096}, {7, 3, 8191}};
	uint16_t got[64];

	srand(5);
	for (size_t t = 0; t < FERRY_ARRAY_SIZE(sizes); t++) {
		struct ferry_pager *p = make(3, sizes[t]);

		for (uint32_t r = 0; r < 3; r++)
			for (uint64_t i = 0; i < sizes[t][r]; i++)
				if (rand() % 3)
					place(p, r, i, 1);
		ferry_pager_residency(p, got, 64);
		for (uint64_t c = 0; c < 64; c++) {
			uint64_t from = p->pages_total * c / 64, n_known = 0, at = 0;
			uint64_t to = FERRY_MAX(p->pages_total * (c + 1) / 64, from + 1);

			for (uint32_t r = 0; r < 3; r++)
				for (uint64_t i = 0; i < sizes[t][r]; i++, at++)
					if (at >= from && at < to)
						n_known +=
							ferry_bitmap_test(&p->regions[r].known, i);
			cr_assert_eq(got[c], n_known * 1000 / (to - from), "%zu, share %d", t,
				     (int)c);
		}
		done(p);
	}
}

Test(residency, large_memories_are_sampled_about_right)
{
	const uint64_t n = UINT64_C(64) << 20; /* pages: 256 GiB */
	struct ferry_pager *p = make(1, &n);
	uint16_t got[64];

	ferry_pager_residency(p, got, 64);
	for (unsigned int c = 0; c < 64; c++)
		cr_assert_eq(got[c], 0);
	/* The first half, and half of the share behind it. */
	place(p, 0, 0, (uint32_t)(n / 2 + n / 128));
	ferry_pager_residency(p, got, 64);
	for (unsigned int c = 0; c < 64; c++) {
		unsigned int right = c < 32 ? 1000 : c == 32 ? 500 : 0;

		cr_assert(got[c] + 10u >= right && got[c] <= right + 10u, "share %u: %u", c,
			  got[c]);
	}
	done(p);
}

static unsigned int n_waiting(const _Atomic uint64_t *since)
{
	unsigned int n = 0;

	for (unsigned int i = 0; i < FERRY_PENDING_SLOTS; i++)
		n += !!since[i];
	return n;
}

/* Whatever order they come and go in, also when slots move. */
Test(residency, who_waits_is_told_until_it_ends)
{
	_Atomic uint64_t *since = calloc(FERRY_PENDING_SLOTS, sizeof(*since));
	struct ferry_histogram *h = calloc(2, sizeof(*h));
	struct ferry_pending *p = calloc(1, sizeof(*p));
	bool waits[3000] = {false};
	unsigned int n = 0;

	p->since_ns = since;
	p->fault_ns = &h[0];
	p->local_ns = &h[1];
	srand(9);
	for (unsigned int i = 0; i < 20000; i++) {
		uint64_t page = (uint64_t)rand() % 3000;

		if (waits[page]) {
			ferry_pending_settle(p, 0, page, 1000, FERRY_FAULT_F_PUSHED);
			n--;
		} else if (n < FERRY_MAX_PENDING) {
			struct ferry_pending_message m = {.page = page, .read_ns = 500 + page};

			ferry_pending_read(p, &m);
			n++;
		} else {
			continue;
		}
		waits[page] = !waits[page];
		if (i % 100 == 0) {
			uint64_t sum = 0, right = 0;

			for (unsigned int k = 0; k < FERRY_PENDING_SLOTS; k++)
				sum += since[k];
			for (unsigned int k = 0; k < 3000; k++)
				right += waits[k] ? 500 + k : 0;
			cr_assert_eq(n_waiting(since), n);
			cr_assert_eq(sum, right);
		}
	}
	ferry_pending_end(p);
	cr_assert_eq(n_waiting(since), 0);
	free(p);
	free(h);
	free(since);
}
