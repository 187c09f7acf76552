// SPDX-License-Identifier: Apache-2.0
/*
 * Why system calls are not injected by PTRACE_SINGLESTEP: the step's SIGTRAP is a forced signal.
 * Where the thread has SIGTRAP blocked, the kernel unblocks it and resets its handler, even though
 * the tracer then swallows the signal.
 */
#include "probe.h"

#include <sys/ptrace.h>

static void handler(int sig)
{
	(void)sig;
}

static int child(void)
{
	struct sigaction sa = {.sa_handler = handler};
	sigset_t set;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	sigaction(SIGTRAP, &sa, NULL);
	sigemptyset(&set);
	sigaddset(&set, SIGTRAP);
	sigprocmask(SIG_BLOCK, &set, NULL);
	raise(SIGSTOP);
	sigaction(SIGTRAP, NULL, &sa);
	sigprocmask(SIG_BLOCK, NULL, &set);
	return (sa.sa_handler == SIG_DFL) + 2 * !sigismember(&set, SIGTRAP);
}

int main(void)
{
	pid_t pid = fork();
	int status;

	if (pid == 0)
		_exit(child());
	EXPECT(waitpid(pid, &status, WUNTRACED) == pid && WIFSTOPPED(status));
	if (ptrace(PTRACE_SEIZE, pid, NULL, NULL) < 0)
		CANNOT_TRY("ptrace: %s", strerror(errno));
	EXPECT(waitpid(pid, &status, 0) == pid && WIFSTOPPED(status));
	EXPECT(ptrace(PTRACE_SINGLESTEP, pid, NULL, NULL) == 0);
	EXPECT(waitpid(pid, &status, 0) == pid && WIFSTOPPED(status));
	EXPECT(WSTOPSIG(status) == SIGTRAP);
	EXPECT(ptrace(PTRACE_DETACH, pid, NULL, NULL) == 0);
	kill(pid, SIGCONT);
	EXPECT(waitpid(pid, &status, 0) == pid && WIFEXITED(status));
	EXPECT(WEXITSTATUS(status) == 3);
	HOLDS("a single step resets the SIGTRAP handler and mask of a thread that has it blocked");
}
