/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The guest as ring-3 code of this process. A thread becomes the guest, and itself again, by
 * exchanging registers in signal handlers:
 *
 *   run():  the thread sends itself ENTER; the handler puts the thread's registers aside and the
 *           guest's into the signal frame, and returns: into the guest
 *   kick:   KICK interrupts the guest; the handler puts the guest's registers aside and the
 *           thread's back, and returns: out of run()
 *   report: the store to the doorbell is a SIGSEGV; the same, stepping over the store
 *
 * Handlers run on a stack of their own, since the guest's stack may be a page that is not there
 * yet. A guest that waits for a page in the kernel is interrupted like any other; its instruction
 * then begins anew. Signals have one handler a process, so what it needs is found by thread.
 */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include "cpu.h"
#include "layout.h"

#define KICK	    SIGUSR1
#define ENTER	    SIGUSR2
#define STACK_BYTES (64 * 1024)
#define STORE_BYTES 2 /* of the guest's store to the doorbell */

struct cpu_vm {
	void *doorbell; /* owned: a page that can't be touched */
};

struct cpu_vcpu {
	pthread_t thread;
	atomic_bool stop;
	void *stack; /* owned */
	volatile sig_atomic_t in_guest;
	gregset_t host; /* the thread's registers while it is the guest */
	struct cpu_regs regs;
	enum cpu_exit exit;
	int signal;	  /* that ended it */
	uint64_t address; /* and what it was about */
};

static _Thread_local struct cpu_vcpu *volatile running;

/* The kernel's order of registers is another. */
static const int greg_of[CPU_N_GPR] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP,
				       REG_RSI, REG_RDI, REG_R8,  REG_R9,  REG_R10, REG_R11,
				       REG_R12, REG_R13, REG_R14, REG_R15};

static void to_guest(struct cpu_vcpu *v, greg_t *g)
{
	memcpy(v->host, g, sizeof(v->host));
	for (int i = 0; i < CPU_N_GPR; i++)
		g[greg_of[i]] = (greg_t)v->regs.gpr[i];
	g[REG_RIP] = (greg_t)v->regs.rip;
	g[REG_EFL] = (g[REG_EFL] & ~(greg_t)CPU_RFLAGS_GUEST) |
		     (greg_t)(v->regs.rflags & CPU_RFLAGS_GUEST);
	v->in_guest = 1;
}

static void to_host(struct cpu_vcpu *v, greg_t *g, enum cpu_exit why)
{
	for (int i = 0; i < CPU_N_GPR; i++)
		v->regs.gpr[i] = (uint64_t)g[greg_of[i]];
	v->regs.rip = (uint64_t)g[REG_RIP];
	v->regs.rflags = ((uint64_t)g[REG_EFL] & CPU_RFLAGS_GUEST) | CPU_RFLAGS_FIXED;
	memcpy(g, v->host, sizeof(v->host));
	v->exit = why;
	v->in_guest = 0;
}

static void on_signal(int sig, siginfo_t *info, void *context)
{
	struct cpu_vcpu *v = running;
	greg_t *g = ((ucontext_t *)context)->uc_mcontext.gregs;

	if (sig == ENTER && v && !v->in_guest) {
		if (atomic_load(&v->stop))
			v->exit = CPU_STOPPED;
		else
			to_guest(v, g);
		return;
	}
	if (sig == KICK || sig == ENTER) {
		if (v && v->in_guest && atomic_load(&v->stop))
			to_host(v, g, CPU_STOPPED);
		return;
	}
	if (!v || !v->in_guest) {
		/* A fault of our own: let it happen again, to be seen. */
		signal(sig, SIG_DFL);
		return;
	}
	v->signal = sig;
	v->address = (uint64_t)(uintptr_t)info->si_addr;
	if (sig == SIGSEGV && v->address == MICROVM_DOORBELL) {
		g[REG_RIP] += STORE_BYTES;
		to_host(v, g, CPU_DOORBELL);
	} else {
		to_host(v, g, CPU_CRASHED);
	}
}

static int take_signals(void)
{
	static const int signals[] = {KICK, ENTER, SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP};
	struct sigaction sa = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_ONSTACK};

	sigfillset(&sa.sa_mask);
	for (size_t i = 0; i < sizeof(signals) / sizeof(signals[0]); i++)
		if (sigaction(signals[i], &sa, NULL) < 0)
			return -errno;
	return 0;
}

static int native_vm_new(struct cpu_vm **out, void *memory, uint64_t bytes, char *why)
{
	struct cpu_vm *vm = calloc(1, sizeof(*vm));
	void *wanted = (void *)(uintptr_t)MICROVM_DOORBELL;
	int rc;

	if (!vm)
		return -ENOMEM;
	vm->doorbell = mmap(wanted, MICROVM_PAGE, PROT_NONE,
			    MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
	if (vm->doorbell != wanted) {
		snprintf(why, CPU_WHY_MAX, "the doorbell's address is taken");
		free(vm);
		return -EEXIST;
	}
	rc = mprotect(memory, bytes, PROT_READ | PROT_WRITE | PROT_EXEC) < 0 ? -errno : 0;
	if (!rc)
		rc = take_signals();
	if (rc < 0) {
		snprintf(why, CPU_WHY_MAX, "executable memory or signal handlers: %s",
			 strerror(-rc));
		munmap(vm->doorbell, MICROVM_PAGE);
		free(vm);
		return rc;
	}
	*out = vm;
	return 0;
}

static void native_vm_free(struct cpu_vm *vm)
{
	if (!vm)
		return;
	munmap(vm->doorbell, MICROVM_PAGE);
	free(vm);
}

static int native_vcpu_new(struct cpu_vcpu **out, struct cpu_vm *vm, uint32_t index, char *why)
{
	struct cpu_vcpu *v = calloc(1, sizeof(*v));
	stack_t stack = {.ss_size = STACK_BYTES};
	sigset_t mine;

	(void)vm;
	(void)index;
	if (!v)
		return -ENOMEM;
	v->thread = pthread_self();
	v->stack = malloc(STACK_BYTES);
	stack.ss_sp = v->stack;
	if (!v->stack || sigaltstack(&stack, NULL) < 0) {
		snprintf(why, CPU_WHY_MAX, "signal stack: %s", strerror(errno));
		free(v->stack);
		free(v);
		return -ENOMEM;
	}
	sigemptyset(&mine);
	sigaddset(&mine, KICK);
	sigaddset(&mine, ENTER);
	pthread_sigmask(SIG_UNBLOCK, &mine, NULL);
	*out = v;
	return 0;
}

static void native_vcpu_free(struct cpu_vcpu *v)
{
	stack_t none = {.ss_flags = SS_DISABLE};

	if (!v)
		return;
	sigaltstack(&none, NULL);
	free(v->stack);
	free(v);
}

static enum cpu_exit native_run(struct cpu_vcpu *v, struct cpu_regs *regs, uint32_t *report,
				char *why)
{
	v->regs = *regs;
	running = v;
	atomic_signal_fence(memory_order_seq_cst);
	/* A signal to oneself is taken before this returns. */
	pthread_kill(v->thread, ENTER);
	atomic_signal_fence(memory_order_seq_cst);
	running = NULL;
	*regs = v->regs;
	if (v->exit == CPU_STOPPED)
		atomic_store(&v->stop, false);
	if (v->exit == CPU_DOORBELL)
		*report = (uint32_t)regs->gpr[CPU_RAX];
	if (v->exit == CPU_CRASHED)
		snprintf(why, CPU_WHY_MAX, "signal %d at rip %#llx, address %#llx", v->signal,
			 (unsigned long long)regs->rip, (unsigned long long)v->address);
	return v->exit;
}

static void native_kick(struct cpu_vcpu *v)
{
	atomic_store(&v->stop, true);
	pthread_kill(v->thread, KICK);
}

const struct cpu_backend cpu_native = {
	.name = "native",
	.vm_new = native_vm_new,
	.vm_free = native_vm_free,
	.vcpu_new = native_vcpu_new,
	.vcpu_free = native_vcpu_free,
	.run = native_run,
	.kick = native_kick,
};
