/* SPDX-License-Identifier: Apache-2.0 */
#include "trace/clocks.h"

#include <errno.h>
#include <stdlib.h>

#include "base/util.h"

static int64_t drift(uint64_t from_ns, uint64_t to_ns)
{
	uint64_t dt = to_ns > from_ns ? to_ns - from_ns : from_ns - to_ns;

	return (int64_t)(dt / (1000000 / FERRY_CLOCK_DRIFT_PPM) + 1);
}

/* What @b says, seen from another moment. */
static struct ferry_clock_bounds seen_from(const struct ferry_clock_bounds *b, uint64_t at_ns)
{
	int64_t wider = drift(b->at_ns, at_ns);

	return (struct ferry_clock_bounds){b->is_known, at_ns, b->low_ns - wider,
					   b->high_ns + wider};
}

static void intersect(struct ferry_clock_bounds *b, const struct ferry_clock_bounds *other)
{
	struct ferry_clock_bounds o = seen_from(other, b->at_ns);

	if (!o.is_known || o.low_ns > b->high_ns || o.high_ns < b->low_ns)
		return; /* a clock was set, or drifts more than we allow: the nearer word counts */
	b->low_ns = FERRY_MAX(b->low_ns, o.low_ns);
	b->high_ns = FERRY_MIN(b->high_ns, o.high_ns);
}

void ferry_clock_tighten(struct ferry_clock_bounds *b, uint64_t now_ns, int64_t low_ns,
			 int64_t high_ns)
{
	struct ferry_clock_bounds now = {true, now_ns, low_ns, high_ns};

	intersect(&now, b);
	*b = now;
}

bool ferry_clock_bounds_of(const struct ferry_trace_record *rec, struct ferry_clock_bounds *out)
{
	const struct ferry_trace_fault *f = &rec->fault;
	uint64_t hold, span;

	if (rec->type == FERRY_TRACE_CLOCK) {
		int64_t u = (int64_t)rec->clock.uncertainty_ns;

		*out = (struct ferry_clock_bounds){true, rec->time_ns, rec->clock.offset_ns - u,
						   rec->clock.offset_ns + u};
		return true;
	}
	if (rec->type != FERRY_TRACE_FAULT || !f->sent_ns || !f->received_ns ||
	    !f->source_received_ns || f->source_answered_ns < f->source_received_ns ||
	    f->received_ns < f->sent_ns || f->source_answered_ns > INT64_MAX / 4 ||
	    f->received_ns > INT64_MAX / 4)
		return false;
	hold = f->source_answered_ns - f->source_received_ns;
	span = f->received_ns - f->sent_ns;
	if (hold > span)
		return false;
	*out = (struct ferry_clock_bounds){
		true,
		f->received_ns,
		(int64_t)f->sent_ns - (int64_t)f->source_received_ns,
		(int64_t)f->received_ns - (int64_t)f->source_answered_ns,
	};
	return true;
}

static int by_time(const void *a, const void *b)
{
	const struct ferry_clock_bounds *x = a, *y = b;

	return x->at_ns < y->at_ns ? -1 : x->at_ns > y->at_ns;
}

int ferry_clocks_init(struct ferry_clocks *c, const struct ferry_trace_log *log)
{
	*c = (struct ferry_clocks){0};
	c->v = calloc(log->clocks.n + log->faults.n + 1, sizeof(*c->v));
	if (!c->v)
		return -ENOMEM;
	for (size_t i = 0; i < log->clocks.n; i++)
		if (ferry_clock_bounds_of(&log->clocks.v[i], &c->v[c->n]))
			c->n++;
	for (size_t i = 0; i < log->faults.n; i++)
		if (ferry_clock_bounds_of(&log->faults.v[i], &c->v[c->n]))
			c->n++;
	qsort(c->v, c->n, sizeof(*c->v), by_time);
	/* Once in each direction, and every word has reached every moment. */
	for (size_t i = 1; i < c->n; i++)
		intersect(&c->v[i], &c->v[i - 1]);
	for (size_t i = c->n; i-- > 1;)
		intersect(&c->v[i - 1], &c->v[i]);
	return 0;
}

void ferry_clocks_fini(struct ferry_clocks *c)
{
	free(c->v);
	*c = (struct ferry_clocks){0};
}

bool ferry_clocks_at(const struct ferry_clocks *c, uint64_t at_ns, int64_t *offset_ns,
		     uint64_t *uncertainty_ns)
{
	size_t begin = 0, end = c->n;
	struct ferry_clock_bounds b;

	if (!c->n)
		return false;
	while (begin < end) {
		size_t mid = begin + (end - begin) / 2;

		if (c->v[mid].at_ns < at_ns)
			begin = mid + 1;
		else
			end = mid;
	}
	b = seen_from(&c->v[begin < c->n ? begin : c->n - 1], at_ns);
	if (begin && begin < c->n)
		intersect(&b, &c->v[begin - 1]);
	*offset_ns = b.low_ns + (b.high_ns - b.low_ns) / 2;
	*uncertainty_ns = (uint64_t)(b.high_ns - b.low_ns) / 2 + 1;
	return true;
}
