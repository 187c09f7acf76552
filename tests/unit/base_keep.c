/* SPDX-License-Identifier: Apache-2.0 */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/keep.h"

#define NOBODY 0x3fffff /* above any process's number */

struct record {
	struct ferry_keep_head head;
	int value;
};

static char dir[64], state[80];

static void set_up(void)
{
	snprintf(dir, sizeof(dir), "/tmp/ferry-keep-XXXXXX");
	cr_assert(mkdtemp(dir));
	snprintf(state, sizeof(state), "%s/state", dir);
}

static void tear_down(void)
{
	(void)rmdir(state);
	cr_assert_eq(rmdir(dir), 0, "something is left");
}

static void open_it(struct ferry_keep *k, const char *name)
{
	struct ferry_failure f = {0};

	cr_assert_eq(ferry_keep_open(k, state, name, &f), 0, "%s", f.text);
}

static void keep(const char *name, int value, pid_t pid)
{
	struct record r = {.value = value};
	struct ferry_keep k;

	open_it(&k, name);
	cr_assert_eq(ferry_keep_write(&k, &r, sizeof(r), pid), 0);
	if (pid == getpid())
		cr_assert_eq(ferry_keep_peek(state, name, &r, sizeof(r)), FERRY_KEEP_HELD);
	ferry_keep_close(&k, false);
}

TestSuite(keep, .init = set_up, .fini = tear_down);

Test(keep, what_was_written_is_found_again)
{
	struct record r = {0};
	struct ferry_keep k;

	keep("a", 5, getpid());
	cr_assert_eq(ferry_keep_peek(state, "a", &r, sizeof(r)), FERRY_KEEP_FOUND);
	cr_assert_eq(r.value, 5);
	open_it(&k, "a");
	r = (struct record){0};
	cr_assert_eq(ferry_keep_read(&k, &r, sizeof(r)), FERRY_KEEP_FOUND);
	cr_assert_eq(r.value, 5);
	cr_assert_eq(r.head.pid, getpid());
	ferry_keep_close(&k, true);
	ferry_keep_close(&k, true);
	cr_assert_eq(ferry_keep_peek(state, "a", &r, sizeof(r)), FERRY_KEEP_EMPTY);
}

/* Nobody may take that for none. */
Test(keep, what_cant_be_read_is_not_nothing)
{
	struct record r = {0};
	char path[300];

	cr_assert_eq(ferry_keep_peek(state, "a", &r, sizeof(r)), FERRY_KEEP_EMPTY);
	snprintf(path, sizeof(path), "%s/a", state);
	cr_assert_eq(mkdir(path, 0700), 0);
	cr_assert_eq(ferry_keep_peek(state, "a", &r, sizeof(r)), FERRY_KEEP_UNREAD);
	cr_assert_eq(rmdir(path), 0);
	cr_assert_eq(symlink("elsewhere", path), 0);
	cr_assert_eq(ferry_keep_peek(state, "a", &r, sizeof(r)), FERRY_KEEP_UNREAD);
	cr_assert_eq(unlink(path), 0);
}

/* Where in the file the record with @value has it. */
static off_t place_of(int fd, int value)
{
	off_t at = (off_t)offsetof(struct record, value);
	int there = 0;

	cr_assert_eq(pread(fd, &there, sizeof(there), at), sizeof(there));
	return there == value ? at : at + getpagesize();
}

Test(keep, killed_in_the_middle_of_a_write_the_record_before_counts)
{
	struct record r = {0};
	struct ferry_keep k;

	keep("a", 5, getpid());
	for (int value = 6; value < 9; value++) {
		int half = 77;

		keep("a", value, getpid());
		open_it(&k, "a");
		cr_assert_eq(ferry_keep_read(&k, &r, sizeof(r)), FERRY_KEEP_FOUND);
		cr_assert_eq(r.value, value);
		cr_assert_eq(pwrite(k.fd, &half, sizeof(half), place_of(k.fd, value)),
			     sizeof(half));
		cr_assert_eq(ferry_keep_read(&k, &r, sizeof(r)), FERRY_KEEP_FOUND);
		cr_assert_eq(r.value, value - 1);
		ferry_keep_close(&k, false);
		keep("a", value, getpid());
	}
	open_it(&k, "a");
	ferry_keep_close(&k, true);
}

Test(keep, one_at_a_time_has_it)
{
	struct ferry_failure f = {0};
	struct ferry_keep k, other;

	open_it(&k, "a");
	cr_assert_eq(ferry_keep_open(&other, state, "a", &f), -EBUSY);
	cr_assert(strstr(f.text, "another pageferry is at work"), "%s", f.text);
	cr_assert_eq(other.fd, -1);
	open_it(&other, "b");
	ferry_keep_close(&other, true);
	ferry_keep_close(&k, true);
	open_it(&k, "a");
	ferry_keep_close(&k, true);
}

/* The next one may take over what is there, but must not take the process for the one that it was. */
Test(keep, a_record_of_a_process_that_has_ended_is_another)
{
	struct record r;
	struct ferry_keep k;

	keep("a", 5, NOBODY);
	open_it(&k, "a");
	cr_assert_eq(ferry_keep_read(&k, &r, sizeof(r)), FERRY_KEEP_OTHER);
	ferry_keep_close(&k, true);
}

Test(keep, those_of_others_are_removed_only_when_their_process_has_ended)
{
	struct record r;
	struct ferry_keep k;

	keep("dead", 1, NOBODY);
	keep("live", 2, getpid());
	open_it(&k, "c");
	cr_assert_eq(ferry_keep_peek(state, "live", &r, sizeof(r)), FERRY_KEEP_FOUND);
	cr_assert_eq(ferry_keep_peek(state, "dead", &r, sizeof(r)), FERRY_KEEP_EMPTY);
	ferry_keep_close(&k, true);
	open_it(&k, "live");
	ferry_keep_close(&k, true);
}

/* From none that is free up to some. */
Test(keep, who_lacks_descriptors_to_look_removes_none)
{
	int lowest = dup(0);
	struct rlimit before, limit;
	struct record r;
	struct ferry_keep k;

	cr_assert(lowest >= 0 && !close(lowest) && !getrlimit(RLIMIT_NOFILE, &before));
	keep("live", 2, getpid());
	for (rlim_t n = 0; n < 8; n++) {
		limit = (struct rlimit){(rlim_t)lowest + n, before.rlim_max};
		cr_assert_eq(setrlimit(RLIMIT_NOFILE, &limit), 0);
		(void)ferry_keep_open(&k, state, "c", NULL);
		ferry_keep_close(&k, true);
		cr_assert_eq(setrlimit(RLIMIT_NOFILE, &before), 0);
		cr_assert_eq(ferry_keep_peek(state, "live", &r, sizeof(r)), FERRY_KEEP_FOUND,
			     "with %d descriptors", (int)n);
	}
	open_it(&k, "live");
	ferry_keep_close(&k, true);
}

struct file_record {
	struct ferry_keep_head head;
	struct ferry_keep_file file;
};

static void keep_file(const char *name, const char *path)
{
	struct file_record r = {0};
	struct ferry_keep k;

	ferry_keep_about(&r.file, path);
	open_it(&k, name);
	cr_assert_eq(ferry_keep_write(&k, &r, sizeof(r), 0), 0);
	ferry_keep_close(&k, false);
}

static void make(const char *path)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);

	cr_assert(fd >= 0);
	close(fd);
}

static bool exists(const char *name)
{
	char path[160];

	snprintf(path, sizeof(path), "%s/%s", state, name);
	return !access(path, F_OK);
}

Test(keep, those_of_files_are_removed_only_when_their_file_is_gone)
{
	char a[80], b[80], other[80];
	struct file_record r;
	struct ferry_keep k;

	snprintf(a, sizeof(a), "%s/a", dir);
	snprintf(b, sizeof(b), "%s/b", dir);
	snprintf(other, sizeof(other), "%s/other", dir);
	make(a);
	make(b);
	keep_file("of-a", a);
	keep_file("of-b", b);
	keep_file("of-none", "");
	keep("x", 1, NOBODY);
	cr_assert_eq(ferry_keep_peek(state, "of-a", &r, sizeof(r)), FERRY_KEEP_FOUND);
	cr_assert(exists("of-a") && exists("of-b") && exists("of-none"));
	/* One is removed, another file takes the place of the other one. */
	unlink(a);
	make(other);
	cr_assert_eq(rename(other, b), 0);
	cr_assert_eq(ferry_keep_peek(state, "of-a", &r, sizeof(r)), FERRY_KEEP_OTHER);
	open_it(&k, "y");
	cr_assert(!exists("of-a") && !exists("of-b") && !exists("x"));
	cr_assert(exists("of-none"), "what can't be told may be there");
	ferry_keep_close(&k, true);
	open_it(&k, "of-none");
	ferry_keep_close(&k, true);
	unlink(b);
}

Test(keep, empty_ones_are_removed_unless_somebody_holds_them)
{
	struct ferry_keep held, k;

	open_it(&k, "serve-0a");
	ferry_keep_close(&k, false);
	cr_assert(exists("serve-0a"));
	open_it(&k, "foreign");
	ferry_keep_close(&k, false);
	open_it(&held, "attach-12");
	cr_assert(!exists("serve-0a"));
	open_it(&k, "c");
	cr_assert(exists("attach-12"));
	cr_assert(exists("foreign"), "only its owner knows what it is for");
	ferry_keep_close(&k, true);
	ferry_keep_close(&held, true);
	open_it(&k, "foreign");
	ferry_keep_close(&k, true);
}

/* Many begin, end and are killed with the same few names: who holds a record has it under its name.
 */
static void churn(unsigned int seed)
{
	for (int i = 0; i < 500; i++) {
		struct record r = {0};
		struct ferry_keep k;
		char name[16];
		struct stat by_name, by_fd;

		snprintf(name, sizeof(name), "serve-%d", rand_r(&seed) % 3);
		if (ferry_keep_open(&k, state, name, &(struct ferry_failure){0}) < 0)
			continue;
		for (int look = 0; look < 3; look++) {
			if (stat(k.path, &by_name) < 0 || fstat(k.fd, &by_fd) < 0 ||
			    by_name.st_ino != by_fd.st_ino)
				_exit(1);
			if (look == 0)
				(void)ferry_keep_write(&k, &r, sizeof(r),
						       rand_r(&seed) % 2 ? NOBODY : getpid());
			else if (rand_r(&seed) % 2)
				(void)!ftruncate(k.fd, 0);
		}
		ferry_keep_close(&k, rand_r(&seed) % 2);
	}
	_exit(0);
}

Test(keep, who_holds_one_never_loses_it_to_a_sweep)
{
	struct ferry_keep k;
	int status;

	for (unsigned int i = 0; i < 6; i++) {
		pid_t pid = fork();

		cr_assert(pid >= 0);
		if (!pid)
			churn(i);
	}
	for (int i = 0; i < 6; i++) {
		cr_assert(wait(&status) > 0);
		cr_assert(WIFEXITED(status) && !WEXITSTATUS(status), "a record was lost");
	}
	for (int i = 0; i < 3; i++) {
		char name[16];

		snprintf(name, sizeof(name), "serve-%d", i);
		open_it(&k, name);
		ferry_keep_close(&k, true);
	}
}

Test(keep, a_damaged_one_is_nothing)
{
	for (int how = 0; how < 3; how++) {
		struct ferry_keep k;
		struct record r;

		keep("a", 5, getpid());
		open_it(&k, "a");
		if (how == 0)
			cr_assert_eq(ftruncate(k.fd, sizeof(r) - 1), 0);
		else if (how == 1)
			cr_assert_eq(pwrite(k.fd, "X", 1, 0), 1);
		else
			cr_assert_eq(pwrite(k.fd, "X", 1, 8), 1); /* of another size */
		cr_assert_eq(ferry_keep_read(&k, &r, sizeof(r)), FERRY_KEEP_EMPTY, "%d", how);
		ferry_keep_close(&k, true);
	}
}

/* Who can write there could make us take over what is not ours. */
Test(keep, a_directory_that_others_can_write_to_is_not_used)
{
	struct ferry_failure f = {0};
	struct ferry_keep k;

	cr_assert_eq(mkdir(state, 0700), 0);
	cr_assert_eq(chmod(state, 0777), 0);
	cr_assert_eq(ferry_keep_open(&k, state, "a", &f), -EPERM);
	cr_assert(strstr(f.text, "nothing can be kept in"), "%s", f.text);
	cr_assert_eq(k.fd, -1);
}
