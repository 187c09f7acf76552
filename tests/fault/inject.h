/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Calls into libc, the kernel and io_uring that fail when a test says so: the linker (--wrap) leads
 * each such call of the objects of this program through inject.c. Calls that libraries make among
 * themselves are not seen, nor are those of exempt threads.
 *
 * What our code has allocated or mapped, and not given back, is kept in a ledger meanwhile.
 */
#ifndef FERRY_TESTS_INJECT_H
#define FERRY_TESTS_INJECT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define FAULT_SHORT 10000 /* instead of an errno: half of what was asked for is done */
#define FAULT_KILL  10001 /* or: the process fault_victim is killed just before the call */
#define FAULT_CUT   10002 /* or: what is received is there, but for its descriptors */

/* The calls, and how each may fail. */
#define FAULT_CALLS(X)                                                                             \
	X(malloc, ENOMEM)                                                                          \
	X(calloc, ENOMEM)                                                                          \
	X(realloc, ENOMEM)                                                                         \
	X(reallocarray, ENOMEM)                                                                    \
	X(aligned_alloc, ENOMEM)                                                                   \
	X(strdup, ENOMEM)                                                                          \
	X(mmap64, ENOMEM)                                                                          \
	X(pthread_create, EAGAIN)                                                                  \
	X(pthread_atfork, ENOMEM)                                                                  \
	X(sem_wait, EINTR)                                                                         \
	X(setpriority, EACCES)                                                                     \
	X(eventfd, EMFILE, ENOMEM)                                                                 \
	X(memfd_create, EMFILE, ENOMEM)                                                            \
	X(socket, EMFILE, ENOBUFS)                                                                 \
	X(socketpair, EMFILE, ENOMEM)                                                              \
	X(bind, EADDRINUSE)                                                                        \
	X(listen, EADDRINUSE)                                                                      \
	X(accept4, EMFILE, ECONNABORTED, EINTR)                                                    \
	X(connect, ECONNREFUSED, ENOBUFS, EAGAIN)                                                  \
	X(getaddrinfo, EAI_MEMORY, EAI_AGAIN)                                                      \
	X(setsockopt, ENOMEM)                                                                      \
	X(getsockopt, ENOBUFS)                                                                     \
	X(getsockname, ENOBUFS)                                                                    \
	X(getpeername, ENOBUFS, ENOTCONN)                                                          \
	X(getnameinfo, EAI_MEMORY)                                                                 \
	X(recv, ECONNRESET, EINTR, EAGAIN, ENOMEM, FAULT_SHORT)                                    \
	X(send, ECONNRESET, EINTR, EAGAIN, ENOBUFS, FAULT_SHORT)                                   \
	X(sendmsg, ECONNRESET, EINTR, EAGAIN, ENOBUFS, FAULT_SHORT)                                \
	X(recvmsg, ECONNRESET, EINTR, EAGAIN, ENOMEM, FAULT_CUT)                                   \
	X(poll, EINTR, ENOMEM)                                                                     \
	X(open64, EMFILE, EIO, EACCES)                                                             \
	X(openat64, EMFILE, EIO, ENOSPC)                                                           \
	X(fopen64, EMFILE)                                                                         \
	X(open_memstream, ENOMEM)                                                                  \
	X(fdopen, ENOMEM)                                                                          \
	X(getdelim, ENOMEM, EIO)                                                                   \
	X(fgets, ENOMEM, EIO)                                                                      \
	X(fread, ENOMEM, EIO)                                                                      \
	X(fwrite, ENOSPC, EIO)                                                                     \
	X(fflush, ENOSPC, EIO)                                                                     \
	X(fclose, ENOSPC, EIO)                                                                     \
	X(read, EIO, EAGAIN, EINTR, FAULT_SHORT)                                                   \
	X(pread64, EIO, EINTR, FAULT_SHORT)                                                        \
	X(preadv64v2, EIO, EAGAIN, FAULT_SHORT)                                                    \
	X(process_vm_readv, EFAULT, ENOMEM, EPERM, FAULT_SHORT)                                    \
	X(vmsplice, ENOMEM, EAGAIN, EINTR, FAULT_SHORT)                                            \
	X(splice, ENOMEM, ENOSPC, EINTR, FAULT_SHORT)                                              \
	X(pipe2, EMFILE, ENOMEM)                                                                   \
	X(write, ENOSPC, EIO, EINTR, FAULT_SHORT)                                                  \
	X(pwrite64, ENOSPC, EIO, EINTR, FAULT_SHORT)                                               \
	X(fdatasync, EIO)                                                                          \
	X(fsync, EIO)                                                                              \
	X(rename, ENOSPC, EIO)                                                                     \
	X(mkdtemp, ENOSPC)                                                                         \
	X(mkdir, ENOSPC)                                                                           \
	X(unlink, EIO)                                                                             \
	X(unlinkat, EIO)                                                                           \
	X(fchmod, EPERM)                                                                           \
	X(realpath, ENOMEM)                                                                        \
	X(access, ENOMEM)                                                                          \
	X(ftruncate64, EIO, EINTR, ENOSPC)                                                         \
	X(posix_fallocate64, ENOSPC, EINTR)                                                        \
	X(fallocate64, ENOSPC, EINTR, EOPNOTSUPP)                                                  \
	X(madvise, EAGAIN, ENOMEM, EINVAL, EBUSY)                                                  \
	X(flock, EINTR, ENOLCK)                                                                    \
	X(fstat64, EIO)                                                                            \
	X(stat64, EIO)                                                                             \
	X(lstat64, EIO)                                                                            \
	X(fstatat64, EIO, ENOMEM)                                                                  \
	X(fstatfs64, EIO)                                                                          \
	X(lseek64, EIO, EINVAL)                                                                    \
	X(dupfd, EMFILE)                                                                           \
	X(getrandom, EINTR)                                                                        \
	X(mlock2, ENOMEM, EPERM)                                                                   \
	X(ioctl, ENOMEM, EAGAIN, EINTR)                                                            \
	X(pidfd_open, EMFILE, ENOMEM)                                                              \
	X(pidfd_getfd, EMFILE, EPERM)                                                              \
	X(userfaultfd, EPERM, EMFILE, ENOMEM)                                                      \
	X(kcmp, ENOSYS, EPERM)                                                                     \
	X(pidfd_send_signal, EPERM, EAGAIN)                                                        \
	X(uring_register, ENOMEM, EBUSY, EINVAL)                                                   \
	X(process_madvise, EPERM, ENOSYS, ENOMEM, EAGAIN, EBUSY)                                   \
	X(opendir, EMFILE, ENOMEM)                                                                 \
	X(fdopendir, ENOMEM)                                                                       \
	X(readdir64, EINTR, ENOMEM)                                                                \
	X(readlink, ENOMEM)                                                                        \
	X(readlinkat, ENOMEM)                                                                      \
	X(waitid, EINTR, FAULT_KILL)                                                               \
	X(waitpid, EINTR)                                                                          \
	X(ptrace, FAULT_KILL)                                                                      \
	X(ptrace_seize, EPERM, ESRCH)                                                              \
	X(ptrace_get, ENOMEM)                                                                      \
	X(fork, EAGAIN, ENOMEM)                                                                    \
	X(signalfd, EMFILE)                                                                        \
	X(openssl, ENOMEM)                                                                         \
	X(epoll_create1, EMFILE)                                                                   \
	X(epoll_ctl, ENOMEM)                                                                       \
	X(epoll_wait, EINTR)                                                                       \
	X(strndup, ENOMEM)                                                                         \
	X(asprintf, ENOMEM)                                                                        \
	X(jansson, ENOMEM)                                                                         \
	X(ferry_inject_syscall, EMFILE, ENOMEM, EPERM, FAULT_KILL)                                 \
	X(io_uring_queue_init, ENOMEM, EMFILE, ENOSYS)                                             \
	X(io_uring_submit, EAGAIN, EINTR)                                                          \
	X(io_uring_submit_and_wait_timeout, EAGAIN, EINTR, EBUSY, ENOMEM, EIO)                     \
	X(completion, ECONNRESET, ENOBUFS)

enum fault_call {
#define FAULT_ENUM(name, ...) FAULT_##name,
	FAULT_CALLS(FAULT_ENUM)
#undef FAULT_ENUM
	FAULT_N_CALLS
};

#define FAULT_MAX_ERRORS 6

struct fault_call_desc {
	const char *name;
	int errors[FAULT_MAX_ERRORS]; /* 0 ends it */
};

extern const struct fault_call_desc fault_calls[FAULT_N_CALLS];

/* What libraries that have hooks for it are to allocate with. */
void *fault_openssl_malloc(size_t size, const char *file, int line);
void *fault_openssl_realloc(void *p, size_t size, const char *file, int line);
void fault_openssl_free(void *p, const char *file, int line);
void *fault_jansson_malloc(size_t size);
void fault_jansson_free(void *p);

/* Threads begin as counted. The test's own say that they are not. */
extern _Thread_local bool fault_exempt;

/* The process that FAULT_KILL kills; 0 for none. */
extern pid_t fault_victim;

/* From here on count; the @nth call of the kind (0: none) fails with @error, once. */
void fault_arm(enum fault_call call, uint64_t nth, int error);
void fault_disarm(void);
/* As it was before the disarming. */
void fault_rearm(void);
/* Has it come to that? */
bool fault_has_struck(void);
bool fault_has_struck_with(int error);
bool fault_has_struck_in(enum fault_call call);
/* Where, as an offset into the program for addr2line. */
uintptr_t fault_struck_at(void);
uint64_t fault_count(enum fault_call call);

/* Return: how many allocations and mappings were not given back; where the first was made. */
size_t fault_kept(uintptr_t *at);

#endif
