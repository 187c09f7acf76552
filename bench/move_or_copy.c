/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Does UFFDIO_MOVE make a stream from TCP into memory of the same process faster than UFFDIO_COPY?
 *
 *   copy        receive into one buffer of 1 MiB that stays, COPY from it
 *   move 4K     receive into new pages, MOVE 1 MiB of them
 *   move huge   receive into a new huge page, MOVE it as a whole, 2 MiB
 *
 * COPY takes a page from the kernel and copies; MOVE needs pages in the buffer instead, which the kernel
 * clears first. So what MOVE saves, the buffer's new pages cost, and only huge pages may make up for it.
 * Prints GB/s, rounds alternating, medians at the end.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "uffd/kernel.h"

#define MIB    (1024ul * 1024)
#define TOTAL  (512 * MIB)
#define HUGE   (2 * MIB)
#define ROUNDS 5

enum way { COPY, MOVE_SMALL, MOVE_HUGE, N_WAYS };

static const char *const names[N_WAYS] = {"copy", "move 4K", "move huge"};

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void *map(size_t bytes, int advice)
{
	/* Aligned as huge pages are. */
	char *p = mmap(NULL, bytes + HUGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (p == MAP_FAILED)
		die("mmap");
	p = (char *)(((unsigned long)p + HUGE - 1) & ~(HUGE - 1));
	madvise(p, bytes, advice);
	return p;
}

static void *send_all(void *arg)
{
	int fd = *(int *)arg;
	char *data = map(MIB, MADV_NOHUGEPAGE);

	memset(data, 7, MIB);
	for (size_t done = 0; done < TOTAL;) {
		ssize_t n = send(fd, data, MIB, MSG_NOSIGNAL);

		if (n < 0)
			die("send");
		done += (size_t)n;
	}
	return NULL;
}

static void connect_pair(int *a, int *b)
{
	struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
	socklen_t len = sizeof(at);
	int l = socket(AF_INET, SOCK_STREAM, 0);

	if (bind(l, (struct sockaddr *)&at, len) || listen(l, 1) ||
	    getsockname(l, (struct sockaddr *)&at, &len))
		die("listen");
	*a = socket(AF_INET, SOCK_STREAM, 0);
	if (connect(*a, (struct sockaddr *)&at, len))
		die("connect");
	*b = accept(l, NULL, NULL);
	close(l);
}

static void place(int uffd, enum way way, char *to, char *from, size_t bytes)
{
	struct uffdio_copy c = {.dst = (unsigned long)to, .src = (unsigned long)from, .len = bytes};
	struct uffdio_move m = {.dst = (unsigned long)to, .src = (unsigned long)from, .len = bytes};

	if (way == COPY ? ioctl(uffd, UFFDIO_COPY, &c) : ioctl(uffd, UFFDIO_MOVE, &m))
		die(way == COPY ? "UFFDIO_COPY" : "UFFDIO_MOVE");
}

static double run(enum way way)
{
	struct uffdio_api api = {.api = UFFD_API, .features = UFFD_FEATURE_MOVE};
	int uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC), from, to;
	size_t piece = way == MOVE_HUGE ? HUGE : MIB;
	char *memory = map(TOTAL, way == MOVE_HUGE ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
	char *buffer = map(way == COPY ? piece : TOTAL,
			   way == MOVE_HUGE ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
	struct uffdio_register r = {.range = {(unsigned long)memory, TOTAL},
				    .mode = UFFDIO_REGISTER_MODE_MISSING};
	pthread_t thread;
	double begin;

	if (uffd < 0 || ioctl(uffd, UFFDIO_API, &api) || ioctl(uffd, UFFDIO_REGISTER, &r))
		die("userfaultfd with UFFDIO_MOVE");
	connect_pair(&from, &to);
	begin = now();
	pthread_create(&thread, NULL, send_all, &from);
	for (size_t done = 0; done < TOTAL; done += piece) {
		char *at = way == COPY ? buffer : buffer + done;

		if (recv(to, at, piece, MSG_WAITALL) != (ssize_t)piece)
			die("recv");
		place(uffd, way, memory + done, at, piece);
	}
	begin = now() - begin;
	pthread_join(thread, NULL);
	if (memory[TOTAL / 2] != 7)
		die("content");
	close(uffd);
	close(from);
	close(to);
	munmap(memory, TOTAL);
	munmap(buffer, way == COPY ? piece : TOTAL);
	return (double)TOTAL / 1e9 / begin;
}

static int compare(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

int main(void)
{
	double got[N_WAYS][ROUNDS];

	for (int i = 0; i < ROUNDS; i++)
		for (int way = 0; way < N_WAYS; way++)
			got[way][i] = run((enum way)way);
	for (int way = 0; way < N_WAYS; way++) {
		qsort(got[way], ROUNDS, sizeof(double), compare);
		printf("%-10s %.2f GB/s (%.2f-%.2f)\n", names[way], got[way][ROUNDS / 2], got[way][0],
		       got[way][ROUNDS - 1]);
	}
	return 0;
}
