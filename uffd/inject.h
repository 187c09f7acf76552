/* SPDX-License-Identifier: Apache-2.0 */
/* Making another, unmodified process run a few system calls of our choice. x86-64 only. */
#ifndef FERRY_UFFD_INJECT_H
#define FERRY_UFFD_INJECT_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"

/* A thread of another process, stopped by us. Exists while a ferry_inject_fn runs. */
struct ferry_inject;

/*
 * What to do while the thread is stopped. Must be quick, and run only system calls that never
 * block. Return: 0 or negative errno with its text in @f, which ferry_inject_run() passes on.
 */
typedef int (*ferry_inject_fn)(struct ferry_inject *in, void *ctx, struct ferry_failure *f);

/**
 * ferry_inject_run() - stop one thread of a process, have @fn called, and let the thread go on
 * Any thread will do: those that don't stop soon (asleep in the kernel) or end meanwhile are
 * passed over. The thread then goes on as if nothing had been: its registers are as before, an
 * interrupted system call goes on, and signals that came meanwhile are delivered.
 * @pid:   the process, not our own
 * @pidfd: of the same process, so that a reused number is noticed; borrowed until return
 * Context: any thread. @fn runs on another thread, while this one waits with all signals blocked.
 * Errors:  -EPERM, -ESRCH, -EBUSY (no thread stopped in time), -EOPNOTSUPP (a 32-bit process),
 *          all REFUSE, with how to mend it in @f; or what @fn returned.
 * Source:  ptrace(2); docs/probes/inject-uffd.c
 */
int ferry_inject_run(pid_t pid, int pidfd, ferry_inject_fn fn, void *ctx, struct ferry_failure *f);

/**
 * ferry_inject_syscall() - run one system call in the stopped thread
 * @args:   six; pointers are addresses in that process
 * @result: what the call returned: negative errno on failure
 * Errors:  -ESRCH when the thread ended meanwhile
 */
int ferry_inject_syscall(struct ferry_inject *in, long nr, const uint64_t args[6], long *result);

/* Copy between our memory and that of the process. Errors: -EIO when less than @len bytes are
 * there, or the thread ended. */
int ferry_inject_read(struct ferry_inject *in, uint64_t addr, void *buf, size_t len);
int ferry_inject_write(struct ferry_inject *in, uint64_t addr, const void *buf, size_t len);

#endif
