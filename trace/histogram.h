/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Latency histograms of constant size and cost: 32 linear buckets in each power of two, so that a
 * percentile is right within 3.2 %. Nanoseconds from 0 to about 18 minutes (2^40); more counts as that.
 */
#ifndef FERRY_TRACE_HISTOGRAM_H
#define FERRY_TRACE_HISTOGRAM_H

#include <stdatomic.h>
#include <stdint.h>

#define FERRY_HISTOGRAM_SUB_BITS 5
#define FERRY_HISTOGRAM_MAX_BITS 40
#define FERRY_HISTOGRAM_BUCKETS                                                                    \
	((FERRY_HISTOGRAM_MAX_BITS - FERRY_HISTOGRAM_SUB_BITS + 1) << FERRY_HISTOGRAM_SUB_BITS)

/* Zero-initialise. Any number of threads may add; a reader sees each counter at some moment. */
struct ferry_histogram {
	_Atomic uint64_t n;
	_Atomic uint64_t sum_ns;
	_Atomic uint64_t max_ns; /* exact */
	_Atomic uint32_t buckets[FERRY_HISTOGRAM_BUCKETS];
};

void ferry_histogram_add(struct ferry_histogram *h, uint64_t ns);

/**
 * ferry_histogram_percentile() - the value that @permille of the samples don't exceed
 * Nearest rank; the upper edge of its bucket, but never above the exact maximum.
 * Return: nanoseconds; 0 when there are no samples.
 */
uint64_t ferry_histogram_percentile(const struct ferry_histogram *h, unsigned int permille);

/*
 * How many samples are below @ns. Exact when that is a power of two from 32 on; else those that
 * share its bucket don't count.
 */
uint64_t ferry_histogram_count_below(const struct ferry_histogram *h, uint64_t ns);

/* Add all of @from's samples to @to. */
void ferry_histogram_merge(struct ferry_histogram *to, const struct ferry_histogram *from);

#endif
