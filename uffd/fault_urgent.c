/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The fault loop's connection: what is asked of the source, and what it answers.
 *
 * Failure modes
 *   - It fails: faults go on being collected; with the next connection all that is outstanding is
 *     asked for again.
 *   - It is silent while answers are due, and pings are not answered either: it has failed. A source
 *     that only takes its time answers the pings.
 *
 * Limits: one request of FERRY_MAX_REQUEST_RUNS runs at a time.
 */
#include <errno.h>
#include <sys/socket.h>

#include "base/clock.h"
#include "base/util.h"
#include "protocol/checksum.h"
#include "trace/usdt.h"
#include "uffd/fault_loop.h"

#define MERGE_PAGES   16u /* neighbours that are asked for as one run */
#define SWEEP_PAGES   64u
#define RECEIVE_BYTES (256u * 1024) /* at most this much a call, to keep the cache warm */

/* --- requests ---------------------------------------------------------------------------------- */

static struct ferry_page_request *asking(struct fault_loop *l)
{
	return &l->ask->request;
}

/* Return: false when the request is full. */
static bool ask(struct fault_loop *l, const struct ferry_run *run)
{
	struct ferry_page_request *r = asking(l);
	struct ferry_run *last = r->n_runs ? &r->runs[r->n_runs - 1] : NULL;

	if (last && last->region == run->region &&
	    last->first_page + last->n_pages == run->first_page &&
	    last->n_pages + run->n_pages <= MERGE_PAGES) {
		last->n_pages += run->n_pages;
		return true;
	}
	if (r->n_runs == FERRY_MAX_REQUEST_RUNS)
		return false;
	r->runs[r->n_runs++] = *run;
	return true;
}

/* Ask (again) for everything outstanding. */
static void walk_start(struct fault_loop *l)
{
	l->walking = true;
	l->walk = (struct ferry_run){0};
}

/* Will the walk come by this page? Then it asks for it, and nobody else does. */
static bool is_ahead(const struct fault_loop *l, uint32_t region, uint64_t page)
{
	return l->walking && (region > l->walk.region || (region == l->walk.region &&
							  page >= l->walk.first_page));
}

void ferry_fault_ask_page(struct fault_loop *l, uint32_t region, uint64_t page)
{
	struct ferry_run run = {.region = region, .first_page = page, .n_pages = 1};

	if (l->fd >= 0 && !is_ahead(l, region, page) && !ask(l, &run))
		walk_start(l);
}

static void walk_on(struct fault_loop *l)
{
	while (l->walking) {
		struct ferry_run run = l->walk;

		if (!ferry_pager_next_outstanding(&l->t->pager, &run, MERGE_PAGES)) {
			l->walking = false;
		} else {
			if (!ask(l, &run))
				return;
			l->walk = run;
			l->walk.first_page += run.n_pages;
		}
	}
}

/* The push is over and pages are missing all the same: ask for them, one run at a time. */
static void sweep_on(struct fault_loop *l)
{
	struct ferry_pager *p = &l->t->pager;
	struct ferry_run run = {0};
	bool wanted;

	if (l->sweep.n_pages && ferry_pager_is_missing(p, &l->sweep))
		return;
	l->sweep.n_pages = 0;
	pthread_mutex_lock(&l->t->lock);
	wanted = l->t->fault_sweep;
	pthread_mutex_unlock(&l->t->lock);
	if (!wanted || !ferry_pager_next_missing(p, &run, SWEEP_PAGES))
		return;
	if (asking(l)->n_runs == FERRY_MAX_REQUEST_RUNS)
		return;
	for (uint32_t i = 0; i < run.n_pages; i++)
		ferry_pager_fault(p, run.region, run.first_page + i);
	l->sweep = run;
	ask(l, &run);
}

static void urgent_failed(struct fault_loop *l, enum ferry_consequence c, int err, const char *text)
{
	struct ferry_failure why;

	if (c == FERRY_LINK)
		ferry_fail_errno(&why, c, err, "urgent connection: %s", text);
	else
		ferry_fail(&why, c, err, "urgent connection: %s", text);
	l->fd = -1;
	ferry_engine_link_broken(l->t, &why);
}

/* A request leaves: answers are due from now on. */
static void expect_answers(struct fault_loop *l, uint64_t now)
{
	if (!l->n_unanswered)
		ferry_alive_heard(&l->alive, now);
	for (uint32_t i = 0; i < asking(l)->n_runs; i++)
		l->n_unanswered += asking(l)->runs[i].n_pages;
}

void ferry_fault_send(struct fault_loop *l)
{
	while (l->fd >= 0) {
		uint64_t now;
		ssize_t n;

		if (l->out_begin == l->out_end) {
			walk_on(l);
			sweep_on(l);
			if (!asking(l)->n_runs)
				return;
			asking(l)->request_id = ++l->next_request_id;
			now = ferry_now_ns();
			ferry_pending_sent(&l->pending, asking(l), now);
			expect_answers(l, now);
			FERRY_PROBE2(fault_ask, asking(l)->request_id, asking(l)->n_runs);
			n = ferry_message_encode(l->ask, l->out, sizeof(l->out));
			asking(l)->n_runs = 0;
			l->out_begin = 0;
			l->out_end = (size_t)n;
			atomic_fetch_add_explicit(&l->t->counters.requests, 1,
						  memory_order_relaxed);
		}
		n = send(l->fd, l->out + l->out_begin, l->out_end - l->out_begin,
			 MSG_NOSIGNAL | MSG_DONTWAIT);
		if (n > 0)
			l->out_begin += (size_t)n;
		else if (errno == EAGAIN)
			return;
		else if (errno != EINTR)
			urgent_failed(l, FERRY_LINK, -errno, "sending a request");
	}
}

bool ferry_fault_is_watched(const struct fault_loop *l)
{
	return l->fd >= 0 && l->n_unanswered && l->connection.features & FERRY_FEATURE_ALIVE;
}

static void ping(struct fault_loop *l, uint64_t now)
{
	struct ferry_message m = {.type = FERRY_FRAME_PING, .ping = {.sent_ns = now}};
	int n;

	/* What has not left yet will be noticed as well, if it arrives. */
	if (l->out_begin != l->out_end)
		return;
	n = ferry_message_encode(&m, l->out, sizeof(l->out));
	l->out_begin = 0;
	l->out_end = (size_t)n;
}

void ferry_fault_watch(struct fault_loop *l)
{
	uint64_t now;
	char byte;

	if (!ferry_fault_is_watched(l))
		return;
	now = ferry_now_ns();
	if (l->stalled.active) { /* it is us who don't listen */
		ferry_alive_heard(&l->alive, now);
		return;
	}
	switch (ferry_alive_look(&l->alive, now)) {
	case FERRY_ALIVE_WAIT:
		break;
	case FERRY_ALIVE_PING:
		ping(l, now);
		break;
	case FERRY_ALIVE_LOST:
		/* It may be us who stood still: then something has come meanwhile. */
		if (recv(l->fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) < 0 && errno == EAGAIN)
			urgent_failed(l, FERRY_LINK, -ETIMEDOUT,
				      "nothing heard, though answers are due");
		break;
	}
}

/* --- answers --------------------------------------------------------------------------------- */

static void refuse(struct fault_loop *l, const char *why)
{
	ferry_channel_refuse(l->fd, FERRY_ERROR_PROTOCOL, why);
	urgent_failed(l, FERRY_REFUSE, -EPROTO, why);
}

static void handle_frame(struct fault_loop *l, const struct ferry_frame *frame)
{
	struct ferry_target *t = l->t;
	const struct ferry_page_run *pr = &l->m->run;
	enum ferry_error_code code;
	struct ferry_failure damaged;
	char why[FERRY_MAX_TEXT];
	int rc = ferry_message_decode(frame, &l->arena, l->m, why);
	bool raw;

	if (!rc)
		rc = ferry_connection_check(&l->connection, l->m, &code, why);
	if (rc == -ECONNREFUSED) {
		urgent_failed(l, ferry_engine_consequence(l->m->error.code), rc, why);
		return;
	}
	if (rc < 0) {
		refuse(l, why);
		return;
	}
	if (l->m->type != FERRY_FRAME_PAGE_RUN)
		return; /* a Ping or Pong: that it came is all that it says */
	raw = pr->encoding == FERRY_ENCODING_RAW;
	if (!ferry_pager_has(&t->pager, &pr->run) ||
	    (raw && l->m->payload_bytes / pr->run.n_pages !=
			    t->regions[pr->run.region].info.desc.page_bytes)) {
		refuse(l, "pages that don't fit the layout");
		return;
	}
	l->n_unanswered -= FERRY_MIN(l->n_unanswered, (uint64_t)pr->run.n_pages);
	l->stalled = (struct stalled){
		.run = *pr, .data = raw ? l->m->payload : NULL, .received_ns = l->received_ns};
	if (!ferry_checksum_fits(&l->connection, l->m)) {
		l->stalled.active = false;
		ferry_engine_bad_checksum(t, &pr->run, &damaged);
		l->fd = -1;
		ferry_engine_link_broken(t, &damaged);
		return;
	}
	FERRY_PROBE4(page_received, pr->request_id, pr->run.region, pr->run.first_page,
		     pr->run.n_pages);
	ferry_fault_place_answer(l);
}

void ferry_fault_handle_frames(struct fault_loop *l)
{
	if (l->stalled.active && !ferry_fault_place_answer(l))
		return;
	while (l->fd >= 0 && !l->stalled.active) {
		struct ferry_frame frame;
		int rc = ferry_framebuf_next(&l->in, &frame);

		if (!rc)
			return;
		if (rc < 0)
			refuse(l, "what came is not a frame");
		else
			handle_frame(l, &frame);
	}
}

void ferry_fault_receive(struct fault_loop *l)
{
	size_t room;
	uint8_t *p = ferry_framebuf_space(&l->in, &room);
	ssize_t n = recv(l->fd, p, FERRY_MIN(room, (size_t)RECEIVE_BYTES), MSG_DONTWAIT);

	if (n > 0) {
		l->received_ns = ferry_now_ns();
		ferry_alive_heard(&l->alive, l->received_ns);
		ferry_framebuf_advance(&l->in, (size_t)n);
		atomic_fetch_add_explicit(&l->t->counters.wire_bytes, (uint64_t)n,
					  memory_order_relaxed);
		ferry_fault_handle_frames(l);
	} else if (!n) {
		urgent_failed(l, FERRY_LINK, -ECONNRESET, "the source closed it");
	} else if (errno != EAGAIN && errno != EINTR) {
		urgent_failed(l, FERRY_LINK, -errno, "receiving");
	}
}

/* --- a new connection ------------------------------------------------------------------------- */

void ferry_fault_connect(struct fault_loop *l, int fd, const struct ferry_connection *connection)
{
	l->fd = fd;
	l->connection = *connection;
	/* Whatever was under way on the old connection is asked for again. */
	l->in.begin = 0;
	l->in.end = 0;
	l->out_begin = 0;
	l->out_end = 0;
	l->n_unanswered = 0;
	l->stalled.active = false;
	l->sweep.n_pages = 0;
	asking(l)->n_runs = 0;
	walk_start(l);
}
