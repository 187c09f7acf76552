/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The inside of a target: what its threads share. See target.h for who they are.
 *
 *   guest touches a page
 *        | uffd message
 *   fault loop (fault_loop.c) --PageRequest--> urgent connection --> source
 *        |                    <--PageRun------
 *   placement (fill.c)  <---- bulk receivers (bulk.c) <--PageRun-- source's push
 *        |
 *   pager (pager.c): known, zero, asked
 *
 *   session thread (session.c): connections up, watched, down and up again; completion
 */
#ifndef FERRY_UFFD_ENGINE_H
#define FERRY_UFFD_ENGINE_H

#include <pthread.h>
#include <stdatomic.h>

#include "uffd/channel.h"
#include "uffd/memory_file.h"
#include "trace/ring.h"
#include "uffd/pager.h"
#include "uffd/pending.h"
#include "uffd/place.h"
#include "uffd/target.h"

struct ferry_engine_region {
	struct ferry_target_region info;
	struct ferry_memory_file file; /* written by the bulk receivers; ->fd is -1 for none */
	_Atomic uint64_t start; /* moves when the guest's process remaps it */
	uint64_t bytes;
	bool collapses; /* into large pages in the end: see collapse.c */
	bool in_place;	/* filled as in_place.c says; then also: */
	struct ferry_bitmap large; /* blocks that are in one large page of the file */
	struct ferry_bitmap left;  /* blocks that are unregistered already */
};

/* Are its pages zero once they are discarded? See fill.c. */
static inline bool ferry_engine_discards(const struct ferry_engine_region *r)
{
	return r->info.kind == FERRY_MAPPING_ANON ||
	       (r->info.kind == FERRY_MAPPING_HUGETLB && r->info.is_private);
}

struct ferry_engine_bulk {
	struct ferry_target *target;
	uint32_t index;
	pthread_t thread;
	int fd;		 /* borrowed from the link */
	struct ferry_connection connection;
	struct ferry_memory_pipe pipe; /* owned */
	uint8_t *buffer; /* owned: a run, page-aligned, and behind it room for a message */
};

/* The connections of one epoch. */
struct ferry_engine_link {
	uint32_t epoch;
	bool has_control;
	struct ferry_channel control;
	int urgent; /* -1 when not there yet; owned, as the others */
	struct ferry_connection urgent_connection;
	int bulk[FERRY_MAX_BULK];
	struct ferry_connection bulk_connection[FERRY_MAX_BULK];
};

struct ferry_target_meeting {
	struct ferry_target_place place;
	struct ferry_channel control; /* owned */
	struct ferry_message m;	      /* the Layout; its payload is in ->control */
};

struct ferry_engine_counters {
	_Atomic uint64_t pages_urgent, pages_pushed, pages_zero, pages_duplicate, pages_present;
	_Atomic uint64_t wire_bytes, faults, faults_coalesced, requests, discarded_pages;
	_Atomic uint64_t pages_lost, pages_poisoned, large_pages;
	_Atomic uint32_t resumes, checksum_errors;
};

/* A page that a thread waited for and that the push brought, for the fault thread to note. */
struct ferry_engine_overtaken {
	uint32_t region;
	uint64_t page, placed_ns;
};

#define FERRY_ENGINE_OVERTAKEN 256 /* when there are more, their faults end with their answers */

#define FERRY_ENGINE_EVENTS 16
#define FERRY_ENGINE_WANTS  256

struct ferry_engine_event {
	enum ferry_target_event type;
	struct ferry_failure failure;
};

struct ferry_target {
	/* set up by _new, constant from then on */
	struct ferry_uffd uffd;
	struct ferry_layout layout;
	struct ferry_engine_region regions[FERRY_MAX_REGIONS];
	uint32_t n_regions;
	uint32_t n_registered; /* the first so many */
	bool abandoned;
	bool adopts; /* took over from one that was killed */
	bool ends_with_push;
	bool no_large_pages;
	bool source_lost;
	uint64_t max_bytes_per_second;
	struct ferry_tls *tls; /* borrowed; NULL: plain connections */
	const struct ferry_log *log;
	struct ferry_target_hooks hooks;
	uint64_t withheld; /* features that are not offered */
	enum ferry_on_lost on_lost;
	struct ferry_verify *verify; /* owned; NULL when nothing is compared */
	struct ferry_target_meeting *meeting; /* owned; NULL once it was used */
	void *zeroes;	    /* one page of zeros of the largest page size; owned */
	size_t zeroes_bytes;
	bool has_discards;  /* a region's pages may turn to zero under us: see fill.c */
	int stop_fd;	    /* eventfd: everything ends */
	int fault_kick;	    /* eventfd: look at fault_* below */
	int session_kick;   /* eventfd: look at the link, the pager, push_wanted */

	struct ferry_pager pager;
	struct ferry_engine_counters counters;
	struct ferry_histogram fault_ns, local_ns;
	_Atomic uint64_t waiting_since_ns[FERRY_PENDING_SLOTS]; /* see pending.h */
	struct ferry_trace *trace; /* owned; NULL when nothing is traced */
	_Atomic bool link_up, gone, complete;
	_Atomic bool push_began; /* on this link */
	_Atomic bool lost_said; /* in this epoch */
	_Atomic uint32_t n_holes_left; /* ranges that may still be unregistered early */
	_Atomic int n_splits;	       /* of mappings, by blocks that were left */
	_Atomic bool may_not_map;      /* large pages into the process: it takes CAP_SYS_NICE */

	pthread_mutex_t overtaken_lock;
	struct ferry_engine_overtaken overtaken[FERRY_ENGINE_OVERTAKEN];
	_Atomic uint32_t n_overtaken;

	/* Orders discards against placements of regions where that matters. */
	pthread_mutex_t discard_lock;

	pthread_mutex_t lock; /* of everything below */
	pthread_cond_t changed;
	bool fault_running, session_running, opened;
	pthread_t fault_thread, session_thread;

	/* the urgent connection's way to the fault thread and back */
	int fault_offer;		/* fd to use, -1 for none; borrowed from the link */
	struct ferry_connection fault_connection; /* where that stands */
	unsigned int fault_generation;	/* of the offer */
	unsigned int fault_seen;	/* the generation that the fault thread uses */
	bool fault_sweep;		/* ask for everything that is missing */
	struct ferry_run wants[FERRY_ENGINE_WANTS]; /* runs that the owner wants */
	uint32_t n_wants;

	/* session */
	bool dials;
	struct ferry_addr from;
	struct ferry_session_id session;
	struct ferry_target_place place; /* as given */
	bool has_place;
	_Atomic bool leaves;	/* the place is given up at the end */
	bool expects;		/* session and n_bulk are known */
	uint32_t n_bulk;
	uint32_t first_epoch;	/* that is ours to use, when we dial */
	uint32_t next_epoch;	/* connections of lower ones are refused */
	struct ferry_engine_link incoming; /* what was accepted and not yet taken over */
	bool broken;		/* a connection of the current link failed, or was superseded */
	struct ferry_failure broken_why;
	bool push_wanted;
	uint32_t n_push_done;
	int first_rc; /* of the first attempt, for ferry_target_dial() */
	bool first_done;
	struct ferry_failure first_why;
	uint64_t memory_id;
	uint8_t state[FERRY_MAX_STATE_BYTES];
	uint32_t state_bytes;

	/* comparison: the session thread's, but for ->verified */
	bool still;	     /* the process stood still before its first page */
	uint64_t still_mark; /* see base/still.h */
	struct ferry_verified verified; /* as far as it is */

	/* events for the owner */
	struct ferry_engine_event events[FERRY_ENGINE_EVENTS];
	unsigned int events_begin, n_events;
	int events_fd; /* eventfd, readable while there are some */
};

/* --- fill.c: placement, by the fault thread and the bulk receivers ---------------------------- */

/**
 * ferry_engine_fill() - place a run that came from the source
 * @data: its pages, page-aligned for @pipe, or NULL when the source says that they are zero
 * @pipe: of a thread that may write the memory's file; NULL: UFFDIO_COPY alone
 * @done: in and out: pages of the run that are dealt with; a call goes on from there
 * @n_new: grows by the pages that became present by it
 * Wakes whoever waits for the pages, also when they were present already.
 * Errors: -EAGAIN (RETRY once the events of the userfaultfd have been read), -ENOMEM (RETRY later),
 *         -ESRCH (LOST), -ENOENT (the range is not mapped any more, and no event said so).
 */
int ferry_engine_fill(struct ferry_target *t, const struct ferry_run *run, const void *data,
		      struct ferry_memory_pipe *pipe, uint32_t *done, uint32_t *n_new);

/**
 * ferry_engine_move() - give a whole block of pages of ours away, where none of it is known yet
 * @data: what came for it, see ferry_place_move()
 * Errors: -EEXIST when something of it is known; else those of ferry_place_move(). On error some of
 * it may have been moved: @placed.
 */
int ferry_engine_move(struct ferry_target *t, const struct ferry_run *run, void *data,
		      struct ferry_placed *placed);

/* Place zeros on one page, or wake who waits there when it is present. Errors: as above. */
int ferry_engine_fill_zero(struct ferry_target *t, uint32_t region, uint64_t page);

/* The source can't have a run any more: deal with it as the owner wants. Errors: as above. */
int ferry_engine_lose(struct ferry_target *t, const struct ferry_run *run);

/**
 * ferry_engine_lose_missing() - the source is gone for good: lose all that is missing
 * Errors: with the story in @f; then there are pages still that threads wait for.
 */
int ferry_engine_lose_missing(struct ferry_target *t, struct ferry_failure *f);

/*
 * What an Error on an open urgent or bulk connection means. Which session a connection belongs to
 * was settled by its control connection; that the source does not know it says that this one is
 * lost.
 */
static inline enum ferry_consequence ferry_engine_consequence(enum ferry_error_code code)
{
	return code == FERRY_ERROR_SESSION ? FERRY_LINK : FERRY_REFUSE;
}

/* A run is not what was sent. Counts, and fills in @why. Return: a negative error. */
int ferry_engine_bad_checksum(struct ferry_target *t, const struct ferry_run *run,
			      struct ferry_failure *why);

/* A large run that the source says is zero: let the kernel have it, so that it costs no faults. */
void ferry_engine_leave_hole(struct ferry_target *t, const struct ferry_run *run);

/* --- collapse.c ----------------------------------------------------------------------------- */

/* The host's owner wants none; the kernel's way of making them does not ask. */
bool ferry_engine_large_pages_are_off(void);

/* The regions' files are open: see which of them can have large pages. */
void ferry_engine_collapse_init(struct ferry_target *t);

/* Everything is known and nothing is registered any more: make large pages of it. */
void ferry_engine_collapse(struct ferry_target *t);

/* --- in_place.c ----------------------------------------------------------------------------- */

/**
 * ferry_engine_in_place_init() - choose what is filled in place, make it ready, and register it
 * The files are open, and what is kept is the pager's.
 * Errors: REFUSE with the story in @f.
 */
int ferry_engine_in_place_init(struct ferry_target *t, const struct ferry_target_config *c,
			       struct ferry_failure *f);

/* The guest won't run here: what was made ready is given back. */
void ferry_engine_in_place_undo(struct ferry_target *t);
void ferry_engine_in_place_fini(struct ferry_target *t);

/* Show pages that are known, and wake who waits. Errors: of ferry_place_continue(). */
int ferry_engine_show(struct ferry_target *t, const struct ferry_run *run);

/* Write claimed pages, make them known, and show them to who waits. Errors: as ferry_engine_fill(). */
int ferry_engine_write_in_place(struct ferry_target *t, const struct ferry_run *run,
				const void *data, struct ferry_placed *placed);

/* Pages of @run became known: unregister the blocks that are whole now. Any region. */
void ferry_engine_leave_blocks(struct ferry_target *t, const struct ferry_run *run);

/* In the end, nothing is registered: is a block in a large page already? */
bool ferry_engine_is_large(struct ferry_target *t, uint32_t region, uint64_t block);

/* --- fault_loop.c --------------------------------------------------------------------------- */

/* Everything that the thread needs is there when this returns 0. Errors: -ENOMEM, -EAGAIN. */
int ferry_engine_fault_start(struct ferry_target *t);

/* The push brought @run: take down which of its pages threads waited for. Return: how many. */
uint32_t ferry_engine_overtake(struct ferry_target *t, const struct ferry_run *run,
			       uint64_t placed_ns);

/* --- bulk.c --------------------------------------------------------------------------------- */

void *ferry_engine_bulk_thread(void *bulk);

/* --- compare.c; the session thread ------------------------------------------------------------ */

#define FERRY_ENGINE_DIFFERS 1

/* Before the first page: see whether the process stands still. */
void ferry_engine_watch_still(struct ferry_target *t);

/**
 * ferry_engine_verify() - everything is known: is it what the source has?
 * @m: scratch
 * May be called again, on another link, where it ended by an error.
 * Return: 0, or FERRY_ENGINE_DIFFERS with which pages in @f. Errors: of the link.
 */
int ferry_engine_verify(struct ferry_target *t, struct ferry_channel *control, struct ferry_message *m,
			struct ferry_failure *f);

/* --- session.c ------------------------------------------------------------------------------ */

void *ferry_engine_session_thread(void *target);

/* The next message, which must be the Layout. */
int ferry_engine_receive_layout(struct ferry_channel *control, struct ferry_message *m, int stop_fd,
				struct ferry_failure *f);

/* How long a connection may take, and the Layout on it. */
#define FERRY_ENGINE_DIAL_MS   5000
#define FERRY_ENGINE_LAYOUT_MS 10000

/* --- target.c ------------------------------------------------------------------------------- */

void ferry_engine_kick(int eventfd);
void ferry_engine_unkick(int eventfd);

/* A connection of the current link failed. The first reason is kept. Any thread. */
void ferry_engine_link_broken(struct ferry_target *t, const struct ferry_failure *why);

/* Tell the owner. @why may be NULL. Any thread. */
void ferry_engine_notify(struct ferry_target *t, enum ferry_target_event type,
			 const struct ferry_failure *why);

/* The process whose memory it is has ended. Said once. Any thread. */
void ferry_engine_gone(struct ferry_target *t);

/* Look whether everything is known, and wake the session thread if so. Any thread. */
void ferry_engine_progress(struct ferry_target *t);

/* Give the fault thread an urgent connection (or none, -1) and wait until it uses that one only. */
void ferry_engine_offer_urgent(struct ferry_target *t, int fd,
			       const struct ferry_connection *connection);

void ferry_engine_link_init(struct ferry_engine_link *link);
void ferry_engine_link_close(struct ferry_engine_link *link);

#endif
