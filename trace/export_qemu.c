/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "trace/export.h"
#include "trace/json_out.h"
#include "trace/waits.h"

#define BUCKETS 24

/* A vCPU (or, where none has a name, any thread) and what it waited. */
struct cpu {
	uint32_t thread;
	unsigned long number;
	uint64_t blocked_ns;
	uint64_t remote_ns, n_remote;
};

struct cpus {
	struct cpu *v; /* owned; by number */
	size_t n;
};

/* An end of a wait of one cpu. */
struct edge {
	uint64_t at_ns;
	int step; /* 1: begins to wait; -1: goes on */
};

static bool is_cpu(const struct ferry_trace_log *log, uint32_t thread, unsigned long *number)
{
	const char *name = ferry_trace_thread_name(log, thread);
	char *end;

	if (!name || strncmp(name, "CPU ", 4))
		return false;
	*number = strtoul(name + 4, &end, 10);
	return end != name + 4 && *end == '/';
}

static int by_number(const void *a, const void *b)
{
	const struct cpu *x = a, *y = b;

	return x->number < y->number ? -1 : x->number > y->number;
}

static int find_cpus(struct cpus *c, const struct ferry_trace_log *log,
		     const struct ferry_stats *stats)
{
	unsigned long number;

	*c = (struct cpus){.v = calloc(stats->threads.n + 1, sizeof(*c->v))};
	if (!c->v)
		return -ENOMEM;
	for (size_t i = 0; i < stats->threads.n; i++)
		if (is_cpu(log, stats->threads.v[i].id, &number))
			c->v[c->n++] =
				(struct cpu){.thread = stats->threads.v[i].id, .number = number};
	for (size_t i = 0; !c->n && i < stats->threads.n; i++)
		c->v[i] = (struct cpu){.thread = stats->threads.v[i].id, .number = i};
	if (!c->n)
		c->n = stats->threads.n;
	qsort(c->v, c->n, sizeof(*c->v), by_number);
	return 0;
}

static struct cpu *cpu_of(const struct cpus *c, uint32_t thread)
{
	for (size_t i = 0; i < c->n; i++)
		if (c->v[i].thread == thread)
			return &c->v[i];
	return NULL;
}

static int by_time(const void *a, const void *b)
{
	const struct edge *x = a, *y = b;

	if (x->at_ns != y->at_ns)
		return x->at_ns < y->at_ns ? -1 : 1;
	return x->step - y->step; /* who ends at the moment another begins overlaps not */
}

/* The time during which all of @n_cpus waited. */
static uint64_t all_blocked(struct edge *edges, size_t n, size_t n_cpus)
{
	uint64_t sum = 0, since = 0;
	size_t blocked = 0;

	qsort(edges, n, sizeof(*edges), by_time);
	for (size_t i = 0; i < n; i++) {
		if (blocked == n_cpus && n_cpus)
			sum += edges[i].at_ns - since;
		blocked += (size_t)edges[i].step;
		since = edges[i].at_ns;
	}
	return sum;
}

/* Return: all_blocked(), or -ENOMEM. Fills in the cpus. */
static int64_t blocktimes(struct cpus *c, const struct ferry_trace_log *log,
			  const struct ferry_stats *stats)
{
	_cleanup_free_ struct edge *edges = NULL;
	struct ferry_waits w;
	uint64_t total;
	size_t n = 0;

	if (ferry_waits_init(&w, log, stats) < 0)
		return -ENOMEM;
	edges = calloc(2 * w.n + 1, sizeof(*edges));
	for (size_t i = 0; edges && i < w.n; i++) {
		struct cpu *cpu = cpu_of(c, w.v[i].thread);

		if (!cpu)
			continue;
		cpu->blocked_ns += w.v[i].end_ns - w.v[i].begin_ns;
		/* Unknown threads overlap, and could be counted twice. */
		if (!w.v[i].thread)
			continue;
		edges[n++] = (struct edge){w.v[i].begin_ns, 1};
		edges[n++] = (struct edge){w.v[i].end_ns, -1};
	}
	ferry_waits_fini(&w);
	if (!edges)
		return -ENOMEM;
	total = all_blocked(edges, n, c->n);
	return (int64_t)total;
}

static void latencies(struct ferry_json *j, const struct cpus *c, const struct ferry_trace_log *log,
		      struct ferry_stats *stats)
{
	uint64_t dist[BUCKETS] = {0}, other_ns = 0, n_other = 0;

	for (size_t i = 0; i < log->faults.n; i++) {
		uint64_t ns = stats->splits[i].total_ns, us = ns / FERRY_NS_PER_US;
		struct cpu *cpu = cpu_of(c, log->faults.v[i].fault.thread);
		unsigned int bucket = us ? 63u - (unsigned int)__builtin_clzll(us) : 0;

		if (log->faults.v[i].flags & FERRY_FAULT_F_LOCAL)
			continue;
		dist[bucket < BUCKETS ? bucket : BUCKETS - 1]++;
		if (cpu) {
			cpu->remote_ns += ns;
			cpu->n_remote++;
		} else {
			other_ns += ns;
			n_other++;
		}
	}
	ferry_json_u64(j, "postcopy-latency", ferry_series_mean(&stats->total));
	ferry_json_open(j, "postcopy-latency-dist", '[');
	for (unsigned int i = 0; i < BUCKETS; i++)
		ferry_json_u64(j, NULL, dist[i]);
	ferry_json_close(j, ']');
	ferry_json_open(j, "postcopy-vcpu-latency", '[');
	for (size_t i = 0; i < c->n; i++)
		ferry_json_u64(j, NULL,
			       c->v[i].n_remote ? c->v[i].remote_ns / c->v[i].n_remote : 0);
	ferry_json_close(j, ']');
	ferry_json_u64(j, "postcopy-non-vcpu-latency", n_other ? other_ns / n_other : 0);
}

int ferry_export_qemu(FILE *to, const struct ferry_trace_log *log, struct ferry_stats *stats)
{
	struct ferry_json j = {.to = to};
	struct cpus cpus;
	int64_t blocked = find_cpus(&cpus, log, stats);

	if (!blocked)
		blocked = blocktimes(&cpus, log, stats);
	if (blocked < 0) {
		free(cpus.v);
		return (int)blocked;
	}
	ferry_json_open(&j, NULL, '{');
	ferry_json_open(&j, "ram", '{');
	ferry_json_u64(&j, "postcopy-requests", stats->total.n);
	ferry_json_close(&j, '}');
	ferry_json_u64(&j, "postcopy-blocktime", (uint64_t)blocked / FERRY_NS_PER_MS);
	ferry_json_open(&j, "postcopy-vcpu-blocktime", '[');
	for (size_t i = 0; i < cpus.n; i++)
		ferry_json_u64(&j, NULL, cpus.v[i].blocked_ns / FERRY_NS_PER_MS);
	ferry_json_close(&j, ']');
	latencies(&j, &cpus, log, stats);
	ferry_json_close(&j, '}');
	fputc('\n', to);
	free(cpus.v);
	return ferror(to) ? -EIO : 0;
}
