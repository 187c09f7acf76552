/* SPDX-License-Identifier: Apache-2.0 */
/* Does another process stand still, and has it stood still since? */
#ifndef FERRY_BASE_STILL_H
#define FERRY_BASE_STILL_H

#include <stdint.h>
#include <sys/types.h>

/**
 * ferry_still_check() - does no thread of a process run, since each of them could write?
 * Stopped, traced, ended, or in a frozen control group.
 * Return: 1, or 0 when one may run. Errors: -ESRCH; others when it could not be looked at.
 */
int ferry_still_check(pid_t pid);

/*
 * A number that changes when a thread of the process runs, begins or ends: one that is stopped is
 * never switched to.
 */
uint64_t ferry_still_mark(pid_t pid, uint64_t seed);

/* A process that is to stand still from one moment on. */
struct ferry_still {
	pid_t pid;
	int pidfd; /* owned; -1 for none */
	uint64_t mark;
};

#define FERRY_STILL_NONE ((struct ferry_still){.pidfd = -1})

/**
 * ferry_still_open() - from now on
 * Waits some milliseconds for one that is just being stopped.
 * Errors: -EBUSY (it runs), -ESRCH, -EMFILE, -ENOMEM and others.
 */
int ferry_still_open(struct ferry_still *s, pid_t pid);

/**
 * ferry_still_look() - has it stood still since then? Any thread.
 * Who was woken without being let run has not: a frozen process that gets a signal, or a stopped
 * one that is traced. That can't be told apart from here. Return: 1; 0 when a thread of it has run.
 * Errors: -ESRCH, it has ended, and may have run before; others when it can't be told this time,
 * for want of memory or descriptors.
 */
int ferry_still_look(const struct ferry_still *s);

void ferry_still_close(struct ferry_still *s);

#endif
