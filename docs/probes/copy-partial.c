// SPDX-License-Identifier: Apache-2.0
/*
 * UFFDIO_COPY over a run with a present page in it stops there: -1/EAGAIN with the bytes done in
 * `copy`; and -1/EEXIST with copy = -EEXIST when the first page is the present one. ENOENT where
 * the run leaves the mapping, with nothing done.
 */
#include "probe.h"

int main(void)
{
	int uffd = open_uffd(0);
	uint8_t *mem = map_anon(5 * PAGE), *src = map_anon(5 * PAGE);
	int64_t done;

	memset(src, 1, 5 * PAGE);
	EXPECT(munmap(mem + 4 * PAGE, PAGE) == 0);
	register_missing(uffd, mem, 4 * PAGE);
	EXPECT(copy(uffd, mem + 2 * PAGE, src, PAGE, 0, &done) == 0 && done == PAGE);

	EXPECT(copy(uffd, mem, src, 4 * PAGE, 0, &done) == -1);
	EXPECT(errno == EAGAIN && done == 2 * PAGE);
	EXPECT(copy(uffd, mem + 2 * PAGE, src, 2 * PAGE, 0, &done) == -1);
	EXPECT(errno == EEXIST && done == -EEXIST);
	EXPECT(copy(uffd, mem + 3 * PAGE, src, 2 * PAGE, 0, &done) == -1);
	EXPECT(errno == ENOENT && done == -ENOENT);
	EXPECT(copy(uffd, mem + 3 * PAGE, src, PAGE, 0, &done) == 0 && done == PAGE);
	HOLDS("COPY is EAGAIN with the bytes done, EEXIST at a present page, ENOENT past the "
	      "mapping");
}
