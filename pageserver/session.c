/* SPDX-License-Identifier: Apache-2.0 */
#include "pageserver/session.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/util.h"
#include "pageserver/push_order.h"

/* The pages of a run without data; what a target does about one run should not take for ever. */
#define MAX_HOLE_PAGES (1u << 24)

#define TO(s) FERRY_STATE_BIT(FERRY_SESSION_##s)

static const struct ferry_state_def states[] = {
	[FERRY_SESSION_OPENING] = {"opening", "the layout was sent; LayoutOk is awaited",
				   TO(READY) | TO(LOST)},
	[FERRY_SESSION_READY] = {"ready", "pages are served on request",
				 TO(PUSHING) | TO(COMPLETED) | TO(LOST)},
	[FERRY_SESSION_PUSHING] = {"pushing", "all that is missing is being sent",
				   TO(PUSHED) | TO(COMPLETED) | TO(LOST)},
	[FERRY_SESSION_PUSHED] = {"pushed", "everything was sent; Complete is awaited",
				  TO(COMPLETED) | TO(LOST)},
	[FERRY_SESSION_COMPLETED] = {"completed", "the target has everything", 0},
	[FERRY_SESSION_LOST] = {"lost", "a connection was lost; a higher epoch is awaited",
				TO(OPENING)},
};

const struct ferry_machine_def ferry_session_machine = {"source session", states,
							FERRY_ARRAY_SIZE(states)};

struct ferry_session {
	struct ferry_session_id id;
	struct ferry_machine machine;
	uint32_t epoch;
	struct ferry_pages *pages; /* borrowed */
	struct ferry_push_order *order;
	struct ferry_bitmap sent[FERRY_MAX_REGIONS];
	uint32_t hole_region; /* where _next_hole goes on */
	uint64_t hole_page;
};

static int init_maps(struct ferry_bitmap *maps, const struct ferry_layout *l)
{
	for (uint32_t i = 0; i < l->n_regions; i++) {
		int rc = ferry_bitmap_init(&maps[i], l->regions[i].n_pages);

		if (rc < 0)
			return rc;
	}
	return 0;
}

static void fini_maps(struct ferry_bitmap *maps)
{
	for (uint32_t i = 0; i < FERRY_MAX_REGIONS; i++)
		ferry_bitmap_fini(&maps[i]);
}

int ferry_pages_init(struct ferry_pages *p)
{
	int rc = init_maps(p->data, &p->layout);

	if (rc < 0)
		ferry_pages_fini(p);
	return rc;
}

void ferry_pages_fini(struct ferry_pages *p)
{
	fini_maps(p->data);
}

int ferry_session_new(struct ferry_session **out, struct ferry_pages *pages,
		      const struct ferry_session_id *id, uint32_t epoch)
{
	struct ferry_session *s = calloc(1, sizeof(*s));
	int rc;

	if (!s)
		return -ENOMEM;
	s->id = *id;
	s->epoch = epoch;
	s->pages = pages;
	ferry_machine_init(&s->machine, &ferry_session_machine, FERRY_SESSION_OPENING);
	rc = init_maps(s->sent, &pages->layout);
	if (!rc)
		rc = ferry_push_order_new(&s->order, &pages->layout, s->sent);
	if (rc < 0) {
		ferry_session_free(s);
		return rc;
	}
	*out = s;
	return 0;
}

void ferry_session_free(struct ferry_session *s)
{
	if (!s)
		return;
	ferry_push_order_free(s->order);
	fini_maps(s->sent);
	free(s);
}

const struct ferry_session_id *ferry_session_id(const struct ferry_session *s)
{
	return &s->id;
}

uint32_t ferry_session_epoch(const struct ferry_session *s)
{
	return s->epoch;
}

enum ferry_session_state ferry_session_state(const struct ferry_session *s)
{
	return s->machine.state;
}

void ferry_session_lose(struct ferry_session *s)
{
	/* Where the table has no such move, there is nothing to lose. */
	ferry_machine_move(&s->machine, FERRY_SESSION_LOST);
}

int ferry_session_resume(struct ferry_session *s, uint32_t epoch)
{
	struct ferry_push_order *order;
	int rc;

	if (epoch <= s->epoch || s->machine.state == FERRY_SESSION_COMPLETED)
		return -ESTALE;
	rc = ferry_push_order_new(&order, &s->pages->layout, s->sent);
	if (rc < 0)
		return rc;
	ferry_push_order_free(s->order);
	s->order = order;
	s->hole_region = 0;
	s->hole_page = 0;
	for (uint32_t i = 0; i < s->pages->layout.n_regions; i++)
		ferry_bitmap_clear_range(&s->sent[i], 0, s->sent[i].n_bits);
	s->epoch = epoch;
	ferry_session_lose(s);
	return ferry_machine_move(&s->machine, FERRY_SESSION_OPENING);
}

static int bad(char *why, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

static int bad(char *why, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(why, FERRY_MAX_TEXT, fmt, ap);
	va_end(ap);
	return -EPROTO;
}

static int check_range(const struct ferry_session *s, uint32_t region, uint64_t first, uint64_t n,
		       char *why)
{
	const struct ferry_layout *l = &s->pages->layout;

	if (region >= l->n_regions)
		return bad(why, "region %u, but there are %u", region, l->n_regions);
	if (n > l->regions[region].n_pages || first > l->regions[region].n_pages - n)
		return bad(why, "pages %llu+%llu are not in region %u, which has %llu",
			   (unsigned long long)first, (unsigned long long)n, region,
			   (unsigned long long)l->regions[region].n_pages);
	return 0;
}

static int enter(struct ferry_session *s, const struct ferry_message *m,
		 enum ferry_session_state to, enum ferry_session_action action, char *why)
{
	if (ferry_machine_move(&s->machine, to) < 0)
		return bad(why, "%s in a session that is %s", ferry_frame_type_name(m->type),
			   ferry_machine_state_name(&s->machine));
	return action;
}

static int apply_range(struct ferry_session *s, const struct ferry_message *m, char *why)
{
	const struct ferry_page_range *r =
		m->type == FERRY_FRAME_RESIDENT ? &m->resident : &m->discarded;
	int rc = check_range(s, r->region, r->first_page, r->n_pages, why);

	if (rc < 0)
		return rc;
	if (s->machine.state == FERRY_SESSION_OPENING)
		return bad(why, "%s before LayoutOk", ferry_frame_type_name(m->type));
	if (m->type == FERRY_FRAME_RESIDENT)
		ferry_bitmap_import(&s->sent[r->region], r->first_page, r->n_pages, m->payload);
	else
		ferry_bitmap_set_range(&s->sent[r->region], r->first_page, r->n_pages);
	return FERRY_SESSION_NOTHING;
}

int ferry_session_control(struct ferry_session *s, const struct ferry_message *m, char *why)
{
	switch (m->type) {
	case FERRY_FRAME_LAYOUT_OK:
		return enter(s, m, FERRY_SESSION_READY, FERRY_SESSION_NOTHING, why);
	case FERRY_FRAME_RESIDENT:
	case FERRY_FRAME_DISCARDED:
		return apply_range(s, m, why);
	case FERRY_FRAME_PUSH_START:
		if (s->machine.state == FERRY_SESSION_PUSHING)
			return FERRY_SESSION_PUSH;
		if (s->machine.state == FERRY_SESSION_PUSHED)
			return FERRY_SESSION_NOTHING;
		return enter(s, m, FERRY_SESSION_PUSHING, FERRY_SESSION_PUSH, why);
	case FERRY_FRAME_DIGEST_REQUEST:
		if (check_range(s, m->digests.region, m->digests.first_page, m->digests.n_pages, why) <
		    0)
			return -EPROTO;
		return s->machine.state == FERRY_SESSION_OPENING ? bad(why, "DigestRequest before LayoutOk")
								 : FERRY_SESSION_DIGEST;
	case FERRY_FRAME_COMPLETE:
		return enter(s, m, FERRY_SESSION_COMPLETED, FERRY_SESSION_RELEASE, why);
	default:
		return bad(why, "unexpected %s", ferry_frame_type_name(m->type));
	}
}

int ferry_session_request(struct ferry_session *s, const struct ferry_page_request *r, char *why)
{
	for (uint32_t i = 0; i < r->n_runs; i++) {
		const struct ferry_run *run = &r->runs[i];

		if (check_range(s, run->region, run->first_page, run->n_pages, why) < 0)
			return -EPROTO;
	}
	for (uint32_t i = 0; i < r->n_runs; i++) {
		const struct ferry_run *run = &r->runs[i];

		ferry_bitmap_set_range(&s->sent[run->region], run->first_page, run->n_pages);
		ferry_push_order_fault(s->order, run->region, run->first_page);
	}
	return 0;
}

/* A hole, or the rest of one, in one region from s->hole_page on. */
static bool next_hole_in(struct ferry_session *s, uint32_t region, struct ferry_run *run)
{
	const struct ferry_bitmap *data = &s->pages->data[region], *sent = &s->sent[region];
	size_t n_pages = data->n_bits, first, end;

	while (s->hole_page < n_pages) {
		first = ferry_bitmap_next_clear(data, s->hole_page, n_pages);
		end = ferry_bitmap_next_set(data, first,
					    FERRY_MIN(first + MAX_HOLE_PAGES, n_pages));
		first = ferry_bitmap_next_clear_run(sent, first, end, MAX_HOLE_PAGES,
						    &s->hole_page);
		if (first == end)
			continue;
		ferry_bitmap_set_range(&s->sent[region], first, s->hole_page - first);
		*run = (struct ferry_run){.region = region,
					  .first_page = first,
					  .n_pages = (uint32_t)(s->hole_page - first)};
		return true;
	}
	return false;
}

bool ferry_session_next_hole(struct ferry_session *s, struct ferry_run *run)
{
	for (; s->hole_region < s->pages->layout.n_regions; s->hole_region++, s->hole_page = 0) {
		if (next_hole_in(s, s->hole_region, run))
			return true;
	}
	return false;
}

bool ferry_session_next_run(struct ferry_session *s, uint32_t max_bytes, struct ferry_run *run)
{
	return ferry_push_order_next(s->order, max_bytes, run);
}

bool ferry_session_next_of(struct ferry_session *s, struct ferry_run *rest, uint32_t max_bytes,
			   struct ferry_run *run)
{
	struct ferry_bitmap *sent = &s->sent[rest->region];
	uint32_t page_bytes = s->pages->layout.regions[rest->region].page_bytes;
	size_t end = rest->first_page + rest->n_pages, most = FERRY_MAX(max_bytes / page_bytes, 1u);
	size_t to, first = ferry_bitmap_next_clear_run(sent, rest->first_page, end, most, &to);

	rest->n_pages = (uint32_t)(end - to);
	rest->first_page = to;
	if (first == end)
		return false;
	ferry_bitmap_set_range(sent, first, to - first);
	*run = (struct ferry_run){.region = rest->region,
				  .first_page = first,
				  .n_pages = (uint32_t)(to - first)};
	return true;
}

void ferry_session_put_off(struct ferry_session *s, const struct ferry_run *run)
{
	ferry_bitmap_set_range(&s->sent[run->region], run->first_page, run->n_pages);
}

void ferry_session_put_back(struct ferry_session *s, const struct ferry_run *run)
{
	ferry_bitmap_clear_range(&s->sent[run->region], run->first_page, run->n_pages);
}

void ferry_session_pushed(struct ferry_session *s)
{
	ferry_machine_move(&s->machine, FERRY_SESSION_PUSHED);
}

static void drop_front(struct ferry_cut *c, uint32_t n, uint32_t page_bytes)
{
	c->rest.first_page += n;
	c->rest.n_pages -= n;
	c->n_have -= FERRY_MIN(n, c->n_have);
	c->data = c->n_have ? c->data + (size_t)n * page_bytes : NULL;
}

/* Gets the bytes of the next pages. Return: FERRY_CUT_PIECE or _FULL. */
static int fetch(struct ferry_session *s, struct ferry_cut *c, uint32_t n, uint32_t max_bytes,
		 struct ferry_scratch *scratch)
{
	const struct ferry_pages *p = s->pages;
	uint32_t page_bytes = p->layout.regions[c->rest.region].page_bytes;
	bool copies = p->copies(p->ctx, c->rest.region);
	struct ferry_run run = c->rest;
	const void *data;
	int rc;

	run.n_pages = FERRY_MIN(n, max_bytes < page_bytes ? 1 : max_bytes / page_bytes);
	if (copies) {
		size_t room = (scratch->size - scratch->used) / page_bytes;

		if (!room)
			return FERRY_CUT_FULL;
		run.n_pages = (uint32_t)FERRY_MIN(room, (size_t)run.n_pages);
	}
	rc = p->get(p->ctx, &run, copies ? scratch->data + scratch->used : NULL, &data);
	if (rc < 0)
		return rc;
	if (copies)
		scratch->used += (size_t)run.n_pages * page_bytes;
	c->data = data;
	c->n_have = run.n_pages;
	return FERRY_CUT_PIECE;
}

/* Does an error mean that the pages can't be had any more, whoever asks again? */
static bool is_gone(int err)
{
	return err == -ESRCH || err == -EIO || err == -EFAULT;
}

/* As many pages as can be had, or else one that can't. Return: as fetch(). */
static int fetch_some(struct ferry_session *s, struct ferry_cut *c, uint32_t n, uint32_t max_bytes,
		      struct ferry_scratch *scratch)
{
	int rc = fetch(s, c, n, max_bytes, scratch);

	return is_gone(rc) && rc != -ESRCH && n > 1 ? fetch(s, c, 1, max_bytes, scratch) : rc;
}

/* How many pages at the front are alike. Return: that number, or a negative error. */
static int64_t count_alike(const struct ferry_session *s, const struct ferry_cut *c, bool *zero)
{
	const struct ferry_pages *p = s->pages;
	uint32_t page_bytes = p->layout.regions[c->rest.region].page_bytes, n;
	int first = -1;

	for (n = 0; n < c->n_have; n++) {
		int rc = p->is_zero(p->ctx, c->rest.region, c->rest.first_page + n,
				    c->data + (size_t)n * page_bytes);

		if (rc < 0 && !n)
			return rc;
		if (first >= 0 && rc != first)
			break;
		first = rc;
	}
	*zero = first;
	return n;
}

/* @n pages at the front can't be had. */
static int cut_lost(struct ferry_cut *c, uint32_t n, struct ferry_page_run *piece,
		    const void **data)
{
	*piece = (struct ferry_page_run){.run = {.region = c->rest.region,
						 .first_page = c->rest.first_page,
						 .n_pages = n},
					 .encoding = FERRY_ENCODING_LOST};
	*data = NULL;
	c->n_have = 0;
	c->data = NULL;
	c->rest.first_page += n;
	c->rest.n_pages -= n;
	return FERRY_CUT_PIECE;
}

int ferry_session_cut(struct ferry_session *s, struct ferry_cut *c, uint32_t max_bytes,
		      struct ferry_scratch *scratch, struct ferry_page_run *piece,
		      const void **data)
{
	struct ferry_run *rest = &c->rest;
	struct ferry_bitmap *maybe = &s->pages->data[rest->region];
	uint64_t end = rest->first_page + rest->n_pages;
	uint32_t page_bytes = s->pages->layout.regions[rest->region].page_bytes;
	bool zero = true;
	int64_t n;

	if (!rest->n_pages)
		return FERRY_CUT_END;
	n = (int64_t)(ferry_bitmap_next_set(maybe, rest->first_page, end) - rest->first_page);
	if (!n) {
		/* Another thread may find out at any time that the first page is zero. */
		uint64_t hole = ferry_bitmap_next_clear(maybe, rest->first_page + 1, end);
		uint32_t n_data = (uint32_t)(hole - rest->first_page);

		if (!c->n_have) {
			int rc = fetch_some(s, c, n_data, max_bytes, scratch);

			if (c->says_lost && is_gone(rc))
				return cut_lost(c, rc == -ESRCH ? n_data : 1, piece, data);
			if (rc != FERRY_CUT_PIECE)
				return rc;
		}
		n = count_alike(s, c, &zero);
		if (n < 0 && c->says_lost && is_gone((int)n))
			return cut_lost(c, n == -ESRCH ? n_data : 1, piece, data);
		if (n < 0)
			return (int)n;
		if (zero)
			ferry_bitmap_clear_range(maybe, rest->first_page, (size_t)n);
	}
	*piece = (struct ferry_page_run){
		.run = {.region = rest->region,
			.first_page = rest->first_page,
			.n_pages = (uint32_t)n},
		.encoding = zero ? FERRY_ENCODING_ZERO : FERRY_ENCODING_RAW,
	};
	*data = zero ? NULL : c->data;
	drop_front(c, (uint32_t)n, page_bytes);
	return FERRY_CUT_PIECE;
}

void ferry_session_progress(const struct ferry_session *s, uint64_t *total, uint64_t *sent)
{
	*total = 0;
	*sent = 0;
	for (uint32_t i = 0; i < s->pages->layout.n_regions; i++) {
		*total += s->pages->layout.regions[i].n_pages;
		*sent += ferry_bitmap_count(&s->sent[i]);
	}
}
