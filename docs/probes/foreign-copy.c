// SPDX-License-Identifier: Apache-2.0
/*
 * A userfaultfd of another process serves that process's memory from here: UFFDIO_API, REGISTER,
 * COPY, UNREGISTER all work on a duplicate, and COPY says ESRCH once the process is gone.
 */
#include "probe.h"

static uint8_t *mem; /* at the same address in both */

static int child(int ready)
{
	int uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (write(ready, &uffd, sizeof(uffd)) != sizeof(uffd) || uffd < 0)
		return 1;
	raise(SIGSTOP);
	return mem[PAGE] == 7 && mem[0] == 0 ? 0 : 2;
}

int main(void)
{
	int ports[2], theirs, uffd, pidfd, status;
	uint8_t *src = map_anon(PAGE);
	struct uffdio_range range;
	int64_t done;
	pid_t pid;

	mem = map_anon(2 * PAGE);
	memset(src, 7, PAGE);
	EXPECT(pipe(ports) == 0);
	pid = fork();
	if (pid == 0)
		_exit(child(ports[1]));
	EXPECT(read(ports[0], &theirs, sizeof(theirs)) == sizeof(theirs));
	if (theirs < 0)
		CANNOT_TRY("userfaultfd: not allowed in a child");
	EXPECT(waitpid(pid, &status, WUNTRACED) == pid);
	pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
	uffd = (int)syscall(SYS_pidfd_getfd, pidfd, theirs, 0);
	if (uffd < 0)
		CANNOT_TRY("pidfd_getfd: %s", strerror(errno));

	handshake(uffd, 0);
	register_missing(uffd, mem, 2 * PAGE);
	kill(pid, SIGCONT);
	await_readable(uffd);
	EXPECT(copy(uffd, mem + PAGE, src, PAGE, 0, &done) == 0 && done == PAGE);
	range = (struct uffdio_range){.start = (uintptr_t)mem, .len = 2 * PAGE};
	EXPECT(ioctl(uffd, UFFDIO_UNREGISTER, &range) == 0);
	EXPECT(waitpid(pid, &status, 0) == pid && status == 0);

	EXPECT(copy(uffd, mem, src, PAGE, 0, &done) == -1);
	EXPECT(errno == ESRCH && done == 0);
	HOLDS("API, REGISTER, COPY and UNREGISTER work through another process's userfaultfd");
}
