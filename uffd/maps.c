// SPDX-License-Identifier: Apache-2.0
/*
 * Reading /proc/PID/maps, and what kind of memory each mapping is, by its device: memfd, shared
 * anonymous memory and SysV segments live on one internal tmpfs of the kernel, huge pages on one
 * internal hugetlbfs for each size; memfds of our own reveal these. Mounted ones are listed in the
 * process's mountinfo.
 *
 * smaps would tell the page size by itself, but looks at every page of the process for its sums:
 * some 10 ms for each GiB of a guest (docs/performance.md).
 */
#include "uffd/maps.h"

#include <dirent.h>
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

#define NAMES_TOLD    5	   /* in the text of -ENOENT */
#define MAPS_LINE_MAX 4352 /* a path of PATH_MAX and what stands before it */
/* Sizes of huge pages that some processor has, as powers of two. */
#define MIN_HUGE_BITS 16u
#define MAX_HUGE_BITS 34u

/* A file system in memory. */
struct device {
	dev_t dev;
	uint32_t page_bytes; /* of huge pages; 0: tmpfs */
};

struct devices {
	struct device *v; /* owned */
	size_t n, room;
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
	return &l->v[l->n++];
}

static void devices_fini(struct devices *d)
{
	free(d->v);
}

/* Return: 0 or -ENOMEM. */
static int add_device(struct devices *d, dev_t dev, uint64_t page_bytes)
{
	if (page_bytes > UINT32_MAX)
		return 0; /* larger than we can serve: such a mapping is left a file */
	if (d->n == d->room) {
		size_t room = d->room ? 2 * d->room : 64;
		struct device *v = realloc(d->v, room * sizeof(*v));

		if (!v)
			return -ENOMEM;
		d->v = v;
		d->room = room;
	}
	d->v[d->n++] = (struct device){.dev = dev, .page_bytes = (uint32_t)page_bytes};
	return 0;
}

/* @bits: of huge pages; 0: ordinary ones. A kernel that has none of this size has no device for it. */
static int add_internal(struct devices *d, unsigned int bits)
{
	unsigned int flags = bits ? MFD_HUGETLB | bits << MAP_HUGE_SHIFT : 0;
	_cleanup_close_ int fd = memfd_create("pageferry-device", MFD_CLOEXEC | flags);
	struct stat st;

	if (fd < 0 || fstat(fd, &st) < 0)
		return 0;
	return add_device(d, st.st_dev, bits ? UINT64_C(1) << bits : 0);
}

/* "...,pagesize=2M,..." Return: bytes; 0 when it is not said. */
static uint64_t page_size_option(const char *options)
{
	const char *at = strstr(options, "pagesize=");
	uint64_t n;
	char unit;

	if (!at || sscanf(at, "pagesize=%" SCNu64 "%c", &n, &unit) != 2)
		return 0;
	return unit == 'K' ? n * FERRY_KIB : unit == 'M' ? n * FERRY_MIB : 0;
}

/* Lines are "ID PARENT MAJOR:MINOR ROOT DIR OPTIONS [FIELDS...] - TYPE SOURCE OPTIONS". */
static int add_mounted(struct devices *d, pid_t pid)
{
	_cleanup_fclose_ FILE *file = NULL;
	_cleanup_free_ char *line = NULL;
	size_t size = 0;
	char path[64];
	int rc = 0;

	snprintf(path, sizeof(path), "/proc/%d/mountinfo", (int)pid);
	file = fopen(path, "re");
	/* A process that ends has none. */
	if (!file)
		return ferry_is_shortage(-errno) ? -errno : 0;
	errno = 0;
	while (!rc && getline(&line, &size, file) > 0) {
		const char *type = strstr(line, " - ");
		unsigned int major, minor;

		if (!type || sscanf(line, "%*d %*d %u:%u", &major, &minor) != 2)
			continue;
		if (strncmp(type, " - tmpfs ", 9) == 0)
			rc = add_device(d, makedev(major, minor), 0);
		else if (strncmp(type, " - hugetlbfs ", 13) == 0 && page_size_option(type))
			rc = add_device(d, makedev(major, minor), page_size_option(type));
	}
	/* Without memory for a line that is not in the stream. */
	return rc ? rc : feof(file) ? 0 : errno ? -errno : -EIO;
}

/* All that a mapping of @pid may belong to. Return: 0 or a negative errno. */
static int find_devices(struct devices *d, pid_t pid)
{
	int rc = add_internal(d, 0);

	for (unsigned int bits = MIN_HUGE_BITS; !rc && bits <= MAX_HUGE_BITS; bits++)
		rc = add_internal(d, bits);
	return rc ? rc : add_mounted(d, pid);
}

static const struct device *find_device(const struct devices *d, const struct ferry_mapping *m)
{
	for (size_t i = 0; i < d->n; i++) {
		if (d->v[i].dev == makedev(m->dev_major, m->dev_minor))
			return &d->v[i];
	}
	return NULL;
}

/* Mappings that the kernel itself puts into every process, and that nothing else can fill. */
static bool is_special(const char *name)
{
	return strncmp(name, "[vdso", 5) == 0 || strncmp(name, "[vvar", 5) == 0 ||
	       strcmp(name, "[vsyscall]") == 0 || strcmp(name, "[uprobes]") == 0;
}

/* Sets ->kind and ->page_bytes. */
static void classify(const struct devices *d, struct ferry_mapping *m)
{
	const struct device *device = find_device(d, m);

	m->page_bytes = (uint32_t)sysconf(_SC_PAGESIZE);
	if (m->ino == 0 && m->name[0] != '/') {
		m->kind = m->shared || is_special(m->name) ? FERRY_MAPPING_FILE
							    : FERRY_MAPPING_ANON;
	} else if (!device) {
		m->kind = FERRY_MAPPING_FILE;
	} else if (device->page_bytes) {
		m->kind = FERRY_MAPPING_HUGETLB;
		m->page_bytes = device->page_bytes;
	} else {
		m->kind = FERRY_MAPPING_SHARED;
	}
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

static int read_maps(pid_t pid, struct mapping_list *l)
{
	_cleanup_(devices_fini) struct devices devices = {0};
	_cleanup_fclose_ FILE *file = NULL;
	char path[64], line[MAPS_LINE_MAX];
	int rc = find_devices(&devices, pid);

	if (rc < 0)
		return rc;
	snprintf(path, sizeof(path), "/proc/%d/maps", (int)pid);
	file = fopen(path, "re");
	if (!file)
		return errno == ENOENT ? -ESRCH : -errno;

	errno = 0;
	while (fgets(line, sizeof(line), file)) {
		struct ferry_mapping head = {0}, *m;

		if (!parse_header(line, &head))
			continue;
		m = list_add(l);
		if (!m)
			return -ENOMEM;
		*m = head;
		classify(&devices, m);
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
	int r = read_maps(pid, &all);

	if (r == -EACCES || r == -EPERM)
		return ferry_fail(f, FERRY_REFUSE, r,
				  "/proc/%d/maps: %s; run as the user of that process or as root",
				  (int)pid, strerror(-r));
	if (r == -ESRCH)
		return ferry_fail(f, FERRY_REFUSE, r, "there is no process %d", (int)pid);
	if (r < 0)
		return ferry_fail_errno(f, FERRY_REFUSE, r, "/proc/%d/maps", (int)pid);

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

int ferry_maps_at(pid_t pid, struct ferry_hva start, uint64_t bytes, struct ferry_mapping *out,
		  struct ferry_failure *f)
{
	_cleanup_free_ struct ferry_mapping *maps = NULL;
	size_t n;
	int rc = ferry_maps_find(pid, "", &maps, &n, f);

	for (size_t i = 0; !rc && i < n; i++) {
		const struct ferry_mapping *m = &maps[i];

		if (start.v >= m->start.v && bytes <= m->len &&
		    start.v - m->start.v <= m->len - bytes) {
			*out = *m;
			return 0;
		}
	}
	return rc < 0 ? rc
		      : ferry_fail(f, FERRY_REFUSE, -ENOENT,
				   "process %d has nothing mapped at 0x%" PRIx64, (int)pid,
				   start.v);
}

static bool is_file_of(const struct stat *st, const struct ferry_mapping *m)
{
	return st->st_ino == m->ino && st->st_dev == makedev(m->dev_major, m->dev_minor);
}

/* Opens an entry of a directory of links in /proc when it is the file of @m. */
static int open_link(int dir, const char *name, const struct ferry_mapping *m, int flags)
{
	struct stat st;
	int fd;

	if (fstatat(dir, name, &st, 0) < 0 || !is_file_of(&st, m))
		return -ENOENT;
	fd = openat(dir, name, flags | O_CLOEXEC);
	return fd < 0 ? -errno : fd;
}

/* @subdir "fd" has the files that it holds open, "map_files" all that it has mapped. */
static int open_in(pid_t pid, const char *subdir, const struct ferry_mapping *m, int flags)
{
	char path[64], start[32];
	struct dirent *e;
	int fd = -ENOENT;
	DIR *dir;

	snprintf(path, sizeof(path), "/proc/%d/%s", (int)pid, subdir);
	snprintf(start, sizeof(start), "%" PRIx64 "-", m->start.v);
	dir = opendir(path);
	if (!dir)
		return -errno;
	while (fd < 0 && (e = readdir(dir))) {
		/* A link per mapping: only the right one is followed. */
		if (subdir[0] == 'm' && strncmp(e->d_name, start, strlen(start)))
			continue;
		fd = open_link(dirfd(dir), e->d_name, m, flags);
	}
	closedir(dir);
	return fd;
}

int ferry_maps_open(pid_t pid, const struct ferry_mapping *m, int flags)
{
	int fd = open_in(pid, "fd", m, flags);

	return fd >= 0 ? fd : open_in(pid, "map_files", m, flags);
}

int ferry_maps_are_hidden(pid_t pid, struct ferry_hva start, uint64_t bytes)
{
	_cleanup_fclose_ FILE *file = NULL;
	char path[64], line[MAPS_LINE_MAX];
	bool inside = false, found = false;

	snprintf(path, sizeof(path), "/proc/%d/smaps", (int)pid);
	file = fopen(path, "re");
	if (!file)
		return -errno;
	errno = 0;
	while (!found && fgets(line, sizeof(line), file)) {
		uint64_t from, to;

		if (sscanf(line, "%" SCNx64 "-%" SCNx64 " ", &from, &to) == 2)
			inside = from < start.v + bytes && to > start.v;
		else if (inside && !strncmp(line, "VmFlags:", 8))
			found = strstr(line, " ui");
	}
	if (ferror(file))
		return errno ? -errno : -EIO;
	return found;
}
