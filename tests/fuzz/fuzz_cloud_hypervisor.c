/* SPDX-License-Identifier: Apache-2.0 */
/* What a Cloud Hypervisor target asks for and answers: headers, each with a range behind it. */
#include "fuzz.h"
#include "pageserver/cloud_hypervisor_wire.h"

#define MESSAGE_BYTES (FERRY_CLOUDHV_HEADER_BYTES + FERRY_CLOUDHV_RANGE_BYTES)

static const struct ferry_cloudhv_range ranges[] = {
	{.start = {0x100000000}, .bytes = 0x80000000},
	{.start = {0}, .bytes = 0xa0000},
	{.start = {0xfffffffffffff000}, .bytes = 0x1000},
};

static void take_range(const uint8_t *bytes)
{
	struct ferry_cloudhv_range asked;
	struct ferry_failure f;
	struct ferry_run run;
	uint64_t n_pages;

	ferry_cloudhv_decode_range(bytes, &asked);
	if (ferry_cloudhv_find(ranges, 3, &asked, &run, &f) < 0)
		return;
	/* What is given is all of what was asked for, and all of it is there. */
	MUST(run.region < 3 && run.n_pages && asked.bytes <= FERRY_CLOUDHV_MAX_ANSWER);
	MUST((uint64_t)run.n_pages * FERRY_CLOUDHV_PAGE_BYTES == asked.bytes);
	n_pages = ranges[run.region].bytes / FERRY_CLOUDHV_PAGE_BYTES;
	MUST(run.first_page < n_pages && run.n_pages <= n_pages - run.first_page);
	MUST(ranges[run.region].start.v + run.first_page * FERRY_CLOUDHV_PAGE_BYTES ==
	     asked.start.v);
}

static void take_header(const uint8_t *bytes)
{
	struct ferry_cloudhv_header h, again;
	uint8_t out[FERRY_CLOUDHV_HEADER_BYTES];
	struct ferry_failure f;

	ferry_cloudhv_decode(bytes, &h);
	ferry_cloudhv_encode(&h, out);
	ferry_cloudhv_decode(out, &again);
	MUST(h.kind == again.kind && h.version == again.version && h.length == again.length);
	if (!ferry_cloudhv_check_answer(&h, "x", &f))
		MUST(h.kind == FERRY_CLOUDHV_OK && !h.length);
	if (!ferry_cloudhv_check_request(&h, &f))
		MUST((h.kind == FERRY_CLOUDHV_PAGE_FAULT &&
		      h.length == FERRY_CLOUDHV_RANGE_BYTES) ||
		     (h.kind == FERRY_CLOUDHV_ABANDON && !h.length));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	for (size_t at = 0; at + MESSAGE_BYTES <= size; at += MESSAGE_BYTES) {
		take_header(data + at);
		take_range(data + at + FERRY_CLOUDHV_HEADER_BYTES);
	}
	return 0;
}
