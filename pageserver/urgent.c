/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <stdlib.h>

#include "pageserver/server_internal.h"
#include "trace/usdt.h"

/* Runs that wait to be answered. A request of the largest size always fits when another one has
 * been half answered. */
#define N_WAITING 1024u

/* Of one submission. More would make a newer request wait for longer than it must. */
#define URGENT_PIECES 64
#define URGENT_BYTES  (1u * FERRY_MIB)
#define SCRATCH_BYTES (64 * FERRY_KIB)

/*
 * What a session has asked a gated source for at any time. Whatever is behind it, the source is asked
 * in the order of its sessions' wishes: one that faults wildly stands before another's page with no
 * more than this. Enough for 5 Gbit/s over 200 us.
 */
#define WANTED_BYTES (128 * FERRY_KIB)

struct waiting {
	uint64_t request_id, received_ns;
	struct ferry_run run;
	bool is_wanted; /* a gated source was asked for it */
};

struct ferry_urgent {
	struct waiting ring[N_WAITING];
	uint32_t head, tail;  /* taken, added */
	uint64_t wanted_bytes; /* of all that are wanted */
	struct ferry_cut cut; /* of the run at head, once begun */
	struct ferry_run first;
	bool warm; /* what comes first was just read from its disk */

	uint8_t headers[URGENT_PIECES][FERRY_PAGE_RUN_BYTES];
	struct iovec iov[2 * URGENT_PIECES];
	struct ferry_scratch scratch;
};

int ferry_urgent_new(struct ferry_urgent **out, struct ferry_server *s)
{
	struct ferry_urgent *u = calloc(1, sizeof(*u));

	if (!u)
		return -ENOMEM;
	if (s->scratch_page_bytes) {
		u->scratch.size = FERRY_MAX((size_t)SCRATCH_BYTES, s->scratch_page_bytes);
		u->scratch.data = aligned_alloc(FERRY_PAGE_SIZE_DEFAULT, u->scratch.size);
		if (!u->scratch.data) {
			free(u);
			return -ENOMEM;
		}
	}
	*out = u;
	return 0;
}

void ferry_urgent_free(struct ferry_urgent *u)
{
	if (!u)
		return;
	free(u->scratch.data);
	free(u);
}

bool ferry_urgent_has_room(const struct ferry_urgent *u)
{
	return N_WAITING - (u->tail - u->head) >= FERRY_MAX_REQUEST_RUNS;
}

void ferry_urgent_add(struct ferry_urgent *u, const struct ferry_page_request *r,
		      uint64_t received_ns)
{
	FERRY_PROBE2(request_received, r->request_id, r->n_runs);
	for (uint32_t i = 0; i < r->n_runs; i++)
		u->ring[u->tail++ % N_WAITING] = (struct waiting){
			.request_id = r->request_id, .received_ns = received_ns, .run = r->runs[i]};
}

struct ferry_run ferry_urgent_first(const struct ferry_urgent *u)
{
	return u->first;
}

/* Encodes one piece and points at its bytes. Return: bytes to send. */
static size_t put_piece(struct ferry_urgent *u, uint32_t i, size_t *n_iov,
			const struct ferry_page_run *piece, const void *data, uint32_t data_bytes)
{
	struct ferry_message m = {
		.type = FERRY_FRAME_PAGE_RUN, .run = *piece, .payload_bytes = data_bytes};
	int n = ferry_message_encode(&m, u->headers[i], FERRY_PAGE_RUN_BYTES);

	u->iov[(*n_iov)++] = (struct iovec){u->headers[i], (size_t)n};
	if (data_bytes)
		u->iov[(*n_iov)++] = (struct iovec){(void *)data, data_bytes};
	return (size_t)n + data_bytes;
}

static void read_done(struct ferry_server *s, struct ferry_op *op, int res)
{
	struct ferry_conn *c = FERRY_CONTAINER(op, struct ferry_conn, read_op);

	(void)s;
	(void)res; /* if it failed, so will the read that follows, and tell */
	c->read_busy = false;
	c->urgent->warm = true;
	ferry_conn_flush(c);
}

/* Would the pages that come next make us wait for a disk? Looks at as many as fit into scratch. */
static bool is_cold(struct ferry_conn *c, bool read_it)
{
	struct ferry_urgent *u = c->urgent;
	const struct ferry_run *run = &u->cut.rest;
	const struct ferry_server *s = c->server;
	size_t room = u->scratch.size - u->scratch.used;
	struct iovec iov = {u->scratch.data + u->scratch.used};
	struct io_uring_sqe *sqe;
	uint64_t offset;
	ssize_t got;
	int fd = ferry_source_disk(s->config.sources[run->region], run->first_page, &offset);

	if (fd < 0 || u->warm || !ferry_bitmap_test(&s->pages.data[run->region], run->first_page))
		return false;
	iov.iov_len = FERRY_MIN(room, (size_t)run->n_pages *
					      s->pages.layout.regions[run->region].page_bytes);
	got = preadv2(fd, &iov, 1, (off_t)offset, RWF_NOWAIT);
	if (got < 0 ? errno == EOPNOTSUPP : (size_t)got == iov.iov_len)
		return false;
	if (!read_it)
		return true;
	sqe = ferry_loop_sqe(c->server);
	io_uring_prep_read(sqe, fd, iov.iov_base, (unsigned int)iov.iov_len, offset);
	c->read_op.done = read_done;
	io_uring_sqe_set_data(sqe, &c->read_op);
	c->read_busy = true;
	return true;
}

/* Can it be answered? If not, it is asked for, unless too much is. */
static bool is_here(struct ferry_urgent *u, struct ferry_server *s, struct waiting *w)
{
	uint64_t bytes = (uint64_t)w->run.n_pages *
			 s->pages.layout.regions[w->run.region].page_bytes;
	bool want = w->is_wanted || u->wanted_bytes < WANTED_BYTES;
	bool here = ferry_server_has(s, &w->run, want);

	if (w->is_wanted && here)
		u->wanted_bytes -= bytes;
	else if (!w->is_wanted && !here && want)
		u->wanted_bytes += bytes;
	w->is_wanted = want && !here;
	return here;
}

/*
 * Put a request first whose pages can be read; those that can't go behind the others. What arrives
 * after we looked wakes the loop: ->awaits is set before.
 */
static bool find_ready(struct ferry_urgent *u, struct ferry_server *s)
{
	uint32_t n = u->tail - u->head;

	if (is_here(u, s, &u->ring[u->head % N_WAITING]))
		return true;
	atomic_store(&s->awaits, true);
	for (; n; n--) {
		struct waiting *w = &u->ring[u->head % N_WAITING];

		if (is_here(u, s, w))
			return true;
		u->head++;
		u->ring[u->tail++ % N_WAITING] = *w;
	}
	return false;
}

int ferry_urgent_fill(struct ferry_conn *c, struct iovec **iov, size_t *n_iov,
		      struct ferry_run *failed)
{
	struct ferry_urgent *u = c->urgent;
	struct ferry_server *s = c->server;
	bool times = c->proto.features & FERRY_FEATURE_SOURCE_TIMES;
	uint64_t now = 0;
	size_t bytes = 0;

	*iov = u->iov;
	*n_iov = 0;
	if (c->read_busy || u->head == u->tail ||
	    !atomic_load_explicit(&s->serving, memory_order_acquire)) {
		if (c->peer->push)
			ferry_push_give_way(c->peer->push, false);
		return 0;
	}
	u->scratch.used = 0;
	u->cut.n_have = 0; /* its bytes were in the scratch memory that is used again now */
	for (uint32_t i = 0; i < URGENT_PIECES && bytes < URGENT_BYTES && u->head != u->tail;) {
		const struct waiting *w;
		struct ferry_page_run piece;
		const void *data;
		int rc;

		if (!u->cut.rest.n_pages && !find_ready(u, s))
			break;
		w = &u->ring[u->head % N_WAITING];
		if (!u->cut.rest.n_pages)
			u->cut = (struct ferry_cut){
				.rest = w->run,
				.says_lost = c->proto.features & FERRY_FEATURE_LOST};
		/* What is at hand is sent first. */
		if (!u->cut.n_have && is_cold(c, !i))
			break;
		rc = ferry_session_cut(c->peer->session, &u->cut, URGENT_BYTES, &u->scratch, &piece,
				       &data);
		if (rc < 0) {
			*failed = u->cut.rest;
			return rc;
		}
		if (rc == FERRY_CUT_FULL)
			break;
		rc = ferry_server_finish_piece(s, &piece, data, c->proto.features, true);
		if (rc < 0) {
			*failed = piece.run;
			return rc;
		}
		u->warm = false;
		if (!i)
			u->first = piece.run;
		if (times) {
			now = ferry_now_ns();
			piece.received_ns = w->received_ns;
			piece.answered_ns = now;
		}
		piece.request_id = w->request_id;
		bytes += put_piece(
			u, i++, n_iov, &piece, data,
			data ? piece.run.n_pages *
					s->pages.layout.regions[piece.run.region].page_bytes
			     : 0);
		FERRY_PROBE5(request_answered, piece.request_id, piece.run.region,
			     piece.run.first_page, piece.run.n_pages, bytes);
		if (!u->cut.rest.n_pages)
			u->head++;
	}
	if (c->peer->push) {
		ferry_push_give_way(c->peer->push, bytes);
		ferry_push_charge(c->peer->push, bytes);
	}
	return 0;
}
