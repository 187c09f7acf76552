/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Placement of what comes from the source.
 *
 * A page must not be placed with the source's content once the guest has discarded it: it is zero
 * then. In private memory the guest's process announces a discard by a REMOVE event, and
 * goes on as soon as the event is read; content placed after that would be seen by the guest as the
 * return of old data. So where that can happen, reading events (and marking what they discard) and
 * placing (after looking at the marks) exclude each other by discard_lock, in pieces short enough
 * not to keep the fault thread waiting.
 *
 * Shared memory that can be written through its file (memory_file.h) is filled so by the push. Who
 * places a page of it, by whichever way, claims it first, for as long as that takes: short pieces,
 * since an answer that finds its page claimed is dropped, and its threads wait for the claimer.
 *
 * In shared memory a REMOVE event may come from a MADV_DONTNEED, which drops the process's mapping
 * but not the content: nothing may be concluded from it for pages that have not come yet. A page
 * that had come and was then punched out of the file faults again, which the pager calls PLACED.
 */
#include "uffd/engine.h"

#include <errno.h>

#include "base/util.h"

/* Longest run that is placed in one go while discard_lock is held, bytes. */
#define LOCKED_PIECE_BYTES (64u * 1024)
/* Smaller holes are left to faults: each unregistered range splits the VMM's mapping. */
#define MIN_HOLE_BYTES (2u * 1024 * 1024)

static struct ferry_hva address(const struct ferry_target *t, uint32_t region, uint64_t page)
{
	const struct ferry_engine_region *r = &t->regions[region];

	return (struct ferry_hva){atomic_load(&r->start) + page * r->info.desc.page_bytes};
}

/* Whatever makes pages present or known is told here before, for the comparison in the end. */
static void note(struct ferry_target *t, const struct ferry_run *run, const void *data)
{
	if (t->verify)
		ferry_verify_note(t->verify, run, data, &t->pager.regions[run->region].known);
}

/* Return: 0 when some pages are placed, or else a negative errno. */
static int write_file(struct ferry_target *t, const struct ferry_run *run, const uint8_t *data,
		      struct ferry_memory_pipe *pipe, struct ferry_placed *placed)
{
	const struct ferry_engine_region *r = &t->regions[run->region];
	uint32_t page_bytes = r->info.desc.page_bytes;
	struct ferry_run did = *run;
	ssize_t n;

	note(t, run, data);
	n = ferry_memory_file_write(&r->file, pipe, run->first_page * page_bytes, data,
				    (size_t)run->n_pages * page_bytes);
	if (n < 0)
		return (int)n;
	did.n_pages = (uint32_t)n / page_bytes;
	*placed = (struct ferry_placed){.n_new = did.n_pages};
	ferry_pager_placed(&t->pager, &did);
	/* After that: who begins to wait from now on is told that the page is here. */
	(void)ferry_uffd_wake(&t->uffd, address(t, run->region, run->first_page), (uint64_t)n);
	return 0;
}

static int copy(struct ferry_target *t, const struct ferry_run *run, const uint8_t *data,
		struct ferry_placed *placed)
{
	uint32_t page_bytes = t->regions[run->region].info.desc.page_bytes;
	struct ferry_run did = *run;
	int rc;

	note(t, run, data);
	rc = ferry_place_copy(&t->uffd, address(t, run->region, run->first_page), data, run->n_pages,
			      page_bytes, placed);
	did.n_pages = placed->n_new + placed->n_dup;
	if (did.n_pages)
		ferry_pager_placed(&t->pager, &did);
	atomic_fetch_add_explicit(&t->counters.pages_duplicate, placed->n_dup,
				  memory_order_relaxed);
	return rc;
}

/* The same for pages that have to be claimed. */
static int place_claimed(struct ferry_target *t, const struct ferry_run *run, const uint8_t *data,
			 struct ferry_memory_pipe *pipe, struct ferry_placed *placed)
{
	uint32_t page_bytes = t->regions[run->region].info.desc.page_bytes;
	struct ferry_run piece = *run;
	int rc = -EBADF;

	piece.n_pages = FERRY_MIN(run->n_pages, FERRY_MEMORY_PIECE_BYTES / page_bytes);
	piece.n_pages = ferry_pager_claim(&t->pager, &piece);
	if (!piece.n_pages) {
		/* Whoever has it wakes those who wait for it. */
		*placed = (struct ferry_placed){.n_dup = 1};
		atomic_fetch_add_explicit(&t->counters.pages_duplicate, 1, memory_order_relaxed);
		return 0;
	}
	if (t->regions[run->region].in_place) {
		note(t, &piece, data);
		rc = ferry_engine_write_in_place(t, &piece, data, placed);
	} else {
		if (pipe)
			rc = write_file(t, &piece, data, pipe, placed);
		if (rc < 0 && rc != -ENOMEM)
			rc = copy(t, &piece, data, placed);
	}
	piece.first_page += placed->n_new + placed->n_dup;
	piece.n_pages -= placed->n_new + placed->n_dup;
	ferry_pager_unclaim(&t->pager, &piece);
	return rc;
}

/*
 * Deal with the start of @run: step over pages that are known already (placed by another way, said
 * to be zero, or discarded: none of them wants this content), or place those that are not.
 */
static int copy_start(struct ferry_target *t, const struct ferry_run *run, const uint8_t *data,
		      struct ferry_memory_pipe *pipe, struct ferry_placed *placed)
{
	const struct ferry_bitmap *known = &t->pager.regions[run->region].known;
	uint32_t page_bytes = t->regions[run->region].info.desc.page_bytes;
	size_t end = run->first_page + run->n_pages, first, to;
	struct ferry_run piece = *run;

	first = ferry_bitmap_next_clear_run(known, run->first_page, end, end, &to);
	if (first > run->first_page) {
		*placed = (struct ferry_placed){.n_dup = (uint32_t)(first - run->first_page)};
		atomic_fetch_add_explicit(&t->counters.pages_duplicate, placed->n_dup,
					  memory_order_relaxed);
		return 0;
	}
	piece.n_pages = (uint32_t)(to - run->first_page);
	if (t->regions[run->region].file.fd >= 0)
		return place_claimed(t, &piece, data, pipe, placed);
	if (t->has_discards)
		piece.n_pages =
			FERRY_MIN(piece.n_pages, FERRY_MAX(LOCKED_PIECE_BYTES / page_bytes, 1u));
	return copy(t, &piece, data, placed);
}

/*
 * The kernel says that nothing is registered where @page belongs. That is so, and fine, when the
 * process unmapped or moved it, or when all is known and the regions were let go. The event that
 * says so was read by then, but perhaps not dealt with: that is done under the lock.
 * Return: 0 to look again, or -ENOENT.
 */
static int gone_for_a_reason(struct ferry_target *t, uint32_t region, uint64_t page,
			     struct ferry_hva was)
{
	bool known, moved;

	pthread_mutex_lock(&t->discard_lock);
	known = ferry_bitmap_test(&t->pager.regions[region].known, page);
	moved = address(t, region, page).v != was.v;
	pthread_mutex_unlock(&t->discard_lock);
	return known || moved ? 0 : -ENOENT;
}

/* Threads may have begun to wait before the source's word came: they get their zeros now. */
static int serve_waiting(struct ferry_target *t, const struct ferry_run *run)
{
	uint64_t page = run->first_page;

	while (ferry_pager_next_waiting(&t->pager, run->region, &page,
					run->first_page + run->n_pages)) {
		int rc = ferry_engine_fill_zero(t, run->region, page);

		/* Nothing will bring this run again. So they fault anew, and the fault thread
		 * tries until it can be done. */
		if (rc == -EAGAIN || rc == -ENOMEM)
			rc = ferry_uffd_wake(&t->uffd, address(t, run->region, page),
					     t->regions[run->region].info.desc.page_bytes);
		if (rc < 0)
			return rc;
		page++;
	}
	return 0;
}

/* Zeros that will be touched soon are placed, where that costs less than a fault. */
static int place_wanted(struct ferry_target *t, const struct ferry_run *run)
{
	uint64_t end = run->first_page + run->n_pages;
	int rc = 0;

	/* Larger ones are left to the kernel, which has no faults for us then. */
	if (!t->hooks.wants_zero ||
	    (uint64_t)run->n_pages * t->regions[run->region].info.desc.page_bytes >= MIN_HOLE_BYTES)
		return 0;
	for (uint64_t page = run->first_page; page < end && !rc; page++)
		if (t->hooks.wants_zero(t->hooks.ctx, run->region, page))
			rc = ferry_engine_fill_zero(t, run->region, page);
	return rc;
}

static int fill(struct ferry_target *t, const struct ferry_run *run, const void *data,
		struct ferry_memory_pipe *pipe, uint32_t *done, uint32_t *n_new)
{
	uint32_t page_bytes = t->regions[run->region].info.desc.page_bytes;
	int rc = 0;

	if (!data) {
		note(t, run, NULL);
		*n_new += (uint32_t)ferry_pager_said_zero(&t->pager, run);
		rc = serve_waiting(t, run);
		if (!rc)
			rc = place_wanted(t, run);
		if (!rc)
			*done = run->n_pages;
		return rc;
	}
	while (*done < run->n_pages && !rc) {
		struct ferry_run rest = {.region = run->region,
					 .first_page = run->first_page + *done,
					 .n_pages = run->n_pages - *done};
		const uint8_t *from = (const uint8_t *)data + (size_t)*done * page_bytes;
		struct ferry_hva at = address(t, rest.region, rest.first_page);
		struct ferry_placed placed = {0};

		if (t->has_discards)
			pthread_mutex_lock(&t->discard_lock);
		rc = copy_start(t, &rest, from, pipe, &placed);
		if (t->has_discards)
			pthread_mutex_unlock(&t->discard_lock);
		*done += placed.n_new + placed.n_dup;
		*n_new += placed.n_new;
		if (rc == -ENOENT) {
			at.v += (uint64_t)(placed.n_new + placed.n_dup) * page_bytes;
			rc = gone_for_a_reason(t, run->region, run->first_page + *done, at);
		}
	}
	return rc;
}

int ferry_engine_fill(struct ferry_target *t, const struct ferry_run *run, const void *data,
		      struct ferry_memory_pipe *pipe, uint32_t *done, uint32_t *n_new)
{
	int rc = fill(t, run, data, pipe, done, n_new);

	if (!rc)
		ferry_engine_leave_blocks(t, run);
	if (!rc && t->hooks.known)
		t->hooks.known(t->hooks.ctx, run);
	return rc;
}

int ferry_engine_move(struct ferry_target *t, const struct ferry_run *run, void *data,
		      struct ferry_placed *placed)
{
	const struct ferry_bitmap *known = &t->pager.regions[run->region].known;
	uint64_t end = run->first_page + run->n_pages;
	struct ferry_run did = *run;
	int rc = -EEXIST;

	*placed = (struct ferry_placed){0};
	if (t->has_discards)
		pthread_mutex_lock(&t->discard_lock);
	if (ferry_bitmap_next_set(known, run->first_page, end) == end) {
		note(t, run, data);
		rc = ferry_place_move(&t->uffd, address(t, run->region, run->first_page), data,
				      (uint64_t)run->n_pages *
					      t->regions[run->region].info.desc.page_bytes,
				      placed);
		did.n_pages = placed->n_new;
		if (did.n_pages)
			ferry_pager_placed(&t->pager, &did);
	}
	if (t->has_discards)
		pthread_mutex_unlock(&t->discard_lock);
	return rc;
}

int ferry_engine_fill_zero(struct ferry_target *t, uint32_t region, uint64_t page)
{
	const struct ferry_engine_region *r = &t->regions[region];
	struct ferry_run run = {.region = region, .first_page = page, .n_pages = 1};
	struct ferry_placed placed;
	int rc = r->in_place ? ferry_engine_show(t, &run) : -EFAULT;

	/* There is none to be shown. */
	if (rc == -EFAULT)
		rc = ferry_place_zero(&t->uffd, address(t, region, page), t->zeroes, 1,
				      r->info.desc.page_bytes,
				      r->info.kind == FERRY_MAPPING_HUGETLB, &placed);

	if (rc == -ENOENT) {
		/* A hole that was left to the kernel meanwhile: it fills it by itself. */
		ferry_uffd_wake(&t->uffd, address(t, region, page), r->info.desc.page_bytes);
		return 0;
	}
	if (!rc)
		ferry_pager_placed(&t->pager, &run);
	return rc;
}

void ferry_engine_leave_hole(struct ferry_target *t, const struct ferry_run *run)
{
	uint32_t page_bytes = t->regions[run->region].info.desc.page_bytes;
	uint64_t bytes = (uint64_t)run->n_pages * page_bytes;
	uint32_t left = atomic_load(&t->n_holes_left);

	if (bytes < MIN_HOLE_BYTES || !left)
		return;
	while (!atomic_compare_exchange_weak(&t->n_holes_left, &left, left - 1))
		if (!left)
			return;
	/* Where it fails the pages are served as known zeros, by faults. */
	(void)ferry_uffd_unregister(&t->uffd, address(t, run->region, run->first_page), bytes);
}
