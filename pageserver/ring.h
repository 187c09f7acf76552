/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The io_uring of a page server. What goes through a ring is not looked at by system call filters
 * (seccomp), so the ring itself takes five operations and nothing else, and has nothing registered
 * with it. That holds from when it is enabled; until then it takes nothing.
 *
 * A server makes its own, unless it is given one that was made ahead: by a process that may make
 * none any more when it comes to know what it is to serve.
 */
#ifndef FERRY_PAGESERVER_RING_H
#define FERRY_PAGESERVER_RING_H

#include <liburing.h>

#include "base/error.h"

struct ferry_ring {
	struct io_uring uring;
};

/**
 * ferry_ring_new() - make a restricted ring that is not enabled yet
 * Context: any thread.
 * Errors:  -ENOSYS (no io_uring, or it is forbidden), -ENOMEM and others (REFUSE), in @f.
 * Source:  io_uring_setup(2), io_uring_register(2): IORING_REGISTER_RESTRICTIONS
 */
int ferry_ring_new(struct ferry_ring **out, struct ferry_failure *f);

/* NULL is fine. Not while a server has it. */
void ferry_ring_free(struct ferry_ring *r);

/* By the thread that submits and reaps, and none but that does so from then on. Once. */
int ferry_ring_enable(struct ferry_ring *r);

#endif
