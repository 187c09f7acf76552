/* SPDX-License-Identifier: Apache-2.0 */
/* What one command of the program is made of. main.c has the table of them. */
#ifndef FERRY_TOOLS_COMMAND_H
#define FERRY_TOOLS_COMMAND_H

#include <stdbool.h>

#include "base/error.h"
#include "tools/options.h"

/* Exit statuses besides those of enum ferry_outcome. */
#define EXIT_DONE   0
#define EXIT_FAILED 1
#define EXIT_USAGE  2
#define EXIT_WAITS  3
#define EXIT_LOST   4
#define EXIT_UNVERIFIED 5 /* all is there, but differs from the source's, or --verify could not tell */

struct command {
	const char *name;
	const char *synopsis;		  /* its arguments, as --help shows them */
	const char *summary;		  /* one line */
	const char *notes;		  /* behind the options in --help; may be NULL */
	const struct option_def *options; /* the last has no name */
	unsigned int may_need; /* enum isolation_need, of all that --supervise can start; 0 without
				  that */

	/*
	 * What no single option can tell: contradictions, one of several missing. May be NULL.
	 * Errors: -EINVAL, with what to do in @f.
	 */
	int (*check)(const struct options *o, struct ferry_failure *f);

	/*
	 * Has an earlier one left a guest that waits for pages, or may have? Nobody else is at work
	 * on it. NULL where there is no --supervise.
	 */
	bool (*guest_waits)(const struct options *o);

	/* Return: the exit status. */
	int (*run)(const struct options *o);

	/* A command of several has these instead of options and ->run; the last is NULL. */
	const struct command *const *parts;
};

extern const struct command cmd_probe, cmd_serve, cmd_attach, cmd_handler, cmd_criu,
	cmd_cloud_hypervisor, cmd_receive, cmd_migrate, cmd_status, cmd_trace;

#endif
