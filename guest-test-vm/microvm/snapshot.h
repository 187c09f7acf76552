/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Snapshots, as Firecracker has them: a file of the guest's memory, one of its state beside it, and
 * a restore whose page faults somebody else serves.
 */
#ifndef MICROVM_SNAPSHOT_H
#define MICROVM_SNAPSHOT_H

#include "machine.h"

/* Write the memory to @path, and the state of the stopped guest to @path with ".state" behind it.
 * Errors: negative errno, text in @why (CPU_WHY_MAX). */
int snapshot_save(const char *path, const struct machine *m, uint64_t bytes,
		  const struct machine_state *state, char *why);

/* Read a state that was saved. */
int snapshot_load_state(const char *path, struct machine_state *state, char *why);

/**
 * snapshot_hand_over() - let the handler that listens at @socket serve the machine's page faults
 * Registers the memory for missing pages and discards, connects, and sends where it is with the
 * userfaultfd: Firecracker's mem_backend of type Uffd.
 * Return: the connection and the userfaultfd in @fds, which must stay open as long as the machine.
 */
int snapshot_hand_over(const char *socket, const struct machine *m, uint64_t bytes, int fds[2],
		       char *why);

/* Give up what is missing: who waits for it goes on with zeros. Closes @fds. */
void snapshot_abandon(const struct machine *m, uint64_t bytes, const int fds[2]);

#endif
