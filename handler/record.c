// SPDX-License-Identifier: Apache-2.0
#include "handler/record.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/util.h"
#include "handler/working_set.h"

#define FILE_MAX  (256u * FERRY_MIB)
#define PAGES_MAX (1u << 20) /* of one recording: 4 GiB */
#define PATH_MOST 4096u
#define LOCK_MS	  10 /* until a lock that another handler has is tried again */
#define LOCK_N	  1000

struct ferry_record {
	const char *path;
	uint64_t bytes;	      /* of the snapshot */
	pthread_mutex_t lock; /* of the file, among our VMs; PATH.lock is the lock among handlers */
};

struct ferry_record_vm {
	_Atomic size_t n;
	size_t room;
	uint64_t pages[];
};

int ferry_record_read(const char *path, char **text, size_t *len, struct ferry_failure *f)
{
	_cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC);
	_cleanup_free_ char *to = NULL;
	struct stat st;
	ssize_t n;

	if (fd < 0 || fstat(fd, &st) < 0)
		return ferry_fail_errno(f, FERRY_REFUSE, -errno, "%s", path);
	if (st.st_size > FILE_MAX)
		return ferry_fail(f, FERRY_REFUSE, -EFBIG, "%s: too large for a working set", path);
	to = malloc((size_t)st.st_size + 1);
	if (!to)
		return ferry_fail_errno(f, FERRY_REFUSE, -ENOMEM, "%s", path);
	n = read(fd, to, (size_t)st.st_size);
	if (n != st.st_size)
		return ferry_fail_errno(f, FERRY_REFUSE, n < 0 ? -errno : -EIO, "%s", path);
	*len = (size_t)n;
	*text = TAKE_PTR(to);
	return 0;
}

/* What the file has. @w: to be initialised, and ended after success. */
static int load(struct ferry_record *r, struct ferry_working_set *w, struct ferry_failure *f)
{
	_cleanup_free_ char *text = NULL;
	size_t len;
	int rc = ferry_working_set_init(w, r->bytes);

	if (rc < 0)
		return ferry_fail_errno(f, FERRY_REFUSE, rc, "recording");
	rc = ferry_record_read(r->path, &text, &len, f);
	if (!rc)
		rc = ferry_working_set_parse(w, text, len, f);
	if (rc == -EBADMSG)
		ferry_fail_prefix(f, "%s", r->path);
	if (rc == -ENOENT)
		return 0;
	if (rc < 0)
		ferry_working_set_fini(w);
	return rc;
}

int ferry_record_begin(uint64_t bytes, struct ferry_record_vm **out)
{
	size_t room = FERRY_MIN(bytes / FERRY_PAGE_SIZE_DEFAULT, (uint64_t)PAGES_MAX);
	struct ferry_record_vm *vm = calloc(1, sizeof(*vm) + room * sizeof(vm->pages[0]));

	if (!vm)
		return -ENOMEM;
	vm->room = room;
	*out = vm;
	return 0;
}

void ferry_record_fault(struct ferry_record_vm *vm, uint64_t offset)
{
	size_t n = atomic_load_explicit(&vm->n, memory_order_relaxed);

	if (n == vm->room)
		return;
	vm->pages[n] = offset / FERRY_PAGE_SIZE_DEFAULT;
	atomic_store_explicit(&vm->n, n + 1, memory_order_release);
}

static int write_whole(const char *path, const char *text, size_t len)
{
	_cleanup_close_ int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);

	if (fd < 0)
		return -errno;
	for (size_t at = 0; at < len;) {
		ssize_t n = write(fd, text + at, len - at);

		if (n < 0 && errno != EINTR)
			return -errno;
		at += n > 0 ? (size_t)n : 0;
	}
	return fsync(fd) < 0 ? -errno : 0;
}

/* Whole, or not at all. */
static int store(struct ferry_record *r, const struct ferry_working_set *w, struct ferry_failure *f)
{
	_cleanup_free_ char *text = NULL;
	char tmp[PATH_MOST];
	size_t len;
	int rc = ferry_working_set_print(w, &text, &len);

	if (rc < 0)
		return ferry_fail_errno(f, FERRY_REFUSE, rc, "%s", r->path);
	if (snprintf(tmp, sizeof(tmp), "%s.%d.new", r->path, (int)getpid()) >= (int)sizeof(tmp))
		return ferry_fail_errno(f, FERRY_REFUSE, -ENAMETOOLONG, "%s", r->path);
	rc = write_whole(tmp, text, len);
	if (!rc && rename(tmp, r->path) < 0)
		rc = -errno;
	if (!rc)
		return 0;
	unlink(tmp);
	return ferry_fail_errno(f, FERRY_REFUSE, rc, "%s", r->path);
}

static int try_lock(const char *path)
{
	_cleanup_close_ int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
	struct stat here, there;
	int rc;

	if (fd < 0)
		return -errno;
	do
		rc = flock(fd, LOCK_EX | LOCK_NB);
	while (rc < 0 && errno == EINTR);
	if (rc < 0 || fstat(fd, &here) < 0)
		return -errno;
	/* Who had it before us has removed it. */
	if (stat(path, &there) < 0 || there.st_ino != here.st_ino)
		return -EWOULDBLOCK;
	return TAKE_FD(fd);
}

/* @path: PATH_MOST bytes, for unlock(). Return: a descriptor that holds the lock. */
static int lock(const struct ferry_record *r, char *path, struct ferry_failure *f)
{
	int fd = -ENAMETOOLONG;

	if (snprintf(path, PATH_MOST, "%s.lock", r->path) < (int)PATH_MOST)
		fd = try_lock(path);
	for (int i = 0; i < LOCK_N && fd == -EWOULDBLOCK; i++) {
		(void)poll(NULL, 0, LOCK_MS);
		fd = try_lock(path);
	}
	return fd < 0 ? ferry_fail_errno(f, FERRY_REFUSE, fd, "the lock of %s", r->path) : fd;
}

static void unlock(int fd, const char *path)
{
	unlink(path);
	ferry_close(fd);
}

int ferry_record_open(struct ferry_record **out, const char *path, uint64_t bytes,
		      struct ferry_failure *f)
{
	struct ferry_record *r = calloc(1, sizeof(*r));
	struct ferry_working_set w;
	char lock_path[PATH_MOST];
	int fd, rc;

	if (!r)
		return ferry_fail_errno(f, FERRY_REFUSE, -ENOMEM, "recording");
	r->path = path;
	r->bytes = bytes;
	pthread_mutex_init(&r->lock, NULL);
	rc = load(r, &w, f);
	if (rc < 0) {
		ferry_record_close(r);
		return rc;
	}
	ferry_working_set_fini(&w);
	/* A guest would have started in vain if nothing could be written in the end. */
	fd = lock(r, lock_path, f);
	if (fd < 0) {
		ferry_record_close(r);
		return fd;
	}
	unlock(fd, lock_path);
	*out = r;
	return 0;
}

void ferry_record_close(struct ferry_record *r)
{
	if (!r)
		return;
	pthread_mutex_destroy(&r->lock);
	free(r);
}

/* Other handlers may have added to the file since we last looked. */
static int add(struct ferry_record *r, const uint64_t *pages, size_t n, struct ferry_failure *f)
{
	struct ferry_working_set w;
	int rc = load(r, &w, f);

	if (rc < 0)
		return rc;
	ferry_working_set_add(&w, pages, n);
	rc = store(r, &w, f);
	ferry_working_set_fini(&w);
	return rc;
}

int ferry_record_end(struct ferry_record *r, struct ferry_record_vm *vm, uint64_t *n_pages,
		     struct ferry_failure *f)
{
	size_t n = atomic_load_explicit(&vm->n, memory_order_acquire);
	char path[PATH_MOST];
	int fd, rc;

	*n_pages = n;
	pthread_mutex_lock(&r->lock);
	fd = rc = lock(r, path, f);
	if (fd >= 0) {
		rc = add(r, vm->pages, n, f);
		unlock(fd, path);
	}
	pthread_mutex_unlock(&r->lock);
	return rc;
}
