/* SPDX-License-Identifier: Apache-2.0 */
/* Does another process stand still, and has it stood still since? */
#ifndef FERRY_BASE_STILL_H
#define FERRY_BASE_STILL_H

#include <stdint.h>
#include <sys/types.h>

/**
 * ferry_still_check() - does no thread of a process run, since each of them could write?
 * Stopped, traced, ended, or in a frozen control group.
 * Return: 1, or 0 when one may run. Errors: -ESRCH.
 */
int ferry_still_check(pid_t pid);

/*
 * A number that changes when a thread of the process runs, begins or ends: one that is stopped is
 * never switched to.
 */
uint64_t ferry_still_mark(pid_t pid, uint64_t seed);

#endif
