/* SPDX-License-Identifier: Apache-2.0 */
/* migrate --pause, --continue and --cancel: both ends of that conversation. */
#ifndef FERRY_TOOLS_STEER_H
#define FERRY_TOOLS_STEER_H

#include "migrate/switchover.h"
#include "tools/command.h"
#include "tools/control.h"

/* What a running migrate answers; the last has no ->get. Their context is a struct ferry_steering. */
extern const struct control_request steer_requests[];

/* Is that what is asked for? */
static inline bool steer_is_wanted(const struct options *o)
{
	return o->pause || o->go_on || o->cancel;
}

/* Ask a running migrate. Return: the exit status. */
int steer(const struct options *o);

#endif
