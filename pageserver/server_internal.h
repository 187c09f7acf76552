/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The page server's parts. Theory of operation:
 *
 *   server.c   what the owner calls; events
 *   loop.c     the io_uring loop: waits for completions and for the clock, calls whom they concern
 *   conn.c     one connection: receives frames, checks them, sends small messages, ends politely
 *   peer.c     one session's connections: who is let in, what control messages do, loss and resume
 *   urgent.c   requests of a session, and their answers
 *   push.c     the push thread of a session
 *   digest.c   a thread for a session that wants to know what the memory is
 *   dial.c     the thread that opens (and opens again) the connections of a session that we dial
 *
 * Happy path of a request: 1. the recv of an urgent connection completes; 2. the frame is decoded,
 * its runs are validated, marked as sent, and queued; 3. up to URGENT_PIECES pieces are cut, their
 * frames' headers encoded and one sendmsg is submitted that points at their bytes; 4. it mostly
 * completes within the same system call that submits it and re-arms the recv and waits. So an
 * urgent page costs one system call (and one more to look at it, when its source copies). A page of
 * a snapshot file that is not in the page cache is first read through the ring, so that the disk of
 * one session's page keeps no other session waiting.
 *
 * Threads: the loop thread owns all connections and peers. Push threads own their struct ferry_push
 * and write to the bulk sockets, which the loop only reads, but for a Ping between two frames; the
 * loop shuts a socket down at any time, but closes it after the push thread has ended. Dial threads
 * own their sockets until they hand them over. What is shared otherwise is atomic, or under
 * server->lock.
 *
 * Memory named in a submission belongs to the kernel until its completion: a connection is freed
 * when nothing of it is in flight. Everything a peer can make us hold has a bound, and a full
 * queue means that we stop receiving from that connection.
 *
 * Failure modes: a bad frame ends its connection, and its session is then lost (resumable); a page
 * that can't be had ends the session's connections with Error; running out of memory refuses the
 * newcomer; a broken ring stops the server: its sockets are shut down, and its owner is told.
 */
#ifndef FERRY_PAGESERVER_SERVER_INTERNAL_H
#define FERRY_PAGESERVER_SERVER_INTERNAL_H

#include <liburing.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include "base/clock.h"
#include "base/util.h"
#include "pageserver/ring.h"
#include "pageserver/server.h"
#include "pageserver/session.h"
#include "protocol/connection.h"
#include "tls/gate.h"

#define HANDSHAKE_NS   (5ull * FERRY_NS_PER_S)
#define MAX_HANDSHAKES 128u
#define PING_IDLE_NS   (2ull * FERRY_NS_PER_S)
#define SILENCE_NS     (10ull * FERRY_NS_PER_S)
#define ENDING_NS      (2ull * FERRY_NS_PER_S)	  /* for a peer to read why it is turned away */
#define RELEASED_NS    (5ull * FERRY_NS_PER_S)	  /* for a target to close after Released */
#define TAKE_NS	       (5ull * FERRY_NS_PER_S)	  /* for LayoutOk, when there are too many */
#define KEEP_LOST_NS   (3600ull * FERRY_NS_PER_S) /* how long a lost session can be resumed */
#define TICK_NS	       (500ull * FERRY_NS_PER_MS)
#define MAX_SESSIONS   64u
#define MAX_LISTENERS  8u
#define N_EVENTS       32u
#define LOW_NICE       5 /* of threads that work beside the loop, where it has no higher priority than others */

struct ferry_server;
struct ferry_peer;
struct ferry_push;
struct ferry_digest;
struct ferry_urgent;
struct ferry_dialer;

/* Something in flight in the ring; its address is the completion's user data. */
struct ferry_op {
	void (*done)(struct ferry_server *s, struct ferry_op *op, int res);
};

#define FERRY_CONTAINER(ptr, type, member) ((type *)((char *)(ptr)-offsetof(type, member)))

/* --- loop.c ------------------------------------------------------------------------------- */

struct ferry_listener {
	struct ferry_op op;
	struct ferry_gate *gate; /* owned */
	int fd;			 /* owned */
	bool armed;
	bool paused; /* accept failed; again at the next tick */
};

int ferry_loop_init(struct ferry_server *s, struct ferry_failure *f);
void ferry_loop_fini(struct ferry_server *s);
void *ferry_loop_run(void *server);
void ferry_loop_wake(struct ferry_server *s); /* any thread: look at everything */
/* A free submission; the caller preps it and then sets its data to a struct ferry_op. */
struct io_uring_sqe *ferry_loop_sqe(struct ferry_server *s);

/* --- conn.c ------------------------------------------------------------------------------- */

#define CONN_OUT_BYTES	 4096u /* small messages on their way; the largest layout fits */
#define CONN_OUT_IOVS	 8
#define CONN_REPLY_BYTES 512u /* the longest answer to a frame */

enum ferry_conn_stage {
	CONN_LIVE,
	CONN_ENDING, /* an Error is on its way; what comes in is dropped */
	CONN_CLOSED, /* shut down; freed when nothing is in flight */
};

struct ferry_conn {
	struct ferry_server *server;
	struct ferry_peer *peer; /* borrowed; NULL before it is let in, and after it is closed */
	struct ferry_conn *next;
	int fd; /* owned */
	enum ferry_conn_stage stage;
	struct ferry_connection proto;
	bool recv_busy, send_busy, processing;
	bool read_busy;		 /* a page on its way from a disk into the page cache */
	bool push_busy;		 /* a push thread writes to fd */
	bool parked;		 /* its Hello waits for the end of the last epoch's push */
	bool tells_release;	 /* Released is on its way */
	uint64_t deadline_ns;	 /* of the handshake, or of the ending; 0: none */
	uint64_t rx_ns, ping_ns; /* last received; last Ping sent */

	struct ferry_framebuf in;
	struct ferry_op recv_op, send_op, read_op;
	struct msghdr msg; /* of the send in flight; its iovs are used up as they leave */
	bool sending_out;  /* it is of @out, not of @urgent */
	uint8_t out[CONN_OUT_BYTES];
	size_t out_used;
	struct iovec out_iov[CONN_OUT_IOVS];
	size_t n_out_iov, out_iov_done;
	struct ferry_urgent *urgent; /* owned; on urgent connections */
	char name[FERRY_GATE_NAME_MAX]; /* of the peer, for the log */
};

/* Take a connection (given, on error too) with the peer that is called @name. A dialed one is open
 * already: @hello was sent by us and answered with @features. NULL: we accepted it, and Hello is
 * awaited. */
int ferry_conn_new(struct ferry_server *s, int fd, const char *name,
		   const struct ferry_hello *hello, uint64_t features, struct ferry_conn **out);

/* Its role is known: buffers and socket options for it. Errors: -ENOMEM. */
int ferry_conn_prepare_role(struct ferry_conn *c);

/* Queue a small message. Return: false when there is no room for it. */
bool ferry_conn_send(struct ferry_conn *c, const struct ferry_message *m);

/* The same with a payload that lives no longer than the call. */
bool ferry_conn_send_copied(struct ferry_conn *c, const struct ferry_message *m);

/* Submit what waits to be sent, if no send is in flight. */
void ferry_conn_flush(struct ferry_conn *c);

/* Go on with frames that were left in the buffer. */
void ferry_conn_process(struct ferry_conn *c);

/* The Hello that waited for the end of the last epoch's push. */
void ferry_conn_unpark(struct ferry_conn *c);

/* Send Error and close when it was read, or after ENDING_NS. */
void ferry_conn_refuse(struct ferry_conn *c, enum ferry_error_code code, const char *text);

/* Shut it down at once. Does not tell the peer object. */
void ferry_conn_close(struct ferry_conn *c);

/* Free those that are closed and have nothing in flight. */
void ferry_conn_sweep(struct ferry_server *s);

/* Deadlines, pings. */
void ferry_conn_tick(struct ferry_conn *c, uint64_t now_ns);

/* --- peer.c ------------------------------------------------------------------------------- */

/* A session and its connections. */
struct ferry_peer {
	struct ferry_server *server;
	struct ferry_peer *next;
	struct ferry_session *session;				    /* owned */
	struct ferry_conn *control, *urgent, *bulk[FERRY_MAX_BULK]; /* borrowed */
	uint32_t n_bulk, want_bulk; /* open; needed before the push may begin */
	struct ferry_push *push;    /* owned; while its thread runs */
	struct ferry_digest *digest; /* the same */
	bool push_wanted;
	bool push_begun; /* in this epoch */
	bool released;	 /* its completion was told */
	bool is_taken;	 /* its layout was accepted once: a guest may wait for it */
	uint64_t push_rate;
	struct ferry_dialer *dialer; /* borrowed; NULL when the target dials */
	bool dead;		     /* freed once its push has ended */
	uint64_t since_ns;	     /* begun, lost or completed since */
};

/* The Hello of @c was received, or (dialed) answered: take it in, answer, or refuse. */
void ferry_peer_admit(struct ferry_conn *c);

/* A message on an open connection. */
void ferry_peer_message(struct ferry_conn *c, const struct ferry_message *m);

/* @c is no longer usable; @why for people. */
void ferry_peer_conn_lost(struct ferry_conn *c, const char *why);

/* The target says it can't go on. */
void ferry_peer_refused(struct ferry_conn *c, enum ferry_error_code code, const char *why);

/* A page can't be had, @err. */
void ferry_peer_unavailable(struct ferry_peer *p, const struct ferry_run *run, int err);

/* Begin the push, if it is wanted and everything is there for it. */
void ferry_peer_try_push(struct ferry_peer *p);

/* Released has left. */
void ferry_peer_released(struct ferry_peer *p);

/* Ended pushes, expired sessions; on each wake and tick. */
void ferry_peer_sweep(struct ferry_server *s, uint64_t now_ns);
void ferry_peer_close_all(struct ferry_server *s);

/* The memory is not what it was: end what is not complete. Loop thread. */
void ferry_peer_condemn_all(struct ferry_server *s);

/* --- urgent.c ----------------------------------------------------------------------------- */

int ferry_urgent_new(struct ferry_urgent **out, struct ferry_server *s);
void ferry_urgent_free(struct ferry_urgent *u);

/* Is there room for any request? */
bool ferry_urgent_has_room(const struct ferry_urgent *u);

/* Queue the runs of a validated request. */
void ferry_urgent_add(struct ferry_urgent *u, const struct ferry_page_request *r,
		      uint64_t received_ns);

/**
 * ferry_urgent_fill() - the next answers to send
 * @iov, @n_iov: valid until the next call
 * Return: 0; *n_iov is 0 when there is nothing to answer, or the server is held.
 * Errors: the page at *failed can't be had.
 */
int ferry_urgent_fill(struct ferry_conn *c, struct iovec **iov, size_t *n_iov,
		      struct ferry_run *failed);

/* The first run of the answers that ferry_urgent_fill() gave last. */
struct ferry_run ferry_urgent_first(const struct ferry_urgent *u);

/* --- push.c ------------------------------------------------------------------------------- */

/* Start the push thread of @p. Errors: negative errno. */
int ferry_push_start(struct ferry_peer *p);
void ferry_push_set_rate(struct ferry_push *push, uint64_t bytes_per_second);
/* Urgent answers are under way, or no longer: the push of huge pages waits for them. */
void ferry_push_give_way(struct ferry_push *push, bool urgent);
/* Bytes of urgent answers, which count against the rate. */
void ferry_push_charge(struct ferry_push *push, uint64_t bytes);
/* Loop thread, now and then: let the target hear of us on @fd, if nothing else does. */
void ferry_push_ping(struct ferry_push *push, int fd, uint64_t now_ns);
/* Ask it to end; it wakes the loop when it has. */
void ferry_push_stop(struct ferry_push *push);
bool ferry_push_has_ended(const struct ferry_push *push);
/* Is @fd one of its connections? */
bool ferry_push_writes_to(const struct ferry_push *push, int fd);
/* Join and free. Return: 0 all sent, -ECANCELED stopped, a LINK error, or with @failed set, the
 * error of a page that can't be had. */
int ferry_push_end(struct ferry_push *push, struct ferry_run *failed);

/* --- digest.c ----------------------------------------------------------------------------- */

/* Start to make the digests that the target asked for. Loop thread, as all of these. Errors:
 * negative errno. */
int ferry_digest_start(struct ferry_peer *p, const struct ferry_digest_range *range);
void ferry_digest_stop(struct ferry_digest *d); /* it wakes the loop once it has ended */
/* Has it ended, and was it answered? Then it is gone. */
bool ferry_digest_reap(struct ferry_peer *p);

/* --- dial.c ------------------------------------------------------------------------------- */

/* What the loop tells a dialer about the epoch it opened. */
enum ferry_dial_news {
	DIAL_LOST,  /* open everything again */
	DIAL_ENDED, /* completed, or refused: no more */
};

void ferry_dialer_tell(struct ferry_dialer *d, uint32_t epoch, enum ferry_dial_news news);
struct ferry_dialer *ferry_dialer_find(struct ferry_server *s, const struct ferry_session_id *id);
uint32_t ferry_dialer_n_bulk(const struct ferry_dialer *d);
/* Loop thread: take in the sockets that dialers hand over. */
void ferry_dialers_take(struct ferry_server *s);
void ferry_dialers_stop(struct ferry_server *s); /* and wait for their end */
void ferry_dialers_free(struct ferry_server *s); /* once the loop has ended */

/* --- server.c ----------------------------------------------------------------------------- */

struct ferry_counters {
	_Atomic uint64_t pages_urgent, pages_pushed, pages_zero, pages_lost, wire_bytes, requests;
	_Atomic uint32_t n_sessions, n_sessions_ever, n_completed, resumes;
};

struct ferry_event {
	enum ferry_server_event event;
	struct ferry_failure failure;
};

struct ferry_server {
	struct ferry_server_config config;
	struct ferry_pages pages;
	size_t scratch_page_bytes; /* the largest page of a source that copies; 0: none does */
	const struct ferry_log *log;

	/* Loop thread, once started. */
	struct io_uring *ring; /* config.ring's, or ->own_ring's */
	struct ferry_ring *own_ring;
	struct ferry_listener listeners[MAX_LISTENERS];
	uint32_t n_listeners;
	struct ferry_op wake_op;
	bool wake_armed, woken;
	bool any_closed; /* of conns: there is something to sweep */
	struct ferry_conn *conns;
	struct ferry_peer *peers;
	struct ferry_arena arena;
	struct ferry_message message; /* the one being handled; too large for comfort on a stack */
	uint64_t tick_ns;	      /* of the last tick */

	pthread_t thread;
	sem_t enabled; /* the thread has begun, with this result */
	int enable_rc;
	bool running; /* owner's: the thread is to be joined */
	bool held;    /* owner's, before start */
	int wake_fd;  /* owned; eventfd */
	atomic_bool stopping;
	bool is_raised; /* the loop thread has a higher priority; set before it does anything */
	atomic_bool no_first; /* pushes don't begin with config.first */
	atomic_bool awaits;   /* a request waits for a gated source */
	atomic_bool serving;  /* requests are answered */
	atomic_bool surveyed; /* and the holes are known, so that pushes may begin */
	int stop_fd; /* owned; eventfd: for dialers */

	struct ferry_counters n;
	atomic_bool lost_said;
	atomic_bool paused; /* pushes wait */
	atomic_bool broken; /* io_uring gives nothing back any more */
	atomic_bool condemned; /* ->condemned_why is there, and doesn't change any more */
	bool condemned_told;   /* loop thread */
	char condemned_why[FERRY_MAX_TEXT];

	pthread_mutex_t lock;	   /* what follows, and the list of peers while stats look at it */
	struct ferry_peer *latest; /* borrowed; progress is told of this one */
	uint64_t latest_total, latest_sent; /* of one that is gone */
	struct ferry_dialer *dialers;
	struct ferry_event events[N_EVENTS];
	uint32_t n_events, first_event;
	int event_fd; /* owned; readable while there are events */
};

/* A thread with a small stack. Errors: negative errno. */
int ferry_server_thread(pthread_t *thread, size_t stack_bytes, void *(*main)(void *), void *arg);

/* Features that are not offered. */
uint64_t ferry_server_withheld(const struct ferry_server *s);

/**
 * ferry_server_finish_piece() - what a piece that is cut still needs before it is sent
 * @features: of the connection. Counts its pages. Any thread.
 * Errors: as ferry_source_pages(): it can't be had any more.
 */
int ferry_server_finish_piece(struct ferry_server *s, struct ferry_page_run *piece, const void *data,
			      uint64_t features, bool is_urgent);
/* Can a run's bytes be read? Any thread. @want: see ferry_source_has(). */
bool ferry_server_has(struct ferry_server *s, const struct ferry_run *run, bool want);

/* Any thread. */
void ferry_server_post(struct ferry_server *s, enum ferry_server_event event,
		       enum ferry_consequence c, int err, const char *text);

static inline bool ferry_same_session(const struct ferry_session_id *a,
				      const struct ferry_session_id *b)
{
	return !__builtin_memcmp(a->bytes, b->bytes, FERRY_SESSION_ID_BYTES);
}

#endif
