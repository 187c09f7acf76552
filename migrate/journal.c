/* SPDX-License-Identifier: Apache-2.0 */
#include "migrate/journal.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "migrate/qmp.h"
#include "uffd/pager.h"

#define NAME_MAX_BYTES 64

static int file_name(enum ferry_side side, const char *qmp_path, char name[NAME_MAX_BYTES])
{
	struct stat st;

	if (!strncmp(qmp_path, "unix:", 5))
		qmp_path += 5;
	if (stat(qmp_path, &st) < 0)
		return -errno;
	snprintf(name, NAME_MAX_BYTES, "%s-%" PRIx64 "-%" PRIx64,
		 side == FERRY_SIDE_SOURCE ? "migrate" : "receive", (uint64_t)st.st_dev,
		 (uint64_t)st.st_ino);
	return 0;
}

/* In the file as in memory: it is read on the machine that wrote it, but perhaps by another build.
 */
static bool is_possible(const struct ferry_journal_entry *e)
{
	if (e->phase < FERRY_JOURNAL_SETTINGS || e->phase > FERRY_JOURNAL_COMPLETE || !e->n_bulk ||
	    e->n_bulk > FERRY_MAX_BULK || !e->n_regions || e->n_regions > FERRY_MAX_REGIONS ||
	    !ferry_addr_is_whole(&e->addr) || !memchr(e->settings, 0, sizeof(e->settings)))
		return false;
	for (uint32_t i = 0; i < e->n_regions; i++)
		if (!ferry_region_desc_is_possible(&e->regions[i].desc) ||
		    e->regions[i].kind > FERRY_MAPPING_HUGETLB)
			return false;
	return true;
}

static enum ferry_keep_state judge(enum ferry_keep_state found, struct ferry_journal_entry *e)
{
	if (found != FERRY_KEEP_EMPTY && found != FERRY_KEEP_UNREAD && is_possible(e))
		return found;
	*e = (struct ferry_journal_entry){0};
	return found == FERRY_KEEP_UNREAD ? found : FERRY_KEEP_EMPTY;
}

int ferry_journal_open(struct ferry_journal *j, const char *dir, enum ferry_side side,
		       const char *qmp_path, struct ferry_journal_entry *out,
		       struct ferry_failure *f)
{
	char name[NAME_MAX_BYTES];
	int rc = file_name(side, qmp_path, name);

	*j = FERRY_JOURNAL_NONE;
	if (rc < 0)
		return ferry_qmp_no_socket(f, rc, qmp_path);
	rc = ferry_keep_open(&j->file, dir, name, f);
	if (rc < 0)
		return rc;
	j->found = judge(ferry_keep_read(&j->file, out, sizeof(*out)), out);
	if (j->found != FERRY_KEEP_UNREAD)
		return 0;
	/* It may say that the guest is at the other side. */
	rc = ferry_fail_errno(f, FERRY_REFUSE, -errno,
			      "what is kept of this QEMU in %s can't be read", j->file.path);
	ferry_keep_close(&j->file, false);
	return rc;
}

enum ferry_keep_state ferry_journal_peek(const char *dir, enum ferry_side side,
					 const char *qmp_path, struct ferry_journal_entry *out)
{
	char name[NAME_MAX_BYTES];

	if (file_name(side, qmp_path, name) < 0)
		return FERRY_KEEP_EMPTY;
	return judge(ferry_keep_peek(dir, name, out, sizeof(*out)), out);
}

bool ferry_journal_guest_waits(const char *dir, enum ferry_side side, const char *qmp_path)
{
	uint32_t from = side == FERRY_SIDE_SOURCE ? FERRY_JOURNAL_COMMITTED : FERRY_JOURNAL_LOADED;
	struct ferry_journal_entry e;
	enum ferry_keep_state state = ferry_journal_peek(dir, side, qmp_path, &e);

	return state == FERRY_KEEP_UNREAD ||
	       (state == FERRY_KEEP_FOUND && e.phase >= from && e.phase <= FERRY_JOURNAL_RUNS);
}

int ferry_journal_check_encrypted(const struct ferry_journal_entry *e, bool has_tls,
				  struct ferry_failure *f)
{
	if (!e->encrypted || has_tls)
		return 0;
	return ferry_fail(
		f, FERRY_REFUSE, -EPERM,
		"the connections of this switchover were encrypted; add --tls or --psk as they "
		"were given before");
}

int ferry_journal_begin(struct ferry_journal *j, enum ferry_journal_phase phase,
			const struct ferry_qemu *q, struct ferry_journal_entry *e,
			struct ferry_failure *f)
{
	e->phase = phase;
	e->head.pid = q->pid;
	e->n_regions = q->n_ram;
	for (uint32_t i = 0; i < q->n_ram; i++)
		e->regions[i] = (struct ferry_journal_region){
			.desc = q->ram[i].desc, .start = q->ram[i].start.v, .kind = q->ram[i].kind};
	return ferry_journal_update(j, e, f);
}

int ferry_journal_update(struct ferry_journal *j, struct ferry_journal_entry *e,
			 struct ferry_failure *f)
{
	int rc = ferry_keep_write(&j->file, e, sizeof(*e), e->head.pid);

	return rc < 0 ? ferry_fail_errno(f, FERRY_REFUSE, rc, "keeping a record in %s",
					 j->file.path)
		      : 0;
}

int ferry_journal_map(const struct ferry_journal *j, const struct ferry_qemu *q, bool fresh,
		      void **out, size_t *bytes)
{
	struct ferry_layout layout;

	ferry_qemu_layout(q, &layout);
	*bytes = ferry_pager_kept_bytes(&layout);
	return ferry_keep_map(&j->file, sizeof(struct ferry_journal_entry), *bytes, fresh, out);
}

void ferry_journal_close(struct ferry_journal *j, bool remove)
{
	ferry_keep_close(&j->file, remove);
}

void ferry_journal_qemu(const struct ferry_journal_entry *e, struct ferry_qemu *out)
{
	*out = (struct ferry_qemu){.pid = e->head.pid, .n_ram = e->n_regions, .runs = !e->paused};
	for (uint32_t i = 0; i < e->n_regions; i++) {
		const struct ferry_journal_region *r = &e->regions[i];

		out->ram[i] = (struct ferry_qemu_ram){.desc = r->desc,
						      .start = {r->start},
						      .kind = (enum ferry_mapping_kind)r->kind,
						      .fd = -1};
		out->ram_bytes += r->desc.n_pages * r->desc.page_bytes;
	}
}
