// SPDX-License-Identifier: Apache-2.0
#include "tools/report.h"

#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "base/clock.h"
#include "tools/json.h"

#define SAMPLE_NS	    (200 * (uint64_t)FERRY_NS_PER_MS) /* of the rates */
#define BAR_NS		    (100 * (uint64_t)FERRY_NS_PER_MS)
#define JSON_NS		    (500 * (uint64_t)FERRY_NS_PER_MS)
#define ERASE_LINE	    "\r\033[K"
#define COLUMNS_IF_NOT_TOLD 80

enum link {
	LINK_DOWN,
	LINK_UP,
	LINK_NOT_TOLD, /* a server has many, and counts resumes only */
};

static void put(struct writer *w, const char *text, bool is_optional)
{
	writer_put(w, text, strlen(text), is_optional);
}

static void erase_bar(struct report *r)
{
	if (r->bar_is_shown)
		put(&r->err, ERASE_LINE, false);
	r->bar_is_shown = false;
}

/* One line for people on standard error, above the bar. */
static void say(struct report *r, const char *prefix, const char *text)
{
	char line[1200];

	erase_bar(r);
	snprintf(line, sizeof(line), "pageferry %s: %s%.1000s\n", r->command, prefix, text);
	put(&r->err, line, false);
}

static void sink(void *ctx, enum ferry_log_level level, const char *line)
{
	struct report *r = ctx;
	char prefix[16] = "";

	if (level != FERRY_LOG_INFO)
		snprintf(prefix, sizeof(prefix), "%s: ", ferry_log_level_name(level));
	pthread_mutex_lock(&r->lock);
	say(r, prefix, line);
	pthread_mutex_unlock(&r->lock);
}

void report_init(struct report *r, const char *command, const struct options *o)
{
	*r = (struct report){
		.command = command,
		.has_json = o->json,
		.has_bar = isatty(STDERR_FILENO) && !(o->json && isatty(STDOUT_FILENO)),
		.stop_fd = -1,
		.start_ns = ferry_now_ns(),
		.lock = PTHREAD_MUTEX_INITIALIZER,
		.stage = "start",
	};
	r->log = (struct ferry_log){
		.level = o->verbose ? FERRY_LOG_DEBUG : FERRY_LOG_WARN,
		.sink = sink,
		.ctx = r,
	};
	writer_init(&r->out, STDOUT_FILENO);
	writer_init(&r->err, STDERR_FILENO);
}

void report_fini(struct report *r)
{
	pthread_mutex_destroy(&r->lock);
}

/* @fields are given. Without --json they are dropped. */
static void put_json(struct report *r, const char *event, json_t *fields, bool is_optional)
{
	char line[4096], *text;
	json_t *o;
	int len;

	if (!r->has_json) {
		json_decref(fields);
		return;
	}
	o = json_object();
	json_put(o, "event", json_text(event));
	json_put(o, "command", json_text(r->command));
	json_put(o, "ms", json_ms(ferry_now_ns() - r->start_ns));
	json_put_all(o, fields);
	text = json_line(o);
	json_decref(o);
	if (!text)
		return;
	/* One piece, so that a line is dropped whole or not at all. */
	len = snprintf(line, sizeof(line), "%s\n", text);
	free(text);
	if (len < (int)sizeof(line))
		writer_put(&r->out, line, (size_t)len, is_optional);
}

void report_listening(struct report *r, const struct ferry_addr *a)
{
	char line[FERRY_ADDR_TEXT_MAX + 16];

	pthread_mutex_lock(&r->lock);
	ferry_addr_format(a, r->address);
	if (r->has_json) {
		json_t *o = json_object();

		json_put(o, "address", json_text(r->address));
		put_json(r, "listening", o, false);
	} else {
		erase_bar(r);
		snprintf(line, sizeof(line), "listening on %s\n", r->address);
		put(&r->out, line, false);
	}
	pthread_mutex_unlock(&r->lock);
}

void report_stage(struct report *r, const char *stage)
{
	pthread_mutex_lock(&r->lock);
	r->stage = stage;
	ferry_trace_mark(r->trace, stage);
	if (r->has_json) {
		json_t *o = json_object();

		json_put(o, "stage", json_text(stage));
		put_json(r, "stage", o, false);
	} else if (!r->has_bar) {
		say(r, "", stage);
	}
	pthread_mutex_unlock(&r->lock);
}

void report_trace(struct report *r, struct ferry_trace *trace)
{
	pthread_mutex_lock(&r->lock);
	r->trace = trace;
	if (r->stage)
		ferry_trace_mark(trace, r->stage);
	pthread_mutex_unlock(&r->lock);
}

static void put_progress(json_t *o, const struct progress *p)
{
	json_put_count(o, "pages_total", p->pages_total);
	json_put_count(o, "pages_known", p->pages_known);
	json_put(o, "percent", json_real(progress_percent(p)));
	json_put_count(o, "rate", p->bytes_per_second);
	json_put_count(o, "wire_bytes", p->wire_bytes);
	json_put_count(o, "faults", p->faults);
	json_put(o, "p50_us", json_us(p->p50_ns));
	json_put(o, "p99_us", json_us(p->p99_ns));
	json_put_count(o, "resumes", p->resumes);
}

static uint64_t rate(uint64_t now, uint64_t before, uint64_t ns, uint64_t smoothed)
{
	double v = now > before ? (double)(now - before) * FERRY_NS_PER_S / (double)ns : 0;

	return (uint64_t)(smoothed ? (v + (double)smoothed) / 2 : v);
}

static void take_rates(struct report *r, uint64_t now_ns)
{
	uint64_t ns = now_ns - r->sampled_ns;
	const struct progress *old = &r->sampled;
	struct progress *p = &r->now;

	p->bytes_per_second = old->bytes_per_second;
	p->pages_per_second = old->pages_per_second;
	if (!r->sampled_ns) {
		r->sampled_ns = now_ns;
		r->sampled = *p;
	} else if (ns >= SAMPLE_NS) {
		p->bytes_per_second =
			rate(p->wire_bytes, old->wire_bytes, ns, old->bytes_per_second);
		p->pages_per_second =
			rate(p->pages_known, old->pages_known, ns, old->pages_per_second);
		r->sampled_ns = now_ns;
		r->sampled = *p;
	}
}

static unsigned int terminal_columns(void)
{
	struct winsize size;

	if (ioctl(STDERR_FILENO, TIOCGWINSZ, &size) < 0 || !size.ws_col)
		return COLUMNS_IF_NOT_TOLD;
	return size.ws_col;
}

static void draw_bar(struct report *r)
{
	char line[300] = ERASE_LINE, label[64];
	size_t erase_len = strlen(line);

	snprintf(label, sizeof(label), "%s: %s", r->command,
		 r->link_is_lost ? "link lost" : r->stage);
	bar_format(&r->now, label, terminal_columns(), line + erase_len, sizeof(line) - erase_len);
	put(&r->err, line, true);
	r->bar_is_shown = true;
}

static void resumed(struct report *r)
{
	json_t *o = json_object();

	r->link_is_lost = false;
	json_put_count(o, "resumes", r->now.resumes);
	put_json(r, "resumed", o, false);
	if (!r->has_json)
		say(r, "", "the link is back, going on where it broke");
}

static void link_lost(struct report *r, const char *why)
{
	json_t *o = json_object();

	if (r->link_is_lost) {
		json_decref(o);
		return;
	}
	r->link_is_lost = true;
	r->n_links_lost++;
	json_put(o, "error", json_text(why));
	put_json(r, "link-lost", o, false);
	if (!r->has_json)
		say(r, "the link is lost, trying again: ", why);
}

/* What the counters tell of the link. A break may have come and gone since the last ones. */
static void watch_link(struct report *r, bool is_resumed, enum link link)
{
	/* A target that has everything needs no link. */
	if (link == LINK_DOWN && r->now.pages_known == r->now.pages_total)
		link = LINK_NOT_TOLD;
	if (is_resumed || (link == LINK_DOWN && r->has_link))
		link_lost(r, "a connection ended");
	if (r->link_is_lost && (is_resumed || link == LINK_UP))
		resumed(r);
	if (link == LINK_UP)
		r->has_link = true;
}

/* ->lock is held. */
static void advance(struct report *r, const struct progress *p, enum link link)
{
	uint64_t now_ns = ferry_now_ns();
	bool is_resumed = p->resumes > r->now.resumes;

	r->now = *p;
	take_rates(r, now_ns);
	watch_link(r, is_resumed, link);
	/* A server that idles for days says nothing new. */
	if (r->has_json && now_ns - r->json_ns >= JSON_NS &&
	    (link != LINK_NOT_TOLD || p->wire_bytes != r->told_bytes)) {
		json_t *o = json_object();

		r->told_bytes = p->wire_bytes;
		put_progress(o, &r->now);
		put_json(r, "progress", o, true);
		r->json_ns = now_ns;
	}
	if (r->has_bar && now_ns - r->bar_ns >= BAR_NS) {
		draw_bar(r);
		r->bar_ns = now_ns;
	}
}

void report_target(struct report *r, const struct ferry_target_stats *s)
{
	struct progress p = {
		.pages_total = s->pages_total,
		.pages_known = s->pages_known,
		.wire_bytes = s->wire_bytes,
		.faults = s->faults,
		.p50_ns = ferry_histogram_percentile(&s->fault_ns, 500),
		.p99_ns = ferry_histogram_percentile(&s->fault_ns, 990),
		.resumes = s->resumes,
	};

	pthread_mutex_lock(&r->lock);
	r->has_target = true;
	r->target = *s;
	advance(r, &p, s->link_up ? LINK_UP : LINK_DOWN);
	pthread_mutex_unlock(&r->lock);
}

void report_server(struct report *r, const struct ferry_server_stats *s)
{
	struct progress p = {
		.pages_total = s->pages_total,
		.pages_known = s->pages_sent,
		.wire_bytes = s->wire_bytes,
		.faults = s->requests,
		.resumes = s->resumes,
		.sessions = s->n_sessions,
	};

	pthread_mutex_lock(&r->lock);
	r->has_server = true;
	r->server = *s;
	advance(r, &p, LINK_NOT_TOLD);
	pthread_mutex_unlock(&r->lock);
}

void report_replay(struct report *r, const struct ferry_replay_stats *s)
{
	pthread_mutex_lock(&r->lock);
	r->has_replay = true;
	r->replay = *s;
	pthread_mutex_unlock(&r->lock);
}

void report_link_lost(struct report *r, const char *why)
{
	pthread_mutex_lock(&r->lock);
	link_lost(r, why);
	pthread_mutex_unlock(&r->lock);
}

void report_event(struct report *r, const char *event, json_t *fields, const char *text)
{
	pthread_mutex_lock(&r->lock);
	put_json(r, event, fields, false);
	if (text && !r->has_json)
		say(r, "", text);
	pthread_mutex_unlock(&r->lock);
}

/* ->lock is held. */
static void finish(struct report *r)
{
	erase_bar(r);
	writer_finish(&r->err, r->stop_fd);
	writer_finish(&r->out, r->stop_fd);
}

int report_completed(struct report *r, json_t *summary, const char *text)
{
	pthread_mutex_lock(&r->lock);
	r->stage = "completed";
	if (!summary)
		summary = json_object();
	json_put(summary, "exit", json_integer(0));
	put_json(r, "completed", summary, false);
	erase_bar(r);
	if (text && !r->has_json)
		put(&r->out, text, false);
	finish(r);
	pthread_mutex_unlock(&r->lock);
	return 0;
}

int report_failed(struct report *r, const struct ferry_failure *f, int status, json_t *summary,
		  const char *text)
{
	json_t *o = json_object();

	pthread_mutex_lock(&r->lock);
	r->stage = "failed";
	r->n_errors++;
	say(r, "", f->text);
	json_put(o, "error", json_text(f->text));
	json_put(o, "consequence", json_text(ferry_consequence_name(f->consequence)));
	json_put(o, "exit", json_integer(status));
	json_put_all(o, summary);
	put_json(r, "failed", o, false);
	if (text && !r->has_json)
		put(&r->out, text, false);
	finish(r);
	pthread_mutex_unlock(&r->lock);
	return status;
}

void report_count_error(struct report *r)
{
	pthread_mutex_lock(&r->lock);
	r->n_errors++;
	pthread_mutex_unlock(&r->lock);
}

void report_snapshot(struct report *r, struct report_snapshot *out)
{
	pthread_mutex_lock(&r->lock);
	*out = (struct report_snapshot){
		.command = r->command,
		.stage = r->stage,
		.has_target = r->has_target,
		.has_server = r->has_server,
		.target = r->target,
		.server = r->server,
		.has_replay = r->has_replay,
		.replay = r->replay,
		.n_links_lost = r->n_links_lost,
		.n_errors = r->n_errors,
	};
	pthread_mutex_unlock(&r->lock);
}

static json_t *residency(const struct ferry_target_stats *s)
{
	json_t *a = json_array();

	for (uint32_t i = 0; i < FERRY_RESIDENCY_CELLS; i++)
		json_array_append_new(a, json_integer(s->residency[i]));
	return a;
}

/* What only one of the two sides has. ->lock is held. */
static void put_details(json_t *o, const struct report *r)
{
	if (r->has_target) {
		const struct ferry_target_stats *s = &r->target;

		json_put_count(o, "pages_urgent", s->pages_urgent);
		json_put_count(o, "pages_pushed", s->pages_pushed);
		json_put_count(o, "pages_zero", s->pages_zero);
		json_put_count(o, "faults_in_flight", s->faults_in_flight);
		json_put_count(o, "faults_stalled", s->faults_stalled);
		json_put(o, "oldest_wait_us", json_us(s->oldest_wait_ns));
		json_put(o, "residency", residency(s));
	}
	if (r->has_server) {
		const struct ferry_server_stats *s = &r->server;

		json_put_count(o, "requests", s->requests);
		json_put_count(o, "pages_urgent", s->pages_urgent);
		json_put_count(o, "pages_pushed", s->pages_pushed);
		json_put_count(o, "pages_zero", s->pages_zero);
		json_put_count(o, "sessions_ever", s->n_sessions_ever);
		json_put_count(o, "sessions_completed", s->n_completed);
	}
}

json_t *report_status(struct report *r)
{
	json_t *o = json_object();

	pthread_mutex_lock(&r->lock);
	json_put(o, "command", json_text(r->command));
	json_put(o, "pid", json_integer(getpid()));
	json_put(o, "version", json_text(PAGEFERRY_VERSION));
	json_put(o, "stage", json_text(r->stage));
	json_put(o, "ms", json_ms(ferry_now_ns() - r->start_ns));
	if (r->address[0])
		json_put(o, "address", json_text(r->address));
	json_put(o, "link",
		 json_text(r->link_is_lost		    ? "lost"
			   : r->has_link || r->now.sessions ? "up"
							    : "none"));
	json_put_count(o, "sessions", r->now.sessions);
	put_progress(o, &r->now);
	json_put_count(o, "pages_per_second", r->now.pages_per_second);
	put_details(o, r);
	if (r->more)
		r->more(r->more_ctx, o);
	pthread_mutex_unlock(&r->lock);
	return o;
}
