/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where connections come in: a listening socket, and the question who may pass.
 *   plain TCP    everybody
 *   UNIX socket  processes of our own user, or of root
 *   TLS          who has shaken hands; that runs on threads of the connections' own, so that nobody
 *                waits for a stranger. There is a limit of how many strangers there may be at a
 * time, in all and of each address; beyond it the oldest of them is dropped.
 */
#ifndef FERRY_TLS_GATE_H
#define FERRY_TLS_GATE_H

#include "tls/tls.h"

struct ferry_gate;

/* Handshakes at a time. */
#define FERRY_GATE_MAX_STRANGERS	64u
#define FERRY_GATE_MAX_STRANGERS_OF_ONE 16u /* IPv4 address, or IPv6 network of 64 bits */

#define FERRY_GATE_NAME_MAX 160

/**
 * ferry_gate_open() - begin to let in
 * @listen_fd: non-blocking; borrowed until _close
 * @t, @log: borrowed until _close; may be NULL
 * Errors: negative errno (REFUSE) in @f.
 */
int ferry_gate_open(struct ferry_gate **out, int listen_fd, struct ferry_tls *t,
		    const struct ferry_log *log, struct ferry_failure *f);

/* Those who are inside stay; the others are dropped. NULL is fine. */
void ferry_gate_close(struct ferry_gate *g);

/* Readable (POLLIN) while somebody may be there. Borrowed until _close. */
int ferry_gate_fd(const struct ferry_gate *g);

/**
 * ferry_gate_accept() - the next one who may come in
 * @name: FERRY_GATE_NAME_MAX bytes; who it is, for the log
 * Return: a non-blocking fd, close-on-exec, the caller's; -EAGAIN for none; or another negative
 *         errno (out of descriptors or memory: try again later).
 */
int ferry_gate_accept(struct ferry_gate *g, char *name);

#endif
