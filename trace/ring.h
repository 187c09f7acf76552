/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Rings of records in shared memory (a memfd): one a producing thread, so that no producer waits for
 * anyone. The oldest records are overwritten. Any number of readers map the memory read-only; they
 * notice by a number in each slot what they were too slow for, and count it.
 *
 *   0                    header: struct ferry_trace_header
 *   rings[i].offset      n_slots slots of ring i, 128 bytes each: number, record
 *
 * Record n of a ring (n from 0) goes to slot n % n_slots. The slot's number is 2n + 1 while it is
 * being written and 2n + 2 afterwards.
 *
 * Threads: each ring is written by one thread at a time; who hands a ring on does so by ending or
 * starting a thread. Everything here is constant-time and free of system calls, except _new and
 * _free.
 */
#ifndef FERRY_TRACE_RING_H
#define FERRY_TRACE_RING_H

#include <stdatomic.h>
#include <stdbool.h>
#include <sys/types.h>

#include "base/error.h"
#include "trace/record.h"

#define FERRY_TRACE_RING_MAGIC "PFRYRING"
#define FERRY_TRACE_MAX_RINGS  32u
#define FERRY_TRACE_HEADER_BYTES 16384u

/* Who writes a ring. */
enum ferry_trace_ring_kind {
	FERRY_RING_OWNER = 1, /* the command: marks */
	FERRY_RING_SESSION = 2,
	FERRY_RING_FAULT = 3,
	FERRY_RING_BULK = 4, /* one a bulk connection */
};

struct ferry_trace_slot {
	_Atomic uint64_t number;
	_Atomic uint64_t words[FERRY_TRACE_RECORD_BYTES / 8];
};

struct ferry_trace_ring_desc {
	uint32_t kind;	 /* enum ferry_trace_ring_kind */
	uint32_t index;	 /* among those of its kind */
	uint64_t offset; /* of its first slot, bytes */
	uint64_t n_slots;
	uint64_t reserved[5];
	_Atomic uint64_t head; /* records ever written; in a cache line of its own */
	uint64_t reserved2[7];
};

struct ferry_trace_header {
	char magic[8];
	uint32_t version, endian;
	uint32_t header_bytes, slot_bytes, record_bytes, n_rings;
	uint32_t pid; /* whose memory it is */
	uint32_t n_regions;
	uint64_t start_ns;	    /* CLOCK_MONOTONIC, when the trace began */
	uint64_t start_realtime_ns; /* CLOCK_REALTIME, the same moment */
	_Atomic uint32_t ended;	    /* 1: nothing more will come */
	_Atomic uint32_t has_names; /* 1: the regions' names are complete */
	uint64_t reserved[6];
	struct ferry_trace_region regions[FERRY_TRACE_MAX_REGIONS];
	struct ferry_trace_ring_desc rings[FERRY_TRACE_MAX_RINGS] __attribute__((aligned(64)));
};

_Static_assert(sizeof(struct ferry_trace_header) <= FERRY_TRACE_HEADER_BYTES, "header");
_Static_assert(sizeof(struct ferry_trace_slot) == 128, "a slot is two cache lines");
_Static_assert(sizeof(struct ferry_trace_ring_desc) == 128, "a ring's head is alone in its line");

struct ferry_trace;
struct ferry_trace_ring;

struct ferry_trace_ring_config {
	enum ferry_trace_ring_kind kind;
	uint32_t index;
	uint32_t n_slots; /* at least 1 */
	bool populate;	  /* have all of its memory at once, so that its producer never faults */
};

struct ferry_trace_config {
	const struct ferry_trace_ring_config *rings;
	uint32_t n_rings;
	const struct ferry_trace_region *regions; /* names may be empty as yet */
	uint32_t n_regions;
	pid_t pid;
};

/* Errors: -ENOMEM, -ENOSYS, -EINVAL (REFUSE); in @f. */
int ferry_trace_new(struct ferry_trace **out, const struct ferry_trace_config *config,
		    struct ferry_failure *f);

/* Tells readers that it is over. They keep the memory as long as they want. NULL is fine. */
void ferry_trace_free(struct ferry_trace *t);

/*
 * For readers: a descriptor of the memory that can only be read; a new one, owned by the caller.
 * Errors: negative errno.
 */
int ferry_trace_fd(const struct ferry_trace *t);

/* The ring of a producer. Borrowed until _free. @t may be NULL, or have no such ring: then NULL. */
struct ferry_trace_ring *ferry_trace_ring(struct ferry_trace *t, enum ferry_trace_ring_kind kind,
					  uint32_t index);

/* Write one record. @r may be NULL: then nothing is traced. */
void ferry_trace_emit(struct ferry_trace_ring *r, const struct ferry_trace_record *rec);

/* A MARK by the owner's thread. @t may be NULL. Longer texts are cut. */
void ferry_trace_mark(struct ferry_trace *t, const char *text);

/* The regions' names, once, when they are known. @t may be NULL. */
void ferry_trace_name_regions(struct ferry_trace *t, const char *(*name)(const void *ctx, uint32_t i),
			      const void *ctx);

#endif
