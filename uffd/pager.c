/* SPDX-License-Identifier: Apache-2.0 */
#include "uffd/pager.h"

#include <errno.h>

#include "base/util.h"

int ferry_pager_init(struct ferry_pager *p, const struct ferry_layout *layout)
{
	*p = (struct ferry_pager){.n_regions = layout->n_regions};
	p->in_place = &p->own_in_place;
	for (uint32_t i = 0; i < layout->n_regions; i++) {
		struct ferry_pager_region *r = &p->regions[i];

		r->n_pages = layout->regions[i].n_pages;
		p->pages_total += r->n_pages;
		if (ferry_bitmap_init(&r->known, r->n_pages) < 0 ||
		    ferry_bitmap_init(&r->zero, r->n_pages) < 0 ||
		    ferry_bitmap_init(&r->asked, r->n_pages) < 0 ||
		    ferry_bitmap_init(&r->lost, r->n_pages) < 0 ||
		    ferry_bitmap_init(&r->claimed, r->n_pages) < 0) {
			ferry_pager_fini(p);
			return -ENOMEM;
		}
	}
	return 0;
}

size_t ferry_pager_kept_bytes(const struct ferry_layout *layout)
{
	size_t n_words = 0;

	for (uint32_t i = 0; i < layout->n_regions; i++)
		n_words += ferry_bitmap_n_words(layout->regions[i].n_pages);
	return (n_words + 1) * sizeof(uint64_t);
}

void ferry_pager_keep(struct ferry_pager *p, void *kept)
{
	uint64_t *words = kept;

	for (uint32_t i = 0; i < p->n_regions; i++) {
		struct ferry_bitmap *known = &p->regions[i].known;

		ferry_bitmap_fini(known);
		ferry_bitmap_use(known, words, p->regions[i].n_pages);
		words += ferry_bitmap_n_words(p->regions[i].n_pages);
		atomic_fetch_add(&p->pages_known, ferry_bitmap_count(known));
	}
	p->in_place = (_Atomic uint64_t *)words;
}

void ferry_pager_set_in_place(struct ferry_pager *p, uint32_t region)
{
	_Static_assert(FERRY_MAX_REGIONS <= 64, "a bit for each");
	atomic_fetch_or(p->in_place, UINT64_C(1) << region);
}

bool ferry_pager_is_in_place(const struct ferry_pager *p, uint32_t region)
{
	return atomic_load(p->in_place) >> region & 1;
}

void ferry_pager_fini(struct ferry_pager *p)
{
	for (uint32_t i = 0; i < p->n_regions; i++) {
		ferry_bitmap_fini(&p->regions[i].known);
		ferry_bitmap_fini(&p->regions[i].zero);
		ferry_bitmap_fini(&p->regions[i].asked);
		ferry_bitmap_fini(&p->regions[i].lost);
		ferry_bitmap_fini(&p->regions[i].claimed);
	}
	p->n_regions = 0;
}

bool ferry_pager_has(const struct ferry_pager *p, const struct ferry_run *run)
{
	return run->region < p->n_regions && run->n_pages &&
	       run->n_pages <= p->regions[run->region].n_pages &&
	       run->first_page <= p->regions[run->region].n_pages - run->n_pages;
}

enum ferry_fault_verdict ferry_pager_fault(struct ferry_pager *p, uint32_t region, uint64_t page)
{
	struct ferry_pager_region *r = &p->regions[region];
	bool asked = ferry_bitmap_test_and_set(&r->asked, page);

	if (ferry_bitmap_test(&r->zero, page))
		return FERRY_FAULT_ZERO;
	if (ferry_bitmap_test(&r->known, page))
		return FERRY_FAULT_PLACED;
	return asked ? FERRY_FAULT_ASKED : FERRY_FAULT_ASK;
}

static uint64_t make_known(struct ferry_pager *p, const struct ferry_run *run)
{
	uint64_t n = ferry_bitmap_set_range(&p->regions[run->region].known, run->first_page,
					    run->n_pages);

	atomic_fetch_add(&p->pages_known, n);
	return n;
}

uint64_t ferry_pager_placed(struct ferry_pager *p, const struct ferry_run *run)
{
	uint64_t n = make_known(p, run);

	ferry_bitmap_clear_range(&p->regions[run->region].zero, run->first_page, run->n_pages);
	return n;
}

uint32_t ferry_pager_claim(struct ferry_pager *p, const struct ferry_run *run)
{
	struct ferry_pager_region *r = &p->regions[run->region];
	struct ferry_run rest = *run;
	uint32_t n = 0;

	while (n < run->n_pages && !ferry_bitmap_test_and_set(&r->claimed, run->first_page + n))
		n++;
	/* Only now: what is known from here on is not placed by anybody else. */
	rest.n_pages = n;
	n = (uint32_t)(ferry_bitmap_next_set(&r->known, run->first_page, run->first_page + n) -
		       run->first_page);
	rest.first_page += n;
	rest.n_pages -= n;
	ferry_pager_unclaim(p, &rest);
	return n;
}

void ferry_pager_unclaim(struct ferry_pager *p, const struct ferry_run *run)
{
	ferry_bitmap_clear_range(&p->regions[run->region].claimed, run->first_page, run->n_pages);
}

uint64_t ferry_pager_said_zero(struct ferry_pager *p, const struct ferry_run *run)
{
	struct ferry_pager_region *r = &p->regions[run->region];
	size_t end = run->first_page + run->n_pages;

	/* Zero before known: whoever sees a known page without its zero bit takes it for placed. */
	for (size_t i = ferry_bitmap_next_clear(&r->known, run->first_page, end); i < end;) {
		size_t j = ferry_bitmap_next_set(&r->known, i, end);

		ferry_bitmap_set_range(&r->zero, i, j - i);
		i = ferry_bitmap_next_clear(&r->known, j, end);
	}
	return make_known(p, run);
}

uint64_t ferry_pager_discarded(struct ferry_pager *p, const struct ferry_run *run)
{
	struct ferry_pager_region *r = &p->regions[run->region];
	size_t end = run->first_page + run->n_pages;

	/* Who waited for a page that was placed was woken by that. Asked for long ago, it must not
	 * look like one that is waited for now. */
	for (size_t i = ferry_bitmap_next_set(&r->asked, run->first_page, end); i < end;
	     i = ferry_bitmap_next_set(&r->asked, i + 1, end))
		if (ferry_bitmap_test(&r->known, i) && !ferry_bitmap_test(&r->zero, i))
			ferry_bitmap_test_and_clear(&r->asked, i);
	ferry_bitmap_set_range(&r->zero, run->first_page, run->n_pages);
	return make_known(p, run);
}

uint64_t ferry_pager_lost(struct ferry_pager *p, const struct ferry_run *run)
{
	struct ferry_pager_region *r = &p->regions[run->region];
	size_t end = run->first_page + run->n_pages;
	uint64_t n = 0;

	for (size_t i = ferry_bitmap_next_clear(&r->known, run->first_page, end); i < end;) {
		size_t j = ferry_bitmap_next_set(&r->known, i, end);

		n += ferry_bitmap_set_range(&r->lost, i, j - i);
		i = ferry_bitmap_next_clear(&r->known, j, end);
	}
	return n;
}

bool ferry_pager_is_missing(const struct ferry_pager *p, const struct ferry_run *run)
{
	const struct ferry_pager_region *r = &p->regions[run->region];
	size_t end = run->first_page + run->n_pages;

	for (size_t i = ferry_bitmap_next_clear(&r->known, run->first_page, end); i < end;
	     i = ferry_bitmap_next_clear(&r->known, i + 1, end))
		if (!ferry_bitmap_test(&r->lost, i))
			return true;
	return false;
}

void ferry_pager_forget_lost(struct ferry_pager *p)
{
	for (uint32_t i = 0; i < p->n_regions; i++)
		ferry_bitmap_clear_range(&p->regions[i].lost, 0, p->regions[i].n_pages);
}

bool ferry_pager_next_waiting(const struct ferry_pager *p, uint32_t region, uint64_t *page,
			      uint64_t end)
{
	const struct ferry_pager_region *r = &p->regions[region];

	for (size_t i = ferry_bitmap_next_set(&r->asked, *page, end); i < end;
	     i = ferry_bitmap_next_set(&r->asked, i + 1, end)) {
		if (ferry_bitmap_test(&r->zero, i)) {
			*page = i;
			return true;
		}
	}
	return false;
}

/* Looks for pages that are neither known nor lost, and asked for if @asked. */
static bool next_unknown(const struct ferry_pager *p, struct ferry_run *run, uint32_t max_pages,
			 bool asked)
{
	uint64_t from = run->first_page;

	for (uint32_t region = run->region; region < p->n_regions; region++, from = 0) {
		const struct ferry_pager_region *r = &p->regions[region];
		size_t i = from, end;

		for (; i < r->n_pages; i++) {
			i = asked ? ferry_bitmap_next_set(&r->asked, i, r->n_pages)
				  : ferry_bitmap_next_clear(&r->known, i, r->n_pages);
			if (i == r->n_pages || (!ferry_bitmap_test(&r->known, i) &&
						!ferry_bitmap_test(&r->lost, i)))
				break;
		}
		if (i >= r->n_pages)
			continue;
		end = FERRY_MIN(i + max_pages, r->n_pages);
		if (asked)
			end = ferry_bitmap_next_clear(&r->asked, i, end);
		end = ferry_bitmap_next_set(&r->known, i, end);
		end = ferry_bitmap_next_set(&r->lost, i, end);
		run->region = region;
		run->first_page = i;
		run->n_pages = (uint32_t)FERRY_MAX(end - i, (size_t)1);
		return true;
	}
	return false;
}

bool ferry_pager_next_outstanding(const struct ferry_pager *p, struct ferry_run *run,
				  uint32_t max_pages)
{
	return next_unknown(p, run, max_pages, true);
}

bool ferry_pager_next_missing(const struct ferry_pager *p, struct ferry_run *run,
			      uint32_t max_pages)
{
	return next_unknown(p, run, max_pages, false);
}

/* About so many words of the bitmap are looked at for one share of the memory. */
#define RESIDENCY_WORDS 128u

/* Of the pages [@from, @to) of a region: how many of those looked at are known. */
static void look_at_share(const struct ferry_pager_region *r, uint64_t from, uint64_t to,
			  uint64_t *n_seen, uint64_t *n_known)
{
	uint64_t first = from / 64, n_words = (to + 63) / 64 - first;
	uint64_t step = FERRY_MAX(n_words / RESIDENCY_WORDS, (uint64_t)1);

	for (uint64_t w = first; w < first + n_words; w += step) {
		uint64_t begin = FERRY_MAX(w * 64, from), end = FERRY_MIN(w * 64 + 64, to);
		uint64_t bits = atomic_load_explicit(&r->known.words[w], memory_order_relaxed);

		bits = bits >> (begin - w * 64) << (64 - (end - begin));
		*n_seen += end - begin;
		*n_known += (uint64_t)__builtin_popcountll(bits);
	}
}

void ferry_pager_residency(const struct ferry_pager *p, uint16_t *permille, uint32_t n_cells)
{
	for (uint32_t c = 0; c < n_cells; c++) {
		/* Small memories have fewer pages than there are cells: at least one each. */
		uint64_t from = p->pages_total / n_cells * c + p->pages_total % n_cells * c / n_cells;
		uint64_t to = p->pages_total / n_cells * (c + 1) +
			      p->pages_total % n_cells * (c + 1) / n_cells;
		uint64_t n_seen = 0, n_known = 0, base = 0;

		if (to == from && to < p->pages_total)
			to++;
		for (uint32_t i = 0; i < p->n_regions; i++) {
			uint64_t n = p->regions[i].n_pages;
			uint64_t a = FERRY_MAX(from, base), b = FERRY_MIN(to, base + n);

			if (a < b)
				look_at_share(&p->regions[i], a - base, b - base, &n_seen, &n_known);
			base += n;
		}
		permille[c] = (uint16_t)(n_seen ? n_known * 1000 / n_seen : 0);
	}
}
