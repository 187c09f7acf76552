/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Runs a scenario again and again, each time in a process of its own in which one call fails. In the
 * end nothing may be left: no descriptor, thread, allocation or mapping.
 *
 *     PROGRAM [--cap N] [--only TEXT] [--list]
 *
 * All calls that the scenario makes fail in turn, with each of their errors; with a cap only so many
 * of each scenario: all of the rare calls, and of the others evenly chosen ones. --only runs those
 * whose line has TEXT in it; --list prints a line for each.
 */
#ifndef FERRY_TESTS_FAULT_DRIVER_H
#define FERRY_TESTS_FAULT_DRIVER_H

#include <errno.h>
#include <stdio.h>

#include "inject.h"

enum fault_outcome {
	FAULT_SURVIVED, /* all is well */
	FAULT_REFUSED,	/* an error was told, and nothing has happened */
	FAULT_GIVEN_UP, /* an error was told, and the work could not be finished */
	FAULT_WRONG,
};

struct fault_scenario {
	const char *name;
	enum fault_outcome (*run)(const void *arg, char why[256]); /* @why: of all but SURVIVED */
	const void *arg;
};

int fault_main(int argc, char **argv, const struct fault_scenario *scenarios, int n);

/* Calls of ours in between are counted, and may fail. Keeps errno. */
#define WITH_FAULTS(expression)                                                                    \
	({                                                                                         \
		fault_exempt = false;                                                              \
		__typeof__(expression) v_ = (expression);                                          \
		fault_exempt = true;                                                               \
		v_;                                                                                \
	})

#define WRONG(...)                                                                                 \
	({                                                                                         \
		snprintf(why, 256, __VA_ARGS__);                                                   \
		FAULT_WRONG;                                                                       \
	})

#endif
