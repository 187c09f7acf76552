/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A plain handler, to compare with: one thread, one message a read, one request in flight, one page an
 * answer, and while nobody waits the next missing page in the same way. So do the post-copy of Cloud
 * Hypervisor (v53) and CRIU's lazy-pages serve a fault; without their other work.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "bench/bench.h"

#define MAX_SAMPLES (1u << 20)

struct bench_plain {
	uint8_t *memory; /* borrowed */
	uint64_t n_pages, next;
	bool *here; /* owned; of each page */
	int uffd, fd;
	atomic_bool fills;
	pthread_mutex_t lock;
	pthread_cond_t filled;
	bool is_full;
	struct bench_samples samples;
};

static void fetch(struct bench_plain *p, uint64_t page)
{
	static _Alignas(BENCH_PAGE) uint8_t data[BENCH_PAGE];

	if (!bench_write(p->fd, &page, sizeof(page)) || !bench_read(p->fd, data, sizeof(data)))
		bench_die("plain: the server is gone");
	bench_uffd_copy(p->uffd, (uintptr_t)p->memory + page * BENCH_PAGE, data, BENCH_PAGE);
	p->here[page] = true;
}

static void fill_one(struct bench_plain *p)
{
	while (p->next < p->n_pages && p->here[p->next])
		p->next++;
	if (p->next < p->n_pages) {
		fetch(p, p->next);
		return;
	}
	pthread_mutex_lock(&p->lock);
	p->is_full = true;
	pthread_cond_broadcast(&p->filled);
	pthread_mutex_unlock(&p->lock);
}

static void *handle(void *arg)
{
	struct bench_plain *p = arg;

	for (;;) {
		bool fills = atomic_load(&p->fills) && !p->is_full;
		uint64_t address, read_ns;

		/* Asleep in poll it does not see that it is to fill: so it looks now and then. */
		if (!bench_uffd_next(p->uffd, fills ? 0 : 1, &address)) {
			if (fills)
				fill_one(p);
			continue;
		}
		read_ns = bench_now_ns();
		fetch(p, (address - (uintptr_t)p->memory) / BENCH_PAGE);
		bench_samples_add(&p->samples, bench_now_ns() - read_ns);
	}
	return NULL;
}

struct bench_plain *bench_plain_start(void *memory, uint64_t bytes, const char *from)
{
	struct bench_plain *p = calloc(1, sizeof(*p));

	if (!p)
		bench_die("plain");
	p->memory = memory;
	p->n_pages = bytes / BENCH_PAGE;
	p->here = calloc(p->n_pages, sizeof(*p->here));
	if (!p->here)
		bench_die("plain");
	bench_samples_init(&p->samples, MAX_SAMPLES);
	pthread_mutex_init(&p->lock, NULL);
	pthread_cond_init(&p->filled, NULL);
	p->fd = bench_dial(from);
	p->uffd = bench_uffd_open(memory, bytes, false);
	bench_spawn(handle, p);
	return p;
}

void bench_plain_fill(struct bench_plain *p)
{
	atomic_store(&p->fills, true);
}

void bench_plain_wait(struct bench_plain *p)
{
	pthread_mutex_lock(&p->lock);
	while (!p->is_full)
		pthread_cond_wait(&p->filled, &p->lock);
	pthread_mutex_unlock(&p->lock);
}

struct bench_samples *bench_plain_samples(struct bench_plain *p)
{
	return &p->samples;
}

/* --- its server ----------------------------------------------------------------------------------- */

struct client {
	int fd;
	const uint8_t *memory;
	uint64_t n_pages;
};

static void *answer(void *arg)
{
	struct client *c = arg;
	uint64_t page;

	while (bench_read(c->fd, &page, sizeof(page)))
		if (page >= c->n_pages ||
		    !bench_write(c->fd, c->memory + page * BENCH_PAGE, BENCH_PAGE))
			break;
	close(c->fd);
	free(c);
	return NULL;
}

int bench_plain_serve(const struct bench_options *o)
{
	int file = o->file ? open(o->file, O_RDONLY | O_CLOEXEC) : -1, listener;
	const uint8_t *memory;
	struct stat st;
	uint16_t port;

	if (file < 0 || fstat(file, &st) < 0)
		bench_die("plain-serve: --file %s", o->file ? o->file : "is missing");
	memory = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_SHARED, file, 0);
	if (memory == MAP_FAILED)
		bench_die("plain-serve: mmap");
	listener = bench_listen(&port);
	printf("{\"event\":\"listening\",\"address\":\"127.0.0.1:%u\"}\n", port);
	fflush(stdout);
	for (;;) {
		struct client *c = malloc(sizeof(*c));

		if (!c)
			bench_die("plain-serve");
		*c = (struct client){bench_accept(listener), memory,
				     (uint64_t)st.st_size / BENCH_PAGE};
		bench_spawn(answer, c);
	}
}
