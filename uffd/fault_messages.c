/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The fault loop's messages: what the kernel tells of faults, and of changes of the mapping.
 *
 * Events go before the faults of the same batch. Faults that wait for the source are the pager's;
 * those that can be answered from here are left in ->local, as far as there is room.
 *
 * Reading never stops for want of room, since a process that changes its mappings waits for its event
 * to be read, and placing waits for the process.
 */
#include <unistd.h>

#include "base/clock.h"
#include "base/util.h"
#include "trace/usdt.h"
#include "uffd/fault_loop.h"

#define MESSAGES_A_READ 64u
#define BATCHES		16u /* before answers are looked at again */

/* Return: the region that has @address, or NULL. */
static const struct ferry_engine_region *find_region(struct ferry_target *t, uint64_t address,
						     uint32_t *id, uint64_t *page)
{
	for (uint32_t i = 0; i < t->n_regions; i++) {
		const struct ferry_engine_region *r = &t->regions[i];
		uint64_t start = atomic_load(&r->start);

		if (address >= start && address - start < r->bytes) {
			*id = i;
			*page = (address - start) / r->info.desc.page_bytes;
			return r;
		}
	}
	return NULL;
}

static void untracked(struct fault_loop *l, uint64_t address)
{
	struct ferry_failure why;

	ferry_fail(&why, FERRY_LOST, -EFAULT,
		   "a thread touched %#llx, which no region has; it waits, and is not given zeros",
		   (unsigned long long)address);
	ferry_engine_notify(l->t, FERRY_TARGET_FAILED, &why);
}

/* @m: what the messages of the batch have in common */
static void handle_fault(struct fault_loop *l, const struct uffd_msg *msg,
			 struct ferry_pending_message m)
{
	struct ferry_target *t = l->t;
	enum ferry_fault_verdict verdict;

	atomic_fetch_add_explicit(&t->counters.faults, 1, memory_order_relaxed);
	if (!find_region(t, msg->arg.pagefault.address, &m.region, &m.page)) {
		untracked(l, msg->arg.pagefault.address);
		return;
	}
	if (msg->arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WRITE)
		m.flags |= FERRY_FAULT_F_WRITE;
	if (t->uffd.features & UFFD_FEATURE_THREAD_ID)
		m.thread = msg->arg.pagefault.feat.ptid;
	FERRY_PROBE3(fault_read, m.region, m.page, m.thread);
	verdict = ferry_pager_fault(&t->pager, m.region, m.page);
	switch (verdict) {
	case FERRY_FAULT_ASK:
		ferry_pending_read(&l->pending, &m);
		if (t->hooks.faulted)
			t->hooks.faulted(t->hooks.ctx, m.region, m.page);
		ferry_notice_fault(&l->notice, &m);
		ferry_fault_ask_page(l, m.region, m.page);
		break;
	case FERRY_FAULT_ASKED:
		ferry_pending_join(&l->pending, &m);
		atomic_fetch_add_explicit(&t->counters.faults_coalesced, 1, memory_order_relaxed);
		break;
	case FERRY_FAULT_ZERO:
	case FERRY_FAULT_PLACED:
		if (l->n_local < LOCAL_MAX)
			l->local[l->n_local++] =
				(struct local_fault){m, verdict == FERRY_FAULT_ZERO};
		else
			l->dropped = true;
		break;
	}
}

/* The part of [start, end) that lies in region @id, in pages. Return: false when there is none. */
static bool clip(const struct ferry_target *t, uint32_t id, uint64_t start, uint64_t end,
		 struct ferry_run *run)
{
	const struct ferry_engine_region *r = &t->regions[id];
	uint64_t base = atomic_load(&r->start);
	uint64_t from = FERRY_MAX(start, base), to = FERRY_MIN(end, base + r->bytes);

	if (from >= to)
		return false;
	run->region = id;
	run->first_page = (from - base) / r->info.desc.page_bytes;
	run->n_pages = (uint32_t)((to - from) / r->info.desc.page_bytes);
	return run->n_pages;
}

static void note_discard(struct fault_loop *l, const struct ferry_run *run)
{
	struct ferry_trace_record rec = {
		.type = FERRY_TRACE_DISCARD,
		.region = run->region,
		.time_ns = ferry_now_ns(),
		.discard = {.first_page = run->first_page, .n_pages = run->n_pages},
	};

	ferry_trace_emit(l->pending.ring, &rec);
}

/* Threads may wait for pages of a run that was just discarded. */
static void look_for_waiting(struct fault_loop *l, const struct ferry_run *run)
{
	struct range *d = &l->discards[run->region];
	uint64_t end = run->first_page + run->n_pages;

	d->page = d->page < d->end ? FERRY_MIN(d->page, run->first_page) : run->first_page;
	d->end = FERRY_MAX(d->end, end);
}

static void handle_remove(struct fault_loop *l, uint64_t start, uint64_t end, bool unmapped)
{
	struct ferry_target *t = l->t;
	struct ferry_run run;

	for (uint32_t i = 0; i < t->n_regions; i++) {
		/* See fill.c: in shared memory a REMOVE need not mean that content went. */
		if (!clip(t, i, start, end, &run) ||
		    (!unmapped && !ferry_engine_discards(&t->regions[i])))
			continue;
		ferry_pager_discarded(&t->pager, &run);
		atomic_fetch_add_explicit(&t->counters.discarded_pages, run.n_pages,
					  memory_order_relaxed);
		look_for_waiting(l, &run);
		note_discard(l, &run);
	}
}

static void handle_remap(struct fault_loop *l, uint64_t from, uint64_t to, uint64_t len)
{
	struct ferry_target *t = l->t;
	struct ferry_failure why;

	for (uint32_t i = 0; i < t->n_regions; i++) {
		uint64_t start = atomic_load(&t->regions[i].start);

		if (from >= start + t->regions[i].bytes || from + len <= start)
			continue;
		if (from <= start && from + len >= start + t->regions[i].bytes) {
			atomic_store(&t->regions[i].start, to + (start - from));
			/* Who waited at the old place finds out that nothing is there. */
			(void)ferry_uffd_wake(&t->uffd, (struct ferry_hva){start},
					      t->regions[i].bytes);
			continue;
		}
		ferry_fail(&why, FERRY_LOST, -ENOTSUP,
			   "region %u: the process moved a part of it; threads that touch missing "
			   "pages of that part wait",
			   i);
		ferry_engine_notify(t, FERRY_TARGET_FAILED, &why);
	}
}

static void handle_event(struct fault_loop *l, const struct uffd_msg *msg)
{
	switch (msg->event) {
	case UFFD_EVENT_REMOVE:
	case UFFD_EVENT_UNMAP:
		handle_remove(l, msg->arg.remove.start, msg->arg.remove.end,
			      msg->event == UFFD_EVENT_UNMAP);
		break;
	case UFFD_EVENT_REMAP:
		handle_remap(l, msg->arg.remap.from, msg->arg.remap.to, msg->arg.remap.len);
		break;
	}
}

/* Read one batch. Return: how many messages, 0 when there are none. */
static size_t read_messages(struct fault_loop *l, struct uffd_msg *msgs)
{
	struct ferry_target *t = l->t;
	size_t n_msgs = 0;
	ssize_t n;

	pthread_mutex_lock(&t->discard_lock);
	n = read(t->uffd.fd, msgs, MESSAGES_A_READ * sizeof(*msgs));
	if (n > 0)
		n_msgs = (size_t)n / sizeof(*msgs);
	/* Events first: a fault that was read before a discard may have come after it. */
	for (size_t i = 0; i < n_msgs; i++)
		if (msgs[i].event != UFFD_EVENT_PAGEFAULT)
			handle_event(l, &msgs[i]);
	pthread_mutex_unlock(&t->discard_lock);
	return n_msgs;
}

void ferry_fault_drain(struct fault_loop *l)
{
	struct uffd_msg msgs[MESSAGES_A_READ];

	for (unsigned int batch = 0; batch < BATCHES; batch++) {
		size_t n = read_messages(l, msgs);
		struct ferry_pending_message m = {.read_ns = ferry_now_ns(), .batch = (uint32_t)n};

		ferry_notice_read(&l->notice, &m);
		for (size_t i = 0; i < n; i++)
			if (msgs[i].event == UFFD_EVENT_PAGEFAULT)
				handle_fault(l, &msgs[i], m);
		if (n < MESSAGES_A_READ) {
			ferry_notice_empty(&l->notice, m.read_ns);
			break;
		}
	}
}
