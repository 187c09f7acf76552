/* SPDX-License-Identifier: Apache-2.0 */
#include <criterion/criterion.h>
#include <criterion/parameterized.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/util.h"
#include "trace/reader.h"

#define SLOTS 16u

static struct ferry_trace *make(uint32_t n_slots)
{
	const struct ferry_trace_ring_config rings[] = {
		{.kind = FERRY_RING_OWNER, .n_slots = 4},
		{.kind = FERRY_RING_FAULT, .n_slots = n_slots, .populate = true},
		{.kind = FERRY_RING_BULK, .index = 0, .n_slots = n_slots},
		{.kind = FERRY_RING_BULK, .index = 1, .n_slots = n_slots},
	};
	const struct ferry_trace_region regions[] = {{.n_pages = 10, .page_bytes = 4096}};
	const struct ferry_trace_config config = {
		.rings = rings, .n_rings = 4, .regions = regions, .n_regions = 1, .pid = getpid()};
	struct ferry_trace *t = NULL;

	cr_assert_eq(ferry_trace_new(&t, &config, NULL), 0);
	return t;
}

static struct ferry_trace_reader *open_reader(const struct ferry_trace *t)
{
	struct ferry_trace_reader *r = NULL;
	int fd = ferry_trace_fd(t);

	cr_assert_geq(fd, 0);
	cr_assert_eq(ferry_trace_reader_open(&r, fd, NULL), 0);
	close(fd);
	return r;
}

static void emit(struct ferry_trace_ring *ring, uint64_t n)
{
	struct ferry_trace_record rec = {.type = FERRY_TRACE_FAULT, .time_ns = n};

	for (size_t i = 0; i < FERRY_ARRAY_SIZE(rec.words); i++)
		rec.words[i] = n + i;
	ferry_trace_emit(ring, &rec);
}

/* What is written after how many, read at once: the last SLOTS of them, the others counted. */
static void check_written(uint64_t n)
{
	struct ferry_trace *t = make(SLOTS);
	struct ferry_trace_reader *r = open_reader(t);
	uint64_t expected = n > SLOTS ? n - SLOTS : 0;
	struct ferry_trace_record rec;
	uint32_t ring = 99;

	for (uint64_t i = 0; i < n; i++)
		emit(ferry_trace_ring(t, FERRY_RING_FAULT, 0), i);
	cr_assert_eq(ferry_trace_reader_lost(r, 1), 0, "nothing is lost before one looks");
	while (ferry_trace_reader_next(r, &rec, &ring)) {
		cr_assert_eq(ring, 1);
		cr_assert_eq(rec.time_ns, expected);
		cr_assert_eq(rec.words[12], expected + 12);
		expected++;
	}
	cr_assert_eq(expected, n);
	cr_assert_eq(ferry_trace_reader_lost(r, 1), n > SLOTS ? n - SLOTS : 0);
	ferry_trace_reader_close(r);
	ferry_trace_free(t);
}

Test(trace_ring, records_come_out_in_order_and_the_overwritten_are_counted)
{
	check_written(0);
	check_written(1);
	check_written(SLOTS - 1);
	check_written(SLOTS);
	check_written(SLOTS + 1);
	check_written(5 * SLOTS + 3);
}

Test(trace_ring, a_ring_of_one_slot_keeps_the_last)
{
	struct ferry_trace *t = make(1);
	struct ferry_trace_reader *r = open_reader(t);
	struct ferry_trace_record rec;
	uint32_t ring;

	for (uint64_t i = 0; i < 3; i++)
		emit(ferry_trace_ring(t, FERRY_RING_BULK, 1), i);
	cr_assert(ferry_trace_reader_next(r, &rec, &ring));
	cr_assert_eq(ring, 3);
	cr_assert_eq(rec.time_ns, 2);
	cr_assert_not(ferry_trace_reader_next(r, &rec, &ring));
	cr_assert_eq(ferry_trace_reader_lost(r, 3), 2);
	ferry_trace_reader_close(r);
	ferry_trace_free(t);
}

Test(trace_ring, rings_are_read_one_after_the_other_until_all_are_empty)
{
	struct ferry_trace *t = make(SLOTS);
	struct ferry_trace_reader *r = open_reader(t);
	unsigned int seen[4] = {0};
	struct ferry_trace_record rec;
	uint32_t ring;

	emit(ferry_trace_ring(t, FERRY_RING_BULK, 0), 1);
	emit(ferry_trace_ring(t, FERRY_RING_FAULT, 0), 1);
	emit(ferry_trace_ring(t, FERRY_RING_BULK, 0), 2);
	while (ferry_trace_reader_next(r, &rec, &ring))
		seen[ring]++;
	cr_assert_eq(seen[0], 0);
	cr_assert_eq(seen[1], 1);
	cr_assert_eq(seen[2], 2);
	/* And on, from where it stopped. */
	emit(ferry_trace_ring(t, FERRY_RING_FAULT, 0), 7);
	cr_assert(ferry_trace_reader_next(r, &rec, &ring));
	cr_assert_eq(rec.time_ns, 7);
	ferry_trace_reader_close(r);
	ferry_trace_free(t);
}

Test(trace_ring, each_reader_sees_everything)
{
	struct ferry_trace *t = make(SLOTS);
	struct ferry_trace_reader *a = open_reader(t), *b = open_reader(t);
	struct ferry_trace_record rec;
	uint32_t ring;

	emit(ferry_trace_ring(t, FERRY_RING_FAULT, 0), 5);
	cr_assert(ferry_trace_reader_next(a, &rec, &ring));
	cr_assert(ferry_trace_reader_next(b, &rec, &ring));
	cr_assert_eq(rec.time_ns, 5);
	ferry_trace_reader_close(a);
	ferry_trace_reader_close(b);
	ferry_trace_free(t);
}

Test(trace_ring, readers_outlive_the_trace_and_are_told_its_end)
{
	struct ferry_trace *t = make(SLOTS);
	struct ferry_trace_reader *r = open_reader(t);
	struct ferry_trace_record rec;
	uint32_t ring;

	ferry_trace_mark(t, "push");
	cr_assert_not(ferry_trace_reader_ended(r));
	ferry_trace_free(t);
	cr_assert(ferry_trace_reader_ended(r));
	cr_assert(ferry_trace_reader_next(r, &rec, &ring));
	cr_assert_eq(rec.type, FERRY_TRACE_MARK);
	cr_assert_str_eq(rec.text.text, "push");
	ferry_trace_reader_close(r);
}

Test(trace_ring, readers_can_not_write)
{
	struct ferry_trace *t = make(SLOTS);
	int fd = ferry_trace_fd(t);
	char path[64];
	int again;

	cr_assert_eq(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0), MAP_FAILED);
	cr_assert_lt(ftruncate(fd, 0), 0);
	/* Nor by opening it once more. */
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	again = open(path, O_RDWR | O_CLOEXEC);
	if (again >= 0) {
		cr_assert_lt(write(again, "x", 1), 0);
		cr_assert_lt(ftruncate(again, 0), 0);
		cr_assert_eq(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, again, 0),
			     MAP_FAILED);
		close(again);
	}
	close(fd);
	ferry_trace_free(t);
}

Test(trace_ring, without_a_trace_nothing_happens)
{
	emit(NULL, 1);
	emit(ferry_trace_ring(NULL, FERRY_RING_FAULT, 0), 1);
	ferry_trace_mark(NULL, "push");
	ferry_trace_name_regions(NULL, NULL, NULL);
	ferry_trace_free(NULL);
}

static const char *name(const void *ctx, uint32_t i)
{
	return i ? "?" : ctx;
}

Test(trace_ring, regions_get_their_names_once)
{
	struct ferry_trace *t = make(SLOTS);
	struct ferry_trace_reader *r = open_reader(t);

	ferry_trace_name_regions(t, name, "pc.ram");
	ferry_trace_name_regions(t, name, "other");
	cr_assert_str_eq(ferry_trace_reader_header(r)->regions[0].name, "pc.ram");
	ferry_trace_reader_close(r);
	ferry_trace_free(t);
}

/* A copy of a trace's memory that can be spoilt. */
static int copy_of(const struct ferry_trace *t, size_t *size)
{
	int fd = ferry_trace_fd(t), copy = memfd_create("copy", MFD_CLOEXEC);
	char buf[65536];
	ssize_t n;

	cr_assert_geq(copy, 0);
	*size = 0;
	while ((n = read(fd, buf, sizeof(buf))) > 0) {
		cr_assert_eq(write(copy, buf, (size_t)n), n);
		*size += (size_t)n;
	}
	close(fd);
	return copy;
}

static void expect_refusal(int fd, const char *what)
{
	struct ferry_trace_reader *r = NULL;
	struct ferry_failure f = {0};

	cr_assert_eq(ferry_trace_reader_open(&r, fd, &f), -EPROTO, "%s", what);
	cr_assert_eq(r, NULL);
	cr_assert(f.text[0]);
}

Test(trace_ring, memory_of_another_kind_is_refused)
{
	struct ferry_trace *t = make(SLOTS);
	const struct {
		const char *what;
		size_t at;
		uint64_t value;
		size_t bytes;
	} spoilt[] = {
		{"magic", 0, 0, 1},
		{"version", offsetof(struct ferry_trace_header, version), 2, 4},
		{"endian", offsetof(struct ferry_trace_header, endian), 0x0d0c0b0a, 4},
		{"record size", offsetof(struct ferry_trace_header, record_bytes), 128, 4},
		{"rings", offsetof(struct ferry_trace_header, n_rings), 33, 4},
		{"regions", offsetof(struct ferry_trace_header, n_regions), 33, 4},
		{"slots", offsetof(struct ferry_trace_header, rings[1].n_slots), 1u << 30, 8},
		{"no slots", offsetof(struct ferry_trace_header, rings[1].n_slots), 0, 8},
		{"offset", offsetof(struct ferry_trace_header, rings[1].offset), UINT64_MAX - 7, 8},
		{"odd offset", offsetof(struct ferry_trace_header, rings[1].offset), 16385, 8},
	};
	struct ferry_trace_reader *r = NULL;
	size_t size;
	int fd;

	for (size_t i = 0; i < FERRY_ARRAY_SIZE(spoilt); i++) {
		fd = copy_of(t, &size);
		cr_assert_eq(pwrite(fd, &spoilt[i].value, spoilt[i].bytes, (off_t)spoilt[i].at),
			     (ssize_t)spoilt[i].bytes);
		expect_refusal(fd, spoilt[i].what);
		close(fd);
	}
	fd = copy_of(t, &size);
	cr_assert_eq(ferry_trace_reader_open(&r, fd, NULL), 0, "an unspoilt copy is fine");
	ferry_trace_reader_close(r);
	cr_assert_eq(ftruncate(fd, (off_t)size - 1), 0);
	expect_refusal(fd, "one byte short");
	cr_assert_eq(ftruncate(fd, 100), 0);
	expect_refusal(fd, "hardly a header");
	cr_assert_eq(ftruncate(fd, 0), 0);
	expect_refusal(fd, "nothing");
	close(fd);
	ferry_trace_free(t);
}
