// SPDX-License-Identifier: Apache-2.0
#include "tools/mappings.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/cleanup.h"

static int add(struct mappings *to, const struct ferry_mapping *m, struct ferry_failure *f)
{
	for (uint32_t i = 0; i < to->n; i++) {
		if (m->start.v < to->v[i].start.v + to->v[i].len &&
		    to->v[i].start.v < m->start.v + m->len)
			return ferry_fail(f, FERRY_REFUSE, -EEXIST,
					  "two --match mean the memory at %#" PRIx64
					  "; use texts that don't overlap",
					  m->start.v);
	}
	if (to->n == FERRY_ARRAY_SIZE(to->v))
		return ferry_fail(f, FERRY_REFUSE, -E2BIG,
				  "more than %d mappings match; use a narrower --match",
				  FERRY_MAX_REGIONS);
	to->v[to->n++] = *m;
	return 0;
}

static int add_by_name(pid_t pid, const char *text, struct mappings *to, struct ferry_failure *f)
{
	_cleanup_free_ struct ferry_mapping *found = NULL;
	uint32_t before = to->n;
	size_t n;
	int rc = ferry_maps_find(pid, text, &found, &n, f);

	for (size_t i = 0; !rc && i < n; i++) {
		if (found[i].readable)
			rc = add(to, &found[i], f);
	}
	if (!rc && to->n == before)
		return ferry_fail(f, FERRY_REFUSE, -ENOENT,
				  "no mapping of process %d that matches '%.60s' can be read",
				  (int)pid, text);
	return rc;
}

static int add_by_address(pid_t pid, uint64_t start, uint64_t end, struct mappings *to,
			  struct ferry_failure *f)
{
	_cleanup_free_ struct ferry_mapping *found = NULL;
	size_t n, i;
	int rc = ferry_maps_find(pid, "", &found, &n, f);

	if (rc < 0)
		return rc;
	for (i = 0; i < n; i++) {
		if (start >= found[i].start.v && start < found[i].start.v + found[i].len)
			break;
	}
	if (i == n)
		return ferry_fail(f, FERRY_REFUSE, -ENOENT, "process %d has no memory at %#" PRIx64,
				  (int)pid, start);
	if (!end)
		return add(to, &found[i], f);
	if (end > found[i].start.v + found[i].len || end <= start || start % found[i].page_bytes ||
	    end % found[i].page_bytes)
		return ferry_fail(f, FERRY_REFUSE, -EINVAL,
				  "%#" PRIx64 "-%#" PRIx64 " is not part of one mapping in whole "
				  "pages of %u bytes; see /proc/%d/maps",
				  start, end, found[i].page_bytes, (int)pid);
	found[i].offset += start - found[i].start.v;
	found[i].start.v = start;
	found[i].len = end - start;
	return add(to, &found[i], f);
}

/* Return: whether @text is 0xSTART or 0xSTART-0xEND. @end: 0 for none. */
static bool parse_addresses(const char *text, uint64_t *start, uint64_t *end)
{
	int done = -1;

	*end = 0;
	if (strncmp(text, "0x", 2))
		return false;
	if (sscanf(text, "0x%" SCNx64 "-0x%" SCNx64 "%n", start, end, &done) == 2 && done > 0 &&
	    !text[done])
		return *end;
	*end = 0;
	return sscanf(text, "0x%" SCNx64 "%n", start, &done) == 1 && !text[done];
}

int mappings_select(pid_t pid, const struct option_texts *texts, struct mappings *out,
		    struct ferry_failure *f)
{
	out->n = 0;
	for (uint32_t i = 0; i < texts->n; i++) {
		uint64_t start, end;
		int rc;

		if (parse_addresses(texts->v[i], &start, &end))
			rc = add_by_address(pid, start, end, out, f);
		else
			rc = add_by_name(pid, texts->v[i], out, f);
		if (rc < 0)
			return rc;
	}
	return 0;
}

void mapping_region_name(const struct ferry_mapping *m, char *out, size_t size)
{
	const char *slash = strrchr(m->name, '/');
	const char *name = slash ? slash + 1 : m->name;

	if (*name)
		snprintf(out, size, "%.*s", (int)size - 1, name);
	else
		snprintf(out, size, "%#" PRIx64, m->start.v);
}
