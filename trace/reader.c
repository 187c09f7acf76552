/* SPDX-License-Identifier: Apache-2.0 */
#include "trace/reader.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "base/util.h"

struct cursor {
	const struct ferry_trace_ring_desc *desc;
	const struct ferry_trace_slot *slots;
	uint64_t n_slots;
	uint64_t next; /* record to read */
	uint64_t lost;
};

struct ferry_trace_reader {
	const struct ferry_trace_header *header;
	size_t bytes;
	uint32_t n_rings;
	uint32_t at; /* ring that is being read */
	struct cursor cursors[FERRY_TRACE_MAX_RINGS];
};

/* The sizes are copied: who could write the memory must not lead us out of it later. */
static int check(struct ferry_trace_reader *r)
{
	const struct ferry_trace_header *h = r->header;

	if (memcmp(h->magic, FERRY_TRACE_RING_MAGIC, sizeof(h->magic)) ||
	    h->version != FERRY_TRACE_VERSION || h->endian != FERRY_TRACE_ENDIAN ||
	    h->header_bytes != FERRY_TRACE_HEADER_BYTES ||
	    h->slot_bytes != sizeof(struct ferry_trace_slot) ||
	    h->record_bytes != FERRY_TRACE_RECORD_BYTES || h->n_regions > FERRY_TRACE_MAX_REGIONS)
		return -EPROTO;
	r->n_rings = h->n_rings;
	if (r->n_rings > FERRY_TRACE_MAX_RINGS)
		return -EPROTO;
	for (uint32_t i = 0; i < r->n_rings; i++) {
		uint64_t offset = h->rings[i].offset, n = h->rings[i].n_slots;

		if (!n || offset % 8 || offset > r->bytes ||
		    n > (r->bytes - offset) / sizeof(struct ferry_trace_slot))
			return -EPROTO;
		r->cursors[i] = (struct cursor){
			.desc = &h->rings[i],
			.slots = (const struct ferry_trace_slot *)((const char *)h + offset),
			.n_slots = n,
		};
	}
	return 0;
}

int ferry_trace_reader_open(struct ferry_trace_reader **out, int fd, struct ferry_failure *f)
{
	struct ferry_trace_reader *r = calloc(1, sizeof(*r));
	struct stat st;
	void *p;

	if (!r)
		return ferry_fail_errno(f, FERRY_REFUSE, -ENOMEM, "trace");
	if (fstat(fd, &st) < 0 || st.st_size < (off_t)FERRY_TRACE_HEADER_BYTES) {
		free(r);
		return ferry_fail(f, FERRY_REFUSE, -EPROTO, "what came is not a trace's memory");
	}
	r->bytes = (size_t)st.st_size;
	p = mmap(NULL, r->bytes, PROT_READ, MAP_SHARED, fd, 0);
	if (p == MAP_FAILED) {
		int rc = -errno;

		free(r);
		return ferry_fail_errno(f, FERRY_REFUSE, rc, "mapping the trace's memory");
	}
	r->header = p;
	if (check(r) < 0) {
		ferry_trace_reader_close(r);
		return ferry_fail(
			f, FERRY_REFUSE, -EPROTO,
			"the trace's memory is of another version; use the pageferry that "
			"the running command belongs to");
	}
	*out = r;
	return 0;
}

void ferry_trace_reader_close(struct ferry_trace_reader *r)
{
	if (!r)
		return;
	munmap((void *)r->header, r->bytes);
	free(r);
}

const struct ferry_trace_header *ferry_trace_reader_header(const struct ferry_trace_reader *r)
{
	return r->header;
}

uint32_t ferry_trace_reader_n_rings(const struct ferry_trace_reader *r)
{
	return r->n_rings;
}

/* Return: whether record @n was still in its slot for as long as it took to copy it. */
static bool copy_slot(const struct ferry_trace_slot *slot, uint64_t n,
		      struct ferry_trace_record *rec)
{
	uint64_t words[FERRY_TRACE_RECORD_BYTES / 8];

	if (atomic_load_explicit(&slot->number, memory_order_acquire) != 2 * n + 2)
		return false;
	for (size_t i = 0; i < FERRY_ARRAY_SIZE(words); i++)
		words[i] = atomic_load_explicit(&slot->words[i], memory_order_relaxed);
	atomic_thread_fence(memory_order_acquire);
	if (atomic_load_explicit(&slot->number, memory_order_relaxed) != 2 * n + 2)
		return false;
	memcpy(rec, words, sizeof(words));
	return true;
}

static bool next_of(struct cursor *c, struct ferry_trace_record *rec)
{
	for (;;) {
		uint64_t head = atomic_load_explicit(&c->desc->head, memory_order_acquire);

		if (c->next >= head)
			return false;
		if (head - c->next > c->n_slots) {
			c->lost += head - c->n_slots - c->next;
			c->next = head - c->n_slots;
		}
		if (copy_slot(&c->slots[c->next % c->n_slots], c->next, rec)) {
			c->next++;
			return true;
		}
		/* Overwritten since head was read. */
		c->lost++;
		c->next++;
	}
}

bool ferry_trace_reader_next(struct ferry_trace_reader *r, struct ferry_trace_record *rec,
			     uint32_t *ring)
{
	for (uint32_t i = 0; i < r->n_rings; i++) {
		uint32_t at = r->at;

		if (next_of(&r->cursors[at], rec)) {
			*ring = at;
			return true;
		}
		r->at = (at + 1) % r->n_rings;
	}
	return false;
}

uint64_t ferry_trace_reader_lost(const struct ferry_trace_reader *r, uint32_t ring)
{
	return r->cursors[ring].lost;
}

bool ferry_trace_reader_ended(const struct ferry_trace_reader *r)
{
	return atomic_load_explicit(&r->header->ended, memory_order_acquire);
}
