/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A micro-VM: memory, vCPUs with a thread each, and the guest's reports. One thread of the owner's
 * calls all of this.
 */
#ifndef MICROVM_MACHINE_H
#define MICROVM_MACHINE_H

#include <stdbool.h>
#include <stdint.h>

#include "cpu.h"
#include "layout.h"

enum machine_cpu {
	MACHINE_AUTO, /* KVM where it works, else native */
	MACHINE_KVM,
	MACHINE_KVM_IRQCHIP,
	MACHINE_NATIVE,
};

enum machine_backing {
	MACHINE_ANON,
	MACHINE_MEMFD,
};

struct machine_config {
	uint64_t bytes; /* MICROVM_MIN_BYTES to _MAX_BYTES, a multiple of 2 MiB */
	uint32_t n_vcpus;
	enum machine_cpu cpu;
	enum machine_backing backing;
	enum microvm_workload workload;
	uint64_t seed;
	const char *trace_file; /* gets the record of the faults of a guest that comes; NULL: none */
};

/* What a stopped guest is, besides its memory. Moves between processes as it is. */
struct machine_state {
	uint64_t magic;
	uint64_t bytes;
	uint32_t n_vcpus;
	uint32_t reserved;
	struct cpu_regs regs[MICROVM_MAX_VCPUS];
};

/* Of all vCPUs together. */
struct machine_stats {
	uint64_t ops, writes, bad_pages, bad_steps;
	uint64_t stall_max_us, stalls_over_100us;
	uint64_t stalls[MICROVM_BUCKETS];
};

struct machine;

/* How long to wait, milliseconds, for what takes longer the more memory there is: slow hosts and
 * links are right as well, and only who stands still is wrong. */
int machine_patience_ms(const struct machine_config *config);

/* Memory as big as the config says, untouched. Errors: negative errno, text in @why. */
int machine_new(struct machine **out, const struct machine_config *config, char *why);
void machine_free(struct machine *m);

void *machine_memory(const struct machine *m);
int machine_memory_fd(const struct machine *m); /* -1 for anonymous memory */
const char *machine_cpu_name(const struct machine *m);

/* Load the guest and let it run from its start. Returns when it has filled its memory. */
int machine_boot(struct machine *m, char *why);

/* Take a guest over and let it run at once. Touches no memory of its by itself. */
int machine_resume(struct machine *m, const struct machine_state *state, char *why);

/* Stop all vCPUs. Errors: -ESRCH when it doesn't run. */
int machine_stop(struct machine *m, struct machine_state *state, char *why);

/* Have every vCPU do @ops more operations, and wait for it. */
int machine_reach(struct machine *m, uint64_t ops, char *why);

/* Have the guest look at all of its pages, and wait for it. */
int machine_verify(struct machine *m, char *why);

void machine_stats(const struct machine *m, struct machine_stats *out);

/* What is bad, for people: the first bad page, or registers. Empty when nothing is. */
void machine_describe_bad(const struct machine *m, char *out, size_t size);

/* The offset of a data page in the memory. */
uint64_t machine_page_offset(const struct machine *m, uint64_t page);

#endif
