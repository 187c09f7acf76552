/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The parts of the fault loop: its messages (fault_messages.c), its connection (fault_urgent.c), and
 * what is done with both (fault_loop.c). All of it is the fault thread's alone.
 */
#ifndef FERRY_UFFD_FAULT_LOOP_H
#define FERRY_UFFD_FAULT_LOOP_H

#include "protocol/alive.h"
#include "uffd/engine.h"
#include "uffd/notice.h"

#define LOCAL_MAX 1024u /* faults to be answered from here */

struct local_fault {
	struct ferry_pending_message message;
	bool is_zero;
};

struct range {
	uint64_t page, end;
};

/* An answer that could not be placed yet. Its bytes stay in the buffer. */
struct stalled {
	bool active;
	struct ferry_page_run run;
	const uint8_t *data; /* NULL for zeros */
	uint32_t done, n_new;
	uint64_t received_ns;
};

struct fault_loop {
	struct ferry_target *t;
	int fd; /* urgent connection, -1 when there is none; borrowed */
	struct ferry_connection connection;
	struct ferry_framebuf in;
	struct ferry_arena arena;
	struct ferry_message *m;   /* decoded */
	struct ferry_message *ask; /* being put together */
	uint8_t out[FERRY_MAX_ENCODED_BYTES];
	size_t out_begin, out_end;
	uint64_t next_request_id;
	uint64_t n_unanswered;	  /* pages that were asked for on this connection */
	struct ferry_alive alive; /* while there are some */
	bool walking; /* asking again for what is outstanding, from walk on */
	struct ferry_run walk;
	struct ferry_run sweep; /* n_pages 0: not sweeping */
	struct stalled stalled;
	bool retry;	      /* something could not be placed: try again soon */
	uint64_t received_ns; /* the last bytes came */
	struct ferry_notice notice;

	struct ferry_pending pending;
	struct local_fault local[LOCAL_MAX];
	uint32_t n_local;
	bool dropped; /* there was no room for some */
	/* Of each region, where to look for threads that wait; empty: nowhere. */
	struct range discards[FERRY_MAX_REGIONS];
};

/* --- messages of the userfaultfd --------------------------------------------------------------- */

/* Reads what there is, up to a limit: events are applied, faults are asked for or left in ->local. */
void ferry_fault_drain(struct fault_loop *l);

/* --- the urgent connection --------------------------------------------------------------------- */

/* Asks for a page that has just become outstanding, once there is a connection. */
void ferry_fault_ask_page(struct fault_loop *l, uint32_t region, uint64_t page);

/* Takes a new connection, or -1 for none: all that is outstanding is asked for anew. */
void ferry_fault_connect(struct fault_loop *l, int fd, const struct ferry_connection *connection);

/* Do we wait for a source that can be asked whether it is there? */
bool ferry_fault_is_watched(const struct fault_loop *l);

/* Pings a source that owes answers, and gives a silent one up. */
void ferry_fault_watch(struct fault_loop *l);

/* Sends what is asked for, as far as the socket takes it. */
void ferry_fault_send(struct fault_loop *l);

/* Receives once, and places the answers that came. */
void ferry_fault_receive(struct fault_loop *l);

/* Places the answers that came before, as far as it goes. */
void ferry_fault_handle_frames(struct fault_loop *l);

/* --- placement --------------------------------------------------------------------------------- */

/* Place the answer that is at hand. Return: false when it has to wait. */
bool ferry_fault_place_answer(struct fault_loop *l);

#endif
