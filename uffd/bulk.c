/* SPDX-License-Identifier: Apache-2.0 */
/* One bulk connection: receives pushed runs straight into an aligned buffer and places them. */
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

/* While the mapping is changing, or memory is short: how long to wait before trying again. */
#define RETRY_MAX_MS	10
#define SHORT_MEMORY_MS 100

struct receiver {
	struct ferry_target *t;
	struct ferry_engine_bulk *bulk;
	struct ferry_arena arena;
	struct ferry_connection connection;
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

/* Read one frame; its payload is then in the bulk's buffer. */
static int receive_frame(struct receiver *r, struct ferry_frame *frame)
{
	uint8_t header[FERRY_FRAME_HEADER_BYTES];
	struct ferry_frame_header h;
	uint8_t *msg = r->bulk->buffer + FERRY_MAX_RUN_BYTES;
	int fd = r->bulk->fd, stop = r->t->stop_fd;
	int rc = ferry_net_read_all(fd, header, sizeof(header), r->silence_ms, stop);

	if (rc < 0)
		return link_error(r, rc);
	if (ferry_frame_header_decode(header, &h) < 0)
		return refuse(r, "what came is not a frame");
	rc = ferry_net_read_all(fd, msg, h.msg_bytes, r->silence_ms, stop);
	if (!rc && h.payload_bytes)
		rc = ferry_net_read_all(fd, r->bulk->buffer, h.payload_bytes, r->silence_ms, stop);
	if (rc < 0)
		return link_error(r, rc);
	*frame = (struct ferry_frame){.type = h.type,
				      .msg = msg,
				      .msg_bytes = h.msg_bytes,
				      .payload = r->bulk->buffer,
				      .payload_bytes = h.payload_bytes};
	atomic_fetch_add_explicit(&r->t->counters.wire_bytes,
				  sizeof(header) + h.msg_bytes + h.payload_bytes,
				  memory_order_relaxed);
	return 0;
}

/* Wait a little, or until everything ends. */
static int pause_ms(struct ferry_target *t, int ms)
{
	struct pollfd p = {.fd = t->stop_fd, .events = POLLIN};

	return poll(&p, 1, ms) > 0 ? -ECANCELED : 0;
}

/* Place a run however often it takes. */
static int place(struct receiver *r, const struct ferry_run *run, enum ferry_encoding encoding,
		 const void *data)
{
	struct ferry_target *t = r->t;
	uint64_t received_ns = ferry_now_ns();
	uint32_t done = 0, n_new = 0;
	int wait_ms = 0, rc;

	for (;;) {
		rc = encoding == FERRY_ENCODING_LOST
			     ? ferry_engine_lose(t, run)
			     : ferry_engine_fill(t, run, data, &r->bulk->pipe, &done, &n_new);
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
	rc = place(r, run, pr->encoding, raw ? r->m->payload : NULL);
	if (rc < 0)
		return rc;
	if (pr->encoding == FERRY_ENCODING_ZERO)
		ferry_engine_leave_hole(t, run);
	ferry_engine_progress(t);
	return 0;
}

static int handle(struct receiver *r, const struct ferry_frame *frame)
{
	enum ferry_error_code code;
	char why[FERRY_MAX_TEXT];
	int rc = ferry_message_decode(frame, &r->arena, r->m, why);

	if (!rc)
		rc = ferry_connection_check(&r->connection, r->m, &code, why);
	if (rc == -ECONNREFUSED)
		return ferry_fail(&r->why, FERRY_REFUSE, rc, "the source says: %s", why);
	if (rc < 0)
		return refuse(r, why);
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
	struct ferry_frame frame;
	int rc = -ENOMEM;

	bulk->pipe = FERRY_MEMORY_PIPE_NONE;
	r.ring = ferry_trace_ring(bulk->target->trace, FERRY_RING_BULK, bulk->index);
	r.m = malloc(sizeof(*r.m));
	if (!r.m || ferry_arena_init(&r.arena) < 0)
		ferry_fail_errno(&r.why, FERRY_LINK, rc, "setting up");
	else
		rc = await_push(&r);
	while (!rc) {
		rc = receive_frame(&r, &frame);
		if (!rc)
			rc = handle(&r, &frame);
	}
	ferry_fail_prefix(&r.why, "bulk connection");
	ferry_engine_link_broken(r.t, &r.why);
	ferry_memory_pipe_close(&bulk->pipe);
	free(r.m);
	ferry_arena_fini(&r.arena);
	return NULL;
}
