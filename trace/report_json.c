/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "base/cleanup.h"
#include "trace/json_out.h"
#include "trace/report.h"

static void series(struct ferry_json *j, const char *key, struct ferry_series *s)
{
	ferry_json_open(j, key, '{');
	ferry_json_u64(j, "n", s->n);
	ferry_json_us(j, "p50", ferry_series_percentile(s, 500));
	ferry_json_us(j, "p90", ferry_series_percentile(s, 900));
	ferry_json_us(j, "p99", ferry_series_percentile(s, 990));
	ferry_json_us(j, "p999", ferry_series_percentile(s, 999));
	ferry_json_us(j, "max", ferry_series_percentile(s, 1000));
	ferry_json_us(j, "mean", ferry_series_mean(s));
	ferry_json_close(j, '}');
}

static void head(struct ferry_json *j, const struct ferry_trace_log *log)
{
	ferry_json_text(j, "event", "completed");
	ferry_json_text(j, "command", "trace report");
	ferry_json_u64(j, "lost_records", log->n_lost);
	ferry_json_u64(j, "ignored_records", log->n_ignored);
	ferry_json_bool(j, "whole", log->is_whole);
	if (!log->is_whole)
		ferry_json_text(j, "warning", log->warning);
	ferry_json_u64(j, "pid", log->pid);
	ferry_json_u64(j, "start_realtime_ns", log->start_realtime_ns);
	ferry_json_us(j, "duration_us", log->end_ns - log->start_ns);
	ferry_json_u64(j, "pages_total", log->pages_total);
}

static void counts(struct ferry_json *j, const struct ferry_trace_log *log,
		   const struct ferry_stats *s)
{
	ferry_json_open(j, "faults", '{');
	ferry_json_u64(j, "messages", s->n_messages);
	ferry_json_u64(j, "joined", s->n_joined);
	ferry_json_u64(j, "pages", log->faults.n + log->unanswered.n);
	ferry_json_u64(j, "asked", s->total.n);
	ferry_json_u64(j, "local", s->n_local);
	ferry_json_u64(j, "pushed_first", s->n_pushed);
	ferry_json_u64(j, "found", s->n_found);
	ferry_json_u64(j, "asked_again", s->n_resent);
	ferry_json_u64(j, "discarded", s->n_discarded);
	ferry_json_u64(j, "zero", s->n_zero);
	ferry_json_u64(j, "writes", s->n_writes);
	ferry_json_u64(j, "unanswered", log->unanswered.n);
	ferry_json_u64(j, "max_batch", s->max_batch);
	ferry_json_u64(j, "max_outstanding", s->max_outstanding);
	ferry_json_close(j, '}');
	ferry_json_open(j, "push", '{');
	ferry_json_u64(j, "runs", s->n_runs);
	ferry_json_u64(j, "pages", s->pages_pushed);
	ferry_json_u64(j, "pages_zero", s->pages_said_zero);
	ferry_json_u64(j, "pages_in_vain", s->pages_in_vain);
	ferry_json_u64(j, "pages_waited_for", s->pages_overtaken);
	ferry_json_u64(j, "pages_present_before", s->pages_present);
	ferry_json_u64(j, "pages_asked_at_the_end", s->pages_swept);
	ferry_json_close(j, '}');
	ferry_json_open(j, "clocks", '{');
	ferry_json_us(j, "max_uncertainty_us", s->max_uncertainty_ns);
	ferry_json_u64(j, "clamped", s->n_clamped);
	ferry_json_u64(j, "clamped_beyond_uncertainty", s->n_beyond);
	ferry_json_us(j, "max_clamped_us", s->max_clamped_ns);
	ferry_json_close(j, '}');
}

static void groups(struct ferry_json *j, const struct ferry_trace_log *log, struct ferry_stats *s)
{
	char room[32];

	ferry_json_open(j, "threads", '[');
	for (size_t i = 0; i < s->threads.n; i++) {
		const char *name = ferry_trace_thread_name(log, s->threads.v[i].id);

		ferry_json_open(j, NULL, '{');
		ferry_json_u64(j, "thread", s->threads.v[i].id);
		if (name)
			ferry_json_text(j, "name", name);
		series(j, "wait_us", &s->threads.v[i].wait);
		ferry_json_close(j, '}');
	}
	ferry_json_close(j, ']');
	ferry_json_open(j, "regions", '[');
	for (size_t i = 0; i < s->regions.n; i++) {
		ferry_json_open(j, NULL, '{');
		ferry_json_u64(j, "region", s->regions.v[i].id);
		ferry_json_text(
			j, "name",
			ferry_trace_region_name(log, s->regions.v[i].id, room, sizeof(room)));
		series(j, "wait_us", &s->regions.v[i].wait);
		ferry_json_close(j, '}');
	}
	ferry_json_close(j, ']');
}

static void slow(struct ferry_json *j, const struct ferry_trace_log *log,
		 const struct ferry_split *split, const struct ferry_trace_record *rec)
{
	const struct ferry_trace_fault *f = &rec->fault;
	char room[256];

	ferry_json_open(j, NULL, '{');
	ferry_json_u64(j, "id", f->id);
	ferry_json_us(j, "at_us", rec->time_ns - log->start_ns);
	ferry_json_us(j, "total_us", split->total_ns);
	ferry_json_u64(j, "region", rec->region);
	ferry_json_u64(j, "page", f->page);
	ferry_json_u64(j, "thread", f->thread);
	ferry_json_text(j, "flags", ferry_report_flag_words(rec->flags, room, sizeof(room)));
	ferry_json_u64(j, "joins", f->joins);
	ferry_json_u64(j, "batch", f->batch);
	ferry_json_u64(j, "outstanding", f->outstanding);
	ferry_json_u64(j, "runs", f->runs);
	ferry_json_open(j, "stages_us", '{');
	for (unsigned int i = 0; i < FERRY_N_SPANS; i++)
		if (ferry_split_has(split, i))
			ferry_json_us(j, ferry_span_name(i), split->ns[i]);
	ferry_json_close(j, '}');
	ferry_json_close(j, '}');
}

int ferry_report_json(FILE *to, const struct ferry_trace_log *log, struct ferry_stats *s,
		      unsigned int n_slowest)
{
	_cleanup_free_ size_t *slowest = calloc(n_slowest + 1, sizeof(*slowest));
	struct ferry_json j = {.to = to};
	size_t n;

	if (!slowest)
		return -ENOMEM;
	n = ferry_stats_slowest(s, log, slowest, n_slowest);
	ferry_json_open(&j, NULL, '{');
	head(&j, log);
	counts(&j, log, s);
	series(&j, "total_us", &s->total);
	series(&j, "messages_us", &s->waits);
	ferry_json_open(&j, "stages_us", '{');
	for (unsigned int i = 0; i < FERRY_N_SPANS; i++)
		if (s->stages[i].n)
			series(&j, ferry_span_name(i), &s->stages[i]);
	ferry_json_close(&j, '}');
	series(&j, "out_and_back_us", &s->net);
	series(&j, "before_read_at_work_us", &s->busy);
	series(&j, "before_read_cpu_wait_us", &s->woken);
	groups(&j, log, s);
	ferry_json_open(&j, "slowest", '[');
	for (size_t i = 0; i < n; i++)
		slow(&j, log, &s->splits[slowest[i]], &log->faults.v[slowest[i]]);
	ferry_json_close(&j, ']');
	ferry_json_u64(&j, "exit", 0);
	ferry_json_close(&j, '}');
	fputc('\n', to);
	return ferror(to) ? -EIO : 0;
}

/* --- CSV -------------------------------------------------------------------------------------- */

static void csv_text(FILE *to, const char *text)
{
	fputc('"', to);
	for (; text && *text; text++)
		fprintf(to, *text == '"' ? "\"\"" : "%c", *text);
	fputc('"', to);
}

static void csv_row(FILE *to, const struct ferry_trace_log *log,
		    const struct ferry_trace_record *rec, const struct ferry_split *split)
{
	const struct ferry_trace_fault *f = &rec->fault;
	char room[256];

	fprintf(to, "%s,%" PRIu64 ",%u,", rec->type == FERRY_TRACE_JOIN ? "join" : "fault", f->id,
		f->thread);
	csv_text(to, ferry_trace_thread_name(log, f->thread));
	fprintf(to, ",%u,%" PRIu64 ",", rec->region, f->page);
	csv_text(to, ferry_report_flag_words(rec->flags, room, sizeof(room)));
	fprintf(to,
		",%u,%u,%u,%u,%" PRIu64 ",%" PRIu64 ",%" PRIu64 ",%" PRIu64 ",%" PRIu64 ",%" PRIu64
		",%" PRIu64 ",",
		f->batch, f->outstanding, f->runs, f->joins, rec->time_ns, f->first_sent_ns,
		f->sent_ns, f->source_received_ns, f->source_answered_ns, f->received_ns,
		f->placed_ns);
	if (f->placed_ns)
		fprintf(to, "%" PRIu64, f->placed_ns - rec->time_ns);
	for (unsigned int i = 0; i < FERRY_N_SPANS; i++) {
		fputc(',', to);
		if (split && ferry_split_has(split, i))
			fprintf(to, "%" PRIu64, split->ns[i]);
	}
	fputc(',', to);
	if (split && ferry_split_has(split, FERRY_SPAN_OUT))
		fprintf(to, "%" PRIu64, split->uncertainty_ns);
	fprintf(to, ",%s,%u\n",
		rec->flags & FERRY_FAULT_F_BUSY	   ? "busy"
		: rec->flags & FERRY_FAULT_F_WOKEN ? "cpu"
						   : "",
		f->notice_ns);
}

int ferry_report_csv(FILE *to, const struct ferry_trace_log *log, struct ferry_stats *s)
{
	fprintf(to,
		"kind,id,thread,thread_name,region,page,flags,batch,outstanding,runs,joins,read_ns,"
		"first_sent_ns,sent_ns,source_received_ns,source_answered_ns,received_ns,"
		"placed_ns,total_ns");
	for (unsigned int i = 0; i < FERRY_N_SPANS; i++)
		fprintf(to, ",%s_ns", ferry_span_name(i));
	fprintf(to, ",uncertainty_ns,before_read,before_read_ns\n");
	for (size_t i = 0; i < log->faults.n; i++)
		csv_row(to, log, &log->faults.v[i], &s->splits[i]);
	for (size_t i = 0; i < log->joins.n; i++)
		csv_row(to, log, &log->joins.v[i], NULL);
	for (size_t i = 0; i < log->unanswered.n; i++)
		csv_row(to, log, &log->unanswered.v[i], NULL);
	return ferror(to) ? -EIO : 0;
}
