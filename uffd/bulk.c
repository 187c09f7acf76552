/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One bulk connection: receives pushed runs straight into an aligned buffer and places them. Whole
 * blocks of private memory of our own are received elsewhere, and moved (gather.h).
 */
#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/net.h"
#include "protocol/alive.h"
#include "protocol/checksum.h"
#include "uffd/engine.h"
#include "uffd/gather.h"

/* While the mapping is changing, or memory is short: how long to wait before trying again. */
#define RETRY_MAX_MS	10
#define SHORT_MEMORY_MS 100
/* How often what is held back is looked at, while nothing comes. */
#define HELD_LOOK_MS 1
#define HELD_LOOK_BYTES (64u * 1024) /* and while something does */

struct receiver {
	struct ferry_target *t;
	struct ferry_engine_bulk *bulk;
	struct ferry_arena arena;
	struct ferry_connection connection;
	struct ferry_gather gather;
	struct ferry_message *m;
	int silence_ms;		       /* that is borne; -1: any */
	struct ferry_trace_ring *ring; /* borrowed; NULL when nothing is traced */
	struct ferry_failure why;
};

/* A run was placed: those who waited for its pages were woken by that. */
static void note(struct receiver *r, const struct ferry_run *run, bool is_zero, uint64_t received_ns,
		 uint32_t n_new)
{
	uint64_t now = ferry_now_ns();
	struct ferry_trace_record rec = {
		.type = FERRY_TRACE_PUSH,
		.flags = is_zero ? FERRY_PUSH_F_ZERO : 0,
		.region = run->region,
		.time_ns = now,
		.push =
			{
				.first_page = run->first_page,
				.received_ns = received_ns,
				.n_pages = run->n_pages,
				.n_new = n_new,
				.index = r->bulk->index,
			},
	};

	if (n_new)
		rec.push.overtaken = ferry_engine_overtake(r->t, run, now);
	ferry_trace_emit(r->ring, &rec);
}

static int refuse(struct receiver *r, const char *why)
{
	ferry_channel_refuse(r->bulk->fd, FERRY_ERROR_PROTOCOL, why);
	return ferry_fail(&r->why, FERRY_REFUSE, -EPROTO, "%s", why);
}

static int link_error(struct receiver *r, int rc)
{
	if (rc == -ECONNRESET)
		return ferry_fail(&r->why, FERRY_LINK, rc, "the source closed it");
	if (rc == -ETIMEDOUT)
		return ferry_fail(&r->why, FERRY_LINK, rc,
				  "nothing heard for %d s, though the push is not done",
				  FERRY_LOST_AFTER_MS / 1000);
	return ferry_fail_errno(&r->why, FERRY_LINK, rc, "receiving");
}

/* From when the push begins to its end the source is heard from steadily, if it was agreed. */
static int await_push(struct receiver *r)
{
	int rc = -ETIMEDOUT;

	r->silence_ms = -1;
	if (!(r->connection.features & FERRY_FEATURE_ALIVE))
		return 0;
	while (rc == -ETIMEDOUT && !atomic_load(&r->t->push_began))
		rc = ferry_net_wait(r->bulk->fd, POLLIN, FERRY_PING_MS, r->t->stop_fd);
	r->silence_ms = FERRY_LOST_AFTER_MS;
	return rc < 0 && rc != -ETIMEDOUT ? link_error(r, rc) : 0;
}

/* Wait a little, or until everything ends. */
static int pause_ms(struct ferry_target *t, int ms)
{
	struct pollfd p = {.fd = t->stop_fd, .events = POLLIN};

	return poll(&p, 1, ms) > 0 ? -ECANCELED : 0;
}

/* Place a run however often it takes. @moves: it is a whole block that was gathered */
static int place(struct receiver *r, const struct ferry_run *run, enum ferry_encoding encoding,
		 const void *data, bool moves)
{
	struct ferry_target *t = r->t;
	uint64_t received_ns = ferry_now_ns();
	uint32_t done = 0, n_new = 0;
	int wait_ms = 0, rc;

	for (;;) {
		rc = moves && !done ? ferry_gather_move(&r->gather, &done, &n_new) : 0;
		if (!rc)
			rc = encoding == FERRY_ENCODING_LOST
				     ? ferry_engine_lose(t, run)
				     : ferry_engine_fill(t, run, data, &r->bulk->pipe, &done,
							 &n_new);
		if (rc == -EAGAIN) {
			/* The fault thread reads the event; then the thread that made it must run. */
			ferry_engine_kick(t->fault_kick);
			sched_yield();
			rc = pause_ms(t, wait_ms);
			wait_ms = wait_ms < RETRY_MAX_MS ? wait_ms + 1 : wait_ms;
		} else if (rc == -ENOMEM) {
			ferry_warn(t->log, "no memory for %u pages of region %u; trying again, "
					   "threads that touch them wait",
				   run->n_pages - done, run->region);
			rc = pause_ms(t, SHORT_MEMORY_MS);
		} else {
			break;
		}
		if (rc < 0)
			return ferry_fail(&r->why, FERRY_LINK, rc, "stopped");
	}
	note(r, run, encoding == FERRY_ENCODING_ZERO, received_ns, n_new);
	if (data)
		atomic_fetch_add_explicit(&t->counters.pages_pushed, n_new, memory_order_relaxed);
	else
		atomic_fetch_add_explicit(&t->counters.pages_zero, n_new, memory_order_relaxed);
	if (rc == -ESRCH) {
		ferry_engine_gone(t);
		return ferry_fail(&r->why, FERRY_LOST, rc, "the process has ended");
	}
	if (rc < 0)
		return ferry_fail_errno(&r->why, FERRY_LOST, rc, "placing %u pages at %llu of region %u",
					run->n_pages, (unsigned long long)run->first_page,
					run->region);
	return 0;
}

/* What is held back is placed now. */
static int let_go(struct receiver *r)
{
	struct ferry_run run = r->gather.held;
	int rc;

	if (!run.n_pages)
		return 0;
	rc = place(r, &run, FERRY_ENCODING_RAW, r->gather.block, ferry_gather_can_move(&r->gather));
	ferry_gather_end(&r->gather);
	if (!rc)
		ferry_engine_progress(r->t);
	return rc;
}

static int read_all(struct receiver *r, void *buf, size_t len)
{
	size_t done = 0;

	while (done < len) {
		bool holds = r->gather.held.n_pages;
		size_t to = holds ? FERRY_MIN(len, done + HELD_LOOK_BYTES) : len;
		int rc = ferry_net_read_more(r->bulk->fd, buf, to, &done,
					     holds ? HELD_LOOK_MS : r->silence_ms, r->t->stop_fd);
		/* A shortage of memory may last longer than a look. */
		bool is_short = rc == -ENOMEM || rc == -ENOBUFS;

		if (rc < 0 && !(holds && (rc == -ETIMEDOUT || is_short)))
			return link_error(r, rc);
		rc = holds && (is_short || ferry_gather_is_due(&r->gather)) ? let_go(r) : 0;
		if (rc < 0)
			return rc;
	}
	return 0;
}

/* Where the payload of the message that was decoded is to go. */
static int find_room(struct receiver *r, uint8_t **out)
{
	const struct ferry_page_run *pr = &r->m->run;
	int rc;

	*out = r->bulk->buffer;
	if (!r->gather.map)
		return 0;
	/* Pages of another kind are not gathered; nor is what will be refused. */
	if (r->m->type == FERRY_FRAME_PAGE_RUN && pr->encoding == FERRY_ENCODING_RAW &&
	    ferry_pager_has(&r->t->pager, &pr->run) &&
	    r->m->payload_bytes == (uint64_t)pr->run.n_pages * FERRY_PAGE_SIZE_DEFAULT) {
		uint8_t *room = ferry_gather_room(&r->gather, &pr->run);

		if (!room) {
			rc = let_go(r);
			if (rc < 0)
				return rc;
			room = ferry_gather_room(&r->gather, &pr->run);
		}
		if (room)
			*out = room;
		return 0;
	}
	return let_go(r);
}

/* Read one message into r->m, with its payload. */
static int receive(struct receiver *r)
{
	uint8_t header[FERRY_FRAME_HEADER_BYTES];
	struct ferry_frame_header h;
	uint8_t *msg = r->bulk->buffer + FERRY_MAX_RUN_BYTES, *payload;
	enum ferry_error_code code;
	char why[FERRY_MAX_TEXT];
	int rc = read_all(r, header, sizeof(header));

	if (rc < 0)
		return rc;
	if (ferry_frame_header_decode(header, &h) < 0)
		return refuse(r, "what came is not a frame");
	rc = read_all(r, msg, h.msg_bytes);
	if (rc < 0)
		return rc;
	rc = ferry_message_decode(&(struct ferry_frame){.type = h.type,
							.msg = msg,
							.msg_bytes = h.msg_bytes,
							.payload = r->bulk->buffer,
							.payload_bytes = h.payload_bytes},
				  &r->arena, r->m, why);
	if (!rc)
		rc = ferry_connection_check(&r->connection, r->m, &code, why);
	if (rc == -ECONNREFUSED)
		return ferry_fail(&r->why, ferry_engine_consequence(r->m->error.code), rc,
				  "the source says: %s", why);
	if (rc < 0)
		return refuse(r, why);
	rc = find_room(r, &payload);
	if (!rc)
		rc = read_all(r, payload, h.payload_bytes);
	if (rc < 0)
		return rc;
	r->m->payload = payload;
	atomic_fetch_add_explicit(&r->t->counters.wire_bytes,
				  sizeof(header) + h.msg_bytes + h.payload_bytes,
				  memory_order_relaxed);
	return 0;
}

/* A run that was received to where it is gathered. */
static int gather(struct receiver *r, const struct ferry_run *run)
{
	ferry_gather_add(&r->gather, run);
	return ferry_gather_is_due(&r->gather) ? let_go(r) : 0;
}

static int handle_run(struct receiver *r)
{
	struct ferry_target *t = r->t;
	const struct ferry_page_run *pr = &r->m->run;
	const struct ferry_run *run = &pr->run;
	bool raw = pr->encoding == FERRY_ENCODING_RAW;
	int rc;

	if (!ferry_pager_has(&t->pager, run))
		return refuse(r, "pages outside the layout");
	if (raw && r->m->payload_bytes / run->n_pages != t->regions[run->region].info.desc.page_bytes)
		return refuse(r, "pages of another size than the layout's");
	if (!ferry_checksum_fits(&r->connection, r->m))
		return ferry_engine_bad_checksum(t, run, &r->why);
	/* What was held before it may have been let go meanwhile: then it is placed from there. */
	if (raw && r->m->payload == r->gather.block + (size_t)r->gather.held.n_pages *
							      FERRY_PAGE_SIZE_DEFAULT)
		return gather(r, run);
	rc = place(r, run, pr->encoding, raw ? r->m->payload : NULL, false);
	if (rc < 0)
		return rc;
	if (pr->encoding == FERRY_ENCODING_ZERO)
		ferry_engine_leave_hole(t, run);
	ferry_engine_progress(t);
	return 0;
}

static int handle(struct receiver *r)
{
	if (r->m->type == FERRY_FRAME_PAGE_RUN)
		return handle_run(r);
	if (r->m->type == FERRY_FRAME_PING)
		return 0; /* that it came is all that it says */
	r->silence_ms = -1;
	pthread_mutex_lock(&r->t->lock); /* PushDone */
	r->t->n_push_done++;
	pthread_mutex_unlock(&r->t->lock);
	ferry_engine_kick(r->t->session_kick);
	return 0;
}

void *ferry_engine_bulk_thread(void *arg)
{
	struct ferry_engine_bulk *bulk = arg;
	struct receiver r = {.t = bulk->target, .bulk = bulk, .connection = bulk->connection};
	int rc = -ENOMEM;

	bulk->pipe = FERRY_MEMORY_PIPE_NONE;
	r.ring = ferry_trace_ring(bulk->target->trace, FERRY_RING_BULK, bulk->index);
	ferry_gather_init(&r.gather, r.t);
	r.m = malloc(sizeof(*r.m));
	if (!r.m || ferry_arena_init(&r.arena) < 0)
		ferry_fail_errno(&r.why, FERRY_LINK, rc, "setting up");
	else
		rc = await_push(&r);
	while (!rc) {
		rc = receive(&r);
		if (!rc)
			rc = handle(&r);
	}
	ferry_fail_prefix(&r.why, "bulk connection");
	ferry_engine_link_broken(r.t, &r.why);
	ferry_memory_pipe_close(&bulk->pipe);
	ferry_gather_fini(&r.gather);
	free(r.m);
	ferry_arena_fini(&r.arena);
	return NULL;
}
