/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The page server: gives pages of its sources to one or more target sessions.
 *
 * One thread runs an io_uring loop for everything that must be answered at once: handshakes,
 * control, and urgent requests. Each session has a push thread of its own that writes to the
 * session's bulk connections, so that a bulk write never stands before an urgent answer.
 *
 * A session is all connections with the same session id: one control, one urgent, one or more
 * bulk. When any of them is lost, all of the session's are closed; the target (or, when we dial,
 * we) opens them again with the next epoch, and the session goes on from the target's bitmap.
 */
#ifndef FERRY_PAGESERVER_SERVER_H
#define FERRY_PAGESERVER_SERVER_H

#include <stdbool.h>
#include <stdint.h>

#include "base/addr.h"
#include "base/error.h"
#include "base/log.h"
#include "pageserver/source.h"
#include "pageserver/turns.h"
#include "protocol/message.h"
#include "tls/tls.h"

struct ferry_ring;
struct ferry_server;

struct ferry_server_config {
	struct ferry_source **sources; /* borrowed until _free; one region each, in this order */
	uint32_t n_sources;
	const void *state; /* opaque bytes that travel with the layout; borrowed; may be NULL */
	uint32_t state_bytes;
	uint32_t max_sessions;	       /* 0: a default of 64 */
	/* For one that only its own process connects to: a lost session gives its place to a new
	 * one at once. Else it keeps it for an hour, since a guest may wait there. */
	bool gives_up_lost;
	uint64_t max_bytes_per_second; /* of each session's push, not of urgent pages; 0: none */
	struct ferry_tls *tls; /* of all connections; borrowed until _free; NULL: plain */
	struct ferry_ring *ring; /* of no other server ever; borrowed until _free; NULL: makes one */
	struct ferry_turns *turns; /* that pushes take; borrowed until _free; NULL: none */
	bool no_checksum;	       /* don't offer checksums of pages */
	const struct ferry_log *log;   /* borrowed; may be NULL */
	/*
	 * Runs that each push begins with, in this order, before holes; of a gated source they are
	 * asked for. And runs that it ends with. Inside of the layout; borrowed until _free.
	 */
	const struct ferry_run *first, *last;
	uint32_t n_first, n_last;
	/*
	 * A target has said Complete: may it be told Released? The loop's thread: it must be short.
	 * May be NULL. Return: 0; else the connection is lost, and the target asks again once it is
	 * back.
	 */
	int (*may_release)(void *ctx);
	void *may_release_ctx;
	/*
	 * A target has said Complete, and is told Released once this returns: what must be known after
	 * our death is written down by then. The loop's thread: it must be short. May be NULL.
	 */
	void (*completing)(void *ctx);
	void *completing_ctx;
};

/* What happened so far, over all sessions, except where it says otherwise. */
struct ferry_server_stats {
	uint32_t n_sessions; /* open now */
	uint32_t n_sessions_ever;
	uint32_t n_completed; /* sessions whose target said Complete */
	/* A page that was sent counts once: answered with data, pushed with data, or as zero. */
	uint64_t pages_urgent, pages_pushed, pages_zero;
	uint64_t pages_lost; /* that a target was told can't be had any more */
	uint64_t wire_bytes; /* sent, frames and payload */
	uint64_t requests;   /* PageRequest messages */
	uint32_t resumes;
	uint64_t pages_total, pages_sent; /* of the latest session, for progress */
};

/**
 * ferry_server_new() - set up, without a thread yet
 * Errors: -ENOMEM, -ENOSYS (no io_uring), -EINVAL (REFUSE), with what to do in @f.
 */
int ferry_server_new(struct ferry_server **out, const struct ferry_server_config *config,
		     struct ferry_failure *f);

/* Serve targets that connect to @listen_fd (given, on error too; non-blocking). Call before _start;
 * up to eight times. Errors: -ENOSPC, -ENOMEM and others. */
int ferry_server_listen(struct ferry_server *s, int listen_fd);

/**
 * ferry_server_dial() - open and keep open a session to a target that listens
 * @session, @n_bulk: of the session; @epoch: of its first connections (0 for a fresh one)
 * Returns at once; FERRY_SERVER_CONNECTED, _LINK_LOST (once for each outage) or _FAILED (the target
 * refuses) tells how it went. When a connection is lost the session is dialed again, with the next
 * epoch and with back-off (50 ms doubling to 1 s), until the target completes it or
 * ferry_server_stop(). After _start only.
 * Errors: -EINVAL, -EEXIST (this session was dialed before), -ENOMEM (REFUSE), in @f.
 */
int ferry_server_dial(struct ferry_server *s, const struct ferry_addr *to,
		      const struct ferry_session_id *session, uint32_t n_bulk, uint32_t epoch,
		      struct ferry_failure *f);

int ferry_server_start(struct ferry_server *s, struct ferry_failure *f);

/* Ends all sessions and threads. Safe to call twice. */
void ferry_server_stop(struct ferry_server *s);
void ferry_server_free(struct ferry_server *s);

/**
 * ferry_server_serve() - from now on the memory doesn't change
 * Until then sessions may be opened, and requests wait. Requests are answered as soon as this is
 * called; then it finds the holes, which takes some 50 ms for each GiB of resident 4 KiB pages, and
 * pushes begin when it returns. ferry_server_start() on a server whose config said nothing else has
 * called this already; see ferry_server_hold(). One thread, any.
 */
int ferry_server_serve(struct ferry_server *s, struct ferry_failure *f);

/* Before _start: let requests wait until ferry_server_serve(). */
void ferry_server_hold(struct ferry_server *s);

/* What the layout calls the memory; 0 when that can't be told. See ferry_source_identity(). */
uint64_t ferry_server_memory_id(const struct ferry_server *s);

/**
 * ferry_server_condemn() - the memory is not what it was
 * Every session that is not complete is ended with @why, and so is whoever comes from now on; the
 * owner is told (FERRY_SERVER_CHANGED) once they are. Nothing more is read. Any thread; the first
 * one counts.
 */
void ferry_server_condemn(struct ferry_server *s, const char *why);

/* Let all pushes wait, or go on; requests are answered all the same. Any thread. */
void ferry_server_pause(struct ferry_server *s, bool paused);
/* Do pushes that begin from now on begin with ->first? They do at the start. Any thread. */
void ferry_server_push_first(struct ferry_server *s, bool first);

/* Any thread: a gated source has more than before. */
void ferry_server_arrived(struct ferry_server *s);

/* Any thread. */
void ferry_server_stats(const struct ferry_server *s, struct ferry_server_stats *out);

enum ferry_server_event {
	FERRY_SERVER_NOTHING,	/* the timeout passed */
	FERRY_SERVER_CONNECTED, /* a dialed session has all of its connections */
	FERRY_SERVER_COMPLETED, /* a session's target has everything */
	FERRY_SERVER_LINK_LOST, /* a session lost a connection; it is resumed */
	FERRY_SERVER_FAILED,	/* a session was refused by its target, or a page can't be had */
	FERRY_SERVER_DAMAGED, /* a target says that what it has is not what is here; not released */
	FERRY_SERVER_CHANGED, /* ferry_server_condemn() has been done */
	FERRY_SERVER_PAGES_LOST, /* a page can't be had, and its target is told; once */
};

/**
 * ferry_server_wait() - the next thing that the owner may want to know
 * @timeout_ms: -1 for ever; @stop_fd: -1 or an fd that ends the wait (-ECANCELED)
 * @f: the story for LINK_LOST, FAILED, DAMAGED, CHANGED and PAGES_LOST
 * Return: an enum ferry_server_event, or a negative errno.
 */
int ferry_server_wait(struct ferry_server *s, int timeout_ms, int stop_fd, struct ferry_failure *f);

/* Has its io_uring broken? Then it serves nobody any more, and FAILED was told. Any thread. */
bool ferry_server_is_broken(const struct ferry_server *s);

/* Readable (POLLIN) while ferry_server_wait() has something to tell. Borrowed until _free. */
int ferry_server_events_fd(const struct ferry_server *s);

#endif
