/* SPDX-License-Identifier: Apache-2.0 */
#include <criterion/criterion.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tools/metrics.h"

static struct report_snapshot *make(bool has_target, bool has_server)
{
	struct report_snapshot *s = calloc(1, sizeof(*s));

	s->command = "attach";
	s->has_target = has_target;
	s->has_server = has_server;
	return s;
}

static char *render(const struct report_snapshot *s, bool openmetrics)
{
	char *text = calloc(1, METRICS_TEXT_MAX);

	cr_assert_eq(metrics_render(s, openmetrics, text, METRICS_TEXT_MAX), strlen(text));
	cr_assert(*text);
	return text;
}

/* The value of @series, which begins a line. */
static double value(const char *text, const char *series)
{
	size_t len = strlen(series);

	for (const char *line = text; line; line = strchr(line, '\n')) {
		line += *line == '\n';
		if (!strncmp(line, series, len) && line[len] == ' ')
			return atof(line + len);
	}
	cr_assert_fail("there is no %s", series);
	return 0;
}

Test(metrics, buckets_are_cumulative_and_exact)
{
	const uint64_t samples[] = {
		0, 8191, 8192, 8193, 16383, 16384, 1000000, UINT64_C(1) << 33, UINT64_C(1) << 50};
	struct report_snapshot *s = make(true, false);
	char *text;

	for (size_t i = 0; i < sizeof(samples) / sizeof(*samples); i++)
		ferry_histogram_add(&s->target.fault_ns, samples[i]);
	text = render(s, false);
#define SOURCE(le) "pageferry_fault_latency_seconds_bucket{path=\"source\",le=\"" le "\"}"
	cr_assert_eq(value(text, SOURCE("8.192e-06")), 2);
	cr_assert_eq(value(text, SOURCE("1.6384e-05")), 5);
	cr_assert_eq(value(text, SOURCE("3.2768e-05")), 6);
	cr_assert_eq(value(text, SOURCE("0.000524288")), 6);
	cr_assert_eq(value(text, SOURCE("0.001048576")), 7);
	cr_assert_eq(value(text, SOURCE("8.589934592")), 7);
	cr_assert_eq(value(text, SOURCE("+Inf")), 9);
	cr_assert_eq(value(text, "pageferry_fault_latency_seconds_count{path=\"source\"}"), 9);
	cr_assert_eq(value(text, "pageferry_fault_latency_seconds_count{path=\"local\"}"), 0);
	free(text);
	free(s);
}

Test(metrics, counters_and_gauges_have_base_units)
{
	struct report_snapshot *s = make(true, true);
	char *text;

	s->target.pages_total = 400;
	s->target.pages_known = 100;
	s->target.oldest_wait_ns = 1500000000;
	s->target.wire_bytes = UINT64_C(1) << 60;
	s->target.link_up = true;
	s->server.requests = 12;
	s->n_links_lost = 3;
	text = render(s, false);
	cr_assert_eq(value(text, "pageferry_resident_ratio"), 0.25);
	cr_assert_eq(value(text, "pageferry_resident_pages"), 100);
	cr_assert_eq(value(text, "pageferry_oldest_wait_seconds"), 1.5);
	cr_assert_eq(value(text, "pageferry_link_up"), 1);
	cr_assert_eq(value(text, "pageferry_served_requests_total"), 12);
	cr_assert_eq(value(text, "pageferry_link_losses_total"), 3);
	cr_assert(strstr(text, "pageferry_received_bytes_total 1152921504606846976\n"));
	free(text);
	free(s);
}

Test(metrics, what_a_working_set_is_good_for)
{
	struct report_snapshot *s = make(true, false);
	char *text = render(s, false);

	cr_assert_not(strstr(text, "pageferry_working_set"));
	free(text);
	s->has_replay = true;
	s->replay.samples_seen = 80;
	s->replay.hits = 20;
	s->replay.is_first = true;
	text = render(s, false);
	cr_assert_eq(value(text, "pageferry_working_set_samples_total"), 80);
	cr_assert_eq(value(text, "pageferry_working_set_hits_total"), 20);
	cr_assert_eq(value(text, "pageferry_working_set_hit_ratio"), 0.25);
	cr_assert_eq(value(text, "pageferry_working_set_pushed_first"), 1);
	free(text);
	free(s);
}

Test(metrics, without_counters_there_is_what_is_known)
{
	struct report_snapshot *s = make(false, false);
	char *text = render(s, false);

	cr_assert(strstr(text, "pageferry_build_info{version=\""));
	cr_assert(strstr(text, "command=\"attach\"} 1\n"));
	cr_assert_not(strstr(text, "pageferry_fault_latency_seconds"));
	cr_assert_not(strstr(text, "pageferry_served"));
	free(text);
	free(s);
}

/* In OpenMetrics a family's name may be there once, and a counter's has no _total. */
Test(metrics, families_of_openmetrics_have_names_of_their_own)
{
	struct report_snapshot *s = make(true, true);
	char *text, *rest, *line;
	char seen[64][80], name[80], type[20];
	unsigned int n = 0;

	s->has_replay = true;
	rest = text = render(s, true);
	cr_assert_str_eq(text + strlen(text) - strlen("\n# EOF\n"), "\n# EOF\n");
	while ((line = strsep(&rest, "\n"))) {
		if (sscanf(line, "# TYPE %79s %19s", name, type) != 2)
			continue;
		cr_assert_lt(n, 64);
		for (unsigned int i = 0; i < n; i++)
			cr_assert_str_neq(seen[i], name);
		if (!strcmp(type, "counter"))
			cr_assert(strlen(name) < 7 || strcmp(name + strlen(name) - 6, "_total"),
				  "%s", name);
		strcpy(seen[n++], name);
	}
	cr_assert_gt(n, 20);
	free(text);
	free(s);
}

Test(metrics, the_largest_figures_fit_and_too_little_room_is_told)
{
	struct report_snapshot *s = make(true, true);
	char *text;
	size_t len;

	memset(&s->target, 0xff, sizeof(s->target));
	s->target.link_up = true;
	memset(&s->server, 0xff, sizeof(s->server));
	s->n_links_lost = s->n_errors = UINT64_MAX;
	text = render(s, true);
	len = strlen(text);
	cr_assert_lt(len, METRICS_TEXT_MAX / 2);
	cr_assert_eq(metrics_render(s, true, text, len), 0);
	cr_assert_eq(metrics_render(s, true, text, len + 1), len);
	cr_assert_eq(metrics_render(s, true, text, 1), 0);
	free(text);
	free(s);
}
