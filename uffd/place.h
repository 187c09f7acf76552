/* SPDX-License-Identifier: Apache-2.0 */
/* Making pages present in the target, whole and once. */
#ifndef FERRY_UFFD_PLACE_H
#define FERRY_UFFD_PLACE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/util.h"
#include "uffd/uffd.h"

/* What became of a run of pages. Counts are in pages and add up to n_pages when 0 is returned. */
struct ferry_placed {
	uint32_t n_new; /* became present now, by us */
	uint32_t n_dup; /* were present already: left alone, waiters woken */
};

/**
 * ferry_place_copy() - make a run of missing pages present with @data, and wake who waits
 * @dst:       host-virtual address in the target process, page-aligned
 * @data:      @n_pages * @page_bytes bytes, resident; borrowed until return
 * @page_bytes: of the mapping: 4 KiB, or the huge page size for hugetlb
 * A page that is present already is stepped over and its waiters are woken; the rest goes on.
 * Context: any thread; no locks, no allocation.
 * Errors:  -EAGAIN (RETRY after reading the userfaultfd's events: the mapping is changing),
 *          -ENOENT (the range is not, or no longer, mapped or registered), -ESRCH (LOST: the
 *          process is gone), -ENOMEM (RETRY later; also when no huge page is free). On error
 *          @placed says how far it came: the first n_new + n_dup pages are done.
 * Source:  ioctl_userfaultfd(2), UFFDIO_COPY; docs/probes/copy-partial.c,
 *          docs/probes/hugetlb-eexist-no-memory.c
 */
int ferry_place_copy(const struct ferry_uffd *u, struct ferry_hva dst, const void *data,
		     uint32_t n_pages, uint32_t page_bytes, struct ferry_placed *placed);

/**
 * ferry_place_move() - the same with pages of ours that are given away
 * @data: private memory of this process, as @dst is; what was moved is gone from there. Moved at
 *        once where both are whole large pages, and else page by page, which costs more than
 * copying A page that is present already ends it. Errors: also -EEXIST, and -EINVAL, -EBUSY where
 * these pages can't be moved there. Source: ioctl_userfaultfd(2), UFFDIO_MOVE (Linux 6.8)
 */
int ferry_place_move(const struct ferry_uffd *u, struct ferry_hva dst, void *data, uint64_t bytes,
		     struct ferry_placed *placed);

/**
 * ferry_place_continue() - show pages of registered-hidden memory that are in its file
 * Errors: also -EFAULT when the file has no such page (any more).
 * Source: ioctl_userfaultfd(2), UFFDIO_CONTINUE
 */
int ferry_place_continue(const struct ferry_uffd *u, struct ferry_hva dst, uint32_t n_pages,
			 uint32_t page_bytes, struct ferry_placed *placed);

/**
 * ferry_place_poison() - the same with pages that answer with a memory error, for good
 * Errors: also -EINVAL, -ENOTTY (before Linux 6.6).
 * Source: ioctl_userfaultfd(2), UFFDIO_POISON
 */
int ferry_place_poison(const struct ferry_uffd *u, struct ferry_hva dst, uint32_t n_pages,
		       uint32_t page_bytes, struct ferry_placed *placed);

/**
 * ferry_place_zero() - the same with pages of zeros
 * @zeroes: at least @page_bytes of zeros, resident; used where the kernel has no zero page for
 *          the mapping (hugetlb); borrowed until return
 * @is_hugetlb: of the mapping
 */
int ferry_place_zero(const struct ferry_uffd *u, struct ferry_hva dst, const void *zeroes,
		     uint32_t n_pages, uint32_t page_bytes, bool is_hugetlb,
		     struct ferry_placed *placed);

#endif
