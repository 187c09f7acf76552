// SPDX-License-Identifier: Apache-2.0
#include "handler/working_set.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"

#define MAX_BYTES   (UINT64_C(1) << 40)
#define PHASE_PAGES 256u
#define PHASE_MAX   UINT16_MAX
#define COUNT_MAX   UINT16_MAX
#define FIRST_WORD  "pageferry-working-set "
#define LAST_LINE   "end\n"

int ferry_working_set_init(struct ferry_working_set *w, uint64_t bytes)
{
	uint64_t n = (bytes + FERRY_PAGE_SIZE_DEFAULT - 1) / FERRY_PAGE_SIZE_DEFAULT;

	*w = (struct ferry_working_set){.n_pages = n};
	if (bytes > MAX_BYTES)
		return -EFBIG;
	w->phase = calloc(n ? n : 1, sizeof(*w->phase));
	w->count = calloc(n ? n : 1, sizeof(*w->count));
	if (w->phase && w->count)
		return 0;
	ferry_working_set_fini(w);
	return -ENOMEM;
}

void ferry_working_set_fini(struct ferry_working_set *w)
{
	free(w->phase);
	free(w->count);
	w->phase = w->count = NULL;
}

uint64_t ferry_working_set_size(const struct ferry_working_set *w)
{
	uint64_t n = 0;

	for (uint64_t i = 0; i < w->n_pages; i++)
		n += w->count[i] != 0;
	return n;
}

static void add_page(struct ferry_working_set *w, uint64_t page, uint32_t phase, uint32_t count)
{
	if (!w->count[page] || phase < w->phase[page])
		w->phase[page] = (uint16_t)phase;
	w->count[page] = (uint16_t)FERRY_MIN(w->count[page] + count, (uint32_t)COUNT_MAX);
}

void ferry_working_set_add(struct ferry_working_set *w, const uint64_t *pages, size_t n)
{
	for (size_t i = 0; i < n; i++)
		if (pages[i] < w->n_pages)
			add_page(w, pages[i],
				 (uint32_t)FERRY_MIN(i / PHASE_PAGES, (size_t)PHASE_MAX), 1);
	w->n_recordings = FERRY_MIN(w->n_recordings + 1, (uint32_t)COUNT_MAX);
}

static int in_order(const void *a, const void *b)
{
	const struct ferry_working_run *x = a, *y = b;

	if (x->phase != y->phase)
		return x->phase < y->phase ? -1 : 1;
	return x->first_page < y->first_page ? -1 : x->first_page > y->first_page;
}

/* The run that begins at or behind @from. Return: false when there is none. */
static bool next_run(const struct ferry_working_set *w, uint64_t from,
		     struct ferry_working_run *run)
{
	uint64_t end;

	while (from < w->n_pages && !w->count[from])
		from++;
	if (from == w->n_pages)
		return false;
	for (end = from + 1; end < w->n_pages; end++)
		if (w->count[end] != w->count[from] || w->phase[end] != w->phase[from])
			break;
	*run = (struct ferry_working_run){.first_page = from,
					  .n_pages = end - from,
					  .phase = w->phase[from],
					  .count = w->count[from]};
	return true;
}

int ferry_working_set_runs(const struct ferry_working_set *w, struct ferry_working_run **out,
			   size_t *n)
{
	struct ferry_working_run run, *runs;
	size_t have = 0;

	for (uint64_t at = 0; next_run(w, at, &run); at = run.first_page + run.n_pages)
		have++;
	runs = calloc(have ? have : 1, sizeof(*runs));
	if (!runs)
		return -ENOMEM;
	*n = have;
	have = 0;
	for (uint64_t at = 0; next_run(w, at, &run); at = run.first_page + run.n_pages)
		runs[have++] = run;
	qsort(runs, have, sizeof(*runs), in_order);
	*out = runs;
	return 0;
}

int ferry_working_set_print(const struct ferry_working_set *w, char **out, size_t *len)
{
	struct ferry_working_run *runs;
	size_t n, text_len = 0;
	char *text = NULL;
	bool is_whole;
	FILE *to;
	int rc = ferry_working_set_runs(w, &runs, &n);

	if (rc < 0)
		return rc;
	to = open_memstream(&text, &text_len);
	if (!to) {
		free(runs);
		return -ENOMEM;
	}
	fprintf(to, "pageferry-working-set 2 %" PRIu64 " %u\n",
		w->n_pages * FERRY_PAGE_SIZE_DEFAULT, w->n_recordings);
	for (size_t i = 0; i < n; i++)
		fprintf(to, "%u %" PRIu64 " %" PRIu64 " %u\n", runs[i].phase,
			runs[i].first_page * FERRY_PAGE_SIZE_DEFAULT,
			runs[i].n_pages * FERRY_PAGE_SIZE_DEFAULT, runs[i].count);
	fputs(LAST_LINE, to);
	free(runs);
	is_whole = !ferror(to);
	if (fclose(to) || !is_whole) {
		free(text);
		return -ENOMEM;
	}
	*out = text;
	*len = text_len;
	return 0;
}

/* A number and what follows it, which must be @end. */
static bool take(const char **at, char end, uint64_t max, uint64_t *out)
{
	uint64_t v = 0;
	const char *p = *at;

	if (*p < '0' || *p > '9')
		return false;
	for (; *p >= '0' && *p <= '9'; p++) {
		if (v > (UINT64_MAX - 9) / 10)
			return false;
		v = v * 10 + (uint64_t)(*p - '0');
	}
	if (*p != end || v > max)
		return false;
	*at = p + 1;
	*out = v;
	return true;
}

static int bad(struct ferry_failure *f, size_t line, const char *what)
{
	return ferry_fail(f, FERRY_REFUSE, -EBADMSG,
			  "line %zu: %s; record the working set of this snapshot anew", line, what);
}

static bool parse_run(struct ferry_working_set *w, const char **at)
{
	uint64_t phase, offset, bytes, count, end = w->n_pages * FERRY_PAGE_SIZE_DEFAULT;

	if (!take(at, ' ', PHASE_MAX, &phase) || !take(at, ' ', end, &offset) ||
	    !take(at, ' ', end, &bytes) || !take(at, '\n', COUNT_MAX, &count))
		return false;
	if (!bytes || !count || (offset | bytes) % FERRY_PAGE_SIZE_DEFAULT || offset > end - bytes)
		return false;
	for (uint64_t p = 0; p < bytes / FERRY_PAGE_SIZE_DEFAULT; p++)
		add_page(w, offset / FERRY_PAGE_SIZE_DEFAULT + p, (uint32_t)phase, (uint32_t)count);
	return true;
}

static size_t count_lines(const char *text, size_t len)
{
	size_t n = text[len - 1] != '\n';

	for (size_t i = 0; i < len; i++)
		n += text[i] == '\n';
	return n;
}

int ferry_working_set_parse(struct ferry_working_set *w, const char *text, size_t len,
			    struct ferry_failure *f)
{
	const size_t head = strlen(FIRST_WORD), last = strlen(LAST_LINE);
	const char *at = text + head, *end = text + len - last;
	uint64_t version, bytes, n;

	if (len <= head || memchr(text, 0, len) || memcmp(text, FIRST_WORD, head))
		return bad(f, 1, "this is no working set");
	/* With an end each line ends within the text: no number is read beyond it. */
	if (memcmp(end, LAST_LINE, last) || end[-1] != '\n')
		return bad(f, count_lines(text, len),
			   "it has no end: the file was cut short, or an earlier version wrote it");
	if (!take(&at, ' ', UINT64_MAX, &version) || version != 2)
		return bad(f, 1, "it is of another version");
	if (!take(&at, ' ', UINT64_MAX, &bytes) || !take(&at, '\n', COUNT_MAX, &n))
		return bad(f, 1, "this is no working set");
	if (bytes != w->n_pages * FERRY_PAGE_SIZE_DEFAULT)
		return bad(f, 1, "it is of a snapshot of another size");
	for (size_t line = 2; at < end; line++)
		if (!parse_run(w, &at))
			return bad(f, line, "no run of pages in the snapshot");
	w->n_recordings = (uint32_t)FERRY_MIN(w->n_recordings + n, (uint64_t)COUNT_MAX);
	return 0;
}
