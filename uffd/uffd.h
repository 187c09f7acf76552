/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Obtaining a userfaultfd, in three ways: made in this process, received over a UNIX socket, or
 * made inside a running process by attaching to it. All three end in the same struct.
 */
#ifndef FERRY_UFFD_UFFD_H
#define FERRY_UFFD_UFFD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"
#include "base/util.h"

/* A userfaultfd after its UFFDIO_API handshake. */
struct ferry_uffd {
	int fd;		   /* owned; -1 when closed; non-blocking, close-on-exec */
	int pidfd;	   /* owned; of the process whose memory it is; -1 for our own */
	pid_t pid;	   /* that process; our own for an own one */
	int remote_fd;	   /* the number it has in that process, when attached; else -1 */
	uint64_t features; /* UFFD_FEATURE_* that are on */
};

#define FERRY_UFFD_NONE ((struct ferry_uffd){.fd = -1, .pidfd = -1, .remote_fd = -1})

/**
 * ferry_uffd_open() - a userfaultfd for this process's own memory
 * @wanted: UFFD_FEATURE_* bits to turn on where this kernel has them (ask ->features afterwards)
 * Tries /dev/userfaultfd, then the system call.
 * Errors: -EPERM, -EACCES, -ENOSYS, ... (REFUSE) with how to mend it in @f.
 * Source: userfaultfd(2), ioctl_userfaultfd(2) UFFDIO_API
 */
int ferry_uffd_open(struct ferry_uffd *out, uint64_t wanted, struct ferry_failure *f);

/**
 * ferry_uffd_attach() - a userfaultfd for the memory of another, unmodified process
 * The process is made to run userfaultfd() and then goes on as if nothing had happened; we get a
 * duplicate of the descriptor. Where the process has no right to userfaultfd, but we have, it is
 * made to ask our /dev/userfaultfd for one instead. It keeps its own descriptor, so that the death
 * of ours never closes the last one (which would zero-fill silently).
 * A seccomp filter of the process is suspended for the one thread meanwhile; where we can't do
 * that (no CAP_SYS_ADMIN, or a seccomp filter on ourselves) such a process is refused, because
 * its filter might kill it.
 * @pid:    the process; the caller has made sure it is the right one
 * @wanted: as above
 * Takes about a millisecond, in which one thread of @pid is stopped. Signals to the calling thread
 * wait until it is over. Being killed in that millisecond may kill @pid too.
 * Errors: -EPERM (ptrace not allowed), -ESRCH (no such process), -EINVAL (our own, or a thread's
 *         number), -EBUSY (no thread of it could be stopped), -EOPNOTSUPP (a 32-bit process, or one
 *         whose first thread has ended), -ENOSYS, ... (REFUSE) with how to mend it in @f. On error the process runs on unchanged.
 * Source: ptrace(2), pidfd_getfd(2); docs/probes/inject-uffd.c
 */
int ferry_uffd_attach(struct ferry_uffd *out, pid_t pid, uint64_t wanted,
		      struct ferry_failure *f);

/**
 * ferry_uffd_adopt() - find the userfaultfd that an earlier attach left open in a process
 * For recovery after our own death. Looks through /proc/PID/fd for anon_inode:[userfaultfd].
 * Faults that the earlier holder had read, but not served, are not reported again: wake all ranges.
 * Errors: -ENOENT (REFUSE) when there is none, -ENOTUNIQ (REFUSE) when there are several; -EPERM,
 *         -ESRCH as above.
 */
int ferry_uffd_adopt(struct ferry_uffd *out, pid_t pid, struct ferry_failure *f);

/**
 * ferry_uffd_recv_bytes() - some bytes from a UNIX stream, and the first descriptor that came along
 * @fd: the descriptor, owned by the caller; -1 when none came. Others are closed.
 * @cut: descriptors were lost on the way, as there were more than 16
 * Return: bytes; 0 at the end of the stream; negative errno, -EAGAIN when @sock is non-blocking and
 * nothing came.
 */
ssize_t ferry_uffd_recv_bytes(int sock, void *data, size_t len, int *fd, bool *cut);

/**
 * ferry_uffd_from_peer() - take a descriptor that came over a socket for a userfaultfd
 * @fd: given, on error too
 * @sock: that socket: its peer is taken for the process whose memory it is
 * Errors: -EBADMSG (REFUSE) when it is no userfaultfd; -ESRCH (REFUSE) when the peer has ended.
 */
int ferry_uffd_from_peer(struct ferry_uffd *out, int fd, int sock, struct ferry_failure *f);

/**
 * ferry_uffd_recv() - receive a userfaultfd by SCM_RIGHTS
 * @sock: a connected UNIX stream socket; one message is read, the first descriptor kept and any
 *        others closed
 * @data, @len: where the message's bytes go, and how many fit; on success *@len is what came
 * The sender is taken for the process whose memory it is.
 * Errors: -EBADMSG (REFUSE) when no descriptor came, it is no userfaultfd, or it was truncated;
 *         -ECONNRESET when the peer closed; -EAGAIN when @sock is non-blocking and nothing came;
 *         -ESRCH (REFUSE) when the sender has exited.
 */
int ferry_uffd_recv(struct ferry_uffd *out, int sock, void *data, size_t *len,
		    struct ferry_failure *f);

/*
 * Send @u's descriptor with @len bytes (at least 1) of @data. @sock: a connected UNIX socket.
 * Errors: negative errno (LINK), -EAGAIN when @sock is non-blocking and full.
 */
int ferry_uffd_send(const struct ferry_uffd *u, int sock, const void *data, size_t len);

/**
 * ferry_uffd_release() - leave the other process for good
 * Closes the descriptor inside an attached process too (only right when every page is resident
 * and all ranges are unregistered), then ours, whatever happens. Never blocks the process.
 * Errors: as ferry_uffd_attach() (BENIGN): the process keeps its descriptor.
 */
int ferry_uffd_release(struct ferry_uffd *u);

/* Closes our descriptors only: waiters in another process go on waiting. NULL and twice are fine. */
void ferry_uffd_close(struct ferry_uffd *u);

/*
 * Ranges. @start and @len: bytes, multiples of the page size of the mapping.
 * Errors: negative errno; -EINVAL for a mapping that userfaultfd can't serve, -EBUSY when another
 * userfaultfd has it, -ENOMEM/-ENOENT when it isn't mapped, -ESRCH (LOST) when the process is gone.
 */
int ferry_uffd_register(const struct ferry_uffd *u, struct ferry_hva start, uint64_t len);

/*
 * The same for shared memory whose pages we write where they belong (in_place.c): a thread that
 * touches a page waits also when the page is there, until ferry_place_continue() shows it.
 * @missing: and when it is not there; without, the kernel has zeros for that
 */
int ferry_uffd_register_hidden(const struct ferry_uffd *u, struct ferry_hva start, uint64_t len,
			       bool missing);
int ferry_uffd_unregister(const struct ferry_uffd *u, struct ferry_hva start, uint64_t len);
int ferry_uffd_wake(const struct ferry_uffd *u, struct ferry_hva start, uint64_t len);

/*
 * Has no userfaultfd the page @at of private anonymous memory? Unknown counts as no. The question
 * changes nothing.
 * Source: mm/userfaultfd.c, mfill_atomic(): CONTINUE, which such memory can't have, looks at the
 * registration first; docs/probes/continue-tells-registered.c
 */
bool ferry_uffd_is_unregistered(const struct ferry_uffd *u, struct ferry_hva at);

/*
 * Does a thread of the process wait for one of its events to be read? @at: a page in an
 * unregistered range, which the question leaves alone.
 * Source: fs/userfaultfd.c, userfaultfd_zeropage(): mmap_changing comes before the range is looked
 * at; docs/probes/remove-event.c
 */
bool ferry_uffd_is_changing(const struct ferry_uffd *u, struct ferry_hva at);

#endif
