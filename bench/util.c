/* SPDX-License-Identifier: Apache-2.0 */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "bench/bench.h"

#define NS_PER_S  1000000000ull
#define NS_PER_US 1000.0

uint64_t bench_now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * NS_PER_S + (uint64_t)t.tv_nsec;
}

void bench_die(const char *format, ...)
{
	int err = errno;
	va_list args;

	fprintf(stderr, "bench: ");
	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	if (err)
		fprintf(stderr, ": %s", strerror(err));
	fprintf(stderr, "\n");
	exit(1);
}

/* --- samples ---------------------------------------------------------------------------------- */

void bench_samples_init(struct bench_samples *s, uint32_t max)
{
	s->n = 0;
	s->max = max;
	s->ns = calloc(max, sizeof(*s->ns));
	if (!s->ns)
		bench_die("room for %u samples", max);
}

void bench_samples_fini(struct bench_samples *s)
{
	free(s->ns);
}

void bench_samples_add(struct bench_samples *s, uint64_t ns)
{
	if (s->n < s->max)
		s->ns[s->n++] = ns > UINT32_MAX ? UINT32_MAX : (uint32_t)ns;
}

void bench_samples_merge(struct bench_samples *s, const struct bench_samples *from)
{
	for (uint32_t i = 0; i < from->n; i++)
		bench_samples_add(s, from->ns[i]);
}

static int compare(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

	return (x > y) - (x < y);
}

/* Nearest rank. */
static double percentile_us(const struct bench_samples *s, uint32_t percent)
{
	uint64_t rank = ((uint64_t)s->n * percent + 99) / 100;

	return s->n ? s->ns[rank ? rank - 1 : 0] / NS_PER_US : 0;
}

void bench_samples_print(struct bench_samples *s, const char *name)
{
	qsort(s->ns, s->n, sizeof(*s->ns), compare);
	printf("\"%s\":{\"n\":%u,\"p50\":%.2f,\"p90\":%.2f,\"p99\":%.2f,\"max\":%.2f}", name, s->n,
	       percentile_us(s, 50), percentile_us(s, 90), percentile_us(s, 99),
	       percentile_us(s, 100));
}

/* --- memory and threads ----------------------------------------------------------------------- */

void *bench_map(const char *kind, uint64_t bytes)
{
	void *p;
	int fd;

	if (!strcmp(kind, "anon")) {
		p = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	} else {
		fd = memfd_create("ferry-bench", MFD_CLOEXEC);
		if (fd < 0 || ftruncate(fd, (off_t)bytes) < 0)
			bench_die("memfd");
		p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
		close(fd);
	}
	if (p == MAP_FAILED)
		bench_die("mmap");
	return p;
}

void bench_spawn(void *(*run)(void *), void *arg)
{
	pthread_t thread;

	errno = pthread_create(&thread, NULL, run, arg);
	if (errno)
		bench_die("thread");
	pthread_detach(thread);
}

/* --- sockets ---------------------------------------------------------------------------------- */

static int tuned(int fd)
{
	int one = 1;

	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	return fd;
}

int bench_listen(uint16_t *port)
{
	struct sockaddr_in sin = {.sin_family = AF_INET,
				  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	socklen_t len = sizeof(sin);

	if (fd < 0 || bind(fd, (struct sockaddr *)&sin, sizeof(sin)) < 0 ||
	    listen(fd, SOMAXCONN) < 0 || getsockname(fd, (struct sockaddr *)&sin, &len) < 0)
		bench_die("listening on loopback");
	*port = ntohs(sin.sin_port);
	return fd;
}

int bench_accept(int listen_fd)
{
	int fd = accept4(listen_fd, NULL, NULL, SOCK_CLOEXEC);

	if (fd < 0)
		bench_die("accept");
	return tuned(fd);
}

int bench_dial_port(uint16_t port)
{
	struct sockaddr_in sin = {.sin_family = AF_INET,
				  .sin_port = htons(port),
				  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (fd < 0 || connect(fd, (struct sockaddr *)&sin, sizeof(sin)) < 0)
		bench_die("connecting to port %u", port);
	return tuned(fd);
}

int bench_dial(const char *address)
{
	const char *colon = strrchr(address, ':');

	return bench_dial_port((uint16_t)strtoul(colon ? colon + 1 : address, NULL, 10));
}

bool bench_read(int fd, void *to, size_t n)
{
	for (char *p = to; n;) {
		ssize_t got = recv(fd, p, n, 0);

		if (got < 0 && errno == EINTR)
			continue;
		if (got <= 0)
			return false;
		p += got;
		n -= (size_t)got;
	}
	return true;
}

bool bench_write(int fd, const void *from, size_t n)
{
	for (const char *p = from; n;) {
		ssize_t put = send(fd, p, n, MSG_NOSIGNAL);

		if (put < 0 && errno == EINTR)
			continue;
		if (put <= 0)
			return false;
		p += put;
		n -= (size_t)put;
	}
	return true;
}
