/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The control socket of a running command: one JSON object a line is asked, one is answered. Only
 * the same user and root get in. A thread of its own serves it, with few clients at a time, each
 * with little memory and little time; the command itself never waits for any of them.
 */
#ifndef FERRY_TOOLS_CONTROL_H
#define FERRY_TOOLS_CONTROL_H

#include <jansson.h>
#include <stddef.h>

#include "base/error.h"
#include "base/log.h"

/* What can be asked: {"get": @get}. */
struct control_request {
	const char *get;
	/* Any thread. @request: the whole object, borrowed. Return: the answer, given. */
	json_t *(*answer)(void *ctx, const json_t *request);
	/* A descriptor that goes with the answer; borrowed, -1 for none. May be NULL. */
	int (*descriptor)(void *ctx);
	void *ctx; /* of both; NULL: that of the config */
};

struct control_config {
	const char *path; /* NULL: COMMAND-PID.sock in the default folder */
	const char *command;
	const struct control_request *requests; /* borrowed; the last has no ->get */
	void *ctx;				/* of ->answer */
	const struct ferry_log *log;		/* borrowed */
};

struct control;

/**
 * control_open() - listen, without a thread yet
 * Errors: negative errno (REFUSE) in @f. Where the default folder can't be had, the command works
 * all the same: that is a warning, *out is NULL and 0 is returned.
 */
int control_open(struct control **out, const struct control_config *config,
		 struct ferry_failure *f);

/* Answer from now on. @c may be NULL. */
int control_start(struct control *c, struct ferry_failure *f);

/* Ends the thread and removes the socket. NULL is fine. */
void control_free(struct control *c);

/**
 * control_folder() - where the sockets are that have no path of their own
 * /run/pageferry for root; $XDG_RUNTIME_DIR/pageferry, or else /run/user/UID/pageferry.
 * Errors: -ENAMETOOLONG.
 */
int control_folder(char *out, size_t size);

#endif
