// SPDX-License-Identifier: Apache-2.0
/* Trials of what the host lets us do to other processes, and of the rest of it. */
#include <errno.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <linux/kvm.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/util.h"
#include "uffd/place.h"
#include "uffd/probe_internal.h"
#include "uffd/uffd.h"

#define PAGE	    FERRY_PAGE_SIZE_DEFAULT
#define MEMLOCK_MIN (64 * FERRY_MIB) /* what buffers and rings may come to */

#define REQUIRE(t, what, condition)                                                                \
	do {                                                                                       \
		if (!(condition)) {                                                                \
			ferry_trial_missing(t, what, -errno);                                      \
			return;                                                                    \
		}                                                                                  \
	} while (0)

static void ok(struct ferry_trial *t)
{
	ferry_trial_note(t, FERRY_PROBE_OK, "works");
}

/* A process to try things on. It ends with us. */
static pid_t start_victim(void)
{
	pid_t pid = fork();

	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		for (;;)
			pause();
	}
	return pid;
}

static bool attach_to(struct ferry_trial *t, pid_t pid, struct ferry_uffd *u)
{
	struct ferry_failure f = {0};

	if (ferry_uffd_attach(u, pid, 0, &f) == 0)
		return true;
	ferry_trial_note(t, FERRY_PROBE_MISSING, "%s", f.text);
	return false;
}

void ferry_trial_attach(struct ferry_trial *t)
{
	pid_t pid = start_victim();
	struct ferry_uffd u;

	if (attach_to(t, pid, &u))
		ok(t);
	kill(pid, SIGKILL);
}

void ferry_trial_foreign_copy(struct ferry_trial *t)
{
	uint8_t *mem =
		mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	uint8_t *src = mem + PAGE, seen = 0;
	struct ferry_hva at = {(uintptr_t)mem};
	pid_t pid = start_victim();
	struct ferry_placed placed;
	struct ferry_uffd u;
	int r;

	if (!attach_to(t, pid, &u))
		return;
	src[0] = 42;
	r = ferry_uffd_register(&u, at, PAGE);
	if (r == 0)
		r = ferry_place_copy(&u, at, src, 1, PAGE, &placed);
	process_vm_readv(pid, &(struct iovec){&seen, 1}, 1, &(struct iovec){mem, 1}, 1, 0);
	if (r < 0)
		ferry_trial_missing(t, "UFFDIO_COPY", r);
	else if (seen != 42)
		ferry_trial_note(t, FERRY_PROBE_MISSING, "the page did not get there");
	else
		ok(t);
	kill(pid, SIGKILL);
}

void ferry_trial_yama(struct ferry_trial *t)
{
	FILE *f = fopen("/proc/sys/kernel/yama/ptrace_scope", "re");
	int scope = 0;

	if (!f || fscanf(f, "%d", &scope) != 1 || scope == 0)
		ferry_trial_note(t, FERRY_PROBE_OK, f ? "ptrace_scope is 0" : "not in this kernel");
	else if (scope >= 3)
		ferry_trial_note(t, FERRY_PROBE_MISSING,
				 "ptrace_scope is 3: no attaching until the host is started again");
	else if (geteuid() == 0)
		ferry_trial_note(t, FERRY_PROBE_OK, "ptrace_scope is %d, which root may pass",
				 scope);
	else
		ferry_trial_note(t, FERRY_PROBE_LIMITED,
				 "ptrace_scope is %d: attaching takes CAP_SYS_PTRACE", scope);
}

void ferry_trial_seccomp(struct ferry_trial *t)
{
	pid_t pid = start_victim();
	long r = ptrace(PTRACE_SEIZE, pid, NULL, (void *)(uintptr_t)PTRACE_O_SUSPEND_SECCOMP);

	if (r < 0)
		ferry_trial_missing(t, "PTRACE_O_SUSPEND_SECCOMP", -errno);
	else
		ok(t);
	kill(pid, SIGKILL);
}

void ferry_trial_pidfd_getfd(struct ferry_trial *t)
{
	pid_t pid = start_victim();
	int pidfd = (int)syscall(SYS_pidfd_open, pid, 0);

	REQUIRE(t, "pidfd_open", pidfd >= 0);
	REQUIRE(t, "pidfd_getfd", syscall(SYS_pidfd_getfd, pidfd, STDERR_FILENO, 0) >= 0);
	ok(t);
	kill(pid, SIGKILL);
}

void ferry_trial_process_vm_readv(struct ferry_trial *t)
{
	static volatile uint8_t there = 42;
	uint8_t here = 0;
	struct iovec to = {&here, 1}, from = {(void *)(uintptr_t)&there, 1};
	pid_t pid = start_victim();

	REQUIRE(t, "process_vm_readv", process_vm_readv(pid, &to, 1, &from, 1, 0) == 1);
	ok(t);
	kill(pid, SIGKILL);
}

void ferry_trial_io_uring(struct ferry_trial *t)
{
	struct io_uring_params p = {0};

	REQUIRE(t, "io_uring_setup", syscall(SYS_io_uring_setup, 8, &p) >= 0);
	ok(t);
}

void ferry_trial_kvm(struct ferry_trial *t)
{
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);

	REQUIRE(t, "/dev/kvm", kvm >= 0);
	REQUIRE(t, "KVM_CREATE_VM", ioctl(kvm, KVM_CREATE_VM, 0) >= 0);
	ok(t);
}

void ferry_trial_memlock(struct ferry_trial *t)
{
	void *mem = mmap(NULL, MEMLOCK_MIN, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	struct rlimit limit = {0};

	getrlimit(RLIMIT_MEMLOCK, &limit);
	/* Locks what is there and what comes, which is nothing: only the limit is tried. */
	if (mem != MAP_FAILED && mlock2(mem, MEMLOCK_MIN, MLOCK_ONFAULT) == 0)
		ferry_trial_note(t, FERRY_PROBE_OK, "%u MiB can be locked",
				 MEMLOCK_MIN / FERRY_MIB);
	else
		ferry_trial_note(t, FERRY_PROBE_LIMITED, "only %llu KiB can be locked",
				 (unsigned long long)limit.rlim_cur / FERRY_KIB);
}
