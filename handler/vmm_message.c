// SPDX-License-Identifier: Apache-2.0
/*
 * The JSON is read here, and not by a library: those refuse a whole text for one number or string
 * that they can't hold, and a VMM may send more than we know, whatever that may be. So only what we
 * need is understood, and of all else no more than where it ends.
 */
#include "handler/vmm_message.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>

static bool is_space(char c)
{
	return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

ssize_t ferry_vmm_message_end(const char *data, size_t len)
{
	bool in_string = false, escaped = false;
	size_t depth = 0, begin = 0;

	while (begin < len && is_space(data[begin]))
		begin++;
	if (begin < len && data[begin] != '[')
		return -EBADMSG;
	for (size_t i = begin; i < len; i++) {
		char c = data[i];

		if (in_string) {
			if (c == '"' && !escaped)
				in_string = false;
			escaped = c == '\\' && !escaped;
		} else if (c == '"') {
			in_string = true;
		} else if (c == '[' || c == '{') {
			depth++;
		} else if ((c == ']' || c == '}') && !--depth) {
			return (ssize_t)(i + 1);
		}
	}
	return 0;
}

/* --- JSON ------------------------------------------------------------------------------------- */

struct scan {
	const char *at, *end;
};

/* Return: whether it comes next. What does is passed over then. */
static bool take(struct scan *s, char c)
{
	while (s->at < s->end && is_space(*s->at))
		s->at++;
	if (s->at == s->end || *s->at != c)
		return false;
	s->at++;
	return true;
}

/* @text: as it is between the quotes. Return: false when there is no string. */
static bool take_string(struct scan *s, struct scan *text)
{
	if (!take(s, '"'))
		return false;
	text->at = s->at;
	for (; s->at < s->end && *s->at != '"'; s->at++)
		if (*s->at == '\\' && ++s->at == s->end)
			return false;
	text->end = s->at;
	return take(s, '"');
}

static bool ends_value(const struct scan *s)
{
	return s->at == s->end || is_space(*s->at) || strchr(",:]}", *s->at);
}

/* Return: false when there is no whole number from 0 to below 2^63; nothing is passed over then. */
static bool take_number(struct scan *s, uint64_t *out)
{
	struct scan at = *s;
	uint64_t v = 0;

	while (at.at < at.end && is_space(*at.at))
		at.at++;
	s->at = at.at;
	for (; at.at < at.end && *at.at >= '0' && *at.at <= '9'; at.at++) {
		uint64_t digit = (uint64_t)(*at.at - '0');

		if ((!v && at.at > s->at) || v > (INT64_MAX - digit) / 10)
			return false;
		v = v * 10 + digit;
	}
	if (at.at == s->at || !ends_value(&at))
		return false;
	*s = at;
	*out = v;
	return true;
}

/* Return: false when it does not end. */
static bool skip_value(struct scan *s)
{
	size_t depth = 0;
	struct scan text;

	do {
		if (take(s, '[') || take(s, '{')) {
			depth++;
		} else if (depth && (take(s, ']') || take(s, '}'))) {
			depth--;
		} else if (depth && (take(s, ',') || take(s, ':'))) {
			continue;
		} else if (!take_string(s, &text)) {
			const char *begin = s->at;

			while (!ends_value(s) && !strchr("[{\"", *s->at))
				s->at++;
			if (s->at == begin)
				return false;
		}
	} while (depth);
	return true;
}

/* --- regions ---------------------------------------------------------------------------------- */

static int bad(struct ferry_failure *f, size_t i, const char *what)
{
	return ferry_fail(f, FERRY_REFUSE, -EBADMSG, "the VMM's message: region %zu: %s", i, what);
}

/* What is known of a region, in the order of @keys. */
enum key { START, BYTES, OFFSET, PAGE_SIZE, PAGE_SIZE_KIB, N_KEYS };

static const char *const keys[N_KEYS] = {
	"base_host_virt_addr", "size",		"offset",
	"page_size",	       "page_size_kib", /* the older name says KiB, and means bytes */
};

struct value {
	bool there, is_number;
	uint64_t v;
};

static struct value *find(struct value *values, const struct scan *text)
{
	size_t len = (size_t)(text->end - text->at);

	for (size_t k = 0; k < N_KEYS; k++)
		if (len == strlen(keys[k]) && !memcmp(keys[k], text->at, len))
			return &values[k];
	return NULL;
}

static int take_values(struct scan *s, size_t i, struct value *values, struct ferry_failure *f)
{
	if (!take(s, '{'))
		return bad(f, i, "it is no object");
	if (take(s, '}'))
		return 0;
	do {
		struct scan text;
		struct value *known;

		if (!take_string(s, &text) || !take(s, ':'))
			return bad(f, i, "it is no JSON");
		known = find(values, &text);
		if (known && known->there)
			return bad(f, i, "a key is there twice");
		if (known) {
			known->there = true;
			known->is_number = take_number(s, &known->v);
		}
		if ((!known || !known->is_number) && !skip_value(s))
			return bad(f, i, "it is no JSON");
	} while (take(s, ','));
	return take(s, '}') ? 0 : bad(f, i, "it is no JSON");
}

static int take_page_size(const struct value *values, size_t i, uint32_t *out,
			  struct ferry_failure *f)
{
	const struct value *v = &values[values[PAGE_SIZE].there ? PAGE_SIZE : PAGE_SIZE_KIB];
	uint64_t bytes = v->there ? v->v : FERRY_PAGE_SIZE_DEFAULT;

	if (v->there && !v->is_number)
		return bad(f, i, "page_size, or page_size_kib, is no number of bytes");
	if (bytes < FERRY_MIN_PAGE_BYTES || bytes > FERRY_MAX_PAGE_BYTES || bytes & (bytes - 1))
		return bad(f, i, "its page size is not from 4 KiB to 2 MiB");
	*out = (uint32_t)bytes;
	return 0;
}

static int take_region(struct scan *s, size_t i, struct ferry_vmm_region *out,
		       struct ferry_failure *f)
{
	struct value values[N_KEYS] = {0};
	int rc = take_values(s, i, values, f);

	if (rc < 0)
		return rc;
	for (size_t k = START; k <= OFFSET; k++) {
		if (!values[k].there)
			return bad(f, i, "base_host_virt_addr, size or offset is missing");
		if (!values[k].is_number)
			return bad(f, i,
				   "base_host_virt_addr, size or offset is no whole number from 0 "
				   "to 2^63");
	}
	out->start.v = values[START].v;
	out->bytes = values[BYTES].v;
	out->offset = values[OFFSET].v;
	rc = take_page_size(values, i, &out->page_bytes, f);
	if (rc < 0)
		return rc;
	if ((out->start.v | out->bytes | out->offset) % out->page_bytes)
		return bad(f, i, "its address, size and offset are not multiples of its page size");
	/* Numbers are below 2^63 here, so that no sum of two of them wraps around. */
	if (!out->bytes || out->bytes / out->page_bytes > FERRY_MAX_REGION_PAGES)
		return bad(f, i, "it is empty, or too large");
	return 0;
}

static int check_overlaps(const struct ferry_vmm_message *m, struct ferry_failure *f)
{
	for (uint32_t i = 0; i < m->n_regions; i++)
		for (uint32_t j = 0; j < i; j++) {
			const struct ferry_vmm_region *a = &m->regions[i], *b = &m->regions[j];

			if (a->start.v < b->start.v + b->bytes &&
			    b->start.v < a->start.v + a->bytes)
				return bad(f, i, "it overlaps another one");
		}
	return 0;
}

static int take_regions(struct scan *s, struct ferry_vmm_message *m, struct ferry_failure *f)
{
	if (!take(s, '['))
		return ferry_fail(f, FERRY_REFUSE, -EBADMSG, "the VMM's message is no JSON array");
	if (take(s, ']'))
		return ferry_fail(f, FERRY_REFUSE, -EBADMSG, "the VMM's message has no regions");
	do {
		int rc;

		if (m->n_regions == FERRY_MAX_REGIONS)
			return ferry_fail(f, FERRY_REFUSE, -EBADMSG,
					  "the VMM's message: more than %d regions",
					  FERRY_MAX_REGIONS);
		rc = take_region(s, m->n_regions, &m->regions[m->n_regions], f);
		if (rc < 0)
			return rc;
		m->n_regions++;
	} while (take(s, ','));
	return take(s, ']') ? check_overlaps(m, f) : bad(f, m->n_regions, "no end of the array");
}

int ferry_vmm_message_parse(const char *data, size_t len, struct ferry_vmm_message *out,
			    struct ferry_failure *f)
{
	struct ferry_vmm_message m = {0};
	struct scan s = {data, data + len};
	int rc = take_regions(&s, &m, f);

	if (rc < 0)
		return rc;
	while (s.at < s.end && is_space(*s.at))
		s.at++;
	if (s.at < s.end)
		return ferry_fail(f, FERRY_REFUSE, -EBADMSG,
				  "the VMM's message has something behind its array");
	*out = m;
	return 0;
}
