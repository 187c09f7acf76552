/* SPDX-License-Identifier: Apache-2.0 */
#include "trace/recorder.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/util.h"

/* Often enough that a ring is not overwritten at the highest rate of faults, and seldom enough to
 * cost nothing. */
#define LOOK_MS	     20
#define FLUSH_EVERY  50 /* looks */
#define THREADS_MAX  4096
#define STOP_FDS_MAX 4

struct ferry_recorder {
	struct ferry_trace_reader *reader;
	struct ferry_trace_writer writer;
	bool regions_written, names_written;
	uint32_t threads[THREADS_MAX]; /* whose names are written; by hash */
	uint32_t n_threads;
	bool has_thread;
	pthread_t thread;
	int stop_fd;
};

int ferry_recorder_open(struct ferry_recorder **out, int file_fd, int fd, struct ferry_failure *f)
{
	struct ferry_recorder *r = calloc(1, sizeof(*r));
	int rc;

	if (!r) {
		ferry_close(file_fd);
		return ferry_fail_errno(f, FERRY_REFUSE, -ENOMEM, "recorder");
	}
	r->stop_fd = -1;
	rc = ferry_trace_reader_open(&r->reader, fd, f);
	if (rc < 0)
		ferry_close(file_fd);
	else
		rc = ferry_trace_writer_open(&r->writer, file_fd,
					     ferry_trace_reader_header(r->reader), f);
	if (rc < 0) {
		ferry_trace_reader_close(r->reader);
		free(r);
		return rc;
	}
	*out = r;
	return 0;
}

/* Written again when the names become known, which is with the first session. */
static void write_regions(struct ferry_recorder *r)
{
	const struct ferry_trace_header *h = ferry_trace_reader_header(r->reader);

	if (r->names_written)
		return;
	for (uint32_t i = 0; i < FERRY_MIN(h->n_regions, FERRY_TRACE_MAX_REGIONS); i++) {
		struct ferry_trace_record rec = {
			.type = FERRY_TRACE_REGION, .region = i, .desc = h->regions[i]};

		rec.desc.name[sizeof(rec.desc.name) - 1] = '\0';
		ferry_trace_writer_add(&r->writer, FERRY_TRACE_NO_RING, &rec);
	}
	r->regions_written = true;
	r->names_written = atomic_load_explicit(&h->has_names, memory_order_acquire);
}

/* Return: whether it is new, and there is room to remember it. */
static bool is_new_thread(struct ferry_recorder *r, uint32_t thread)
{
	uint32_t i = thread * 2654435761u % THREADS_MAX;

	if (!thread || r->n_threads > THREADS_MAX / 2)
		return false;
	while (r->threads[i] && r->threads[i] != thread)
		i = (i + 1) % THREADS_MAX;
	if (r->threads[i])
		return false;
	r->threads[i] = thread;
	r->n_threads++;
	return true;
}

static void write_thread(struct ferry_recorder *r, uint32_t thread)
{
	struct ferry_trace_record rec = {.type = FERRY_TRACE_THREAD, .text = {.thread = thread}};
	_cleanup_close_ int fd = -1;
	char path[64];
	ssize_t n;

	if (!is_new_thread(r, thread))
		return;
	snprintf(path, sizeof(path), "/proc/%u/task/%u/comm",
		 ferry_trace_reader_header(r->reader)->pid, thread);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	n = fd < 0 ? -1 : read(fd, rec.text.text, sizeof(rec.text.text) - 1);
	if (n <= 1)
		return;
	rec.text.text[n - 1] = '\0'; /* instead of the newline */
	for (char *c = rec.text.text; *c; c++)
		if (*c < ' ' || *c > '~')
			*c = '?';
	ferry_trace_writer_add(&r->writer, FERRY_TRACE_NO_RING, &rec);
}

static void drain(struct ferry_recorder *r)
{
	struct ferry_trace_record rec;
	uint32_t ring;

	if (atomic_load_explicit(&ferry_trace_reader_header(r->reader)->has_names,
				 memory_order_acquire))
		write_regions(r);
	while (ferry_trace_reader_next(r->reader, &rec, &ring)) {
		if (!r->regions_written)
			write_regions(r);
		if (rec.type == FERRY_TRACE_FAULT || rec.type == FERRY_TRACE_JOIN)
			write_thread(r, rec.fault.thread);
		ferry_trace_writer_add(&r->writer, ring, &rec);
	}
}

void ferry_recorder_run(struct ferry_recorder *r, const int *stop_fds, unsigned int n_stop_fds,
			int64_t timeout_ms)
{
	uint64_t start = ferry_now_ns(), looks = 0;
	struct pollfd p[STOP_FDS_MAX];
	bool over = false;

	n_stop_fds = FERRY_MIN(n_stop_fds, (unsigned int)STOP_FDS_MAX);
	for (unsigned int i = 0; i < n_stop_fds; i++)
		p[i] = (struct pollfd){.fd = stop_fds[i], .events = POLLIN};
	while (!over && !r->writer.err) {
		int64_t left = INT64_MAX;

		over = ferry_trace_reader_ended(r->reader);
		drain(r);
		if (++looks % FLUSH_EVERY == 0)
			ferry_trace_writer_flush(&r->writer);
		if (timeout_ms >= 0)
			left = timeout_ms - (int64_t)((ferry_now_ns() - start) / FERRY_NS_PER_MS);
		over = over || left <= 0;
		if (!over)
			over = poll(p, n_stop_fds, (int)FERRY_MIN(left, (int64_t)LOOK_MS)) > 0;
	}
}

static void *run_thread(void *arg)
{
	struct ferry_recorder *r = arg;

	ferry_recorder_run(r, &r->stop_fd, 1, -1);
	return NULL;
}

int ferry_recorder_start(struct ferry_recorder *r, struct ferry_failure *f)
{
	int rc;

	r->stop_fd = eventfd(0, EFD_CLOEXEC);
	if (r->stop_fd < 0)
		return ferry_fail_errno(f, FERRY_REFUSE, -errno, "recorder");
	rc = pthread_create(&r->thread, NULL, run_thread, r);
	if (rc)
		return ferry_fail_errno(f, FERRY_REFUSE, -rc, "recorder");
	r->has_thread = true;
	return 0;
}

void ferry_recorder_stop(struct ferry_recorder *r)
{
	if (!r->has_thread)
		return;
	eventfd_write(r->stop_fd, 1);
	pthread_join(r->thread, NULL);
	r->has_thread = false;
}

int ferry_recorder_close(struct ferry_recorder *r, uint64_t *n_records, uint64_t *n_lost,
			 struct ferry_failure *f)
{
	uint64_t lost = 0, written;
	int rc;

	ferry_recorder_stop(r);
	drain(r);
	if (!r->regions_written)
		write_regions(r);
	for (uint32_t i = 0; i < ferry_trace_reader_n_rings(r->reader); i++) {
		struct ferry_trace_record rec = {
			.type = FERRY_TRACE_LOST,
			.time_ns = ferry_now_ns(),
			.lost = {.n = ferry_trace_reader_lost(r->reader, i), .ring = i},
		};

		if (rec.lost.n)
			ferry_trace_writer_add(&r->writer, FERRY_TRACE_NO_RING, &rec);
		lost += rec.lost.n;
	}
	written = r->writer.n_records;
	rc = ferry_trace_writer_close(&r->writer);
	if (n_records)
		*n_records = written;
	if (n_lost)
		*n_lost = lost;
	ferry_trace_reader_close(r->reader);
	ferry_close(r->stop_fd);
	free(r);
	return rc < 0 ? ferry_fail_errno(f, FERRY_REFUSE, rc, "writing the trace file") : 0;
}
