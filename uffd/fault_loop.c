/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The fault loop: one thread that owns the userfaultfd and the urgent connection.
 *
 * Happy path
 *   1. poll says that there are messages; read as many as there are
 *   2. for each fault ask the pager; new ones go into one PageRequest, which is sent
 *   3. answers are received into a buffer and placed from there, which wakes the waiters
 *
 * Failure modes
 *   - The urgent connection fails: faults go on being collected; with the next connection all that
 *     is outstanding is asked for again.
 *   - The urgent connection is silent while answers are due, and pings are not answered either: it
 * has failed. A source that only takes its time answers the pings.
 *   - The mapping is changing (EAGAIN): the kernel wants its events read first. The answer stays in
 *     the buffer, the loop reads, and tries again; it never waits in place.
 *   - More faults than there is room for. Reading never stops for that, since a process that
 * changes its mappings waits for its event to be read, and placing waits for the process: faults
 * that wait for the source are in the pager anyway, and others are woken later, to fault anew.
 *
 * Limits: the records of FERRY_MAX_PENDING faults at once; one request of FERRY_MAX_REQUEST_RUNS
 * runs at a time. Nothing is allocated after the start.
 */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/util.h"
#include "protocol/alive.h"
#include "protocol/checksum.h"
#include "trace/usdt.h"
#include "uffd/engine.h"
#include "uffd/notice.h"

#define MESSAGES_A_READ 64u
#define BATCHES		16u   /* before answers are looked at again */
#define LOCAL_MAX	1024u /* faults to be answered from here */
#define MERGE_PAGES	16u   /* neighbours that are asked for as one run */
#define SWEEP_PAGES	64u
#define IN_BYTES	(FERRY_MAX_ENCODED_BYTES + FERRY_MAX_RUN_BYTES)
#define RECEIVE_BYTES	(256u * 1024) /* at most this much a call, to keep the cache warm */
#define RETRY_MS	1
#define ALIVE_LOOK_MS	500 /* how often a source that owes answers is thought of */
#define FAULT_NICE	(-10)

struct local_fault {
	struct ferry_pending_message message;
	bool is_zero;
};

struct range {
	uint64_t page, end;
};

/* An answer that could not be placed yet. Its bytes stay in the buffer. */
struct stalled {
	bool active;
	struct ferry_page_run run;
	const uint8_t *data; /* NULL for zeros */
	uint32_t done, n_new;
	uint64_t received_ns;
};

struct fault_loop {
	struct ferry_target *t;
	int fd; /* urgent connection, -1 when there is none; borrowed */
	struct ferry_connection connection;
	struct ferry_framebuf in;
	struct ferry_arena arena;
	struct ferry_message *m;   /* decoded */
	struct ferry_message *ask; /* being put together */
	uint8_t out[FERRY_MAX_ENCODED_BYTES];
	size_t out_begin, out_end;
	uint64_t next_request_id;
	uint64_t n_unanswered;	  /* pages that were asked for on this connection */
	struct ferry_alive alive; /* while there are some */
	bool walking; /* asking again for what is outstanding, from walk on */
	struct ferry_run walk;
	struct ferry_run sweep; /* n_pages 0: not sweeping */
	struct stalled stalled;
	bool retry;	      /* something could not be placed: try again soon */
	uint64_t received_ns; /* the last bytes came */
	struct ferry_notice notice;

	struct ferry_pending pending;
	struct local_fault local[LOCAL_MAX];
	uint32_t n_local;
	bool dropped; /* there was no room for some */
	/* Of each region, where to look for threads that wait; empty: nowhere. */
	struct range discards[FERRY_MAX_REGIONS];
};

/* --- what threads wait for ------------------------------------------------------------------- */

/* Pages that the push brought: their faults ended then. */
static void settle_overtaken(struct fault_loop *l)
{
	struct ferry_target *t = l->t;

	pthread_mutex_lock(&t->overtaken_lock);
	for (uint32_t i = 0; i < t->n_overtaken; i++) {
		const struct ferry_engine_overtaken *o = &t->overtaken[i];

		ferry_pending_settle(&l->pending, o->region, o->page, o->placed_ns,
				     FERRY_FAULT_F_PUSHED);
	}
	atomic_store_explicit(&t->n_overtaken, 0, memory_order_relaxed);
	pthread_mutex_unlock(&t->overtaken_lock);
}

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

static void send_requests(struct fault_loop *l)
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

/* Is the source, that owes us answers, still there? */
static bool is_watched(const struct fault_loop *l)
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

static void watch(struct fault_loop *l)
{
	uint64_t now;
	char byte;

	if (!is_watched(l))
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

/* --- messages of the userfaultfd ------------------------------------------------------------- */

/* Return: the region that has @address, or NULL. */
static const struct ferry_engine_region *find_region(struct ferry_target *t, uint64_t address,
						     uint32_t *id, uint64_t *page)
{
	for (uint32_t i = 0; i < t->n_regions; i++) {
		const struct ferry_engine_region *r = &t->regions[i];
		uint64_t start = atomic_load(&r->start);

		if (address >= start && address - start < r->bytes) {
			*id = i;
			*page = (address - start) / r->info.desc.page_bytes;
			return r;
		}
	}
	return NULL;
}

static void untracked(struct fault_loop *l, uint64_t address)
{
	struct ferry_failure why;

	ferry_fail(&why, FERRY_LOST, -EFAULT,
		   "a thread touched %#llx, which no region has; it waits, and is not given zeros",
		   (unsigned long long)address);
	ferry_engine_notify(l->t, FERRY_TARGET_FAILED, &why);
}

/* @m: what the messages of the batch have in common */
static void handle_fault(struct fault_loop *l, const struct uffd_msg *msg,
			 struct ferry_pending_message m)
{
	struct ferry_target *t = l->t;
	enum ferry_fault_verdict verdict;

	atomic_fetch_add_explicit(&t->counters.faults, 1, memory_order_relaxed);
	if (!find_region(t, msg->arg.pagefault.address, &m.region, &m.page)) {
		untracked(l, msg->arg.pagefault.address);
		return;
	}
	if (msg->arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WRITE)
		m.flags |= FERRY_FAULT_F_WRITE;
	if (t->uffd.features & UFFD_FEATURE_THREAD_ID)
		m.thread = msg->arg.pagefault.feat.ptid;
	FERRY_PROBE3(fault_read, m.region, m.page, m.thread);
	verdict = ferry_pager_fault(&t->pager, m.region, m.page);
	switch (verdict) {
	case FERRY_FAULT_ASK:
		ferry_pending_read(&l->pending, &m);
		if (t->hooks.faulted)
			t->hooks.faulted(t->hooks.ctx, m.region, m.page);
		ferry_notice_fault(&l->notice, &m);
		if (l->fd >= 0 && !is_ahead(l, m.region, m.page) &&
		    !ask(l, &(struct ferry_run){
				    .region = m.region, .first_page = m.page, .n_pages = 1}))
			walk_start(l);
		break;
	case FERRY_FAULT_ASKED:
		ferry_pending_join(&l->pending, &m);
		atomic_fetch_add_explicit(&t->counters.faults_coalesced, 1, memory_order_relaxed);
		break;
	case FERRY_FAULT_ZERO:
	case FERRY_FAULT_PLACED:
		if (l->n_local < LOCAL_MAX)
			l->local[l->n_local++] =
				(struct local_fault){m, verdict == FERRY_FAULT_ZERO};
		else
			l->dropped = true;
		break;
	}
}

/* The part of [start, end) that lies in region @id, in pages. Return: false when there is none. */
static bool clip(const struct ferry_target *t, uint32_t id, uint64_t start, uint64_t end,
		 struct ferry_run *run)
{
	const struct ferry_engine_region *r = &t->regions[id];
	uint64_t base = atomic_load(&r->start);
	uint64_t from = FERRY_MAX(start, base), to = FERRY_MIN(end, base + r->bytes);

	if (from >= to)
		return false;
	run->region = id;
	run->first_page = (from - base) / r->info.desc.page_bytes;
	run->n_pages = (uint32_t)((to - from) / r->info.desc.page_bytes);
	return run->n_pages;
}

static void note_discard(struct fault_loop *l, const struct ferry_run *run)
{
	struct ferry_trace_record rec = {
		.type = FERRY_TRACE_DISCARD,
		.region = run->region,
		.time_ns = ferry_now_ns(),
		.discard = {.first_page = run->first_page, .n_pages = run->n_pages},
	};

	ferry_trace_emit(l->pending.ring, &rec);
}

/* Threads may wait for pages of a run that was just discarded. */
static void look_for_waiting(struct fault_loop *l, const struct ferry_run *run)
{
	struct range *d = &l->discards[run->region];
	uint64_t end = run->first_page + run->n_pages;

	d->page = d->page < d->end ? FERRY_MIN(d->page, run->first_page) : run->first_page;
	d->end = FERRY_MAX(d->end, end);
}

static void handle_remove(struct fault_loop *l, uint64_t start, uint64_t end, bool unmapped)
{
	struct ferry_target *t = l->t;
	struct ferry_run run;

	for (uint32_t i = 0; i < t->n_regions; i++) {
		/* See fill.c: in shared memory a REMOVE need not mean that content went. */
		if (!clip(t, i, start, end, &run) ||
		    (!unmapped && !ferry_engine_discards(&t->regions[i])))
			continue;
		ferry_pager_discarded(&t->pager, &run);
		atomic_fetch_add_explicit(&t->counters.discarded_pages, run.n_pages,
					  memory_order_relaxed);
		look_for_waiting(l, &run);
		note_discard(l, &run);
	}
}

static void handle_remap(struct fault_loop *l, uint64_t from, uint64_t to, uint64_t len)
{
	struct ferry_target *t = l->t;
	struct ferry_failure why;

	for (uint32_t i = 0; i < t->n_regions; i++) {
		uint64_t start = atomic_load(&t->regions[i].start);

		if (from >= start + t->regions[i].bytes || from + len <= start)
			continue;
		if (from <= start && from + len >= start + t->regions[i].bytes) {
			atomic_store(&t->regions[i].start, to + (start - from));
			/* Who waited at the old place finds out that nothing is there. */
			(void)ferry_uffd_wake(&t->uffd, (struct ferry_hva){start},
					      t->regions[i].bytes);
			continue;
		}
		ferry_fail(&why, FERRY_LOST, -ENOTSUP,
			   "region %u: the process moved a part of it; threads that touch missing "
			   "pages of that part wait",
			   i);
		ferry_engine_notify(t, FERRY_TARGET_FAILED, &why);
	}
}

static void handle_event(struct fault_loop *l, const struct uffd_msg *msg)
{
	switch (msg->event) {
	case UFFD_EVENT_REMOVE:
	case UFFD_EVENT_UNMAP:
		handle_remove(l, msg->arg.remove.start, msg->arg.remove.end,
			      msg->event == UFFD_EVENT_UNMAP);
		break;
	case UFFD_EVENT_REMAP:
		handle_remap(l, msg->arg.remap.from, msg->arg.remap.to, msg->arg.remap.len);
		break;
	}
}

/* Read one batch. Return: how many messages, 0 when there are none. */
static size_t read_messages(struct fault_loop *l, struct uffd_msg *msgs)
{
	struct ferry_target *t = l->t;
	size_t n_msgs = 0;
	ssize_t n;

	pthread_mutex_lock(&t->discard_lock);
	n = read(t->uffd.fd, msgs, MESSAGES_A_READ * sizeof(*msgs));
	if (n > 0)
		n_msgs = (size_t)n / sizeof(*msgs);
	/* Events first: a fault that was read before a discard may have come after it. */
	for (size_t i = 0; i < n_msgs; i++)
		if (msgs[i].event != UFFD_EVENT_PAGEFAULT)
			handle_event(l, &msgs[i]);
	pthread_mutex_unlock(&t->discard_lock);
	return n_msgs;
}

static void drain(struct fault_loop *l)
{
	struct uffd_msg msgs[MESSAGES_A_READ];

	for (unsigned int batch = 0; batch < BATCHES; batch++) {
		size_t n = read_messages(l, msgs);
		struct ferry_pending_message m = {.read_ns = ferry_now_ns(), .batch = (uint32_t)n};

		ferry_notice_read(&l->notice, &m);
		for (size_t i = 0; i < n; i++)
			if (msgs[i].event == UFFD_EVENT_PAGEFAULT)
				handle_fault(l, &msgs[i], m);
		if (n < MESSAGES_A_READ) {
			ferry_notice_empty(&l->notice, m.read_ns);
			break;
		}
	}
}

/* --- placement ------------------------------------------------------------------------------- */

/* What a failed placement means. Return: true when it is to be tried again soon. */
static bool try_again(struct fault_loop *l, int rc, uint32_t region, uint64_t page)
{
	struct ferry_failure why;

	if (rc == -EAGAIN || rc == -ENOMEM) {
		l->retry = true;
		return true;
	}
	if (rc == -ESRCH) {
		ferry_engine_gone(l->t);
		return false;
	}
	ferry_fail_errno(&why, FERRY_LOST, rc, "placing page %llu of region %u",
			 (unsigned long long)page, region);
	ferry_engine_notify(l->t, FERRY_TARGET_FAILED, &why);
	return false;
}

/* Answer faults on pages whose content is known here, and on pages discarded meanwhile. */
static void serve_local(struct fault_loop *l)
{
	struct ferry_target *t = l->t;
	uint32_t kept = 0;

	for (uint32_t i = 0; i < l->n_local; i++) {
		struct local_fault f = l->local[i];
		const struct ferry_pending_message *m = &f.message;
		int rc = ferry_engine_fill_zero(t, m->region, m->page);

		if (rc < 0 && try_again(l, rc, m->region, m->page))
			l->local[kept++] = f;
		else
			ferry_pending_local(&l->pending, m, ferry_now_ns(),
					    f.is_zero ? FERRY_FAULT_F_ZERO : 0);
	}
	l->n_local = kept;
	if (l->dropped && !kept) {
		/* Those there was no room for fault anew. */
		l->dropped = false;
		for (uint32_t i = 0; i < t->n_regions; i++)
			(void)ferry_uffd_wake(&t->uffd,
					      (struct ferry_hva){atomic_load(&t->regions[i].start)},
					      t->regions[i].bytes);
	}
}

static void serve_discards(struct fault_loop *l)
{
	for (uint32_t i = 0; i < l->t->n_regions; i++) {
		struct range *d = &l->discards[i];
		bool again = false;

		if (d->page == d->end)
			continue;
		while (!again && ferry_pager_next_waiting(&l->t->pager, i, &d->page, d->end)) {
			int rc = ferry_engine_fill_zero(l->t, i, d->page);

			again = rc < 0 && try_again(l, rc, i, d->page);
			if (!again) {
				ferry_pending_settle(&l->pending, i, d->page, ferry_now_ns(),
						     FERRY_FAULT_F_DISCARDED);
				d->page++;
			}
		}
		if (!again) {
			*d = (struct range){0};
			ferry_engine_progress(l->t);
		}
	}
}

/* Of the answer at hand so many pages became present that nobody waited for. */
static void note_swept(struct fault_loop *l, uint32_t n, uint64_t now)
{
	const struct ferry_page_run *pr = &l->stalled.run;
	struct ferry_trace_record rec = {
		.type = FERRY_TRACE_PUSH,
		.flags = FERRY_PUSH_F_SWEPT |
			 (pr->encoding == FERRY_ENCODING_ZERO ? FERRY_PUSH_F_ZERO : 0),
		.region = pr->run.region,
		.time_ns = now,
		.push =
			{
				.first_page = pr->run.first_page,
				.received_ns = l->stalled.received_ns,
				.n_pages = pr->run.n_pages,
				.n_new = n,
			},
	};

	ferry_trace_emit(l->pending.ring, &rec);
}

/* Place the answer that is at hand. Return: false when it has to wait. */
static bool place_answer(struct fault_loop *l)
{
	struct ferry_target *t = l->t;
	struct stalled *s = &l->stalled;
	const struct ferry_run *run = &s->run.run;
	int rc = s->run.encoding == FERRY_ENCODING_LOST
			 ? ferry_engine_lose(t, run)
			 : ferry_engine_fill(t, run, s->data, NULL, &s->done, &s->n_new);
	uint64_t now;
	uint32_t n;

	s->active = rc < 0 && try_again(l, rc, run->region, run->first_page + s->done);
	if (s->active)
		return false;
	if (s->run.encoding == FERRY_ENCODING_LOST && t->on_lost == FERRY_ON_LOST_WAIT)
		return true; /* its threads go on waiting */
	atomic_fetch_add_explicit(s->data ? &t->counters.pages_urgent : &t->counters.pages_zero,
				  s->n_new, memory_order_relaxed);
	FERRY_PROBE3(page_placed, run->region, run->first_page, run->n_pages);
	settle_overtaken(l);
	now = ferry_now_ns();
	n = ferry_pending_answered(&l->pending, &s->run, s->received_ns, now,
				   s->n_new < run->n_pages ? FERRY_FAULT_F_FOUND : 0);
	if (s->n_new > n)
		note_swept(l, s->n_new - n, now);
	ferry_engine_progress(t);
	return true;
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
		urgent_failed(l, FERRY_REFUSE, rc, why);
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
	place_answer(l);
}

static void handle_frames(struct fault_loop *l)
{
	if (l->stalled.active && !place_answer(l))
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

static void receive(struct fault_loop *l)
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
		handle_frames(l);
	} else if (!n) {
		urgent_failed(l, FERRY_LINK, -ECONNRESET, "the source closed it");
	} else if (errno != EAGAIN && errno != EINTR) {
		urgent_failed(l, FERRY_LINK, -errno, "receiving");
	}
}

/* --- the loop -------------------------------------------------------------------------------- */

static void take_offer(struct fault_loop *l)
{
	struct ferry_target *t = l->t;
	bool renewed;

	ferry_engine_unkick(t->fault_kick);
	pthread_mutex_lock(&t->lock);
	renewed = t->fault_seen != t->fault_generation;
	if (renewed) {
		l->fd = t->fault_offer;
		l->connection = t->fault_connection;
		t->fault_seen = t->fault_generation;
		pthread_cond_broadcast(&t->changed);
	}
	pthread_mutex_unlock(&t->lock);
	if (!renewed)
		return;
	/* Whatever was under way on the old connection is asked for again. */
	l->in.begin = 0;
	l->in.end = 0;
	l->out_begin = 0;
	l->out_end = 0;
	l->n_unanswered = 0;
	l->stalled.active = false;
	l->sweep.n_pages = 0;
	asking(l)->n_runs = 0;
	if (l->fd >= 0) {
		ferry_pager_forget_lost(&t->pager);
		atomic_store(&t->lost_said, false);
	}
	settle_overtaken(l);
	ferry_pending_prune(&l->pending, &t->pager, l->next_request_id + 1, ferry_now_ns());
	walk_start(l);
}

/* What the owner wants is asked for like what threads wait for. */
static void take_wants(struct fault_loop *l)
{
	struct ferry_target *t = l->t;
	struct ferry_run wants[FERRY_ENGINE_WANTS];
	uint32_t n;

	pthread_mutex_lock(&t->lock);
	n = t->n_wants;
	memcpy(wants, t->wants, n * sizeof(wants[0]));
	t->n_wants = 0;
	pthread_mutex_unlock(&t->lock);
	for (uint32_t i = 0; i < n; i++) {
		for (uint32_t k = 0; k < wants[i].n_pages; k++) {
			struct ferry_run page = {.region = wants[i].region,
						 .first_page = wants[i].first_page + k,
						 .n_pages = 1};

			if (ferry_pager_fault(&t->pager, page.region, page.first_page) ==
				    FERRY_FAULT_ASK &&
			    l->fd >= 0 && !is_ahead(l, page.region, page.first_page) &&
			    !ask(l, &page))
				walk_start(l);
		}
	}
}

static bool loop_once(struct fault_loop *l)
{
	struct ferry_target *t = l->t;
	bool want_out = l->out_begin != l->out_end;
	struct pollfd p[] = {
		{.fd = t->stop_fd, .events = POLLIN},
		{.fd = t->fault_kick, .events = POLLIN},
		{.fd = t->uffd.fd, .events = POLLIN},
		{.fd = l->stalled.active ? -1 : l->fd,
		 .events = (short)(POLLIN | (want_out ? POLLOUT : 0))},
		{.fd = t->uffd.pidfd, .events = POLLIN},
	};
	int rc;

	ferry_notice_poll(&l->notice);
	rc = poll(p, FERRY_ARRAY_SIZE(p), l->retry ? RETRY_MS : is_watched(l) ? ALIVE_LOOK_MS : -1);
	/* Short of memory: we come again, since threads wait and nobody else serves them. */
	if (rc < 0 && errno != EINTR)
		(void)poll(NULL, 0, RETRY_MS);
	if (p[0].revents)
		return false;
	if (p[4].revents) {
		ferry_engine_gone(t);
		return false;
	}
	if (p[1].revents) {
		take_offer(l);
		take_wants(l);
	}
	if (atomic_load_explicit(&t->n_overtaken, memory_order_relaxed))
		settle_overtaken(l);
	if (p[2].revents || l->retry)
		drain(l);
	else if (p[2].fd >= 0)
		ferry_notice_empty(&l->notice, ferry_now_ns());
	l->retry = false;
	serve_discards(l);
	serve_local(l);
	if (l->stalled.active)
		handle_frames(l);
	else if (p[3].revents && l->fd >= 0)
		receive(l);
	watch(l);
	send_requests(l);
	ferry_notice_end(&l->notice, &l->pending);
	return true;
}

static void loop_free(struct fault_loop *l)
{
	ferry_framebuf_fini(&l->in);
	ferry_arena_fini(&l->arena);
	ferry_notice_fini(&l->notice);
	free(l->m);
	free(l->ask);
	free(l);
}

static struct fault_loop *loop_new(struct ferry_target *t)
{
	struct fault_loop *l = calloc(1, sizeof(*l));

	if (!l)
		return NULL;
	l->t = t;
	l->fd = -1;
	ferry_notice_init(&l->notice, false);
	l->pending.ring = ferry_trace_ring(t->trace, FERRY_RING_FAULT, 0);
	l->pending.since_ns = t->waiting_since_ns;
	l->pending.fault_ns = &t->fault_ns;
	l->pending.local_ns = &t->local_ns;
	l->m = malloc(sizeof(*l->m));
	l->ask = calloc(1, sizeof(*l->ask));
	if (!l->m || !l->ask || ferry_arena_init(&l->arena) < 0 ||
	    ferry_framebuf_init(&l->in, IN_BYTES) < 0) {
		loop_free(l);
		return NULL;
	}
	l->ask->type = FERRY_FRAME_PAGE_REQUEST;
	return l;
}

static void *fault_thread(void *loop)
{
	struct fault_loop *l = loop;
	struct ferry_target *t = l->t;

	ferry_notice_init(&l->notice, t->trace); /* of this thread */
	/* Urgent before bulk on the CPU as well. Without the right to it nothing breaks. */
	(void)setpriority(PRIO_PROCESS, (id_t)gettid(), FAULT_NICE);
	while (loop_once(l))
		;
	settle_overtaken(l);
	ferry_pending_end(&l->pending);
	loop_free(l);
	/* Whoever offers a connection from now on must not wait for us. */
	pthread_mutex_lock(&t->lock);
	t->fault_running = false;
	pthread_cond_broadcast(&t->changed);
	pthread_mutex_unlock(&t->lock);
	return NULL;
}

int ferry_engine_fault_start(struct ferry_target *t)
{
	struct fault_loop *l = loop_new(t);
	int rc;

	if (!l)
		return -ENOMEM;
	pthread_mutex_lock(&t->lock);
	rc = -pthread_create(&t->fault_thread, NULL, fault_thread, l);
	t->fault_running = !rc;
	if (rc < 0)
		t->fault_thread = 0; /* a failed attempt leaves anything there */
	pthread_mutex_unlock(&t->lock);
	if (rc < 0)
		loop_free(l);
	return rc;
}
