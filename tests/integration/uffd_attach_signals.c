// SPDX-License-Identifier: Apache-2.0
/* Signals to a process that is being attached to: none is lost, and what it set up for them stays.
 */
#include "uffd/uffd.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "uffd/inject.h"
#include "uffd_support.h"

#define TIMES 200

static atomic_bool *stop; /* seen by children and by us */

static void set_up(void)
{
	stop = mmap(NULL, sizeof(*stop), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	cr_assert_neq(stop, MAP_FAILED);
}

TestSuite(uffd_attach_signals, .init = set_up, .timeout = 120);

static int read_a_byte(int in, int out, void *arg)
{
	char b = 0;

	(void)out;
	(void)arg;
	return read(in, &b, 1) == 1 && b == 't' ? 0 : errno;
}

static atomic_int n_signals;

static void count_signal(int sig)
{
	(void)sig;
	n_signals++;
}

static void on_signal(int sig, void (*handler)(int), int flags)
{
	struct sigaction sa = {.sa_handler = handler, .sa_flags = flags};

	sigaction(sig, &sa, NULL);
}

static void block_signal(int sig)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, sig);
	sigprocmask(SIG_BLOCK, &set, NULL);
}

/* As QEMU's main loop does it: the signal can come only while it is blocked in ppoll(). */
static int ppoll_for_a_signal(int in, int out, void *arg)
{
	sigset_t none, now;
	int r;

	(void)in;
	(void)arg;
	on_signal(SIGUSR1, count_signal, 0);
	block_signal(SIGUSR1);
	sigemptyset(&none);
	parent_tell(out);
	r = ppoll(NULL, 0, NULL, &none);
	if (r != -1 || errno != EINTR || n_signals != 1)
		return 100 + n_signals;
	sigprocmask(SIG_BLOCK, NULL, &now);
	return sigismember(&now, SIGUSR1) == 1 ? 0 : 110;
}

Test(uffd_attach_signals, a_ppoll_is_still_ended_by_the_signal_that_it_lets_through)
{
	struct child c = child_start(ppoll_for_a_signal, NULL);

	child_await(&c);
	await_syscall(c.pid, c.pid, SYS_ppoll);
	attach_and_release(c.pid, 3);
	await_syscall(c.pid, c.pid, SYS_ppoll);
	kill(c.pid, SIGUSR1);
	child_expect_end(&c);
}

#define N_QUEUED 2000

/* Queued signals are counted one by one, so that a lost one shows. */
static int count_until_told(int in, int out, void *arg)
{
	char b;

	(void)arg;
	on_signal(SIGRTMIN, count_signal, SA_RESTART);
	parent_tell(out);
	while (read(in, &b, 1) != 1)
		;
	while (n_signals < N_QUEUED)
		sched_yield();
	return n_signals == N_QUEUED ? 0 : 1;
}

static void *send_signals(void *arg)
{
	const struct child *c = arg;

	for (int i = 0; i < N_QUEUED; i++) {
		while (sigqueue(c->pid, SIGRTMIN, (union sigval){.sival_int = i}) < 0)
			sched_yield();
		if (i % 8 == 0)
			sched_yield();
	}
	*stop = true;
	return NULL;
}

Test(uffd_attach_signals, signals_that_come_meanwhile_are_all_delivered)
{
	struct child c = child_start(count_until_told, NULL);
	pthread_t sender;

	child_await(&c);
	cr_assert_eq(pthread_create(&sender, NULL, send_signals, &c), 0);
	while (!*stop)
		attach_and_release(c.pid, 1);
	pthread_join(sender, NULL);
	child_tell(&c);
	child_expect_end(&c);
}

/* Each must be handled before raise() returns, so the thread is nearly always at one of them. */
static int raise_until_stopped(int in, int out, void *arg)
{
	int n = 0;

	(void)in;
	(void)arg;
	on_signal(SIGUSR1, count_signal, 0);
	parent_tell(out);
	while (!*stop) {
		raise(SIGUSR1);
		if (n_signals != ++n)
			return 1;
	}
	return 0;
}

Test(uffd_attach_signals, a_signal_on_its_way_when_the_thread_is_stopped_is_delivered)
{
	struct child c = child_start(raise_until_stopped, NULL);

	child_await(&c);
	attach_and_release(c.pid, TIMES);
	*stop = true;
	child_expect_end(&c);
}

static int keep_sigtrap(int in, int out, void *arg)
{
	struct sigaction sa;
	sigset_t now;

	(void)arg;
	on_signal(SIGTRAP, count_signal, 0);
	block_signal(SIGTRAP);
	parent_tell(out);
	parent_await(in);
	sigaction(SIGTRAP, NULL, &sa);
	sigprocmask(SIG_BLOCK, NULL, &now);
	if (sa.sa_handler != count_signal)
		return 1;
	return sigismember(&now, SIGTRAP) == 1 && n_signals == 0 ? 0 : 2;
}

Test(uffd_attach_signals, signal_mask_and_handlers_stay_as_they_were)
{
	struct child c = child_start(keep_sigtrap, NULL);

	child_await(&c);
	attach_and_release(c.pid, 3);
	child_tell(&c);
	child_expect_end(&c);
}

Test(uffd_attach_signals, a_stopped_process_stays_stopped_until_it_is_continued)
{
	struct child c = child_start(read_a_byte, NULL);
	int status;

	kill(c.pid, SIGSTOP);
	cr_assert_eq(waitpid(c.pid, &status, WUNTRACED), c.pid);
	cr_assert(WIFSTOPPED(status));
	attach_and_release(c.pid, 3);
	await_state(c.pid, 'T');
	kill(c.pid, SIGCONT);
	child_tell(&c);
	child_expect_end(&c);
}

static void *stop_and_continue(void *arg)
{
	const struct child *c = arg;

	for (int i = 0; i < 500; i++) {
		kill(c->pid, SIGSTOP);
		sched_yield();
		kill(c->pid, SIGCONT);
		sched_yield();
	}
	*stop = true;
	return NULL;
}

Test(uffd_attach_signals, being_stopped_and_continued_meanwhile_does_no_harm)
{
	struct child c = child_start(read_a_byte, NULL);
	pthread_t stopper;

	cr_assert_eq(pthread_create(&stopper, NULL, stop_and_continue, &c), 0);
	while (!*stop)
		attach_and_release(c.pid, 1);
	pthread_join(stopper, NULL);
	child_tell(&c);
	child_expect_end(&c);
}

static int stop_it_then_call(struct ferry_inject *in, void *ctx, struct ferry_failure *f)
{
	static const uint64_t none[6];
	const struct child *c = ctx;
	long result = 0;
	int r;

	(void)f;
	kill(c->pid, SIGSTOP);
	r = ferry_inject_syscall(in, SYS_getpid, none, &result);
	return r == 0 && result == c->pid ? 0 : -EBADE;
}

Test(uffd_attach_signals, a_stop_that_comes_during_the_call_takes_effect_after_it)
{
	struct child c = child_start(read_a_byte, NULL);
	int pidfd = (int)syscall(SYS_pidfd_open, c.pid, 0);
	struct ferry_failure f = {0};
	int status;

	assert_ok(ferry_inject_run(c.pid, pidfd, stop_it_then_call, &c, &f), f);
	cr_assert_eq(waitpid(c.pid, &status, WUNTRACED), c.pid);
	cr_assert(WIFSTOPPED(status) && WSTOPSIG(status) == SIGSTOP);
	await_state(c.pid, 'T');
	kill(c.pid, SIGCONT);
	child_tell(&c);
	child_expect_end(&c);
	close(pidfd);
}
