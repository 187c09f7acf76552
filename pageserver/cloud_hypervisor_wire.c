/* SPDX-License-Identifier: Apache-2.0 */
#include "pageserver/cloud_hypervisor_wire.h"

#include <endian.h>
#include <errno.h>
#include <string.h>

static void put16(uint16_t v, uint8_t *bytes)
{
	v = htole16(v);
	memcpy(bytes, &v, sizeof(v));
}

static uint16_t get16(const uint8_t *bytes)
{
	uint16_t v;

	memcpy(&v, bytes, sizeof(v));
	return le16toh(v);
}

static uint64_t get64(const uint8_t *bytes)
{
	uint64_t v;

	memcpy(&v, bytes, sizeof(v));
	return le64toh(v);
}

void ferry_cloudhv_encode(const struct ferry_cloudhv_header *h, uint8_t *bytes)
{
	uint64_t length = htole64(h->length);

	memset(bytes, 0, FERRY_CLOUDHV_HEADER_BYTES);
	put16(h->kind, bytes);
	put16(h->version, bytes + 2);
	memcpy(bytes + 8, &length, sizeof(length));
}

void ferry_cloudhv_decode(const uint8_t *bytes, struct ferry_cloudhv_header *h)
{
	h->kind = get16(bytes);
	h->version = get16(bytes + 2);
	h->length = get64(bytes + 8);
}

void ferry_cloudhv_encode_role(uint16_t role, uint8_t *bytes)
{
	put16(role, bytes);
}

void ferry_cloudhv_decode_range(const uint8_t *bytes, struct ferry_cloudhv_range *r)
{
	r->start.v = get64(bytes);
	r->bytes = get64(bytes + 8);
}

int ferry_cloudhv_check_answer(const struct ferry_cloudhv_header *h, const char *what,
			       struct ferry_failure *f)
{
	if (h->kind == FERRY_CLOUDHV_ERROR)
		return ferry_fail(f, FERRY_REFUSE, -ECONNREFUSED,
				  "the target refuses %s; its log says why", what);
	if (h->kind != FERRY_CLOUDHV_OK || h->length)
		return ferry_fail(f, FERRY_REFUSE, -EPROTO,
				  "what answers to %s is not Cloud Hypervisor; check the address",
				  what);
	return 0;
}

int ferry_cloudhv_check_request(const struct ferry_cloudhv_header *h, struct ferry_failure *f)
{
	if (h->kind != FERRY_CLOUDHV_PAGE_FAULT && h->kind != FERRY_CLOUDHV_ABANDON)
		return ferry_fail(f, FERRY_LINK, -EBADMSG, "command %u is none that asks for pages",
				  h->kind);
	if (h->length != (h->kind == FERRY_CLOUDHV_PAGE_FAULT ? FERRY_CLOUDHV_RANGE_BYTES : 0))
		return ferry_fail(f, FERRY_LINK, -EBADMSG, "command %u can't have %llu bytes",
				  h->kind, (unsigned long long)h->length);
	return 0;
}

int ferry_cloudhv_find(const struct ferry_cloudhv_range *ranges, uint32_t n_ranges,
		       const struct ferry_cloudhv_range *asked, struct ferry_run *run,
		       struct ferry_failure *f)
{
	if (!asked->bytes || asked->bytes > FERRY_CLOUDHV_MAX_ANSWER ||
	    (asked->bytes | asked->start.v) % FERRY_CLOUDHV_PAGE_BYTES)
		return ferry_fail(f, FERRY_LINK, -EBADMSG, "%llu bytes at %#llx are no pages",
				  (unsigned long long)asked->bytes,
				  (unsigned long long)asked->start.v);
	for (uint32_t i = 0; i < n_ranges; i++) {
		const struct ferry_cloudhv_range *r = &ranges[i];
		uint64_t offset = asked->start.v - r->start.v;

		if (asked->start.v < r->start.v || offset >= r->bytes ||
		    asked->bytes > r->bytes - offset)
			continue;
		*run = (struct ferry_run){
			.region = i,
			.first_page = offset / FERRY_CLOUDHV_PAGE_BYTES,
			.n_pages = (uint32_t)(asked->bytes / FERRY_CLOUDHV_PAGE_BYTES),
		};
		return 0;
	}
	return ferry_fail(f, FERRY_LINK, -EBADMSG,
			  "%llu bytes at %#llx are asked for, which are not in the snapshot",
			  (unsigned long long)asked->bytes, (unsigned long long)asked->start.v);
}
