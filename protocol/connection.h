/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The life of one connection, without its socket: handshake, and who may say what when.
 *
 *            dialed                              accepted
 *     HELLO_SENT --Welcome--> OPEN <--Welcome sent-- HELLO_AWAITED
 *          |                   |                        |
 *          +---- Error/bad ----+------> FAILED <--------+
 *
 * Pure: frames and events in, verdicts out. Both ends use the same machine.
 */
#ifndef FERRY_PROTOCOL_CONNECTION_H
#define FERRY_PROTOCOL_CONNECTION_H

#include <stdbool.h>

#include "base/machine.h"
#include "protocol/message.h"

enum ferry_connection_state {
	FERRY_CONNECTION_HELLO_SENT,
	FERRY_CONNECTION_HELLO_AWAITED,
	FERRY_CONNECTION_HELLO_RECEIVED, /* accepted; the owner decides between welcome and error */
	FERRY_CONNECTION_OPEN,
	FERRY_CONNECTION_FAILED,
};

extern const struct ferry_machine_def ferry_connection_machine;

struct ferry_connection {
	struct ferry_machine machine;
	enum ferry_side side;	   /* ours */
	uint64_t withheld;	   /* features that we don't want; set before _welcome */
	struct ferry_hello hello;  /* the one that was sent or received */
	uint32_t version;	   /* once open */
	uint64_t features;	   /* once open: what both have */
};

/* One that we dialed. @out gets the Hello to send. @hello: side, role, session, index, epoch, withheld
 * set. */
void ferry_connection_dial(struct ferry_connection *c, const struct ferry_hello *hello,
			   struct ferry_message *out);

/* One that we accepted; @side is ours. */
void ferry_connection_accept(struct ferry_connection *c, enum ferry_side side);

/**
 * ferry_connection_check() - may this message come now?
 * Moves the handshake on. After a Hello (state HELLO_RECEIVED) the owner looks at c->hello and
 * calls _welcome or sends an error.
 * Return: 0 when it may.
 * Errors: -EPROTO with a line for people in @why (FERRY_MAX_TEXT bytes): the connection has FAILED
 *         and is to be closed, after sending Error with FERRY_ERROR_PROTOCOL or _VERSION as
 *         @code says. -ECONNREFUSED: the peer sent an Error, its text is in @why.
 */
int ferry_connection_check(struct ferry_connection *c, const struct ferry_message *m,
			   enum ferry_error_code *code, char *why);

/* Answer a Hello with Welcome: @out is to be sent, the connection is then OPEN. */
void ferry_connection_welcome(struct ferry_connection *c, struct ferry_message *out);

static inline bool ferry_connection_is_open(const struct ferry_connection *c)
{
	return c->machine.state == FERRY_CONNECTION_OPEN;
}

const char *ferry_role_name(enum ferry_role role);
const char *ferry_side_name(enum ferry_side side);

#endif
