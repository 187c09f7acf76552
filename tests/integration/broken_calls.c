/* SPDX-License-Identifier: Apache-2.0 */
/*
 * For LD_PRELOAD, in a test only: calls that fail as the test wants it, by the bytes of the file
 * $BROKEN_CALLS, which is there before the program.
 *     0: while it is 1, no process can be started
 *     1: the io_uring whose wait finds a 1 makes it 0, and works no more
 */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

static _Atomic char *wanted;
static struct io_uring *_Atomic broken;

static void __attribute__((constructor)) begin(void)
{
	int fd = open(getenv("BROKEN_CALLS"), O_RDWR | O_CLOEXEC);

	wanted = mmap(NULL, 2, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (wanted == MAP_FAILED)
		abort();
	close(fd);
}

pid_t fork(void)
{
	pid_t (*real)(void) = (pid_t(*)(void))dlsym(RTLD_NEXT, "fork");

	if (!wanted[0])
		return real();
	errno = EAGAIN;
	return -1;
}

int io_uring_submit_and_wait_timeout(struct io_uring *ring, struct io_uring_cqe **cqe,
				     unsigned int n, struct __kernel_timespec *ts, sigset_t *mask)
{
	/* One that has nothing to do looks as well. */
	static struct __kernel_timespec soon = {.tv_nsec = 100 * 1000 * 1000};
	int (*real)(struct io_uring *, struct io_uring_cqe **, unsigned int,
		    struct __kernel_timespec *, sigset_t *);

	*(void **)&real = dlsym(RTLD_NEXT, "io_uring_submit_and_wait_timeout");
	if (broken != ring && atomic_exchange(&wanted[1], 0))
		broken = ring;
	return broken == ring ? -EIO : real(ring, cqe, n, ts ? ts : &soon, mask);
}

/* Its memory may be another one's then. */
void io_uring_queue_exit(struct io_uring *ring)
{
	void (*real)(struct io_uring *);

	*(void **)&real = dlsym(RTLD_NEXT, "io_uring_queue_exit");
	if (broken == ring)
		broken = NULL;
	real(ring);
}
