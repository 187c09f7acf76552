/* SPDX-License-Identifier: Apache-2.0 */
#include "base/keep.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include <xxhash.h>

#include "base/cleanup.h"
#include "base/util.h"

#define MAGIC	       "PFRYKEEP"
#define PATH_MAX_BYTES 96
#define OPEN_ATTEMPTS  16 /* each loses to one that holds the file, or has just removed it */

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

/* Return: a descriptor, or a negative errno. */
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

/* Field 22 of /proc/PID/stat. Errors: -ESRCH, it has ended; others when it can't be told this time.
 */
static int started(pid_t pid, uint64_t *out)
{
	_cleanup_close_ int fd = -1;
	char text[1024];
	const char *p;
	ssize_t n;

	snprintf(text, sizeof(text), "/proc/%d/stat", (int)pid);
	fd = open(text, O_RDONLY | O_CLOEXEC);
	n = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);
	if (n < 0)
		return errno == ENOENT ? -ESRCH : -errno;
	text[n] = '\0';
	p = strrchr(text, ')'); /* the name before it may hold anything */
	for (int field = 2; field < 22 && p; field++)
		p = strchr(p + 1, ' ');
	if (!p)
		return -EIO;
	*out = strtoull(p + 1, NULL, 10);
	return 0;
}

/* 0 when it can't be told. */
static uint64_t mounts(void)
{
	struct stat st;

	return stat("/proc/self/ns/mnt", &st) < 0 ? 0 : st.st_ino;
}

void ferry_keep_about(struct ferry_keep_file *out, const char *path)
{
	char full[PATH_MAX];
	struct stat st;

	*out = (struct ferry_keep_file){.mounts = mounts()};
	if (!out->mounts || !realpath(path, full) || strlen(full) >= sizeof(out->path) ||
	    stat(full, &st) < 0)
		return;
	out->dev = st.st_dev;
	out->ino = st.st_ino;
	strcpy(out->path, full);
}

/* Certainly: one that we can't look for may be there. */
static bool is_file_gone(const struct ferry_keep_file *f)
{
	struct stat st;

	if (!f->path[0] || f->path[sizeof(f->path) - 1] || f->mounts != mounts())
		return false;
	if (stat(f->path, &st) < 0)
		return errno == ENOENT || errno == ENOTDIR;
	return st.st_dev != f->dev || st.st_ino != f->ino;
}

/* What it is about: one that we can't look for may be. @file: behind the head, if that is a file */
static bool is_there(const struct ferry_keep_head *h, const struct ferry_keep_file *file)
{
	uint64_t now;
	int rc;

	if (!h->pid)
		return h->bytes >= sizeof(*h) + sizeof(*file) && !is_file_gone(file);
	rc = started(h->pid, &now);
	return rc < 0 ? rc != -ESRCH : h->started == now;
}

/* The directory may be given to us together with others, who have files there that only they know.
 */
static bool is_name_of_ours(const char *name)
{
	static const char *const commands[] = {"serve-", "attach-", "migrate-", "receive-"};

	for (size_t i = 0; i < FERRY_ARRAY_SIZE(commands); i++) {
		const char *rest = name + strlen(commands[i]);

		if (!strncmp(name, commands[i], strlen(commands[i])) && *rest &&
		    !rest[strspn(rest, "0123456789abcdef-")])
			return true;
	}
	return false;
}

/* Has it no more use, whoever finds it? Of one that somebody holds that can't be told. */
static bool is_stale(int fd, const char *name)
{
	struct {
		struct ferry_keep_head head;
		struct ferry_keep_file file;
	} r = {0};
	ssize_t n = pread(fd, &r, sizeof(r), 0);

	/* Whoever made it was killed before there was anything to keep, or once there was no more.
	 */
	if (!n)
		return is_name_of_ours(name);
	return n >= (ssize_t)sizeof(r.head) && !memcmp(r.head.magic, MAGIC, sizeof(r.head.magic)) &&
	       (r.head.pid || n == sizeof(r)) && !is_there(&r.head, &r.file);
}

/*
 * A name belongs to who holds the lock of its file: only he removes it. So what was looked at
 * before counts for nothing once we have the lock; nor does a file that has lost its name since, as
 * that may be another's now.
 */
static void sweep_one(int dir_fd, const char *name)
{
	_cleanup_close_ int fd =
		openat(dir_fd, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
	struct stat st;

	if (fd < 0 || fstat(fd, &st) < 0 || !S_ISREG(st.st_mode) || !is_stale(fd, name) ||
	    flock(fd, LOCK_EX | LOCK_NB) < 0)
		return;
	if (!fstat(fd, &st) && st.st_nlink && is_stale(fd, name))
		(void)unlinkat(dir_fd, name, 0);
}

/* Whoever wrote them was killed and not started again. */
static void sweep(int dir_fd, const char *but)
{
	int fd = fcntl(dir_fd, F_DUPFD_CLOEXEC, 0);
	DIR *d = fd < 0 ? NULL : fdopendir(fd);
	struct dirent *e;

	if (!d) {
		ferry_close(fd);
		return;
	}
	while ((e = readdir(d))) {
		if (strcmp(e->d_name, but) != 0)
			sweep_one(dir_fd, e->d_name);
	}
	closedir(d);
}

/* Return: a descriptor that holds the lock, or a negative errno. */
static int open_locked(int dir_fd, const char *name)
{
	const struct timespec pause = {.tv_nsec = 1000000};

	for (int i = 0; i < OPEN_ATTEMPTS; i++) {
		_cleanup_close_ int fd =
			openat(dir_fd, name, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
		struct stat st;

		if (fd < 0)
			return -errno;
		if (!flock(fd, LOCK_EX | LOCK_NB)) {
			if (!fstat(fd, &st) && st.st_nlink)
				return TAKE_FD(fd);
		} else if (errno == EWOULDBLOCK) {
			/* Somebody may just be looking at it, to read or to sweep it. */
			nanosleep(&pause, NULL);
		} else {
			return -errno;
		}
	}
	return -EBUSY;
}

int ferry_keep_open(struct ferry_keep *k, const char *dir, const char *name,
		    struct ferry_failure *f)
{
	char where[PATH_MAX_BYTES] = "";
	_cleanup_close_ int dir_fd = open_dir(dir, where);
	int fd;

	*k = FERRY_KEEP_NONE;
	if (dir_fd == -ENOENT && !where[0])
		return ferry_fail(f, FERRY_REFUSE, dir_fd,
				  "there is no place for a record that outlives this process; set "
				  "XDG_RUNTIME_DIR");
	if (dir_fd < 0)
		return ferry_fail_errno(f, FERRY_REFUSE, dir_fd,
					"nothing can be kept in %s, should this process be killed; "
					"it must be a directory of this user that nobody else may "
					"write to",
					where);
	sweep(dir_fd, name);
	fd = open_locked(dir_fd, name);
	if (fd == -EBUSY)
		return ferry_fail(f, FERRY_REFUSE, fd,
				  "another pageferry is at work on it (it holds %s/%s); wait for its "
				  "end, or end it",
				  where, name);
	if (fd < 0)
		return ferry_fail_errno(f, FERRY_REFUSE, fd, "%s/%s", where, name);
	k->fd = fd;
	snprintf(k->path, sizeof(k->path), "%s/%s", where, name);
	return 0;
}

/* Where version @version of a record goes, the first to the front: the one before it stays. */
static off_t place(uint64_t version, size_t bytes)
{
	size_t page = (size_t)getpagesize();

	return (off_t)((version - 1) % 2 * ((bytes + page - 1) / page * page));
}

static uint64_t checksum(struct ferry_keep_head *record, size_t bytes)
{
	uint64_t was = record->checksum, sum;

	record->checksum = 0;
	sum = XXH3_64bits(record, bytes);
	record->checksum = was;
	return sum;
}

/* Return: 1 when it is whole, 0 when it is not, -1 with errno. */
static int read_version(int fd, uint64_t version, struct ferry_keep_head *record, size_t bytes)
{
	off_t at = place(version, bytes);
	size_t done = 0;

	while (done < bytes) {
		ssize_t n = pread(fd, (char *)record + done, bytes - done, at + (off_t)done);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n < 0 ? -1 : 0;
		done += (size_t)n;
	}
	return record->bytes == bytes && !memcmp(record->magic, MAGIC, sizeof(record->magic)) &&
	       record->checksum == checksum(record, bytes);
}

static enum ferry_keep_state read_record(int fd, struct ferry_keep_head *record, size_t bytes)
{
	int odd = read_version(fd, 1, record, bytes), even;
	uint64_t odd_version = odd > 0 ? record->version : 0;

	even = odd < 0 ? -1 : read_version(fd, 2, record, bytes);
	if (even > 0 && record->version < odd_version)
		even = 0;
	/* The one that can't be read may be the newer one. */
	if (!even && odd)
		even = read_version(fd, 1, record, bytes);
	if (even <= 0)
		return even < 0 ? FERRY_KEEP_UNREAD : FERRY_KEEP_EMPTY;
	return is_there(record, (const struct ferry_keep_file *)(record + 1)) ? FERRY_KEEP_FOUND
									      : FERRY_KEEP_OTHER;
}

enum ferry_keep_state ferry_keep_read(const struct ferry_keep *k, void *record, size_t bytes)
{
	return read_record(k->fd, record, bytes);
}

enum ferry_keep_state ferry_keep_peek(const char *dir, const char *name, void *record,
				      size_t bytes)
{
	char where[PATH_MAX_BYTES];
	_cleanup_close_ int dir_fd = open_dir(dir, where), fd = -1;
	enum ferry_keep_state state;

	if (dir_fd < 0) {
		errno = -dir_fd;
		return dir_fd == -EMFILE || dir_fd == -ENFILE || dir_fd == -ENOMEM || dir_fd == -EIO
			       ? FERRY_KEEP_UNREAD
			       : FERRY_KEEP_EMPTY;
	}
	fd = openat(dir_fd, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
	if (fd < 0)
		return errno == ENOENT ? FERRY_KEEP_EMPTY : FERRY_KEEP_UNREAD;
	state = read_record(fd, record, bytes);
	return state == FERRY_KEEP_FOUND && flock(fd, LOCK_SH | LOCK_NB) < 0 ? FERRY_KEEP_HELD
									    : state;
}

/* Return: 0, with the version that counts, 0 when there is none; or a negative errno. */
static int newest(int fd, size_t bytes, uint64_t *version)
{
	_cleanup_free_ struct ferry_keep_head *record = malloc(bytes);
	enum ferry_keep_state state;

	if (!record)
		return -ENOMEM;
	state = read_record(fd, record, bytes);
	if (state == FERRY_KEEP_UNREAD)
		return -errno;
	*version = state == FERRY_KEEP_EMPTY ? 0 : record->version;
	return 0;
}

int ferry_keep_write(const struct ferry_keep *k, void *record, size_t bytes, pid_t pid)
{
	struct ferry_keep_head *h = record;
	size_t done = 0;
	off_t at;
	int rc = newest(k->fd, bytes, &h->version);

	if (rc < 0)
		return rc;
	at = place(++h->version, bytes);
	memcpy(h->magic, MAGIC, sizeof(h->magic));
	h->bytes = (uint32_t)bytes;
	h->pid = pid;
	h->started = 0;
	rc = pid ? started(pid, &h->started) : 0;
	/* Of one that has just ended it is a record all the same. */
	if (rc < 0 && rc != -ESRCH)
		return rc;
	h->checksum = checksum(h, bytes);
	while (done < bytes) {
		ssize_t n =
			pwrite(k->fd, (const char *)record + done, bytes - done, at + (off_t)done);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n < 0 ? -errno : -EIO;
		done += (size_t)n;
	}
	return fdatasync(k->fd) < 0 ? -errno : 0;
}

int ferry_keep_map(const struct ferry_keep *k, size_t record_bytes, size_t bytes, bool fresh,
		   void **out)
{
	off_t at = 2 * place(2, record_bytes);
	void *map;

	if ((fresh && ftruncate(k->fd, at) < 0) || ftruncate(k->fd, at + (off_t)bytes) < 0)
		return -errno;
	/* What is not there can't be had later without a signal. */
	if (posix_fallocate(k->fd, at, (off_t)bytes))
		return -ENOSPC;
	map = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, k->fd, at);
	if (map == MAP_FAILED)
		return -errno;
	*out = map;
	return 0;
}

void ferry_keep_close(struct ferry_keep *k, bool remove)
{
	if (k->fd >= 0 && remove)
		(void)unlink(k->path);
	ferry_close(k->fd);
	k->fd = -1;
}
