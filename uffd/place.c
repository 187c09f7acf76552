// SPDX-License-Identifier: Apache-2.0
/*
 * Placement: how a run of missing pages becomes present, whatever is in the way.
 *
 * The kernel fills a run from its start and stops at the first page that it can't fill. What it
 * says then:
 *
 *   ioctl 0                        all of it is done
 *   EAGAIN, done > 0               so many bytes are done; the next one is the obstacle
 *   EEXIST                         the first page is present: step over it, wake who waits there
 *   EAGAIN, done = -EAGAIN         the mapping is changing: an event waits to be read
 *   ENOENT                         not registered, or the run crosses into a second mapping
 *   ESRCH, done = 0                the process is gone
 *
 * So the signed field "done" decides, and errno only where the kernel left the field alone.
 *
 * One of these can't be trusted: for a huge page, EEXIST may also mean that the pool has none left
 * (docs/probes/hugetlb-eexist-no-memory.c). Taken for present, that page would never come. So it
 * is looked up then.
 *
 * A page that was present may have waiters: whoever made it present need not have woken them.
 */
#include "uffd/place.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "base/cleanup.h"

#include "uffd/kernel.h"

/* One attempt at a run. Return: bytes done (> 0), or a negative errno. */
typedef int64_t (*fill_fn)(const struct ferry_uffd *u, uint64_t dst, uint64_t src, uint64_t len);

static int64_t outcome(int rc, int err, int64_t done, uint64_t len)
{
	if (rc == 0)
		return (int64_t)len;
	return done ? done : -err;
}

static int64_t fill_copy(const struct ferry_uffd *u, uint64_t dst, uint64_t src, uint64_t len)
{
	struct uffdio_copy c = {.dst = dst, .src = src, .len = len};
	int rc = ioctl(u->fd, UFFDIO_COPY, &c);

	return outcome(rc, errno, c.copy, len);
}

static int64_t fill_zero(const struct ferry_uffd *u, uint64_t dst, uint64_t src, uint64_t len)
{
	struct uffdio_zeropage z = {.range = {.start = dst, .len = len}};
	int rc = ioctl(u->fd, UFFDIO_ZEROPAGE, &z);

	(void)src;
	return outcome(rc, errno, z.zeropage, len);
}

static int64_t fill_continue(const struct ferry_uffd *u, uint64_t dst, uint64_t src, uint64_t len)
{
	struct uffdio_continue c = {.range = {.start = dst, .len = len}};
	int rc = ioctl(u->fd, UFFDIO_CONTINUE, &c);

	(void)src;
	return outcome(rc, errno, c.mapped, len);
}

static int64_t fill_poison(const struct ferry_uffd *u, uint64_t dst, uint64_t src, uint64_t len)
{
	struct uffdio_poison p = {.range = {.start = dst, .len = len}};
	int rc = ioctl(u->fd, UFFDIO_POISON, &p);

	(void)src;
	return outcome(rc, errno, p.updated, len);
}

/* Wake who waits on the @n_pages present pages that end at page @end. */
static void wake_run(const struct ferry_uffd *u, struct ferry_hva dst, uint32_t end,
		     uint32_t n_pages, uint32_t page_bytes)
{
	struct ferry_hva start = {dst.v + (uint64_t)(end - n_pages) * page_bytes};

	/* Fails for a range that makes no sense only, and that was just used. */
	if (n_pages)
		ferry_uffd_wake(u, start, (uint64_t)n_pages * page_bytes);
}

/* Bits 63 and 62 of an entry: the page is mapped, or swapped out. */
#define PAGEMAP_HERE (UINT64_C(3) << 62)

/* Return: 1 or 0 as the page is mapped in the process or not; negative errno. */
static int look_up(const struct ferry_uffd *u, uint64_t at)
{
	_cleanup_close_ int fd = -1;
	uint64_t entry;
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/pagemap", (int)u->pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	if (pread(fd, &entry, sizeof(entry),
		  (off_t)(at / FERRY_PAGE_SIZE_DEFAULT * sizeof(entry))) != sizeof(entry))
		return -EIO;
	return entry & PAGEMAP_HERE ? 1 : 0;
}

/* Whether EEXIST for a huge page meant that it exists. */
static bool is_really_present(const struct ferry_uffd *u, uint64_t at, uint32_t page_bytes)
{
	struct uffdio_continue c = {.range = {.start = at, .len = page_bytes}};
	int mapped = look_up(u, at);

	/* Shared memory may have it without this process having touched it: CONTINUE maps it then.
	 */
	if (mapped == 0)
		return ioctl(u->fd, UFFDIO_CONTINUE, &c) == 0 || errno == EEXIST;
	/* Where we may not look, we go by what the kernel said. */
	return true;
}

static int place(const struct ferry_uffd *u, struct ferry_hva dst, uint64_t src, uint32_t n_pages,
		 uint32_t page_bytes, fill_fn fill, struct ferry_placed *placed)
{
	uint32_t done = 0;    /* pages */
	uint32_t dup_run = 0; /* present pages just before done, not woken yet */
	uint32_t try_max = n_pages;
	int r = 0;

	*placed = (struct ferry_placed){0};
	while (done < n_pages) {
		uint64_t at = (uint64_t)done * page_bytes;
		uint32_t try = FERRY_MIN(n_pages - done, try_max);
		int64_t got = fill(u, dst.v + at, src + at, (uint64_t)try * page_bytes);

		if (got > 0) {
			uint32_t n = (uint32_t)((uint64_t)got / page_bytes);

			wake_run(u, dst, done, dup_run, page_bytes);
			dup_run = 0;
			placed->n_new += n;
			done += n;
			try_max = n_pages;
		} else if (got == -EEXIST && page_bytes > FERRY_PAGE_SIZE_DEFAULT &&
			   !is_really_present(u, dst.v + at, page_bytes)) {
			r = -ENOMEM;
			break;
		} else if (got == -EEXIST) {
			placed->n_dup++;
			dup_run++;
			done++;
			try_max = n_pages;
		} else if (got == -ENOENT && try > 1) {
			/* The kernel serves one mapping at a time: close in on where it ends. */
			try_max = try / 2;
		} else if (got != -EINTR) {
			r = (int)got;
			break;
		}
	}
	wake_run(u, dst, done, dup_run, page_bytes);
	return r;
}

int ferry_place_copy(const struct ferry_uffd *u, struct ferry_hva dst, const void *data,
		     uint32_t n_pages, uint32_t page_bytes, struct ferry_placed *placed)
{
	return place(u, dst, (uintptr_t)data, n_pages, page_bytes, fill_copy, placed);
}

int ferry_place_move(const struct ferry_uffd *u, struct ferry_hva dst, void *data, uint64_t bytes,
		     struct ferry_placed *placed)
{
	struct uffdio_move m = {.dst = dst.v, .src = (uintptr_t)data, .len = bytes};
	int64_t got;
	int rc;

	*placed = (struct ferry_placed){0};
	do
		rc = ioctl(u->fd, UFFDIO_MOVE, &m);
	while (rc < 0 && errno == EINTR && m.move <= 0);
	got = outcome(rc, errno, m.move, bytes);
	if (got < 0)
		return (int)got;
	placed->n_new = (uint32_t)((uint64_t)got / FERRY_PAGE_SIZE_DEFAULT);
	return (uint64_t)got == bytes ? 0 : -EEXIST;
}

int ferry_place_continue(const struct ferry_uffd *u, struct ferry_hva dst, uint32_t n_pages,
			 uint32_t page_bytes, struct ferry_placed *placed)
{
	return place(u, dst, 0, n_pages, page_bytes, fill_continue, placed);
}

int ferry_place_poison(const struct ferry_uffd *u, struct ferry_hva dst, uint32_t n_pages,
		       uint32_t page_bytes, struct ferry_placed *placed)
{
	return place(u, dst, 0, n_pages, page_bytes, fill_poison, placed);
}

int ferry_place_zero(const struct ferry_uffd *u, struct ferry_hva dst, const void *zeroes,
		     uint32_t n_pages, uint32_t page_bytes, bool is_hugetlb,
		     struct ferry_placed *placed)
{
	struct ferry_placed sum = {0};
	int r = 0;

	if (!is_hugetlb)
		return place(u, dst, 0, n_pages, page_bytes, fill_zero, placed);

	/* One page of zeros is all there is to copy from, so it is one page a call. */
	for (uint32_t i = 0; i < n_pages && r == 0; i++) {
		struct ferry_hva at = {dst.v + (uint64_t)i * page_bytes};
		struct ferry_placed one;

		r = place(u, at, (uintptr_t)zeroes, 1, page_bytes, fill_copy, &one);
		sum.n_new += one.n_new;
		sum.n_dup += one.n_dup;
	}
	*placed = sum;
	return r;
}
