/* SPDX-License-Identifier: Apache-2.0 */
/* What a CRIU asks for: headers of both sizes, one after the other. */
#include "fuzz.h"
#include "pageserver/criu_wire.h"

static const struct ferry_criu_range ranges[] = {
	{.address = 0x10000, .n_pages = 300},
	{.address = 0x7f0000000000, .n_pages = 1},
	{.address = 0xfffffffffffff000, .n_pages = 1},
};

static void take(const uint8_t *bytes, uint32_t header_bytes)
{
	struct ferry_criu_message m, again;
	uint8_t out[FERRY_CRIU_HEADER_NEW];
	struct ferry_failure f;
	struct ferry_run run;
	uint64_t at;

	ferry_criu_decode(bytes, header_bytes, &m);
	ferry_criu_encode(&m, header_bytes, out);
	ferry_criu_decode(out, header_bytes, &again);
	MUST(m.command == again.command && m.flags == again.flags && m.pid == again.pid);
	MUST(m.n_pages == again.n_pages && m.address == again.address);
	if (ferry_criu_find(ranges, 3, 7, &m, &run, &f) < 0)
		return;
	/* What is given is the beginning of what was asked for, and all of it is there. */
	MUST(m.pid == 7 && run.region < 3 && run.n_pages && run.n_pages <= m.n_pages);
	MUST(run.n_pages <= FERRY_CRIU_MAX_ANSWER_PAGES);
	MUST(run.first_page + run.n_pages <= ranges[run.region].n_pages);
	at = ranges[run.region].address + run.first_page * FERRY_CRIU_PAGE_BYTES;
	MUST(at == m.address);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	for (size_t at = 0; at + FERRY_CRIU_HEADER_OLD <= size; at += FERRY_CRIU_HEADER_OLD)
		take(data + at, FERRY_CRIU_HEADER_OLD);
	for (size_t at = 0; at + FERRY_CRIU_HEADER_NEW <= size; at += FERRY_CRIU_HEADER_NEW)
		take(data + at, FERRY_CRIU_HEADER_NEW);
	return 0;
}
