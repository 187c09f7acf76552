// SPDX-License-Identifier: Apache-2.0
#include "tools/live.h"

#include <string.h>

#include "base/clock.h"
#include "base/util.h"
#include "tools/json.h"

static uint64_t count_of(const json_t *o, const char *key)
{
	json_int_t v = json_integer_value(json_object_get(o, key));

	return v > 0 ? (uint64_t)v : 0;
}

static uint64_t ns_of(const json_t *o, const char *key, uint64_t unit_ns)
{
	double v = json_number_value(json_object_get(o, key)) * (double)unit_ns;

	return v > 0 && v < 1e18 ? (uint64_t)v : 0;
}

/* What goes to a terminal is printable, whoever wrote it. */
static void text_of(const json_t *o, const char *key, char *out)
{
	const char *text = json_string_value(json_object_get(o, key));
	size_t len = 0;

	for (; text && *text && len < LIVE_NAME_MAX - 1; text++)
		out[len++] = *text >= ' ' && *text <= '~' ? *text : '?';
	out[len] = '\0';
}

static void take_residency(struct live *l, const json_t *cells)
{
	l->n_cells = (uint32_t)FERRY_MIN(json_array_size(cells), (size_t)LIVE_CELLS_MAX);
	for (uint32_t i = 0; i < l->n_cells; i++) {
		json_int_t v = json_integer_value(json_array_get(cells, i));

		l->residency[i] = v < 0 ? 0 : (uint16_t)FERRY_MIN(v, (json_int_t)1000);
	}
}

void live_status(struct live *l, const json_t *status)
{
	const json_t *cells = json_object_get(status, "residency");

	text_of(status, "command", l->command);
	text_of(status, "stage", l->stage);
	text_of(status, "link", l->link);
	l->pid = (int)count_of(status, "pid");
	l->is_target = json_is_array(cells) || !strcmp(l->command, "attach") ||
		       !strcmp(l->command, "receive");
	l->running_ns = ns_of(status, "ms", FERRY_NS_PER_MS);
	l->progress = (struct progress){
		.pages_total = count_of(status, "pages_total"),
		.pages_known = count_of(status, "pages_known"),
		.wire_bytes = count_of(status, "wire_bytes"),
		.faults = count_of(status, "faults"),
		.resumes = (uint32_t)count_of(status, "resumes"),
		.sessions = (uint32_t)count_of(status, "sessions"),
		.bytes_per_second = count_of(status, "rate"),
		.pages_per_second = count_of(status, "pages_per_second"),
	};
	l->pages_urgent = count_of(status, "pages_urgent");
	l->pages_pushed = count_of(status, "pages_pushed");
	l->pages_zero = count_of(status, "pages_zero");
	l->in_flight = count_of(status, "faults_in_flight");
	l->stalled = count_of(status, "faults_stalled");
	l->oldest_wait_ns = ns_of(status, "oldest_wait_us", FERRY_NS_PER_US);
	l->sessions_ever = count_of(status, "sessions_ever");
	l->sessions_completed = count_of(status, "sessions_completed");
	take_residency(l, cells);
}

static void note_push(struct live *l, const struct ferry_trace_record *rec,
		      const struct ferry_trace_header *header)
{
	uint32_t n_regions = FERRY_MIN(header->n_regions, FERRY_TRACE_MAX_REGIONS);
	uint64_t at = 0, total = 0;

	if (rec->flags & (FERRY_PUSH_F_PRESENT | FERRY_PUSH_F_SWEPT) || rec->region >= n_regions)
		return;
	for (uint32_t i = 0; i < n_regions; i++) {
		if (i == rec->region)
			at = total + FERRY_MIN(rec->push.first_page, header->regions[i].n_pages);
		total += header->regions[i].n_pages;
	}
	l->has_push = total;
	l->push_region = rec->region;
	l->push_page = rec->push.first_page;
	l->push_permille = total ? (uint16_t)((double)at * 1000 / (double)total) : 0;
}

void live_record(struct live *l, const struct ferry_trace_record *rec,
		 const struct ferry_trace_header *header)
{
	l->has_records = true;
	ferry_live_stats_add(&l->all, rec);
	ferry_live_stats_add(&l->current, rec);
	if (rec->type == FERRY_TRACE_LOST)
		l->n_untold += rec->lost.n;
	if (rec->type == FERRY_TRACE_PUSH)
		note_push(l, rec, header);
}

void live_tick(struct live *l, uint64_t now_ns)
{
	uint64_t ns = l->tick_ns ? now_ns - l->tick_ns : 0;
	uint64_t n = l->progress.faults - FERRY_MIN(l->tick_faults, l->progress.faults);

	l->faults_per_second = ns ? (uint64_t)((double)n * FERRY_NS_PER_S / (double)ns) : 0;
	l->tick_faults = l->progress.faults;
	l->tick_ns = now_ns;
	/* The first has what the rings had: that was longer ago. */
	if (ns)
		l->last = l->current;
	l->last_ns = ns;
	l->current = (struct ferry_live_stats){.clock = l->all.clock};
}

uint64_t live_lost(const struct live *l)
{
	return l->n_untold + l->n_overwritten;
}

static json_t *percentiles(const struct ferry_histogram *h)
{
	json_t *o = json_object();

	json_put_count(o, "n", h->n);
	json_put(o, "p50", json_us(ferry_histogram_percentile(h, 500)));
	json_put(o, "p90", json_us(ferry_histogram_percentile(h, 900)));
	json_put(o, "p99", json_us(ferry_histogram_percentile(h, 990)));
	json_put(o, "p999", json_us(ferry_histogram_percentile(h, 999)));
	json_put(o, "max", json_us(h->max_ns));
	return o;
}

json_t *live_json(const struct live *l)
{
	json_t *o = json_object(), *stages = json_object();

	json_put_count(o, "lost_records", live_lost(l));
	json_put(o, "watched", json_text(l->command));
	json_put_count(o, "pid", (uint64_t)l->pid);
	json_put(o, "stage", json_text(l->stage));
	json_put(o, "link", json_text(l->link));
	json_put(o, "percent", json_real(progress_percent(&l->progress)));
	json_put_count(o, "rate", l->progress.bytes_per_second);
	json_put_count(o, l->is_target ? "faults" : "requests", l->progress.faults);
	json_put_count(o, l->is_target ? "faults_per_second" : "requests_per_second",
		       l->faults_per_second);
	if (l->is_target) {
		json_put_count(o, "faults_in_flight", l->in_flight);
		json_put_count(o, "faults_stalled", l->stalled);
		json_put(o, "oldest_wait_us", json_us(l->oldest_wait_ns));
	}
	if (l->has_records) {
		json_put(o, "last_fault_us", percentiles(&l->last.total));
		json_put(o, "fault_us", percentiles(&l->all.total));
		for (unsigned int s = 0; s < FERRY_N_SPANS; s++)
			if (l->all.stages[s].n)
				json_put(stages, ferry_span_name(s),
					 percentiles(&l->all.stages[s]));
	}
	json_put(o, "stages_us", stages);
	return o;
}
