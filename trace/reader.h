/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reading rings (ring.h), from this or another process, while they are written. A reader never
 * slows a producer; what it was too slow for is counted exactly: for each ring, what was read plus
 * what was lost is what was written.
 */
#ifndef FERRY_TRACE_READER_H
#define FERRY_TRACE_READER_H

#include "trace/ring.h"

struct ferry_trace_reader;

/**
 * ferry_trace_reader_open() - map the rings
 * @fd: of ferry_trace_fd(); borrowed until return. The memory is checked, not trusted.
 * Reading begins with the oldest records that are there; those overwritten before count as lost.
 * Errors: -EPROTO (REFUSE: not such memory, or of another version), -ENOMEM; in @f.
 */
int ferry_trace_reader_open(struct ferry_trace_reader **out, int fd, struct ferry_failure *f);
void ferry_trace_reader_close(struct ferry_trace_reader *r);

/* What the rings are about. Valid until _close; only constant fields, and ->has_names. */
const struct ferry_trace_header *ferry_trace_reader_header(const struct ferry_trace_reader *r);
uint32_t ferry_trace_reader_n_rings(const struct ferry_trace_reader *r);

/**
 * ferry_trace_reader_next() - one more record
 * In the order of a ring, ring after ring; not in the order of time over all.
 * @ring: its number
 * Return: false when there is nothing more at present.
 */
bool ferry_trace_reader_next(struct ferry_trace_reader *r, struct ferry_trace_record *rec,
			     uint32_t *ring);

/* How many records of @ring were overwritten before they were read. */
uint64_t ferry_trace_reader_lost(const struct ferry_trace_reader *r, uint32_t ring);

/* The producers are done: what _next gives from now on is all there will be. */
bool ferry_trace_reader_ended(const struct ferry_trace_reader *r);

#endif
