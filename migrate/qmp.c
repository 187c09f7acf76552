/* SPDX-License-Identifier: Apache-2.0 */
#include "migrate/qmp.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "base/addr.h"
#include "base/cleanup.h"
#include "base/clock.h"
#include "base/net.h"
#include "base/util.h"

#define CONNECT_TIMEOUT_MS  5000
#define GREETING_TIMEOUT_MS 2000
#define SEND_TIMEOUT_MS	    5000
/* More events than a switchover ever has; the oldest are dropped. */
#define MAX_EVENTS 32u

struct ferry_qmp {
	int fd; /* owned */
	struct ferry_qmp_parser parser;
	pid_t peer_pid;
	int64_t last_id;
	char version[32];
	struct ferry_qmp_message events[MAX_EVENTS]; /* owned; from events_begin on */
	unsigned int events_begin, n_events;
};

pid_t ferry_qmp_peer_pid(const struct ferry_qmp *q)
{
	return q->peer_pid;
}

const char *ferry_qmp_version(const struct ferry_qmp *q)
{
	return q->version;
}

int ferry_qmp_fd(const struct ferry_qmp *q)
{
	return q->fd;
}

void ferry_qmp_free(struct ferry_qmp *q)
{
	if (!q)
		return;
	for (unsigned int i = 0; i < q->n_events; i++)
		ferry_qmp_message_fini(&q->events[(q->events_begin + i) % MAX_EVENTS]);
	ferry_qmp_parser_fini(&q->parser);
	ferry_close(q->fd);
	free(q);
}

/* --- receiving ---------------------------------------------------------------------------- */

/* A busy guest makes QEMU say a lot; only these are looked at. */
static bool is_wanted_event(const char *name)
{
	return !strcmp(name, "MIGRATION") || !strcmp(name, "SHUTDOWN") || !strcmp(name, "STOP");
}

/* @m: given */
static void keep_event(struct ferry_qmp *q, struct ferry_qmp_message *m)
{
	if (!is_wanted_event(m->text)) {
		ferry_qmp_message_fini(m);
		return;
	}
	if (q->n_events == MAX_EVENTS) {
		ferry_qmp_message_fini(&q->events[q->events_begin]);
		q->events_begin = (q->events_begin + 1) % MAX_EVENTS;
		q->n_events--;
	}
	q->events[(q->events_begin + q->n_events++) % MAX_EVENTS] = *m;
}

static int fail_receive(int rc, struct ferry_failure *f)
{
	if (rc == -ECONNRESET || rc == -EPIPE)
		return ferry_fail(f, FERRY_LOST, -ECONNRESET,
				  "QEMU closed its monitor; has it ended?");
	if (rc == -EPROTO || rc == -EMSGSIZE)
		return ferry_fail(f, FERRY_REFUSE, -EPROTO,
				  "what came from the monitor is not QMP; is the socket that of a "
				  "monitor with mode=control?");
	return ferry_fail_errno(f, FERRY_REFUSE, rc, "reading from the monitor");
}

/* Return: 0 when bytes came; -EAGAIN. */
static int fill(struct ferry_qmp *q)
{
	size_t room;
	ssize_t n;
	char *p;
	int rc = ferry_qmp_parser_space(&q->parser, &p, &room);

	if (rc < 0)
		return rc;
	do {
		n = recv(q->fd, p, room, MSG_DONTWAIT);
	} while (n < 0 && errno == EINTR);
	if (n < 0)
		return -errno;
	if (!n)
		return -ECONNRESET;
	ferry_qmp_parser_advance(&q->parser, (size_t)n);
	return 0;
}

/* The next message of any kind but an event. */
static int next_answer(struct ferry_qmp *q, int timeout_ms, int stop_fd,
		       struct ferry_qmp_message *m)
{
	uint64_t deadline = ferry_now_ns() + (uint64_t)timeout_ms * FERRY_NS_PER_MS;

	for (;;) {
		uint64_t now;
		int rc = ferry_qmp_parser_next(&q->parser, m);

		if (rc < 0)
			return rc;
		if (rc) {
			if (m->kind != FERRY_QMP_EVENT)
				return 0;
			keep_event(q, m);
			continue;
		}
		rc = fill(q);
		if (rc != -EAGAIN) {
			if (rc < 0)
				return rc;
			continue;
		}
		now = ferry_now_ns();
		if (now >= deadline)
			return -ETIMEDOUT;
		rc = ferry_net_wait(q->fd, POLLIN, (int)((deadline - now) / FERRY_NS_PER_MS) + 1,
				    stop_fd);
		if (rc < 0)
			return rc;
	}
}

static int pop_event(struct ferry_qmp *q, struct ferry_qmp_message *out)
{
	*out = q->events[q->events_begin];
	q->events_begin = (q->events_begin + 1) % MAX_EVENTS;
	q->n_events--;
	return 1;
}

int ferry_qmp_event(struct ferry_qmp *q, struct ferry_qmp_message *out, struct ferry_failure *f)
{
	while (!q->n_events) {
		struct ferry_qmp_message m;
		int rc = ferry_qmp_parser_next(&q->parser, &m);

		if (!rc) {
			rc = fill(q);
			if (rc == -EAGAIN)
				return 0;
			if (!rc)
				continue;
		}
		if (rc < 0)
			return fail_receive(rc, f);
		if (m.kind == FERRY_QMP_EVENT)
			keep_event(q, &m);
		else
			ferry_qmp_message_fini(
				&m); /* the late answer to a command that was given up */
	}
	return pop_event(q, out);
}

/* --- sending ------------------------------------------------------------------------------ */

/* Sends the line, the descriptor with its first byte. */
static int send_line(struct ferry_qmp *q, const char *line, size_t len, int fd)
{
	union {
		char buf[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control = {0};
	struct iovec iov = {.iov_base = (void *)line, .iov_len = len};
	struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};
	ssize_t n;

	if (fd >= 0) {
		struct cmsghdr *c;

		msg.msg_control = control.buf;
		msg.msg_controllen = sizeof(control.buf);
		c = CMSG_FIRSTHDR(&msg);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(c), &fd, sizeof(fd));
		/* Nothing is in flight: the first byte at least fits without waiting. */
		n = sendmsg(q->fd, &msg, MSG_NOSIGNAL);
		if (n < 0)
			return -errno;
		line += n;
		len -= (size_t)n;
	}
	return ferry_net_write_all(q->fd, line, len, SEND_TIMEOUT_MS, -1);
}

json_t *ferry_qmp_args(json_t *args)
{
	return args ? args : json_false(); /* which is always there */
}

static int send_command(struct ferry_qmp *q, const char *command, json_t *args, int fd)
{
	_cleanup_free_ char *line = NULL;
	json_t *root;
	size_t len;

	if (args && !json_is_object(args))
		return -ENOMEM;
	root = json_pack("{s:s, s:I, s:o*}", "execute", command, "id", (json_int_t)++q->last_id,
			 "arguments", args);
	if (!root) /* jansson has released @args */
		return -ENOMEM;
	line = json_dumps(root, JSON_COMPACT);
	json_decref(root);
	if (!line)
		return -ENOMEM;
	len = strlen(line);
	line[len] = '\n'; /* instead of the NUL */
	return send_line(q, line, len + 1, fd);
}

/* Wait for the answer to the last command; earlier ones that were given up may come first. */
static int await_answer(struct ferry_qmp *q, int timeout_ms, int stop_fd, const char *command,
			json_t **ret, struct ferry_failure *f)
{
	struct ferry_qmp_message m;
	int rc;

	for (;;) {
		rc = next_answer(q, timeout_ms, stop_fd, &m);
		if (rc == -ETIMEDOUT)
			return ferry_fail(f, FERRY_REFUSE, rc,
					  "QEMU did not answer '%s' within %d s; is it stuck?",
					  command, timeout_ms / 1000);
		if (rc < 0)
			return fail_receive(rc, f);
		/* What QEMU could not even parse is answered without an id. */
		if (m.id == q->last_id || (!m.id && m.kind == FERRY_QMP_ERROR))
			break;
		ferry_qmp_message_fini(&m);
	}
	if (m.kind == FERRY_QMP_ERROR)
		return ferry_fail(f, FERRY_REFUSE, -EREMOTEIO, "QEMU refuses '%s': %s", command,
				  m.text);
	if (ret)
		*ret = m.body;
	else
		ferry_qmp_message_fini(&m);
	return 0;
}

static int execute(struct ferry_qmp *q, int timeout_ms, int stop_fd, const char *command,
		   json_t *args, int fd, json_t **ret, struct ferry_failure *f)
{
	int rc = send_command(q, command, args, fd);

	if (rc < 0)
		return fail_receive(rc, f);
	return await_answer(q, timeout_ms, stop_fd, command, ret, f);
}

int ferry_qmp_execute_within(struct ferry_qmp *q, int timeout_ms, const char *command, json_t *args,
			     json_t **ret, struct ferry_failure *f)
{
	return execute(q, timeout_ms, -1, command, args, -1, ret, f);
}

int ferry_qmp_execute(struct ferry_qmp *q, const char *command, json_t *args, json_t **ret,
		      struct ferry_failure *f)
{
	return execute(q, FERRY_QMP_TIMEOUT_MS, -1, command, args, -1, ret, f);
}

int ferry_qmp_give_fd(struct ferry_qmp *q, const char *name, int fd, struct ferry_failure *f)
{
	return execute(q, FERRY_QMP_TIMEOUT_MS, -1, "getfd",
		       FERRY_QMP_ARGS("{s:s}", "fdname", name), fd, NULL, f);
}

int ferry_qmp_human(struct ferry_qmp *q, const char *line, char **text, struct ferry_failure *f)
{
	json_t *ret;
	char *copy;
	int rc = ferry_qmp_execute(q, "human-monitor-command",
				   FERRY_QMP_ARGS("{s:s}", "command-line", line), &ret, f);

	if (rc < 0)
		return rc;
	if (!json_is_string(ret)) {
		json_decref(ret);
		return ferry_fail(f, FERRY_REFUSE, -EPROTO, "QEMU's answer to '%s' is no text",
				  line);
	}
	copy = strdup(json_string_value(ret));
	json_decref(ret);
	if (!copy)
		return ferry_fail_errno(f, FERRY_REFUSE, -ENOMEM, "QEMU's answer to '%s'", line);
	*text = copy;
	return 0;
}

/* --- connecting --------------------------------------------------------------------------- */

static int await_greeting(struct ferry_qmp *q, const char *path, int stop_fd,
			  struct ferry_failure *f)
{
	struct ferry_qmp_message m;
	json_t *v;
	int rc = next_answer(q, GREETING_TIMEOUT_MS, stop_fd, &m);

	if (rc == -ETIMEDOUT)
		return ferry_fail(f, FERRY_REFUSE, -EBUSY,
				  "nobody greets on %s: another program holds this monitor; give "
				  "pageferry a QMP socket of its own (a second -qmp option)",
				  path);
	if (rc == -ECANCELED)
		return ferry_fail(f, FERRY_REFUSE, rc, "stopped");
	if (rc < 0)
		return fail_receive(rc, f);
	v = json_object_get(json_object_get(m.body, "version"), "qemu");
	if (m.kind != FERRY_QMP_GREETING || !json_is_object(v)) {
		ferry_qmp_message_fini(&m);
		return fail_receive(-EPROTO, f);
	}
	snprintf(q->version, sizeof(q->version), "%d.%d.%d",
		 (int)json_integer_value(json_object_get(v, "major")),
		 (int)json_integer_value(json_object_get(v, "minor")),
		 (int)json_integer_value(json_object_get(v, "micro")));
	ferry_qmp_message_fini(&m);
	return 0;
}

static int find_peer(struct ferry_qmp *q)
{
	struct ucred cred = {0};
	socklen_t len = sizeof(cred);

	if (getsockopt(q->fd, SOL_SOCKET, SO_PEERCRED, &cred, &len) < 0)
		return -errno;
	q->peer_pid = cred.pid;
	return 0;
}

int ferry_qmp_no_socket(struct ferry_failure *f, int err, const char *path)
{
	return ferry_fail(f, FERRY_REFUSE, err,
			  "cannot connect to the QMP socket %s: %s; start QEMU with -qmp "
			  "unix:%s,server=on,wait=off",
			  path, strerror(-err), path);
}

int ferry_qmp_connect(struct ferry_qmp **out, const char *path, int stop_fd,
		      struct ferry_failure *f)
{
	struct ferry_addr addr = {.is_unix = true};
	struct ferry_qmp *q;
	int rc;

	if (!strncmp(path, "unix:", 5))
		path += 5;
	if (strlen(path) >= sizeof(addr.path))
		return ferry_fail(f, FERRY_REFUSE, -ENAMETOOLONG,
				  "the path of the QMP socket is too long for a socket; use a "
				  "shorter one");
	memcpy(addr.path, path, strlen(path) + 1);
	q = calloc(1, sizeof(*q));
	if (!q)
		return ferry_fail_errno(f, FERRY_REFUSE, -ENOMEM, "monitor");
	ferry_qmp_parser_init(&q->parser);
	q->fd = ferry_net_dial(&addr, CONNECT_TIMEOUT_MS, stop_fd, NULL);
	if (q->fd < 0) {
		rc = ferry_qmp_no_socket(f, q->fd, path);
		goto fail;
	}
	rc = find_peer(q);
	if (rc < 0) {
		ferry_fail_errno(f, FERRY_REFUSE, rc, "who has %s", path);
		goto fail;
	}
	rc = await_greeting(q, path, stop_fd, f);
	if (!rc)
		rc = execute(q, FERRY_QMP_TIMEOUT_MS, stop_fd, "qmp_capabilities", NULL, -1, NULL,
			     f);
	if (rc < 0)
		goto fail;
	*out = q;
	return 0;
fail:
	ferry_qmp_free(q);
	return rc;
}
