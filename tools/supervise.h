/* SPDX-License-Identifier: Apache-2.0 */
/* A parent that does nothing but to start a killed command again. */
#ifndef FERRY_TOOLS_SUPERVISE_H
#define FERRY_TOOLS_SUPERVISE_H

#include "tools/command.h"

/**
 * supervise() - run a command in a child, again and again until it ends by itself
 * It recovers what one before it has left, and begins where there is nothing. SIGINT and SIGTERM go
 * on to it. When we are killed ourselves it goes on, and whoever starts another of us is refused
 * until it has ended.
 * Return: the exit status.
 */
int supervise(const struct command *c, const struct options *o);

#endif
