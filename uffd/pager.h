/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which pages are here, asked for, or known to be zero: the deciding part of the target side.
 * Pure: no IO, no clock, no kernel. tests/sim runs this very code on virtual time.
 *
 * For each page there are three bits:
 *   known  it is present, or the source said that it is zero: nothing need be sent for it
 *   zero   the source said that it is zero and it was not placed: a fault is answered from here
 *   asked  a thread waits for it and the source was asked
 * and one for pages that are missing for good, as the source of this epoch says:
 *   lost   it is not asked for again
 * and one for memory whose pages are placed by whoever has claimed them:
 *   claimed  a thread is placing it, or has
 *
 * Bits are shared by the fault loop and the bulk receivers without a lock: each first writes its
 * bit and then looks at the other's, so that a page that becomes known while a thread begins to
 * wait for it is always noticed by one of the two.
 */
#ifndef FERRY_UFFD_PAGER_H
#define FERRY_UFFD_PAGER_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/bitmap.h"
#include "protocol/message.h"

struct ferry_pager_region {
	uint64_t n_pages;
	struct ferry_bitmap known, zero, asked, lost, claimed;
};

struct ferry_pager {
	uint32_t n_regions;
	struct ferry_pager_region regions[FERRY_MAX_REGIONS];
	uint64_t pages_total;
	_Atomic uint64_t pages_known;
	/* A bit for each region that is filled in place: see in_place.c. */
	_Atomic uint64_t own_in_place, *in_place;
};

/* What to do about a fault. */
enum ferry_fault_verdict {
	FERRY_FAULT_ASK,     /* ask the source; the page is marked as asked for */
	FERRY_FAULT_ASKED,   /* it was asked for already: nothing to do */
	FERRY_FAULT_ZERO,    /* the source said that it is zero: place zeros */
	/*
	 * It was placed before. Mostly the message is older than the placement. If the page is
	 * missing all the same, the guest has discarded it since: placing zeros finds out, as it
	 * leaves a present page alone.
	 */
	FERRY_FAULT_PLACED,
};

/* @n_pages: of each region. Errors: -ENOMEM. */
int ferry_pager_init(struct ferry_pager *p, const struct ferry_layout *layout);
void ferry_pager_fini(struct ferry_pager *p);

/* Bytes that ferry_pager_keep() needs. */
size_t ferry_pager_kept_bytes(const struct ferry_layout *layout);

/**
 * ferry_pager_keep() - keep what is known in memory that outlives this process
 * @kept: ferry_pager_kept_bytes() of it, page-aligned; borrowed until _fini. All zero at first; of
 * an earlier life: what was known then is known now.
 * Nothing else has to be remembered: a page that is known was placed, or is zero. Which of the two
 * does not matter, since a fault on it (FERRY_FAULT_PLACED) is answered with zeros, and those leave
 * a page alone that is present. So a page that was discarded does not come back.
 * Right after _init.
 */
void ferry_pager_keep(struct ferry_pager *p, void *kept);

/*
 * A region is filled in place: that a page is in its memory does not say that it is whole. Kept
 * with what is known.
 */
void ferry_pager_set_in_place(struct ferry_pager *p, uint32_t region);
bool ferry_pager_is_in_place(const struct ferry_pager *p, uint32_t region);

/* Does @run lie inside the layout? Anything else from a peer is refused. */
bool ferry_pager_has(const struct ferry_pager *p, const struct ferry_run *run);

enum ferry_fault_verdict ferry_pager_fault(struct ferry_pager *p, uint32_t region, uint64_t page);

/* A run was placed, or found present. Return: how many of its pages were not known before. */
uint64_t ferry_pager_placed(struct ferry_pager *p, const struct ferry_run *run);

/**
 * ferry_pager_claim() - the right to place the first pages of a run, where that is not settled by
 * the kernel What was claimed and then placed stays claimed: nobody places it again. Return: how
 * many are claimed by this call, from the run's start on; 0 when another thread is placing the
 * first one, or somebody has made it known.
 */
uint32_t ferry_pager_claim(struct ferry_pager *p, const struct ferry_run *run);

/* Give claims back: of pages that could not be placed. */
void ferry_pager_unclaim(struct ferry_pager *p, const struct ferry_run *run);

/**
 * ferry_pager_said_zero() - the source says that a run is zero
 * Threads may wait for some of its pages: the caller calls ferry_pager_next_waiting() from the
 * run's start on afterwards, and places zeros there.
 * Return: how many of its pages were not known before.
 */
uint64_t ferry_pager_said_zero(struct ferry_pager *p, const struct ferry_run *run);

/*
 * The guest discarded a run (private anonymous memory): it is zero now, whatever the source has.
 * The same duty as for _said_zero. Return: how many of its pages were not known before.
 */
uint64_t ferry_pager_discarded(struct ferry_pager *p, const struct ferry_run *run);

/* The source can't have a run any more. Return: how many of its pages are new to that, and missing. */
uint64_t ferry_pager_lost(struct ferry_pager *p, const struct ferry_run *run);

/* Is a page of a run neither known nor lost? */
bool ferry_pager_is_missing(const struct ferry_pager *p, const struct ferry_run *run);

/* A new epoch: the source may have them again. */
void ferry_pager_forget_lost(struct ferry_pager *p);

/**
 * ferry_pager_next_waiting() - pages that were asked for and are said to be zero
 * @page: in: where to look from; out: the page found
 * @end:  where to stop
 */
bool ferry_pager_next_waiting(const struct ferry_pager *p, uint32_t region, uint64_t *page,
			      uint64_t end);

/**
 * ferry_pager_next_outstanding() - pages that were asked for and have not come
 * For asking again after a resume. @run: in: ->region and ->first_page say where to look from; out:
 * a run of at most @max_pages. The caller goes on behind it.
 */
bool ferry_pager_next_outstanding(const struct ferry_pager *p, struct ferry_run *run,
				  uint32_t max_pages);

/* The same for pages that are not known and not lost, asked for or not. */
bool ferry_pager_next_missing(const struct ferry_pager *p, struct ferry_run *run,
			      uint32_t max_pages);

/**
 * ferry_pager_residency() - how much of each part of the memory is known
 * @permille: @n_cells figures from 0 to 1000, of equal shares of all regions' pages, in their order
 * Of large shares only evenly spaced pieces are looked at, so that the cost has a bound. A share
 * that is not complete never has 1000 if that was seen.
 */
void ferry_pager_residency(const struct ferry_pager *p, uint16_t *permille, uint32_t n_cells);

static inline bool ferry_pager_is_complete(const struct ferry_pager *p)
{
	return atomic_load(&p->pages_known) == p->pages_total;
}

#endif
