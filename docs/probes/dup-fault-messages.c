// SPDX-License-Identifier: Apache-2.0
/*
 * Each thread that touches a missing page is a message of its own, one read() returns as many as
 * fit, and one COPY wakes all of them. A message that was read is not given again until a WAKE
 * makes the threads fault anew.
 */
#include "probe.h"

#define N 4

static size_t read_all(int uffd, size_t at_least)
{
	struct uffd_msg msg[2 * N];
	size_t n = 0;

	do {
		ssize_t got;

		await_readable(uffd);
		got = read(uffd, msg, sizeof(msg));
		EXPECT(got > 0 || errno == EAGAIN);
		n += got > 0 ? (size_t)got / sizeof(msg[0]) : 0;
	} while (n < at_least);
	return n;
}

int main(void)
{
	int uffd = open_uffd(UFFD_FEATURE_THREAD_ID);
	uint8_t *mem = map_anon(PAGE), *src = map_anon(PAGE);
	struct reader r[N];
	struct uffd_msg msg;
	int64_t done;

	memset(src, 9, PAGE);
	register_missing(uffd, mem, PAGE);
	for (int i = 0; i < N; i++)
		reader_start(&r[i], mem + i);
	EXPECT(read_all(uffd, N) == N);
	EXPECT(read(uffd, &msg, sizeof(msg)) == -1 && errno == EAGAIN);
	EXPECT(wake(uffd, mem, PAGE) == 0);
	EXPECT(read_all(uffd, N) == N);
	EXPECT(copy(uffd, mem, src, PAGE, 0, &done) == 0);
	for (int i = 0; i < N; i++)
		EXPECT(reader_end(&r[i]) == 9);
	HOLDS("%d threads on one page are %d messages, given once and again after a WAKE", N, N);
}
