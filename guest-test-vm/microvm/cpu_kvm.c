/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The guest in a KVM vCPU that never leaves privilege level 3 and long mode. There are no
 * interrupts, no descriptor tables and no kernel: an exception ends it (KVM_EXIT_SHUTDOWN).
 *
 *   guest-virtual MICROVM_BASE.. -> guest-physical RAM_GPA.. -> the process's memory at
 * MICROVM_BASE guest-virtual MICROVM_DOORBELL -> DOORBELL_GPA, where nothing is: a store exits
 * (KVM_EXIT_MMIO)
 *
 * Page tables lie in memory of their own, which each process builds for itself. Memory begins at
 * 4 GiB, clear of what KVM and the APIC have below.
 *
 * A touch of a page that is not there yet is taken by KVM itself (get_user_pages), which waits for
 * userfaultfd like any thread:
 *   kvm          the vCPU's thread waits, within KVM_RUN. A signal ends that from Linux 6.2 on
 *                (FOLL_INTERRUPTIBLE); before, a stop waits for the page.
 *   kvm-irqchip  a kernel thread waits, on behalf of this process ("async page fault"), while the
 *                vCPU is halted within KVM_RUN: a signal always ends that. Freeing the VM waits for
 *                the page, so end the userfaultfd first.
 * Either way the vCPU has not begun the instruction, and its registers say so.
 *
 * Source: Documentation/virt/kvm/api.rst; Intel SDM vol. 3, "Checks on guest segment registers"
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "cpu.h"
#include "layout.h"

#define RAM_GPA	     0x100000000ull
#define TABLES_GPA   0x100000ull
#define DOORBELL_GPA 0xe0000000ull /* a multiple of 2 MiB */
#define TSS_GPA	     0xfffbd000ull /* three pages that Intel's real mode wants */
#define IDENTITY_GPA 0xfffbc000ull
#define KICK	     SIGUSR1

#define LARGE_PAGE  (2ull << 20)
#define PER_TABLE   512u
#define PTE_PRESENT 0x1ull
#define PTE_WRITE   0x2ull
#define PTE_USER    0x4ull
#define PTE_LARGE   0x80ull
#define PTE_TABLE   (PTE_PRESENT | PTE_WRITE | PTE_USER)

/* The root, two tables of the next level (for the memory and the doorbell below it), and of the
 * third level one a GiB and one for the doorbell. */
#define N_PD	 (MICROVM_MAX_BYTES >> 30)
#define N_TABLES (3 + N_PD + 1)

#define CR0_BITS  0x80010033ull /* PG WP NE ET MP PE */
#define CR4_BITS  0x20ull	/* PAE */
#define EFER_BITS 0x500ull	/* LMA LME */

#define RFLAGS_INTERRUPTS 0x200ull

#define MAX_CPUID 256u

struct cpu_vm {
	int kvm, fd;	  /* owned */
	bool irqchip;
	uint64_t *tables; /* owned: N_TABLES pages */
	size_t run_bytes;
	struct kvm_cpuid2 *cpuid; /* owned */
};

struct cpu_vcpu {
	int fd;		     /* owned */
	struct kvm_run *run; /* owned mapping */
	size_t run_bytes;
	uint64_t rflags; /* besides the guest's */
	pthread_t thread;
	atomic_bool stop;
};

/* --- page tables -------------------------------------------------------------------------------
 */

static uint64_t *table(struct cpu_vm *vm, unsigned int n)
{
	return vm->tables + n * PER_TABLE;
}

static uint64_t table_gpa(unsigned int n)
{
	return TABLES_GPA + n * (uint64_t)MICROVM_PAGE;
}

static unsigned int index_at(uint64_t address, unsigned int level)
{
	return (unsigned int)(address >> (12 + 9 * (level - 1))) % PER_TABLE;
}

static void map_tables(struct cpu_vm *vm, uint64_t bytes)
{
	/* MICROVM_BASE is the start of a 512 GiB slot; the doorbell is in the slot below. */
	enum { ROOT, RAM_PDPT, DOORBELL_PDPT, DOORBELL_PD, FIRST_PD };

	table(vm, ROOT)[index_at(MICROVM_BASE, 4)] = table_gpa(RAM_PDPT) | PTE_TABLE;
	table(vm, ROOT)[index_at(MICROVM_DOORBELL, 4)] = table_gpa(DOORBELL_PDPT) | PTE_TABLE;
	table(vm, DOORBELL_PDPT)[index_at(MICROVM_DOORBELL, 3)] =
		table_gpa(DOORBELL_PD) | PTE_TABLE;
	table(vm, DOORBELL_PD)[index_at(MICROVM_DOORBELL, 2)] =
		DOORBELL_GPA | PTE_TABLE | PTE_LARGE;
	for (uint64_t at = 0; at < bytes; at += LARGE_PAGE) {
		uint64_t va = MICROVM_BASE + at;
		unsigned int pd = FIRST_PD + index_at(va, 3);

		table(vm, RAM_PDPT)[index_at(va, 3)] = table_gpa(pd) | PTE_TABLE;
		table(vm, pd)[index_at(va, 2)] = (RAM_GPA + at) | PTE_TABLE | PTE_LARGE;
	}
}

_Static_assert(MICROVM_BASE % (1ull << 39) == 0, "the memory begins a slot of the root table");

/* --- the VM ------------------------------------------------------------------------------------
 */

static int fail(char *why, const char *what)
{
	int err = errno ? errno : EIO;

	snprintf(why, CPU_WHY_MAX, "%s: %s", what, strerror(err));
	return -err;
}

static int missing(char *why, const char *what)
{
	snprintf(why, CPU_WHY_MAX, "this kernel's KVM has no %s", what);
	return -EOPNOTSUPP;
}

static int set_memory(const struct cpu_vm *vm, uint32_t slot, uint64_t gpa, void *memory,
		      uint64_t bytes)
{
	struct kvm_userspace_memory_region r = {.slot = slot,
						.guest_phys_addr = gpa,
						.memory_size = bytes,
						.userspace_addr = (uintptr_t)memory};

	return ioctl(vm->fd, KVM_SET_USER_MEMORY_REGION, &r);
}

/* What the processor can do, all of which the guest may see: else long mode is refused. */
static int read_cpuid(struct cpu_vm *vm, char *why)
{
	vm->cpuid = calloc(1, sizeof(*vm->cpuid) + MAX_CPUID * sizeof(vm->cpuid->entries[0]));
	if (!vm->cpuid)
		return -ENOMEM;
	vm->cpuid->nent = MAX_CPUID;
	return ioctl(vm->kvm, KVM_GET_SUPPORTED_CPUID, vm->cpuid) < 0
		       ? fail(why, "KVM_GET_SUPPORTED_CPUID")
		       : 0;
}

static int open_kvm(struct cpu_vm *vm, char *why)
{
	int size;

	vm->kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (vm->kvm < 0)
		return fail(why, "/dev/kvm");
	if (ioctl(vm->kvm, KVM_GET_API_VERSION, 0) != KVM_API_VERSION)
		return missing(why, "known API version");
	if (ioctl(vm->kvm, KVM_CHECK_EXTENSION, KVM_CAP_USER_MEMORY) <= 0)
		return missing(why, "KVM_CAP_USER_MEMORY");
	if (ioctl(vm->kvm, KVM_CHECK_EXTENSION, KVM_CAP_EXT_CPUID) <= 0)
		return missing(why, "KVM_CAP_EXT_CPUID");
	if (ioctl(vm->kvm, KVM_CHECK_EXTENSION, KVM_CAP_IMMEDIATE_EXIT) <= 0)
		return missing(why, "KVM_CAP_IMMEDIATE_EXIT");
	size = ioctl(vm->kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	if (size < (int)sizeof(struct kvm_run))
		return missing(why, "usable KVM_GET_VCPU_MMAP_SIZE");
	vm->run_bytes = (size_t)size;
	do
		vm->fd = ioctl(vm->kvm, KVM_CREATE_VM, 0);
	while (vm->fd < 0 && errno == EINTR);
	return vm->fd < 0 ? fail(why, "KVM_CREATE_VM") : read_cpuid(vm, why);
}

static int lay_out(struct cpu_vm *vm, void *memory, uint64_t bytes, char *why)
{
	uint64_t identity = IDENTITY_GPA;

	/* Before the first vCPU; only processors that can't run real mode as a guest look at them.
	 */
	if (ioctl(vm->kvm, KVM_CHECK_EXTENSION, KVM_CAP_SET_IDENTITY_MAP_ADDR) > 0 &&
	    ioctl(vm->fd, KVM_SET_IDENTITY_MAP_ADDR, &identity) < 0)
		return fail(why, "KVM_SET_IDENTITY_MAP_ADDR");
	if (ioctl(vm->kvm, KVM_CHECK_EXTENSION, KVM_CAP_SET_TSS_ADDR) > 0 &&
	    ioctl(vm->fd, KVM_SET_TSS_ADDR, (unsigned long)TSS_GPA) < 0)
		return fail(why, "KVM_SET_TSS_ADDR");
	if (vm->irqchip && ioctl(vm->fd, KVM_CREATE_IRQCHIP, 0) < 0)
		return fail(why, "KVM_CREATE_IRQCHIP");
	vm->tables = mmap(NULL, N_TABLES * MICROVM_PAGE, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (vm->tables == MAP_FAILED) {
		vm->tables = NULL;
		return fail(why, "page tables");
	}
	map_tables(vm, bytes);
	if (set_memory(vm, 0, RAM_GPA, memory, bytes) < 0 ||
	    set_memory(vm, 1, TABLES_GPA, vm->tables, N_TABLES * MICROVM_PAGE) < 0)
		return fail(why, "KVM_SET_USER_MEMORY_REGION");
	return 0;
}

static void kvm_vm_free(struct cpu_vm *vm)
{
	if (!vm)
		return;
	if (vm->fd >= 0)
		close(vm->fd);
	if (vm->kvm >= 0)
		close(vm->kvm);
	if (vm->tables)
		munmap(vm->tables, N_TABLES * MICROVM_PAGE);
	free(vm->cpuid);
	free(vm);
}

static void on_kick(int sig)
{
	(void)sig; /* to interrupt KVM_RUN is all it is for */
}

static int vm_new(struct cpu_vm **out, void *memory, uint64_t bytes, bool irqchip, char *why)
{
	struct sigaction sa = {.sa_handler = on_kick};
	struct cpu_vm *vm = calloc(1, sizeof(*vm));
	int rc;

	if (!vm)
		return -ENOMEM;
	vm->kvm = vm->fd = -1;
	vm->irqchip = irqchip;
	rc = open_kvm(vm, why);
	if (!rc)
		rc = lay_out(vm, memory, bytes, why);
	if (!rc && sigaction(KICK, &sa, NULL) < 0)
		rc = fail(why, "signal handler");
	if (rc < 0) {
		kvm_vm_free(vm);
		return rc;
	}
	*out = vm;
	return 0;
}

static int kvm_vm_new(struct cpu_vm **out, void *memory, uint64_t bytes, char *why)
{
	return vm_new(out, memory, bytes, false, why);
}

static int irqchip_vm_new(struct cpu_vm **out, void *memory, uint64_t bytes, char *why)
{
	return vm_new(out, memory, bytes, true, why);
}

/* --- a vCPU ------------------------------------------------------------------------------------
 */

static struct kvm_segment user_segment(uint16_t selector, uint8_t type, bool is_code)
{
	return (struct kvm_segment){.base = 0,
				    .limit = 0xffffffff,
				    .selector = selector,
				    .type = type,
				    .present = 1,
				    .dpl = 3,
				    .db = !is_code, /* 64-bit code has l instead */
				    .s = 1,
				    .l = is_code,
				    .g = 1};
}

/* Straight into long mode at privilege level 3. The level is that of the stack segment. */
static int set_mode(const struct cpu_vcpu *v, char *why)
{
	struct kvm_sregs s;

	if (ioctl(v->fd, KVM_GET_SREGS, &s) < 0)
		return fail(why, "KVM_GET_SREGS");
	s.cs = user_segment(0x33, 0xb, true); /* execute, read, accessed */
	s.ss = s.ds = s.es = s.fs = s.gs =
		user_segment(0x2b, 0x3, false); /* read, write, accessed */
	s.gdt = (struct kvm_dtable){0};
	s.idt = (struct kvm_dtable){0};
	s.cr3 = TABLES_GPA;
	s.cr0 = CR0_BITS;
	s.cr4 = CR4_BITS;
	s.efer = EFER_BITS;
	return ioctl(v->fd, KVM_SET_SREGS, &s) < 0 ? fail(why, "KVM_SET_SREGS") : 0;
}

/*
 * The guest's time-stamp counter is the host's, so that time goes on while the guest moves. A
 * kernel that can't say so gives it a counter of its own, and the time of a move is then not in the
 * guest's figures.
 */
static void share_tsc(const struct cpu_vcpu *v)
{
#ifdef KVM_VCPU_TSC_CTRL
	uint64_t offset = 0;
	struct kvm_device_attr attr = {.group = KVM_VCPU_TSC_CTRL,
				       .attr = KVM_VCPU_TSC_OFFSET,
				       .addr = (uintptr_t)&offset};

	if (!ioctl(v->fd, KVM_HAS_DEVICE_ATTR, &attr))
		(void)ioctl(v->fd, KVM_SET_DEVICE_ATTR, &attr);
#else
	(void)v;
#endif
}

static void kvm_vcpu_free(struct cpu_vcpu *v)
{
	if (!v)
		return;
	if (v->run)
		munmap(v->run, v->run_bytes);
	if (v->fd >= 0)
		close(v->fd);
	free(v);
}

static int set_up(struct cpu_vcpu *v, struct cpu_vm *vm, uint32_t index, char *why)
{
	/* With interrupt controllers all but the first would wait for the first to start them. */
	struct kvm_mp_state runnable = {.mp_state = KVM_MP_STATE_RUNNABLE};

	v->fd = ioctl(vm->fd, KVM_CREATE_VCPU, (unsigned long)index);
	if (v->fd < 0)
		return fail(why, "KVM_CREATE_VCPU");
	v->run_bytes = vm->run_bytes;
	v->run = mmap(NULL, v->run_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, v->fd, 0);
	if (v->run == MAP_FAILED) {
		v->run = NULL;
		return fail(why, "mapping the vCPU");
	}
	if (ioctl(v->fd, KVM_SET_CPUID2, vm->cpuid) < 0)
		return fail(why, "KVM_SET_CPUID2");
	share_tsc(v);
	if (vm->irqchip && ioctl(v->fd, KVM_SET_MP_STATE, &runnable) < 0)
		return fail(why, "KVM_SET_MP_STATE");
	/* KVM halts only who could be woken by an interrupt. None is ever raised. */
	v->rflags = CPU_RFLAGS_FIXED | (vm->irqchip ? RFLAGS_INTERRUPTS : 0);
	return set_mode(v, why);
}

static int kvm_vcpu_new(struct cpu_vcpu **out, struct cpu_vm *vm, uint32_t index, char *why)
{
	struct cpu_vcpu *v = calloc(1, sizeof(*v));
	sigset_t mine;
	int rc;

	if (!v)
		return -ENOMEM;
	v->fd = -1;
	v->thread = pthread_self();
	rc = set_up(v, vm, index, why);
	if (rc < 0) {
		kvm_vcpu_free(v);
		return rc;
	}
	sigemptyset(&mine);
	sigaddset(&mine, KICK);
	pthread_sigmask(SIG_UNBLOCK, &mine, NULL);
	*out = v;
	return 0;
}

/* --- running -----------------------------------------------------------------------------------
 */

static int put_regs(const struct cpu_vcpu *v, const struct cpu_regs *r)
{
	struct kvm_regs k = {
		.rax = r->gpr[0],
		.rcx = r->gpr[1],
		.rdx = r->gpr[2],
		.rbx = r->gpr[3],
		.rsp = r->gpr[4],
		.rbp = r->gpr[5],
		.rsi = r->gpr[6],
		.rdi = r->gpr[7],
		.r8 = r->gpr[8],
		.r9 = r->gpr[9],
		.r10 = r->gpr[10],
		.r11 = r->gpr[11],
		.r12 = r->gpr[12],
		.r13 = r->gpr[13],
		.r14 = r->gpr[14],
		.r15 = r->gpr[15],
		.rip = r->rip,
		.rflags = (r->rflags & CPU_RFLAGS_GUEST) | v->rflags,
	};

	return ioctl(v->fd, KVM_SET_REGS, &k);
}

static int take_regs(const struct cpu_vcpu *v, struct cpu_regs *r)
{
	struct kvm_regs k;

	if (ioctl(v->fd, KVM_GET_REGS, &k) < 0)
		return -1;
	*r = (struct cpu_regs){
		.gpr = {k.rax, k.rcx, k.rdx, k.rbx, k.rsp, k.rbp, k.rsi, k.rdi, k.r8, k.r9, k.r10,
			k.r11, k.r12, k.r13, k.r14, k.r15},
		.rip = k.rip,
		.rflags = (k.rflags & CPU_RFLAGS_GUEST) | CPU_RFLAGS_FIXED,
	};
	return 0;
}

/*
 * A store that exited is completed, and the guest's registers say so, only when the vCPU is entered
 * again: do that without running anything.
 */
static int complete_store(struct cpu_vcpu *v)
{
	int rc;

	v->run->immediate_exit = 1;
	rc = ioctl(v->fd, KVM_RUN, 0);
	v->run->immediate_exit = 0;
	return rc < 0 && errno == EINTR ? 0 : -1;
}

static enum cpu_exit crashed(const struct cpu_vcpu *v, const struct cpu_regs *regs, char *why)
{
	const struct kvm_run *run = v->run;
	unsigned long long detail = 0;

	if (run->exit_reason == KVM_EXIT_FAIL_ENTRY)
		detail = run->fail_entry.hardware_entry_failure_reason;
	else if (run->exit_reason == KVM_EXIT_INTERNAL_ERROR)
		detail = run->internal.suberror;
	else if (run->exit_reason == KVM_EXIT_MMIO)
		detail = run->mmio.phys_addr;
	snprintf(why, CPU_WHY_MAX, "KVM exit %u (%#llx) at rip %#llx", run->exit_reason, detail,
		 (unsigned long long)regs->rip);
	return CPU_CRASHED;
}

/* Enter the vCPU until it exits for a reason of the guest's. Return: 0, 1 when stopped, or -1. */
static int enter(struct cpu_vcpu *v)
{
	for (;;) {
		/* A kick after this look is seen by KVM in immediate_exit, or interrupts it. */
		if (atomic_load(&v->stop))
			return 1;
		if (ioctl(v->fd, KVM_RUN, 0) == 0)
			return 0;
		if (errno != EINTR && errno != EAGAIN)
			return -1;
		v->run->immediate_exit = 0;
	}
}

static enum cpu_exit kvm_run(struct cpu_vcpu *v, struct cpu_regs *regs, uint32_t *report, char *why)
{
	const struct kvm_run *run = v->run;
	int rc;

	if (put_regs(v, regs) < 0) {
		fail(why, "KVM_SET_REGS");
		return CPU_CRASHED;
	}
	rc = enter(v);
	if (rc < 0) {
		fail(why, "KVM_RUN");
		return CPU_CRASHED;
	}
	if (!rc && run->exit_reason == KVM_EXIT_MMIO && run->mmio.is_write && run->mmio.len == 4 &&
	    run->mmio.phys_addr == DOORBELL_GPA) {
		memcpy(report, run->mmio.data, sizeof(*report));
		if (complete_store(v) < 0) {
			fail(why, "completing a store");
			return CPU_CRASHED;
		}
	} else if (!rc) {
		(void)take_regs(v, regs);
		return crashed(v, regs, why);
	}
	if (take_regs(v, regs) < 0) {
		fail(why, "KVM_GET_REGS");
		return CPU_CRASHED;
	}
	if (!rc)
		return CPU_DOORBELL;
	atomic_store(&v->stop, false);
	v->run->immediate_exit = 0;
	return CPU_STOPPED;
}

static void kvm_kick(struct cpu_vcpu *v)
{
	atomic_store(&v->stop, true);
	__atomic_store_n(&v->run->immediate_exit, 1, __ATOMIC_SEQ_CST);
	pthread_kill(v->thread, KICK);
}

const struct cpu_backend cpu_kvm = {
	.name = "kvm",
	.vm_new = kvm_vm_new,
	.vm_free = kvm_vm_free,
	.vcpu_new = kvm_vcpu_new,
	.vcpu_free = kvm_vcpu_free,
	.run = kvm_run,
	.kick = kvm_kick,
};

const struct cpu_backend cpu_kvm_irqchip = {
	.name = "kvm-irqchip",
	.vm_new = irqchip_vm_new,
	.vm_free = kvm_vm_free,
	.vcpu_new = kvm_vcpu_new,
	.vcpu_free = kvm_vcpu_free,
	.run = kvm_run,
	.kick = kvm_kick,
};
