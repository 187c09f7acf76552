// SPDX-License-Identifier: Apache-2.0
/* Handing userfaultfds from process to process, as Firecracker and Cloud Hypervisor do. */
#include "uffd/uffd.h"

#include <errno.h>
#include <poll.h>
#include <stdbool.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/net.h"
#include "uffd/uffd_internal.h"

#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77 /* Linux 6.5 */
#endif

#define FDS_MAX 16 /* more in one message are cut off by the kernel, which is told */

/* Keep the first descriptor of @msg, or -1, and close the others. */
static int first_fd(struct msghdr *msg)
{
	int kept = -1;

	for (struct cmsghdr *c = CMSG_FIRSTHDR(msg); c; c = CMSG_NXTHDR(msg, c)) {
		size_t n;

		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		n = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		for (size_t i = 0; i < n; i++) {
			int fd;

			memcpy(&fd, CMSG_DATA(c) + i * sizeof(fd), sizeof(fd));
			if (kept < 0)
				kept = fd;
			else
				ferry_close(fd);
		}
	}
	return kept;
}

/* Who is at the other end. A pidfd of the peer itself can't mean another process by now. */
static int find_peer(int sock, struct ferry_uffd *u, struct ferry_failure *f)
{
	struct ucred cred = {0};
	socklen_t len = sizeof(cred);
	int fd = -1;

	if (getsockopt(sock, SOL_SOCKET, SO_PEERCRED, &cred, &len) < 0)
		return ferry_fail_errno(f, FERRY_REFUSE, -errno, "SO_PEERCRED");
	if (cred.pid <= 0)
		return ferry_fail(f, FERRY_REFUSE, -ESRCH,
				  "the sender of the userfaultfd is in a foreign PID namespace");
	len = sizeof(fd);
	if (getsockopt(sock, SOL_SOCKET, SO_PEERPIDFD, &fd, &len) < 0)
		fd = (int)syscall(SYS_pidfd_open, cred.pid, 0);
	if (fd < 0)
		return ferry_fail_errno(f, FERRY_REFUSE, -errno, "process %d", (int)cred.pid);
	u->pid = cred.pid;
	u->pidfd = fd;
	/* Newer kernels have a pidfd also of a process that has ended. */
	if (poll(&(struct pollfd){.fd = fd, .events = POLLIN}, 1, 0) > 0)
		return ferry_fail(f, FERRY_REFUSE, -ESRCH,
				  "process %d, which sent the userfaultfd, has ended",
				  (int)cred.pid);
	return 0;
}

ssize_t ferry_uffd_recv_bytes(int sock, void *data, size_t len, int *fd, bool *cut)
{
	union {
		char buf[CMSG_SPACE(FDS_MAX * sizeof(int))];
		struct cmsghdr align;
	} control;
	struct iovec iov = {data, len};
	struct msghdr msg = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = sizeof(control),
	};
	ssize_t n;

	do
		n = recvmsg(sock, &msg, MSG_CMSG_CLOEXEC);
	while (n < 0 && errno == EINTR);
	if (n < 0)
		return -errno;
	*fd = first_fd(&msg);
	*cut = msg.msg_flags & (MSG_CTRUNC | MSG_TRUNC);
	return n;
}

int ferry_uffd_from_peer(struct ferry_uffd *out, int fd, int sock, struct ferry_failure *f)
{
	_cleanup_(ferry_uffd_close) struct ferry_uffd u = FERRY_UFFD_NONE;
	int r;

	u.fd = fd;
	r = ferry_uffd_make_ready(u.fd, &u.features);
	if (r == -EBADF)
		return ferry_fail(f, FERRY_REFUSE, -EBADMSG,
				  "the descriptor that came is not a userfaultfd");
	if (r < 0)
		return ferry_fail_errno(f, FERRY_REFUSE, r, "the received userfaultfd");
	r = find_peer(sock, &u, f);
	if (r < 0)
		return r;
	*out = u;
	u = FERRY_UFFD_NONE;
	return 0;
}

int ferry_uffd_recv(struct ferry_uffd *out, int sock, void *data, size_t *len,
		    struct ferry_failure *f)
{
	_cleanup_close_ int fd = -1;
	bool cut = false;
	ssize_t n = ferry_uffd_recv_bytes(sock, data, *len, &fd, &cut);
	int r;

	if (n < 0)
		return ferry_fail_errno(f, FERRY_REFUSE, (int)n, "receiving a userfaultfd");
	if (n == 0)
		return ferry_fail(f, FERRY_REFUSE, -ECONNRESET,
				  "the peer closed before it sent a userfaultfd");
	if (cut)
		return ferry_fail(
			f, FERRY_REFUSE, -EBADMSG,
			"the message with the userfaultfd was cut off: it has more than %d "
			"descriptors, or more than this process can have",
			FDS_MAX);
	if (fd < 0)
		return ferry_fail(f, FERRY_REFUSE, -EBADMSG,
				  "the message has no descriptor with it");
	r = ferry_uffd_from_peer(out, TAKE_FD(fd), sock, f);
	if (r < 0)
		return r;
	*len = (size_t)n;
	return 0;
}

int ferry_uffd_send(const struct ferry_uffd *u, int sock, const void *data, size_t len)
{
	union {
		char buf[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control = {.align = {.cmsg_len = CMSG_LEN(sizeof(int)),
			       .cmsg_level = SOL_SOCKET,
			       .cmsg_type = SCM_RIGHTS}};
	struct iovec iov = {(void *)(uintptr_t)data, len};
	struct msghdr msg = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = sizeof(control),
	};
	ssize_t n;

	memcpy(CMSG_DATA(&control.align), &u->fd, sizeof(u->fd));
	do
		n = sendmsg(sock, &msg, MSG_NOSIGNAL);
	while (n < 0 && errno == EINTR);
	if (n < 0)
		return -errno;
	/* The descriptor went with the first byte; what is left is an ordinary stream. */
	return ferry_net_write_all(sock, (const char *)data + n, len - (size_t)n, -1, -1);
}
