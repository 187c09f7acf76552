/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The session thread: brings the connections of a session up, watches them, and brings them up
 * again after a loss, until everything is resident.
 *
 *            +------------------ any connection lost ------------------+
 *            v                                                         |
 *     establish (dial, or take what was accepted) --> layout, bitmap --> run --complete--> finish
 *
 * A loss of one connection ends all of the epoch: the target's bitmap then says exactly what is
 * still missing, so nothing else need be remembered about what was in flight.
 */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/net.h"
#include "base/util.h"
#include "protocol/alive.h"
#include "uffd/engine.h"

#define GATHER_TIMEOUT_MS  10000 /* for the other connections, once control is open */
#define BACKOFF_MIN_MS	   50
#define BACKOFF_MAX_MS	   1000
/* When faults are traced the clocks are compared: some times at once, then steadily. */
#define CLOCK_BURST	   8
#define CLOCK_MS	   500
#define RELEASE_TIMEOUT_MS 5000
#define GONE_TIMEOUT_MS	   1000 /* for the source to hear that nobody is left */
/* How long a source that comes to us is waited for when nothing is missing any more, each time. */
#define POLITE_MS 2000
#define RELEASE_ATTEMPTS   5
#define VERIFY_ATTEMPTS	   30 /* while something is still to be asked */
#define LET_GO_RETRY_MS	   1
#define BITMAP_CHUNK_PAGES (FERRY_MAX_CONTROL_BYTES * 8ull)

struct session {
	struct ferry_target *t;
	struct ferry_engine_link link;
	struct ferry_engine_bulk bulk[FERRY_MAX_BULK];
	uint32_t n_bulk_running;
	struct ferry_message *m; /* scratch */
	uint8_t *bits;		 /* scratch, FERRY_MAX_CONTROL_BYTES */
	struct ferry_trace_ring *ring; /* borrowed; NULL when nothing is traced */
	uint32_t n_compared;	       /* clocks, on this link */
	struct ferry_failure why;
	bool unregistered, released;
	bool verified, differs;
	bool refused; /* the owner knows that attempts to resume are */
};

void ferry_engine_link_init(struct ferry_engine_link *link)
{
	*link = (struct ferry_engine_link){.control = {.fd = -1}, .urgent = -1};
	for (uint32_t i = 0; i < FERRY_MAX_BULK; i++)
		link->bulk[i] = -1;
}

void ferry_engine_link_close(struct ferry_engine_link *link)
{
	ferry_channel_close(&link->control);
	ferry_close(link->urgent);
	for (uint32_t i = 0; i < FERRY_MAX_BULK; i++)
		ferry_close(link->bulk[i]);
	ferry_engine_link_init(link);
}

/* --- layout and bitmap ------------------------------------------------------------------------ */

static int check_layout(struct session *s, const struct ferry_layout *theirs)
{
	const struct ferry_layout *ours = &s->t->layout;

	if (theirs->n_regions != ours->n_regions)
		return ferry_fail(&s->why, FERRY_REFUSE, -EINVAL,
				  "the source has %u memory regions, this side %u",
				  theirs->n_regions, ours->n_regions);
	for (uint32_t i = 0; i < ours->n_regions; i++) {
		const struct ferry_region_desc *a = &theirs->regions[i], *b = &ours->regions[i];

		if (b->name[0] && strcmp(a->name, b->name))
			return ferry_fail(&s->why, FERRY_REFUSE, -EINVAL,
					  "region %u is '%s' at the source and '%s' here", i,
					  a->name, b->name);
		if (a->n_pages * a->page_bytes != b->n_pages * b->page_bytes)
			return ferry_fail(&s->why, FERRY_REFUSE, -EINVAL,
					  "region %u ('%s') has %llu bytes at the source and %llu "
					  "here; give both the same size",
					  i, a->name,
					  (unsigned long long)(a->n_pages * a->page_bytes),
					  (unsigned long long)(b->n_pages * b->page_bytes));
		if (a->page_bytes != b->page_bytes)
			return ferry_fail(&s->why, FERRY_REFUSE, -EINVAL,
					  "region %u ('%s') has pages of %u KiB at the source and "
					  "%u KiB here; back both with the same kind of memory",
					  i, a->name, a->page_bytes / 1024, b->page_bytes / 1024);
	}
	/* Part of a memory was had from another one: the rest would not fit. */
	if (theirs->memory_id && s->t->memory_id && theirs->memory_id != s->t->memory_id)
		return ferry_fail(&s->why, FERRY_REFUSE, -ESTALE,
				  "the source serves another guest's memory, or has let this one run "
				  "on: what is missing can't be had from it");
	return 0;
}

static int send_resident(struct session *s)
{
	struct ferry_pager *p = &s->t->pager;

	for (uint32_t r = 0; r < p->n_regions; r++) {
		const struct ferry_bitmap *known = &p->regions[r].known;
		uint64_t n_pages = p->regions[r].n_pages;

		for (uint64_t at = 0; at < n_pages; at += BITMAP_CHUNK_PAGES) {
			uint64_t n = FERRY_MIN(n_pages - at, BITMAP_CHUNK_PAGES);
			struct ferry_message m = {.type = FERRY_FRAME_RESIDENT,
						  .resident = {r, at, n},
						  .payload = s->bits};
			int rc;

			if (ferry_bitmap_next_set(known, at, at + n) == at + n)
				continue;
			ferry_bitmap_export(known, at, n, s->bits);
			m.payload_bytes = (uint32_t)ferry_bitmap_n_bytes(n);
			rc = ferry_channel_send(&s->link.control, &m, s->t->stop_fd);
			if (rc < 0)
				return ferry_fail_errno(&s->why, FERRY_LINK, rc,
							"sending the bitmap of resident pages");
		}
	}
	return 0;
}

static int send_simple(struct session *s, enum ferry_frame_type type)
{
	struct ferry_message m = {.type = type};
	int rc;

	if (type == FERRY_FRAME_PUSH_START)
		m.push_start.max_bytes_per_second = s->t->max_bytes_per_second;
	if (type == FERRY_FRAME_PING)
		m.ping.sent_ns = ferry_now_ns();
	rc = ferry_channel_send(&s->link.control, &m, s->t->stop_fd);
	return rc < 0 ? ferry_fail_errno(&s->why, FERRY_LINK, rc, "control connection: sending %s",
					 ferry_frame_type_name(type))
		      : 0;
}

static const char *region_name(const void *layout, uint32_t i)
{
	return ((const struct ferry_layout *)layout)->regions[i].name;
}

int ferry_engine_receive_layout(struct ferry_channel *control, struct ferry_message *m, int stop_fd,
				struct ferry_failure *f)
{
	int rc = ferry_channel_receive(control, m, FERRY_ENGINE_LAYOUT_MS, stop_fd, f);

	if (rc == -ETIMEDOUT)
		return ferry_fail(f, FERRY_LINK, rc, "the source sent no layout in time");
	if (rc < 0)
		return rc;
	if (m->type != FERRY_FRAME_LAYOUT)
		return ferry_fail(f, FERRY_REFUSE, -EPROTO, "the source sent no layout");
	return 0;
}

/* Is the source's layout in ->m ours? Then go on. */
static int answer_layout(struct session *s)
{
	struct ferry_target *t = s->t;
	int rc;

	rc = check_layout(s, &s->m->layout);
	if (rc < 0) {
		ferry_channel_refuse(s->link.control.fd, FERRY_ERROR_LAYOUT, s->why.text);
		return rc;
	}
	if (t->verify && !(s->link.control.connection.features & FERRY_FEATURE_DIGEST))
		return ferry_fail(&s->why, FERRY_REFUSE, -EOPNOTSUPP,
				  "the source can't be asked for digests of its memory; use a later "
				  "release there, or leave --verify out");
	if (t->verify && !t->opened)
		ferry_engine_watch_still(t);
	pthread_mutex_lock(&t->lock);
	if (s->m->layout.memory_id)
		t->memory_id = s->m->layout.memory_id;
	if (!t->opened && s->m->payload_bytes) {
		memcpy(t->state, s->m->payload, s->m->payload_bytes);
		t->state_bytes = s->m->payload_bytes;
	}
	pthread_mutex_unlock(&t->lock);
	ferry_trace_name_regions(t->trace, region_name, &s->m->layout);
	rc = send_simple(s, FERRY_FRAME_LAYOUT_OK);
	return rc < 0 ? rc : send_resident(s);
}

/* --- bringing the connections up -------------------------------------------------------------- */

static int dial_one(struct session *s, struct ferry_channel *c, enum ferry_role role,
		    uint32_t index)
{
	struct ferry_target *t = s->t;
	struct ferry_hello hello = {.session = t->session,
				    .side = FERRY_SIDE_TARGET,
				    .role = role,
				    .index = index,
				    .epoch = s->link.epoch,
				    .withheld = t->withheld};
	int rc = ferry_channel_dial(c, t->tls, &t->from, &hello, FERRY_ENGINE_DIAL_MS, t->stop_fd, &s->why);

	if (rc < 0)
		ferry_fail_prefix(&s->why, "%s connection", ferry_role_name(role));
	return rc;
}

/* The control connection, and what follows its handshake. */
static int dial_control(struct session *s)
{
	struct ferry_target *t = s->t;
	int rc;

	if (t->meeting) {
		s->link.control = t->meeting->control;
		*s->m = t->meeting->m;
		t->meeting->control = (struct ferry_channel){.fd = -1};
		ferry_target_meeting_end(t->meeting);
		t->meeting = NULL;
		return answer_layout(s);
	}
	rc = dial_one(s, &s->link.control, FERRY_ROLE_CONTROL, 0);
	if (!rc)
		rc = ferry_engine_receive_layout(&s->link.control, s->m, t->stop_fd, &s->why);
	return rc < 0 ? rc : answer_layout(s);
}

static int establish_by_dialing(struct session *s)
{
	struct ferry_target *t = s->t;
	struct ferry_channel c;
	int rc;

	s->link.epoch = t->next_epoch++;
	rc = dial_control(s);
	if (rc < 0)
		return rc;
	rc = dial_one(s, &c, FERRY_ROLE_URGENT, 0);
	if (rc < 0)
		return rc;
	s->link.urgent = ferry_channel_take(&c, &s->link.urgent_connection);
	for (uint32_t i = 0; i < t->n_bulk; i++) {
		rc = dial_one(s, &c, FERRY_ROLE_BULK, i);
		if (rc < 0)
			return rc;
		s->link.bulk[i] = ferry_channel_take(&c, &s->link.bulk_connection[i]);
	}
	return 0;
}

static bool gathered(const struct ferry_target *t)
{
	if (t->incoming.urgent < 0)
		return false;
	for (uint32_t i = 0; i < t->n_bulk; i++)
		if (t->incoming.bulk[i] < 0)
			return false;
	return true;
}

/* Wait for a kick of the session. Errors: -ECANCELED, -ETIMEDOUT. */
static int await_kick(struct session *s, int timeout_ms)
{
	int rc = ferry_net_wait(s->t->session_kick, POLLIN, timeout_ms, s->t->stop_fd);

	if (!rc)
		ferry_engine_unkick(s->t->session_kick);
	return rc;
}

/* The control connection was taken over in epoch @epoch: wait for the rest of it. */
static int gather(struct session *s)
{
	struct ferry_target *t = s->t;
	uint64_t deadline = ferry_now_ns() + GATHER_TIMEOUT_MS * (uint64_t)FERRY_NS_PER_MS;

	for (;;) {
		uint64_t now = ferry_now_ns();
		bool done, superseded;
		int rc;

		pthread_mutex_lock(&t->lock);
		superseded = t->incoming.epoch != s->link.epoch;
		done = !superseded && gathered(t);
		if (done) {
			struct ferry_channel control = s->link.control;

			s->link = t->incoming;
			s->link.control = control;
			ferry_engine_link_init(&t->incoming);
			t->incoming.epoch = s->link.epoch;
		}
		pthread_mutex_unlock(&t->lock);
		if (done)
			return 0;
		if (superseded)
			return ferry_fail(&s->why, FERRY_LINK, -ESTALE, "the source began anew");
		rc = now < deadline
			     ? await_kick(s, (int)((deadline - now) / FERRY_NS_PER_MS) + 1)
			     : -ETIMEDOUT;
		if (rc < 0)
			return ferry_fail_errno(&s->why, FERRY_LINK, rc,
						"waiting for the source's other connections");
	}
}

/* Everything is known, and that may be the end. */
static bool is_complete(struct ferry_target *t)
{
	bool may_end;

	if (!ferry_pager_is_complete(&t->pager))
		return false;
	pthread_mutex_lock(&t->lock);
	may_end = t->push_wanted || !t->ends_with_push;
	pthread_mutex_unlock(&t->lock);
	return may_end;
}

static int establish_by_accepting(struct session *s)
{
	struct ferry_target *t = s->t;
	int rc;

	for (;;) {
		bool taken;

		pthread_mutex_lock(&t->lock);
		taken = t->incoming.has_control;
		if (taken) {
			s->link.epoch = t->incoming.epoch;
			s->link.control = t->incoming.control;
			t->incoming.control = (struct ferry_channel){.fd = -1};
			t->incoming.has_control = false;
		}
		pthread_mutex_unlock(&t->lock);
		if (taken)
			break;
		rc = await_kick(s, is_complete(t) ? POLITE_MS : -1);
		if (rc < 0)
			return ferry_fail_errno(&s->why, FERRY_LINK, rc, "waiting for the source");
		if (atomic_load(&t->gone))
			return ferry_fail(&s->why, FERRY_LOST, -ESRCH, "the process has ended");
	}
	rc = ferry_engine_receive_layout(&s->link.control, s->m, t->stop_fd, &s->why);
	if (!rc)
		rc = answer_layout(s);
	return rc < 0 ? rc : gather(s);
}

/* --- running ------------------------------------------------------------------------------------ */

static int start_bulk(struct session *s)
{
	struct ferry_target *t = s->t;
	size_t bytes = FERRY_MAX_RUN_BYTES + FERRY_MAX_MESSAGE_BYTES;

	for (uint32_t i = 0; i < t->n_bulk; i++) {
		struct ferry_engine_bulk *b = &s->bulk[i];
		int rc;

		*b = (struct ferry_engine_bulk){.target = t,
						.index = i,
						.fd = s->link.bulk[i],
						.connection = s->link.bulk_connection[i]};
		b->buffer = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
				 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (b->buffer == MAP_FAILED)
			return ferry_fail_errno(&s->why, FERRY_LINK, -errno, "bulk buffer");
		rc = -pthread_create(&b->thread, NULL, ferry_engine_bulk_thread, b);
		if (rc < 0) {
			munmap(b->buffer, bytes);
			return ferry_fail_errno(&s->why, FERRY_LINK, rc, "bulk thread");
		}
		s->n_bulk_running++;
	}
	return 0;
}

static void stop_bulk(struct session *s)
{
	for (uint32_t i = 0; i < s->n_bulk_running; i++) {
		shutdown(s->bulk[i].fd, SHUT_RDWR);
		pthread_join(s->bulk[i].thread, NULL);
		munmap(s->bulk[i].buffer, FERRY_MAX_RUN_BYTES + FERRY_MAX_MESSAGE_BYTES);
	}
	s->n_bulk_running = 0;
}

/* Everything is known. What the source said is zero becomes the kernel's zeros from here on. */
static void let_go(struct session *s)
{
	struct ferry_target *t = s->t;
	int pause_ms = 0;

	if (s->unregistered)
		return;
	for (uint32_t i = 0; i < t->n_regions; i++)
		(void)ferry_uffd_unregister(&t->uffd,
					    (struct ferry_hva){atomic_load(&t->regions[i].start)},
					    t->regions[i].bytes);
	/* A thread that discards memory, and began before that, waits until its event is read: the
	 * fault thread must not end before. No event can begin any more. */
	while (ferry_uffd_is_changing(&t->uffd,
				      (struct ferry_hva){atomic_load(&t->regions[0].start)}) &&
	       ferry_net_wait(t->stop_fd, POLLIN, pause_ms, -1) == -ETIMEDOUT)
		pause_ms = LET_GO_RETRY_MS;
	s->unregistered = true;
}

/* That the session is over. The source closes once it has read why: before, a connection of ours
 * that ends would be a lost link to it. */
static void tell_source(struct session *s, enum ferry_error_code code, const char *why,
			int timeout_ms, int stop_fd)
{
	struct ferry_failure ignored;
	int rc = 0;

	ferry_channel_refuse(s->link.control.fd, code, why);
	/* Pongs may be on their way, but not for ever. */
	for (int i = 0; i < 16 && !rc; i++)
		rc = ferry_channel_receive(&s->link.control, s->m, timeout_ms, stop_fd, &ignored);
}

/* Everything is known: leave, and let the source go. */
static int finish(struct session *s)
{
	struct ferry_target *t = s->t;
	int rc;

	let_go(s);
	rc = t->verify && !s->verified ? ferry_engine_verify(t, &s->link.control, s->m, &s->why) : 0;
	if (rc == FERRY_ENGINE_DIFFERS) {
		s->differs = true;
		tell_source(s, FERRY_ERROR_DAMAGED, s->why.text, RELEASE_TIMEOUT_MS, t->stop_fd);
		return s->why.err;
	}
	if (rc < 0)
		return rc;
	s->verified = t->verify;
	rc = send_simple(s, FERRY_FRAME_COMPLETE);
	while (!rc) {
		rc = ferry_channel_receive(&s->link.control, s->m, RELEASE_TIMEOUT_MS, t->stop_fd,
					   &s->why);
		if (!rc && s->m->type == FERRY_FRAME_RELEASED) {
			s->released = true;
			return 0;
		}
	}
	if (rc == -ETIMEDOUT)
		ferry_fail(&s->why, FERRY_LINK, rc, "the source did not answer Complete");
	return rc;
}

/* What the other threads and the owner may have for us. Return: 1 when it is complete. */
static int look_around(struct session *s, bool *pushing)
{
	struct ferry_target *t = s->t;
	bool broken, push, sweep = false;

	if (atomic_load(&t->gone))
		return ferry_fail(&s->why, FERRY_LOST, -ESRCH, "the process has ended");
	if (is_complete(t))
		return 1;
	pthread_mutex_lock(&t->lock);
	broken = t->broken;
	if (broken)
		s->why = t->broken_why;
	push = t->push_wanted && !*pushing;
	if (t->n_push_done == t->n_bulk && !t->fault_sweep)
		t->fault_sweep = sweep = true;
	pthread_mutex_unlock(&t->lock);
	if (broken)
		return s->why.err;
	if (sweep)
		ferry_engine_kick(t->fault_kick);
	if (push) {
		*pushing = true;
		atomic_store(&t->push_began, true);
		return send_simple(s, FERRY_FRAME_PUSH_START);
	}
	return 0;
}

static void note_link(struct session *s, bool is_open)
{
	struct ferry_trace_record rec = {.type = FERRY_TRACE_LINK,
					 .flags = is_open ? FERRY_LINK_F_OPEN : 0,
					 .time_ns = ferry_now_ns(),
					 .link = {.epoch = s->link.epoch}};

	ferry_trace_emit(s->ring, &rec);
}

/* What a Pong tells of the two sides' clocks. One that contradicts itself tells nothing. */
static void note_clock(struct session *s, const struct ferry_pong *pong, uint64_t now)
{
	struct ferry_trace_record rec = {.type = FERRY_TRACE_CLOCK, .time_ns = now};
	uint64_t held = pong->sent_ns - pong->received_ns;

	if (pong->ping_sent_ns > now || pong->sent_ns < pong->received_ns ||
	    held > now - pong->ping_sent_ns)
		return;
	rec.clock.round_trip_ns = now - pong->ping_sent_ns;
	rec.clock.uncertainty_ns = (rec.clock.round_trip_ns - held) / 2 + 1;
	/* Both ways taken to be equally long; wrong by the uncertainty at most. */
	rec.clock.offset_ns = (int64_t)(pong->ping_sent_ns - pong->received_ns) +
			      (int64_t)rec.clock.uncertainty_ns;
	ferry_trace_emit(s->ring, &rec);
}

/* Take what came on the control connection. Only Pong is of interest. */
static int hear(struct session *s, uint64_t now, uint64_t *next_ping)
{
	int rc;

	for (;;) {
		rc = ferry_channel_receive(&s->link.control, s->m, 0, s->t->stop_fd, &s->why);
		if (rc < 0)
			break;
		if (s->m->type != FERRY_FRAME_PONG)
			continue;
		note_clock(s, &s->m->pong, now);
		if (s->ring && ++s->n_compared < CLOCK_BURST)
			*next_ping = now;
	}
	if (rc == -ETIMEDOUT)
		return 0;
	ferry_fail_prefix(&s->why, "control connection");
	return rc;
}

/* Watch the session until it breaks (negative), or all is done (0). */
static int run(struct session *s)
{
	struct ferry_target *t = s->t;
	uint64_t ping_ns = (s->ring ? CLOCK_MS : FERRY_PING_MS) * (uint64_t)FERRY_NS_PER_MS;
	uint64_t heard = ferry_now_ns(), next_ping = heard + (s->ring ? 0 : ping_ns);
	bool pushing = false;

	for (;;) {
		struct pollfd p[] = {{.fd = s->link.control.fd, .events = POLLIN},
				     {.fd = t->session_kick, .events = POLLIN},
				     {.fd = t->stop_fd, .events = POLLIN}};
		uint64_t now;
		int rc = look_around(s, &pushing), wait_ms;

		if (rc < 0)
			return rc;
		if (rc == 1)
			return finish(s);
		now = ferry_now_ns();
		if (now >= next_ping) {
			next_ping = now + ping_ns;
			rc = send_simple(s, FERRY_FRAME_PING);
			if (rc < 0)
				return rc;
		}
		wait_ms = (int)((next_ping - now) / FERRY_NS_PER_MS) + 1;
		if (poll(p, 3, wait_ms) < 0 && errno != EINTR)
			return ferry_fail_errno(&s->why, FERRY_LINK, -errno, "poll");
		if (p[2].revents)
			return ferry_fail(&s->why, FERRY_LINK, -ECANCELED, "stopped");
		if (p[1].revents)
			ferry_engine_unkick(t->session_kick);
		now = ferry_now_ns();
		if (p[0].revents) {
			heard = now;
			rc = hear(s, now, &next_ping);
			if (rc < 0)
				return rc;
		}
		if (now - heard > FERRY_LOST_AFTER_MS * (uint64_t)FERRY_NS_PER_MS)
			return ferry_fail(&s->why, FERRY_LINK, -ETIMEDOUT,
					  "control connection: nothing heard for %d s",
					  FERRY_LOST_AFTER_MS / 1000);
	}
}

static int run_link(struct session *s)
{
	struct ferry_target *t = s->t;
	int rc;

	pthread_mutex_lock(&t->lock);
	/* A newer control connection that came meanwhile stays marked. */
	t->broken = t->incoming.has_control;
	t->n_push_done = 0;
	t->fault_sweep = false;
	t->opened = true;
	pthread_mutex_unlock(&t->lock);
	atomic_store(&t->push_began, false);
	ferry_engine_offer_urgent(t, s->link.urgent, &s->link.urgent_connection);
	rc = start_bulk(s);
	if (!rc) {
		if (s->link.epoch != t->first_epoch)
			atomic_fetch_add(&t->counters.resumes, 1);
		atomic_store(&t->link_up, true);
		s->n_compared = 0;
		note_link(s, true);
		ferry_engine_notify(t, FERRY_TARGET_OPEN, NULL);
		rc = run(s);
		/* Nobody comes back for it: its place at the page server is free. */
		if (rc < 0 && t->dials && (atomic_load(&t->gone) || atomic_load(&t->leaves)))
			tell_source(s, FERRY_ERROR_UNAVAILABLE,
				    atomic_load(&t->gone)
					    ? "the process whose memory is being filled has ended"
					    : "it leaves, and does without the rest",
				    GONE_TIMEOUT_MS, -1);
		if (!s->released)
			note_link(s, false);
	}
	atomic_store(&t->link_up, false);
	/* No thread may hold a descriptor of the link any more when it is closed. */
	shutdown(s->link.urgent, SHUT_RDWR);
	ferry_engine_offer_urgent(t, -1, NULL);
	stop_bulk(s);
	return rc;
}

/* --- the thread ---------------------------------------------------------------------------------- */

static void report_first(struct session *s, int rc)
{
	struct ferry_target *t = s->t;

	pthread_mutex_lock(&t->lock);
	if (!t->first_done) {
		t->first_done = true;
		t->first_rc = rc;
		t->first_why = s->why;
		pthread_cond_broadcast(&t->changed);
	}
	pthread_mutex_unlock(&t->lock);
}

static bool stopping(const struct ferry_target *t)
{
	return ferry_net_wait(t->stop_fd, POLLIN, 0, -1) == 0;
}

/* A link could not be had, or broke. Tell it and wait before the next attempt. */
static void back_off(struct session *s, int *ms, bool was_open)
{
	struct ferry_target *t = s->t;

	if (was_open) {
		ferry_engine_notify(t, s->why.consequence == FERRY_LINK ? FERRY_TARGET_LINK_LOST
									: FERRY_TARGET_FAILED,
				    &s->why);
		*ms = BACKOFF_MIN_MS;
		s->refused = false;
	} else if (t->opened && s->why.consequence != FERRY_LINK && !s->refused) {
		s->refused = true;
		ferry_engine_notify(t, FERRY_TARGET_FAILED, &s->why);
	}
	ferry_warn(t->log, "%s; threads that touch missing pages wait until the session is resumed",
		   s->why.text);
	if (t->dials)
		(void)ferry_net_wait(t->stop_fd, POLLIN, *ms, -1);
	*ms = FERRY_MIN(*ms * 2, BACKOFF_MAX_MS);
}

/* The end of one that is complete, but not verified. */
static void tell_differs(struct session *s)
{
	if (!s->differs)
		ferry_fail_prefix(&s->why, "everything is resident, but it could not be compared with the "
					   "source's memory");
	ferry_error(s->t->log, "%s", s->why.text);
	ferry_engine_notify(s->t, FERRY_TARGET_DIFFERS, &s->why);
}

static void session_run(struct session *s)
{
	struct ferry_target *t = s->t;
	int backoff_ms = BACKOFF_MIN_MS, attempts = 0;

	while (!stopping(t) && !atomic_load(&t->gone)) {
		bool was_open;
		int rc;

		ferry_engine_link_init(&s->link);
		rc = t->dials ? establish_by_dialing(s) : establish_by_accepting(s);
		was_open = !rc;
		report_first(s, rc);
		if (!rc)
			rc = run_link(s);
		ferry_engine_link_close(&s->link);
		/* The rest may have been discarded while there was no link; or the one before us had
		 * everything, and the source, which knows that, never comes again. */
		if ((t->opened || t->adopts) && is_complete(t))
			let_go(s);
		if (s->differs || (s->unregistered && t->verify && !s->verified &&
				   ++attempts == VERIFY_ATTEMPTS)) {
			tell_differs(s);
			return;
		}
		if (s->released ||
		    (s->unregistered && (!t->verify || s->verified) && ++attempts >= RELEASE_ATTEMPTS)) {
			if (!s->released)
				ferry_warn(t->log, "everything is resident, but the source was not "
						   "told: %s",
					   s->why.text);
			ferry_engine_collapse(t);
			ferry_engine_notify(t, FERRY_TARGET_COMPLETE, NULL);
			return;
		}
		if (!t->opened || stopping(t) || atomic_load(&t->gone)) {
			/* The first attempt failed and its caller knows; or it is all over. */
			if (t->dials || stopping(t) || atomic_load(&t->gone))
				return;
		}
		back_off(s, &backoff_ms, was_open);
	}
}

/* Nobody is dialed, nor waited for. */
static void give_up_source(struct session *s)
{
	struct ferry_target *t = s->t;
	int rc = ferry_engine_lose_missing(t, &s->why);

	report_first(s, 0);
	/* What is missing still must stay registered: its threads would read zeros. */
	if (rc < 0 && !stopping(t))
		ferry_engine_notify(t, FERRY_TARGET_FAILED, &s->why);
	if (rc < 0)
		return;
	let_go(s);
	ferry_engine_notify(t, FERRY_TARGET_COMPLETE, NULL);
}

void *ferry_engine_session_thread(void *target)
{
	struct session s = {.t = target};

	s.ring = ferry_trace_ring(s.t->trace, FERRY_RING_SESSION, 0);
	s.m = malloc(sizeof(*s.m));
	s.bits = malloc(FERRY_MAX_CONTROL_BYTES);
	if (s.m && s.bits && s.t->source_lost)
		give_up_source(&s);
	else if (s.m && s.bits)
		session_run(&s);
	else
		report_first(&s, ferry_fail_errno(&s.why, FERRY_REFUSE, -ENOMEM, "session"));
	/* It may all be over before the first attempt. */
	report_first(&s, atomic_load(&s.t->gone)
				 ? ferry_fail(&s.why, FERRY_LOST, -ESRCH, "the process has ended")
				 : ferry_fail(&s.why, FERRY_LINK, -ECANCELED, "stopped"));
	free(s.m);
	free(s.bits);
	return NULL;
}
