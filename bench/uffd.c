/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "bench/bench.h"
#include "uffd/kernel.h"

int bench_uffd_open(void *start, uint64_t bytes, bool minor)
{
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	struct uffdio_api api = {.api = UFFD_API,
				 .features = minor ? UFFD_FEATURE_MINOR_SHMEM : 0};
	struct uffdio_register r = {
		.range = {.start = (uintptr_t)start, .len = bytes},
		.mode = UFFDIO_REGISTER_MODE_MISSING | (minor ? UFFDIO_REGISTER_MODE_MINOR : 0),
	};

	if (fd < 0 || ioctl(fd, UFFDIO_API, &api) < 0 || ioctl(fd, UFFDIO_REGISTER, &r) < 0)
		bench_die("userfaultfd");
	return fd;
}

bool bench_uffd_next(int uffd, int timeout_ms, uint64_t *address)
{
	struct pollfd p = {.fd = uffd, .events = POLLIN};
	struct uffd_msg m;

	while (poll(&p, 1, timeout_ms) > 0) {
		if (read(uffd, &m, sizeof(m)) == sizeof(m) && m.event == UFFD_EVENT_PAGEFAULT) {
			*address = m.arg.pagefault.address & ~(uint64_t)(BENCH_PAGE - 1);
			return true;
		}
	}
	return false;
}

void bench_uffd_copy(int uffd, uint64_t to, const void *from, uint64_t bytes)
{
	struct uffdio_copy c = {.dst = to, .src = (uintptr_t)from, .len = bytes};
	struct uffdio_range r = {.start = to, .len = bytes};

	if (ioctl(uffd, UFFDIO_COPY, &c) < 0 &&
	    (errno != EEXIST || ioctl(uffd, UFFDIO_WAKE, &r) < 0))
		bench_die("UFFDIO_COPY");
}
