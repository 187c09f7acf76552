/* SPDX-License-Identifier: Apache-2.0 */
/* The source goes away: threads wait, and are never given anything else than what it has. */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "engine_support.h"

#define N_PAGES 4096u
#define SLOW	(1u << 20)

TestSuite(engine_loss, .timeout = 120);

static void killed_and_restarted(enum memory_kind kind)
{
	struct source s = {.kind = kind, .n_pages = N_PAGES};
	struct target t = {.max_bytes_per_second = SLOW};
	/* What they leave takes the push seconds: however late we come, it is not complete. */
	struct readers r = {.n_first = N_PAGES / 2}, of_all = {0};
	struct pageferry_lazy_stats st;

	source_start(&s);
	target_start(&t, &s);
	readers_start(&r, &s, t.memory, N_PAGES);
	target_push(&t);
	for (int i = 1; i <= 3; i++) {
		target_await_pages(&t, (uint64_t)i * N_PAGES / 8);
		source_kill(&s);
		target_await(&t, PAGEFERRY_LINK_LOST);
		/* A new process, at the same address. */
		source_start(&s);
		target_await(&t, PAGEFERRY_OPEN);
	}
	readers_start(&of_all, &s, t.memory, N_PAGES);
	target_await(&t, PAGEFERRY_COMPLETE);
	readers_join(&r);
	readers_join(&of_all);
	assert_all(&s, t.memory);
	st = target_stats(&t);
	cr_assert_geq(st.resumes, 3);
	/* What had come was not sent again: the resumes cost less than one more transfer would. */
	cr_assert_lt(st.wire_bytes, N_PAGES * (uint64_t)PAGE * 3 / 2);
	target_close(&t);
	source_end(&s);
}

Test(engine_loss, a_killed_source_is_resumed_from_anonymous)
{
	killed_and_restarted(MEMORY_ANON);
}

Test(engine_loss, a_killed_source_is_resumed_from_shared)
{
	killed_and_restarted(MEMORY_SHARED);
}

/* Is the thread in the kernel, waiting for a page? */
static void await_fault(pid_t tid)
{
	char path[64], text[64] = "";

	snprintf(path, sizeof(path), "/proc/self/task/%d/wchan", (int)tid);
	while (!strstr(text, "userfault")) {
		int fd = open(path, O_RDONLY | O_CLOEXEC);
		ssize_t n = read(fd, text, sizeof(text) - 1);

		close(fd);
		text[n > 0 ? n : 0] = '\0';
	}
}

struct waiter {
	const volatile uint8_t *at;
	_Atomic int tid;
	_Atomic bool done;
};

static void *wait_for_page(void *arg)
{
	struct waiter *w = arg;

	w->tid = gettid();
	(void)*w->at;
	w->done = true;
	return NULL;
}

Test(engine_loss, threads_wait_for_a_source_that_never_comes_back)
{
	struct source s = {.kind = MEMORY_ANON, .n_pages = N_PAGES};
	struct target t = {.max_bytes_per_second = SLOW};
	struct pageferry_error e;
	struct waiter w = {0};
	unsigned long thread;
	uint64_t there;

	source_start(&s);
	target_start(&t, &s);
	for (uint64_t p = 0; p < 32; p++)
		cr_assert(page_is(&s, p, t.memory + p * PAGE));
	source_kill(&s);
	target_await(&t, PAGEFERRY_LINK_LOST);
	there = target_stats(&t).pages_resident;
	cr_assert_eq(there, 32);
	w.at = t.memory + 100 * PAGE;
	cr_assert_eq(pthread_create(&thread, NULL, wait_for_page, &w), 0);
	while (!w.tid)
		;
	await_fault(w.tid);
	/* Some attempts to connect again later nothing has changed. */
	cr_assert_eq(pageferry_lazy_wait(t.lazy, 1500, &e), PAGEFERRY_NOTHING);
	cr_assert_not(w.done, "a thread went on without its page");
	cr_assert_eq(target_stats(&t).pages_resident, there);
	cr_assert_not(target_stats(&t).is_connected);
	/* What had come can be read all the same. */
	for (uint64_t p = 0; p < 32; p++)
		cr_assert(page_is(&s, p, t.memory + p * PAGE));
	/* It can't be closed by mistake; giving up is said in so many words. */
	cr_assert_eq(pageferry_lazy_close(t.lazy), -EBUSY);
	cr_assert_not(w.done);
	pageferry_lazy_abandon(t.lazy);
	pthread_join(thread, NULL);
	cr_assert(w.done);
}

Test(engine_loss, a_source_with_other_memory_is_refused_on_resume)
{
	struct source s = {.kind = MEMORY_ANON, .n_pages = N_PAGES};
	struct target t = {0};
	struct pageferry_error e = {0};
	int event;

	source_start(&s);
	target_start(&t, &s);
	source_kill(&s);
	target_await(&t, PAGEFERRY_LINK_LOST);
	s.n_pages++;
	source_start(&s);
	do
		event = pageferry_lazy_wait(t.lazy, 30000, &e);
	while (event == PAGEFERRY_LINK_LOST);
	cr_assert_eq(event, PAGEFERRY_FAILED, "event %d", event);
	cr_assert_eq(e.consequence, PAGEFERRY_REFUSE);
	cr_assert(strstr(e.text, "give both the same size"), "%s", e.text);
	/* The right one may still come. */
	source_end(&s);
	s.n_pages--;
	source_start(&s);
	do
		event = pageferry_lazy_wait(t.lazy, 30000, &e);
	while (event == PAGEFERRY_FAILED || event == PAGEFERRY_LINK_LOST);
	cr_assert_eq(event, PAGEFERRY_OPEN, "event %d", event);
	target_push(&t);
	target_await(&t, PAGEFERRY_COMPLETE);
	assert_all(&s, t.memory);
	target_close(&t);
	source_end(&s);
}

Test(engine_loss, events_can_be_polled_for)
{
	struct source s = {.kind = MEMORY_ANON, .n_pages = 64};
	struct target t = {0};
	struct pollfd p;

	source_start(&s);
	target_start(&t, &s);
	p = (struct pollfd){.fd = pageferry_lazy_fd(t.lazy), .events = POLLIN};
	cr_assert_geq(p.fd, 0);
	cr_assert_eq(poll(&p, 1, 60000), 1);
	cr_assert_eq(pageferry_lazy_wait(t.lazy, 0, NULL), PAGEFERRY_OPEN);
	cr_assert_eq(pageferry_lazy_wait(t.lazy, 0, NULL), PAGEFERRY_NOTHING);
	cr_assert_eq(poll(&p, 1, 0), 0);
	target_push(&t);
	cr_assert_eq(poll(&p, 1, 60000), 1);
	target_await(&t, PAGEFERRY_COMPLETE);
	target_close(&t);
	source_end(&s);
}

/* The source's file loses its second half. */
static struct pageferry_server *serve_half_lost(const struct pageferry_region *r, uint64_t flags)
{
	struct pageferry_server_options o = {
		.size = sizeof(o), .listen = "127.0.0.1:0", .flags = flags};
	struct pageferry_server *s;
	struct pageferry_error e;

	cr_assert_eq(pageferry_server_new(&s, r, 1, &o, &e), 0, "%s", e.text);
	cr_assert_eq(ftruncate(r->fd, (off_t)r->bytes / 2), 0);
	return s;
}

static void touch_lost_page(uint64_t flags)
{
	const uint64_t n = 64, bytes = n * PAGE;
	int fd = memfd_create("source", MFD_CLOEXEC);
	struct pageferry_region source = {.bytes = bytes, .has_fd = 1, .fd = fd};
	struct pageferry_region lazy = {.start = map_anon(bytes), .bytes = bytes};
	struct pageferry_lazy_options o = {.size = sizeof(o), .flags = flags};
	struct pageferry_lazy_stats st = {.size = sizeof(st)};
	struct pageferry_server *s;
	char address[PAGEFERRY_ADDRESS_MAX];
	struct pageferry_lazy *l;
	struct pageferry_error e;

	cr_assert_eq(ftruncate(fd, (off_t)bytes), 0);
	source.start = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	memset(source.start, 7, bytes);
	s = serve_half_lost(&source, flags & PAGEFERRY_NO_CHECKSUM);
	cr_assert_eq(pageferry_server_address(s, address, sizeof(address)), 0);
	cr_assert_eq(pageferry_lazy_new(&l, &lazy, 1, &o, &e), 0, "%s", e.text);
	cr_assert_eq(pageferry_lazy_connect(l, address, &e), 0, "%s", e.text);
	cr_assert_eq(*((volatile uint8_t *)lazy.start + 5 * PAGE), 7);
	cr_assert_eq(pageferry_lazy_push(l), 0);
	while (pageferry_lazy_wait(l, -1, NULL) != PAGEFERRY_COMPLETE)
		;
	pageferry_lazy_stats(l, &st);
	cr_assert_eq(st.pages_lost, n / 2);
	cr_assert_eq(st.pages_poisoned, n / 2);
	cr_assert_eq(st.checksum_errors, 0);
	/* The kernel gets the memory error in our place. */
	cr_assert_eq(write(fd, (uint8_t *)lazy.start + (n - 5) * PAGE, 1), -1);
	cr_assert_eq(errno, EFAULT);
	pageferry_lazy_close(l);
	pageferry_server_free(s);
	munmap(source.start, bytes);
	munmap(lazy.start, bytes);
	close(fd);
}

Test(engine_loss, a_lost_page_is_poisoned_where_that_is_wanted)
{
	touch_lost_page(PAGEFERRY_POISON_LOST);
}

Test(engine_loss, the_same_without_checksums)
{
	touch_lost_page(PAGEFERRY_POISON_LOST | PAGEFERRY_NO_CHECKSUM);
}
