/* SPDX-License-Identifier: Apache-2.0 */
/* Shared memory of this and of another process, filled in place: see uffd/in_place.c. */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "engine_support.h"
#include "uffd/memory_file.h"
#include "uffd/pager.h"
#include "uffd/target.h"

#define N_BLOCKS    6u
#define BLOCK_PAGES (FERRY_LARGE_BYTES / PAGE)
/* The last block is not whole. */
#define N_PAGES (N_BLOCKS * BLOCK_PAGES + 100)
#define BYTES	((size_t)N_PAGES * PAGE)
#define MARK	0x5a
#define AWAIT_NS (60 * (uint64_t)FERRY_NS_PER_S)

TestSuite(engine_in_place, .timeout = 120);

/* The rest has to come in small pages. */
static const struct ferry_block_run dense[] = {{.first = 1, .n_blocks = 2},
					       {.first = 4, .n_blocks = N_BLOCKS}};
#define N_DENSE_BLOCKS (2 + N_BLOCKS - 4)

struct memory {
	int fd;
	uint8_t *at;
};

/* @shift: of its address against a multiple of 2 MiB. */
static struct memory new_memory(size_t shift)
{
	struct memory m = {.fd = memfd_create("in-place", MFD_CLOEXEC)};
	uint8_t *room = mmap(NULL, BYTES + 2 * FERRY_LARGE_BYTES, PROT_NONE,
			     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	cr_assert(m.fd >= 0 && room != MAP_FAILED && !ftruncate(m.fd, BYTES));
	room += (FERRY_LARGE_BYTES - (uintptr_t)room % FERRY_LARGE_BYTES) % FERRY_LARGE_BYTES;
	m.at = mmap(room + shift, BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, m.fd, 0);
	cr_assert_neq(m.at, MAP_FAILED);
	return m;
}

static bool is_empty(const struct memory *m)
{
	struct stat st;

	return !fstat(m->fd, &st) && !st.st_blocks;
}

struct filling {
	struct ferry_target_region region;
	struct ferry_target_config config;
	struct ferry_target *target;
};

static void prepare(struct filling *f, const struct memory *m)
{
	f->region = (struct ferry_target_region){
		.desc = {.page_bytes = PAGE, .n_pages = N_PAGES, .name = "memory"},
		.start = hva(m->at),
		.kind = FERRY_MAPPING_SHARED,
	};
	f->config = (struct ferry_target_config){.regions = &f->region,
						 .n_regions = 1,
						 .dense = dense,
						 .n_dense = FERRY_ARRAY_SIZE(dense)};
}

static void dial(struct filling *f, const struct source *s)
{
	struct ferry_failure why = {0};
	struct ferry_addr from;

	assert_ok(ferry_addr_parse(&from, s->address, &why), why);
	assert_ok(ferry_target_start(f->target, &why), why);
	assert_ok(ferry_target_dial(f->target, &from, -1, &why), why);
}

static void complete(struct filling *f)
{
	struct ferry_failure why = {0};
	int event;

	cr_assert_eq(ferry_target_push(f->target), 0);
	do {
		event = ferry_target_wait(f->target, 60000, -1, &why);
		cr_assert(event > FERRY_TARGET_NOTHING && event != FERRY_TARGET_FAILED, "%d: %s",
			  event, why.text);
	} while (event != FERRY_TARGET_COMPLETE);
}

/* How many of those that are to be made the kernel has. */
static uint64_t free_large_pages(void)
{
	struct memory m = new_memory(0);
	struct ferry_memory_file file = {.fd = m.fd};
	uint64_t n = 0;

	for (uint64_t b = 0; b < N_DENSE_BLOCKS; b++)
		n += pwrite(m.fd, "", 1, (off_t)(b * FERRY_LARGE_BYTES)) == 1 &&
		     !ferry_memory_file_enlarge(&file, b * FERRY_LARGE_BYTES);
	munmap(m.at, BYTES);
	close(m.fd);
	return n;
}

/* On a busy machine the kernel may have another number a moment later: then once more. */
static void make_target(struct filling *f, const struct memory *m)
{
	uint64_t end_ns = ferry_now_ns() + AWAIT_NS, n_free;
	struct ferry_failure why = {0};
	struct ferry_target_stats st;

	for (;;) {
		n_free = free_large_pages();
		prepare(f, m);
		assert_ok(ferry_uffd_open(&f->config.uffd, FERRY_TARGET_UFFD_FEATURES, &why), why);
		assert_ok(ferry_target_new(&f->target, &f->config, &why), why);
		ferry_target_stats(f->target, &st);
		if (st.large_pages == n_free || ferry_now_ns() > end_ns)
			break;
		ferry_target_abandon(f->target);
		ferry_target_free(f->target);
	}
	cr_assert_eq(st.large_pages, n_free);
}

static void fill_own(size_t shift)
{
	struct source s = {.kind = MEMORY_SHARED, .n_pages = N_PAGES};
	struct memory m = new_memory(shift);
	struct filling f;
	struct readers r = {0};
	struct ferry_target_stats st;

	source_start(&s);
	make_target(&f, &m);
	cr_assert(ferry_target_is_in_place(f.target, 0));
	dial(&f, &s);
	readers_start(&r, &s, m.at, 4 * N_PAGES);
	complete(&f);
	readers_join(&r);
	assert_all(&s, m.at);
	ferry_target_stats(f.target, &st);
	cr_assert_eq(st.pages_urgent + st.pages_pushed + st.pages_zero, N_PAGES);
	ferry_target_free(f.target);
	source_end(&s);
	munmap(m.at, BYTES);
	close(m.fd);
}

Test(engine_in_place, threads_read_while_it_is_filled)
{
	fill_own(0);
}

Test(engine_in_place, so_do_they_where_large_pages_cannot_be_mapped)
{
	fill_own(PAGE);
}

static void await_pages(struct filling *f, uint64_t n)
{
	struct ferry_target_stats st;

	do {
		sched_yield();
		ferry_target_stats(f->target, &st);
	} while (st.pages_urgent + st.pages_zero < n);
}

/* A guest that is only being loaded may have touched everything. */
Test(engine_in_place, who_ends_with_the_push_does_not_end_before)
{
	struct source s = {.kind = MEMORY_SHARED, .n_pages = N_PAGES};
	struct memory m = new_memory(0);
	struct filling f;
	struct ferry_failure why = {0};

	source_start(&s);
	prepare(&f, &m);
	f.config.ends_with_push = true;
	assert_ok(ferry_uffd_open(&f.config.uffd, FERRY_TARGET_UFFD_FEATURES, &why), why);
	assert_ok(ferry_target_new(&f.target, &f.config, &why), why);
	dial(&f, &s);
	for (uint64_t page = 0; page < N_PAGES; page++)
		cr_assert(page_is(&s, page, m.at + page * PAGE));
	await_pages(&f, N_PAGES);
	cr_assert_eq(ferry_target_wait(f.target, 60000, -1, &why), FERRY_TARGET_OPEN);
	cr_assert_eq(ferry_target_wait(f.target, 500, -1, &why), FERRY_TARGET_NOTHING, "%s", why.text);
	complete(&f);
	ferry_target_free(f.target);
	source_end(&s);
	munmap(m.at, BYTES);
	close(m.fd);
}

Test(engine_in_place, what_was_made_ready_is_given_back)
{
	struct memory m = new_memory(0);
	struct filling f;
	struct ferry_failure why = {0};

	prepare(&f, &m);
	assert_ok(ferry_uffd_open(&f.config.uffd, FERRY_TARGET_UFFD_FEATURES, &why), why);
	assert_ok(ferry_target_new(&f.target, &f.config, &why), why);
	cr_assert(!is_empty(&m));
	ferry_target_abandon(f.target);
	ferry_target_free(f.target);
	cr_assert(is_empty(&m));
	cr_assert_eq(m.at[FERRY_LARGE_BYTES], 0);
}

Test(engine_in_place, memory_that_has_pages_is_filled_another_way)
{
	struct source s = {.kind = MEMORY_SHARED, .n_pages = N_PAGES};
	struct memory m = new_memory(0);
	struct filling f;
	struct ferry_failure why = {0};

	m.at[5 * PAGE] = MARK;
	source_start(&s);
	prepare(&f, &m);
	assert_ok(ferry_uffd_open(&f.config.uffd, FERRY_TARGET_UFFD_FEATURES, &why), why);
	assert_ok(ferry_target_new(&f.target, &f.config, &why), why);
	cr_assert(!ferry_target_is_in_place(f.target, 0));
	dial(&f, &s);
	complete(&f);
	cr_assert_eq(m.at[5 * PAGE], MARK);
	cr_assert(page_is(&s, N_PAGES - 1, m.at + BYTES - PAGE));
	ferry_target_free(f.target);
	source_end(&s);
}

/* For this process alone the host says so: in a mount namespace of its own. */
static void switch_large_pages_off(void)
{
	static const char says[] = "always madvise [never]\n";
	char path[] = "/var/tmp/pageferry-never-XXXXXX";
	int fd = mkostemp(path, O_CLOEXEC);

	if (geteuid())
		cr_skip_test("not run as root");
	cr_assert(fd >= 0 && write(fd, says, sizeof(says) - 1) == sizeof(says) - 1);
	cr_assert_eq(unshare(CLONE_NEWNS), 0);
	cr_assert_eq(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL), 0);
	cr_assert_eq(mount(path, "/sys/kernel/mm/transparent_hugepage/enabled", NULL, MS_BIND, NULL),
		     0);
	unlink(path);
	close(fd);
}

Test(engine_in_place, no_large_page_is_made_where_the_host_has_none)
{
	struct memory m = new_memory(0);
	struct filling f;
	struct ferry_failure why = {0};

	switch_large_pages_off();
	prepare(&f, &m);
	assert_ok(ferry_uffd_open(&f.config.uffd, FERRY_TARGET_UFFD_FEATURES, &why), why);
	assert_ok(ferry_target_new(&f.target, &f.config, &why), why);
	cr_assert(!ferry_target_is_in_place(f.target, 0));
	cr_assert(is_empty(&m));
	ferry_target_abandon(f.target);
	ferry_target_free(f.target);
}

/* --- another process ------------------------------------------------------------------------- */

struct guest {
	const struct memory *m;
	const struct source *s;
};

/*
 * Writes to some pages, and checks all the others and its own. Only once it is told so it uses most of them:
 * these wait for the next target, however late the first one is ended.
 */
static int guest_child(int in, int out, void *arg)
{
	const struct guest *g = arg;

	parent_await(in);
	for (uint64_t p = 1; p < N_PAGES; p += 97) {
		if (!page_is(g->s, p, g->m->at + p * PAGE))
			return 1;
		memset(g->m->at + p * PAGE, MARK, PAGE);
	}
	parent_tell(out);
	for (uint64_t p = 0; p < N_PAGES; p++) {
		const uint8_t *at = g->m->at + p * PAGE;

		if (p == N_PAGES / 4)
			parent_await(in);
		if (p % 97 != 1 && !page_is(g->s, p, at))
			return 2;
		for (size_t i = 0; p % 97 == 1 && i < PAGE; i++)
			if (at[i] != MARK)
				return 3;
	}
	return 0;
}

Test(engine_in_place, only_with_its_record_can_another_go_on)
{
	struct source s = {.kind = MEMORY_SHARED, .n_pages = N_PAGES};
	struct memory m = new_memory(0);
	struct guest g = {&m, &s};
	struct ferry_layout layout = {.n_regions = 1,
				      .regions = {{.page_bytes = PAGE, .n_pages = N_PAGES}}};
	size_t kept_bytes = ferry_pager_kept_bytes(&layout);
	void *kept = mmap(NULL, kept_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	struct ferry_failure why = {0};
	struct child guest;
	struct filling f;
	uint64_t known;

	source_start(&s);
	guest = child_start(guest_child, &g);
	prepare(&f, &m);
	f.config.kept = kept;
	assert_ok(ferry_uffd_attach(&f.config.uffd, guest.pid, FERRY_TARGET_UFFD_FEATURES, &why), why);
	assert_ok(ferry_target_new(&f.target, &f.config, &why), why);
	cr_assert(ferry_target_is_in_place(f.target, 0));
	dial(&f, &s);
	child_tell(&guest);
	child_await(&guest);
	ferry_target_free(f.target);

	f.config.adopt = true;
	f.config.kept = NULL;
	assert_ok(ferry_uffd_adopt(&f.config.uffd, guest.pid, &why), why);
	cr_assert_eq(ferry_target_new(&f.target, &f.config, &why), -ENODATA, "%s", why.text);
	cr_assert(strstr(why.text, "record"), "%s", why.text);

	f.config.kept = kept;
	assert_ok(ferry_uffd_adopt(&f.config.uffd, guest.pid, &why), why);
	assert_ok(ferry_target_new(&f.target, &f.config, &why), why);
	{
		struct ferry_target_stats st;

		ferry_target_stats(f.target, &st);
		known = st.pages_known;
	}
	cr_assert(known >= N_PAGES / 97 && known < N_PAGES / 2, "%llu", (unsigned long long)known);
	child_tell(&guest);
	dial(&f, &s);
	complete(&f);
	child_expect_end(&guest);
	ferry_target_free(f.target);
	source_end(&s);
}
