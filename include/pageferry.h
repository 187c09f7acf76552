/* SPDX-License-Identifier: Apache-2.0 */
/*
 * libpageferry: move a program's memory after the program has moved.
 *
 *   source                                   target
 *   ------                                   ------
 *   stop what writes to the memory           map fresh memory of the same size
 *   pageferry_server_new()  <--- network --- pageferry_lazy_new(), pageferry_lazy_connect()
 *                                            run at once: a touch of a page that is not there yet
 *                                            fetches it, and the thread waits for just that page
 *                                            pageferry_lazy_push(): the rest streams in behind
 *   wait for PAGEFERRY_COMPLETE              wait for PAGEFERRY_COMPLETE
 *   pageferry_server_free()                  pageferry_lazy_close()
 *
 * Any number of objects work in one process, and share nothing but the list of which there are. The
 * library installs no signal handlers, prints nothing and never ends the process. Its threads block
 * all signals. They don't exist in a child made by fork(), where all objects of the parent are
 * -EBADF.
 *
 * What stands for an object (struct pageferry_server *, struct pageferry_lazy *) is no address, and
 * none is given out twice: one whose object has ended stays known as that, whatever was made since.
 * Any thread may end an object (_free, _close, _abandon) while others are in calls on it. From then
 * on calls on it are -EBADF; those that wait come back with -ESHUTDOWN; and the end returns when
 * all have left, so nothing that a call on lazy memory is given may be in that memory.
 *
 * Every function returns 0 (or what its comment says) or a negative errno, and where it takes a
 * struct pageferry_error it writes there on failure what happened, what follows from it, and what
 * to do. These go with all of them and are not repeated below:
 *
 *   -EINVAL   REFUSE: an argument makes no sense (NULL, unaligned, overlapping, a struct's size
 *             that this version doesn't know); nothing was changed.
 *   -ENOMEM   REFUSE: no memory; nothing was changed.
 *   -EBADF    REFUSE: the object has ended, is one of the other kind or of the parent process, or
 *             is none at all. A function that returns nothing does nothing then.
 *   -EDEADLK  REFUSE: called from within the log function of the same object. A function that
 *             returns nothing does nothing then, either.
 *
 * Structs whose first member is ->size grow at their end in later versions. Set ->size to
 * sizeof(the struct); zero in every other member asks for its default. struct pageferry_region, of
 * which there are arrays, grows too: its size is in the options, see ->region_size.
 */
#ifndef PAGEFERRY_H
#define PAGEFERRY_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define PAGEFERRY_VERSION_MAJOR 0
#define PAGEFERRY_VERSION_MINOR 1

#define PAGEFERRY_MAX_REGIONS	  32
#define PAGEFERRY_MAX_STATE_BYTES (64u * 1024)
#define PAGEFERRY_ERROR_TEXT_MAX  512
/* A buffer of this size holds any address, see pageferry_server_address(). */
#define PAGEFERRY_ADDRESS_MAX 1100

/**
 * pageferry_version() - the version that runs
 * Context: any thread.
 * Return:  "MAJOR.MINOR.PATCH", static
 */
const char *pageferry_version(void);

/* --- errors and the log ------------------------------------------------------------------------ */

/* What follows from a failure. */
enum pageferry_consequence {
	PAGEFERRY_OK = 0,
	PAGEFERRY_RETRY = 1,  /* the same call may be tried again */
	PAGEFERRY_LINK = 2,   /* the peer is out of reach: nothing is lost, and it may be tried again */
	PAGEFERRY_REFUSE = 3, /* it can't be done like this; nothing was changed */
	PAGEFERRY_LOST = 4,   /* the memory can't be completed any more */
};

/* Owned by the caller; written on failure only. Every function that takes one takes NULL as well. */
struct pageferry_error {
	int err; /* negative errno */
	enum pageferry_consequence consequence;
	char text[PAGEFERRY_ERROR_TEXT_MAX]; /* one line: what failed, and what to do about it */
};

enum pageferry_log_level {
	PAGEFERRY_LOG_NONE = 0,
	PAGEFERRY_LOG_ERROR = 1,
	PAGEFERRY_LOG_WARN = 2,
	PAGEFERRY_LOG_INFO = 3,
	PAGEFERRY_LOG_DEBUG = 4,
};

/*
 * A line for people. @line has no newline and is borrowed until return. Called from the library's
 * threads and from within calls, several at once; it must not call back into the object that it
 * belongs to (-EDEADLK), nor touch memory that is lazy.
 */
typedef void (*pageferry_log_fn)(void *ctx, enum pageferry_log_level level, const char *line);

/* --- memory ------------------------------------------------------------------------------------ */

/*
 * A range of this process's own memory. Both sides name the same regions in the same order, with
 * the same sizes and page sizes. A target that gives no name takes any; a source that gives none
 * says "region0", "region1", ...
 *
 * Private anonymous memory, shared memory (memfd, tmpfs, shared anonymous) and huge pages of 2 MiB
 * (hugetlbfs, MAP_HUGETLB) can be served and made lazy; memory mapped from ordinary files can be
 * served only.
 *
 * Later versions may add members at the end; zero asks for their default.
 */
struct pageferry_region {
	const char *name;  /* at most 63 bytes; NULL or "" for none; borrowed for the call */
	void *start;	   /* a multiple of the page size */
	uint64_t bytes;	   /* a multiple of the page size, at least one page */
	uint32_t page_bytes; /* 0: as the kernel has it; else it must be what the kernel has */
	/*
	 * Source only. With ->has_fd the pages of shared memory are read from ->fd (borrowed for the
	 * call) at byte ->offset instead: holes are then found without reading them, and travel as
	 * holes. Without it shared memory that was never touched is filled with zeros by being read.
	 */
	int has_fd;
	int fd;
	uint64_t offset;
};

/* Bits of ->flags in the options of both sides. */
/* No checksums of pages: for a link that checks them itself, or memory that is checked otherwise. Else
 * a page that was damaged on its way is noticed, not placed, and asked for again. Both sides must want
 * checksums, as they do by default. */
#define PAGEFERRY_NO_CHECKSUM (UINT64_C(1) << 0)
/* Lazy only. A page that the source has lost (its file was cut short, say) answers whoever touches it
 * with a memory error, SIGBUS, from then on. Else its threads wait, and it is asked for again with
 * the next connection. From Linux 6.6 on; before, they wait all the same. */
#define PAGEFERRY_POISON_LOST (UINT64_C(1) << 1)
/* Lazy only. Else private memory is in large pages afterwards where it could be: aligned blocks of
 * 2 MiB without a page of zeros that nobody touched while the push brought them, fast enough (each
 * within 5 ms, over one connection). It takes Linux 6.8, memory for reading and writing alone that
 * is in one mapping, and a host that has not switched them off; MADV_NOHUGEPAGE is not asked for.
 */
#define PAGEFERRY_NO_LARGE_PAGES (UINT64_C(1) << 2)

/* --- source: serve memory ------------------------------------------------------------------------ */

struct pageferry_server;

struct pageferry_server_options {
	size_t size; /* of this struct */
	/* Where to listen: "HOST:PORT" (port 0: the kernel chooses), "[v6]:PORT" or "unix:PATH". */
	const char *listen;
	/* Or a stream socket that listens already (TCP or UNIX; anything else is -EINVAL). Given:
	 * closed by the library, on failure too. Ignored unless ->has_listen_fd. */
	int has_listen_fd;
	int listen_fd;
	/* Opaque bytes that the target gets with the layout: registers, say. Copied. At most
	 * PAGEFERRY_MAX_STATE_BYTES. */
	const void *state;
	uint32_t state_bytes;
	/* Accept targets, but answer them after pageferry_server_serve() only. */
	int hold;
	uint32_t max_sessions;	       /* 0: 64 */
	uint64_t max_bytes_per_second; /* of each session's push; 0: no limit */
	pageferry_log_fn log;	       /* NULL: silence */
	void *log_ctx;
	enum pageferry_log_level log_level;
	uint64_t flags; /* PAGEFERRY_NO_CHECKSUM */
	/* sizeof(struct pageferry_region) as the program was compiled, so that the library finds
	 * the next one in the array. 0: that of version 0.1, which a program that leaves it out has
	 * to be compiled with. */
	size_t region_size;
};

/**
 * pageferry_server_new() - serve regions of this process's memory
 * @regions: @n_regions of them, copied; the memory itself is borrowed until _free. Unless ->hold is
 *           set it must not change from here on.
 * @options: the struct is borrowed for the call
 * Several targets may connect; each gets everything.
 * Context: any thread. The memory must not be lazy itself, or be complete already.
 * Errors:  -EADDRINUSE (after 1.3 s, since the address of a process that was killed is free only a
 *          little later), -EADDRNOTAVAIL, -EACCES (REFUSE): the address can't be listened on.
 *          -ENOSYS, -EPERM (REFUSE): the kernel has no io_uring, or forbids it.
 *          -EFAULT (REFUSE): a region is not mapped, or not readable.
 * Source:  io_uring_setup(2), docs/protocol.md
 */
int pageferry_server_new(struct pageferry_server **out, const struct pageferry_region *regions,
			 uint32_t n_regions, const struct pageferry_server_options *options,
			 struct pageferry_error *e);

/**
 * pageferry_server_address() - where it listens, the port filled in
 * @out: @out_bytes of room; PAGEFERRY_ADDRESS_MAX always suffice. A text that
 *       pageferry_lazy_connect() takes.
 * Context: any thread.
 * Errors:  -ENOSPC (RETRY): @out is too small.
 *          -ENOENT: it was given a socket, and knows no address.
 */
int pageferry_server_address(const struct pageferry_server *s, char *out, size_t out_bytes);

/**
 * pageferry_server_serve() - end ->hold: the memory doesn't change any more
 * Targets that wait are answered now.
 * Context: any thread.
 * Errors:  -EALREADY: it serves already. -ESHUTDOWN: after _stop. Other errors (LOST): the memory
 *          can't be read.
 */
int pageferry_server_serve(struct pageferry_server *s, struct pageferry_error *e);

/* What an object tells its owner. */
enum pageferry_event {
	PAGEFERRY_NOTHING = 0,	 /* the time was up */
	PAGEFERRY_OPEN = 1,	 /* lazy: the source is connected, at first or again */
	PAGEFERRY_LINK_LOST = 2, /* a connection broke; it is resumed, and threads wait meanwhile */
	PAGEFERRY_COMPLETE = 3,	 /* lazy: all is resident. server: a target has everything */
	PAGEFERRY_FAILED = 4,	 /* lazy: the source refuses to go on, or has lost pages, and threads
				  * wait; it is tried again all the same (lost pages with the next
				  * connection), and OPEN may follow. server: a target gave up, or a page
				  * can't be read */
};

/**
 * pageferry_server_fd() - a descriptor to poll
 * It is readable (POLLIN) when pageferry_server_wait() has something to tell; call that until it
 * says PAGEFERRY_NOTHING.
 * Context: any thread.
 * Return:  the descriptor, borrowed until _free
 */
int pageferry_server_fd(const struct pageferry_server *s);

/**
 * pageferry_server_wait() - the next thing that happened
 * @timeout_ms: milliseconds; -1 for ever, 0 only looks
 * @e:          the story of LINK_LOST and FAILED
 * Context: one thread at a time.
 * Errors:  -ESHUTDOWN: the server was stopped, also while this waits, or freed while it does.
 *          -EBUSY (RETRY): another thread is in this call.
 * Return:  an enum pageferry_event, or a negative errno.
 */
int pageferry_server_wait(struct pageferry_server *s, int timeout_ms, struct pageferry_error *e);

struct pageferry_server_stats {
	size_t size;	     /* set by the caller */
	uint32_t n_sessions; /* targets that are connected now */
	uint32_t n_completed;
	uint32_t resumes;
	uint64_t pages_urgent, pages_pushed, pages_zero; /* sent */
	uint64_t wire_bytes;				 /* sent, all included */
	uint64_t requests;
	uint64_t pages_total, pages_sent; /* of the latest session */
	uint64_t pages_lost; /* that targets were told can't be read any more */
};

/**
 * pageferry_server_stats() - how far it is
 * @out: its ->size set by the caller, and kept
 * Context: any thread, also after _stop.
 */
int pageferry_server_stats(const struct pageferry_server *s, struct pageferry_server_stats *out);

/**
 * pageferry_server_stop() - close all connections and end the threads
 * Targets that are not complete wait, and resume when the memory is served again at the address.
 * Twice is fine.
 * Context: any thread.
 */
int pageferry_server_stop(struct pageferry_server *s);

/**
 * pageferry_server_free() - stop and free
 * NULL is fine, and so is a server that was freed before: nothing is done. A call of another thread
 * that waits for it ends with -ESHUTDOWN; this returns after all calls on @s have. The memory is
 * the caller's again.
 * Context: any thread but the log function's.
 */
void pageferry_server_free(struct pageferry_server *s);

/* --- target: lazy memory --------------------------------------------------------------------------- */

struct pageferry_lazy;

struct pageferry_lazy_options {
	size_t size;		       /* of this struct */
	uint32_t n_bulk;	       /* connections for the push; 0: 1 */
	uint64_t max_bytes_per_second; /* of the push; 0: no limit */
	pageferry_log_fn log;	       /* NULL: silence */
	void *log_ctx;
	enum pageferry_log_level log_level;
	/* A file that gets a record of each fault and of each run of the push, until _close or
	 * _abandon: for 'pageferry trace report|plot|export'. Overwritten if it exists. NULL: none.
	 * Borrowed for the call. */
	const char *trace_file;
	uint64_t flags; /* PAGEFERRY_NO_CHECKSUM, PAGEFERRY_POISON_LOST, PAGEFERRY_NO_LARGE_PAGES */
	size_t region_size; /* sizeof(struct pageferry_region), as for a server; 0 also without options */
};

/**
 * pageferry_lazy_new() - make memory lazy: from here on, who touches a missing page waits
 * @regions: @n_regions of them, copied; the memory is borrowed until _close or _abandon
 * @options: NULL for defaults
 * Pages that are present already (were touched since they were mapped) are kept as they are. Use
 * fresh memory. The program may unmap, move (as a whole) or discard (MADV_DONTNEED) the memory
 * meanwhile; discarded private pages read as zero, as always. A child made by fork() has zeros
 * where pages were missing: don't touch the memory there.
 * Context: any thread. The threads of the library never touch the regions by themselves.
 * Errors:  -EPERM, -EACCES, -ENOSYS (REFUSE): the kernel has no userfaultfd for this user.
 *          -ENODEV (REFUSE): memory that userfaultfd can't serve. -EFAULT (REFUSE): not mapped.
 *          -EBUSY (REFUSE): memory that is lazy already, or that another userfaultfd has. End that
 *          one first (_close or _abandon); @e has the region, by its address.
 *          Other errors (REFUSE): the trace file can't be written.
 * Source:  userfaultfd(2), ioctl_userfaultfd(2) UFFDIO_REGISTER
 */
int pageferry_lazy_new(struct pageferry_lazy **out, const struct pageferry_region *regions,
		       uint32_t n_regions, const struct pageferry_lazy_options *options,
		       struct pageferry_error *e);

/**
 * pageferry_lazy_connect() - connect to the source, and stay connected
 * @from: "HOST:PORT", "[v6]:PORT" or "unix:PATH"
 * Returns when the connections are open and both sides have the same regions. From then on a lost
 * connection is opened again, for as long as it takes.
 * Context: any thread, one at a time.
 * Errors:  -EBUSY (RETRY): another thread is in this call.
 *          -ESHUTDOWN: it was abandoned while this waited.
 *          -ECONNREFUSED, -ETIMEDOUT, -EADDRNOTAVAIL, ... (LINK): it may be called again.
 *          -EINVAL, -EPROTO (REFUSE): the regions differ, or it is no pageferry. It may be called
 *          again.
 *          -EISCONN: it was connected before.
 */
int pageferry_lazy_connect(struct pageferry_lazy *l, const char *from, struct pageferry_error *e);

/**
 * pageferry_lazy_state() - the opaque bytes that the source sent along
 * @bytes: how many there are, 0 with NULL; may be NULL itself, for who knows
 * Context: any thread.
 * Return:  the bytes, borrowed until _close or _abandon. NULL before _connect has returned 0, when
 *          there are none, and for an @l that is none.
 */
const void *pageferry_lazy_state(const struct pageferry_lazy *l, uint32_t *bytes);

/**
 * pageferry_lazy_push() - have the source send everything, faults first
 * Without it pages come when they are touched, only.
 * Context: any thread. Twice is fine.
 * Errors:  -ENOTCONN: before _connect has returned 0.
 */
int pageferry_lazy_push(struct pageferry_lazy *l);

/**
 * pageferry_lazy_fd() - a descriptor to poll
 * It is readable (POLLIN) when pageferry_lazy_wait() has something to tell; call that until it says
 * PAGEFERRY_NOTHING.
 * Context: any thread.
 * Return:  the descriptor, borrowed until _close
 */
int pageferry_lazy_fd(const struct pageferry_lazy *l);

/**
 * pageferry_lazy_wait() - the next thing that happened
 * @timeout_ms: milliseconds; -1 for ever, 0 only looks
 * @e:          the story of LINK_LOST and FAILED
 * Context: one thread at a time, which must not hold what a thread that waits for a page holds.
 * Errors:  -EBUSY (RETRY): another thread is in this call.
 *          -ESHUTDOWN: it was closed or abandoned while this waits.
 * Return:  an enum pageferry_event, or a negative errno.
 */
int pageferry_lazy_wait(struct pageferry_lazy *l, int timeout_ms, struct pageferry_error *e);

#define PAGEFERRY_FAULT_BUCKETS 28

struct pageferry_lazy_stats {
	size_t size;				/* set by the caller */
	uint64_t pages_total, pages_resident;	/* all is here when equal; zero pages count as here */
	uint64_t pages_urgent, pages_pushed, pages_zero, pages_present; /* how they came */
	uint64_t pages_discarded;
	uint64_t wire_bytes;			/* received, all included */
	uint64_t faults;			/* messages from the kernel */
	uint64_t requests;
	uint32_t resumes;
	int is_connected;
	/* Of faults that went to the source: message read to thread woken, microseconds. */
	uint64_t fault_n;
	double fault_p50_us, fault_p99_us, fault_p999_us, fault_max_us;
	uint64_t pages_lost, pages_poisoned; /* the source can't read them any more */
	uint64_t checksum_errors;	     /* runs of pages that came damaged, and were asked for again */
	/* The same faults by how long they took: [0] less than 1 us, [1] 1 us, [n] from 2^(n-1) us
	 * to less than 2^n us; the last has all that took longer, too. The edges are right
	 * within 3.2 %. */
	uint64_t fault_buckets[PAGEFERRY_FAULT_BUCKETS];
};

/**
 * pageferry_lazy_stats() - how far it is, and how long faults took
 * @out: its ->size set by the caller, and kept
 * Context: any thread.
 */
int pageferry_lazy_stats(const struct pageferry_lazy *l, struct pageferry_lazy_stats *out);

/**
 * pageferry_lazy_close() - after PAGEFERRY_COMPLETE: end the threads and free
 * NULL is fine. A call of another thread that waits for it ends with -ESHUTDOWN; this returns after
 * all calls on @l have. A second one is -EBADF, and changes nothing.
 * Context: any thread but the log function's.
 * Errors:  -EBUSY (REFUSE): pages are missing. Nothing is done, since they would silently turn to
 *          zeros; wait, or call pageferry_lazy_abandon().
 */
int pageferry_lazy_close(struct pageferry_lazy *l);

/**
 * pageferry_lazy_abandon() - give up: free, whatever is missing
 * Missing pages are zeros from here on, and who waits for one goes on with zeros: only right when
 * nothing is going to use the memory's content any more. NULL is fine, and so is what has ended
 * before: nothing is done. Other threads' calls end as with _close.
 * Context: any thread but the log function's.
 */
void pageferry_lazy_abandon(struct pageferry_lazy *l);

#ifdef __cplusplus
}
#endif

#endif
