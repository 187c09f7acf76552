/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What an attach leaves for the one that recovers it: one record for each process whose memory is
 * being filled, written before the process is touched.
 */
#ifndef FERRY_UFFD_ATTACH_RECORD_H
#define FERRY_UFFD_ATTACH_RECORD_H

#include "base/addr.h"
#include "base/keep.h"
#include "uffd/target.h"

struct ferry_attach_record {
	struct ferry_keep_head head; /* the process is the one that is filled */
	struct ferry_addr from;
	uint64_t memory_id; /* what the source calls its memory; 0: unknown */
	uint32_t n_bulk;
	struct ferry_session_id session; /* at the page server */
	uint32_t takeovers;		 /* of the session, by one attach after the other */
	uint32_t encrypted; /* not 0: so the connections were, and must be again */
	uint32_t n_regions;
	struct ferry_target_region regions[FERRY_MAX_REGIONS];
};

/**
 * ferry_attach_record_open() - the record of process @pid, from now on ours
 * @dir: NULL for the default, see base/keep.h
 * @out: what an earlier attach has left; ->n_regions is 0 when that is nothing
 * Errors: -EBUSY (REFUSE) when another attach is at work on it; -EBADMSG (REFUSE) when there may be
 *         one that can't be read; others: no record can be kept.
 */
int ferry_attach_record_open(struct ferry_keep *k, const char *dir, pid_t pid,
			     struct ferry_attach_record *out, struct ferry_failure *f);

/* The same without taking it. */
enum ferry_keep_state ferry_attach_record_peek(const char *dir, pid_t pid,
					       struct ferry_attach_record *out);

/**
 * ferry_attach_record_map() - what a target knows of each page, kept with the record
 * For ->kept of its config: a page that the process has discarded does not come back with the
 * source's content after we were killed. @fresh: nothing is known yet
 * Errors: negative errno. *@out is to be unmapped, *@bytes of it.
 */
int ferry_attach_record_map(const struct ferry_keep *k, const struct ferry_attach_record *r,
			    bool fresh, void **out, size_t *bytes);

#endif
