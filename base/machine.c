/* SPDX-License-Identifier: Apache-2.0 */
#include "base/machine.h"

#include <errno.h>
#include <stdio.h>

static void enter(struct ferry_machine *m, unsigned int state)
{
	m->state = state;
	m->history[m->n_moves++ % FERRY_MACHINE_HISTORY] = (uint8_t)state;
}

void ferry_machine_init(struct ferry_machine *m, const struct ferry_machine_def *def,
			unsigned int first)
{
	*m = (struct ferry_machine){.def = def};
	enter(m, first);
}

int ferry_machine_move(struct ferry_machine *m, unsigned int to)
{
	if (to >= m->def->n_states || !(m->def->states[m->state].next & FERRY_STATE_BIT(to)))
		return -EPROTO;
	enter(m, to);
	return 0;
}

const char *ferry_machine_state_name(const struct ferry_machine *m)
{
	return m->def->states[m->state].name;
}

void ferry_machine_history(const struct ferry_machine *m, char *out, size_t size)
{
	unsigned int n = m->n_moves < FERRY_MACHINE_HISTORY ? m->n_moves : FERRY_MACHINE_HISTORY;
	size_t len = 0;

	if (size)
		out[0] = '\0';
	for (unsigned int i = m->n_moves - n; i != m->n_moves && len < size; i++) {
		unsigned int s = m->history[i % FERRY_MACHINE_HISTORY];
		int w = snprintf(out + len, size - len, "%s%s", len ? " > " : "",
				 m->def->states[s].name);

		len += (size_t)w;
	}
}
