/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A TCP forwarder that passes each byte on a known time later: a long link, where the kernel has none to
 * offer. Two threads for each direction of a connection: one takes and stamps, the other waits until the
 * time has come. What is on its way is held in memory, up to QUEUE_BYTES for each direction, which is
 * what such a link would hold at several GB/s.
 */
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "bench/bench.h"

#define CHUNK_BYTES (128u * 1024)
#define QUEUE_BYTES (256u * 1024 * 1024)

struct chunk {
	struct chunk *next;
	uint64_t due_ns;
	size_t n; /* 0: the end */
	uint8_t data[CHUNK_BYTES];
};

struct pump {
	int from, to;
	uint64_t delay_ns;
	pthread_mutex_t lock; /* of what follows */
	pthread_cond_t changed;
	struct chunk *first, **last, *unused;
	uint64_t queued;
};

static struct chunk *take_unused(struct pump *p)
{
	struct chunk *c;

	pthread_mutex_lock(&p->lock);
	while (p->queued >= QUEUE_BYTES)
		pthread_cond_wait(&p->changed, &p->lock);
	c = p->unused;
	if (c)
		p->unused = c->next;
	pthread_mutex_unlock(&p->lock);
	if (!c)
		c = malloc(sizeof(*c));
	if (!c)
		bench_die("forwarder");
	return c;
}

static void *take(void *arg)
{
	struct pump *p = arg;
	ssize_t n;

	do {
		struct chunk *c = take_unused(p);

		n = recv(p->from, c->data, sizeof(c->data), 0);
		c->n = n > 0 ? (size_t)n : 0;
		c->due_ns = bench_now_ns() + p->delay_ns;
		c->next = NULL;
		pthread_mutex_lock(&p->lock);
		*p->last = c;
		p->last = &c->next;
		p->queued += c->n;
		pthread_cond_broadcast(&p->changed);
		pthread_mutex_unlock(&p->lock);
	} while (n > 0);
	return NULL;
}

static void *give(void *arg)
{
	struct pump *p = arg;
	bool more = true;

	/* The kernel may not round the time up. */
	prctl(PR_SET_TIMERSLACK, 1);
	while (more) {
		struct timespec due;
		struct chunk *c;

		pthread_mutex_lock(&p->lock);
		while (!p->first)
			pthread_cond_wait(&p->changed, &p->lock);
		c = p->first;
		pthread_mutex_unlock(&p->lock);
		due = (struct timespec){.tv_sec = (time_t)(c->due_ns / 1000000000),
					.tv_nsec = (long)(c->due_ns % 1000000000)};
		while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &due, NULL) == EINTR)
			;
		more = c->n && bench_write(p->to, c->data, c->n);
		pthread_mutex_lock(&p->lock);
		p->first = c->next;
		if (!p->first)
			p->last = &p->first;
		p->queued -= c->n;
		c->next = p->unused;
		p->unused = c;
		pthread_cond_broadcast(&p->changed);
		pthread_mutex_unlock(&p->lock);
	}
	shutdown(p->to, SHUT_WR);
	/* Whoever sends on to a peer that is gone is to know. */
	shutdown(p->from, SHUT_RD);
	return NULL;
}

static void start_pump(int from, int to, uint64_t delay_ns)
{
	struct pump *p = calloc(1, sizeof(*p));

	if (!p)
		bench_die("forwarder");
	p->from = from;
	p->to = to;
	p->delay_ns = delay_ns;
	p->last = &p->first;
	pthread_mutex_init(&p->lock, NULL);
	pthread_cond_init(&p->changed, NULL);
	bench_spawn(take, p);
	bench_spawn(give, p);
}

struct forwarder {
	int listener;
	char to[64];
	uint64_t delay_ns;
};

/* Its sockets and pumps end with the process, which forwards for one measurement. */
static void *forward(void *arg)
{
	const struct forwarder *f = arg;

	for (;;) {
		int near = bench_accept(f->listener), far = bench_dial(f->to);

		start_pump(near, far, f->delay_ns);
		start_pump(far, near, f->delay_ns);
	}
	return NULL;
}

uint16_t bench_forward_start(const char *to, uint32_t delay_us)
{
	struct forwarder *f = calloc(1, sizeof(*f));
	uint16_t port;

	if (!f)
		bench_die("forwarder");
	snprintf(f->to, sizeof(f->to), "%s", to);
	f->delay_ns = delay_us * 1000ull;
	f->listener = bench_listen(&port);
	bench_spawn(forward, f);
	return port;
}

int bench_forward(const struct bench_options *o)
{
	if (!o->to)
		bench_die("forward: --to is missing");
	printf("{\"event\":\"listening\",\"address\":\"127.0.0.1:%u\"}\n",
	       bench_forward_start(o->to, o->delay_us));
	fflush(stdout);
	for (;;)
		pause();
}
