/* SPDX-License-Identifier: Apache-2.0 */
/* Prints states.md from the tables that the code checks its moves against; a test compares them. */
#include <stdio.h>

#include "base/util.h"
#include "migrate/switch_core.h"
#include "pageserver/session.h"
#include "protocol/connection.h"

static void print_machine(const struct ferry_machine_def *d, const char *where)
{
	printf("\n## %s\nIn `%s`.\n\n| state | meaning | next |\n|---|---|---|\n", d->name, where);
	for (size_t i = 0; i < d->n_states; i++) {
		const char *comma = "";

		printf("| %s | %s | ", d->states[i].name, d->states[i].meaning);
		for (size_t k = 0; k < d->n_states; k++) {
			if (!(d->states[i].next & FERRY_STATE_BIT(k)))
				continue;
			printf("%s%s", comma, d->states[k].name);
			comma = ", ";
		}
		printf("%s |\n", *comma ? "" : "-");
	}
}

int main(void)
{
	printf("# States\n\nPrinted from the tables in the code by `docs/states.c`; each move is checked "
	       "against them before it is made.\n");
	print_machine(&ferry_connection_machine, "protocol/connection.c");
	print_machine(&ferry_session_machine, "pageserver/session.c");
	print_machine(&ferry_switch_source_machine, "migrate/switch_core.c");
	print_machine(&ferry_switch_target_machine, "migrate/switch_core.c");
	printf("\n## stages of a switchover\nWhat was begun is undone, the last stage first; from "
	       "`confirm` on there is no way back.\n\n| stage | source | target |\n|---|---|---|\n");
	for (size_t i = 0; i < FERRY_N_STAGES; i++)
		printf("| %s | %s | %s |\n", ferry_stages[i].name,
		       ferry_stages[i].source[0] ? ferry_stages[i].source : "-",
		       ferry_stages[i].target[0] ? ferry_stages[i].target : "-");
	return 0;
}
