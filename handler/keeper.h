/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The keeper: a small process that holds what must not be lost, and starts the worker, which does
 * the work, again when it dies.
 *
 *   VMM --connects, message, userfaultfd--> keeper --the same--> worker (serves it)
 *                                             ^  <--what is known of its pages, memfd--
 *
 *  1. The keeper accepts a VMM, looks who it is, reads its message as bytes up to the end of the
 *     array, and keeps all of it. It understands nothing of it.
 *  2. It hands copies of the descriptors to the worker, which checks them, gives the keeper the
 *     memory in which it notes the pages that are known, and only then begins to serve.
 *  3. The worker says when a VM needs nobody any more: it is complete, or its VMM has ended.
 *  4. The worker dies by a signal: the keeper forks another one, which has all of the descriptors
 *     from it, and goes on from the known pages. Threads that wait are woken and fault anew.
 *
 * The first SIGTERM or SIGINT drains: who has connected by then is served to the end, and nobody
 * else; a worker that dies meanwhile is started again as ever. Our own socket goes at once, so that
 * the kernel tells a VMM that comes later; one that was handed over is left to the next handler.
 * The second signal ends it all. Each process counts its own, as those of a terminal reach both,
 * and either may be the one that somebody knows of; what follows is said to both by eventfds, which
 * outlive a worker and need not be read.
 *
 * Failure modes: a worker that fails by itself ends the keeper too, unless a VMM has connected:
 * then it is tried again and again, as nobody else can serve that VM. When the keeper is killed,
 * the worker goes on with the VMs that it has, and takes no others.
 *
 * Limits: max_vms; more wait in the queue of the listening socket. 16 VMMs may be about to send
 * their message, for 10 s each. One thread.
 */
#ifndef FERRY_HANDLER_KEEPER_H
#define FERRY_HANDLER_KEEPER_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"

/* A VM, as the keeper has it. */
struct ferry_kept_vm {
	uint64_t id; /* from 1 on; 0: the slot is free */
	int conn;    /* owned, as the others: the VMM's connection; its end is the VMM's end */
	int uffd;
	int known; /* memfd; -1 until the worker gave it */
	char *message;
	uint32_t message_bytes;
	bool told;	/* the worker knows of it */
	bool is_unkept; /* ->known could not be taken: no other worker can serve it */
};

/* What a worker begins with. The descriptors of the VMs are its to close. */
struct ferry_worker_start {
	int link; /* to the keeper; see keeper_link.h */
	const struct ferry_kept_vm *vms;
	uint32_t n_slots;    /* of which some are free */
	uint32_t n_restarts; /* 0 for the first */
	int last_signal;     /* that killed the one before; 0 for none */
	bool is_awaited;     /* there are VMMs, or one is about to connect */
	/* Eventfds, written by both; the keeper's to close. Readable from then on: */
	int drain_fd; /* no more VMs are taken: a first signal */
	int end_fd;   /* a second one; or each VM has what it needs */
};

struct ferry_keeper_config {
	int listen_fd; /* given */
	const char *path; /* of its socket, which is removed at the end; NULL: it was handed over */
	uint32_t max_vms;
	uid_t uid; /* may connect besides root and ourselves */
	/* Runs in a process of its own. Return: its exit status. */
	int (*worker)(void *ctx, const struct ferry_worker_start *start);
	void *ctx;
};

/**
 * ferry_keeper_run() - until the worker has ended well, as it does after SIGTERM or SIGINT
 * Before any thread is started.
 * Return: the worker's exit status; -ECANCELED when it was killed although it should only end.
 * Errors: another negative errno, in @f.
 */
int ferry_keeper_run(const struct ferry_keeper_config *config, struct ferry_failure *f);

#endif
