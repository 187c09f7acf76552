/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The last step before a command listens to anybody: from here on the kernel kills it at any system
 * call that its task has no use for (seccomp). Whoever gets to run code of his own in it can't
 * start a program, trace others where the command doesn't, or make memory executable that he has
 * written.
 *
 * Why to kill, where an error would keep the process: a call that is not on the list is one that we
 * never make, so it is somebody else who makes it. A killed command loses no guest: threads wait,
 * and
 * --supervise starts it again. Calls newer than the list, which a later libc may try, fail with
 * ENOSYS, so that it takes the older one.
 */
#ifndef FERRY_TOOLS_CONFINE_H
#define FERRY_TOOLS_CONFINE_H

#include <sys/types.h>

#include "base/error.h"
#include "base/log.h"

enum confine_need {
	CONFINE_NOTHING = 0,
	CONFINE_SERVES = 1 << 0, /* through the io_uring that is there, and enabled, before */
	CONFINE_ENABLES_RING = 1 << 4, /* one that is there before, and restricted */
	/* For who can't know how many ahead. Whoever takes over such a process has a ring that
	 * takes anything, and what goes through a ring passes no filter. */
	CONFINE_MAKES_RINGS = 1 << 5,
	CONFINE_READS = 1 << 1,	 /* memory of another process, without stopping it */
	CONFINE_FILLS = 1 << 3,	 /* memory of its own, by a userfaultfd */
	CONFINE_ATTACHES =
		1 << 2, /* ptrace, descriptors and memory of another process; CONFINE_READS */
	CONFINE_ADVISES = 1 << 6, /* the kernel on memory of another process */
};

/*
 * The same for who attaches to process @pid (0: unknown), and needs @more than that. Where the
 * process has a filter, as QEMU with -sandbox on does, the kernel lets nobody set it aside who has
 * one: then there is none, which the log says, and the capabilities are all that confines.
 */
int confine_attaching(pid_t pid, unsigned int more, const struct ferry_log *log,
		      struct ferry_failure *f);

/**
 * confine() - for all threads that there are, and those to come
 * Takes no_new_privs, see isolation_enter(). No way back. Does nothing in builds with sanitizers,
 * whose runtimes make calls of their own. Errors: -ENOSYS (the kernel has no seccomp filters),
 * -ENOMEM (REFUSE), in @f. Source: seccomp(2), seccomp_rule_add(3)
 */
int confine(unsigned int needs, struct ferry_failure *f);

#endif
