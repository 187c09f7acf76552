/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How long a fault's message may have waited before the fault thread read it. The message does not
 * say, so this is what can be known from outside, for the field notice_ns of struct
 * ferry_trace_fault:
 *
 *   - The thread was at work: the message can't be older than the last moment at which the queue
 *     was known to be empty.
 *   - The thread slept in poll: the kernel woke it at once, and what took time is the wait for a
 *     CPU. The kernel's account of that is read before and after, for every 16th poll only, and
 *     after the request has been sent, so that no fault waits for it.
 *
 * What remains unknown is the kernel's own work between the touch and the wake-up, and the time that
 * an idle CPU takes to wake: only a tracepoint (exceptions:page_fault_user) could tell. Where the
 * faulting side can look at the clock, bench/trace_cost.py --record shows it: 20 to 30 us here.
 */
#ifndef FERRY_UFFD_NOTICE_H
#define FERRY_UFFD_NOTICE_H

#include "uffd/pending.h"

struct ferry_notice {
	uint64_t empty_ns; /* when the userfaultfd was last known to have no message */
	uint64_t poll_ns;  /* when the last poll began */
	int schedstat;	   /* owned: this thread's; -1 where the kernel has none */
	uint32_t n_polls;
	bool sampling;
	uint64_t delay_ns; /* waited for a CPU, ever, when the sampled poll began */
	bool has_fault;	   /* that the sample is for: */
	uint32_t region;
	uint64_t page;
};

/* For the calling thread. @samples: look at the waits for a CPU. */
void ferry_notice_init(struct ferry_notice *n, bool samples);
void ferry_notice_fini(struct ferry_notice *n);

/* A poll begins. */
void ferry_notice_poll(struct ferry_notice *n);

/* Nothing was to be read at @now_ns. */
static inline void ferry_notice_empty(struct ferry_notice *n, uint64_t now_ns)
{
	n->empty_ns = now_ns;
}

/* A batch was read at m->read_ns: fill in what is known for all of it. */
void ferry_notice_read(const struct ferry_notice *n, struct ferry_pending_message *m);

/* It had this fault, which the source is asked for. */
void ferry_notice_fault(struct ferry_notice *n, const struct ferry_pending_message *m);

/* The requests are on their way: there is time to look. */
void ferry_notice_end(struct ferry_notice *n, struct ferry_pending *p);

#endif
