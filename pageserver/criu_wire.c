/* SPDX-License-Identifier: Apache-2.0 */
#include "pageserver/criu_wire.h"

#include <errno.h>
#include <string.h>

#include "base/util.h"

void ferry_criu_decode(const uint8_t *bytes, uint32_t header_bytes, struct ferry_criu_message *m)
{
	uint32_t word, n;

	memcpy(&word, bytes, 4);
	m->command = (uint16_t)word;
	m->flags = (uint16_t)(word >> 16);
	if (header_bytes == FERRY_CRIU_HEADER_OLD) {
		memcpy(&n, bytes + 4, 4);
		m->n_pages = n;
	} else {
		memcpy(&m->n_pages, bytes + 8, 8);
	}
	memcpy(&m->address, bytes + header_bytes - 16, 8);
	memcpy(&m->pid, bytes + header_bytes - 8, 8);
}

void ferry_criu_encode(const struct ferry_criu_message *m, uint32_t header_bytes, uint8_t *bytes)
{
	uint32_t word = m->command | (uint32_t)m->flags << 16, n = (uint32_t)m->n_pages;

	memset(bytes, 0, header_bytes);
	memcpy(bytes, &word, 4);
	if (header_bytes == FERRY_CRIU_HEADER_OLD)
		memcpy(bytes + 4, &n, 4);
	else
		memcpy(bytes + 8, &m->n_pages, 8);
	memcpy(bytes + header_bytes - 16, &m->address, 8);
	memcpy(bytes + header_bytes - 8, &m->pid, 8);
}

int ferry_criu_find(const struct ferry_criu_range *ranges, uint32_t n_ranges, uint64_t pid,
		    const struct ferry_criu_message *m, struct ferry_run *run,
		    struct ferry_failure *f)
{
	if (m->pid != pid)
		return ferry_fail(f, FERRY_LINK, -EBADMSG,
				  "pages of process %llu are asked for; served is %llu",
				  (unsigned long long)m->pid, (unsigned long long)pid);
	if (!m->n_pages || m->address % FERRY_CRIU_PAGE_BYTES)
		return ferry_fail(f, FERRY_LINK, -EBADMSG,
				  "%llu pages at %#llx make no sense; does CRIU have headers of "
				  "another size (--header)?",
				  (unsigned long long)m->n_pages, (unsigned long long)m->address);
	for (uint32_t i = 0; i < n_ranges; i++) {
		const struct ferry_criu_range *r = &ranges[i];
		uint64_t page = (m->address - r->address) / FERRY_CRIU_PAGE_BYTES;

		if (m->address < r->address || page >= r->n_pages)
			continue;
		*run = (struct ferry_run){
			.region = i,
			.first_page = page,
			.n_pages = (uint32_t)FERRY_MIN(FERRY_MIN(m->n_pages, r->n_pages - page),
						       (uint64_t)FERRY_CRIU_MAX_ANSWER_PAGES),
		};
		return 0;
	}
	return ferry_fail(f, FERRY_LINK, -EBADMSG,
			  "the page at %#llx is asked for, which is in no mapping that is served; add "
			  "it with --match",
			  (unsigned long long)m->address);
}
