// SPDX-License-Identifier: Apache-2.0
/* The pageferry program: finds the command, reads its options, runs it. */
#include <stdio.h>
#include <string.h>

#include "base/util.h"
#include "tools/command.h"
#include "tools/json.h"
#include "tools/supervise.h"

static const struct command *const commands[] = {
	&cmd_probe,   &cmd_serve,   &cmd_attach, &cmd_handler, &cmd_criu, &cmd_cloud_hypervisor,
	&cmd_receive, &cmd_migrate, &cmd_status, &cmd_trace,
};

static const char exit_notes[] =
	"Exit status: 0 done; 1 failed, and the guest runs on the source or nothing was changed;\n"
	"2 wrong usage; 3 the guest is on the target and waits for recovery; 4 the guest is "
	"lost;\n"
	"5 everything is there, but --verify found it to be another's, or could not tell.\n";

static const struct command *find_command(const char *name)
{
	for (size_t i = 0; i < FERRY_ARRAY_SIZE(commands); i++) {
		if (!strcmp(commands[i]->name, name))
			return commands[i];
	}
	return NULL;
}

/* The names of parts are "trace record" and so on: what is asked for is behind the blank. */
static const struct command *find_part(const struct command *c, const char *name)
{
	for (const struct command *const *part = c->parts; *part; part++) {
		if (!strcmp(strchr((*part)->name, ' ') + 1, name))
			return *part;
	}
	return NULL;
}

static void print_version(void)
{
	printf("pageferry %s\n", PAGEFERRY_VERSION);
}

static void print_help(void)
{
	printf("Usage: pageferry COMMAND [OPTION...]\n\n"
	       "Moves a running guest's memory after the guest has already moved.\n\n"
	       "Commands:\n");
	for (size_t i = 0; i < FERRY_ARRAY_SIZE(commands); i++)
		printf("  %-16s %s\n", commands[i]->name, commands[i]->summary);
	printf("\nOptions:\n"
	       "  -h, --help        print this and end\n"
	       "  -V, --version     print the version and end\n\n"
	       "'pageferry COMMAND --help' lists a command's options.\n"
	       "An ADDR is HOST:PORT, [v6]:PORT or unix:PATH.\n\n%s",
	       exit_notes);
}

static void print_parts_help(const struct command *c)
{
	printf("Usage: pageferry %s %s\n\n%s\n\nCommands:\n", c->name, c->synopsis, c->summary);
	for (const struct command *const *part = c->parts; *part; part++)
		printf("  %-14s %s\n", (*part)->name, (*part)->summary);
	printf("\nOptions:\n"
	       "  -h, --help        print this and end\n"
	       "  -V, --version     print the version and end\n\n%s\n%s",
	       c->notes, exit_notes);
}

static void print_command_help(const struct command *c)
{
	printf("Usage: pageferry %s %s\n\n%s\n\nOptions:\n", c->name, c->synopsis, c->summary);
	options_print(c->options, stdout);
	if (c->notes)
		printf("\n%s", c->notes);
	printf("\n%s", exit_notes);
}

/* A script that reads JSON finds the end of the story there also when its own arguments are wrong.
 */
static int fail_usage(const char *name, int argc, char **argv, const char *text)
{
	fprintf(stderr, "pageferry%s%s: %s\n", *name ? " " : "", name, text);
	for (int i = 1; i < argc; i++) {
		if (!strcmp(argv[i], "--json")) {
			json_print_usage_error(name, text, EXIT_USAGE);
			break;
		}
	}
	return EXIT_USAGE;
}

static int run_command(const struct command *c, int argc, char **argv)
{
	struct ferry_failure f = {0};
	struct options o;

	if (options_parse(c->options, argc, argv, &o, &f) < 0)
		return fail_usage(c->name, argc, argv, f.text);
	if (o.help) {
		print_command_help(c);
		return EXIT_DONE;
	}
	if (o.version) {
		print_version();
		return EXIT_DONE;
	}
	if (c->check && c->check(&o, &f) < 0)
		return fail_usage(c->name, argc, argv, f.text);
	return o.supervise ? supervise(c, &o) : c->run(&o);
}

static int run_part(const struct command *c, int argc, char **argv)
{
	const struct command *part;
	char text[200];

	if (argc < 2) {
		snprintf(text, sizeof(text), "give a command; 'pageferry %s --help' lists them",
			 c->name);
		return fail_usage(c->name, argc, argv, text);
	}
	if (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h")) {
		print_parts_help(c);
		return EXIT_DONE;
	}
	if (!strcmp(argv[1], "--version") || !strcmp(argv[1], "-V")) {
		print_version();
		return EXIT_DONE;
	}
	part = find_part(c, argv[1]);
	if (part)
		return run_command(part, argc - 1, argv + 1);
	snprintf(text, sizeof(text), "unknown %s '%.60s'; 'pageferry %s --help' lists what there is",
		 argv[1][0] == '-' ? "option" : "command", argv[1], c->name);
	return fail_usage(c->name, argc, argv, text);
}

int main(int argc, char **argv)
{
	const struct command *c;
	char text[200];

	if (argc < 2)
		return fail_usage("", argc, argv, "give a command; 'pageferry --help' lists them");
	if (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h")) {
		print_help();
		return EXIT_DONE;
	}
	if (!strcmp(argv[1], "--version") || !strcmp(argv[1], "-V")) {
		print_version();
		return EXIT_DONE;
	}
	c = find_command(argv[1]);
	if (!c) {
		snprintf(text, sizeof(text),
			 "unknown %s '%.60s'; 'pageferry --help' lists what there is",
			 argv[1][0] == '-' ? "option" : "command", argv[1]);
		return fail_usage("", argc, argv, text);
	}
	return c->parts ? run_part(c, argc - 1, argv + 1) : run_command(c, argc - 1, argv + 1);
}
