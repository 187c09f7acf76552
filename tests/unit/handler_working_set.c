/* SPDX-License-Identifier: Apache-2.0 */
/* Working sets: put together, written, read. */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "handler/working_set.h"

#define PAGES 2048u

static struct ferry_working_set new_set(void)
{
	struct ferry_working_set w;

	cr_assert_eq(ferry_working_set_init(&w, PAGES * 4096), 0);
	return w;
}

static int parse(struct ferry_working_set *w, const char *text)
{
	struct ferry_failure f = {0};

	return ferry_working_set_parse(w, text, strlen(text), &f);
}

Test(handler_working_set, neighbours_of_a_phase_are_one_run)
{
	static const uint64_t pages[] = {7, 5, 6, 100, 4, PAGES /* outside */};
	struct ferry_working_set w = new_set();
	struct ferry_working_run *runs;
	size_t n;

	ferry_working_set_add(&w, pages, FERRY_ARRAY_SIZE(pages));
	cr_assert_eq(ferry_working_set_size(&w), 5);
	cr_assert_eq(ferry_working_set_runs(&w, &runs, &n), 0);
	cr_assert_eq(n, 2);
	cr_assert_eq(runs[0].first_page, 4);
	cr_assert_eq(runs[0].n_pages, 4);
	cr_assert_eq(runs[1].first_page, 100);
	free(runs);
	ferry_working_set_fini(&w);
}

Test(handler_working_set, later_phases_come_later)
{
	struct ferry_working_set w = new_set();
	struct ferry_working_run *runs;
	uint64_t pages[600];
	size_t n;

	for (uint64_t i = 0; i < 600; i++)
		pages[i] = 1999 - i;
	ferry_working_set_add(&w, pages, 600);
	cr_assert_eq(ferry_working_set_runs(&w, &runs, &n), 0);
	cr_assert_eq(n, 3);
	cr_assert_eq(runs[0].first_page, 1999 - 255);
	cr_assert_eq(runs[2].n_pages, 600 - 512);
	free(runs);
	ferry_working_set_fini(&w);
}

Test(handler_working_set, of_several_recordings_it_is_the_union)
{
	static const uint64_t a[] = {1, 2, 3}, b[] = {3, 4};
	struct ferry_working_set w = new_set(), again = new_set();
	char *text, *second;
	size_t len, len_again;

	ferry_working_set_add(&w, a, 3);
	ferry_working_set_add(&w, b, 2);
	cr_assert_eq(w.n_recordings, 2);
	cr_assert_eq(w.count[3], 2);
	cr_assert_eq(w.count[4], 1);
	cr_assert_eq(ferry_working_set_print(&w, &text, &len), 0);
	cr_assert_eq(parse(&again, text), 0);
	cr_assert_eq(ferry_working_set_print(&again, &second, &len_again), 0);
	cr_assert_str_eq(text, second);
	/* A file and a recording more. */
	cr_assert_eq(parse(&w, text), 0);
	cr_assert_eq(w.n_recordings, 4);
	cr_assert_eq(w.count[3], 4);
	free(text);
	free(second);
	ferry_working_set_fini(&w);
	ferry_working_set_fini(&again);
}

Test(handler_working_set, other_files_are_refused)
{
	static const char *const bad[] = {
		"",
		"\n",
		"end\n",
		"pageferry-working-set 2 ",
		"pageferry-working-set end\n",
		"pageferry-working-set 1 8388608 1\nend\n",
		"pageferry-working-set 3 8388608 1\nend\n",
		"pageferry-working-set 2 8388608 1end\n",
		"pageferry-working-set 2 4096 1\nend\n",
		"pageferry-working-set 2 8388608 1\n0 0 4096\nend\n",
		"pageferry-working-set 2 8388608 1\n0 8388608 4096 1\nend\n",
		"pageferry-working-set 2 8388608 1\n0 8384512 8192 1\nend\n",
		"pageferry-working-set 2 8388608 1\n0 1 4096 1\nend\n",
		"pageferry-working-set 2 8388608 1\n0 0 0 1\nend\n",
		"pageferry-working-set 2 8388608 1\n65536 0 4096 1\nend\n",
		"pageferry-working-set 2 8388608 1\n0 0 4096 0\nend\n",
		"pageferry-working-set 2 8388608 1\n0 99999999999999999999999 4096 1\nend\n",
		"pageferry-working-set 2 8388608 1\n-1 0 4096 1\nend\n",
		/* behind its end */
		"pageferry-working-set 2 8388608 1\nend\n0 0 4096 1\nend\n",
		"pageferry-working-set 2 8388608 1\n0 0 4096 1\nend\n\n",
	};

	for (size_t i = 0; i < FERRY_ARRAY_SIZE(bad); i++) {
		struct ferry_working_set w = new_set();

		cr_expect_eq(parse(&w, bad[i]), -EBADMSG, "%s", bad[i]);
		ferry_working_set_fini(&w);
	}
}

Test(handler_working_set, cut_short_anywhere_it_is_refused)
{
	static const char text[] = "pageferry-working-set 2 8388608 1\n"
				   "0 0 4096 1\n"
				   "0 16384 8192 1\n"
				   "end\n";
	struct ferry_failure f = {0};

	for (size_t n = 0; n < sizeof(text); n++) {
		struct ferry_working_set w = new_set();

		cr_expect_eq(ferry_working_set_parse(&w, text, n, &f),
			     n == sizeof(text) - 1 ? 0 : -EBADMSG, "%zu", n);
		ferry_working_set_fini(&w);
	}
	cr_expect(strstr(f.text, "cut short"), "%s", f.text);
}
