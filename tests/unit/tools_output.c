/* SPDX-License-Identifier: Apache-2.0 */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "tools/bar.h"
#include "tools/json.h"
#include "tools/writer.h"

Test(bar, percent_is_between_0_and_100)
{
	struct progress p = {0};

	cr_assert_eq(progress_percent(&p), 0);
	p = (struct progress){.pages_total = 200, .pages_known = 50};
	cr_assert_eq(progress_percent(&p), 25);
	p.pages_known = 200;
	cr_assert_eq(progress_percent(&p), 100);
	p.pages_known = 300;
	cr_assert_eq(progress_percent(&p), 100);
}

Test(bar, figures_have_the_unit_that_fits)
{
	char out[FIGURE_MAX];

	cr_assert_str_eq(format_bytes(0, out), "0 bytes");
	cr_assert_str_eq(format_bytes(1023, out), "1023 bytes");
	cr_assert_str_eq(format_bytes(1024, out), "1.0 KiB");
	cr_assert_str_eq(format_bytes(UINT64_C(3) << 29, out), "1.5 GiB");
	cr_assert(strlen(format_bytes(UINT64_MAX, out)) < FIGURE_MAX);
	cr_assert_str_eq(format_duration(0, out), "0 us");
	cr_assert_str_eq(format_duration(999000, out), "999 us");
	cr_assert_str_eq(format_duration(1000000, out), "1.00 ms");
	cr_assert_str_eq(format_duration(1500000000, out), "1.50 s");
	cr_assert_str_eq(format_duration(UINT64_C(61) * 1000000000, out), "1 min 1 s");
	cr_assert(strlen(format_duration(UINT64_MAX, out)) < FIGURE_MAX);
}

Test(bar, the_line_has_all_and_fits_the_terminal)
{
	struct progress p = {
		.pages_total = 1000,
		.pages_known = 500,
		.wire_bytes = 1,
		.bytes_per_second = 10u << 20,
		.pages_per_second = 5,
		.faults = 12,
		.p50_ns = 100000,
		.p99_ns = 2000000,
	};
	char line[300];

	bar_format(&p, "attach: push", 200, line, sizeof(line));
	cr_assert_str_eq(line, "attach: push [##########..........] 50.0 %  10.0 MiB/s  12 faults  "
			       "p50 100 us, p99 2.00 ms  1:40 left");
	for (unsigned int columns = 1; columns < 150; columns++) {
		bar_format(&p, "attach: push", columns, line, sizeof(line));
		cr_assert_lt(strlen(line), columns);
	}
}

Test(bar, what_is_not_known_is_left_out)
{
	struct progress p = {0};
	char line[300];

	bar_format(&p, "receive: check", 80, line, sizeof(line));
	cr_assert_str_eq(line, "receive: check");
}

Test(json, text_that_is_no_utf8_is_text_all_the_same)
{
	json_t *v = json_text("a\xff"
			      "b\xc3\xa4");

	cr_assert_str_eq(json_string_value(v), "a?b??");
	json_decref(v);
	v = json_text("b\xc3\xa4");
	cr_assert_str_eq(json_string_value(v), "b\xc3\xa4");
	json_decref(v);
}

static void make_pipe(int fds[2])
{
	cr_assert_eq(pipe2(fds, O_CLOEXEC), 0);
	cr_assert_geq(fcntl(fds[1], F_SETPIPE_SZ, 4096), 4096);
	signal(SIGPIPE, SIG_IGN);
}

/* Fills the pipe and what the writer keeps. Return: how many lines went in. */
static unsigned int fill(struct writer *w)
{
	unsigned int n = 0;
	size_t before;
	char line[65];

	do {
		before = w->used;
		snprintf(line, sizeof(line), "%063u\n", n);
		writer_put(w, line, 64, false);
		n++;
	} while (!before || w->used > before);
	return n - 1;
}

Test(writer, a_reader_that_sleeps_does_not_hold_it_up, .timeout = 20)
{
	struct writer w;
	unsigned int n;
	int fds[2];

	make_pipe(fds);
	writer_init(&w, fds[1]);
	n = fill(&w);
	cr_assert_gt((size_t)n * 64, WRITER_ROOM);
	writer_put(&w, "progress\n", 9, true);
	writer_put(&w, "lost\n", 5, false);
	close(fds[0]);
	close(fds[1]);
}

static void *drain(void *fd)
{
	static char got[1 << 20];
	size_t len = 0;
	ssize_t n;

	while (len < sizeof(got) - 1 && (n = read(*(int *)fd, got + len, sizeof(got) - 1 - len)) > 0)
		len += (size_t)n;
	got[len] = '\0';
	return got;
}

Test(writer, what_was_kept_comes_whole_and_in_order, .timeout = 20)
{
	struct writer w;
	unsigned int n;
	pthread_t t;
	void *got;
	int fds[2];

	make_pipe(fds);
	writer_init(&w, fds[1]);
	n = fill(&w);
	writer_put(&w, "progress\n", 9, true);
	pthread_create(&t, NULL, drain, &fds[0]);
	writer_finish(&w, -1);
	cr_assert_eq(w.used, 0);
	writer_put(&w, "end\n", 4, false);
	writer_finish(&w, -1);
	close(fds[1]);
	pthread_join(t, &got);
	for (unsigned int i = 0; i < n; i++)
		cr_assert_eq((unsigned int)strtoul((char *)got + (size_t)i * 64, NULL, 10), i);
	cr_assert_str_eq((char *)got + (size_t)n * 64, "end\n");
	close(fds[0]);
}

Test(writer, a_reader_that_is_gone_is_no_error, .timeout = 20)
{
	struct writer w;
	int fds[2];

	make_pipe(fds);
	writer_init(&w, fds[1]);
	fill(&w);
	close(fds[0]);
	writer_put(&w, "x\n", 2, false);
	cr_assert_eq(w.used, 0);
	writer_finish(&w, -1);
	close(fds[1]);
}

Test(writer, a_wish_to_stop_ends_the_wait_for_a_reader, .timeout = 20)
{
	int stop = eventfd(1, EFD_CLOEXEC);
	struct writer w;
	int fds[2];

	make_pipe(fds);
	writer_init(&w, fds[1]);
	fill(&w);
	writer_finish(&w, stop);
	cr_assert_gt(w.used, 0);
	close(fds[0]);
	close(fds[1]);
	close(stop);
}
