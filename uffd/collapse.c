/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Large pages for shared memory, once all of it has come.
 *
 * The kernel can put an aligned block of 2 MiB of a file into one large page
 * (MADV_COLLAPSE, Linux 6.1). Contents and addresses stay. The guest's process then maps the block
 * by one entry, where each of 512 pages would have cost its first touch a fault, and goes on with
 * fewer misses of the TLB. What is filled in place (in_place.c) is in large pages from the beginning.
 *
 * What it takes:
 *   - The block lies in the process's addresses as it lies in the file, to a multiple of 2 MiB.
 *   - Nothing is registered any more: the kernel fills holes with zeros, and not where userfaultfd
 *     waits for them. So there may be a few, of pages that are zero.
 *   - It is not in the way of pages that are still to come: done while they came, it took as much
 *     from the push as it gave to the guest.
 *   - The host has not switched large pages off.
 * It is asked for in a mapping of our own: the page is the file's, and another process's mappings
 * would take CAP_SYS_NICE.
 *
 * Failure modes: no large page is free, or a page is pinned: the block stays as it is. After
 * MAX_FAILURES in a row, or as many that took long (the kernel has to move memory about), no more
 * is tried.
 *
 * Source: madvise(2), process_madvise(2); Documentation/admin-guide/mm/transhuge.rst
 */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/net.h"
#include "uffd/engine.h"

#define BLOCK_BYTES  FERRY_LARGE_BYTES
#define MAX_FAILURES 8u
/* Copying 2 MiB and the mapping's changes take 0.3 to 1 ms. */
#define LONG_NS (20 * FERRY_NS_PER_MS)
/* Share of a block that may be holes, once those are zero for everybody. */
#define MAX_HOLES(n_pages) ((n_pages) / 8)

bool ferry_engine_large_pages_are_off(void)
{
	_cleanup_fclose_ FILE *f = fopen("/sys/kernel/mm/transparent_hugepage/enabled", "re");
	char line[64] = "";

	return !f || !fgets(line, sizeof(line), f) || strstr(line, "[never]");
}

/* Pages before the file's first boundary of a block. */
static uint64_t first_page(const struct ferry_engine_region *r)
{
	return (BLOCK_BYTES - r->file.offset % BLOCK_BYTES) % BLOCK_BYTES / r->info.desc.page_bytes;
}

void ferry_engine_collapse_init(struct ferry_target *t)
{
	bool off = ferry_engine_large_pages_are_off();

	for (uint32_t i = 0; i < t->n_regions; i++) {
		struct ferry_engine_region *r = &t->regions[i];

		if (r->file.fd < 0 || off || r->bytes < BLOCK_BYTES)
			continue;
		if ((atomic_load(&r->start) - r->file.offset) % BLOCK_BYTES) {
			ferry_info(t->log,
				   "region %u ('%s') does not begin at a multiple of 2 MiB in the "
				   "guest's process, so that it stays in small pages; QEMU has "
				   "align=2M of "
				   "memory-backend-file for that",
				   i, r->info.desc.name);
			continue;
		}
		r->collapses = true;
	}
}

/* Return: 0, also when that took long; then *@n_failures has grown all the same. */
static int try_block(struct ferry_target *t, const struct ferry_engine_region *r, uint64_t at,
		     uint32_t *n_failures)
{
	uint64_t begin = ferry_now_ns();
	int rc = ferry_memory_file_enlarge(&r->file, at);

	if (!rc)
		atomic_fetch_add_explicit(&t->counters.large_pages, 1, memory_order_relaxed);
	*n_failures = rc || ferry_now_ns() - begin >= LONG_NS ? *n_failures + 1 : 0;
	return rc;
}

/* Blocks that lie in the region as a whole. */
static uint64_t n_blocks(const struct ferry_engine_region *r)
{
	uint64_t before = first_page(r) * r->info.desc.page_bytes;

	return r->collapses && r->bytes > before ? (r->bytes - before) / BLOCK_BYTES : 0;
}

/* Pages of a region that have data in its file, without a hole between them. */
struct extent {
	uint64_t first, end;
};

/* Whether @e ends behind page @at: if not, the next one. The kernel looks at each page for that. */
static int find_extent(const struct ferry_engine_region *r, uint64_t at, struct extent *e)
{
	uint32_t page_bytes = r->info.desc.page_bytes;
	uint64_t from = at * page_bytes, to;
	int rc;

	if (at < e->end)
		return 0;
	rc = ferry_memory_file_next(&r->file, &from, &to, r->bytes);
	if (rc < 0)
		return rc;
	e->first = (rc ? from : r->bytes) / page_bytes;
	e->end = (rc ? to : r->bytes) / page_bytes;
	return 0;
}

/*
 * Holes of the file would be filled with zeros. That is right for pages which the source said are zero, of
 * which there must be few; others are poisoned, or the guest has given them back.
 */
static bool may_be_whole(const struct ferry_engine_region *r, const struct ferry_bitmap *zero,
			 uint64_t first, uint64_t end, struct extent *e)
{
	uint64_t at = first, n_holes = 0;

	while (at < end) {
		uint64_t data;

		if (find_extent(r, at, e) < 0)
			return false;
		data = FERRY_MIN(FERRY_MAX(e->first, at), end);
		if (ferry_bitmap_next_clear(zero, at, data) < data)
			return false;
		n_holes += data - at;
		at = FERRY_MIN(e->end, end);
	}
	return n_holes <= MAX_HOLES(end - first);
}

void ferry_engine_collapse(struct ferry_target *t)
{
	uint32_t n_failures = 0;

	for (uint32_t i = 0; i < t->n_regions; i++) {
		const struct ferry_engine_region *r = &t->regions[i];
		uint64_t n = n_blocks(r), pages = BLOCK_BYTES / r->info.desc.page_bytes;
		struct extent data = {0};

		for (uint64_t block = 0; block < n; block++) {
			uint64_t first = first_page(r) + block * pages;
			int rc;

			if (ferry_engine_is_large(t, i, block))
				continue;
			if (!may_be_whole(r, &t->pager.regions[i].zero, first, first + pages,
					  &data))
				continue;
			rc = try_block(t, r, first * r->info.desc.page_bytes, &n_failures);
			if (n_failures >= MAX_FAILURES) {
				ferry_info(t->log,
					   "the rest of the memory stays in small pages: %s",
					   rc ? strerror(-rc)
					      : "the kernel takes too long to find large ones");
				return;
			}
			if (ferry_net_wait(t->stop_fd, POLLIN, 0, -1) != -ETIMEDOUT)
				return;
		}
	}
}
