// SPDX-License-Identifier: Apache-2.0
#include "tools/stop.h"

#include <errno.h>
#include <signal.h>
#include <sys/signalfd.h>

int stop_open(struct ferry_failure *f)
{
	sigset_t set;
	int fd;

	signal(SIGPIPE, SIG_IGN);
	signal(SIGHUP, SIG_IGN);
	sigemptyset(&set);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGTERM);
	sigprocmask(SIG_BLOCK, &set, NULL);
	fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	return fd < 0 ? ferry_fail_errno(f, FERRY_REFUSE, -errno, "signalfd") : fd;
}
