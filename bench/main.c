/* SPDX-License-Identifier: Apache-2.0 */
/* The parts of the benchmark that time single microseconds. bench/run calls it; see README.md. */
#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>

#include "bench/bench.h"

static const struct {
	const char *name;
	int (*run)(const struct bench_options *o);
} commands[] = {
	{"floor", bench_floor},	  {"link", bench_link},	      {"forward", bench_forward},
	{"content", bench_content}, {"plain-serve", bench_plain_serve}, {"target", bench_target},
	{"clients", bench_clients}, {"plain-handler", bench_plain_handler},
};

static uint64_t number(const char *text)
{
	char *end;
	uint64_t n = strtoull(text, &end, 0);

	errno = 0;
	if (*end || end == text)
		bench_die("'%s' is not a number", text);
	return n;
}

static void parse(struct bench_options *o, int argc, char **argv)
{
	static const struct option known[] = {
		{"what", 1, NULL, 'w'},	  {"from", 1, NULL, 'f'},   {"to", 1, NULL, 't'},
		{"file", 1, NULL, 'i'},	  {"memory", 1, NULL, 'm'}, {"via", 1, NULL, 'v'},
		{"bytes", 1, NULL, 'b'},  {"threads", 1, NULL, 'n'}, {"faults", 1, NULL, 'c'},
		{"every", 1, NULL, 'e'},  {"clients", 1, NULL, 'k'}, {"delay-us", 1, NULL, 'd'},
		{"push", 0, NULL, 'p'},	  {0},
	};
	int c;

	while ((c = getopt_long(argc, argv, "", known, NULL)) != -1) {
		switch (c) {
		case 'w': o->what = optarg; break;
		case 'f': o->from = optarg; break;
		case 't': o->to = optarg; break;
		case 'i': o->file = optarg; break;
		case 'm': o->memory = optarg; break;
		case 'v': o->via = optarg; break;
		case 'b': o->bytes = number(optarg) / BENCH_PAGE * BENCH_PAGE; break;
		case 'n': o->threads = (uint32_t)number(optarg); break;
		case 'c': o->faults = (uint32_t)number(optarg); break;
		case 'e': o->every = (uint32_t)number(optarg); break;
		case 'k': o->clients = (uint32_t)number(optarg); break;
		case 'd': o->delay_us = (uint32_t)number(optarg); break;
		case 'p': o->push = true; break;
		default: exit(2);
		}
	}
	errno = 0;
	if (!o->bytes || !o->every || !o->clients)
		bench_die("--bytes, --every and --clients start at 1 (a page, a stripe, a target)");
}

int main(int argc, char **argv)
{
	struct bench_options o = {.memory = "anon", .via = "lazy", .bytes = 64u << 20, .faults = 0,
				  .every = 1, .clients = 1};
	struct rlimit files;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	/* Hundreds of targets have thousands of descriptors. */
	if (!getrlimit(RLIMIT_NOFILE, &files)) {
		files.rlim_cur = files.rlim_max;
		setrlimit(RLIMIT_NOFILE, &files);
	}
	for (size_t i = 0; argc > 1 && i < sizeof(commands) / sizeof(commands[0]); i++) {
		if (strcmp(commands[i].name, argv[1]))
			continue;
		parse(&o, argc - 1, argv + 1);
		return commands[i].run(&o);
	}
	fprintf(stderr, "bench: see bench/README.md\n");
	return 2;
}
