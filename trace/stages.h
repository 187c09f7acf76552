/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where the time of one fault went. The stages that a fault has add up to its total exactly. What the
 * source did and what the network took in both directions together needs no common clock; only how
 * much of the latter was which direction is an estimate, as uncertain as the clocks' difference.
 *
 *   read -queue-> sent -outage-> sent again -out-> [source] -back-> received -place-> placed, woken
 *                  |                                                                    |
 *                  +------------------------- push (it came first) ----------------------+
 */
#ifndef FERRY_TRACE_STAGES_H
#define FERRY_TRACE_STAGES_H

#include "trace/clocks.h"

enum ferry_span {
	FERRY_SPAN_QUEUE,  /* message read, request not sent yet */
	FERRY_SPAN_OUTAGE, /* sent, but over a connection that was lost */
	FERRY_SPAN_OUT,    /* network and kernels, to the source */
	FERRY_SPAN_SOURCE, /* request read to answer given to the kernel */
	FERRY_SPAN_BACK,   /* network and kernels, to here */
	FERRY_SPAN_NET,    /* out and back, where the clocks can't be compared */
	FERRY_SPAN_REMOTE, /* out, source and back, where the source gave no times */
	FERRY_SPAN_PUSH,   /* sent (or not yet), until it came by another way than an answer */
	FERRY_SPAN_PLACE,  /* answer received to placed and woken */
	FERRY_SPAN_LOCAL,  /* answered from here */
	FERRY_N_SPANS,
};

struct ferry_split {
	uint64_t total_ns;
	uint32_t has; /* set of stages: bit s for stage s */
	uint64_t ns[FERRY_N_SPANS];
	uint64_t net_ns;	 /* out and back; exact. With OUT or NET only. */
	uint64_t uncertainty_ns; /* of OUT and BACK */
	uint64_t clamped_ns;	 /* by so much OUT or BACK would have been negative */
};

/**
 * ferry_split() - one FAULT record that was answered
 * @clocks: NULL for none
 */
void ferry_split(const struct ferry_trace_record *rec, const struct ferry_clocks *clocks,
		 struct ferry_split *out);

/* The same with the clocks' difference at hand. */
void ferry_split_at(const struct ferry_trace_record *rec, bool has_offset, int64_t offset_ns,
		    uint64_t uncertainty_ns, struct ferry_split *out);

/* One word, as in the reports; and what it means. */
const char *ferry_span_name(enum ferry_span stage);
const char *ferry_span_meaning(enum ferry_span stage);

static inline bool ferry_split_has(const struct ferry_split *s, enum ferry_span stage)
{
	return s->has >> stage & 1;
}

#endif
