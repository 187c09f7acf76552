/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Placement by writing the file that shared memory is mapped from.
 *
 * A page of such memory becomes visible when it is in its file, whoever put it there; the process's
 * page tables need not be touched. That costs less than UFFDIO_COPY where page tables are costly to
 * change (a busy process, a host that is itself a guest), and leaves it to the touches that come.
 *
 * What it takes to be as good as UFFDIO_COPY:
 *   - Whole. A new page of a file is locked until it is written, and a touch waits for the lock. So
 *     it must be written in one go, from memory that is certain to be there: of pages that the
 *     writer's own page table had to find, a part could be missing for a moment, and the kernel
 *     would show zeros in its place. Hence the way through a pipe, which holds the pages
 *     themselves. And pages of the file must be of the ordinary size: of a large one that is
 *     written in part the kernel shows the rest as zeros.
 *   - Once. Other than UFFDIO_COPY, a write would overwrite a page that is there. Who places a page
 *     of such a region must have claimed it, see ferry_pager_claim().
 *   - Charged to the memory cgroup of the guest's process: only for one in the same as ours.
 */
#ifndef FERRY_UFFD_MEMORY_FILE_H
#define FERRY_UFFD_MEMORY_FILE_H

#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"
#include "base/util.h"

/* Longest piece that is written in one go, bytes: what a pipe holds. */
#define FERRY_MEMORY_PIECE_BYTES (64u * 1024)

struct ferry_memory_file {
	int fd;		 /* owned; -1 for none */
	uint64_t offset; /* of the memory's first page in it, bytes */
};

/* Belongs to one thread. */
struct ferry_memory_pipe {
	int fds[2]; /* owned; -1 when not open */
};

#define FERRY_MEMORY_PIPE_NONE ((struct ferry_memory_pipe){{-1, -1}})

/**
 * ferry_memory_file_open() - the file behind a process's shared memory, if it can be written as
 * said above
 * @pid: the process, or our own
 * @start, @bytes: the memory, page-aligned, mapped by now
 * @anyhow: also from another memory cgroup, and with large pages: for one that was begun so
 * Errors: negative errno with the reason in @f; then there is UFFDIO_COPY.
 */
int ferry_memory_file_open(struct ferry_memory_file *out, pid_t pid, struct ferry_hva start,
			   uint64_t bytes, bool anyhow, struct ferry_failure *f);
void ferry_memory_file_close(struct ferry_memory_file *m);

/**
 * ferry_memory_file_next() - what is in the file already
 * @from: in: where to look from; out: where the next piece of it begins. Bytes from the memory's
 * start
 * @to: out: where that piece ends; at most @bytes
 * Return: 1, 0 when nothing is there up to @bytes, or a negative errno.
 * Source: lseek(2), SEEK_DATA; swapped pages are data
 */
int ferry_memory_file_next(const struct ferry_memory_file *m, uint64_t *from, uint64_t *to,
			   uint64_t bytes);

/**
 * ferry_memory_file_write() - make missing pages present, whole
 * @at: from the memory's start, bytes; a multiple of the page size, as @bytes is
 * @data: page-aligned; borrowed until return
 * @bytes: at most FERRY_MEMORY_PIECE_BYTES
 * The caller has claimed the pages, and wakes who waits for them.
 * Return: bytes of whole pages that are written (> 0, perhaps fewer than asked for), or a negative
 * errno when none is: -ENOMEM (RETRY later), others: use UFFDIO_COPY.
 */
ssize_t ferry_memory_file_write(const struct ferry_memory_file *m, struct ferry_memory_pipe *p,
				uint64_t at, const void *data, size_t bytes);
void ferry_memory_pipe_close(struct ferry_memory_pipe *p);

/**
 * ferry_memory_file_overwrite() - write pages that nobody can see yet (in_place.c)
 * As above, but in any pieces, and from any memory.
 */
ssize_t ferry_memory_file_overwrite(const struct ferry_memory_file *m, uint64_t at,
				    const void *data, size_t bytes);

/* Bytes of a large page. Blocks begin where that divides the file's offset. */
#define FERRY_LARGE_BYTES (2 * FERRY_MIB)

/**
 * ferry_memory_file_enlarge() - put a block into one large page, at once
 * @at: from the memory's start, bytes; a block begins there
 * Holes of it become zeros; not where userfaultfd waits for missing pages.
 * Errors: negative errno: no large page can be had.
 * Source: madvise(2), MADV_COLLAPSE
 */
int ferry_memory_file_enlarge(const struct ferry_memory_file *m, uint64_t at);

/* Make holes of it, given back to the system. Errors: negative errno. */
int ferry_memory_file_punch(const struct ferry_memory_file *m, uint64_t at, uint64_t bytes);

#endif
