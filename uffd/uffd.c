// SPDX-License-Identifier: Apache-2.0
#include "uffd/uffd.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "uffd/kernel.h"
#include "uffd/uffd_internal.h"

/* The kernel's own mark in the features that fdinfo shows: UFFDIO_API is done. */
#define FEATURE_INITIALIZED (INT64_C(1) << 31)

static int open_by_device(void)
{
	_cleanup_close_ int dev = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
	int fd;

	if (dev < 0)
		return -errno;
	fd = ioctl(dev, USERFAULTFD_IOC_NEW, FERRY_UFFD_FLAGS);
	return fd < 0 ? -errno : fd;
}

static int open_by_syscall(int flags)
{
	long fd = syscall(SYS_userfaultfd, flags);

	return fd < 0 ? -errno : (int)fd;
}

int ferry_uffd_supported(uint64_t *features)
{
	struct uffdio_api api = {.api = UFFD_API};
	_cleanup_close_ int fd = open_by_syscall(FERRY_UFFD_FLAGS | UFFD_USER_MODE_ONLY);

	if (fd < 0)
		fd = open_by_device();
	if (fd < 0)
		return fd;
	if (ioctl(fd, UFFDIO_API, &api) < 0)
		return -errno;
	*features = api.features;
	return 0;
}

int ferry_uffd_handshake(int fd, uint64_t *features)
{
	struct uffdio_api api = {.api = UFFD_API};
	uint64_t on = 0;

	if (*features) {
		int r = ferry_uffd_supported(&on);

		if (r < 0)
			return r;
		on &= *features;
	}
	api.features = on;
	if (ioctl(fd, UFFDIO_API, &api) < 0)
		return -errno;
	*features = on;
	return 0;
}

/* Return: the features that fdinfo has, with FEATURE_INITIALIZED, or negative errno. */
static int64_t read_fdinfo(int fd)
{
	char path[64], line[160];
	_cleanup_fclose_ FILE *info = NULL;

	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", fd);
	info = fopen(path, "re");
	if (!info)
		return -errno;
	while (fgets(line, sizeof(line), info)) {
		unsigned int api, on;

		if (sscanf(line, "API: %x:%x", &api, &on) == 2)
			return on;
	}
	return ferror(info) ? -errno : -EBADF;
}

/* Return: 0; -EBADF when it is none, or another negative errno. */
static int check_userfaultfd(int fd)
{
	char path[64], link[sizeof(FERRY_UFFD_LINK)];
	ssize_t len;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	len = readlink(path, link, sizeof(link));
	if (len < 0)
		return -errno;
	return len == sizeof(FERRY_UFFD_LINK) - 1 && memcmp(link, FERRY_UFFD_LINK, (size_t)len) == 0
		       ? 0
		       : -EBADF;
}

int ferry_uffd_make_ready(int fd, uint64_t *features)
{
	int64_t info = check_userfaultfd(fd);
	uint64_t on = 0;

	if (!info)
		info = read_fdinfo(fd);
	if (info < 0)
		return (int)info;
	if (info & FEATURE_INITIALIZED)
		on = (uint64_t)(info & ~FEATURE_INITIALIZED);
	else {
		int r = ferry_uffd_handshake(fd, &on);

		if (r < 0)
			return r;
	}
	*features = on;
	return 0;
}

int ferry_uffd_open(struct ferry_uffd *out, uint64_t wanted, struct ferry_failure *f)
{
	_cleanup_close_ int fd = open_by_device();
	uint64_t features = wanted;
	int r;

	if (fd < 0)
		fd = open_by_syscall(FERRY_UFFD_FLAGS);
	if (fd == -ENOSYS)
		return ferry_fail(f, FERRY_REFUSE, fd,
				  "userfaultfd: not in this kernel; one with CONFIG_USERFAULTFD=y "
				  "is needed");
	if (fd == -EPERM || fd == -EACCES)
		return ferry_fail(f, FERRY_REFUSE, fd,
				  "userfaultfd: %s; run as root, or allow this user: "
				  "'setfacl -m u:USER:rw /dev/userfaultfd', or "
				  "'sysctl vm.unprivileged_userfaultfd=1'",
				  strerror(-fd));
	if (fd < 0)
		return ferry_fail_errno(f, FERRY_REFUSE, fd, "userfaultfd");

	r = ferry_uffd_handshake(fd, &features);
	if (r < 0)
		return ferry_fail_errno(f, FERRY_REFUSE, r, "userfaultfd: UFFDIO_API");
	*out = FERRY_UFFD_NONE;
	out->fd = TAKE_FD(fd);
	out->pid = getpid();
	out->features = features;
	return 0;
}

void ferry_uffd_close(struct ferry_uffd *u)
{
	if (!u)
		return;
	ferry_close(u->fd);
	ferry_close(u->pidfd);
	*u = FERRY_UFFD_NONE;
}

/*
 * Registering in the memory of a process that has exited gives ENOMEM, as do real shortages; only
 * the process itself can tell them apart.
 */
static int error_or_gone(const struct ferry_uffd *u, int err)
{
	struct pollfd p = {.fd = u->pidfd, .events = POLLIN};

	if (err == -ENOMEM && u->pidfd >= 0 && poll(&p, 1, 0) == 1)
		return -ESRCH;
	return err;
}

static int do_register(const struct ferry_uffd *u, struct ferry_hva start, uint64_t len,
		       uint64_t mode)
{
	struct uffdio_register reg = {.range = {.start = start.v, .len = len}, .mode = mode};

	return ioctl(u->fd, UFFDIO_REGISTER, &reg) < 0 ? error_or_gone(u, -errno) : 0;
}

int ferry_uffd_register(const struct ferry_uffd *u, struct ferry_hva start, uint64_t len)
{
	return do_register(u, start, len, UFFDIO_REGISTER_MODE_MISSING);
}

int ferry_uffd_register_hidden(const struct ferry_uffd *u, struct ferry_hva start, uint64_t len,
			       bool missing)
{
	return do_register(u, start, len,
			   UFFDIO_REGISTER_MODE_MINOR |
				   (missing ? UFFDIO_REGISTER_MODE_MISSING : 0));
}

int ferry_uffd_unregister(const struct ferry_uffd *u, struct ferry_hva start, uint64_t len)
{
	struct uffdio_range range = {.start = start.v, .len = len};

	return ioctl(u->fd, UFFDIO_UNREGISTER, &range) < 0 ? error_or_gone(u, -errno) : 0;
}

bool ferry_uffd_is_unregistered(const struct ferry_uffd *u, struct ferry_hva at)
{
	struct uffdio_continue c = {.range = {.start = at.v, .len = FERRY_PAGE_SIZE_DEFAULT}};

	return ioctl(u->fd, UFFDIO_CONTINUE, &c) < 0 && errno == ENOENT;
}

bool ferry_uffd_is_changing(const struct ferry_uffd *u, struct ferry_hva at)
{
	struct uffdio_zeropage z = {.range = {.start = at.v, .len = FERRY_PAGE_SIZE_DEFAULT}};

	return ioctl(u->fd, UFFDIO_ZEROPAGE, &z) < 0 && errno == EAGAIN;
}

int ferry_uffd_wake(const struct ferry_uffd *u, struct ferry_hva start, uint64_t len)
{
	struct uffdio_range range = {.start = start.v, .len = len};

	return ioctl(u->fd, UFFDIO_WAKE, &range) < 0 ? -errno : 0;
}
