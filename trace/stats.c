/* SPDX-License-Identifier: Apache-2.0 */
#include "trace/stats.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"

/* --- series and groups ------------------------------------------------------------------------ */

int ferry_series_add(struct ferry_series *s, uint64_t ns)
{
	if (s->n == s->room) {
		size_t room = s->room ? s->room * 2 : 64;
		uint64_t *v = reallocarray(s->v, room, sizeof(*v));

		if (!v)
			return -ENOMEM;
		s->v = v;
		s->room = room;
	}
	s->v[s->n++] = ns;
	s->is_sorted = false;
	return 0;
}

void ferry_series_fini(struct ferry_series *s)
{
	free(s->v);
	*s = (struct ferry_series){0};
}

static int by_value(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

uint64_t ferry_series_percentile(struct ferry_series *s, unsigned int permille)
{
	size_t rank = (s->n * permille + 999) / 1000;

	if (!s->n)
		return 0;
	if (!s->is_sorted)
		qsort(s->v, s->n, sizeof(*s->v), by_value);
	s->is_sorted = true;
	return s->v[rank ? rank - 1 : 0];
}

uint64_t ferry_series_mean(const struct ferry_series *s)
{
	double sum = 0;

	for (size_t i = 0; i < s->n; i++)
		sum += (double)s->v[i];
	return s->n ? (uint64_t)(sum / (double)s->n + 0.5) : 0;
}

/* The group with @id, made if there is none; NULL for want of memory. */
static struct ferry_stats_group *group_of(struct ferry_stats_groups *g, uint32_t id)
{
	size_t at = 0, end = g->n;

	while (at < end) {
		size_t mid = at + (end - at) / 2;

		if (g->v[mid].id < id)
			at = mid + 1;
		else
			end = mid;
	}
	if (at < g->n && g->v[at].id == id)
		return &g->v[at];
	if (g->n == g->room) {
		size_t room = g->room ? g->room * 2 : 16;
		struct ferry_stats_group *v = reallocarray(g->v, room, sizeof(*v));

		if (!v)
			return NULL;
		g->v = v;
		g->room = room;
	}
	memmove(&g->v[at + 1], &g->v[at], (g->n - at) * sizeof(*g->v));
	g->v[at] = (struct ferry_stats_group){.id = id};
	g->n++;
	return &g->v[at];
}

static void groups_fini(struct ferry_stats_groups *g)
{
	for (size_t i = 0; i < g->n; i++)
		ferry_series_fini(&g->v[i].wait);
	free(g->v);
	*g = (struct ferry_stats_groups){0};
}

/* --- exact ------------------------------------------------------------------------------------ */

/* A message whose thread waited for @ns. */
static int add_wait(struct ferry_stats *s, const struct ferry_trace_record *rec, uint64_t ns)
{
	struct ferry_stats_group *thread = group_of(&s->threads, rec->fault.thread);
	struct ferry_stats_group *region = group_of(&s->regions, rec->region);

	if (!thread || !region || ferry_series_add(&thread->wait, ns) < 0 ||
	    ferry_series_add(&region->wait, ns) < 0)
		return -ENOMEM;
	return ferry_series_add(&s->waits, ns);
}

static void count(struct ferry_stats *s, const struct ferry_trace_record *rec,
		  const struct ferry_split *split)
{
	s->n_writes += !!(rec->flags & FERRY_FAULT_F_WRITE);
	s->n_local += !!(rec->flags & FERRY_FAULT_F_LOCAL);
	s->n_pushed += !!(rec->flags & FERRY_FAULT_F_PUSHED);
	s->n_found += !!(rec->flags & FERRY_FAULT_F_FOUND);
	s->n_resent += !!(rec->flags & FERRY_FAULT_F_RESENT);
	s->n_swept += !!(rec->flags & FERRY_FAULT_F_SWEPT);
	s->n_discarded += !!(rec->flags & FERRY_FAULT_F_DISCARDED);
	s->n_zero += !!(rec->flags & FERRY_FAULT_F_ZERO);
	s->n_clamped += split->clamped_ns != 0;
	s->n_beyond += split->clamped_ns > split->uncertainty_ns;
	s->max_clamped_ns = FERRY_MAX(s->max_clamped_ns, split->clamped_ns);
	if (ferry_split_has(split, FERRY_SPAN_OUT))
		s->max_uncertainty_ns = FERRY_MAX(s->max_uncertainty_ns, split->uncertainty_ns);
	s->max_batch = FERRY_MAX(s->max_batch, (uint64_t)rec->fault.batch);
	s->max_outstanding = FERRY_MAX(s->max_outstanding, (uint64_t)rec->fault.outstanding);
}

static int add_fault(struct ferry_stats *s, const struct ferry_trace_record *rec,
		     const struct ferry_split *split)
{
	int rc = add_wait(s, rec, split->total_ns);

	count(s, rec, split);
	if (!rc && !(rec->flags & FERRY_FAULT_F_LOCAL))
		rc = ferry_series_add(&s->total, split->total_ns);
	for (unsigned int stage = 0; !rc && stage < FERRY_N_SPANS; stage++)
		if (ferry_split_has(split, stage))
			rc = ferry_series_add(&s->stages[stage], split->ns[stage]);
	if (!rc &&
	    (ferry_split_has(split, FERRY_SPAN_OUT) || ferry_split_has(split, FERRY_SPAN_NET)))
		rc = ferry_series_add(&s->net, split->net_ns);
	if (!rc && rec->flags & FERRY_FAULT_F_BUSY)
		rc = ferry_series_add(&s->busy, rec->fault.notice_ns);
	if (!rc && rec->flags & FERRY_FAULT_F_WOKEN)
		rc = ferry_series_add(&s->woken, rec->fault.notice_ns);
	return rc;
}

static void add_push(struct ferry_stats *s, const struct ferry_trace_record *rec)
{
	if (rec->flags & FERRY_PUSH_F_PRESENT) {
		s->pages_present += rec->push.n_new;
		return;
	}
	if (rec->flags & FERRY_PUSH_F_SWEPT) {
		s->pages_swept += rec->push.n_new;
		return;
	}
	s->n_runs++;
	if (rec->flags & FERRY_PUSH_F_ZERO)
		s->pages_said_zero += rec->push.n_new;
	else
		s->pages_pushed += rec->push.n_new;
	s->pages_in_vain += rec->push.n_pages - rec->push.n_new;
}

int ferry_stats_init(struct ferry_stats *s, const struct ferry_trace_log *log)
{
	struct ferry_clocks clocks;
	int rc = ferry_clocks_init(&clocks, log);

	*s = (struct ferry_stats){0};
	if (!rc) {
		s->splits = calloc(log->faults.n + 1, sizeof(*s->splits));
		rc = s->splits ? 0 : -ENOMEM;
	}
	for (size_t i = 0; !rc && i < log->faults.n; i++) {
		ferry_split(&log->faults.v[i], &clocks, &s->splits[i]);
		rc = add_fault(s, &log->faults.v[i], &s->splits[i]);
	}
	for (size_t i = 0; !rc && i < log->joins.n; i++) {
		const struct ferry_trace_record *j = &log->joins.v[i];

		s->n_joined++;
		if (j->fault.placed_ns)
			rc = add_wait(s, j, j->fault.placed_ns - j->time_ns);
	}
	s->n_messages = log->faults.n + log->unanswered.n + log->joins.n;
	for (size_t i = 0; !rc && i < log->pushes.n; i++)
		add_push(s, &log->pushes.v[i]);
	/* Not what the runs say, which also count pages that had been waited for long ago. */
	s->pages_overtaken = s->n_pushed;
	ferry_clocks_fini(&clocks);
	if (rc < 0)
		ferry_stats_fini(s);
	return rc;
}

void ferry_stats_fini(struct ferry_stats *s)
{
	ferry_series_fini(&s->total);
	ferry_series_fini(&s->waits);
	ferry_series_fini(&s->net);
	ferry_series_fini(&s->busy);
	ferry_series_fini(&s->woken);
	for (unsigned int i = 0; i < FERRY_N_SPANS; i++)
		ferry_series_fini(&s->stages[i]);
	groups_fini(&s->threads);
	groups_fini(&s->regions);
	free(s->splits);
	*s = (struct ferry_stats){0};
}

size_t ferry_stats_slowest(const struct ferry_stats *s, const struct ferry_trace_log *log,
			   size_t *idx, size_t n)
{
	size_t have = 0;

	/* Insertion: n is small. */
	for (size_t i = 0; n && i < log->faults.n; i++) {
		size_t at = have;

		while (at && s->splits[idx[at - 1]].total_ns < s->splits[i].total_ns)
			at--;
		if (at == n)
			continue;
		if (have < n)
			have++;
		memmove(&idx[at + 1], &idx[at], (have - 1 - at) * sizeof(*idx));
		idx[at] = i;
	}
	return have;
}

/* --- live ------------------------------------------------------------------------------------- */

static void live_fault(struct ferry_live_stats *s, const struct ferry_trace_record *rec)
{
	const struct ferry_clock_bounds *c = &s->clock;
	struct ferry_split split;

	if (rec->flags & FERRY_FAULT_F_UNANSWERED || rec->fault.placed_ns < rec->time_ns)
		return;
	ferry_split_at(rec, c->is_known, c->low_ns + (c->high_ns - c->low_ns) / 2,
		       (uint64_t)(c->high_ns - c->low_ns) / 2 + 1, &split);
	s->n_faults++;
	s->n_local += !!(rec->flags & FERRY_FAULT_F_LOCAL);
	s->n_pushed += !!(rec->flags & FERRY_FAULT_F_PUSHED);
	s->n_resent += !!(rec->flags & FERRY_FAULT_F_RESENT);
	if (!(rec->flags & FERRY_FAULT_F_LOCAL))
		ferry_histogram_add(&s->total, split.total_ns);
	for (unsigned int stage = 0; stage < FERRY_N_SPANS; stage++)
		if (ferry_split_has(&split, stage))
			ferry_histogram_add(&s->stages[stage], split.ns[stage]);
	if (rec->fault.received_ns)
		s->pages_answered++;
}

void ferry_live_stats_add(struct ferry_live_stats *s, const struct ferry_trace_record *rec)
{
	struct ferry_clock_bounds b;

	if (ferry_clock_bounds_of(rec, &b))
		ferry_clock_tighten(&s->clock, b.at_ns, b.low_ns, b.high_ns);
	switch (rec->type) {
	case FERRY_TRACE_FAULT:
		live_fault(s, rec);
		break;
	case FERRY_TRACE_JOIN:
		s->n_joined++;
		break;
	case FERRY_TRACE_PUSH:
		if (rec->flags & (FERRY_PUSH_F_PRESENT | FERRY_PUSH_F_SWEPT))
			break;
		if (rec->flags & FERRY_PUSH_F_ZERO)
			s->pages_said_zero += rec->push.n_new;
		else
			s->pages_pushed += rec->push.n_new;
		s->pages_in_vain += rec->push.n_pages - rec->push.n_new;
		break;
	}
}
