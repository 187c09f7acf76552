/* SPDX-License-Identifier: Apache-2.0 */
/* When each thread of the guest stood still: every message, with its thread, from read to woken. */
#ifndef FERRY_TRACE_WAITS_H
#define FERRY_TRACE_WAITS_H

#include "trace/stats.h"

struct ferry_wait {
	uint32_t thread; /* 0: not known */
	uint64_t begin_ns, end_ns;
	const struct ferry_trace_record *rec; /* FAULT or JOIN */
	const struct ferry_split *split;      /* NULL for a JOIN */
};

struct ferry_waits {
	struct ferry_wait *v; /* owned; by thread, then by time */
	size_t n;
};

/*
 * A thread waits for one page at a time. Where its next wait seems to begin before the last ended
 * (it ran before our system call returned), the last is cut there. Unknown threads are not cut.
 * Errors: -ENOMEM.
 */
int ferry_waits_init(struct ferry_waits *w, const struct ferry_trace_log *log,
		     const struct ferry_stats *stats);
void ferry_waits_fini(struct ferry_waits *w);

#endif
