/* SPDX-License-Identifier: Apache-2.0 */
/* What the memory has that is moved: each page its number, so that any page in a wrong place shows. */
#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "bench/bench.h"

#define WORDS (BENCH_PAGE / sizeof(uint64_t))

uint64_t bench_word(uint64_t page, uint32_t every)
{
	return page / BENCH_STRIPE_PAGES % every ? 0 : page + 1;
}

void bench_check(const void *memory, uint64_t bytes, uint32_t every)
{
	const uint64_t *words = memory;

	for (uint64_t page = 0; page < bytes / BENCH_PAGE; page++) {
		uint64_t want = bench_word(page, every), first, last;

		/* Reading a hole would fill it. One page of each is enough. */
		if (!want && page % BENCH_STRIPE_PAGES)
			continue;
		first = words[page * WORDS];
		last = words[page * WORDS + WORDS - 1];
		errno = 0;
		if (first != want || last != want)
			bench_die("page %llu has %#llx and %#llx, not %#llx",
				  (unsigned long long)page, (unsigned long long)first,
				  (unsigned long long)last, (unsigned long long)want);
	}
}

int bench_content(const struct bench_options *o)
{
	int fd = o->file ? open(o->file, O_RDWR | O_CLOEXEC) : -1;
	uint64_t *words;

	if (fd < 0 || ftruncate(fd, (off_t)o->bytes) < 0)
		bench_die("content: --file %s", o->file ? o->file : "is missing");
	words = mmap(NULL, o->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (words == MAP_FAILED)
		bench_die("content: mmap");
	for (uint64_t page = 0; page < o->bytes / BENCH_PAGE; page++) {
		uint64_t word = bench_word(page, o->every);

		for (uint64_t i = 0; word && i < WORDS; i++)
			words[page * WORDS + i] = word;
	}
	close(fd);
	return 0;
}
