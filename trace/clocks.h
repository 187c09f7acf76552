/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The difference between the two sides' clocks, from exchanges: a message there and an answer back.
 *
 * Nothing arrives before it was sent. So each exchange says that (target - source) lies between
 * sent - received there and received here - sent there. These bounds hold at that moment; away from
 * it they widen by what clocks drift. All exchanges together (the pings, and every fault that was
 * answered) leave an interval; its middle is the estimate, half its width the uncertainty.
 */
#ifndef FERRY_TRACE_CLOCKS_H
#define FERRY_TRACE_CLOCKS_H

#include <stdbool.h>

#include "trace/file.h"

/* How fast two clocks drift apart at most: twice what is common for quartz, parts a million. */
#define FERRY_CLOCK_DRIFT_PPM 100

/* What is known at one moment. Zero-initialise. Also the way to follow a trace as it is written. */
struct ferry_clock_bounds {
	bool is_known;
	uint64_t at_ns;
	int64_t low_ns, high_ns;
};

/* At @now_ns (not earlier than before) the difference is from @low_ns to @high_ns. */
void ferry_clock_tighten(struct ferry_clock_bounds *b, uint64_t now_ns, int64_t low_ns,
			 int64_t high_ns);

/* The bounds of one record: a CLOCK, or an answered FAULT with the source's times. Else false. */
bool ferry_clock_bounds_of(const struct ferry_trace_record *rec, struct ferry_clock_bounds *out);

struct ferry_clocks {
	struct ferry_clock_bounds *v; /* owned; by time, each as tight as all others make it */
	size_t n;
};

/* Errors: -ENOMEM. */
int ferry_clocks_init(struct ferry_clocks *c, const struct ferry_trace_log *log);
void ferry_clocks_fini(struct ferry_clocks *c);

/**
 * ferry_clocks_at() - target time - source time, at a moment
 * Return: false when nothing is known.
 */
bool ferry_clocks_at(const struct ferry_clocks *c, uint64_t at_ns, int64_t *offset_ns,
		     uint64_t *uncertainty_ns);

#endif
