/* SPDX-License-Identifier: Apache-2.0 */
/* What the file of a guest's working set may hold. */
#include <errno.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/util.h"
#include "fuzz.h"
#include "handler/working_set.h"

#define N_PAGES 1024u

static void check(const struct ferry_working_set *w)
{
	struct ferry_working_run *runs, *last = NULL;
	uint64_t n_pages = 0;
	size_t n;

	MUST(w->n_recordings <= UINT16_MAX);
	MUST(!ferry_working_set_runs(w, &runs, &n));
	for (size_t i = 0; i < n; i++) {
		struct ferry_working_run *r = &runs[i];

		MUST(r->n_pages && r->count && r->first_page < N_PAGES);
		MUST(r->n_pages <= N_PAGES - r->first_page);
		MUST(!last || last->phase < r->phase ||
		     (last->phase == r->phase &&
		      last->first_page + last->n_pages <= r->first_page));
		n_pages += r->n_pages;
		last = r;
	}
	MUST(n_pages == ferry_working_set_size(w));
	free(runs);
}

/* Written as it was understood it says the same. */
static void check_again(const struct ferry_working_set *w)
{
	_cleanup_free_ char *text = NULL;
	struct ferry_working_set again;
	size_t len;

	MUST(!ferry_working_set_print(w, &text, &len));
	MUST(!ferry_working_set_init(&again, (uint64_t)N_PAGES * FERRY_PAGE_SIZE_DEFAULT));
	MUST(!ferry_working_set_parse(&again, text, len, NULL));
	MUST(again.n_recordings == w->n_recordings);
	for (uint32_t i = 0; i < N_PAGES; i++)
		MUST(again.count[i] == w->count[i] && again.phase[i] == w->phase[i]);
	ferry_working_set_fini(&again);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct ferry_failure f = {0};
	struct ferry_working_set w;

	MUST(!ferry_working_set_init(&w, (uint64_t)N_PAGES * FERRY_PAGE_SIZE_DEFAULT));
	if (!ferry_working_set_parse(&w, (const char *)data, size, &f)) {
		MUST(size > 4 && !memcmp(data + size - 4, "end\n", 4));
		check(&w);
		check_again(&w);
	} else {
		MUST(f.err == -EBADMSG && f.text[0] && memchr(f.text, 0, sizeof(f.text)));
	}
	ferry_working_set_fini(&w);
	return 0;
}
