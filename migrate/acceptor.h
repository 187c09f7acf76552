/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The one listening port of `receive`. A thread reads the Hello of every connection that comes and
 * hands it on: a switchover connection to the receiving run, page connections to the target's
 * engine. Whoever says something else is told so and closed; nobody else is kept waiting by it.
 */
#ifndef FERRY_MIGRATE_ACCEPTOR_H
#define FERRY_MIGRATE_ACCEPTOR_H

#include "base/error.h"
#include "base/log.h"
#include "protocol/message.h"
#include "tls/tls.h"
#include "uffd/target.h"

struct ferry_acceptor;

/* Connections that were let in and have not said Hello. When one more comes, the oldest is closed. */
#define FERRY_ACCEPTOR_MAX_PENDING 32u

/**
 * ferry_acceptor_new() - set up; who connects has to wait until _start
 * @listen_fd: non-blocking; borrowed until _free
 * @tls:       borrowed until _free; NULL for plain connections
 * Errors: negative errno (REFUSE) in @f.
 */
int ferry_acceptor_new(struct ferry_acceptor **out, int listen_fd, struct ferry_tls *tls,
		       const struct ferry_log *log, struct ferry_failure *f);

/* Begin to accept. Who takes over a session reserves its seat and sets its target before: the peer, which
 * dials all the time, would take a refusal for the last word. Errors: as above. */
int ferry_acceptor_start(struct ferry_acceptor *a, struct ferry_failure *f);

/* Ends the thread and closes what was not handed on. NULL is fine. */
void ferry_acceptor_free(struct ferry_acceptor *a);

/* Readable while a switchover connection waits to be taken. */
int ferry_acceptor_fd(const struct ferry_acceptor *a);

/**
 * ferry_acceptor_take() - the switchover connection that came
 * The first one that comes sits down: until ferry_acceptor_free_seat() only its session is let in,
 * with a higher epoch each time; others are told that this command is busy.
 * Return: its descriptor, now the caller's, and its Hello; -EAGAIN when there is none.
 */
int ferry_acceptor_take(struct ferry_acceptor *a, struct ferry_hello *hello);

/* Let any session in again. */
void ferry_acceptor_free_seat(struct ferry_acceptor *a);

/* Only this session may sit down from now on. */
void ferry_acceptor_reserve(struct ferry_acceptor *a, const struct ferry_session_id *session);

/* Where page connections go; NULL for nowhere. After return @old is not used any more. */
void ferry_acceptor_set_target(struct ferry_acceptor *a, struct ferry_target *target);

#endif
