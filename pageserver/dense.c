/* SPDX-License-Identifier: Apache-2.0 */
/* Where a source's memory is full, so that the target can have large pages ready for it. */
#include "base/util.h"
#include "pageserver/source.h"
#include "pageserver/source_internal.h"

/* A block with more holes than that is not dense. */
#define MAX_HOLES(n_pages) ((n_pages) / 8)

struct dense_runs {
	struct ferry_block_run *v; /* borrowed; room for FERRY_MAX_DENSE_RUNS */
	uint32_t n;
};

/* Return: false when there is no room. */
static bool add(struct dense_runs *d, uint32_t region, uint64_t block)
{
	struct ferry_block_run *last = d->n ? &d->v[d->n - 1] : NULL;

	if (last && last->region == region && last->first + last->n_blocks == block) {
		last->n_blocks++;
		return true;
	}
	if (d->n == FERRY_MAX_DENSE_RUNS)
		return false;
	d->v[d->n++] = (struct ferry_block_run){
		.region = region, .first = (uint32_t)block, .n_blocks = 1};
	return true;
}

static void look_at(struct ferry_source *s, uint32_t region, struct dense_runs *d)
{
	uint64_t pages = FERRY_DENSE_BLOCK_BYTES / s->desc.page_bytes;
	uint64_t n_blocks = s->desc.n_pages / pages;
	uint64_t first = 0, end = 0; /* a run of pages with content */

	for (uint64_t b = 0; b < n_blocks; b++) {
		uint64_t at = b * pages, to = at + pages, n = 0;

		while (at < to) {
			if (at >= end && ferry_source_next_data(s, at, &first, &end) < 0)
				return;
			at = FERRY_MAX(at, first);
			if (at < to)
				n += FERRY_MIN(end, to) - at;
			at = first >= to ? to : end;
		}
		if (n >= pages - MAX_HOLES(pages) && !add(d, region, b))
			return;
	}
}

uint32_t ferry_source_find_dense(struct ferry_source *const *sources, uint32_t n_sources,
				 struct ferry_block_run *runs)
{
	struct dense_runs d = {.v = runs};

	for (uint32_t i = 0; i < n_sources; i++)
		if (sources[i]->ops->next_data && sources[i]->desc.page_bytes == FERRY_MIN_PAGE_BYTES)
			look_at(sources[i], i, &d);
	return d.n;
}
