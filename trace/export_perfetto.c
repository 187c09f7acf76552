/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <stdlib.h>

#include "base/cleanup.h"
#include "base/util.h"
#include "trace/export.h"
#include "trace/json_out.h"
#include "trace/report.h"
#include "trace/waits.h"

#define OUR_PID	  1u	      /* the tracks of the engine; the guest's have its own process id */
#define UNKNOWN	  1000000000u /* tracks of waits whose thread is not known */
#define MAX_LANES 1024u

struct out {
	struct ferry_json j;
	const struct ferry_trace_log *log;
};

/* An event that is left open: the caller adds to it and closes it. */
static void event(struct out *o, const char *name, const char *ph, uint64_t at_ns, uint32_t pid,
		  uint32_t tid)
{
	ferry_json_open(&o->j, NULL, '{');
	ferry_json_text(&o->j, "name", name);
	ferry_json_text(&o->j, "ph", ph);
	ferry_json_us(&o->j, "ts", at_ns > o->log->start_ns ? at_ns - o->log->start_ns : 0);
	ferry_json_u64(&o->j, "pid", pid);
	ferry_json_u64(&o->j, "tid", tid);
}

static void metadata(struct out *o, const char *what, uint32_t pid, uint32_t tid, const char *name)
{
	event(o, what, "M", o->log->start_ns, pid, tid);
	ferry_json_open(&o->j, "args", '{');
	ferry_json_text(&o->j, "name", name);
	ferry_json_close(&o->j, '}');
	ferry_json_close(&o->j, '}');
}

static void slice(struct out *o, const char *name, uint64_t begin_ns, uint64_t end_ns, uint32_t pid,
		  uint32_t tid)
{
	event(o, name, "X", begin_ns, pid, tid);
	ferry_json_us(&o->j, "dur", end_ns - begin_ns);
}

static void fault_args(struct out *o, const struct ferry_trace_record *rec)
{
	const struct ferry_trace_fault *f = &rec->fault;
	char room[256];

	ferry_json_open(&o->j, "args", '{');
	ferry_json_u64(&o->j, "id", f->id);
	ferry_json_text(&o->j, "region",
			ferry_trace_region_name(o->log, rec->region, room, sizeof(room)));
	ferry_json_u64(&o->j, "page", f->page);
	ferry_json_text(&o->j, "flags", ferry_report_flag_words(rec->flags, room, sizeof(room)));
	ferry_json_u64(&o->j, "batch", f->batch);
	ferry_json_u64(&o->j, "outstanding", f->outstanding);
	ferry_json_u64(&o->j, "runs", f->runs);
	ferry_json_u64(&o->j, "joins", f->joins);
	ferry_json_close(&o->j, '}');
}

static void put_wait(struct out *o, const struct ferry_wait *w, uint32_t tid)
{
	uint32_t pid = o->log->pid;
	uint64_t at = w->begin_ns;

	slice(o, w->split ? "fault" : "fault (joined)", w->begin_ns, w->end_ns, pid, tid);
	fault_args(o, w->rec);
	ferry_json_close(&o->j, '}');
	for (unsigned int i = 0; w->split && i < FERRY_N_SPANS; i++) {
		uint64_t end = FERRY_MIN(at + w->split->ns[i], w->end_ns);

		if (!ferry_split_has(w->split, i))
			continue;
		slice(o, ferry_span_name(i), at, end, pid, tid);
		ferry_json_close(&o->j, '}');
		at = end;
	}
}

/* Waits of unknown threads may overlap: each goes to the first track that is free. */
static uint32_t lane_of(uint64_t *lanes, uint32_t *n_lanes, const struct ferry_wait *w)
{
	uint32_t i = 0;

	while (i < *n_lanes && lanes[i] > w->begin_ns)
		i++;
	if (i == *n_lanes && i < MAX_LANES)
		(*n_lanes)++;
	i = FERRY_MIN(i, MAX_LANES - 1);
	lanes[i] = w->end_ns;
	return i;
}

static int threads(struct out *o, const struct ferry_stats *stats)
{
	_cleanup_free_ uint64_t *lanes = calloc(MAX_LANES, sizeof(*lanes));
	uint32_t n_lanes = 0, named = 0;
	struct ferry_waits w;

	if (!lanes || ferry_waits_init(&w, o->log, stats) < 0)
		return -ENOMEM;
	for (size_t i = 0; i < w.n; i++) {
		uint32_t tid = w.v[i].thread;
		const char *name = ferry_trace_thread_name(o->log, tid);

		if (!tid)
			tid = UNKNOWN + lane_of(lanes, &n_lanes, &w.v[i]);
		else if (tid != named && name)
			metadata(o, "thread_name", o->log->pid, tid, name);
		named = tid;
		put_wait(o, &w.v[i], tid);
	}
	for (uint32_t i = 0; i < n_lanes; i++)
		metadata(o, "thread_name", o->log->pid, UNKNOWN + i, "thread not known");
	ferry_waits_fini(&w);
	return 0;
}

static void pushes(struct out *o)
{
	uint32_t named = 0; /* set of bulk connections */

	for (size_t i = 0; i < o->log->pushes.n; i++) {
		const struct ferry_trace_record *r = &o->log->pushes.v[i];
		uint32_t tid = r->push.index % 32 + 10;
		uint64_t begin = r->push.received_ns;
		char room[64];

		if (r->flags & FERRY_PUSH_F_PRESENT)
			continue;
		if (!(named >> (tid - 10) & 1)) {
			snprintf(room, sizeof(room), "bulk %u: placing", r->push.index);
			metadata(o, "thread_name", OUR_PID, tid, room);
			named |= 1u << (tid - 10);
		}
		if (!begin || begin > r->time_ns)
			begin = r->time_ns;
		slice(o, r->flags & FERRY_PUSH_F_ZERO ? "push of zeros" : "push", begin, r->time_ns,
		      OUR_PID, tid);
		ferry_json_open(&o->j, "args", '{');
		ferry_json_text(&o->j, "region",
				ferry_trace_region_name(o->log, r->region, room, sizeof(room)));
		ferry_json_u64(&o->j, "first_page", r->push.first_page);
		ferry_json_u64(&o->j, "pages", r->push.n_pages);
		ferry_json_u64(&o->j, "new", r->push.n_new);
		ferry_json_u64(&o->j, "asked", r->push.overtaken);
		ferry_json_close(&o->j, '}');
		ferry_json_close(&o->j, '}');
	}
}

static void counter(struct out *o, const char *name, uint64_t at_ns, uint64_t v)
{
	event(o, name, "C", at_ns, OUR_PID, 0);
	ferry_json_open(&o->j, "args", '{');
	ferry_json_u64(&o->j, "n", v);
	ferry_json_close(&o->j, '}');
	ferry_json_close(&o->j, '}');
}

static void instants(struct out *o, const struct ferry_trace_records *r)
{
	for (size_t i = 0; i < r->n; i++) {
		const struct ferry_trace_record *rec = &r->v[i];
		bool is_open = rec->flags & FERRY_LINK_F_OPEN;

		event(o,
		      rec->type == FERRY_TRACE_MARK	 ? rec->text.text
		      : rec->type == FERRY_TRACE_DISCARD ? "discard"
		      : is_open				 ? "link open"
							 : "link lost",
		      "i", rec->time_ns, OUR_PID, 1);
		ferry_json_text(&o->j, "s", "g");
		ferry_json_close(&o->j, '}');
	}
}

int ferry_export_perfetto(FILE *to, const struct ferry_trace_log *log, struct ferry_stats *stats)
{
	struct out o = {.j = {.to = to}, .log = log};
	uint64_t pushed = 0;
	char room[64];
	int rc;

	ferry_json_open(&o.j, NULL, '{');
	ferry_json_text(&o.j, "displayTimeUnit", "ns");
	ferry_json_open(&o.j, "otherData", '{');
	ferry_json_u64(&o.j, "lost_records", log->n_lost);
	ferry_json_bool(&o.j, "whole", log->is_whole);
	ferry_json_u64(&o.j, "start_realtime_ns", log->start_realtime_ns);
	ferry_json_close(&o.j, '}');
	ferry_json_open(&o.j, "traceEvents", '[');
	snprintf(room, sizeof(room), "process %u: threads that wait for pages", log->pid);
	metadata(&o, "process_name", log->pid, log->pid, room);
	metadata(&o, "process_name", OUR_PID, OUR_PID, "pageferry");
	metadata(&o, "thread_name", OUR_PID, OUR_PID, "stages and link");
	rc = threads(&o, stats);
	pushes(&o);
	for (size_t i = 0; i < log->pushes.n; i++) {
		pushed += log->pushes.v[i].push.n_new;
		counter(&o, "pages pushed", log->pushes.v[i].time_ns, pushed);
	}
	for (size_t i = 0; i < log->faults.n; i++)
		counter(&o, "pages waited for", log->faults.v[i].time_ns,
			log->faults.v[i].fault.outstanding);
	instants(&o, &log->marks);
	instants(&o, &log->links);
	instants(&o, &log->discards);
	ferry_json_close(&o.j, ']');
	ferry_json_close(&o.j, '}');
	fputc('\n', to);
	return rc < 0 ? rc : ferror(to) ? -EIO : 0;
}
