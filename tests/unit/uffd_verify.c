/* SPDX-License-Identifier: Apache-2.0 */
/* The comparison of a memory with its source, as the source would answer. */
#include <criterion/criterion.h>
#include <endian.h>
#include <errno.h>
#include <string.h>

#include "protocol/checksum.h"
#include "uffd/verify.h"

#define N_PAGES 3000u

static struct ferry_verify v;
static struct ferry_bitmap known;
static uint8_t page[4096];

/* Page @i of the source; every third is zero. */
static const void *content(uint64_t i)
{
	memset(page, 0, sizeof(page));
	if (i % 3) {
		page[0] = (uint8_t)i;
		page[4095] = (uint8_t)(i >> 8) | 1;
	}
	return page;
}

static void set_up(uint32_t page_bytes)
{
	struct ferry_layout l = {.n_regions = 2,
				 .regions = {{.n_pages = 1, .page_bytes = 4096},
					     {.n_pages = N_PAGES, .page_bytes = page_bytes}}};

	cr_assert_eq(ferry_verify_init(&v, &l), 0);
	cr_assert_eq(ferry_bitmap_init(&known, N_PAGES), 0);
}

static void end(void)
{
	ferry_verify_fini(&v);
	ferry_bitmap_fini(&known);
}

static void note(uint64_t i)
{
	struct ferry_run run = {1, 1, i};

	ferry_verify_note(&v, &run, i % 3 ? content(i) : NULL, &known);
}

static void note_all(void)
{
	struct ferry_run first = {0, 1, 0};

	ferry_verify_note(&v, &first, NULL, &known);
	for (uint64_t i = 0; i < N_PAGES; i++)
		note(i);
}

/* Answers as the source does. Return: requests. */
static unsigned int compare(void)
{
	struct ferry_digest_range r;
	unsigned int n = 0;

	while (ferry_verify_next(&v, &r)) {
		uint64_t sums[FERRY_MAX_DIGESTS] = {0};

		n++;
		cr_assert(r.n_pages && r.pages_each && r.pages_each <= FERRY_MAX_DIGEST_PAGES);
		cr_assert_leq(ferry_digest_count(&r), FERRY_MAX_DIGESTS);
		for (uint64_t i = 0; i < r.n_pages && r.region; i++)
			sums[i / r.pages_each] +=
				ferry_page_digest(1, r.first_page + i, content(r.first_page + i), 4096);
		for (size_t i = 0; i < FERRY_MAX_DIGESTS; i++)
			sums[i] = htole64(sums[i]);
		cr_assert_eq(ferry_verify_take(&v, &r, (uint8_t *)sums), 0);
	}
	cr_assert(v.result.done);
	cr_assert_eq(v.result.pages + v.result.unknown + v.result.wrong, N_PAGES + 1);
	return n;
}

Test(verify, what_is_alike_takes_one_question_a_region)
{
	set_up(4096);
	note_all();
	cr_assert_eq(compare(), 2);
	cr_assert_eq(v.result.pages, N_PAGES + 1);
	end();
}

Test(verify, what_differs_is_found_page_by_page)
{
	static const uint64_t wrong[] = {1, 255, 256, 257, N_PAGES - 1};
	uint8_t other[4096] = {99, 98};

	set_up(4096);
	for (size_t i = 0; i < 5; i++) {
		struct ferry_run run = {1, 1, wrong[i]};

		ferry_verify_note(&v, &run, other, &known);
		ferry_bitmap_set_range(&known, wrong[i], 1);
	}
	note_all();
	compare();
	cr_assert_eq(v.result.wrong, 5);
	cr_assert_eq(v.result.n_runs, 3);
	cr_assert_eq(v.result.runs[1].first_page, 255);
	cr_assert_eq(v.result.runs[1].n_pages, 3);
	end();
}

/* Zero where there is content, content where there is zero, and one page that came twice. */
Test(verify, what_contradicts_itself_is_wrong)
{
	struct ferry_run one = {1, 1, 4}, three = {1, 1, 3};
	uint8_t other[4096] = {7};

	set_up(4096);
	ferry_verify_note(&v, &one, NULL, &known);
	ferry_verify_note(&v, &three, other, &known);
	note_all();
	ferry_verify_note(&v, &(struct ferry_run){1, 1, 5}, other, &known);
	compare();
	cr_assert_eq(v.result.wrong, 3);
	cr_assert_eq(v.result.runs[0].first_page, 3);
	cr_assert_eq(v.result.runs[0].n_pages, 3);
	end();
}

Test(verify, the_same_content_in_another_place_is_wrong)
{
	set_up(4096);
	note_all();
	ferry_bitmap_test_and_clear(&v.regions[1].data, 4);
	atomic_store(&v.regions[1].digests[4], 0);
	ferry_verify_note(&v, &(struct ferry_run){1, 1, 4}, content(7), &known);
	compare();
	cr_assert_eq(v.result.wrong, 1);
	cr_assert_eq(v.result.runs[0].first_page, 4);
	end();
}

/* Scattered, and nothing but what came when pages may be lost. */
Test(verify, what_did_not_come_is_unknown)
{
	for (int lost = 0; lost < 2; lost++) {
		set_up(4096);
		for (uint64_t i = 0; i < N_PAGES; i++)
			if (i % 10 < 8 && i / 500 != 2)
				note(i);
		if (lost)
			ferry_verify_lost(&v);
		if (lost)
			cr_assert_eq(compare(), N_PAGES / 10 * 5 / 6);
		else
			cr_assert_leq(compare(), 24);
		cr_assert_eq(v.result.pages, N_PAGES * 8 / 10 * 5 / 6);
		cr_assert_eq(v.result.wrong, 0);
		end();
	}
}

Test(verify, an_answer_to_something_else_is_refused)
{
	struct ferry_digest_range r;
	uint8_t sums[FERRY_MAX_DIGESTS * 8] = {0};

	set_up(4096);
	note_all();
	cr_assert(ferry_verify_next(&v, &r));
	r.first_page++;
	cr_assert_eq(ferry_verify_take(&v, &r, sums), -EPROTO);
	end();
}

Test(verify, the_memory_is_held_against_what_was_placed)
{
	struct ferry_run run;

	set_up(4096);
	note_all();
	compare();
	cr_assert(ferry_verify_next_data(&v, 1, 0, 100, &run));
	cr_assert_eq(run.first_page, 1);
	cr_assert_eq(run.n_pages, 2);
	ferry_verify_page(&v, 1, 1, content(1));
	ferry_verify_page(&v, 1, 2, content(1));
	cr_assert_eq(v.result.read_back, 1);
	cr_assert_eq(v.result.wrong, 1);
	cr_assert_eq(v.result.pages, N_PAGES);
	cr_assert_not(ferry_verify_next_data(&v, 0, 0, 100, &run));
	end();
}
