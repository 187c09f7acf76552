// SPDX-License-Identifier: Apache-2.0
/* Where the time of faults goes: record a running command's, and tell what a record says. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>

#include "base/cleanup.h"
#include "tools/ask.h"
#include "tools/cmd_trace.h"
#include "tools/json.h"
#include "tools/stop.h"
#include "trace/export.h"
#include "trace/plot.h"
#include "trace/recorder.h"
#include "trace/report.h"

#define SLOWEST_DEFAULT 10
#define SLOWEST_MAX	1000

#define OPTION_FILE                                                                                \
	{                                                                                          \
		.name = "FILE", .help = "of 'pageferry trace record' or of --trace",               \
		.kind = OPTION_OPERAND, .required = true, OPTION_AT(file)                          \
	}

#define OPTION_OUTPUT                                                                              \
	{                                                                                          \
		.name = "output", .letter = 'o', .arg = "FILE",                                    \
		.help = "file to write; replaced if it is there", .kind = OPTION_TEXT,             \
		.required = true, OPTION_AT(output)                                                \
	}

/* --- how all parts end --------------------------------------------------------------------------
 */

int trace_finish(const struct options *o, const char *command, const struct ferry_failure *f,
		 json_t *summary)
{
	int status = f->err ? EXIT_FAILED : EXIT_DONE;
	json_t *line;
	char *text;

	if (f->err)
		fprintf(stderr, "pageferry %s: %s\n", command, f->text);
	if (!o->json) {
		json_decref(summary);
		return status;
	}
	line = json_object();
	json_put(line, "event", json_text(f->err ? "failed" : "completed"));
	json_put(line, "command", json_text(command));
	json_put_all(line, summary);
	if (f->err) {
		json_put(line, "error", json_text(f->text));
		json_put(line, "consequence", json_text(ferry_consequence_name(f->consequence)));
	}
	json_put(line, "exit", json_integer(status));
	text = json_line(line);
	if (text)
		puts(text);
	free(text);
	json_decref(line);
	return status;
}

/* --- record
 * --------------------------------------------------------------------------------------- */

static const struct option_def record_options[] = {
	OPTION_OUTPUT,
	{.name = "control",
	 .arg = "SOCK",
	 .help = "control socket of the command whose faults are recorded (default: the only one "
		 "of "
		 "this user that has any, found in $XDG_RUNTIME_DIR/pageferry, for root in "
		 "/run/pageferry)",
	 .kind = OPTION_TEXT,
	 OPTION_AT(control)},
	{.name = "duration",
	 .arg = "SECONDS",
	 .help = "end after so long (default: with the command, or when interrupted)",
	 .kind = OPTION_COUNT,
	 .max = 30 * 24 * 3600,
	 OPTION_AT(duration_s)},
	OPTIONS_COMMON,
};

/* The commands that have records of faults. */
struct found {
	unsigned int n;
	struct ask_answer answer; /* the first's */
	char names[300];
};

static void found_fini(struct found *f)
{
	if (f->n) {
		ferry_close(f->answer.fd);
		json_decref(f->answer.json);
	}
}

static void look_at(void *ctx, const char *path, int rc, struct ask_answer *answer,
		    const struct ferry_failure *f)
{
	struct found *found = ctx;
	size_t len = strlen(found->names);

	(void)f;
	if (rc < 0)
		return;
	if (answer->fd < 0) {
		json_decref(answer->json);
		return;
	}
	snprintf(found->names + len, sizeof(found->names) - len, "%s%s", found->n ? " or " : "",
		 path);
	if (found->n++) {
		ferry_close(answer->fd);
		json_decref(answer->json);
	} else {
		found->answer = *answer;
	}
}

static int find(const struct options *o, struct found *found, struct ferry_failure *f)
{
	int rc;

	if (o->control) {
		rc = ask(o->control, "trace", &found->answer, f);
		if (rc < 0)
			return rc;
		found->n = 1;
		if (found->answer.fd < 0)
			return ferry_fail(f, FERRY_REFUSE, -ENODATA,
					  "%.200s: the command gave no records", o->control);
		return 0;
	}
	rc = ask_all("trace", look_at, found);
	if (rc < 0)
		return ferry_fail_errno(f, FERRY_REFUSE, rc, "the folder of the control sockets");
	if (!found->n)
		return ferry_fail(f, FERRY_REFUSE, -ENOENT,
				  "no running command of this user keeps records of faults; start "
				  "'attach' or 'receive', or name its socket with --control. What "
				  "others do is shown by 'pageferry trace live'");
	if (found->n > 1)
		return ferry_fail(f, FERRY_REFUSE, -ENOTUNIQ,
				  "several commands keep records of faults; add --control with %s",
				  found->names);
	return 0;
}

static int record(const struct options *o, const struct found *found, int stop_fd, json_t *summary,
		  struct ferry_failure *f)
{
	int64_t timeout_ms = o->duration_s ? (int64_t)o->duration_s * 1000 : -1;
	_cleanup_close_ int pidfd = (int)syscall(SYS_pidfd_open, found->answer.pid, 0);
	const int stop_fds[] = {stop_fd, pidfd};
	struct ferry_recorder *r = NULL;
	uint64_t n_records = 0, n_lost = 0;
	int file = open(o->output, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666), rc;

	if (file < 0)
		return ferry_fail_errno(f, FERRY_REFUSE, -errno, "--output %s", o->output);
	rc = ferry_recorder_open(&r, file, found->answer.fd, f);
	if (rc < 0)
		return rc;
	ferry_recorder_run(r, stop_fds, pidfd < 0 ? 1 : 2, timeout_ms);
	rc = ferry_recorder_close(r, &n_records, &n_lost, f);
	json_put_count(summary, "records", n_records);
	json_put_count(summary, "lost_records", n_lost);
	if (!rc && !o->json && n_lost)
		printf("LOST: %" PRIu64 " records were overwritten before they were read\n",
		       n_lost);
	if (!rc && !o->json)
		printf("%" PRIu64 " records in %s\n", n_records, o->output);
	return rc;
}

static int run_record(const struct options *o)
{
	struct ferry_failure f = {0};
	struct found found = {0};
	json_t *summary = json_object();
	_cleanup_close_ int stop_fd = stop_open(&f);

	if (stop_fd >= 0 && !find(o, &found, &f))
		(void)record(o, &found, stop_fd, summary, &f);
	found_fini(&found);
	return trace_finish(o, "trace record", &f, summary);
}

static const struct command part_record = {
	.name = "trace record",
	.synopsis = "--output FILE [OPTION...]",
	.summary = "Record the faults of a running attach or receive in a file.",
	.notes = "Begins with what the command still has in memory: its last ten thousands of "
		 "faults.\n",
	.options = record_options,
	.run = run_record,
};

/* --- what a file says
 * ------------------------------------------------------------------------------- */

struct view {
	struct ferry_trace_log log;
	struct ferry_stats stats;
};

static void view_close(struct view *v)
{
	ferry_stats_fini(&v->stats);
	ferry_trace_log_fini(&v->log);
}

static int view_open(struct view *v, const struct options *o, struct ferry_failure *f)
{
	int rc = ferry_trace_load(&v->log, o->file, f);

	if (rc < 0)
		return rc;
	rc = ferry_stats_init(&v->stats, &v->log);
	return rc < 0 ? ferry_fail_errno(f, FERRY_REFUSE, rc, "%s", o->file) : 0;
}

/* What every output must say before anything else. The text report does it itself. */
static void warn(const struct view *v, const char *command)
{
	if (v->log.n_lost)
		fprintf(stderr,
			"pageferry %s: LOST: %" PRIu64
			" records were overwritten before they were read\n",
			command, v->log.n_lost);
	if (!v->log.is_whole)
		fprintf(stderr, "pageferry %s: the file is %s\n", command, v->log.warning);
}

static const struct option_def report_options[] = {
	OPTION_FILE,
	{.name = "csv",
	 .help = "print a line of comma-separated values for each fault",
	 .kind = OPTION_FLAG,
	 OPTION_AT(csv)},
	{.name = "slowest",
	 .arg = "N",
	 .help = "tell so many of the slowest faults in full, 1 to 1000 (default: 10)",
	 .kind = OPTION_COUNT,
	 .max = SLOWEST_MAX,
	 OPTION_AT(n_slowest)},
	OPTIONS_COMMON,
};

static int check_report(const struct options *o, struct ferry_failure *f)
{
	if (o->csv && o->json)
		return ferry_fail(f, FERRY_REFUSE, -EINVAL,
				  "--csv and --json exclude each other; give one");
	return 0;
}

static int run_report(const struct options *o)
{
	unsigned int n_slowest = o->n_slowest ? o->n_slowest : SLOWEST_DEFAULT;
	struct ferry_failure f = {0};
	struct view v = {0};
	int rc = view_open(&v, o, &f);

	if (!rc && o->csv) {
		warn(&v, "trace report");
		rc = ferry_report_csv(stdout, &v.log, &v.stats);
	} else if (!rc && o->json) {
		rc = ferry_report_json(stdout, &v.log, &v.stats, n_slowest);
	} else if (!rc) {
		rc = ferry_report_text(stdout, &v.log, &v.stats, n_slowest);
	}
	if (!rc && fflush(stdout))
		rc = -errno;
	if (rc < 0 && !f.err)
		ferry_fail_errno(&f, FERRY_REFUSE, rc, "standard output");
	view_close(&v);
	/* With --json the report is the last line. */
	return f.err ? trace_finish(o, "trace report", &f, NULL) : EXIT_DONE;
}

static const struct command part_report = {
	.name = "trace report",
	.synopsis = "FILE [OPTION...]",
	.summary = "Say where the time of the recorded faults went.",
	.options = report_options,
	.check = check_report,
	.run = run_report,
};

/* --- files made of a file ------------------------------------------------------------------------
 */

/* Write @o->output by @write. */
static int run_write(const struct options *o, const char *command,
		     int (*write)(FILE *to, const struct ferry_trace_log *log,
				  struct ferry_stats *stats))
{
	struct ferry_failure f = {0};
	struct view v = {0};
	FILE *to = NULL;
	int rc = view_open(&v, o, &f);

	if (!rc) {
		warn(&v, command);
		to = fopen(o->output, "we");
		rc = to ? write(to, &v.log, &v.stats) : -errno;
	}
	if (to && fclose(to) && !rc)
		rc = -errno;
	if (rc < 0 && !f.err)
		ferry_fail_errno(&f, FERRY_REFUSE, rc, "--output %s", o->output);
	view_close(&v);
	return trace_finish(o, command, &f, NULL);
}

static const struct option_def plot_options[] = {
	OPTION_FILE,
	OPTION_OUTPUT,
	OPTIONS_COMMON,
};

static int run_plot(const struct options *o)
{
	return run_write(o, "trace plot", ferry_plot);
}

static const struct command part_plot = {
	.name = "trace plot",
	.synopsis = "FILE --output X.svg [OPTION...]",
	.summary = "Draw latency, residency, addresses and stages as SVG.",
	.options = plot_options,
	.run = run_plot,
};

static const struct option_def export_options[] = {
	OPTION_FILE,
	{.name = "format",
	 .arg = "FORMAT",
	 .help = "perfetto (trace events as JSON, for ui.perfetto.dev and chrome://tracing) or "
		 "qemu "
		 "(what QEMU's query-migrate says of a post-copy)",
	 .kind = OPTION_TEXT,
	 .required = true,
	 OPTION_AT(format)},
	OPTION_OUTPUT,
	OPTIONS_COMMON,
};

static int check_export(const struct options *o, struct ferry_failure *f)
{
	if (strcmp(o->format, "perfetto") && strcmp(o->format, "qemu"))
		return ferry_fail(f, FERRY_REFUSE, -EINVAL,
				  "--format: '%.60s' is none; give perfetto or qemu", o->format);
	return 0;
}

static int run_export(const struct options *o)
{
	return run_write(o, "trace export",
			 strcmp(o->format, "qemu") ? ferry_export_perfetto : ferry_export_qemu);
}

static const struct command part_export = {
	.name = "trace export",
	.synopsis = "FILE --format FORMAT --output X.json [OPTION...]",
	.summary = "Write a trace in a form that other tools read.",
	.options = export_options,
	.check = check_export,
	.run = run_export,
};

static const struct command *const parts[] = {
	&trace_live, &part_record, &part_report, &part_plot, &part_export, NULL,
};

const struct command cmd_trace = {
	.name = "trace",
	.synopsis = "COMMAND [OPTION...]",
	.summary = "Watch or record faults, and say where their time went.",
	.notes = "'pageferry trace COMMAND --help' lists a command's options.\n",
	.parts = parts,
};
