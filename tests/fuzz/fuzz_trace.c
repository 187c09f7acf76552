/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a trace file may hold: loading it, and everything that is made from it.
 *
 * With bit 0 of the last byte the input is a file as it is. Without, it is the content of entries:
 * header and checksums are put right first, since a wrong checksum is all that would be seen else.
 *
 * This is two targets. `trace` loads it and counts. `draw` (with DRAW) also writes what bits 1 to 6
 * say, which takes a hundred times as long as all the rest.
 */
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/util.h"
#include "fuzz.h"
#include "trace/export.h"
#include "trace/file.h"
#include "trace/plot.h"
#include "trace/report.h"

#define MAX_ENTRIES 64
#define N_SLOWEST   3

struct image {
	struct ferry_trace_file_header header;
	struct ferry_trace_entry entries[MAX_ENTRIES];
};

static size_t put_right(const uint8_t *data, size_t size, struct image *image)
{
	size_t n = FERRY_MIN(size / sizeof(struct ferry_trace_entry), (size_t)MAX_ENTRIES);

	image->header = (struct ferry_trace_file_header){
		.magic = FERRY_TRACE_FILE_MAGIC,
		.version = FERRY_TRACE_VERSION,
		.endian = FERRY_TRACE_ENDIAN,
		.header_bytes = sizeof(image->header),
		.entry_bytes = sizeof(image->entries[0]),
		.start_ns = 1000,
		.n_regions = n ? data[0] & 3 : 0,
	};
	memcpy(image->entries, data, n * sizeof(image->entries[0]));
	for (size_t i = 0; i < n; i++) {
		struct ferry_trace_entry *e = &image->entries[i];
		uint32_t crc = ferry_trace_crc32(0, &e->ring, sizeof(e->ring));

		e->check = ferry_trace_crc32(crc, &e->record, sizeof(e->record));
	}
	return offsetof(struct image, entries) + n * sizeof(image->entries[0]);
}

static void check_order(const struct ferry_trace_records *r)
{
	for (size_t i = 1; i < r->n; i++)
		MUST(r->v[i - 1].time_ns <= r->v[i].time_ns);
}

static int draw(const struct ferry_trace_log *log, struct ferry_stats *stats, unsigned int what)
{
	static FILE *out;

	if (!out)
		out = fopen("/dev/null", "we");
	MUST(out);
	switch (what % 6) {
	case 1:
		return ferry_report_text(out, log, stats, N_SLOWEST);
	case 2:
		return ferry_report_json(out, log, stats, N_SLOWEST);
	case 3:
		return ferry_report_csv(out, log, stats);
	case 4:
		return ferry_plot(out, log, stats);
	case 5:
		return ferry_export_perfetto(out, log, stats);
	default:
		return ferry_export_qemu(out, log, stats);
	}
}

static void look(struct ferry_trace_log *log, unsigned int what)
{
	struct ferry_stats stats;

	MUST(log->n_regions <= FERRY_TRACE_MAX_REGIONS);
	for (size_t i = 0; i < log->faults.n; i++) {
		const struct ferry_trace_record *f = &log->faults.v[i];

		MUST(f->region < log->n_regions);
		MUST(f->fault.page < log->regions[f->region].n_pages);
	}
	check_order(&log->faults);
	check_order(&log->pushes);
	MUST(!ferry_stats_init(&stats, log));
	if (DRAW)
		MUST(!draw(log, &stats, what));
	ferry_stats_fini(&stats);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct image image;
	const void *bytes = data;
	struct ferry_failure f = {0};
	struct ferry_trace_log log;
	static int fd = -1;
	static char path[64];
	uint8_t how;

	if (fd < 0) {
		fd = memfd_create("trace", MFD_CLOEXEC);
		MUST(fd >= 0);
		snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	}
	if (!size)
		return 0;
	how = data[--size];
	if (!(how & 1)) {
		size = put_right(data, size, &image);
		bytes = &image;
	}
	MUST(!ftruncate(fd, 0) && pwrite(fd, bytes, size, 0) == (ssize_t)size);
	if (!ferry_trace_load(&log, path, &f)) {
		look(&log, how >> 1 & 63);
		ferry_trace_log_fini(&log);
	} else {
		MUST(f.err < 0 && f.text[0] && memchr(f.text, 0, sizeof(f.text)));
	}
	return 0;
}
