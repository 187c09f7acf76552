/* SPDX-License-Identifier: Apache-2.0 */
/* What the parts of 'pageferry trace' share. */
#ifndef FERRY_TOOLS_CMD_TRACE_H
#define FERRY_TOOLS_CMD_TRACE_H

#include <jansson.h>

#include "tools/command.h"

/* The end of part @command: says @f if it is an error, and the last line of JSON with --json.
 * @summary: given, may be NULL. Return: the exit status. */
int trace_finish(const struct options *o, const char *command, const struct ferry_failure *f,
		 json_t *summary);

extern const struct command trace_live;

#endif
