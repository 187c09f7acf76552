/* SPDX-License-Identifier: Apache-2.0 */
#include "migrate/qemu_ram.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/cleanup.h"
#include "base/util.h"

/* --- the human monitor's texts ------------------------------------------------------------- */

/* A block is named by the id of its backend, or by that object's path. */
static bool is_block(const char *text, size_t len, const char *name)
{
	static const char prefix[] = "/objects/";

	if (len > sizeof(prefix) - 1 && !memcmp(text, prefix, sizeof(prefix) - 1)) {
		text += sizeof(prefix) - 1;
		len -= sizeof(prefix) - 1;
	}
	return len == strlen(name) && !memcmp(text, name, len);
}

/* "  0000000000100000-0000000007ffffff (prio 0, ram): ram0 @0000000000100000 KVM" */
static bool parse_range(const char *line, const char *name, struct ferry_mtree_entry *out)
{
	uint64_t first, last, offset = 0;
	const char *p, *end;
	int n = 0;

	if (sscanf(line, " %16" SCNx64 "-%16" SCNx64 " (prio %*d, %n", &first, &last, &n) != 2 ||
	    !n || !strncmp(line + n, "i/o", 3))
		return false;
	p = strstr(line + n, "): ");
	if (!p)
		return false;
	p += 3;
	end = p + strcspn(p, " \r\n");
	if (!is_block(p, (size_t)(end - p), name))
		return false;
	if (!strncmp(end, " @", 2))
		offset = strtoull(end + 2, NULL, 16);
	*out = (struct ferry_mtree_entry){.gpa = {first}, .offset = offset};
	return true;
}

bool ferry_mtree_find(const char *text, const char *name, struct ferry_mtree_entry *out)
{
	bool inside = false; /* the address space that the guest's CPUs see */

	while (*text) {
		size_t len = strcspn(text, "\n");
		_cleanup_free_ char *line = strndup(text, len);

		text += len;
		text += *text == '\n';
		if (!line)
			return false;
		if (!strncmp(line, "FlatView", 8))
			inside = false;
		else if (!strncmp(line, " AS \"memory\"", 12))
			inside = true;
		else if (inside && parse_range(line, name, out))
			return true;
	}
	return false;
}

/* "Host virtual address for 0x0 (ram0) is 0x7f2f2bfff000" */
int ferry_hva_parse(const char *text, const char *name, struct ferry_hva *out)
{
	const char *open = strchr(text, '('), *close = strstr(text, ") is 0x");
	unsigned long long v;
	char *end;

	if (strncmp(text, "Host virtual address for", 24) || !open || !close || close < open ||
	    !is_block(open + 1, (size_t)(close - open - 1), name))
		return -EPROTO;
	v = strtoull(close + 7, &end, 16);
	if (end == close + 7 || !v)
		return -EPROTO;
	out->v = v;
	return 0;
}

/* --- backends ------------------------------------------------------------------------------ */

static int refuse_private(const char *id, uint64_t bytes, struct ferry_failure *f)
{
	/* QEMU's own names, like "pc.ram", have a dot in them and are taken. */
	const char *own = strchr(id, '.') ? "ram0" : id;

	return ferry_fail(
		f, FERRY_REFUSE, -EINVAL,
		"the guest's RAM '%s' is private to QEMU, nobody else can reach it; start "
		"QEMU, on both sides, with -object memory-backend-memfd,id=%s,size=%" PRIu64
		"M,share=on -machine memory-backend=%s",
		id, own, bytes / FERRY_MIB, own);
}

static int check_mapping(const char *id, const struct ferry_mapping *m, struct ferry_failure *f)
{
	if (m->kind == FERRY_MAPPING_FILE)
		return ferry_fail(f, FERRY_REFUSE, -EINVAL,
				  "the guest's RAM '%s' is %s, a file on a disk, which userfaultfd "
				  "can't serve; put it on tmpfs (/dev/shm) or hugetlbfs, or use "
				  "memory-backend-memfd",
				  id, m->name);
	if (!m->shared)
		return ferry_fail(
			f, FERRY_REFUSE, -EINVAL,
			"the guest's RAM '%s' is mapped privately; start QEMU with share=on "
			"on this memory backend",
			id);
	if (m->page_bytes > FERRY_MAX_PAGE_BYTES)
		return ferry_fail(
			f, FERRY_REFUSE, -EINVAL,
			"the guest's RAM '%s' has pages of %u MiB; use huge pages of 2 MiB "
			"(hugetlbsize=2M), or none",
			id, m->page_bytes / FERRY_MIB);
	return 0;
}

struct finder {
	struct ferry_qemu *q;
	char *mtree; /* owned */
};

static int find_hva(struct finder *t, const char *id, const struct ferry_mtree_entry *e,
		    struct ferry_hva *out, struct ferry_failure *f)
{
	_cleanup_free_ char *text = NULL;
	char command[64];
	int rc;

	snprintf(command, sizeof(command), "gpa2hva 0x%" PRIx64, e->gpa.v);
	rc = ferry_qmp_human(t->q->qmp, command, &text, f);
	if (rc < 0)
		return rc;
	if (ferry_hva_parse(text, id, out) < 0 || out->v < e->offset)
		return ferry_fail(
			f, FERRY_REFUSE, -EPROTO,
			"QEMU does not say where its RAM '%s' is ('%.100s'); this version "
			"is not known to Pageferry",
			id, text);
	out->v -= e->offset;
	return 0;
}

static int add_block(struct finder *t, const char *id, uint64_t bytes,
		     const struct ferry_mtree_entry *e, struct ferry_failure *f)
{
	struct ferry_qemu *q = t->q;
	struct ferry_qemu_ram *r = &q->ram[q->n_ram];
	struct ferry_mapping m;
	struct ferry_hva start;
	int rc;

	if (q->n_ram == FERRY_MAX_REGIONS)
		return ferry_fail(
			f, FERRY_REFUSE, -E2BIG,
			"the guest has more than %d memory backends; use fewer, larger ones",
			FERRY_MAX_REGIONS);
	if (strlen(id) >= sizeof(r->desc.name))
		return ferry_fail(
			f, FERRY_REFUSE, -ENAMETOOLONG,
			"the memory backend's id '%.80s' is too long; use at most %zu bytes", id,
			sizeof(r->desc.name) - 1);
	rc = find_hva(t, id, e, &start, f);
	if (rc < 0)
		return rc;
	if (ferry_maps_at(q->pid, start, bytes, &m, f) < 0)
		return ferry_fail(
			f, FERRY_REFUSE, -ENOENT,
			"process %d does not have the guest's RAM '%s' where QEMU says it "
			"is; run pageferry in the PID namespace of QEMU, and with a QMP "
			"socket that QEMU itself has made",
			(int)q->pid, id);
	rc = check_mapping(id, &m, f);
	if (rc < 0)
		return rc;
	r->fd = ferry_maps_open(q->pid, &m, O_RDONLY);
	if (r->fd < 0)
		return ferry_fail_errno(
			f, FERRY_REFUSE, r->fd,
			"the guest's RAM '%s' (%s) can't be opened through /proc/%d; "
			"run pageferry as root or as QEMU's user",
			id, m.name, (int)q->pid);
	snprintf(r->desc.name, sizeof(r->desc.name), "%s", id);
	r->desc.id = q->n_ram;
	r->desc.page_bytes = m.page_bytes;
	r->desc.n_pages = bytes / m.page_bytes;
	r->start = start;
	r->kind = m.kind;
	r->offset = m.offset + (start.v - m.start.v);
	q->ram_bytes += bytes;
	q->n_ram++;
	return 0;
}

static int look_at_backend(struct finder *t, json_t *backend, const struct ferry_log *log,
			   struct ferry_failure *f)
{
	const char *id = json_string_value(json_object_get(backend, "id"));
	uint64_t bytes = (uint64_t)json_integer_value(json_object_get(backend, "size"));
	struct ferry_mtree_entry e;

	if (!id || !bytes)
		return 0;
	if (!ferry_mtree_find(t->mtree, id, &e)) {
		ferry_debug(log, "memory backend '%s' is not in the guest's memory", id);
		return 0;
	}
	if (!json_is_true(json_object_get(backend, "share")))
		return refuse_private(id, bytes, f);
	return add_block(t, id, bytes, &e, f);
}

/* Boards that do not take their RAM from a backend have it all the same. */
static int check_covered(struct ferry_qemu *q, struct ferry_failure *f)
{
	uint64_t base, plugged;
	json_t *ret;
	int rc = ferry_qmp_execute(q->qmp, "query-memory-size-summary", NULL, &ret, f);

	if (rc < 0)
		return rc;
	base = (uint64_t)json_integer_value(json_object_get(ret, "base-memory"));
	plugged = (uint64_t)json_integer_value(json_object_get(ret, "plugged-memory"));
	json_decref(ret);
	if (!q->n_ram || q->ram_bytes < base + plugged)
		return refuse_private("ram0", base, f);
	return 0;
}

/* QEMU lists its backends in no particular order. */
static int by_name(const void *a, const void *b)
{
	const struct ferry_qemu_ram *x = a, *y = b;

	return strcmp(x->desc.name, y->desc.name);
}

int ferry_qemu_find_ram(struct ferry_qemu *q, const struct ferry_log *log, struct ferry_failure *f)
{
	struct finder t = {.q = q};
	json_t *list = NULL, *backend;
	size_t i;
	int rc;

	rc = ferry_qmp_human(q->qmp, "info mtree -f", &t.mtree, f);
	if (!rc)
		rc = ferry_qmp_execute(q->qmp, "query-memdev", NULL, &list, f);
	json_array_foreach(list, i, backend)
	{
		if (!rc)
			rc = look_at_backend(&t, backend, log, f);
	}
	json_decref(list);
	free(t.mtree);
	if (rc < 0)
		return rc;
	qsort(q->ram, q->n_ram, sizeof(q->ram[0]), by_name);
	for (uint32_t n = 0; n < q->n_ram; n++)
		q->ram[n].desc.id = n;
	return check_covered(q, f);
}

/* --- the target's RAM before anything came -------------------------------------------------- */

static bool has_pages(const struct ferry_qemu_ram *r)
{
	uint64_t bytes = r->desc.n_pages * r->desc.page_bytes;
	struct stat st;
	off_t data;

	/* hugetlbfs does not tell holes from data, but counts its blocks. */
	if (r->kind == FERRY_MAPPING_HUGETLB)
		return fstat(r->fd, &st) < 0 || st.st_blocks;
	data = lseek(r->fd, (off_t)r->offset, SEEK_DATA);
	return data < 0 ? errno != ENXIO : (uint64_t)data < r->offset + bytes;
}

int ferry_qemu_check_ram_empty(const struct ferry_qemu_ram *r, struct ferry_failure *f)
{
	if (has_pages(r))
		return ferry_fail(f, FERRY_REFUSE, -EEXIST,
				  "the target's RAM '%s' has pages already, which would hide "
				  "those of the source; start QEMU anew, without prealloc=on, "
				  "without -overcommit mem-lock=on, and with a new RAM file",
				  r->desc.name);
	return 0;
}

int ferry_qemu_check_empty(const struct ferry_qemu *q, struct ferry_failure *f)
{
	int rc = 0;

	for (uint32_t i = 0; i < q->n_ram && !rc; i++)
		rc = ferry_qemu_check_ram_empty(&q->ram[i], f);
	return rc;
}
