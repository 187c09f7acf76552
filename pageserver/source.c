/* SPDX-License-Identifier: Apache-2.0 */
#include "pageserver/source.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/net.h"
#include "base/util.h"
#include "pageserver/source_internal.h"
#include "protocol/checksum.h"

#define AGAIN_MS 10 /* after a shortage */

int ferry_source_describe(struct ferry_source *s, const char *name, uint64_t bytes,
			  uint32_t page_bytes, struct ferry_failure *f)
{
	if (page_bytes < FERRY_MIN_PAGE_BYTES || page_bytes > FERRY_MAX_PAGE_BYTES ||
	    page_bytes & (page_bytes - 1))
		return ferry_fail(f, FERRY_REFUSE, -EINVAL,
				  "page size %u; powers of two from %u to %u are possible",
				  page_bytes, FERRY_MIN_PAGE_BYTES, FERRY_MAX_PAGE_BYTES);
	if (!bytes || bytes % page_bytes || bytes / page_bytes > FERRY_MAX_REGION_PAGES)
		return ferry_fail(f, FERRY_REFUSE, -EINVAL,
				  "%llu bytes are not a whole number of pages of %u bytes",
				  (unsigned long long)bytes, page_bytes);
	if (!name[0] || strlen(name) >= FERRY_MAX_REGION_NAME)
		return ferry_fail(f, FERRY_REFUSE, -EINVAL,
				  "region name '%.80s': 1 to %d bytes are possible", name,
				  FERRY_MAX_REGION_NAME - 1);
	s->desc =
		(struct ferry_region_desc){.page_bytes = page_bytes, .n_pages = bytes / page_bytes};
	memcpy(s->desc.name, name, strlen(name) + 1);
	return 0;
}

/* Memory of this process. */
struct memory_source {
	struct ferry_source base;
	const uint8_t *start; /* borrowed */
	struct ferry_untouched untouched;
};

static int memory_pages(struct ferry_source *s, uint64_t first, uint32_t n, void *scratch,
			const void **data)
{
	struct memory_source *m = (struct memory_source *)s;

	(void)n;
	(void)scratch;
	*data = m->start + first * s->desc.page_bytes;
	return 0;
}

static int memory_next_data(struct ferry_source *s, uint64_t from, uint64_t *first, uint64_t *end)
{
	struct memory_source *m = (struct memory_source *)s;

	return ferry_untouched_next_data(&m->untouched, &s->desc, from, first, end);
}

static void memory_free(struct ferry_source *s)
{
	ferry_untouched_close(&((struct memory_source *)s)->untouched);
}

static const struct ferry_source_ops memory_ops = {
	.pages = memory_pages,
	.next_data = memory_next_data,
	.free = memory_free,
};

int ferry_source_open_memory(struct ferry_source **out, const char *name, const void *start,
			     uint64_t bytes, uint32_t page_bytes, struct ferry_failure *f)
{
	_cleanup_free_ struct memory_source *m = calloc(1, sizeof(*m));
	int rc;

	if (!m)
		return ferry_fail_errno(f, FERRY_REFUSE, -ENOMEM, "page source");
	rc = ferry_source_describe(&m->base, name, bytes, page_bytes, f);
	if (rc < 0)
		return rc;
	m->base.ops = &memory_ops;
	m->start = start;
	ferry_untouched_open(&m->untouched, 0, (uintptr_t)start, bytes);
	*out = &TAKE_PTR(m)->base;
	return 0;
}

void ferry_source_free(struct ferry_source *s)
{
	if (!s)
		return;
	s->ops->free(s);
	free(s);
}

const struct ferry_region_desc *ferry_source_desc(const struct ferry_source *s)
{
	return &s->desc;
}

bool ferry_source_has(struct ferry_source *s, uint64_t first_page, uint32_t n_pages, bool want)
{
	return !s->ops->has || s->ops->has(s, first_page, n_pages, want);
}

bool ferry_source_copies(const struct ferry_source *s)
{
	return s->copies;
}

int ferry_source_pages(struct ferry_source *s, uint64_t first_page, uint32_t n_pages, void *scratch,
		       const void **data)
{
	return s->ops->pages(s, first_page, n_pages, scratch, data);
}

int ferry_source_read(struct ferry_source *s, uint64_t first_page, uint32_t n_pages, void *scratch,
		      const void **data, int timeout_ms, int stop_fd)
{
	for (int waited_ms = 0;; waited_ms += AGAIN_MS) {
		int rc = ferry_source_pages(s, first_page, n_pages, scratch, data);

		if (!ferry_is_shortage(rc) || waited_ms >= timeout_ms)
			return rc;
		if (ferry_net_wait(stop_fd, POLLIN, AGAIN_MS, -1) != -ETIMEDOUT)
			return -ECANCELED;
	}
}

int ferry_source_disk(const struct ferry_source *s, uint64_t page, uint64_t *offset)
{
	return s->ops->disk ? s->ops->disk(s, page, offset) : -1;
}

int ferry_source_is_zero(struct ferry_source *s, uint64_t page, const void *data)
{
	return s->ops->is_zero ? s->ops->is_zero(s, page) : ferry_is_zero(data, s->desc.page_bytes);
}

int ferry_source_checksum(struct ferry_source *s, uint64_t first_page, uint32_t n_pages,
			  const void *data, uint64_t seed, uint64_t *out)
{
	_Alignas(64) uint8_t state[FERRY_CHECKSUM_STATE_BYTES];
	int rc;

	if (!s->ops->sum) {
		*out = ferry_checksum(seed, data, (size_t)n_pages * s->desc.page_bytes);
		return 0;
	}
	ferry_checksum_begin(state, seed);
	rc = s->ops->sum(s, first_page, n_pages, state);
	if (!rc)
		*out = ferry_checksum_end(state);
	return rc;
}

uint64_t ferry_source_identity(const struct ferry_source *s)
{
	return s->identity;
}

int ferry_source_next_data(struct ferry_source *s, uint64_t from, uint64_t *first, uint64_t *end)
{
	if (from >= s->desc.n_pages) {
		*first = *end = s->desc.n_pages;
		return 0;
	}
	if (s->ops->next_data)
		return s->ops->next_data(s, from, first, end);
	*first = from;
	*end = s->desc.n_pages;
	return 0;
}

/* Most pages that aren't zero show it in their first bytes; for the others, blocks of eight words
 * without a branch between them, which the compiler turns into vector code. */
bool ferry_is_zero(const void *data, size_t bytes)
{
	const uint8_t *p = data;

	for (size_t at = 0; at < bytes; at += 64) {
		uint64_t w[8], any = 0;

		memcpy(w, p + at, sizeof(w));
		for (int i = 0; i < 8; i++)
			any |= w[i];
		if (any)
			return false;
	}
	return true;
}
