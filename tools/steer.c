// SPDX-License-Identifier: Apache-2.0
#include "tools/steer.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "tools/ask.h"
#include "tools/json.h"

/* --- asked ---------------------------------------------------------------------------------- */

static json_t *refusal(const char *text)
{
	json_t *o = json_object();

	json_put(o, "error", json_text(text));
	return o;
}

static json_t *consent(void)
{
	json_t *o = json_object();

	json_put(o, "command", json_text("migrate"));
	json_put(o, "pid", json_integer(getpid()));
	return o;
}

static json_t *answer_pause(void *ctx, const json_t *request)
{
	struct ferry_steering *s = ctx;

	(void)request;
	atomic_store(&s->paused, true);
	return consent();
}

static json_t *answer_continue(void *ctx, const json_t *request)
{
	struct ferry_steering *s = ctx;

	(void)request;
	atomic_store(&s->paused, false);
	return consent();
}

/* Whoever comes first, this or the commit, has decided. The rest is what a signal does. */
static json_t *answer_cancel(void *ctx, const json_t *request)
{
	struct ferry_steering *s = ctx;
	int fate = FERRY_FATE_OPEN;

	(void)request;
	if (!atomic_compare_exchange_strong(&s->fate, &fate, FERRY_FATE_CANCELLED) &&
	    fate == FERRY_FATE_COMMITTED)
		return refusal("the guest has been given away to the target, and can't be had back: "
			       "the source never runs it again; let the migration end");
	/* To the thread that migrates: what it may call is little by now, and this is among it. */
	(void)tgkill(getpid(), getpid(), SIGTERM);
	return consent();
}

const struct control_request steer_requests[] = {
	{"pause", answer_pause, NULL},
	{"continue", answer_continue, NULL},
	{"cancel", answer_cancel, NULL},
	{NULL, NULL, NULL},
};

/* --- asking --------------------------------------------------------------------------------- */

struct search {
	char path[256];
	unsigned int n;
};

static void note_migrate(void *ctx, const char *path, int rc, struct ask_answer *answer,
			 const struct ferry_failure *f)
{
	struct search *s = ctx;
	const char *command;

	(void)f;
	if (rc < 0)
		return;
	command = json_string_value(json_object_get(answer->json, "command"));
	if (command && !strcmp(command, "migrate")) {
		s->n++;
		snprintf(s->path, sizeof(s->path), "%s", path);
	}
	json_decref(answer->json);
	ferry_close(answer->fd);
}

static int find(const struct options *o, struct search *s, struct ferry_failure *f)
{
	int rc;

	if (o->control) {
		snprintf(s->path, sizeof(s->path), "%s", o->control);
		return 0;
	}
	rc = ask_all("status", note_migrate, s);
	if (rc < 0)
		return ferry_fail_errno(f, FERRY_REFUSE, rc, "the folder of the control sockets");
	if (!s->n)
		return ferry_fail(f, FERRY_REFUSE, -ENOENT,
				  "no 'pageferry migrate' of this user is running; for one with "
				  "--control, give the same");
	if (s->n > 1)
		return ferry_fail(f, FERRY_REFUSE, -ENOTUNIQ,
				  "%u 'pageferry migrate' are running; say which by --control SOCK",
				  s->n);
	return 0;
}

int steer(const struct options *o)
{
	const char *what = o->cancel ? "cancel" : o->pause ? "pause" : "continue";
	const char *done = o->cancel  ? "cancelled: the guest goes on here"
			   : o->pause ? "the push is paused"
				      : "the push goes on";
	struct search s = {0};
	struct ferry_failure f = {0};
	struct ask_answer answer;
	int rc = find(o, &s, &f);

	if (!rc)
		rc = ask(s.path, what, &answer, &f);
	if (!rc) {
		json_decref(answer.json);
		ferry_close(answer.fd);
	}
	if (rc < 0)
		fprintf(stderr, "pageferry migrate: %s\n", f.text);
	else if (!o->json)
		puts(done);
	if (o->json)
		json_print_asked("migrate", what, rc < 0 ? f.text : NULL,
				 rc < 0 ? EXIT_FAILED : EXIT_DONE);
	return rc < 0 ? EXIT_FAILED : EXIT_DONE;
}
