/* SPDX-License-Identifier: Apache-2.0 */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
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
