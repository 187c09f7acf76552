/* SPDX-License-Identifier: Apache-2.0 */
/*
 * For LD_PRELOAD, in a test only: in which order a page server looks for the pages that are waited
 * for, in the file $ORDER_OF_READS, which is there before the program. While ->held is 1, it waits
 * before the first of them, so that there is a queue whose order can be told.
 */
#include <dlfcn.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#define OFFSETS_MAX 4096u

static struct order {
	_Atomic uint32_t held, n;
	uint64_t offsets[OFFSETS_MAX];
} * order;

static void __attribute__((constructor)) begin(void)
{
	int fd = open(getenv("ORDER_OF_READS"), O_RDWR | O_CLOEXEC);

	order = mmap(NULL, sizeof(*order), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (order == MAP_FAILED)
		abort();
	close(fd);
}

ssize_t preadv2(int fd, const struct iovec *iov, int n_iov, off_t offset, int flags)
{
	ssize_t (*real)(int, const struct iovec *, int, off_t, int);
	uint32_t n = atomic_fetch_add(&order->n, 1);
	pid_t keeper = getppid();

	*(void **)&real = dlsym(RTLD_NEXT, "preadv2");
	if (n < OFFSETS_MAX)
		order->offsets[n] = (uint64_t)offset;
	/* A test that has failed leaves nobody behind. */
	while (atomic_load(&order->held) && getppid() == keeper)
		usleep(1000);
	return real(fd, iov, n_iov, offset, flags);
}
