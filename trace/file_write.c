/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <string.h>

#include "base/cleanup.h"
#include "trace/file.h"

uint32_t ferry_trace_crc32(uint32_t crc, const void *data, size_t n)
{
	/* Four bits at a time. */
	static const uint32_t table[16] = {
		0x00000000, 0x1db71064, 0x3b6e20c8, 0x26d930ac, 0x76dc4190, 0x6b6b51f4,
		0x4db26158, 0x5005713c, 0xedb88320, 0xf00f9344, 0xd6d6a3e8, 0xcb61b38c,
		0x9b64c2b0, 0x86d3d2d4, 0xa00ae278, 0xbdbdf21c,
	};
	const uint8_t *p = data;

	crc = ~crc;
	for (size_t i = 0; i < n; i++) {
		crc ^= p[i];
		crc = crc >> 4 ^ table[crc & 15];
		crc = crc >> 4 ^ table[crc & 15];
	}
	return ~crc;
}

int ferry_trace_writer_open(struct ferry_trace_writer *w, int fd,
			    const struct ferry_trace_header *about, struct ferry_failure *f)
{
	struct ferry_trace_file_header h = {
		.version = FERRY_TRACE_VERSION,
		.endian = FERRY_TRACE_ENDIAN,
		.header_bytes = sizeof(h),
		.entry_bytes = sizeof(struct ferry_trace_entry),
		.start_ns = about->start_ns,
		.start_realtime_ns = about->start_realtime_ns,
		.pid = about->pid,
		.n_regions = about->n_regions,
	};

	*w = (struct ferry_trace_writer){.file = fdopen(fd, "we")};
	if (!w->file) {
		int rc = -errno;

		ferry_close(fd);
		return ferry_fail_errno(f, FERRY_REFUSE, rc, "trace file");
	}
	memcpy(h.magic, FERRY_TRACE_FILE_MAGIC, sizeof(h.magic));
	if (fwrite(&h, sizeof(h), 1, w->file) != 1)
		w->err = errno ? -errno : -EIO;
	return 0;
}

void ferry_trace_writer_add(struct ferry_trace_writer *w, uint32_t ring,
			    const struct ferry_trace_record *rec)
{
	struct ferry_trace_entry e = {.ring = ring, .record = *rec};

	if (w->err)
		return;
	e.check = ferry_trace_crc32(0, &e.ring, sizeof(e.ring));
	e.check = ferry_trace_crc32(e.check, &e.record, sizeof(e.record));
	if (fwrite(&e, sizeof(e), 1, w->file) != 1)
		w->err = errno ? -errno : -EIO;
	else
		w->n_records++;
}

void ferry_trace_writer_flush(struct ferry_trace_writer *w)
{
	if (fflush(w->file) && !w->err)
		w->err = -errno;
}

int ferry_trace_writer_close(struct ferry_trace_writer *w)
{
	struct ferry_trace_record end = {.type = FERRY_TRACE_END};

	if (!w->file)
		return w->err;
	end.end.n_records = w->n_records;
	ferry_trace_writer_add(w, FERRY_TRACE_NO_RING, &end);
	if (fclose(w->file) && !w->err)
		w->err = -errno;
	w->file = NULL;
	return w->err;
}
