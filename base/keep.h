/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Small files for what must outlive our own death, each about one process whose memory we hold. One
 * of us at a time has a file open: the lock goes with its holder, however that ends.
 *
 * A record is written beside the one before it, and flushed: whenever we are killed, one of them is
 * whole, which a checksum tells.
 * By default they lie on a file system in memory: no process outlives its host either, and after a
 * restart of the host there must be no record of one.
 */
#ifndef FERRY_BASE_KEEP_H
#define FERRY_BASE_KEEP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"

/* How every record begins. */
struct ferry_keep_head {
	char magic[8];
	uint32_t bytes;	  /* of the record, with this */
	int32_t pid;	  /* the process that it is about; 0: a file, ferry_keep_file follows */
	uint64_t started; /* its start time, which tells processes of the same number apart */
	uint64_t version; /* the highest that is whole counts */
	uint64_t checksum; /* of the record, with 0 here */
};

/* What a record is about that has a file in place of a process. */
struct ferry_keep_file {
	uint64_t dev, ino;
	uint64_t mounts; /* the mount namespace in which the path means it */
	char path[1024]; /* empty: it can't be told whether the file is there */
};

/* Where @path is now. */
void ferry_keep_about(struct ferry_keep_file *out, const char *path);

struct ferry_keep {
	int fd; /* owned; -1 when there is none */
	char path[160];
};

#define FERRY_KEEP_NONE ((struct ferry_keep){.fd = -1})

/**
 * ferry_keep_open() - make or find a file, and hold it
 * @dir: NULL for the default: $RUNTIME_DIRECTORY, /run/pageferry for root, or
 *       $XDG_RUNTIME_DIR/pageferry; it is made when it is missing, and nobody else may write there
 * @name: of the file in it
 * Records of processes that have ended and of files that are gone are removed from @dir, and empty
 * ones, but not this one, and none that somebody holds.
 * Errors: -EBUSY (REFUSE) when another process holds it; -ENOENT, -EPERM, ... (REFUSE) with what to
 *         do in @f.
 */
int ferry_keep_open(struct ferry_keep *k, const char *dir, const char *name,
		    struct ferry_failure *f);

enum ferry_keep_state {
	FERRY_KEEP_EMPTY,  /* nothing, or nothing that is whole */
	FERRY_KEEP_OTHER,  /* a record of a process that has ended, or a file that is gone */
	FERRY_KEEP_FOUND,  /* a record of one that is there */
	FERRY_KEEP_HELD,   /* the same, and another process is at work on it; _peek only */
	FERRY_KEEP_UNREAD, /* there may be one, but it can't be read this time: errno says why */
};

/* @record: begins with a struct ferry_keep_head; written unless EMPTY or UNREAD. */
enum ferry_keep_state ferry_keep_read(const struct ferry_keep *k, void *record, size_t bytes);

/* The same without holding the file: what is told may be old at once. */
enum ferry_keep_state ferry_keep_peek(const char *dir, const char *name, void *record,
				      size_t bytes);

/*
 * Write it again; on return it is kept. The head is filled in, @pid as given; with 0 the record has
 * a struct ferry_keep_file behind the head. Errors: negative errno; what was there before may be
 * there still.
 */
int ferry_keep_write(const struct ferry_keep *k, void *record, size_t bytes, pid_t pid);

/**
 * ferry_keep_map() - memory that outlives us, behind the records of @record_bytes
 * @fresh: all zero at first; otherwise as the one before us has left it, zero where it had none
 * Errors: negative errno. @out is to be unmapped, @bytes of it, before the file is removed or not.
 */
int ferry_keep_map(const struct ferry_keep *k, size_t record_bytes, size_t bytes, bool fresh,
		   void **out);

/* Let it go, and remove it when it is of no more use. Twice is fine. */
void ferry_keep_close(struct ferry_keep *k, bool remove);

#endif
