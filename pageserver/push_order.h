/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The order of the pre-push: adaptive pre-paging. Each of the latest faults is a pivot around which
 * pages are likely to be wanted next; runs are taken around the pivots in turn, the newest first
 * and farther out each time, and from a sweep over the rest when no pivot has anything left near.
 * Pure: no IO, no clock. One thread calls _next; _fault may come from another thread.
 */
#ifndef FERRY_PAGESERVER_PUSH_ORDER_H
#define FERRY_PAGESERVER_PUSH_ORDER_H

#include <stdbool.h>
#include <stdint.h>

#include "base/bitmap.h"
#include "protocol/message.h"

struct ferry_push_order;

/*
 * @layout: copied. @sent: one bitmap a region, borrowed for the order's life: a set bit means that
 * the page was sent (or the target has it), and is never proposed.
 * Errors: -ENOMEM.
 */
int ferry_push_order_new(struct ferry_push_order **out, const struct ferry_layout *layout,
			 struct ferry_bitmap *sent);
void ferry_push_order_free(struct ferry_push_order *o);

/* The target asked for a page: bend the order toward it. Wait-free; any thread. */
void ferry_push_order_fault(struct ferry_push_order *o, uint32_t region, uint64_t page);

/**
 * ferry_push_order_next() - the next run to send
 * @max_bytes: a run is never longer, but at least one page
 * Claims the run: its bits in @sent are set, so that nobody sends it again.
 * Return: true with @run, false when every page is sent or claimed.
 */
bool ferry_push_order_next(struct ferry_push_order *o, uint32_t max_bytes, struct ferry_run *run);

#endif
