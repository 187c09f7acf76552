/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A page server and lazy memory in one process, over the public API, while a call fails: what is
 * told is told in so many words, and no thread ever sees anything but the source's bytes.
 */
#include <errno.h>
#include <fcntl.h>
#include <pageferry.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "driver.h"

#define PAGE	  4096u
#define N_PAGES	  512u
#define BYTES	  ((size_t)N_PAGES * PAGE)
#define N_READERS 2
#define N_FIRST	  24  /* pages that are asked for before the push */
#define LIMIT_MS  60000
#define RETRY_MS  1500 /* after a failure was told, that much longer */

enum source_kind { SOURCE_MEMORY, SOURCE_MEMFD, SOURCE_FILE };

struct variant {
	enum source_kind source;
	bool shared; /* the target's memory */
	uint32_t n_bulk;
	bool traced;
};

/* Made once; the children's are copies or the same file. */
static uint8_t *source_memory;
static int source_fds[3] = {-1, -1, -1};
static char trace_path[64];

static bool is_zero_page(uint64_t page)
{
	return page % 8 == 3 || (page >= 100 && page < 180);
}

static uint64_t word(uint64_t page, uint64_t i)
{
	return is_zero_page(page) ? 0 : (page + 1) * 0x9e3779b97f4a7c15u + i;
}

static bool page_is_right(const uint8_t *memory, uint64_t page)
{
	const uint64_t *w = (const uint64_t *)(memory + page * PAGE);

	for (uint64_t i = 0; i < PAGE / sizeof(*w); i++)
		if (w[i] != word(page, i))
			return false;
	return true;
}

/* --- readers ------------------------------------------------------------------------------------- */

struct run {
	uint8_t *memory;
	pthread_t readers[N_READERS];
	_Atomic bool stop, over; /* ->over: zeros may be seen from here on */
	_Atomic uint64_t n_read, n_wrong;
	struct pageferry_server *server;
	struct pageferry_lazy *lazy;
	bool complete;
	bool failed; /* a failure was told */
	char story[200];
};

static void *read_pages(void *arg)
{
	static _Atomic uint64_t seeds = 1;
	struct run *r = arg;
	uint64_t x = atomic_fetch_add(&seeds, 1) * 0x9e3779b97f4a7c15u;

	fault_exempt = true;
	while (!r->stop) {
		x ^= x << 13, x ^= x >> 7, x ^= x << 17;
		if (!page_is_right(r->memory, x % N_PAGES) && !r->over)
			r->n_wrong++;
		r->n_read++;
	}
	return NULL;
}

static uint64_t now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

/* --- what is told -------------------------------------------------------------------------------- */

/* An error comes with its number, what follows, and what happened. */
static bool is_told(int rc, const struct pageferry_error *e)
{
	return rc < 0 && e->err == rc && e->text[0] && e->consequence != PAGEFERRY_OK &&
	       memchr(e->text, 0, sizeof(e->text)) && !strchr(e->text, '\n');
}

/* Wait until @done or COMPLETE; failures that are told are remembered. Return: whether it came. */
static bool await(struct run *r, bool (*done)(const struct run *), char why[256])
{
	uint64_t end = now_ms() + (r->failed ? RETRY_MS : LIMIT_MS);

	while (now_ms() < end) {
		struct pageferry_error e = {0};
		int event = WITH_FAULTS(pageferry_lazy_wait(r->lazy, 5, &e));

		if (event < 0 && !is_told(event, &e)) {
			snprintf(why, 256, "a wait failed without a word: %d", event);
			return false;
		}
		if (event == PAGEFERRY_FAILED) {
			if (!is_told(e.err, &e)) {
				snprintf(why, 256, "FAILED without a word: %d, %d, %.100s", e.err,
					 e.consequence, e.text);
				return false;
			}
			if (!r->failed)
				end = now_ms() + RETRY_MS;
			r->failed = true;
			snprintf(r->story, sizeof(r->story), "%.199s", e.text);
		}
		/* The readers alone may have got everything. */
		r->complete |= event == PAGEFERRY_COMPLETE;
		if (r->complete || (done && done(r)))
			return true;
		event = WITH_FAULTS(pageferry_server_wait(r->server, 0, &e));
		if (event == PAGEFERRY_FAILED) {
			if (!r->failed)
				end = now_ms() + RETRY_MS;
			r->failed = true;
			snprintf(r->story, sizeof(r->story), "server: %.150s", e.text);
		}
	}
	if (!r->failed) {
		struct pageferry_lazy_stats st = {.size = sizeof(st)};

		pageferry_lazy_stats(r->lazy, &st);
		snprintf(why, 256,
			 "nothing comes any more, and nothing was said: %llu pages of %llu, %llu read, "
			 "%llu faults, %llu requests, %u resumes, connected %d",
			 (unsigned long long)st.pages_resident, (unsigned long long)st.pages_total,
			 (unsigned long long)r->n_read, (unsigned long long)st.faults,
			 (unsigned long long)st.requests, st.resumes, st.is_connected);
	}
	return false;
}

static bool has_first(const struct run *r)
{
	return r->n_read >= N_FIRST;
}

/* --- one run ------------------------------------------------------------------------------------- */

static int serve(struct run *r, const struct variant *v, char address[PAGEFERRY_ADDRESS_MAX],
		 struct pageferry_error *e)
{
	static const char state[] = "registers";
	struct pageferry_region region = {.name = "memory",
					  .start = source_memory,
					  .bytes = BYTES,
					  .has_fd = v->source != SOURCE_MEMORY,
					  .fd = source_fds[v->source]};
	struct pageferry_server_options o = {.size = sizeof(o),
					     .listen = "127.0.0.1:0",
					     .state = state,
					     .state_bytes = sizeof(state)};
	int rc;

	if (region.has_fd)
		region.start = mmap(NULL, BYTES, PROT_READ, MAP_SHARED, region.fd, 0);
	rc = WITH_FAULTS(pageferry_server_new(&r->server, &region, 1, &o, e));
	return rc ? rc
		  : WITH_FAULTS(pageferry_server_address(r->server, address,
							 PAGEFERRY_ADDRESS_MAX));
}

static uint8_t *map_target(const struct variant *v)
{
	uint8_t *p = mmap(NULL, BYTES, PROT_READ | PROT_WRITE,
			  (v->shared ? MAP_SHARED : MAP_PRIVATE) | MAP_ANONYMOUS, -1, 0);

	return p == MAP_FAILED ? NULL : p;
}

/* Nobody waits in memory that could not be made lazy: a touch gives zeros. */
static enum fault_outcome not_lazy(struct run *r, int rc, const struct pageferry_error *e, char *why)
{
	if (!is_told(rc, e))
		return WRONG("lazy_new: %d, %d, '%.100s'", rc, e->consequence, e->text);
	if (r->lazy)
		return WRONG("lazy_new: written on failure");
	for (size_t i = 0; i < BYTES; i += PAGE)
		if (r->memory[i])
			return WRONG("lazy_new failed and memory is not what it was");
	snprintf(why, 256, "lazy_new: %.200s", e->text);
	return FAULT_REFUSED;
}

static enum fault_outcome move(struct run *r, const char *address, char *why)
{
	struct pageferry_error e = {0};
	uint32_t n;
	int rc;

	rc = WITH_FAULTS(pageferry_lazy_connect(r->lazy, address, &e));
	if (rc < 0) {
		if (!is_told(rc, &e))
			return WRONG("connect: %d, %d, '%.100s'", rc, e.consequence, e.text);
		snprintf(r->story, sizeof(r->story), "%.199s", e.text);
		rc = WITH_FAULTS(pageferry_lazy_connect(r->lazy, address, &e));
		if (rc < 0 && (await(r, NULL, why) || !r->failed))
			return WRONG("connect, again: %.200s", e.text);
		if (rc < 0)
			goto failed;
	}
	if (!pageferry_lazy_state(r->lazy, &n) || n != sizeof("registers"))
		return WRONG("the state did not come");
	for (int i = 0; i < N_READERS; i++)
		if (pthread_create(&r->readers[i], NULL, read_pages, r))
			return WRONG("readers");
	if (!await(r, has_first, why) && !r->failed)
		return FAULT_WRONG;
	rc = WITH_FAULTS(pageferry_lazy_push(r->lazy));
	if (rc < 0)
		return WRONG("push: %d", rc);
	if (await(r, NULL, why))
		return FAULT_SURVIVED;
	if (!r->failed)
		return FAULT_WRONG;
failed:
	snprintf(why, 256, "%s", r->story);
	return FAULT_GIVEN_UP;
}

/* Ends the readers and the lazy memory. */
static enum fault_outcome end(struct run *r, enum fault_outcome outcome, char *why)
{
	int rc;

	if (outcome == FAULT_SURVIVED) {
		for (uint64_t p = 0; p < N_PAGES; p++)
			if (!page_is_right(r->memory, p))
				return WRONG("page %llu is wrong", (unsigned long long)p);
		rc = WITH_FAULTS(pageferry_lazy_close(r->lazy));
		if (rc < 0)
			return WRONG("close: %d", rc);
	} else {
		r->over = true;
		WITH_FAULTS((pageferry_lazy_abandon(r->lazy), 0));
	}
	r->stop = true;
	for (int i = 0; i < N_READERS; i++)
		if (r->readers[i])
			pthread_join(r->readers[i], NULL);
	return r->n_wrong ? WRONG("%llu pages were read wrong", (unsigned long long)r->n_wrong)
			  : outcome;
}

static enum fault_outcome run(const void *arg, char why[256])
{
	const struct variant *v = arg;
	struct pageferry_lazy_options o = {.size = sizeof(o),
					   .n_bulk = v->n_bulk,
					   .trace_file = v->traced ? trace_path : NULL};
	char address[PAGEFERRY_ADDRESS_MAX];
	struct pageferry_error e = {0};
	struct pageferry_region region = {.name = "memory", .bytes = BYTES};
	enum fault_outcome outcome;
	struct run r = {0};
	int rc;

	r.memory = map_target(v);
	region.start = r.memory;
	if (!r.memory)
		return WRONG("mmap");
	rc = serve(&r, v, address, &e);
	if (rc < 0) {
		if (!is_told(rc, &e) || r.server)
			return WRONG("server_new: %d, %d, '%.100s'", rc, e.consequence, e.text);
		snprintf(why, 256, "server_new: %.200s", e.text);
		return FAULT_REFUSED;
	}
	rc = WITH_FAULTS(pageferry_lazy_new(&r.lazy, &region, 1, &o, &e));
	outcome = rc < 0 ? not_lazy(&r, rc, &e, why) : move(&r, address, why);
	if (r.lazy)
		outcome = outcome == FAULT_WRONG ? outcome : end(&r, outcome, why);
	if (outcome != FAULT_WRONG)
		WITH_FAULTS((pageferry_server_free(r.server), 0));
	return outcome;
}

/* --- all of it ----------------------------------------------------------------------------------- */

static int make_sources(void)
{
	char path[] = "/var/tmp/pageferry-fault-XXXXXX";

	source_memory = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	source_fds[SOURCE_MEMFD] = memfd_create("source", MFD_CLOEXEC);
	source_fds[SOURCE_FILE] = mkostemp(path, O_CLOEXEC);
	if (source_memory == MAP_FAILED || source_fds[SOURCE_FILE] < 0 || unlink(path))
		return -1;
	for (uint64_t p = 0; p < N_PAGES; p++) {
		uint64_t words[PAGE / sizeof(uint64_t)];

		if (p >= 100 && p < 180)
			continue; /* a hole */
		for (uint64_t i = 0; i < PAGE / sizeof(uint64_t); i++)
			words[i] = word(p, i);
		memcpy(source_memory + p * PAGE, words, PAGE);
		for (int k = SOURCE_MEMFD; k <= SOURCE_FILE; k++)
			if (pwrite(source_fds[k], words, PAGE, (off_t)(p * PAGE)) != PAGE)
				return -1;
	}
	snprintf(trace_path, sizeof(trace_path), "/var/tmp/pageferry-fault-%d.trace", (int)getpid());
	return 0;
}

int main(int argc, char **argv)
{
	static const struct variant memory = {.source = SOURCE_MEMORY, .n_bulk = 2},
				    memfd = {.source = SOURCE_MEMFD, .shared = true},
				    file = {.source = SOURCE_FILE, .traced = true};
	static const struct fault_scenario scenarios[] = {
		{"memory to private memory", run, &memory},
		{"memfd to shared memory", run, &memfd},
		{"file to private memory, traced", run, &file},
	};
	struct pageferry_region region = {.bytes = PAGE};
	struct pageferry_lazy *lazy;
	struct pageferry_error e;
	int rc;

	fault_exempt = true;
	region.start = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	rc = pageferry_lazy_new(&lazy, &region, 1, NULL, &e);
	if (rc == -EPERM || rc == -EACCES || rc == -ENOSYS) {
		printf("SKIP: no userfaultfd: run 'pageferry probe'\n");
		return 77;
	}
	if (rc < 0 || make_sources() < 0)
		return 1;
	pageferry_lazy_abandon(lazy);
	rc = fault_main(argc, argv, scenarios, 3);
	unlink(trace_path);
	return rc;
}
