/* SPDX-License-Identifier: Apache-2.0 */
/*
 * TLS 1.3 between source and target, with certificates of both or with a key that both have.
 *
 * What the rest of the program gets is a plain stream descriptor, to be used with io_uring, recv,
 * send and poll as any other: one end of a socket pair, whose other end belongs to a *relay*, a
 * thread for each connection that encrypts and decrypts between that and TCP (relay.c).
 * Everything sent before the peer is known to be who it should be is dropped: a connection that was
 * not authenticated is never seen outside of this folder.
 */
#ifndef FERRY_TLS_TLS_H
#define FERRY_TLS_TLS_H

#include <stdbool.h>

#include "base/addr.h"
#include "base/error.h"
#include "base/log.h"
#include "base/net.h"

struct ferry_tls;

#define FERRY_TLS_HANDSHAKE_MS 5000

struct ferry_tls_config {
	/* One of the two. */
	const char *dir; /* a folder with ca-cert.pem, SIDE-cert.pem, SIDE-key.pem, [ca-crl.pem] */
	const char *psk; /* a file of lines `name:key in hexadecimal` */

	bool accepts; /* SIDE is "server", and else "client" */
	const char
		*hostname; /* dialing: whom the certificate must name; NULL: the address dialed */
	const char *peer;  /* accepting: whom a certificate must name; NULL: whoever has one */
	bool is_foreign;   /* dialing: the peer is another program, that names no protocol (ALPN) */
	const struct ferry_log *log; /* borrowed until _free; may be NULL */
};

/**
 * ferry_tls_new() - read credentials and check them
 * All of @config but the log is borrowed until return.
 * Errors: -ENOENT, -EACCES, -EPERM (others may read the key), -EKEYEXPIRED, -EKEYREJECTED, -EINVAL
 * (REFUSE), with the file and what to do in @f.
 */
int ferry_tls_new(struct ferry_tls **out, const struct ferry_tls_config *config,
		  struct ferry_failure *f);

/**
 * ferry_tls_free() - end
 * What was written to connections that are closed by now still leaves, for two seconds at most.
 * Descriptors that were given out are their owners', and come to their end. NULL is fine.
 */
void ferry_tls_free(struct ferry_tls *t);

/**
 * ferry_tls_dial() - ferry_net_dial(), and TLS on it where there is a context for it
 * @t: NULL for none
 * @class: of the connection
 * Returns when the peer is authenticated. Whether it accepts *us* shows with the first answer: see
 * ferry_tls_explain().
 * Errors: negative errno (LINK, or REFUSE when the peer isn't who it should be) in @f.
 * Return: a connected non-blocking fd, close-on-exec; the caller owns it.
 */
int ferry_tls_dial(struct ferry_tls *t, const struct ferry_addr *a, enum ferry_net_class class,
		   int timeout_ms, int stop_fd, struct ferry_failure *f);

/* ferry_net_tune() for a descriptor that may be of @t. */
void ferry_tls_tune(struct ferry_tls *t, int fd, enum ferry_net_class class);

/**
 * ferry_tls_explain() - why a connection broke, if TLS knows
 * @fd: of ferry_tls_dial() or a gate, not closed yet
 * Return: true with the story in @f (REFUSE when trying again is no use), else false and @f is as
 * it was.
 */
bool ferry_tls_explain(struct ferry_tls *t, int fd, struct ferry_failure *f);

#endif
