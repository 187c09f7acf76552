/* SPDX-License-Identifier: Apache-2.0 */
/* Objects of the public API that have ended, are none, or are in another thread's hands. */
#include <criterion/criterion.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "engine_support.h"

#define N_PAGES 64u
#define BYTES	(N_PAGES * (uint64_t)PAGE)

TestSuite(lib_handles, .timeout = 60);

static struct pageferry_server *make_server(void)
{
	struct pageferry_region r = {.start = map_anon(BYTES), .bytes = BYTES};
	struct pageferry_server_options o = {.size = sizeof(o), .listen = "127.0.0.1:0"};
	struct pageferry_server *s;
	struct pageferry_error e;

	cr_assert_eq(pageferry_server_new(&s, &r, 1, &o, &e), 0, "%s", e.text);
	return s;
}

static struct pageferry_lazy *make_lazy(const struct pageferry_lazy_options *o)
{
	struct pageferry_region r = {.start = map_anon(BYTES), .bytes = BYTES};
	struct pageferry_lazy *l;
	struct pageferry_error e;

	cr_assert_eq(pageferry_lazy_new(&l, &r, 1, o, &e), 0, "%s", e.text);
	return l;
}

/* Every call says so. */
static void assert_no_lazy(void *what)
{
	struct pageferry_lazy_stats st = {.size = sizeof(st)};
	struct pageferry_lazy *l = what;
	struct pageferry_error e = {0};
	uint32_t n = 7;

	cr_assert_eq(pageferry_lazy_close(l), -EBADF);
	cr_assert_eq(pageferry_lazy_wait(l, 0, &e), -EBADF);
	cr_assert_eq(e.err, -EBADF);
	cr_assert_eq(e.consequence, PAGEFERRY_REFUSE);
	cr_assert(strstr(e.text, "no such object"), "%s", e.text);
	cr_assert_eq(pageferry_lazy_wait(l, -1, NULL), -EBADF);
	cr_assert_eq(pageferry_lazy_connect(l, "127.0.0.1:1", &e), -EBADF);
	cr_assert_eq(pageferry_lazy_push(l), -EBADF);
	cr_assert_eq(pageferry_lazy_fd(l), -EBADF);
	cr_assert_eq(pageferry_lazy_stats(l, &st), -EBADF);
	cr_assert_null(pageferry_lazy_state(l, &n));
	cr_assert_eq(n, 0);
	pageferry_lazy_abandon(l);
}

static void assert_no_server(void *what)
{
	struct pageferry_server_stats st = {.size = sizeof(st)};
	char address[PAGEFERRY_ADDRESS_MAX];
	struct pageferry_server *s = what;
	struct pageferry_error e = {0};

	cr_assert_eq(pageferry_server_wait(s, 0, &e), -EBADF);
	cr_assert(strstr(e.text, "no such object"), "%s", e.text);
	cr_assert_eq(pageferry_server_wait(s, -1, NULL), -EBADF);
	cr_assert_eq(pageferry_server_address(s, address, sizeof(address)), -EBADF);
	cr_assert_eq(pageferry_server_serve(s, &e), -EBADF);
	cr_assert_eq(pageferry_server_fd(s), -EBADF);
	cr_assert_eq(pageferry_server_stats(s, &st), -EBADF);
	cr_assert_eq(pageferry_server_stop(s), -EBADF);
	pageferry_server_free(s);
}

Test(lib_handles, what_was_closed_stays_closed)
{
	struct source src = {.kind = MEMORY_ANON, .n_pages = N_PAGES};
	struct target t = {0};

	source_start(&src);
	target_start(&t, &src);
	target_push(&t);
	target_await(&t, PAGEFERRY_COMPLETE);
	cr_assert_eq(pageferry_lazy_close(t.lazy), 0);
	assert_no_lazy(t.lazy);
	assert_all(&src, t.memory);
	source_end(&src);
}

Test(lib_handles, what_was_abandoned_or_freed_is_none)
{
	struct pageferry_server *s = make_server();
	struct pageferry_lazy *l = make_lazy(NULL);

	pageferry_lazy_abandon(l);
	assert_no_lazy(l);
	cr_assert_eq(pageferry_server_stop(s), 0);
	pageferry_server_free(s);
	assert_no_server(s);
}

Test(lib_handles, one_that_has_ended_is_not_a_newer_one)
{
	enum { N = 20 }; /* more than there is room for at first */
	struct pageferry_lazy *old[N], *now[N];
	struct pageferry_server *s;

	for (int i = 0; i < N; i++)
		old[i] = make_lazy(NULL);
	for (int i = 0; i < N; i++)
		pageferry_lazy_abandon(old[i]);
	s = make_server();
	for (int i = 0; i < N; i++)
		now[i] = make_lazy(NULL);
	for (int i = 0; i < N; i++)
		assert_no_lazy(old[i]);
	for (int i = 0; i < N; i++) {
		cr_assert_eq(pageferry_lazy_close(now[i]), -EBUSY, "it is there, and incomplete");
		cr_assert_eq(pageferry_lazy_wait(now[i], 0, NULL), PAGEFERRY_NOTHING);
		pageferry_lazy_abandon(now[i]);
	}
	cr_assert_eq(pageferry_server_wait(s, 0, NULL), PAGEFERRY_NOTHING);
	pageferry_server_free(s);
}

Test(lib_handles, what_is_of_another_kind_or_none_is_refused)
{
	struct pageferry_server *s = make_server();
	struct pageferry_lazy *l = make_lazy(NULL);
	char here[64] = {0};

	assert_no_lazy(s);
	assert_no_server(l);
	for (int i = 0; i < 64; i++) {
		assert_no_lazy((void *)((uintptr_t)l ^ (uintptr_t)1 << i));
		assert_no_lazy((void *)((uintptr_t)1 << i));
		assert_no_server((void *)((uintptr_t)s ^ (uintptr_t)1 << i));
		assert_no_server(here + i);
	}
	assert_no_lazy((void *)UINTPTR_MAX);
	assert_no_server((void *)UINTPTR_MAX);
	cr_assert_eq(pageferry_lazy_wait(l, 0, NULL), PAGEFERRY_NOTHING);
	cr_assert_eq(pageferry_server_wait(s, 0, NULL), PAGEFERRY_NOTHING);
	pageferry_lazy_abandon(l);
	pageferry_server_free(s);
}

Test(lib_handles, a_child_has_none_of_its_parents_objects)
{
	struct pageferry_server *s = make_server();
	struct pageferry_lazy *l = make_lazy(NULL);
	int status;
	pid_t child = fork();

	if (child == 0) {
		if (pageferry_lazy_wait(l, 0, NULL) != -EBADF ||
		    pageferry_lazy_close(l) != -EBADF || pageferry_server_stop(s) != -EBADF)
			_exit(1);
		pageferry_lazy_abandon(l);
		pageferry_server_free(s);
#ifndef __SANITIZE_ADDRESS__ /* its allocator can't be used in a child of several threads */
		struct pageferry_lazy *own = make_lazy(NULL);

		if (pageferry_lazy_wait(own, 0, NULL) != PAGEFERRY_NOTHING ||
		    pageferry_lazy_push(l) != -EBADF)
			_exit(2);
		pageferry_lazy_abandon(own);
#endif
		_exit(0);
	}
	cr_assert(child > 0 && waitpid(child, &status, 0) == child);
	cr_assert_eq(status, 0, "%#x", status);
	cr_assert_eq(pageferry_lazy_wait(l, 0, NULL), PAGEFERRY_NOTHING);
	pageferry_lazy_abandon(l);
	pageferry_server_free(s);
}

struct waiter {
	struct pageferry_lazy *lazy;
	struct pageferry_server *server;
	const char *connect; /* to this, instead of waiting */
	pthread_t thread;
	struct pageferry_error e;
};

static int call(const struct waiter *w, int timeout_ms, struct pageferry_error *e)
{
	if (w->connect)
		return pageferry_lazy_connect(w->lazy, w->connect, e);
	return w->lazy ? pageferry_lazy_wait(w->lazy, timeout_ms, e)
		       : pageferry_server_wait(w->server, timeout_ms, e);
}

static void *wait_for_ever(void *arg)
{
	struct waiter *w = arg;
	int rc;

	/* Whoever looks whether we are inside may be there first. */
	do
		rc = call(w, -1, &w->e);
	while (rc == -EBUSY);
	return (void *)(intptr_t)rc;
}

/* Returns once it is inside the call, which has refused us meanwhile. */
static void start_waiter(struct waiter *w)
{
	struct pageferry_error e = {0};
	int rc;

	cr_assert_eq(pthread_create(&w->thread, NULL, wait_for_ever, w), 0);
	while ((rc = call(w, 0, &e)) == PAGEFERRY_NOTHING)
		sched_yield();
	cr_assert_eq(rc, -EBUSY, "%d: %s", rc, e.text);
	cr_assert_eq(e.consequence, PAGEFERRY_RETRY);
	cr_assert(strstr(e.text, "one at a time"), "%s", e.text);
}

static int end_of(struct waiter *w)
{
	void *rc;

	pthread_join(w->thread, &rc);
	return (int)(intptr_t)rc;
}

Test(lib_handles, two_threads_do_not_wait_at_once_and_an_end_wakes_the_one)
{
	struct waiter l = {.lazy = make_lazy(NULL)}, s = {.server = make_server()};

	start_waiter(&l);
	start_waiter(&s);
	/* What is for any thread is so all the while. */
	cr_assert_eq(pageferry_lazy_push(l.lazy), -ENOTCONN);
	cr_assert_eq(pageferry_lazy_close(l.lazy), -EBUSY, "incomplete: it goes on");
	cr_assert_eq(call(&l, 0, NULL), -EBUSY);
	pageferry_lazy_abandon(l.lazy);
	assert_no_lazy(l.lazy);
	cr_assert_eq(end_of(&l), -ESHUTDOWN);
	cr_assert(strstr(l.e.text, "closed or abandoned meanwhile"), "%s", l.e.text);
	pageferry_server_free(s.server);
	assert_no_server(s.server);
	cr_assert_eq(end_of(&s), -ESHUTDOWN);
}

Test(lib_handles, a_close_of_complete_memory_wakes_who_waits)
{
	struct source src = {.kind = MEMORY_ANON, .n_pages = N_PAGES};
	struct waiter w = {0};
	struct target t = {0};

	source_start(&src);
	target_start(&t, &src);
	target_push(&t);
	target_await(&t, PAGEFERRY_COMPLETE);
	w.lazy = t.lazy;
	start_waiter(&w);
	cr_assert_eq(pageferry_lazy_close(t.lazy), 0);
	cr_assert_eq(end_of(&w), -ESHUTDOWN);
	source_end(&src);
}

/* Accepts nobody: who connects waits for an answer. */
static int be_silent(char *address)
{
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	struct sockaddr_un a = {.sun_family = AF_UNIX};
	char folder[] = "/tmp/pageferry-XXXXXX";

	cr_assert(fd >= 0 && mkdtemp(folder));
	snprintf(a.sun_path, sizeof(a.sun_path), "%s/s", folder);
	cr_assert(bind(fd, (struct sockaddr *)&a, sizeof(a)) == 0 && listen(fd, 8) == 0);
	sprintf(address, "unix:%s", a.sun_path);
	return fd;
}

Test(lib_handles, two_threads_do_not_connect_at_once_and_an_end_wakes_the_one)
{
	char address[128];
	int silent = be_silent(address);
	struct pollfd someone = {.fd = silent, .events = POLLIN};
	struct waiter w = {.lazy = make_lazy(NULL), .connect = address};
	struct pageferry_error e;

	cr_assert_eq(pthread_create(&w.thread, NULL, wait_for_ever, &w), 0);
	cr_assert_eq(poll(&someone, 1, -1), 1);
	cr_assert_eq(call(&w, 0, &e), -EBUSY, "%s", e.text);
	cr_assert_eq(pageferry_lazy_wait(w.lazy, 0, NULL), PAGEFERRY_NOTHING, "another call");
	pageferry_lazy_abandon(w.lazy);
	cr_assert_eq(end_of(&w), -ESHUTDOWN, "%s", w.e.text);
	close(silent);
	unlink(strchr(address, '/'));
	*strrchr(address, '/') = '\0';
	rmdir(strchr(address, '/'));
}

struct caller {
	struct pageferry_lazy *_Atomic lazy;
	_Atomic bool ends; /* then it may be none already */
	_Atomic int n_lines, n_wrong;
};

static bool is_refused(const struct caller *c, int rc)
{
	return rc == -EDEADLK || (rc == -EBADF && c->ends);
}

static void call_back(void *ctx, enum pageferry_log_level level, const char *line)
{
	struct caller *c = ctx;

	(void)level;
	(void)line;
	if (!c->lazy)
		return;
	c->n_wrong += !is_refused(c, pageferry_lazy_wait(c->lazy, -1, NULL));
	c->n_wrong += !is_refused(c, pageferry_lazy_close(c->lazy));
	pageferry_lazy_abandon(c->lazy);
	c->n_lines++;
}

Test(lib_handles, the_log_function_can_not_call_back)
{
	struct source src = {.kind = MEMORY_ANON, .n_pages = N_PAGES};
	struct caller c = {0};
	struct pageferry_lazy_options o = {.size = sizeof(o),
					   .log = call_back,
					   .log_ctx = &c,
					   .log_level = PAGEFERRY_LOG_DEBUG};
	struct pageferry_error e;

	source_start(&src);
	c.lazy = make_lazy(&o);
	cr_assert_eq(pageferry_lazy_connect(c.lazy, src.address, &e), 0, "%s", e.text);
	source_kill(&src);
	while (pageferry_lazy_wait(c.lazy, 40000, &e) == PAGEFERRY_OPEN)
		;
	/* It is said after the event. */
	while (!c.n_lines)
		sched_yield();
	c.ends = true;
	pageferry_lazy_abandon(c.lazy);
	cr_assert_eq(c.n_wrong, 0);
}

struct ender {
	struct pageferry_lazy *lazy;
	_Atomic bool *go;
	pthread_t thread;
};

static void *end_it(void *arg)
{
	struct ender *x = arg;

	while (!*x->go)
		sched_yield();
	for (int i = 0; i < 100; i++)
		(void)pageferry_lazy_wait(x->lazy, 0, NULL);
	pageferry_lazy_abandon(x->lazy);
	return (void *)(intptr_t)pageferry_lazy_push(x->lazy);
}

Test(lib_handles, of_many_ends_at_once_one_counts)
{
	for (int round = 0; round < 50; round++) {
		struct ender x[4];
		_Atomic bool go = false;
		struct pageferry_lazy *l = make_lazy(NULL);
		void *rc;

		for (int i = 0; i < 4; i++) {
			x[i] = (struct ender){.lazy = l, .go = &go};
			cr_assert_eq(pthread_create(&x[i].thread, NULL, end_it, &x[i]), 0);
		}
		go = true;
		for (int i = 0; i < 4; i++) {
			pthread_join(x[i].thread, &rc);
			cr_assert_eq((intptr_t)rc, -EBADF);
		}
	}
}
