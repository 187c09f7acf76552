/* SPDX-License-Identifier: Apache-2.0 */
#include "base/net.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/ip.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"

/* Detect a dead peer in seconds: first probe after 2 s idle, then one a second, 5 in all. */
#define KEEPALIVE_IDLE_S     2
#define KEEPALIVE_INTERVAL_S 1
#define KEEPALIVE_PROBES     5
#define USER_TIMEOUT_MS	     8000
/* What the kernel may hold unsent of a bulk stream: enough to keep the link busy between two
 * wake-ups of the sender, little enough that an urgent page on the same link goes out soon. */
#define BULK_NOTSENT_BYTES (256 * 1024)
#define LISTEN_BACKLOG	   64
#define SHORT_MEMORY_MS	   1 /* until a wait is tried again */
/* An address that is in use is tried again so often, after this time, and twice as long each time:
 * 1.3 s in all. Where somebody listens there, each look is a connection to them. */
#define IN_USE_LOOKS 6
#define IN_USE_MS    20

static int fill_unix(struct sockaddr_un *sun, const char *path)
{
	*sun = (struct sockaddr_un){.sun_family = AF_UNIX};
	memcpy(sun->sun_path, path, strlen(path) + 1);
	return 0;
}

/* A socket file whose listener is gone refuses connections: only then may it be replaced. */
static bool is_stale_socket(const struct sockaddr_un *sun)
{
	/* Non-blocking: a live listener with a full queue must not hold us up. */
	_cleanup_close_ int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	struct stat st;

	if (fd < 0 || lstat(sun->sun_path, &st) < 0 || !S_ISSOCK(st.st_mode))
		return false;
	return connect(fd, (const struct sockaddr *)sun, sizeof(*sun)) < 0 &&
	       errno == ECONNREFUSED;
}

static const char *listen_advice(int err)
{
	switch (err) {
	case -EADDRINUSE:
		return "; something is there already: stop it, or choose another address";
	case -EADDRNOTAVAIL:
		return "; the address is not one of this host's";
	case -EACCES:
		return "; choose another port or path, or run with more rights";
	case -ENOENT:
		return "; make the directory first";
	default:
		return "";
	}
}

static int cannot_listen(const struct ferry_addr *a, int err, struct ferry_failure *f)
{
	char text[FERRY_ADDR_TEXT_MAX];

	ferry_addr_format(a, text);
	return ferry_fail(f, FERRY_REFUSE, err, "cannot listen on %s: %s%s", text, strerror(-err),
			  listen_advice(err));
}

static int listen_unix(const struct ferry_addr *a, struct ferry_failure *f)
{
	_cleanup_close_ int fd = -1;
	struct sockaddr_un sun;

	fill_unix(&sun, a->path);
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return ferry_fail_errno(f, FERRY_REFUSE, -errno, "socket");
	if (is_stale_socket(&sun))
		unlink(sun.sun_path);
	/* The file gets the socket's mode. The umask would be the whole process's. */
	if (fchmod(fd, 0600) < 0 || bind(fd, (struct sockaddr *)&sun, sizeof(sun)) < 0 ||
	    listen(fd, LISTEN_BACKLOG) < 0)
		return cannot_listen(a, -errno, f);
	return TAKE_FD(fd);
}

static int resolve(const struct ferry_addr *a, int flags, struct addrinfo **out,
		   enum ferry_consequence c, struct ferry_failure *f)
{
	struct addrinfo hints = {
		.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM, .ai_flags = flags};
	int rc = getaddrinfo(a->host[0] ? a->host : NULL, a->port, &hints, out);

	if (!rc)
		return 0;
	return ferry_fail(f, c, -EADDRNOTAVAIL, "cannot resolve host '%s': %s", a->host,
			  gai_strerror(rc));
}

static bool is_loopback(const struct sockaddr *sa)
{
	const struct sockaddr_in *in = (const struct sockaddr_in *)sa;
	const struct sockaddr_in6 *in6 = (const struct sockaddr_in6 *)sa;

	return sa->sa_family == AF_INET	   ? ntohl(in->sin_addr.s_addr) >> 24 == IN_LOOPBACKNET
	       : sa->sa_family == AF_INET6 ? IN6_IS_ADDR_LOOPBACK(&in6->sin6_addr)
					   : false;
}

/*
 * BBR, the default of some hosts, spaces what it sends by a timer, which makes a stream half as
 * fast where no link is behind it. For a socket that is not connected yet, as are those that it
 * will accept: a timer that was once asked for stays.
 */
static void spare_pacing(int fd, const struct sockaddr *sa)
{
	static const char algorithm[] = "reno"; /* every kernel has it, for everybody */

	if (is_loopback(sa))
		setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, algorithm, sizeof(algorithm) - 1);
}

static int listen_once(const struct ferry_addr *a, struct ferry_failure *f)
{
	struct addrinfo *list;
	int err = -EADDRNOTAVAIL;
	int fd = -1, one = 1, rc;

	if (a->is_unix)
		return listen_unix(a, f);
	rc = resolve(a, AI_PASSIVE, &list, FERRY_REFUSE, f);
	if (rc < 0)
		return rc;
	for (const struct addrinfo *ai = list; ai; ai = ai->ai_next) {
		fd = socket(ai->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
		if (fd < 0) {
			err = -errno;
			continue;
		}
		setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
		spare_pacing(fd, ai->ai_addr);
		if (!bind(fd, ai->ai_addr, ai->ai_addrlen) && !listen(fd, LISTEN_BACKLOG))
			break;
		err = -errno;
		ferry_close(fd);
		fd = -1;
	}
	freeaddrinfo(list);
	if (fd >= 0)
		return fd;
	return cannot_listen(a, err, f);
}

/*
 * Who takes the place of a process that was killed may find its address in use for a moment: the kernel
 * closes what that one's io_uring had in work only after it is gone.
 */
int ferry_net_listen(const struct ferry_addr *a, struct ferry_failure *f)
{
	int fd = listen_once(a, f);

	for (int i = 0; fd == -EADDRINUSE && i < IN_USE_LOOKS; i++) {
		(void)poll(NULL, 0, IN_USE_MS << i);
		fd = listen_once(a, f);
	}
	return fd;
}

int ferry_net_local(int fd, const struct ferry_addr *asked, struct ferry_addr *out)
{
	struct sockaddr_storage ss;
	socklen_t len = sizeof(ss);
	struct ferry_addr a = *asked;

	if (!asked->is_unix) {
		if (getsockname(fd, (struct sockaddr *)&ss, &len) < 0)
			return -errno;
		if (getnameinfo((struct sockaddr *)&ss, len, a.host, sizeof(a.host), a.port,
				sizeof(a.port), NI_NUMERICHOST | NI_NUMERICSERV))
			return -EADDRNOTAVAIL;
	}
	*out = a;
	return 0;
}

/* Finish a non-blocking connect. */
static int connect_wait(int fd, const struct sockaddr *sa, socklen_t len, uint64_t deadline_ns,
			int stop_fd)
{
	uint64_t now = ferry_now_ns();
	socklen_t err_len = sizeof(int);
	int err = 0, rc;

	if (!connect(fd, sa, len))
		return 0;
	if (errno != EINPROGRESS)
		return -errno;
	if (now >= deadline_ns)
		return -ETIMEDOUT;
	rc = ferry_net_wait(fd, POLLOUT, (int)((deadline_ns - now) / FERRY_NS_PER_MS) + 1,
			    stop_fd);
	if (rc < 0)
		return rc;
	if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &err, &err_len) < 0)
		return -errno;
	return -err;
}

/* Loopback's port that nobody listens on may be the one that the kernel gives us: then we talk to
 * ourselves, and whoever wants to listen there can't. */
static bool is_own_end(int fd)
{
	struct sockaddr_storage here = {0}, there = {0};
	socklen_t here_len = sizeof(here), there_len = sizeof(there);

	return !getsockname(fd, (struct sockaddr *)&here, &here_len) &&
	       !getpeername(fd, (struct sockaddr *)&there, &there_len) &&
	       here.ss_family != AF_UNIX && here_len == there_len &&
	       !memcmp(&here, &there, here_len);
}

static int dial_one(int family, const struct sockaddr *sa, socklen_t len, uint64_t deadline_ns,
		    int stop_fd)
{
	_cleanup_close_ int fd =
		socket(family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	int rc;

	if (fd < 0)
		return -errno;
	spare_pacing(fd, sa);
	rc = connect_wait(fd, sa, len, deadline_ns, stop_fd);
	if (!rc && is_own_end(fd))
		rc = -ECONNREFUSED;
	return rc < 0 ? rc : TAKE_FD(fd);
}

static const char *dial_advice(int err)
{
	switch (err) {
	case -ECONNREFUSED:
	case -ENOENT:
		return "; is the other side running and listening there?";
	case -ETIMEDOUT:
	case -EHOSTUNREACH:
	case -ENETUNREACH:
		return "; check the address, the route and the firewall";
	default:
		return "";
	}
}

int ferry_net_dial(const struct ferry_addr *a, int timeout_ms, int stop_fd,
		   struct ferry_failure *f)
{
	uint64_t deadline = ferry_now_ns() + (uint64_t)timeout_ms * FERRY_NS_PER_MS;
	char text[FERRY_ADDR_TEXT_MAX];
	int fd = -EADDRNOTAVAIL;

	if (a->is_unix) {
		struct sockaddr_un sun;

		fill_unix(&sun, a->path);
		fd = dial_one(AF_UNIX, (struct sockaddr *)&sun, sizeof(sun), deadline, stop_fd);
	} else {
		struct addrinfo *list;
		int rc = resolve(a, 0, &list, FERRY_LINK, f);

		if (rc < 0)
			return rc;
		for (const struct addrinfo *ai = list; ai && fd < 0 && fd != -ECANCELED;
		     ai = ai->ai_next)
			fd = dial_one(ai->ai_family, ai->ai_addr, ai->ai_addrlen, deadline,
				      stop_fd);
		freeaddrinfo(list);
	}
	if (fd >= 0)
		return fd;
	ferry_addr_format(a, text);
	return ferry_fail(f, FERRY_LINK, fd, "cannot connect to %s: %s%s", text, strerror(-fd),
			  dial_advice(fd));
}

int ferry_net_accept(int listen_fd)
{
	int fd = accept4(listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

	return fd < 0 ? -errno : fd;
}

void ferry_net_tune(int fd, enum ferry_net_class class)
{
	int one = 1, idle = KEEPALIVE_IDLE_S, interval = KEEPALIVE_INTERVAL_S;
	int probes = KEEPALIVE_PROBES, user_timeout = USER_TIMEOUT_MS;
	int priority = class == FERRY_NET_BULK ? 2 : 6; /* TC_PRIO_BULK, TC_PRIO_INTERACTIVE */
	int tos = class == FERRY_NET_BULK ? IPTOS_THROUGHPUT : IPTOS_LOWDELAY;
	int notsent = BULK_NOTSENT_BYTES;

	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof(one));
	setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof(idle));
	setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval, sizeof(interval));
	setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &probes, sizeof(probes));
	setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &user_timeout, sizeof(user_timeout));
	setsockopt(fd, IPPROTO_IP, IP_TOS, &tos, sizeof(tos));
	/* After IP_TOS, which sets a priority of its own. */
	setsockopt(fd, SOL_SOCKET, SO_PRIORITY, &priority, sizeof(priority));
	if (class == FERRY_NET_BULK)
		setsockopt(fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, &notsent, sizeof(notsent));
}

int ferry_net_wait(int fd, short events, int timeout_ms, int stop_fd)
{
	struct pollfd p[2] = {{.fd = fd, .events = events}, {.fd = stop_fd, .events = POLLIN}};
	uint64_t deadline = ferry_now_ns() + (uint64_t)timeout_ms * FERRY_NS_PER_MS;

	for (;;) {
		int rc = poll(p, 2, timeout_ms);

		if (rc > 0)
			return p[1].revents ? -ECANCELED : 0;
		if (!rc)
			return -ETIMEDOUT;
		if (errno == ENOMEM)
			(void)poll(NULL, 0, SHORT_MEMORY_MS);
		else if (errno != EINTR)
			return -errno;
		if (timeout_ms >= 0) {
			uint64_t now = ferry_now_ns();

			if (now >= deadline)
				return -ETIMEDOUT;
			timeout_ms = (int)((deadline - now) / FERRY_NS_PER_MS) + 1;
		}
	}
}

/* After an error @err: 0 when the call is to be made again, as the kernel lacked memory for it. */
static int wait_for_memory(int err, int *waited_ms, int timeout_ms, int stop_fd)
{
	if ((err != ENOMEM && err != ENOBUFS) || (timeout_ms >= 0 && *waited_ms >= timeout_ms))
		return -err;
	*waited_ms += SHORT_MEMORY_MS;
	return ferry_net_wait(stop_fd, POLLIN, SHORT_MEMORY_MS, -1) == -ETIMEDOUT ? 0 : -ECANCELED;
}

int ferry_net_read_more(int fd, void *buf, size_t len, size_t *done, int timeout_ms, int stop_fd)
{
	int waited_ms = 0, rc;

	while (*done < len) {
		ssize_t n = recv(fd, (char *)buf + *done, len - *done, MSG_DONTWAIT);

		if (n > 0) {
			*done += (size_t)n;
			continue;
		}
		if (!n)
			return -ECONNRESET;
		if (errno == EINTR)
			continue;
		rc = errno == EAGAIN ? ferry_net_wait(fd, POLLIN, timeout_ms, stop_fd)
				     : wait_for_memory(errno, &waited_ms, timeout_ms, stop_fd);
		if (rc < 0)
			return rc;
	}
	return 0;
}

int ferry_net_read_all(int fd, void *buf, size_t len, int timeout_ms, int stop_fd)
{
	size_t done = 0;

	return ferry_net_read_more(fd, buf, len, &done, timeout_ms, stop_fd);
}

int ferry_net_write_all(int fd, const void *buf, size_t len, int timeout_ms, int stop_fd)
{
	struct iovec iov = {.iov_base = (void *)buf, .iov_len = len};

	return ferry_net_writev_all(fd, &iov, 1, timeout_ms, stop_fd);
}

int ferry_net_writev_all(int fd, struct iovec *iov, int n_iov, int timeout_ms, int stop_fd)
{
	int waited_ms = 0, rc;

	while (n_iov) {
		struct msghdr msg = {.msg_iov = iov, .msg_iovlen = (size_t)n_iov};
		ssize_t n;

		if (!iov->iov_len) {
			iov++, n_iov--;
			continue;
		}
		n = sendmsg(fd, &msg, MSG_NOSIGNAL | MSG_DONTWAIT);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EPIPE)
			return -ECONNRESET;
		if (n < 0) {
			rc = errno == EAGAIN
				     ? ferry_net_wait(fd, POLLOUT, timeout_ms, stop_fd)
				     : wait_for_memory(errno, &waited_ms, timeout_ms, stop_fd);
			if (rc < 0)
				return rc;
			continue;
		}
		while (n_iov && (size_t)n >= iov->iov_len) {
			n -= (ssize_t)iov->iov_len;
			iov++, n_iov--;
		}
		if (n_iov) {
			iov->iov_base = (char *)iov->iov_base + n;
			iov->iov_len -= (size_t)n;
		}
	}
	return 0;
}
