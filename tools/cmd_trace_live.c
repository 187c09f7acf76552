// SPDX-License-Identifier: Apache-2.0
/*
 * Watch a running command. Its status is asked for at each interval; its records of faults are read
 * from the shared rings much more often, so that none is overwritten before. A source has no
 * records, and 'receive' has them only from the moment when it has attached to the guest.
 */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/util.h"
#include "tools/ask.h"
#include "tools/cmd_trace.h"
#include "tools/json.h"
#include "tools/live.h"
#include "tools/screen.h"
#include "tools/stop.h"
#include "trace/reader.h"

#define LOOK_MS	     50 /* how often the rings are read */
#define INTERVAL_MAX 3600

static const struct option_def live_options[] = {
	{.name = "control",
	 .arg = "SOCK",
	 .help = "control socket of the command to watch (default: the only one of this user, "
		 "found "
		 "in $XDG_RUNTIME_DIR/pageferry, for root in /run/pageferry)",
	 .kind = OPTION_TEXT,
	 OPTION_AT(control)},
	{.name = "plain",
	 .help = "print one line an interval instead of a screen, as for a log",
	 .kind = OPTION_FLAG,
	 OPTION_AT(plain)},
	{.name = "interval",
	 .arg = "SECONDS",
	 .help = "how often figures are renewed, 1 to 3600 (default: 1)",
	 .kind = OPTION_COUNT,
	 .max = INTERVAL_MAX,
	 OPTION_AT(interval_s)},
	OPTIONS_COMMON,
};

struct watch {
	const struct options *o;
	char path[512];
	struct ferry_trace_reader *reader; /* owned; NULL while there are no records */
	int stop_fd, pidfd;		   /* owned; -1 for none */
	bool has_screen;
	struct live live;
};

/* --- which command ------------------------------------------------------------------------------
 */

struct found {
	unsigned int n;
	char path[512]; /* the first's */
	char names[700];
};

static void look_at(void *ctx, const char *path, int rc, struct ask_answer *answer,
		    const struct ferry_failure *f)
{
	struct found *found = ctx;
	size_t len = strlen(found->names);

	(void)f;
	if (rc < 0)
		return;
	ferry_close(answer->fd);
	json_decref(answer->json);
	snprintf(found->names + len, sizeof(found->names) - len, "%s%s", found->n ? " or " : "",
		 path);
	if (!found->n++)
		snprintf(found->path, sizeof(found->path), "%s", path);
}

static int choose(struct watch *w, struct ferry_failure *f)
{
	struct found found = {0};
	int rc;

	if (w->o->control) {
		snprintf(w->path, sizeof(w->path), "%s", w->o->control);
		return 0;
	}
	rc = ask_all("status", look_at, &found);
	if (rc < 0)
		return ferry_fail_errno(f, FERRY_REFUSE, rc, "the folder of the control sockets");
	if (!found.n)
		return ferry_fail(
			f, FERRY_REFUSE, -ENOENT,
			"no command of this user is running; start 'attach', 'receive' or "
			"'serve', or name its socket with --control");
	if (found.n > 1)
		return ferry_fail(f, FERRY_REFUSE, -ENOTUNIQ,
				  "several commands are running; choose one: add --control with %s",
				  found.names);
	snprintf(w->path, sizeof(w->path), "%s", found.path);
	return 0;
}

/* --- what it says --------------------------------------------------------------------------------
 */

static void drain(struct watch *w)
{
	struct ferry_trace_record rec;
	uint32_t ring;

	if (!w->reader)
		return;
	while (ferry_trace_reader_next(w->reader, &rec, &ring))
		live_record(&w->live, &rec, ferry_trace_reader_header(w->reader));
	w->live.n_overwritten = 0;
	for (uint32_t i = 0; i < ferry_trace_reader_n_rings(w->reader); i++)
		w->live.n_overwritten += ferry_trace_reader_lost(w->reader, i);
}

/* Records are asked for until there are some. Errors: REFUSE: they are of another version. */
static int open_records(struct watch *w, struct ferry_failure *f)
{
	struct ferry_failure why = {0};
	struct ask_answer answer;
	int rc = 0;

	if (w->reader || !w->live.is_target || ask(w->path, "trace", &answer, &why) < 0)
		return 0;
	if (answer.fd >= 0)
		rc = ferry_trace_reader_open(&w->reader, answer.fd, f);
	ferry_close(answer.fd);
	json_decref(answer.json);
	return rc;
}

static bool is_gone(const struct watch *w)
{
	struct pollfd p = {.fd = w->pidfd, .events = POLLIN};

	return w->pidfd >= 0 && poll(&p, 1, 0) > 0;
}

/* Renew everything. Errors: REFUSE, in @f. */
static int renew(struct watch *w, struct ferry_failure *f)
{
	struct ferry_failure why = {0};
	struct ask_answer answer;
	int rc = ask(w->path, "status", &answer, &why);

	if (!rc) {
		live_status(&w->live, answer.json);
		ferry_close(answer.fd);
		json_decref(answer.json);
	}
	w->live.is_silent = rc < 0;
	/* At its end a command closes its socket first. */
	w->live.has_ended = is_gone(w) || rc == -ECONNREFUSED || rc == -ENOENT ||
			    (w->reader && ferry_trace_reader_ended(w->reader) && rc < 0);
	rc = open_records(w, f);
	drain(w);
	live_tick(&w->live, ferry_now_ns());
	return rc;
}

/* --- how it is shown -----------------------------------------------------------------------------
 */

static void show(struct watch *w)
{
	if (w->o->json) {
		json_t *o = json_object();
		char *text;

		json_put(o, "event", json_text("sample"));
		json_put(o, "command", json_text("trace live"));
		json_put_all(o, live_json(&w->live));
		text = json_line(o);
		if (text)
			puts(text);
		free(text);
		json_decref(o);
	} else if (w->has_screen) {
		screen_draw(&w->live);
	} else {
		char line[LIVE_LINE_MAX];

		live_plain(&w->live, line, sizeof(line));
		puts(line);
	}
	fflush(stdout);
}

/* Return: whether the user wants an end. */
static bool wants_end(struct watch *w, const struct pollfd *p)
{
	enum screen_key key;

	if (p[0].revents || ferror(stdout))
		return true;
	if (!w->has_screen)
		return false;
	while ((key = screen_read()) != SCREEN_NOTHING) {
		if (key == SCREEN_QUIT)
			return true;
		screen_draw(&w->live);
	}
	/* The terminal is gone. */
	return p[2].revents & (POLLHUP | POLLERR | POLLNVAL);
}

static int watch(struct watch *w, struct ferry_failure *f)
{
	uint64_t interval_ns = FERRY_MAX(w->o->interval_s, 1u) * (uint64_t)FERRY_NS_PER_S;
	uint64_t next_ns = ferry_now_ns() + interval_ns;

	show(w);
	for (;;) {
		struct pollfd p[] = {
			{.fd = w->stop_fd, .events = POLLIN},
			{.fd = w->pidfd, .events = POLLIN},
			{.fd = w->has_screen ? STDIN_FILENO : -1, .events = POLLIN},
		};
		int rc;

		if (poll(p, FERRY_ARRAY_SIZE(p), LOOK_MS) < 0)
			memset(p, 0, sizeof(p)); /* SIGWINCH */
		if (wants_end(w, p))
			return 0;
		drain(w);
		if (ferry_now_ns() < next_ns && !p[1].revents)
			continue;
		next_ns = ferry_now_ns() + interval_ns;
		rc = renew(w, f);
		if (rc < 0)
			return rc;
		show(w);
		if (w->live.has_ended)
			return 0;
	}
}

static int start(struct watch *w, struct ferry_failure *f)
{
	struct ask_answer answer;
	int rc;

	w->stop_fd = stop_open(f);
	if (w->stop_fd < 0)
		return w->stop_fd;
	rc = choose(w, f);
	if (!rc)
		rc = ask(w->path, "status", &answer, f);
	if (rc < 0)
		return rc;
	w->pidfd = (int)syscall(SYS_pidfd_open, answer.pid, 0);
	ferry_close(answer.fd);
	json_decref(answer.json);
	rc = renew(w, f);
	if (!rc && !w->o->plain && !w->o->json) {
		rc = screen_open(f);
		w->has_screen = !rc;
	}
	return rc;
}

static int run(const struct options *o)
{
	struct watch *w = calloc(1, sizeof(*w));
	struct ferry_failure f = {0};
	json_t *summary = json_object();

	if (!w) {
		ferry_fail_errno(&f, FERRY_REFUSE, -ENOMEM, "trace live");
		return trace_finish(o, "trace live", &f, summary);
	}
	w->o = o;
	w->stop_fd = w->pidfd = -1;
	if (!start(w, &f))
		(void)watch(w, &f);
	if (w->has_screen)
		screen_close();
	if (!f.err && w->live.has_ended && !o->json)
		printf("%s (process %d) has ended; %.1f %% of the pages were %s when it was last "
		       "asked\n",
		       w->live.command, w->live.pid, progress_percent(&w->live.progress),
		       w->live.is_target ? "there" : "sent");
	json_put(summary, "ended", json_boolean(w->live.has_ended));
	json_put_count(summary, "lost_records", live_lost(&w->live));
	ferry_trace_reader_close(w->reader);
	ferry_close(w->pidfd);
	ferry_close(w->stop_fd);
	free(w);
	return trace_finish(o, "trace live", &f, summary);
}

const struct command trace_live = {
	.name = "trace live",
	.synopsis = "[OPTION...]",
	.summary =
		"Watch a running attach, receive or serve: where faults wait, and how far it is.",
	.notes = "On the screen q ends it, and Ctrl-L draws it anew. It also ends with the command "
		 "that it\nwatches.\n",
	.options = live_options,
	.run = run,
};
