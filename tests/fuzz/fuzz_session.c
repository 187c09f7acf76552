/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a target may say of the pages that it has, wants and does not want, in any order and over any
 * number of lost links, while the push goes on. Four bytes are one step: what, region, page, length.
 *
 * However hostile: no run goes beyond a region; within an epoch the push takes no page twice, nor one that
 * was said to be there; and what was refused has changed nothing. The messages are such as pass decoding:
 * runs have a page, bitmaps begin at a multiple of 64.
 */
#include <errno.h>
#include <string.h>

#include "base/util.h"
#include "fuzz.h"
#include "pageserver/session.h"

#define N_REGIONS 2u
#define N_PAGES	  192u
#define PAGE	  4096u

struct world {
	struct ferry_pages pages;
	struct ferry_session *session;
	uint32_t epoch;
	bool settled[N_REGIONS][N_PAGES]; /* in this epoch: the push must not take it */
};

static uint8_t content[PAGE * 64];

static bool copies(void *ctx, uint32_t region)
{
	(void)ctx;
	(void)region;
	return false;
}

static int get(void *ctx, const struct ferry_run *run, void *scratch, const void **data)
{
	(void)ctx;
	(void)scratch;
	MUST(run->n_pages && run->n_pages <= sizeof(content) / PAGE);
	*data = content;
	return 0;
}

static int is_zero(void *ctx, uint32_t region, uint64_t page, const void *data)
{
	(void)ctx;
	(void)data;
	return (region + page) % 7 == 0;
}

static void check_run(const struct ferry_run *run)
{
	MUST(run->region < N_REGIONS && run->n_pages);
	MUST(run->first_page < N_PAGES && run->n_pages <= N_PAGES - run->first_page);
}

static void take(struct world *w, const struct ferry_run *run)
{
	check_run(run);
	for (uint64_t p = run->first_page; p < run->first_page + run->n_pages; p++) {
		MUST(!w->settled[run->region][p]);
		w->settled[run->region][p] = true;
	}
}

static void say(struct world *w, enum ferry_frame_type type, const uint8_t *step)
{
	static struct ferry_message m; /* large: no clearing of it at each step */
	uint8_t bits[N_PAGES / 8 + 1];
	char why[FERRY_MAX_TEXT];
	uint64_t sent, before, total;
	int rc;

	m.type = type;
	m.payload = NULL;
	m.payload_bytes = 0;
	m.resident = (struct ferry_page_range){step[1] % (N_REGIONS + 1), step[2], 1 + step[3]};
	if (type == FERRY_FRAME_PUSH_START)
		m.push_start.max_bytes_per_second = step[2];
	memset(bits, step[1] ^ step[2], sizeof(bits));
	if (type == FERRY_FRAME_RESIDENT) {
		m.resident.first_page &= ~UINT64_C(63);
		m.resident.n_pages = FERRY_MIN(m.resident.n_pages, (uint64_t)N_PAGES);
		m.payload = bits;
		m.payload_bytes = (uint32_t)ferry_bitmap_n_bytes(m.resident.n_pages);
	}
	ferry_session_progress(w->session, &total, &before);
	rc = ferry_session_control(w->session, &m, why);
	ferry_session_progress(w->session, &total, &sent);
	MUST(sent <= total && total == N_REGIONS * N_PAGES);
	if (rc < 0) {
		MUST(rc == -EPROTO && memchr(why, 0, sizeof(why)) && sent == before);
		return;
	}
	if (type != FERRY_FRAME_RESIDENT && type != FERRY_FRAME_DISCARDED)
		return;
	check_run(&(struct ferry_run){.region = m.resident.region,
				      .first_page = m.resident.first_page,
				      .n_pages = (uint32_t)m.resident.n_pages});
	for (uint64_t i = 0; i < m.resident.n_pages; i++)
		w->settled[m.resident.region][m.resident.first_page + i] |=
			type == FERRY_FRAME_DISCARDED || (bits[i / 8] >> (i % 8) & 1);
}

static void ask(struct world *w, const uint8_t *step)
{
	static struct ferry_page_request r;
	uint64_t before, sent, total;
	char why[FERRY_MAX_TEXT];

	r.n_runs = 1 + (step[1] >> 4 & 1);
	for (uint32_t i = 0; i < r.n_runs; i++)
		r.runs[i] = (struct ferry_run){.region = (step[1] + i) % (N_REGIONS + 1),
					     .first_page = step[2],
					     .n_pages = 1 + step[3]};
	ferry_session_progress(w->session, &total, &before);
	if (ferry_session_request(w->session, &r, why) < 0) {
		ferry_session_progress(w->session, &total, &sent);
		MUST(sent == before && memchr(why, 0, sizeof(why)));
		return;
	}
	for (uint32_t i = 0; i < r.n_runs; i++) {
		check_run(&r.runs[i]);
		for (uint32_t p = 0; p < r.runs[i].n_pages; p++)
			w->settled[r.runs[i].region][r.runs[i].first_page + p] = true;
	}
}

static void cut(struct world *w, const struct ferry_run *run, uint32_t max_bytes)
{
	struct ferry_cut c = {.rest = *run};
	uint64_t next = run->first_page;
	struct ferry_page_run piece;
	const void *data;

	while (ferry_session_cut(w->session, &c, max_bytes, NULL, &piece, &data) ==
	       FERRY_CUT_PIECE) {
		MUST(piece.run.region == run->region && piece.run.first_page == next);
		MUST(piece.run.n_pages && !data == (piece.encoding == FERRY_ENCODING_ZERO));
		next += piece.run.n_pages;
	}
	MUST(next == run->first_page + run->n_pages);
}

static void push(struct world *w, bool holes, uint8_t size)
{
	struct ferry_run run;

	if (ferry_session_state(w->session) != FERRY_SESSION_PUSHING)
		return;
	if (holes ? ferry_session_next_hole(w->session, &run)
		  : ferry_session_next_run(w->session, (1u + size % 16) * PAGE, &run)) {
		take(w, &run);
		cut(w, &run, (1u + size % 5) * PAGE);
	} else if (!holes) {
		ferry_session_pushed(w->session);
	}
}

static void lose(struct world *w, bool resume)
{
	ferry_session_lose(w->session);
	if (!resume)
		return;
	if (!ferry_session_resume(w->session, ++w->epoch))
		memset(w->settled, 0, sizeof(w->settled));
	else
		MUST(ferry_session_state(w->session) == FERRY_SESSION_COMPLETED);
}

static void step(struct world *w, const uint8_t *s)
{
	static const enum ferry_frame_type said[] = {FERRY_FRAME_LAYOUT_OK, FERRY_FRAME_RESIDENT,
						     FERRY_FRAME_PUSH_START, FERRY_FRAME_DISCARDED,
						     FERRY_FRAME_COMPLETE};

	switch (s[0] % 10) {
	case 5:
		ask(w, s);
		break;
	case 6:
	case 7:
		push(w, s[0] % 10 == 6, s[3]);
		break;
	case 8:
	case 9:
		lose(w, s[0] % 10 == 9);
		break;
	default:
		say(w, said[s[0] % 10], s);
		break;
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct world w;
	struct ferry_session_id id = {{1}};

	w = (struct world){
		.pages = {.layout = {.n_regions = N_REGIONS,
				     .regions = {{.id = 0, .page_bytes = PAGE, .n_pages = N_PAGES},
						 {.id = 1, .page_bytes = PAGE, .n_pages = N_PAGES}}},
			  .copies = copies,
			  .get = get,
			  .is_zero = is_zero}};
	MUST(!ferry_pages_init(&w.pages));
	ferry_bitmap_set_range(&w.pages.data[0], 10, 100);
	ferry_bitmap_set_range(&w.pages.data[1], 0, N_PAGES);
	MUST(!ferry_session_new(&w.session, &w.pages, &id, 0));
	for (; size >= 4; data += 4, size -= 4)
		step(&w, data);
	ferry_session_free(w.session);
	ferry_pages_fini(&w.pages);
	return 0;
}
