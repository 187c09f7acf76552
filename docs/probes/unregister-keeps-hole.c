// SPDX-License-Identifier: Apache-2.0
/*
 * Unregistering a range of shared memory that never got data leaves a hole: nothing is allocated,
 * who waits goes on with zeros, and SEEK_DATA passes over it. ZEROPAGE does allocate.
 */
#include "probe.h"

#include <sys/stat.h>

static long long allocated(int fd)
{
	struct stat st;

	EXPECT(fstat(fd, &st) == 0);
	return st.st_blocks * 512LL;
}

int main(void)
{
	const size_t len = 1024 * PAGE;
	int uffd = open_uffd(UFFD_FEATURE_MISSING_SHMEM);
	int fd = memfd_create("probe", MFD_CLOEXEC);
	struct uffdio_zeropage zero;
	struct uffdio_range range;
	struct reader r;
	uint8_t *mem;

	EXPECT(fd >= 0 && ftruncate(fd, (off_t)len) == 0);
	mem = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	EXPECT(mem != MAP_FAILED);
	register_missing(uffd, mem, len);
	zero = (struct uffdio_zeropage){.range = {.start = (uintptr_t)mem, .len = PAGE}};
	EXPECT(ioctl(uffd, UFFDIO_ZEROPAGE, &zero) == 0);
	EXPECT(allocated(fd) == PAGE);

	reader_start(&r, mem + len / 2);
	await_readable(uffd);
	range = (struct uffdio_range){.start = (uintptr_t)mem + PAGE, .len = len - PAGE};
	EXPECT(ioctl(uffd, UFFDIO_UNREGISTER, &range) == 0);
	EXPECT(reader_end(&r) == 0);
	/* Only the page that was read now is there too, as in any shared memory. */
	EXPECT(allocated(fd) == 2 * PAGE);
	EXPECT(lseek(fd, PAGE, SEEK_DATA) == (off_t)(len / 2));
	EXPECT(lseek(fd, (off_t)(len / 2) + PAGE, SEEK_DATA) == -1 && errno == ENXIO);
	HOLDS("unregistering leaves holes as holes; ZEROPAGE on shared memory allocates");
}
