/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Large pages for shared memory that has come.
 *
 * Once all of an aligned block of 2 MiB is in its file, the kernel can put it into one large page
 * (MADV_COLLAPSE, Linux 6.1). Contents and addresses stay. The guest's process then maps the block
 * by one entry, where each of 512 pages would have cost its first touch a fault, and goes on with
 * fewer misses of the TLB. Filling by large pages from the beginning is not possible: see
 * memory_file.h, "whole".
 *
 * What it takes:
 *   - The block lies in the process's addresses as it lies in the file, to a multiple of 2 MiB.
 *   - Every page was placed. A hole would be filled with zeros; of what userfaultfd waits for the
 * kernel doesn't do that. Once nothing is registered any more, a few holes do no harm.
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
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "uffd/engine.h"

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

#define BLOCK_BYTES  (2 * FERRY_MIB)
#define MAX_FAILURES 8u
/* Copying 2 MiB and the mapping's changes take 0.3 to 1 ms. */
#define LONG_NS (20 * FERRY_NS_PER_MS)
/* Share of a block that may be holes, once those are zero for everybody. */
#define MAX_HOLES(n_pages) ((n_pages) / 8)

static bool is_switched_off(void)
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
	bool off = is_switched_off();

	for (uint32_t i = 0; i < t->n_regions; i++) {
		struct ferry_engine_region *r = &t->regions[i];

		if (r->file.fd < 0 || off || r->bytes < BLOCK_BYTES)
			continue;
		if ((atomic_load(&r->start) - r->file.offset) % BLOCK_BYTES) {
			ferry_info(t->log,
				   "region %u ('%s') does not begin at a multiple of 2 MiB in the "
				   "guest's "
				   "process, so that it stays in small pages; QEMU has align=2M of "
				   "memory-backend-file for that",
				   i, r->info.desc.name);
			continue;
		}
		/* Without memory for it there are small pages. */
		(void)ferry_bitmap_init(&r->collapsed, r->bytes / BLOCK_BYTES);
	}
}

void ferry_engine_collapse_fini(struct ferry_target *t)
{
	for (uint32_t i = 0; i < t->n_regions; i++)
		ferry_bitmap_fini(&t->regions[i].collapsed);
}

/* Return: 0 or a negative errno. */
static int collapse(const struct ferry_memory_file *m, uint64_t at)
{
	uint8_t *room = mmap(NULL, 2 * BLOCK_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	uint8_t *block = room + (BLOCK_BYTES - (uintptr_t)room % BLOCK_BYTES) % BLOCK_BYTES;
	int rc = 0;

	if (room == MAP_FAILED)
		return -errno;
	if (mmap(block, BLOCK_BYTES, PROT_READ, MAP_SHARED | MAP_FIXED, m->fd,
		 (off_t)(m->offset + at)) == MAP_FAILED ||
	    madvise(block, BLOCK_BYTES, MADV_COLLAPSE) < 0)
		rc = -errno;
	munmap(room, 2 * BLOCK_BYTES);
	return rc;
}

static void try_block(struct ferry_target *t, uint32_t region, uint64_t block)
{
	struct ferry_engine_region *r = &t->regions[region];
	uint32_t page_bytes = r->info.desc.page_bytes;
	uint64_t at = first_page(r) * page_bytes + block * BLOCK_BYTES, begin = ferry_now_ns();
	int rc;

	/* Another thread may be at it. */
	if (ferry_bitmap_test_and_set(&r->collapsed, block))
		return;
	rc = collapse(&r->file, at);
	if (!rc)
		atomic_fetch_add_explicit(&t->counters.large_pages, 1, memory_order_relaxed);
	if (!rc && ferry_now_ns() - begin < LONG_NS) {
		atomic_store_explicit(&t->collapse_failures, 0, memory_order_relaxed);
		return;
	}
	if (atomic_fetch_add(&t->collapse_failures, 1) + 1 == MAX_FAILURES)
		ferry_info(t->log, "the guest's memory stays in small pages from here on: %s",
			   rc ? strerror(-rc) : "the kernel takes too long to find large ones");
}

/* Blocks that lie in the region as a whole. */
static uint64_t n_blocks(const struct ferry_engine_region *r)
{
	uint64_t before = first_page(r) * r->info.desc.page_bytes;

	return r->collapsed.n_bits && r->bytes > before ? (r->bytes - before) / BLOCK_BYTES : 0;
}

void ferry_engine_collapse(struct ferry_target *t, const struct ferry_run *run)
{
	const struct ferry_engine_region *r = &t->regions[run->region];
	const struct ferry_pager_region *p = &t->pager.regions[run->region];
	uint64_t pages = BLOCK_BYTES / r->info.desc.page_bytes, begin = first_page(r), last;
	uint64_t n = n_blocks(r);

	last = run->first_page + run->n_pages - 1;
	if (!n || last < begin)
		return;
	for (uint64_t block = run->first_page > begin ? (run->first_page - begin) / pages : 0;
	     block < n && begin + block * pages <= last; block++) {
		uint64_t first = begin + block * pages, end = first + pages;

		if (atomic_load_explicit(&t->collapse_failures, memory_order_relaxed) >=
		    MAX_FAILURES)
			return;
		if (ferry_bitmap_next_clear(&p->known, first, end) == end &&
		    ferry_bitmap_next_set(&p->zero, first, end) == end)
			try_block(t, run->region, block);
	}
}

static uint64_t count_zero(const struct ferry_pager_region *p, uint64_t first, uint64_t end)
{
	uint64_t n = 0;

	while ((first = ferry_bitmap_next_set(&p->zero, first, end)) < end) {
		n++;
		first++;
	}
	return n;
}

void ferry_engine_collapse_rest(struct ferry_target *t)
{
	for (uint32_t i = 0; i < t->n_regions; i++) {
		const struct ferry_engine_region *r = &t->regions[i];
		uint64_t n = n_blocks(r), pages = BLOCK_BYTES / r->info.desc.page_bytes;

		for (uint64_t block = 0; block < n; block++) {
			uint64_t first = first_page(r) + block * pages;

			if (atomic_load_explicit(&t->collapse_failures, memory_order_relaxed) >=
			    MAX_FAILURES)
				return;
			if (!ferry_bitmap_test(&r->collapsed, block) &&
			    count_zero(&t->pager.regions[i], first, first + pages) <=
				    MAX_HOLES(pages))
				try_block(t, i, block);
		}
	}
}
