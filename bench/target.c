/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Threads that touch memory which is filled from elsewhere, and time each touch:
 *
 *   --via lazy     by libpageferry in this process
 *   --via plain    by the plain handler in this process
 *   --via outside  by another process (pageferry attach), to which "ready" tells where the memory is.
 *                  "go" on standard input starts the threads, "check" compares all memory, "end" ends.
 *
 * Each page is touched once, in random order. With --push the rest is filled meanwhile; a touch is then
 * only timed when the page was missing just before.
 */
#include <errno.h>
#include <pageferry.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "bench/bench.h"

/* Below this no fault was served: the page came between the look and the touch. */
#define FAULT_MIN_NS 2000u
#define STACK_BYTES  (256u * 1024) /* sanitizers need some of it */

struct work {
	const struct bench_options *o;
	const volatile uint64_t *memory;
	uint32_t *order; /* owned; pages */
	uint32_t n_pages;
	atomic_uint next;
	atomic_bool stop;
	pthread_barrier_t start;
	uint64_t begin_ns, end_ns;
};

struct toucher {
	struct work *work;
	pthread_t thread;
	struct bench_samples samples;
	uint64_t end_ns;
};

/* Splitmix64. The same order in each run. */
static uint64_t random_u64(uint64_t *state)
{
	uint64_t z = *state += 0x9e3779b97f4a7c15u;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
	z = (z ^ z >> 27) * 0x94d049bb133111ebu;
	return z ^ z >> 31;
}

static void shuffle(struct work *w)
{
	uint64_t seed = 1, pages = w->o->bytes / BENCH_PAGE;

	w->order = malloc(pages * sizeof(*w->order));
	if (!w->order)
		bench_die("order");
	for (uint64_t page = 0; page < pages; page++)
		if (bench_word(page, w->o->every))
			w->order[w->n_pages++] = (uint32_t)page;
	for (uint32_t i = w->n_pages - 1; i; i--) {
		uint32_t j = (uint32_t)(random_u64(&seed) % (i + 1)), page = w->order[i];

		w->order[i] = w->order[j];
		w->order[j] = page;
	}
	if (w->o->faults && w->o->faults < w->n_pages)
		w->n_pages = w->o->faults;
}

static void *touch(void *arg)
{
	struct toucher *t = arg;
	struct work *w = t->work;
	uint32_t i;

	pthread_barrier_wait(&w->start);
	while ((i = atomic_fetch_add(&w->next, 1)) < w->n_pages && !atomic_load(&w->stop)) {
		uint64_t page = w->order[i], before, took, word;
		const volatile uint64_t *at = w->memory + page * (BENCH_PAGE / sizeof(*at));
		unsigned char here = 0;

		if (w->o->push && mincore((void *)at, BENCH_PAGE, &here) < 0)
			bench_die("mincore");
		before = bench_now_ns();
		word = *at;
		took = bench_now_ns() - before;
		errno = 0;
		if (word != bench_word(page, w->o->every))
			bench_die("page %llu has %#llx", (unsigned long long)page,
				  (unsigned long long)word);
		if (!(here & 1) && took >= FAULT_MIN_NS)
			bench_samples_add(&t->samples, took);
	}
	t->end_ns = bench_now_ns();
	return NULL;
}

static struct toucher *start(struct work *w)
{
	uint32_t n = w->o->threads;
	struct toucher *t = calloc(n, sizeof(*t));
	pthread_attr_t attr;

	if (!t)
		bench_die("threads");
	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, STACK_BYTES);
	pthread_barrier_init(&w->start, NULL, n + 1);
	for (uint32_t i = 0; i < n; i++) {
		t[i].work = w;
		bench_samples_init(&t[i].samples, w->n_pages);
		errno = pthread_create(&t[i].thread, &attr, touch, &t[i]);
		if (errno)
			bench_die("thread");
	}
	pthread_attr_destroy(&attr);
	pthread_barrier_wait(&w->start);
	w->begin_ns = bench_now_ns();
	return t;
}

/* Joins the threads, and prints what they saw. */
static void finish(struct work *w, struct toucher *t)
{
	struct bench_samples all;
	double seconds;

	bench_samples_init(&all, w->n_pages);
	for (uint32_t i = 0; i < w->o->threads; i++) {
		pthread_join(t[i].thread, NULL);
		bench_samples_merge(&all, &t[i].samples);
		bench_samples_fini(&t[i].samples);
		w->end_ns = t[i].end_ns > w->end_ns ? t[i].end_ns : w->end_ns;
	}
	seconds = w->end_ns ? (double)(w->end_ns - w->begin_ns) / 1e9 : 0;
	bench_samples_print(&all, "touch_us");
	printf(",\"touch_seconds\":%.6f,\"touches_per_s\":%.1f", seconds,
	       seconds > 0 ? all.n / seconds : 0);
	bench_samples_fini(&all);
	free(t);
}

/* --- filled by the library -------------------------------------------------------------------- */

static void check_error(int rc, const struct pageferry_error *e)
{
	errno = 0;
	if (rc < 0)
		bench_die("%s", e->text);
}

static void wait_complete(struct pageferry_lazy *l)
{
	struct pageferry_error e = {0};
	int event;

	do {
		event = pageferry_lazy_wait(l, -1, &e);
		check_error(event == PAGEFERRY_FAILED ? -1 : event, &e);
	} while (event != PAGEFERRY_COMPLETE);
}

static void run_lazy(struct work *w)
{
	struct pageferry_region region = {.name = "", .start = (void *)w->memory,
					  .bytes = w->o->bytes};
	struct pageferry_lazy_stats s = {.size = sizeof(s)};
	struct pageferry_lazy *l;
	struct pageferry_error e;
	struct toucher *t;
	uint64_t before;

	check_error(pageferry_lazy_new(&l, &region, 1, NULL, &e), &e);
	check_error(pageferry_lazy_connect(l, w->o->from, &e), &e);
	before = bench_now_ns();
	if (w->o->push)
		pageferry_lazy_push(l);
	t = start(w);
	printf("{");
	if (w->o->push) {
		wait_complete(l);
		printf("\"fill_seconds\":%.6f,", (double)(bench_now_ns() - before) / 1e9);
		atomic_store(&w->stop, true);
	}
	finish(w, t);
	pageferry_lazy_stats(l, &s);
	printf(",\"service_us\":{\"n\":%llu,\"p50\":%.2f,\"p99\":%.2f,\"max\":%.2f}"
	       ",\"requests\":%llu,\"pages_urgent\":%llu,\"pages_pushed\":%llu}\n",
	       (unsigned long long)s.fault_n, s.fault_p50_us, s.fault_p99_us, s.fault_max_us,
	       (unsigned long long)s.requests, (unsigned long long)s.pages_urgent,
	       (unsigned long long)s.pages_pushed);
	if (w->o->push)
		bench_check((const void *)w->memory, w->o->bytes, w->o->every);
	pageferry_lazy_abandon(l);
}

/* --- by others -------------------------------------------------------------------------------- */

static void run_plain(struct work *w)
{
	struct bench_plain *p = bench_plain_start((void *)w->memory, w->o->bytes, w->o->from);
	uint64_t before = bench_now_ns();
	struct toucher *t;

	if (w->o->push)
		bench_plain_fill(p);
	t = start(w);
	printf("{");
	if (w->o->push) {
		bench_plain_wait(p);
		printf("\"fill_seconds\":%.6f,", (double)(bench_now_ns() - before) / 1e9);
		atomic_store(&w->stop, true);
	}
	finish(w, t);
	printf(",");
	bench_samples_print(bench_plain_samples(p), "service_us");
	printf("}\n");
	if (w->o->push)
		bench_check((const void *)w->memory, w->o->bytes, w->o->every);
}

static void run_outside(struct work *w)
{
	char line[16];

	printf("{\"event\":\"ready\",\"pid\":%d,\"match\":\"%#llx-%#llx\"}\n", getpid(),
	       (unsigned long long)(uintptr_t)w->memory,
	       (unsigned long long)(uintptr_t)w->memory + w->o->bytes);
	fflush(stdout);
	while (fgets(line, sizeof(line), stdin) && strcmp(line, "end\n")) {
		if (!strcmp(line, "go\n")) {
			struct toucher *t = start(w);

			printf("{");
			finish(w, t);
			printf("}\n");
		} else {
			bench_check((const void *)w->memory, w->o->bytes, w->o->every);
			printf("{\"event\":\"checked\"}\n");
		}
		fflush(stdout);
	}
}

int bench_target(const struct bench_options *o)
{
	struct work w = {.o = o, .memory = bench_map(o->memory, o->bytes)};

	shuffle(&w);
	if (!o->from && strcmp(o->via, "outside"))
		bench_die("target: --from is missing");
	if (!strcmp(o->via, "lazy"))
		run_lazy(&w);
	else if (!strcmp(o->via, "plain"))
		run_plain(&w);
	else
		run_outside(&w);
	free(w.order);
	return 0;
}
