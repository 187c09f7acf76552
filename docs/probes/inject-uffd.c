// SPDX-License-Identifier: Apache-2.0
/*
 * A process that is blocked in read() can be made to run userfaultfd(), at a `syscall` instruction
 * that it has anyway, between the stops at the call's entry and exit. One more INTERRUPT stop lets
 * the kernel restart the read() from the registers that are put back.
 */
#include "probe.h"

#ifndef __x86_64__
int main(void)
{
	CANNOT_TRY("written for x86-64 only");
}
#else

#include <sys/ptrace.h>
#include <sys/user.h>

#define EVENT_STOP(status) ((status) >> 16 == PTRACE_EVENT_STOP)

static int child(int in)
{
	char b;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	return read(in, &b, 1) == 1 && b == 'x' ? 0 : 1;
}

static void await_in_read(pid_t pid)
{
	char path[64], line[256] = "";

	snprintf(path, sizeof(path), "/proc/%d/syscall", (int)pid);
	while (strncmp(line, "0 ", 2) != 0) {
		FILE *f = fopen(path, "re");

		if (!f)
			CANNOT_TRY("%s: %s", path, strerror(errno));
		EXPECT(fgets(line, sizeof(line), f));
		fclose(f);
		sched_yield();
	}
}

static int next_stop(pid_t pid, enum __ptrace_request how)
{
	int status;

	EXPECT(ptrace(how, pid, NULL, NULL) == 0);
	EXPECT(waitpid(pid, &status, __WALL) == pid && WIFSTOPPED(status));
	return status;
}

int main(void)
{
	struct user_regs_struct saved, regs;
	int ports[2], status, pidfd;
	struct uffdio_api api = {.api = UFFD_API};
	pid_t pid;
	int uffd;

	EXPECT(pipe(ports) == 0);
	pid = fork();
	if (pid == 0)
		_exit(child(ports[0]));
	await_in_read(pid);
	if (ptrace(PTRACE_SEIZE, pid, NULL, PTRACE_O_TRACESYSGOOD) < 0)
		CANNOT_TRY("ptrace: %s", strerror(errno));
	EXPECT(EVENT_STOP(next_stop(pid, PTRACE_INTERRUPT)));
	EXPECT(ptrace(PTRACE_GETREGS, pid, NULL, &saved) == 0);
	EXPECT(saved.orig_rax == SYS_read);
	EXPECT((ptrace(PTRACE_PEEKTEXT, pid, saved.rip - 2, NULL) & 0xffff) == 0x050f);

	regs = saved;
	regs.rip -= 2;
	regs.rax = SYS_userfaultfd;
	regs.orig_rax = UINT64_MAX;
	regs.rdi = O_CLOEXEC | O_NONBLOCK;
	EXPECT(ptrace(PTRACE_SETREGS, pid, NULL, &regs) == 0);
	EXPECT(WSTOPSIG(next_stop(pid, PTRACE_SYSCALL)) == (SIGTRAP | 0x80));
	EXPECT(WSTOPSIG(next_stop(pid, PTRACE_SYSCALL)) == (SIGTRAP | 0x80));
	EXPECT(ptrace(PTRACE_GETREGS, pid, NULL, &regs) == 0);

	EXPECT(ptrace(PTRACE_INTERRUPT, pid, NULL, NULL) == 0);
	EXPECT(ptrace(PTRACE_SETREGS, pid, NULL, &saved) == 0);
	EXPECT(EVENT_STOP(next_stop(pid, PTRACE_CONT)));
	EXPECT(ptrace(PTRACE_DETACH, pid, NULL, NULL) == 0);
	if ((long)regs.rax < 0)
		CANNOT_TRY("userfaultfd in the process: %s", strerror((int)-regs.rax));

	pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
	uffd = (int)syscall(SYS_pidfd_getfd, pidfd, (int)regs.rax, 0);
	EXPECT(uffd >= 0 && ioctl(uffd, UFFDIO_API, &api) == 0);
	await_in_read(pid);
	EXPECT(write(ports[1], "x", 1) == 1);
	EXPECT(waitpid(pid, &status, 0) == pid && status == 0);
	HOLDS("a blocked process ran userfaultfd() for us, and its read() went on");
}

#endif
