/* SPDX-License-Identifier: Apache-2.0 */
/* The other end of a control socket: ask a running command something. */
#ifndef FERRY_TOOLS_ASK_H
#define FERRY_TOOLS_ASK_H

#include <jansson.h>

#include "base/error.h"

/* What an answer brought. */
struct ask_answer {
	json_t *json; /* owned by the caller; it has "command" */
	int fd;	      /* that came with it; owned by the caller; -1 for none */
	int pid;      /* of the process that answered */
};

/**
 * ask() - connect to the socket at @path, and get @what
 * Errors: what connecting gives; -EPROTO for something else than a control socket; -ENODATA when it
 * answers with an error. In @f, with the path.
 */
int ask(const char *path, const char *what, struct ask_answer *out, struct ferry_failure *f);

/**
 * ask_all() - ask every running command of this user, in the order of the sockets' names
 * @each: @path is borrowed; on rc < 0 there is no @answer, which is otherwise given
 * Sockets that ended commands left behind are removed and not told.
 * Errors: -ENAMETOOLONG.
 */
int ask_all(const char *what,
	    void (*each)(void *ctx, const char *path, int rc, struct ask_answer *answer,
			 const struct ferry_failure *f),
	    void *ctx);

#endif
