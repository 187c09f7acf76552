/* SPDX-License-Identifier: Apache-2.0 */
#include "trace/report.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/cleanup.h"
#include "base/clock.h"

#define NAME_ROOM 32

static const struct {
	uint16_t flag;
	const char *word, *text;
} flags[] = {
	{FERRY_FAULT_F_WRITE, "write", "write"},
	{FERRY_FAULT_F_LOCAL, "local", "answered by the target"},
	{FERRY_FAULT_F_ZERO, "zero", "a page of zeros"},
	{FERRY_FAULT_F_PUSHED, "pushed", "the push brought it first"},
	{FERRY_FAULT_F_FOUND, "found", "present when its answer came"},
	{FERRY_FAULT_F_RESENT, "resent", "asked again after a lost connection"},
	{FERRY_FAULT_F_SWEPT, "swept", "asked for before anyone waited"},
	{FERRY_FAULT_F_DISCARDED, "discarded", "discarded by the guest meanwhile"},
	{FERRY_FAULT_F_UNANSWERED, "unanswered", "never answered"},
};

const char *ferry_report_flag_words(uint16_t set, char *room, size_t size)
{
	*room = '\0';
	for (size_t i = 0; i < sizeof(flags) / sizeof(flags[0]); i++) {
		size_t len = strlen(room);

		if (set & flags[i].flag)
			snprintf(room + len, size - len, "%s%s", len ? " " : "", flags[i].word);
	}
	return room;
}

const char *ferry_report_flags(const struct ferry_trace_record *rec, char *room, size_t size)
{
	*room = '\0';
	for (size_t i = 0; i < sizeof(flags) / sizeof(flags[0]); i++) {
		size_t len = strlen(room);

		if (rec->flags & flags[i].flag)
			snprintf(room + len, size - len, "%s%s", len ? ", " : "", flags[i].text);
	}
	if (rec->fault.joins) {
		size_t len = strlen(room);

		snprintf(room + len, size - len, "%s%u more waited", len ? ", " : "",
			 rec->fault.joins);
	}
	return room;
}

static const char *figure(uint64_t ns, char *room, size_t size)
{
	if (ns < 10 * (uint64_t)FERRY_NS_PER_MS)
		snprintf(room, size, "%.1f", (double)ns / FERRY_NS_PER_US);
	else
		snprintf(room, size, "%" PRIu64, (ns + 500) / FERRY_NS_PER_US);
	return room;
}

static void columns(FILE *to, const char *title, const char *more)
{
	fprintf(to, "\n%-24s %8s %9s %9s %9s %9s %9s %9s%s\n", title, "n", "p50", "p90", "p99",
		"p99.9", "max", "mean", more);
}

static void row(FILE *to, const char *name, struct ferry_series *s, const char *note)
{
	static const unsigned int permille[] = {500, 900, 990, 999, 1000};
	char room[NAME_ROOM];

	fprintf(to, "  %-22.22s %8zu", name, s->n);
	for (size_t i = 0; i < sizeof(permille) / sizeof(permille[0]); i++)
		fprintf(to, " %9s",
			figure(ferry_series_percentile(s, permille[i]), room, sizeof(room)));
	fprintf(to, " %9s", figure(ferry_series_mean(s), room, sizeof(room)));
	fprintf(to, "%s%s\n", *note ? "  " : "", note);
}

static void head(FILE *to, const struct ferry_trace_log *log)
{
	time_t at = (time_t)(log->start_realtime_ns / FERRY_NS_PER_S);
	struct tm tm;
	char when[64];

	if (log->n_lost)
		fprintf(to,
			"LOST: %" PRIu64 " records were overwritten before they were read; all "
			"figures lack them.\n",
			log->n_lost);
	if (!log->is_whole)
		fprintf(to, "WARNING: the file is %s.\n", log->warning);
	if (log->n_ignored)
		fprintf(to, "WARNING: %" PRIu64 " records make no sense and are left out.\n",
			log->n_ignored);
	if (!gmtime_r(&at, &tm) || !strftime(when, sizeof(when), "%Y-%m-%d %H:%M:%S UTC", &tm))
		snprintf(when, sizeof(when), "at a time that makes no sense");
	fprintf(to, "Trace of process %u, begun %s, %.3f s\n", log->pid, when,
		(double)(log->end_ns - log->start_ns) / FERRY_NS_PER_S);
	for (size_t i = 0; i < log->marks.n; i++)
		fprintf(to, "%s%s +%.3f s", i ? ", " : "Stages: ", log->marks.v[i].text.text,
			(double)(log->marks.v[i].time_ns - log->start_ns) / FERRY_NS_PER_S);
	if (log->marks.n)
		fputc('\n', to);
}

static void faults(FILE *to, const struct ferry_trace_log *log, const struct ferry_stats *s)
{
	fprintf(to,
		"\nFault messages: %" PRIu64 ", of which %" PRIu64 " joined a page that was "
		"being waited for\n",
		s->n_messages, s->n_joined);
	fprintf(to, "Pages waited for: %zu (%" PRIu64 " first written)\n",
		log->faults.n + log->unanswered.n, s->n_writes);
	fprintf(to,
		"  asked of the source %zu, of which %" PRIu64 " the push brought first, %" PRIu64
		" were asked for again\n  after a lost connection, %" PRIu64
		" were present when the answer came, %" PRIu64 " were discarded\n",
		s->total.n, s->n_pushed, s->n_resent, s->n_found, s->n_discarded);
	fprintf(to, "  answered by the target %" PRIu64 "; still waited for at the end %zu\n",
		s->n_local, log->unanswered.n);
	fprintf(to, "Most in one read: %" PRIu64 "; most pages waited for at once: %" PRIu64 "\n",
		s->max_batch, s->max_outstanding);
}

/* A stage, with its share of all the time that was waited for answers. */
static void stage_row(FILE *to, struct ferry_stats *s, enum ferry_span stage)
{
	struct ferry_series *of = &s->stages[stage];
	double all = (double)ferry_series_mean(&s->total) * (double)s->total.n;
	char note[128];

	snprintf(note, sizeof(note), "%5.1f  %s",
		 all > 0 ? 100 * (double)ferry_series_mean(of) * (double)of->n / all : 0,
		 ferry_span_meaning(stage));
	/* What was answered here is no part of that time. */
	if (stage == FERRY_SPAN_LOCAL)
		snprintf(note, sizeof(note), "       %s", ferry_span_meaning(stage));
	row(to, ferry_span_name(stage), of, note);
}

static void stages(FILE *to, struct ferry_stats *s)
{
	char note[96], room[NAME_ROOM];

	columns(to, "Stages, us", "  share, %");
	row(to, "total", &s->total, "100.0  asked of the source: first message read to woken");
	for (unsigned int i = 0; i < FERRY_N_SPANS; i++)
		if (s->stages[i].n)
			stage_row(to, s, i);
	if (s->net.n)
		row(to, "out + back", &s->net, "       needs no common clock: exact");
	if (s->waits.n != s->total.n)
		row(to, "all messages", &s->waits, "       also those that joined, and local ones");
	fprintf(to,
		"\nIn no total, as the kernel does not tell: from the touch to the read of its "
		"message, "
		"and from the\nwake-up until the thread runs. What is known of the first, us:\n");
	if (s->busy.n)
		row(to, "fault thread at work", &s->busy, "upper bound");
	if (s->woken.n)
		row(to, "wait for a CPU", &s->woken, "sampled, after the wake-up");
	if (!s->busy.n && !s->woken.n)
		fprintf(to, "  nothing\n");
	if (!s->max_uncertainty_ns) {
		fprintf(to,
			"\nClocks: not compared, so that 'out' and 'back' can't be told apart\n");
		return;
	}
	snprintf(note, sizeof(note), "%s", figure(s->max_uncertainty_ns, room, sizeof(room)));
	fprintf(to,
		"\nClocks: 'out' and 'back' are uncertain by up to %s us; their sum and the "
		"source's time are exact.\n",
		note);
	if (s->n_clamped)
		fprintf(to,
			"  %" PRIu64 " were set to 0 because they came out negative, by up to %s us"
			"; %" PRIu64 " of them by more than the uncertainty\n",
			s->n_clamped, figure(s->max_clamped_ns, room, sizeof(room)), s->n_beyond);
}

static void groups(FILE *to, const struct ferry_trace_log *log, struct ferry_stats *s)
{
	char room[NAME_ROOM + FERRY_TRACE_NAME_BYTES];

	columns(to, "By thread, us", "");
	for (size_t i = 0; i < s->threads.n; i++) {
		const char *name = ferry_trace_thread_name(log, s->threads.v[i].id);

		if (!s->threads.v[i].id)
			snprintf(room, sizeof(room), "(not known)");
		else
			snprintf(room, sizeof(room), "%u %s", s->threads.v[i].id, name ? name : "");
		row(to, room, &s->threads.v[i].wait, "");
	}
	columns(to, "By region, us", "");
	for (size_t i = 0; i < s->regions.n; i++)
		row(to, ferry_trace_region_name(log, s->regions.v[i].id, room, sizeof(room)),
		    &s->regions.v[i].wait, "");
}

static void push(FILE *to, const struct ferry_trace_log *log, const struct ferry_stats *s)
{
	uint64_t came = s->pages_pushed + s->pages_said_zero;

	fprintf(to,
		"\nPush: %" PRIu64 " runs; %" PRIu64 " pages with data and %" PRIu64
		" of zeros came by it, %" PRIu64 " in vain (present already)\n",
		s->n_runs, s->pages_pushed, s->pages_said_zero, s->pages_in_vain);
	fprintf(to,
		"  before anyone waited for them: %" PRIu64 " (%.1f %% of %" PRIu64
		" pages); while someone waited: %" PRIu64 "\n",
		came - s->pages_overtaken,
		log->pages_total
			? 100.0 * (double)(came - s->pages_overtaken) / (double)log->pages_total
			: 0,
		log->pages_total, s->pages_overtaken);
	if (s->pages_present || s->pages_swept)
		fprintf(to,
			"  there before: %" PRIu64 "; asked for by the target at the end: %" PRIu64
			"\n",
			s->pages_present, s->pages_swept);
	for (size_t i = 0; i < log->links.n; i++)
		fprintf(to, "%s +%.3f s",
			log->links.v[i].flags & FERRY_LINK_F_OPEN ? (i ? ", open" : "Link: open")
								  : (i ? ", lost" : "Link: lost"),
			(double)(log->links.v[i].time_ns - log->start_ns) / FERRY_NS_PER_S);
	if (log->links.n)
		fputc('\n', to);
}

static void story(FILE *to, const struct ferry_trace_log *log, const struct ferry_split *split,
		  const struct ferry_trace_record *rec)
{
	const struct ferry_trace_fault *f = &rec->fault;
	const char *thread = ferry_trace_thread_name(log, f->thread);
	char room[256], total[NAME_ROOM];
	bool is_first = true;

	fprintf(to, "  %9s us at +%.6f s: page %" PRIu64 " of %s",
		figure(split->total_ns, total, sizeof(total)),
		(double)(rec->time_ns - log->start_ns) / FERRY_NS_PER_S, f->page,
		ferry_trace_region_name(log, rec->region, room, sizeof(room)));
	if (f->thread)
		fprintf(to, ", thread %u%s%s", f->thread, thread ? " " : "", thread ? thread : "");
	fprintf(to, "\n               ");
	for (unsigned int i = 0; i < FERRY_N_SPANS; i++) {
		if (!ferry_split_has(split, i))
			continue;
		fprintf(to, "%s%s %s", is_first ? "" : " + ", ferry_span_name(i),
			figure(split->ns[i], total, sizeof(total)));
		is_first = false;
	}
	fprintf(to, "\n               %u read at once, %u waited for, %u runs in its request",
		f->batch, f->outstanding, f->runs);
	ferry_report_flags(rec, room, sizeof(room));
	fprintf(to, "%s%s\n", *room ? "; " : "", room);
}

int ferry_report_text(FILE *to, const struct ferry_trace_log *log, struct ferry_stats *s,
		      unsigned int n_slowest)
{
	_cleanup_free_ size_t *slowest = calloc(n_slowest + 1, sizeof(*slowest));
	size_t n;

	if (!slowest)
		return -ENOMEM;
	head(to, log);
	faults(to, log, s);
	stages(to, s);
	groups(to, log, s);
	push(to, log, s);
	n = ferry_stats_slowest(s, log, slowest, n_slowest);
	if (n)
		fprintf(to, "\nSlowest:\n");
	for (size_t i = 0; i < n; i++)
		story(to, log, &s->splits[slowest[i]], &log->faults.v[slowest[i]]);
	return ferror(to) ? -EIO : 0;
}
