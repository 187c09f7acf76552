// SPDX-License-Identifier: Apache-2.0
/*
 * UFFDIO_COPY to a huge page for which the pool has none left says EEXIST, as if the page were
 * present, instead of ENOMEM. UFFDIO_CONTINUE tells the two apart in shared memory (EFAULT when
 * the page is not there), /proc/PID/pagemap in private memory.
 */
#include "probe.h"

#include <sys/file.h>

#define HUGE (2u << 20)

static uint64_t pagemap_of(const void *at)
{
	int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	uint64_t entry = 0;

	EXPECT(pread(fd, &entry, sizeof(entry), (off_t)((uintptr_t)at / PAGE * sizeof(entry))) ==
	       sizeof(entry));
	close(fd);
	return entry;
}

static int try_continue(int uffd, void *at)
{
	struct uffdio_continue c = {.range = {.start = (uintptr_t)at, .len = HUGE}};

	return ioctl(uffd, UFFDIO_CONTINUE, &c);
}

static void *map_huge(int flags, size_t len)
{
	void *p = mmap(NULL, len, PROT_READ | PROT_WRITE,
		       MAP_ANONYMOUS | MAP_HUGETLB | MAP_NORESERVE | flags, -1, 0);

	if (p == MAP_FAILED)
		CANNOT_TRY("huge pages: %s", strerror(errno));
	return p;
}

static void expect_eexist(int uffd, void *at, const void *src)
{
	int64_t done;

	EXPECT(copy(uffd, at, src, HUGE, 0, &done) == -1);
	EXPECT(errno == EEXIST);
	EXPECT(!(pagemap_of(at) >> 63));
}

int main(void)
{
	FILE *pool = fopen("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "re");
	FILE *f = fopen("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", "re");
	int uffd = open_uffd(0);
	uint8_t *src = map_anon(HUGE), *mem;
	long n_free;

	/* Tests that change the pool hold this lock. */
	if (!pool || flock(fileno(pool), LOCK_EX) < 0 || !f || fscanf(f, "%ld", &n_free) != 1)
		CANNOT_TRY("no huge pages of 2 MiB in this kernel");
	if (n_free > 0)
		CANNOT_TRY("%ld huge pages are free; the probe needs an empty pool", n_free);

	mem = map_huge(MAP_SHARED, HUGE);
	register_missing(uffd, mem, HUGE);
	expect_eexist(uffd, mem, src);
	EXPECT(try_continue(uffd, mem) == -1 && errno == EFAULT);

	mem = map_huge(MAP_PRIVATE, HUGE);
	register_missing(uffd, mem, HUGE);
	expect_eexist(uffd, mem, src);
	HOLDS("COPY says EEXIST, not ENOMEM, when no huge page is free; CONTINUE or pagemap tell");
}
