/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Lines to a descriptor that never hold up the writer: a pipe whose reader sleeps, or a terminal
 * that was stopped with Ctrl-S, must not stop a switchover. What can't be written at once is kept,
 * up to a bound, and written at the next call.
 */
#ifndef FERRY_TOOLS_WRITER_H
#define FERRY_TOOLS_WRITER_H

#include <stdbool.h>
#include <stddef.h>

#define WRITER_ROOM (64 * 1024)

struct writer {
	int fd; /* borrowed */
	size_t used;
	char kept[WRITER_ROOM];
};

void writer_init(struct writer *w, int fd);

/**
 * writer_put() - write, or keep for later
 * @is_optional: dropped when it can't be written at once (a newer one follows)
 * What no longer fits is dropped whole.
 */
void writer_put(struct writer *w, const char *text, size_t len, bool is_optional);

/* Wait until everything is written, the reader is gone, or @stop_fd (-1: none) is readable. */
void writer_finish(struct writer *w, int stop_fd);

#endif
