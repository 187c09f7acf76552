/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The floor of many restores at once: VMs restored from a snapshot that is in memory already, by
 * one thread that takes a message of each VM that has one, in turn, and answers it at once by COPY.
 * No network, no push, no bookkeeping: whatever p99 grows by with more VMs here is the machine's,
 * which has so many processors.
 *
 *   plain-handler --to SOCKET --file SNAPSHOT      until it is killed
 *
 * Trusts its VMMs, and knows only tests/clients/vmm_stand_in.py: its message in one piece, with one
 * region.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "bench/bench.h"

#define MAX_MESSAGE 1024u
#define MAX_READY   64

struct vm {
	int uffd; /* owned, as is all of this, until the process ends */
	uint64_t base;
	const uint8_t *data; /* of the page at ->base; borrowed from the snapshot */
};

static const uint8_t *map_snapshot(const char *path)
{
	int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
	struct stat st;
	void *p;

	if (fd < 0 || fstat(fd, &st) < 0)
		bench_die("plain-handler: --file %s", path ? path : "is missing");
	p = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_SHARED | MAP_POPULATE, fd, 0);
	if (p == MAP_FAILED)
		bench_die("plain-handler: mmap");
	close(fd);
	return p;
}

static int listen_at(const char *path)
{
	struct sockaddr_un sun = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	errno = 0;
	if (!path || strlen(path) >= sizeof(sun.sun_path))
		bench_die("plain-handler: --to is missing, or too long");
	strcpy(sun.sun_path, path);
	unlink(path);
	if (fd < 0 || bind(fd, (struct sockaddr *)&sun, sizeof(sun)) < 0 ||
	    listen(fd, SOMAXCONN) < 0)
		bench_die("plain-handler: %s", path);
	return fd;
}

/* The VMM's message: where its memory is, and the userfaultfd. */
static void take_in(int listener, int epoll, const uint8_t *snapshot)
{
	_Alignas(struct cmsghdr) char control[CMSG_SPACE(sizeof(int))];
	char text[MAX_MESSAGE];
	struct iovec iov = {text, sizeof(text) - 1};
	struct msghdr m = {.msg_iov = &iov,
			   .msg_iovlen = 1,
			   .msg_control = control,
			   .msg_controllen = sizeof(control)};
	int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : recvmsg(fd, &m, MSG_CMSG_CLOEXEC);
	struct cmsghdr *c = n > 0 ? CMSG_FIRSTHDR(&m) : NULL;
	struct vm *vm = malloc(sizeof(*vm));
	struct epoll_event e = {.events = EPOLLIN, .data.ptr = vm};
	uint64_t size, offset;

	if (!c || c->cmsg_type != SCM_RIGHTS || !vm)
		bench_die("plain-handler: a VMM's message");
	text[n] = 0;
	errno = 0;
	if (sscanf(text,
		   "[{\"base_host_virt_addr\":%" SCNu64 ",\"size\":%" SCNu64 ",\"offset\":%" SCNu64,
		   &vm->base, &size, &offset) != 3)
		bench_die("plain-handler: no such message: %s", text);
	memcpy(&vm->uffd, CMSG_DATA(c), sizeof(vm->uffd));
	vm->data = snapshot + offset;
	if (epoll_ctl(epoll, EPOLL_CTL_ADD, vm->uffd, &e) < 0)
		bench_die("plain-handler: epoll");
}

static void serve(const struct vm *vm)
{
	uint64_t address;

	if (bench_uffd_next(vm->uffd, 0, &address))
		bench_uffd_copy(vm->uffd, address, vm->data + (address - vm->base), BENCH_PAGE);
}

int bench_plain_handler(const struct bench_options *o)
{
	const uint8_t *snapshot = map_snapshot(o->file);
	int listener = listen_at(o->to), epoll = epoll_create1(EPOLL_CLOEXEC);
	struct epoll_event ready[MAX_READY] = {{.events = EPOLLIN, .data.ptr = NULL}};

	if (epoll < 0 || epoll_ctl(epoll, EPOLL_CTL_ADD, listener, ready) < 0)
		bench_die("plain-handler: epoll");
	printf("{\"event\":\"listening\"}\n");
	fflush(stdout);
	for (;;) {
		int n = epoll_wait(epoll, ready, MAX_READY, -1);

		if (n < 0)
			bench_die("plain-handler: epoll");
		for (int i = 0; i < n; i++) {
			if (ready[i].data.ptr)
				serve(ready[i].data.ptr);
			else
				take_in(listener, epoll, snapshot);
		}
	}
}
