/* SPDX-License-Identifier: Apache-2.0 */
#include <criterion/criterion.h>

#include "pageserver/opening.h"

#define T0  (1000 * (uint64_t)FERRY_NS_PER_MS)
#define MAX (60 * (uint64_t)FERRY_NS_PER_MS)

Test(opening, begins_with_a_request_and_ends_when_no_more_come)
{
	struct ferry_opening o = {.max_ns = MAX};

	cr_assert(!ferry_opening_lasts(&o, T0), "nothing was asked for yet");
	ferry_opening_asked(&o, T0);
	cr_assert(ferry_opening_lasts(&o, T0));
	cr_assert(ferry_opening_lasts(&o, T0 + MAX / FERRY_OPENING_QUIET - 1));
	cr_assert(!ferry_opening_lasts(&o, T0 + MAX / FERRY_OPENING_QUIET));
}

Test(opening, has_an_end_however_much_is_asked_for)
{
	struct ferry_opening o = {.max_ns = MAX};
	uint64_t now, held = 0;

	for (now = T0; now < T0 + 10 * (uint64_t)FERRY_NS_PER_S; now += FERRY_NS_PER_MS) {
		ferry_opening_asked(&o, now);
		held += ferry_opening_lasts(&o, now);
	}
	cr_assert_eq(held, MAX / FERRY_NS_PER_MS);
}

Test(opening, comes_again_after_a_time_without_requests)
{
	struct ferry_opening o = {.max_ns = MAX};
	uint64_t again = T0 + FERRY_OPENING_IDLE_NS;

	ferry_opening_asked(&o, T0);
	ferry_opening_asked(&o, again);
	cr_assert(!ferry_opening_lasts(&o, again), "the time was too short");
	again += FERRY_OPENING_IDLE_NS + 1;
	ferry_opening_asked(&o, again);
	cr_assert(ferry_opening_lasts(&o, again));
}
