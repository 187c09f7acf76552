// SPDX-License-Identifier: Apache-2.0
/* Trials of userfaultfd in a process of our own. Each runs in a child, so nothing is cleaned up. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/util.h"
#include "uffd/kernel.h"
#include "uffd/place.h"
#include "uffd/probe_internal.h"
#include "uffd/uffd.h"
#include "uffd/uffd_internal.h"

#define PAGE FERRY_PAGE_SIZE_DEFAULT
#define HUGE (2 * FERRY_MIB)

#define REQUIRE(t, what, condition)                                                                \
	do {                                                                                       \
		if (!(condition)) {                                                                \
			ferry_trial_missing(t, what, -errno);                                      \
			return;                                                                    \
		}                                                                                  \
	} while (0)

static void ok(struct ferry_trial *t)
{
	ferry_trial_note(t, FERRY_PROBE_OK, "works");
}

/* Return: whether there is one with these features; else it is noted in @t. */
static bool open_with(struct ferry_trial *t, struct ferry_uffd *u, uint64_t features)
{
	struct ferry_failure f = {0};
	int r = ferry_uffd_open(u, features, &f);

	if (r < 0) {
		ferry_trial_missing(t, "userfaultfd", r);
		return false;
	}
	if ((u->features & features) != features) {
		ferry_trial_note(t, FERRY_PROBE_MISSING, "this kernel does not have it");
		return false;
	}
	return true;
}

static uint8_t *map_anon(size_t len)
{
	void *p = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	return p == MAP_FAILED ? NULL : p;
}

static uint8_t *map_shmem(size_t len, int *fd)
{
	void *p;

	*fd = memfd_create("pageferry-probe", MFD_CLOEXEC);
	if (*fd < 0 || ftruncate(*fd, (off_t)len) < 0)
		return NULL;
	p = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, *fd, 0);
	return p == MAP_FAILED ? NULL : p;
}

static struct ferry_hva hva_of(const void *p)
{
	return (struct ferry_hva){(uintptr_t)p};
}

static int register_mode(const struct ferry_uffd *u, const void *at, size_t len, uint64_t mode)
{
	struct uffdio_register reg = {
		.range = {.start = (uintptr_t)at, .len = len},
		.mode = mode,
	};

	return ioctl(u->fd, UFFDIO_REGISTER, &reg);
}

static int next_message(const struct ferry_uffd *u, struct uffd_msg *msg)
{
	struct pollfd p = {.fd = u->fd, .events = POLLIN};

	while (poll(&p, 1, -1) == 1) {
		if (read(u->fd, msg, sizeof(*msg)) == sizeof(*msg))
			return 0;
		if (errno != EAGAIN)
			break;
	}
	return -errno;
}

static void *touch(void *arg)
{
	return (void *)(uintptr_t) * (volatile uint8_t *)arg;
}

/* Have a thread touch @at; its fault goes to @msg. */
static int fault_at(const struct ferry_uffd *u, const void *at, pthread_t *thread,
		    struct uffd_msg *msg)
{
	if (pthread_create(thread, NULL, touch, (void *)(uintptr_t)at) != 0)
		return -EAGAIN;
	return next_message(u, msg);
}

void ferry_trial_syscall(struct ferry_trial *t)
{
	REQUIRE(t, "userfaultfd", syscall(SYS_userfaultfd, FERRY_UFFD_FLAGS) >= 0);
	ok(t);
}

void ferry_trial_device(struct ferry_trial *t)
{
	int dev = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);

	REQUIRE(t, "/dev/userfaultfd", dev >= 0);
	REQUIRE(t, "USERFAULTFD_IOC_NEW", ioctl(dev, USERFAULTFD_IOC_NEW, FERRY_UFFD_FLAGS) >= 0);
	ok(t);
}

void ferry_trial_userfaultfd(struct ferry_trial *t)
{
	struct ferry_uffd u;
	uint64_t features = 0;

	if (!open_with(t, &u, 0))
		return;
	ferry_uffd_supported(&features);
	ferry_trial_note(t, FERRY_PROBE_OK, "works; features %#llx", (unsigned long long)features);
}

static void *write_from(void *arg)
{
	int ports[2];

	if (pipe(ports) < 0)
		return NULL;
	return (void *)(intptr_t)write(ports[1], arg, 1);
}

void ferry_trial_kernel_faults(struct ferry_trial *t)
{
	struct ferry_placed placed;
	struct ferry_uffd u;
	struct uffd_msg msg;
	pthread_t thread;
	void *result;
	uint8_t *mem = map_anon(PAGE), *src = map_anon(PAGE);

	if (!open_with(t, &u, 0))
		return;
	REQUIRE(t, "UFFDIO_REGISTER",
		register_mode(&u, mem, PAGE, UFFDIO_REGISTER_MODE_MISSING) == 0);
	src[0] = 1;
	pthread_create(&thread, NULL, write_from, mem);
	next_message(&u, &msg);
	ferry_place_copy(&u, hva_of(mem), src, 1, PAGE, &placed);
	pthread_join(thread, &result);
	if ((intptr_t)result == 1)
		ok(t);
	else
		ferry_trial_note(t, FERRY_PROBE_MISSING, "a system call did not wait for its page");
}

static void try_missing(struct ferry_trial *t, uint8_t *mem, uint32_t page_bytes)
{
	struct ferry_placed placed;
	struct ferry_uffd u;
	struct uffd_msg msg;
	pthread_t thread;
	void *seen;
	uint8_t *src = map_anon(page_bytes);

	REQUIRE(t, "mmap", mem && src);
	if (!open_with(t, &u, 0))
		return;
	REQUIRE(t, "UFFDIO_REGISTER",
		register_mode(&u, mem, page_bytes, UFFDIO_REGISTER_MODE_MISSING) == 0);
	src[0] = 42;
	fault_at(&u, mem, &thread, &msg);
	REQUIRE(t, "UFFDIO_COPY",
		ferry_place_copy(&u, hva_of(mem), src, 1, page_bytes, &placed) == 0);
	pthread_join(thread, &seen);
	if ((uintptr_t)seen == 42)
		ok(t);
	else
		ferry_trial_note(t, FERRY_PROBE_MISSING, "the page came with something else in it");
}

void ferry_trial_missing_anon(struct ferry_trial *t)
{
	try_missing(t, map_anon(PAGE), PAGE);
}

void ferry_trial_missing_shmem(struct ferry_trial *t)
{
	int fd;

	try_missing(t, map_shmem(PAGE, &fd), PAGE);
}

/* How many huge pages of 2 MiB are free. */
static long free_huge_pages(void)
{
	FILE *f = fopen("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", "re");
	long n = 0;

	if (f && fscanf(f, "%ld", &n) != 1)
		n = 0;
	if (f)
		fclose(f);
	return n;
}

void ferry_trial_hugetlb(struct ferry_trial *t)
{
	const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB;
	/* Reserves one, so that the trial does not depend on who else uses the pool meanwhile. */
	uint8_t *mem = mmap(NULL, HUGE, PROT_READ | PROT_WRITE, flags, -1, 0);
	struct ferry_uffd u;

	if (mem != MAP_FAILED) {
		try_missing(t, mem, HUGE);
		if (t->verdict == FERRY_PROBE_OK)
			ferry_trial_note(t, FERRY_PROBE_OK, "works; %ld pages of 2 MiB are free",
					 free_huge_pages());
		return;
	}
	mem = mmap(NULL, HUGE, PROT_READ | PROT_WRITE, flags | MAP_NORESERVE, -1, 0);
	REQUIRE(t, "mmap of huge pages", mem != MAP_FAILED);
	if (!open_with(t, &u, 0))
		return;
	REQUIRE(t, "UFFDIO_REGISTER",
		register_mode(&u, mem, HUGE, UFFDIO_REGISTER_MODE_MISSING) == 0);
	ferry_trial_note(t, FERRY_PROBE_LIMITED, "can be registered, but no huge pages are free");
}

static void *remove_move_and_unmap(void *arg)
{
	uint8_t *mem = arg;

	if (madvise(mem, PAGE, MADV_DONTNEED) < 0)
		return arg;
	mem = mremap(mem, 2 * PAGE, 2 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, mem + 8 * PAGE);
	if (mem != MAP_FAILED)
		munmap(mem, 2 * PAGE);
	return arg;
}

void ferry_trial_events(struct ferry_trial *t)
{
	const uint8_t expected[] = {UFFD_EVENT_REMOVE, UFFD_EVENT_REMAP, UFFD_EVENT_UNMAP};
	uint8_t *mem = map_anon(16 * PAGE);
	struct ferry_uffd u;
	pthread_t thread;

	if (!open_with(t, &u,
		       UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_EVENT_REMAP |
			       UFFD_FEATURE_EVENT_UNMAP))
		return;
	REQUIRE(t, "UFFDIO_REGISTER",
		register_mode(&u, mem, 2 * PAGE, UFFDIO_REGISTER_MODE_MISSING) == 0);
	pthread_create(&thread, NULL, remove_move_and_unmap, mem);
	for (size_t i = 0; i < FERRY_ARRAY_SIZE(expected); i++) {
		struct uffd_msg msg = {0};

		next_message(&u, &msg);
		if (msg.event != expected[i]) {
			ferry_trial_note(t, FERRY_PROBE_MISSING, "event %#x instead of %#x",
					 msg.event, expected[i]);
			return;
		}
	}
	ok(t);
}

void ferry_trial_thread_id(struct ferry_trial *t)
{
	uint8_t *mem = map_anon(PAGE);
	struct ferry_uffd u;
	struct uffd_msg msg = {0};
	pthread_t thread;

	if (!open_with(t, &u, UFFD_FEATURE_THREAD_ID))
		return;
	register_mode(&u, mem, PAGE, UFFDIO_REGISTER_MODE_MISSING);
	REQUIRE(t, "a fault", fault_at(&u, mem, &thread, &msg) == 0);
	if (msg.arg.pagefault.feat.ptid != 0 && (pid_t)msg.arg.pagefault.feat.ptid != getpid())
		ok(t);
	else
		ferry_trial_note(t, FERRY_PROBE_MISSING, "the message names no thread");
}

void ferry_trial_exact_address(struct ferry_trial *t)
{
	uint8_t *mem = map_anon(PAGE);
	struct ferry_uffd u;
	struct uffd_msg msg = {0};
	pthread_t thread;

	if (!open_with(t, &u, UFFD_FEATURE_EXACT_ADDRESS))
		return;
	register_mode(&u, mem, PAGE, UFFDIO_REGISTER_MODE_MISSING);
	REQUIRE(t, "a fault", fault_at(&u, mem + 123, &thread, &msg) == 0);
	if (msg.arg.pagefault.address == (uintptr_t)mem + 123)
		ok(t);
	else
		ferry_trial_note(t, FERRY_PROBE_MISSING, "the message has the page's address");
}

void ferry_trial_minor(struct ferry_trial *t)
{
	struct uffdio_continue c = {.range = {.len = PAGE}};
	struct ferry_uffd u;
	struct uffd_msg msg = {0};
	pthread_t thread;
	void *seen;
	uint8_t *mem;
	int fd;

	if (!open_with(t, &u, UFFD_FEATURE_MINOR_SHMEM))
		return;
	mem = map_shmem(PAGE, &fd);
	REQUIRE(t, "UFFDIO_REGISTER",
		mem && register_mode(&u, mem, PAGE,
				     UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_MINOR) ==
				0);
	REQUIRE(t, "pwrite", pwrite(fd, "*", 1, 0) == 1);
	fault_at(&u, mem, &thread, &msg);
	c.range.start = (uintptr_t)mem;
	REQUIRE(t, "UFFDIO_CONTINUE", ioctl(u.fd, UFFDIO_CONTINUE, &c) == 0);
	pthread_join(thread, &seen);
	if ((msg.arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_MINOR) && (uintptr_t)seen == '*')
		ok(t);
	else
		ferry_trial_note(t, FERRY_PROBE_MISSING, "no minor fault came");
}

void ferry_trial_dirty_tracking(struct ferry_trial *t)
{
	const uint64_t features = UFFD_FEATURE_WP_ASYNC | UFFD_FEATURE_WP_UNPOPULATED;
	uint8_t *mem = map_anon(4 * PAGE);
	struct page_region found[4];
	struct pm_scan_arg scan = {
		.size = sizeof(scan),
		.flags = PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC,
		.start = (uintptr_t)mem,
		.end = (uintptr_t)mem + 4 * PAGE,
		.vec = (uintptr_t)found,
		.vec_len = FERRY_ARRAY_SIZE(found),
		.category_mask = PAGE_IS_WRITTEN,
		.return_mask = PAGE_IS_WRITTEN,
	};
	int pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	struct ferry_uffd u;

	if (!open_with(t, &u, features))
		return;
	REQUIRE(t, "UFFDIO_REGISTER",
		register_mode(&u, mem, 4 * PAGE, UFFDIO_REGISTER_MODE_WP) == 0);
	REQUIRE(t, "PAGEMAP_SCAN", ioctl(pagemap, PAGEMAP_SCAN, &scan) >= 0);
	((volatile uint8_t *)mem)[2 * PAGE] = 1;
	REQUIRE(t, "PAGEMAP_SCAN", ioctl(pagemap, PAGEMAP_SCAN, &scan) >= 0);
	if (found[0].start == (uintptr_t)mem + 2 * PAGE && found[0].end == found[0].start + PAGE)
		ok(t);
	else
		ferry_trial_note(t, FERRY_PROBE_MISSING, "a scan did not find the page written");
}

static void exit_by_sigbus(int sig)
{
	(void)sig;
	_exit(0);
}

void ferry_trial_poison(struct ferry_trial *t)
{
	uint8_t *mem = map_anon(PAGE);
	struct uffdio_poison poison = {.range = {.start = (uintptr_t)mem, .len = PAGE}};
	struct sigaction sa = {.sa_handler = exit_by_sigbus};
	struct ferry_uffd u;

	if (!open_with(t, &u, UFFD_FEATURE_POISON))
		return;
	register_mode(&u, mem, PAGE, UFFDIO_REGISTER_MODE_MISSING);
	REQUIRE(t, "UFFDIO_POISON", ioctl(u.fd, UFFDIO_POISON, &poison) == 0);
	/* Which is what it is if the touch ends in SIGBUS, and so this process. */
	ok(t);
	sigaction(SIGBUS, &sa, NULL);
	touch(mem);
	ferry_trial_note(t, FERRY_PROBE_MISSING, "a poisoned page could be read");
}

void ferry_trial_move(struct ferry_trial *t)
{
	uint8_t *mem = map_anon(PAGE), *src = map_anon(PAGE);
	struct uffdio_move move = {.dst = (uintptr_t)mem, .src = (uintptr_t)src, .len = PAGE};
	struct ferry_uffd u;

	if (!open_with(t, &u, UFFD_FEATURE_MOVE))
		return;
	register_mode(&u, mem, PAGE, UFFDIO_REGISTER_MODE_MISSING);
	src[0] = 42;
	REQUIRE(t, "UFFDIO_MOVE", ioctl(u.fd, UFFDIO_MOVE, &move) == 0);
	if (mem[0] == 42 && src[0] == 0)
		ok(t);
	else
		ferry_trial_note(t, FERRY_PROBE_MISSING, "the page was not moved");
}
