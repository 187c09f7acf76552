/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Trace files: a header and then records as the rings hold them, each with the number of its ring and
 * a checksum. docs/trace-format.md is the specification.
 */
#ifndef FERRY_TRACE_FILE_H
#define FERRY_TRACE_FILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "base/error.h"
#include "trace/ring.h"

#define FERRY_TRACE_FILE_MAGIC "PFRYTRCE"

struct ferry_trace_file_header {
	char magic[8];
	uint32_t version, endian;
	uint32_t header_bytes, entry_bytes;
	uint64_t start_ns;	    /* CLOCK_MONOTONIC, when the trace began */
	uint64_t start_realtime_ns; /* CLOCK_REALTIME, the same moment */
	uint32_t pid;		    /* whose memory it is */
	uint32_t n_regions;	    /* so many REGION records follow */
	uint64_t reserved;
};

struct ferry_trace_entry {
	uint32_t ring;	/* FERRY_TRACE_NO_RING: made by the recorder */
	uint32_t check; /* CRC-32 (IEEE 802.3) of ring and record */
	struct ferry_trace_record record;
};

#define FERRY_TRACE_NO_RING UINT32_MAX

_Static_assert(sizeof(struct ferry_trace_file_header) == 56, "files hold headers as they are");
_Static_assert(sizeof(struct ferry_trace_entry) == 128, "files hold entries as they are");

/* --- writing --------------------------------------------------------------------------------- */

struct ferry_trace_writer {
	FILE *file; /* owned */
	uint64_t n_records;
	int err; /* the first error; what comes after it is not written */
};

/**
 * ferry_trace_writer_open() - begin a file
 * @fd: of an empty file, to be written; given, on error too
 * Errors: negative errno (REFUSE) in @f.
 */
int ferry_trace_writer_open(struct ferry_trace_writer *w, int fd,
			    const struct ferry_trace_header *about, struct ferry_failure *f);

/* @ring: where it comes from */
void ferry_trace_writer_add(struct ferry_trace_writer *w, uint32_t ring,
			    const struct ferry_trace_record *rec);

/* Let what was written so far reach the file. */
void ferry_trace_writer_flush(struct ferry_trace_writer *w);

/* Mark it as whole and close. Errors: the first one that there was, in all. Twice is fine. */
int ferry_trace_writer_close(struct ferry_trace_writer *w);

/* --- reading --------------------------------------------------------------------------------- */

struct ferry_trace_records {
	struct ferry_trace_record *v; /* owned */
	size_t n, room;
};

/* A file in memory. Records whose numbers make no sense have been left out, and counted. */
struct ferry_trace_log {
	uint64_t start_ns, start_realtime_ns;
	uint64_t end_ns; /* the latest time that any record has; never before start_ns */
	uint32_t pid;
	uint32_t n_regions;
	struct ferry_trace_region regions[FERRY_TRACE_MAX_REGIONS];
	uint64_t pages_total;
	struct ferry_trace_records faults; /* by time of reading; no UNANSWERED ones */
	struct ferry_trace_records unanswered;
	struct ferry_trace_records joins;  /* by time; ->fault.placed_ns filled in where it is known */
	struct ferry_trace_records pushes, clocks, links, discards, marks; /* by time */
	struct ferry_trace_records threads; /* their names */
	uint64_t n_records;
	uint64_t n_lost;    /* overwritten before they were read */
	uint64_t n_ignored; /* unknown types, impossible values */
	bool is_whole;	    /* it has its end */
	char warning[160];  /* why it is not whole; else empty */
};

/**
 * ferry_trace_load() - read a file
 * Of a file that was cut or damaged the part before is given, with ->warning set.
 * Errors: negative errno (REFUSE), -EPROTO for what is no trace file, or one of another version or
 *         byte order; in @f, which says what is wrong.
 */
int ferry_trace_load(struct ferry_trace_log *out, const char *path, struct ferry_failure *f);
void ferry_trace_log_fini(struct ferry_trace_log *log);

/* The name of a thread, or NULL. */
const char *ferry_trace_thread_name(const struct ferry_trace_log *log, uint32_t thread);

/* The name of a region, or "region N" put together in @room. */
const char *ferry_trace_region_name(const struct ferry_trace_log *log, uint32_t region, char *room,
				    size_t size);

/* @n bytes more of a CRC-32; begin with 0. */
uint32_t ferry_trace_crc32(uint32_t crc, const void *data, size_t n);

#endif
