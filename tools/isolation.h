/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Giving up what a command doesn't need: capabilities, privileges by exec, core dumps. What comes
 * from the network is then handled by a process that can do little more than its task.
 *
 * Capabilities belong to threads: everything here is called before a thread is started.
 */
#ifndef FERRY_TOOLS_ISOLATION_H
#define FERRY_TOOLS_ISOLATION_H

#include <sys/types.h>

#include "base/error.h"

/* What may be needed still. Only what the process has is kept; an ordinary user's has nothing. */
enum isolation_need {
	ISOLATION_NOTHING = 0,
	/* CAP_SYS_PTRACE: memory and descriptors of another user's process. */
	ISOLATION_PTRACE = 1 << 0,
	/* CAP_DAC_READ_SEARCH: /proc/PID/fd and /proc/PID/pagemap are their owner's. */
	ISOLATION_PROC = 1 << 1,
	/* CAP_SYS_ADMIN, and no filter of our own: suspend a process's seccomp filter while it is
	   attached to. */
	ISOLATION_SECCOMP = 1 << 2,
	/* CAP_DAC_OVERRIDE: connect to a UNIX socket that belongs to another user. */
	ISOLATION_SOCKET = 1 << 3,
	/* CAP_KILL: stop another user's process. */
	ISOLATION_KILL = 1 << 4,
	/* CAP_NET_BIND_SERVICE: listen on a port below 1024. */
	ISOLATION_BIND = 1 << 5,
	/* CAP_SYS_NICE: have another process map large pages. */
	ISOLATION_LARGE = 1 << 6,
};

/**
 * isolation_enter() - the first step, for every command that moves memory
 * Keeps the capabilities of @needs and gives up the others for good, also by exec. Raises the
 * limits of locked memory and of priority where it may, since the capabilities to exceed them are
 * gone afterwards, and takes the descriptors that the most sessions need. Core dumps are turned off: they would hold a guest's memory, and other processes
 * of the same user lose their access to it through us. A guest's own process is not touched by
 * this, and we remain able to attach to others, since that looks at their state and not at ours.
 * Errors: negative errno (REFUSE) in @f.
 * Source: capabilities(7), prctl(2), core(5)
 */
int isolation_enter(unsigned int needs, struct ferry_failure *f);

/* A later step: keep the capabilities of @needs, a part of those kept so far. */
int isolation_narrow(unsigned int needs, struct ferry_failure *f);

/**
 * isolation_supervise() - for a parent that only forks and waits
 * As isolation_enter(), but of @needs nothing is in effect: they are there for children only, which
 * take them with isolation_regain(). No system call filter, see tools/confine.h: a child would
 * inherit it, and who has one can't set aside that of a process it attaches to (ptrace(2),
 * PTRACE_O_SUSPEND_SECCOMP). Errors: negative errno (REFUSE) in @f.
 */
int isolation_supervise(unsigned int needs, struct ferry_failure *f);

/* In a child of such a parent: what the parent has, in effect. Errors: REFUSE, in @f. */
int isolation_regain(struct ferry_failure *f);

/*
 * What connecting to @path takes: ISOLATION_SOCKET when our user alone may not, ISOLATION_NOTHING
 * otherwise (also when there is no such socket).
 */
unsigned int isolation_need_of_socket(const char *path);

/* What attaching to a process takes: ISOLATION_SECCOMP too when a thread of it has a filter. */
unsigned int isolation_need_of_process(pid_t pid);

/* The process that listens on a UNIX socket, or 0 when that can't be told. "unix:" before @path is
 * fine. */
pid_t isolation_process_behind(const char *path);

#endif
