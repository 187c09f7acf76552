/* SPDX-License-Identifier: Apache-2.0 */
/* What the kinds of page sources share. */
#ifndef FERRY_PAGESERVER_SOURCE_INTERNAL_H
#define FERRY_PAGESERVER_SOURCE_INTERNAL_H

#include "pageserver/source.h"

struct ferry_source_ops {
	int (*pages)(struct ferry_source *s, uint64_t first, uint32_t n, void *scratch,
		     const void **data);
	/* NULL: the bytes may simply be read. */
	int (*is_zero)(struct ferry_source *s, uint64_t page);
	/* NULL: the same. Adds a run's bytes to a checksum. */
	int (*sum)(struct ferry_source *s, uint64_t first, uint32_t n, void *state);
	/* NULL: no holes are known. */
	int (*next_data)(struct ferry_source *s, uint64_t from, uint64_t *first, uint64_t *end);
	/* NULL: everything is there. */
	bool (*has)(struct ferry_source *s, uint64_t first, uint32_t n, bool want);
	/* NULL: never waits for a disk. */
	int (*disk)(const struct ferry_source *s, uint64_t page, uint64_t *offset);
	void (*free)(struct ferry_source *s); /* of what the kind owns; not of @s itself */
};

/* The first member of each kind's struct. */
struct ferry_source {
	const struct ferry_source_ops *ops;
	struct ferry_region_desc desc;
	uint64_t identity; /* see ferry_source_identity() */
	bool copies;
};

/* Fill in the description. Errors: -EINVAL (REFUSE). */
int ferry_source_describe(struct ferry_source *s, const char *name, uint64_t bytes,
			  uint32_t page_bytes, struct ferry_failure *f);

/* Pages of private anonymous memory that were never touched, seen by /proc/PID/pagemap. */
struct ferry_untouched {
	int pagemap_fd; /* owned; -1 when nothing is known */
	uint64_t start; /* address of the first page */
};

/* @pid: 0 for this process. Knows nothing when any part of the range is not private and anonymous.
 */
void ferry_untouched_open(struct ferry_untouched *u, pid_t pid, uint64_t start, uint64_t bytes);
void ferry_untouched_close(struct ferry_untouched *u);
int ferry_untouched_next_data(const struct ferry_untouched *u, const struct ferry_region_desc *d,
			      uint64_t from, uint64_t *first, uint64_t *end);

#endif
