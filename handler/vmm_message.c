// SPDX-License-Identifier: Apache-2.0
#include "handler/vmm_message.h"

#include <errno.h>
#include <jansson.h>
#include <stdbool.h>

ssize_t ferry_vmm_message_end(const char *data, size_t len)
{
	bool in_string = false, escaped = false;
	size_t depth = 0;

	if (len && data[0] != '[')
		return -EBADMSG;
	for (size_t i = 0; i < len; i++) {
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

static int bad(struct ferry_failure *f, size_t i, const char *what)
{
	return ferry_fail(f, FERRY_REFUSE, -EBADMSG, "the VMM's message: region %zu: %s", i, what);
}

/* Return: false when it is there and no number from 0 on. */
static bool number(const json_t *region, const char *key, bool *there, uint64_t *out)
{
	const json_t *value = json_object_get(region, key);

	*there = value;
	if (!value)
		return true;
	if (!json_is_integer(value) || json_integer_value(value) < 0)
		return false;
	*out = (uint64_t)json_integer_value(value);
	return true;
}

static int take_page_size(const json_t *json, size_t i, uint32_t *out, struct ferry_failure *f)
{
	uint64_t bytes = FERRY_PAGE_SIZE_DEFAULT;
	bool there;

	if (!number(json, "page_size", &there, &bytes))
		return bad(f, i, "page_size is no number of bytes");
	/* The older name says KiB, and means bytes. */
	if (!there && !number(json, "page_size_kib", &there, &bytes))
		return bad(f, i, "page_size_kib is no number of bytes");
	if (bytes < FERRY_MIN_PAGE_BYTES || bytes > FERRY_MAX_PAGE_BYTES || bytes & (bytes - 1))
		return bad(f, i, "its page size is not from 4 KiB to 2 MiB");
	*out = (uint32_t)bytes;
	return 0;
}

static int take_region(const json_t *json, size_t i, struct ferry_vmm_region *out,
		       struct ferry_failure *f)
{
	bool has_start, has_bytes, has_offset;
	int rc;

	if (!json_is_object(json))
		return bad(f, i, "it is no object");
	if (!number(json, "base_host_virt_addr", &has_start, &out->start.v) ||
	    !number(json, "size", &has_bytes, &out->bytes) ||
	    !number(json, "offset", &has_offset, &out->offset))
		return bad(f, i, "base_host_virt_addr, size or offset is no number from 0 on");
	if (!has_start || !has_bytes || !has_offset)
		return bad(f, i, "base_host_virt_addr, size or offset is missing");
	rc = take_page_size(json, i, &out->page_bytes, f);
	if (rc < 0)
		return rc;
	if ((out->start.v | out->bytes | out->offset) % out->page_bytes)
		return bad(f, i, "its address, size and offset are not multiples of its page size");
	/* Numbers of JSON are below 2^63 here, so that no sum of two of them wraps around. */
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

static int take_regions(const json_t *json, struct ferry_vmm_message *m, struct ferry_failure *f)
{
	size_t n = json_array_size(json);

	if (!json_is_array(json) || !n || n > FERRY_MAX_REGIONS)
		return ferry_fail(f, FERRY_REFUSE, -EBADMSG,
				  "the VMM's message: %zu regions; 1 to %d are possible", n,
				  FERRY_MAX_REGIONS);
	for (size_t i = 0; i < n; i++) {
		int rc = take_region(json_array_get(json, i), i, &m->regions[i], f);

		if (rc < 0)
			return rc;
	}
	m->n_regions = (uint32_t)n;
	return check_overlaps(m, f);
}

int ferry_vmm_message_parse(const char *data, size_t len, struct ferry_vmm_message *out,
			    struct ferry_failure *f)
{
	struct ferry_vmm_message m = {0};
	json_error_t e;
	json_t *json = json_loadb(data, len, JSON_REJECT_DUPLICATES, &e);
	int rc;

	if (!json)
		return ferry_fail(f, FERRY_REFUSE, -EBADMSG, "the VMM's message is no JSON: %s",
				  e.text);
	rc = take_regions(json, &m, f);
	json_decref(json);
	if (!rc)
		*out = m;
	return rc;
}
