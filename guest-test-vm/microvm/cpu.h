/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What runs the guest's code: a KVM vCPU at privilege level 3, or a thread of this process. Both
 * run the same code at the same addresses and stop between any two instructions with the same
 * registers, so a guest that stopped on one goes on on the other.
 */
#ifndef MICROVM_CPU_H
#define MICROVM_CPU_H

#include <stddef.h>
#include <stdint.h>

#define CPU_WHY_MAX 256

/* In the order of their numbers in instructions: rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, ... */
enum { CPU_RAX, CPU_RCX, CPU_RDX, CPU_RBX, CPU_RSP, CPU_RBP, CPU_RSI, CPU_RDI, CPU_N_GPR = 16 };

/* All that a guest is, besides its memory. */
struct cpu_regs {
	uint64_t gpr[CPU_N_GPR];
	uint64_t rip;
	uint64_t rflags;
};

/* What of rflags a guest may have: carry, parity, adjust, zero, sign, direction, overflow. */
#define CPU_RFLAGS_GUEST 0xcd5u
#define CPU_RFLAGS_FIXED 0x2u

enum cpu_exit {
	CPU_STOPPED,  /* cpu_kick() */
	CPU_DOORBELL, /* the guest reports something; it goes on behind the store */
	CPU_CRASHED,  /* it can't go on; why is told */
};

struct cpu_vm;
struct cpu_vcpu;

struct cpu_backend {
	const char *name;

	/* @memory, @bytes: mapped at MICROVM_BASE, borrowed until vm_free. Errors: negative errno,
	 * with what is missing in @why (CPU_WHY_MAX). */
	int (*vm_new)(struct cpu_vm **out, void *memory, uint64_t bytes, char *why);
	void (*vm_free)(struct cpu_vm *vm);

	/* Made, run and freed by one thread. */
	int (*vcpu_new)(struct cpu_vcpu **out, struct cpu_vm *vm, uint32_t index, char *why);
	void (*vcpu_free)(struct cpu_vcpu *v);

	/* Run from @regs until something happens; @regs is then where it stands. */
	enum cpu_exit (*run)(struct cpu_vcpu *v, struct cpu_regs *regs, uint32_t *report,
			     char *why);

	/* Have run() return CPU_STOPPED, now or at its next call. Any thread, while v lives. */
	void (*kick)(struct cpu_vcpu *v);
};

/*
 * cpu_kvm_irqchip has interrupt controllers in the kernel, as most VMMs do: KVM then halts a vCPU
 * that touches a missing page, and has it fetched by a thread of its own.
 */
extern const struct cpu_backend cpu_kvm, cpu_kvm_irqchip, cpu_native;

#endif
