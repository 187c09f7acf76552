/* SPDX-License-Identifier: Apache-2.0 */
#include "shuttle.h"

#include <pageferry.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "monitor.h"
#include "report.h"

#define ANSWER_MAX 4096

/* All moves together: what the guest saw while it moved, and what the tracer did. */
struct seen {
	struct report_counts stalls, faults;
};

struct end {
	pid_t pid;
	FILE *to, *from;
};

static int start_end(struct end *e, const struct machine_config *config)
{
	int to[2], from[2];

	if (pipe(to) < 0)
		return -1;
	if (pipe(from) < 0) {
		close(to[0]);
		close(to[1]);
		return -1;
	}
	fflush(NULL);
	e->pid = fork();
	if (e->pid == 0) {
		FILE *in = fdopen(to[0], "r"), *out = fdopen(from[1], "w");

		prctl(PR_SET_PDEATHSIG, SIGKILL);
		close(to[1]);
		close(from[0]);
		_exit(in && out ? monitor_run(config, in, out) : 1);
	}
	close(to[0]);
	close(from[1]);
	e->to = fdopen(to[1], "w");
	e->from = fdopen(from[0], "r");
	return e->pid > 0 && e->to && e->from ? 0 : -1;
}

static int end_end(struct end *e)
{
	int status = 1;

	/* The end of its input alone would not be seen: the other process has a copy of the pipe. */
	if (e->to) {
		fputs("quit\n", e->to);
		fclose(e->to);
	}
	if (e->from)
		fclose(e->from);
	if (e->pid > 0)
		waitpid(e->pid, &status, 0);
	return status;
}

/* One line there, one line back: in @answer (ANSWER_MAX), without "ok ". Return: 0 when it is ok.
 */
__attribute__((format(printf, 3, 4))) static int tell(struct end *e, char *answer, const char *fmt,
						      ...)
{
	va_list ap;
	size_t len;

	va_start(ap, fmt);
	vfprintf(e->to, fmt, ap);
	va_end(ap);
	fputc('\n', e->to);
	fflush(e->to);
	if (!fgets(answer, ANSWER_MAX, e->from)) {
		snprintf(answer, ANSWER_MAX, "its process has ended");
	} else {
		len = strcspn(answer, "\n");
		answer[len] = '\0';
		if (!strncmp(answer, "ok", 2)) {
			memmove(answer, answer + (len > 2 ? 3 : 2), len - (len > 2 ? 2 : 1));
			return 0;
		}
	}
	fprintf(stderr, "microvm: %s: %s\n", fmt, answer);
	return -1;
}

/* The guest's own count, which is in its memory and moves with it. */
static int take_stalls(struct end *e, struct report_counts *out)
{
	char answer[ANSWER_MAX];

	return tell(e, answer, "stats") < 0 || !report_take(out, answer, "stalls=") ? -1 : 0;
}

static int move(struct end *source, struct end *target, const struct shuttle_config *config,
		uint32_t n, struct seen *seen)
{
	struct report_counts before, after, faults, none = {0};
	char address[ANSWER_MAX], answer[ANSWER_MAX];

	if (tell(source, answer, "reach %llu", (unsigned long long)config->ops) < 0 ||
	    tell(source, answer, "stop") < 0 || take_stalls(source, &before) < 0 ||
	    tell(source, answer, "serve %s", config->listen) < 0)
		return -1;
	if (sscanf(answer, "address=%1100s", address) != 1)
		return -1;
	if (tell(target, answer, "take %s", address) < 0)
		return -1;
	printf("move %u: runs again, %s\n", n, answer);
	if (tell(target, answer, "reach %llu", (unsigned long long)config->ops) < 0 ||
	    tell(target, answer, "complete") < 0 || !report_take(&faults, answer, "faults=") ||
	    take_stalls(target, &after) < 0)
		return -1;
	report_add(&seen->stalls, &after, &before);
	report_add(&seen->faults, &faults, &none);
	printf("move %u: complete, %s\n", n, answer);
	return tell(source, answer, "complete") < 0 || tell(source, answer, "release") < 0 ? -1 : 0;
}

static int shuttle(struct end *ends, const struct shuttle_config *config)
{
	char answer[ANSWER_MAX];
	struct end *last = &ends[config->n_moves % 2];
	struct report_counts stalls;
	struct seen seen = {0};
	unsigned long long bad = 1;

	if (tell(&ends[0], answer, "boot") < 0)
		return 1;
	printf("guest: %s\n", answer);
	fflush(stdout);
	for (uint32_t i = 0; i < config->n_moves; i++) {
		if (move(&ends[i % 2], &ends[1 - i % 2], config, i + 1, &seen) < 0)
			return 1;
		fflush(stdout);
	}
	if (tell(last, answer, "verify") < 0)
		return 1;
	printf("verified: %s\n", answer);
	if (sscanf(answer, "bad=%llu", &bad) != 1)
		return 1;
	if (tell(last, answer, "stats") < 0 || !report_take(&stalls, answer, "stalls="))
		return 1;
	printf("guest: %s\n", answer);
	if (config->n_moves) {
		printf("while it moved:\n");
		report_print(stdout, &seen.stalls, &seen.faults);
	}
	return bad ? 1 : 0;
}

int shuttle_run(const struct machine_config *machine, const struct shuttle_config *config)
{
	struct end ends[2] = {0};
	int rc = 1;

	signal(SIGPIPE, SIG_IGN);
	if (!start_end(&ends[0], machine) && !start_end(&ends[1], machine))
		rc = shuttle(ends, config);
	for (int i = 0; i < 2; i++)
		if (end_end(&ends[i]))
			rc = 1;
	return rc;
}
