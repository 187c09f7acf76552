// SPDX-License-Identifier: Apache-2.0
/* Ask running commands how far they are, over their control sockets. */
#include <dirent.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/net.h"
#include "tools/bar.h"
#include "tools/command.h"
#include "tools/control.h"
#include "tools/json.h"

#define TIMEOUT_MS 2000
#define ANSWER_MAX 16384

static const struct option_def status_options[] = {
	{.name = "control",
	 .arg = "SOCK",
	 .help = "control socket of one command (default: all commands of this user, found in "
		 "$XDG_RUNTIME_DIR/pageferry, for root in /run/pageferry)",
	 .kind = OPTION_TEXT,
	 OPTION_AT(control)},
	OPTIONS_COMMON,
};

static int read_line(int fd, char *out, size_t size)
{
	uint64_t deadline = ferry_now_ns() + TIMEOUT_MS * (uint64_t)FERRY_NS_PER_MS;
	size_t len = 0;

	while (len < size - 1) {
		uint64_t now = ferry_now_ns();
		ssize_t n;
		int rc;

		if (now >= deadline)
			return -ETIMEDOUT;
		rc = ferry_net_wait(fd, POLLIN, (int)((deadline - now) / FERRY_NS_PER_MS) + 1, -1);
		if (rc < 0)
			return rc;
		n = recv(fd, out + len, size - 1 - len, 0);
		if (!n)
			return -ECONNRESET;
		if (n < 0 && errno != EAGAIN && errno != EINTR)
			return -errno;
		if (n < 0)
			continue;
		len += (size_t)n;
		out[len] = '\0';
		if (strchr(out, '\n'))
			return 0;
	}
	return -EMSGSIZE;
}

/* @out: the answer, owned by the caller. */
static int ask(const char *path, json_t **out, struct ferry_failure *f)
{
	static const char request[] = "{\"get\":\"status\"}\n";
	struct ferry_addr a = {.is_unix = true};
	_cleanup_close_ int fd = -1;
	char answer[ANSWER_MAX];
	json_t *o;
	int rc;

	if (snprintf(a.path, sizeof(a.path), "%s", path) >= (int)sizeof(a.path))
		return ferry_fail(f, FERRY_REFUSE, -ENAMETOOLONG,
				  "'%.200s' is longer than a socket's path may be", path);
	fd = ferry_net_dial(&a, TIMEOUT_MS, -1, f);
	if (fd < 0)
		return fd;
	rc = ferry_net_write_all(fd, request, strlen(request), TIMEOUT_MS, -1);
	if (!rc)
		rc = read_line(fd, answer, sizeof(answer));
	if (rc < 0)
		return ferry_fail_errno(f, FERRY_REFUSE, rc, "%.200s gives no answer", path);
	o = json_loads(answer, 0, NULL);
	if (!json_is_string(json_object_get(o, "command"))) {
		json_decref(o);
		return ferry_fail(f, FERRY_REFUSE, -EPROTO,
				  "%.200s is no control socket of pageferry", path);
	}
	*out = o;
	return 0;
}

static const char *text_of(const json_t *o, const char *key)
{
	const char *text = json_string_value(json_object_get(o, key));

	return text ? text : "-";
}

static void print_row(const json_t *o)
{
	char rate[FIGURE_MAX], p99[FIGURE_MAX];
	double us = json_number_value(json_object_get(o, "p99_us"));

	format_bytes((uint64_t)json_integer_value(json_object_get(o, "rate")), rate);
	format_duration((uint64_t)(us * FERRY_NS_PER_US), p99);
	printf("%-8s %8lld  %-12s %5.1f %%  %10s/s  %9lld  %9s  %-5s %s\n", text_of(o, "command"),
	       (long long)json_integer_value(json_object_get(o, "pid")), text_of(o, "stage"),
	       json_number_value(json_object_get(o, "percent")), rate,
	       (long long)json_integer_value(json_object_get(o, "faults")), us > 0 ? p99 : "-",
	       text_of(o, "link"), text_of(o, "address"));
}

static void print_head(void)
{
	printf("%-8s %8s  %-12s %7s  %12s  %9s  %9s  %-5s %s\n", "COMMAND", "PID", "STAGE", "DONE",
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

/* COMMAND-PID.sock of a process that is no more. */
static bool is_left_over(const char *name)
{
	const char *dash = strrchr(name, '-');
	int pid;

	return dash && sscanf(dash, "-%d.sock", &pid) == 1 && pid > 0 && kill(pid, 0) < 0 &&
	       errno == ESRCH;
}

static int by_name(const struct dirent **a, const struct dirent **b)
{
	return strcmp((*a)->d_name, (*b)->d_name);
}

static int is_socket_name(const struct dirent *e)
{
	size_t len = strlen(e->d_name);

	return len > 5 && !strcmp(e->d_name + len - 5, ".sock");
}

/* Return: how many answered. */
static unsigned int ask_all(const struct options *o, const char *folder)
{
	struct dirent **list = NULL;
	int n = scandir(folder, &list, is_socket_name, by_name);
	unsigned int n_running = 0;

	for (int i = 0; i < n; i++) {
		struct ferry_failure f = {0};
		char path[512];
		json_t *answer;
		int rc;

		snprintf(path, sizeof(path), "%s/%s", folder, list[i]->d_name);
		rc = ask(path, &answer, &f);
		if (!rc)
			print_running(o, answer, n_running++);
		else if (rc == -ECONNREFUSED && is_left_over(list[i]->d_name))
			unlink(path);
		else if (rc != -ENOENT)
			fprintf(stderr, "pageferry status: %s\n", f.text);
		free(list[i]);
	}
	free(list);
	return n_running;
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
	struct ferry_failure f = {0};
	char folder[256];
	json_t *answer;
	int rc;

	if (o->control) {
		if (ask(o->control, &answer, &f) < 0)
			return finish(o, 0, &f);
		print_running(o, answer, 0);
		return finish(o, 1, &f);
	}
	rc = control_folder(folder, sizeof(folder));
	if (rc < 0) {
		ferry_fail_errno(&f, FERRY_REFUSE, rc, "the folder of the control sockets");
		return finish(o, 0, &f);
	}
	return finish(o, ask_all(o, folder), &f);
}

const struct command cmd_status = {
	.name = "status",
	.synopsis = "[OPTION...]",
	.summary = "Say how far running commands are.",
	.options = status_options,
	.run = run,
};
