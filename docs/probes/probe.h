/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the probes share. A probe is one program for one claim about the kernel. It prints one line
 * and exits with 0 when the claim holds, 1 when it does not, and 77 when it can't be tried here.
 */
#ifndef FERRY_DOCS_PROBE_H
#define FERRY_DOCS_PROBE_H

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096u

#define HOLDS(...)                                                                                 \
	do {                                                                                       \
		printf("holds: " __VA_ARGS__);                                                     \
		printf("\n");                                                                      \
		exit(0);                                                                           \
	} while (0)

#define FAILS(...)                                                                                 \
	do {                                                                                       \
		printf("fails: " __VA_ARGS__);                                                     \
		printf("\n");                                                                      \
		exit(1);                                                                           \
	} while (0)

#define CANNOT_TRY(...)                                                                            \
	do {                                                                                       \
		printf("SKIP: " __VA_ARGS__);                                                      \
		printf("\n");                                                                      \
		exit(77);                                                                          \
	} while (0)

#define EXPECT(condition)                                                                          \
	do {                                                                                       \
		if (!(condition))                                                                  \
			FAILS("line %d: %s (errno: %s)", __LINE__, #condition, strerror(errno));   \
	} while (0)

static inline void handshake(int fd, uint64_t features)
{
	struct uffdio_api api = {.api = UFFD_API, .features = features};

	if (ioctl(fd, UFFDIO_API, &api) < 0)
		CANNOT_TRY("UFFDIO_API with features %#llx: %s", (unsigned long long)features,
			   strerror(errno));
}

static inline int open_uffd(uint64_t features)
{
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);

	if (fd < 0)
		CANNOT_TRY("userfaultfd: %s", strerror(errno));
	handshake(fd, features);
	return fd;
}

static inline uint8_t *map_anon(size_t len)
{
	void *p = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	EXPECT(p != MAP_FAILED);
	return p;
}

static inline int try_register(int uffd, const void *at, size_t len, uint64_t mode)
{
	struct uffdio_register reg = {
		.range = {.start = (uintptr_t)at, .len = len},
		.mode = mode,
	};

	return ioctl(uffd, UFFDIO_REGISTER, &reg);
}

static inline void register_missing(int uffd, const void *at, size_t len)
{
	EXPECT(try_register(uffd, at, len, UFFDIO_REGISTER_MODE_MISSING) == 0);
}

/* Return: 0, or -1 with errno. @done: what the kernel left in its signed field. */
static inline int copy(int uffd, void *dst, const void *src, size_t len, uint64_t mode,
		       int64_t *done)
{
	struct uffdio_copy c = {
		.dst = (uintptr_t)dst,
		.src = (uintptr_t)src,
		.len = len,
		.mode = mode,
	};
	int r = ioctl(uffd, UFFDIO_COPY, &c);

	*done = c.copy;
	return r;
}

static inline int wake(int uffd, const void *at, size_t len)
{
	struct uffdio_range range = {.start = (uintptr_t)at, .len = len};

	return ioctl(uffd, UFFDIO_WAKE, &range);
}

static inline void await_readable(int fd)
{
	struct pollfd p = {.fd = fd, .events = POLLIN};

	EXPECT(poll(&p, 1, 10000) == 1);
}

/* A thread that reads one byte. */
struct reader {
	const volatile uint8_t *at;
	uint8_t seen;
	pthread_t thread;
};

static inline void *reader_main(void *arg)
{
	struct reader *r = arg;

	r->seen = *r->at;
	return NULL;
}

static inline void reader_start(struct reader *r, const void *at)
{
	r->at = at;
	EXPECT(pthread_create(&r->thread, NULL, reader_main, r) == 0);
}

static inline uint8_t reader_end(struct reader *r)
{
	pthread_join(r->thread, NULL);
	return r->seen;
}

/* Wait until thread @tid of this process sleeps in the kernel. */
static inline void await_asleep(pid_t pid)
{
	char path[64], line[512];

	snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
	for (;;) {
		FILE *f = fopen(path, "re");
		const char *at;

		EXPECT(f && fgets(line, sizeof(line), f));
		fclose(f);
		at = strrchr(line, ')');
		EXPECT(at && at[2] != 'Z');
		if (at[2] == 'S' || at[2] == 'D')
			return;
		sched_yield();
	}
}

#endif
