/* SPDX-License-Identifier: Apache-2.0 */
#include "protocol/alive.h"

#include "base/clock.h"

#define PING_NS	      (FERRY_PING_MS * (uint64_t)FERRY_NS_PER_MS)
#define LOST_AFTER_NS (FERRY_LOST_AFTER_MS * (uint64_t)FERRY_NS_PER_MS)

enum ferry_alive_verdict ferry_alive_look(struct ferry_alive *a, uint64_t now_ns)
{
	uint64_t silent = now_ns - a->heard_ns;

	if (silent < PING_NS)
		return FERRY_ALIVE_WAIT;
	if (a->asked_ns && silent >= LOST_AFTER_NS && now_ns - a->asked_ns >= PING_NS)
		return FERRY_ALIVE_LOST;
	if (a->asked_ns && now_ns - a->pinged_ns < PING_NS)
		return FERRY_ALIVE_WAIT;
	a->pinged_ns = now_ns;
	if (!a->asked_ns)
		a->asked_ns = now_ns;
	return FERRY_ALIVE_PING;
}
