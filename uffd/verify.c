/* SPDX-License-Identifier: Apache-2.0 */
#include "uffd/verify.h"

#include <errno.h>
#include <endian.h>
#include <string.h>
#include <sys/mman.h>

#include "base/util.h"
#include "protocol/checksum.h"

#define DIGEST_BYTES (1u << 20) /* memory that one digest is of, at first */
/* Runs that are shorter are asked for together with what is between them, page by page. */
#define SHORT_PAGES 32u

int ferry_verify_init(struct ferry_verify *v, const struct ferry_layout *layout)
{
	*v = (struct ferry_verify){.n_regions = layout->n_regions, .result = {.wanted = true}};
	for (uint32_t i = 0; i < layout->n_regions; i++) {
		struct ferry_verify_region *r = &v->regions[i];
		void *digests;

		r->n_pages = layout->regions[i].n_pages;
		r->page_bytes = layout->regions[i].page_bytes;
		/* Only what is written to takes memory. */
		digests = mmap(NULL, r->n_pages * sizeof(*r->digests), PROT_READ | PROT_WRITE,
			       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
		r->digests = digests == MAP_FAILED ? NULL : digests;
		if (!r->digests || ferry_bitmap_init(&r->data, r->n_pages) < 0 ||
		    ferry_bitmap_init(&r->zero, r->n_pages) < 0 ||
		    ferry_bitmap_init(&r->twice, r->n_pages) < 0) {
			ferry_verify_fini(v);
			return -ENOMEM;
		}
	}
	return 0;
}

void ferry_verify_fini(struct ferry_verify *v)
{
	for (uint32_t i = 0; i < v->n_regions; i++) {
		struct ferry_verify_region *r = &v->regions[i];

		if (r->digests)
			munmap((void *)r->digests, r->n_pages * sizeof(*r->digests));
		ferry_bitmap_fini(&r->data);
		ferry_bitmap_fini(&r->zero);
		ferry_bitmap_fini(&r->twice);
	}
	v->n_regions = 0;
}

/* --- notes -------------------------------------------------------------------------------------- */

/*
 * Pushed, and as an answer that crossed it, a page may come twice at once; which of the two is
 * placed is the kernel's to decide, so both must be the same.
 */
static void note_page(struct ferry_verify_region *r, uint32_t region, uint64_t page, const void *data)
{
	uint64_t digest = ferry_page_digest(region, page, data, r->page_bytes), none = 0;

	if (!digest) {
		ferry_bitmap_test_and_set(&r->zero, page);
		return;
	}
	if (!atomic_compare_exchange_strong(&r->digests[page], &none, digest) && none != digest)
		ferry_bitmap_test_and_set(&r->twice, page);
	ferry_bitmap_test_and_set(&r->data, page);
}

void ferry_verify_note(struct ferry_verify *v, const struct ferry_run *run, const void *data,
		       const struct ferry_bitmap *known)
{
	struct ferry_verify_region *r = &v->regions[run->region];
	uint64_t end = run->first_page + run->n_pages;

	for (uint64_t i = ferry_bitmap_next_clear(known, run->first_page, end); i < end;) {
		uint64_t to = ferry_bitmap_next_set(known, i, end);

		if (!data)
			ferry_bitmap_set_range(&r->zero, i, to - i);
		for (uint64_t p = i; data && p < to; p++)
			note_page(r, run->region, p,
				  (const uint8_t *)data + (p - run->first_page) * r->page_bytes);
		i = ferry_bitmap_next_clear(known, to, end);
	}
}

void ferry_verify_lost(struct ferry_verify *v)
{
	atomic_store(&v->exact, true);
}

/* --- comparing ---------------------------------------------------------------------------------- */

static bool is_noted(const struct ferry_verify_region *r, uint64_t page)
{
	return ferry_bitmap_test(&r->data, page) || ferry_bitmap_test(&r->zero, page);
}

static uint64_t next_noted(const struct ferry_verify_region *r, uint64_t from, uint64_t end)
{
	uint64_t at = ferry_bitmap_next_set(&r->data, from, end);

	return ferry_bitmap_next_set(&r->zero, from, at);
}

static uint64_t noted_end(const struct ferry_verify_region *r, uint64_t from, uint64_t end)
{
	uint64_t at = from;

	while (at < end && is_noted(r, at))
		at = ferry_bitmap_next_clear(ferry_bitmap_test(&r->data, at) ? &r->data : &r->zero, at,
					     end);
	return at;
}

/* Of the pages [@from, @end). What came twice, or with content and as zero, fits nothing. */
static bool digest_of(const struct ferry_verify_region *r, uint64_t from, uint64_t end, uint64_t *out)
{
	*out = 0;
	for (uint64_t i = ferry_bitmap_next_set(&r->data, from, end); i < end;
	     i = ferry_bitmap_next_set(&r->data, i + 1, end)) {
		if (ferry_bitmap_test(&r->zero, i) || ferry_bitmap_test(&r->twice, i))
			return false;
		*out += atomic_load_explicit(&r->digests[i], memory_order_relaxed);
	}
	return true;
}

static bool ask(struct ferry_verify *v, struct ferry_digest_range *out)
{
	*out = v->asked;
	return true;
}

bool ferry_verify_next(struct ferry_verify *v, struct ferry_digest_range *out)
{
	if (v->next_suspect < v->n_suspects) {
		uint64_t first = v->suspects[v->next_suspect++];

		v->asked = (struct ferry_digest_range){
			.region = v->asked.region,
			.first_page = first,
			.n_pages = FERRY_MIN(v->suspects_end - first, (uint64_t)v->pages_each),
			.pages_each = 1,
		};
		return ask(v, out);
	}
	v->n_suspects = v->next_suspect = 0;
	for (; v->region < v->n_regions; v->region++, v->page = 0) {
		const struct ferry_verify_region *r = &v->regions[v->region];
		uint32_t each = FERRY_MAX(DIGEST_BYTES / r->page_bytes, 1u);
		uint64_t first = next_noted(r, v->page, r->n_pages), limit, end;

		v->result.unknown += first - v->page;
		v->page = first;
		if (first == r->n_pages)
			continue;
		limit = FERRY_MIN(first + (uint64_t)each * FERRY_MAX_DIGESTS, r->n_pages);
		end = noted_end(r, first, limit);
		if (end < limit && end - first < SHORT_PAGES && !atomic_load(&v->exact)) {
			end = FERRY_MIN(first + FERRY_MAX_DIGESTS, r->n_pages);
			each = 1;
		}
		v->asked = (struct ferry_digest_range){v->region, each, first, end - first};
		v->page = end;
		return ask(v, out);
	}
	v->result.done = true;
	return false;
}

static void add_wrong(struct ferry_verify *v, uint32_t region, uint64_t page)
{
	struct ferry_verified *res = &v->result;
	struct ferry_run *last = res->n_runs ? &res->runs[res->n_runs - 1] : NULL;

	res->wrong++;
	if (last && last->region == region && last->first_page + last->n_pages == page)
		last->n_pages++;
	else if (res->n_runs < FERRY_VERIFY_RUNS)
		res->runs[res->n_runs++] = (struct ferry_run){region, 1, page};
}

static void take_page(struct ferry_verify *v, uint64_t page, uint64_t theirs)
{
	const struct ferry_verify_region *r = &v->regions[v->asked.region];
	uint64_t ours;

	if (!is_noted(r, page))
		v->result.unknown++;
	else if (!digest_of(r, page, page + 1, &ours) || ours != theirs)
		add_wrong(v, v->asked.region, page);
	else
		v->result.pages++;
}

int ferry_verify_take(struct ferry_verify *v, const struct ferry_digest_range *range,
		      const uint8_t *digests)
{
	const struct ferry_digest_range *a = &v->asked;
	const struct ferry_verify_region *r = &v->regions[a->region];
	uint64_t end = a->first_page + a->n_pages;

	if (range->region != a->region || range->first_page != a->first_page ||
	    range->n_pages != a->n_pages || range->pages_each != a->pages_each)
		return -EPROTO;
	for (uint32_t i = 0; i < ferry_digest_count(a); i++) {
		uint64_t first = a->first_page + (uint64_t)i * a->pages_each;
		uint64_t to = FERRY_MIN(first + a->pages_each, end), theirs, ours;

		memcpy(&theirs, digests + (size_t)i * 8, sizeof(theirs));
		theirs = le64toh(theirs);
		if (a->pages_each == 1)
			take_page(v, first, theirs);
		else if (digest_of(r, first, to, &ours) && ours == theirs)
			v->result.pages += to - first;
		else
			v->suspects[v->n_suspects++] = first;
	}
	if (a->pages_each > 1) {
		v->pages_each = a->pages_each;
		v->suspects_end = end;
		v->next_suspect = 0;
	}
	return 0;
}

/* --- the memory itself -------------------------------------------------------------------------- */

bool ferry_verify_next_data(const struct ferry_verify *v, uint32_t region, uint64_t page, uint32_t max,
			    struct ferry_run *out)
{
	const struct ferry_verify_region *r = &v->regions[region];
	uint64_t first = ferry_bitmap_next_set(&r->data, page, r->n_pages);
	uint64_t end = ferry_bitmap_next_clear(&r->data, first, FERRY_MIN(first + max, r->n_pages));

	*out = (struct ferry_run){region, (uint32_t)(end - first), first};
	return first < r->n_pages;
}

void ferry_verify_page(struct ferry_verify *v, uint32_t region, uint64_t page, const void *data)
{
	struct ferry_verify_region *r = &v->regions[region];

	if (ferry_page_digest(region, page, data, r->page_bytes) == atomic_load(&r->digests[page])) {
		v->result.read_back++;
	} else {
		v->result.pages--;
		add_wrong(v, region, page);
	}
}
