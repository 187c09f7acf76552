/* SPDX-License-Identifier: Apache-2.0 */
#include "tools/confine.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/bpf.h>
#include <linux/io_uring.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#define ALL	 (CONFINE_SERVES | CONFINE_MAKES_RINGS | CONFINE_READS | CONFINE_ATTACHES)
#define FINE	 0
#define FAILED	 1
#define NOT_MADE 2

/* Runs @call in a confined process. Return: FINE or FAILED as it says, or the signal that ended it. */
static int outcome(unsigned int needs, bool (*call)(void))
{
	struct ferry_failure f = {0};
	int status;
	pid_t pid = fork();

	if (!pid) {
		struct rlimit none = {0, 0};

		setrlimit(RLIMIT_CORE, &none);
		if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 || confine(needs, &f) < 0)
			_exit(NOT_MADE);
		_exit(call() ? FINE : FAILED);
	}
	waitpid(pid, &status, 0);
	return WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status);
}

static void need_filter(void)
{
	if (!CONFINE_ENABLED)
		cr_skip_test("a build with sanitizers has no seccomp filter");
}

static bool starts_program(void)
{
	return execl("/bin/true", "true", NULL) == 0;
}

static bool forks(void)
{
	return fork() >= 0;
}

static bool opens_packet_socket(void)
{
	return socket(AF_PACKET, SOCK_RAW, 0) >= 0;
}

static bool writes_code(void)
{
	return mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) !=
	       MAP_FAILED;
}

static bool makes_data_code(void)
{
	void *p = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	return !mprotect(p, 4096, PROT_READ | PROT_EXEC);
}

static bool loads_bpf(void)
{
	return syscall(SYS_bpf, BPF_MAP_CREATE, NULL, 0) >= 0;
}

static bool leaves_namespace(void)
{
	return !unshare(CLONE_NEWUSER);
}

static bool becomes_another(void)
{
	return !setuid(1);
}

static bool pushes_into_terminal(void)
{
	return !syscall(SYS_ioctl, 0, 0x5412 /* TIOCSTI */, "x");
}

/* By number, even one's own. */
static bool limits_another(void)
{
	struct rlimit limit;

	return !prlimit(getpid(), RLIMIT_NOFILE, NULL, &limit);
}

static bool is_traced(void)
{
	return !ptrace(PTRACE_TRACEME, 0, NULL, NULL);
}

static bool writes_another(void)
{
	return process_vm_writev(getpid(), NULL, 0, NULL, 0, 0) == 0;
}

static bool reads_another(void)
{
	return process_vm_readv(getpid(), NULL, 0, NULL, 0, 0) == 0;
}

/* On nobody: what matters is whether the kernel is asked. */
static bool advises_on_another(void)
{
	return syscall(SYS_process_madvise, -1, NULL, 0, 0, 0) < 0 && errno == EBADF;
}

static bool sets_up_ring(void)
{
	return syscall(SYS_io_uring_setup, 0, NULL) >= 0 || errno != ENOSYS;
}

/* No ring at all: what matters is whether the kernel is asked. */
#define NO_RING INT_MAX

static bool enables_ring(void)
{
	return syscall(SYS_io_uring_register, NO_RING, IORING_REGISTER_ENABLE_RINGS, NULL, 0) < 0 &&
	       errno == EBADF;
}

static bool registers_files(void)
{
	return syscall(SYS_io_uring_register, NO_RING, IORING_REGISTER_FILES, NULL, 0) < 0 &&
	       errno == EBADF;
}

static bool enters_ring(void)
{
	return syscall(SYS_io_uring_enter, NO_RING, 0, 0, 0, NULL, 0) < 0 && errno == EBADF;
}

static void *nothing(void *arg)
{
	return arg;
}

static bool works(void)
{
	pthread_t thread;
	char *heap = malloc(32 << 20);
	struct rlimit limit;
	int fds[2];

	if (!heap || pthread_create(&thread, NULL, nothing, NULL) || pthread_join(thread, NULL))
		return false;
	free(heap);
	return eventfd(0, EFD_CLOEXEC) >= 0 && open("/proc/self/stat", O_RDONLY) >= 0 &&
	       socket(AF_INET, SOCK_STREAM, 0) >= 0 && !socketpair(AF_UNIX, SOCK_STREAM, 0, fds) &&
	       write(fds[0], "x", 1) == 1 && getpriority(PRIO_PROCESS, 0) <= 20 &&
	       !getrlimit(RLIMIT_NOFILE, &limit);
}

Test(confine, nothing_that_nobody_needs)
{
	static bool (*const never[])(void) = {
		starts_program, forks, opens_packet_socket, writes_code, makes_data_code,
		loads_bpf, leaves_namespace, becomes_another, pushes_into_terminal, limits_another,
	};

	need_filter();
	for (size_t i = 0; i < sizeof(never) / sizeof(never[0]); i++)
		cr_expect_eq(outcome(ALL, never[i]), SIGSYS, "call %zu", i);
}

Test(confine, other_processes_are_for_those_who_attach)
{
	need_filter();
	cr_expect_eq(outcome(CONFINE_SERVES | CONFINE_READS, is_traced), SIGSYS);
	cr_expect_eq(outcome(CONFINE_SERVES | CONFINE_READS, writes_another), SIGSYS);
	cr_expect_eq(outcome(CONFINE_SERVES, reads_another), SIGSYS);
	cr_expect_eq(outcome(CONFINE_SERVES | CONFINE_READS, reads_another), FINE);
	cr_expect_eq(outcome(CONFINE_ATTACHES, is_traced), FINE);
	cr_expect_eq(outcome(CONFINE_ATTACHES, writes_another), FINE);
	cr_expect_eq(outcome(CONFINE_ATTACHES, advises_on_another), FAILED);
	cr_expect_eq(outcome(CONFINE_ATTACHES | CONFINE_ADVISES, advises_on_another), FINE);
}

Test(confine, io_uring_is_for_those_who_serve)
{
	need_filter();
	cr_expect_eq(outcome(CONFINE_ATTACHES, enters_ring), SIGSYS);
	cr_expect_eq(outcome(CONFINE_SERVES, enters_ring), FINE);
}

/* A ring of his own would let him who has taken over a process do anything. */
Test(confine, rings_are_there_before_but_for_those_who_make_them)
{
	static const struct {
		unsigned int needs;
		int set_up, registers, enables;
	} rows[] = {
		{CONFINE_ATTACHES, SIGSYS, SIGSYS, SIGSYS},
		{CONFINE_SERVES | CONFINE_READS, SIGSYS, SIGSYS, SIGSYS},
		{CONFINE_SERVES | CONFINE_ENABLES_RING, SIGSYS, SIGSYS, FINE},
		{CONFINE_SERVES | CONFINE_MAKES_RINGS, FINE, FINE, FINE},
	};

	need_filter();
	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		cr_expect_eq(outcome(rows[i].needs, sets_up_ring), rows[i].set_up, "row %zu", i);
		cr_expect_eq(outcome(rows[i].needs, registers_files), rows[i].registers, "row %zu",
			     i);
		cr_expect_eq(outcome(rows[i].needs, enables_ring), rows[i].enables, "row %zu", i);
	}
}

Test(confine, ordinary_work_goes_on)
{
	cr_expect_eq(outcome(CONFINE_NOTHING, works), FINE);
	cr_expect_eq(outcome(ALL, works), FINE);
}

/* Those that are there already must not stay free. */
static pthread_barrier_t confined;

static void *asks_for_a_packet_socket(void *arg)
{
	pthread_barrier_wait(&confined);
	opens_packet_socket();
	return arg;
}

Test(confine, threads_that_were_there_before_are_in_it)
{
	int status;
	pid_t pid;

	need_filter();
	pid = fork();
	if (!pid) {
		struct ferry_failure f = {0};
		pthread_t thread;

		pthread_barrier_init(&confined, NULL, 2);
		pthread_create(&thread, NULL, asks_for_a_packet_socket, NULL);
		if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 || confine(ALL, &f) < 0)
			_exit(NOT_MADE);
		pthread_barrier_wait(&confined);
		pthread_join(thread, NULL);
		_exit(FINE);
	}
	waitpid(pid, &status, 0);
	cr_assert(WIFSIGNALED(status) && WTERMSIG(status) == SIGSYS, "%#x", status);
}
