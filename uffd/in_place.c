/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Filling shared memory in place: what comes is written where it belongs, into large pages that
 * are there before the first of it.
 *
 * The region is registered so that its threads wait also for pages that its file has already
 * (UFFDIO_REGISTER_MODE_MINOR). So nobody sees a page that is written, until it is whole and
 * UFFDIO_CONTINUE shows it, or until its block of 2 MiB is whole and is left (unregistered). The
 * process then maps the block by one entry, where its addresses allow that. Against pages that appear one by one (fill.c) it saves
 * the making of 512 small pages, the copying of them into a large one, and, in the process, 512
 * first touches.
 *
 * Happy path
 *   1. Before the guest comes: the source has told which blocks it has content in. Threads are made
 *      to wait for pages that are there, and each of those blocks is put into a large page of
 *      zeros; then threads are made to wait for pages that are not there, too.
 *   2. What comes is written to the file, becomes known, and is shown to those who wait for it.
 *   3. A block of which everything is known is left.
 *
 * That a page is in the file says nothing here. What is whole is what the pager knows, and that
 * must outlive us: so it takes the memory that ferry_pager_keep() speaks of, which says as well
 * that the region is filled so. Whoever takes over without it refuses, and the guest waits.
 *
 * It is not done where the host has switched large pages off.
 *
 * Failure modes: no large page is free: the block comes in small ones, and is written all the same.
 * The process may not be asked to map a large page (CAP_SYS_NICE): it maps small parts of it, one
 * at each touch, where one of them was shown before.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/clock.h"
#include "uffd/engine.h"
#include "uffd/kernel.h"
#include "uffd/maps.h"

/* For all blocks: who wants to send the memory waits meanwhile. */
#define PREPARE_MS   5000
#define MAX_FAILURES 8u
/* Each range that is left splits a mapping, unless its neighbour was left; the kernel allows 65530
 * a process, and the VMM needs some itself. */
#define MAX_SPLITS 16384

static uint64_t block_pages(const struct ferry_engine_region *r)
{
	return FERRY_LARGE_BYTES / r->info.desc.page_bytes;
}

/* Blocks that lie in the region as a whole. */
static uint64_t n_blocks(const struct ferry_engine_region *r)
{
	return r->bytes / FERRY_LARGE_BYTES;
}

static struct ferry_hva block_address(const struct ferry_engine_region *r, uint64_t block)
{
	return (struct ferry_hva){atomic_load(&r->start) + block * FERRY_LARGE_BYTES};
}

/* --- set up ---------------------------------------------------------------------------------- */

static bool is_empty(const struct ferry_engine_region *r)
{
	uint64_t from = 0, to;

	return !ferry_memory_file_next(&r->file, &from, &to, r->bytes);
}

static bool has_dense(const struct ferry_target_config *c, uint32_t region)
{
	for (uint32_t i = 0; i < c->n_dense; i++)
		if (c->dense[i].region == region)
			return true;
	return false;
}

static bool is_fit(const struct ferry_target *t, const struct ferry_target_config *c, uint32_t id)
{
	const struct ferry_engine_region *r = &t->regions[id];

	return r->file.fd >= 0 && !c->no_large_pages && has_dense(c, id) &&
	       !ferry_engine_large_pages_are_off() &&
	       (c->kept || t->uffd.pid == getpid()) &&
	       t->uffd.features & UFFD_FEATURE_MINOR_SHMEM &&
	       !(r->file.offset % FERRY_LARGE_BYTES) && is_empty(r);
}

static int begin(struct ferry_engine_region *r)
{
	r->in_place = true;
	return ferry_bitmap_init(&r->large, n_blocks(r)) < 0 ||
			       ferry_bitmap_init(&r->left, n_blocks(r)) < 0
		       ? -ENOMEM
		       : 0;
}

static void enlarge(struct ferry_target *t, const struct ferry_block_run *run, uint64_t deadline,
		    uint32_t *n_failures)
{
	struct ferry_engine_region *r = &t->regions[run->region];
	uint64_t end = FERRY_MIN((uint64_t)run->first + run->n_blocks, n_blocks(r));

	for (uint64_t b = run->first; b < end; b++) {
		if (*n_failures >= MAX_FAILURES || ferry_now_ns() > deadline)
			return;
		/* Of nothing at all the kernel makes no large page. */
		if (ferry_memory_file_overwrite(&r->file, b * FERRY_LARGE_BYTES, t->zeroes,
						r->info.desc.page_bytes) < 0 ||
		    ferry_memory_file_enlarge(&r->file, b * FERRY_LARGE_BYTES) < 0) {
			++*n_failures;
			continue;
		}
		*n_failures = 0;
		ferry_bitmap_test_and_set(&r->large, b);
		atomic_fetch_add_explicit(&t->counters.large_pages, 1, memory_order_relaxed);
	}
}

/* Everything that is in the file is what we have put there. */
static int check_untouched(const struct ferry_engine_region *r, uint32_t id, struct ferry_failure *f)
{
	uint64_t from = 0, to, page = r->info.desc.page_bytes;

	while (ferry_memory_file_next(&r->file, &from, &to, r->bytes) > 0) {
		for (; from < to; from += FERRY_LARGE_BYTES - from % FERRY_LARGE_BYTES) {
			uint64_t b = from / FERRY_LARGE_BYTES;
			/* What could not be enlarged has its first page. */
			bool ours = (b < n_blocks(r) && ferry_bitmap_test(&r->large, b)) ||
				    (from == b * FERRY_LARGE_BYTES && to <= from + page);

			if (!ours)
				return ferry_fail(f, FERRY_REFUSE, -EBUSY,
						  "region %u ('%s') was written to while it was "
						  "being made ready",
						  id, r->info.desc.name);
		}
		from = to;
	}
	return 0;
}

static int prepare(struct ferry_target *t, const struct ferry_target_config *c, uint32_t id,
		   uint64_t deadline, struct ferry_failure *f)
{
	struct ferry_engine_region *r = &t->regions[id];
	uint32_t n_failures = 0;
	int rc = ferry_uffd_register_hidden(&t->uffd, r->info.start, r->bytes, false);

	for (uint32_t i = 0; i < c->n_dense && !rc; i++)
		if (c->dense[i].region == id)
			enlarge(t, &c->dense[i], deadline, &n_failures);
	if (!rc)
		rc = ferry_uffd_register_hidden(&t->uffd, r->info.start, r->bytes, true);
	return rc < 0 ? rc : check_untouched(r, id, f);
}

/* Another has filled it so before us: its record is all there is to know about it. */
static int take_over(struct ferry_target *t, uint32_t id, struct ferry_failure *f)
{
	struct ferry_engine_region *r = &t->regions[id];
	int rc;

	ferry_memory_file_close(&r->file);
	rc = ferry_memory_file_open(&r->file, t->uffd.pid, r->info.start, r->bytes, true, f);
	if (rc < 0) {
		ferry_fail_prefix(f, "region %u ('%s')", id, r->info.desc.name);
		return rc;
	}
	return ferry_uffd_register_hidden(&t->uffd, r->info.start, r->bytes, true);
}

int ferry_engine_in_place_init(struct ferry_target *t, const struct ferry_target_config *c,
			       struct ferry_failure *f)
{
	uint64_t deadline = ferry_now_ns() + PREPARE_MS * (uint64_t)FERRY_NS_PER_MS;

	for (uint32_t i = 0; i < t->n_regions; i++) {
		struct ferry_engine_region *r = &t->regions[i];
		bool was = ferry_pager_is_in_place(&t->pager, i);
		struct ferry_failure why = {0};
		int rc = 0;

		if (c->adopt && !was && r->info.kind == FERRY_MAPPING_SHARED)
			rc = ferry_maps_are_hidden(t->uffd.pid, r->info.start, r->bytes);
		if (rc < 0)
			return ferry_fail_errno(
				f, FERRY_REFUSE, rc,
				"region %u ('%s'): finding out how another target has filled it", i,
				r->info.desc.name);
		if (rc)
			return ferry_fail(f, FERRY_REFUSE, -ENODATA,
					  "region %u ('%s'): the record of its pages is gone, and "
					  "nothing else tells which of them are whole; the guest's "
					  "threads go on waiting",
					  i, r->info.desc.name);
		if (c->adopt ? !was : !is_fit(t, c, i))
			continue;
		rc = begin(r);
		/* Before anything is in the file. */
		if (!rc)
			ferry_pager_set_in_place(&t->pager, i);
		if (!rc)
			rc = c->adopt ? take_over(t, i, &why) : prepare(t, c, i, deadline, &why);
		if (rc < 0 && why.text[0]) {
			*f = why;
			return rc;
		}
		if (rc < 0)
			return ferry_fail_errno(f, FERRY_REFUSE, rc,
						"region %u ('%s'): making it ready to be filled", i,
						r->info.desc.name);
	}
	return 0;
}

void ferry_engine_in_place_undo(struct ferry_target *t)
{
	for (uint32_t i = 0; i < t->n_regions; i++) {
		const struct ferry_engine_region *r = &t->regions[i];

		if (!r->in_place)
			continue;
		(void)ferry_memory_file_punch(&r->file, 0, r->bytes);
		(void)ferry_uffd_unregister(&t->uffd, block_address(r, 0), r->bytes);
	}
}

void ferry_engine_in_place_fini(struct ferry_target *t)
{
	for (uint32_t i = 0; i < t->n_regions; i++) {
		ferry_bitmap_fini(&t->regions[i].large);
		ferry_bitmap_fini(&t->regions[i].left);
	}
}

/* --- showing --------------------------------------------------------------------------------- */

int ferry_engine_show(struct ferry_target *t, const struct ferry_run *run)
{
	const struct ferry_engine_region *r = &t->regions[run->region];
	uint32_t page_bytes = r->info.desc.page_bytes;
	struct ferry_hva at = {atomic_load(&r->start) + run->first_page * page_bytes};
	struct ferry_placed placed;

	return ferry_place_continue(&t->uffd, at, run->n_pages, page_bytes, &placed);
}

/* Of a run that has become known: whoever waits goes on. */
static void show_waited(struct ferry_target *t, const struct ferry_run *run)
{
	const struct ferry_engine_region *r = &t->regions[run->region];
	const struct ferry_bitmap *asked = &t->pager.regions[run->region].asked;
	uint32_t page_bytes = r->info.desc.page_bytes;
	size_t end = run->first_page + run->n_pages, j;

	for (size_t i = ferry_bitmap_next_set(asked, run->first_page, end); i < end;
	     i = ferry_bitmap_next_set(asked, j, end)) {
		struct ferry_run waited = {.region = run->region, .first_page = i};

		j = ferry_bitmap_next_clear(asked, i, end);
		waited.n_pages = (uint32_t)(j - i);
		/* The mapping is changing, or is left: they find out by themselves. */
		if (ferry_engine_show(t, &waited) < 0)
			(void)ferry_uffd_wake(
				&t->uffd, (struct ferry_hva){atomic_load(&r->start) + i * page_bytes},
				(j - i) * page_bytes);
	}
}

int ferry_engine_write_in_place(struct ferry_target *t, const struct ferry_run *run,
				const void *data, struct ferry_placed *placed)
{
	const struct ferry_engine_region *r = &t->regions[run->region];
	uint32_t page_bytes = r->info.desc.page_bytes;
	struct ferry_run did = *run;
	ssize_t n = ferry_memory_file_overwrite(&r->file, run->first_page * page_bytes, data,
						(size_t)run->n_pages * page_bytes);

	if (n < 0)
		return (int)n;
	did.n_pages = (uint32_t)n / page_bytes;
	*placed = (struct ferry_placed){.n_new = did.n_pages};
	/* Known before it is seen: should we be killed in between, it is shown by the next one. */
	ferry_pager_placed(&t->pager, &did);
	show_waited(t, &did);
	return 0;
}

/* --- leaving --------------------------------------------------------------------------------- */

static bool is_whole(const struct ferry_target *t, uint32_t region, uint64_t block)
{
	const struct ferry_pager_region *p = &t->pager.regions[region];
	uint64_t pages = block_pages(&t->regions[region]), first = block * pages;

	return ferry_bitmap_next_clear(&p->known, first, first + pages) == first + pages &&
	       ferry_bitmap_next_set(&p->lost, first, first + pages) == first + pages;
}

/* The process may have mapped parts of the block: from now on it has all by one entry. */
static void map_large(struct ferry_target *t, const struct ferry_engine_region *r, uint64_t block)
{
	struct iovec v = {(void *)(uintptr_t)block_address(r, block).v, FERRY_LARGE_BYTES};

	if (!r->collapses)
		return;
	if (t->uffd.pidfd < 0)
		(void)madvise(v.iov_base, v.iov_len, MADV_COLLAPSE);
	else if (!atomic_load(&t->may_not_map) &&
		 syscall(SYS_process_madvise, t->uffd.pidfd, &v, 1, MADV_COLLAPSE, 0) < 0 &&
		 (errno == EPERM || errno == ENOSYS))
		atomic_store(&t->may_not_map, true);
}

/* Return: whether one more range of the region may be left. */
static bool may_split(struct ferry_target *t, const struct ferry_engine_region *r, uint64_t block)
{
	int before = block && ferry_bitmap_test(&r->left, block - 1);
	int behind = block + 1 < n_blocks(r) && ferry_bitmap_test(&r->left, block + 1);
	int more = 2 - 2 * (before + behind);

	if (more > 0 && atomic_load(&t->n_splits) + more > MAX_SPLITS)
		return false;
	atomic_fetch_add(&t->n_splits, more);
	return true;
}

static void leave(struct ferry_target *t, uint32_t region, uint64_t block)
{
	struct ferry_engine_region *r = &t->regions[region];

	if (!is_whole(t, region, block) || ferry_bitmap_test(&r->left, block) ||
	    !may_split(t, r, block) || ferry_bitmap_test_and_set(&r->left, block))
		return;
	/* Where it fails its pages are shown one by one, until all is left in the end. */
	if (!ferry_uffd_unregister(&t->uffd, block_address(r, block), FERRY_LARGE_BYTES) &&
	    ferry_bitmap_test(&r->large, block))
		map_large(t, r, block);
}

void ferry_engine_leave_blocks(struct ferry_target *t, const struct ferry_run *run)
{
	const struct ferry_engine_region *r = &t->regions[run->region];
	uint64_t pages = block_pages(r);
	uint64_t end = FERRY_MIN((run->first_page + run->n_pages - 1) / pages + 1, n_blocks(r));

	if (!r->in_place)
		return;
	for (uint64_t b = run->first_page / pages; b < end; b++)
		leave(t, run->region, b);
}

bool ferry_engine_is_large(struct ferry_target *t, uint32_t region, uint64_t block)
{
	struct ferry_engine_region *r = &t->regions[region];

	if (!r->in_place || !ferry_bitmap_test(&r->large, block))
		return false;
	if (!ferry_bitmap_test_and_set(&r->left, block) && is_whole(t, region, block))
		map_large(t, r, block);
	return true;
}
