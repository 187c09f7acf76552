// SPDX-License-Identifier: Apache-2.0
/*
 * Attaching: a userfaultfd for the memory of a running process that knows nothing of it.
 *
 *  1. The process is made to run userfaultfd(). Only the process itself can: a userfaultfd serves
 *     the memory of whoever opens it.
 *  2. Where it may not (a VMM without CAP_SYS_PTRACE, and vm.unprivileged_userfaultfd=0, as with
 *     libvirt), we may: we open /dev/userfaultfd, pass that descriptor to the process through a
 *     socket pair which it is made to open, and it asks the device for its userfaultfd.
 *  3. We take a duplicate with pidfd_getfd() and do UFFDIO_API on that. Whatever fails before
 *     leaves nothing open in the process.
 *
 * The process keeps its own descriptor until ferry_uffd_release().
 */
#include "uffd/uffd.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/kcmp.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "uffd/inject.h"
#include "uffd/kernel.h"
#include "uffd/uffd_internal.h"

/* What a call in the other process needs in that process's memory. */
struct scratch {
	int pair[2];
	struct msghdr msg;
	struct iovec iov;
	union {
		char buf[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control;
	char byte;
};

struct attach_job {
	int pidfd;	   /* borrowed */
	int dev_fd;	   /* borrowed: /dev/userfaultfd, or -1 */
	uint64_t features; /* in: wanted, out: on */
	int fd;		   /* out: our duplicate */
	int remote_fd;	   /* out */
};

static int pidfd_open(pid_t pid)
{
	int fd = (int)syscall(SYS_pidfd_open, pid, 0);

	return fd < 0 ? -errno : fd;
}

static int pidfd_getfd(int pidfd, int fd)
{
	int got = (int)syscall(SYS_pidfd_getfd, pidfd, fd, 0);

	return got < 0 ? -errno : got;
}

/* Return: what the call returned in the process, or -ESRCH when the thread ended. */
#define CALL(in, nr, ...) call(in, nr, (const uint64_t[6]){__VA_ARGS__})
static long call(struct ferry_inject *in, long nr, const uint64_t args[6])
{
	long result;
	int r = ferry_inject_syscall(in, nr, args, &result);

	return r < 0 ? r : result;
}

static uint64_t arg_of(long fd)
{
	return (uint64_t)fd;
}

/* Send our /dev/userfaultfd to the other end of @sock. */
static int send_device(int sock, int dev_fd)
{
	const struct ferry_uffd dev = {.fd = dev_fd};

	return ferry_uffd_send(&dev, sock, "d", 1);
}

/* Have the process receive one descriptor from its socket @sock. Return: its number there. */
static long receive_inside(struct ferry_inject *in, uint64_t base, long sock)
{
	struct scratch s = {
		.msg =
			{
				.msg_iov =
					(void *)(uintptr_t)(base + offsetof(struct scratch, iov)),
				.msg_iovlen = 1,
				.msg_control = (void *)(uintptr_t)(base + offsetof(struct scratch,
										   control)),
				.msg_controllen = sizeof(s.control),
			},
		.iov = {(void *)(uintptr_t)(base + offsetof(struct scratch, byte)), 1},
	};
	int fd;
	long r = ferry_inject_write(in, base, &s, sizeof(s));

	if (r == 0)
		r = CALL(in, SYS_recvmsg, arg_of(sock), base + offsetof(struct scratch, msg),
			 MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
	if (r < 0)
		return r;
	r = ferry_inject_read(in, base, &s, sizeof(s));
	if (r < 0)
		return r;
	if (s.control.align.cmsg_len != CMSG_LEN(sizeof(int)) ||
	    s.control.align.cmsg_type != SCM_RIGHTS)
		return -EACCES; /* a security module took the descriptor out */
	memcpy(&fd, s.control.buf + CMSG_LEN(0), sizeof(fd));
	return fd;
}

/* Step 2, with a page of scratch memory in the process at @base. */
static long open_with_scratch(struct ferry_inject *in, const struct attach_job *job, uint64_t base)
{
	_cleanup_close_ int sock = -1;
	long dev, fd, r;
	int pair[2];

	r = CALL(in, SYS_socketpair, AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, base);
	if (r < 0)
		return r;
	fd = ferry_inject_read(in, base, pair, sizeof(pair));
	if (fd < 0)
		return fd;
	sock = pidfd_getfd(job->pidfd, pair[0]);
	dev = sock < 0 ? sock : send_device(sock, job->dev_fd);
	if (dev == 0)
		dev = receive_inside(in, base, pair[1]);
	fd = dev;
	if (dev >= 0) {
		fd = CALL(in, SYS_ioctl, arg_of(dev), USERFAULTFD_IOC_NEW, FERRY_UFFD_FLAGS);
		CALL(in, SYS_close, arg_of(dev));
	}
	CALL(in, SYS_close, arg_of(pair[0]));
	CALL(in, SYS_close, arg_of(pair[1]));
	return fd;
}

static long open_by_our_device(struct ferry_inject *in, const struct attach_job *job)
{
	const size_t len = sizeof(struct scratch);
	long base = CALL(in, SYS_mmap, 0, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
			 UINT64_MAX, 0);
	long fd;

	if (base < 0)
		return base;
	fd = open_with_scratch(in, job, arg_of(base));
	CALL(in, SYS_munmap, arg_of(base), len);
	return fd;
}

static int open_inside(struct ferry_inject *in, void *ctx, struct ferry_failure *f)
{
	struct attach_job *job = ctx;
	long remote = CALL(in, SYS_userfaultfd, FERRY_UFFD_FLAGS);
	const char *part = "userfaultfd";
	int r;

	if (remote == -EPERM && job->dev_fd >= 0)
		remote = open_by_our_device(in, job);
	if (remote == -ESRCH)
		return -ESRCH;
	if (remote == -EPERM || remote == -EACCES)
		return ferry_fail(f, FERRY_REFUSE, (int)remote,
				  "userfaultfd in the process: %s; run pageferry as root with "
				  "/dev/userfaultfd present (Linux 6.1), or "
				  "'sysctl vm.unprivileged_userfaultfd=1'",
				  strerror((int)-remote));
	if (remote < 0)
		return ferry_fail_errno(f, FERRY_REFUSE, (int)remote, "userfaultfd in the process");

	job->fd = pidfd_getfd(job->pidfd, (int)remote);
	r = job->fd;
	if (r < 0) {
		part = "pidfd_getfd";
	} else {
		part = "UFFDIO_API";
		r = ferry_uffd_handshake(job->fd, &job->features);
	}
	if (r < 0) {
		ferry_close(job->fd);
		/* The descriptors are found through the first thread; if this one lives, that is
		 * why. */
		if (CALL(in, SYS_close, arg_of(remote)) == 0 && r == -ESRCH)
			return ferry_fail(f, FERRY_REFUSE, -EOPNOTSUPP,
					  "the first thread of the process has ended; its "
					  "descriptors can't be reached without it");
		return ferry_fail_errno(f, FERRY_REFUSE, r, "%s", part);
	}
	job->remote_fd = (int)remote;
	return 0;
}

static int open_process(pid_t pid, struct ferry_failure *f)
{
	int fd;

	if (pid <= 0 || pid == getpid())
		return ferry_fail(f, FERRY_REFUSE, -EINVAL,
				  "%d is not the number of another process", (int)pid);
	fd = pidfd_open(pid);
	if (fd == -ESRCH)
		return ferry_fail(f, FERRY_REFUSE, fd, "there is no process %d", (int)pid);
	/* What the kernel says of a thread that is not the first of its process; since 6.15 ENOENT.
	 */
	if (fd == -EINVAL || fd == -ENOENT)
		return ferry_fail(f, FERRY_REFUSE, -EINVAL,
				  "%d is a thread; give the number of its process", (int)pid);
	if (fd < 0)
		return ferry_fail_errno(f, FERRY_REFUSE, fd, "pidfd_open");
	return fd;
}

int ferry_uffd_attach(struct ferry_uffd *out, pid_t pid, uint64_t wanted, struct ferry_failure *f)
{
	_cleanup_close_ int pidfd = open_process(pid, f);
	_cleanup_close_ int dev_fd = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
	struct attach_job job = {.pidfd = pidfd, .dev_fd = dev_fd, .features = wanted};
	int r;

	if (pidfd < 0)
		return pidfd;
	r = ferry_inject_run(pid, pidfd, open_inside, &job, f);
	if (r < 0)
		return r;
	*out = (struct ferry_uffd){
		.fd = job.fd,
		.pidfd = TAKE_FD(pidfd),
		.pid = pid,
		.remote_fd = job.remote_fd,
		.features = job.features,
	};
	return 0;
}

/* Return: 1 when they are one and the same, 0 when not, or negative errno. */
static int same_file(pid_t pid_a, int fd_a, pid_t pid_b, int fd_b)
{
	long r = syscall(SYS_kcmp, pid_a, pid_b, KCMP_FILE, fd_a, fd_b);

	return r < 0 ? -errno : r == 0;
}

/* The one userfaultfd among the descriptors of @pid. Return: its number there. */
static int find_remote(pid_t pid, struct ferry_failure *f)
{
	struct dirent *e;
	char path[64];
	int found = -1, r;
	DIR *dir;

	snprintf(path, sizeof(path), "/proc/%d/fd", (int)pid);
	dir = opendir(path);
	if (!dir && errno == EACCES)
		return ferry_fail(f, FERRY_REFUSE, -EPERM,
				  "%s: not allowed; run as root, or with CAP_SYS_PTRACE", path);
	if (!dir)
		return ferry_fail_errno(f, FERRY_REFUSE, errno == ENOENT ? -ESRCH : -errno, "%s",
					path);
	for (errno = 0; (e = readdir(dir)); errno = 0) {
		char link[sizeof(FERRY_UFFD_LINK)];
		ssize_t len = readlinkat(dirfd(dir), e->d_name, link, sizeof(link));
		int fd = (int)strtol(e->d_name, NULL, 10);

		/* "." is no link; others are closed meanwhile. */
		if (len < 0 && errno != EINVAL && errno != ENOENT)
			break;
		if (len != sizeof(FERRY_UFFD_LINK) - 1 ||
		    memcmp(link, FERRY_UFFD_LINK, (size_t)len) != 0)
			continue;
		if (found >= 0 && same_file(pid, found, pid, fd) != 1) {
			closedir(dir);
			return ferry_fail(
				f, FERRY_REFUSE, -ENOTUNIQ,
				"process %d has several userfaultfds (descriptors %d and %d); "
				"can't tell which to take over",
				(int)pid, found, fd);
		}
		if (found < 0)
			found = fd;
	}
	r = -errno;
	closedir(dir);
	if (r < 0)
		return ferry_fail_errno(f, FERRY_REFUSE, r == -ENOENT ? -ESRCH : r, "%s", path);
	if (found < 0)
		return ferry_fail(f, FERRY_REFUSE, -ENOENT,
				  "process %d has no userfaultfd: nobody attached to it before",
				  (int)pid);
	return found;
}

int ferry_uffd_adopt(struct ferry_uffd *out, pid_t pid, struct ferry_failure *f)
{
	_cleanup_close_ int pidfd = open_process(pid, f);
	_cleanup_close_ int fd = -1;
	uint64_t features;
	int remote, r;

	if (pidfd < 0)
		return pidfd;
	remote = find_remote(pid, f);
	if (remote < 0)
		return remote;
	fd = pidfd_getfd(pidfd, remote);
	if (fd < 0)
		return ferry_fail(
			f, FERRY_REFUSE, fd,
			"pidfd_getfd: process %d: %s; run as root, or with CAP_SYS_PTRACE",
			(int)pid, strerror(-fd));
	r = ferry_uffd_make_ready(fd, &features);
	if (r < 0)
		return ferry_fail_errno(f, FERRY_REFUSE, r, "userfaultfd of process %d", (int)pid);
	*out = (struct ferry_uffd){
		.fd = TAKE_FD(fd),
		.pidfd = TAKE_FD(pidfd),
		.pid = pid,
		.remote_fd = remote,
		.features = features,
	};
	return 0;
}

static int close_inside(struct ferry_inject *in, void *ctx, struct ferry_failure *f)
{
	const struct ferry_uffd *u = ctx;
	/* Only while it is stopped can the number not come to mean something else. */
	int r = same_file(getpid(), u->fd, u->pid, u->remote_fd);

	(void)f;
	if (r == 1)
		return (int)CALL(in, SYS_close, arg_of(u->remote_fd));
	return r == -EBADF ? 0 : r;
}

int ferry_uffd_release(struct ferry_uffd *u)
{
	int r = 0;

	if (!u)
		return 0;
	if (u->remote_fd >= 0)
		r = ferry_inject_run(u->pid, u->pidfd, close_inside, u, NULL);
	ferry_uffd_close(u);
	return r;
}
