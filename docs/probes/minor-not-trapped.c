// SPDX-License-Identifier: Apache-2.0
/*
 * Shared memory, registered for MISSING only: a page that is in the page cache already (written
 * through another mapping or the descriptor) does not trap when it is touched.
 */
#include "probe.h"

int main(void)
{
	int uffd = open_uffd(UFFD_FEATURE_MISSING_SHMEM);
	int fd = memfd_create("probe", MFD_CLOEXEC);
	struct pollfd p = {.fd = uffd, .events = POLLIN};
	struct reader r;
	uint8_t *mem;

	EXPECT(fd >= 0 && ftruncate(fd, 2 * PAGE) == 0);
	mem = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	EXPECT(mem != MAP_FAILED);
	register_missing(uffd, mem, 2 * PAGE);
	EXPECT(pwrite(fd, "\x05", 1, 0) == 1);

	reader_start(&r, mem);
	EXPECT(reader_end(&r) == 5);
	EXPECT(poll(&p, 1, 0) == 0);
	/* And the one beside it does trap. */
	reader_start(&r, mem + PAGE);
	await_readable(uffd);
	EXPECT(pwrite(fd, "\x06", 1, PAGE) == 1);
	EXPECT(wake(uffd, mem + PAGE, PAGE) == 0);
	EXPECT(reader_end(&r) == 6);
	HOLDS("with MISSING only, a page in the page cache of shared memory does not trap");
}
