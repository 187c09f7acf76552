// SPDX-License-Identifier: Apache-2.0
#include "tools/ask.h"

#include <dirent.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/net.h"
#include "tools/control.h"

#define TIMEOUT_MS 2000
#define ANSWER_MAX 16384

/* As recv(), with the descriptor that came along, if one did. */
static ssize_t receive_some(int fd, char *out, size_t size, int *got_fd)
{
	union {
		char room[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} u;
	struct iovec iov = {out, size};
	struct msghdr m = {.msg_iov = &iov,
			   .msg_iovlen = 1,
			   .msg_control = u.room,
			   .msg_controllen = sizeof(u.room)};
	ssize_t n = recvmsg(fd, &m, MSG_CMSG_CLOEXEC);
	struct cmsghdr *h = n < 0 ? NULL : CMSG_FIRSTHDR(&m);

	if (h && h->cmsg_level == SOL_SOCKET && h->cmsg_type == SCM_RIGHTS &&
	    h->cmsg_len == CMSG_LEN(sizeof(int))) {
		ferry_close(*got_fd);
		memcpy(got_fd, CMSG_DATA(h), sizeof(int));
	}
	return n;
}

static int read_line(int fd, char *out, size_t size, int *got_fd)
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
		n = receive_some(fd, out + len, size - 1 - len, got_fd);
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

/* @got_fd: what came, also on error. */
static int exchange(int fd, const char *what, const char *path, int *got_fd, json_t **out,
		    struct ferry_failure *f)
{
	char request[64], answer[ANSWER_MAX];
	const char *error;
	json_t *o;
	int rc;

	snprintf(request, sizeof(request), "{\"get\":\"%s\"}\n", what);
	rc = ferry_net_write_all(fd, request, strlen(request), TIMEOUT_MS, -1);
	if (!rc)
		rc = read_line(fd, answer, sizeof(answer), got_fd);
	if (rc < 0)
		return ferry_fail_errno(f, FERRY_REFUSE, rc, "%.200s gives no answer", path);
	o = json_loads(answer, 0, NULL);
	error = json_string_value(json_object_get(o, "error"));
	if (error)
		rc = ferry_fail(f, FERRY_REFUSE, -ENODATA, "%.200s: %.200s", path, error);
	else if (!json_is_string(json_object_get(o, "command")))
		rc = ferry_fail(f, FERRY_REFUSE, -EPROTO,
				"%.200s is no control socket of pageferry", path);
	if (rc < 0)
		json_decref(o);
	else
		*out = o;
	return rc;
}

int ask(const char *path, const char *what, struct ask_answer *out, struct ferry_failure *f)
{
	struct ferry_addr a = {.is_unix = true};
	_cleanup_close_ int fd = -1, got_fd = -1;
	struct ucred peer = {0};
	socklen_t len = sizeof(peer);
	json_t *json;
	int rc;

	if (snprintf(a.path, sizeof(a.path), "%s", path) >= (int)sizeof(a.path))
		return ferry_fail(f, FERRY_REFUSE, -ENAMETOOLONG,
				  "'%.200s' is longer than a socket's path may be", path);
	fd = ferry_net_dial(&a, TIMEOUT_MS, -1, f);
	if (fd < 0)
		return fd;
	rc = exchange(fd, what, path, &got_fd, &json, f);
	if (rc < 0)
		return rc;
	(void)getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &len);
	*out = (struct ask_answer){.json = json, .fd = TAKE_FD(got_fd), .pid = peer.pid};
	return 0;
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

int ask_all(const char *what,
	    void (*each)(void *ctx, const char *path, int rc, struct ask_answer *answer,
			 const struct ferry_failure *f),
	    void *ctx)
{
	struct dirent **list = NULL;
	char folder[256];
	int rc = control_folder(folder, sizeof(folder)), n;

	if (rc < 0)
		return rc;
	n = scandir(folder, &list, is_socket_name, by_name);
	for (int i = 0; i < n; i++) {
		struct ferry_failure f = {0};
		struct ask_answer answer;
		char path[512];

		snprintf(path, sizeof(path), "%s/%s", folder, list[i]->d_name);
		rc = ask(path, what, &answer, &f);
		if (rc == -ECONNREFUSED && is_left_over(list[i]->d_name))
			unlink(path);
		else if (rc != -ENOENT)
			each(ctx, path, rc, &answer, &f);
		free(list[i]);
	}
	free(list);
	return 0;
}
