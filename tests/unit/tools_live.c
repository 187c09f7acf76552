/* SPDX-License-Identifier: Apache-2.0 */
#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include "tools/live.h"

#define US UINT64_C(1000)
#define S  UINT64_C(1000000000)

static struct live_line lines[LIVE_LINES_MAX];

static void take_status(struct live *l, const char *text)
{
	json_t *o = json_loads(text, 0, NULL);

	cr_assert(o);
	live_status(l, o);
	json_decref(o);
}

static void record(struct live *l, const struct ferry_trace_record *rec)
{
	struct ferry_trace_header *h = calloc(1, FERRY_TRACE_HEADER_BYTES);

	h->n_regions = 2;
	h->regions[0].n_pages = 100;
	h->regions[1].n_pages = 300;
	live_record(l, rec, h);
	free(h);
}

static void fault(struct live *l, uint64_t at_ns, uint64_t total_ns)
{
	struct ferry_trace_record rec = {
		.type = FERRY_TRACE_FAULT,
		.time_ns = at_ns,
		.fault = {.first_sent_ns = at_ns + 1,
			  .sent_ns = at_ns + 1,
			  .received_ns = at_ns + total_ns - 1,
			  .placed_ns = at_ns + total_ns},
	};

	record(l, &rec);
}

/* Everything that there can be on the screen. */
static struct live *make_full(void)
{
	struct live *l = calloc(1, sizeof(*l));
	const struct ferry_trace_record push = {
		.type = FERRY_TRACE_PUSH, .region = 1, .push = {.first_page = 100, .n_pages = 1}};

	take_status(l, "{\"command\":\"attach\",\"stage\":\"push\",\"link\":\"up\",\"pid\":42,"
		       "\"ms\":61000.5,\"pages_total\":400,\"pages_known\":100,\"rate\":1048576,"
		       "\"pages_per_second\":3,\"wire_bytes\":5000,\"faults\":7,\"resumes\":2,"
		       "\"faults_in_flight\":3,\"faults_stalled\":1,\"oldest_wait_us\":250000,"
		       "\"pages_urgent\":5,\"pages_pushed\":6,\"pages_zero\":8,"
		       "\"residency\":[0,1,500,999,1000]}");
	for (unsigned int i = 0; i < 100; i++)
		fault(l, S + i, 100 * US);
	for (unsigned int i = 0; i < FERRY_N_SPANS; i++)
		ferry_histogram_add(&l->all.stages[i], 5 * US);
	record(l, &push);
	live_tick(l, 10 * S);
	fault(l, 11 * S, 300 * US);
	l->progress.faults = 47;
	live_tick(l, 12 * S);
	l->n_overwritten = 9;
	l->is_silent = true;
	return l;
}

static unsigned int width(const char *text)
{
	unsigned int n = 0;

	for (; *text; text++)
		n += (*text & 0xc0) != 0x80;
	return n;
}

static const char *line_with(unsigned int n, const char *text)
{
	for (unsigned int i = 0; i < n; i++)
		if (strstr(lines[i].text, text))
			return lines[i].text;
	return NULL;
}

Test(live, the_screen_fits_every_terminal)
{
	struct live *l = make_full();

	for (unsigned int columns = 0; columns < 420; columns += columns < 130 ? 1 : 29) {
		for (unsigned int rows = 0; rows < 45; rows++) {
			unsigned int n = live_render(l, columns, rows, rows % 2, lines);

			cr_assert_leq(n, rows);
			for (unsigned int i = 0; i < n; i++)
				cr_assert_leq(width(lines[i].text), columns, "%ux%u: '%s'", columns,
					      rows, lines[i].text);
		}
	}
	free(l);
}

Test(live, everything_is_there_in_24_rows_of_80)
{
	const char *const wanted[] = {
		"link up",   "process 42",   "LOST: 9 records", "no answer", " 25.0 % [#####...",
		"1:40 left", "in flight 3",  "100 ms: 1",	"250.00 ms", "20/s",
		"1.0 MiB/s", "push at 50.0", "address space",	"p99.9",     "last 2s",
		"100 us",    "300 us",	     "queue",		"outage",    "place",
	};
	struct live *l = make_full();
	unsigned int n = live_render(l, 80, 24, true, lines);

	for (size_t i = 0; i < sizeof(wanted) / sizeof(*wanted); i++)
		cr_assert(line_with(n, wanted[i]), "'%s' is missing", wanted[i]);
	free(l);
}

Test(live, what_is_lost_comes_first)
{
	struct live *l = make_full();
	char text[LIVE_LINE_MAX];

	cr_assert_eq(live_render(l, 80, 2, false, lines), 2);
	cr_assert(strstr(lines[1].text, "LOST: 9 records"));
	cr_assert_eq(lines[1].style, LIVE_STYLE_ALARM);
	live_plain(l, text, sizeof(text));
	cr_assert_eq(strncmp(text, "LOST 9 records   attach 1 min 1 s", 33), 0, "%s", text);
	l->n_overwritten = 0;
	cr_assert_not(line_with(live_render(l, 80, 24, false, lines), "LOST"));
	live_plain(l, text, sizeof(text));
	cr_assert_not(strstr(text, "LOST"));
	free(l);
}

Test(live, stalled_threads_are_an_alarm)
{
	struct live *l = make_full();
	unsigned int n = live_render(l, 80, 24, false, lines);

	for (unsigned int i = 0; i < n; i++)
		if (strstr(lines[i].text, "stalled"))
			cr_assert_eq(lines[i].style, LIVE_STYLE_ALARM);
	free(l);
}

Test(live, full_blocks_are_complete_and_empty_ones_have_nothing)
{
	struct live *l = make_full();

	live_render(l, 10, 24, false, lines);
	cr_assert(line_with(LIVE_LINES_MAX, "  ..==%%##"));
	live_render(l, 10, 24, true, lines);
	cr_assert(line_with(LIVE_LINES_MAX, "  \u2581\u2581\u2584\u2584\u2587\u2587\u2588\u2588"));
	free(l);
}

Test(live, a_log_line_has_the_figures_of_the_interval)
{
	struct live *l = make_full();
	char text[LIVE_LINE_MAX];

	live_plain(l, text, sizeof(text));
	cr_assert(strstr(text, "faults 47, 20/s   in flight 3, stalled 1   p50 300 us, p99 300 us"),
		  "%s", text);
	free(l);
}

Test(live, a_source_has_sessions_and_no_stages)
{
	struct live *l = calloc(1, sizeof(*l));
	unsigned int n;

	take_status(l, "{\"command\":\"serve\",\"stage\":\"serve\",\"link\":\"up\",\"sessions\":2,"
		       "\"faults\":12,\"sessions_ever\":5,\"sessions_completed\":3}");
	live_tick(l, S);
	n = live_render(l, 80, 24, false, lines);
	cr_assert(line_with(n, "requests  12   0/s   sessions 2   ever 5   completed 3"));
	cr_assert_not(line_with(n, "stage"));
	cr_assert_not(line_with(n, "waiting"));
	cr_assert_not(line_with(n, "address space"));
	free(l);
}

Test(live, a_status_of_any_form_is_shown_somehow)
{
	const char *const any[] = {
		"{}",
		"[]",
		"{\"command\":7,\"pid\":-5,\"ms\":-1,\"residency\":{}}",
		"{\"command\":\"a\\u001b[31mb\\u00e9\",\"ms\":1e300,\"residency\":[-5,70000,\"x\"]"
		"}",
		"{\"pages_total\":1,\"pages_known\":9223372036854775807,\"pages_per_second\":1,"
		"\"faults\":9223372036854775807,\"oldest_wait_us\":1e300,\"faults_in_flight\":1}",
	};

	for (size_t i = 0; i < sizeof(any) / sizeof(*any); i++) {
		struct live *l = calloc(1, sizeof(*l));
		unsigned int n;

		take_status(l, any[i]);
		live_tick(l, S);
		n = live_render(l, 80, 24, false, lines);
		cr_assert_gt(n, 3);
		for (unsigned int k = 0; k < n; k++)
			for (const char *c = lines[k].text; *c; c++)
				cr_assert(*c >= ' ' && *c <= '~');
		json_decref(live_json(l));
		free(l);
	}
}

Test(live, records_the_command_had_no_room_for_are_lost_too)
{
	struct live *l = calloc(1, sizeof(*l));
	const struct ferry_trace_record lost = {.type = FERRY_TRACE_LOST, .lost = {.n = 4}};

	record(l, &lost);
	record(l, &lost);
	l->n_overwritten = 1;
	cr_assert_eq(live_lost(l), 9);
	free(l);
}

Test(live, runs_that_were_there_before_are_not_where_the_push_is)
{
	struct live *l = calloc(1, sizeof(*l));
	struct ferry_trace_record rec = {.type = FERRY_TRACE_PUSH, .flags = FERRY_PUSH_F_PRESENT};

	record(l, &rec);
	cr_assert_not(l->has_push);
	rec.flags = FERRY_PUSH_F_SWEPT;
	record(l, &rec);
	cr_assert_not(l->has_push);
	rec.flags = 0;
	rec.region = 2; /* there are two */
	record(l, &rec);
	cr_assert_not(l->has_push);
	rec.region = 1;
	rec.push.first_page = 299;
	record(l, &rec);
	cr_assert(l->has_push);
	cr_assert_eq(l->push_permille, 997);
	free(l);
}
