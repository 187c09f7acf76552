/* SPDX-License-Identifier: Apache-2.0 */
/* From --pid and --match to the mappings that are meant. */
#ifndef FERRY_TOOLS_MAPPINGS_H
#define FERRY_TOOLS_MAPPINGS_H

#include <stddef.h>
#include <sys/types.h>

#include "base/error.h"
#include "protocol/limits.h"
#include "tools/options.h"
#include "uffd/maps.h"

struct mappings {
	struct ferry_mapping v[FERRY_MAX_REGIONS];
	uint32_t n;
};

/**
 * mappings_select() - the mappings that the texts mean, in the order of the texts, then of address
 * A text is part of a mapping's name; or, since most private memory has none, 0xSTART or
 * 0xSTART-0xEND as in /proc/PID/maps: the mapping that holds START, or that part of it. Mappings
 * that can't be read (guard pages) are passed over.
 * Errors: -ENOENT, -EEXIST (meant twice), -E2BIG and what ferry_maps_find() has; in @f.
 */
int mappings_select(pid_t pid, const struct option_texts *texts, struct mappings *out,
		    struct ferry_failure *f);

/* What the region of a mapping is called on the wire: what is behind the last slash of its name. */
void mapping_region_name(const struct ferry_mapping *m, char *out, size_t size);

#endif
