/* SPDX-License-Identifier: Apache-2.0 */
/* Moves a guest between two processes, back and forth, and says what it saw. */
#ifndef MICROVM_SHUTTLE_H
#define MICROVM_SHUTTLE_H

#include "machine.h"

struct shuttle_config {
	uint32_t n_moves;
	uint64_t ops; /* of each vCPU, before each move and while memory is on its way */
	const char *listen;
};

/* Return: an exit status: 0 when all moves were made and no page is bad. */
int shuttle_run(const struct machine_config *machine, const struct shuttle_config *config);

#endif
