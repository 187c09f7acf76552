/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A client of QEMU's monitor, over its UNIX socket. Commands block; events that come meanwhile are
 * kept. One thread at a time.
 */
#ifndef FERRY_MIGRATE_QMP_H
#define FERRY_MIGRATE_QMP_H

#include <jansson.h>
#include <stdbool.h>
#include <sys/types.h>

#include "base/error.h"
#include "migrate/qmp_parse.h"

struct ferry_qmp;

/* Commands that QEMU answers without waiting for anything are given this long. */
#define FERRY_QMP_TIMEOUT_MS 10000

/**
 * ferry_qmp_connect() - connect to a monitor and leave its negotiation mode
 * @stop_fd: readable: give up (-ECANCELED); -1 for none
 * Errors: negative errno (REFUSE) with what to do in @f. A monitor serves one client; when another
 *         has it, QEMU says nothing at all, and that is -EBUSY after two seconds.
 */
int ferry_qmp_connect(struct ferry_qmp **out, const char *path, int stop_fd,
		      struct ferry_failure *f);

/* The failure that nothing listens at @path, for @err (negative errno). Return: @err. */
int ferry_qmp_no_socket(struct ferry_failure *f, int err, const char *path);
void ferry_qmp_free(struct ferry_qmp *q);

/* Who made the socket: QEMU, or who started it and gave it the socket. */
pid_t ferry_qmp_peer_pid(const struct ferry_qmp *q);

/* "7.2.22"; borrowed. */
const char *ferry_qmp_version(const struct ferry_qmp *q);

/* To poll for input; then call ferry_qmp_event(). */
int ferry_qmp_fd(const struct ferry_qmp *q);

/* Arguments as json_pack() makes them. Without memory for them the command fails, and is not sent
 * without them. */
#define FERRY_QMP_ARGS(...) ferry_qmp_args(json_pack(__VA_ARGS__))
json_t *ferry_qmp_args(json_t *args);

/**
 * ferry_qmp_execute() - run a command and wait for its answer
 * @args: its arguments, or NULL for none; given, on error too
 * @ret:  what it returned, the caller's to decref; NULL when nobody wants it
 * Errors: -EREMOTEIO (REFUSE): QEMU said no, its text is in @f. -ETIMEDOUT (REFUSE): no answer.
 *         -ECONNRESET (LOST): the monitor is gone, and QEMU most likely with it. -EPROTO (REFUSE):
 *         what came is not QMP; the connection is then of no more use.
 */
int ferry_qmp_execute(struct ferry_qmp *q, const char *command, json_t *args, json_t **ret,
		      struct ferry_failure *f);

/* The same with a time limit of its own. */
int ferry_qmp_execute_within(struct ferry_qmp *q, int timeout_ms, const char *command, json_t *args,
			     json_t **ret, struct ferry_failure *f);

/* Give QEMU a descriptor under a name, for "fd:NAME". @fd: borrowed, QEMU has a duplicate. */
int ferry_qmp_give_fd(struct ferry_qmp *q, const char *name, int fd, struct ferry_failure *f);

/* A command of the human monitor. @text: its output, the caller's to free(). */
int ferry_qmp_human(struct ferry_qmp *q, const char *line, char **text, struct ferry_failure *f);

/**
 * ferry_qmp_event() - the next event, without waiting
 * @out: the caller's to _fini
 * Events nobody here asks about are dropped (see qmp.c).
 * Return: 1 with an event, 0 for none.
 * Errors: -ECONNRESET (LOST), -EPROTO (REFUSE): as above, in @f.
 */
int ferry_qmp_event(struct ferry_qmp *q, struct ferry_qmp_message *out, struct ferry_failure *f);

#endif
