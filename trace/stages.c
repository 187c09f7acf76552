/* SPDX-License-Identifier: Apache-2.0 */
#include "trace/stages.h"

#include "base/util.h"

static const struct {
	const char *name, *meaning;
} stages[FERRY_N_SPANS] = {
	[FERRY_SPAN_QUEUE] = {"queue", "message read, until its request was sent"},
	[FERRY_SPAN_OUTAGE] = {"outage", "until it was asked for again after a lost connection"},
	[FERRY_SPAN_OUT] = {"out", "request on its way to the source"},
	[FERRY_SPAN_SOURCE] = {"source", "request read, until the answer left"},
	[FERRY_SPAN_BACK] = {"back", "answer on its way to the target"},
	[FERRY_SPAN_NET] = {"net", "both ways, where clocks can't be compared"},
	[FERRY_SPAN_REMOTE] = {"remote", "both ways and the source, which gave no times"},
	[FERRY_SPAN_PUSH] = {"push", "until the push brought it before the answer"},
	[FERRY_SPAN_PLACE] = {"place", "answer received, until placed and threads woken"},
	[FERRY_SPAN_LOCAL] = {"local", "answered by the target itself"},
};

const char *ferry_span_name(enum ferry_span stage)
{
	return stages[stage].name;
}

const char *ferry_span_meaning(enum ferry_span stage)
{
	return stages[stage].meaning;
}

static void put(struct ferry_split *s, enum ferry_span stage, uint64_t ns)
{
	s->ns[stage] = ns;
	s->has |= 1u << stage;
}

/* @ns, but neither before @from nor after @to; 0 (unknown) becomes @from. */
static uint64_t between(uint64_t ns, uint64_t from, uint64_t to)
{
	if (ns < from)
		return from;
	return FERRY_MIN(ns, to);
}

/* The time from sent to received, as far as the source's times and the clocks tell it apart. */
static void split_remote(const struct ferry_trace_fault *f, uint64_t sent, uint64_t received,
			 bool has_offset, int64_t offset_ns, struct ferry_split *s)
{
	uint64_t span = received - sent, hold = f->source_answered_ns - f->source_received_ns;
	int64_t out;

	if (!f->source_received_ns || f->source_answered_ns < f->source_received_ns ||
	    hold > span || f->source_answered_ns > INT64_MAX / 4 || !f->sent_ns) {
		put(s, FERRY_SPAN_REMOTE, span);
		return;
	}
	put(s, FERRY_SPAN_SOURCE, hold);
	s->net_ns = span - hold;
	if (!has_offset) {
		put(s, FERRY_SPAN_NET, s->net_ns);
		return;
	}
	out = (int64_t)f->source_received_ns + offset_ns - (int64_t)sent;
	if (out < 0) {
		s->clamped_ns = (uint64_t)-out;
		out = 0;
	} else if ((uint64_t)out > s->net_ns) {
		s->clamped_ns = (uint64_t)out - s->net_ns;
		out = (int64_t)s->net_ns;
	}
	put(s, FERRY_SPAN_OUT, (uint64_t)out);
	put(s, FERRY_SPAN_BACK, s->net_ns - (uint64_t)out);
}

void ferry_split_at(const struct ferry_trace_record *rec, bool has_offset, int64_t offset_ns,
		    uint64_t uncertainty_ns, struct ferry_split *out)
{
	const struct ferry_trace_fault *f = &rec->fault;
	uint64_t at = rec->time_ns, end = FERRY_MAX(f->placed_ns, at), next;

	*out = (struct ferry_split){.total_ns = end - at, .uncertainty_ns = uncertainty_ns};
	if (rec->flags & FERRY_FAULT_F_LOCAL) {
		put(out, FERRY_SPAN_LOCAL, out->total_ns);
		return;
	}
	if (f->first_sent_ns) {
		next = between(f->first_sent_ns, at, end);
		put(out, FERRY_SPAN_QUEUE, next - at);
		at = next;
	}
	if (f->sent_ns > f->first_sent_ns) {
		next = between(f->sent_ns, at, end);
		put(out, FERRY_SPAN_OUTAGE, next - at);
		at = next;
	}
	if (!f->received_ns) {
		put(out, FERRY_SPAN_PUSH, end - at);
		return;
	}
	next = between(f->received_ns, at, end);
	split_remote(f, at, next, has_offset, offset_ns, out);
	put(out, FERRY_SPAN_PLACE, end - next);
}

void ferry_split(const struct ferry_trace_record *rec, const struct ferry_clocks *clocks,
		 struct ferry_split *out)
{
	int64_t offset = 0;
	uint64_t uncertainty = 0;
	bool has = clocks && ferry_clocks_at(clocks, rec->fault.received_ns, &offset, &uncertainty);

	ferry_split_at(rec, has, offset, uncertainty, out);
}
