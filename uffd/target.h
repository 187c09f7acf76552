/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The target's engine: catches faults on its regions and fills them from a source.
 *
 * Threads:
 *   fault    owns the userfaultfd and the urgent connection: reads faults, asks, places, wakes.
 *            There is no hand-over between threads on the way of an urgent page.
 *   bulk     one a bulk connection: receives pushed runs and places them.
 *   session  handshakes, control connection, liveness; dials or accepts, and resumes after a loss.
 */
#ifndef FERRY_UFFD_TARGET_H
#define FERRY_UFFD_TARGET_H

#include <stdbool.h>
#include <stdint.h>

#include "base/addr.h"
#include "base/error.h"
#include "base/log.h"
#include "protocol/message.h"
#include "trace/histogram.h"
#include "trace/ring.h"
#include "uffd/kernel.h"
#include "uffd/maps.h"
#include "uffd/uffd.h"
#include "uffd/verify.h"

struct ferry_target;
struct ferry_tls;

/* What to ask of a userfaultfd that a target is going to own; what the kernel lacks is left out. */
#define FERRY_TARGET_UFFD_FEATURES                                                                 \
	(UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_EVENT_UNMAP | UFFD_FEATURE_EVENT_REMAP |         \
	 UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_MISSING_HUGETLBFS | UFFD_FEATURE_MINOR_SHMEM |  \
	 UFFD_FEATURE_THREAD_ID | UFFD_FEATURE_MOVE)

/* Memory that is to be filled. */
struct ferry_target_region {
	struct ferry_region_desc desc; /* an empty ->name matches the source's region by order */
	struct ferry_hva start;	       /* in the process that owns the memory; page-aligned */
	enum ferry_mapping_kind kind;  /* anon, shared or hugetlb */
	bool is_private; /* hugetlb: what is discarded is zero then, as in anonymous memory */
};

/*
 * What the owner may want to know of each page, while it happens. The calls come from the engine's
 * threads, in the way of a page: they must be short and wait for nothing. Each may be NULL.
 */
struct ferry_target_hooks {
	void *ctx;
	/* Fault thread: a thread touched a page that is not known, and nobody had asked for it. */
	void (*faulted)(void *ctx, uint32_t region, uint64_t page);
	/* Fault thread and bulk receivers: a run is known now. */
	void (*known)(void *ctx, const struct ferry_run *run);
	/* The same: a page is said to be zero; is it to be there before it is touched? */
	bool (*wants_zero)(void *ctx, uint32_t region, uint64_t page);
};

/* What to do about a page that the source says it can't have any more. */
enum ferry_on_lost {
	FERRY_ON_LOST_WAIT,   /* its threads wait; it is asked for again in the next epoch */
	FERRY_ON_LOST_POISON, /* its threads get a memory error (SIGBUS), now and whenever they touch
				 it */
};
/*
 * The place of a target at its page server, which keeps it over a lost link, and gives it to nobody
 * who doesn't know the id. Who takes a target over takes its place too, above all epochs before.
 */
struct ferry_target_place {
	struct ferry_session_id session;
	uint32_t epoch; /* the first of those that may be used */
};

/* More than one process gets through in days of dialing in vain, once a second. */
#define FERRY_TARGET_EPOCHS_EACH_BITS 20

/* Errors: negative errno. */
int ferry_target_place_new(struct ferry_target_place *out);
/* Of the @n-th that takes it over, 0 for the first. */
struct ferry_target_place ferry_target_place_of(const struct ferry_session_id *session, uint32_t n);

/* A session whose control connection is open, for a target that is made to fit the source. */
struct ferry_target_meeting;

/**
 * ferry_target_meet() - dial a page server and learn its layout, before there is a target
 * @place: to take there
 * @tls: NULL for plain connections; borrowed until the target's end
 * @stop_fd: gives up; -1 for none
 * Errors: LINK or REFUSE, in @f.
 */
int ferry_target_meet(struct ferry_target_meeting **out, const struct ferry_addr *from,
		      const struct ferry_target_place *place, struct ferry_tls *tls, int stop_fd,
		      struct ferry_failure *f);
const struct ferry_layout *ferry_target_meeting_layout(const struct ferry_target_meeting *m);
/* NULL is fine. */
void ferry_target_meeting_end(struct ferry_target_meeting *m);

struct ferry_target_config {
	struct ferry_uffd uffd; /* given: the target owns its descriptors from _new on, on error too */
	const struct ferry_target_region *regions; /* copied; their ids are 0, 1, 2, ... */
	uint32_t n_regions;
	uint32_t n_bulk; /* bulk connections, 0 for a default of 1; the dialer decides */
	uint64_t max_bytes_per_second; /* asked of the source for its push; 0: no limit */
	bool adopt; /* the regions are registered already and partly filled: take over, resume */
	/* Only after ferry_target_push() is it complete, however much was touched before: a switchover
	 * has to be confirmed first. */
	bool ends_with_push;
	bool source_lost; /* there is no source to come any more: what is missing is lost at once */
	/*
	 * ferry_pager_kept_bytes() of shared memory that outlives us, for a target whose process
	 * has another keeper of its userfaultfd: see ferry_pager_keep(). The regions'
	 * /proc/PID/pagemap is then not needed. Borrowed until _free; NULL for none.
	 */
	void *kept;
	/* Where the source has content in nearly every page: such blocks are made ready for it (see
	 * in_place.c). Copied as far as needed. */
	const struct ferry_block_run *dense;
	uint32_t n_dense;
	struct ferry_target_hooks hooks;
	const struct ferry_target_place *place; /* where it dials; copied; NULL for a new one */
	/* Given, on error too; the first ferry_target_dial() goes on with it. NULL for none. */
	struct ferry_target_meeting *meeting;
	bool no_trace; /* keep no records of faults */
	struct ferry_tls *tls; /* of all connections; borrowed until _free; NULL: plain */
	bool no_checksum; /* don't ask for checksums of pages */
	bool no_large_pages; /* leave memory in the small pages that it comes in: see in_place.c,
				collapse.c, gather.h */
	/* Compare everything with the source's memory before it is released: see verify.h. A source
	 * that can't do that is refused. */
	bool verify;
	enum ferry_on_lost on_lost;
	uint64_t memory_id; /* of the memory that an earlier target had a part of; 0: unknown */
	const struct ferry_log *log;	/* borrowed; may be NULL */
};

/* Shares of the memory whose residency is told. */
#define FERRY_RESIDENCY_CELLS 64u

/* A thread that waits for so long is worth a look. */
#define FERRY_STALLED_NS (UINT64_C(100) * 1000 * 1000)

struct ferry_target_stats {
	uint64_t pages_total, pages_known; /* complete when equal */
	uint64_t pages_urgent;	/* placed from answers */
	uint64_t pages_pushed;	/* placed from the push */
	uint64_t pages_zero;	/* said to be zero */
	uint64_t pages_duplicate; /* came when they were present already */
	uint64_t pages_present;	/* were present before we began */
	uint64_t wire_bytes;	/* received, frames and payload */
	uint64_t faults;	/* messages read; several threads may fault on one page */
	uint64_t faults_coalesced;
	uint64_t requests;
	uint64_t discarded_pages;
	uint64_t pages_lost;	  /* the source said so, once or more often */
	uint64_t pages_poisoned;  /* of them */
	uint64_t large_pages;	  /* of 2 MiB that shared memory was put into */
	uint32_t checksum_errors; /* runs that were not what was sent, and not placed */
	struct ferry_verified verified;
	uint32_t resumes;
	bool link_up;
	uint32_t faults_in_flight; /* pages that threads wait for now; of them: */
	uint32_t faults_stalled;   /* for longer than FERRY_STALLED_NS */
	uint64_t oldest_wait_ns;   /* the one that waits longest */
	/* Per mille of each share: see ferry_target_residency(). */
	uint16_t residency[FERRY_RESIDENCY_CELLS];
	struct ferry_histogram fault_ns; /* message read to woken, of faults that went to the source */
	struct ferry_histogram local_ns; /* of faults that were answered from here */
};

/**
 * ferry_target_new() - register the regions; from now on their faults wait for us
 * Errors: REFUSE with which region and why in @f; everything is unregistered again.
 */
int ferry_target_new(struct ferry_target **out, const struct ferry_target_config *config,
		     struct ferry_failure *f);

/* Start the fault thread. Faults are collected from here on; they are asked for once a session is
 * there. */
int ferry_target_start(struct ferry_target *t, struct ferry_failure *f);

/**
 * ferry_target_dial() - open a session to a page server, and keep it open
 * Returns once all connections are open and the layouts fit.
 * @stop_fd: gives up the first attempt; -1 for none
 * Errors: LINK (cannot connect) or REFUSE (the server said no, layouts differ), in @f. May then be
 * called again.
 */
int ferry_target_dial(struct ferry_target *t, const struct ferry_addr *from, int stop_fd,
		      struct ferry_failure *f);

/**
 * ferry_target_expect() - take the session that a source is going to dial
 * @session, @n_bulk: as the source announced them
 * Its connections then come in by ferry_target_adopt_conn().
 */
int ferry_target_expect(struct ferry_target *t, const struct ferry_session_id *session,
			uint32_t n_bulk, struct ferry_failure *f);

/**
 * ferry_target_adopt_conn() - a connection that was accepted elsewhere
 * @fd: given, on error too; its Hello was read and nothing more
 * @hello: of a CONTROL, URGENT or BULK role
 * The target answers it: Welcome, or Error and close. Any thread.
 * Errors: -EPERM, -EBUSY, ... with why in @f: the peer was told the same.
 */
int ferry_target_adopt_conn(struct ferry_target *t, int fd, const struct ferry_hello *hello,
			    struct ferry_failure *f);

/* Opaque state that came with the layout. Borrowed until _free; once a session was opened. */
const void *ferry_target_state(const struct ferry_target *t, uint32_t *bytes);

/**
 * ferry_target_want() - ask for a run as if threads waited for its pages
 * Any thread. Errors: -EAGAIN (RETRY a little later: as many as there is room for wait already).
 */
int ferry_target_want(struct ferry_target *t, const struct ferry_run *run);

/* Are all pages of a run present, or known to be zero? Any thread. */
bool ferry_target_has(const struct ferry_target *t, const struct ferry_run *run);

/* Nobody will take it over: its place at the page server is given up when it ends. */
void ferry_target_leave(struct ferry_target *t);

/* Ask the source to push. May be called once a session is open; repeated after each resume. */
int ferry_target_push(struct ferry_target *t);

enum ferry_target_event {
	FERRY_TARGET_NOTHING,	/* the timeout passed */
	FERRY_TARGET_OPEN,	/* all connections of the session are open (also after a resume) */
	FERRY_TARGET_LINK_LOST, /* threads that touch missing pages wait until the session is resumed */
	FERRY_TARGET_COMPLETE,	/* everything is resident and unregistered, the source was released */
	FERRY_TARGET_GONE,	/* the process whose memory it is has ended */
	FERRY_TARGET_FAILED,	/* the source refuses to go on; pages are missing, threads wait. It is
				 * tried again all the same: OPEN may follow */
	FERRY_TARGET_DIFFERS,	/* everything is resident and unregistered, but not what the source has, or
				 * that could not be found out; the source was not released. The end */
	FERRY_TARGET_PAGES_LOST, /* the source can't have some pages any more; once an epoch */
};

/**
 * ferry_target_wait() - the next thing that the owner may want to know
 * @timeout_ms: -1 for ever; @stop_fd: -1 or an fd that ends the wait (-ECANCELED)
 * Return: an enum ferry_target_event, or a negative errno. @f: the story for LINK_LOST, GONE, FAILED,
 * DIFFERS, PAGES_LOST
 */
int ferry_target_wait(struct ferry_target *t, int timeout_ms, int stop_fd,
		      struct ferry_failure *f);

/* Whether a region's file has pages from the beginning, of our making: see in_place.c. */
bool ferry_target_is_in_place(const struct ferry_target *t, uint32_t region);

/* Readable (POLLIN) while ferry_target_wait() has something to tell. Borrowed until _free. */
int ferry_target_events_fd(const struct ferry_target *t);

/* What the source calls its memory; 0 when it doesn't say, or before a session was opened. */
uint64_t ferry_target_memory_id(struct ferry_target *t);

/* Was FERRY_TARGET_COMPLETE said? Any thread. */
bool ferry_target_is_complete(const struct ferry_target *t);

/*
 * The records of every fault, and where to add marks (by one thread). Borrowed until _free; NULL when
 * there are none.
 */
struct ferry_trace *ferry_target_trace(struct ferry_target *t);

/* Any thread. */
void ferry_target_stats(const struct ferry_target *t, struct ferry_target_stats *out);

/**
 * ferry_target_residency() - how much of each part of the memory is there, or known to be zero
 * @permille: @n_cells figures from 0 to 1000, of equal shares of all regions, in their order
 * Of bounded cost: large shares are sampled. Any thread.
 */
void ferry_target_residency(const struct ferry_target *t, uint16_t *permille, uint32_t n_cells);

/**
 * ferry_target_abandon() - before the guest runs: give the memory back as it was
 * Unregisters everything: missing pages are then the kernel's zero pages again. Only for a guest
 * that has not run on this memory.
 */
void ferry_target_abandon(struct ferry_target *t);

/* Ends threads and connections and closes our descriptors. What is not resident stays registered:
 * its threads go on waiting, for a recovery. */
void ferry_target_free(struct ferry_target *t);

#endif
