// SPDX-License-Identifier: Apache-2.0
#include "handler/replay.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>

#include "base/util.h"

#define SAMPLE_EVERY   64u
#define SAMPLE_AT      31u
#define ENOUGH_SAMPLES 32u /* before it is judged */
#define HELPS_PERCENT  20u
#define TRY_EVERY      8u /* VM, when it was turned down */

struct ferry_replay {
	struct ferry_working_set set;
	uint8_t *sampled;		/* owned; of each page */
	struct ferry_working_run *runs; /* owned */
	size_t n_runs;
	pthread_mutex_t lock; /* of what follows */
	struct ferry_replay_stats stats;
	uint64_t judged_samples, judged_hits; /* the latest of them count more */
};

static void choose_samples(struct ferry_replay *r)
{
	uint64_t n = 0;

	for (size_t i = 0; i < r->n_runs; i++)
		for (uint64_t p = 0; p < r->runs[i].n_pages; p++)
			if (n++ % SAMPLE_EVERY == SAMPLE_AT) {
				r->sampled[r->runs[i].first_page + p] = 1;
				r->stats.samples++;
			}
	r->stats.pages = n;
}

int ferry_replay_open(struct ferry_replay **out, uint64_t bytes, const char *text, size_t len,
		      struct ferry_failure *f)
{
	struct ferry_replay *r = calloc(1, sizeof(*r));
	int rc;

	if (!r)
		return ferry_fail_errno(f, FERRY_REFUSE, -ENOMEM, "working set");
	pthread_mutex_init(&r->lock, NULL);
	rc = ferry_working_set_init(&r->set, bytes);
	if (rc < 0)
		ferry_fail_errno(f, FERRY_REFUSE, rc, "working set");
	else
		rc = ferry_working_set_parse(&r->set, text, len, f);
	if (!rc) {
		r->sampled = calloc(r->set.n_pages, 1);
		rc = r->sampled ? ferry_working_set_runs(&r->set, &r->runs, &r->n_runs) : -ENOMEM;
		if (rc < 0)
			ferry_fail_errno(f, FERRY_REFUSE, rc, "working set");
	}
	if (rc < 0) {
		ferry_replay_close(r);
		return rc;
	}
	choose_samples(r);
	r->stats.is_first = true;
	*out = r;
	return 0;
}

void ferry_replay_close(struct ferry_replay *r)
{
	if (!r)
		return;
	ferry_working_set_fini(&r->set);
	free(r->sampled);
	free(r->runs);
	pthread_mutex_destroy(&r->lock);
	free(r);
}

/* --- as a VM's runs --------------------------------------------------------------------------- */

/* The part of @run that a region has. Return: false when there is none. */
static bool clip(const struct ferry_working_run *run, const struct ferry_vmm_message *m, uint32_t i,
		 struct ferry_run *out)
{
	const struct ferry_vmm_region *r = &m->regions[i];
	uint64_t from = run->first_page * FERRY_PAGE_SIZE_DEFAULT;
	uint64_t to = from + run->n_pages * FERRY_PAGE_SIZE_DEFAULT;

	from = FERRY_MAX(from, r->offset);
	to = FERRY_MIN(to, r->offset + r->bytes);
	if (from >= to)
		return false;
	out->region = i;
	out->first_page = (from - r->offset) / r->page_bytes;
	out->n_pages =
		(uint32_t)((to - r->offset + r->page_bytes - 1) / r->page_bytes - out->first_page);
	return true;
}

struct list {
	struct ferry_run *runs;
	size_t n, room;
};

static int append(struct list *l, const struct ferry_working_run *run,
		  const struct ferry_vmm_message *m)
{
	for (uint32_t i = 0; i < m->n_regions; i++) {
		struct ferry_run piece;

		if (!clip(run, m, i, &piece))
			continue;
		if (l->n == l->room) {
			size_t room = l->room ? 2 * l->room : 64;
			void *more = realloc(l->runs, room * sizeof(*l->runs));

			if (!more)
				return -ENOMEM;
			l->runs = more;
			l->room = room;
		}
		l->runs[l->n++] = piece;
	}
	return 0;
}

/* Samples go into one list, and what is between them into the other. */
static int split(const struct ferry_replay *r, const struct ferry_working_run *run,
		 const struct ferry_vmm_message *m, struct list *first, struct list *last)
{
	uint64_t end = run->first_page + run->n_pages;
	int rc = 0;

	for (uint64_t p = run->first_page; p < end && !rc;) {
		struct ferry_working_run piece = {.first_page = p};

		while (p < end && r->sampled[p] == r->sampled[piece.first_page])
			p++;
		piece.n_pages = p - piece.first_page;
		rc = append(r->sampled[piece.first_page] ? last : first, &piece, m);
	}
	return rc;
}

int ferry_replay_lists(const struct ferry_replay *r, const struct ferry_vmm_message *m,
		       struct ferry_replay_lists *out)
{
	struct list first = {0}, last = {0};
	int rc = 0;

	for (size_t i = 0; i < r->n_runs && !rc; i++)
		rc = split(r, &r->runs[i], m, &first, &last);
	if (rc < 0) {
		free(first.runs);
		free(last.runs);
		return rc;
	}
	*out = (struct ferry_replay_lists){.first = first.runs,
					   .last = last.runs,
					   .n_first = (uint32_t)first.n,
					   .n_last = (uint32_t)last.n};
	return 0;
}

/* --- does it help ----------------------------------------------------------------------------- */

void ferry_replay_fault(const struct ferry_replay *r, struct ferry_replay_vm *vm, uint64_t offset)
{
	uint64_t page = offset / FERRY_PAGE_SIZE_DEFAULT;

	if (page >= r->set.n_pages || !r->set.count[page])
		vm->missed++;
	else if (r->sampled[page])
		vm->hits++;
	else
		vm->late++;
}

bool ferry_replay_has(const struct ferry_replay *r, uint64_t offset)
{
	uint64_t page = offset / FERRY_PAGE_SIZE_DEFAULT;

	return page < r->set.n_pages && r->set.count[page] && !r->sampled[page];
}

bool ferry_replay_done(struct ferry_replay *r, struct ferry_replay_vm *vm, bool is_whole)
{
	struct ferry_replay_stats *s = &r->stats;
	uint64_t samples = s->samples;
	bool next;

	/* What is in the set shows itself in the samples only, what is not shows itself at once. */
	if (!is_whole)
		samples = FERRY_MIN(samples, vm->hits + vm->missed / SAMPLE_EVERY);
	pthread_mutex_lock(&r->lock);
	s->n_vms += is_whole || samples;
	s->samples_seen += samples;
	s->hits += vm->hits;
	s->late += vm->late;
	s->missed += vm->missed;
	r->judged_samples += samples;
	r->judged_hits += vm->hits;
	if (r->judged_samples >= ENOUGH_SAMPLES) {
		s->is_first = r->judged_hits * 100 >= r->judged_samples * HELPS_PERCENT;
		r->judged_samples /= 2;
		r->judged_hits /= 2;
	}
	next = s->is_first || s->n_vms % TRY_EVERY == 0;
	pthread_mutex_unlock(&r->lock);
	return next;
}

void ferry_replay_stats(struct ferry_replay *r, struct ferry_replay_stats *out)
{
	pthread_mutex_lock(&r->lock);
	*out = r->stats;
	pthread_mutex_unlock(&r->lock);
}
