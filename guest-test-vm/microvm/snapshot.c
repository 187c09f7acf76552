/* SPDX-License-Identifier: Apache-2.0 */
#include "snapshot.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

static int fail(char *why, const char *what)
{
	int err = errno ? errno : EIO;

	snprintf(why, CPU_WHY_MAX, "%s: %s", what, strerror(err));
	return -err;
}

/* Pages of zeros become holes. */
static int write_memory(int fd, const unsigned char *memory, uint64_t bytes)
{
	static const unsigned char zeroes[MICROVM_PAGE];

	if (ftruncate(fd, (off_t)bytes) < 0)
		return -1;
	for (uint64_t at = 0; at < bytes; at += MICROVM_PAGE)
		if (memcmp(memory + at, zeroes, MICROVM_PAGE) &&
		    pwrite(fd, memory + at, MICROVM_PAGE, (off_t)at) != MICROVM_PAGE)
			return -1;
	return 0;
}

static int open_state(const char *path, int flags)
{
	char name[4096];

	if (snprintf(name, sizeof(name), "%s.state", path) >= (int)sizeof(name)) {
		errno = ENAMETOOLONG;
		return -1;
	}
	return open(name, flags | O_CLOEXEC, 0600);
}

int snapshot_save(const char *path, const struct machine *m, uint64_t bytes,
		  const struct machine_state *state, char *why)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600), rc = 0;

	errno = 0;
	if (fd < 0 || write_memory(fd, machine_memory(m), bytes) < 0)
		rc = fail(why, path);
	if (fd >= 0)
		close(fd);
	if (rc < 0)
		return rc;
	fd = open_state(path, O_WRONLY | O_CREAT | O_TRUNC);
	if (fd < 0 || write(fd, state, sizeof(*state)) != sizeof(*state))
		rc = fail(why, "state");
	if (fd >= 0)
		close(fd);
	return rc;
}

int snapshot_load_state(const char *path, struct machine_state *state, char *why)
{
	int fd = open_state(path, O_RDONLY), rc = 0;

	if (fd < 0 || read(fd, state, sizeof(*state)) != sizeof(*state))
		rc = fail(why, "state");
	if (fd >= 0)
		close(fd);
	return rc;
}

static int open_uffd(void *memory, uint64_t bytes, char *why)
{
	struct uffdio_api api = {.api = UFFD_API, .features = UFFD_FEATURE_EVENT_REMOVE};
	struct uffdio_register reg = {.range = {.start = (uintptr_t)memory, .len = bytes},
				      .mode = UFFDIO_REGISTER_MODE_MISSING};
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);

	if (fd < 0)
		return fail(why, "userfaultfd");
	if (ioctl(fd, UFFDIO_API, &api) < 0 || ioctl(fd, UFFDIO_REGISTER, &reg) < 0) {
		int rc = fail(why, "userfaultfd: registering the memory");

		close(fd);
		return rc;
	}
	return fd;
}

static int send_with(int sock, const char *text, int fd)
{
	union {
		char buf[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control = {.align = {.cmsg_len = CMSG_LEN(sizeof(int)),
			       .cmsg_level = SOL_SOCKET,
			       .cmsg_type = SCM_RIGHTS}};
	struct iovec iov = {(void *)(uintptr_t)text, strlen(text)};
	struct msghdr msg = {.msg_iov = &iov,
			     .msg_iovlen = 1,
			     .msg_control = &control,
			     .msg_controllen = sizeof(control)};

	memcpy(CMSG_DATA(&control.align), &fd, sizeof(fd));
	return sendmsg(sock, &msg, MSG_NOSIGNAL) == (ssize_t)iov.iov_len ? 0 : -1;
}

int snapshot_hand_over(const char *path, const struct machine *m, uint64_t bytes, int fds[2],
		       char *why)
{
	struct sockaddr_un sun = {.sun_family = AF_UNIX};
	void *memory = machine_memory(m);
	int uffd = open_uffd(memory, bytes, why), sock, rc;
	char text[256];

	if (uffd < 0)
		return uffd;
	sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	snprintf(sun.sun_path, sizeof(sun.sun_path), "%s", path);
	snprintf(text, sizeof(text),
		 "[{\"base_host_virt_addr\":%llu,\"size\":%llu,\"offset\":0,\"page_size\":4096,"
		 "\"page_size_kib\":4096}]",
		 (unsigned long long)(uintptr_t)memory, (unsigned long long)bytes);
	if (sock < 0 || connect(sock, (struct sockaddr *)&sun, sizeof(sun)) < 0 ||
	    send_with(sock, text, uffd) < 0) {
		rc = fail(why, path);
		if (sock >= 0)
			close(sock);
		close(uffd);
		return rc;
	}
	fds[0] = sock;
	fds[1] = uffd;
	return 0;
}

void snapshot_abandon(const struct machine *m, uint64_t bytes, const int fds[2])
{
	struct uffdio_range range = {.start = (uintptr_t)machine_memory(m), .len = bytes};

	/* The handler has the userfaultfd as well: to close ours would end nothing. */
	(void)ioctl(fds[1], UFFDIO_UNREGISTER, &range);
	close(fds[0]);
	close(fds[1]);
}
