/* SPDX-License-Identifier: Apache-2.0 */
#include "tools/confine.h"

#include <errno.h>
#include <linux/io_uring.h>
#include <sched.h>
#include <seccomp.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>

#include "base/util.h"
#include "tools/isolation.h"
#include "uffd/kernel.h"

#define UFFDIO_GROUP   0xaa00u /* all ioctls of a userfaultfd: _IO(0xaa, ...) */
#define IOC_GROUP_MASK 0xff00u

/* What every command does: memory, files, time, threads, sockets. Names, since not every
 * architecture has all of them; those that are unknown are left out. */
static const char *const always[] = {
	/* memory; mmap and mprotect have rules of their own */
	"brk",
	"madvise",
	"mincore",
	"mremap",
	"munmap",
	"membarrier",
	/* files */
	"access",
	"close",
	"close_range",
	"dup",
	"dup2",
	"dup3",
	"eventfd2",
	"faccessat",
	"faccessat2",
	"fadvise64",
	"fallocate",
	"fchmod",
	"fcntl",
	"fdatasync",
	"flock",
	"fstat",
	"fstatfs",
	"fsync",
	"ftruncate",
	"getdents64",
	"lseek",
	"lstat",
	"memfd_create",
	"mkdir",
	"mkdirat",
	"newfstatat",
	"open",
	"openat",
	"pipe2",
	"pread64",
	"preadv",
	"preadv2",
	"pwrite64",
	"pwritev",
	"pwritev2",
	"read",
	"readlink",
	"readlinkat",
	"readv",
	"rename",
	"renameat",
	"renameat2",
	"rmdir",
	"splice",
	"stat",
	"statfs",
	"statx",
	"umask",
	"unlink",
	"unlinkat",
	"vmsplice",
	"write",
	"writev",
	/* waiting, time */
	"clock_getres",
	"clock_gettime",
	"clock_nanosleep",
	"epoll_create1",
	"epoll_ctl",
	"epoll_pwait",
	"epoll_wait",
	"gettimeofday",
	"nanosleep",
	"pidfd_open",
	"poll",
	"ppoll",
	"pselect6",
	"restart_syscall",
	"select",
	"time",
	"timerfd_create",
	"timerfd_settime",
	/* threads, signals, the process itself */
	"capget",
	"capset",
	"exit",
	"exit_group",
	"futex",
	"get_robust_list",
	"getegid",
	"geteuid",
	"getgid",
	"getpgrp",
	"getpid",
	"getppid",
	"getpriority",
	"getrandom",
	"getrusage",
	"gettid",
	"getuid",
	"getrlimit",
	"rseq",
	"rt_sigaction",
	"rt_sigprocmask",
	"rt_sigreturn",
	"rt_sigtimedwait",
	"sched_getaffinity",
	"sched_yield",
	"set_robust_list",
	"setpriority",
	"sigaltstack",
	"signalfd4",
	"sysinfo",
	"tgkill",
	"uname",
	/* sockets; socket and socketpair have rules of their own */
	"accept",
	"accept4",
	"bind",
	"connect",
	"getpeername",
	"getsockname",
	"getsockopt",
	"listen",
	"recvfrom",
	"recvmmsg",
	"recvmsg",
	"sendmmsg",
	"sendmsg",
	"sendto",
	"setsockopt",
	"shutdown",
};

static const char *const serving[] = {"io_uring_enter"};

static const char *const making_rings[] = {"io_uring_register", "io_uring_setup"};

static const char *const reading[] = {"process_vm_readv"};

static const char *const filling[] = {"userfaultfd"};

static const char *const attaching[] = {
	"kcmp",
	"kill",
	"pidfd_getfd",
	"pidfd_send_signal",
	"process_vm_readv",
	"process_vm_writev",
	"ptrace",
	"tkill",
	"userfaultfd",
	"wait4",
	"waitid",
};

/* An allocator may try it, but takes no offence. */
static const char *const advising_or_none[] = {"process_madvise"};

/* A libc tries them and has something else when the kernel has not. clone3 is among them because
 * its flags can't be looked at. */
static const char *const newer[] = {
	"clone3",
	"futex_waitv",
	"openat2",
	"epoll_pwait2",
	"mseal",
	"fchmodat2",
	"futex_wake",
	"futex_wait",
	"map_shadow_stack",
	"set_mempolicy_home_node",
	"cachestat",
};

/* The C library has its own names for the rest of a terminal: what is asked of one is its kind and
 * its size. */
static const unsigned long ioctls[] = {TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, PAGEMAP_SCAN};

static const int families[] = {AF_UNIX, AF_INET, AF_INET6, AF_NETLINK};

static const int prctls[] = {PR_SET_NAME,     PR_GET_NAME,    PR_CAPBSET_READ,
			     PR_CAPBSET_DROP, PR_CAP_AMBIENT, PR_SET_VMA};

static int add_all(scmp_filter_ctx c, uint32_t action, const char *const *names, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		int nr = seccomp_syscall_resolve_name(names[i]), rc;

		/* Below zero: unknown to this library, or of another architecture. */
		if (nr < 0)
			continue;
		rc = seccomp_rule_add(c, action, nr, 0);
		if (rc < 0)
			return rc;
	}
	return 0;
}

#define ADD_ALL(c, action, names) add_all(c, action, names, FERRY_ARRAY_SIZE(names))

static int allow(scmp_filter_ctx c, int nr, struct scmp_arg_cmp arg)
{
	return seccomp_rule_add_array(c, SCMP_ACT_ALLOW, nr, 1, &arg);
}

/* Code comes from files only: nothing is writable and executable, or becomes executable. */
static int add_memory(scmp_filter_ctx c)
{
	static const int protections[] = {0, PROT_WRITE, PROT_EXEC};
	int rc = allow(c, SCMP_SYS(mprotect), SCMP_A2_32(SCMP_CMP_MASKED_EQ, PROT_EXEC, 0));

	for (size_t i = 0; i < FERRY_ARRAY_SIZE(protections) && !rc; i++)
		rc = allow(c, SCMP_SYS(mmap),
			   SCMP_A2_32(SCMP_CMP_MASKED_EQ, PROT_WRITE | PROT_EXEC, protections[i]));
	return rc;
}

static int add_limited(scmp_filter_ctx c)
{
	/* Threads, but no processes. */
	int rc = allow(c, SCMP_SYS(clone), SCMP_A0(SCMP_CMP_MASKED_EQ, CLONE_THREAD, CLONE_THREAD));

	for (size_t i = 0; i < FERRY_ARRAY_SIZE(families) && !rc; i++)
		rc = allow(c, SCMP_SYS(socket), SCMP_A0_32(SCMP_CMP_EQ, (uint32_t)families[i]));
	if (!rc)
		rc = allow(c, SCMP_SYS(socketpair), SCMP_A0_32(SCMP_CMP_EQ, AF_UNIX));
	/* Limits of our own, not of another process. */
	if (!rc)
		rc = allow(c, SCMP_SYS(prlimit64), SCMP_A0_32(SCMP_CMP_EQ, 0));
	for (size_t i = 0; i < FERRY_ARRAY_SIZE(ioctls) && !rc; i++)
		rc = allow(c, SCMP_SYS(ioctl), SCMP_A1_32(SCMP_CMP_EQ, (uint32_t)ioctls[i]));
	if (!rc)
		rc = allow(c, SCMP_SYS(ioctl),
			   SCMP_A1_32(SCMP_CMP_MASKED_EQ, IOC_GROUP_MASK, UFFDIO_GROUP));
	for (size_t i = 0; i < FERRY_ARRAY_SIZE(prctls) && !rc; i++)
		rc = allow(c, SCMP_SYS(prctl), SCMP_A0_32(SCMP_CMP_EQ, (uint32_t)prctls[i]));
	return rc;
}

static int add_rules(scmp_filter_ctx c, unsigned int needs)
{
	int rc = ADD_ALL(c, SCMP_ACT_ALLOW, always);

	if (!rc)
		rc = add_memory(c);
	if (!rc)
		rc = add_limited(c);
	if (!rc && needs & CONFINE_SERVES)
		rc = ADD_ALL(c, SCMP_ACT_ALLOW, serving);
	if (!rc && needs & CONFINE_MAKES_RINGS)
		rc = ADD_ALL(c, SCMP_ACT_ALLOW, making_rings);
	else if (!rc && needs & CONFINE_ENABLES_RING)
		rc = allow(c, SCMP_SYS(io_uring_register),
			   SCMP_A1_32(SCMP_CMP_EQ, IORING_REGISTER_ENABLE_RINGS));
	if (!rc && needs & CONFINE_READS)
		rc = ADD_ALL(c, SCMP_ACT_ALLOW, reading);
	if (!rc && needs & CONFINE_FILLS)
		rc = ADD_ALL(c, SCMP_ACT_ALLOW, filling);
	if (!rc && needs & CONFINE_ATTACHES)
		rc = ADD_ALL(c, SCMP_ACT_ALLOW, attaching);
	if (!rc)
		rc = ADD_ALL(c, needs & CONFINE_ADVISES ? SCMP_ACT_ALLOW : SCMP_ACT_ERRNO(ENOSYS),
			     advising_or_none);
	if (!rc)
		rc = ADD_ALL(c, SCMP_ACT_ERRNO(ENOSYS), newer);
	return rc;
}

int confine(unsigned int needs, struct ferry_failure *f)
{
	scmp_filter_ctx c;
	int rc;

	if (!CONFINE_ENABLED)
		return 0;
	c = seccomp_init(SCMP_ACT_KILL_PROCESS);
	if (!c)
		return ferry_fail_errno(f, FERRY_REFUSE, -ENOMEM, "seccomp");
	rc = seccomp_attr_set(c, SCMP_FLTATR_CTL_TSYNC, 1);
	/* Looked up by halving instead of one by one: it is in the way of every call. */
	if (!rc)
		rc = seccomp_attr_set(c, SCMP_FLTATR_CTL_OPTIMIZE, 2);
	if (!rc)
		rc = add_rules(c, needs);
	if (!rc)
		rc = seccomp_load(c);
	seccomp_release(c);
	return rc < 0 ? ferry_fail(
				f, FERRY_REFUSE, rc,
				"cannot confine this process (seccomp): %s; it needs a kernel with "
				"CONFIG_SECCOMP_FILTER, and a container that allows it",
				strerror(-rc))
		      : 0;
}

int confine_attaching(pid_t pid, unsigned int more, const struct ferry_log *log,
		      struct ferry_failure *f)
{
	if (!pid || !(isolation_need_of_process(pid) & ISOLATION_SECCOMP))
		return confine(CONFINE_ATTACHES | more, f);
	ferry_warn(log,
		   "process %d has a seccomp filter, so that this command has none: the kernel "
		   "lets nobody "
		   "who has one set another's aside",
		   (int)pid);
	return 0;
}
