/* SPDX-License-Identifier: Apache-2.0 */
/* Which memory of another process is there: mapped, or swapped out. */
#ifndef FERRY_UFFD_PRESENT_H
#define FERRY_UFFD_PRESENT_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "uffd/kernel.h"

#define FERRY_PRESENT_RUNS 128u

/* One walk over a range. */
struct ferry_present {
	int fd; /* owned: /proc/PID/pagemap */
	/* Entries are read one by one, as before Linux 6.7; else the kernel is asked for runs, and steps over
	 * what has no page tables. Set by itself; a test may. */
	bool reads;
	uint64_t at, end;				/* what is left, bytes of address */
	struct page_region found[FERRY_PRESENT_RUNS];	/* ascending; those from next_run on were not given out */
	uint32_t n_found, next_run;
};

/* Errors: negative errno; -EACCES where the process may not be looked at. */
int ferry_present_open(struct ferry_present *p, pid_t pid);
void ferry_present_close(struct ferry_present *p);

/* Begins anew. Addresses and lengths are multiples of 4 KiB. */
void ferry_present_begin(struct ferry_present *p, uint64_t start, uint64_t bytes);

/**
 * ferry_present_next() - the next run that is there
 * @from, @to: first address, and the first one after it. Runs ascend; neighbours may touch.
 * Return: 1, 0 at the end, or a negative errno.
 */
int ferry_present_next(struct ferry_present *p, uint64_t *from, uint64_t *to);

#endif
