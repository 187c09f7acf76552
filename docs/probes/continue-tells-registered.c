// SPDX-License-Identifier: Apache-2.0
/*
 * CONTINUE of a page of private anonymous memory is ENOENT where nothing is registered, or mapped,
 * and EINVAL where it is registered. It changes nothing: a page that is missing is missing still.
 */
#include "probe.h"

static int ask(int uffd, const uint8_t *at)
{
	struct uffdio_continue c = {.range = {.start = (uintptr_t)at, .len = PAGE}};

	EXPECT(ioctl(uffd, UFFDIO_CONTINUE, &c) == -1);
	return errno;
}

int main(void)
{
	int uffd = open_uffd(UFFD_FEATURE_EVENT_REMOVE);
	uint8_t *mem = map_anon(4 * PAGE), *src = map_anon(PAGE);
	unsigned char there[4];
	int64_t done;

	mem[PAGE] = 1;
	EXPECT(munmap(mem + 3 * PAGE, PAGE) == 0);
	EXPECT(ask(uffd, mem) == ENOENT && ask(uffd, mem + PAGE) == ENOENT);
	EXPECT(ask(uffd, mem + 3 * PAGE) == ENOENT);
	register_missing(uffd, mem, 2 * PAGE);
	EXPECT(ask(uffd, mem) == EINVAL && ask(uffd, mem + PAGE) == EINVAL);
	EXPECT(ask(uffd, mem + 2 * PAGE) == ENOENT);
	EXPECT(mincore(mem, 3 * PAGE, there) == 0);
	EXPECT(!(there[0] & 1) && (there[1] & 1) && !(there[2] & 1));
	memset(src, 7, PAGE);
	EXPECT(copy(uffd, mem, src, PAGE, 0, &done) == 0 && mem[0] == 7 && mem[PAGE] == 1);
	HOLDS("CONTINUE is EINVAL in registered anonymous memory, and ENOENT elsewhere");
}
