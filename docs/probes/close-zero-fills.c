// SPDX-License-Identifier: Apache-2.0
/*
 * Closing the last descriptor of a userfaultfd unregisters its memory, and who waited for a page
 * goes on with zeros. With another descriptor open, who waits goes on waiting.
 */
#include "probe.h"

int main(void)
{
	int uffd = open_uffd(UFFD_FEATURE_THREAD_ID);
	int second = dup(uffd);
	uint8_t *mem = map_anon(PAGE);
	struct uffd_msg msg;
	struct reader r;

	register_missing(uffd, mem, PAGE);
	reader_start(&r, mem);
	await_readable(uffd);
	EXPECT(read(uffd, &msg, sizeof(msg)) == sizeof(msg));
	close(uffd);
	await_asleep((pid_t)msg.arg.pagefault.feat.ptid);
	EXPECT(pthread_tryjoin_np(r.thread, NULL) == EBUSY);
	close(second);
	EXPECT(reader_end(&r) == 0);
	EXPECT(mem[0] == 0);
	HOLDS("the last close of a userfaultfd wakes who waits, with a page of zeros");
}
