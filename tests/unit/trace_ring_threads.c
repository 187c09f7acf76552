/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One producer at full speed, two readers: no record may be torn, and what a reader got plus what
 * it is told that it lost must be exactly what was written. A plain program, so that the thread
 * sanitizer can run it.
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/util.h"
#include "trace/reader.h"

#define RECORDS 400000u
#define SLOTS	64u

struct reader {
	struct ferry_trace_reader *r;
	pthread_t thread;
	uint64_t n_read, n_torn, n_disorder;
};

static void fail(const char *what)
{
	fprintf(stderr, "trace_ring_threads: %s\n", what);
	exit(1);
}

static void *produce(void *arg)
{
	struct ferry_trace_ring *ring = arg;

	for (uint64_t n = 0; n < RECORDS; n++) {
		struct ferry_trace_record rec = {.type = FERRY_TRACE_FAULT, .time_ns = n};

		for (size_t i = 0; i < FERRY_ARRAY_SIZE(rec.words); i++)
			rec.words[i] = n * 31 + i;
		ferry_trace_emit(ring, &rec);
	}
	return NULL;
}

static void take(struct reader *r, const struct ferry_trace_record *rec, uint64_t *next)
{
	for (size_t i = 0; i < FERRY_ARRAY_SIZE(rec->words); i++)
		if (rec->words[i] != rec->time_ns * 31 + i) {
			r->n_torn++;
			break;
		}
	if (rec->time_ns < *next)
		r->n_disorder++;
	*next = rec->time_ns + 1;
	r->n_read++;
}

/* Until the last record was read: it is never overwritten. */
static void *consume(void *arg)
{
	struct reader *r = arg;
	struct ferry_trace_record rec;
	uint64_t next = 0;
	uint32_t ring;

	while (next < RECORDS)
		if (ferry_trace_reader_next(r->r, &rec, &ring))
			take(r, &rec, &next);
	return NULL;
}

int main(void)
{
	const struct ferry_trace_ring_config ring = {.kind = FERRY_RING_FAULT, .n_slots = SLOTS};
	const struct ferry_trace_config config = {.rings = &ring, .n_rings = 1, .pid = getpid()};
	struct ferry_trace *t = NULL;
	struct reader readers[2] = {{0}};
	pthread_t producer;

	if (ferry_trace_new(&t, &config, NULL) < 0)
		fail("no rings");
	for (int i = 0; i < 2; i++) {
		int fd = ferry_trace_fd(t);

		if (fd < 0 || ferry_trace_reader_open(&readers[i].r, fd, NULL) < 0)
			fail("no reader");
		close(fd);
		pthread_create(&readers[i].thread, NULL, consume, &readers[i]);
	}
	pthread_create(&producer, NULL, produce, ferry_trace_ring(t, FERRY_RING_FAULT, 0));
	pthread_join(producer, NULL);
	for (int i = 0; i < 2; i++) {
		struct reader *r = &readers[i];
		uint64_t lost;

		pthread_join(r->thread, NULL);
		lost = ferry_trace_reader_lost(r->r, 0);
		printf("reader %d: %llu read, %llu lost\n", i, (unsigned long long)r->n_read,
		       (unsigned long long)lost);
		if (r->n_torn)
			fail("a torn record was given out");
		if (r->n_disorder)
			fail("records came out of order");
		if (r->n_read + lost != RECORDS)
			fail("read and lost don't add up to what was written");
		ferry_trace_reader_close(r->r);
	}
	ferry_trace_free(t);
	return 0;
}
