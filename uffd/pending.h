/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The pages that threads wait for, each with the record of its fault, and what becomes of both.
 * Pure: times come as arguments. Used by the fault thread alone.
 *
 *   _read ----------------> _sent --> _answered
 *     |  _join (more threads)  |  _settle (it came by the push, or was discarded)
 *     |                        |  _prune (it came while there was no connection)
 *     +-- _local (needs no one)+  _end (nothing came)
 *
 * Each of those on the right ends the fault: its record goes to the ring, its time to the histogram.
 */
#ifndef FERRY_UFFD_PENDING_H
#define FERRY_UFFD_PENDING_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "protocol/message.h"
#include "trace/histogram.h"
#include "trace/ring.h"
#include "uffd/pager.h"

/* Distinct pages whose faults are recorded at once. Those beyond go unrecorded. */
#define FERRY_MAX_PENDING   2048u /* a power of two */
#define FERRY_PENDING_SLOTS (2 * FERRY_MAX_PENDING)

struct ferry_pending_slot {
	uint64_t key; /* 0: free */
	struct ferry_trace_record rec;
};

struct ferry_pending {
	struct ferry_trace_ring *ring;	  /* borrowed; NULL when nothing is traced */
	struct ferry_histogram *fault_ns; /* borrowed */
	struct ferry_histogram *local_ns; /* borrowed */
	/*
	 * Borrowed, or NULL: of each slot, since when its page is waited for; 0 when it is free. For
	 * other threads to look at: no fault waits for whoever counts those that wait.
	 */
	_Atomic uint64_t *since_ns;
	uint64_t next_id;
	uint64_t link_request_id; /* requests with lower ids went over connections that are lost */
	uint32_t n;
	uint64_t n_unrecorded; /* faults there was no room for, not told yet */
	struct ferry_pending_slot slots[FERRY_PENDING_SLOTS];
};

/* One message of the userfaultfd, as the record begins. */
struct ferry_pending_message {
	uint32_t region;
	uint64_t page;
	uint64_t read_ns;
	uint32_t thread, batch, notice_ns;
	uint16_t flags; /* FERRY_FAULT_F_WRITE, _BUSY */
};

/* A page is waited for from now on. Pages that are in already only begin anew. */
void ferry_pending_read(struct ferry_pending *p, const struct ferry_pending_message *m);

/* A further message for a page that was asked for. Pages that are not in are taken in. */
void ferry_pending_join(struct ferry_pending *p, const struct ferry_pending_message *m);

/* A request is about to be given to the kernel. */
void ferry_pending_sent(struct ferry_pending *p, const struct ferry_page_request *r,
			uint64_t now_ns);

/*
 * An answer was placed. @flags: FERRY_FAULT_F_FOUND when not all of it became present by that.
 * Return: how many of its pages were waited for.
 */
uint32_t ferry_pending_answered(struct ferry_pending *p, const struct ferry_page_run *run,
				uint64_t received_ns, uint64_t placed_ns, uint16_t flags);

/* A page came without its answer; @flags says how. Pages that are not in are none of our business. */
void ferry_pending_settle(struct ferry_pending *p, uint32_t region, uint64_t page,
			  uint64_t placed_ns, uint16_t flags);

/* A fault that was answered from here and never was in. */
void ferry_pending_local(struct ferry_pending *p, const struct ferry_pending_message *m,
			 uint64_t placed_ns, uint16_t flags);

/* All connections are new: forget the pages that came meanwhile. The rest is asked for again. */
void ferry_pending_prune(struct ferry_pending *p, const struct ferry_pager *pager,
			 uint64_t next_request_id, uint64_t now_ns);

/* It is over: what is in stays unanswered. */
void ferry_pending_end(struct ferry_pending *p);

/* How long its message's thread waited for a CPU after its wake-up, known late. */
void ferry_pending_woken(struct ferry_pending *p, uint32_t region, uint64_t page,
			 uint64_t notice_ns);

#endif
