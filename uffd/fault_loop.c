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
 *   - The mapping is changing (EAGAIN): the kernel wants its events read first. The answer stays in
 *     the buffer, the loop reads, and tries again; it never waits in place.
 *   - More faults than there is room for: those that wait for the source are in the pager anyway,
 *     and others are woken later, to fault anew.
 *   - The urgent connection fails: see fault_urgent.c.
 *
 * Limits: the records of FERRY_MAX_PENDING faults at once. Nothing is allocated after the start.
 */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/util.h"
#include "trace/usdt.h"
#include "uffd/fault_loop.h"

#define IN_BYTES      (FERRY_MAX_ENCODED_BYTES + FERRY_MAX_RUN_BYTES)
#define RETRY_MS      1
#define ALIVE_LOOK_MS 500 /* how often a source that owes answers is thought of */
#define FAULT_NICE    (-10)

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

bool ferry_fault_place_answer(struct fault_loop *l)
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

/* --- the loop -------------------------------------------------------------------------------- */

static void take_offer(struct fault_loop *l)
{
	struct ferry_target *t = l->t;
	struct ferry_connection connection;
	bool renewed;
	int fd;

	ferry_engine_unkick(t->fault_kick);
	pthread_mutex_lock(&t->lock);
	renewed = t->fault_seen != t->fault_generation;
	fd = t->fault_offer;
	connection = t->fault_connection;
	if (renewed) {
		t->fault_seen = t->fault_generation;
		pthread_cond_broadcast(&t->changed);
	}
	pthread_mutex_unlock(&t->lock);
	if (!renewed)
		return;
	ferry_fault_connect(l, fd, &connection);
	if (fd >= 0) {
		ferry_pager_forget_lost(&t->pager);
		atomic_store(&t->lost_said, false);
	}
	settle_overtaken(l);
	ferry_pending_prune(&l->pending, &t->pager, l->next_request_id + 1, ferry_now_ns());
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
			uint64_t page = wants[i].first_page + k;

			if (ferry_pager_fault(&t->pager, wants[i].region, page) == FERRY_FAULT_ASK)
				ferry_fault_ask_page(l, wants[i].region, page);
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
	rc = poll(p, FERRY_ARRAY_SIZE(p),
		  l->retry		      ? RETRY_MS
		  : ferry_fault_is_watched(l) ? ALIVE_LOOK_MS
					      : -1);
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
		ferry_fault_drain(l);
	else if (p[2].fd >= 0)
		ferry_notice_empty(&l->notice, ferry_now_ns());
	l->retry = false;
	serve_discards(l);
	serve_local(l);
	if (l->stalled.active)
		ferry_fault_handle_frames(l);
	else if (p[3].revents && l->fd >= 0)
		ferry_fault_receive(l);
	ferry_fault_watch(l);
	ferry_fault_send(l);
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
