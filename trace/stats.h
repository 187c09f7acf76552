/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What many records say together. Two ways to the same figures:
 *   - struct ferry_stats: exact, from a file in memory;
 *   - struct ferry_live_stats: of constant size, by histograms, to follow a trace as it is written.
 */
#ifndef FERRY_TRACE_STATS_H
#define FERRY_TRACE_STATS_H

#include "trace/histogram.h"
#include "trace/stages.h"

/* --- exact ------------------------------------------------------------------------------------ */

struct ferry_series {
	uint64_t *v; /* owned */
	size_t n, room;
	bool is_sorted;
};

/* Errors: -ENOMEM. */
int ferry_series_add(struct ferry_series *s, uint64_t ns);
void ferry_series_fini(struct ferry_series *s);

/* Nearest rank, as ferry_histogram_percentile(), but exact. Sorts. 0 when it is empty. */
uint64_t ferry_series_percentile(struct ferry_series *s, unsigned int permille);
uint64_t ferry_series_mean(const struct ferry_series *s);

/* What is waited for by one thread, or in one region. */
struct ferry_stats_group {
	uint32_t id;		  /* thread or region */
	struct ferry_series wait; /* of every message */
};

struct ferry_stats_groups {
	struct ferry_stats_group *v; /* owned; by id */
	size_t n, room;
};

struct ferry_stats {
	struct ferry_series total;  /* faults that went to the source, first message to woken */
	struct ferry_series waits;  /* every message, also those that joined and local ones */
	struct ferry_series stages[FERRY_N_SPANS];
	struct ferry_series net;    /* out and back together: exact */
	struct ferry_series busy;   /* upper bounds of the time before the read: see record.h */
	struct ferry_series woken;  /* waits for a CPU after the wake-up, sampled */
	struct ferry_stats_groups threads, regions;
	struct ferry_split *splits; /* owned; of each of the log's faults, in its order */

	uint64_t n_messages, n_joined, n_writes;
	uint64_t n_local, n_pushed, n_found, n_resent, n_swept, n_discarded, n_zero;
	uint64_t n_clamped;	    /* splits in which a direction would have been negative */
	uint64_t n_beyond;	    /* of them: by more than the uncertainty */
	uint64_t max_clamped_ns, max_uncertainty_ns;
	uint64_t max_batch, max_outstanding;
	/* What the push did. A present page does not fault, so that its use can't be seen. */
	uint64_t pages_present, pages_swept; /* there before; asked for at the end, unwaited for */
	uint64_t n_runs, pages_pushed, pages_said_zero, pages_in_vain, pages_overtaken;
};

/* Errors: -ENOMEM. */
int ferry_stats_init(struct ferry_stats *s, const struct ferry_trace_log *log);
void ferry_stats_fini(struct ferry_stats *s);

/* The @n slowest of the log's faults, slowest first, as indices. Return: how many. */
size_t ferry_stats_slowest(const struct ferry_stats *s, const struct ferry_trace_log *log,
			   size_t *idx, size_t n);

/* --- live ------------------------------------------------------------------------------------- */

struct ferry_live_stats {
	struct ferry_histogram total, stages[FERRY_N_SPANS];
	struct ferry_clock_bounds clock;
	uint64_t n_faults, n_joined, n_local, n_pushed, n_resent;
	uint64_t pages_answered, pages_pushed, pages_said_zero, pages_in_vain;
};

/* One record, in whatever order the rings give them. Zero-initialise the rest. */
void ferry_live_stats_add(struct ferry_live_stats *s, const struct ferry_trace_record *rec);

#endif
