// SPDX-License-Identifier: Apache-2.0
/*
 * One thread polls the listening socket, its clients and a descriptor that ends it. A client is in
 * one of two states: its request is being read, or its answer is being written; it gets
 * CLIENT_NS for each, and is closed when they are over. When there are CLIENTS_MAX and one more
 * comes, the one that has been silent longest makes room: nobody can lock others out by holding
 * connections open.
 */
#include "tools/control.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/stat.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/net.h"
#include "base/util.h"
#include "tools/json.h"

#define CLIENTS_MAX	8
#define REQUEST_MAX	4096
#define CLIENT_NS	(5 * (uint64_t)FERRY_NS_PER_S)
#define ACCEPT_PAUSE_MS 100 /* when accepting fails for want of descriptors or memory */

struct client {
	int fd; /* owned; -1 for none */
	uint64_t deadline_ns;
	char in[REQUEST_MAX];
	size_t in_len;
	char *out; /* owned; NULL while a request is read */
	size_t out_len, out_done;
	int out_fd; /* borrowed: goes with the first byte; -1 for none */
	bool is_last; /* close it behind this answer */
};

struct control {
	struct control_config config;
	struct ferry_addr addr;
	int listen_fd, stop_fd; /* owned */
	bool has_thread, is_paused;
	pthread_t thread;
	struct client clients[CLIENTS_MAX];
};

int control_folder(char *out, size_t size)
{
	const char *base = getenv("XDG_RUNTIME_DIR");
	int len;

	if (!geteuid())
		len = snprintf(out, size, "/run/pageferry");
	else if (base && *base)
		len = snprintf(out, size, "%s/pageferry", base);
	else
		len = snprintf(out, size, "/run/user/%u/pageferry", geteuid());
	return len < (int)size ? 0 : -ENAMETOOLONG;
}

/* Ours, and nobody else's to write to. */
static int make_folder(char *path, size_t size)
{
	struct stat st;
	int rc = control_folder(path, size);

	if (rc < 0)
		return rc;
	if (mkdir(path, 0700) < 0 && errno != EEXIST)
		return -errno;
	if (lstat(path, &st) < 0)
		return -errno;
	if (!S_ISDIR(st.st_mode) || st.st_uid != geteuid() || st.st_mode & 022)
		return -EPERM;
	return 0;
}

static int choose_path(struct control *c, struct ferry_failure *f)
{
	char folder[sizeof(c->addr.path)];
	int len, rc;

	if (c->config.path) {
		len = snprintf(c->addr.path, sizeof(c->addr.path), "%s", c->config.path);
		return len < (int)sizeof(c->addr.path)
			       ? 0
			       : ferry_fail(f, FERRY_REFUSE, -ENAMETOOLONG,
					    "--control: the path is longer than a socket's may be");
	}
	rc = make_folder(folder, sizeof(folder));
	if (rc < 0)
		return ferry_fail_errno(f, FERRY_REFUSE, rc, "no folder for the control socket");
	len = snprintf(c->addr.path, sizeof(c->addr.path), "%s/%s-%d.sock", folder,
		       c->config.command, (int)getpid());
	return len < (int)sizeof(c->addr.path)
		       ? 0
		       : ferry_fail(f, FERRY_REFUSE, -ENAMETOOLONG,
				    "the path of the control socket is too long");
}

static bool may_ask(int fd)
{
	struct ucred peer;
	socklen_t len = sizeof(peer);

	return !getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &len) &&
	       (!peer.uid || peer.uid == geteuid());
}

static void client_close(struct client *cl)
{
	ferry_close(cl->fd);
	free(cl->out);
	*cl = (struct client){.fd = -1};
}

static struct client *client_slot(struct control *c)
{
	struct client *oldest = &c->clients[0];

	for (size_t i = 0; i < CLIENTS_MAX; i++) {
		if (c->clients[i].fd < 0)
			return &c->clients[i];
		if (c->clients[i].deadline_ns < oldest->deadline_ns)
			oldest = &c->clients[i];
	}
	client_close(oldest);
	return oldest;
}

static void accept_client(struct control *c)
{
	int fd = ferry_net_accept(c->listen_fd);
	struct client *cl;

	if (fd < 0) {
		c->is_paused = fd != -EAGAIN && ferry_is_shortage(fd);
		return;
	}
	if (!may_ask(fd)) {
		ferry_close(fd);
		return;
	}
	cl = client_slot(c);
	cl->fd = fd;
	cl->deadline_ns = ferry_now_ns() + CLIENT_NS;
}

static json_t *error_answer(const char *text)
{
	json_t *o = json_object();

	json_put(o, "error", json_text(text));
	return o;
}

static json_t *answer(struct control *c, const char *line, size_t len, int *fd)
{
	json_t *request = json_loadb(line, len, 0, NULL), *result = NULL;
	const char *get = json_string_value(json_object_get(request, "get"));

	for (const struct control_request *r = c->config.requests; get && r->get; r++) {
		if (!strcmp(r->get, get)) {
			void *ctx = r->ctx ?: c->config.ctx;

			result = r->answer(ctx, request);
			if (r->descriptor)
				*fd = r->descriptor(ctx);
			break;
		}
	}
	if (!get)
		result = error_answer(
			"a request is one JSON object a line, as {\"get\":\"status\"}");
	else if (!result)
		result = error_answer("there is no such thing to get");
	json_decref(request);
	return result;
}

/* Begin to answer the line of @len bytes (without its end) that @cl sent. */
static void begin_answer(struct control *c, struct client *cl, size_t len)
{
	int fd = -1;
	json_t *result = answer(c, cl->in, len, &fd);
	char *text = json_line(result);

	json_decref(result);
	if (!text) {
		client_close(cl);
		return;
	}
	cl->out_len = strlen(text) + 1;
	cl->out_done = 0;
	cl->out_fd = fd;
	cl->out = realloc(text, cl->out_len + 1);
	if (!cl->out) {
		free(text);
		client_close(cl);
		return;
	}
	memcpy(cl->out + cl->out_len - 1, "\n", 2);
	cl->in_len -= FERRY_MIN(len + 1, cl->in_len);
	memmove(cl->in, cl->in + len + 1, cl->in_len);
}

static ssize_t send_some(struct client *cl)
{
	union {
		char room[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} u = {{0}};
	struct iovec iov = {cl->out + cl->out_done, cl->out_len - cl->out_done};
	struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1};

	if (!cl->out_done && cl->out_fd >= 0) {
		struct cmsghdr *h;

		m.msg_control = u.room;
		m.msg_controllen = sizeof(u.room);
		h = CMSG_FIRSTHDR(&m);
		h->cmsg_level = SOL_SOCKET;
		h->cmsg_type = SCM_RIGHTS;
		h->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(h), &cl->out_fd, sizeof(int));
	}
	return sendmsg(cl->fd, &m, MSG_NOSIGNAL);
}

static void write_answer(struct client *cl)
{
	ssize_t n = send_some(cl);

	if (n < 0) {
		if (errno != EAGAIN && errno != EINTR)
			client_close(cl);
		return;
	}
	cl->out_done += (size_t)n;
	if (cl->out_done < cl->out_len)
		return;
	free(cl->out);
	cl->out = NULL;
	cl->deadline_ns = ferry_now_ns() + CLIENT_NS;
	if (cl->is_last)
		client_close(cl);
}

/* Answer the lines that have come, one after the other, as long as the answers go out. */
static void serve_lines(struct control *c, struct client *cl)
{
	while (cl->fd >= 0 && !cl->out) {
		char *end = memchr(cl->in, '\n', cl->in_len);

		if (!end && cl->in_len < sizeof(cl->in))
			return;
		if (!end) {
			cl->is_last = true;
			cl->in_len = 0;
		}
		begin_answer(c, cl, end ? (size_t)(end - cl->in) : 0);
		if (cl->out)
			write_answer(cl);
	}
}

static void read_request(struct control *c, struct client *cl)
{
	ssize_t n = recv(cl->fd, cl->in + cl->in_len, sizeof(cl->in) - cl->in_len, 0);

	if (n > 0) {
		cl->in_len += (size_t)n;
		serve_lines(c, cl);
	} else if (!n || (errno != EAGAIN && errno != EINTR)) {
		client_close(cl);
	}
}

static void serve_client(struct control *c, struct client *cl, short revents)
{
	if (revents && cl->out)
		write_answer(cl);
	else if (revents)
		read_request(c, cl);
	if (cl->fd >= 0 && !cl->out)
		serve_lines(c, cl);
	if (cl->fd >= 0 && ferry_now_ns() >= cl->deadline_ns)
		client_close(cl);
}

static int next_timeout_ms(const struct control *c)
{
	uint64_t now = ferry_now_ns(), first = UINT64_MAX;

	for (size_t i = 0; i < CLIENTS_MAX; i++) {
		if (c->clients[i].fd >= 0)
			first = FERRY_MIN(first, c->clients[i].deadline_ns);
	}
	if (c->is_paused)
		return ACCEPT_PAUSE_MS;
	if (first == UINT64_MAX)
		return -1;
	return first <= now ? 0 : (int)((first - now) / FERRY_NS_PER_MS) + 1;
}

static void *serve(void *ctx)
{
	struct control *c = ctx;
	struct pollfd p[2 + CLIENTS_MAX];

	for (;;) {
		p[0] = (struct pollfd){.fd = c->stop_fd, .events = POLLIN};
		p[1] = (struct pollfd){.fd = c->is_paused ? -1 : c->listen_fd, .events = POLLIN};
		for (size_t i = 0; i < CLIENTS_MAX; i++)
			p[2 + i] = (struct pollfd){
				.fd = c->clients[i].fd,
				.events = c->clients[i].out ? POLLOUT : POLLIN,
			};
		if (poll(p, FERRY_ARRAY_SIZE(p), next_timeout_ms(c)) < 0)
			continue;
		if (p[0].revents)
			return NULL;
		for (size_t i = 0; i < CLIENTS_MAX; i++) {
			if (p[2 + i].fd >= 0)
				serve_client(c, &c->clients[i], p[2 + i].revents);
		}
		c->is_paused = false;
		if (p[1].revents)
			accept_client(c);
	}
}

static int open_sockets(struct control *c, struct ferry_failure *f)
{
	int rc = choose_path(c, f);

	if (rc < 0)
		return rc;
	c->listen_fd = ferry_net_listen(&c->addr, f);
	if (c->listen_fd < 0) {
		ferry_fail_prefix(f, "control socket");
		return c->listen_fd;
	}
	c->stop_fd = eventfd(0, EFD_CLOEXEC);
	return c->stop_fd < 0 ? ferry_fail_errno(f, FERRY_REFUSE, -errno, "eventfd") : 0;
}

int control_open(struct control **out, const struct control_config *config, struct ferry_failure *f)
{
	struct control *c = calloc(1, sizeof(*c));
	struct ferry_failure why = {0};
	int rc;

	if (!c)
		return ferry_fail_errno(f, FERRY_REFUSE, -ENOMEM, "control socket");
	c->config = *config;
	c->addr.is_unix = true;
	c->listen_fd = c->stop_fd = -1;
	for (size_t i = 0; i < CLIENTS_MAX; i++)
		c->clients[i].fd = -1;
	rc = open_sockets(c, &why);
	if (!rc) {
		*out = c;
		return 0;
	}
	control_free(c);
	*out = NULL;
	if (config->path) {
		if (f)
			*f = why;
		return rc;
	}
	ferry_warn(config->log, "%s; 'pageferry status' won't find this command without --control",
		   why.text);
	return 0;
}

int control_start(struct control *c, struct ferry_failure *f)
{
	int rc;

	if (!c)
		return 0;
	rc = pthread_create(&c->thread, NULL, serve, c);
	if (rc)
		return ferry_fail_errno(f, FERRY_REFUSE, -rc, "control thread");
	c->has_thread = true;
	return 0;
}

void control_free(struct control *c)
{
	if (!c)
		return;
	if (c->has_thread) {
		eventfd_write(c->stop_fd, 1);
		pthread_join(c->thread, NULL);
	}
	for (size_t i = 0; i < CLIENTS_MAX; i++)
		client_close(&c->clients[i]);
	if (c->listen_fd >= 0)
		unlink(c->addr.path);
	ferry_close(c->listen_fd);
	ferry_close(c->stop_fd);
	free(c);
}
