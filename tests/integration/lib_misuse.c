/* SPDX-License-Identifier: Apache-2.0 */
/* The public API used wrongly: it says so and changes nothing. */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "engine_support.h"

#define N_PAGES 64u
#define BYTES	(N_PAGES * (uint64_t)PAGE)

TestSuite(lib_misuse, .timeout = 60);

static struct pageferry_server_options listening(void)
{
	return (struct pageferry_server_options){.size = sizeof(struct pageferry_server_options),
						 .listen = "127.0.0.1:0"};
}

static int serve(const struct pageferry_region *r, uint32_t n,
		 const struct pageferry_server_options *o, struct pageferry_error *e)
{
	struct pageferry_server *s = NULL;
	int rc = pageferry_server_new(&s, r, n, o, e);

	if (!rc)
		pageferry_server_free(s);
	else
		cr_assert_null(s, "written on failure");
	return rc;
}

static int make_lazy(const struct pageferry_region *r, uint32_t n, struct pageferry_error *e)
{
	struct pageferry_lazy *l = NULL;
	int rc = pageferry_lazy_new(&l, r, n, NULL, e);

	if (!rc)
		pageferry_lazy_abandon(l);
	else
		cr_assert_null(l, "written on failure");
	return rc;
}

/* Both sides say the same about regions. */
static void assert_refused(const struct pageferry_region *r, uint32_t n, int err, const char *text)
{
	struct pageferry_server_options o = listening();
	struct pageferry_error e = {0};
	int rc = serve(r, n, &o, &e);

	cr_assert_eq(rc, err, "serve: %d: %s", rc, e.text);
	cr_assert_eq(e.err, err);
	cr_assert_eq(e.consequence, PAGEFERRY_REFUSE);
	cr_assert(strstr(e.text, text), "serve: %s", e.text);
	memset(&e, 0, sizeof(e));
	rc = make_lazy(r, n, &e);
	cr_assert_eq(rc, err, "lazy: %d: %s", rc, e.text);
	cr_assert(strstr(e.text, text), "lazy: %s", e.text);
}

Test(lib_misuse, regions_that_make_no_sense_are_refused)
{
	uint8_t *m = map_anon(3 * BYTES);
	char name[65];
	struct pageferry_region good = {.start = m, .bytes = BYTES}, r;

	assert_refused(NULL, 1, -EINVAL, "regions");
	assert_refused(&good, 0, -EINVAL, "regions");
	assert_refused(&good, PAGEFERRY_MAX_REGIONS + 1, -EINVAL, "regions");
	for (int off = -1; off <= 1; off += 2) {
		r = (struct pageferry_region){.start = m + PAGE + off, .bytes = BYTES};
		assert_refused(&r, 1, -EINVAL, "multiples of the page size");
		r = (struct pageferry_region){.start = m, .bytes = BYTES + (uint64_t)off};
		assert_refused(&r, 1, -EINVAL, "multiples of the page size");
	}
	r = (struct pageferry_region){.start = m, .bytes = 0};
	assert_refused(&r, 1, -EINVAL, "not 0");
	r = (struct pageferry_region){.start = NULL, .bytes = BYTES};
	assert_refused(&r, 1, -EINVAL, "not 0");
	r = (struct pageferry_region){.start = m, .bytes = UINT64_MAX / PAGE * PAGE};
	assert_refused(&r, 1, -EINVAL, "multiples");
	r = (struct pageferry_region){.start = m, .bytes = BYTES, .page_bytes = 8192};
	assert_refused(&r, 1, -EINVAL, "pages of 4096 bytes");
	memset(name, 'n', 64);
	name[64] = '\0';
	r = (struct pageferry_region){.start = m, .bytes = BYTES, .name = name};
	assert_refused(&r, 1, -EINVAL, "longer than 63");
}

Test(lib_misuse, regions_that_overlap_are_refused_and_neighbours_are_not)
{
	uint8_t *m = map_anon(2 * BYTES);
	struct pageferry_server_options o = listening();
	struct pageferry_error e;
	struct pageferry_region r[2] = {{.name = "a", .start = m, .bytes = BYTES},
					{.name = "b", .start = m + BYTES, .bytes = BYTES}};

	cr_assert_eq(serve(r, 2, &o, &e), 0);
	cr_assert_eq(make_lazy(r, 2, &e), 0);
	r[1].start = m + BYTES - PAGE;
	assert_refused(r, 2, -EINVAL, "regions 0 and 1 overlap");
	r[1].start = m;
	assert_refused(r, 2, -EINVAL, "regions 0 and 1 overlap");
}

Test(lib_misuse, memory_that_is_not_there_is_refused)
{
	uint8_t *m = map_anon(3 * BYTES);
	struct pageferry_region r = {.start = m, .bytes = 3 * BYTES};

	cr_assert_eq(munmap(m + BYTES, BYTES), 0);
	assert_refused(&r, 1, -EFAULT, "nothing is mapped");
	cr_assert(mmap(m + BYTES, BYTES, PROT_READ | PROT_WRITE,
		       MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != MAP_FAILED);
	assert_refused(&r, 1, -EFAULT, "several kinds");
}

Test(lib_misuse, memory_of_an_ordinary_file_can_not_be_lazy)
{
	char path[] = "/var/tmp/pageferry-XXXXXX";
	int fd = mkstemp(path);
	struct pageferry_region r = {.bytes = BYTES};
	struct pageferry_error e;
	int rc;

	cr_assert(fd >= 0 && !unlink(path) && !ftruncate(fd, (off_t)BYTES));
	r.start = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
	rc = make_lazy(&r, 1, &e);
	if (rc == 0 || rc == -EINVAL)
		cr_skip_test("/var/tmp is a tmpfs, so it has no ordinary files");
	cr_assert_eq(rc, -ENODEV, "%d: %s", rc, e.text);
	cr_assert(strstr(e.text, "tmpfs"), "%s", e.text);
}

Test(lib_misuse, memory_is_lazy_once_only)
{
	struct pageferry_region r = {.start = map_anon(BYTES), .bytes = BYTES};
	struct pageferry_lazy *l;
	struct pageferry_error e;

	cr_assert_eq(pageferry_lazy_new(&l, &r, 1, NULL, &e), 0, "%s", e.text);
	for (int named = 0; named <= 1; named++) {
		char where[64];

		r.name = named ? "heap" : "";
		snprintf(where, sizeof(where), "region 0 (%sat %p)", named ? "'heap', " : "",
			 r.start);
		cr_assert_eq(make_lazy(&r, 1, &e), -EBUSY, "%s", e.text);
		cr_assert_eq(e.consequence, PAGEFERRY_REFUSE);
		cr_assert(strstr(e.text, where), "%s", e.text);
		cr_assert(strstr(e.text, "registered with a userfaultfd already"), "%s", e.text);
		cr_assert(strstr(e.text, "end that one first"), "%s", e.text);
	}
	/* That attempt has not taken it from the first. */
	cr_assert_eq(pageferry_lazy_close(l), -EBUSY);
	pageferry_lazy_abandon(l);
	cr_assert_eq(make_lazy(&r, 1, &e), 0, "%s", e.text);
	cr_assert_eq(*(uint8_t *)r.start, 0);
}

Test(lib_misuse, null_is_refused_everywhere)
{
	struct pageferry_region r = {.start = map_anon(BYTES), .bytes = BYTES};
	struct pageferry_server_options o = listening();
	struct pageferry_server *s;
	struct pageferry_lazy *l;
	uint32_t n = 7;

	cr_assert_eq(pageferry_server_new(NULL, &r, 1, &o, NULL), -EINVAL);
	cr_assert_eq(pageferry_server_new(&s, NULL, 1, &o, NULL), -EINVAL);
	cr_assert_eq(pageferry_server_new(&s, &r, 1, NULL, NULL), -EINVAL);
	cr_assert_eq(pageferry_server_address(NULL, NULL, 0), -EINVAL);
	cr_assert_eq(pageferry_server_serve(NULL, NULL), -EINVAL);
	cr_assert_eq(pageferry_server_fd(NULL), -EINVAL);
	cr_assert_eq(pageferry_server_wait(NULL, 0, NULL), -EINVAL);
	cr_assert_eq(pageferry_server_stats(NULL, NULL), -EINVAL);
	cr_assert_eq(pageferry_server_stop(NULL), -EINVAL);
	pageferry_server_free(NULL);
	cr_assert_eq(pageferry_lazy_new(NULL, &r, 1, NULL, NULL), -EINVAL);
	cr_assert_eq(pageferry_lazy_new(&l, NULL, 1, NULL, NULL), -EINVAL);
	cr_assert_eq(pageferry_lazy_connect(NULL, "127.0.0.1:1", NULL), -EINVAL);
	cr_assert_null(pageferry_lazy_state(NULL, &n));
	cr_assert_eq(n, 0);
	cr_assert_null(pageferry_lazy_state(NULL, NULL));
	cr_assert_eq(pageferry_lazy_push(NULL), -EINVAL);
	cr_assert_eq(pageferry_lazy_fd(NULL), -EINVAL);
	cr_assert_eq(pageferry_lazy_wait(NULL, 0, NULL), -EINVAL);
	cr_assert_eq(pageferry_lazy_stats(NULL, NULL), -EINVAL);
	cr_assert_eq(pageferry_lazy_close(NULL), 0);
	pageferry_lazy_abandon(NULL);
}

Test(lib_misuse, sizes_of_options_are_checked)
{
	struct pageferry_region r = {.start = map_anon(BYTES), .bytes = BYTES};
	struct {
		struct pageferry_server_options o;
		uint64_t later;
	} longer = {.o = listening()};
	struct pageferry_server_options o = listening();
	struct pageferry_error e;

	o.size = 0;
	cr_assert_eq(serve(&r, 1, &o, &e), -EINVAL);
	cr_assert(strstr(e.text, "sizeof"), "%s", e.text);
	o.size = offsetof(struct pageferry_server_options, flags) - 1;
	cr_assert_eq(serve(&r, 1, &o, &e), -EINVAL);
	/* A program that was built with the first version, whatever is behind its struct. */
	o.size++;
	o.flags = UINT64_MAX;
	cr_assert_eq(serve(&r, 1, &o, &e), 0);
	/* A later version's struct is fine as long as it asks for nothing new. */
	longer.o.size = sizeof(longer);
	cr_assert_eq(serve(&r, 1, &longer.o, &e), 0);
	longer.later = 1;
	cr_assert_eq(serve(&r, 1, &longer.o, &e), -EINVAL);
	cr_assert(strstr(e.text, "doesn't know"), "%s", e.text);
}

/* The struct of a later version. */
struct later_region {
	struct pageferry_region r;
	uint64_t later;
};

/* Both sides with @n regions of @size bytes each. */
static void assert_regions(const void *regions, uint32_t n, size_t size, const char *refused)
{
	struct pageferry_server_options o = listening();
	struct pageferry_lazy_options lo = {.size = sizeof(lo), .region_size = size};
	struct pageferry_lazy *l;
	struct pageferry_error e = {0};
	int rc;

	o.region_size = size;
	rc = serve(regions, n, &o, &e);
	cr_assert_eq(rc, refused ? -EINVAL : 0, "%s", e.text);
	cr_assert(!refused || strstr(e.text, refused), "%s", e.text);
	memset(&e, 0, sizeof(e));
	rc = pageferry_lazy_new(&l, regions, n, &lo, &e);
	cr_assert_eq(rc, refused ? -EINVAL : 0, "%s", e.text);
	cr_assert(!refused || strstr(e.text, refused), "%s", e.text);
	if (!rc)
		pageferry_lazy_abandon(l);
}

Test(lib_misuse, regions_may_be_those_of_a_later_version)
{
	uint8_t *m = map_anon(2 * BYTES);
	struct later_region later[2] = {{.r = {.start = m, .bytes = BYTES}},
					{.r = {.start = m + BYTES, .bytes = BYTES}}};
	struct pageferry_region now[2] = {later[0].r, later[1].r};
	size_t size = sizeof(struct pageferry_region);

	assert_regions(now, 2, 0, NULL);
	assert_regions(now, 2, size, NULL);
	assert_regions(later, 2, sizeof(later[0]), NULL);
	/* The second one is found, and looked at. */
	later[1].r.start = m + 1;
	assert_regions(later, 2, sizeof(later[0]), "region 1: start");
	later[1].r.start = m + BYTES;
	later[1].later = 1;
	assert_regions(later, 2, sizeof(later[0]), "region 1 asks for something");
	assert_regions(later, 1, sizeof(later[0]), NULL);
	assert_regions(now, 1, size - 1, "sizeof(struct pageferry_region)");
	assert_regions(now, 1, size + 1, "sizeof(struct pageferry_region)");
	assert_regions(now, 1, size - 8, "sizeof(struct pageferry_region)");
	assert_regions(now, 1, SIZE_MAX / 8 * 8, "sizeof(struct pageferry_region)");
}

Test(lib_misuse, flags_that_are_not_known_are_refused)
{
	struct pageferry_region r = {.start = map_anon(BYTES), .bytes = BYTES};
	struct pageferry_server_options o = listening();
	struct pageferry_lazy_options lo = {.size = sizeof(lo), .flags = UINT64_C(1) << 3};
	struct pageferry_lazy *l;
	struct pageferry_error e;

	o.flags = PAGEFERRY_POISON_LOST;
	cr_assert_eq(serve(&r, 1, &o, &e), -EINVAL);
	cr_assert(strstr(e.text, "flags 0x2"), "%s", e.text);
	o.flags = PAGEFERRY_NO_CHECKSUM;
	cr_assert_eq(serve(&r, 1, &o, &e), 0);
	cr_assert_eq(pageferry_lazy_new(&l, &r, 1, &lo, &e), -EINVAL);
	lo.flags = PAGEFERRY_NO_CHECKSUM | PAGEFERRY_POISON_LOST | PAGEFERRY_NO_LARGE_PAGES;
	cr_assert_eq(pageferry_lazy_new(&l, &r, 1, &lo, &e), 0);
	pageferry_lazy_abandon(l);
}

Test(lib_misuse, options_of_a_server_are_checked)
{
	struct pageferry_region r = {.start = map_anon(BYTES), .bytes = BYTES};
	struct pageferry_server_options o = listening();
	static const uint8_t state[PAGEFERRY_MAX_STATE_BYTES + 1];
	struct pageferry_error e;

	o.state = state;
	o.state_bytes = PAGEFERRY_MAX_STATE_BYTES;
	cr_assert_eq(serve(&r, 1, &o, &e), 0, "%s", e.text);
	o.state_bytes++;
	cr_assert_eq(serve(&r, 1, &o, &e), -EINVAL);
	o.state = NULL;
	o.state_bytes = 1;
	cr_assert_eq(serve(&r, 1, &o, &e), -EINVAL);
	o = listening();
	o.listen = NULL;
	cr_assert_eq(serve(&r, 1, &o, &e), -EINVAL);
	o.listen = "nowhere";
	cr_assert_eq(serve(&r, 1, &o, &e), -EINVAL);
	cr_assert(strstr(e.text, "HOST:PORT"), "%s", e.text);
	o.listen = "127.0.0.1:0";
	o.has_listen_fd = 1;
	o.listen_fd = -1;
	cr_assert_eq(serve(&r, 1, &o, &e), -EINVAL);
}

static void assert_not_listening(int fd, const char *text)
{
	struct pageferry_region r = {.start = map_anon(BYTES), .bytes = BYTES};
	struct pageferry_server_options o = {
		.size = sizeof(o), .has_listen_fd = 1, .listen_fd = fd};
	struct pageferry_error e = {0};

	cr_assert_eq(serve(&r, 1, &o, &e), -EINVAL, "fd %d: %s", fd, e.text);
	cr_assert_eq(e.consequence, PAGEFERRY_REFUSE);
	cr_assert(strstr(e.text, text), "fd %d: %s", fd, e.text);
	cr_assert_eq(fcntl(fd, F_GETFD), -1, "it was given");
}

Test(lib_misuse, what_no_connection_can_be_accepted_from_is_refused)
{
	struct sockaddr_in here = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
	int closed = memfd_create("closed", MFD_CLOEXEC);
	int bound = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), pair[2];

	cr_assert(closed >= 0 && bound >= 0);
	assert_not_listening(-1, "listen_fd is -1");
	assert_not_listening(-7, "listen_fd is -7");
	close(closed);
	assert_not_listening(closed, "not open");
	assert_not_listening(memfd_create("no socket", MFD_CLOEXEC), "no socket");
	assert_not_listening(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), "no stream socket");
	assert_not_listening(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0), "no stream socket");
	assert_not_listening(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), "does not listen");
	cr_assert_eq(bind(bound, (struct sockaddr *)&here, sizeof(here)), 0);
	assert_not_listening(bound, "does not listen");
	cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
	assert_not_listening(pair[0], "does not listen");
	close(pair[1]);
}

Test(lib_misuse, a_socket_is_closed_whatever_else_is_wrong)
{
	struct pageferry_region r = {.start = map_anon(BYTES), .bytes = BYTES};
	struct pageferry_server *s;

	for (int i = 0; i < 2; i++) {
		struct {
			struct pageferry_server_options o;
			uint64_t later;
		} longer = {.o = {.size = sizeof(longer), .has_listen_fd = 1}, .later = !i};
		int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

		cr_assert(fd >= 0 && listen(fd, 1) == 0);
		longer.o.listen_fd = fd;
		cr_assert_eq(pageferry_server_new(i ? NULL : &s, &r, 1, &longer.o, NULL), -EINVAL);
		cr_assert_eq(fcntl(fd, F_GETFD), -1);
	}
}

Test(lib_misuse, a_listening_socket_is_taken_over_and_closed)
{
	struct pageferry_region r = {.start = map_anon(BYTES), .bytes = BYTES};
	struct pageferry_server_options o = listening();
	struct pageferry_error e;

	for (int good = 0; good <= 1; good++) {
		int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

		cr_assert(fd >= 0 && listen(fd, 1) == 0);
		o.listen = NULL;
		o.has_listen_fd = 1;
		o.listen_fd = fd;
		r.bytes = BYTES - !good;
		cr_assert_eq(serve(&r, 1, &o, &e), good ? 0 : -EINVAL);
		cr_assert_eq(fcntl(fd, F_GETFD), -1);
	}
}

static void *wait_for_stop(void *arg)
{
	return (void *)(intptr_t)pageferry_server_wait(arg, -1, NULL);
}

Test(lib_misuse, a_stopped_server_says_so)
{
	struct pageferry_region r = {.start = map_anon(BYTES), .bytes = BYTES};
	struct pageferry_server_options o = listening();
	struct pageferry_server_stats st = {.size = sizeof(st)};
	struct pageferry_server *s;
	struct pageferry_error e;
	pthread_t waiter;
	void *rc;

	o.hold = 1;
	cr_assert_eq(pageferry_server_new(&s, &r, 1, &o, &e), 0);
	cr_assert_eq(pageferry_server_wait(s, -2, &e), -EINVAL);
	cr_assert_eq(pageferry_server_wait(s, 0, &e), PAGEFERRY_NOTHING);
	cr_assert_eq(pageferry_server_serve(s, &e), 0);
	cr_assert_eq(pageferry_server_serve(s, &e), -EALREADY);
	cr_assert_eq(pthread_create(&waiter, NULL, wait_for_stop, s), 0);
	cr_assert_eq(pageferry_server_stop(s), 0);
	pthread_join(waiter, &rc);
	cr_assert_eq((intptr_t)rc, -ESHUTDOWN);
	cr_assert_eq(pageferry_server_stop(s), 0);
	cr_assert_eq(pageferry_server_serve(s, &e), -ESHUTDOWN);
	cr_assert_eq(pageferry_server_wait(s, -1, &e), -ESHUTDOWN);
	cr_assert_eq(pageferry_server_stats(s, &st), 0);
	st.size = 8;
	cr_assert_eq(pageferry_server_stats(s, &st), -EINVAL);
	pageferry_server_free(s);
}

Test(lib_misuse, connecting_can_fail_and_be_tried_again)
{
	struct source src = {.kind = MEMORY_ANON, .n_pages = N_PAGES, .state_bytes = 5};
	struct source other = src;
	struct pageferry_region r = {.start = map_anon(BYTES), .bytes = BYTES};
	struct target t = {.memory = r.start};
	struct pageferry_error e;
	uint32_t n = 7;

	cr_assert_eq(pageferry_lazy_new(&t.lazy, &r, 1, NULL, &e), 0, "%s", e.text);
	cr_assert_eq(pageferry_lazy_push(t.lazy), -ENOTCONN);
	cr_assert_null(pageferry_lazy_state(t.lazy, &n));
	cr_assert_eq(n, 0);
	cr_assert_null(pageferry_lazy_state(t.lazy, NULL));
	cr_assert_eq(pageferry_lazy_connect(t.lazy, NULL, &e), -EINVAL);
	cr_assert_eq(pageferry_lazy_connect(t.lazy, "nowhere", &e), -EINVAL);
	cr_assert_lt(pageferry_lazy_connect(t.lazy, "unix:/nonexistent/socket", &e), 0);
	cr_assert_eq(e.consequence, PAGEFERRY_LINK);
	other.n_pages++;
	source_start(&other);
	cr_assert_eq(pageferry_lazy_connect(t.lazy, other.address, &e), -EINVAL);
	cr_assert_eq(e.consequence, PAGEFERRY_REFUSE);
	cr_assert(strstr(e.text, "give both the same size"), "%s", e.text);
	source_end(&other);
	source_start(&src);
	cr_assert_eq(pageferry_lazy_connect(t.lazy, src.address, &e), 0, "%s", e.text);
	cr_assert_eq(pageferry_lazy_connect(t.lazy, src.address, &e), -EISCONN);
	cr_assert_not_null(pageferry_lazy_state(t.lazy, &n));
	cr_assert_eq(n, 5);
	cr_assert_eq(pageferry_lazy_state(t.lazy, NULL), pageferry_lazy_state(t.lazy, &n));
	cr_assert_eq(pageferry_lazy_push(t.lazy), 0);
	cr_assert_eq(pageferry_lazy_push(t.lazy), 0);
	target_await(&t, PAGEFERRY_COMPLETE);
	assert_all(&src, t.memory);
	target_close(&t);
	source_end(&src);
}

static void count(void *ctx, enum pageferry_log_level level, const char *line)
{
	_Atomic int *n = ctx;

	cr_assert(level >= PAGEFERRY_LOG_ERROR && level <= PAGEFERRY_LOG_DEBUG);
	cr_assert(line && !strchr(line, '\n'));
	++*n;
}

Test(lib_misuse, nothing_is_printed_and_the_log_is_called)
{
	struct source src = {.kind = MEMORY_ANON, .n_pages = N_PAGES};
	struct pageferry_region r = {.start = map_anon(BYTES), .bytes = BYTES};
	_Atomic int n_lines = 0;
	struct pageferry_lazy_options o = {.size = sizeof(o),
					   .log = count,
					   .log_ctx = (void *)&n_lines,
					   .log_level = PAGEFERRY_LOG_DEBUG};
	struct pageferry_lazy *quiet, *l;
	struct pageferry_error e;
	int output[2], saved = dup(STDERR_FILENO);
	char c;

	cr_assert_eq(pipe2(output, O_NONBLOCK | O_CLOEXEC), 0);
	source_start(&src);
	cr_assert(dup2(output[1], STDERR_FILENO) >= 0);
	cr_assert_eq(pageferry_lazy_new(&l, &r, 1, &o, &e), 0);
	cr_assert_eq(pageferry_lazy_connect(l, src.address, &e), 0);
	source_kill(&src);
	while (pageferry_lazy_wait(l, 40000, &e) == PAGEFERRY_OPEN)
		;
	r.start = map_anon(BYTES);
	cr_assert_eq(pageferry_lazy_new(&quiet, &r, 1, NULL, &e), 0);
	cr_assert_lt(pageferry_lazy_connect(quiet, src.address, &e), 0);
	pageferry_lazy_abandon(quiet);
	pageferry_lazy_abandon(l);
	cr_assert(dup2(saved, STDERR_FILENO) >= 0);
	cr_assert_geq(n_lines, 1);
	cr_assert(read(output[0], &c, 1) < 0 && errno == EAGAIN, "something was printed");
}

static volatile sig_atomic_t n_signals;
static pthread_t signalled;

static void on_signal(int sig)
{
	(void)sig;
	n_signals++;
	signalled = pthread_self();
}

Test(lib_misuse, signals_are_left_to_the_programs_own_threads)
{
	struct source src = {.kind = MEMORY_ANON, .n_pages = N_PAGES};
	struct target t = {0};
	struct sigaction sa = {.sa_handler = on_signal}, was;
	sigset_t usr1, old;

	cr_assert_eq(sigaction(SIGUSR1, &sa, NULL), 0);
	source_start(&src);
	target_start(&t, &src);
	cr_assert_eq(sigaction(SIGUSR1, NULL, &was), 0);
	cr_assert_eq(was.sa_handler, on_signal);
	sigemptyset(&usr1);
	sigaddset(&usr1, SIGUSR1);
	/* With it blocked here it waits for us: no thread of the library takes it. */
	pthread_sigmask(SIG_BLOCK, &usr1, &old);
	cr_assert_not(sigismember(&old, SIGUSR1), "the caller's mask is as it was");
	kill(getpid(), SIGUSR1);
	target_push(&t);
	target_await(&t, PAGEFERRY_COMPLETE);
	cr_assert_eq(n_signals, 0);
	pthread_sigmask(SIG_UNBLOCK, &usr1, NULL);
	cr_assert_eq(n_signals, 1);
	cr_assert(pthread_equal(signalled, pthread_self()));
	target_close(&t);
	source_end(&src);
}
