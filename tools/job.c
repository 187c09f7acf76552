// SPDX-License-Identifier: Apache-2.0
#include "tools/job.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/cleanup.h"
#include "tools/json.h"
#include "tools/secure.h"
#include "tools/stop.h"

static json_t *answer_status(void *ctx, const json_t *request)
{
	struct job *j = ctx;

	(void)request;
	return report_status(&j->report);
}

static json_t *answer_trace(void *ctx, const json_t *request)
{
	struct job *j = ctx;
	json_t *o = json_object();

	(void)request;
	if (atomic_load(&j->trace_fd) < 0) {
		char text[160];

		snprintf(text, sizeof(text),
			 j->may_trace
				 ? "this %s keeps no records of faults (--no-trace), or not yet"
				 : "'%s' keeps no records of faults; 'pageferry trace live' "
				   "shows what it does",
			 j->report.command);
		json_put(o, "error", json_text(text));
		return o;
	}
	json_put(o, "command", json_text(j->report.command));
	json_put(o, "pid", json_integer(getpid()));
	json_put(o, "trace_version", json_integer(FERRY_TRACE_VERSION));
	return o;
}

static int trace_descriptor(void *ctx)
{
	struct job *j = ctx;

	return atomic_load(&j->trace_fd);
}

static const struct control_request control_requests[] = {
	{"status", answer_status, NULL},
	{"trace", answer_trace, trace_descriptor},
	{NULL, NULL, NULL},
};

/* Before privileges go: the file may be in a folder that only they give access to. */
static int open_record(struct job *j, const char *path, struct ferry_failure *f)
{
	if (!path)
		return 0;
	j->record_fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
	return j->record_fd < 0 ? ferry_fail_errno(f, FERRY_REFUSE, -errno, "--trace %s", path) : 0;
}

/* What every command answers, and what this one does besides. */
static void put_requests(struct job *j)
{
	struct control_request *to = j->requests;

	for (const struct control_request *r = control_requests; r->get; r++)
		*to++ = *r;
	for (const struct control_request *r = j->more_requests; r && r->get; r++) {
		*to = *r;
		to++->ctx = j->more_ctx;
	}
	*to = (struct control_request){0};
}

int job_open(struct job *j, const char *command, const struct options *o, struct ferry_failure *f)
{
	struct control_config config = {
		.path = o->control,
		.command = command,
		.requests = j->requests,
		.ctx = j,
		.log = &j->report.log,
	};

	int rc;

	put_requests(j);
	j->control = NULL;
	j->metrics = NULL;
	j->recorder = NULL;
	j->tls = NULL;
	j->record_fd = -1;
	atomic_store(&j->trace_fd, -1);
	report_init(&j->report, command, o);
	j->stop_fd = stop_open(f);
	if (j->stop_fd < 0)
		return j->stop_fd;
	j->report.stop_fd = j->stop_fd;
	rc = open_record(j, o->trace, f);
	if (rc < 0)
		return rc;
	rc = o->metrics.given ? metrics_open(&j->metrics, &o->metrics.addr, &j->report, f) : 0;
	if (rc < 0)
		return rc;
	return control_open(&j->control, &config, f);
}

int job_secure(struct job *j, const struct options *o, bool accepts, struct ferry_failure *f)
{
	return secure_open(&j->tls, o, accepts, &j->report.log, f);
}

int job_start(struct job *j, struct ferry_failure *f)
{
	int rc = metrics_start(j->metrics, f);

	return rc < 0 ? rc : control_start(j->control, f);
}

int job_trace(struct job *j, struct ferry_trace *trace, struct ferry_failure *f)
{
	int fd, rc;

	if (!trace)
		return j->record_fd < 0 ? 0
					: ferry_fail(f, FERRY_REFUSE, -ENOMEM,
						     "--trace: there are no records of faults");
	fd = ferry_trace_fd(trace);
	if (fd < 0)
		return ferry_fail_errno(f, FERRY_REFUSE, fd, "reading the trace's memory");
	/* Given out by the control thread until it ends, which is when it is closed. */
	atomic_store(&j->trace_fd, fd);
	report_trace(&j->report, trace);
	if (j->record_fd < 0)
		return 0;
	rc = ferry_recorder_open(&j->recorder, TAKE_FD(j->record_fd), fd, f);
	return rc < 0 ? rc : ferry_recorder_start(j->recorder, f);
}

void job_untrace(struct job *j)
{
	report_trace(&j->report, NULL);
}

static void end_record(struct job *j)
{
	struct ferry_failure f = {0};
	uint64_t n_lost = 0;

	if (!j->recorder)
		return;
	if (ferry_recorder_close(j->recorder, NULL, &n_lost, &f) < 0)
		ferry_warn(&j->report.log, "--trace: %s", f.text);
	else if (n_lost)
		ferry_warn(&j->report.log,
			   "--trace: %" PRIu64 " records were overwritten before they were written "
			   "to the file",
			   n_lost);
	j->recorder = NULL;
}

void job_close(struct job *j)
{
	end_record(j);
	metrics_free(j->metrics);
	control_free(j->control);
	ferry_tls_free(j->tls);
	ferry_close(j->trace_fd);
	ferry_close(j->record_fd);
	ferry_close(j->stop_fd);
	report_fini(&j->report);
}

static void append(char *out, size_t size, const char *text)
{
	size_t len = strlen(out);

	snprintf(out + len, size - len, "%s", text);
}

static void begin(uint64_t ram_bytes, uint64_t total_ns, uint64_t downtime_ns, char *out,
		  size_t size)
{
	char ram[FIGURE_MAX], total[FIGURE_MAX], line[160];

	snprintf(out, size, "%s in %s", format_bytes(ram_bytes, ram),
		 format_duration(total_ns, total));
	if (downtime_ns) {
		snprintf(line, sizeof(line), ", of which the guest stood still for %s",
			 format_duration(downtime_ns, total));
		append(out, size, line);
	}
	append(out, size, "\n");
}

void summary_target(const struct ferry_target_stats *s, uint64_t ram_bytes, uint64_t total_ns,
		    uint64_t downtime_ns, char *out, size_t size)
{
	const struct ferry_histogram *h = &s->fault_ns;
	char wire[FIGURE_MAX], p50[FIGURE_MAX], p99[FIGURE_MAX], p999[FIGURE_MAX], max[FIGURE_MAX];
	char line[400];

	begin(ram_bytes, total_ns, downtime_ns, out, size);
	snprintf(line, sizeof(line),
		 "pages: %" PRIu64 ", of which %" PRIu64 " urgent, %" PRIu64 " pushed, %" PRIu64
		 " zero; received %s; resumes: %u\n",
		 s->pages_total, s->pages_urgent, s->pages_pushed, s->pages_zero,
		 format_bytes(s->wire_bytes, wire), s->resumes);
	append(out, size, line);
	snprintf(line, sizeof(line), "faults: %" PRIu64 ", of which %" PRIu64 " went to the source",
		 s->faults, h->n);
	append(out, size, line);
	if (h->n) {
		snprintf(line, sizeof(line), ": p50 %s, p99 %s, p99.9 %s, max %s",
			 format_duration(ferry_histogram_percentile(h, 500), p50),
			 format_duration(ferry_histogram_percentile(h, 990), p99),
			 format_duration(ferry_histogram_percentile(h, 999), p999),
			 format_duration(h->max_ns, max));
		append(out, size, line);
	}
	append(out, size, "\n");
	if (!s->verified.done)
		return;
	snprintf(line, sizeof(line), "%" PRIu64 " pages verified", s->verified.pages);
	append(out, size, line);
	if (s->verified.read_back) {
		snprintf(line, sizeof(line), ", %" PRIu64 " of them read back from memory",
			 s->verified.read_back);
		append(out, size, line);
	}
	snprintf(line, sizeof(line), "; %" PRIu64 " wrong, %" PRIu64 " can't be told\n",
		 s->verified.wrong, s->verified.unknown);
	append(out, size, line);
}

void summary_replay(const struct ferry_replay_stats *s, char *out, size_t size)
{
	char line[200];

	if (s->samples_seen)
		snprintf(line, sizeof(line),
			 "working set: %" PRIu64 " %% of %" PRIu64
			 " samples were wanted, by %" PRIu64 " VM%s; %s\n",
			 s->hits * 100 / s->samples_seen, s->samples_seen, s->n_vms,
			 s->n_vms == 1 ? "" : "s",
			 s->is_first ? "it is pushed first" : "it is not pushed first any more");
	else
		snprintf(line, sizeof(line),
			 "working set: %" PRIu64 " pages; no VM has said yet what it is good for\n",
			 s->pages);
	append(out, size, line);
}

void summary_server(const struct ferry_server_stats *s, uint64_t ram_bytes, uint64_t total_ns,
		    uint64_t downtime_ns, char *out, size_t size)
{
	char wire[FIGURE_MAX], line[400];

	begin(ram_bytes, total_ns, downtime_ns, out, size);
	snprintf(line, sizeof(line),
		 "pages sent: %" PRIu64 " urgent, %" PRIu64 " pushed, %" PRIu64
		 " zero; sent %s; sessions: %u, completed: %u; resumes: %u\n",
		 s->pages_urgent, s->pages_pushed, s->pages_zero, format_bytes(s->wire_bytes, wire),
		 s->n_sessions_ever, s->n_completed, s->resumes);
	append(out, size, line);
}
