// SPDX-License-Identifier: Apache-2.0
/*
 * Running system calls inside another process.
 *
 * Goal: the process takes no notice, whatever it was doing, and no failure of ours harms it.
 *
 *  1. PTRACE_SEIZE one thread and INTERRUPT it. It stops on its way back to user mode, inside the
 *     kernel's signal handling. A system call that it was blocked in has been broken off there,
 *     and is to be restarted when the thread goes on; the registers say so.
 *  2. Save its registers and its signal mask, and block all signals, so that none is delivered
 *     while the registers are ours. They stay pending in the kernel, so none is lost.
 *  3. Find the bytes of a `syscall` instruction in its text. Nothing is written there.
 *  4. For each call: point the registers at that instruction and let the thread run from the stop
 *     at the call's entry to the stop at its exit. These stops use no signal; a single step would
 *     raise SIGTRAP, which resets the process's handler of it where it is blocked.
 *  5. Put registers and signal mask back, and let the thread run into one more INTERRUPT. That
 *     stop is again inside signal handling, where the kernel looks at the registers once more and
 *     restarts what step 1 broke off. Then detach.
 *
 * Threads: the tracer is a thread of its own per attempt. When it ends, the kernel detaches all
 * that it traced, also a thread that never stopped, which PTRACE_DETACH would refuse.
 *
 * Failures: the stopped thread ends: -ESRCH, and the next thread is tried. A SIGSTOP that arrives
 * is passed on, and takes effect when we detach. A seccomp filter could kill the process for our
 * call, so it is suspended for this thread, or we refuse. If we are killed, the thread runs on
 * where it is: before the first step 4 and after the SETREGS of step 5 this is harmless, between
 * them (some 50 us) it is not. So signals are blocked meanwhile in the threads that take part.
 */
#include "uffd/inject.h"

#include <dirent.h>
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/util.h"

#define STOP_WAIT_NS  (1000 * (uint64_t)FERRY_NS_PER_MS) /* for one thread to stop */
#define TOTAL_WAIT_NS (4 * STOP_WAIT_NS)		 /* for any thread to stop */
#define POLL_MIN_NS   (20 * FERRY_NS_PER_US)
#define POLL_MAX_NS   (1 * FERRY_NS_PER_MS)

#define SYSCALL_STOP (SIGTRAP | 0x80) /* by PTRACE_O_TRACESYSGOOD */
#define INSN_LEN     2

struct ferry_inject {
	pid_t tid;
	int mem;       /* owned: /proc/TID/mem */
	uint64_t insn; /* address of a `syscall` instruction */
	struct user_regs_struct saved;
	uint64_t saved_mask;
	uint64_t rseq_cs_at; /* address of the thread's pointer to its critical section, or 0 */
	uint64_t rseq_cs;    /* that pointer */
	bool used;	     /* it ran a call, and is stopped at its exit */
};

/* Of /proc/PID/task/TID/status. */
struct thread_status {
	char state;
	pid_t tracer;
	int seccomp; /* 0 none, 1 strict, 2 filter */
};

static int read_status(pid_t pid, pid_t tid, struct thread_status *out)
{
	_cleanup_fclose_ FILE *file = NULL;
	char path[64], line[256];

	*out = (struct thread_status){0};
	snprintf(path, sizeof(path), "/proc/%d/task/%d/status", (int)pid, (int)tid);
	file = fopen(path, "re");
	if (!file)
		return -errno;
	while (fgets(line, sizeof(line), file)) {
		int value;

		if (sscanf(line, "State: %c", &out->state) == 1)
			continue;
		if (sscanf(line, "TracerPid: %d", &value) == 1)
			out->tracer = value;
		else if (sscanf(line, "Seccomp: %d", &value) == 1)
			out->seccomp = value;
	}
	if (ferror(file))
		return errno == ESRCH ? -ENOENT : -errno;
	return 0;
}

/*
 * Wait for the thread to stop. Another waiter of this process must not be robbed of the news that
 * a child of ours ended, so only stops are consumed. There is nothing to poll() for a stop:
 * with a deadline it is asked for again and again.
 * Return: 0 with the stop in @stop: signal, and event << 8; -ESRCH; -EBUSY after @deadline_ns (0
 *         for none).
 */
static int wait_stop(pid_t tid, uint64_t deadline_ns, int *stop)
{
	const int common = WSTOPPED | __WALL | __WNOTHREAD;
	long pause_ns = POLL_MIN_NS;

	for (;;) {
		siginfo_t si = {0};
		struct timespec pause = {0};
		int options = common | WEXITED | WNOWAIT | (deadline_ns ? WNOHANG : 0);

		if (waitid(P_PID, (id_t)tid, &si, options) < 0) {
			if (errno == EINTR)
				continue;
			return -ESRCH;
		}
		if (si.si_pid == tid) {
			if (si.si_code != CLD_TRAPPED && si.si_code != CLD_STOPPED)
				return -ESRCH;
			*stop = si.si_status;
			waitid(P_PID, (id_t)tid, &si, common | WNOHANG);
			return 0;
		}
		if (ferry_now_ns() > deadline_ns)
			return -EBUSY;
		pause.tv_nsec = pause_ns;
		nanosleep(&pause, NULL);
		pause_ns = FERRY_MIN(2 * pause_ns, (long)POLL_MAX_NS);
	}
}

static int ptrace_errno(enum __ptrace_request request, pid_t tid, void *addr, const void *data)
{
	return ptrace(request, tid, addr, data) < 0 ? -errno : 0;
}

static void *as_pointer(uint64_t v)
{
	return (void *)(uintptr_t)v;
}

/* Step 1: to the stop that INTERRUPT makes. A signal that comes first is delivered. */
static int interrupt(pid_t tid)
{
	uint64_t deadline_ns = ferry_now_ns() + STOP_WAIT_NS;
	int r = ptrace_errno(PTRACE_INTERRUPT, tid, NULL, NULL);

	while (r == 0) {
		int stop;

		r = wait_stop(tid, deadline_ns, &stop);
		if (r == 0 && stop >> 8 == PTRACE_EVENT_STOP)
			return 0;
		if (r == 0)
			r = ptrace_errno(PTRACE_CONT, tid, NULL, as_pointer((uint64_t)stop));
	}
	return r;
}

/* By words, since that takes no memory of the kernel's: it doesn't fail while the thread lives. */
static int peek(pid_t tid, uint64_t addr, long *word)
{
	errno = 0;
	*word = ptrace(PTRACE_PEEKDATA, tid, as_pointer(addr), NULL);
	return errno ? -EIO : 0;
}

int ferry_inject_read(struct ferry_inject *in, uint64_t addr, void *buf, size_t len)
{
	int r = 0;

	for (size_t at = 0, n; at < len && r == 0; at += n) {
		long word;

		n = FERRY_MIN(len - at, sizeof(word));
		r = peek(in->tid, addr + at, &word);
		memcpy((char *)buf + at, &word, n);
	}
	return r;
}

int ferry_inject_write(struct ferry_inject *in, uint64_t addr, const void *buf, size_t len)
{
	int r = 0;

	for (size_t at = 0, n; at < len && r == 0; at += n) {
		long word = 0;

		n = FERRY_MIN(len - at, sizeof(word));
		if (n < sizeof(word))
			r = peek(in->tid, addr + at, &word);
		memcpy(&word, (const char *)buf + at, n);
		if (r == 0 && ptrace(PTRACE_POKEDATA, in->tid, as_pointer(addr + at), word) < 0)
			r = -EIO;
	}
	return r;
}

#ifdef __x86_64__

#define USER_CS_64 0x33

static const uint8_t insn_bytes[INSN_LEN] = {0x0f, 0x05};

static int get_regs(pid_t tid, struct user_regs_struct *regs)
{
	struct iovec iov = {regs, sizeof(*regs)};
	int r = ptrace_errno(PTRACE_GETREGSET, tid, as_pointer(NT_PRSTATUS), &iov);

	if (r < 0)
		return r;
	/* A 32-bit process has a shorter set. */
	return iov.iov_len == sizeof(*regs) && regs->cs == USER_CS_64 ? 0 : -EOPNOTSUPP;
}

static int set_regs(pid_t tid, const struct user_regs_struct *regs)
{
	return ptrace_errno(PTRACE_SETREGS, tid, NULL, regs);
}

static void prepare_call(const struct ferry_inject *in, struct user_regs_struct *regs, long nr,
			 const uint64_t args[6])
{
	*regs = in->saved;
	regs->rip = in->insn;
	regs->rax = (unsigned long long)nr;
	regs->orig_rax = UINT64_MAX; /* no system call is to be restarted now */
	regs->rdi = args[0];
	regs->rsi = args[1];
	regs->rdx = args[2];
	regs->r10 = args[3];
	regs->r8 = args[4];
	regs->r9 = args[5];
}

/* It takes no memory of the kernel's, as all registers would: what the call has made is not lost.
 */
static int get_result(pid_t tid, long *result)
{
	errno = 0;
	*result = ptrace(PTRACE_PEEKUSER, tid, as_pointer(offsetof(struct user, regs.rax)), NULL);
	return errno ? -errno : 0;
}

static uint64_t instruction_before(const struct user_regs_struct *regs)
{
	return regs->rip - INSN_LEN;
}

#else
#error "uffd/inject.c: the registers of this architecture are not described"
#endif

static bool find_insn_within(struct ferry_inject *in, uint64_t start, uint64_t end)
{
	uint8_t buf[16 * FERRY_KIB];

	for (uint64_t at = start; at < end; at += sizeof(buf) - INSN_LEN) {
		ssize_t n = pread(in->mem, buf, FERRY_MIN(sizeof(buf), end - at), (off_t)at);
		const uint8_t *hit =
			n < INSN_LEN ? NULL : memmem(buf, (size_t)n, insn_bytes, INSN_LEN);

		if (hit) {
			in->insn = at + (uint64_t)(hit - buf);
			return true;
		}
		if (n < INSN_LEN)
			return false;
	}
	return false;
}

/* A thread that was in a system call has the instruction just before its pc; others need a look. */
static int find_insn(struct ferry_inject *in)
{
	_cleanup_fclose_ FILE *maps = NULL;
	char path[64], line[512];
	uint8_t before[INSN_LEN];

	in->insn = instruction_before(&in->saved);
	if (ferry_inject_read(in, in->insn, before, sizeof(before)) == 0 &&
	    memcmp(before, insn_bytes, INSN_LEN) == 0)
		return 0;
	snprintf(path, sizeof(path), "/proc/%d/maps", (int)in->tid);
	maps = fopen(path, "re");
	if (!maps)
		return -errno;
	while (fgets(line, sizeof(line), maps)) {
		uint64_t start, end;
		char rights[5];

		if (sscanf(line, "%" SCNx64 "-%" SCNx64 " %4s", &start, &end, rights) == 3 &&
		    rights[2] == 'x' && find_insn_within(in, start, end))
			return 0;
	}
	return ferror(maps) ? -errno : -ENOENT;
}

/*
 * A thread that was stopped inside a restartable sequence must not go on in the middle of it. The
 * kernel would see to that, but while the registers are ours it takes the sequence for left and
 * forgets it. So the thread's own note of it is kept, and put back at the end.
 */
static void save_rseq(struct ferry_inject *in)
{
	struct __ptrace_rseq_configuration c = {0};

	if (ptrace(PTRACE_GET_RSEQ_CONFIGURATION, in->tid, as_pointer(sizeof(c)), &c) < 0 ||
	    !c.rseq_abi_pointer)
		return;
	in->rseq_cs_at = c.rseq_abi_pointer + 8; /* struct rseq: cpu_id_start, cpu_id, rseq_cs */
	if (ferry_inject_read(in, in->rseq_cs_at, &in->rseq_cs, sizeof(in->rseq_cs)) < 0)
		in->rseq_cs = 0;
}

/* Steps 2 and 3. */
static int prepare(struct ferry_inject *in)
{
	const uint64_t all = UINT64_MAX;
	char path[64];
	int r;

	r = get_regs(in->tid, &in->saved);
	if (r < 0)
		return r;
	snprintf(path, sizeof(path), "/proc/%d/mem", (int)in->tid);
	in->mem = open(path, O_RDWR | O_CLOEXEC);
	if (in->mem < 0)
		return -errno;
	r = find_insn(in);
	if (r < 0)
		return r;
	save_rseq(in);
	r = ptrace_errno(PTRACE_GETSIGMASK, in->tid, as_pointer(sizeof(all)), &in->saved_mask);
	if (r < 0)
		return r;
	return ptrace_errno(PTRACE_SETSIGMASK, in->tid, as_pointer(sizeof(all)), &all);
}

/* Run to the next entry or exit of a system call; what can't be blocked (SIGSTOP) is passed on. */
static int run_to_syscall_stop(pid_t tid)
{
	uint64_t sig = 0;

	for (;;) {
		int stop;
		int r = ptrace_errno(PTRACE_SYSCALL, tid, NULL, as_pointer(sig));

		if (r == 0)
			r = wait_stop(tid, 0, &stop);
		if (r < 0)
			return r;
		if (stop == SYSCALL_STOP)
			return 0;
		sig = stop >> 8 ? 0 : (uint64_t)stop;
	}
}

int ferry_inject_syscall(struct ferry_inject *in, long nr, const uint64_t args[6], long *result)
{
	struct user_regs_struct regs;
	long got = 0;
	int r;

	prepare_call(in, &regs, nr, args);
	r = set_regs(in->tid, &regs);
	if (r < 0)
		return r;
	in->used = true;
	r = run_to_syscall_stop(in->tid);
	if (r == 0)
		r = run_to_syscall_stop(in->tid);
	if (r == 0)
		r = get_result(in->tid, &got);
	if (r == 0)
		*result = got;
	return r;
}

/* Step 5. Whatever fails here fails because the thread has ended. */
static void let_go(struct ferry_inject *in)
{
	int stop = 0;

	ptrace(PTRACE_SETSIGMASK, in->tid, as_pointer(sizeof(in->saved_mask)), &in->saved_mask);
	if (in->used) {
		if (in->rseq_cs)
			(void)ferry_inject_write(in, in->rseq_cs_at, &in->rseq_cs,
						 sizeof(in->rseq_cs));
		ptrace(PTRACE_INTERRUPT, in->tid, NULL, NULL);
		set_regs(in->tid, &in->saved);
		ptrace(PTRACE_CONT, in->tid, NULL, NULL);
		if (wait_stop(in->tid, 0, &stop) < 0)
			return;
	}
	ptrace(PTRACE_DETACH, in->tid, NULL, as_pointer(stop >> 8 ? 0 : (uint64_t)stop));
}

struct attempt {
	pid_t pid, tid;
	int pidfd;
	ferry_inject_fn fn;
	void *ctx;
	struct ferry_failure *f;
	int r;
};

static int read_yama_scope(void)
{
	_cleanup_fclose_ FILE *file = fopen("/proc/sys/kernel/yama/ptrace_scope", "re");
	int scope = 0;

	if (!file || fscanf(file, "%d", &scope) != 1)
		return 0;
	return scope;
}

/* Why PTRACE_SEIZE said EPERM. */
static int explain_refusal(const struct attempt *a)
{
	struct thread_status s;
	int r = read_status(a->pid, a->tid, &s);

	if (r == -ENOENT || (r == 0 && (s.state == 'Z' || s.state == 'X')))
		return -ESRCH;
	if (r == 0 && s.tracer)
		return ferry_fail(
			a->f, FERRY_REFUSE, -EPERM,
			"process %d is traced by process %d (a debugger?); end that first",
			(int)a->pid, (int)s.tracer);
	if (read_yama_scope() >= 3)
		return ferry_fail(
			a->f, FERRY_REFUSE, -EPERM,
			"kernel.yama.ptrace_scope=3 forbids all attaching until this host "
			"is started again with a lower value");
	if (r == 0 && s.seccomp)
		return ferry_fail(
			a->f, FERRY_REFUSE, -EPERM,
			"process %d has a seccomp filter, which might kill it for our "
			"system call; setting it aside needs CAP_SYS_ADMIN (run as root) and "
			"no seccomp filter on pageferry itself; or start QEMU with "
			"'-sandbox off'",
			(int)a->pid);
	return ferry_fail(a->f, FERRY_REFUSE, -EPERM,
			  "ptrace: not allowed to attach to process %d; run as root, or with "
			  "CAP_SYS_PTRACE",
			  (int)a->pid);
}

static int seize(const struct attempt *a)
{
	uint64_t options = PTRACE_O_TRACESYSGOOD;
	struct thread_status s;
	int r = read_status(a->pid, a->tid, &s);

	if (r == -ENOENT || (r == 0 && (s.state == 'Z' || s.state == 'X')))
		return -ESRCH;
	if (r < 0 || s.seccomp)
		options |= PTRACE_O_SUSPEND_SECCOMP;
	r = ptrace_errno(PTRACE_SEIZE, a->tid, NULL, as_pointer(options));
	if (r == -EPERM)
		return explain_refusal(a);
	if (r < 0 && r != -ESRCH)
		ferry_fail_errno(a->f, FERRY_REFUSE, r, "ptrace: process %d", (int)a->pid);
	return r;
}

/* The number may belong to another process by now; if ours still exists, it does not. */
static bool is_gone(int pidfd)
{
	return syscall(SYS_pidfd_send_signal, pidfd, 0, NULL, 0) < 0 && errno == ESRCH;
}

static int work_on_stopped(struct attempt *a)
{
	struct ferry_inject in = {.tid = a->tid, .mem = -1};
	int r = is_gone(a->pidfd) ? -ESRCH : prepare(&in);

	if (r == -EOPNOTSUPP)
		ferry_fail(a->f, FERRY_REFUSE, r,
			   "process %d is a 32-bit process; only 64-bit ones can be attached to",
			   (int)a->pid);
	else if (r < 0 && r != -ESRCH)
		ferry_fail_errno(a->f, FERRY_REFUSE, r, "ptrace: process %d", (int)a->pid);
	if (r == 0) {
		r = a->fn(&in, a->ctx, a->f);
		let_go(&in);
	} else {
		ptrace(PTRACE_DETACH, in.tid, NULL, NULL);
	}
	ferry_close(in.mem);
	return r;
}

static void *attempt_main(void *arg)
{
	struct attempt *a = arg;

	a->r = seize(a);
	if (a->r == 0)
		a->r = interrupt(a->tid);
	if (a->r == 0)
		a->r = work_on_stopped(a);
	return NULL;
}

static int attempt(struct attempt *a)
{
	pthread_t thread;
	int r = pthread_create(&thread, NULL, attempt_main, a);

	if (r)
		return ferry_fail_errno(a->f, FERRY_REFUSE, -r, "ptrace: starting a thread");
	pthread_join(thread, NULL);
	return a->r;
}

/* @err: written when the folder can't be read to its end. That of a process that ends is no more.
 */
static struct dirent *next_entry(DIR *dir, int *err)
{
	struct dirent *e;

	errno = 0;
	e = readdir(dir);
	if (!e && errno && errno != ENOENT)
		*err = -errno;
	return e;
}

/* Try the threads in the order of the kernel's list, which has the first thread first. */
static int try_threads(struct attempt *a)
{
	uint64_t deadline_ns = ferry_now_ns() + TOTAL_WAIT_NS;
	struct dirent *e;
	char path[64];
	int result = -ESRCH, listing = 0;
	DIR *dir;

	snprintf(path, sizeof(path), "/proc/%d/task", (int)a->pid);
	dir = opendir(path);
	if (!dir && errno == ENOENT)
		return -ESRCH;
	if (!dir)
		return ferry_fail_errno(a->f, FERRY_REFUSE, -errno, "%s", path);
	while (ferry_now_ns() < deadline_ns && (e = next_entry(dir, &listing))) {
		int r;

		a->tid = (pid_t)strtol(e->d_name, NULL, 10);
		if (a->tid <= 0)
			continue;
		r = attempt(a);
		if (r == -EBUSY)
			result = r;
		else if (r != -ESRCH) {
			result = r;
			break;
		}
	}
	closedir(dir);
	return listing < 0 ? ferry_fail_errno(a->f, FERRY_REFUSE, listing, "%s", path) : result;
}

int ferry_inject_run(pid_t pid, int pidfd, ferry_inject_fn fn, void *ctx, struct ferry_failure *f)
{
	struct attempt a = {.pid = pid, .pidfd = pidfd, .fn = fn, .ctx = ctx, .f = f};
	sigset_t all, saved;
	int r;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &saved);
	r = try_threads(&a);
	pthread_sigmask(SIG_SETMASK, &saved, NULL);
	if (r == -ESRCH)
		return ferry_fail(f, FERRY_REFUSE, r, "there is no process %d", (int)pid);
	if (r == -EBUSY)
		return ferry_fail(
			f, FERRY_REFUSE, r,
			"process %d did not stop: each of its threads sleeps in the kernel; "
			"is it frozen, or waiting for a dead disk?",
			(int)pid);
	return r;
}
