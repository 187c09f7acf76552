/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/net.h"
#include "pageserver/server_internal.h"

#define LOOP_NICE (-10)

#define ACCEPT_BATCH 16

/* A ring that fails is given this many chances to hand back what is in flight. */
#define BROKEN_ATTEMPTS 100
#define BROKEN_PAUSE_MS 10

int ferry_loop_init(struct ferry_server *s, struct ferry_failure *f)
{
	int rc = s->config.ring ? 0 : ferry_ring_new(&s->own_ring, f);

	if (!rc)
		s->ring = s->config.ring ? &s->config.ring->uring : &s->own_ring->uring;
	return rc;
}

void ferry_loop_fini(struct ferry_server *s)
{
	ferry_ring_free(s->own_ring);
}

void ferry_loop_wake(struct ferry_server *s)
{
	eventfd_write(s->wake_fd, 1);
}

struct io_uring_sqe *ferry_loop_sqe(struct ferry_server *s)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(s->ring);

	/* A full queue is emptied by submitting it: what is submitted does not stay in it. */
	while (!sqe) {
		io_uring_submit(s->ring);
		sqe = io_uring_get_sqe(s->ring);
	}
	return sqe;
}

static void wake_done(struct ferry_server *s, struct ferry_op *op, int res)
{
	eventfd_t n;

	(void)op;
	(void)res;
	eventfd_read(s->wake_fd, &n);
	s->wake_armed = false;
	s->woken = true;
}

/* A peer that connects and says nothing must not keep others out: the oldest of too many goes. */
static void limit_handshakes(struct ferry_server *s)
{
	struct ferry_conn *oldest = NULL;
	uint32_t n = 0;

	for (struct ferry_conn *c = s->conns; c; c = c->next) {
		if (c->stage == CONN_CLOSED || c->peer)
			continue;
		n++;
		oldest = c;
	}
	if (n > MAX_HANDSHAKES)
		ferry_conn_close(oldest);
}

static void listener_done(struct ferry_server *s, struct ferry_op *op, int res)
{
	struct ferry_listener *l = FERRY_CONTAINER(op, struct ferry_listener, op);

	l->armed = false;
	/* Whoever comes while we stop would be nobody's any more. */
	for (int i = 0; res >= 0 && !atomic_load(&s->stopping) && i < ACCEPT_BATCH; i++) {
		char name[FERRY_GATE_NAME_MAX];
		struct ferry_conn *c;
		int fd = ferry_gate_accept(l->gate, name);

		if (fd < 0) {
			if (fd == -EAGAIN)
				return;
			/* Out of descriptors or memory: again at the next tick, not at once. */
			ferry_warn(s->log, "accept: %s", strerror(-fd));
			l->paused = true;
			return;
		}
		if (ferry_conn_new(s, fd, name, NULL, 0, &c) < 0)
			continue;
		limit_handshakes(s);
	}
}

static void arm_poll(struct ferry_server *s, struct ferry_op *op, int fd)
{
	struct io_uring_sqe *sqe = ferry_loop_sqe(s);

	io_uring_prep_poll_add(sqe, fd, POLLIN);
	io_uring_sqe_set_data(sqe, op);
}

static void arm(struct ferry_server *s)
{
	if (!s->wake_armed) {
		s->wake_op.done = wake_done;
		arm_poll(s, &s->wake_op, s->wake_fd);
		s->wake_armed = true;
	}
	for (uint32_t i = 0; i < s->n_listeners; i++) {
		struct ferry_listener *l = &s->listeners[i];

		if (l->armed || l->paused)
			continue;
		l->op.done = listener_done;
		arm_poll(s, &l->op, ferry_gate_fd(l->gate));
		l->armed = true;
	}
}

static bool is_paused(const struct ferry_server *s)
{
	for (uint32_t i = 0; i < s->n_listeners; i++)
		if (s->listeners[i].paused)
			return true;
	return false;
}

static int wait_and_dispatch(struct ferry_server *s)
{
	struct __kernel_timespec tick = {.tv_nsec = TICK_NS};
	/* With nobody there, nothing has to happen at any time. */
	bool timed = s->conns || s->peers || is_paused(s);
	struct io_uring_cqe *cqe;
	unsigned int head, n = 0;
	int rc = io_uring_submit_and_wait_timeout(s->ring, &cqe, 1, timed ? &tick : NULL, NULL);

	if (rc < 0 && rc != -ETIME && rc != -EINTR && rc != -EBUSY && rc != -EAGAIN && rc != -ENOMEM)
		return rc;
	io_uring_for_each_cqe(s->ring, head, cqe)
	{
		struct ferry_op *op = io_uring_cqe_get_data(cqe);

		if (op)
			op->done(s, op, cqe->res);
		n++;
	}
	io_uring_cq_advance(s->ring, n);
	return 0;
}

static void on_wake(struct ferry_server *s)
{
	ferry_dialers_take(s);
	if (atomic_load(&s->condemned))
		ferry_peer_condemn_all(s);
	ferry_peer_sweep(s, ferry_now_ns());
	/* The server may have begun to serve. */
	for (struct ferry_conn *c = s->conns; c; c = c->next)
		if (c->urgent)
			ferry_conn_flush(c);
	for (struct ferry_peer *p = s->peers; p; p = p->next)
		ferry_peer_try_push(p);
}

static void on_tick(struct ferry_server *s, uint64_t now)
{
	struct ferry_conn *next;

	for (uint32_t i = 0; i < s->n_listeners; i++)
		s->listeners[i].paused = false;
	for (struct ferry_conn *c = s->conns; c; c = next) {
		next = c->next;
		ferry_conn_tick(c, now);
	}
	ferry_peer_sweep(s, now);
}

static void close_everything(struct ferry_server *s)
{
	ferry_peer_close_all(s);
	for (struct ferry_conn *c = s->conns; c; c = c->next)
		ferry_conn_close(c);
}

/* A poll in flight keeps its socket listening after it is closed: have none, so that the address is
 * free when the server has stopped. */
static void release_listeners(struct ferry_server *s)
{
	bool any;

	for (uint32_t i = 0; i < s->n_listeners; i++) {
		struct io_uring_sqe *sqe;

		if (!s->listeners[i].armed)
			continue;
		sqe = ferry_loop_sqe(s);
		io_uring_prep_poll_remove(sqe, (uintptr_t)&s->listeners[i].op);
		io_uring_sqe_set_data(sqe, NULL);
	}
	do {
		any = false;
		for (uint32_t i = 0; i < s->n_listeners; i++)
			any |= s->listeners[i].armed;
	} while (any && !wait_and_dispatch(s));
}

/* Whoever is connected learns of it by the loss, and whoever comes by being refused. */
static void give_up(struct ferry_server *s, int err)
{
	if (atomic_exchange(&s->stopping, true))
		return;
	atomic_store(&s->broken, true);
	ferry_error(s->log, "page server: io_uring: %s", strerror(-err));
	ferry_server_post(s, FERRY_SERVER_FAILED, FERRY_LINK, err,
			  "the page server's io_uring broke; start the server again");
	for (uint32_t i = 0; i < s->n_listeners; i++)
		shutdown(s->listeners[i].fd, SHUT_RDWR);
}

/* Nothing comes out of the ring any more: what is in flight stays the kernel's, for good. */
static void end_pushes(struct ferry_server *s)
{
	while (s->peers) {
		ferry_peer_sweep(s, ferry_now_ns());
		(void)ferry_net_wait(s->wake_fd, POLLIN, BROKEN_PAUSE_MS, -1);
	}
}

static void tell_enabled(struct ferry_server *s, int rc)
{
	s->enable_rc = rc;
	sem_post(&s->enabled);
}

void *ferry_loop_run(void *server)
{
	struct ferry_server *s = server;
	/* It belongs to this thread from now on. */
	int rc = ferry_ring_enable(s->config.ring ? s->config.ring : s->own_ring);
	unsigned int n_broken = 0;

	/* Urgent before bulk on the processor. Without the right to it the push goes lower instead. */
	s->is_raised = !setpriority(PRIO_PROCESS, (id_t)gettid(), LOOP_NICE);
	tell_enabled(s, rc);
	while (!rc) {
		uint64_t now;

		if (atomic_load(&s->stopping)) {
			close_everything(s);
			ferry_peer_sweep(s, ferry_now_ns());
		}
		if (s->any_closed)
			ferry_conn_sweep(s);
		if (atomic_load(&s->stopping) && !s->conns && !s->peers) {
			release_listeners(s);
			return NULL;
		}
		arm(s);
		rc = wait_and_dispatch(s);
		if (rc < 0) {
			give_up(s, rc);
			/* It may be good enough to get back what is in flight. */
			if (++n_broken < BROKEN_ATTEMPTS)
				rc = 0;
			continue;
		}
		if (s->woken) {
			s->woken = false;
			on_wake(s);
		}
		now = ferry_now_ns();
		if (now - s->tick_ns >= TICK_NS) {
			s->tick_ns = now;
			on_tick(s, now);
		}
	}
	end_pushes(s);
	return NULL;
}
