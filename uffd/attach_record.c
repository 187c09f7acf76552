/* SPDX-License-Identifier: Apache-2.0 */
#include "uffd/attach_record.h"

#include <stdio.h>

#include "uffd/pager.h"

static void file_name(pid_t pid, char *out, size_t size)
{
	snprintf(out, size, "attach-%d", (int)pid);
}

enum ferry_keep_state ferry_attach_record_peek(const char *dir, pid_t pid,
					       struct ferry_attach_record *out)
{
	char name[32];

	file_name(pid, name, sizeof(name));
	return ferry_keep_peek(dir, name, out, sizeof(*out));
}

int ferry_attach_record_open(struct ferry_keep *k, const char *dir, pid_t pid,
			     struct ferry_attach_record *out, struct ferry_failure *f)
{
	char name[32];
	int rc;

	file_name(pid, name, sizeof(name));
	rc = ferry_keep_open(k, dir, name, f);
	if (rc < 0)
		return rc;
	if (ferry_keep_read(k, out, sizeof(*out)) != FERRY_KEEP_FOUND || !out->n_regions ||
	    out->n_regions > FERRY_MAX_REGIONS)
		*out = (struct ferry_attach_record){0};
	return 0;
}

int ferry_attach_record_map(const struct ferry_keep *k, const struct ferry_attach_record *r,
			    bool fresh, void **out, size_t *bytes)
{
	struct ferry_layout layout = {.n_regions = r->n_regions};

	for (uint32_t i = 0; i < r->n_regions; i++)
		layout.regions[i] = r->regions[i].desc;
	*bytes = ferry_pager_kept_bytes(&layout);
	return ferry_keep_map(k, sizeof(*r), *bytes, fresh, out);
}
