// SPDX-License-Identifier: Apache-2.0
/* Source: Documentation/admin-guide/mm/pagemap.rst */
#include "uffd/present.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/util.h"

/* Of an entry: the page is mapped, or swapped out. */
#define ENTRY_HERE (UINT64_C(3) << 62)
#define ENTRIES	   1024u /* a read */

int ferry_present_open(struct ferry_present *p, pid_t pid)
{
	char path[64];

	*p = (struct ferry_present){0};
	snprintf(path, sizeof(path), "/proc/%d/pagemap", (int)pid);
	p->fd = open(path, O_RDONLY | O_CLOEXEC);
	return p->fd < 0 ? -errno : 0;
}

void ferry_present_close(struct ferry_present *p)
{
	ferry_close(TAKE_FD(p->fd));
}

void ferry_present_begin(struct ferry_present *p, uint64_t start, uint64_t bytes)
{
	p->at = start;
	p->end = start + bytes;
	p->n_found = p->next_run = 0;
}

static int scan(struct ferry_present *p)
{
	struct pm_scan_arg arg = {
		.size = sizeof(arg),
		.start = p->at,
		.end = p->end,
		.vec = (uintptr_t)p->found,
		.vec_len = FERRY_PRESENT_RUNS,
		.category_anyof_mask = PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
		.return_mask = PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
	};
	int n = ioctl(p->fd, PAGEMAP_SCAN, &arg);

	if (n < 0)
		return -errno;
	if (arg.walk_end <= p->at)
		return -EIO;
	p->n_found = (uint32_t)n;
	p->at = arg.walk_end;
	return 0;
}

static int read_entries(struct ferry_present *p)
{
	uint64_t first = p->at / FERRY_PAGE_SIZE_DEFAULT, entries[ENTRIES];
	size_t want = FERRY_MIN((p->end - p->at) / FERRY_PAGE_SIZE_DEFAULT, (uint64_t)ENTRIES);
	ssize_t n = pread(p->fd, entries, want * sizeof(entries[0]),
			  (off_t)(first * sizeof(entries[0])));

	if (n <= 0)
		return n ? -errno : -EIO;
	for (size_t i = 0; i < (size_t)n / sizeof(entries[0]); i++) {
		struct page_region *last = p->n_found ? &p->found[p->n_found - 1] : NULL;

		if (!(entries[i] & ENTRY_HERE)) {
			p->at += FERRY_PAGE_SIZE_DEFAULT;
			continue;
		}
		if (!last || last->end != p->at) {
			if (p->n_found == FERRY_PRESENT_RUNS)
				return 0;
			last = &p->found[p->n_found++];
			last->start = p->at;
		}
		p->at += FERRY_PAGE_SIZE_DEFAULT;
		last->end = p->at;
	}
	return 0;
}

int ferry_present_next(struct ferry_present *p, uint64_t *from, uint64_t *to)
{
	while (p->next_run == p->n_found) {
		int rc = 0;

		if (p->at >= p->end)
			return 0;
		p->n_found = p->next_run = 0;
		if (!p->reads)
			rc = scan(p);
		if (rc == -ENOTTY || rc == -EINVAL) {
			p->reads = true;
			rc = 0;
		}
		if (!rc && p->reads)
			rc = read_entries(p);
		if (rc < 0)
			return rc;
	}
	*from = p->found[p->next_run].start;
	*to = p->found[p->next_run].end;
	p->next_run++;
	return 1;
}
