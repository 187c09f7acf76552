/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What is written down of a post-copy. One fixed size for everything, so that a ring slot is two
 * cache lines and a producer's cost is constant. docs/trace-format.md is the specification; rings
 * and files hold these very bytes.
 *
 * Times are the target's CLOCK_MONOTONIC in nanoseconds, except those named source_*. 0 is "did not
 * happen, or is not known".
 */
#ifndef FERRY_TRACE_RECORD_H
#define FERRY_TRACE_RECORD_H

#include <stdint.h>

#define FERRY_TRACE_VERSION	 1u
#define FERRY_TRACE_ENDIAN	 0x0a0b0c0du /* as the writer's machine has it */
#define FERRY_TRACE_RECORD_BYTES 120u
#define FERRY_TRACE_MAX_REGIONS	 32u
#define FERRY_TRACE_NAME_BYTES	 64u /* with the closing NUL */

enum ferry_trace_type {
	FERRY_TRACE_FAULT = 1,	 /* a page that threads waited for, from the first message to the end */
	FERRY_TRACE_JOIN = 2,	 /* a further message for such a page, while it was waited for */
	FERRY_TRACE_PUSH = 3,	 /* a run that came by the push, or else without being waited for */
	FERRY_TRACE_CLOCK = 4,	 /* a comparison of the two sides' clocks */
	FERRY_TRACE_LINK = 5,	 /* the session's connections are open, or lost */
	FERRY_TRACE_DISCARD = 6, /* pages that the guest discarded */
	FERRY_TRACE_MARK = 7,	 /* a stage of the command that runs */
	/* Overwritten in a ring before they were read, or never kept for want of room. */
	FERRY_TRACE_LOST = 34,
	/* In files only. */
	FERRY_TRACE_REGION = 32, /* in the order of their numbers, before any fault */
	FERRY_TRACE_THREAD = 33, /* the name of a thread */
	FERRY_TRACE_END = 35,	 /* the file is whole */
};

/* Flags of FAULT. */
enum {
	FERRY_FAULT_F_WRITE = 1 << 0,	   /* the first access was a write */
	FERRY_FAULT_F_LOCAL = 1 << 1,	   /* answered from here: the page was known to be zero or present */
	FERRY_FAULT_F_ZERO = 1 << 2,	   /* the page is zero */
	FERRY_FAULT_F_PUSHED = 1 << 3,	   /* the push brought it before the answer; placed_ns is exact */
	FERRY_FAULT_F_FOUND = 1 << 4,	   /* present when its answer came; placed_ns may be too late */
	FERRY_FAULT_F_RESENT = 1 << 5,	   /* asked for again after a connection was lost */
	FERRY_FAULT_F_SWEPT = 1 << 6,	   /* had been asked for before anyone waited */
	FERRY_FAULT_F_DISCARDED = 1 << 7,  /* the guest discarded it meanwhile: zeros were placed */
	FERRY_FAULT_F_UNANSWERED = 1 << 8, /* still waited for when the fault thread ended */
	/* What ->notice_ns is; with neither it is not known. See ferry_trace_fault. */
	FERRY_FAULT_F_BUSY = 1 << 9,
	FERRY_FAULT_F_WOKEN = 1 << 10,
};

/* Flags of PUSH. */
enum {
	FERRY_PUSH_F_ZERO = 1 << 0,
	FERRY_PUSH_F_SWEPT = 1 << 1,   /* no push: the target asked for it at the end, unwaited for */
	FERRY_PUSH_F_PRESENT = 1 << 2, /* no push: so many pages of the region were there already */
};

/* Flags of LINK. */
enum {
	FERRY_LINK_F_OPEN = 1 << 0, /* else lost */
};

struct ferry_trace_fault {
	uint64_t id; /* from 1 on; of JOIN: that of the fault which is waited for */
	uint64_t page;
	uint64_t first_sent_ns; /* just before its request was given to the kernel the first time */
	uint64_t sent_ns;	/* the last time */
	uint64_t source_received_ns, source_answered_ns;
	uint64_t received_ns;	/* the answer's last bytes were read from the socket */
	uint64_t placed_ns;	/* present, and its threads woken: one system call does both */
	uint64_t request_id;
	uint32_t thread;	/* as the kernel numbers it where the memory lives; 0: not known */
	uint32_t batch;		/* messages that the same read returned */
	uint32_t runs;		/* of its request */
	uint32_t outstanding;	/* pages waited for, with this one, when it was read */
	uint32_t joins;		/* further messages for it */
	/*
	 * How long it may have taken before the message was read, which the message itself does not
	 * say; not part of any total. BUSY: the fault loop was at work and had last found the queue
	 * empty so long before (an upper bound). WOKEN: it slept, and after the wake-up waited so
	 * long for a CPU (sampled).
	 */
	uint32_t notice_ns;
	uint32_t sends;
	uint32_t reserved;
};

struct ferry_trace_push {
	uint64_t first_page;
	uint64_t received_ns; /* ->time_ns is when it was placed */
	uint32_t n_pages;
	uint32_t n_new;	      /* of them: became present, or known to be zero, by it */
	uint32_t overtaken;   /* of them: had been asked for, and are waited for or came before */
	uint32_t index;	      /* of the bulk connection */
};

/* target time - source time, as one exchange shows it. */
struct ferry_trace_clock {
	int64_t offset_ns;
	uint64_t uncertainty_ns; /* half the round trip without the time that the source held it */
	uint64_t round_trip_ns;
};

struct ferry_trace_link {
	uint32_t epoch;
};

struct ferry_trace_discard {
	uint64_t first_page, n_pages;
};

struct ferry_trace_text {
	uint32_t thread; /* of THREAD */
	char text[FERRY_TRACE_NAME_BYTES];
};

struct ferry_trace_region {
	uint64_t n_pages;
	uint64_t start; /* host-virtual address, when the trace began */
	uint32_t page_bytes;
	uint32_t reserved;
	char name[FERRY_TRACE_NAME_BYTES];
};

struct ferry_trace_lost {
	uint64_t n;
	uint32_t ring;
	uint32_t reserved;
};

struct ferry_trace_end {
	uint64_t n_records; /* in the file before this one */
};

struct ferry_trace_record {
	uint16_t type;	  /* enum ferry_trace_type */
	uint16_t flags;	  /* of the type */
	uint32_t region;  /* where it has one */
	uint64_t time_ns; /* of FAULT and JOIN: the message was read */
	union {
		struct ferry_trace_fault fault;
		struct ferry_trace_push push;
		struct ferry_trace_clock clock;
		struct ferry_trace_link link;
		struct ferry_trace_discard discard;
		struct ferry_trace_text text; /* MARK, THREAD */
		struct ferry_trace_region desc;
		struct ferry_trace_lost lost;
		struct ferry_trace_end end;
		uint64_t words[13];
	};
};

_Static_assert(sizeof(struct ferry_trace_record) == FERRY_TRACE_RECORD_BYTES,
	       "rings and files hold records as they are");

#endif
