// SPDX-License-Identifier: Apache-2.0
/*
 * A page that was made present with DONTWAKE leaves who waits asleep, and a COPY that says EEXIST
 * wakes nobody: a WAKE has to follow.
 */
#include "probe.h"

int main(void)
{
	int uffd = open_uffd(UFFD_FEATURE_THREAD_ID);
	uint8_t *mem = map_anon(PAGE), *src = map_anon(PAGE);
	struct uffd_msg msg;
	struct reader r;
	int64_t done;
	pid_t tid;

	memset(src, 3, PAGE);
	register_missing(uffd, mem, PAGE);
	reader_start(&r, mem);
	await_readable(uffd);
	EXPECT(read(uffd, &msg, sizeof(msg)) == sizeof(msg));
	tid = (pid_t)msg.arg.pagefault.feat.ptid;
	EXPECT(copy(uffd, mem, src, PAGE, UFFDIO_COPY_MODE_DONTWAKE, &done) == 0);
	EXPECT(copy(uffd, mem, src, PAGE, 0, &done) == -1 && errno == EEXIST);
	await_asleep(tid);
	EXPECT(pthread_tryjoin_np(r.thread, NULL) == EBUSY);
	EXPECT(wake(uffd, mem, PAGE) == 0);
	EXPECT(reader_end(&r) == 3);
	HOLDS("neither COPY with DONTWAKE nor one that says EEXIST wakes; WAKE does");
}
