// SPDX-License-Identifier: Apache-2.0
/* Finding and telling apart the mappings of a process, here our own. */
#include "uffd/maps.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/shm.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "uffd_support.h"

TestSuite(uffd_maps, .fini = huge_unreserve, .timeout = 60);

/* The mapping that begins at @at, found by @match. */
static struct ferry_mapping find_at(const void *at, const char *match)
{
	_cleanup_free_ struct ferry_mapping *v = NULL;
	struct ferry_failure f = {0};
	size_t n;

	assert_ok(ferry_maps_find(getpid(), match, &v, &n, &f), f);
	for (size_t i = 0; i < n; i++) {
		if (v[i].start.v == hva(at).v)
			return v[i];
	}
	cr_assert_fail("no mapping at %p matches '%s'", at, match);
	return (struct ferry_mapping){0};
}

static size_t count_matching(const char *match)
{
	_cleanup_free_ struct ferry_mapping *v = NULL;
	struct ferry_failure f = {0};
	size_t n;

	return ferry_maps_find(getpid(), match, &v, &n, &f) == 0 ? n : 0;
}

static void expect(const struct ferry_mapping *m, enum ferry_mapping_kind kind, uint64_t len,
		   uint32_t page_bytes, bool shared)
{
	cr_assert_eq(m->kind, kind, "'%s' is of kind %d", m->name, m->kind);
	cr_assert_eq(m->len, len, "'%s' has %" PRIu64 " bytes", m->name, m->len);
	cr_assert_eq(m->page_bytes, page_bytes);
	cr_assert_eq(m->shared, shared);
	cr_assert(m->readable && m->writable);
}

Test(uffd_maps, a_memfd_is_shared_memory_with_its_name)
{
	uint8_t *mem = map_shared(4 * PAGE, "pc.ram");
	struct ferry_mapping m = find_at(mem, "memfd:pc.ram");

	expect(&m, FERRY_MAPPING_SHARED, 4 * PAGE, PAGE, true);
	cr_assert_str_eq(m.name, "/memfd:pc.ram (deleted)");
	cr_assert_neq(m.ino, 0);
	cr_assert_eq(m.offset, 0);
}

Test(uffd_maps, a_memfd_of_huge_pages_is_hugetlb)
{
	_cleanup_close_ int fd = memfd_create("huge.ram", MFD_HUGETLB | MFD_CLOEXEC);
	struct ferry_mapping m;
	uint8_t *mem;

	huge_reserve(2);
	cr_assert_eq(ftruncate(fd, 2 * HUGE), 0);
	mem = mmap(NULL, 2 * HUGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	cr_assert_neq(mem, MAP_FAILED);
	m = find_at(mem, "huge.ram");
	expect(&m, FERRY_MAPPING_HUGETLB, 2 * HUGE, HUGE, true);
}

Test(uffd_maps, private_huge_pages_are_hugetlb)
{
	struct ferry_mapping m;
	uint8_t *mem;

	huge_reserve(1);
	mem = map_huge(HUGE);
	m = find_at(mem, "anon_hugepage");
	expect(&m, FERRY_MAPPING_HUGETLB, HUGE, HUGE, false);
}

/* Of any size and anywhere, as operators mount them for their guests. */
Test(uffd_maps, a_file_on_a_mounted_hugetlbfs_is_hugetlb)
{
	char dir[] = "/tmp/pageferry-huge-XXXXXX";
	_cleanup_close_ int fd = -1;
	struct ferry_mapping m;
	uint8_t *mem;

	huge_reserve(1);
	/* Mounts of a namespace of our own go with this process. */
	cr_assert_eq(unshare(CLONE_NEWNS), 0);
	cr_assert_eq(mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL), 0);
	cr_assert(mkdtemp(dir));
	cr_assert_eq(mount("huge", dir, "hugetlbfs", 0, "pagesize=2M"), 0);
	fd = open(dir, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
	cr_assert(fd >= 0, "%s", strerror(errno));
	cr_assert_eq(ftruncate(fd, HUGE), 0);
	mem = mmap(NULL, HUGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	cr_assert_neq(mem, MAP_FAILED);
	m = find_at(mem, dir);
	expect(&m, FERRY_MAPPING_HUGETLB, HUGE, HUGE, true);
	umount2(dir, MNT_DETACH);
	rmdir(dir);
}

Test(uffd_maps, anonymous_memory_is_found_by_the_name_it_was_given)
{
	uint8_t *mem = map_anon(3 * PAGE);
	struct ferry_mapping m;

	if (prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME, mem, 3 * PAGE, "guest-ram") < 0)
		cr_skip_test("this kernel has no names for anonymous memory");
	m = find_at(mem, "guest-ram");
	expect(&m, FERRY_MAPPING_ANON, 3 * PAGE, PAGE, false);
	cr_assert_str_eq(m.name, "[anon:guest-ram]");
	cr_assert_eq(m.ino, 0);
}

Test(uffd_maps, the_heap_is_anonymous)
{
	_cleanup_free_ struct ferry_mapping *v = NULL;
	struct ferry_failure f = {0};
	size_t n;

	assert_ok(ferry_maps_find(getpid(), "[stack]", &v, &n, &f), f);
	cr_assert_eq(n, 1);
	cr_assert_eq(v[0].kind, FERRY_MAPPING_ANON);
}

Test(uffd_maps, shared_anonymous_memory_is_shared_memory)
{
	uint8_t *mem =
		mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	struct ferry_mapping m = find_at(mem, "/dev/zero (deleted)");

	expect(&m, FERRY_MAPPING_SHARED, 2 * PAGE, PAGE, true);
}

Test(uffd_maps, shared_anonymous_memory_with_a_name_is_shared_memory)
{
	uint8_t *mem =
		mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	struct ferry_mapping m;

	if (prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME, mem, 2 * PAGE, "guest-ram") < 0)
		cr_skip_test("this kernel has no names for anonymous memory");
	m = find_at(mem, "[anon_shmem:guest-ram]");
	expect(&m, FERRY_MAPPING_SHARED, 2 * PAGE, PAGE, true);
}

Test(uffd_maps, a_sysv_segment_is_shared_memory)
{
	int id = shmget(IPC_PRIVATE, 2 * PAGE, 0600 | IPC_CREAT);
	struct ferry_mapping m;
	uint8_t *mem;

	cr_assert(id >= 0);
	mem = shmat(id, NULL, 0);
	shmctl(id, IPC_RMID, NULL);
	cr_assert_neq((intptr_t)mem, -1);
	m = find_at(mem, "/SYSV");
	expect(&m, FERRY_MAPPING_SHARED, 2 * PAGE, PAGE, true);
}

static int unlinked_file(const char *dir)
{
	char path[128];
	int fd;

	snprintf(path, sizeof(path), "%s/pageferry-test-XXXXXX", dir);
	fd = mkostemp(path, O_CLOEXEC);
	cr_assert(fd >= 0, "%s: %s", path, strerror(errno));
	unlink(path);
	cr_assert_eq(ftruncate(fd, 4 * PAGE), 0);
	return fd;
}

Test(uffd_maps, a_file_on_a_mounted_tmpfs_is_shared_memory)
{
	_cleanup_close_ int fd = unlinked_file("/dev/shm");
	uint8_t *mem = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 2 * PAGE);
	struct ferry_mapping m = find_at(mem, "/dev/shm/pageferry-test");

	expect(&m, FERRY_MAPPING_SHARED, 2 * PAGE, PAGE, true);
	cr_assert_eq(m.offset, 2 * PAGE);
}

Test(uffd_maps, a_file_on_a_disk_is_a_file)
{
	struct ferry_mapping m;
	_cleanup_close_ int fd = unlinked_file("/var/tmp");
	uint8_t *mem = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	m = find_at(mem, "pageferry-test");
	expect(&m, FERRY_MAPPING_FILE, 2 * PAGE, PAGE, true);
}

Test(uffd_maps, what_the_kernel_maps_into_every_process_cannot_be_served)
{
	_cleanup_free_ struct ferry_mapping *v = NULL;
	struct ferry_failure f = {0};
	size_t n;

	assert_ok(ferry_maps_find(getpid(), "[vdso]", &v, &n, &f), f);
	cr_assert_eq(v[0].kind, FERRY_MAPPING_FILE);
}

/* A flag on one half makes two mappings of one, as VMMs do with MADV_DONTFORK and MADV_DONTDUMP. */
Test(uffd_maps, neighbours_that_continue_each_other_are_one)
{
	uint8_t *mem = map_shared(8 * PAGE, "split.ram");
	struct ferry_mapping m;

	cr_assert_eq(madvise(mem + 2 * PAGE, 3 * PAGE, MADV_DONTDUMP), 0);
	cr_assert_eq(count_matching("split.ram"), 1);
	m = find_at(mem, "split.ram");
	expect(&m, FERRY_MAPPING_SHARED, 8 * PAGE, PAGE, true);
}

Test(uffd_maps, neighbours_with_other_rights_stay_apart)
{
	uint8_t *mem = map_shared(8 * PAGE, "rights.ram");
	struct ferry_mapping m;

	cr_assert_eq(mprotect(mem + 4 * PAGE, 4 * PAGE, PROT_READ), 0);
	cr_assert_eq(count_matching("rights.ram"), 2);
	m = find_at(mem + 4 * PAGE, "rights.ram");
	cr_assert(m.readable && !m.writable);
	cr_assert_eq(m.offset, 4 * PAGE);
}

Test(uffd_maps, neighbours_out_of_order_in_the_file_stay_apart)
{
	_cleanup_close_ int fd = memfd_create("order.ram", MFD_CLOEXEC);
	uint8_t *mem = map_anon(4 * PAGE);

	cr_assert_eq(ftruncate(fd, 4 * PAGE), 0);
	for (unsigned int i = 0; i < 2; i++)
		cr_assert_neq(mmap(mem + i * 2 * PAGE, 2 * PAGE, PROT_READ | PROT_WRITE,
				   MAP_SHARED | MAP_FIXED, fd, (1 - i) * 2 * PAGE),
			      MAP_FAILED);
	cr_assert_eq(count_matching("order.ram"), 2);
}

Test(uffd_maps, a_gap_keeps_mappings_apart)
{
	uint8_t *mem = map_shared(5 * PAGE, "gap.ram");

	munmap(mem + 2 * PAGE, PAGE);
	cr_assert_eq(count_matching("gap.ram"), 2);
}

Test(uffd_maps, mappings_come_in_the_order_of_their_addresses)
{
	_cleanup_free_ struct ferry_mapping *v = NULL;
	struct ferry_failure f = {0};
	size_t n;

	assert_ok(ferry_maps_find(getpid(), "", &v, &n, &f), f);
	cr_assert_gt(n, 5);
	for (size_t i = 1; i < n; i++)
		cr_assert(v[i - 1].start.v + v[i - 1].len <= v[i].start.v);
}

Test(uffd_maps, when_nothing_matches_the_text_names_what_is_there)
{
	uint8_t *mem = map_shared(64u << 20, "the-largest.ram");
	struct ferry_mapping *v = NULL;
	struct ferry_failure f = {0};
	size_t n = 77;

	cr_assert(mem);
	cr_assert_eq(ferry_maps_find(getpid(), "no such name", &v, &n, &f), -ENOENT);
	cr_assert(strstr(f.text, "no such name"), "%s", f.text);
	cr_assert(strstr(f.text, "/memfd:the-largest.ram (deleted)' (65536 KiB)"), "%s", f.text);
	cr_assert_eq(f.consequence, FERRY_REFUSE);
	cr_assert_null(v);
	cr_assert_eq(n, 77, "an output was written on failure");
}

static int do_nothing(int in, int out, void *arg)
{
	(void)out;
	(void)arg;
	parent_await(in);
	return 0;
}

Test(uffd_maps, a_process_that_has_ended_is_an_error)
{
	struct child c = child_start(do_nothing, NULL);
	struct ferry_mapping *v;
	struct ferry_failure f = {0};
	size_t n;

	/* Once while it waits to be reaped, when it still has a number, and once after. */
	kill(c.pid, SIGKILL);
	await_state(c.pid, 'Z');
	cr_assert_eq(ferry_maps_find(c.pid, "", &v, &n, &f), -ESRCH);
	child_end(&c);
	cr_assert_eq(ferry_maps_find(c.pid, "", &v, &n, &f), -ESRCH);
	cr_assert(strstr(f.text, "no process"), "%s", f.text);
}

static int find_as_nobody(int in, int out, void *arg)
{
	struct ferry_failure f = {0};
	struct ferry_mapping *v;
	size_t n;
	int r;

	(void)in;
	drop_to_nobody();
	r = ferry_maps_find(*(pid_t *)arg, "", &v, &n, &f);
	if (write(out, f.text, strlen(f.text)) < 0)
		return 1;
	return -r;
}

Test(uffd_maps, without_permission_the_text_says_how_to_get_it)
{
	pid_t me = getpid();
	struct child c = child_start(find_as_nobody, &me);
	char text[FERRY_FAILURE_TEXT_MAX] = "";

	cr_assert(read(c.from, text, sizeof(text) - 1) > 0);
	cr_assert_eq(child_end(&c), EACCES);
	cr_assert(strstr(text, "as root"), "%s", text);
}
