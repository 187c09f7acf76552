/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A source and a target on virtual time, over a link that delays, is cut at any moment, and is
 * opened again, while either side may be killed. What decides is the real code: the source's
 * session and push order, the target's pager and placement. What is played here is the kernel
 * (which pages are present, who waits, events that must be read first), the guest, and the link.
 *
 *   sim_pages [first seed [number of seeds]]
 *
 * Checked at each step
 *   - the guest reads what it last wrote, or the source's content, or zero where it discarded
 *   - a page is placed once, whole, with the source's content, and only while it is missing
 *   - a page becomes zero only because the source said so, or the guest discarded it
 *   - what the pager calls placed is present
 *   - where pages are written in place, none is shown before it is whole, and none is written that
 *     was shown
 *   - no page is pushed twice in one epoch, nor one that the target said it has
 *   - a thread whose page is known, or can be asked for, is served soon
 * and in the end, after the last disturbance: no thread waits, everything is known.
 */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "pageserver/session.h"
#include "uffd/engine.h"
#include "world.h"

#define FERRY_CONTAINER(ptr, type, member) ((type *)((char *)(ptr) - offsetof(type, member)))

#define PAGE	  4096u
#define N_REGIONS 2u
#define MAX_PAGES 900u
#define N_THREADS 4u
#define US	  1000ull
#define MS	  1000000ull
/* A thread whose page is here, or can be asked for over an open link, doesn't wait longer. */
#define PATIENCE_NS (10 * MS)
/* When the disturbances end, and when all must be over. */
#define CALM_NS (40 * MS)
#define END_NS	(4000 * MS)

struct thread {
	bool waiting, discarding;
	uint32_t region;
	uint64_t page, n_pages; /* what it waits for, or discards */
	uint64_t due_ns; /* since when nothing has stood in the way of serving it; 0: something does */
};

struct message {
	bool to_source, bulk, request, used;
	uint32_t epoch;
	struct ferry_page_run run;
	struct ferry_page_request ask;
	uint64_t values[64]; /* of raw pages */
};

struct world {
	struct sim_clock clock;
	uint64_t seed;
	bool anon; /* private anonymous memory, with discards; else shared memory */
	bool writes;	/* shared memory that is filled through its file */
	bool in_place;	/* the same, in place: what is in the file is seen when it is shown */
	bool late_push; /* pages come on request only until the calm */

	/* the source */
	uint8_t *memory[N_REGIONS];
	struct ferry_pages pages;
	struct ferry_session *session; /* NULL while its process is dead */
	uint32_t source_epoch;	       /* the epoch whose connections it thinks are open */
	bool source_open;
	uint64_t push_life; /* which push is the one that goes on */
	uint8_t pushed[N_REGIONS][MAX_PAGES]; /* in this epoch */

	/* the kernel and the guest on the target */
	bool present[N_REGIONS][MAX_PAGES], discarded[N_REGIONS][MAX_PAGES];
	bool registered[N_REGIONS][MAX_PAGES];
	bool shown[N_REGIONS][MAX_PAGES]; /* in place only; ->present is then: in the file */
	uint64_t value[N_REGIONS][MAX_PAGES], expected[N_REGIONS][MAX_PAGES];
	struct thread threads[N_THREADS];
	bool unread[N_THREADS]; /* a message of this thread's waits to be read */
	unsigned int changing;	/* discards whose event was raised and that have not run on */
	uint64_t next_value;

	/* the target's process */
	struct ferry_target t;
	struct ferry_memory_pipe pipe;
	void *kept; /* outlives it; in place only */
	bool alive, target_open, complete;
	bool given_up; /* the connection of target_epoch broke before it was open */
	uint32_t target_epoch, next_epoch;
	uint64_t last_arrival[4]; /* keeps each connection in order */
	struct ferry_page_request ask;

	unsigned int cuts, kills, discards, faults, resumes;
};

static void fail(const struct world *w, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

static void fail(const struct world *w, const char *fmt, ...)
{
	va_list ap;

	fprintf(stderr, "sim_pages: seed %llu, %llu us: ", (unsigned long long)w->seed,
		(unsigned long long)(w->clock.now / US));
	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fputc('\n', stderr);
	exit(1);
}

static uint64_t source_value(const struct world *w, uint32_t region, uint64_t page)
{
	uint64_t v;

	memcpy(&v, w->memory[region] + page * PAGE, sizeof(v));
	return v;
}

/* --- the kernel ---------------------------------------------------------------------------------- */

static void locate(const struct world *w, struct ferry_hva dst, uint32_t *region, uint64_t *page)
{
	for (*region = 0; *region < N_REGIONS; (*region)++) {
		uint64_t start = w->t.regions[*region].start;

		if (dst.v >= start && dst.v < start + w->t.regions[*region].bytes) {
			*page = (dst.v - start) / PAGE;
			return;
		}
	}
	fail(w, "placement outside the regions");
}

static void wake(struct world *w, uint32_t region, uint64_t page)
{
	for (unsigned int i = 0; i < N_THREADS; i++) {
		struct thread *th = &w->threads[i];

		if (th->waiting && th->region == region && th->page == page)
			th->waiting = w->unread[i] = false;
	}
}

static int place(struct world *w, struct ferry_hva dst, const uint8_t *data, uint32_t n_pages,
		 struct ferry_placed *placed)
{
	uint32_t region;
	uint64_t page;

	*placed = (struct ferry_placed){0};
	locate(w, dst, &region, &page);
	for (uint32_t i = 0; i < n_pages; i++, page++) {
		uint64_t v = 0;

		if (w->changing)
			return -EAGAIN;
		if (!w->registered[region][page])
			return -ENOENT;
		if (data)
			memcpy(&v, data + (size_t)i * PAGE, sizeof(v));
		wake(w, region, page);
		if (w->present[region][page]) {
			placed->n_dup++;
			continue;
		}
		if (w->in_place && data)
			fail(w, "page %u/%llu is not written in place", region,
			     (unsigned long long)page);
		w->shown[region][page] = true;
		if (data && v != source_value(w, region, page))
			fail(w, "page %u/%llu is placed with another's content", region,
			     (unsigned long long)page);
		if (data && w->discarded[region][page])
			fail(w, "old content comes back to page %u/%llu", region,
			     (unsigned long long)page);
		if (!data && !w->discarded[region][page] && source_value(w, region, page))
			fail(w, "page %u/%llu is zeroed and is not zero", region,
			     (unsigned long long)page);
		w->present[region][page] = true;
		w->value[region][page] = v;
		placed->n_new++;
	}
	return 0;
}

/* A torn page: the guest must not see it. */
#define TORN UINT64_C(0x746f726e)

static bool is_seen(const struct world *w, uint32_t region, uint64_t page)
{
	if (!w->present[region][page])
		return false;
	return !w->in_place || w->shown[region][page] || !w->registered[region][page];
}

/* These stand in for uffd/place.c, uffd/memory_file.c, uffd/maps.c and uffd/uffd.c. The target is
 * part of the world. */
static struct world *world_of(const struct ferry_uffd *u)
{
	return FERRY_CONTAINER(FERRY_CONTAINER(u, struct ferry_target, uffd), struct world, t);
}

int ferry_place_copy(const struct ferry_uffd *u, struct ferry_hva dst, const void *data,
		     uint32_t n_pages, uint32_t page_bytes, struct ferry_placed *placed)
{
	(void)page_bytes;
	return place(world_of(u), dst, data, n_pages, placed);
}

/* Stops at what is there, or anywhere; what was moved is gone from @data. */
int ferry_place_move(const struct ferry_uffd *u, struct ferry_hva dst, void *data, uint64_t bytes,
		     struct ferry_placed *placed)
{
	struct world *w = world_of(u);
	uint32_t region, n = (uint32_t)(bytes / PAGE);
	uint64_t page;

	*placed = (struct ferry_placed){0};
	locate(w, dst, &region, &page);
	for (uint32_t i = 0; i < n; i++) {
		struct ferry_hva at = {dst.v + (uint64_t)i * PAGE};
		struct ferry_placed one;
		int rc = w->present[region][page + i] ? -EEXIST
			 : sim_once_in(&w->clock, 40)
				 ? -EBUSY
				 : place(w, at, (uint8_t *)data + i * PAGE, 1, &one);

		if (rc < 0)
			return rc == -EAGAIN && placed->n_new ? -EEXIST : rc;
		memset((uint8_t *)data + i * PAGE, 0xee, PAGE);
		placed->n_new++;
	}
	return 0;
}

int ferry_place_zero(const struct ferry_uffd *u, struct ferry_hva dst, const void *zeroes,
		     uint32_t n_pages, uint32_t page_bytes, bool is_hugetlb,
		     struct ferry_placed *placed)
{
	(void)zeroes;
	(void)page_bytes;
	(void)is_hugetlb;
	return place(world_of(u), dst, NULL, n_pages, placed);
}

/* Nobody is woken, nothing protects what is there, and it may be done in part or not at all. */
ssize_t ferry_memory_file_write(const struct ferry_memory_file *file,
				struct ferry_memory_pipe *pipe, uint64_t at, const void *data,
				size_t bytes)
{
	struct world *w = FERRY_CONTAINER(pipe, struct world, pipe);
	struct ferry_engine_region *r = FERRY_CONTAINER(file, struct ferry_engine_region, file);
	uint32_t region = (uint32_t)(r - w->t.regions);
	uint64_t n =
		sim_once_in(&w->clock, 3) ? 1 + sim_below(&w->clock, bytes / PAGE) : bytes / PAGE;

	if (sim_once_in(&w->clock, 20))
		return -EOPNOTSUPP;
	for (uint64_t i = 0; i < n; i++) {
		uint64_t page = at / PAGE + i, v;

		memcpy(&v, (const uint8_t *)data + i * PAGE, sizeof(v));
		if (w->present[region][page])
			fail(w, "page %u/%llu is overwritten", region, (unsigned long long)page);
		if (v != source_value(w, region, page))
			fail(w, "page %u/%llu is written with another's content", region,
			     (unsigned long long)page);
		w->present[region][page] = true;
		w->value[region][page] = v;
	}
	return (ssize_t)(n * PAGE);
}

int ferry_place_continue(const struct ferry_uffd *u, struct ferry_hva dst, uint32_t n_pages,
			 uint32_t page_bytes, struct ferry_placed *placed)
{
	struct world *w = world_of(u);
	uint32_t region;
	uint64_t page;

	(void)page_bytes;
	*placed = (struct ferry_placed){0};
	locate(w, dst, &region, &page);
	for (uint32_t i = 0; i < n_pages; i++, page++) {
		/* As while the process changes its mappings. */
		if (sim_once_in(&w->clock, 20))
			return -EAGAIN;
		if (!w->registered[region][page])
			return -ENOENT;
		if (!w->present[region][page])
			return -EFAULT;
		if (w->value[region][page] == TORN)
			fail(w, "page %u/%llu is shown before it is whole", region,
			     (unsigned long long)page);
		wake(w, region, page);
		if (w->shown[region][page])
			placed->n_dup++;
		else
			placed->n_new++;
		w->shown[region][page] = true;
	}
	return 0;
}

/* It may be done in part, and end in the middle of a page. */
ssize_t ferry_memory_file_overwrite(const struct ferry_memory_file *file, uint64_t at,
				    const void *data, size_t bytes)
{
	struct ferry_engine_region *r = FERRY_CONTAINER(file, struct ferry_engine_region, file);
	uint32_t region = r->info.desc.id;
	struct world *w = world_of(&FERRY_CONTAINER(r - region, struct ferry_target, regions)->uffd);
	uint64_t n =
		sim_once_in(&w->clock, 3) ? sim_below(&w->clock, bytes / PAGE + 1) : bytes / PAGE;

	for (uint64_t i = 0; i < bytes / PAGE && i <= n; i++) {
		uint64_t page = at / PAGE + i, v;

		memcpy(&v, (const uint8_t *)data + i * PAGE, sizeof(v));
		if (is_seen(w, region, page))
			fail(w, "page %u/%llu is overwritten", region, (unsigned long long)page);
		if (v != source_value(w, region, page))
			fail(w, "page %u/%llu is written with another's content", region,
			     (unsigned long long)page);
		w->present[region][page] = true;
		w->value[region][page] = i < n ? v : TORN;
	}
	return n ? (ssize_t)(n * PAGE) : -ENOMEM;
}

/* The region is ready before the history begins: see make_target(). */
int ferry_memory_file_open(struct ferry_memory_file *out, pid_t pid, struct ferry_hva start,
			   uint64_t bytes, bool anyhow, struct ferry_failure *f)
{
	(void)out;
	(void)pid;
	(void)start;
	(void)bytes;
	(void)anyhow;
	return ferry_fail(f, FERRY_REFUSE, -ENOSYS, "not simulated");
}

void ferry_memory_file_close(struct ferry_memory_file *m)
{
	(void)m;
}

int ferry_memory_file_next(const struct ferry_memory_file *m, uint64_t *from, uint64_t *to,
			   uint64_t bytes)
{
	(void)m;
	(void)from;
	(void)to;
	(void)bytes;
	return -ENOSYS;
}

int ferry_memory_file_enlarge(const struct ferry_memory_file *m, uint64_t at)
{
	(void)m;
	(void)at;
	return -ENOSYS;
}

int ferry_memory_file_punch(const struct ferry_memory_file *m, uint64_t at, uint64_t bytes)
{
	(void)m;
	(void)at;
	(void)bytes;
	return -ENOSYS;
}

bool ferry_engine_large_pages_are_off(void)
{
	return true;
}

int ferry_maps_are_hidden(pid_t pid, struct ferry_hva start, uint64_t bytes)
{
	(void)pid;
	(void)start;
	(void)bytes;
	return false;
}

int ferry_uffd_register_hidden(const struct ferry_uffd *u, struct ferry_hva start, uint64_t len,
			       bool missing)
{
	(void)u;
	(void)start;
	(void)len;
	(void)missing;
	return -ENOSYS;
}

int ferry_uffd_wake(const struct ferry_uffd *u, struct ferry_hva start, uint64_t len)
{
	uint32_t region;
	uint64_t page;

	locate(world_of(u), start, &region, &page);
	for (uint64_t i = 0; i < len / PAGE; i++)
		wake(world_of(u), region, page + i);
	return 0;
}

int ferry_uffd_unregister(const struct ferry_uffd *u, struct ferry_hva start, uint64_t len)
{
	struct world *w = world_of(u);
	uint32_t region;
	uint64_t page;

	locate(w, start, &region, &page);
	for (uint64_t i = 0; i < len / PAGE; i++) {
		w->registered[region][page + i] = false;
		wake(w, region, page + i);
	}
	return 0;
}

/* --- the link ------------------------------------------------------------------------------------ */

static void arrive(void *ctx, void *arg, uint64_t n);

/* Each connection keeps its order; the delay differs from message to message. */
static void transmit(struct world *w, struct message *m, unsigned int lane)
{
	uint64_t at = w->clock.now + 20 * US + sim_below(&w->clock, 200 * US);

	at = FERRY_MAX(at, w->last_arrival[lane] + 1);
	w->last_arrival[lane] = at;
	sim_after(&w->clock, at - w->clock.now, arrive, m, 0);
}

static struct message *new_message(const struct world *w, uint32_t epoch)
{
	struct message *m = calloc(1, sizeof(*m));

	if (!m)
		fail(w, "out of memory");
	m->epoch = epoch;
	return m;
}

static void send_run(struct world *w, const struct ferry_page_run *run, const uint8_t *data,
		     bool bulk)
{
	struct message *m = new_message(w, w->source_epoch);

	m->bulk = bulk;
	m->run = *run;
	for (uint32_t i = 0; data && i < run->run.n_pages; i++)
		memcpy(&m->values[i], data + (size_t)i * PAGE, sizeof(m->values[i]));
	transmit(w, m, bulk ? 0 : 1);
}

static void send_pieces(struct world *w, const struct ferry_run *run, uint64_t request_id)
{
	struct ferry_cut cut = {.rest = *run};
	struct ferry_scratch none = {0};
	struct ferry_page_run piece;
	const void *data;
	int rc;

	while ((rc = ferry_session_cut(w->session, &cut, 16 * PAGE, &none, &piece, &data)) ==
	       FERRY_CUT_PIECE) {
		piece.request_id = request_id;
		send_run(w, &piece, data, !request_id);
	}
	if (rc != FERRY_CUT_END)
		fail(w, "a run was not cut to its end: %d", rc);
}

/* --- the source ---------------------------------------------------------------------------------- */

static void push_some(void *ctx, void *arg, uint64_t life)
{
	struct world *w = ctx;
	struct ferry_run run;

	(void)arg;
	if (!w->session || !w->source_open || w->push_life != life)
		return;
	if (w->late_push && w->clock.now < CALM_NS) {
		sim_after(&w->clock, MS, push_some, NULL, life);
		return;
	}
	if (!ferry_session_next_hole(w->session, &run) &&
	    !ferry_session_next_run(w->session, 16 * PAGE, &run)) {
		ferry_session_pushed(w->session);
		return;
	}
	for (uint64_t p = run.first_page; p < run.first_page + run.n_pages; p++)
		if (w->pushed[run.region][p]++)
			fail(w, "page %u/%llu is pushed twice", run.region, (unsigned long long)p);
	send_pieces(w, &run, 0);
	sim_after(&w->clock, 10 * US + sim_below(&w->clock, 60 * US), push_some, NULL, life);
}

static void source_request(struct world *w, const struct message *m)
{
	char why[FERRY_MAX_TEXT];

	if (ferry_session_request(w->session, &m->ask, why) < 0)
		fail(w, "request refused: %s", why);
	for (uint32_t i = 0; i < m->ask.n_runs; i++) {
		const struct ferry_run *run = &m->ask.runs[i];

		/* The push need not bring it any more. */
		memset(&w->pushed[run->region][run->first_page], 1, run->n_pages);
		send_pieces(w, run, m->ask.request_id);
	}
}

static int get_pages(void *ctx, const struct ferry_run *run, void *scratch, const void **data)
{
	struct world *w = ctx;

	(void)scratch;
	*data = w->memory[run->region] + run->first_page * PAGE;
	return 0;
}

static int is_zero(void *ctx, uint32_t region, uint64_t page, const void *data)
{
	(void)data;
	return source_value(ctx, region, page) == 0;
}

static bool copies(void *ctx, uint32_t region)
{
	(void)ctx;
	(void)region;
	return false;
}

/* --- the target ---------------------------------------------------------------------------------- */

static void target_look(struct world *w);

static void ask_page(struct world *w, const struct ferry_run *run)
{
	if (w->ask.n_runs < FERRY_MAX_REQUEST_RUNS)
		w->ask.runs[w->ask.n_runs++] = *run;
}

static void flush_requests(struct world *w)
{
	struct message *m;

	if (!w->ask.n_runs)
		return;
	if (w->target_open) {
		static uint64_t id;

		m = new_message(w, w->target_epoch);
		m->to_source = m->request = true;
		m->ask = w->ask;
		m->ask.request_id = ++id;
		transmit(w, m, 2);
	}
	w->ask.n_runs = 0;
}

static void ask_outstanding(struct world *w)
{
	struct ferry_run run = {0};

	while (ferry_pager_next_outstanding(&w->t.pager, &run, 16)) {
		ask_page(w, &run);
		run.first_page += run.n_pages;
	}
	flush_requests(w);
}

static void retry_run(void *ctx, void *arg, uint64_t n);

/* As the fault loop and the bulk receivers do: again after EAGAIN, once events were read. */
static void fill_run(struct world *w, struct message *m)
{
	uint32_t n_new = 0, done = 0;
	struct ferry_placed moved = {0};
	uint8_t *data = NULL;
	int rc = 0;

	if (m->run.encoding == FERRY_ENCODING_RAW) {
		data = calloc(m->run.run.n_pages, PAGE);
		for (uint32_t i = 0; i < m->run.run.n_pages; i++)
			memcpy(data + (size_t)i * PAGE, &m->values[i], sizeof(m->values[i]));
	}
	/* As gather.c does it: what was not moved is copied. */
	if (data && m->bulk && w->anon && sim_once_in(&w->clock, 2)) {
		rc = ferry_engine_move(&w->t, &m->run.run, data, &moved);
		done = moved.n_new;
	}
	if (rc != -EAGAIN)
		rc = ferry_engine_fill(&w->t, &m->run.run, data, m->bulk ? &w->pipe : NULL, &done,
				       &n_new);
	free(data);
	if (rc == -EAGAIN || (w->in_place && rc == -ENOMEM)) {
		sim_after(&w->clock, 5 * US, retry_run, m, m->epoch);
		return;
	}
	if (rc < 0)
		fail(w, "placement failed: %s", strerror(-rc));
	if (!data && m->bulk && !w->anon)
		ferry_engine_leave_hole(&w->t, &m->run.run);
	free(m);
	target_look(w);
}

static void retry_run(void *ctx, void *arg, uint64_t epoch)
{
	struct world *w = ctx;
	struct message *m = arg;

	if (w->alive && w->target_open && w->target_epoch == epoch)
		fill_run(w, m);
	else
		free(m);
}

static void local_zero(void *ctx, void *arg, uint64_t key)
{
	struct world *w = ctx;
	int rc;

	(void)arg;
	if (!w->alive)
		return;
	rc = ferry_engine_fill_zero(&w->t, (uint32_t)(key >> 32), key & 0xffffffff);
	if (rc == -EAGAIN)
		sim_after(&w->clock, 5 * US, local_zero, NULL, key);
	else if (rc < 0)
		fail(w, "zeros were not placed: %s", strerror(-rc));
}

static void end_discard(void *ctx, void *arg, uint64_t n);

static void read_discard(struct world *w, unsigned int i)
{
	struct thread *th = &w->threads[i];
	struct ferry_run run = {th->region, (uint32_t)th->n_pages, th->page};
	uint64_t page = th->page;

	ferry_pager_discarded(&w->t.pager, &run);
	for (; ferry_pager_next_waiting(&w->t.pager, th->region, &page, th->page + th->n_pages);
	     page++)
		sim_after(&w->clock, 1, local_zero, NULL, (uint64_t)th->region << 32 | page);
	w->unread[i] = false;
	sim_after(&w->clock, sim_below(&w->clock, 30 * US), end_discard, NULL, i);
}

static void read_fault(struct world *w, unsigned int i)
{
	const struct thread *th = &w->threads[i];
	struct ferry_run run = {th->region, 1, th->page};

	w->unread[i] = false;
	switch (ferry_pager_fault(&w->t.pager, th->region, th->page)) {
	case FERRY_FAULT_ASK:
		ask_page(w, &run);
		break;
	case FERRY_FAULT_ASKED:
		break;
	case FERRY_FAULT_ZERO:
	case FERRY_FAULT_PLACED:
		sim_after(&w->clock, 1, local_zero, NULL, (uint64_t)th->region << 32 | th->page);
		break;
	}
}

static void read_messages(void *ctx, void *arg, uint64_t n)
{
	struct world *w = ctx;

	(void)arg;
	(void)n;
	if (!w->alive)
		return;
	for (unsigned int i = 0; i < N_THREADS; i++)
		if (w->unread[i] && w->threads[i].discarding)
			read_discard(w, i);
	for (unsigned int i = 0; i < N_THREADS; i++)
		if (w->unread[i])
			read_fault(w, i);
	flush_requests(w);
	target_look(w);
}

/* Everything known: unregister, as the session thread does. */
static void target_look(struct world *w)
{
	if (w->complete || !ferry_pager_is_complete(&w->t.pager))
		return;
	for (uint32_t r = 0; r < N_REGIONS; r++)
		ferry_uffd_unregister(&w->t.uffd, (struct ferry_hva){w->t.regions[r].start},
				      w->t.regions[r].bytes);
	w->complete = true;
}

/* --- connections --------------------------------------------------------------------------------- */

static void arrive(void *ctx, void *arg, uint64_t n)
{
	struct world *w = ctx;
	struct message *m = arg;

	(void)n;
	if (m->to_source) {
		if (w->session && w->source_open && w->source_epoch == m->epoch)
			source_request(w, m);
		free(m);
	} else if (w->alive && w->target_open && w->target_epoch == m->epoch) {
		fill_run(w, m);
	} else {
		free(m);
	}
}

static void target_dials(void *ctx, void *arg, uint64_t n);

/* LayoutOk, Resident and PushStart of an epoch reach the source. */
static void source_begins(void *ctx, void *arg, uint64_t epoch)
{
	struct world *w = ctx;
	struct ferry_message m = {.type = FERRY_FRAME_LAYOUT_OK};
	uint8_t *bits = arg;
	char why[FERRY_MAX_TEXT];

	if (w->session && w->source_open && w->source_epoch == epoch) {
		if (ferry_session_control(w->session, &m, why) < 0)
			fail(w, "LayoutOk: %s", why);
		for (uint32_t r = 0; r < N_REGIONS; r++) {
			uint64_t n_pages = w->pages.layout.regions[r].n_pages;

			m = (struct ferry_message){.type = FERRY_FRAME_RESIDENT,
						   .resident = {r, 0, n_pages},
						   .payload = bits + r * MAX_PAGES};
			if (ferry_session_control(w->session, &m, why) < 0)
				fail(w, "Resident: %s", why);
			for (uint64_t p = 0; p < n_pages; p++)
				w->pushed[r][p] = bits[r * MAX_PAGES + p / 8] >> (p % 8) & 1;
		}
		m = (struct ferry_message){.type = FERRY_FRAME_PUSH_START};
		if (ferry_session_control(w->session, &m, why) != FERRY_SESSION_PUSH)
			fail(w, "PushStart did not begin a push");
		push_some(w, NULL, ++w->push_life);
	}
	free(bits);
}

/* The source's Layout reached the target. */
static void target_begins(void *ctx, void *arg, uint64_t epoch)
{
	struct world *w = ctx;
	uint8_t *bits = calloc(N_REGIONS, MAX_PAGES);

	(void)arg;
	if (!w->alive || w->target_epoch != epoch || w->target_open || w->given_up || !bits) {
		free(bits);
		return;
	}
	w->target_open = true;
	if (epoch)
		w->resumes++;
	for (uint32_t r = 0; r < N_REGIONS; r++)
		ferry_bitmap_export(&w->t.pager.regions[r].known, 0,
				    w->pages.layout.regions[r].n_pages, bits + r * MAX_PAGES);
	w->last_arrival[3] = FERRY_MAX(w->clock.now + 50 * US, w->last_arrival[3] + 1);
	sim_after(&w->clock, w->last_arrival[3] - w->clock.now, source_begins, bits, epoch);
	ask_outstanding(w);
}

/* A Hello of some epoch reaches the source; it may be a late one. */
static void source_hello(void *ctx, void *arg, uint64_t epoch)
{
	static const struct ferry_session_id id = {{1}};
	struct world *w = ctx;

	(void)arg;
	if (!w->session) {
		/* Nobody listens: the target tries again, when it notices. */
		return;
	}
	if (w->source_epoch == UINT32_MAX) {
		/* A new process; the first Hello makes the session. */
		ferry_session_free(w->session);
		if (ferry_session_new(&w->session, &w->pages, &id, (uint32_t)epoch) < 0)
			fail(w, "session_new");
	} else if (ferry_session_resume(w->session, (uint32_t)epoch) < 0) {
		if (epoch > w->source_epoch)
			fail(w, "epoch %llu was refused", (unsigned long long)epoch);
		return;
	}
	w->source_epoch = (uint32_t)epoch;
	w->push_life++;
	w->source_open = true;
	sim_after(&w->clock, 50 * US, target_begins, NULL, epoch);
}

static void target_dials(void *ctx, void *arg, uint64_t n)
{
	struct world *w = ctx;
	uint64_t delay = 30 * US + sim_below(&w->clock, 300 * US);

	(void)arg;
	(void)n;
	if (!w->alive || w->target_open || w->complete)
		return;
	w->target_epoch = w->next_epoch++;
	w->given_up = false;
	sim_after(&w->clock, delay, source_hello, NULL, w->target_epoch);
	/* The same Hello once more, late: of a connection that was given up. */
	if (sim_once_in(&w->clock, 3))
		sim_after(&w->clock, delay + 3 * MS, source_hello, NULL, w->target_epoch);
	sim_after(&w->clock, 2 * MS, target_dials, NULL, 0); /* if nothing comes of it */
}

static void target_notices(void *ctx, void *arg, uint64_t epoch)
{
	struct world *w = ctx;

	(void)arg;
	if (!w->alive || w->target_epoch != epoch)
		return;
	if (!w->target_open) {
		w->given_up = true; /* it dials again by itself */
		return;
	}
	w->target_open = false;
	sim_after(&w->clock, 50 * US, target_dials, NULL, 0);
}

static void source_notices(void *ctx, void *arg, uint64_t epoch)
{
	struct world *w = ctx;

	(void)arg;
	if (w->session && w->source_open && w->source_epoch == epoch) {
		ferry_session_lose(w->session);
		w->source_open = false;
	}
}

/* --- disturbances -------------------------------------------------------------------------------- */

/* The link breaks: what is under way is lost, and each side notices in its own time. */
static void cut(struct world *w)
{
	struct sim_clock *c = &w->clock;
	struct sim_event *old = malloc(sizeof(c->events));
	size_t n = c->n_events;

	memcpy(old, c->events, n * sizeof(*old));
	c->n_events = 0;
	for (size_t i = 0; i < n; i++) {
		if (old[i].run == arrive && !sim_once_in(c, 4)) {
			free(old[i].arg);
		} else {
			sim_after(c, old[i].at - c->now, old[i].run, old[i].arg, old[i].n);
		}
	}
	free(old);
	w->cuts++;
	sim_after(c, sim_below(c, 2 * MS), target_notices, NULL, w->target_epoch);
	sim_after(c, sim_below(c, 2 * MS), source_notices, NULL, w->source_epoch);
}

static void build_pager(struct world *w)
{
	if (ferry_pager_init(&w->t.pager, &w->pages.layout) < 0)
		fail(w, "pager");
	if (w->in_place) {
		/* What is there says nothing: only what was kept does. */
		ferry_pager_keep(&w->t.pager, w->kept);
		return;
	}
	for (uint32_t r = 0; r < N_REGIONS; r++)
		for (uint64_t p = 0; p < w->pages.layout.regions[r].n_pages; p++)
			if (w->present[r][p])
				ferry_pager_placed(&w->t.pager, &(struct ferry_run){r, 1, p});
}

static void target_returns(void *ctx, void *arg, uint64_t n)
{
	struct world *w = ctx;

	(void)arg;
	(void)n;
	w->alive = true;
	w->target_open = false;
	build_pager(w);
	for (uint32_t r = 0; w->in_place && r < N_REGIONS; r++)
		ferry_bitmap_clear_range(&w->t.regions[r].left, 0, w->t.regions[r].left.n_bits);
	for (uint32_t r = 0; r < N_REGIONS; r++)
		for (uint64_t p = 0; p < w->pages.layout.regions[r].n_pages; p++) {
			w->registered[r][p] = true; /* holes too: what is there is kept */
			wake(w, r, p);
		}
	target_dials(w, NULL, 0);
}

static void source_returns(void *ctx, void *arg, uint64_t n)
{
	static const struct ferry_session_id id = {{1}};
	struct world *w = ctx;

	(void)arg;
	(void)n;
	if (ferry_session_new(&w->session, &w->pages, &id, 0) < 0)
		fail(w, "session_new");
	w->source_epoch = UINT32_MAX;
	w->source_open = false;
}

static void disturb(void *ctx, void *arg, uint64_t n)
{
	struct world *w = ctx;

	(void)arg;
	(void)n;
	if (w->clock.now > CALM_NS || w->complete)
		return;
	switch (sim_below(&w->clock, 4)) {
	case 0:
	case 1:
		cut(w);
		break;
	case 2:
		/* What a discarded page was is not known after the death of the process. */
		if (w->alive && !w->anon) {
			w->alive = w->target_open = false;
			ferry_pager_fini(&w->t.pager);
			w->ask.n_runs = 0;
			w->kills++;
			sim_after(&w->clock, sim_below(&w->clock, 3 * MS), target_returns, NULL, 0);
		}
		break;
	case 3:
		if (w->session) {
			ferry_session_free(w->session);
			w->session = NULL;
			w->source_open = false;
			w->kills++;
			sim_after(&w->clock, sim_below(&w->clock, 3 * MS), source_returns, NULL, 0);
			sim_after(&w->clock, sim_below(&w->clock, MS), target_notices, NULL,
				  w->target_epoch);
		}
		break;
	}
	sim_after(&w->clock, 200 * US + sim_below(&w->clock, 4 * MS), disturb, NULL, 0);
}

/* --- the guest ----------------------------------------------------------------------------------- */

static void end_discard(void *ctx, void *arg, uint64_t i)
{
	struct world *w = ctx;
	struct thread *th = &w->threads[i];

	(void)arg;
	for (uint64_t p = th->page; p < th->page + th->n_pages; p++) {
		w->present[th->region][p] = false;
		w->discarded[th->region][p] = true;
		w->expected[th->region][p] = 0;
	}
	w->changing--;
	th->discarding = false;
}

static void start_discard(struct world *w, unsigned int i)
{
	struct thread *th = &w->threads[i];
	uint64_t n_pages = w->pages.layout.regions[th->region].n_pages;

	/* Other threads don't use what is being discarded: the guest's own affair. */
	for (unsigned int j = 0; j < N_THREADS; j++)
		if (j != i && (w->threads[j].discarding || w->threads[j].waiting))
			return;
	th->n_pages = 1 + sim_below(&w->clock, FERRY_MIN(n_pages - th->page, (uint64_t)20));
	th->discarding = true;
	w->unread[i] = true;
	w->changing++;
	w->discards++;
	if (w->complete)
		read_discard(w, i); /* no longer registered: no event, it just happens */
	else
		sim_after(&w->clock, sim_below(&w->clock, 20 * US), read_messages, NULL, 0);
}

static bool being_discarded(const struct world *w, uint32_t region, uint64_t page)
{
	for (unsigned int j = 0; j < N_THREADS; j++) {
		const struct thread *d = &w->threads[j];

		if (d->discarding && d->region == region && page >= d->page &&
		    page < d->page + d->n_pages)
			return true;
	}
	return false;
}

static void access_page(struct world *w, unsigned int i)
{
	struct thread *th = &w->threads[i];
	uint32_t r = th->region;
	uint64_t p = th->page;

	if (being_discarded(w, r, p))
		return;
	if (!is_seen(w, r, p) && w->registered[r][p]) {
		th->waiting = w->unread[i] = true;
		w->faults++;
		sim_after(&w->clock, sim_below(&w->clock, 20 * US), read_messages, NULL, 0);
		return;
	}
	w->shown[r][p] = true;
	if (!w->present[r][p]) {
		w->present[r][p] = true; /* the kernel's own zeros */
		w->value[r][p] = 0;
	}
	if (w->value[r][p] != w->expected[r][p])
		fail(w, "the guest reads %llx from page %u/%llu and expects %llx",
		     (unsigned long long)w->value[r][p], r, (unsigned long long)p,
		     (unsigned long long)w->expected[r][p]);
	if (sim_once_in(&w->clock, 4))
		w->value[r][p] = w->expected[r][p] = ++w->next_value << 32;
}

static void guest_step(void *ctx, void *arg, uint64_t i)
{
	struct world *w = ctx;
	struct thread *th = &w->threads[i];
	uint64_t n_pages;

	(void)arg;
	sim_after(&w->clock, 5 * US + sim_below(&w->clock, 100 * US), guest_step, NULL, i);
	if (th->waiting || th->discarding)
		return;
	if (is_seen(w, th->region, th->page) && sim_once_in(&w->clock, 2)) {
		n_pages = w->pages.layout.regions[th->region].n_pages;
		th->page = (th->page + 1) % n_pages;
	} else if (is_seen(w, th->region, th->page) || !sim_once_in(&w->clock, 3)) {
		th->region = (uint32_t)sim_below(&w->clock, N_REGIONS);
		n_pages = w->pages.layout.regions[th->region].n_pages;
		th->page = sim_below(&w->clock, n_pages);
	}
	if (w->anon && w->clock.now < CALM_NS && sim_once_in(&w->clock, 40))
		start_discard(w, (unsigned int)i);
	else
		access_page(w, (unsigned int)i);
}

/* --- one history --------------------------------------------------------------------------------- */

static void make_memory(struct world *w)
{
	struct sim_clock *c = &w->clock;

	w->pages = (struct ferry_pages){
		.layout.n_regions = N_REGIONS, .copies = copies, .get = get_pages, .is_zero = is_zero,
		.ctx = w};
	for (uint32_t r = 0; r < N_REGIONS; r++) {
		uint64_t n_pages = 1 + sim_below(c, MAX_PAGES - 1);

		w->pages.layout.regions[r] = (struct ferry_region_desc){
			.id = r, .page_bytes = PAGE, .n_pages = n_pages, .name = "r"};
		w->memory[r] = calloc(n_pages, PAGE);
	}
	if (ferry_pages_init(&w->pages) < 0)
		fail(w, "pages");
	for (uint32_t r = 0; r < N_REGIONS; r++) {
		uint64_t n_pages = w->pages.layout.regions[r].n_pages;

		for (uint64_t p = 0; p < n_pages;) {
			/* Stretches of data, of zero pages, and of holes. */
			uint64_t end = FERRY_MIN(p + 1 + sim_below(c, 60), n_pages);
			uint64_t kind = sim_below(c, 4);

			for (; p < end; p++) {
				uint64_t v = kind >= 2 ? sim_random(c) | 1 : 0;

				memcpy(w->memory[r] + p * PAGE, &v, sizeof(v));
				w->expected[r][p] = v;
				w->registered[r][p] = true;
				if (kind)
					ferry_bitmap_test_and_set(&w->pages.data[r], p);
			}
		}
	}
}

/* A block in a large page of zeros; those behind it, in part, are holes. */
static void make_in_place(struct world *w, uint32_t region)
{
	struct ferry_engine_region *r = &w->t.regions[region];
	uint64_t n_blocks = r->bytes / FERRY_LARGE_BYTES;

	r->in_place = true;
	if (ferry_bitmap_init(&r->large, n_blocks) < 0 || ferry_bitmap_init(&r->left, n_blocks) < 0)
		fail(w, "out of memory");
	if (n_blocks && sim_once_in(&w->clock, 2)) {
		ferry_bitmap_test_and_set(&r->large, 0);
		for (uint64_t p = 0; p < FERRY_LARGE_BYTES / PAGE; p++)
			w->present[region][p] = true;
	}
}

static void make_target(struct world *w)
{
	struct ferry_target *t = &w->t;

	t->n_regions = N_REGIONS;
	t->layout = w->pages.layout;
	t->has_discards = w->anon;
	atomic_store(&t->n_holes_left, 8);
	pthread_mutex_init(&t->discard_lock, NULL);
	for (uint32_t r = 0; r < N_REGIONS; r++) {
		t->regions[r].info.desc = t->layout.regions[r];
		t->regions[r].info.kind = w->anon ? FERRY_MAPPING_ANON : FERRY_MAPPING_SHARED;
		t->regions[r].file.fd = w->writes ? 0 : -1;
		t->regions[r].bytes = t->layout.regions[r].n_pages * PAGE;
		atomic_store(&t->regions[r].start, (uint64_t)(r + 1) << 40);
		if (w->in_place)
			make_in_place(w, r);
	}
	/* Nobody is there who could map large pages. */
	atomic_store(&t->may_not_map, true);
	if (w->in_place)
		w->kept = calloc(1, ferry_pager_kept_bytes(&w->pages.layout));
	w->alive = true;
	build_pager(w);
}

static void check_pager(const struct world *w)
{
	for (uint32_t r = 0; w->alive && r < N_REGIONS; r++) {
		const struct ferry_pager_region *pr = &w->t.pager.regions[r];

		for (uint64_t p = 0; p < pr->n_pages; p++)
			if (ferry_bitmap_test(&pr->known, p) && !ferry_bitmap_test(&pr->zero, p) &&
			    !w->present[r][p] && !w->discarded[r][p] && w->registered[r][p] &&
			    !(w->in_place && !source_value(w, r, p))) /* said so to the one before */
				fail(w, "page %u/%llu is called placed and is missing", r,
				     (unsigned long long)p);
	}
}

static void check_threads(struct world *w)
{
	bool link = w->target_open && w->source_open && w->target_epoch == w->source_epoch;

	for (unsigned int i = 0; i < N_THREADS; i++) {
		struct thread *th = &w->threads[i];
		bool due = w->alive && th->waiting && !w->changing &&
			   (link || ferry_bitmap_test(&w->t.pager.regions[th->region].known,
						      th->page));

		if (!due)
			th->due_ns = 0;
		else if (!th->due_ns)
			th->due_ns = w->clock.now;
		else if (w->clock.now - th->due_ns > PATIENCE_NS)
			fail(w, "thread %u has waited too long for page %u/%llu", i, th->region,
			     (unsigned long long)th->page);
	}
}

static void check_end(const struct world *w)
{
	if (!w->complete)
		fail(w, "not everything came: %llu of %llu pages",
		     (unsigned long long)w->t.pager.pages_known,
		     (unsigned long long)w->t.pager.pages_total);
	for (unsigned int i = 0; i < N_THREADS; i++)
		if (w->threads[i].waiting)
			fail(w, "thread %u waits for page %u/%llu for ever", i,
			     w->threads[i].region, (unsigned long long)w->threads[i].page);
	for (uint32_t r = 0; r < N_REGIONS; r++)
		for (uint64_t p = 0; p < w->pages.layout.regions[r].n_pages; p++)
			if ((w->present[r][p] ? w->value[r][p] : 0) != w->expected[r][p])
				fail(w, "page %u/%llu is wrong in the end", r,
				     (unsigned long long)p);
}

static void run_seed(uint64_t seed, unsigned int sums[5])
{
	static const struct ferry_session_id id = {{1}};
	struct world *w = calloc(1, sizeof(*w));
	uint64_t steps = 0, done_at = 0;

	w->seed = seed;
	w->clock.rng = seed;
	w->clock.ctx = w;
	w->anon = sim_once_in(&w->clock, 2);
	w->writes = !w->anon && !sim_once_in(&w->clock, 3);
	w->in_place = w->writes && sim_once_in(&w->clock, 2);
	w->late_push = sim_once_in(&w->clock, 2);
	make_memory(w);
	make_target(w);
	if (ferry_session_new(&w->session, &w->pages, &id, 0) < 0)
		fail(w, "session_new");
	w->source_epoch = UINT32_MAX;
	target_dials(w, NULL, 0);
	disturb(w, NULL, 0);
	for (uint64_t i = 0; i < N_THREADS; i++)
		guest_step(w, NULL, i);
	/* Go on for a while after the end, so that the guest looks at its memory. */
	while (w->clock.now < END_NS && (!done_at || w->clock.now < done_at + 20 * MS)) {
		sim_step(&w->clock);
		check_threads(w);
		if (++steps % 64 == 0)
			check_pager(w);
		if (w->complete && !done_at)
			done_at = w->clock.now;
	}
	check_end(w);
	sums[0] += w->cuts;
	sums[1] += w->kills;
	sums[2] += w->discards;
	sums[3] += w->faults;
	sums[4] += w->resumes;
	for (size_t i = 0; i < w->clock.n_events; i++)
		free(w->clock.events[i].arg);
	ferry_session_free(w->session);
	ferry_pages_fini(&w->pages);
	ferry_pager_fini(&w->t.pager);
	ferry_engine_in_place_fini(&w->t);
	free(w->kept);
	for (uint32_t r = 0; r < N_REGIONS; r++)
		free(w->memory[r]);
	free(w);
}

int main(int argc, char **argv)
{
	uint64_t first = argc > 1 ? strtoull(argv[1], NULL, 0) : 1;
	uint64_t n = argc > 2 ? strtoull(argv[2], NULL, 0) : 1000;
	unsigned int sums[5] = {0};

	for (uint64_t seed = first; seed < first + n; seed++)
		run_seed(seed, sums);
	printf("sim_pages: %llu histories with %u cuts, %u kills, %u resumes, %u discards and %u "
	       "faults: all right\n",
	       (unsigned long long)n, sums[0], sums[1], sums[4], sums[2], sums[3]);
	return 0;
}
