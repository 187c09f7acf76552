// SPDX-License-Identifier: Apache-2.0
#include <criterion/criterion.h>
#include <errno.h>
#include <limits.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/util.h"
#include "uffd/present.h"

#define PAGE	((uint64_t)FERRY_PAGE_SIZE_DEFAULT)
#define N_PAGES 4096u

/* Which of @n pages from @memory on are said to be there; runs ascend and don't overlap. */
static void look(const uint8_t *memory, size_t n, bool reads, bool *here)
{
	uint64_t start = (uintptr_t)memory, from, to, last = start;
	struct ferry_present p;
	int rc;

	for (size_t i = 0; i < n; i++)
		here[i] = false;
	cr_assert_eq(ferry_present_open(&p, getpid()), 0);
	p.reads = reads;
	ferry_present_begin(&p, start, n * PAGE);
	while ((rc = ferry_present_next(&p, &from, &to)) > 0) {
		cr_assert_geq(from, last);
		cr_assert_gt(to, from);
		cr_assert_leq(to, start + n * PAGE);
		for (uint64_t at = from; at < to; at += PAGE)
			here[(at - start) / PAGE] = true;
		last = to;
	}
	cr_assert_eq(rc, 0, "%d", rc);
	ferry_present_close(&p);
}

static uint8_t *map(int flags)
{
	uint8_t *memory = mmap(NULL, N_PAGES * PAGE, PROT_READ | PROT_WRITE, flags | MAP_ANONYMOUS, -1, 0);

	cr_assert_neq(memory, MAP_FAILED);
	madvise(memory, N_PAGES * PAGE, MADV_NOHUGEPAGE);
	return memory;
}

/* Both ways see just what was touched, in whatever pattern. */
static void check(uint8_t *memory, bool (*is_touched)(size_t page))
{
	static bool here[N_PAGES];

	for (size_t i = 0; i < N_PAGES; i++)
		if (is_touched(i))
			memory[i * PAGE] = 1;
	for (int reads = 0; reads < 2; reads++) {
		look(memory, N_PAGES, reads, here);
		for (size_t i = 0; i < N_PAGES; i++)
			cr_assert_eq(here[i], is_touched(i), "page %zu, %s", i, reads ? "read" : "asked for");
	}
	munmap(memory, N_PAGES * PAGE);
}

static bool none(size_t page)
{
	(void)page;
	return false;
}

static bool all(size_t page)
{
	(void)page;
	return true;
}

static bool every_second(size_t page)
{
	return page % 2;
}

static bool some_runs(size_t page)
{
	return page % 700 < 3 || page == N_PAGES - 1;
}

Test(present, nothing)
{
	check(map(MAP_PRIVATE), none);
}

Test(present, everything)
{
	check(map(MAP_PRIVATE), all);
}

Test(present, more_runs_than_are_asked_for_at_once)
{
	check(map(MAP_PRIVATE), every_second);
}

Test(present, runs_of_private_and_of_shared_memory)
{
	check(map(MAP_PRIVATE), some_runs);
	check(map(MAP_SHARED), some_runs);
}

Test(present, memory_that_is_not_mapped_is_not_there)
{
	uint8_t *memory = map(MAP_PRIVATE);
	bool here[8];

	for (size_t i = 0; i < 8; i++)
		memory[i * PAGE] = 1;
	munmap(memory + 2 * PAGE, 2 * PAGE);
	for (int reads = 0; reads < 2; reads++) {
		look(memory, 8, reads, here);
		for (size_t i = 0; i < 8; i++)
			cr_assert_eq(here[i], i < 2 || i > 3);
	}
}

Test(present, a_process_that_is_not_there)
{
	struct ferry_present p;

	cr_assert_eq(ferry_present_open(&p, INT_MAX), -ENOENT);
}
