/* SPDX-License-Identifier: Apache-2.0 */
/* What the userfaultfd tests share: children, ports between them and us, memory, huge pages. */
#ifndef FERRY_TESTS_UFFD_SUPPORT_H
#define FERRY_TESTS_UFFD_SUPPORT_H

#include <linux/userfaultfd.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "uffd/uffd.h"

#define PAGE 4096u
#define HUGE (2u << 20)

/* A process that dies with us, and a pair of pipes to it. */
struct child {
	pid_t pid;
	int to, from; /* owned */
};

/* What a child does. It reads @in and writes @out. Return: its exit status. */
typedef int (*child_fn)(int in, int out, void *arg);

struct child child_start(child_fn fn, void *arg);
/* One byte to the child; one byte from it. The test fails when the child has ended. */
void child_tell(const struct child *c);
void child_await(const struct child *c);
/* Wait for its end. Return: its exit status, or 1000 + the signal that killed it. */
int child_end(struct child *c);
int child_kill(struct child *c);
/* Wait for its end, which must be with status 0. */
void child_expect_end(struct child *c);

/* The same two from within a child. */
void parent_tell(int out);
void parent_await(int in);

/* Wait until thread @tid of @pid is blocked in system call @nr. */
void await_syscall(pid_t pid, pid_t tid, long nr);
/* Wait until /proc/PID/stat shows this state. */
void await_state(pid_t pid, char state);

/* How many descriptors a process has open. */
size_t count_fds(pid_t pid);

/* Become an ordinary user, for good. */
void drop_to_nobody(void);

/* Fail the test with the failure's text when @r is not 0. */
#define assert_ok(r, f)                                                                            \
	do {                                                                                       \
		int r_ = (r);                                                                      \
		cr_assert(r_ == 0, "%d: %s", r_, (f).text);                                        \
	} while (0)

/* Map memory that is registered with nobody. */
uint8_t *map_anon(size_t len);
uint8_t *map_shared(size_t len, const char *name);
uint8_t *map_huge(size_t len);

static inline struct ferry_hva hva(const void *p)
{
	return (struct ferry_hva){(uintptr_t)p};
}

/*
 * At least @n free huge pages of 2 MiB while the test runs. Skips the test when not root.
 * huge_unreserve() puts things back and is right without huge_reserve() too.
 */
void huge_reserve(unsigned int n);
void huge_unreserve(void);

/* A thread that reads one byte, to wait there until the page is present. */
struct toucher {
	const volatile uint8_t *at;
	uint8_t seen;
	unsigned long thread;
};
void touch_start(struct toucher *t, const void *at);
/* Return: the byte that it saw. */
uint8_t touch_end(struct toucher *t);

/* Attach to a process, which must work; with release, @times times. */
struct ferry_uffd attach(pid_t pid);
void attach_and_release(pid_t pid, unsigned int times);

/* The next page-fault message; waits for it. Return: its address. */
uint64_t next_fault(const struct ferry_uffd *u);

#endif
