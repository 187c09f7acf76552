/* SPDX-License-Identifier: Apache-2.0 */
#include "uffd/gather.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/util.h"
#include "uffd/engine.h"
#include "uffd/kernel.h"

/* 2 MiB come within it where the push is fast enough for this to be worth anything. */
#define HOLD_MS 5

#define BLOCK_PAGES ((uint32_t)(FERRY_LARGE_BYTES / FERRY_PAGE_SIZE_DEFAULT))

static bool is_fit(const struct ferry_engine_region *r)
{
	return r->info.kind == FERRY_MAPPING_ANON &&
	       r->info.desc.page_bytes == FERRY_PAGE_SIZE_DEFAULT && r->bytes >= FERRY_LARGE_BYTES;
}

void ferry_gather_init(struct ferry_gather *g, struct ferry_target *t)
{
	bool fits = false;
	void *map;

	*g = (struct ferry_gather){.t = t, .pagemap = -1};
	for (uint32_t i = 0; i < t->n_regions; i++)
		fits = fits || is_fit(&t->regions[i]);
	if (!fits || t->uffd.pid != getpid() || !(t->uffd.features & UFFD_FEATURE_MOVE) ||
	    t->no_large_pages || ferry_engine_large_pages_are_off())
		return;
	g->pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	if (g->pagemap < 0)
		return;
	map = mmap(NULL, 2 * FERRY_LARGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
		   -1, 0);
	if (map == MAP_FAILED)
		return;
	g->map = map;
	g->block = g->map +
		   (FERRY_LARGE_BYTES - (uintptr_t)map % FERRY_LARGE_BYTES) % FERRY_LARGE_BYTES;
	/* A child would make the large page one that two have, which can't be moved. */
	(void)madvise(g->map, 2 * FERRY_LARGE_BYTES, MADV_DONTFORK);
	g->is_over = madvise(g->block, FERRY_LARGE_BYTES, MADV_HUGEPAGE) < 0;
}

void ferry_gather_fini(struct ferry_gather *g)
{
	if (g->map)
		munmap(g->map, 2 * FERRY_LARGE_BYTES);
	ferry_close(g->pagemap);
	g->map = NULL;
	g->pagemap = -1;
}

static struct ferry_hva address(const struct ferry_gather *g, const struct ferry_run *run)
{
	const struct ferry_engine_region *r = &g->t->regions[run->region];

	return (struct ferry_hva){atomic_load(&r->start) +
				  run->first_page * FERRY_PAGE_SIZE_DEFAULT};
}

/* Nothing of the block that begins with @run is known or asked for. */
static bool is_untouched(const struct ferry_gather *g, const struct ferry_run *run)
{
	const struct ferry_pager_region *p = &g->t->pager.regions[run->region];
	uint64_t end = run->first_page + BLOCK_PAGES;

	return end <= p->n_pages && ferry_bitmap_next_set(&p->known, run->first_page, end) == end &&
	       ferry_bitmap_next_set(&p->asked, run->first_page, end) == end;
}

uint8_t *ferry_gather_room(struct ferry_gather *g, const struct ferry_run *run)
{
	const struct ferry_run *h = &g->held;

	if (!g->map || g->is_over || run->n_pages > BLOCK_PAGES - h->n_pages)
		return NULL;
	if (h->n_pages)
		return run->region == h->region && run->first_page == h->first_page + h->n_pages
			       ? g->block + (size_t)h->n_pages * FERRY_PAGE_SIZE_DEFAULT
			       : NULL;
	return is_fit(&g->t->regions[run->region]) && !(address(g, run).v % FERRY_LARGE_BYTES) &&
			       is_untouched(g, run)
		       ? g->block
		       : NULL;
}

/* Is it in one large page? */
static bool is_large(const struct ferry_gather *g)
{
	struct page_region found;
	struct pm_scan_arg arg = {
		.size = sizeof(arg),
		.start = (uintptr_t)g->block,
		.end = (uintptr_t)g->block + FERRY_LARGE_BYTES,
		.vec = (uintptr_t)&found,
		.vec_len = 1,
		.category_mask = PAGE_IS_HUGE,
		.return_mask = PAGE_IS_HUGE,
	};

	return ioctl(g->pagemap, PAGEMAP_SCAN, &arg) == 1 &&
	       found.end - found.start == FERRY_LARGE_BYTES;
}

void ferry_gather_add(struct ferry_gather *g, const struct ferry_run *run)
{
	if (!g->held.n_pages) {
		g->held = *run;
		g->since_ns = ferry_now_ns();
		g->is_over = !is_large(g);
	} else {
		g->held.n_pages += run->n_pages;
	}
}

static bool is_whole(const struct ferry_gather *g)
{
	return g->held.n_pages == BLOCK_PAGES;
}

static bool is_wanted(const struct ferry_gather *g)
{
	const struct ferry_run *h = &g->held;
	uint64_t end = h->first_page + BLOCK_PAGES;

	return ferry_bitmap_next_set(&g->t->pager.regions[h->region].asked, h->first_page, end) <
	       end;
}

bool ferry_gather_can_move(const struct ferry_gather *g)
{
	return is_whole(g) && !is_wanted(g);
}

bool ferry_gather_is_due(const struct ferry_gather *g)
{
	return g->held.n_pages &&
	       (g->is_over || is_whole(g) || is_wanted(g) ||
		ferry_now_ns() - g->since_ns > HOLD_MS * (uint64_t)FERRY_NS_PER_MS);
}

int ferry_gather_move(struct ferry_gather *g, uint32_t *done, uint32_t *n_new)
{
	struct ferry_placed placed = {0};
	int rc = ferry_engine_move(g->t, &g->held, g->block, &placed);

	g->was_moved = true;
	*done += placed.n_new;
	*n_new += placed.n_new;
	if (rc == -EAGAIN || rc == -ENOMEM || rc == -ESRCH)
		return rc;
	/* What is there already is none of the kernel's fault. */
	if (rc < 0 && rc != -EEXIST && rc != -ENOENT)
		g->is_over = true;
	return 0;
}

void ferry_gather_end(struct ferry_gather *g)
{
	/* Else the next run may be on its way into it already. A new one is made by the next touch.
	 */
	if (g->was_moved && !is_large(g))
		(void)madvise(g->block, FERRY_LARGE_BYTES, MADV_DONTNEED);
	g->was_moved = false;
	g->held.n_pages = 0;
}
