/* SPDX-License-Identifier: Apache-2.0 */
#include "pageserver/bucket.h"

#include "base/clock.h"
#include "base/util.h"

/* A longer pause gives no more bytes than this; nor is a longer one asked for. */
#define LONGEST_NS FERRY_NS_PER_S
/* More than any link has; what follows has no overflow up to there. */
#define MOST_RATE (1ull << 50)

void ferry_bucket_take(struct ferry_bucket *b, uint64_t bytes)
{
	b->bytes -= (int64_t)bytes;
}

uint64_t ferry_bucket_fill(struct ferry_bucket *b, uint64_t rate, uint32_t most, uint64_t now_ns)
{
	uint64_t elapsed = now_ns - b->at_ns;
	double more, wait_s;

	b->at_ns = now_ns;
	if (!rate) {
		b->bytes = 0;
		b->rest = 0;
		return 0;
	}
	rate = FERRY_MIN(rate, MOST_RATE);
	elapsed = FERRY_MIN(elapsed, (uint64_t)LONGEST_NS);
	more = (double)rate * (double)elapsed / (double)FERRY_NS_PER_S + b->rest;
	b->rest = more - (double)(int64_t)more;
	b->bytes = FERRY_MIN(b->bytes + (int64_t)more, (int64_t)most);
	if (b->bytes > 0)
		return 0;
	wait_s = (1.0 - (double)b->bytes - b->rest) / (double)rate;
	return wait_s < 1 ? (uint64_t)(wait_s * (double)FERRY_NS_PER_S) + 1 : LONGEST_NS;
}
