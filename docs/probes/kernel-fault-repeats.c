// SPDX-License-Identifier: Apache-2.0
/*
 * A thread that touches a missing page from inside a system call, with a signal pending, does not
 * sleep: it faults again and again until the page is there, one message each time.
 */
#include "probe.h"

static uint8_t *mem;
static int ports[2];
static volatile sig_atomic_t handled;

static void handler(int sig)
{
	handled = sig;
}

static void *writer(void *arg)
{
	EXPECT(write(ports[1], mem, 1) == 1);
	return arg;
}

int main(void)
{
	int uffd = open_uffd(UFFD_FEATURE_THREAD_ID);
	struct sigaction sa = {.sa_handler = handler};
	uint8_t *src = map_anon(PAGE);
	struct uffd_msg msg;
	pthread_t thread;
	int64_t done;
	int n = 0;

	mem = map_anon(PAGE);
	memset(src, 1, PAGE);
	EXPECT(pipe(ports) == 0);
	sigaction(SIGUSR1, &sa, NULL);
	register_missing(uffd, mem, PAGE);
	EXPECT(pthread_create(&thread, NULL, writer, NULL) == 0);
	await_readable(uffd);
	EXPECT(read(uffd, &msg, sizeof(msg)) == sizeof(msg));
	await_asleep((pid_t)msg.arg.pagefault.feat.ptid);
	EXPECT(pthread_kill(thread, SIGUSR1) == 0);
	while (n < 100) {
		await_readable(uffd);
		n += read(uffd, &msg, sizeof(msg)) == sizeof(msg);
	}
	EXPECT(!handled);
	EXPECT(copy(uffd, mem, src, PAGE, 0, &done) == 0);
	pthread_join(thread, NULL);
	EXPECT(handled == SIGUSR1);
	HOLDS("a fault inside a system call with a signal pending repeats until it is served");
}
