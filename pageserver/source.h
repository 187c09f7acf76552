/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where the pages come from: a file (shared memory or a snapshot), a stopped process, memory of
 * ours.
 *
 * Two things are easily got wrong, and decide how each kind reads:
 *  - A hole of a shared-memory file is filled by whoever reads it through a mapping: then the
 *    source grows while it is served. So holes are learned by _next_data, which reads nothing, and
 *    nobody asks for their bytes.
 *  - A mapped file that is truncated by someone else answers our reads with SIGBUS. System calls
 *    get an error instead. So our own code never looks at the mapping of a file.
 */
#ifndef FERRY_PAGESERVER_SOURCE_H
#define FERRY_PAGESERVER_SOURCE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"
#include "protocol/message.h"

/* One region's pages. Read-only; they don't change while they are served. */
struct ferry_source;

/**
 * ferry_source_open_fd() - a region that is a file, or part of one
 * @fd: a memfd, a file on tmpfs or hugetlbfs, or a snapshot file; given (closed by _free, and on
 * error)
 * @name: what the target matches; @offset, @bytes: multiples of @page_bytes
 * Huge pages are mapped shared and read-only, and sent from the mapping without a copy; anything
 * else is read into scratch memory (source_file.c says why). Errors: -EINVAL, -ENODEV, ... (REFUSE)
 * with what to change in @f.
 */
int ferry_source_open_fd(struct ferry_source **out, const char *name, int fd, uint64_t offset,
			 uint64_t bytes, uint32_t page_bytes, struct ferry_failure *f);

/* The same for a path; a region of the whole file, named after its last component. Huge pages are
 * found by fstatfs. A file whose size is no multiple of the page size is refused. */
int ferry_source_open_path(struct ferry_source **out, const char *path, struct ferry_failure *f);

/**
 * ferry_source_open_process() - memory of another process, by process_vm_readv
 * @start, @bytes: the range in @pid; the process must be stopped (state T, or frozen), so that what
 * is sent does not change: -EBUSY otherwise, with how to stop it in @f.
 * A page that was never touched is found by /proc/PID/pagemap and is a hole. A shared mapping is
 * opened as the file that it is, where /proc/PID/map_files allows it.
 */
int ferry_source_open_process(struct ferry_source **out, const char *name, pid_t pid,
			      uint64_t start, uint64_t bytes, uint32_t page_bytes,
			      struct ferry_failure *f);

/* Memory of this process: borrowed until _free. Its holes are known where it is private and
 * anonymous; for a shared file, use ferry_source_open_fd(). */
int ferry_source_open_memory(struct ferry_source **out, const char *name, const void *start,
			     uint64_t bytes, uint32_t page_bytes, struct ferry_failure *f);

/*
 * For a file that is being filled itself. Any thread; must not wait.
 * @want: somebody waits for it: have it fetched, if it is not there
 * Return: whether all of the bytes at @offset of the file are there; then they don't change any more.
 */
struct ferry_source_gate {
	bool (*has)(void *ctx, uint64_t offset, uint64_t bytes, bool want);
	void *ctx;
};

/* As ferry_source_open_fd(). Holes of the file are nothing to go by. Each time that something has
 * come ferry_server_arrived() is due. */
int ferry_source_open_gated(struct ferry_source **out, const char *name, int fd, uint64_t offset,
			    uint64_t bytes, uint32_t page_bytes, const struct ferry_source_gate *gate,
			    struct ferry_failure *f);

/* Can a run be read? Only those of gated sources ever can't. @want: as there. */
bool ferry_source_has(struct ferry_source *s, uint64_t first_page, uint32_t n_pages, bool want);

void ferry_source_free(struct ferry_source *s);

/* Name, size and page size; ->id is 0, the owner numbers its regions. */
const struct ferry_region_desc *ferry_source_desc(const struct ferry_source *s);

/* Does ferry_source_pages() copy into scratch memory? */
bool ferry_source_copies(const struct ferry_source *s);

/**
 * ferry_source_pages() - the bytes of a run of pages
 * @scratch: @n_pages pages of room when ferry_source_copies(), else not used
 * @data:    where the bytes are: in the source's mapping (valid until _free) or in @scratch. For
 * the kernel to read (sendmsg(2) says EFAULT where a mapping has lost its file); to look at them,
 * ask ferry_source_is_zero(). Context: any thread. Errors: -ESRCH, -EIO, -EFAULT (LOST): the page
 * can't be had any more. A file that was truncated under us is -EIO, not a signal.
 */
int ferry_source_pages(struct ferry_source *s, uint64_t first_page, uint32_t n_pages, void *scratch,
		       const void **data);

/* The same for a thread that may wait: a shortage that passes within @timeout_ms is none.
 * -ECANCELED on @stop_fd. */
int ferry_source_read(struct ferry_source *s, uint64_t first_page, uint32_t n_pages, void *scratch,
		      const void **data, int timeout_ms, int stop_fd);

/* The file that a page is read from when that may take a disk's time; -1 when it can't.
 * @offset: of the page in it. */
int ferry_source_disk(const struct ferry_source *s, uint64_t page, uint64_t *offset);

/**
 * ferry_source_is_zero() - is every byte of a page zero?
 * @data: the page's bytes, as ferry_source_pages() gave them
 * Return: 0, 1, or an error as above.
 */
int ferry_source_is_zero(struct ferry_source *s, uint64_t page, const void *data);

/**
 * ferry_source_checksum() - of a run's bytes, see protocol/checksum.h
 * @data: the run's bytes, as ferry_source_pages() gave them
 * Return: 0 with @out, or an error as above.
 */
int ferry_source_checksum(struct ferry_source *s, uint64_t first_page, uint32_t n_pages,
			  const void *data, uint64_t seed, uint64_t *out);

/*
 * A number that is the same as long as the content is: who asks for the rest of a memory can tell by
 * it that it is given that of another. 0 where that can't be told.
 */
uint64_t ferry_source_identity(const struct ferry_source *s);

/**
 * ferry_source_next_data() - walk over holes without reading them
 * @from: page index; @first, @end: the next run of pages that may hold data at or after @from; both
 *        n_pages when only holes follow
 * Called once the memory no longer changes. A source that knows no holes reports everything as
 * data. Errors: as above; also when the file is shorter than it was.
 */
int ferry_source_next_data(struct ferry_source *s, uint64_t from, uint64_t *first, uint64_t *end);

/**
 * ferry_source_find_dense() - the blocks in which nearly every page has content, for a hint
 * @sources: of regions 0, 1, ...; the memory may change meanwhile
 * @runs: room for FERRY_MAX_DENSE_RUNS; when there are more, the rest is not told
 * Return: how many. Nothing is told of memory in huge pages, and of a source that can't tell.
 */
uint32_t ferry_source_find_dense(struct ferry_source *const *sources, uint32_t n_sources,
				 struct ferry_block_run *runs);

/* Is every byte of @bytes (a multiple of 64) at @data zero? */
bool ferry_is_zero(const void *data, size_t bytes);

#endif
