/* SPDX-License-Identifier: Apache-2.0 */
/* Every output of files whose records are right in form and anything in content. */
#include <criterion/criterion.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/util.h"
#include "trace/export.h"
#include "trace/plot.h"
#include "trace/report.h"

static uint64_t state = 88172645463325252u;

static uint64_t next_random(void)
{
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return state;
}

/* Small, near the end of what is possible, or anything. */
static uint64_t odd_number(void)
{
	switch (next_random() % 5) {
	case 0:
		return next_random() % 4;
	case 1:
		return next_random() % 1000;
	case 2:
		return 1000000000 + next_random() % 1000000000;
	case 3:
		return UINT64_MAX - next_random() % 4;
	}
	return next_random();
}

static void write_any(const char *path, unsigned int n)
{
	struct ferry_trace_header about = {.start_ns = 1000000000, .n_regions = 3, .pid = 1};
	static const uint16_t types[] = {1, 1, 1, 1, 2, 3, 4, 5, 6, 7, 32, 33, 34, 99};
	struct ferry_trace_writer w;

	cr_assert_eq(ferry_trace_writer_open(
			     &w, open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600), &about,
			     NULL),
		     0);
	for (uint32_t i = 0; i < 3; i++) {
		struct ferry_trace_record rec = {.type = FERRY_TRACE_REGION, .region = i};

		rec.desc.n_pages = i == 2 ? UINT64_C(1) << 40 : 1000;
		rec.desc.page_bytes = 4096;
		ferry_trace_writer_add(&w, 0, &rec);
	}
	for (unsigned int i = 0; i < n; i++) {
		struct ferry_trace_record rec = {.type = types[next_random() % 14]};

		rec.flags = (uint16_t)(next_random() & next_random());
		rec.region = (uint32_t)(next_random() % 4);
		rec.time_ns = odd_number();
		for (size_t k = 0; k < FERRY_ARRAY_SIZE(rec.words); k++)
			rec.words[k] = odd_number();
		/* So that many are let in. */
		if (next_random() % 4)
			rec.fault.page = next_random() % 1000;
		if (rec.type == FERRY_TRACE_FAULT && next_random() % 4)
			rec.fault.placed_ns = rec.time_ns + next_random() % 100000000;
		if (rec.type == FERRY_TRACE_MARK || rec.type == FERRY_TRACE_THREAD)
			snprintf(rec.text.text, sizeof(rec.text.text), "<&\"%%s,%u", i);
		ferry_trace_writer_add(&w, 0, &rec);
	}
	cr_assert_eq(ferry_trace_writer_close(&w), 0);
}

static char *text_of(int (*write)(FILE *to, const struct ferry_trace_log *log,
				  struct ferry_stats *stats),
		     const struct ferry_trace_log *log, struct ferry_stats *stats)
{
	char *text = NULL;
	size_t size;
	FILE *to = open_memstream(&text, &size);

	cr_assert_eq(write(to, log, stats), 0);
	fclose(to);
	return text;
}

static int json(FILE *to, const struct ferry_trace_log *log, struct ferry_stats *stats)
{
	return ferry_report_json(to, log, stats, 5);
}

static int text(FILE *to, const struct ferry_trace_log *log, struct ferry_stats *stats)
{
	return ferry_report_text(to, log, stats, 5);
}

static void expect_json(char *line)
{
	json_error_t error;
	json_t *o = json_loads(line, JSON_REJECT_DUPLICATES | JSON_DECODE_INT_AS_REAL, &error);

	cr_assert_not_null(o, "%s at %d", error.text, error.position);
	json_decref(o);
	free(line);
}

static void check_outputs(const char *path)
{
	struct ferry_trace_log log;
	struct ferry_stats stats;
	char *out;

	cr_assert_eq(ferry_trace_load(&log, path, NULL), 0);
	cr_assert(log.is_whole);
	cr_assert_eq(ferry_stats_init(&stats, &log), 0);
	expect_json(text_of(json, &log, &stats));
	expect_json(text_of(ferry_export_perfetto, &log, &stats));
	expect_json(text_of(ferry_export_qemu, &log, &stats));
	out = text_of(text, &log, &stats);
	cr_assert_null(strstr(out, "nan"));
	free(out);
	free(text_of(ferry_report_csv, &log, &stats));
	out = text_of(ferry_plot, &log, &stats);
	cr_assert_null(strstr(out, "nan"));
	cr_assert_null(strstr(out, "inf\""));
	cr_assert(strstr(out, "</svg>"));
	free(out);
	ferry_stats_fini(&stats);
	ferry_trace_log_fini(&log);
}

Test(trace_outputs, anything_in_a_record_is_survived)
{
	char path[] = "/tmp/trace_outputs.XXXXXX";

	close(mkstemp(path));
	for (unsigned int n = 0; n < 60; n++) {
		write_any(path, n < 20 ? n : n * 20);
		check_outputs(path);
	}
	unlink(path);
}

Test(trace_outputs, a_thread_waits_for_one_page_at_a_time_in_what_is_exported)
{
	struct ferry_trace_record faults[] = {
		{.type = FERRY_TRACE_FAULT, .time_ns = 1000, .fault = {1, 1, .placed_ns = 9000}},
		{.type = FERRY_TRACE_FAULT, .time_ns = 8000, .fault = {2, 2, .placed_ns = 12000}},
	};
	struct ferry_trace_log log = {
		.n_regions = 1,
		.regions = {{.n_pages = 10, .page_bytes = 4096}},
		.faults = {.v = faults, .n = 2},
	};
	struct ferry_stats stats;
	char *out;

	faults[0].fault.thread = faults[1].fault.thread = 7;
	cr_assert_eq(ferry_stats_init(&stats, &log), 0);
	out = text_of(ferry_export_perfetto, &log, &stats);
	cr_assert(strstr(out, "\"ts\":1.000,\"pid\":0,\"tid\":7,\"dur\":7.000"), "%s", out);
	cr_assert(strstr(out, "\"ts\":8.000,\"pid\":0,\"tid\":7,\"dur\":4.000"), "%s", out);
	free(out);
	/* 7 + 4 us make no whole millisecond, but a mean of the full latencies. */
	out = text_of(ferry_export_qemu, &log, &stats);
	cr_assert(strstr(out, "\"postcopy-blocktime\":0,"), "%s", out);
	cr_assert(strstr(out, "\"postcopy-latency\":6000,"), "%s", out);
	cr_assert(strstr(out, "\"postcopy-latency-dist\":[0,0,1,1,"), "%s", out);
	free(out);
	ferry_stats_fini(&stats);
}
