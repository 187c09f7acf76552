/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the source knows of one target, and what it decides from it. Pure: messages and runs in,
 * verdicts and pieces out; no sockets, no clock, no thread. The server (server.h) and the
 * simulation both drive it.
 *
 *     OPENING --LayoutOk--> READY --PushStart--> PUSHING --all sent--> PUSHED
 *        ^  \                 |  \                  |                    |
 *        |   +-------+--------+---)-----------------+--------------------+
 *        |           v             +------- Complete -------> COMPLETED <+ (from PUSHING as well)
 *        +---------- LOST
 *
 *  1. A session begins with an epoch, OPENING: the Layout goes out.
 *  2. The target may say what it has (Resident), or does not want (Discarded): those pages count
 *     as sent.
 *  3. PushStart: the push takes first the holes, as long runs without a byte, then runs in push
 *     order; each is claimed in the bitmap before it is sent.
 *  4. Requests are answered at any time, whatever was sent before: what is on its way may be lost.
 *     They bend the push order.
 *  5. Complete ends it. A lost link (any connection) is followed by a higher epoch, in which
 * nothing counts as sent but what the target says it has.
 *
 * A run goes out cut into pieces that are alike: data, or zero. Pages of holes are zero without
 * being read; others are looked at. A page that is found zero is remembered for all sessions.
 *
 * Threads: one calls everything, except that while PUSHING another may call _next_hole, _next_run
 * and _cut (with a cut of its own). The bitmaps are atomic.
 */
#ifndef FERRY_PAGESERVER_SESSION_H
#define FERRY_PAGESERVER_SESSION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/bitmap.h"
#include "base/machine.h"
#include "protocol/message.h"

/* The memory that sessions are served from: sources in the server, a model in a simulation. */
struct ferry_pages {
	struct ferry_layout layout;
	/* One bitmap a region, owned: pages that may hold data. Only ever loses bits. */
	struct ferry_bitmap data[FERRY_MAX_REGIONS];
	/* See ferry_source_copies(), _pages() and _is_zero(). */
	bool (*copies)(void *ctx, uint32_t region);
	int (*get)(void *ctx, const struct ferry_run *run, void *scratch, const void **data);
	int (*is_zero)(void *ctx, uint32_t region, uint64_t page, const void *data);
	void *ctx;
};

/* Sets up the bitmaps for @p->layout, without any page of data. Errors: -ENOMEM. */
int ferry_pages_init(struct ferry_pages *p);
void ferry_pages_fini(struct ferry_pages *p);

enum ferry_session_state {
	FERRY_SESSION_OPENING,
	FERRY_SESSION_READY,
	FERRY_SESSION_PUSHING,
	FERRY_SESSION_PUSHED,
	FERRY_SESSION_COMPLETED,
	FERRY_SESSION_LOST,
};

extern const struct ferry_machine_def ferry_session_machine;

struct ferry_session;

/* @pages: borrowed for the session's life. Errors: -ENOMEM. */
int ferry_session_new(struct ferry_session **out, struct ferry_pages *pages,
		      const struct ferry_session_id *id, uint32_t epoch);
void ferry_session_free(struct ferry_session *s);

const struct ferry_session_id *ferry_session_id(const struct ferry_session *s);
uint32_t ferry_session_epoch(const struct ferry_session *s);
enum ferry_session_state ferry_session_state(const struct ferry_session *s);

/* A connection is gone. No effect on a session that is COMPLETED or LOST. */
void ferry_session_lose(struct ferry_session *s);

/**
 * ferry_session_resume() - a new epoch begins; nothing counts as sent any more
 * No push may be going on. The session is lost first if it was not.
 * Errors: -ESTALE for an epoch that is not higher than the last, or a session that is COMPLETED;
 *         -ENOMEM.
 */
int ferry_session_resume(struct ferry_session *s, uint32_t epoch);

enum ferry_session_action {
	FERRY_SESSION_NOTHING,
	FERRY_SESSION_PUSH,    /* push what is missing, at the message's rate; or change the rate */
	FERRY_SESSION_RELEASE, /* answer Released */
	FERRY_SESSION_DIGEST,  /* answer Digests */
};

/**
 * ferry_session_control() - a message of the control connection
 * @m: LayoutOk, Resident, PushStart, Discarded, DigestRequest or Complete; it passed ferry_connection_check()
 * Return: an enum ferry_session_action.
 * Errors: -EPROTO with a line for people in @why (FERRY_MAX_TEXT bytes).
 */
int ferry_session_control(struct ferry_session *s, const struct ferry_message *m, char *why);

/**
 * ferry_session_request() - a PageRequest: its pages count as sent and bend the push order
 * Errors: -EPROTO with a line for people in @why: then nothing of it counts.
 */
int ferry_session_request(struct ferry_session *s, const struct ferry_page_request *r, char *why);

/* The next run of holes, or of anything, that was not sent; claimed. Return: false at the end. */
bool ferry_session_next_hole(struct ferry_session *s, struct ferry_run *run);
bool ferry_session_next_run(struct ferry_session *s, uint32_t max_bytes, struct ferry_run *run);

/*
 * The next part of @rest that was not sent; claimed, and cut off from @rest with what is before it.
 * Return: false when nothing of it is left.
 */
bool ferry_session_next_of(struct ferry_session *s, struct ferry_run *rest, uint32_t max_bytes,
			   struct ferry_run *run);

/* Put a run off: it counts as sent, so that nobody proposes it, until it is put back. */
void ferry_session_put_off(struct ferry_session *s, const struct ferry_run *run);
void ferry_session_put_back(struct ferry_session *s, const struct ferry_run *run);

/* Everything went out. */
void ferry_session_pushed(struct ferry_session *s);

/* A run on its way to be cut. Set .rest and .says_lost, and zero the others. */
struct ferry_cut {
	struct ferry_run rest; /* what was not given out yet */
	const uint8_t *data;   /* bytes of the first @n_have pages of rest */
	uint32_t n_have;
	bool says_lost; /* the target takes pages that are said to be lost; set by the caller too */
};

/* Room for the bytes of sources that copy; pieces stay valid until @used is set back. */
struct ferry_scratch {
	uint8_t *data;
	size_t size, used;
};

enum ferry_cut_result {
	FERRY_CUT_END, /* nothing is left of the run */
	FERRY_CUT_PIECE,
	FERRY_CUT_FULL, /* @scratch has no room for another page */
};

/**
 * ferry_session_cut() - the next piece of a run
 * @max_bytes: of a piece with data; at least one page is given
 * @scratch: may be NULL when no source copies
 * @piece: run and encoding are set; @data: its bytes, NULL for zero pages
 * Return: an enum ferry_cut_result.
 * Errors: of ferry_source_pages() (LOST): one of the first pages of @c->rest can't be had.
 */
int ferry_session_cut(struct ferry_session *s, struct ferry_cut *c, uint32_t max_bytes,
		      struct ferry_scratch *scratch, struct ferry_page_run *piece,
		      const void **data);

/* Pages in all, and pages that count as sent. Any thread, while the session lives. */
void ferry_session_progress(const struct ferry_session *s, uint64_t *total, uint64_t *sent);

#endif
