/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory of another, stopped process as a page source.
 *
 * Private memory is read with process_vm_readv(2) into scratch memory. A pid is not a process:
 * after each read the pidfd must still say that the process lives, or else the bytes may be
 * another's. Memory that the process shares through a file is opened as that file (source_file.c):
 * its holes are known then, and reading it through the process would fill them.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>

#include "base/cleanup.h"
#include "base/still.h"
#include "base/util.h"
#include "pageserver/source_internal.h"

struct process_source {
	struct ferry_source base;
	pid_t pid;
	int pidfd; /* owned */
	uint64_t start;
	struct ferry_untouched untouched;
};

/* --- untouched pages ---------------------------------------------------------------------- */

/* One line of /proc/PID/maps. */
struct mapping {
	uint64_t start, end, offset, ino;
	bool shared;
};

static bool parse_mapping(const char *line, struct mapping *m)
{
	char perms[5];

	if (sscanf(line, "%" SCNx64 "-%" SCNx64 " %4s %" SCNx64 " %*x:%*x %" SCNu64, &m->start,
		   &m->end, perms, &m->offset, &m->ino) != 5)
		return false;
	m->shared = perms[3] == 's';
	return true;
}

static FILE *open_maps(pid_t pid)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/maps", pid ? (int)pid : (int)getpid());
	return fopen(path, "re");
}

static bool is_private_anonymous(pid_t pid, uint64_t start, uint64_t end)
{
	_cleanup_fclose_ FILE *maps = open_maps(pid);
	_cleanup_free_ char *line = NULL;
	size_t size = 0;
	struct mapping m;

	while (maps && start < end && getline(&line, &size, maps) > 0) {
		if (!parse_mapping(line, &m) || m.end <= start)
			continue;
		if (m.start > start || m.shared || m.ino)
			return false;
		start = m.end;
	}
	return start >= end;
}

void ferry_untouched_open(struct ferry_untouched *u, pid_t pid, uint64_t start, uint64_t bytes)
{
	char path[64];

	*u = (struct ferry_untouched){.pagemap_fd = -1, .start = start};
	if (!is_private_anonymous(pid, start, start + bytes))
		return;
	snprintf(path, sizeof(path), "/proc/%d/pagemap", pid ? (int)pid : (int)getpid());
	u->pagemap_fd = open(path, O_RDONLY | O_CLOEXEC);
}

void ferry_untouched_close(struct ferry_untouched *u)
{
	ferry_close(u->pagemap_fd);
}

/* Looks for the first page from @page on whose being touched is @want. */
static int find_touched(const struct ferry_untouched *u, const struct ferry_region_desc *d,
			uint64_t page, bool want, uint64_t *found)
{
	uint64_t entries[512];
	uint64_t small = (uint64_t)getpagesize(), per_page = d->page_bytes / small;
	uint64_t at = page * per_page, end = d->n_pages * per_page;
	bool touched = false;

	while (at < end) {
		size_t n = FERRY_MIN((size_t)(end - at), FERRY_ARRAY_SIZE(entries));
		ssize_t got = pread(u->pagemap_fd, entries, n * sizeof(entries[0]),
				    (off_t)((u->start / small + at) * sizeof(entries[0])));

		if (got < 0)
			return -errno;
		if (got < (ssize_t)sizeof(entries[0]))
			return -ESRCH;
		for (size_t i = 0; i < (size_t)got / sizeof(entries[0]); i++, at++) {
			if (at % per_page == 0)
				touched = false;
			touched |= entries[i] != 0;
			/* Touched is known at once, untouched at the end of the page. */
			if (touched == want && (want || at % per_page == per_page - 1)) {
				*found = at / per_page;
				return 0;
			}
		}
	}
	*found = d->n_pages;
	return 0;
}

int ferry_untouched_next_data(const struct ferry_untouched *u, const struct ferry_region_desc *d,
			      uint64_t from, uint64_t *first, uint64_t *end)
{
	uint64_t a, b;
	int rc;

	if (u->pagemap_fd < 0) {
		*first = from;
		*end = d->n_pages;
		return 0;
	}
	rc = find_touched(u, d, from, true, &a);
	if (!rc)
		rc = find_touched(u, d, a, false, &b);
	if (rc < 0)
		return rc;
	*first = a;
	*end = b;
	return 0;
}

/* --- the process -------------------------------------------------------------------------- */

static bool has_exited(int pidfd)
{
	struct pollfd p = {.fd = pidfd, .events = POLLIN};

	return poll(&p, 1, 0) > 0;
}

static int process_pages(struct ferry_source *s, uint64_t first, uint32_t n, void *scratch,
			 const void **data)
{
	struct process_source *ps = (struct process_source *)s;
	size_t len = (size_t)n * s->desc.page_bytes, done = 0;

	while (done < len) {
		uint64_t at = ps->start + first * s->desc.page_bytes + done;
		struct iovec local = {(uint8_t *)scratch + done, len - done};
		struct iovec remote = {(void *)(uintptr_t)at, len - done};
		ssize_t got = process_vm_readv(ps->pid, &local, 1, &remote, 1, 0);

		if (got < 0)
			return errno == EPERM ? -EFAULT : -errno;
		if (!got)
			return -EFAULT;
		done += (size_t)got;
	}
	if (has_exited(ps->pidfd))
		return -ESRCH;
	*data = scratch;
	return 0;
}

static int process_next_data(struct ferry_source *s, uint64_t from, uint64_t *first, uint64_t *end)
{
	struct process_source *ps = (struct process_source *)s;

	if (has_exited(ps->pidfd))
		return -ESRCH;
	return ferry_untouched_next_data(&ps->untouched, &s->desc, from, first, end);
}

static void process_free(struct ferry_source *s)
{
	struct process_source *ps = (struct process_source *)s;

	ferry_untouched_close(&ps->untouched);
	ferry_close(ps->pidfd);
}

static const struct ferry_source_ops process_ops = {
	.pages = process_pages,
	.next_data = process_next_data,
	.free = process_free,
};

/* Every thread, since each of them could write. */
static int check_stopped(pid_t pid, struct ferry_failure *f)
{
	int rc = ferry_still_check(pid);

	if (rc == -ESRCH)
		return ferry_fail(f, FERRY_REFUSE, rc, "there is no process %d", (int)pid);
	if (rc < 0)
		return ferry_fail_errno(f, FERRY_REFUSE, rc,
					"looking whether process %d is stopped", (int)pid);
	if (rc)
		return 0;
	return ferry_fail(f, FERRY_REFUSE, -EBUSY,
			  "process %d is running and would change its memory; stop it first "
			  "(kill -STOP %d), or freeze its control group",
			  (int)pid, (int)pid);
}

/* One that was resumed since has other content. */
static uint64_t identity(pid_t pid, uint64_t start, uint64_t bytes)
{
	return ferry_still_mark(pid, start ^ bytes << 1);
}

/* The file behind a range that lies in one shared mapping. Return: an fd, or -1. */
static int open_shared_file(pid_t pid, uint64_t start, uint64_t bytes, uint64_t *offset)
{
	_cleanup_fclose_ FILE *maps = open_maps(pid);
	_cleanup_free_ char *line = NULL;
	size_t size = 0;
	struct mapping m;
	char path[96];

	while (maps && getline(&line, &size, maps) > 0) {
		if (!parse_mapping(line, &m) || m.end <= start)
			continue;
		if (m.start > start || m.end < start + bytes || !m.shared || !m.ino)
			return -1;
		*offset = m.offset + (start - m.start);
		snprintf(path, sizeof(path), "/proc/%d/map_files/%" PRIx64 "-%" PRIx64, (int)pid,
			 m.start, m.end);
		return open(path, O_RDONLY | O_CLOEXEC);
	}
	return -1;
}

int ferry_source_open_process(struct ferry_source **out, const char *name, pid_t pid,
			      uint64_t start, uint64_t bytes, uint32_t page_bytes,
			      struct ferry_failure *f)
{
	_cleanup_free_ struct process_source *ps = calloc(1, sizeof(*ps));
	_cleanup_close_ int pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
	uint64_t offset;
	int rc, fd;

	if (!ps)
		return ferry_fail_errno(f, FERRY_REFUSE, -ENOMEM, "page source");
	if (pidfd < 0)
		return ferry_fail_errno(f, FERRY_REFUSE, -errno, "process %d", (int)pid);
	rc = ferry_source_describe(&ps->base, name, bytes, page_bytes, f);
	if (rc < 0)
		return rc;
	if (start % page_bytes)
		return ferry_fail(f, FERRY_REFUSE, -EINVAL,
				  "address %#" PRIx64 " is no multiple of the page size %u", start,
				  page_bytes);
	rc = check_stopped(pid, f);
	if (rc < 0)
		return rc;
	fd = open_shared_file(pid, start, bytes, &offset);
	if (fd >= 0) {
		rc = ferry_source_open_fd(out, name, fd, offset, bytes, page_bytes, f);
		if (!rc)
			(*out)->identity = identity(pid, start, bytes);
		return rc;
	}
	ps->base.identity = identity(pid, start, bytes);
	ps->base.ops = &process_ops;
	ps->base.copies = true;
	ps->pid = pid;
	ps->pidfd = TAKE_FD(pidfd);
	ps->start = start;
	ferry_untouched_open(&ps->untouched, pid, start, bytes);
	*out = &TAKE_PTR(ps)->base;
	return 0;
}
