/* SPDX-License-Identifier: Apache-2.0 */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "migrate/journal.h"

struct place {
	char dir[64], sock[80], state[80];
};

static void make_place(struct place *p)
{
	snprintf(p->dir, sizeof(p->dir), "/tmp/ferry-journal-XXXXXX");
	cr_assert(mkdtemp(p->dir));
	snprintf(p->sock, sizeof(p->sock), "%s/qmp", p->dir);
	snprintf(p->state, sizeof(p->state), "%s/state", p->dir);
	close(open(p->sock, O_CREAT | O_WRONLY, 0600));
}

static void remove_place(const struct place *p)
{
	unlink(p->sock);
	rmdir(p->state);
	cr_assert_eq(rmdir(p->dir), 0, "something is left");
}

static void begin(struct ferry_journal *j, const struct place *p, pid_t pid)
{
	struct ferry_journal_entry e = {.n_bulk = 3, .session = {{7, 8}}};
	struct ferry_qemu q = {.pid = pid, .n_ram = 1};
	struct ferry_failure f = {0};

	snprintf(q.ram[0].desc.name, sizeof(q.ram[0].desc.name), "ram0");
	q.ram[0].desc.n_pages = 512;
	q.ram[0].desc.page_bytes = 4096;
	q.ram[0].start.v = 0x7f0000000000;
	q.ram[0].kind = FERRY_MAPPING_SHARED;
	*j = FERRY_JOURNAL_NONE;
	cr_assert_eq(ferry_journal_begin(j, p->state, FERRY_SIDE_TARGET, p->sock, &q, &e, &f), 0,
		     "%s", f.text);
	e.phase = FERRY_JOURNAL_COMMITTED;
	ferry_journal_update(j, &e);
}

Test(journal, what_was_written_is_found_again)
{
	struct ferry_journal_entry e;
	struct ferry_journal j;
	struct ferry_qemu q;
	struct place p;

	make_place(&p);
	begin(&j, &p, getpid());
	ferry_journal_close(&j, false);
	cr_assert(ferry_journal_load(&j, p.state, FERRY_SIDE_TARGET, p.sock, &e));
	cr_assert_eq(e.phase, FERRY_JOURNAL_COMMITTED);
	cr_assert_eq(e.n_bulk, 3);
	cr_assert_eq(e.session.bytes[1], 8);
	ferry_journal_qemu(&e, &q);
	cr_assert_eq(q.pid, getpid());
	cr_assert_eq(q.n_ram, 1);
	cr_assert_str_eq(q.ram[0].desc.name, "ram0");
	cr_assert_eq(q.ram[0].start.v, 0x7f0000000000);
	cr_assert_eq(q.ram_bytes, 512 * 4096);
	ferry_qemu_fini(&q);
	ferry_journal_close(&j, true);
	cr_assert_not(ferry_journal_load(&j, p.state, FERRY_SIDE_TARGET, p.sock, &e));
	remove_place(&p);
}

Test(journal, each_side_and_each_socket_has_its_own)
{
	struct ferry_journal_entry e;
	struct ferry_journal j, other;
	struct place p, q;

	make_place(&p);
	make_place(&q);
	begin(&j, &p, getpid());
	cr_assert_not(ferry_journal_load(&other, p.state, FERRY_SIDE_SOURCE, p.sock, &e));
	cr_assert_not(ferry_journal_load(&other, p.state, FERRY_SIDE_TARGET, q.sock, &e));
	ferry_journal_close(&j, true);
	remove_place(&p);
	remove_place(&q);
}

Test(journal, one_of_a_process_that_has_ended_is_removed)
{
	struct ferry_journal_entry e;
	struct ferry_journal j;
	struct place p;

	make_place(&p);
	begin(&j, &p, 0x3fffff);
	ferry_journal_close(&j, false);
	cr_assert_not(ferry_journal_load(&j, p.state, FERRY_SIDE_TARGET, p.sock, &e));
	remove_place(&p);
}

Test(journal, those_of_others_are_removed_only_when_their_process_has_ended)
{
	struct ferry_journal_entry e;
	struct ferry_journal live, dead, j;
	struct place p, q, r;

	make_place(&p);
	make_place(&q);
	make_place(&r);
	snprintf(q.state, sizeof(q.state), "%s", p.state);
	snprintf(r.state, sizeof(r.state), "%s", p.state);
	begin(&live, &p, getpid());
	begin(&dead, &q, 0x3fffff);
	cr_assert_not(ferry_journal_load(&j, p.state, FERRY_SIDE_TARGET, r.sock, &e));
	cr_assert_eq(access(live.path, F_OK), 0);
	cr_assert_eq(access(dead.path, F_OK), -1);
	ferry_journal_close(&live, true);
	ferry_journal_close(&dead, true);
	unlink(q.sock);
	rmdir(q.dir);
	unlink(r.sock);
	rmdir(r.dir);
	remove_place(&p);
}

Test(journal, a_damaged_one_is_removed)
{
	struct ferry_journal_entry e;
	struct ferry_journal j;
	struct place p;

	make_place(&p);
	for (int how = 0; how < 3; how++) {
		struct stat st;

		begin(&j, &p, getpid());
		cr_assert_eq(fstat(j.fd, &st), 0);
		if (how == 0)
			cr_assert_eq(ftruncate(j.fd, st.st_size - 1), 0);
		else if (how == 1)
			cr_assert_eq(pwrite(j.fd, "X", 1, 0), 1);
		else
			cr_assert_eq(pwrite(j.fd, "\xff\xff\xff\xff", 4, 8), 4); /* the phase */
		ferry_journal_close(&j, false);
		cr_assert_not(ferry_journal_load(&j, p.state, FERRY_SIDE_TARGET, p.sock, &e));
	}
	remove_place(&p);
}

/* Who can write there could make us take over what is not ours. */
Test(journal, a_directory_that_others_can_write_to_is_not_used)
{
	struct ferry_journal_entry e = {.n_bulk = 1};
	struct ferry_journal j = FERRY_JOURNAL_NONE;
	struct ferry_qemu q = {.pid = getpid(), .n_ram = 1};
	struct ferry_failure f = {0};
	struct place p;

	make_place(&p);
	cr_assert_eq(mkdir(p.state, 0700), 0);
	cr_assert_eq(chmod(p.state, 0777), 0);
	cr_assert_eq(ferry_journal_begin(&j, p.state, FERRY_SIDE_TARGET, p.sock, &q, &e, &f),
		     -EPERM);
	cr_assert(strstr(f.text, "nothing can be kept in"), "%s", f.text);
	cr_assert_eq(j.fd, -1);
	ferry_journal_update(&j, &e);
	ferry_journal_close(&j, true);
	remove_place(&p);
}
