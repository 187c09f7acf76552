/* SPDX-License-Identifier: Apache-2.0 */
#include "inject.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <netdb.h>
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdio_ext.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

const struct fault_call_desc fault_calls[FAULT_N_CALLS] = {
#define FAULT_DESC(name, ...) {#name, {__VA_ARGS__}},
	FAULT_CALLS(FAULT_DESC)
#undef FAULT_DESC
};

_Thread_local bool fault_exempt;
pid_t fault_victim;

static _Atomic bool armed, struck;
static _Atomic uint64_t counts[FAULT_N_CALLS];
static enum fault_call the_call;
static uint64_t the_nth;
static int the_error;
static _Atomic uintptr_t struck_at;

#define _IO_ERR_SEEN 0x0020 /* glibc's, which does not show it */

extern const char __executable_start;

static uintptr_t offset_of(const void *at)
{
	return (uintptr_t)at - (uintptr_t)&__executable_start;
}

void fault_arm(enum fault_call call, uint64_t nth, int error)
{
	the_call = call;
	the_nth = nth;
	the_error = error;
	for (int i = 0; i < FAULT_N_CALLS; i++)
		atomic_store(&counts[i], 0);
	atomic_store(&struck, false);
	atomic_store(&armed, true);
}

void fault_disarm(void)
{
	atomic_store(&armed, false);
}

void fault_rearm(void)
{
	atomic_store(&armed, true);
}

bool fault_has_struck_with(int error)
{
	return fault_has_struck() && the_error == error;
}

bool fault_has_struck_in(enum fault_call call)
{
	return fault_has_struck() && the_call == call;
}

bool fault_has_struck(void)
{
	return atomic_load(&struck);
}

uintptr_t fault_struck_at(void)
{
	return atomic_load(&struck_at);
}

uint64_t fault_count(enum fault_call call)
{
	return atomic_load(&counts[call]);
}

/* Return: what to fail with, or 0. */
static int strike(enum fault_call call, const void *at)
{
	if (fault_exempt || !atomic_load(&armed))
		return 0;
	if (atomic_fetch_add(&counts[call], 1) + 1 != the_nth || call != the_call)
		return 0;
	atomic_store(&struck_at, offset_of(at));
	atomic_store(&struck, true);
	return the_error;
}

#define STRIKE(call) strike(FAULT_##call, __builtin_return_address(0))

/* --- the ledger ---------------------------------------------------------------------------------- */

#define LEDGER_MAX 16384u

static struct {
	uintptr_t v, at;
} ledger[LEDGER_MAX];
static pthread_mutex_t ledger_lock = PTHREAD_MUTEX_INITIALIZER;

static void note(const void *p, const void *at)
{
	if (!p || fault_exempt || !atomic_load(&armed))
		return;
	pthread_mutex_lock(&ledger_lock);
	for (unsigned int i = 0; i < LEDGER_MAX; i++)
		if (!ledger[i].v) {
			ledger[i].v = (uintptr_t)p;
			ledger[i].at = offset_of(at);
			break;
		}
	pthread_mutex_unlock(&ledger_lock);
}

static void strike_out(const void *p)
{
	pthread_mutex_lock(&ledger_lock);
	for (unsigned int i = 0; p && i < LEDGER_MAX; i++)
		if (ledger[i].v == (uintptr_t)p) {
			ledger[i].v = 0;
			break;
		}
	pthread_mutex_unlock(&ledger_lock);
}

size_t fault_kept(uintptr_t *at)
{
	size_t n = 0;

	for (unsigned int i = 0; i < LEDGER_MAX; i++)
		if (ledger[i].v && !n++)
			*at = ledger[i].at;
	return n;
}

/* --- the calls ----------------------------------------------------------------------------------- */

#define WRAP(type, name, args)                                                                     \
	type __real_##name args;                                                                   \
	type __wrap_##name args;                                                                   \
	type __wrap_##name args

#define FAIL_WITH(error, result)                                                                   \
	do {                                                                                       \
		int e_ = (error);                                                                  \
		if (e_) {                                                                          \
			errno = e_;                                                                \
			return result;                                                             \
		}                                                                                  \
	} while (0)

/* A call that moves @len bytes: half of them, or an error. */
#define FAIL_TRANSFER(call, len)                                                                   \
	do {                                                                                       \
		int e_ = STRIKE(call);                                                             \
		if (e_ == FAULT_SHORT) {                                                           \
			(len) = (len) > 1 ? (len) / 2 : (len);                                     \
		} else if (e_) {                                                                   \
			errno = e_;                                                                \
			return -1;                                                                 \
		}                                                                                  \
	} while (0)

#define WRAP_ALLOC(name, params, args)                                                             \
	WRAP(void *, name, params)                                                                 \
	{                                                                                          \
		void *p;                                                                           \
                                                                                                   \
		FAIL_WITH(STRIKE(name), NULL);                                                     \
		p = __real_##name args;                                                            \
		note(p, __builtin_return_address(0));                                              \
		return p;                                                                          \
	}

WRAP_ALLOC(malloc, (size_t size), (size))
WRAP_ALLOC(calloc, (size_t n, size_t size), (n, size))
WRAP_ALLOC(aligned_alloc, (size_t align, size_t size), (align, size))

WRAP(char *, strdup, (const char *s))
{
	char *p;

	FAIL_WITH(STRIKE(strdup), NULL);
	p = __real_strdup(s);
	note(p, __builtin_return_address(0));
	return p;
}

WRAP(char *, strndup, (const char *s, size_t n))
{
	char *p;

	FAIL_WITH(STRIKE(strndup), NULL);
	p = __real_strndup(s, n);
	note(p, __builtin_return_address(0));
	return p;
}

int __real_asprintf(char **out, const char *format, ...);
int __wrap_asprintf(char **out, const char *format, ...) __attribute__((format(printf, 2, 3)));
int __wrap_asprintf(char **out, const char *format, ...)
{
	va_list args;
	int n;

	FAIL_WITH(STRIKE(asprintf), -1);
	va_start(args, format);
	n = vasprintf(out, format, args);
	va_end(args);
	if (n >= 0)
		note(*out, __builtin_return_address(0));
	return n;
}

WRAP(void *, realloc, (void *old, size_t size))
{
	void *p;

	FAIL_WITH(STRIKE(realloc), NULL);
	strike_out(old);
	p = __real_realloc(old, size);
	note(p ? p : old, __builtin_return_address(0));
	return p;
}

WRAP(void *, reallocarray, (void *old, size_t n, size_t size))
{
	void *p;

	FAIL_WITH(STRIKE(reallocarray), NULL);
	strike_out(old);
	p = __real_reallocarray(old, n, size);
	note(p ? p : old, __builtin_return_address(0));
	return p;
}

WRAP(void, free, (void *p))
{
	strike_out(p);
	__real_free(p);
}

WRAP(void *, mmap64, (void *at, size_t len, int prot, int flags, int fd, off_t off))
{
	void *p;

	FAIL_WITH(STRIKE(mmap64), MAP_FAILED);
	p = __real_mmap64(at, len, prot, flags, fd, off);
	/* What is mapped in the place of another mapping goes with that. */
	if (p != MAP_FAILED && !(flags & MAP_FIXED))
		note(p, __builtin_return_address(0));
	return p;
}

WRAP(int, munmap, (void *p, size_t len))
{
	strike_out(p);
	return __real_munmap(p, len);
}

int __real_close(int fd);

#define WRAP_INT(name, params, args)                                                               \
	WRAP(int, name, params)                                                                    \
	{                                                                                          \
		FAIL_WITH(STRIKE(name), -1);                                                       \
		return __real_##name args;                                                         \
	}

WRAP(int, pthread_create,
     (pthread_t * thread, const pthread_attr_t *attr, void *(*fn)(void *), void *arg))
{
	int e = STRIKE(pthread_create);

	return e ? e : __real_pthread_create(thread, attr, fn, arg);
}

WRAP_INT(memfd_create, (const char *name, unsigned int flags), (name, flags))
WRAP_INT(socket, (int domain, int type, int protocol), (domain, type, protocol))
WRAP_INT(bind, (int fd, const struct sockaddr *sa, socklen_t len), (fd, sa, len))
WRAP_INT(listen, (int fd, int backlog), (fd, backlog))
WRAP_INT(accept4, (int fd, struct sockaddr *sa, socklen_t *len, int flags), (fd, sa, len, flags))
WRAP_INT(connect, (int fd, const struct sockaddr *sa, socklen_t len), (fd, sa, len))
WRAP_INT(setsockopt, (int fd, int level, int name, const void *v, socklen_t len),
	 (fd, level, name, v, len))
WRAP_INT(getsockopt, (int fd, int level, int name, void *v, socklen_t *len),
	 (fd, level, name, v, len))
WRAP_INT(getsockname, (int fd, struct sockaddr *sa, socklen_t *len), (fd, sa, len))
WRAP_INT(poll, (struct pollfd * p, nfds_t n, int ms), (p, n, ms))
WRAP_INT(fdatasync, (int fd), (fd))
WRAP_INT(ftruncate64, (int fd, off_t len), (fd, len))
WRAP_INT(flock, (int fd, int op), (fd, op))
WRAP_INT(fstat64, (int fd, struct stat *st), (fd, st))
WRAP_INT(mlock2, (const void *p, size_t len, unsigned int flags), (p, len, flags))

WRAP_INT(fsync, (int fd), (fd))
WRAP_INT(rename, (const char *from, const char *to), (from, to))
WRAP_INT(stat64, (const char *path, struct stat *st), (path, st))
WRAP_INT(signalfd, (int fd, const sigset_t *set, int flags), (fd, set, flags))
WRAP_INT(socketpair, (int domain, int type, int protocol, int fds[2]),
	 (domain, type, protocol, fds))
WRAP_INT(getpeername, (int fd, struct sockaddr *sa, socklen_t *len), (fd, sa, len))
WRAP_INT(pipe2, (int fds[2], int flags), (fds, flags))
WRAP_INT(mkdir, (const char *path, mode_t mode), (path, mode))
WRAP_INT(unlink, (const char *path), (path))
WRAP_INT(unlinkat, (int dir, const char *path, int flags), (dir, path, flags))
WRAP_INT(fchmod, (int fd, mode_t mode), (fd, mode))
WRAP_INT(access, (const char *path, int mode), (path, mode))
WRAP_INT(lstat64, (const char *path, struct stat *st), (path, st))
WRAP_INT(fstatat64, (int dir, const char *path, struct stat *st, int flags), (dir, path, st, flags))
WRAP_INT(fstatfs64, (int fd, struct statfs *st), (fd, st))
WRAP_INT(waitpid, (pid_t pid, int *status, int options), (pid, status, options))
WRAP_INT(sem_wait, (sem_t * sem), (sem))
WRAP_INT(setpriority, (__priority_which_t which, id_t who, int nice), (which, who, nice))
WRAP_INT(epoll_create1, (int flags), (flags))
WRAP_INT(epoll_wait, (int fd, struct epoll_event *e, int n, int ms), (fd, e, n, ms))

WRAP(int, epoll_ctl, (int fd, int op, int of, struct epoll_event *e))
{
	if (op != EPOLL_CTL_DEL)
		FAIL_WITH(STRIKE(epoll_ctl), -1);
	return __real_epoll_ctl(fd, op, of, e);
}

WRAP(pid_t, fork, (void))
{
	FAIL_WITH(STRIKE(fork), -1);
	return __real_fork();
}

WRAP(char *, mkdtemp, (char *path))
{
	FAIL_WITH(STRIKE(mkdtemp), NULL);
	return __real_mkdtemp(path);
}

WRAP(char *, realpath, (const char *path, char *out))
{
	FAIL_WITH(STRIKE(realpath), NULL);
	return __real_realpath(path, out);
}

WRAP(int, pthread_atfork, (void (*prepare)(void), void (*parent)(void), void (*child)(void)))
{
	int e = STRIKE(pthread_atfork);

	return e ? e : __real_pthread_atfork(prepare, parent, child);
}

WRAP(FILE *, open_memstream, (char **text, size_t *len))
{
	FAIL_WITH(STRIKE(open_memstream), NULL);
	return __real_open_memstream(text, len);
}

WRAP(int, getnameinfo,
     (const struct sockaddr *sa, socklen_t len, char *host, socklen_t host_len, char *port,
      socklen_t port_len, int flags))
{
	int e = STRIKE(getnameinfo);

	return e ? e : __real_getnameinfo(sa, len, host, host_len, port, port_len, flags);
}

WRAP(int, getaddrinfo,
     (const char *host, const char *port, const struct addrinfo *hints, struct addrinfo **out))
{
	int e = STRIKE(getaddrinfo);

	return e ? e : __real_getaddrinfo(host, port, hints, out);
}

WRAP(int, posix_fallocate64, (int fd, off_t at, off_t len))
{
	int e = STRIKE(posix_fallocate64);

	return e ? e : __real_posix_fallocate64(fd, at, len);
}

WRAP_INT(fallocate64, (int fd, int mode, off_t at, off_t len), (fd, mode, at, len))
WRAP_INT(madvise, (void *p, size_t len, int advice), (p, len, advice))

WRAP(ssize_t, getrandom, (void *p, size_t len, unsigned int flags))
{
	FAIL_WITH(STRIKE(getrandom), -1);
	return __real_getrandom(p, len, flags);
}

WRAP(off_t, lseek64, (int fd, off_t at, int whence))
{
	FAIL_WITH(STRIKE(lseek64), -1);
	return __real_lseek64(fd, at, whence);
}

WRAP(FILE *, fopen64, (const char *path, const char *mode))
{
	FAIL_WITH(STRIKE(fopen64), NULL);
	return __real_fopen64(path, mode);
}

WRAP(FILE *, fdopen, (int fd, const char *mode))
{
	FAIL_WITH(STRIKE(fdopen), NULL);
	return __real_fdopen(fd, mode);
}

/* What a stream's descriptor said is kept in it. */
#define FAIL_STREAM(call, file, result)                                                            \
	do {                                                                                       \
		int e_ = STRIKE(call);                                                             \
		if (e_) {                                                                          \
			(file)->_flags |= _IO_ERR_SEEN;                                            \
			errno = e_;                                                                \
			return result;                                                             \
		}                                                                                  \
	} while (0)

/* getline() is this. */
WRAP(ssize_t, __getdelim, (char **line, size_t *size, int end, FILE *file))
{
	FAIL_STREAM(getdelim, file, -1);
	return __real___getdelim(line, size, end, file);
}

WRAP(char *, fgets, (char *out, int size, FILE *file))
{
	FAIL_STREAM(fgets, file, NULL);
	return __real_fgets(out, size, file);
}

WRAP(size_t, fread, (void *out, size_t size, size_t n, FILE *file))
{
	FAIL_STREAM(fread, file, 0);
	return __real_fread(out, size, n, file);
}

WRAP(size_t, fwrite, (const void *data, size_t size, size_t n, FILE *file))
{
	FAIL_STREAM(fwrite, file, 0);
	return __real_fwrite(data, size, n, file);
}

WRAP(int, fputs, (const char *text, FILE *file))
{
	FAIL_STREAM(fwrite, file, EOF);
	return __real_fputs(text, file);
}

WRAP(int, fputc, (int c, FILE *file))
{
	FAIL_STREAM(fwrite, file, EOF);
	return __real_fputc(c, file);
}

int __real_fprintf(FILE *file, const char *format, ...);
int __wrap_fprintf(FILE *file, const char *format, ...) __attribute__((format(printf, 2, 3)));
int __wrap_fprintf(FILE *file, const char *format, ...)
{
	va_list args;
	int n;

	FAIL_STREAM(fwrite, file, -1);
	va_start(args, format);
	n = vfprintf(file, format, args);
	va_end(args);
	return n;
}

WRAP(int, fflush, (FILE * file))
{
	if (file)
		FAIL_STREAM(fflush, file, EOF);
	return __real_fflush(file);
}

/* It writes what is left, and is gone in any case. What was opened for reading can't fail. */
WRAP(int, fclose, (FILE * file))
{
	int e = __fwritable(file) ? STRIKE(fclose) : 0;
	int rc = __real_fclose(file);

	FAIL_WITH(e, EOF);
	return rc;
}

int __real_open64(const char *path, int flags, ...);
int __wrap_open64(const char *path, int flags, unsigned int mode);
int __wrap_open64(const char *path, int flags, unsigned int mode)
{
	FAIL_WITH(STRIKE(open64), -1);
	return __real_open64(path, flags, mode);
}

int __real_openat64(int dir, const char *path, int flags, ...);
int __wrap_openat64(int dir, const char *path, int flags, unsigned int mode);
int __wrap_openat64(int dir, const char *path, int flags, unsigned int mode)
{
	FAIL_WITH(STRIKE(openat64), -1);
	return __real_openat64(dir, path, flags, mode);
}

/* Of fcntl only what makes a descriptor can fail for a reason that isn't ours. */
int __real_fcntl64(int fd, int op, ...);
int __wrap_fcntl64(int fd, int op, uintptr_t arg);
int __wrap_fcntl64(int fd, int op, uintptr_t arg)
{
	if (op == F_DUPFD || op == F_DUPFD_CLOEXEC)
		FAIL_WITH(STRIKE(dupfd), -1);
	return __real_fcntl64(fd, op, arg);
}

int __real_ioctl(int fd, unsigned long op, ...);
int __wrap_ioctl(int fd, unsigned long op, uintptr_t arg);
int __wrap_ioctl(int fd, unsigned long op, uintptr_t arg)
{
	FAIL_WITH(STRIKE(ioctl), -1);
	return __real_ioctl(fd, op, arg);
}

long __real_syscall(long nr, ...);
long __wrap_syscall(long nr, long a, long b, long c, long d, long e, long f);
long __wrap_syscall(long nr, long a, long b, long c, long d, long e, long f)
{
	switch (nr) {
	case SYS_pidfd_open:
		FAIL_WITH(STRIKE(pidfd_open), -1);
		break;
	case SYS_pidfd_getfd:
		FAIL_WITH(STRIKE(pidfd_getfd), -1);
		break;
	case SYS_userfaultfd:
		FAIL_WITH(STRIKE(userfaultfd), -1);
		break;
	case SYS_kcmp:
		FAIL_WITH(STRIKE(kcmp), -1);
		break;
	case SYS_pidfd_send_signal:
		FAIL_WITH(STRIKE(pidfd_send_signal), -1);
		break;
	case SYS_io_uring_register:
		FAIL_WITH(STRIKE(uring_register), -1);
		break;
	case SYS_process_madvise:
		FAIL_WITH(STRIKE(process_madvise), -1);
		break;
	default:
		if (!fault_exempt && atomic_load(&armed)) {
			fprintf(stderr, "system call %ld has no failures yet\n", nr);
			abort();
		}
	}
	return __real_syscall(nr, a, b, c, d, e, f);
}

WRAP(DIR *, opendir, (const char *path))
{
	FAIL_WITH(STRIKE(opendir), NULL);
	return __real_opendir(path);
}

WRAP(DIR *, fdopendir, (int fd))
{
	FAIL_WITH(STRIKE(fdopendir), NULL);
	return __real_fdopendir(fd);
}

WRAP(struct dirent64 *, readdir64, (DIR * dir))
{
	FAIL_WITH(STRIKE(readdir64), NULL);
	return __real_readdir64(dir);
}

WRAP(ssize_t, readlink, (const char *path, char *out, size_t len))
{
	FAIL_WITH(STRIKE(readlink), -1);
	return __real_readlink(path, out, len);
}

WRAP(ssize_t, readlinkat, (int dir, const char *path, char *out, size_t len))
{
	FAIL_WITH(STRIKE(readlinkat), -1);
	return __real_readlinkat(dir, path, out, len);
}

/* --- another process -----------------------------------------------------------------------------
 */

static int kill_victim(int e)
{
	if (e != FAULT_KILL)
		return e;
	if (fault_victim)
		kill(fault_victim, SIGKILL);
	return 0;
}

WRAP(int, waitid, (idtype_t type, id_t id, siginfo_t *si, int options))
{
	FAIL_WITH(kill_victim(STRIKE(waitid)), -1);
	return __real_waitid(type, id, si, options);
}

/* Once a thread has stopped, what is asked of it fails when it ends, or for want of memory to copy
 * its registers through. */
long __real_ptrace(enum __ptrace_request request, ...);
long __wrap_ptrace(enum __ptrace_request request, pid_t pid, void *at, void *data);
long __wrap_ptrace(enum __ptrace_request request, pid_t pid, void *at, void *data)
{
	kill_victim(STRIKE(ptrace));
	if (request == PTRACE_SEIZE)
		FAIL_WITH(STRIKE(ptrace_seize), -1);
	if (request == PTRACE_GETREGSET || request == PTRACE_GETREGS)
		FAIL_WITH(STRIKE(ptrace_get), -1);
	return __real_ptrace(request, pid, at, data);
}

/* A call inside of it. Nothing makes it keep what it is to give back. */
struct ferry_inject;
WRAP(int, ferry_inject_syscall,
     (struct ferry_inject * in, long nr, const uint64_t args[6], long *result))
{
	int e = 0;

	if (nr != SYS_close && nr != SYS_munmap)
		e = kill_victim(STRIKE(ferry_inject_syscall));
	if (e) {
		*result = -e;
		return 0;
	}
	return __real_ferry_inject_syscall(in, nr, args, result);
}

/* --- libraries that have hooks for it ------------------------------------------------------------
 */

void *fault_openssl_malloc(size_t size, const char *file, int line)
{
	(void)file, (void)line;
	FAIL_WITH(STRIKE(openssl), NULL);
	return __real_malloc(size);
}

void *fault_openssl_realloc(void *p, size_t size, const char *file, int line)
{
	(void)file, (void)line;
	FAIL_WITH(STRIKE(openssl), NULL);
	return __real_realloc(p, size);
}

void fault_openssl_free(void *p, const char *file, int line)
{
	(void)file, (void)line;
	__real_free(p);
}

void *fault_jansson_malloc(size_t size)
{
	void *p;

	FAIL_WITH(STRIKE(jansson), NULL);
	p = __real_malloc(size);
	note(p, __builtin_return_address(0));
	return p;
}

void fault_jansson_free(void *p)
{
	strike_out(p);
	__real_free(p);
}

/* --- bytes --------------------------------------------------------------------------------------- */

WRAP(ssize_t, recv, (int fd, void *p, size_t len, int flags))
{
	FAIL_TRANSFER(recv, len);
	return __real_recv(fd, p, len, flags);
}

WRAP(ssize_t, send, (int fd, const void *p, size_t len, int flags))
{
	FAIL_TRANSFER(send, len);
	return __real_send(fd, p, len, flags);
}

static void drop_descriptors(struct msghdr *msg)
{
	for (struct cmsghdr *c = CMSG_FIRSTHDR(msg); c; c = CMSG_NXTHDR(msg, c)) {
		size_t n = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);

		for (size_t i = 0; i < n && c->cmsg_type == SCM_RIGHTS; i++) {
			int fd;

			memcpy(&fd, CMSG_DATA(c) + i * sizeof(fd), sizeof(fd));
			__real_close(fd);
		}
		msg->msg_flags |= MSG_CTRUNC;
	}
	msg->msg_controllen = 0;
}

/* Without a free descriptor the message comes, and what is with it does not. */
WRAP(ssize_t, recvmsg, (int fd, struct msghdr *msg, int flags))
{
	int e = STRIKE(recvmsg);
	ssize_t n;

	FAIL_WITH(e == FAULT_CUT ? 0 : e, -1);
	n = __real_recvmsg(fd, msg, flags);
	if (e == FAULT_CUT && n >= 0)
		drop_descriptors(msg);
	return n;
}

/* The first part of a vector, as far as half of its first entry. */
static struct iovec half_of(const struct iovec *iov)
{
	return (struct iovec){iov->iov_base, iov->iov_len > 1 ? iov->iov_len / 2 : iov->iov_len};
}

WRAP(ssize_t, sendmsg, (int fd, const struct msghdr *msg, int flags))
{
	struct msghdr less = *msg;
	struct iovec half;
	size_t is_whole = 2;

	FAIL_TRANSFER(sendmsg, is_whole);
	if (is_whole == 2 || !msg->msg_iovlen)
		return __real_sendmsg(fd, msg, flags);
	half = half_of(msg->msg_iov);
	less.msg_iov = &half;
	less.msg_iovlen = 1;
	return __real_sendmsg(fd, &less, flags);
}

WRAP(ssize_t, pread64, (int fd, void *p, size_t len, off_t at))
{
	FAIL_TRANSFER(pread64, len);
	return __real_pread64(fd, p, len, at);
}

WRAP(ssize_t, pwrite64, (int fd, const void *p, size_t len, off_t at))
{
	FAIL_TRANSFER(pwrite64, len);
	return __real_pwrite64(fd, p, len, at);
}

WRAP(ssize_t, preadv64v2, (int fd, const struct iovec *iov, int n, off_t at, int flags))
{
	struct iovec half;
	size_t is_whole = 2;

	FAIL_TRANSFER(preadv64v2, is_whole);
	if (is_whole == 2 || !n)
		return __real_preadv64v2(fd, iov, n, at, flags);
	half = half_of(iov);
	return __real_preadv64v2(fd, &half, 1, at, flags);
}

WRAP(ssize_t, process_vm_readv,
     (pid_t pid, const struct iovec *to, unsigned long n_to, const struct iovec *from,
      unsigned long n_from, unsigned long flags))
{
	struct iovec half;
	size_t is_whole = 2;

	FAIL_TRANSFER(process_vm_readv, is_whole);
	if (is_whole == 2 || !n_to)
		return __real_process_vm_readv(pid, to, n_to, from, n_from, flags);
	half = half_of(to);
	return __real_process_vm_readv(pid, &half, 1, from, n_from, flags);
}

/* Pages that lie whole in memory go through a pipe whole: half of them. */
#define FAIL_PAGES(call, len)                                                                      \
	do {                                                                                       \
		size_t half_ = (len) / 2 / FAULT_PAGE * FAULT_PAGE, whole_ = (len);                \
		FAIL_TRANSFER(call, len);                                                          \
		if ((len) != whole_)                                                               \
			(len) = half_ ? half_ : whole_;                                            \
	} while (0)
#define FAULT_PAGE 4096u

WRAP(ssize_t, vmsplice, (int fd, const struct iovec *iov, size_t n, unsigned int flags))
{
	struct iovec less = *iov;

	FAIL_PAGES(vmsplice, less.iov_len);
	return less.iov_len == iov->iov_len ? __real_vmsplice(fd, iov, n, flags)
					    : __real_vmsplice(fd, &less, 1, flags);
}

WRAP(ssize_t, splice,
     (int from, off_t *from_at, int to, off_t *to_at, size_t len, unsigned int flags))
{
	FAIL_PAGES(splice, len);
	return __real_splice(from, from_at, to, to_at, len, flags);
}

/* Kicks: the kernel has no failure for those but a full counter. */
#define MAX_FD 1024

static _Atomic bool is_eventfd[MAX_FD];

WRAP(int, eventfd, (unsigned int n, int flags))
{
	int fd;

	FAIL_WITH(STRIKE(eventfd), -1);
	fd = __real_eventfd(n, flags);
	if (fd >= 0 && fd < MAX_FD)
		is_eventfd[fd] = true;
	return fd;
}

WRAP(int, close, (int fd))
{
	if (fd >= 0 && fd < MAX_FD)
		is_eventfd[fd] = false;
	return __real_close(fd);
}

static bool can_fail(int fd)
{
	return fd < 0 || fd >= MAX_FD || !is_eventfd[fd];
}

WRAP(ssize_t, read, (int fd, void *p, size_t len))
{
	if (can_fail(fd))
		FAIL_TRANSFER(read, len);
	return __real_read(fd, p, len);
}

WRAP(ssize_t, write, (int fd, const void *p, size_t len))
{
	if (can_fail(fd))
		FAIL_TRANSFER(write, len);
	return __real_write(fd, p, len);
}

/* --- the ring ------------------------------------------------------------------------------------ */

WRAP(int, io_uring_queue_init, (unsigned int n, struct io_uring *ring, unsigned int flags))
{
	int e = STRIKE(io_uring_queue_init);

	return e ? -e : __real_io_uring_queue_init(n, ring, flags);
}

WRAP(int, io_uring_submit, (struct io_uring * ring))
{
	int e = STRIKE(io_uring_submit);

	return e ? -e : __real_io_uring_submit(ring);
}

WRAP(int, io_uring_submit_and_wait_timeout,
     (struct io_uring * ring, struct io_uring_cqe **cqe, unsigned int n,
      struct __kernel_timespec *ts, sigset_t *mask))
{
	int e = STRIKE(io_uring_submit_and_wait_timeout), rc;
	struct io_uring_cqe *c;
	unsigned int head;

	if (e)
		return -e;
	rc = __real_io_uring_submit_and_wait_timeout(ring, cqe, n, ts, mask);
	io_uring_for_each_cqe(ring, head, c)
	{
		e = STRIKE(completion);
		if (e)
			c->res = -e;
	}
	return rc;
}
