/* SPDX-License-Identifier: Apache-2.0 */
/* What comes from a VMM that restores a snapshot. */
#include <errno.h>
#include <string.h>

#include "fuzz.h"
#include "handler/vmm_message.h"

static void check(const struct ferry_vmm_message *m)
{
	MUST(m->n_regions && m->n_regions <= FERRY_MAX_REGIONS);
	for (uint32_t i = 0; i < m->n_regions; i++) {
		const struct ferry_vmm_region *r = &m->regions[i];

		MUST(r->page_bytes >= FERRY_MIN_PAGE_BYTES &&
		     r->page_bytes <= FERRY_MAX_PAGE_BYTES);
		MUST(r->bytes && (r->start.v | r->bytes | r->offset) % r->page_bytes == 0);
		MUST(r->bytes / r->page_bytes <= FERRY_MAX_REGION_PAGES);
		MUST(r->start.v + r->bytes > r->start.v && r->offset + r->bytes > r->offset);
		for (uint32_t j = 0; j < i; j++)
			MUST(r->start.v + r->bytes <= m->regions[j].start.v ||
			     m->regions[j].start.v + m->regions[j].bytes <= r->start.v);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	const char *text = (const char *)data;
	ssize_t end = ferry_vmm_message_end(text, size);
	struct ferry_vmm_message m;
	struct ferry_failure f = {0};

	MUST(end == -EBADMSG || (end >= 0 && (size_t)end <= size));
	/* Where it ends does not depend on how much of it has come. */
	if (end > 0) {
		MUST(ferry_vmm_message_end(text, (size_t)end) == end);
		MUST(ferry_vmm_message_end(text, (size_t)end - 1) == 0);
	}
	if (!ferry_vmm_message_parse(text, size, &m, &f))
		check(&m);
	else
		MUST(f.err == -EBADMSG && memchr(f.text, 0, sizeof(f.text)));
	return 0;
}
