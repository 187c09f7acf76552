// SPDX-License-Identifier: Apache-2.0
#include "uffd_support.h"

#include <criterion/criterion.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"

#define AWAIT_NS (40 * (uint64_t)FERRY_NS_PER_S)
#define NOBODY	 65534

struct child child_start(child_fn fn, void *arg)
{
	struct child c;
	int to[2], from[2];

	cr_assert(pipe2(to, O_CLOEXEC) == 0 && pipe2(from, O_CLOEXEC) == 0);
	c.pid = fork();
	cr_assert(c.pid >= 0);
	if (c.pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		close(to[1]);
		close(from[0]);
		_exit(fn(to[0], from[1], arg));
	}
	close(to[0]);
	close(from[1]);
	c.to = to[1];
	c.from = from[0];
	return c;
}

void child_tell(const struct child *c)
{
	cr_assert(write(c->to, "t", 1) == 1);
}

void child_await(const struct child *c)
{
	char b;

	cr_assert(read(c->from, &b, 1) == 1, "the child has ended");
}

int child_end(struct child *c)
{
	int status;

	ferry_close(c->to);
	cr_assert(waitpid(c->pid, &status, 0) == c->pid);
	ferry_close(c->from);
	return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
}

int child_kill(struct child *c)
{
	kill(c->pid, SIGKILL);
	return child_end(c);
}

void child_expect_end(struct child *c)
{
	int status = child_end(c);

	cr_assert_eq(status, 0, "the child ended with %d", status);
}

void parent_tell(int out)
{
	if (write(out, "t", 1) != 1)
		_exit(90);
}

void parent_await(int in)
{
	char b;
	ssize_t n;

	do
		n = read(in, &b, 1);
	while (n < 0 && errno == EINTR);
	if (n != 1)
		_exit(91);
}

static bool read_proc(const char *path, char *buf, size_t size)
{
	_cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : read(fd, buf, size - 1);

	if (n < 0)
		return false;
	buf[n] = '\0';
	return true;
}

void await_syscall(pid_t pid, pid_t tid, long nr)
{
	uint64_t end_ns = ferry_now_ns() + AWAIT_NS;
	char path[64], buf[256] = "";

	snprintf(path, sizeof(path), "/proc/%d/task/%d/syscall", (int)pid, (int)tid);
	while (!read_proc(path, buf, sizeof(buf)) || buf[0] == 'r' || strtol(buf, NULL, 10) != nr) {
		cr_assert(ferry_now_ns() < end_ns, "%s: %s, not system call %ld", path, buf, nr);
		sched_yield();
	}
}

void await_state(pid_t pid, char state)
{
	uint64_t end_ns = ferry_now_ns() + AWAIT_NS;
	char path[64], buf[512];

	snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
	for (;;) {
		const char *at = read_proc(path, buf, sizeof(buf)) ? strrchr(buf, ')') : NULL;

		if (at && at[2] == state)
			return;
		cr_assert(ferry_now_ns() < end_ns, "process %d is not in state %c", (int)pid,
			  state);
		sched_yield();
	}
}

size_t count_fds(pid_t pid)
{
	char path[64];
	size_t n = 0;
	DIR *dir;

	snprintf(path, sizeof(path), "/proc/%d/fd", (int)pid);
	dir = opendir(path);
	cr_assert(dir);
	while (readdir(dir))
		n++;
	closedir(dir);
	return n;
}

void drop_to_nobody(void)
{
	if (setgroups(0, NULL) < 0 || setresgid(NOBODY, NOBODY, NOBODY) < 0 ||
	    setresuid(NOBODY, NOBODY, NOBODY) < 0)
		_exit(92);
	/* Changing the user clears it. */
	prctl(PR_SET_PDEATHSIG, SIGKILL);
}

static uint8_t *map(size_t len, int flags, int fd)
{
	void *p = mmap(NULL, len, PROT_READ | PROT_WRITE, flags, fd, 0);

	cr_assert(p != MAP_FAILED, "mmap: %s", strerror(errno));
	return p;
}

uint8_t *map_anon(size_t len)
{
	return map(len, MAP_PRIVATE | MAP_ANONYMOUS, -1);
}

uint8_t *map_shared(size_t len, const char *name)
{
	_cleanup_close_ int fd = memfd_create(name, MFD_CLOEXEC);

	cr_assert(fd >= 0 && ftruncate(fd, (off_t)len) == 0);
	return map(len, MAP_SHARED, fd);
}

uint8_t *map_huge(size_t len)
{
	return map(len, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1);
}

#define HUGE_POOL "/sys/kernel/mm/hugepages/hugepages-2048kB/"

static int pool_fd = -1;
static unsigned long pool_before;

static unsigned long read_pool(const char *file)
{
	char path[128], buf[32];

	snprintf(path, sizeof(path), HUGE_POOL "%s", file);
	cr_assert(read_proc(path, buf, sizeof(buf)), "%s", path);
	return strtoul(buf, NULL, 10);
}

/*
 * A program before us that is still exiting holds pages that it had reserved. They are surplus now,
 * and would be taken for ours.
 */
static void await_no_surplus(void)
{
	uint64_t end_ns = ferry_now_ns() + AWAIT_NS;

	while (read_pool("surplus_hugepages") > 0) {
		cr_assert(ferry_now_ns() < end_ns,
			  "somebody keeps huge pages that were given back");
		sched_yield();
	}
}

static void write_pool_size(unsigned long n)
{
	char text[32];
	int len = snprintf(text, sizeof(text), "%lu", n);

	(void)!pwrite(pool_fd, text, (size_t)len, 0);
}

/* The pool is the machine's: who changes it holds the lock, for other tests run at the same time.
 */
void huge_reserve(unsigned int n)
{
	if (geteuid() != 0)
		cr_skip_test("huge pages have to be reserved, which takes root");
	if (pool_fd < 0)
		pool_fd = open(HUGE_POOL "nr_hugepages", O_RDWR | O_CLOEXEC);
	cr_assert(pool_fd >= 0 && flock(pool_fd, LOCK_EX) == 0);
	await_no_surplus();
	pool_before = read_pool("nr_hugepages");
	write_pool_size(pool_before + n);
	cr_assert(read_pool("free_hugepages") >= n, "the machine has not got %u huge pages", n);
}

void huge_unreserve(void)
{
	/* The lock is let go with the process, which has freed its pages by then. */
	if (pool_fd >= 0)
		write_pool_size(pool_before);
}

static void *touch(void *arg)
{
	struct toucher *t = arg;

	t->seen = *t->at;
	return NULL;
}

void touch_start(struct toucher *t, const void *at)
{
	t->at = at;
	cr_assert(pthread_create(&t->thread, NULL, touch, t) == 0);
}

uint8_t touch_end(struct toucher *t)
{
	pthread_join(t->thread, NULL);
	return t->seen;
}

uint64_t next_fault(const struct ferry_uffd *u)
{
	for (;;) {
		struct pollfd p = {.fd = u->fd, .events = POLLIN};
		struct uffd_msg msg;

		cr_assert(poll(&p, 1, (int)(AWAIT_NS / FERRY_NS_PER_MS)) == 1, "no fault came");
		if (read(u->fd, &msg, sizeof(msg)) != sizeof(msg))
			continue;
		cr_assert_eq(msg.event, UFFD_EVENT_PAGEFAULT);
		return msg.arg.pagefault.address;
	}
}

struct ferry_uffd attach(pid_t pid)
{
	struct ferry_failure f = {0};
	struct ferry_uffd u;

	assert_ok(ferry_uffd_attach(&u, pid, UFFD_FEATURE_THREAD_ID, &f), f);
	cr_assert_eq(u.pid, pid);
	cr_assert(u.remote_fd >= 0);
	cr_assert_eq(u.features, UFFD_FEATURE_THREAD_ID);
	return u;
}

void attach_and_release(pid_t pid, unsigned int times)
{
	for (unsigned int i = 0; i < times; i++) {
		struct ferry_uffd u = attach(pid);

		ferry_uffd_release(&u);
	}
}
