/* SPDX-License-Identifier: Apache-2.0 */
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>

#include "base/machine.h"

enum { IDLE, BUSY, DONE };

static const struct ferry_state_def states[] = {
	[IDLE] = {"idle", "nothing to do", FERRY_STATE_BIT(BUSY)},
	[BUSY] = {"busy", "at work", FERRY_STATE_BIT(IDLE) | FERRY_STATE_BIT(DONE)},
	[DONE] = {"done", "for good", 0},
};

static const struct ferry_machine_def def = {"worker", states, 3};

Test(machine, moves_along_the_table)
{
	struct ferry_machine m;

	ferry_machine_init(&m, &def, IDLE);
	cr_assert_str_eq(ferry_machine_state_name(&m), "idle");
	cr_assert_eq(ferry_machine_move(&m, BUSY), 0);
	cr_assert_eq(ferry_machine_move(&m, DONE), 0);
	cr_assert_str_eq(ferry_machine_state_name(&m), "done");
}

Test(machine, every_other_move_is_refused_and_changes_nothing)
{
	for (unsigned int from = IDLE; from <= DONE; from++) {
		for (unsigned int to = IDLE; to < 70; to++) {
			struct ferry_machine m, before;
			bool legal = to <= DONE && states[from].next >> to & 1;

			ferry_machine_init(&m, &def, from);
			before = m;
			cr_assert_eq(ferry_machine_move(&m, to), legal ? 0 : -EPROTO);
			if (!legal)
				cr_assert_eq(memcmp(&m, &before, sizeof(m)), 0);
		}
	}
}

Test(machine, history_is_oldest_first)
{
	struct ferry_machine m;
	char text[64];

	ferry_machine_init(&m, &def, IDLE);
	ferry_machine_move(&m, BUSY);
	ferry_machine_move(&m, BUSY); /* refused: no trace */
	ferry_machine_move(&m, DONE);
	ferry_machine_history(&m, text, sizeof(text));
	cr_assert_str_eq(text, "idle > busy > done");
}

/* Only the last moves are kept: one less than fit, as many, one more, and far more. */
Test(machine, history_keeps_the_last_moves)
{
	for (unsigned int n = FERRY_MACHINE_HISTORY - 1; n < 3 * FERRY_MACHINE_HISTORY; n++) {
		unsigned int kept = n < FERRY_MACHINE_HISTORY ? n : FERRY_MACHINE_HISTORY;
		char text[256], want[256] = "";
		struct ferry_machine m;

		ferry_machine_init(&m, &def, IDLE);
		for (unsigned int i = 1; i < n; i++)
			cr_assert_eq(ferry_machine_move(&m, i % 2 ? BUSY : IDLE), 0);
		for (unsigned int i = n - kept; i < n; i++) {
			strcat(want, want[0] ? " > " : "");
			strcat(want, i % 2 ? "busy" : "idle");
		}
		ferry_machine_history(&m, text, sizeof(text));
		cr_assert_str_eq(text, want);
	}
}

Test(machine, history_is_cut_to_the_room_there_is)
{
	struct ferry_machine m;
	char text[32];

	ferry_machine_init(&m, &def, IDLE);
	ferry_machine_move(&m, BUSY);
	ferry_machine_move(&m, DONE);
	for (size_t size = 1; size <= strlen("idle > busy > done") + 1; size++) {
		memset(text, '#', sizeof(text));
		ferry_machine_history(&m, text, size);
		cr_assert_eq(strlen(text), size - 1);
		cr_assert_eq(strncmp(text, "idle > busy > done", size - 1), 0);
		cr_assert_eq(text[size], '#');
	}
	ferry_machine_history(&m, NULL, 0);
}
