/* SPDX-License-Identifier: Apache-2.0 */
/* What this host allows, by trying it, and how to mend what it doesn't. */
#ifndef FERRY_UFFD_PROBE_H
#define FERRY_UFFD_PROBE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum ferry_probe_verdict {
	FERRY_PROBE_OK,
	FERRY_PROBE_LIMITED, /* works with a limit that the detail names */
	FERRY_PROBE_MISSING, /* doesn't work; the mend says what to do */
};

struct ferry_probe_item {
	const char *id;	  /* stable word for scripts: "userfaultfd", "kernel-faults", ... */
	const char *what; /* one line for people: what it is and which command needs it */
	enum ferry_probe_verdict verdict;
	bool required; /* receive and attach can't work without it */
	char detail[160];
	char mend[200]; /* empty when OK */
};

#define FERRY_PROBE_MAX 24

/**
 * ferry_probe_run() - try everything
 * Items: userfaultfd by system call, by /dev/userfaultfd, kernel-mode faults, MISSING on anonymous
 * and on shared memory, hugetlb (pool and registering), events REMOVE/UNMAP/REMAP, THREAD_ID,
 * EXACT_ADDRESS, COPY into another process, MINOR+CONTINUE, WP_ASYNC+PAGEMAP_SCAN, POISON, MOVE,
 * attaching (to a child of ours), yama's scope, suspending seccomp filters, pidfd_getfd,
 * process_vm_readv, io_uring, /dev/kvm, and how much memory can be locked.
 * Each is tested by use, not by mask, in a child of ours with a time limit. Takes some 200 ms.
 * Context: any thread of a process that doesn't mind to be forked.
 * @out: room for FERRY_PROBE_MAX items
 * Return: how many items were written.
 */
size_t ferry_probe_run(struct ferry_probe_item *out);

#endif
