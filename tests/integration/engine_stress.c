/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sources and targets of one process, with threads that fault and discard and a source that goes
 * away and comes back. A plain program, for the thread sanitizer to look at.
 */
#include <errno.h>
#include <pageferry.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE	  4096u
#define N_PAGES	  2048u
#define BYTES	  (N_PAGES * (uint64_t)PAGE)
#define N_PAIRS	  2 /* at the same time */
#define N_ROUNDS  3
#define N_USERS	  4
#define N_TOUCHES 1500
#define RATE	  (16u << 20)
#define SLOW_RATE (64u << 10) /* of the first source: not all has come when it is lost */

struct pair {
	uint8_t *from, *to;
	char path[64];
	struct pageferry_server *server;
	struct pageferry_lazy *lazy;
	_Atomic uint32_t n_wrong, next;
	bool failed;
};

static uint8_t byte_of(uint64_t page)
{
	return (uint8_t)(page % 251 + 1);
}

/* The last eighth of the memory is discarded at random; the rest must be what the source has. */
static void *use(void *arg)
{
	struct pair *p = arg;
	uint64_t x = (atomic_fetch_add(&p->next, 1) + 1) * 0x9e3779b97f4a7c15u;

	for (int i = 0; i < N_TOUCHES; i++) {
		uint64_t page;
		uint8_t *at;

		x ^= x << 13, x ^= x >> 7, x ^= x << 17;
		page = x % N_PAGES;
		at = p->to + page * PAGE;
		if (page >= N_PAGES / 8 * 7) {
			if (x >> 60 == 0 && madvise(at, PAGE, MADV_DONTNEED) < 0)
				atomic_fetch_add(&p->n_wrong, 1);
			if (*(volatile uint8_t *)at && *(volatile uint8_t *)at != byte_of(page))
				atomic_fetch_add(&p->n_wrong, 1);
		} else if (*(volatile uint8_t *)at != byte_of(page)) {
			atomic_fetch_add(&p->n_wrong, 1);
		}
	}
	return NULL;
}

static int serve(struct pair *p, uint64_t rate)
{
	struct pageferry_region r = {.name = "memory", .start = p->from, .bytes = BYTES};
	struct pageferry_server_options o = {
		.size = sizeof(o), .listen = p->path, .max_bytes_per_second = rate};
	struct pageferry_error e;
	int rc = pageferry_server_new(&p->server, &r, 1, &o, &e);

	if (rc < 0)
		fprintf(stderr, "%s\n", e.text);
	return rc;
}

static int make_lazy(struct pair *p)
{
	struct pageferry_region r = {.name = "memory", .start = p->to, .bytes = BYTES};
	struct pageferry_lazy_options o = {
		.size = sizeof(o), .n_bulk = 2, .max_bytes_per_second = RATE};
	struct pageferry_error e;

	if (pageferry_lazy_new(&p->lazy, &r, 1, &o, &e) < 0 ||
	    pageferry_lazy_connect(p->lazy, p->path, &e) < 0) {
		fprintf(stderr, "%s\n", e.text);
		return e.err;
	}
	return pageferry_lazy_push(p->lazy);
}

/* Wait for an event; others are passed over. */
static int await(struct pageferry_lazy *l, enum pageferry_event wanted)
{
	struct pageferry_error e = {0};
	int event;

	do
		event = pageferry_lazy_wait(l, 120000, &e);
	while (event > 0 && event != PAGEFERRY_FAILED && event != (int)wanted);
	if (event == (int)wanted)
		return 0;
	fprintf(stderr, "event %d instead of %d: %s\n", event, (int)wanted, e.text);
	return -1;
}

static int round_of(struct pair *p)
{
	struct pageferry_lazy_stats st = {.size = sizeof(st)};
	pthread_t users[N_USERS];
	int rc = 0;

	p->to = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (p->to == MAP_FAILED || serve(p, SLOW_RATE) < 0 || make_lazy(p) < 0)
		return -1;
	for (int i = 0; i < N_USERS; i++)
		if (pthread_create(&users[i], NULL, use, p))
			return -1;
	while (!rc && st.pages_resident < N_PAGES / 3)
		rc = pageferry_lazy_stats(p->lazy, &st);
	pageferry_server_free(p->server);
	rc |= await(p->lazy, PAGEFERRY_LINK_LOST);
	rc |= serve(p, RATE);
	rc |= await(p->lazy, PAGEFERRY_COMPLETE);
	for (int i = 0; !rc && i < N_USERS; i++)
		pthread_join(users[i], NULL);
	if (rc)
		return rc;
	pageferry_server_free(p->server);
	rc = pageferry_lazy_close(p->lazy);
	for (uint64_t i = 0; i < N_PAGES / 8 * 7; i++)
		if (p->to[i * PAGE] != byte_of(i) || p->to[(i + 1) * PAGE - 1] != byte_of(i))
			atomic_fetch_add(&p->n_wrong, 1);
	munmap(p->to, BYTES);
	return rc;
}

static void *run_pair(void *arg)
{
	struct pair *p = arg;

	for (int i = 0; !p->failed && i < N_ROUNDS; i++)
		p->failed = round_of(p) != 0;
	return NULL;
}

/*
 * liburing unmaps a ring without the sanitizer's seeing it. When the next one comes to lie at the same
 * address, their threads seem to share it. Only accesses to the ring itself are passed over.
 */
const char *__tsan_default_suppressions(void);
const char *__tsan_default_suppressions(void)
{
	return "race_top:^io_uring_\nrace_top:^__io_uring_\nrace_top:^_io_uring_\n"
	       "race_top:^wait_and_dispatch$\n";
}

int main(void)
{
	char dir[] = "/tmp/engine-stress-XXXXXX";
	struct pair pairs[N_PAIRS] = {0};
	pthread_t threads[N_PAIRS];
	int rc = 0;

	if (!mkdtemp(dir))
		return 1;
	for (int i = 0; i < N_PAIRS; i++) {
		struct pair *p = &pairs[i];

		snprintf(p->path, sizeof(p->path), "unix:%s/%d", dir, i);
		p->from = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1,
			       0);
		if (p->from == MAP_FAILED)
			return 1;
		for (uint64_t page = 0; page < N_PAGES; page++)
			memset(p->from + page * PAGE, byte_of(page), PAGE);
		if (pthread_create(&threads[i], NULL, run_pair, p))
			return 1;
	}
	for (int i = 0; i < N_PAIRS; i++) {
		pthread_join(threads[i], NULL);
		unlink(pairs[i].path + strlen("unix:"));
		if (pairs[i].failed || pairs[i].n_wrong) {
			fprintf(stderr, "pair %d: %s, %u wrong\n", i,
				pairs[i].failed ? "failed" : "done", pairs[i].n_wrong);
			rc = 1;
		}
	}
	rmdir(dir);
	return rc;
}
