/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From rings to a file, while the command runs: by a thread of the same process (--trace FILE), or
 * by another process (trace record).
 */
#ifndef FERRY_TRACE_RECORDER_H
#define FERRY_TRACE_RECORDER_H

#include "trace/file.h"
#include "trace/reader.h"

struct ferry_recorder;

/**
 * ferry_recorder_open() - begin a file, and map the rings
 * @file_fd: the empty file, to be written; given, on error too
 * @fd:      of ferry_trace_fd(); borrowed until return
 * Errors: REFUSE, in @f.
 */
int ferry_recorder_open(struct ferry_recorder **out, int file_fd, int fd,
			struct ferry_failure *f);

/**
 * ferry_recorder_run() - copy records until the producers are done
 * @stop_fds: end it as well when they become readable; -1 for none
 * @timeout_ms: ends it; -1 for never
 * The file is flushed now and then, so that what a killed recorder leaves can be read.
 */
void ferry_recorder_run(struct ferry_recorder *r, const int *stop_fds, unsigned int n_stop_fds,
			int64_t timeout_ms);

/* ferry_recorder_run() in a thread of its own, until _stop. */
int ferry_recorder_start(struct ferry_recorder *r, struct ferry_failure *f);
void ferry_recorder_stop(struct ferry_recorder *r);

/*
 * Take what is left and close the file. What was written, and what was lost, is put out in @n_records
 * and @n_lost; both may be NULL. Errors: the first one that there was in writing, in @f.
 */
int ferry_recorder_close(struct ferry_recorder *r, uint64_t *n_records, uint64_t *n_lost,
			 struct ferry_failure *f);

#endif
