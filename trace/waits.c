/* SPDX-License-Identifier: Apache-2.0 */
#include "trace/waits.h"

#include <errno.h>
#include <stdlib.h>

static int by_thread_and_time(const void *a, const void *b)
{
	const struct ferry_wait *x = a, *y = b;

	if (x->thread != y->thread)
		return x->thread < y->thread ? -1 : 1;
	return x->begin_ns < y->begin_ns ? -1 : x->begin_ns > y->begin_ns;
}

static void add(struct ferry_waits *w, const struct ferry_trace_record *rec,
		const struct ferry_split *split)
{
	w->v[w->n++] = (struct ferry_wait){.thread = rec->fault.thread,
					   .begin_ns = rec->time_ns,
					   .end_ns = rec->fault.placed_ns,
					   .rec = rec,
					   .split = split};
}

int ferry_waits_init(struct ferry_waits *w, const struct ferry_trace_log *log,
		     const struct ferry_stats *stats)
{
	*w = (struct ferry_waits){.v = calloc(log->faults.n + log->joins.n + 1, sizeof(*w->v))};
	if (!w->v)
		return -ENOMEM;
	for (size_t i = 0; i < log->faults.n; i++)
		add(w, &log->faults.v[i], &stats->splits[i]);
	for (size_t i = 0; i < log->joins.n; i++)
		if (log->joins.v[i].fault.placed_ns)
			add(w, &log->joins.v[i], NULL);
	qsort(w->v, w->n, sizeof(*w->v), by_thread_and_time);
	for (size_t i = 1; i < w->n; i++) {
		struct ferry_wait *last = &w->v[i - 1];

		if (last->thread && last->thread == w->v[i].thread &&
		    last->end_ns > w->v[i].begin_ns)
			last->end_ns = w->v[i].begin_ns;
	}
	return 0;
}

void ferry_waits_fini(struct ferry_waits *w)
{
	free(w->v);
	*w = (struct ferry_waits){0};
}
