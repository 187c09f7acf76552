/* SPDX-License-Identifier: Apache-2.0 */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/net.h"
#include "base/util.h"

#define SOON_MS 30    /* of a limit that is to pass */
#define LONG_MS 20000 /* of a limit that must not */

static struct ferry_addr addr_of(const char *text)
{
	struct ferry_failure f = {0};
	struct ferry_addr a;

	cr_assert_eq(ferry_addr_parse(&a, text, &f), 0, "%s", f.text);
	return a;
}

/* A listener on @text; @real gets its address with the port. */
static int listen_on(const char *text, struct ferry_addr *real)
{
	struct ferry_addr a = addr_of(text);
	struct ferry_failure f = {0};
	int fd = ferry_net_listen(&a, &f);

	cr_assert_geq(fd, 0, "%s", f.text);
	cr_assert_eq(ferry_net_local(fd, &a, real), 0);
	return fd;
}

static int dial(const struct ferry_addr *a)
{
	struct ferry_failure f = {0};
	int fd = ferry_net_dial(a, LONG_MS, -1, &f);

	cr_assert_geq(fd, 0, "%s", f.text);
	return fd;
}

static int accept_one(int listen_fd)
{
	int fd;

	cr_assert_eq(ferry_net_wait(listen_fd, POLLIN, LONG_MS, -1), 0);
	fd = ferry_net_accept(listen_fd);
	cr_assert_geq(fd, 0);
	return fd;
}

static void check_flags(int fd)
{
	cr_assert(fcntl(fd, F_GETFL) & O_NONBLOCK);
	cr_assert(fcntl(fd, F_GETFD) & FD_CLOEXEC);
}

/* Two connected ends with small queues, so that a writer soon has to wait. */
static void pair(int ends[2])
{
	int small = 4096;

	cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, ends), 0);
	setsockopt(ends[0], SOL_SOCKET, SO_SNDBUF, &small, sizeof(small));
	setsockopt(ends[1], SOL_SOCKET, SO_RCVBUF, &small, sizeof(small));
}

/* A directory for sockets, as the current one: paths stay short. */
static void in_new_directory(void)
{
	char dir[] = "/tmp/ferry-net-XXXXXX";

	cr_assert(mkdtemp(dir) && !chdir(dir));
}

static void leave_directory(void)
{
	char dir[256];

	cr_assert(getcwd(dir, sizeof(dir)));
	unlink("s");
	cr_assert_eq(rmdir(dir), 0);
}

static void check_conversation(const char *text)
{
	struct ferry_addr real;
	_cleanup_close_ int listener = listen_on(text, &real);
	_cleanup_close_ int a = dial(&real);
	_cleanup_close_ int b = accept_one(listener);
	char got[6] = "";

	check_flags(listener);
	check_flags(a);
	check_flags(b);
	for (unsigned int class = FERRY_NET_CONTROL; class <= FERRY_NET_BULK; class ++) {
		ferry_net_tune(a, class);
		ferry_net_tune(b, class);
	}
	cr_assert_eq(ferry_net_write_all(a, "hello", 5, LONG_MS, -1), 0);
	cr_assert_eq(ferry_net_read_all(b, got, 5, LONG_MS, -1), 0);
	cr_assert_str_eq(got, "hello");
	cr_assert_eq(ferry_net_accept(listener), -EAGAIN);
}

Test(net, tcp4_connects)
{
	check_conversation("127.0.0.1:0");
}

Test(net, tcp6_connects)
{
	_cleanup_close_ int fd = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0);
	struct ferry_addr a = addr_of("[::1]:0");
	_cleanup_close_ int listener = fd < 0 ? -1 : ferry_net_listen(&a, NULL);

	if (listener < 0)
		cr_skip_test("no IPv6 loopback on this host");
	check_conversation("[::1]:0");
}

Test(net, unix_connects, .init = in_new_directory, .fini = leave_directory)
{
	check_conversation("unix:s");
}

Test(net, the_kernel_chooses_the_port)
{
	struct ferry_addr real;
	_cleanup_close_ int listener = listen_on("127.0.0.1:0", &real);

	cr_assert_geq(listener, 0);
	cr_assert_str_eq(real.host, "127.0.0.1");
	cr_assert_str_neq(real.port, "0");
}

Test(net, urgent_and_bulk_differ_in_the_kernel)
{
	struct ferry_addr real;
	_cleanup_close_ int listener = listen_on("127.0.0.1:0", &real);
	_cleanup_close_ int urgent = dial(&real), bulk = dial(&real);
	int u = 0, b = 0;
	socklen_t len = sizeof(int);

	ferry_net_tune(urgent, FERRY_NET_URGENT);
	ferry_net_tune(bulk, FERRY_NET_BULK);
	cr_assert_eq(getsockopt(urgent, IPPROTO_TCP, TCP_NODELAY, &u, &len), 0);
	cr_assert_eq(u, 1);
	cr_assert_eq(getsockopt(urgent, SOL_SOCKET, SO_PRIORITY, &u, &len), 0);
	cr_assert_eq(getsockopt(bulk, SOL_SOCKET, SO_PRIORITY, &b, &len), 0);
	cr_assert_gt(u, b);
	cr_assert_eq(getsockopt(bulk, IPPROTO_TCP, TCP_NOTSENT_LOWAT, &b, &len), 0);
	cr_assert_eq(b, 256 * 1024);
}

static void check_algorithm(int fd, const char *want)
{
	char got[16] = "";
	socklen_t len = sizeof(got);

	cr_assert_eq(getsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, got, &len), 0);
	cr_assert_str_eq(got, want);
}

/* BBR would set timers for each packet, and it is the host's to say what is used on its network. */
Test(net, only_what_stays_on_this_host_has_an_algorithm_of_ours)
{
	struct ferry_addr here, any;
	int at_here = listen_on("127.0.0.1:0", &here), at_any = listen_on("0.0.0.0:0", &any);
	char hosts[16] = "";
	socklen_t len = sizeof(hosts);
	int from, to;

	/* Of a socket that nobody has changed. */
	from = socket(AF_INET, SOCK_STREAM, 0);
	cr_assert_eq(getsockopt(from, IPPROTO_TCP, TCP_CONGESTION, hosts, &len), 0);
	ferry_close(from);
	from = dial(&here);
	to = accept_one(at_here);
	check_algorithm(from, "reno");
	check_algorithm(to, "reno");
	check_algorithm(at_any, hosts);
	ferry_close(from);
	ferry_close(to);
	ferry_close(at_here);
	ferry_close(at_any);
}

Test(net, an_address_in_use_is_refused_with_advice)
{
	struct ferry_failure f = {0};
	struct ferry_addr real;
	_cleanup_close_ int listener = listen_on("127.0.0.1:0", &real);

	cr_assert_eq(ferry_net_listen(&real, &f), -EADDRINUSE);
	cr_assert_eq(f.consequence, FERRY_REFUSE);
	cr_assert(strstr(f.text, real.port) && strstr(f.text, "choose another address"), "%s",
		  f.text);
}

static void *close_soon(void *fd)
{
	poll(NULL, 0, 200);
	close(*(int *)fd);
	return NULL;
}

static void is_waited_for(const char *text)
{
	struct ferry_addr a, bound;
	struct ferry_failure f = {0};
	pthread_t thread;
	int fd, second;

	cr_assert_eq(ferry_addr_parse(&a, text, &f), 0);
	fd = ferry_net_listen(&a, &f);
	cr_assert_geq(fd, 0, "%s", f.text);
	cr_assert_eq(ferry_net_local(fd, &a, &bound), 0);
	cr_assert_eq(pthread_create(&thread, NULL, close_soon, &fd), 0);
	second = ferry_net_listen(&bound, &f);
	cr_assert_geq(second, 0, "%s", f.text);
	pthread_join(thread, NULL);
	close(second);
}

Test(net, an_address_that_is_about_to_be_free_is_waited_for, .init = in_new_directory,
     .fini = leave_directory)
{
	is_waited_for("127.0.0.1:0");
	is_waited_for("unix:s");
}

Test(net, an_unknown_host_is_named)
{
	struct ferry_addr a = addr_of("no such host:1");
	struct ferry_failure f = {0};

	cr_assert_lt(ferry_net_dial(&a, LONG_MS, -1, &f), 0);
	cr_assert_eq(f.consequence, FERRY_LINK);
	cr_assert(strstr(f.text, "'no such host'"), "%s", f.text);
}

Test(net, a_refused_connection_asks_whether_the_other_side_runs)
{
	struct ferry_failure f = {0};
	struct ferry_addr real;

	ferry_close(listen_on("127.0.0.1:0", &real));
	cr_assert_eq(ferry_net_dial(&real, LONG_MS, -1, &f), -ECONNREFUSED);
	cr_assert_eq(f.consequence, FERRY_LINK);
	cr_assert(strstr(f.text, real.port) && strstr(f.text, "is the other side running"), "%s",
		  f.text);
}

Test(net, a_missing_unix_socket_asks_the_same, .init = in_new_directory, .fini = leave_directory)
{
	struct ferry_addr a = addr_of("unix:s");
	struct ferry_failure f = {0};

	cr_assert_eq(ferry_net_dial(&a, LONG_MS, -1, &f), -ENOENT);
	cr_assert_eq(f.consequence, FERRY_LINK);
	cr_assert(strstr(f.text, "unix:s") && strstr(f.text, "is the other side running"));
}

/*
 * A TCP listener whose queue is full drops what comes: a connection to it stays on its way.
 * @held: what fills the queue.
 */
static int full_listener(struct ferry_addr *real, int held[8])
{
	int fd = listen_on("127.0.0.1:0", real);
	struct sockaddr_storage ss;
	socklen_t len = sizeof(ss);

	cr_assert_eq(listen(fd, 0), 0);
	cr_assert_eq(getsockname(fd, (struct sockaddr *)&ss, &len), 0);
	for (int i = 0; i < 8; i++) {
		held[i] = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
		if (connect(held[i], (struct sockaddr *)&ss, len) < 0)
			cr_assert_eq(errno, EINPROGRESS);
	}
	return fd;
}

Test(net, dialing_gives_up_in_time)
{
	struct ferry_failure f = {0};
	struct ferry_addr real;
	int held[8];
	_cleanup_close_ int listener = full_listener(&real, held);
	uint64_t begin = ferry_now_ns();

	cr_assert_geq(listener, 0);
	cr_assert_eq(ferry_net_dial(&real, SOON_MS, -1, &f), -ETIMEDOUT);
	cr_assert_geq(ferry_now_ns() - begin, SOON_MS * FERRY_NS_PER_MS);
	cr_assert_eq(f.consequence, FERRY_LINK);
	cr_assert(strstr(f.text, "firewall"), "%s", f.text);
	for (int i = 0; i < 8; i++)
		ferry_close(held[i]);
}

Test(net, dialing_ends_when_it_is_told_to_stop)
{
	struct ferry_addr real;
	int held[8];
	_cleanup_close_ int listener = full_listener(&real, held);
	_cleanup_close_ int stop = eventfd(1, EFD_CLOEXEC);

	cr_assert_geq(listener, 0);
	cr_assert_eq(ferry_net_dial(&real, LONG_MS, stop, NULL), -ECANCELED);
	for (int i = 0; i < 8; i++)
		ferry_close(held[i]);
}

Test(net, waiting_is_limited_and_can_be_stopped)
{
	_cleanup_close_ int stop = eventfd(0, EFD_CLOEXEC);
	uint64_t begin = ferry_now_ns();
	int ends[2];

	pair(ends);
	cr_assert_eq(ferry_net_wait(ends[0], POLLIN, SOON_MS, stop), -ETIMEDOUT);
	cr_assert_geq(ferry_now_ns() - begin, SOON_MS * FERRY_NS_PER_MS);
	cr_assert_eq(ferry_net_wait(ends[0], POLLIN, 0, -1), -ETIMEDOUT);
	cr_assert_eq(ferry_net_wait(ends[0], POLLOUT, -1, stop), 0);
	cr_assert_eq(eventfd_write(stop, 1), 0);
	cr_assert_eq(ferry_net_wait(ends[0], POLLIN, -1, stop), -ECANCELED);
	ferry_close(ends[1]);
	cr_assert_eq(ferry_net_wait(ends[0], POLLIN, -1, -1), 0);
	ferry_close(ends[0]);
}

/* A limit holds for descriptors in blocking mode as well. */
Test(net, blocking_sockets_do_not_block)
{
	static const char much[1 << 20];
	int ends[2];
	char got[4];

	cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
	cr_assert_eq(ferry_net_read_all(ends[1], got, 4, SOON_MS, -1), -ETIMEDOUT);
	cr_assert_eq(ferry_net_write_all(ends[0], much, sizeof(much), SOON_MS, -1), -ETIMEDOUT);
	ferry_close(ends[0]);
	ferry_close(ends[1]);
}

Test(net, reading_says_why_it_ended)
{
	_cleanup_close_ int stop = eventfd(1, EFD_CLOEXEC);
	int ends[2];
	char got[4];

	pair(ends);
	cr_assert_eq(ferry_net_read_all(ends[1], got, 0, 0, -1), 0);
	cr_assert_eq(ferry_net_read_all(ends[1], got, 4, SOON_MS, -1), -ETIMEDOUT);
	cr_assert_eq(ferry_net_read_all(ends[1], got, 4, LONG_MS, stop), -ECANCELED);
	cr_assert_eq(ferry_net_write_all(ends[0], "abc", 3, LONG_MS, -1), 0);
	cr_assert_eq(ferry_net_read_all(ends[1], got, 4, SOON_MS, -1), -ETIMEDOUT);
	cr_assert_eq(ferry_net_write_all(ends[0], "abc", 3, LONG_MS, -1), 0);
	ferry_close(ends[0]);
	cr_assert_eq(ferry_net_read_all(ends[1], got, 4, LONG_MS, -1), -ECONNRESET);
	cr_assert_eq(ferry_net_read_all(ends[1], got, 1, LONG_MS, -1), -ECONNRESET);
	ferry_close(ends[1]);
}

Test(net, writing_says_why_it_ended)
{
	static const char much[1 << 20];
	_cleanup_close_ int stop = eventfd(1, EFD_CLOEXEC);
	int ends[2];

	pair(ends);
	cr_assert_eq(ferry_net_write_all(ends[0], much, sizeof(much), SOON_MS, -1), -ETIMEDOUT);
	cr_assert_eq(ferry_net_write_all(ends[0], much, sizeof(much), LONG_MS, stop), -ECANCELED);
	ferry_close(ends[1]);
	/* No signal either. */
	cr_assert_eq(ferry_net_write_all(ends[0], much, 1, LONG_MS, -1), -ECONNRESET);
	ferry_close(ends[0]);
}

#define N_MUCH (3u << 20)

struct reader {
	int fd;
	uint8_t *data;
	int rc;
};

static void *read_much(void *arg)
{
	struct reader *r = arg;

	r->rc = ferry_net_read_all(r->fd, r->data, N_MUCH, LONG_MS, -1);
	return NULL;
}

/* More than the queues hold, from parts of odd sizes and empty ones: every byte arrives in order.
 */
Test(net, gathered_writes_arrive_whole)
{
	_cleanup_free_ uint8_t *sent = malloc(N_MUCH), *got = calloc(1, N_MUCH);
	struct iovec iov[7];
	size_t sizes[] = {0, 1, 16, 4095, 0, 1u << 20, 0}, at = 0;
	pthread_t thread;
	struct reader r;
	int ends[2];

	cr_assert(sent && got);
	for (size_t i = 0; i < N_MUCH; i++)
		sent[i] = (uint8_t)(i * 7 + i / 251);
	for (size_t i = 0; i < 6; i++) {
		iov[i] = (struct iovec){sent + at, sizes[i]};
		at += sizes[i];
	}
	iov[6] = (struct iovec){sent + at, N_MUCH - at};
	pair(ends);
	r = (struct reader){.fd = ends[1], .data = got};
	cr_assert_eq(pthread_create(&thread, NULL, read_much, &r), 0);
	cr_assert_eq(ferry_net_writev_all(ends[0], iov, 7, LONG_MS, -1), 0);
	pthread_join(thread, NULL);
	cr_assert_eq(r.rc, 0);
	cr_assert_eq(memcmp(sent, got, N_MUCH), 0);
	ferry_close(ends[0]);
	ferry_close(ends[1]);
}

/* --- UNIX socket files -------------------------------------------------------------------- */

Test(net, a_unix_socket_is_for_its_owner_only, .init = in_new_directory, .fini = leave_directory)
{
	mode_t old = umask(0);
	struct ferry_addr real;
	_cleanup_close_ int listener = listen_on("unix:s", &real);
	struct stat st;

	cr_assert_eq(lstat("s", &st), 0);
	cr_assert(S_ISSOCK(st.st_mode));
	cr_assert_eq(st.st_mode & 0777, 0600);
	cr_assert_eq(umask(old), 0, "the process's umask was changed");
}

Test(net, a_stale_unix_socket_is_replaced, .init = in_new_directory, .fini = leave_directory)
{
	struct ferry_addr real;

	ferry_close(listen_on("unix:s", &real));
	cr_assert_eq(access("s", F_OK), 0);
	check_conversation("unix:s");
}

Test(net, a_live_unix_socket_is_not_replaced, .init = in_new_directory, .fini = leave_directory)
{
	struct ferry_failure f = {0};
	struct ferry_addr real;
	_cleanup_close_ int listener = listen_on("unix:s", &real);
	_cleanup_close_ int peer = -1;

	cr_assert_eq(ferry_net_listen(&real, &f), -EADDRINUSE);
	cr_assert(strstr(f.text, "unix:s") && strstr(f.text, "already"), "%s", f.text);
	peer = dial(&real);
	cr_assert_geq(peer, 0);
}

/* Its queue is full, so that nobody can find out by connecting: it must neither block nor replace.
 */
Test(net, a_busy_unix_socket_is_not_replaced, .init = in_new_directory, .fini = leave_directory,
     .timeout = 60)
{
	struct ferry_addr real;
	_cleanup_close_ int listener = listen_on("unix:s", &real);
	int held[8], n = 0;

	cr_assert_eq(listen(listener, 0), 0);
	while (n < 8 && (held[n] = ferry_net_dial(&real, LONG_MS, -1, NULL)) >= 0)
		n++;
	cr_assert_lt(n, 8, "the queue never filled");
	cr_assert_eq(ferry_net_listen(&real, NULL), -EADDRINUSE);
	while (n)
		ferry_close(held[--n]);
}

Test(net, other_files_are_never_removed, .init = in_new_directory, .fini = leave_directory)
{
	struct ferry_addr a = addr_of("unix:s");
	_cleanup_close_ int file = open("s", O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
	struct stat st;

	cr_assert_geq(file, 0);
	cr_assert_eq(ferry_net_listen(&a, NULL), -EADDRINUSE);
	cr_assert(!lstat("s", &st) && S_ISREG(st.st_mode));
}
