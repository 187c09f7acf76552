/* SPDX-License-Identifier: Apache-2.0 */
/* Regions of the caller's: do they make sense, and what kind of memory are they? */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/util.h"
#include "lib/internal.h"

/* That of the first version, however many members there are now. */
#define REGION_LEAST (offsetof(struct pageferry_region, offset) + sizeof(uint64_t))
/* More is no struct's size, but something else that was put there. */
#define REGION_MOST 4096

int ferry_lib_regions_take(struct pageferry_region *out, const struct pageferry_region *in,
			   uint32_t n, size_t region_size, struct ferry_failure *f)
{
	size_t size = region_size ? region_size : REGION_LEAST;
	const unsigned char *from = (const unsigned char *)in;

	if (!in || !n || n > FERRY_MAX_REGIONS)
		return ferry_fail(f, FERRY_REFUSE, -EINVAL, "%u regions; 1 to %d are possible", n,
				  FERRY_MAX_REGIONS);
	if (size < REGION_LEAST || size > REGION_MOST || size % _Alignof(struct pageferry_region))
		return ferry_fail(f, FERRY_REFUSE, -EINVAL,
				  "options: region_size is %zu; set it to sizeof(struct "
				  "pageferry_region)",
				  size);
	for (uint32_t i = 0; i < n; i++, from += size) {
		for (size_t at = sizeof(*out); at < size; at++)
			if (from[at])
				return ferry_fail(f, FERRY_REFUSE, -EINVAL,
						  "region %u asks for something that version %s of "
						  "the library doesn't know",
						  i, FERRY_VERSION_TEXT);
		out[i] = (struct pageferry_region){0};
		memcpy(&out[i], from, FERRY_MIN(size, sizeof(*out)));
	}
	return 0;
}

static int check_shape(const struct pageferry_region *r, uint32_t i, struct ferry_failure *f)
{
	uint64_t start = (uintptr_t)r->start;

	if (r->name && strlen(r->name) >= FERRY_MAX_REGION_NAME)
		return ferry_fail(f, FERRY_REFUSE, -EINVAL,
				  "region %u: its name is longer than %d bytes", i,
				  FERRY_MAX_REGION_NAME - 1);
	if (!r->start || !r->bytes || start % FERRY_MIN_PAGE_BYTES ||
	    r->bytes % FERRY_MIN_PAGE_BYTES || r->bytes > UINT64_MAX - start)
		return ferry_fail(f, FERRY_REFUSE, -EINVAL,
				  "region %u: start %p and size %" PRIu64 " are to be multiples of "
				  "the page size, and not 0",
				  i, r->start, r->bytes);
	if (r->has_fd && (r->fd < 0 || r->offset % FERRY_MIN_PAGE_BYTES))
		return ferry_fail(f, FERRY_REFUSE, -EINVAL,
				  "region %u: fd %d, offset %" PRIu64 ": not a file, or not a "
				  "multiple of the page size",
				  i, r->fd, r->offset);
	return 0;
}

static int check_overlaps(const struct pageferry_region *r, uint32_t n, struct ferry_failure *f)
{
	for (uint32_t i = 0; i < n; i++) {
		uint64_t a = (uintptr_t)r[i].start;

		for (uint32_t j = 0; j < i; j++) {
			uint64_t b = (uintptr_t)r[j].start;

			if (a < b + r[j].bytes && b < a + r[i].bytes)
				return ferry_fail(f, FERRY_REFUSE, -EINVAL,
						  "regions %u and %u overlap", j, i);
		}
	}
	return 0;
}

/* Look a region up in the process's mappings, which are in order of address. */
static int look_up(struct ferry_lib_region *out, uint32_t i, uint64_t bytes,
		   const struct ferry_mapping *maps, size_t n_maps, struct ferry_failure *f)
{
	uint64_t at = out->start.v, end = at + bytes;
	bool first = true;

	for (size_t m = 0; m < n_maps && at < end; m++) {
		const struct ferry_mapping *map = &maps[m];

		if (map->start.v + map->len <= at)
			continue;
		if (map->start.v > at)
			break;
		if (!first && (map->kind != out->kind || map->page_bytes != out->desc.page_bytes))
			return ferry_fail(
				f, FERRY_REFUSE, -EFAULT,
				"region %u is several kinds of memory; make each a region", i);
		out->kind = map->kind;
		out->desc.page_bytes = map->page_bytes;
		out->readable = map->readable && (first || out->readable);
		out->is_private = !map->shared;
		first = false;
		at = map->start.v + map->len;
	}
	if (at < end)
		return ferry_fail(f, FERRY_REFUSE, -EFAULT,
				  "region %u: nothing is mapped at %#" PRIx64, i, at);
	return 0;
}

static int check_pages(struct ferry_lib_region *out, const struct pageferry_region *in, uint32_t i,
		       struct ferry_failure *f)
{
	uint32_t page_bytes = out->desc.page_bytes;

	if (in->page_bytes && in->page_bytes != page_bytes)
		return ferry_fail(f, FERRY_REFUSE, -EINVAL,
				  "region %u: the kernel has it in pages of %u bytes, not %u", i,
				  page_bytes, in->page_bytes);
	if (out->start.v % page_bytes || in->bytes % page_bytes || in->offset % page_bytes)
		return ferry_fail(f, FERRY_REFUSE, -EINVAL,
				  "region %u: start, size and offset are to be multiples of its "
				  "pages of %u bytes",
				  i, page_bytes);
	out->desc.n_pages = in->bytes / page_bytes;
	if (page_bytes > FERRY_MAX_PAGE_BYTES || out->desc.n_pages > FERRY_MAX_REGION_PAGES)
		return ferry_fail(f, FERRY_REFUSE, -EINVAL,
				  "region %u: it is too large, or its pages are", i);
	return 0;
}

int ferry_lib_regions(struct ferry_lib_region *out, const struct pageferry_region *in, uint32_t n,
		      struct ferry_failure *f)
{
	_cleanup_free_ struct ferry_mapping *maps = NULL;
	size_t n_maps;
	int rc;

	for (uint32_t i = 0; i < n; i++) {
		rc = check_shape(&in[i], i, f);
		if (rc < 0)
			return rc;
	}
	rc = check_overlaps(in, n, f);
	if (rc < 0)
		return rc;
	rc = ferry_maps_find(getpid(), "", &maps, &n_maps, f);
	if (rc < 0)
		return rc;
	for (uint32_t i = 0; i < n; i++) {
		out[i] = (struct ferry_lib_region){.start = {(uintptr_t)in[i].start}};
		out[i].desc.id = i;
		if (in[i].name)
			memcpy(out[i].desc.name, in[i].name, strlen(in[i].name) + 1);
		rc = look_up(&out[i], i, in[i].bytes, maps, n_maps, f);
		if (!rc)
			rc = check_pages(&out[i], &in[i], i, f);
		if (rc < 0)
			return rc;
	}
	return 0;
}
