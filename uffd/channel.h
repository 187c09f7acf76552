/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A connection with whole messages, for threads that may block: the target's session thread, and
 * the switchover. The handshake and the legality of every message are protocol/connection.h's.
 */
#ifndef FERRY_UFFD_CHANNEL_H
#define FERRY_UFFD_CHANNEL_H

#include "base/addr.h"
#include "base/error.h"
#include "protocol/connection.h"
#include "tls/tls.h"

#define FERRY_HANDSHAKE_TIMEOUT_MS 5000

struct ferry_channel {
	int fd; /* owned; -1 when closed */
	struct ferry_connection connection;
	struct ferry_framebuf in;
	struct ferry_arena arena;
	uint8_t *out; /* owned: room to encode one message */
};

/**
 * ferry_channel_dial() - connect, say Hello and wait for Welcome
 * @tls: NULL for a plain connection
 * @hello: side, role, session, index and epoch; the rest is filled in
 * @stop_fd: gives up (-ECANCELED); -1 for none
 * Errors: LINK when the peer can't be reached or doesn't answer in time; REFUSE when it said no or
 * speaks something else. The story is in @f.
 */
int ferry_channel_dial(struct ferry_channel *c, struct ferry_tls *tls, const struct ferry_addr *to,
		       const struct ferry_hello *hello, int timeout_ms, int stop_fd,
		       struct ferry_failure *f);

/**
 * ferry_channel_welcome() - take over a connection that was accepted
 * @tls: whose connection it is; NULL for a plain one
 * @fd: given, on error too; its Hello was read, and nothing behind it
 * @side: ours; @hello: the peer's, already looked at, with what we withhold
 */
int ferry_channel_welcome(struct ferry_channel *c, struct ferry_tls *tls, int fd,
			  enum ferry_side side, const struct ferry_hello *hello, struct ferry_failure *f);

/* Closes. Twice is fine; zeroed or failed ones are fine. */
void ferry_channel_close(struct ferry_channel *c);

/*
 * Close, but hand out the descriptor and where the connection stands, for a thread that reads it in
 * its own way. Only right when nothing was received beyond what was taken.
 */
int ferry_channel_take(struct ferry_channel *c, struct ferry_connection *connection);

/* @m->payload goes with it. Errors (LINK): as ferry_net_write_all(). */
int ferry_channel_send(struct ferry_channel *c, const struct ferry_message *m, int stop_fd);

/**
 * ferry_channel_receive() - the next message
 * @timeout_ms: for all of it; 0 looks only, -1 waits for ever
 * A Ping is answered, and not given to the caller. m->payload is valid until the next _receive.
 * Return: 0 with a message; -ETIMEDOUT when none came in time.
 * Errors: -ECONNRESET, ... (LINK); -ECONNREFUSED (REFUSE: the peer sent Error, text in @f);
 *         -EPROTO (REFUSE; the peer was told). -ECANCELED on @stop_fd.
 */
int ferry_channel_receive(struct ferry_channel *c, struct ferry_message *m, int timeout_ms,
			  int stop_fd, struct ferry_failure *f);

/* Send Error on a raw connection, best effort and without waiting. Does not close. */
void ferry_channel_refuse(int fd, enum ferry_error_code code, const char *text);

#endif
