// SPDX-License-Identifier: Apache-2.0
/* Handing a userfaultfd from process to process over a UNIX socket. */
#include "uffd/uffd.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "uffd/kernel.h"
#include "uffd/place.h"
#include "uffd_support.h"

static struct sockaddr_un listener_address; /* in the abstract namespace, chosen by the kernel */
static int listener;
static uint8_t *memory; /* of the children, at the same address there */

static void set_up(void)
{
	socklen_t len = sizeof(listener_address);

	listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	listener_address.sun_family = AF_UNIX;
	cr_assert_eq(bind(listener, (void *)&listener_address, sizeof(sa_family_t)), 0);
	cr_assert_eq(listen(listener, 1), 0);
	cr_assert_eq(getsockname(listener, (void *)&listener_address, &len), 0);
	memory = map_anon(4 * PAGE);
}

TestSuite(uffd_pass, .init = set_up, .timeout = 60);

static int dial(void)
{
	int sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	/* An autobound name is a zero and five digits. */
	if (connect(sock, (void *)&listener_address, sizeof(sa_family_t) + 6) < 0)
		_exit(80);
	return sock;
}

/* A VMM in small: registers its memory, hands the userfaultfd over, and reads its memory. */
static int hand_over_and_touch(int in, int out, void *arg)
{
	struct ferry_failure f = {0};
	struct ferry_uffd u;
	int sock = dial();

	(void)arg;
	(void)out;
	if (ferry_uffd_open(&u, UFFD_FEATURE_THREAD_ID, &f) < 0)
		return 81;
	if (ferry_uffd_register(&u, hva(memory), 4 * PAGE) < 0)
		return 82;
	if (ferry_uffd_send(&u, sock, "[{\"base\":1}]", 12) < 0)
		return 83;
	ferry_uffd_close(&u);
	parent_await(in);
	return memory[2 * PAGE];
}

Test(uffd_pass, what_a_process_sends_serves_its_memory)
{
	struct child c = child_start(hand_over_and_touch, NULL);
	_cleanup_close_ int sock = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
	uint8_t page[PAGE] __attribute__((aligned(PAGE)));
	struct ferry_failure f = {0};
	struct ferry_placed p;
	struct ferry_uffd u;
	char data[64];
	size_t len = sizeof(data);

	assert_ok(ferry_uffd_recv(&u, sock, data, &len, &f), f);
	cr_assert_eq(len, 12);
	cr_assert_eq(memcmp(data, "[{\"base\":1}]", 12), 0);
	cr_assert_eq(u.pid, c.pid);
	cr_assert(u.pidfd >= 0);
	cr_assert_eq(u.remote_fd, -1);
	cr_assert_eq(u.features, UFFD_FEATURE_THREAD_ID);
	cr_assert(fcntl(u.fd, F_GETFD) & FD_CLOEXEC);

	child_tell(&c);
	cr_assert_eq(next_fault(&u), hva(memory).v + 2 * PAGE);
	memset(page, 42, sizeof(page));
	cr_assert_eq(ferry_place_copy(&u, hva(memory + 2 * PAGE), page, 1, PAGE, &p), 0);
	cr_assert_eq(child_end(&c), 42);

	/* And when it has ended, that shows. */
	cr_assert_eq(ferry_place_copy(&u, hva(memory), page, 1, PAGE, &p), -ESRCH);
	cr_assert_eq(ferry_uffd_register(&u, hva(memory), PAGE), -ESRCH);
	cr_assert_eq(ferry_uffd_unregister(&u, hva(memory), PAGE), -ESRCH);
	ferry_uffd_close(&u);
}

/* Send @n descriptors, all duplicates of @fd, with one byte. */
static void send_fds(int sock, int fd, unsigned int n)
{
	union {
		char buf[CMSG_SPACE(32 * sizeof(int))];
		struct cmsghdr align;
	} control = {.align = {.cmsg_len = CMSG_LEN(n * sizeof(int)),
			       .cmsg_level = SOL_SOCKET,
			       .cmsg_type = SCM_RIGHTS}};
	struct iovec iov = {"x", 1};
	struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};

	for (unsigned int i = 0; i < n; i++)
		memcpy(CMSG_DATA(&control.align) + i * sizeof(int), &fd, sizeof(int));
	if (n) {
		msg.msg_control = &control;
		msg.msg_controllen = CMSG_SPACE(n * sizeof(int));
	}
	cr_assert_eq(sendmsg(sock, &msg, 0), 1);
}

/* Receive from a peer that sent @n duplicates of @fd. Descriptors must not leak either way. */
static int receive(int fd, unsigned int n, struct ferry_failure *f, uint64_t *features)
{
	struct ferry_uffd u = FERRY_UFFD_NONE;
	size_t before = count_fds(getpid());
	size_t len = 1;
	int pair[2];
	char byte;
	int r;

	cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
	send_fds(pair[0], fd, n);
	r = ferry_uffd_recv(&u, pair[1], &byte, &len, f);
	*features = u.features;
	ferry_uffd_close(&u);
	close(pair[0]);
	close(pair[1]);
	cr_assert_eq(count_fds(getpid()), before, "descriptors were left open");
	return r;
}

static int own_uffd(uint64_t features)
{
	struct ferry_failure f = {0};
	struct ferry_uffd u;

	assert_ok(ferry_uffd_open(&u, features, &f), f);
	return u.fd;
}

Test(uffd_pass, of_several_descriptors_the_first_is_kept)
{
	struct ferry_failure f = {0};
	uint64_t features;

	assert_ok(receive(own_uffd(UFFD_FEATURE_EXACT_ADDRESS), 16, &f, &features), f);
	cr_assert_eq(features, UFFD_FEATURE_EXACT_ADDRESS);
}

Test(uffd_pass, more_descriptors_than_there_is_room_for_are_refused)
{
	struct ferry_failure f = {0};
	uint64_t features;

	cr_assert_eq(receive(own_uffd(0), 17, &f, &features), -EBADMSG);
	cr_assert(strstr(f.text, "more than 16"), "%s", f.text);
}

Test(uffd_pass, a_descriptor_that_is_no_userfaultfd_is_refused)
{
	struct ferry_failure f = {0};
	uint64_t features;

	cr_assert_eq(receive(STDERR_FILENO, 1, &f, &features), -EBADMSG);
	cr_assert(strstr(f.text, "not a userfaultfd"), "%s", f.text);
	cr_assert_eq(f.consequence, FERRY_REFUSE);
}

Test(uffd_pass, a_message_without_a_descriptor_is_refused)
{
	struct ferry_failure f = {0};
	uint64_t features;

	cr_assert_eq(receive(-1, 0, &f, &features), -EBADMSG);
	cr_assert(strstr(f.text, "no descriptor"), "%s", f.text);
}

Test(uffd_pass, a_peer_that_closes_is_told_apart)
{
	struct ferry_failure f = {0};
	struct ferry_uffd u;
	size_t len = 1;
	int pair[2];
	char byte;

	cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
	close(pair[0]);
	cr_assert_eq(ferry_uffd_recv(&u, pair[1], &byte, &len, &f), -ECONNRESET);
}

Test(uffd_pass, on_a_socket_that_does_not_block_nothing_yet_is_told_apart)
{
	struct ferry_failure f = {0};
	struct ferry_uffd u;
	size_t len = 1;
	int pair[2];
	char byte;

	cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair), 0);
	cr_assert_eq(ferry_uffd_recv(&u, pair[1], &byte, &len, &f), -EAGAIN);
}

static int send_then_end(int in, int out, void *arg)
{
	struct ferry_failure f = {0};
	struct ferry_uffd u;
	int sock = dial();

	(void)in;
	(void)out;
	(void)arg;
	return ferry_uffd_open(&u, 0, &f) || ferry_uffd_send(&u, sock, "x", 1);
}

Test(uffd_pass, a_sender_that_has_ended_is_refused)
{
	struct child c = child_start(send_then_end, NULL);
	_cleanup_close_ int sock = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
	struct ferry_failure f = {0};
	struct ferry_uffd u;
	size_t len = 1;
	char byte;

	cr_assert_eq(child_end(&c), 0);
	cr_assert_eq(ferry_uffd_recv(&u, sock, &byte, &len, &f), -ESRCH);
}

Test(uffd_pass, long_data_arrives_behind_the_descriptor)
{
	static char data[300000];
	struct ferry_failure f = {0};
	struct ferry_uffd u;
	size_t len = 1, got;
	int pair[2];
	char byte;
	pid_t pid;

	memset(data, 'd', sizeof(data));
	cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
	pid = fork();
	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, 9);
		u = (struct ferry_uffd){.fd = own_uffd(0)};
		_exit(ferry_uffd_send(&u, pair[0], data, sizeof(data)) == 0 ? 0 : 1);
	}
	close(pair[0]);
	assert_ok(ferry_uffd_recv(&u, pair[1], &byte, &len, &f), f);
	ferry_uffd_close(&u);
	got = len;
	for (;;) {
		ssize_t n = read(pair[1], data, sizeof(data));

		if (n <= 0)
			break;
		got += (size_t)n;
	}
	cr_assert_eq(got, sizeof(data));
}
