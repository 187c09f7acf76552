/* SPDX-License-Identifier: Apache-2.0 */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/util.h"
#include "pageserver/source.h"

#define PAGE	  4096u
#define HUGE_PAGE (2u << 20)

static uint64_t allocated(int fd)
{
	struct stat st;

	cr_assert_eq(fstat(fd, &st), 0);
	return (uint64_t)st.st_blocks * 512;
}

static void fill(int fd, uint64_t page, char c)
{
	char bytes[PAGE];

	memset(bytes, c, PAGE);
	cr_assert_eq(pwrite(fd, bytes, PAGE, (off_t)(page * PAGE)), PAGE);
}

/* 100 pages, of which 10 to 19 and 50 have data ('a' + page), and 60 is a page of zeros. */
static int make_file(bool sealed)
{
	int fd = memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	cr_assert_geq(fd, 0);
	cr_assert_eq(ftruncate(fd, 100 * PAGE), 0);
	for (uint64_t i = 10; i < 20; i++)
		fill(fd, i, (char)('a' + i));
	fill(fd, 50, 'A' + 50);
	fill(fd, 60, 0);
	if (sealed)
		cr_assert_eq(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK), 0);
	return fd;
}

static void expect_data(struct ferry_source *s, uint64_t from, uint64_t first, uint64_t end)
{
	uint64_t a = 1, b = 2;

	cr_assert_eq(ferry_source_next_data(s, from, &a, &b), 0);
	cr_assert_eq(a, first, "from %llu: %llu", (unsigned long long)from, (unsigned long long)a);
	cr_assert_eq(b, end, "from %llu: %llu", (unsigned long long)from, (unsigned long long)b);
}

/* Reads one page and tells its first byte; all others must be the same. */
static int byte_of(struct ferry_source *s, uint64_t page)
{
	uint32_t bytes = ferry_source_desc(s)->page_bytes;
	char *scratch = malloc(bytes), c;
	const void *data;
	int rc = ferry_source_pages(s, page, 1, scratch, &data);

	if (rc < 0) {
		free(scratch);
		return rc;
	}
	cr_assert_eq(data == scratch, ferry_source_copies(s));
	c = *(const char *)data;
	cr_assert_eq(memcmp(data, (const char *)data + 1, bytes - 1), 0);
	cr_assert_eq(ferry_source_is_zero(s, page, data), !c);
	free(scratch);
	return c;
}

static void file_is_read_right(bool sealed)
{
	struct ferry_failure f = {0};
	struct ferry_source *s;
	int fd = make_file(sealed), mine = dup(fd);
	uint64_t before = allocated(mine);

	cr_assert_eq(ferry_source_open_fd(&s, "ram", fd, 0, 100 * PAGE, PAGE, &f), 0, "%s", f.text);
	cr_assert(ferry_source_copies(s));
	cr_assert_str_eq(ferry_source_desc(s)->name, "ram");
	cr_assert_eq(ferry_source_desc(s)->n_pages, 100);
	expect_data(s, 0, 10, 20);
	expect_data(s, 15, 15, 20);
	expect_data(s, 20, 50, 51);
	expect_data(s, 51, 60, 61);
	expect_data(s, 61, 100, 100);
	expect_data(s, 100, 100, 100);
	for (uint64_t i = 10; i < 20; i++)
		cr_assert_eq(byte_of(s, i), (int)('a' + i));
	cr_assert_eq(byte_of(s, 60), 0);
	cr_assert_eq(allocated(mine), before, "a hole was filled");
	ferry_source_free(s);
	close(mine);
}

Test(source, a_sealed_memfd_is_read_right_and_keeps_its_holes)
{
	file_is_read_right(true);
}

Test(source, a_file_is_read_right_and_keeps_its_holes)
{
	file_is_read_right(false);
}

Test(source, a_part_of_a_file_counts_from_its_own_beginning)
{
	struct ferry_failure f = {0};
	struct ferry_source *s;

	cr_assert_eq(
		ferry_source_open_fd(&s, "part", make_file(false), 15 * PAGE, 40 * PAGE, PAGE, &f),
		0);
	expect_data(s, 0, 0, 5);
	expect_data(s, 5, 35, 36);
	expect_data(s, 36, 40, 40);
	cr_assert_eq(byte_of(s, 1), 'a' + 16);
	ferry_source_free(s);
}

Test(source, pages_larger_than_the_files_own_are_data_when_any_part_is)
{
	struct ferry_failure f = {0};
	int fd = make_file(true), mine = dup(fd);
	uint64_t before = allocated(mine);
	struct ferry_source *s;
	char scratch[4 * PAGE];
	const void *data;

	cr_assert_eq(ferry_source_open_fd(&s, "ram", fd, 0, 100 * PAGE, 4 * PAGE, &f), 0);
	expect_data(s, 0, 2, 5);
	expect_data(s, 5, 12, 13);
	cr_assert_eq(ferry_source_pages(s, 12, 1, scratch, &data), 0);
	cr_assert_eq(((const char *)data)[2 * PAGE], 'A' + 50);
	cr_assert_eq(allocated(mine), before, "the hole's part of the page was filled");
	ferry_source_free(s);
	close(mine);
}

Test(source, a_truncated_file_is_an_error_and_no_signal)
{
	struct ferry_failure f = {0};
	int fd = make_file(false), mine = dup(fd);
	struct ferry_source *s;
	uint64_t a, b;

	cr_assert_eq(ferry_source_open_fd(&s, "ram", fd, 0, 100 * PAGE, PAGE, &f), 0);
	cr_assert_eq(ftruncate(mine, 15 * PAGE), 0);
	cr_assert_eq(byte_of(s, 14), 'a' + 14);
	cr_assert_eq(byte_of(s, 15), -EIO);
	cr_assert_eq(byte_of(s, 50), -EIO);
	cr_assert_eq(ferry_source_next_data(s, 0, &a, &b), -EIO, "what was cut off is no hole");
	ferry_source_free(s);
	close(mine);
}

Test(source, a_path_is_named_after_its_last_component_and_closed_again)
{
	char dir[] = "/tmp/ferry-source-XXXXXX", path[64];
	struct ferry_failure f = {0};
	struct ferry_source *s;
	int fd, next_fd;

	cr_assert_neq(mkdtemp(dir), NULL);
	snprintf(path, sizeof(path), "%s/guest.mem", dir);
	fd = open(path, O_CREAT | O_RDWR, 0600);
	fill(fd, 0, 'x');
	fill(fd, 3, 'y');
	cr_assert_eq(ferry_source_open_path(&s, path, &f), 0, "%s", f.text);
	cr_assert_str_eq(ferry_source_desc(s)->name, "guest.mem");
	cr_assert_eq(ferry_source_desc(s)->n_pages, 4);
	cr_assert_eq(ferry_source_desc(s)->page_bytes, PAGE);
	cr_assert_eq(byte_of(s, 3), 'y');
	ferry_source_free(s);
	cr_assert_eq(ftruncate(fd, 4 * PAGE - 1), 0);
	next_fd = dup(fd);
	close(next_fd);
	cr_assert_eq(ferry_source_open_path(&s, path, &f), -EINVAL);
	cr_assert_eq(f.consequence, FERRY_REFUSE);
	cr_assert(strstr(f.text, path));
	cr_assert_eq(ftruncate(fd, 0), 0);
	cr_assert_eq(ferry_source_open_path(&s, path, &f), -EINVAL);
	cr_assert_eq(ferry_source_open_path(&s, dir, &f), -ENODEV, "%s", f.text);
	unlink(path);
	cr_assert_eq(ferry_source_open_path(&s, path, &f), -ENOENT);
	rmdir(dir);
	close(fd);
	fd = open("/dev/null", O_RDONLY);
	cr_assert_eq(fd, next_fd - 1, "a descriptor leaked");
	close(fd);
}

Test(source, what_does_not_fit_is_refused)
{
	static const struct {
		uint64_t offset, bytes;
		uint32_t page_bytes;
	} bad[] = {{0, 0, PAGE},
		   {0, PAGE, PAGE / 2},
		   {0, 3 * PAGE, 3 * PAGE},
		   {0, 4 * FERRY_MAX_PAGE_BYTES, 2 * FERRY_MAX_PAGE_BYTES},
		   {0, PAGE + 1, PAGE},
		   {1, PAGE, PAGE},
		   {0, 101 * PAGE, PAGE},
		   {1 * PAGE, 100 * PAGE, PAGE},
		   {200 * PAGE, PAGE, PAGE}};

	for (size_t i = 0; i < FERRY_ARRAY_SIZE(bad); i++) {
		struct ferry_failure f = {0};
		struct ferry_source *s;

		cr_assert_eq(ferry_source_open_fd(&s, "ram", make_file(false), bad[i].offset,
						  bad[i].bytes, bad[i].page_bytes, &f),
			     -EINVAL, "case %zu", i);
		cr_assert_eq(f.consequence, FERRY_REFUSE);
	}
}

Test(source, memory_of_ours_knows_which_private_pages_were_touched)
{
	struct ferry_failure f = {0};
	struct ferry_source *s;
	char *p =
		mmap(NULL, 100 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	madvise(p, 100 * PAGE, MADV_NOHUGEPAGE);
	memset(p + 10 * PAGE, 'm', 5 * PAGE);
	cr_assert_eq(ferry_source_open_memory(&s, "mine", p, 100 * PAGE, PAGE, &f), 0);
	cr_assert_not(ferry_source_copies(s));
	expect_data(s, 0, 10, 15);
	expect_data(s, 15, 100, 100);
	cr_assert_eq(byte_of(s, 12), 'm');
	ferry_source_free(s);
	/* In groups: touched when any of them is. */
	cr_assert_eq(ferry_source_open_memory(&s, "mine", p, 100 * PAGE, 4 * PAGE, &f), 0);
	expect_data(s, 0, 2, 4);
	expect_data(s, 4, 25, 25);
	ferry_source_free(s);
	munmap(p, 100 * PAGE);
}

Test(source, shared_memory_of_ours_is_all_data)
{
	struct ferry_failure f = {0};
	struct ferry_source *s;
	char *p = mmap(NULL, 10 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	cr_assert_eq(ferry_source_open_memory(&s, "mine", p, 10 * PAGE, PAGE, &f), 0);
	expect_data(s, 0, 0, 10);
	ferry_source_free(s);
	munmap(p, 10 * PAGE);
}

/* A child with @p mapped as it is here. */
static pid_t fork_waiting(void)
{
	pid_t pid = fork();

	cr_assert_geq(pid, 0);
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		for (;;)
			pause();
	}
	return pid;
}

static void stop(pid_t pid)
{
	int status;

	kill(pid, SIGSTOP);
	cr_assert_eq(waitpid(pid, &status, WUNTRACED), pid);
	cr_assert(WIFSTOPPED(status));
}

static void end(pid_t pid)
{
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
}

Test(source, a_process_must_be_stopped_and_is_lost_when_it_dies)
{
	struct ferry_failure f = {0};
	char *p = mmap(NULL, 50 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	uint64_t start = (uintptr_t)p, a, b;
	struct ferry_source *s;
	pid_t pid;

	madvise(p, 50 * PAGE, MADV_NOHUGEPAGE);
	memset(p + 7 * PAGE, 'p', 3 * PAGE);
	pid = fork_waiting();
	cr_assert_eq(ferry_source_open_process(&s, "proc", pid, start, 50 * PAGE, PAGE, &f),
		     -EBUSY);
	cr_assert(strstr(f.text, "kill -STOP"));
	stop(pid);
	cr_assert_eq(ferry_source_open_process(&s, "proc", pid, start, 50 * PAGE, PAGE, &f), 0,
		     "%s", f.text);
	cr_assert(ferry_source_copies(s));
	expect_data(s, 0, 7, 10);
	expect_data(s, 10, 50, 50);
	cr_assert_eq(byte_of(s, 8), 'p');
	cr_assert_eq(byte_of(s, 20), 0);
	end(pid);
	cr_assert_lt(byte_of(s, 8), 0);
	cr_assert_eq(ferry_source_next_data(s, 0, &a, &b), -ESRCH);
	ferry_source_free(s);
	cr_assert_eq(ferry_source_open_process(&s, "proc", pid, start, 50 * PAGE, PAGE, &f),
		     -ESRCH);
	munmap(p, 50 * PAGE);
}

Test(source, what_a_process_can_not_be_read_from_is_an_error_and_never_zeros)
{
	struct ferry_failure f = {0};
	char *p = mmap(NULL, 50 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	char scratch[2 * PAGE];
	struct ferry_source *s;
	const void *data;
	pid_t pid;

	memset(p, 'p', 50 * PAGE);
	cr_assert_eq(mprotect(p + 30 * PAGE, PAGE, PROT_NONE), 0);
	pid = fork_waiting();
	stop(pid);
	cr_assert_eq(ferry_source_open_process(&s, "proc", pid, (uintptr_t)p, 50 * PAGE, PAGE, &f),
		     0, "%s", f.text);
	cr_assert_eq(byte_of(s, 29), 'p');
	cr_assert_eq(byte_of(s, 30), -EFAULT);
	cr_assert_eq(byte_of(s, 31), 'p');
	cr_assert_eq(ferry_source_pages(s, 29, 2, scratch, &data), -EFAULT, "half a run is none");
	ferry_source_free(s);
	end(pid);
	munmap(p, 50 * PAGE);
}

Test(source, memory_that_a_process_shares_keeps_its_holes)
{
	struct ferry_failure f = {0};
	int fd = make_file(false);
	uint64_t before = allocated(fd);
	char *p = mmap(NULL, 100 * PAGE, PROT_READ, MAP_SHARED, fd, 0);
	struct ferry_source *s;
	pid_t pid = fork_waiting();

	stop(pid);
	cr_assert_eq(ferry_source_open_process(&s, "proc", pid, (uintptr_t)p + 5 * PAGE, 60 * PAGE,
					       PAGE, &f),
		     0, "%s", f.text);
	if (geteuid()) {
		ferry_source_free(s);
		end(pid);
		cr_skip_test("needs root: /proc/PID/map_files");
	}
	expect_data(s, 0, 5, 15);
	cr_assert_eq(byte_of(s, 5), 'a' + 10);
	cr_assert_eq(allocated(fd), before);
	ferry_source_free(s);
	end(pid);
	munmap(p, 100 * PAGE);
	close(fd);
}

static long set_huge_pages(long n)
{
	FILE *file = fopen("/proc/sys/vm/nr_hugepages", "r+");
	long old = -1;

	if (!file)
		return -1;
	if (fscanf(file, "%ld", &old) != 1)
		old = -1;
	if (n >= 0 && old >= 0) {
		rewind(file);
		fprintf(file, "%ld\n", n);
	}
	fclose(file);
	return old;
}

Test(source, huge_pages_are_sent_in_place_and_their_holes_stay)
{
	struct ferry_failure f = {0};
	struct ferry_source *s;
	const void *data;
	long old = set_huge_pages(-1);
	int fd, mine;
	char *p;

	if (old < 0)
		cr_skip_test("cannot set vm.nr_hugepages");
	set_huge_pages(old + 6);
	fd = memfd_create("huge", MFD_CLOEXEC | MFD_HUGETLB | 21u << 26 /* 2 MiB */);
	if (fd < 0 || ftruncate(fd, 4 * HUGE_PAGE) < 0) {
		set_huge_pages(old);
		cr_skip_test("no huge pages of 2 MiB");
	}
	p = mmap(NULL, 4 * HUGE_PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
	if (p == MAP_FAILED || madvise(p, 3 * HUGE_PAGE, 23 /* MADV_POPULATE_WRITE */) < 0) {
		set_huge_pages(old);
		cr_skip_test("not enough memory in one piece for huge pages");
	}
	memset(p, 'h', HUGE_PAGE);
	p[2 * HUGE_PAGE - 1] = 1; /* the second page shows it at its end only */
	mine = dup(fd);
	cr_assert_eq(ferry_source_open_fd(&s, "huge", fd, 0, 4 * HUGE_PAGE, PAGE, &f), -EINVAL);
	fd = dup(mine);
	cr_assert_eq(ferry_source_open_fd(&s, "huge", fd, 0, 4 * HUGE_PAGE, HUGE_PAGE, &f), 0, "%s",
		     f.text);
	cr_assert_not(ferry_source_copies(s));
	cr_assert_eq(byte_of(s, 0), 'h');
	cr_assert_eq(ferry_source_pages(s, 0, 4, NULL, &data), 0);
	cr_assert_eq(ferry_source_is_zero(s, 1, (const char *)data + HUGE_PAGE), 0);
	cr_assert_eq(ferry_source_is_zero(s, 2, (const char *)data + 2 * HUGE_PAGE), 1);
	cr_assert_eq(ferry_source_is_zero(s, 3, (const char *)data + 3 * HUGE_PAGE), 1);
	cr_assert_eq(allocated(mine), 3ull * HUGE_PAGE, "the hole was filled");
	munmap(p, 4 * HUGE_PAGE);
	cr_assert_eq(ftruncate(mine, HUGE_PAGE), 0);
	cr_assert_eq(ferry_source_is_zero(s, 1, (const char *)data + HUGE_PAGE), -EIO);
	ferry_source_free(s);
	close(mine);
	set_huge_pages(old);
}

Test(is_zero, finds_a_single_bit_anywhere)
{
	_Alignas(64) uint8_t page[PAGE] = {0};

	cr_assert(ferry_is_zero(page, PAGE));
	cr_assert(ferry_is_zero(page, 0));
	for (size_t i = 0; i < PAGE; i++) {
		page[i] = (uint8_t)(1u << i % 8);
		cr_assert_not(ferry_is_zero(page, PAGE), "byte %zu", i);
		page[i] = 0;
	}
	page[64] = 1;
	cr_assert(ferry_is_zero(page, 64), "what lies behind is not its business");
}

Test(is_zero, takes_any_alignment)
{
	uint8_t bytes[PAGE + 64] = {0};

	for (size_t off = 1; off < 8; off++) {
		cr_assert(ferry_is_zero(bytes + off, PAGE));
		bytes[off + PAGE] = 1;
		cr_assert(ferry_is_zero(bytes + off, PAGE));
		bytes[off + PAGE] = 0;
	}
}
