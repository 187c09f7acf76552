/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The comparison of a whole memory with its source: what was placed, and what the source has.
 *
 *  1. When a page is placed, its digest is taken from the bytes that go into it (ferry_verify_note()).
 *     So it does not matter that the guest writes to it from then on.
 *  2. When everything is known, the source is asked for its own digests, read anew, of some hundred
 *     pages each (ferry_verify_next()), and the same are made here (ferry_verify_take()).
 *  3. Where they differ, page by page.
 *  4. If the memory's process has not run since before the first page came, what is in its memory is
 *     compared as well (ferry_verify_page()): that finds what happened to a page after it was placed.
 *
 * What can't be told is counted as unknown, and never as verified: pages that were there before, that
 * an earlier process had placed, that the guest has discarded before they came, or that are lost.
 *
 * Pure: no IO, no clock. Notes may be taken by any thread, also of the same page at once; the rest
 * is one thread's, later. Takes 8 bytes for each page with content, of address space for all.
 */
#ifndef FERRY_UFFD_VERIFY_H
#define FERRY_UFFD_VERIFY_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/bitmap.h"
#include "protocol/message.h"

/* As many runs of wrong pages are named; the others are counted. */
#define FERRY_VERIFY_RUNS 16u

struct ferry_verified {
	bool wanted, done;
	uint64_t pages;	    /* as the source has them */
	uint64_t read_back; /* of them: also found so in the memory afterwards */
	uint64_t unknown;
	uint64_t wrong;
	uint32_t n_runs;
	struct ferry_run runs[FERRY_VERIFY_RUNS]; /* the first wrong ones */
};

struct ferry_verify_region {
	uint64_t n_pages;
	uint32_t page_bytes;
	_Atomic uint64_t *digests; /* owned; of pages in ->data */
	struct ferry_bitmap data;  /* came with content */
	struct ferry_bitmap zero;  /* are said to be zero */
	struct ferry_bitmap twice; /* came twice, with different contents */
};

struct ferry_verify {
	uint32_t n_regions;
	struct ferry_verify_region regions[FERRY_MAX_REGIONS];
	_Atomic bool exact; /* ask for no page that did not come: the source may have lost it */
	/* where _next goes on */
	uint32_t region;
	uint64_t page;
	struct ferry_digest_range asked;
	bool asking; /* ->asked has not been answered */
	uint64_t suspects[FERRY_MAX_DIGESTS]; /* first pages, in asked.region */
	uint32_t n_suspects, next_suspect, pages_each;
	uint64_t suspects_end;
	struct ferry_verified result;
};

/* Errors: -ENOMEM. */
int ferry_verify_init(struct ferry_verify *v, const struct ferry_layout *layout);
void ferry_verify_fini(struct ferry_verify *v);

/* A run is being placed. @data: its bytes, NULL for zeros; pages that are set in @known came before
 * and are passed over. Any thread. */
void ferry_verify_note(struct ferry_verify *v, const struct ferry_run *run, const void *data,
		       const struct ferry_bitmap *known);

/* Some pages are lost. Any thread. */
void ferry_verify_lost(struct ferry_verify *v);

/* What to ask the source next. Return: false at the end: ->result is complete. */
bool ferry_verify_next(struct ferry_verify *v, struct ferry_digest_range *out);

/**
 * ferry_verify_take() - the answer to the last _next
 * @digests: little-endian; ferry_digest_count() of them
 * Errors: -EPROTO: it answers something else.
 */
int ferry_verify_take(struct ferry_verify *v, const struct ferry_digest_range *range,
		      const uint8_t *digests);

/* The next run of pages that came with content, at or after @page; at most @max. */
bool ferry_verify_next_data(const struct ferry_verify *v, uint32_t region, uint64_t page, uint32_t max,
			    struct ferry_run *out);

/* A page of such a run, as it is in the memory now. */
void ferry_verify_page(struct ferry_verify *v, uint32_t region, uint64_t page, const void *data);

#endif
