/* SPDX-License-Identifier: Apache-2.0 */
/* The single trials of ferry_probe_run(). */
#ifndef FERRY_UFFD_PROBE_INTERNAL_H
#define FERRY_UFFD_PROBE_INTERNAL_H

#include "uffd/probe.h"

/* What a trial found. */
struct ferry_trial {
	enum ferry_probe_verdict verdict;
	char detail[sizeof(((struct ferry_probe_item *)0)->detail)];
};

/* Try one thing. Runs in a child of its own, which a time limit ends; it may leave things behind.
 */
typedef void (*ferry_trial_fn)(struct ferry_trial *t);

/* Note what was found. */
void ferry_trial_note(struct ferry_trial *t, enum ferry_probe_verdict verdict, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));
/* Note that @what failed with @err, a negative errno. */
void ferry_trial_missing(struct ferry_trial *t, const char *what, int err);

/* probe_uffd.c */
void ferry_trial_userfaultfd(struct ferry_trial *t);
void ferry_trial_syscall(struct ferry_trial *t);
void ferry_trial_device(struct ferry_trial *t);
void ferry_trial_kernel_faults(struct ferry_trial *t);
void ferry_trial_missing_anon(struct ferry_trial *t);
void ferry_trial_missing_shmem(struct ferry_trial *t);
void ferry_trial_hugetlb(struct ferry_trial *t);
void ferry_trial_events(struct ferry_trial *t);
void ferry_trial_thread_id(struct ferry_trial *t);
void ferry_trial_exact_address(struct ferry_trial *t);
void ferry_trial_minor(struct ferry_trial *t);
void ferry_trial_dirty_tracking(struct ferry_trial *t);
void ferry_trial_poison(struct ferry_trial *t);
void ferry_trial_move(struct ferry_trial *t);

/* probe_host.c */
void ferry_trial_attach(struct ferry_trial *t);
void ferry_trial_foreign_copy(struct ferry_trial *t);
void ferry_trial_yama(struct ferry_trial *t);
void ferry_trial_seccomp(struct ferry_trial *t);
void ferry_trial_pidfd_getfd(struct ferry_trial *t);
void ferry_trial_process_vm_readv(struct ferry_trial *t);
void ferry_trial_io_uring(struct ferry_trial *t);
void ferry_trial_kvm(struct ferry_trial *t);
void ferry_trial_memlock(struct ferry_trial *t);

#endif
