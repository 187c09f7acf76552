// SPDX-License-Identifier: Apache-2.0
/*
 * With EVENT_REMOVE: while a REMOVE event is unread, COPY and ZEROPAGE say EAGAIN with the signed
 * field -EAGAIN. A page fault that is queued after it is read before it.
 */
#include "probe.h"

static uint8_t *mem;

static void *remove_first_page(void *arg)
{
	EXPECT(madvise(mem, PAGE, MADV_DONTNEED) == 0);
	return arg;
}

int main(void)
{
	int uffd = open_uffd(UFFD_FEATURE_EVENT_REMOVE);
	uint8_t *src = map_anon(PAGE);
	struct uffd_msg msg[4];
	struct uffdio_zeropage zero;
	struct reader r;
	pthread_t remover;
	int64_t done;
	size_t n = 0;

	mem = map_anon(3 * PAGE);
	zero = (struct uffdio_zeropage){.range = {.start = (uintptr_t)mem + 2 * PAGE, .len = PAGE}};
	memset(src, 1, PAGE);
	register_missing(uffd, mem, 3 * PAGE);
	EXPECT(copy(uffd, mem, src, PAGE, 0, &done) == 0);
	EXPECT(pthread_create(&remover, NULL, remove_first_page, NULL) == 0);
	await_readable(uffd);
	EXPECT(copy(uffd, mem + 2 * PAGE, src, PAGE, 0, &done) == -1);
	EXPECT(errno == EAGAIN && done == -EAGAIN);
	EXPECT(ioctl(uffd, UFFDIO_ZEROPAGE, &zero) == -1);
	EXPECT(errno == EAGAIN && zero.zeropage == -EAGAIN);

	/* The fault is queued when fdinfo counts it. */
	reader_start(&r, mem + PAGE);
	for (;;) {
		char path[64], line[256];
		unsigned int pending = 0;
		FILE *f;

		snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", uffd);
		f = fopen(path, "re");
		EXPECT(f);
		while (fgets(line, sizeof(line), f))
			sscanf(line, "pending: %u", &pending);
		fclose(f);
		if (pending == 1)
			break;
		sched_yield();
	}
	while (n < 2) {
		ssize_t got = read(uffd, msg + n, sizeof(msg[0]));

		EXPECT(got == sizeof(msg[0]) || errno == EAGAIN);
		n += got > 0;
	}
	EXPECT(msg[0].event == UFFD_EVENT_PAGEFAULT && msg[1].event == UFFD_EVENT_REMOVE);
	EXPECT(msg[1].arg.remove.start == (uintptr_t)mem);
	pthread_join(remover, NULL);
	EXPECT(copy(uffd, mem + PAGE, src, PAGE, 0, &done) == 0);
	EXPECT(reader_end(&r) == 1);
	HOLDS("COPY is EAGAIN (-EAGAIN) while a REMOVE is unread; faults are read before it");
}
