// SPDX-License-Identifier: Apache-2.0
#include "handler/keeper_link.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>

#include "base/cleanup.h"

union control {
	char buf[CMSG_SPACE(FERRY_KEEPER_FDS * sizeof(int))];
	struct cmsghdr align;
};

int ferry_keeper_pair(int fds[2])
{
	return socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, fds) < 0
		       ? -errno
		       : 0;
}

int ferry_keeper_send(int fd, const struct ferry_keeper_packet *p)
{
	union control control = {0};
	struct iovec iov = {(void *)(uintptr_t)p,
			    offsetof(struct ferry_keeper_packet, bytes) + p->n_bytes};
	struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};
	size_t n = 0;
	ssize_t rc;

	while (n < FERRY_KEEPER_FDS && p->fds[n] >= 0)
		n++;
	if (n) {
		msg.msg_control = &control;
		msg.msg_controllen = CMSG_SPACE(n * sizeof(int));
		control.align.cmsg_len = CMSG_LEN(n * sizeof(int));
		control.align.cmsg_level = SOL_SOCKET;
		control.align.cmsg_type = SCM_RIGHTS;
		memcpy(CMSG_DATA(&control.align), p->fds, n * sizeof(int));
	}
	do
		rc = sendmsg(fd, &msg, MSG_NOSIGNAL | MSG_DONTWAIT);
	while (rc < 0 && errno == EINTR);
	return rc < 0 ? -errno : 0;
}

static void take_fds(struct msghdr *msg, struct ferry_keeper_packet *p)
{
	for (size_t i = 0; i < FERRY_KEEPER_FDS; i++)
		p->fds[i] = -1;
	for (struct cmsghdr *c = CMSG_FIRSTHDR(msg); c; c = CMSG_NXTHDR(msg, c)) {
		if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS)
			memcpy(p->fds, CMSG_DATA(c), c->cmsg_len - CMSG_LEN(0));
	}
}

int ferry_keeper_receive(int fd, struct ferry_keeper_packet *p)
{
	union control control;
	size_t head = offsetof(struct ferry_keeper_packet, bytes);
	struct iovec iov = {p, head + sizeof(p->bytes)};
	struct msghdr msg = {.msg_iov = &iov,
			     .msg_iovlen = 1,
			     .msg_control = &control,
			     .msg_controllen = sizeof(control)};
	ssize_t rc;

	do
		rc = recvmsg(fd, &msg, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
	while (rc < 0 && errno == EINTR);
	if (rc < 0)
		return -errno;
	if (!rc)
		return -ECONNRESET;
	take_fds(&msg, p);
	if ((size_t)rc < head || p->n_bytes != (size_t)rc - head) {
		for (size_t i = 0; i < FERRY_KEEPER_FDS; i++)
			ferry_close(p->fds[i]);
		return -EBADMSG;
	}
	return 0;
}
