/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/util.h"
#include "trace/file.h"

static int add(struct ferry_trace_records *to, const struct ferry_trace_record *rec)
{
	if (to->n == to->room) {
		size_t room = to->room ? to->room * 2 : 256;
		struct ferry_trace_record *v = reallocarray(to->v, room, sizeof(*v));

		if (!v)
			return -ENOMEM;
		to->v = v;
		to->room = room;
	}
	to->v[to->n++] = *rec;
	return 0;
}

void ferry_trace_log_fini(struct ferry_trace_log *log)
{
	free(log->faults.v);
	free(log->unanswered.v);
	free(log->joins.v);
	free(log->pushes.v);
	free(log->clocks.v);
	free(log->links.v);
	free(log->discards.v);
	free(log->marks.v);
	free(log->threads.v);
	*log = (struct ferry_trace_log){0};
}

static bool in_region(const struct ferry_trace_log *log, uint32_t region, uint64_t first,
		      uint64_t n)
{
	return region < log->n_regions && n <= log->regions[region].n_pages &&
	       first <= log->regions[region].n_pages - n;
}

/* Where a record belongs, or NULL when it makes no sense. */
static struct ferry_trace_records *place_of(struct ferry_trace_log *log,
					    const struct ferry_trace_record *r)
{
	const struct ferry_trace_fault *f = &r->fault;

	switch (r->type) {
	case FERRY_TRACE_FAULT:
		if (!in_region(log, r->region, f->page, 1) || !f->id)
			return NULL;
		if (r->flags & FERRY_FAULT_F_UNANSWERED)
			return &log->unanswered;
		return f->placed_ns >= r->time_ns ? &log->faults : NULL;
	case FERRY_TRACE_JOIN:
		return in_region(log, r->region, f->page, 1) ? &log->joins : NULL;
	case FERRY_TRACE_PUSH:
		return in_region(log, r->region, r->push.first_page, r->push.n_pages) &&
				       r->push.n_new <= r->push.n_pages
			       ? &log->pushes
			       : NULL;
	case FERRY_TRACE_CLOCK:
		return r->clock.uncertainty_ns <= INT64_MAX / 4 &&
				       llabs(r->clock.offset_ns) <= INT64_MAX / 4
			       ? &log->clocks
			       : NULL;
	case FERRY_TRACE_LINK:
		return &log->links;
	case FERRY_TRACE_DISCARD:
		return in_region(log, r->region, r->discard.first_page, r->discard.n_pages)
			       ? &log->discards
			       : NULL;
	case FERRY_TRACE_MARK:
		return &log->marks;
	case FERRY_TRACE_THREAD:
		return &log->threads;
	}
	return NULL;
}

static bool is_text(const char *text, size_t size)
{
	const char *end = memchr(text, '\0', size);

	for (; end && text < end; text++)
		if (*text < ' ' || *text == 0x7f)
			return false;
	return end;
}

static int take_region(struct ferry_trace_log *log, const struct ferry_trace_record *rec)
{
	const struct ferry_trace_region *d = &rec->desc, *was;

	if (rec->region >= log->n_regions || d->n_pages > UINT64_C(1) << 40 || !d->page_bytes ||
	    !is_text(d->name, sizeof(d->name)))
		return -EPROTO;
	/* Its name may come later; what came before was checked against its size. */
	was = &log->regions[rec->region];
	if (was->page_bytes && (was->n_pages != d->n_pages || was->page_bytes != d->page_bytes))
		return -EPROTO;
	log->pages_total += d->n_pages - was->n_pages;
	log->regions[rec->region] = *d;
	return 0;
}

/* Errors: -ENOMEM. Return: 1 when it was the end. */
static int take(struct ferry_trace_log *log, const struct ferry_trace_record *rec)
{
	struct ferry_trace_records *to;
	uint64_t ends;

	log->n_records++;
	switch (rec->type) {
	case FERRY_TRACE_REGION:
		if (take_region(log, rec) < 0)
			log->n_ignored++;
		return 0;
	case FERRY_TRACE_LOST:
		log->n_lost += rec->lost.n;
		return 0;
	case FERRY_TRACE_END:
		return 1;
	}
	to = place_of(log, rec);
	/* Times so far off that sums could overflow are as impossible as a page outside. */
	ends = rec->type == FERRY_TRACE_FAULT && rec->fault.placed_ns ? rec->fault.placed_ns
								      : rec->time_ns;
	if (!to || ends > INT64_MAX / 4 ||
	    (to == &log->threads && !is_text(rec->text.text, sizeof(rec->text.text))) ||
	    (to == &log->marks && !is_text(rec->text.text, sizeof(rec->text.text))) ||
	    (to != &log->threads && rec->time_ns < log->start_ns)) {
		log->n_ignored++;
		return 0;
	}
	log->end_ns = FERRY_MAX(log->end_ns, ends);
	return add(to, rec);
}

static int read_header(struct ferry_trace_log *log, FILE *file, const char *path,
		       struct ferry_failure *f)
{
	struct ferry_trace_file_header h;
	size_t n = fread(&h, 1, sizeof(h), file);

	if (n < sizeof(h.magic) || memcmp(h.magic, FERRY_TRACE_FILE_MAGIC, sizeof(h.magic)))
		return ferry_fail(f, FERRY_REFUSE, -EPROTO,
				  "%s is not a trace; give a file that 'pageferry trace record' or "
				  "--trace wrote",
				  path);
	if (n < sizeof(h))
		return ferry_fail(
			f, FERRY_REFUSE, -EPROTO,
			"%s ends after %zu bytes, before the end of its header; record again", path,
			n);
	if (h.endian == __builtin_bswap32(FERRY_TRACE_ENDIAN))
		return ferry_fail(
			f, FERRY_REFUSE, -EPROTO,
			"%s was recorded on a machine of the other byte order; look at it "
			"on one like that",
			path);
	if (h.endian != FERRY_TRACE_ENDIAN || h.n_regions > FERRY_TRACE_MAX_REGIONS)
		return ferry_fail(f, FERRY_REFUSE, -EPROTO, "%s has a damaged header; record again",
				  path);
	if (h.version != FERRY_TRACE_VERSION || h.header_bytes != sizeof(h) ||
	    h.entry_bytes != sizeof(struct ferry_trace_entry))
		return ferry_fail(
			f, FERRY_REFUSE, -EPROTO,
			"%s has version %u of the format, and this pageferry reads version "
			"%u; use the one that recorded it",
			path, h.version, FERRY_TRACE_VERSION);
	*log = (struct ferry_trace_log){
		.start_ns = FERRY_MIN(h.start_ns, (uint64_t)INT64_MAX / 4),
		.start_realtime_ns = h.start_realtime_ns,
		.pid = h.pid,
		.n_regions = h.n_regions,
	};
	log->end_ns = log->start_ns;
	return 0;
}

/* Errors: -ENOMEM; -EIO. */
static int read_entries(struct ferry_trace_log *log, FILE *file)
{
	struct ferry_trace_entry e;
	size_t n;
	int rc = 0;

	while (!rc && (n = fread(&e, 1, sizeof(e), file)) == sizeof(e)) {
		uint32_t check = ferry_trace_crc32(0, &e.ring, sizeof(e.ring));

		if (ferry_trace_crc32(check, &e.record, sizeof(e.record)) != e.check) {
			snprintf(log->warning, sizeof(log->warning),
				 "damaged behind record %llu; what follows is left out",
				 (unsigned long long)log->n_records);
			return 0;
		}
		rc = take(log, &e.record);
	}
	if (rc < 0)
		return rc;
	if (ferror(file))
		return -EIO;
	log->is_whole = rc == 1;
	if (!log->is_whole)
		snprintf(log->warning, sizeof(log->warning),
			 "cut off behind record %llu: it was being recorded, or not all was copied",
			 (unsigned long long)log->n_records);
	return 0;
}

static int by_time(const void *a, const void *b)
{
	const struct ferry_trace_record *x = a, *y = b;

	return x->time_ns < y->time_ns ? -1 : x->time_ns > y->time_ns;
}

static int by_id(const void *a, const void *b)
{
	const struct ferry_trace_record *x = a, *y = b;

	return x->fault.id < y->fault.id ? -1 : x->fault.id > y->fault.id;
}

static void sort(struct ferry_trace_records *r, int (*order)(const void *, const void *))
{
	if (r->n)
		qsort(r->v, r->n, sizeof(*r->v), order);
}

/* Who joined a fault waited until its end. */
static void join_up(struct ferry_trace_log *log)
{
	sort(&log->faults, by_id);
	for (size_t i = 0; i < log->joins.n; i++) {
		struct ferry_trace_record *j = &log->joins.v[i], *f;

		f = log->faults.n ? bsearch(j, log->faults.v, log->faults.n, sizeof(*f), by_id)
				  : NULL;
		j->fault.placed_ns = f && f->fault.placed_ns >= j->time_ns ? f->fault.placed_ns : 0;
	}
}

int ferry_trace_load(struct ferry_trace_log *out, const char *path, struct ferry_failure *f)
{
	_cleanup_fclose_ FILE *file = fopen(path, "re");
	struct ferry_trace_log log = {0};
	int rc;

	if (!file)
		return ferry_fail_errno(f, FERRY_REFUSE, -errno, "trace file %s", path);
	rc = read_header(&log, file, path, f);
	if (rc < 0)
		return rc;
	rc = read_entries(&log, file);
	if (rc < 0) {
		ferry_trace_log_fini(&log);
		return ferry_fail_errno(f, FERRY_REFUSE, rc, "reading %s", path);
	}
	join_up(&log);
	sort(&log.faults, by_time);
	sort(&log.unanswered, by_time);
	sort(&log.joins, by_time);
	sort(&log.pushes, by_time);
	sort(&log.clocks, by_time);
	sort(&log.links, by_time);
	sort(&log.discards, by_time);
	sort(&log.marks, by_time);
	*out = log;
	return 0;
}

const char *ferry_trace_thread_name(const struct ferry_trace_log *log, uint32_t thread)
{
	for (size_t i = 0; i < log->threads.n; i++)
		if (log->threads.v[i].text.thread == thread)
			return log->threads.v[i].text.text;
	return NULL;
}

const char *ferry_trace_region_name(const struct ferry_trace_log *log, uint32_t region, char *room,
				    size_t size)
{
	if (region < log->n_regions && log->regions[region].name[0])
		return log->regions[region].name;
	snprintf(room, size, "region %u", region);
	return room;
}
