/* SPDX-License-Identifier: Apache-2.0 */
#include "uffd/attach_record.h"

#include <errno.h>
#include <stdio.h>

#include "uffd/pager.h"

static void file_name(pid_t pid, char *out, size_t size)
{
	snprintf(out, size, "attach-%d", (int)pid);
}

/* It may be another build's. */
static bool is_possible(const struct ferry_attach_record *r)
{
	if (!r->n_regions || r->n_regions > FERRY_MAX_REGIONS || r->n_bulk > FERRY_MAX_BULK ||
	    !ferry_addr_is_whole(&r->from))
		return false;
	for (uint32_t i = 0; i < r->n_regions; i++)
		if (!ferry_region_desc_is_possible(&r->regions[i].desc) ||
		    r->regions[i].kind > FERRY_MAPPING_HUGETLB ||
		    *(const unsigned char *)&r->regions[i].is_private > 1)
			return false;
	return true;
}

static enum ferry_keep_state judge(enum ferry_keep_state found, struct ferry_attach_record *r)
{
	if (found != FERRY_KEEP_EMPTY && found != FERRY_KEEP_UNREAD && is_possible(r))
		return found;
	*r = (struct ferry_attach_record){0};
	return found == FERRY_KEEP_UNREAD ? found : FERRY_KEEP_EMPTY;
}

enum ferry_keep_state ferry_attach_record_peek(const char *dir, pid_t pid,
					       struct ferry_attach_record *out)
{
	char name[32];

	file_name(pid, name, sizeof(name));
	return judge(ferry_keep_peek(dir, name, out, sizeof(*out)), out);
}

int ferry_attach_record_open(struct ferry_keep *k, const char *dir, pid_t pid,
			     struct ferry_attach_record *out, struct ferry_failure *f)
{
	enum ferry_keep_state found;
	char name[32];
	int rc;

	file_name(pid, name, sizeof(name));
	rc = ferry_keep_open(k, dir, name, f);
	if (rc < 0)
		return rc;
	found = judge(ferry_keep_read(k, out, sizeof(*out)), out);
	if (found == FERRY_KEEP_UNREAD) {
		ferry_fail_errno(
			f, FERRY_REFUSE, -errno,
			"what an earlier attach to process %d has kept in %s can't be read",
			(int)pid, k->path);
		ferry_keep_close(k, false);
		return -EBADMSG;
	}
	if (found != FERRY_KEEP_FOUND)
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
