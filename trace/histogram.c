/* SPDX-License-Identifier: Apache-2.0 */
#include "trace/histogram.h"

#define SUB (1u << FERRY_HISTOGRAM_SUB_BITS)

static unsigned int bucket_of(uint64_t ns)
{
	unsigned int exponent;

	if (ns >= UINT64_C(1) << FERRY_HISTOGRAM_MAX_BITS)
		return FERRY_HISTOGRAM_BUCKETS - 1;
	if (ns < SUB)
		return (unsigned int)ns;
	exponent = 63u - (unsigned int)__builtin_clzll(ns);
	return ((exponent - FERRY_HISTOGRAM_SUB_BITS + 1) << FERRY_HISTOGRAM_SUB_BITS) +
	       (unsigned int)(ns >> (exponent - FERRY_HISTOGRAM_SUB_BITS) & (SUB - 1));
}

/* The largest value that falls into a bucket. */
static uint64_t upper_edge(unsigned int bucket)
{
	unsigned int group = bucket >> FERRY_HISTOGRAM_SUB_BITS;
	unsigned int shift = group ? group - 1 : 0;
	uint64_t base = group ? SUB + (bucket & (SUB - 1)) : bucket;

	return ((base + 1) << shift) - 1;
}

void ferry_histogram_add(struct ferry_histogram *h, uint64_t ns)
{
	uint64_t max = atomic_load_explicit(&h->max_ns, memory_order_relaxed);

	atomic_fetch_add_explicit(&h->buckets[bucket_of(ns)], 1, memory_order_relaxed);
	atomic_fetch_add_explicit(&h->sum_ns, ns, memory_order_relaxed);
	while (ns > max && !atomic_compare_exchange_weak_explicit(&h->max_ns, &max, ns,
								  memory_order_relaxed,
								  memory_order_relaxed))
		;
	atomic_fetch_add_explicit(&h->n, 1, memory_order_release);
}

uint64_t ferry_histogram_percentile(const struct ferry_histogram *h, unsigned int permille)
{
	uint64_t n = atomic_load_explicit(&h->n, memory_order_acquire);
	uint64_t max = atomic_load_explicit(&h->max_ns, memory_order_relaxed);
	uint64_t rank = (n * permille + 999) / 1000, seen = 0;

	if (!n)
		return 0;
	if (!rank)
		rank = 1;
	for (unsigned int b = 0; b < FERRY_HISTOGRAM_BUCKETS; b++) {
		seen += atomic_load_explicit(&h->buckets[b], memory_order_relaxed);
		if (seen >= rank)
			return upper_edge(b) < max ? upper_edge(b) : max;
	}
	return max;
}

uint64_t ferry_histogram_count_below(const struct ferry_histogram *h, uint64_t ns)
{
	uint64_t n = 0;

	for (unsigned int b = 0; b < FERRY_HISTOGRAM_BUCKETS && upper_edge(b) < ns; b++)
		n += atomic_load_explicit(&h->buckets[b], memory_order_relaxed);
	return n;
}

void ferry_histogram_merge(struct ferry_histogram *to, const struct ferry_histogram *from)
{
	uint64_t max = atomic_load(&from->max_ns), have = atomic_load(&to->max_ns);

	for (unsigned int b = 0; b < FERRY_HISTOGRAM_BUCKETS; b++)
		atomic_fetch_add(&to->buckets[b], atomic_load(&from->buckets[b]));
	atomic_fetch_add(&to->sum_ns, atomic_load(&from->sum_ns));
	atomic_fetch_add(&to->n, atomic_load(&from->n));
	while (max > have && !atomic_compare_exchange_weak(&to->max_ns, &have, max))
		;
}
