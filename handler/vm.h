/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One VM: a target over the userfaultfd that its VMM sent, filled from the image, in a thread of
 * its own (besides those of the target), so that none waits for another.
 *
 *   parse the message, check the peer -> have the known pages kept -> register, read faults and
 *   discards -> the image is there -> dial its page server -> push -> complete (unregister, leave),
 *   or the VMM ends, or we are stopped
 *
 * Until the image is there, which may take long when it comes from a page server elsewhere, the VM
 * has what it needs no image for: it may discard memory, and what was discarded before is zero.
 *
 * What fails before pages are served leaves the VM waiting, never with zeros: nothing is
 * unregistered then.
 */
#ifndef FERRY_HANDLER_VM_H
#define FERRY_HANDLER_VM_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "handler/image.h"
#include "handler/record.h"
#include "uffd/target.h"

enum ferry_vm_state {
	FERRY_VM_OPENING, /* its message is looked at */
	FERRY_VM_FILLING,
	FERRY_VM_COMPLETE, /* everything is there, it was left */
	FERRY_VM_GONE,	   /* its VMM has ended */
	FERRY_VM_REFUSED,  /* it can't be served, and waits */
	FERRY_VM_STOPPED,  /* we end; it waits where it touches missing pages */
};

const char *ferry_vm_state_name(enum ferry_vm_state s);

struct ferry_vm;

struct ferry_vm_config {
	uint64_t id;
	pid_t pid;	       /* of the VMM; 0 when it is not known */
	int conn, uffd, known; /* given; known -1 for a VM that was never served */
	const char *message;   /* copied */
	uint32_t message_bytes;
	struct ferry_image *image;   /* borrowed until _free, as the others */
	bool records;		     /* its working set, into what the image has for that */
	int stop_fd;		     /* readable: end, whatever is missing */
	const struct ferry_log *log; /* may be NULL */

	/*
	 * From the VM's thread. @_keep: keep a copy of @known from now on; nothing is served before
	 * it returns 0. @_news: the state has changed, or (with the same state) the story is news.
	 */
	int (*keep)(void *ctx, uint64_t id, int known);
	void (*news)(void *ctx, struct ferry_vm *vm, const struct ferry_failure *why);
	void *ctx;
};

struct ferry_vm_info {
	uint64_t id;
	pid_t pid; /* of the VMM; 0 when it is not known */
	enum ferry_vm_state state;
	uint64_t ram_bytes;
	uint64_t served_ns; /* from the first page that could be served to the end, or to now */
};

/* Errors: REFUSE, in @f; what was given is closed. */
int ferry_vm_start(struct ferry_vm **out, const struct ferry_vm_config *config,
		   struct ferry_failure *f);

/* Waits for the thread: only once it has ended, or with the stop_fd readable. */
void ferry_vm_free(struct ferry_vm *vm);

/* Any thread, as the others. */
bool ferry_vm_has_ended(const struct ferry_vm *vm);
void ferry_vm_info(const struct ferry_vm *vm, struct ferry_vm_info *out);
void ferry_vm_stats(struct ferry_vm *vm, struct ferry_target_stats *out);

#endif
