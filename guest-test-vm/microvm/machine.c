/* SPDX-License-Identifier: Apache-2.0 */
#include "machine.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "guest_blob.h"

_Static_assert(sizeof(guest_blob) <= MICROVM_CODE_MAX, "the guest's code fits where it goes");

#define PATIENCE_MS	 120000
#define PATIENCE_MIB_MS	 300 /* KVM with shadow page tables needs that much on a busy host */
#define CALIBRATE_NS	 20000000u
#define TABLE_PAGE_BYTES 4u /* of the table, a data page */

struct vcpu {
	struct machine *machine;
	uint32_t index;
	pthread_t thread;
	bool started;
	/* under machine->lock */
	struct cpu_vcpu *cpu; /* while it can be kicked */
	bool up;	      /* made, or failed: regs count */
	bool done;
	bool crashed;
	uint32_t reports; /* bit per enum microvm_report */
	char why[CPU_WHY_MAX];
	struct cpu_regs regs;
};

struct machine {
	struct machine_config config;
	const struct cpu_backend *backend;
	struct cpu_vm *vm;
	void *memory;
	int memory_fd;
	bool running;
	pthread_mutex_t lock;
	pthread_cond_t changed;
	struct vcpu vcpus[MICROVM_MAX_VCPUS];
};

static struct microvm_control *control(const struct machine *m)
{
	return m->memory;
}

/* --- set up ------------------------------------------------------------------------------------
 */

int machine_patience_ms(const struct machine_config *config)
{
	return PATIENCE_MS + (int)(config->bytes >> 20) * PATIENCE_MIB_MS;
}

static int map_memory(struct machine *m, char *why)
{
	void *wanted = (void *)(uintptr_t)MICROVM_BASE;
	int flags = MAP_NORESERVE | MAP_FIXED_NOREPLACE;

	if (m->config.backing == MACHINE_MEMFD) {
		m->memory_fd = memfd_create("microvm", MFD_CLOEXEC);
		if (m->memory_fd < 0 || ftruncate(m->memory_fd, (off_t)m->config.bytes) < 0) {
			snprintf(why, CPU_WHY_MAX, "memfd: %s", strerror(errno));
			return -errno;
		}
		flags |= MAP_SHARED;
	} else {
		flags |= MAP_PRIVATE | MAP_ANONYMOUS;
	}
	m->memory = mmap(wanted, m->config.bytes, PROT_READ | PROT_WRITE, flags, m->memory_fd, 0);
	if (m->memory == wanted)
		return 0;
	if (m->memory != MAP_FAILED)
		munmap(m->memory, m->config.bytes);
	m->memory = NULL;
	snprintf(why, CPU_WHY_MAX, "memory at %#llx: %s", MICROVM_BASE, strerror(errno));
	return -ENOMEM;
}

static int choose_cpu(struct machine *m, char *why)
{
	static const struct cpu_backend *const backends[] = {
		[MACHINE_AUTO] = &cpu_kvm,
		[MACHINE_KVM] = &cpu_kvm,
		[MACHINE_KVM_IRQCHIP] = &cpu_kvm_irqchip,
		[MACHINE_NATIVE] = &cpu_native,
	};
	int rc;

	m->backend = backends[m->config.cpu];
	rc = m->backend->vm_new(&m->vm, m->memory, m->config.bytes, why);
	if (rc < 0 && m->config.cpu == MACHINE_AUTO) {
		m->backend = &cpu_native;
		rc = m->backend->vm_new(&m->vm, m->memory, m->config.bytes, why);
	}
	return rc;
}

int machine_new(struct machine **out, const struct machine_config *config, char *why)
{
	pthread_condattr_t attr;
	struct machine *m;
	int rc;

	snprintf(why, CPU_WHY_MAX, "out of memory");
	if (config->bytes < MICROVM_MIN_BYTES || config->bytes > MICROVM_MAX_BYTES ||
	    config->bytes % (2u << 20) || !config->n_vcpus || config->n_vcpus > MICROVM_MAX_VCPUS) {
		snprintf(why, CPU_WHY_MAX, "16 MiB to 8 GiB in steps of 2 MiB, 1 to %u vCPUs",
			 MICROVM_MAX_VCPUS);
		return -EINVAL;
	}
	m = calloc(1, sizeof(*m));
	if (!m)
		return -ENOMEM;
	m->config = *config;
	m->memory_fd = -1;
	pthread_mutex_init(&m->lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&m->changed, &attr);
	pthread_condattr_destroy(&attr);
	rc = map_memory(m, why);
	if (!rc)
		rc = choose_cpu(m, why);
	if (rc < 0) {
		machine_free(m);
		return rc;
	}
	*out = m;
	return 0;
}

void machine_free(struct machine *m)
{
	struct machine_state state;
	char why[CPU_WHY_MAX];

	if (!m)
		return;
	if (m->running)
		(void)machine_stop(m, &state, why);
	if (m->vm)
		m->backend->vm_free(m->vm);
	if (m->memory)
		munmap(m->memory, m->config.bytes);
	if (m->memory_fd >= 0)
		close(m->memory_fd);
	pthread_cond_destroy(&m->changed);
	pthread_mutex_destroy(&m->lock);
	free(m);
}

void *machine_memory(const struct machine *m)
{
	return m->memory;
}

int machine_memory_fd(const struct machine *m)
{
	return m->memory_fd;
}

const char *machine_cpu_name(const struct machine *m)
{
	return m->backend->name;
}

/* --- a vCPU's thread ---------------------------------------------------------------------------
 */

static void announce(struct vcpu *v, struct cpu_vcpu *cpu, bool done)
{
	struct machine *m = v->machine;

	pthread_mutex_lock(&m->lock);
	v->cpu = cpu;
	v->up = true;
	v->done = done;
	pthread_cond_broadcast(&m->changed);
	pthread_mutex_unlock(&m->lock);
}

/* A crash of the guest is mostly one of its memory: is what it can't do without as it was? */
static void tell_of_memory(struct vcpu *v)
{
	const uint8_t *memory = v->machine->memory;
	const struct microvm_control *c = control(v->machine);
	size_t used = strlen(v->why);
	bool code = !memcmp(memory + MICROVM_CODE, guest_blob, sizeof(guest_blob));

	snprintf(v->why + used, sizeof(v->why) - used, "; its code is %s, its control page %s",
		 code ? "intact" : "damaged",
		 c->magic == MICROVM_MAGIC && c->n_pages && c->ticks_per_us ? "too" : "is damaged");
}

static void *vcpu_thread(void *arg)
{
	struct vcpu *v = arg;
	struct machine *m = v->machine;
	enum cpu_exit exit = CPU_DOORBELL;
	struct cpu_vcpu *cpu;
	char name[16];

	snprintf(name, sizeof(name), "vcpu%u", v->index);
	pthread_setname_np(pthread_self(), name);
	if (m->backend->vcpu_new(&cpu, m->vm, v->index, v->why) < 0) {
		v->crashed = true;
		announce(v, NULL, true);
		return NULL;
	}
	announce(v, cpu, false);
	while (exit == CPU_DOORBELL) {
		uint32_t report = 0;

		exit = m->backend->run(cpu, &v->regs, &report, v->why);
		if (exit == CPU_DOORBELL) {
			pthread_mutex_lock(&m->lock);
			v->reports |= 1u << (report % 32);
			pthread_cond_broadcast(&m->changed);
			pthread_mutex_unlock(&m->lock);
		}
	}
	v->crashed = exit == CPU_CRASHED;
	if (v->crashed)
		tell_of_memory(v);
	announce(v, NULL, true); /* nobody kicks it from here on */
	m->backend->vcpu_free(cpu);
	return NULL;
}

/* The vCPUs' registers are set. Returns when all of them run. */
static int start(struct machine *m, char *why)
{
	int rc = 0;

	m->running = true;
	for (uint32_t i = 0; !rc && i < m->config.n_vcpus; i++) {
		struct vcpu *v = &m->vcpus[i];
		struct cpu_regs regs = v->regs;

		*v = (struct vcpu){.machine = m, .index = i, .regs = regs};
		rc = -pthread_create(&v->thread, NULL, vcpu_thread, v);
		v->started = !rc;
		if (rc < 0)
			snprintf(why, CPU_WHY_MAX, "thread: %s", strerror(-rc));
	}
	pthread_mutex_lock(&m->lock);
	for (uint32_t i = 0; !rc && i < m->config.n_vcpus; i++) {
		struct vcpu *v = &m->vcpus[i];

		while (!v->up)
			pthread_cond_wait(&m->changed, &m->lock);
		if (v->done && v->crashed) {
			rc = -EIO;
			snprintf(why, CPU_WHY_MAX, "vCPU %u: %s", i, v->why);
		}
	}
	pthread_mutex_unlock(&m->lock);
	return rc;
}

int machine_stop(struct machine *m, struct machine_state *state, char *why)
{
	int rc = 0;

	if (!m->running)
		return -ESRCH;
	pthread_mutex_lock(&m->lock);
	for (uint32_t i = 0; i < m->config.n_vcpus; i++)
		if (m->vcpus[i].cpu)
			m->backend->kick(m->vcpus[i].cpu);
	pthread_mutex_unlock(&m->lock);
	*state = (struct machine_state){
		.magic = MICROVM_MAGIC, .bytes = m->config.bytes, .n_vcpus = m->config.n_vcpus};
	for (uint32_t i = 0; i < m->config.n_vcpus; i++) {
		struct vcpu *v = &m->vcpus[i];

		if (v->started)
			pthread_join(v->thread, NULL);
		v->started = false;
		state->regs[i] = v->regs;
		if (v->crashed) {
			snprintf(why, CPU_WHY_MAX, "vCPU %u: %.200s", i, v->why);
			rc = -EIO;
		}
	}
	m->running = false;
	return rc;
}

/* --- boot, resume ------------------------------------------------------------------------------
 */

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static uint64_t ticks_per_us(void)
{
	uint64_t ns = now_ns(), ticks = __builtin_ia32_rdtsc(), end;

	do
		end = now_ns();
	while (end - ns < CALIBRATE_NS);
	ticks = __builtin_ia32_rdtsc() - ticks;
	return ticks * 1000 / (end - ns) + 1;
}

static uint64_t round_up(uint64_t n, uint64_t to)
{
	return (n + to - 1) / to * to;
}

static void load_guest(struct machine *m)
{
	struct microvm_control *c = control(m);
	uint64_t room = m->config.bytes - MICROVM_TABLE;

	c->magic = MICROVM_MAGIC;
	c->n_vcpus = m->config.n_vcpus;
	c->workload = m->config.workload;
	c->seed = m->config.seed;
	c->ticks_per_us = ticks_per_us();
	c->data = round_up(MICROVM_TABLE + room / MICROVM_PAGE * TABLE_PAGE_BYTES, MICROVM_PAGE);
	c->n_pages = (m->config.bytes - c->data) / MICROVM_PAGE;
	memcpy((char *)m->memory + MICROVM_CODE, guest_blob, sizeof(guest_blob));
	for (uint32_t i = 0; i < m->config.n_vcpus; i++) {
		struct cpu_regs *r = &m->vcpus[i].regs;

		*r = (struct cpu_regs){.rip = MICROVM_BASE + MICROVM_CODE,
				       .rflags = CPU_RFLAGS_FIXED};
		/* As if it had been called: the stack pointer is 8 off a multiple of 16. */
		r->gpr[CPU_RSP] = MICROVM_BASE + MICROVM_STACKS + (i + 1) * MICROVM_STACK_BYTES - 8;
		r->gpr[CPU_RDI] = i;
	}
}

/* Wait for a report of every vCPU. */
static int await(struct machine *m, enum microvm_report report, char *why)
{
	struct timespec end;
	int rc = 0;

	clock_gettime(CLOCK_MONOTONIC, &end);
	end.tv_sec += machine_patience_ms(&m->config) / 1000;
	pthread_mutex_lock(&m->lock);
	for (uint32_t i = 0; !rc && i < m->config.n_vcpus; i++) {
		struct vcpu *v = &m->vcpus[i];

		while (!rc && !(v->reports & 1u << report)) {
			if (v->done) {
				snprintf(why, CPU_WHY_MAX, "vCPU %u: %.200s", i, v->why);
				rc = -EIO;
			} else if (pthread_cond_timedwait(&m->changed, &m->lock, &end)) {
				snprintf(why, CPU_WHY_MAX, "no report of vCPU %u in time", i);
				rc = -ETIMEDOUT;
			}
		}
		v->reports &= ~(1u << report);
	}
	pthread_mutex_unlock(&m->lock);
	return rc;
}

int machine_boot(struct machine *m, char *why)
{
	int rc;

	if (m->running)
		return -EBUSY;
	load_guest(m);
	rc = start(m, why);
	return rc < 0 ? rc : await(m, MICROVM_READY, why);
}

int machine_resume(struct machine *m, const struct machine_state *state, char *why)
{
	if (m->running)
		return -EBUSY;
	if (state->magic != MICROVM_MAGIC || state->bytes != m->config.bytes ||
	    state->n_vcpus != m->config.n_vcpus) {
		snprintf(why, CPU_WHY_MAX, "the guest has another size than this VM");
		return -EINVAL;
	}
	for (uint32_t i = 0; i < m->config.n_vcpus; i++) {
		uint64_t rip = state->regs[i].rip;

		/* Elsewhere it would be our own code that the native CPU runs. */
		if (rip < MICROVM_BASE + MICROVM_CODE ||
		    rip >= MICROVM_BASE + MICROVM_CODE + sizeof(guest_blob)) {
			snprintf(why, CPU_WHY_MAX, "vCPU %u is not in the guest's code", i);
			return -EINVAL;
		}
		m->vcpus[i].regs = state->regs[i];
	}
	return start(m, why);
}

/* --- while it runs ------------------------------------------------------------------------------
 */

int machine_reach(struct machine *m, uint64_t ops, char *why)
{
	struct microvm_control *c = control(m);

	snprintf(why, CPU_WHY_MAX, "it doesn't run");
	if (!m->running)
		return -ESRCH;
	for (uint32_t i = 0; i < m->config.n_vcpus; i++)
		c->vcpu[i].stop_at_ops = *(volatile uint64_t *)&c->vcpu[i].ops + ops;
	return await(m, MICROVM_REACHED, why);
}

int machine_verify(struct machine *m, char *why)
{
	snprintf(why, CPU_WHY_MAX, "it doesn't run");
	if (!m->running)
		return -ESRCH;
	for (uint32_t i = 0; i < m->config.n_vcpus; i++)
		control(m)->vcpu[i].verify = 1;
	return await(m, MICROVM_VERIFIED, why);
}

void machine_stats(const struct machine *m, struct machine_stats *out)
{
	*out = (struct machine_stats){0};
	for (uint32_t i = 0; i < m->config.n_vcpus; i++) {
		const volatile struct microvm_vcpu_control *v = &control(m)->vcpu[i];

		out->ops += v->ops;
		out->writes += v->writes;
		out->bad_pages += v->bad_pages;
		out->bad_steps += v->bad_steps;
		out->stalls_over_100us += v->stalls_over_100us;
		if (v->stall_max_us > out->stall_max_us)
			out->stall_max_us = v->stall_max_us;
		for (int b = 0; b < MICROVM_BUCKETS; b++)
			out->stalls[b] += v->stalls[b];
	}
}

void machine_describe_bad(const struct machine *m, char *out, size_t size)
{
	out[0] = '\0';
	for (uint32_t i = 0; i < m->config.n_vcpus; i++) {
		const volatile struct microvm_vcpu_control *v = &control(m)->vcpu[i];

		if (v->bad_steps)
			snprintf(out, size, "vCPU %u went on with registers of another time", i);
		if (!v->bad_pages)
			continue;
		snprintf(out, size,
			 "page %llu, which should be version %llu, has %#llx in word %llu",
			 (unsigned long long)v->bad_page, (unsigned long long)v->bad_version,
			 (unsigned long long)v->bad_value, (unsigned long long)v->bad_word);
		return;
	}
}

uint64_t machine_page_offset(const struct machine *m, uint64_t page)
{
	return control(m)->data + page * MICROVM_PAGE;
}
