/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Checked state machines. A machine is one table of states: name, meaning and the states that may
 * follow. A move is checked against the table before it is written, and the last moves are kept
 * for error dumps. Nothing else writes the state. docs/states.md is printed from these tables.
 */
#ifndef FERRY_BASE_MACHINE_H
#define FERRY_BASE_MACHINE_H

#include <stddef.h>
#include <stdint.h>

#define FERRY_MACHINE_HISTORY 16

struct ferry_state_def {
	const char *name;
	const char *meaning;
	uint64_t next; /* set of allowed next states: bit s for state s */
};

struct ferry_machine_def {
	const char *name;
	const struct ferry_state_def *states; /* indexed by state number */
	size_t n_states;		      /* at most 64 */
};

struct ferry_machine {
	const struct ferry_machine_def *def; /* borrowed for the machine's life */
	unsigned int state;
	unsigned int n_moves; /* ever */
	uint8_t history[FERRY_MACHINE_HISTORY]; /* states entered, newest at (n_moves - 1) % size */
};

#define FERRY_STATE_BIT(s) (UINT64_C(1) << (s))

void ferry_machine_init(struct ferry_machine *m, const struct ferry_machine_def *def,
			unsigned int first);

/* Return: 0, or -EPROTO when the table has no such move; the state is then unchanged. */
int ferry_machine_move(struct ferry_machine *m, unsigned int to);

const char *ferry_machine_state_name(const struct ferry_machine *m);

/* Write the last moves, oldest first, as "a > b > c" into @out. */
void ferry_machine_history(const struct ferry_machine *m, char *out, size_t size);

#endif
