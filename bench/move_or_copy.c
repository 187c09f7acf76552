/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Does UFFDIO_MOVE make a stream from TCP into memory of the same process faster than UFFDIO_COPY?
 *
 *   copy        receive into one buffer of 1 MiB that stays, COPY from it, as the push does
 *   move        receive into new pages, MOVE 1 MiB of them
 *   move huge   receive into a new huge page, MOVE it as a whole, 2 MiB
 *   copy page   receive a page into a buffer that stays, COPY it, as an urgent answer is placed
 *   move page   receive it into a new page, MOVE that
 *
 * COPY takes a page from the kernel and copies; MOVE needs pages in the buffer instead, which the
 * kernel clears first. So what MOVE saves, the buffer's new pages cost, and only huge pages may
 * make up for it. Rounds alternate. Prints the medians of GB/s and of the ratio to COPY in the same
 * round, each with the smallest and the largest; of pages one by one, to "copy page".
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
#define ROUNDS 7

static const struct way {
	const char *name;
	int moves, against; /* the way that it is held against */
	size_t piece;
	int advice;
} ways[] = {
	/* clang-format off */
	{"copy",      0, 0, MIB,  MADV_NOHUGEPAGE},
	{"move",      1, 0, MIB,  MADV_NOHUGEPAGE},
	{"move huge", 1, 0, HUGE, MADV_HUGEPAGE},
	{"copy page", 0, 3, 4096, MADV_NOHUGEPAGE},
	{"move page", 1, 3, 4096, MADV_NOHUGEPAGE},
	/* clang-format on */
};

#define N_WAYS (int)(sizeof(ways) / sizeof(ways[0]))

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

static void place(int uffd, int moves, char *to, char *from, size_t bytes)
{
	struct uffdio_copy c = {.dst = (unsigned long)to, .src = (unsigned long)from, .len = bytes};
	struct uffdio_move m = {.dst = (unsigned long)to, .src = (unsigned long)from, .len = bytes};

	if (moves ? ioctl(uffd, UFFDIO_MOVE, &m) : ioctl(uffd, UFFDIO_COPY, &c))
		die(moves ? "UFFDIO_MOVE" : "UFFDIO_COPY");
}

static double run(const struct way *way)
{
	struct uffdio_api api = {.api = UFFD_API, .features = UFFD_FEATURE_MOVE};
	int uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC), from, to;
	size_t piece = way->piece, room = way->moves ? TOTAL : piece;
	char *memory = map(TOTAL, way->advice), *buffer = map(room, way->advice);
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
		char *at = way->moves ? buffer + done : buffer;

		if (recv(to, at, piece, MSG_WAITALL) != (ssize_t)piece)
			die("recv");
		place(uffd, way->moves, memory + done, at, piece);
	}
	begin = now() - begin;
	pthread_join(thread, NULL);
	if (memory[TOTAL / 2] != 7)
		die("content");
	close(uffd);
	close(from);
	close(to);
	munmap(memory, TOTAL);
	munmap(buffer, room);
	return (double)TOTAL / 1e9 / begin;
}

static int compare(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

int main(void)
{
	double got[N_WAYS][ROUNDS], ratio[N_WAYS][ROUNDS];

	for (int way = 0; way < N_WAYS; way++)
		run(&ways[way]); /* warms up */
	for (int i = 0; i < ROUNDS; i++) {
		for (int n = 0; n < N_WAYS; n++) {
			int way = (i + n) % N_WAYS;

			got[way][i] = run(&ways[way]);
		}
		for (int way = 0; way < N_WAYS; way++)
			ratio[way][i] = got[way][i] / got[ways[way].against][i];
	}
	for (int way = 0; way < N_WAYS; way++) {
		qsort(got[way], ROUNDS, sizeof(double), compare);
		qsort(ratio[way], ROUNDS, sizeof(double), compare);
		printf("%-10s %.2f GB/s (%.2f-%.2f), %.2f of %s (%.2f-%.2f)\n", ways[way].name,
		       got[way][ROUNDS / 2], got[way][0], got[way][ROUNDS - 1],
		       ratio[way][ROUNDS / 2], ways[ways[way].against].name, ratio[way][0],
		       ratio[way][ROUNDS - 1]);
	}
	return 0;
}
