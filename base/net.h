/* SPDX-License-Identifier: Apache-2.0 */
/* Sockets: listen, dial, and whole reads and writes that a stop request can end. */
#ifndef FERRY_BASE_NET_H
#define FERRY_BASE_NET_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>
#include <sys/uio.h>

#include "base/addr.h"

/* What a connection is for, as far as the kernel's queues care. */
enum ferry_net_class {
	FERRY_NET_CONTROL,
	FERRY_NET_URGENT, /* never waits behind bulk: high priority, no delay */
	FERRY_NET_BULK,	  /* may wait: low priority, little unsent data kept in the kernel */
};

/**
 * ferry_net_listen() - listen on an address
 * A UNIX socket is made with mode 0600; a socket file that nobody listens on any more is replaced.
 * An address that is in use is waited for, for a second or so.
 * Errors: negative errno (REFUSE) with the address and what to do in @f.
 * Return: a non-blocking listening fd, close-on-exec; the caller owns it.
 */
int ferry_net_listen(const struct ferry_addr *a, struct ferry_failure *f);

/* The address that @fd really listens on (the port filled in). */
int ferry_net_local(int fd, const struct ferry_addr *asked, struct ferry_addr *out);

/**
 * ferry_net_dial() - connect, trying each address of the name
 * @timeout_ms: for all of it
 * @stop_fd:    becomes readable when the caller wants to give up; -1 for never
 * Errors: negative errno (LINK) with the address and what to do in @f; -ECANCELED on @stop_fd.
 * Return: a connected non-blocking fd, close-on-exec; the caller owns it.
 */
int ferry_net_dial(const struct ferry_addr *a, int timeout_ms, int stop_fd,
		   struct ferry_failure *f);

/* Accept one connection: non-blocking, close-on-exec. Errors: negative errno; -EAGAIN for none. */
int ferry_net_accept(int listen_fd);

/* Set the options that a connection of this class wants. Best effort; UNIX sockets take fewer. */
void ferry_net_tune(int fd, enum ferry_net_class class);

/**
 * ferry_net_wait() - wait until @fd is ready
 * @events:     POLLIN or POLLOUT
 * @timeout_ms: -1 for no limit
 * Return: 0 when ready (or hung up: the next read tells), -ETIMEDOUT, -ECANCELED on @stop_fd, or
 *         another negative errno.
 */
int ferry_net_wait(int fd, short events, int timeout_ms, int stop_fd);

/*
 * Read or write all of it, of sockets in blocking mode or not. @timeout_ms limits each wait for
 * progress, -1 for none.
 * Errors (LINK): -ECONNRESET when the peer closed first (also at the first byte), -ETIMEDOUT,
 * -ECANCELED on @stop_fd, or what the socket says.
 * ferry_net_read_more() can be gone on with after -ETIMEDOUT: @done is in and out.
 */
int ferry_net_read_more(int fd, void *buf, size_t len, size_t *done, int timeout_ms, int stop_fd);
int ferry_net_read_all(int fd, void *buf, size_t len, int timeout_ms, int stop_fd);
int ferry_net_write_all(int fd, const void *buf, size_t len, int timeout_ms, int stop_fd);
/* @iov is used up: its entries change. */
int ferry_net_writev_all(int fd, struct iovec *iov, int n_iov, int timeout_ms, int stop_fd);

#endif
