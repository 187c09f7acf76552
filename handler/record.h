/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Recording a working set: the pages that VMs touch in their first ten seconds, while nothing is
 * pushed to them, so that each page is seen. What a file has already is kept: it becomes the union,
 * also of what several handlers record into it. Each adds to the file as it is then, under a lock,
 * which is a file beside it.
 */
#ifndef FERRY_HANDLER_RECORD_H
#define FERRY_HANDLER_RECORD_H

#include "base/error.h"
#include "base/clock.h"

#define FERRY_RECORD_NS (10 * (uint64_t)FERRY_NS_PER_S)

struct ferry_record;

/**
 * ferry_record_open() - @path: the file, which need not be there yet; borrowed
 * @bytes: of the snapshot
 * Errors: REFUSE in @f: it is no working set of this snapshot, or can't be read.
 */
int ferry_record_open(struct ferry_record **out, const char *path, uint64_t bytes,
		      struct ferry_failure *f);
void ferry_record_close(struct ferry_record *r);

/* One VM's. */
struct ferry_record_vm;

/* @bytes: of the VM's memory. @out: owned; free(). Errors: -ENOMEM. */
int ferry_record_begin(uint64_t bytes, struct ferry_record_vm **out);
/* Fault thread. @offset: in the snapshot. */
void ferry_record_fault(struct ferry_record_vm *vm, uint64_t offset);
/*
 * Add it to the file. Any thread, once. @n_pages: of this recording.
 * Errors: negative errno in @f; the file is as it was.
 */
int ferry_record_end(struct ferry_record *r, struct ferry_record_vm *vm, uint64_t *n_pages,
		     struct ferry_failure *f);

/* Read a whole file of at most 256 MiB. @text: owned by the caller. Errors: negative errno in @f.
 */
int ferry_record_read(const char *path, char **text, size_t *len, struct ferry_failure *f);

#endif
