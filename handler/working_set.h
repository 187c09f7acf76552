/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The working set of a guest that starts: the pages of its snapshot that it touched when it was
 * restored before, in coarse order of time. Pure.
 *
 * The file is text, so that it can be looked at and merged by hand:
 *   pageferry-working-set 2 BYTES RECORDINGS
 *   PHASE OFFSET LENGTH COUNT      (for each run; of bytes in the snapshot; whole 4 KiB pages)
 *   end
 * Without its end it is cut short, and not taken. Version 1 had none, so that nobody could tell.
 * Phases are in order of time, each of 256 pages at most in one recording; inside of a phase runs
 * are in order of address. COUNT: how many of the recordings had the run.
 */
#ifndef FERRY_HANDLER_WORKING_SET_H
#define FERRY_HANDLER_WORKING_SET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

struct ferry_working_set {
	uint64_t n_pages;	 /* of the snapshot, 4 KiB each */
	uint32_t n_recordings;	 /* that were put together; at most 65535 */
	uint16_t *phase, *count; /* owned; of each page; count 0: not in the set */
};

/* @bytes: of the snapshot, up to 1 TiB. Errors: -EFBIG, -ENOMEM. */
int ferry_working_set_init(struct ferry_working_set *w, uint64_t bytes);
void ferry_working_set_fini(struct ferry_working_set *w);

/* Pages in the set. */
uint64_t ferry_working_set_size(const struct ferry_working_set *w);

/*
 * Add a recording: @pages are numbers of pages in the order in which they were touched. A page that
 * several recordings have is as early as in the earliest. Pages outside of the snapshot are left
 * out.
 */
void ferry_working_set_add(struct ferry_working_set *w, const uint64_t *pages, size_t n);

/* A run of pages of one phase, with equal counts. */
struct ferry_working_run {
	uint64_t first_page, n_pages;
	uint32_t phase, count;
};

/*
 * All runs, in order of phase, then of address. @out: owned by the caller after success.
 * Errors: -ENOMEM.
 */
int ferry_working_set_runs(const struct ferry_working_set *w, struct ferry_working_run **out,
			   size_t *n);

/* As text. @out: owned by the caller after success. Errors: -ENOMEM. */
int ferry_working_set_print(const struct ferry_working_set *w, char **out, size_t *len);

/**
 * ferry_working_set_parse() - add what a file has
 * @w: of the snapshot's size
 * Errors: -EBADMSG (REFUSE) in @f, with the line: no working set, another snapshot's, runs outside
 * of it, no end. @w is then to be given up.
 */
int ferry_working_set_parse(struct ferry_working_set *w, const char *text, size_t len,
			    struct ferry_failure *f);

#endif
