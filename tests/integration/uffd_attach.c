// SPDX-License-Identifier: Apache-2.0
/*
 * Attaching to a running process, and that it goes on unharmed: what it was blocked in has the
 * right result, what it computed is right, and no signal is lost.
 */
#include "uffd/uffd.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/rseq.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "uffd/kernel.h"
#include "uffd/place.h"
#include "uffd_support.h"

#define TIMES	 200
#define BLOCK_NS (10 * (uint64_t)FERRY_NS_PER_S) /* we must be there before */

/* What children and we both see. */
struct shared {
	atomic_bool stop;
	atomic_uint turns;
	atomic_int result;
	atomic_int tids[8];
};

static struct shared *shared;
static uint8_t *memory; /* of the children, at the same address here */

static void set_up(void)
{
	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1,
		      0);
	cr_assert_neq(shared, MAP_FAILED);
	memory = map_anon(4 * PAGE);
}

TestSuite(uffd_attach, .init = set_up, .timeout = 120);

static int touch_when_told(int in, int out, void *arg)
{
	(void)out;
	(void)arg;
	parent_await(in);
	return memory[PAGE];
}

Test(uffd_attach, serves_the_memory_of_a_process_that_knows_nothing_of_it)
{
	static uint8_t page[PAGE] __attribute__((aligned(PAGE))) = {42};
	struct child c = child_start(touch_when_told, NULL);
	struct ferry_uffd u = attach(c.pid);
	struct ferry_placed p;

	cr_assert(fcntl(u.fd, F_GETFD) & FD_CLOEXEC);
	cr_assert(fcntl(u.fd, F_GETFL) & O_NONBLOCK);
	cr_assert_eq(ferry_uffd_register(&u, hva(memory), 4 * PAGE), 0);
	child_tell(&c);
	cr_assert_eq(next_fault(&u), hva(memory).v + PAGE);
	cr_assert_eq(ferry_place_copy(&u, hva(memory + PAGE), page, 1, PAGE, &p), 0);
	cr_assert_eq(child_end(&c), 42);
	ferry_uffd_close(&u);
}

/* Blocked in a system call that the kernel restarts when it is interrupted. */

static int read_a_byte(int in, int out, void *arg)
{
	char b = 0;

	(void)out;
	(void)arg;
	return read(in, &b, 1) == 1 && b == 't' ? 0 : errno;
}

Test(uffd_attach, a_read_goes_on_waiting)
{
	struct child c = child_start(read_a_byte, NULL);

	await_syscall(c.pid, c.pid, SYS_read);
	attach_and_release(c.pid, 3);
	await_syscall(c.pid, c.pid, SYS_read);
	child_tell(&c);
	child_expect_end(&c);
}

static int poll_for_a_byte(int in, int out, void *arg)
{
	struct pollfd p = {.fd = in, .events = POLLIN};

	(void)out;
	(void)arg;
	return poll(&p, 1, -1) == 1 && (p.revents & POLLIN) ? 0 : 1;
}

Test(uffd_attach, a_poll_goes_on_waiting)
{
	struct child c = child_start(poll_for_a_byte, NULL);

	await_syscall(c.pid, c.pid, SYS_poll);
	attach_and_release(c.pid, 3);
	await_syscall(c.pid, c.pid, SYS_restart_syscall);
	child_tell(&c);
	child_expect_end(&c);
}

static int sleep_for_a_while(int in, int out, void *arg)
{
	const struct timespec t = {.tv_sec = BLOCK_NS / FERRY_NS_PER_S};
	uint64_t begin_ns = ferry_now_ns();

	(void)in;
	(void)out;
	(void)arg;
	if (nanosleep(&t, NULL) != 0)
		return errno;
	return ferry_now_ns() - begin_ns >= BLOCK_NS ? 0 : 100;
}

Test(uffd_attach, a_nanosleep_lasts_as_long_as_it_should)
{
	struct child c = child_start(sleep_for_a_while, NULL);

	await_syscall(c.pid, c.pid, SYS_clock_nanosleep);
	attach_and_release(c.pid, 3);
	child_expect_end(&c);
}

static int poll_until_timeout(int in, int out, void *arg)
{
	uint64_t begin_ns = ferry_now_ns();

	(void)in;
	(void)out;
	(void)arg;
	if (poll(NULL, 0, (int)(BLOCK_NS / FERRY_NS_PER_MS)) != 0)
		return errno ? errno : 101;
	return ferry_now_ns() - begin_ns >= BLOCK_NS ? 0 : 100;
}

Test(uffd_attach, a_poll_times_out_when_it_should)
{
	struct child c = child_start(poll_until_timeout, NULL);

	await_syscall(c.pid, c.pid, SYS_poll);
	attach_and_release(c.pid, 3);
	child_expect_end(&c);
}

/* In user mode. */

/*
 * Keeps marks in all registers that a system call changes or passes, and in the 128 bytes below
 * the stack pointer that belong to a function. Return: whether all were as they should be.
 */
static bool spin_with_marks(const atomic_bool *stop)
{
	uint64_t wrong = 1;

	__asm__ volatile("movq $0x1111, %%rax\n"
			 "movq $0x2222, %%rcx\n"
			 "movq $0x3333, %%rdx\n"
			 "movq $0x4444, %%r8\n"
			 "movq $0x5555, %%r9\n"
			 "movq $0x6666, %%r10\n"
			 "movq $0x7777, %%r11\n"
			 "movq %%rcx, -8(%%rsp)\n"
			 "movq %%rcx, -128(%%rsp)\n"
			 "movq %%rcx, %%xmm7\n"
			 "1: cmpb $0, (%[stop])\n"
			 "jne 2f\n"
			 "cmpq $0x1111, %%rax\n jne 3f\n"
			 "cmpq $0x2222, %%rcx\n jne 3f\n"
			 "cmpq $0x3333, %%rdx\n jne 3f\n"
			 "cmpq $0x4444, %%r8\n jne 3f\n"
			 "cmpq $0x5555, %%r9\n jne 3f\n"
			 "cmpq $0x6666, %%r10\n jne 3f\n"
			 "cmpq $0x7777, %%r11\n jne 3f\n"
			 "cmpq %%rcx, -8(%%rsp)\n jne 3f\n"
			 "cmpq %%rcx, -128(%%rsp)\n jne 3f\n"
			 "movq %%xmm7, %%rbx\n"
			 "cmpq %%rcx, %%rbx\n jne 3f\n"
			 "jmp 1b\n"
			 "2: movq $0, %[wrong]\n"
			 "3:\n"
			 : [wrong] "+&S"(wrong)
			 : [stop] "D"(stop)
			 : "rax", "rbx", "rcx", "rdx", "r8", "r9", "r10", "r11", "xmm7", "cc",
			   "memory");
	return wrong == 0;
}

static int spin_until_stopped(int in, int out, void *arg)
{
	(void)in;
	(void)arg;
	parent_tell(out);
	return spin_with_marks(&shared->stop) ? 0 : 1;
}

Test(uffd_attach, a_spinning_thread_keeps_its_registers_and_its_stack)
{
	struct child c = child_start(spin_until_stopped, NULL);

	child_await(&c);
	attach_and_release(c.pid, TIMES);
	shared->stop = true;
	child_expect_end(&c);
}

/*
 * Spins inside a restartable sequence that watches the kernel's note of it. Return: 0 when told to
 * stop, 1 when the kernel aborted the sequence (as it may at any time), 2 when the note was gone
 * while the sequence went on.
 */
static int spin_in_rseq(const atomic_bool *stop, struct rseq *rs)
{
	int result;

	__asm__ volatile(".pushsection .data.rel, \"aw\"\n"
			 ".balign 32\n"
			 "9: .long 0, 0\n"
			 ".quad 1f, 2f - 1f, 4f\n"
			 ".popsection\n"
			 "leaq 9b(%%rip), %%rax\n"
			 "movq %%rax, 8(%[rs])\n"
			 "1: cmpb $0, (%[stop])\n"
			 "jne 5f\n"
			 "cmpq $0, 8(%[rs])\n"
			 "jne 1b\n"
			 "movl $2, %[result]\n"
			 "2: jmp 6f\n"
			 "5: movl $0, %[result]\n"
			 "jmp 6f\n"
			 ".byte 0x0f, 0xb9, 0x3d\n"
			 ".long 0x53053053\n"
			 "4: movl $1, %[result]\n"
			 "6: movq $0, 8(%[rs])\n"
			 : [result] "=&S"(result)
			 : [stop] "D"(stop), [rs] "r"(rs)
			 : "rax", "cc", "memory");
	return result;
}

static int spin_in_rseq_until_stopped(int in, int out, void *arg)
{
	struct rseq *rs = (void *)((char *)__builtin_thread_pointer() + __rseq_offset);
	int r;

	(void)in;
	(void)arg;
	parent_tell(out);
	do
		r = spin_in_rseq(&shared->stop, rs);
	while (r == 1);
	return r;
}

Test(uffd_attach, a_restartable_sequence_is_not_gone_on_with)
{
	struct child c;

	if (__rseq_size == 0)
		cr_skip_test("the C library has not registered restartable sequences");
	c = child_start(spin_in_rseq_until_stopped, NULL);
	child_await(&c);
	attach_and_release(c.pid, TIMES);
	shared->stop = true;
	child_expect_end(&c);
}

/* Several threads. */

static pthread_mutex_t held = PTHREAD_MUTEX_INITIALIZER;

static void *wait_for_mutex(void *arg)
{
	shared->tids[*(int *)arg] = gettid();
	pthread_mutex_lock(&held);
	pthread_mutex_unlock(&held);
	return NULL;
}

static void *spin_thread(void *arg)
{
	shared->tids[*(int *)arg] = gettid();
	if (!spin_with_marks(&shared->stop))
		shared->result = 1;
	return NULL;
}

static int threads_of_all_sorts(int in, int out, void *arg)
{
	static int numbers[4] = {0, 1, 2, 3};
	pthread_t t[4];

	(void)arg;
	pthread_mutex_lock(&held);
	for (int i = 0; i < 4; i++)
		pthread_create(&t[i], NULL, i < 2 ? wait_for_mutex : spin_thread, &numbers[i]);
	for (int i = 0; i < 4; i++) {
		while (!shared->tids[i])
			sched_yield();
	}
	parent_tell(out);
	parent_await(in);
	pthread_mutex_unlock(&held);
	for (int i = 0; i < 4; i++)
		pthread_join(t[i], NULL);
	return shared->result;
}

Test(uffd_attach, a_process_of_many_threads_goes_on)
{
	struct child c = child_start(threads_of_all_sorts, NULL);

	child_await(&c);
	attach_and_release(c.pid, TIMES);
	shared->stop = true;
	child_tell(&c);
	child_expect_end(&c);
}

static void *leave_first_thread(void *arg)
{
	const int *in = arg;

	parent_await(*in);
	_exit(0);
}

static int first_thread_ends(int in, int out, void *arg)
{
	static int port;
	pthread_t t;

	(void)out;
	(void)arg;
	port = in;
	pthread_create(&t, NULL, leave_first_thread, &port);
	pthread_exit(NULL);
}

Test(uffd_attach, a_process_whose_first_thread_has_ended_is_refused_and_goes_on)
{
	struct child c = child_start(first_thread_ends, NULL);
	struct ferry_failure f = {0};
	struct ferry_uffd u;

	await_state(c.pid, 'Z');
	cr_assert_eq(ferry_uffd_attach(&u, c.pid, 0, &f), -EOPNOTSUPP);
	cr_assert(strstr(f.text, "first thread"), "%s", f.text);
	child_tell(&c);
	child_expect_end(&c);
}

static void *end_at_once(void *arg)
{
	return arg;
}

static void *start_threads(void *arg)
{
	(void)arg;
	while (!shared->stop) {
		pthread_t t;

		if (pthread_create(&t, NULL, end_at_once, NULL) == 0)
			pthread_join(t, NULL);
		shared->turns++;
	}
	return NULL;
}

/* The parent of a vfork() can't be stopped before its child ends. */
static void wait_in_the_kernel(void)
{
	if (vfork() == 0) {
		while (!shared->stop)
			sched_yield();
		_exit(0);
	}
}

static int threads_come_and_go(int in, int out, void *arg)
{
	pthread_t t[2];

	(void)in;
	(void)out;
	(void)arg;
	for (int i = 0; i < 2; i++)
		pthread_create(&t[i], NULL, start_threads, NULL);
	wait_in_the_kernel();
	for (int i = 0; i < 2; i++)
		pthread_join(t[i], NULL);
	return 0;
}

Test(uffd_attach, threads_that_end_or_that_wait_in_the_kernel_are_passed_over)
{
	struct child c = child_start(threads_come_and_go, NULL);

	await_state(c.pid, 'D');
	while (shared->turns < 10)
		sched_yield();
	attach_and_release(c.pid, 3);
	shared->stop = true;
	child_expect_end(&c);
}

static int only_thread_waits_in_the_kernel(int in, int out, void *arg)
{
	(void)in;
	(void)out;
	(void)arg;
	wait_in_the_kernel();
	return 0;
}

Test(uffd_attach, when_no_thread_can_be_stopped_the_process_is_left_alone)
{
	struct child c = child_start(only_thread_waits_in_the_kernel, NULL);
	struct ferry_failure f = {0};
	struct ferry_uffd u;

	await_state(c.pid, 'D');
	cr_assert_eq(ferry_uffd_attach(&u, c.pid, 0, &f), -EBUSY);
	cr_assert(strstr(f.text, "did not stop"), "%s", f.text);
	shared->stop = true;
	child_expect_end(&c);
}

Test(uffd_attach, attaching_many_times_leaves_no_descriptors)
{
	struct child c = child_start(read_a_byte, NULL);
	size_t there, here;

	await_syscall(c.pid, c.pid, SYS_read);
	there = count_fds(c.pid);
	here = count_fds(getpid());
	attach_and_release(c.pid, TIMES);
	cr_assert_eq(count_fds(c.pid), there);
	cr_assert_eq(count_fds(getpid()), here);
	child_tell(&c);
	child_expect_end(&c);
}

Test(uffd_attach, closing_leaves_the_descriptor_of_the_process_open)
{
	struct child c = child_start(read_a_byte, NULL);
	struct ferry_uffd u;
	size_t before;

	await_syscall(c.pid, c.pid, SYS_read);
	before = count_fds(c.pid);
	u = attach(c.pid);
	ferry_uffd_close(&u);
	cr_assert_eq(count_fds(c.pid), before + 1);
	child_kill(&c);
}

static int replace_descriptor(int in, int out, void *arg)
{
	int fd;

	(void)arg;
	parent_await(in);
	fd = shared->result;
	if (dup2(out, fd) != fd)
		return 1;
	parent_tell(out);
	parent_await(in);
	return fcntl(fd, F_GETFD) >= 0 ? 0 : 2;
}

Test(uffd_attach, a_number_that_came_to_mean_something_else_is_not_closed)
{
	struct child c = child_start(replace_descriptor, NULL);
	struct ferry_uffd u;

	await_syscall(c.pid, c.pid, SYS_read);
	u = attach(c.pid);
	shared->result = u.remote_fd;
	child_tell(&c);
	child_await(&c);
	ferry_uffd_release(&u);
	child_tell(&c);
	child_expect_end(&c);
}
