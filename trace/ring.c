/* SPDX-License-Identifier: Apache-2.0 */
#include "trace/ring.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/util.h"

#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010
#endif
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

struct ferry_trace_ring {
	struct ferry_trace_ring_desc *desc;
	struct ferry_trace_slot *slots;
	uint64_t n_slots;
	uint64_t next;		/* only its producer looks at it */
} __attribute__((aligned(64))); /* no producer shares a cache line with another */

struct ferry_trace {
	int fd;
	struct ferry_trace_header *header;
	size_t bytes;
	uint32_t n_rings;
	struct ferry_trace_ring rings[FERRY_TRACE_MAX_RINGS];
};

static uint64_t realtime_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_REALTIME, &ts);
	return (uint64_t)ts.tv_sec * FERRY_NS_PER_S + (uint64_t)ts.tv_nsec;
}

static size_t total_bytes(const struct ferry_trace_config *config)
{
	size_t bytes = FERRY_TRACE_HEADER_BYTES;

	for (uint32_t i = 0; i < config->n_rings; i++)
		bytes += config->rings[i].n_slots * sizeof(struct ferry_trace_slot);
	return bytes;
}

static int map_memory(struct ferry_trace *t, struct ferry_failure *f)
{
	void *p;

	t->fd = memfd_create("pageferry-trace", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (t->fd < 0 || ftruncate(t->fd, (off_t)t->bytes) < 0)
		return ferry_fail_errno(f, FERRY_REFUSE, -errno, "memory for the trace");
	p = mmap(NULL, t->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, t->fd, 0);
	if (p == MAP_FAILED)
		return ferry_fail_errno(f, FERRY_REFUSE, -errno, "mapping the trace's memory");
	t->header = p;
	/* Readers can neither shorten it under us nor write; an old kernel allows the latter. */
	(void)fcntl(t->fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW);
	(void)fcntl(t->fd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE);
	return 0;
}

static void write_header(struct ferry_trace *t, const struct ferry_trace_config *config)
{
	struct ferry_trace_header *h = t->header;
	uint64_t offset = FERRY_TRACE_HEADER_BYTES;

	memcpy(h->magic, FERRY_TRACE_RING_MAGIC, sizeof(h->magic));
	h->version = FERRY_TRACE_VERSION;
	h->endian = FERRY_TRACE_ENDIAN;
	h->header_bytes = FERRY_TRACE_HEADER_BYTES;
	h->slot_bytes = sizeof(struct ferry_trace_slot);
	h->record_bytes = FERRY_TRACE_RECORD_BYTES;
	h->n_rings = config->n_rings;
	h->pid = (uint32_t)config->pid;
	h->n_regions = config->n_regions;
	h->start_ns = ferry_now_ns();
	h->start_realtime_ns = realtime_ns();
	for (uint32_t i = 0; i < config->n_regions; i++)
		h->regions[i] = config->regions[i];
	for (uint32_t i = 0; i < config->n_rings; i++) {
		const struct ferry_trace_ring_config *c = &config->rings[i];
		size_t bytes = c->n_slots * sizeof(struct ferry_trace_slot);

		h->rings[i].kind = c->kind;
		h->rings[i].index = c->index;
		h->rings[i].offset = offset;
		h->rings[i].n_slots = c->n_slots;
		t->rings[i].desc = &h->rings[i];
		t->rings[i].slots = (struct ferry_trace_slot *)((char *)h + offset);
		t->rings[i].n_slots = c->n_slots;
		if (c->populate)
			(void)madvise((char *)h + offset, bytes, MADV_POPULATE_WRITE);
		offset += bytes;
	}
	t->n_rings = config->n_rings;
}

int ferry_trace_new(struct ferry_trace **out, const struct ferry_trace_config *config,
		    struct ferry_failure *f)
{
	struct ferry_trace *t;
	int rc;

	if (config->n_rings > FERRY_TRACE_MAX_RINGS || config->n_regions > FERRY_TRACE_MAX_REGIONS)
		return ferry_fail(f, FERRY_REFUSE, -EINVAL, "trace: too many rings or regions");
	t = aligned_alloc(_Alignof(struct ferry_trace), sizeof(*t));
	if (!t)
		return ferry_fail_errno(f, FERRY_REFUSE, -ENOMEM, "trace");
	*t = (struct ferry_trace){.fd = -1};
	t->bytes = total_bytes(config);
	rc = map_memory(t, f);
	if (rc < 0) {
		ferry_trace_free(t);
		return rc;
	}
	write_header(t, config);
	*out = t;
	return 0;
}

void ferry_trace_free(struct ferry_trace *t)
{
	if (!t)
		return;
	if (t->header) {
		atomic_store_explicit(&t->header->ended, 1, memory_order_release);
		munmap(t->header, t->bytes);
	}
	ferry_close(t->fd);
	free(t);
}

int ferry_trace_fd(const struct ferry_trace *t)
{
	char path[64];
	int fd;

	if (!t)
		return -ENOMEM;
	snprintf(path, sizeof(path), "/proc/self/fd/%d", t->fd);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	return fd < 0 ? -errno : fd;
}

struct ferry_trace_ring *ferry_trace_ring(struct ferry_trace *t, enum ferry_trace_ring_kind kind,
					  uint32_t index)
{
	for (uint32_t i = 0; t && i < t->n_rings; i++)
		if (t->rings[i].desc->kind == kind && t->rings[i].desc->index == index)
			return &t->rings[i];
	return NULL;
}

void ferry_trace_emit(struct ferry_trace_ring *r, const struct ferry_trace_record *rec)
{
	struct ferry_trace_slot *slot;
	uint64_t words[FERRY_TRACE_RECORD_BYTES / 8];
	uint64_t n;

	if (!r)
		return;
	n = r->next++;
	slot = &r->slots[n % r->n_slots];
	memcpy(words, rec, sizeof(words));
	/*
	 * Whoever reads a word of the new record also sees the odd number, because the fence orders
	 * the number before the words; the even one is only seen with all words in place.
	 */
	atomic_store_explicit(&slot->number, 2 * n + 1, memory_order_relaxed);
	atomic_thread_fence(memory_order_release);
	for (size_t i = 0; i < FERRY_ARRAY_SIZE(words); i++)
		atomic_store_explicit(&slot->words[i], words[i], memory_order_relaxed);
	atomic_store_explicit(&slot->number, 2 * n + 2, memory_order_release);
	atomic_store_explicit(&r->desc->head, n + 1, memory_order_release);
}

void ferry_trace_mark(struct ferry_trace *t, const char *text)
{
	struct ferry_trace_record rec = {.type = FERRY_TRACE_MARK, .time_ns = ferry_now_ns()};

	snprintf(rec.text.text, sizeof(rec.text.text), "%s", text);
	ferry_trace_emit(ferry_trace_ring(t, FERRY_RING_OWNER, 0), &rec);
}

void ferry_trace_name_regions(struct ferry_trace *t,
			      const char *(*name)(const void *ctx, uint32_t i), const void *ctx)
{
	struct ferry_trace_header *h = t ? t->header : NULL;

	if (!h || atomic_load_explicit(&h->has_names, memory_order_relaxed))
		return;
	for (uint32_t i = 0; i < h->n_regions; i++)
		snprintf(h->regions[i].name, sizeof(h->regions[i].name), "%s", name(ctx, i));
	atomic_store_explicit(&h->has_names, 1, memory_order_release);
}
