/* SPDX-License-Identifier: Apache-2.0 */
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>

#include "base/util.h"
#include "pageserver/session.h"

/* Memory of one or two regions in which page p of region r is zero when zero[r][p] says so. */
#define PAGES 100
#define PAGE  4096u

struct model {
	struct ferry_pages pages;
	uint8_t memory[2][PAGES * PAGE];
	uint32_t n_looks; /* pages whose bytes were looked at */
	uint64_t lost;	  /* a page of region 0 that can't be had */
	bool copies;
};

static bool copies(void *ctx, uint32_t region)
{
	(void)region;
	return ((struct model *)ctx)->copies;
}

static int get(void *ctx, const struct ferry_run *run, void *scratch, const void **data)
{
	struct model *m = ctx;
	uint8_t *at = m->memory[run->region] + run->first_page * PAGE;

	if (!run->region && m->lost >= run->first_page && m->lost < run->first_page + run->n_pages)
		return -EIO;
	if (m->copies)
		memcpy(scratch, at, run->n_pages * PAGE);
	*data = m->copies ? scratch : at;
	return 0;
}

static int is_zero(void *ctx, uint32_t region, uint64_t page, const void *data)
{
	struct model *m = ctx;

	m->n_looks++;
	cr_assert_eq(memcmp(data, m->memory[region] + page * PAGE, PAGE), 0);
	return !*(const uint8_t *)data;
}

static struct model *setup(struct ferry_session **s)
{
	struct model *m = calloc(1, sizeof(*m));
	struct ferry_session_id id = {{1}};

	m->lost = UINT64_MAX;
	m->pages = (struct ferry_pages){
		.layout =
			{.n_regions = 2,
			 .regions = {{.id = 0, .page_bytes = PAGE, .n_pages = PAGES, .name = "a"},
				     {.id = 1, .page_bytes = PAGE, .n_pages = PAGES, .name = "b"}}},
		.copies = copies,
		.get = get,
		.is_zero = is_zero,
		.ctx = m};
	cr_assert_eq(ferry_pages_init(&m->pages), 0);
	/* Region a: data in [10, 60), of which 20 to 24 are zero. b: all data. */
	ferry_bitmap_set_range(&m->pages.data[0], 10, 50);
	memset(m->memory[0] + 10 * PAGE, 7, 10 * PAGE);
	memset(m->memory[0] + 25 * PAGE, 8, 35 * PAGE);
	ferry_bitmap_set_range(&m->pages.data[1], 0, PAGES);
	memset(m->memory[1], 9, sizeof(m->memory[1]));
	cr_assert_eq(ferry_session_new(s, &m->pages, &id, 0), 0);
	return m;
}

static void teardown(struct model *m, struct ferry_session *s)
{
	ferry_session_free(s);
	ferry_pages_fini(&m->pages);
	free(m);
}

static int say(struct ferry_session *s, enum ferry_frame_type type)
{
	struct ferry_message m = {.type = type};
	char why[FERRY_MAX_TEXT];

	return ferry_session_control(s, &m, why);
}

static uint64_t n_sent(const struct ferry_session *s)
{
	uint64_t total, sent;

	ferry_session_progress(s, &total, &sent);
	cr_assert_eq(total, 2 * PAGES);
	return sent;
}

Test(session, goes_its_way_and_refuses_others)
{
	struct ferry_session *s;
	struct model *m = setup(&s);

	cr_assert_eq(ferry_session_state(s), FERRY_SESSION_OPENING);
	cr_assert_eq(say(s, FERRY_FRAME_PUSH_START), -EPROTO);
	cr_assert_eq(say(s, FERRY_FRAME_COMPLETE), -EPROTO);
	cr_assert_eq(say(s, FERRY_FRAME_LAYOUT_OK), FERRY_SESSION_NOTHING);
	cr_assert_eq(say(s, FERRY_FRAME_LAYOUT_OK), -EPROTO);
	cr_assert_eq(say(s, FERRY_FRAME_PUSH_START), FERRY_SESSION_PUSH);
	cr_assert_eq(say(s, FERRY_FRAME_PUSH_START), FERRY_SESSION_PUSH, "a new rate");
	ferry_session_pushed(s);
	cr_assert_eq(ferry_session_state(s), FERRY_SESSION_PUSHED);
	cr_assert_eq(say(s, FERRY_FRAME_PUSH_START), FERRY_SESSION_NOTHING);
	cr_assert_eq(say(s, FERRY_FRAME_COMPLETE), FERRY_SESSION_RELEASE);
	cr_assert_eq(ferry_session_resume(s, 1), -ESTALE);
	ferry_session_lose(s);
	cr_assert_eq(ferry_session_state(s), FERRY_SESSION_COMPLETED);
	teardown(m, s);
}

Test(session, completes_without_or_during_a_push)
{
	struct ferry_session *s;
	struct model *m = setup(&s);

	say(s, FERRY_FRAME_LAYOUT_OK);
	cr_assert_eq(say(s, FERRY_FRAME_COMPLETE), FERRY_SESSION_RELEASE);
	teardown(m, s);
	m = setup(&s);
	say(s, FERRY_FRAME_LAYOUT_OK);
	say(s, FERRY_FRAME_PUSH_START);
	cr_assert_eq(say(s, FERRY_FRAME_COMPLETE), FERRY_SESSION_RELEASE);
	teardown(m, s);
}

Test(session, holes_come_first_as_whole_runs_without_a_look)
{
	struct ferry_session *s;
	struct model *m = setup(&s);
	struct ferry_page_run piece;
	struct ferry_cut c = {0};
	const void *data;

	cr_assert(ferry_session_next_hole(s, &c.rest));
	cr_assert_eq(c.rest.region, 0);
	cr_assert_eq(c.rest.first_page, 0);
	cr_assert_eq(c.rest.n_pages, 10);
	cr_assert_eq(ferry_session_cut(s, &c, 1 << 20, NULL, &piece, &data), FERRY_CUT_PIECE);
	cr_assert_eq(piece.encoding, FERRY_ENCODING_ZERO);
	cr_assert_eq(piece.run.n_pages, 10);
	cr_assert_null(data);
	cr_assert_eq(ferry_session_cut(s, &c, 1 << 20, NULL, &piece, &data), FERRY_CUT_END);
	cr_assert(ferry_session_next_hole(s, &c.rest));
	cr_assert_eq(c.rest.first_page, 60);
	cr_assert_eq(c.rest.n_pages, 40);
	cr_assert_not(ferry_session_next_hole(s, &c.rest));
	cr_assert_eq(m->n_looks, 0);
	cr_assert_eq(n_sent(s), 50);
	teardown(m, s);
}

Test(session, holes_that_were_asked_for_are_not_pushed)
{
	struct ferry_session *s;
	struct model *m = setup(&s);
	struct ferry_page_request r = {.request_id = 1, .n_runs = 1, .runs = {{0, 2, 4}}};
	char why[FERRY_MAX_TEXT];
	struct ferry_run run;

	cr_assert_eq(ferry_session_request(s, &r, why), 0);
	cr_assert(ferry_session_next_hole(s, &run));
	cr_assert_eq(run.first_page, 0);
	cr_assert_eq(run.n_pages, 4);
	cr_assert(ferry_session_next_hole(s, &run));
	cr_assert_eq(run.first_page, 6);
	cr_assert_eq(run.n_pages, 4);
	teardown(m, s);
}

static void cuts_alike(bool with_copies)
{
	static const struct {
		uint64_t first;
		uint32_t n;
		enum ferry_encoding encoding;
	} expected[] = {{0, 10, FERRY_ENCODING_ZERO},
			{10, 10, FERRY_ENCODING_RAW},
			{20, 5, FERRY_ENCODING_ZERO},
			{25, 35, FERRY_ENCODING_RAW},
			{60, 40, FERRY_ENCODING_ZERO}};
	struct ferry_session *s;
	struct model *m = setup(&s);
	struct ferry_cut c = {.rest = {.region = 0, .n_pages = PAGES}};
	struct ferry_scratch scratch = {.data = malloc(PAGES * PAGE), .size = PAGES * PAGE};
	struct ferry_page_run piece;
	const void *data;

	m->copies = with_copies;
	for (size_t i = 0; i < FERRY_ARRAY_SIZE(expected); i++) {
		cr_assert_eq(ferry_session_cut(s, &c, 1 << 20, &scratch, &piece, &data),
			     FERRY_CUT_PIECE);
		cr_assert_eq(piece.run.first_page, expected[i].first);
		cr_assert_eq(piece.run.n_pages, expected[i].n);
		cr_assert_eq(piece.encoding, expected[i].encoding);
		if (piece.encoding == FERRY_ENCODING_RAW)
			cr_assert_eq(memcmp(data, m->memory[0] + piece.run.first_page * PAGE,
					    piece.run.n_pages * PAGE),
				     0);
	}
	cr_assert_eq(ferry_session_cut(s, &c, 1 << 20, &scratch, &piece, &data), FERRY_CUT_END);
	cr_assert_eq(scratch.used, with_copies ? 50 * PAGE : 0);
	/* The zero pages are known now, also to others: no page of them is looked at again. */
	m->n_looks = 0;
	c = (struct ferry_cut){.rest = {.region = 0, .first_page = 20, .n_pages = 5}};
	cr_assert_eq(ferry_session_cut(s, &c, 1 << 20, &scratch, &piece, &data), FERRY_CUT_PIECE);
	cr_assert_eq(piece.encoding, FERRY_ENCODING_ZERO);
	cr_assert_eq(m->n_looks, 0);
	free(scratch.data);
	teardown(m, s);
}

Test(session, a_run_is_cut_where_data_and_zeros_meet)
{
	cuts_alike(false);
	cuts_alike(true);
}

Test(session, a_piece_keeps_to_the_limit_and_gives_at_least_one_page)
{
	static const uint32_t limits[] = {1, PAGE - 1, PAGE, PAGE + 1, 3 * PAGE};
	static const uint32_t expected[] = {1, 1, 1, 1, 3};
	struct ferry_session *s;
	struct model *m = setup(&s);

	for (size_t i = 0; i < FERRY_ARRAY_SIZE(limits); i++) {
		struct ferry_cut c = {.rest = {.region = 1, .n_pages = 50}};
		struct ferry_page_run piece;
		const void *data;

		cr_assert_eq(ferry_session_cut(s, &c, limits[i], NULL, &piece, &data),
			     FERRY_CUT_PIECE);
		cr_assert_eq(piece.run.n_pages, expected[i]);
	}
	teardown(m, s);
}

Test(session, a_full_scratch_stops_the_cut_and_it_goes_on_later)
{
	struct ferry_session *s;
	struct model *m = setup(&s);
	struct ferry_cut c = {.rest = {.region = 1, .n_pages = 5}};
	struct ferry_scratch scratch = {.data = malloc(2 * PAGE), .size = 2 * PAGE};
	struct ferry_page_run piece;
	const void *data;

	m->copies = true;
	for (uint64_t first = 0; first < 4; first += 2) {
		cr_assert_eq(ferry_session_cut(s, &c, 1 << 20, &scratch, &piece, &data),
			     FERRY_CUT_PIECE);
		cr_assert_eq(piece.run.first_page, first);
		cr_assert_eq(piece.run.n_pages, 2);
		cr_assert_eq(ferry_session_cut(s, &c, 1 << 20, &scratch, &piece, &data),
			     FERRY_CUT_FULL);
		scratch.used = 0;
	}
	cr_assert_eq(ferry_session_cut(s, &c, 1 << 20, &scratch, &piece, &data), FERRY_CUT_PIECE);
	cr_assert_eq(piece.run.n_pages, 1);
	free(scratch.data);
	teardown(m, s);
}

Test(session, a_page_that_is_lost_is_an_error_with_its_place)
{
	struct ferry_session *s;
	struct model *m = setup(&s);
	struct ferry_cut c = {.rest = {.region = 0, .first_page = 12, .n_pages = 5}};
	struct ferry_page_run piece;
	const void *data;

	m->lost = 12;
	cr_assert_eq(ferry_session_cut(s, &c, PAGE, NULL, &piece, &data), -EIO);
	cr_assert_eq(c.rest.first_page, 12);
	teardown(m, s);
}

Test(session, requests_outside_the_layout_count_for_nothing)
{
	static const struct ferry_run bad[] = {
		{2, 1, 0}, {0, 1, PAGES}, {0, 2, PAGES - 1}, {0, PAGES + 1, 0}, {1, 1, UINT64_MAX}};
	struct ferry_session *s;
	struct model *m = setup(&s);
	char why[FERRY_MAX_TEXT];

	for (size_t i = 0; i < FERRY_ARRAY_SIZE(bad); i++) {
		struct ferry_page_request r = {
			.request_id = 1, .n_runs = 2, .runs = {{0, 1, 0}, bad[i]}};

		why[0] = '\0';
		cr_assert_eq(ferry_session_request(s, &r, why), -EPROTO);
		cr_assert_neq(why[0], '\0');
	}
	cr_assert_eq(n_sent(s), 0);
	struct ferry_page_request last = {
		.request_id = 1, .n_runs = 1, .runs = {{1, 1, PAGES - 1}}};

	cr_assert_eq(ferry_session_request(s, &last, why), 0);
	cr_assert_eq(n_sent(s), 1);
	teardown(m, s);
}

Test(session, what_the_target_has_or_discards_counts_as_sent)
{
	struct ferry_session *s;
	struct model *m = setup(&s);
	uint8_t bitmap[2] = {0xff, 0x03};
	struct ferry_message has = {.type = FERRY_FRAME_RESIDENT,
				    .resident = {1, 64, 10},
				    .payload = bitmap,
				    .payload_bytes = 2};
	struct ferry_message not_wanted = {.type = FERRY_FRAME_DISCARDED, .discarded = {1, 0, 60}};
	char why[FERRY_MAX_TEXT];
	struct ferry_run run;

	cr_assert_eq(ferry_session_control(s, &has, why), -EPROTO, "before LayoutOk");
	say(s, FERRY_FRAME_LAYOUT_OK);
	cr_assert_eq(ferry_session_control(s, &has, why), FERRY_SESSION_NOTHING);
	cr_assert_eq(ferry_session_control(s, &not_wanted, why), FERRY_SESSION_NOTHING);
	cr_assert_eq(n_sent(s), 70);
	not_wanted.discarded.n_pages = PAGES + 1;
	cr_assert_eq(ferry_session_control(s, &not_wanted, why), -EPROTO);
	ferry_bitmap_set_range(&m->pages.data[0], 0, PAGES);
	while (ferry_session_next_run(s, 1 << 20, &run))
		if (run.region == 1)
			cr_assert(run.first_page + run.n_pages <= 64 || run.first_page >= 74);
	cr_assert_eq(n_sent(s), 2 * PAGES);
	teardown(m, s);
}

Test(session, a_resume_forgets_what_was_sent_and_wants_a_higher_epoch)
{
	struct ferry_session *s;
	struct model *m = setup(&s);
	struct ferry_run run;

	say(s, FERRY_FRAME_LAYOUT_OK);
	say(s, FERRY_FRAME_PUSH_START);
	while (ferry_session_next_hole(s, &run))
		;
	while (ferry_session_next_run(s, 1 << 20, &run))
		;
	cr_assert_eq(n_sent(s), 2 * PAGES);
	ferry_session_lose(s);
	cr_assert_eq(ferry_session_state(s), FERRY_SESSION_LOST);
	cr_assert_eq(ferry_session_resume(s, 0), -ESTALE);
	cr_assert_eq(ferry_session_resume(s, 1), 0);
	cr_assert_eq(ferry_session_epoch(s), 1);
	cr_assert_eq(ferry_session_state(s), FERRY_SESSION_OPENING);
	cr_assert_eq(n_sent(s), 0);
	cr_assert(ferry_session_next_hole(s, &run));
	cr_assert_eq(run.first_page, 0);
	cr_assert_eq(ferry_session_resume(s, 1), -ESTALE);
	cr_assert_eq(ferry_session_resume(s, 7), 0, "also when no loss was noticed");
	teardown(m, s);
}
