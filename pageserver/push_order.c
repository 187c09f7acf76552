/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Adaptive pre-paging with several pivots, after Hines and Gopalan's bubbles.
 *
 *  1. A fault leaves a hint in a small ring; the next _next turns it into a pivot. A fault close to
 *     a pivot moves that pivot, so that one thread walking through memory is one pivot.
 *  2. Pivots take turns. A pivot's bubble grows by one run a turn: ahead of the fault, then behind,
 *     a short run first and twice as long each time. So a new fault's neighbours are on their way
 *     after one short run of each other pivot, and an old pivot costs few long ones.
 *  3. A bubble that reached its full size, or has nothing left inside, ends. With no pivot left,
 *     a sweep takes the rest in order.
 *
 * Nothing is searched twice: a bubble remembers both edges, and the sweep its place. What the
 * bubbles took is skipped a bitmap word at a time.
 */
#include "pageserver/push_order.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "base/util.h"

#define N_PIVOTS 8
#define N_HINTS	 64 /* power of two; a burst of more overwrites the oldest */

#define FIRST_RUN_BYTES (16 * FERRY_KIB)
#define NEAR_BYTES	(8 * FERRY_MIB) /* to each side; what is farther is not likely to be next */
/* A fault this close to a pivot is the same thread going on. */
#define SAME_BYTES (256 * FERRY_KIB)

struct pivot {
	uint32_t region;
	uint32_t run_bytes; /* of the next run; 0: no pivot here */
	uint64_t fault;	    /* page */
	uint64_t low, high; /* the bubble so far: [low, high) */
	bool behind;	    /* the next run goes behind the fault */
};

struct ferry_push_order {
	struct ferry_layout layout;
	struct ferry_bitmap *sent;     /* borrowed */
	struct pivot pivots[N_PIVOTS]; /* newest first */
	unsigned int turn;
	uint32_t sweep_region;
	uint64_t sweep_page;

	_Atomic uint32_t hint_head;	 /* hints ever left */
	uint32_t hint_tail;		 /* hints taken */
	_Atomic uint64_t hints[N_HINTS]; /* pack()ed; 0 for none */
};

static uint64_t pack(uint32_t region, uint64_t page)
{
	return (uint64_t)(region + 1) << 40 | page;
}

int ferry_push_order_new(struct ferry_push_order **out, const struct ferry_layout *layout,
			 struct ferry_bitmap *sent)
{
	struct ferry_push_order *o = calloc(1, sizeof(*o));

	if (!o)
		return -ENOMEM;
	o->layout = *layout;
	o->sent = sent;
	*out = o;
	return 0;
}

void ferry_push_order_free(struct ferry_push_order *o)
{
	free(o);
}

void ferry_push_order_fault(struct ferry_push_order *o, uint32_t region, uint64_t page)
{
	uint32_t i = atomic_fetch_add_explicit(&o->hint_head, 1, memory_order_relaxed);

	atomic_store_explicit(&o->hints[i % N_HINTS], pack(region, page), memory_order_relaxed);
}

static uint64_t pages_of(const struct ferry_push_order *o, uint32_t region, uint64_t bytes)
{
	uint64_t n = bytes / o->layout.regions[region].page_bytes;

	return n ? n : 1;
}

/* Moves the pivots before @i one place down and puts @p first. */
static void put_first(struct ferry_push_order *o, unsigned int i, struct pivot p)
{
	for (; i; i--)
		o->pivots[i] = o->pivots[i - 1];
	o->pivots[0] = p;
	o->turn = 0;
}

static void take_hint(struct ferry_push_order *o, uint32_t region, uint64_t page)
{
	uint64_t same = pages_of(o, region, SAME_BYTES);
	struct pivot p = {.region = region,
			  .run_bytes = FIRST_RUN_BYTES,
			  .fault = page,
			  .low = page,
			  .high = page};
	unsigned int i;

	for (i = 0; i < N_PIVOTS - 1; i++) {
		const struct pivot *q = &o->pivots[i];

		if (!q->run_bytes)
			break;
		if (q->region != region || page + same < q->low || page >= q->high + same)
			continue;
		/* Runs stay as long as they were: it is a known place. Its edges are looked for
		 * again, which is cheap, and centres the bubble on where the thread is now. */
		p.run_bytes = q->run_bytes;
		break;
	}
	put_first(o, i, p);
}

static void take_hints(struct ferry_push_order *o)
{
	uint32_t head = atomic_load_explicit(&o->hint_head, memory_order_relaxed);

	if (head - o->hint_tail > N_HINTS)
		o->hint_tail = head - N_HINTS;
	for (; o->hint_tail != head; o->hint_tail++) {
		uint64_t h = atomic_exchange_explicit(&o->hints[o->hint_tail % N_HINTS], 0,
						      memory_order_relaxed);

		/* 0: its writer is between two steps. A hint may be lost. */
		if (h)
			take_hint(o, (uint32_t)(h >> 40) - 1, h & ((UINT64_C(1) << 40) - 1));
	}
}

static bool claim(struct ferry_push_order *o, uint32_t region, uint64_t first, uint64_t end,
		  struct ferry_run *run)
{
	ferry_bitmap_set_range(&o->sent[region], first, end - first);
	*run = (struct ferry_run){
		.region = region, .first_page = first, .n_pages = (uint32_t)(end - first)};
	return true;
}

static bool take_ahead(struct ferry_push_order *o, struct pivot *p, uint64_t n,
		       struct ferry_run *run)
{
	const struct ferry_bitmap *sent = &o->sent[p->region];
	uint64_t limit = p->fault + pages_of(o, p->region, NEAR_BYTES);
	size_t first, to;

	limit = FERRY_MIN(limit, o->layout.regions[p->region].n_pages);
	if (p->high >= limit)
		return false;
	first = ferry_bitmap_next_clear_run(sent, p->high, limit, n, &to);
	p->high = to;
	return first < limit && claim(o, p->region, first, to, run);
}

static bool take_behind(struct ferry_push_order *o, struct pivot *p, uint64_t n,
			struct ferry_run *run)
{
	const struct ferry_bitmap *sent = &o->sent[p->region];
	uint64_t near = pages_of(o, p->region, NEAR_BYTES);
	uint64_t limit = p->fault > near ? p->fault - near : 0, first, end, set;
	size_t last = ferry_bitmap_prev_clear(sent, p->low, limit);

	if (last == SIZE_MAX) {
		p->low = FERRY_MIN(p->low, limit);
		return false;
	}
	end = last + 1;
	first = end > limit + n ? end - n : limit;
	while ((set = ferry_bitmap_next_set(sent, first, last)) < last)
		first = set + 1;
	p->low = first;
	return claim(o, p->region, first, end, run);
}

/* One run of a pivot's bubble. */
static bool take_near(struct ferry_push_order *o, struct pivot *p, uint32_t max_bytes,
		      struct ferry_run *run)
{
	uint64_t n = pages_of(o, p->region, FERRY_MIN(p->run_bytes, max_bytes));
	bool behind = p->behind;

	p->behind = !behind;
	if (!(behind ? take_behind(o, p, n, run) : take_ahead(o, p, n, run)) &&
	    !(behind ? take_ahead(o, p, n, run) : take_behind(o, p, n, run)))
		return false;
	if (p->run_bytes < FERRY_MAX_RUN_BYTES)
		p->run_bytes *= 2;
	return true;
}

static void drop_pivot(struct ferry_push_order *o, unsigned int i)
{
	for (; i + 1 < N_PIVOTS; i++)
		o->pivots[i] = o->pivots[i + 1];
	o->pivots[N_PIVOTS - 1] = (struct pivot){0};
}

static bool take_pivots(struct ferry_push_order *o, uint32_t max_bytes, struct ferry_run *run)
{
	while (o->pivots[0].run_bytes) {
		if (o->turn >= N_PIVOTS || !o->pivots[o->turn].run_bytes)
			o->turn = 0;
		if (take_near(o, &o->pivots[o->turn], max_bytes, run)) {
			o->turn++;
			return true;
		}
		drop_pivot(o, o->turn);
	}
	return false;
}

static bool take_sweep(struct ferry_push_order *o, uint32_t max_bytes, struct ferry_run *run)
{
	for (; o->sweep_region < o->layout.n_regions; o->sweep_region++, o->sweep_page = 0) {
		const struct ferry_bitmap *sent = &o->sent[o->sweep_region];
		uint64_t n_pages = o->layout.regions[o->sweep_region].n_pages;
		uint64_t n = pages_of(o, o->sweep_region, max_bytes);
		uint64_t first = ferry_bitmap_next_clear(sent, o->sweep_page, n_pages);

		/* To the next boundary, so that all that follow are whole. */
		first = ferry_bitmap_next_clear_run(sent, first, n_pages, n - first % n,
						    &o->sweep_page);
		if (first < n_pages)
			return claim(o, o->sweep_region, first, o->sweep_page, run);
	}
	return false;
}

bool ferry_push_order_next(struct ferry_push_order *o, uint32_t max_bytes, struct ferry_run *run)
{
	take_hints(o);
	return take_pivots(o, max_bytes, run) || take_sweep(o, max_bytes, run);
}
