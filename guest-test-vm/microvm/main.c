/* SPDX-License-Identifier: Apache-2.0 */
/* Options of the micro-VM. */
#include <fcntl.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "monitor.h"
#include "shuttle.h"

#define EXIT_SKIPPED 77

static const char usage[] =
	"usage: microvm [OPTION...]\n"
	"A virtual machine of a few hundred lines whose guest checks its own memory.\n"
	"\n"
	"  --memory SIZE[M|G]  16M to 8G (64M)\n"
	"  --vcpus N           1 to 8 (1)\n"
	"  --cpu WHAT          kvm; kvm-irqchip: as well, with interrupt controllers, so that KVM "
	"has\n"
	"                      threads of its own wait for missing pages; native: as a thread of\n"
	"                      the process; auto: kvm where it works, else native (auto)\n"
	"  --backing WHAT      anon or memfd (anon)\n"
	"  --workload WHAT     sequential, random, writes, or hot: nine of ten operations in one\n"
	"                      tenth of the memory (random)\n"
	"  --seed N            of the content and of the order (1)\n"
	"  --moves N           move it N times between two processes and verify it (1)\n"
	"  --ops N             operations of each vCPU before and during each move (20000)\n"
	"  --listen ADDR       where the source listens (127.0.0.1:0)\n"
	"  --trace FILE        the target's record of faults, for 'pageferry trace report'\n"
	"  --monitor           be one process's end, driven by lines on standard input\n"
	"  --require-cpu       with --cpu kvm...: exit with 77 where that can't be used\n"
	"  --help\n"
	"\n"
	"Exit status: 0 all moves were made and no page is bad; 1 not so; 2 usage.\n";

enum {
	MEMORY = 256,
	VCPUS,
	CPU,
	BACKING,
	WORKLOAD,
	SEED,
	MOVES,
	OPS,
	LISTEN,
	TRACE,
	MONITOR,
	REQUIRE,
	HELP
};

static const struct option options[] = {
	{"memory", required_argument, NULL, MEMORY},
	{"vcpus", required_argument, NULL, VCPUS},
	{"cpu", required_argument, NULL, CPU},
	{"backing", required_argument, NULL, BACKING},
	{"workload", required_argument, NULL, WORKLOAD},
	{"seed", required_argument, NULL, SEED},
	{"moves", required_argument, NULL, MOVES},
	{"ops", required_argument, NULL, OPS},
	{"listen", required_argument, NULL, LISTEN},
	{"trace", required_argument, NULL, TRACE},
	{"monitor", no_argument, NULL, MONITOR},
	{"require-cpu", no_argument, NULL, REQUIRE},
	{"help", no_argument, NULL, HELP},
	{0},
};

struct arguments {
	struct machine_config machine;
	struct shuttle_config shuttle;
	bool monitor, require_cpu;
};

/* Return: the position of @text in the list, or -1. */
static int one_of(const char *text, const char *const *list, int n)
{
	for (int i = 0; i < n; i++)
		if (!strcmp(text, list[i]))
			return i;
	return -1;
}

/* Return: false when it is no number with an optional unit. */
static bool number(const char *text, uint64_t *out)
{
	char *end;

	*out = strtoull(text, &end, 10);
	if (end == text)
		return false;
	if (*end == 'M' || *end == 'G')
		*out <<= *end++ == 'M' ? 20 : 30;
	return !*end;
}

static bool take_option(struct arguments *a, int option, const char *text)
{
	static const char *const cpus[] = {"auto", "kvm", "kvm-irqchip", "native"};
	static const char *const backings[] = {"anon", "memfd"};
	static const char *const workloads[] = {"sequential", "random", "writes", "hot"};
	uint64_t n = 0;
	int which = -1;

	switch (option) {
	case CPU:
		which = one_of(text, cpus, 4);
		a->machine.cpu = (enum machine_cpu)which;
		return which >= 0;
	case BACKING:
		which = one_of(text, backings, 2);
		a->machine.backing = (enum machine_backing)which;
		return which >= 0;
	case WORKLOAD:
		which = one_of(text, workloads, 4);
		a->machine.workload = (enum microvm_workload)which;
		return which >= 0;
	case LISTEN:
		a->shuttle.listen = text;
		return true;
	case TRACE:
		a->machine.trace_file = text;
		return true;
	case MONITOR:
		a->monitor = true;
		return true;
	case REQUIRE:
		a->require_cpu = true;
		return true;
	}
	if (!text || !number(text, &n))
		return false;
	switch (option) {
	case MEMORY:
		a->machine.bytes = n;
		return true;
	case VCPUS:
		a->machine.n_vcpus = (uint32_t)n;
		return n >= 1 && n <= MICROVM_MAX_VCPUS;
	case SEED:
		a->machine.seed = n;
		return true;
	case MOVES:
		a->shuttle.n_moves = (uint32_t)n;
		return n <= UINT32_MAX;
	case OPS:
		a->shuttle.ops = n;
		return true;
	}
	return false;
}

/* Is there a processor of the kind that was asked for? Makes a VM of the smallest size to see. */
static int try_cpu(const struct machine_config *wanted)
{
	struct machine_config config = *wanted;
	char why[CPU_WHY_MAX];
	struct machine *m;

	config.bytes = MICROVM_MIN_BYTES;
	if (machine_new(&m, &config, why) < 0) {
		printf("SKIP: %s\n", why);
		return EXIT_SKIPPED;
	}
	machine_free(m);
	return 0;
}

int main(int argc, char **argv)
{
	struct arguments a = {
		.machine = {.bytes = 64u << 20,
			    .n_vcpus = 1,
			    .workload = MICROVM_RANDOM,
			    .seed = 1},
		.shuttle = {.n_moves = 1, .ops = 20000, .listen = "127.0.0.1:0"},
	};
	int option, rc;

	while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
		if (option == HELP) {
			fputs(usage, stdout);
			return 0;
		}
		if (option == '?' || !take_option(&a, option, optarg)) {
			fprintf(stderr, "microvm: see --help for what options take\n");
			return 2;
		}
	}
	if (optind != argc) {
		fprintf(stderr, "microvm: '%s' is no option; see --help\n", argv[optind]);
		return 2;
	}
	if (a.require_cpu) {
		rc = try_cpu(&a.machine);
		if (rc)
			return rc;
	}
	return a.monitor ? monitor_run(&a.machine, stdin, stdout)
			 : shuttle_run(&a.machine, &a.shuttle);
}
