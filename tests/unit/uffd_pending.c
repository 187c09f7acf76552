/* SPDX-License-Identifier: Apache-2.0 */
#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "trace/reader.h"
#include "uffd/pending.h"

struct world {
	struct ferry_pending *p;
	struct ferry_histogram fault_ns, local_ns;
	struct ferry_trace *trace;
	struct ferry_trace_reader *reader;
};

static struct world make(void)
{
	const struct ferry_trace_ring_config ring = {.kind = FERRY_RING_FAULT, .n_slots = 8192};
	const struct ferry_trace_config config = {.rings = &ring, .n_rings = 1, .pid = getpid()};
	struct world w = {.p = calloc(1, sizeof(*w.p))};
	int fd;

	cr_assert_eq(ferry_trace_new(&w.trace, &config, NULL), 0);
	fd = ferry_trace_fd(w.trace);
	cr_assert_eq(ferry_trace_reader_open(&w.reader, fd, NULL), 0);
	close(fd);
	w.p->ring = ferry_trace_ring(w.trace, FERRY_RING_FAULT, 0);
	return w;
}

static void use(struct world *w)
{
	w->p->fault_ns = &w->fault_ns;
	w->p->local_ns = &w->local_ns;
}

static void done(struct world *w)
{
	ferry_trace_reader_close(w->reader);
	ferry_trace_free(w->trace);
	free(w->p);
}

static struct ferry_pending_message message(uint64_t page, uint64_t read_ns, uint32_t thread)
{
	return (struct ferry_pending_message){
		.page = page, .read_ns = read_ns, .thread = thread, .batch = 1};
}

static void read_page(struct world *w, uint64_t page, uint64_t at)
{
	struct ferry_pending_message m = message(page, at, 7);

	ferry_pending_read(w->p, &m);
}

static void send_page(struct world *w, uint64_t page, uint64_t id, uint64_t at)
{
	static struct ferry_page_request r;

	r = (struct ferry_page_request){.request_id = id, .n_runs = 1, .runs = {{0, 1, page}}};
	ferry_pending_sent(w->p, &r, at);
}

static void answer(struct world *w, uint64_t first, uint32_t n, uint64_t received, uint64_t placed)
{
	struct ferry_page_run run = {
		.run = {.first_page = first, .n_pages = n}, .received_ns = 1, .answered_ns = 2};

	ferry_pending_answered(w->p, &run, received, placed, 0);
}

static struct ferry_trace_record next(struct world *w)
{
	struct ferry_trace_record rec;
	uint32_t ring;

	cr_assert(ferry_trace_reader_next(w->reader, &rec, &ring));
	return rec;
}

static void expect_nothing(struct world *w)
{
	struct ferry_trace_record rec;
	uint32_t ring;

	cr_assert_not(ferry_trace_reader_next(w->reader, &rec, &ring));
}

Test(uffd_pending, a_fault_is_told_once_with_all_its_times)
{
	struct world w = make();
	struct ferry_trace_record rec;

	use(&w);
	read_page(&w, 5, 100);
	send_page(&w, 5, 1, 110);
	expect_nothing(&w);
	answer(&w, 5, 1, 150, 160);
	rec = next(&w);
	cr_assert_eq(rec.type, FERRY_TRACE_FAULT);
	cr_assert_eq(rec.time_ns, 100);
	cr_assert_eq(rec.fault.page, 5);
	cr_assert_eq(rec.fault.thread, 7);
	cr_assert_eq(rec.fault.first_sent_ns, 110);
	cr_assert_eq(rec.fault.sent_ns, 110);
	cr_assert_eq(rec.fault.source_received_ns, 1);
	cr_assert_eq(rec.fault.received_ns, 150);
	cr_assert_eq(rec.fault.placed_ns, 160);
	cr_assert_eq(rec.fault.request_id, 1);
	cr_assert_eq(rec.flags, 0);
	cr_assert_eq(w.fault_ns.n, 1);
	cr_assert_eq(w.fault_ns.max_ns, 60);
	answer(&w, 5, 1, 170, 180);
	expect_nothing(&w);
	cr_assert_eq(w.p->n, 0);
	done(&w);
}

Test(uffd_pending, who_comes_later_is_told_apart_and_ends_with_the_first)
{
	struct world w = make();
	struct ferry_pending_message m = message(5, 120, 8);
	struct ferry_trace_record join, rec;

	use(&w);
	read_page(&w, 5, 100);
	ferry_pending_join(w.p, &m);
	answer(&w, 5, 1, 150, 160);
	join = next(&w);
	rec = next(&w);
	cr_assert_eq(join.type, FERRY_TRACE_JOIN);
	cr_assert_eq(join.time_ns, 120);
	cr_assert_eq(join.fault.thread, 8);
	cr_assert_eq(join.fault.id, rec.fault.id);
	cr_assert_eq(rec.fault.joins, 1);
	cr_assert_eq(w.p->n, 0);
	done(&w);
}

Test(uffd_pending, the_first_to_wait_for_a_swept_page_begins_its_fault)
{
	struct world w = make();
	struct ferry_pending_message m = message(5, 120, 8);

	use(&w);
	ferry_pending_join(w.p, &m);
	cr_assert_eq(w.p->n, 1);
	answer(&w, 5, 1, 150, 160);
	cr_assert_eq(next(&w).flags, FERRY_FAULT_F_SWEPT);
	done(&w);
}

Test(uffd_pending, a_pushed_page_ends_its_fault_and_the_late_answer_changes_nothing)
{
	struct world w = make();
	struct ferry_trace_record rec;

	use(&w);
	read_page(&w, 5, 100);
	send_page(&w, 5, 1, 110);
	ferry_pending_settle(w.p, 0, 5, 130, FERRY_FAULT_F_PUSHED);
	rec = next(&w);
	cr_assert_eq(rec.flags, FERRY_FAULT_F_PUSHED);
	cr_assert_eq(rec.fault.placed_ns, 130);
	cr_assert_eq(rec.fault.received_ns, 0);
	answer(&w, 5, 1, 150, 160);
	ferry_pending_settle(w.p, 0, 6, 130, FERRY_FAULT_F_PUSHED);
	expect_nothing(&w);
	cr_assert_eq(w.fault_ns.n, 1);
	cr_assert_eq(w.fault_ns.max_ns, 30);
	done(&w);
}

Test(uffd_pending, only_a_new_connection_makes_a_second_sending)
{
	struct world w = make();
	struct ferry_layout layout = {.n_regions = 1, .regions = {{.n_pages = 64}}};
	struct ferry_pager pager;
	struct ferry_trace_record rec;

	use(&w);
	cr_assert_eq(ferry_pager_init(&pager, &layout), 0);
	read_page(&w, 5, 100);
	send_page(&w, 5, 1, 110);
	send_page(&w, 5, 2, 115);
	ferry_pending_prune(w.p, &pager, 3, 200);
	send_page(&w, 5, 3, 210);
	answer(&w, 5, 1, 250, 260);
	rec = next(&w);
	cr_assert_eq(rec.flags, FERRY_FAULT_F_RESENT);
	cr_assert_eq(rec.fault.first_sent_ns, 110);
	cr_assert_eq(rec.fault.sent_ns, 210);
	cr_assert_eq(rec.fault.sends, 2);
	cr_assert_eq(rec.fault.request_id, 3);
	ferry_pager_fini(&pager);
	done(&w);
}

Test(uffd_pending, what_came_while_there_was_no_connection_is_forgotten)
{
	struct world w = make();
	struct ferry_layout layout = {.n_regions = 1, .regions = {{.n_pages = 64}}};
	struct ferry_run known = {.first_page = 5, .n_pages = 2};
	struct ferry_pager pager;

	use(&w);
	cr_assert_eq(ferry_pager_init(&pager, &layout), 0);
	for (uint64_t page = 4; page < 8; page++)
		read_page(&w, page, 100);
	ferry_pager_placed(&pager, &known);
	ferry_pending_prune(w.p, &pager, 1, 200);
	cr_assert_eq(w.p->n, 2);
	cr_assert_eq(next(&w).flags, FERRY_FAULT_F_FOUND);
	cr_assert_eq(next(&w).flags, FERRY_FAULT_F_FOUND);
	ferry_pending_end(w.p);
	cr_assert_eq(next(&w).flags, FERRY_FAULT_F_UNANSWERED);
	cr_assert_eq(next(&w).fault.placed_ns, 0);
	cr_assert_eq(w.p->n, 0);
	ferry_pager_fini(&pager);
	done(&w);
}

Test(uffd_pending, local_answers_have_a_histogram_of_their_own)
{
	struct world w = make();
	struct ferry_pending_message m = message(5, 100, 7);
	struct ferry_trace_record rec;

	use(&w);
	ferry_pending_local(w.p, &m, 104, FERRY_FAULT_F_ZERO);
	rec = next(&w);
	cr_assert_eq(rec.flags, FERRY_FAULT_F_LOCAL | FERRY_FAULT_F_ZERO);
	cr_assert_eq(w.local_ns.max_ns, 4);
	cr_assert_eq(w.fault_ns.n, 0);
	done(&w);
}

Test(uffd_pending, faults_beyond_the_table_are_told_to_be_missing)
{
	struct world w = make();
	struct ferry_trace_record rec;

	use(&w);
	for (uint64_t page = 0; page < FERRY_MAX_PENDING + 3; page++)
		read_page(&w, page, 100);
	cr_assert_eq(w.p->n, FERRY_MAX_PENDING);
	expect_nothing(&w);
	answer(&w, FERRY_MAX_PENDING, 1, 150, 160);
	expect_nothing(&w);
	answer(&w, 0, 1, 150, 160);
	cr_assert_eq(next(&w).type, FERRY_TRACE_FAULT);
	rec = next(&w);
	cr_assert_eq(rec.type, FERRY_TRACE_LOST);
	cr_assert_eq(rec.lost.n, 3);
	answer(&w, 1, 1, 150, 160);
	cr_assert_eq(next(&w).type, FERRY_TRACE_FAULT);
	expect_nothing(&w);
	done(&w);
}

/* The table against a plain array, nearly full, in random order. */
Test(uffd_pending, every_page_is_found_again_however_full_it_is)
{
	enum { PAGES = 100000 };
	static uint64_t waiting[PAGES]; /* since when; 0 for not */
	struct world w = make();
	uint64_t now = 1, n = 0, ended = 0;

	use(&w);
	srand(1);
	for (int i = 0; i < 200000; i++) {
		uint64_t page = (uint64_t)rand() % PAGES;

		now++;
		if (!waiting[page] && n < FERRY_MAX_PENDING && rand() % 3) {
			read_page(&w, page, now);
			waiting[page] = now;
			n++;
		} else {
			uint64_t from = page;

			while (!waiting[page]) {
				page = (page + 1) % PAGES;
				if (page == from)
					break;
			}
			if (!waiting[page])
				continue;
			answer(&w, page, 1, now, now + 1);
			cr_assert_eq(next(&w).time_ns, waiting[page]);
			waiting[page] = 0;
			n--;
			ended++;
		}
		cr_assert_eq(w.p->n, n);
	}
	cr_assert_eq(w.fault_ns.n, ended);
	done(&w);
}
