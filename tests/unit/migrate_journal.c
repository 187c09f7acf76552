/* SPDX-License-Identifier: Apache-2.0 */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
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

static void open_it(struct ferry_journal *j, const struct place *p, enum ferry_side side,
		    struct ferry_journal_entry *e)
{
	struct ferry_failure f = {0};

	cr_assert_eq(ferry_journal_open(j, p->state, side, p->sock, e, &f), 0, "%s", f.text);
}

static void begin(struct ferry_journal *j, const struct place *p, pid_t pid)
{
	struct ferry_journal_entry e;
	struct ferry_qemu q = {.pid = pid, .n_ram = 1};
	struct ferry_failure f = {0};

	snprintf(q.ram[0].desc.name, sizeof(q.ram[0].desc.name), "ram0");
	q.ram[0].desc.n_pages = 512;
	q.ram[0].desc.page_bytes = 4096;
	q.ram[0].start.v = 0x7f0000000000;
	q.ram[0].kind = FERRY_MAPPING_SHARED;
	open_it(j, p, FERRY_SIDE_TARGET, &e);
	cr_assert_eq(j->found, FERRY_KEEP_EMPTY);
	cr_assert_eq(e.phase, 0);
	e = (struct ferry_journal_entry){.n_bulk = 3, .session = {{7, 8}}};
	snprintf(e.addr.port, sizeof(e.addr.port), "4712");
	cr_assert_eq(ferry_journal_begin(j, FERRY_JOURNAL_BEGUN, &q, &e, &f), 0, "%s", f.text);
	e.phase = FERRY_JOURNAL_COMMITTED;
	cr_assert_eq(ferry_journal_update(j, &e, &f), 0, "%s", f.text);
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
	cr_assert_eq(ferry_journal_peek(p.state, FERRY_SIDE_TARGET, p.sock, &e), FERRY_KEEP_FOUND);
	cr_assert_str_eq(e.addr.port, "4712");
	open_it(&j, &p, FERRY_SIDE_TARGET, &e);
	cr_assert_eq(j.found, FERRY_KEEP_FOUND);
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
	cr_assert_eq(ferry_journal_peek(p.state, FERRY_SIDE_TARGET, p.sock, &e), FERRY_KEEP_EMPTY);
	remove_place(&p);
}

Test(journal, each_side_and_each_socket_has_its_own)
{
	struct ferry_journal_entry e;
	struct ferry_journal j;
	struct place p, q;

	make_place(&p);
	make_place(&q);
	begin(&j, &p, getpid());
	cr_assert_eq(ferry_journal_peek(p.state, FERRY_SIDE_SOURCE, p.sock, &e), FERRY_KEEP_EMPTY);
	cr_assert_eq(ferry_journal_peek(p.state, FERRY_SIDE_TARGET, q.sock, &e), FERRY_KEEP_EMPTY);
	ferry_journal_close(&j, true);
	remove_place(&p);
	remove_place(&q);
}

Test(journal, one_command_at_a_time_moves_a_guest)
{
	struct ferry_journal_entry e;
	struct ferry_journal j, other;
	struct ferry_failure f = {0};
	struct place p;

	make_place(&p);
	open_it(&j, &p, FERRY_SIDE_SOURCE, &e);
	cr_assert_eq(ferry_journal_open(&other, p.state, FERRY_SIDE_SOURCE, p.sock, &e, &f), -EBUSY);
	ferry_journal_close(&other, true);
	ferry_journal_close(&j, true);
	remove_place(&p);
}

Test(journal, one_that_makes_no_sense_is_nothing)
{
	struct ferry_journal_entry e;
	struct ferry_failure f = {0};
	struct ferry_journal j;
	struct place p;

	make_place(&p);
	for (int how = 0; how < 4; how++) {
		begin(&j, &p, getpid());
		ferry_journal_close(&j, false);
		open_it(&j, &p, FERRY_SIDE_TARGET, &e);
		cr_assert_eq(j.found, FERRY_KEEP_FOUND);
		if (how == 0)
			e.phase = FERRY_JOURNAL_COMPLETE + 1;
		else if (how == 1)
			e.n_bulk = FERRY_MAX_BULK + 1;
		else if (how == 2)
			e.n_regions = FERRY_MAX_REGIONS + 1;
		else
			e.n_regions = 0;
		cr_assert_eq(ferry_journal_update(&j, &e, &f), 0);
		ferry_journal_close(&j, false);
		open_it(&j, &p, FERRY_SIDE_TARGET, &e);
		cr_assert_eq(j.found, FERRY_KEEP_EMPTY);
		cr_assert_eq(e.phase, 0);
		ferry_journal_close(&j, true);
	}
	remove_place(&p);
}
