/* SPDX-License-Identifier: Apache-2.0 */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/util.h"
#include "trace/file.h"
#include "trace/recorder.h"

#define HEADER sizeof(struct ferry_trace_file_header)
#define ENTRY  sizeof(struct ferry_trace_entry)

static struct ferry_trace_header about(void)
{
	return (struct ferry_trace_header){
		.pid = 4711, .n_regions = 1, .start_ns = 1000, .start_realtime_ns = 77};
}

static struct ferry_trace_record region(void)
{
	return (struct ferry_trace_record){
		.type = FERRY_TRACE_REGION,
		.desc = {.n_pages = 100, .page_bytes = 4096, .name = "pc.ram"},
	};
}

static struct ferry_trace_record fault(uint64_t id)
{
	return (struct ferry_trace_record){
		.type = FERRY_TRACE_FAULT,
		.time_ns = 5000 - id,
		.fault = {.id = id, .page = id, .placed_ns = 6000, .thread = 5},
	};
}

struct path {
	char name[64];
};

static struct path temporary(void)
{
	struct path p = {"/tmp/trace_file.XXXXXX"};
	int fd = mkstemp(p.name);

	cr_assert_geq(fd, 0);
	close(fd);
	return p;
}

static int create(const char *path)
{
	return open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
}

/* One region, three faults, one that joined the second, one of each other kind, and the end. */
static struct path sample(void)
{
	struct path p = temporary();
	struct ferry_trace_header h = about();
	struct ferry_trace_record recs[] = {
		region(),
		fault(1),
		fault(2),
		fault(3),
		{.type = FERRY_TRACE_JOIN, .time_ns = 5500, .fault = {.id = 2, .page = 2}},
		{.type = FERRY_TRACE_JOIN, .time_ns = 5500, .fault = {.id = 9, .page = 2}},
		{.type = FERRY_TRACE_PUSH, .time_ns = 5000, .push = {.n_pages = 100, .n_new = 100}},
		{.type = FERRY_TRACE_CLOCK, .time_ns = 5000, .clock = {.offset_ns = -3}},
		{.type = FERRY_TRACE_LINK, .time_ns = 5000, .flags = FERRY_LINK_F_OPEN},
		{.type = FERRY_TRACE_DISCARD, .time_ns = 5000, .discard = {.n_pages = 1}},
		{.type = FERRY_TRACE_MARK, .time_ns = 5000, .text = {.text = "run"}},
		{.type = FERRY_TRACE_THREAD, .text = {.thread = 5, .text = "CPU 0/KVM"}},
		{.type = FERRY_TRACE_LOST, .lost = {.n = 12}},
	};
	struct ferry_trace_writer w;

	cr_assert_eq(ferry_trace_writer_open(&w, create(p.name), &h, NULL), 0);
	for (size_t i = 0; i < FERRY_ARRAY_SIZE(recs); i++)
		ferry_trace_writer_add(&w, 2, &recs[i]);
	cr_assert_eq(w.n_records, FERRY_ARRAY_SIZE(recs));
	cr_assert_eq(ferry_trace_writer_close(&w), 0);
	return p;
}

static size_t slurp(const char *path, uint8_t *out, size_t size)
{
	FILE *f = fopen(path, "r");
	size_t n = fread(out, 1, size, f);

	fclose(f);
	return n;
}

static void spit(const char *path, const void *data, size_t size)
{
	FILE *f = fopen(path, "w");

	cr_assert_eq(fwrite(data, 1, size, f), size);
	fclose(f);
}

Test(trace_file, what_was_written_is_read)
{
	struct path p = sample();
	struct ferry_trace_log log;

	cr_assert_eq(ferry_trace_load(&log, p.name, NULL), 0);
	cr_assert(log.is_whole);
	cr_assert_str_empty(log.warning);
	cr_assert_eq(log.pid, 4711);
	cr_assert_eq(log.start_ns, 1000);
	cr_assert_eq(log.end_ns, 6000);
	cr_assert_eq(log.n_regions, 1);
	cr_assert_eq(log.pages_total, 100);
	cr_assert_str_eq(log.regions[0].name, "pc.ram");
	cr_assert_eq(log.faults.n, 3);
	cr_assert_eq(log.faults.v[0].fault.id, 3, "by time, not in the order of their ends");
	cr_assert_eq(log.faults.v[2].fault.id, 1);
	cr_assert_eq(log.joins.n, 2);
	cr_assert_eq(log.joins.v[0].fault.placed_ns + log.joins.v[1].fault.placed_ns, 6000,
		     "one ends with its fault, the other's fault is not there");
	cr_assert_eq(log.pushes.n, 1);
	cr_assert_eq(log.clocks.v[0].clock.offset_ns, -3);
	cr_assert_eq(log.links.n, 1);
	cr_assert_eq(log.discards.n, 1);
	cr_assert_str_eq(log.marks.v[0].text.text, "run");
	cr_assert_str_eq(ferry_trace_thread_name(&log, 5), "CPU 0/KVM");
	cr_assert_null(ferry_trace_thread_name(&log, 6));
	cr_assert_eq(log.n_lost, 12);
	cr_assert_eq(log.n_ignored, 0);
	ferry_trace_log_fini(&log);
	unlink(p.name);
}

Test(trace_file, cut_at_any_byte_the_part_before_is_given)
{
	static uint8_t data[8192];
	struct path p = sample();
	size_t size = slurp(p.name, data, sizeof(data));

	for (size_t n = 0; n < size; n++) {
		struct ferry_failure f = {0};
		struct ferry_trace_log log;
		int rc;

		spit(p.name, data, n);
		rc = ferry_trace_load(&log, p.name, &f);
		if (n < HEADER) {
			cr_assert_eq(rc, -EPROTO, "%zu bytes", n);
			cr_assert(strstr(f.text, n < 8 ? "is not a trace" : "ends after"), "%s",
				  f.text);
			continue;
		}
		cr_assert_eq(rc, 0, "%zu bytes: %s", n, f.text);
		cr_assert_eq(log.n_records, (n - HEADER) / ENTRY, "%zu bytes", n);
		cr_assert_not(log.is_whole);
		cr_assert(strstr(log.warning, "cut off"));
		ferry_trace_log_fini(&log);
	}
	unlink(p.name);
}

Test(trace_file, damage_anywhere_is_noticed_and_the_part_before_is_given)
{
	static uint8_t data[8192];
	struct path p = sample();
	size_t size = slurp(p.name, data, sizeof(data));

	for (size_t at = HEADER; at < size; at += 3) {
		struct ferry_trace_log log;

		data[at] ^= 0x41;
		spit(p.name, data, size);
		data[at] ^= 0x41;
		cr_assert_eq(ferry_trace_load(&log, p.name, NULL), 0);
		cr_assert_eq(log.n_records, (at - HEADER) / ENTRY, "byte %zu", at);
		cr_assert_not(log.is_whole);
		cr_assert(strstr(log.warning, "damaged"));
		ferry_trace_log_fini(&log);
	}
	unlink(p.name);
}

static void expect_refusal(const void *data, size_t size, const char *text)
{
	struct path p = temporary();
	struct ferry_trace_log log;
	struct ferry_failure f = {0};

	spit(p.name, data, size);
	cr_assert_eq(ferry_trace_load(&log, p.name, &f), -EPROTO);
	cr_assert(strstr(f.text, text), "%s", f.text);
	cr_assert(strstr(f.text, p.name), "%s", f.text);
	unlink(p.name);
}

Test(trace_file, foreign_files_are_named_for_what_they_are)
{
	static uint8_t data[8192];
	struct path p = sample();
	size_t size = slurp(p.name, data, sizeof(data));
	struct ferry_trace_file_header *h = (struct ferry_trace_file_header *)data;
	struct ferry_trace_log log;
	struct ferry_failure f = {0};

	expect_refusal("#!/bin/sh\nexit 0\n", 17, "is not a trace");
	expect_refusal("", 0, "is not a trace");
	h->version = 2;
	expect_refusal(data, size, "version 2");
	h->version = 1;
	h->endian = 0x0d0c0b0a;
	expect_refusal(data, size, "byte order");
	h->endian = 5;
	expect_refusal(data, size, "damaged header");
	h->endian = FERRY_TRACE_ENDIAN;
	h->n_regions = 33;
	expect_refusal(data, size, "damaged header");
	unlink(p.name);
	cr_assert_eq(ferry_trace_load(&log, p.name, &f), -ENOENT);
	cr_assert(strstr(f.text, p.name));
}

/* Records with right checksums and wrong content: what the loader lets through must be safe to use.
 */
Test(trace_file, impossible_records_are_left_out)
{
	struct path p = temporary();
	struct ferry_trace_header h = about();
	struct ferry_trace_record recs[] = {
		region(),
		fault(1),
		{.type = FERRY_TRACE_FAULT, .region = 1, .time_ns = 2000, .fault = {.id = 1}},
		{.type = FERRY_TRACE_FAULT, .time_ns = 2000, .fault = {.id = 1, .page = 100}},
		{.type = FERRY_TRACE_FAULT,
		 .time_ns = 2000,
		 .fault = {.id = 1, .page = 1, .placed_ns = 1999}},
		{.type = FERRY_TRACE_FAULT,
		 .time_ns = 2000,
		 .fault = {.id = 1, .page = 1, .placed_ns = UINT64_MAX}},
		{.type = FERRY_TRACE_FAULT, .time_ns = 999, .fault = {.id = 1, .placed_ns = 2000}},
		{.type = FERRY_TRACE_PUSH,
		 .time_ns = 2000,
		 .push = {.first_page = UINT64_MAX, .n_pages = 2}},
		{.type = FERRY_TRACE_PUSH, .time_ns = 2000, .push = {.n_pages = 2, .n_new = 3}},
		{.type = FERRY_TRACE_CLOCK, .time_ns = 2000, .clock = {.offset_ns = INT64_MIN}},
		{.type = FERRY_TRACE_DISCARD, .time_ns = 2000, .discard = {.n_pages = 101}},
		{.type = FERRY_TRACE_REGION,
		 .region = 1,
		 .desc = {.n_pages = 1, .page_bytes = 4096}},
		{.type = 999, .time_ns = 2000},
		{.type = FERRY_TRACE_MARK, .time_ns = 2000, .text = {.text = "bell \a"}},
	};
	struct ferry_trace_writer w;
	struct ferry_trace_log log;

	memset(&recs[12], 0xff, sizeof(recs[12]));
	cr_assert_eq(ferry_trace_writer_open(&w, create(p.name), &h, NULL), 0);
	for (size_t i = 0; i < FERRY_ARRAY_SIZE(recs); i++)
		ferry_trace_writer_add(&w, 0, &recs[i]);
	cr_assert_eq(ferry_trace_writer_close(&w), 0);
	cr_assert_eq(ferry_trace_load(&log, p.name, NULL), 0);
	cr_assert_eq(log.faults.n, 1);
	cr_assert_eq(log.n_ignored, FERRY_ARRAY_SIZE(recs) - 2);
	cr_assert_eq(log.pushes.n + log.clocks.n + log.discards.n + log.marks.n, 0);
	ferry_trace_log_fini(&log);
	unlink(p.name);
}

Test(trace_file, the_checksum_is_the_common_one)
{
	cr_assert_eq(ferry_trace_crc32(0, "123456789", 9), 0xcbf43926);
	cr_assert_eq(ferry_trace_crc32(ferry_trace_crc32(0, "1234", 4), "56789", 5), 0xcbf43926);
}

Test(trace_file, a_full_disk_is_told)
{
	struct ferry_trace_header h = about();
	struct ferry_trace_record rec = fault(1);
	struct ferry_trace_writer w;

	if (access("/dev/full", W_OK))
		cr_skip_test("no /dev/full");
	cr_assert_eq(ferry_trace_writer_open(&w, create("/dev/full"), &h, NULL), 0);
	ferry_trace_writer_add(&w, 0, &rec);
	cr_assert_eq(ferry_trace_writer_close(&w), -ENOSPC);
}

/* --- the recorder ----------------------------------------------------------------------------- */

static struct ferry_trace *make_rings(uint32_t n_slots)
{
	const struct ferry_trace_ring_config rings[] = {
		{.kind = FERRY_RING_OWNER, .n_slots = 4},
		{.kind = FERRY_RING_FAULT, .n_slots = n_slots},
	};
	const struct ferry_trace_region regions[] = {{.n_pages = 100, .page_bytes = 4096}};
	const struct ferry_trace_config config = {
		.rings = rings, .n_rings = 2, .regions = regions, .n_regions = 1, .pid = getpid()};
	struct ferry_trace *t = NULL;

	cr_assert_eq(ferry_trace_new(&t, &config, NULL), 0);
	return t;
}

static struct ferry_recorder *record(const struct ferry_trace *t, const char *path)
{
	struct ferry_recorder *r = NULL;
	int fd = ferry_trace_fd(t);

	cr_assert_eq(ferry_recorder_open(&r, create(path), fd, NULL), 0);
	close(fd);
	return r;
}

static void emit(struct ferry_trace *t, uint64_t id)
{
	struct ferry_trace_record rec = fault(id % 100);

	rec.fault.id = id + 1;
	rec.fault.thread = (uint32_t)getpid();
	rec.time_ns = UINT64_C(1) << 60;
	rec.fault.placed_ns = rec.time_ns + 1;
	ferry_trace_emit(ferry_trace_ring(t, FERRY_RING_FAULT, 0), &rec);
}

Test(trace_recorder, a_recorded_file_has_all_records_and_the_names)
{
	struct path p = temporary();
	struct ferry_trace *t = make_rings(1024);
	struct ferry_recorder *r = record(t, p.name);
	struct ferry_trace_log log;
	uint64_t n_records, n_lost;

	cr_assert_eq(ferry_recorder_start(r, NULL), 0);
	for (uint64_t i = 0; i < 500; i++)
		emit(t, i);
	ferry_trace_free(t);
	cr_assert_eq(ferry_recorder_close(r, &n_records, &n_lost, NULL), 0);
	cr_assert_eq(n_lost, 0);
	cr_assert_eq(ferry_trace_load(&log, p.name, NULL), 0);
	cr_assert(log.is_whole);
	cr_assert_eq(log.faults.n, 500);
	cr_assert_eq(log.n_records, n_records + 1);
	cr_assert_eq(log.pages_total, 100);
	cr_assert_not_null(ferry_trace_thread_name(&log, (uint32_t)getpid()));
	ferry_trace_log_fini(&log);
	unlink(p.name);
}

Test(trace_recorder, what_was_lost_before_is_in_the_file)
{
	struct path p = temporary();
	struct ferry_trace *t = make_rings(64);
	struct ferry_recorder *r;
	struct ferry_trace_log log;
	uint64_t n_lost;

	for (uint64_t i = 0; i < 100; i++)
		emit(t, i);
	r = record(t, p.name);
	cr_assert_eq(ferry_recorder_close(r, NULL, &n_lost, NULL), 0);
	cr_assert_eq(n_lost, 36);
	cr_assert_eq(ferry_trace_load(&log, p.name, NULL), 0);
	cr_assert_eq(log.n_lost, 36);
	cr_assert_eq(log.faults.n, 64);
	ferry_trace_log_fini(&log);
	ferry_trace_free(t);
	unlink(p.name);
}
