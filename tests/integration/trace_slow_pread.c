/* SPDX-License-Identifier: Apache-2.0 */
/*
 * For LD_PRELOAD, in a test only: a source whose disk is slow. Each read of a page (and nothing else)
 * first takes SLOW_PREAD_US microseconds.
 */
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096u

/* Offsets have 64 bits in the whole build, and so this is pread64 in the library. */
ssize_t pread(int fd, void *buf, size_t n, off_t offset)
{
	ssize_t (*real)(int, void *, size_t, off_t) =
		(ssize_t(*)(int, void *, size_t, off_t))dlsym(RTLD_NEXT, "pread64");
	const char *us = getenv("SLOW_PREAD_US");
	struct timespec slow = {.tv_nsec = us ? atol(us) * 1000 : 0};

	if (n == PAGE)
		nanosleep(&slow, NULL);
	return real(fd, buf, n, offset);
}
