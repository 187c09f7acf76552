/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The worker of a userfaultfd handler: serves the VMs that its keeper gives it, from one image.
 *
 *   keeper.c   the process that holds what must not be lost, and starts the worker again
 *   handler.c  the worker: its table of VMs, what its owner is told
 *   vm.c       one VM
 *   image.c    the snapshot, and the page servers in this process that give its pages
 *
 * So a page goes: image -> page server of its layout -> (private socket) -> the VM's target, by the
 * same engines and the same protocol as between two hosts.
 *
 * Fairness: each VM has its own fault thread and its own connections. The page server takes its
 * sessions in turn, no more than one submission's worth of answers each (urgent.c); of what has to
 * come over the network each VM has no more than a window outstanding (WANTED_BYTES), so that one
 * that faults wildly is a few pages in front of another's fault, and they share the link evenly.
 * Pushes take turns by pieces (pageserver/turns.h), and only so many at a time as leave processors
 * to the fault threads.
 *
 * One thread of the owner's calls _wait; the others may be called by any.
 */
#ifndef FERRY_HANDLER_HANDLER_H
#define FERRY_HANDLER_HANDLER_H

#include "handler/image.h"
#include "handler/keeper.h"
#include "handler/vm.h"

struct ferry_handler;

struct ferry_handler_config {
	struct ferry_image *image; /* borrowed until _free */
	bool records;		   /* VMs' working sets, into what the image has for that */
	uint32_t max_vms;
	const struct ferry_worker_start *start; /* borrowed; the VMs' descriptors are given */
	const struct ferry_log *log;		/* borrowed; may be NULL */
};

enum ferry_handler_event_type {
	FERRY_HANDLER_NOTHING, /* the timeout passed */
	FERRY_HANDLER_VM,      /* a VM's state has changed, or ->why tells of trouble with it */
	FERRY_HANDLER_SAYS,    /* ->why: who was turned away; with -EAGAIN: a VM waits, the table is
				  full */
	FERRY_HANDLER_ALONE,   /* the keeper has ended: no VM comes any more */
};

struct ferry_handler_event {
	enum ferry_handler_event_type type;
	struct ferry_vm_info vm;
	struct ferry_failure why; /* ->err 0 when there is nothing to tell */
};

struct ferry_handler_stats {
	uint32_t n_vms; /* now; of them: */
	uint32_t n_filling; /* or about to be */
	uint32_t n_vms_ever, n_complete, n_gone, n_refused;
	uint64_t ram_bytes; /* of all VMs ever */
	/* Of all VMs ever, added up; residency: of those that are here, on average. */
	struct ferry_target_stats target;
};

/* Begins to serve the VMs that @config->start has. Its descriptors are given, on error too. Errors:
 * REFUSE, in @f; those VMs are for the next worker then. */
int ferry_handler_new(struct ferry_handler **out, const struct ferry_handler_config *config,
		      struct ferry_failure *f);

/* Return: 0 with an event; -ECANCELED on @stop_fd; another negative errno. */
int ferry_handler_wait(struct ferry_handler *h, int timeout_ms, int stop_fd,
		       struct ferry_handler_event *e);

void ferry_handler_stats(struct ferry_handler *h, struct ferry_handler_stats *out);

/* What there is to say of the VMs that are here. Return: how many, at most @max. */
uint32_t ferry_handler_vms(struct ferry_handler *h, struct ferry_vm_info *out, uint32_t max);

/* Ends all VMs' threads; those that are not complete wait. */
void ferry_handler_free(struct ferry_handler *h);

#endif
