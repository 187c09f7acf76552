/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Is the other end of a connection still there? For who waits for it, and does not want to for ever.
 *
 *     heard --2 s--> Ping --2 s--> Ping ... --10 s after heard--> lost
 *       ^______________ anything comes _____________|
 *
 * A connection that nobody waits on is not watched: who begins to wait says so by _heard.
 * Pure: time is given. One that stood still itself for long (a stopped process) asks once more before
 * it gives up.
 */
#ifndef FERRY_PROTOCOL_ALIVE_H
#define FERRY_PROTOCOL_ALIVE_H

#include <stdint.h>

#define FERRY_PING_MS	    2000
#define FERRY_LOST_AFTER_MS 10000

struct ferry_alive {
	uint64_t heard_ns;  /* something came, or the wait began */
	uint64_t asked_ns;  /* the first Ping since then; 0: none */
	uint64_t pinged_ns; /* the last one */
};

enum ferry_alive_verdict {
	FERRY_ALIVE_WAIT,
	FERRY_ALIVE_PING, /* send one, or have something under way that is as good */
	FERRY_ALIVE_LOST,
};

static inline void ferry_alive_heard(struct ferry_alive *a, uint64_t now_ns)
{
	*a = (struct ferry_alive){.heard_ns = now_ns};
}

/* What is to be done now? Any number of times; @now_ns does not go back. */
enum ferry_alive_verdict ferry_alive_look(struct ferry_alive *a, uint64_t now_ns);

#endif
