/* SPDX-License-Identifier: Apache-2.0 */
#include "uffd/pending.h"

#include "base/util.h"

static uint64_t key_of(uint32_t region, uint64_t page)
{
	return ((uint64_t)region << 40 | page) + 1;
}

static uint32_t slot_of(uint64_t key)
{
	return (uint32_t)(key * UINT64_C(0x9e3779b97f4a7c15) >> 40) % FERRY_PENDING_SLOTS;
}

/* Return: the slot that has the page, or the free one where it belongs. */
static struct ferry_pending_slot *find_slot(struct ferry_pending *p, uint32_t region, uint64_t page)
{
	uint64_t key = key_of(region, page);
	uint32_t i = slot_of(key);

	while (p->slots[i].key && p->slots[i].key != key)
		i = (i + 1) % FERRY_PENDING_SLOTS;
	return &p->slots[i];
}

static struct ferry_trace_record *find(struct ferry_pending *p, uint32_t region, uint64_t page)
{
	struct ferry_pending_slot *s = find_slot(p, region, page);

	return s->key ? &s->rec : NULL;
}

/* The slot was taken, or became free. */
static void tell_since(struct ferry_pending *p, uint32_t i)
{
	const struct ferry_pending_slot *s = &p->slots[i];

	if (p->since_ns)
		atomic_store_explicit(&p->since_ns[i], s->key ? s->rec.time_ns : 0,
				      memory_order_relaxed);
}

static void free_slot(struct ferry_pending *p, struct ferry_pending_slot *slot)
{
	uint32_t hole = (uint32_t)(slot - p->slots), i = hole;

	/* Close the gap: whoever probed past this slot must still be found. */
	for (;;) {
		uint32_t home;

		i = (i + 1) % FERRY_PENDING_SLOTS;
		if (!p->slots[i].key)
			break;
		home = slot_of(p->slots[i].key);
		if ((i - home) % FERRY_PENDING_SLOTS >= (i - hole) % FERRY_PENDING_SLOTS) {
			p->slots[hole] = p->slots[i];
			tell_since(p, hole);
			hole = i;
		}
	}
	p->slots[hole].key = 0;
	tell_since(p, hole);
	p->n--;
}

static struct ferry_trace_record begin(struct ferry_pending *p,
				       const struct ferry_pending_message *m)
{
	return (struct ferry_trace_record){
		.type = FERRY_TRACE_FAULT,
		.flags = m->flags,
		.region = m->region,
		.time_ns = m->read_ns,
		.fault =
			{
				.id = ++p->next_id,
				.page = m->page,
				.thread = m->thread,
				.batch = m->batch,
				.outstanding = p->n,
				.notice_ns = m->notice_ns,
			},
	};
}

/* Whoever reads the records must know that some are missing. */
static void tell_unrecorded(struct ferry_pending *p, uint64_t now_ns)
{
	struct ferry_trace_record rec = {
		.type = FERRY_TRACE_LOST,
		.time_ns = now_ns,
		.lost = {.n = p->n_unrecorded},
	};

	if (p->n_unrecorded)
		ferry_trace_emit(p->ring, &rec);
	p->n_unrecorded = 0;
}

/* The fault of @slot is over. */
static void end(struct ferry_pending *p, struct ferry_pending_slot *slot, uint64_t placed_ns,
		uint16_t flags)
{
	struct ferry_trace_record *rec = &slot->rec;

	rec->flags |= flags;
	rec->fault.placed_ns = placed_ns;
	if (placed_ns > rec->time_ns)
		ferry_histogram_add(p->fault_ns, placed_ns - rec->time_ns);
	ferry_trace_emit(p->ring, rec);
	tell_unrecorded(p, placed_ns);
	free_slot(p, slot);
}

void ferry_pending_read(struct ferry_pending *p, const struct ferry_pending_message *m)
{
	struct ferry_pending_slot *s = find_slot(p, m->region, m->page);

	if (!s->key) {
		if (p->n == FERRY_MAX_PENDING) {
			p->n_unrecorded++;
			return;
		}
		p->n++;
	}
	s->key = key_of(m->region, m->page);
	s->rec = begin(p, m);
	tell_since(p, (uint32_t)(s - p->slots));
}

void ferry_pending_join(struct ferry_pending *p, const struct ferry_pending_message *m)
{
	struct ferry_trace_record *first = find(p, m->region, m->page), rec;

	if (!first) {
		/* Asked for by a sweep: this thread is the first that waits. */
		ferry_pending_read(p, m);
		first = find(p, m->region, m->page);
		if (first)
			first->flags |= FERRY_FAULT_F_SWEPT;
		return;
	}
	first->fault.joins++;
	rec = (struct ferry_trace_record){
		.type = FERRY_TRACE_JOIN,
		.flags = m->flags,
		.region = m->region,
		.time_ns = m->read_ns,
		.fault =
			{
				.id = first->fault.id,
				.page = m->page,
				.thread = m->thread,
				.batch = m->batch,
				.outstanding = p->n,
				.notice_ns = m->notice_ns,
			},
	};
	ferry_trace_emit(p->ring, &rec);
}

void ferry_pending_sent(struct ferry_pending *p, const struct ferry_page_request *r,
			uint64_t now_ns)
{
	for (uint32_t i = 0; p->n && i < r->n_runs; i++) {
		const struct ferry_run *run = &r->runs[i];

		for (uint32_t k = 0; k < run->n_pages; k++) {
			struct ferry_trace_record *rec = find(p, run->region, run->first_page + k);

			/* Asked twice over the same connection: the first is the one that counts.
			 */
			if (!rec ||
			    (rec->fault.sends && rec->fault.request_id >= p->link_request_id))
				continue;
			if (rec->fault.sends++)
				rec->flags |= FERRY_FAULT_F_RESENT;
			else
				rec->fault.first_sent_ns = now_ns;
			rec->fault.sent_ns = now_ns;
			rec->fault.request_id = r->request_id;
			rec->fault.runs = r->n_runs;
		}
	}
}

uint32_t ferry_pending_answered(struct ferry_pending *p, const struct ferry_page_run *run,
				uint64_t received_ns, uint64_t placed_ns, uint16_t flags)
{
	uint32_t n = 0;

	if (run->encoding == FERRY_ENCODING_ZERO)
		flags |= FERRY_FAULT_F_ZERO;
	for (uint32_t i = 0; p->n && i < run->run.n_pages; i++) {
		struct ferry_pending_slot *s =
			find_slot(p, run->run.region, run->run.first_page + i);

		if (!s->key)
			continue;
		s->rec.fault.received_ns = received_ns;
		s->rec.fault.source_received_ns = run->received_ns;
		s->rec.fault.source_answered_ns = run->answered_ns;
		end(p, s, placed_ns, flags);
		n++;
	}
	return n;
}

void ferry_pending_settle(struct ferry_pending *p, uint32_t region, uint64_t page,
			  uint64_t placed_ns, uint16_t flags)
{
	struct ferry_pending_slot *s = find_slot(p, region, page);

	if (s->key)
		end(p, s, placed_ns, flags);
}

void ferry_pending_local(struct ferry_pending *p, const struct ferry_pending_message *m,
			 uint64_t placed_ns, uint16_t flags)
{
	struct ferry_trace_record rec = begin(p, m);

	rec.flags |= FERRY_FAULT_F_LOCAL | flags;
	rec.fault.placed_ns = placed_ns;
	ferry_histogram_add(p->local_ns, placed_ns - m->read_ns);
	ferry_trace_emit(p->ring, &rec);
}

void ferry_pending_prune(struct ferry_pending *p, const struct ferry_pager *pager,
			 uint64_t next_request_id, uint64_t now_ns)
{
	p->link_request_id = next_request_id;
	/* An empty table is not even looked at: its pages were never touched, and need no memory. */
	for (uint32_t i = 0; p->n && i < FERRY_PENDING_SLOTS;) {
		struct ferry_pending_slot *s = &p->slots[i];

		/* Ending one may move another into its slot: look at that again. */
		if (s->key &&
		    ferry_bitmap_test(&pager->regions[s->rec.region].known, s->rec.fault.page))
			end(p, s, now_ns, FERRY_FAULT_F_FOUND);
		else
			i++;
	}
}

void ferry_pending_end(struct ferry_pending *p)
{
	for (uint32_t i = 0; p->n && i < FERRY_PENDING_SLOTS;) {
		if (p->slots[i].key)
			end(p, &p->slots[i], 0, FERRY_FAULT_F_UNANSWERED);
		else
			i++;
	}
}

void ferry_pending_woken(struct ferry_pending *p, uint32_t region, uint64_t page,
			 uint64_t notice_ns)
{
	struct ferry_trace_record *rec = find(p, region, page);

	if (!rec)
		return;
	rec->flags |= FERRY_FAULT_F_WOKEN;
	rec->fault.notice_ns = (uint32_t)FERRY_MIN(notice_ns, (uint64_t)UINT32_MAX);
}
