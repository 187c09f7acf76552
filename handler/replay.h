/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Replaying a working set: its pages are pushed before all others when a VM is restored, and it is
 * measured whether that helps.
 *
 * A page that is there when the guest touches it leaves no trace, so that nobody sees which of the
 * pushed pages were wanted. Therefore one page in 64 of the set is a sample: it is pushed last, and
 * if it is touched before, that is a hit. Hits among samples are about what there is of hits among
 * all. When they are few, over some VMs, the working set is no longer pushed first, except for
 * every eighth VM, to see whether that has changed.
 *
 * Any thread may call.
 */
#ifndef FERRY_HANDLER_REPLAY_H
#define FERRY_HANDLER_REPLAY_H

#include <stdbool.h>

#include "handler/vmm_message.h"
#include "handler/working_set.h"
#include "protocol/message.h"

struct ferry_replay;

/**
 * ferry_replay_open() - from a file's text
 * @bytes: of the snapshot
 * Errors: -EBADMSG, ... (REFUSE) in @f.
 */
int ferry_replay_open(struct ferry_replay **out, uint64_t bytes, const char *text, size_t len,
		      struct ferry_failure *f);
void ferry_replay_close(struct ferry_replay *r);

/* The set as runs of a VM's regions, in order; the samples. Owned by the caller: free(). */
struct ferry_replay_lists {
	struct ferry_run *first, *last;
	uint32_t n_first, n_last;
};

/* Errors: -ENOMEM. */
int ferry_replay_lists(const struct ferry_replay *r, const struct ferry_vmm_message *m,
		       struct ferry_replay_lists *out);

/* Of one VM. Zero-initialise. */
struct ferry_replay_vm {
	_Atomic uint64_t hits;	 /* samples that were touched before they were pushed */
	_Atomic uint64_t late;	 /* other pages of the set that were touched before they came */
	_Atomic uint64_t missed; /* touched, missing, and not in the set */
};

/* A VM touched a page that is missing. @offset: in the snapshot. */
void ferry_replay_fault(const struct ferry_replay *r, struct ferry_replay_vm *vm, uint64_t offset);

/**
 * ferry_replay_done() - a VM has ended, or has everything
 * @is_whole: it was seen from its start until it had everything. Another one counts for as many of
 * the samples as it would have touched if all of its pages had been in the set: for none if it
 * ended at once. Return: whether the set is to be pushed first for the next one.
 */
bool ferry_replay_done(struct ferry_replay *r, struct ferry_replay_vm *vm, bool is_whole);

/* Is a page in the set, and no sample? @offset: in the snapshot. */
bool ferry_replay_has(const struct ferry_replay *r, uint64_t offset);

struct ferry_replay_stats {
	uint64_t pages, samples; /* in the set; of them */
	uint64_t n_vms;		 /* that are counted here: */
	uint64_t samples_seen, hits, late, missed;
	bool is_first; /* it is pushed first */
};

void ferry_replay_stats(struct ferry_replay *r, struct ferry_replay_stats *out);

#endif
