/* SPDX-License-Identifier: Apache-2.0 */
#include "migrate/journal.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"

#define MAGIC	       "PFRYJNL1"
#define PATH_MAX_BYTES 96

/* In the file as in memory: it is read on the machine that wrote it. */
struct record {
	char magic[8];
	struct ferry_journal_entry entry;
};

static int default_dir(char *out, size_t size)
{
	const char *given = getenv("RUNTIME_DIRECTORY"), *user = getenv("XDG_RUNTIME_DIR");
	int n;

	if (given && given[0] == '/')
		n = snprintf(out, size, "%s", given);
	else if (!geteuid())
		n = snprintf(out, size, "/run/pageferry");
	else if (user && user[0] == '/')
		n = snprintf(out, size, "%s/pageferry", user);
	else
		return -ENOENT;
	return (size_t)n < size ? 0 : -ENAMETOOLONG;
}

/* The directory is made when it is missing; nobody else may write there. */
static int open_dir(const char *dir, char path[PATH_MAX_BYTES])
{
	struct stat st;
	int fd, rc = 0;

	if (!dir)
		rc = default_dir(path, PATH_MAX_BYTES);
	else if (snprintf(path, PATH_MAX_BYTES, "%s", dir) >= PATH_MAX_BYTES)
		rc = -ENAMETOOLONG;
	if (rc < 0)
		return rc;
	(void)mkdir(path, 0700);
	fd = open(path, O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC | O_RDONLY);
	if (fd < 0)
		return -errno;
	if (fstat(fd, &st) < 0 || st.st_uid != geteuid() || st.st_mode & 022) {
		ferry_close(fd);
		return -EPERM;
	}
	return fd;
}

static int open_file(struct ferry_journal *j, const char *dir, enum ferry_side side,
		     const char *qmp_path, int flags)
{
	char where[PATH_MAX_BYTES], name[64];
	_cleanup_close_ int dir_fd = -1;
	struct stat st;

	if (!strncmp(qmp_path, "unix:", 5))
		qmp_path += 5;
	if (stat(qmp_path, &st) < 0)
		return -errno;
	dir_fd = open_dir(dir, where);
	if (dir_fd < 0)
		return dir_fd;
	snprintf(name, sizeof(name), "%s-%" PRIx64 "-%" PRIx64,
		 side == FERRY_SIDE_SOURCE ? "migrate" : "receive", (uint64_t)st.st_dev,
		 (uint64_t)st.st_ino);
	j->fd = openat(dir_fd, name, O_RDWR | O_NOFOLLOW | O_CLOEXEC | flags, 0600);
	if (j->fd < 0)
		return -errno;
	snprintf(j->path, sizeof(j->path), "%s/%s", where, name);
	return 0;
}

/* Field 22 of /proc/PID/stat; 0 when it can't be told. */
static uint64_t started(pid_t pid)
{
	_cleanup_fclose_ FILE *file = NULL;
	unsigned long long v = 0;
	char text[1024];
	const char *p;

	snprintf(text, sizeof(text), "/proc/%d/stat", (int)pid);
	file = fopen(text, "re");
	if (!file)
		return 0;
	text[fread(text, 1, sizeof(text) - 1, file)] = '\0';
	p = strrchr(text, ')'); /* the name before it may hold anything */
	if (!p)
		return 0;
	for (int field = 2; field < 22 && p; field++)
		p = strchr(p + 1, ' ');
	if (p)
		v = strtoull(p + 1, NULL, 10);
	return v;
}

static bool is_good(const struct record *r)
{
	const struct ferry_journal_entry *e = &r->entry;

	return !memcmp(r->magic, MAGIC, sizeof(r->magic)) && e->phase >= FERRY_JOURNAL_BEGUN &&
	       e->phase <= FERRY_JOURNAL_RUNS && e->n_bulk && e->n_bulk <= FERRY_MAX_BULK &&
	       e->n_regions && e->n_regions <= FERRY_MAX_REGIONS && e->started &&
	       e->started == started(e->pid);
}

/* Entries of processes that have ended; whoever wrote them was killed and not started again. */
static void sweep(const char *dir)
{
	char where[PATH_MAX_BYTES];
	int fd = open_dir(dir, where);
	DIR *d = fd < 0 ? NULL : fdopendir(fd);
	struct dirent *e;

	if (!d) {
		ferry_close(fd);
		return;
	}
	while ((e = readdir(d))) {
		_cleanup_close_ int file = -1;
		struct record r;

		if (strncmp(e->d_name, "migrate-", 8) && strncmp(e->d_name, "receive-", 8))
			continue;
		file = openat(fd, e->d_name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
		/* One that is just being made has no magic yet. */
		if (file >= 0 && pread(file, &r, sizeof(r), 0) == sizeof(r) &&
		    !memcmp(r.magic, MAGIC, sizeof(r.magic)) && !is_good(&r))
			(void)unlinkat(fd, e->d_name, 0);
	}
	closedir(d);
}

bool ferry_journal_load(struct ferry_journal *j, const char *dir, enum ferry_side side,
			const char *qmp_path, struct ferry_journal_entry *out)
{
	struct record r;

	*j = FERRY_JOURNAL_NONE;
	sweep(dir);
	if (open_file(j, dir, side, qmp_path, 0) < 0)
		return false;
	if (pread(j->fd, &r, sizeof(r), 0) != sizeof(r) || !is_good(&r)) {
		ferry_journal_close(j, true);
		return false;
	}
	*out = r.entry;
	return true;
}

static int write_record(const struct ferry_journal *j, const struct ferry_journal_entry *e)
{
	struct record r = {.magic = MAGIC, .entry = *e};
	ssize_t n = pwrite(j->fd, &r, sizeof(r), 0);

	return n == sizeof(r) ? 0 : n < 0 ? -errno : -EIO;
}

int ferry_journal_begin(struct ferry_journal *j, const char *dir, enum ferry_side side,
			const char *qmp_path, const struct ferry_qemu *q,
			struct ferry_journal_entry *e, struct ferry_failure *f)
{
	int rc = 0;

	e->phase = FERRY_JOURNAL_BEGUN;
	e->pid = q->pid;
	e->started = started(q->pid);
	e->n_regions = q->n_ram;
	for (uint32_t i = 0; i < q->n_ram; i++)
		e->regions[i] = (struct ferry_journal_region){
			.desc = q->ram[i].desc, .start = q->ram[i].start.v, .kind = q->ram[i].kind};
	if (j->fd < 0)
		rc = open_file(j, dir, side, qmp_path, O_CREAT);
	if (!rc)
		rc = write_record(j, e);
	if (rc < 0) {
		ferry_journal_close(j, true);
		return ferry_fail_errno(f, FERRY_BENIGN, rc,
					"nothing can be kept in %s, should this process be killed",
					dir ? dir : "/run/pageferry or $XDG_RUNTIME_DIR");
	}
	return 0;
}

void ferry_journal_update(struct ferry_journal *j, const struct ferry_journal_entry *e)
{
	if (j->fd >= 0)
		(void)write_record(j, e);
}

void ferry_journal_close(struct ferry_journal *j, bool remove)
{
	if (j->fd >= 0 && remove)
		(void)unlink(j->path);
	ferry_close(j->fd);
	j->fd = -1;
}

void ferry_journal_qemu(const struct ferry_journal_entry *e, struct ferry_qemu *out)
{
	*out = (struct ferry_qemu){.pid = e->pid, .n_ram = e->n_regions, .runs = !e->paused};
	for (uint32_t i = 0; i < e->n_regions; i++) {
		const struct ferry_journal_region *r = &e->regions[i];

		out->ram[i] = (struct ferry_qemu_ram){.desc = r->desc,
						      .start = {r->start},
						      .kind = (enum ferry_mapping_kind)r->kind,
						      .fd = -1};
		out->ram_bytes += r->desc.n_pages * r->desc.page_bytes;
	}
}
