/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A child process that plays QEMU's monitor from a script: so that refusals and odd answers can be
 * tried without one. It dies with its parent.
 */
#ifndef FERRY_TESTS_FAKE_QEMU_H
#define FERRY_TESTS_FAKE_QEMU_H

#include <criterion/criterion.h>
#include <jansson.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

/* The first one whose words are all in the command's line is the answer. */
struct fake_answer {
	const char *command; /* ends the script when NULL */
	const char *word;    /* must also be in the line; NULL for none */
	const char *json;    /* what is returned; "%d" in it stands for the process's id */
	const char *error;   /* or why not */
	const char *raw;     /* or any bytes instead of an answer */
	bool dies;	     /* the connection is closed instead */
};

struct fake_qemu {
	pid_t pid;
	char dir[64];
	char path[80];
};

#define FAKE_GREETING                                                                              \
	"{\"QMP\": {\"version\": {\"qemu\": {\"micro\": 22, \"minor\": 2, \"major\": 7}, "         \
	"\"package\": \"\"}, \"capabilities\": []}}\r\n"

static void fake_say(int fd, const char *text)
{
	size_t len = strlen(text);

	while (len) {
		ssize_t n = write(fd, text, len);

		if (n <= 0)
			_exit(0);
		text += n;
		len -= (size_t)n;
	}
}

static const struct fake_answer *fake_find(const struct fake_answer *script, const char *line)
{
	for (; script && script->command; script++) {
		char key[128];

		snprintf(key, sizeof(key), "\"execute\":\"%s\"", script->command);
		if (strstr(line, key) && (!script->word || strstr(line, script->word)))
			return script;
	}
	return NULL;
}

static void fake_answer(int fd, const struct fake_answer *script, const char *line)
{
	const struct fake_answer *a = fake_find(script, line);
	json_t *root = json_loads(line, 0, NULL);
	json_int_t id = json_integer_value(json_object_get(root, "id"));
	char body[65536], out[70000];

	json_decref(root);
	if (a && a->dies)
		_exit(0);
	if (a && a->raw) {
		fake_say(fd, a->raw);
		return;
	}
	if (a && a->error) {
		snprintf(out, sizeof(out),
			 "{\"id\": %lld, \"error\": {\"class\": \"GenericError\", \"desc\": "
			 "\"%s\"}}\r\n",
			 (long long)id, a->error);
	} else {
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
		snprintf(body, sizeof(body), a && a->json ? a->json : "{}", (int)getpid());
#pragma GCC diagnostic pop
		snprintf(out, sizeof(out), "{\"return\": %s, \"id\": %lld}\r\n", body,
			 (long long)id);
	}
	fake_say(fd, out);
}

static void fake_serve(int listen_fd, const char *greeting, const struct fake_answer *script)
{
	static char buffer[65536];
	size_t have = 0;
	int fd = accept(listen_fd, NULL, NULL);

	fake_say(fd, greeting);
	for (;;) {
		ssize_t n = read(fd, buffer + have, sizeof(buffer) - 1 - have);
		char *newline;

		if (n <= 0)
			_exit(0);
		have += (size_t)n;
		buffer[have] = '\0';
		while ((newline = strchr(buffer, '\n'))) {
			*newline = '\0';
			fake_answer(fd, script, buffer);
			have -= (size_t)(newline + 1 - buffer);
			memmove(buffer, newline + 1, have + 1);
		}
	}
}

/* @greeting: NULL for QEMU's own */
static void fake_start(struct fake_qemu *q, const char *greeting, const struct fake_answer *script)
{
	struct sockaddr_un sun = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	snprintf(q->dir, sizeof(q->dir), "/tmp/ferry-fake-XXXXXX");
	cr_assert(mkdtemp(q->dir));
	snprintf(q->path, sizeof(q->path), "%s/qmp", q->dir);
	snprintf(sun.sun_path, sizeof(sun.sun_path), "%s", q->path);
	cr_assert_eq(bind(fd, (struct sockaddr *)&sun, sizeof(sun)), 0);
	q->pid = fork();
	if (!q->pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		/* The socket's owner is who listens. */
		listen(fd, 1);
		kill(getpid(), SIGSTOP);
		fake_serve(fd, greeting ? greeting : FAKE_GREETING, script);
		_exit(0);
	}
	/* It listens once it has stopped itself. */
	cr_assert_eq(waitpid(q->pid, NULL, WUNTRACED), q->pid);
	kill(q->pid, SIGCONT);
	close(fd);
}

static void fake_stop(struct fake_qemu *q)
{
	kill(q->pid, SIGKILL);
	waitpid(q->pid, NULL, 0);
	unlink(q->path);
	rmdir(q->dir);
}

#endif
