// SPDX-License-Identifier: Apache-2.0
/* Ask running commands how far they are, over their control sockets. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "tools/ask.h"
#include "tools/bar.h"
#include "tools/command.h"
#include "tools/job.h"
#include "tools/json.h"

static const struct option_def status_options[] = {
	{.name = "control",
	 .arg = "SOCK",
	 .help = "control socket of one command (default: all commands of this user, found in "
		 "$XDG_RUNTIME_DIR/pageferry, for root in /run/pageferry)",
	 .kind = OPTION_TEXT,
	 OPTION_AT(control)},
	OPTIONS_COMMON,
};

static const char *text_of(const json_t *o, const char *key)
{
	const char *text = json_string_value(json_object_get(o, key));

	return text ? text : "-";
}

static uint64_t count_of(const json_t *o, const char *key)
{
	return (uint64_t)json_integer_value(json_object_get(o, key));
}

/* What a handler's working set is good for. @o: NULL for none */
static void print_replay(const json_t *o)
{
	struct ferry_replay_stats s = {
		.pages = count_of(o, "pages"),
		.n_vms = count_of(o, "vms"),
		.samples_seen = count_of(o, "samples"),
		.hits = count_of(o, "hits"),
		.is_first = json_is_true(json_object_get(o, "pushed_first")),
	};
	char line[SUMMARY_MAX] = "";

	if (!o)
		return;
	summary_replay(&s, line, sizeof(line));
	printf("  %s", line);
}

static void print_row(const json_t *o)
{
	char rate[FIGURE_MAX], p99[FIGURE_MAX];
	double us = json_number_value(json_object_get(o, "p99_us"));

	format_bytes((uint64_t)json_integer_value(json_object_get(o, "rate")), rate);
	format_duration((uint64_t)(us * FERRY_NS_PER_US), p99);
	printf("%-16s %8lld  %-12s %5.1f %%  %10s/s  %9lld  %9s  %-5s %s\n", text_of(o, "command"),
	       (long long)json_integer_value(json_object_get(o, "pid")), text_of(o, "stage"),
	       json_number_value(json_object_get(o, "percent")), rate,
	       (long long)json_integer_value(json_object_get(o, "faults")), us > 0 ? p99 : "-",
	       text_of(o, "link"), text_of(o, "address"));
	print_replay(json_object_get(o, "replay"));
}

static void print_head(void)
{
	printf("%-16s %8s  %-12s %7s  %12s  %9s  %9s  %-5s %s\n", "COMMAND", "PID", "STAGE", "DONE",
	       "RATE", "FAULTS", "P99", "LINK", "ADDRESS");
}

static void print_json(json_t *o)
{
	char *line = json_line(o);

	if (line)
		puts(line);
	free(line);
	json_decref(o);
}

/* @answer is given. */
static void print_running(const struct options *o, json_t *answer, unsigned int n_before)
{
	if (o->json) {
		json_t *line = json_object();

		json_put(line, "event", json_text("running"));
		json_put_all(line, answer);
		print_json(line);
		return;
	}
	if (!n_before)
		print_head();
	print_row(answer);
	json_decref(answer);
}

struct round {
	const struct options *o;
	unsigned int n_running;
};

static void print_one(void *ctx, const char *path, int rc, struct ask_answer *answer,
		      const struct ferry_failure *f)
{
	struct round *r = ctx;

	(void)path;
	if (rc < 0) {
		fprintf(stderr, "pageferry status: %s\n", f->text);
		return;
	}
	ferry_close(answer->fd);
	print_running(r->o, answer->json, r->n_running++);
}

static int finish(const struct options *o, unsigned int n_running, const struct ferry_failure *f)
{
	int status = f->err ? EXIT_FAILED : EXIT_DONE;

	if (f->err)
		fprintf(stderr, "pageferry status: %s\n", f->text);
	else if (!n_running && !o->json)
		fprintf(stderr, "pageferry status: no command of this user is running\n");
	if (o->json) {
		json_t *line = json_object();

		json_put(line, "event", json_text(f->err ? "failed" : "completed"));
		json_put(line, "command", json_text("status"));
		if (f->err) {
			json_put(line, "error", json_text(f->text));
			json_put(line, "consequence",
				 json_text(ferry_consequence_name(f->consequence)));
		} else {
			json_put_count(line, "running", n_running);
		}
		json_put(line, "exit", json_integer(status));
		print_json(line);
	}
	return status;
}

static int run(const struct options *o)
{
	struct round r = {.o = o};
	struct ferry_failure f = {0};
	struct ask_answer answer;
	int rc;

	if (o->control) {
		if (!ask(o->control, "status", &answer, &f))
			print_one(&r, o->control, 0, &answer, &f);
		return finish(o, r.n_running, &f);
	}
	rc = ask_all("status", print_one, &r);
	if (rc < 0)
		ferry_fail_errno(&f, FERRY_REFUSE, rc, "the folder of the control sockets");
	return finish(o, r.n_running, &f);
}

const struct command cmd_status = {
	.name = "status",
	.synopsis = "[OPTION...]",
	.summary = "Say how far running commands are.",
	.options = status_options,
	.run = run,
};
