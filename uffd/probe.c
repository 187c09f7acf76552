// SPDX-License-Identifier: Apache-2.0
/*
 * Probing the host. Each item is one trial: a function that uses the thing. It runs in a child
 * with a time limit, because a kernel that behaves otherwise could leave a thread waiting for a
 * page for ever.
 */
#include "uffd/probe.h"

#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/util.h"
#include "uffd/probe_internal.h"

#define TRIAL_LIMIT_S 5

struct trial_def {
	const char *id;
	const char *what;
	bool required;
	ferry_trial_fn run;
	const char *mend;
};

static const struct trial_def trials[] = {
	{"userfaultfd", "a userfaultfd of our own, in any way (receive, attach)", true,
	 ferry_trial_userfaultfd,
	 "run as root, or 'setfacl -m u:USER:rw /dev/userfaultfd', or "
	 "'sysctl vm.unprivileged_userfaultfd=1'"},
	{"userfaultfd-syscall", "the system call userfaultfd (a guest's process without rights)",
	 false, ferry_trial_syscall, "run as root, or 'sysctl vm.unprivileged_userfaultfd=1'"},
	{"userfaultfd-device", "/dev/userfaultfd (attach to a VMM without rights, as libvirt's)",
	 false, ferry_trial_device,
	 "Linux 6.1 or newer; 'setfacl -m u:USER:rw /dev/userfaultfd', or run as root"},
	{"kernel-faults",
	 "faults inside system calls, as those of devices and KVM (receive, attach)", true,
	 ferry_trial_kernel_faults,
	 "user-mode faults only is not enough: run as root, or give access to /dev/userfaultfd"},
	{"missing-anon", "missing pages of anonymous memory (attach)", true,
	 ferry_trial_missing_anon, "Linux 4.3 or newer, with CONFIG_USERFAULTFD=y"},
	{"missing-shmem", "missing pages of shared memory (receive, attach)", true,
	 ferry_trial_missing_shmem, "Linux 4.11 or newer, with CONFIG_SHMEM=y"},
	{"hugetlb", "missing huge pages (guests on hugetlb)", false, ferry_trial_hugetlb,
	 "'sysctl vm.nr_hugepages=N' for N pages of 2 MiB, best soon after start"},
	{"events", "news of removed, unmapped and moved memory (balloons)", false,
	 ferry_trial_events, "Linux 4.11 or newer"},
	{"thread-id", "which thread waits for a page (trace)", false, ferry_trial_thread_id,
	 "Linux 4.14 or newer"},
	{"exact-address", "the exact address of a fault (trace)", false, ferry_trial_exact_address,
	 "Linux 5.18 or newer"},
	{"attach", "a system call inside another process (receive, attach)", true,
	 ferry_trial_attach, "run as root, or with CAP_SYS_PTRACE; see the item 'yama'"},
	{"pidfd-getfd", "descriptors of another process (receive, attach)", true,
	 ferry_trial_pidfd_getfd, "Linux 5.6 or newer; run as root, or with CAP_SYS_PTRACE"},
	{"foreign-copy", "placing pages in another process (receive, attach)", true,
	 ferry_trial_foreign_copy, "see the items 'userfaultfd' and 'attach'"},
	{"yama", "no limits on ptrace by yama (receive, attach)", false, ferry_trial_yama,
	 "run as root, or with CAP_SYS_PTRACE, or 'sysctl kernel.yama.ptrace_scope=0'"},
	{"seccomp", "setting a seccomp filter aside for a moment (QEMU with -sandbox on)", false,
	 ferry_trial_seccomp,
	 "run as root without a seccomp filter of our own, or start QEMU with '-sandbox off'"},
	{"process-vm-readv", "reading the memory of another process (serve --pid)", false,
	 ferry_trial_process_vm_readv, "run as root, or with CAP_SYS_PTRACE"},
	{"minor", "pages that are in the page cache, not mapped (sharing between guests)", false,
	 ferry_trial_minor, "Linux 5.14 or newer"},
	{"dirty-tracking", "finding written pages of another process (serve --pid, pre-copy)",
	 false, ferry_trial_dirty_tracking, "Linux 6.7 or newer"},
	{"poison", "marking a page as lost for good", false, ferry_trial_poison,
	 "Linux 6.6 or newer"},
	{"move", "moving pages instead of copying (libpageferry inside a VMM)", false,
	 ferry_trial_move, "Linux 6.8 or newer"},
	{"io-uring", "io_uring (serve)", false, ferry_trial_io_uring,
	 "Linux 5.19 or newer; 'sysctl kernel.io_uring_disabled=0'"},
	{"kvm", "/dev/kvm (guests at full speed; not needed by pageferry itself)", false,
	 ferry_trial_kvm, "load kvm_intel or kvm_amd; 'setfacl -m u:USER:rw /dev/kvm'"},
	{"memlock", "locked memory for buffers (serve, receive)", false, ferry_trial_memlock,
	 "'ulimit -l unlimited', or LimitMEMLOCK=infinity in the unit"},
};

_Static_assert(FERRY_ARRAY_SIZE(trials) <= FERRY_PROBE_MAX, "FERRY_PROBE_MAX is too small");

void ferry_trial_note(struct ferry_trial *t, enum ferry_probe_verdict verdict, const char *fmt, ...)
{
	va_list ap;

	t->verdict = verdict;
	va_start(ap, fmt);
	vsnprintf(t->detail, sizeof(t->detail), fmt, ap);
	va_end(ap);
}

void ferry_trial_missing(struct ferry_trial *t, const char *what, int err)
{
	ferry_trial_note(t, FERRY_PROBE_MISSING, "%s: %s", what, strerror(-err));
}

static void run_in_child(const struct trial_def *def, struct ferry_trial *t)
{
	int status;
	pid_t pid;

	ferry_trial_note(t, FERRY_PROBE_MISSING, "the trial came to no end");
	pid = fork();
	if (pid < 0) {
		ferry_trial_missing(t, "fork", -errno);
		return;
	}
	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		signal(SIGALRM, SIG_DFL);
		alarm(TRIAL_LIMIT_S);
		def->run(t);
		_exit(0);
	}
	while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
		;
	if (WIFSIGNALED(status))
		ferry_trial_note(t, FERRY_PROBE_MISSING,
				 WTERMSIG(status) == SIGALRM ? "no answer in %d s"
							     : "the trial was ended by signal %d",
				 WTERMSIG(status) == SIGALRM ? TRIAL_LIMIT_S : WTERMSIG(status));
}

size_t ferry_probe_run(struct ferry_probe_item *out)
{
	const size_t n = FERRY_ARRAY_SIZE(trials);
	struct ferry_trial *t =
		mmap(NULL, sizeof(*t), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	for (size_t i = 0; i < n; i++) {
		struct ferry_probe_item *item = &out[i];

		*item = (struct ferry_probe_item){
			.id = trials[i].id,
			.what = trials[i].what,
			.required = trials[i].required,
			.verdict = FERRY_PROBE_MISSING,
		};
		if (t == MAP_FAILED) {
			snprintf(item->detail, sizeof(item->detail), "no memory for the trial");
		} else {
			run_in_child(&trials[i], t);
			item->verdict = t->verdict;
			memcpy(item->detail, t->detail, sizeof(item->detail));
		}
		if (item->verdict != FERRY_PROBE_OK)
			snprintf(item->mend, sizeof(item->mend), "%s", trials[i].mend);
	}
	if (t != MAP_FAILED)
		munmap(t, sizeof(*t));
	return n;
}
