/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A session as its two threads use it: one pushes, the other answers requests for pages at the very
 * place that the push has come to. Both find out which pages are zero. No run that is given out may
 * be empty, and each page is given out. A plain program, so that the thread sanitizer can run it.
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/util.h"
#include "pageserver/session.h"

#define PAGES	  262144u
#define PAGE	  4096u
#define RUN_PAGES 4u
#ifdef __SANITIZE_THREAD__
#define ROUNDS 10u
#else
#define ROUNDS 100u
#endif

static uint8_t zeros[RUN_PAGES * PAGE];
static _Atomic uint32_t n_given[PAGES];
static _Atomic uint64_t front[2]; /* of the push: where its last runs begin */
static atomic_bool ended;

static void check(bool ok, const char *what)
{
	if (ok)
		return;
	fprintf(stderr, "session_threads: %s\n", what);
	exit(1);
}

static bool copies(void *ctx, uint32_t region)
{
	(void)ctx;
	(void)region;
	return false;
}

static int get(void *ctx, const struct ferry_run *run, void *scratch, const void **data)
{
	(void)ctx;
	(void)scratch;
	check(run->n_pages, "no pages are read");
	*data = zeros;
	return 0;
}

static int is_zero(void *ctx, uint32_t region, uint64_t page, const void *data)
{
	(void)ctx;
	(void)region;
	(void)page;
	(void)data;
	return 1;
}

static void give(struct ferry_session *s, const struct ferry_run *run)
{
	struct ferry_cut c = {.rest = *run};
	struct ferry_page_run piece;
	const void *data;

	check(run->n_pages, "an empty run");
	while (c.rest.n_pages) {
		check(ferry_session_cut(s, &c, sizeof(zeros), NULL, &piece, &data) ==
			      FERRY_CUT_PIECE,
		      "a run that ends too early");
		check(piece.run.n_pages, "an empty piece");
		for (uint32_t i = 0; i < piece.run.n_pages; i++)
			atomic_fetch_add(&n_given[piece.run.first_page + i], 1);
	}
}

/*
 * Asks for pages at the ends of the last two runs: the push goes both ways from a page that was
 * asked for, by turns.
 */
static void *answer(void *arg)
{
	static const uint64_t at[] = {0, RUN_PAGES, PAGES - 1};
	struct ferry_session *s = arg;
	char why[FERRY_MAX_TEXT];

	for (uint64_t n = 0; !atomic_load(&ended); n++) {
		uint64_t page = atomic_load(&front[n % 2]) + at[n / 2 % 3];
		struct ferry_page_request r = {
			.request_id = 1,
			.n_runs = 1,
			.runs = {{.first_page = page % PAGES, .n_pages = 1}}};

		check(!ferry_session_request(s, &r, why), "a request is refused");
		give(s, &r.runs[0]);
	}
	return NULL;
}

static void push(struct ferry_session *s)
{
	struct ferry_run run;
	uint32_t n = 0;

	while (ferry_session_next_hole(s, &run) || ferry_session_next_run(s, sizeof(zeros), &run)) {
		atomic_store(&front[n++ % 2], run.first_page);
		give(s, &run);
	}
	atomic_store(&ended, true);
}

static void one_round(uint32_t n)
{
	struct ferry_pages pages = {
		.layout = {.n_regions = 1,
			   .regions = {{.page_bytes = PAGE, .n_pages = PAGES, .name = "a"}}},
		.copies = copies,
		.get = get,
		.is_zero = is_zero};
	struct ferry_session_id id = {{1}};
	struct ferry_session *s;
	pthread_t thread;

	check(!ferry_pages_init(&pages), "pages");
	/* All holes, all data, or both by turns. */
	for (uint64_t page = 0; page < PAGES; page += 8)
		if (n % 3 == 1 || (n % 3 == 2 && page % 16))
			ferry_bitmap_set_range(&pages.data[0], page, 8);
	check(!ferry_session_new(&s, &pages, &id, 0), "session");
	for (uint32_t i = 0; i < PAGES; i++)
		atomic_store(&n_given[i], 0);
	atomic_store(&ended, false);
	check(!pthread_create(&thread, NULL, answer, s), "thread");
	push(s);
	pthread_join(thread, NULL);
	for (uint32_t i = 0; i < PAGES; i++)
		check(atomic_load(&n_given[i]), "a page was given to nobody");
	ferry_session_free(s);
	ferry_pages_fini(&pages);
}

int main(void)
{
	for (uint32_t n = 0; n < ROUNDS; n++)
		one_round(n);
	return 0;
}
