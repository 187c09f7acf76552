// SPDX-License-Identifier: Apache-2.0
/*
 * Reading /proc/PID/smaps: per mapping one line as in maps, then lines "Key: value". Of these,
 * KernelPageSize is the page size and the flag "ht" in VmFlags says hugetlb.
 *
 * Shared memory is told from other files by the device: memfd, shared anonymous memory and SysV
 * segments live on one internal tmpfs of the kernel, which a memfd of our own reveals; mounted
 * tmpfs are listed in the process's mountinfo.
 */
#include "uffd/maps.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "base/cleanup.h"

#define TMPFS_MAX      64   /* tmpfs devices that are told apart */
#define NAMES_TOLD     5    /* in the text of -ENOENT */
#define SMAPS_LINE_MAX 4352 /* a path of PATH_MAX and what stands before it */

struct tmpfs_devs {
	dev_t dev[TMPFS_MAX];
	size_t n;
};

struct mapping_list {
	struct ferry_mapping *v; /* owned */
	size_t n, room;
};

static void list_fini(struct mapping_list *l)
{
	free(l->v);
}

static struct ferry_mapping *list_add(struct mapping_list *l)
{
	if (l->n == l->room) {
		size_t room = l->room ? 2 * l->room : 64;
		struct ferry_mapping *v = realloc(l->v, room * sizeof(*v));

		if (!v)
			return NULL;
		l->v = v;
		l->room = room;
	}
	l->v[l->n] = (struct ferry_mapping){.page_bytes = (uint32_t)sysconf(_SC_PAGESIZE)};
	return &l->v[l->n++];
}

static void add_internal_tmpfs(struct tmpfs_devs *t)
{
	_cleanup_close_ int fd = memfd_create("pageferry-device", MFD_CLOEXEC);
	struct stat st;

	if (fd >= 0 && fstat(fd, &st) == 0 && t->n < TMPFS_MAX)
		t->dev[t->n++] = st.st_dev;
}

/* Lines are "ID PARENT MAJOR:MINOR ROOT DIR OPTIONS [FIELDS...] - TYPE SOURCE OPTIONS". */
static void add_mounted_tmpfs(struct tmpfs_devs *t, pid_t pid)
{
	_cleanup_fclose_ FILE *file = NULL;
	_cleanup_free_ char *line = NULL;
	size_t size = 0;
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/mountinfo", (int)pid);
	file = fopen(path, "re");
	if (!file)
		return;
	while (t->n < TMPFS_MAX && getline(&line, &size, file) > 0) {
		const char *type = strstr(line, " - ");
		unsigned int major, minor;

		if (!type || strncmp(type, " - tmpfs ", 9) != 0)
			continue;
		if (sscanf(line, "%*d %*d %u:%u", &major, &minor) == 2)
			t->dev[t->n++] = makedev(major, minor);
	}
}

static bool on_tmpfs(const struct tmpfs_devs *t, const struct ferry_mapping *m)
{
	for (size_t i = 0; i < t->n; i++) {
		if (t->dev[i] == makedev(m->dev_major, m->dev_minor))
			return true;
	}
	return false;
}

/* Mappings that the kernel itself puts into every process, and that nothing else can fill. */
static bool is_special(const char *name)
{
	return strncmp(name, "[vdso", 5) == 0 || strncmp(name, "[vvar", 5) == 0 ||
	       strcmp(name, "[vsyscall]") == 0 || strcmp(name, "[uprobes]") == 0;
}

static enum ferry_mapping_kind classify(const struct tmpfs_devs *t, const struct ferry_mapping *m)
{
	if (m->ino == 0 && m->name[0] != '/')
		return m->shared || is_special(m->name) ? FERRY_MAPPING_FILE : FERRY_MAPPING_ANON;
	return on_tmpfs(t, m) ? FERRY_MAPPING_SHARED : FERRY_MAPPING_FILE;
}

/* "START-END RIGHTS OFFSET MAJOR:MINOR INO   NAME". Return: whether @line is one of these. */
static bool parse_header(const char *line, struct ferry_mapping *m)
{
	uint64_t start, end, offset, ino;
	unsigned int major, minor;
	char rights[5];
	int name = -1;

	if (sscanf(line, "%" SCNx64 "-%" SCNx64 " %4s %" SCNx64 " %x:%x %" SCNu64 " %n", &start,
		   &end, rights, &offset, &major, &minor, &ino, &name) != 7 ||
	    name < 0)
		return false;
	m->start.v = start;
	m->len = end - start;
	m->offset = offset;
	m->ino = ino;
	m->dev_major = major;
	m->dev_minor = minor;
	m->readable = rights[0] == 'r';
	m->writable = rights[1] == 'w';
	m->shared = rights[3] == 's';
	snprintf(m->name, sizeof(m->name), "%.*s", (int)strcspn(line + name, "\n"), line + name);
	return true;
}

static bool has_flag(const char *flags, const char *flag)
{
	const char *at = flags;

	while ((at = strstr(at, flag)) != NULL) {
		if (at[-1] == ' ' && (at[2] == ' ' || at[2] == '\n' || at[2] == '\0'))
			return true;
		at++;
	}
	return false;
}

static int read_smaps(pid_t pid, struct mapping_list *l)
{
	_cleanup_fclose_ FILE *file = NULL;
	struct ferry_mapping *m = NULL;
	struct tmpfs_devs tmpfs = {0};
	char path[64], line[SMAPS_LINE_MAX];

	add_internal_tmpfs(&tmpfs);
	add_mounted_tmpfs(&tmpfs, pid);
	snprintf(path, sizeof(path), "/proc/%d/smaps", (int)pid);
	file = fopen(path, "re");
	if (!file)
		return errno == ENOENT ? -ESRCH : -errno;

	errno = 0;
	while (fgets(line, sizeof(line), file)) {
		struct ferry_mapping head = {0};
		uint32_t kib;

		if (parse_header(line, &head)) {
			m = list_add(l);
			if (!m)
				return -ENOMEM;
			head.page_bytes = m->page_bytes;
			*m = head;
			m->kind = classify(&tmpfs, m);
		} else if (m && sscanf(line, "KernelPageSize: %" SCNu32 " kB", &kib) == 1) {
			m->page_bytes = kib * FERRY_KIB;
		} else if (m && strncmp(line, "VmFlags:", 8) == 0 && has_flag(line + 8, "ht")) {
			m->kind = FERRY_MAPPING_HUGETLB;
		}
	}
	if (ferror(file))
		return errno ? -errno : -EIO;
	/* A process that exits, and a thread of the kernel, have no mappings at all. */
	return l->n ? 0 : -ESRCH;
}

static bool continues(const struct ferry_mapping *a, const struct ferry_mapping *b)
{
	if (a->start.v + a->len != b->start.v || a->kind != b->kind ||
	    a->page_bytes != b->page_bytes || a->readable != b->readable ||
	    a->writable != b->writable || a->shared != b->shared || strcmp(a->name, b->name) != 0)
		return false;
	if (a->ino == 0 && b->ino == 0)
		return true;
	return a->ino == b->ino && a->dev_major == b->dev_major && a->dev_minor == b->dev_minor &&
	       a->offset + a->len == b->offset;
}

static void join_neighbours(struct mapping_list *l)
{
	size_t kept = 0;

	for (size_t i = 1; i < l->n; i++) {
		if (continues(&l->v[kept], &l->v[i]))
			l->v[kept].len += l->v[i].len;
		else
			l->v[++kept] = l->v[i];
	}
	if (l->n)
		l->n = kept + 1;
}

static void keep_matching(struct mapping_list *l, const char *match)
{
	size_t kept = 0;

	for (size_t i = 0; i < l->n; i++) {
		if (strstr(l->v[i].name, match))
			l->v[kept++] = l->v[i];
	}
	l->n = kept;
}

static int by_len_falling(const void *a, const void *b)
{
	const struct ferry_mapping *x = a, *y = b;

	return x->len < y->len ? 1 : x->len > y->len ? -1 : 0;
}

static int fail_no_match(pid_t pid, const char *match, struct mapping_list *all,
			 struct ferry_failure *f)
{
	char names[400] = "";
	size_t used = 0;
	unsigned int told = 0;

	qsort(all->v, all->n, sizeof(*all->v), by_len_falling);
	for (size_t i = 0; i < all->n && told < NAMES_TOLD && used < sizeof(names) - 1; i++) {
		const struct ferry_mapping *m = &all->v[i];

		if (m->kind == FERRY_MAPPING_FILE || !m->name[0])
			continue;
		used += (size_t)snprintf(names + used, sizeof(names) - used,
					 "%s'%.60s' (%" PRIu64 " KiB)", told++ ? ", " : "", m->name,
					 m->len / FERRY_KIB);
	}
	return ferry_fail(
		f, FERRY_REFUSE, -ENOENT,
		"process %d has no mapping whose name contains '%.60s'; the largest that have "
		"one: %s",
		(int)pid, match, told ? names : "none");
}

int ferry_maps_find(pid_t pid, const char *match, struct ferry_mapping **out, size_t *n,
		    struct ferry_failure *f)
{
	_cleanup_(list_fini) struct mapping_list found = {0};
	_cleanup_(list_fini) struct mapping_list all = {0};
	int r = read_smaps(pid, &all);

	if (r == -EACCES || r == -EPERM)
		return ferry_fail(f, FERRY_REFUSE, r,
				  "/proc/%d/smaps: %s; run as the user of that process or as root",
				  (int)pid, strerror(-r));
	if (r == -ESRCH)
		return ferry_fail(f, FERRY_REFUSE, r, "there is no process %d", (int)pid);
	if (r < 0)
		return ferry_fail_errno(f, FERRY_REFUSE, r, "/proc/%d/smaps", (int)pid);

	join_neighbours(&all);
	found.v = calloc(all.n, sizeof(*found.v));
	if (!found.v)
		return ferry_fail_errno(f, FERRY_REFUSE, -ENOMEM, "mappings of %d", (int)pid);
	memcpy(found.v, all.v, all.n * sizeof(*found.v));
	found.n = all.n;
	keep_matching(&found, match);
	if (!found.n)
		return fail_no_match(pid, match, &all, f);
	*out = TAKE_PTR(found.v);
	*n = found.n;
	return 0;
}
