/* SPDX-License-Identifier: Apache-2.0 */
#include "engine_support.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"

#define AWAIT_MS 60000

uint32_t page_bytes_of(enum memory_kind kind)
{
	return kind == MEMORY_HUGE ? HUGE : PAGE;
}

/* One in eight pages is zero, though it was written, unless all are data. */
static bool is_zero_page(const struct source *s, uint64_t page)
{
	return (page % 8 == 3 && !s->is_dense) || (page >= s->hole_first && page < s->hole_end);
}

void page_expect(const struct source *s, uint64_t page, uint8_t *out, uint32_t bytes)
{
	uint64_t *words = (uint64_t *)out;

	for (uint64_t i = 0; i < bytes / sizeof(*words); i++)
		words[i] = is_zero_page(s, page) ? 0 : (page + 1) * 0x9e3779b97f4a7c15u + i;
}

bool page_is(const struct source *s, uint64_t page, const uint8_t *at)
{
	const uint64_t *words = (const uint64_t *)at;

	for (uint64_t i = 0; i < page_bytes_of(s->kind) / sizeof(*words); i++)
		if (words[i] != (is_zero_page(s, page) ? 0 : (page + 1) * 0x9e3779b97f4a7c15u + i))
			return false;
	return true;
}

bool page_is_zero(const uint8_t *at, uint32_t bytes)
{
	for (uint32_t i = 0; i < bytes; i++)
		if (at[i])
			return false;
	return true;
}

void assert_all(const struct source *s, const uint8_t *memory)
{
	for (uint64_t p = 0; p < s->n_pages; p++)
		cr_assert(page_is(s, p, memory + p * page_bytes_of(s->kind)), "page %llu is wrong",
			  (unsigned long long)p);
}

const char *shared_memory_folder;

/* Return: memory, and its file in @fd when it has one. */
static uint8_t *map_kind(enum memory_kind kind, uint64_t bytes, int *fd)
{
	void *p;

	*fd = -1;
	if (kind == MEMORY_ANON)
		return map_anon(bytes);
	if (kind == MEMORY_HUGE)
		return map_huge(bytes);
	if (shared_memory_folder)
		*fd = open(shared_memory_folder, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
	else
		*fd = memfd_create("engine", MFD_CLOEXEC);
	if (*fd < 0 || ftruncate(*fd, (off_t)bytes) < 0)
		return NULL;
	p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, *fd, 0);
	return p == MAP_FAILED ? NULL : p;
}

/* --- the source's process ------------------------------------------------------------------------
 */

static int source_child(int in, int out, void *arg)
{
	const struct source *s = arg;
	uint64_t bytes = s->n_pages * page_bytes_of(s->kind);
	struct pageferry_region region = {.name = "memory", .bytes = bytes};
	struct pageferry_server_options options = {.size = sizeof(options),
						   .listen = s->address,
						   .hold = s->hold,
						   .state_bytes = s->state_bytes};
	uint8_t state[PAGEFERRY_MAX_STATE_BYTES];
	struct pageferry_server *server;
	struct pageferry_error e = {0};
	char address[sizeof(s->address)] = "";

	region.start = map_kind(s->kind, bytes, &region.fd);
	region.has_fd = region.fd >= 0;
	if (!region.start)
		return 2;
	for (uint64_t p = 0; p < s->n_pages; p++)
		if (p < s->hole_first || p >= s->hole_end)
			page_expect(s, p, (uint8_t *)region.start + p * page_bytes_of(s->kind),
				    page_bytes_of(s->kind));
	for (uint32_t i = 0; i < sizeof(state); i++)
		state[i] = (uint8_t)(i * 7 + 1);
	options.state = state;
	if (pageferry_server_new(&server, &region, 1, &options, &e) < 0 ||
	    pageferry_server_address(server, address, sizeof(address)) < 0) {
		fprintf(stderr, "source: %s\n", e.text);
		return 3;
	}
	if (write(out, address, sizeof(address)) != sizeof(address))
		return 4;
	if (s->hold) {
		parent_await(in);
		if (pageferry_server_serve(server, &e) < 0)
			return 5;
		parent_tell(out);
	}
	parent_await(in);
	pageferry_server_free(server);
	return 0;
}

/*
 * A port that is ours until the test ends: bound, so that nobody else gets it while the source is away, and
 * its target finds nobody there.
 */
static void choose_address(struct source *s)
{
	struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1;
	socklen_t len = sizeof(at);

	cr_assert(fd >= 0 && !setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one)));
	cr_assert(!bind(fd, (struct sockaddr *)&at, len) &&
		  !getsockname(fd, (struct sockaddr *)&at, &len));
	snprintf(s->address, sizeof(s->address), "127.0.0.1:%d", ntohs(at.sin_port));
}

void source_start(struct source *s)
{
	char address[sizeof(s->address)];

	if (!s->address[0])
		choose_address(s);
	s->child = child_start(source_child, s);
	cr_assert(read(s->child.from, address, sizeof(address)) == sizeof(address),
		  "the source did not start: %d", child_end(&s->child));
	memcpy(s->address, address, sizeof(address));
}

void source_serve(struct source *s)
{
	child_tell(&s->child);
	child_await(&s->child);
}

void source_kill(struct source *s)
{
	cr_assert_eq(child_kill(&s->child), 1000 + SIGKILL);
}

void source_end(struct source *s)
{
	child_tell(&s->child);
	cr_assert_eq(child_end(&s->child), 0);
}

/* --- the target ----------------------------------------------------------------------------------
 */

void target_start(struct target *t, const struct source *s)
{
	struct pageferry_lazy_options options = {.size = sizeof(options),
						 .max_bytes_per_second = t->max_bytes_per_second,
						 .flags = t->flags};
	struct pageferry_region region = {.name = "memory"};
	struct pageferry_error e;

	t->kind = s->kind;
	t->n_pages = s->n_pages;
	region.bytes = s->n_pages * page_bytes_of(s->kind);
	t->memory = map_kind(s->kind, region.bytes, &t->fd);
	cr_assert(t->memory);
	region.start = t->memory;
	if (pageferry_lazy_new(&t->lazy, &region, 1, &options, &e) < 0) {
		if (e.err == -EPERM || e.err == -EACCES || e.err == -ENOSYS)
			cr_skip_test("no userfaultfd: run 'pageferry probe'");
		cr_assert_fail("%s", e.text);
	}
	cr_assert(pageferry_lazy_connect(t->lazy, s->address, &e) == 0, "%s", e.text);
}

void target_push(struct target *t)
{
	cr_assert_eq(pageferry_lazy_push(t->lazy), 0);
}

void target_await(struct target *t, enum pageferry_event wanted)
{
	struct pageferry_error e = {0};

	for (;;) {
		int event = pageferry_lazy_wait(t->lazy, AWAIT_MS, &e);

		if (event == (int)wanted)
			return;
		cr_assert(event > PAGEFERRY_NOTHING && event != PAGEFERRY_FAILED,
			  "event %d instead of %d: %s", event, (int)wanted, e.text);
	}
}

struct pageferry_lazy_stats target_stats(const struct target *t)
{
	struct pageferry_lazy_stats s = {.size = sizeof(s)};

	cr_assert_eq(pageferry_lazy_stats(t->lazy, &s), 0);
	return s;
}

void target_await_pages(struct target *t, uint64_t n)
{
	uint64_t end_ns = ferry_now_ns() + AWAIT_MS * (uint64_t)FERRY_NS_PER_MS;

	while (target_stats(t).pages_resident < n) {
		cr_assert(ferry_now_ns() < end_ns, "%llu pages did not come",
			  (unsigned long long)n);
		sched_yield();
	}
}

void target_close(struct target *t)
{
	cr_assert_eq(pageferry_lazy_close(t->lazy), 0);
}

/* --- readers
 * --------------------------------------------------------------------------------------- */

static void *reader(void *arg)
{
	static _Atomic uint64_t seeds = 1;
	struct readers *r = arg;
	uint64_t x = atomic_fetch_add(&seeds, 1) * 0x9e3779b97f4a7c15u;

	for (uint64_t i = 0; !r->n_each || i < r->n_each; i++) {
		uint64_t page;

		if (atomic_load(&r->stop))
			break;
		x ^= x << 13, x ^= x >> 7, x ^= x << 17;
		page = x % (r->n_first ? r->n_first : r->source->n_pages);
		if (!page_is(r->source, page, r->memory + page * page_bytes_of(r->source->kind)))
			atomic_fetch_add(&r->n_wrong, 1);
		atomic_fetch_add(&r->n_read, 1);
	}
	return NULL;
}

void readers_start(struct readers *r, const struct source *s, const uint8_t *memory,
		   uint64_t n_each)
{
	r->source = s;
	r->memory = memory;
	r->n_each = n_each;
	for (int i = 0; i < N_READERS; i++)
		cr_assert_eq(pthread_create(&r->threads[i], NULL, reader, r), 0);
}

void readers_join(struct readers *r)
{
	for (int i = 0; i < N_READERS; i++)
		pthread_join(r->threads[i], NULL);
	cr_assert_eq(r->n_wrong, 0, "%llu of %llu pages were wrong", (unsigned long long)r->n_wrong,
		     (unsigned long long)r->n_read);
}
