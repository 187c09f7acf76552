/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The opening of a target's work. A guest that has just been switched over, or woken, touches page after
 * page, each waiting for the one before, until it has done the first thing that anybody sees. That takes
 * some hundred faults, and many times as long beside a push, which has the same link and processors. So
 * the push is silent meanwhile.
 *
 * An opening begins with a request after a time without any, and ends when no more come, or after
 * ->max_ns: no target can hold its push for good.
 *
 * One thread tells of requests, another one may look.
 */
#ifndef FERRY_PAGESERVER_OPENING_H
#define FERRY_PAGESERVER_OPENING_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/clock.h"

#define FERRY_OPENING_MS      25			  /* the longest, where nothing else is said */
#define FERRY_OPENING_QUIET   6			  /* this part of it without a request: it is over */
#define FERRY_OPENING_IDLE_NS (250 * FERRY_NS_PER_MS) /* without one before it */

struct ferry_opening {
	uint64_t max_ns;
	/* 0: there was no request yet */
	_Atomic uint64_t begin_ns, last_ns;
};

/* A request has come. */
static inline void ferry_opening_asked(struct ferry_opening *o, uint64_t now)
{
	uint64_t last = atomic_load_explicit(&o->last_ns, memory_order_relaxed);

	atomic_store_explicit(&o->last_ns, now, memory_order_relaxed);
	if (!last || now > last + FERRY_OPENING_IDLE_NS)
		atomic_store_explicit(&o->begin_ns, now, memory_order_relaxed);
}

static inline bool ferry_opening_lasts(const struct ferry_opening *o, uint64_t now)
{
	uint64_t begin = atomic_load_explicit(&o->begin_ns, memory_order_relaxed);
	uint64_t last = atomic_load_explicit(&o->last_ns, memory_order_relaxed);

	return begin && now < begin + o->max_ns && now < last + o->max_ns / FERRY_OPENING_QUIET;
}

#endif
