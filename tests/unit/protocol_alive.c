/* SPDX-License-Identifier: Apache-2.0 */
#include <criterion/criterion.h>

#include "base/clock.h"
#include "protocol/alive.h"

#define MS(n) ((n) * (uint64_t)FERRY_NS_PER_MS)

#define START MS(5000000)

static struct ferry_alive heard_at(uint64_t now)
{
	struct ferry_alive a;

	ferry_alive_heard(&a, now);
	return a;
}

Test(alive, pings_each_two_seconds_and_is_lost_after_ten)
{
	struct ferry_alive a = heard_at(START);
	unsigned int n_pings = 0;

	for (unsigned int ms = 0; ms < FERRY_LOST_AFTER_MS; ms++) {
		enum ferry_alive_verdict v = ferry_alive_look(&a, START + MS(ms));

		cr_assert_eq(v, ms && ms % FERRY_PING_MS == 0 ? FERRY_ALIVE_PING : FERRY_ALIVE_WAIT, "%u ms", ms);
		n_pings += v == FERRY_ALIVE_PING;
	}
	cr_assert_eq(n_pings, 4);
	cr_assert_eq(ferry_alive_look(&a, START + MS(FERRY_LOST_AFTER_MS)), FERRY_ALIVE_LOST);
}

Test(alive, anything_that_comes_begins_it_anew)
{
	struct ferry_alive a = heard_at(START);
	uint64_t now = START;

	for (unsigned int i = 0; i < 10; i++) {
		for (unsigned int ms = 0; ms < FERRY_LOST_AFTER_MS; ms += 100)
			cr_assert_neq(ferry_alive_look(&a, now + MS(ms)), FERRY_ALIVE_LOST);
		now += MS(FERRY_LOST_AFTER_MS) - 1;
		ferry_alive_heard(&a, now);
		cr_assert_eq(ferry_alive_look(&a, now), FERRY_ALIVE_WAIT);
	}
}

/* Nobody looked for a minute: that the other end was silent for so long is not its fault. */
Test(alive, who_stood_still_asks_before_it_gives_up)
{
	struct ferry_alive a = heard_at(START);
	uint64_t now = START + MS(60000);

	cr_assert_eq(ferry_alive_look(&a, now), FERRY_ALIVE_PING);
	cr_assert_eq(ferry_alive_look(&a, now + MS(FERRY_PING_MS) - 1), FERRY_ALIVE_WAIT);
	cr_assert_eq(ferry_alive_look(&a, now + MS(FERRY_PING_MS)), FERRY_ALIVE_LOST);
}
