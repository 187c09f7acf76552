/* SPDX-License-Identifier: Apache-2.0 */
#include "uffd/channel.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/net.h"
#include "base/util.h"

#define IN_BYTES (FERRY_FRAME_HEADER_BYTES + FERRY_MAX_MESSAGE_BYTES + FERRY_MAX_CONTROL_BYTES)
/* Without progress for this long a write has failed: the peer reads its control messages at once.
 */
#define SEND_TIMEOUT_MS 10000

static enum ferry_net_class class_of(enum ferry_role role)
{
	switch (role) {
	case FERRY_ROLE_URGENT:
		return FERRY_NET_URGENT;
	case FERRY_ROLE_BULK:
		return FERRY_NET_BULK;
	default:
		return FERRY_NET_CONTROL;
	}
}

static int channel_init(struct ferry_channel *c, int fd)
{
	*c = (struct ferry_channel){.fd = fd};
	c->out = malloc(FERRY_MAX_ENCODED_BYTES);
	if (!c->out || ferry_arena_init(&c->arena) < 0 ||
	    ferry_framebuf_init(&c->in, IN_BYTES) < 0) {
		c->fd = -1; /* the caller's until we succeed */
		ferry_channel_close(c);
		return -ENOMEM;
	}
	return 0;
}

void ferry_channel_close(struct ferry_channel *c)
{
	if (c->out) {
		ferry_close(c->fd);
		free(c->out);
		ferry_arena_fini(&c->arena);
		ferry_framebuf_fini(&c->in);
	}
	*c = (struct ferry_channel){.fd = -1};
}

int ferry_channel_take(struct ferry_channel *c, struct ferry_connection *connection)
{
	int fd = TAKE_FD(c->fd);

	*connection = c->connection;
	ferry_channel_close(c);
	return fd;
}

int ferry_channel_send(struct ferry_channel *c, const struct ferry_message *m, int stop_fd)
{
	int n = ferry_message_encode(m, c->out, FERRY_MAX_ENCODED_BYTES);
	struct iovec iov[2] = {{.iov_base = c->out, .iov_len = (size_t)n},
			       {.iov_base = (void *)m->payload, .iov_len = m->payload_bytes}};

	if (n < 0)
		return n;
	return ferry_net_writev_all(c->fd, iov, 2, SEND_TIMEOUT_MS, stop_fd);
}

void ferry_channel_refuse(int fd, enum ferry_error_code code, const char *text)
{
	struct ferry_message m = {.type = FERRY_FRAME_ERROR, .error = {.code = code}};
	uint8_t out[FERRY_FRAME_HEADER_BYTES + FERRY_MAX_TEXT + 16];
	int n;

	snprintf(m.error.text, sizeof(m.error.text), "%s", text);
	n = ferry_message_encode(&m, out, sizeof(out));
	if (n > 0)
		(void)!send(fd, out, (size_t)n, MSG_NOSIGNAL | MSG_DONTWAIT);
}

/*
 * A source that is busy may have room later; who has pages of it already waits for that. And one
 * that does not know the session has lost its control connection by now: the next epoch has another
 * one.
 */
static enum ferry_consequence consequence(const struct ferry_channel *c, enum ferry_error_code code)
{
	return (code == FERRY_ERROR_BUSY || code == FERRY_ERROR_SESSION) &&
			       c->connection.hello.epoch
		       ? FERRY_LINK
		       : FERRY_REFUSE;
}

/* A frame was put together: decode and judge it. Return: 1 for the caller, 0 when it was dealt
 * with. */
static int take(struct ferry_channel *c, const struct ferry_frame *frame, struct ferry_message *m,
		struct ferry_failure *f)
{
	enum ferry_error_code code = FERRY_ERROR_PROTOCOL;
	char why[FERRY_MAX_TEXT];
	int rc = ferry_message_decode(frame, &c->arena, m, why);

	if (!rc)
		rc = ferry_connection_check(&c->connection, m, &code, why);
	if (rc == -ECONNREFUSED)
		return ferry_fail(f, consequence(c, m->error.code), rc, "the peer says: %s", why);
	if (rc < 0) {
		ferry_channel_refuse(c->fd, code, why);
		return ferry_fail(f, FERRY_REFUSE, rc, "%s", why);
	}
	if (m->type == FERRY_FRAME_PING) {
		uint64_t now = ferry_now_ns();
		struct ferry_message pong = {.type = FERRY_FRAME_PONG,
					     .pong = {m->ping.sent_ns, now, now}};

		rc = ferry_channel_send(c, &pong, -1);
		return rc < 0 ? ferry_fail_errno(f, FERRY_LINK, rc, "sending to the peer") : 0;
	}
	return 1;
}

/* Return: 0 when bytes came. */
static int fill(struct ferry_channel *c, int timeout_ms, int stop_fd)
{
	size_t room;
	uint8_t *p = ferry_framebuf_space(&c->in, &room);

	for (;;) {
		ssize_t n = recv(c->fd, p, room, 0);
		int rc;

		if (n > 0) {
			ferry_framebuf_advance(&c->in, (size_t)n);
			return 0;
		}
		if (!n)
			return -ECONNRESET;
		if (errno == EINTR)
			continue;
		if (errno != EAGAIN)
			return -errno;
		rc = ferry_net_wait(c->fd, POLLIN, timeout_ms, stop_fd);
		if (rc < 0)
			return rc;
	}
}

int ferry_channel_receive(struct ferry_channel *c, struct ferry_message *m, int timeout_ms,
			  int stop_fd, struct ferry_failure *f)
{
	uint64_t deadline = ferry_now_ns() + (uint64_t)timeout_ms * FERRY_NS_PER_MS;

	for (;;) {
		struct ferry_frame frame;
		int rc = ferry_framebuf_next(&c->in, &frame);

		if (rc == 1) {
			rc = take(c, &frame, m, f);
			if (rc)
				return rc < 0 ? rc : 0;
			continue;
		}
		if (rc < 0) {
			const char *why = "what came is not the Pageferry protocol";

			ferry_channel_refuse(c->fd, FERRY_ERROR_PROTOCOL, why);
			return ferry_fail(f, FERRY_REFUSE, rc,
					  "%s; is the address that of a pageferry command?", why);
		}
		if (timeout_ms > 0) {
			uint64_t now = ferry_now_ns();

			timeout_ms =
				now >= deadline ? 0 : (int)((deadline - now) / FERRY_NS_PER_MS) + 1;
		}
		rc = fill(c, timeout_ms, stop_fd);
		if (rc == -ETIMEDOUT || rc == -ECANCELED)
			return rc;
		if (rc == -ECONNRESET)
			return ferry_fail(f, FERRY_LINK, rc, "the peer closed the connection");
		if (rc < 0)
			return ferry_fail_errno(f, FERRY_LINK, rc, "receiving from the peer");
	}
}

static int handshake(struct ferry_channel *c, const struct ferry_hello *hello, int stop_fd,
		     struct ferry_failure *f)
{
	_cleanup_free_ struct ferry_message *m = malloc(sizeof(*m));
	int rc;

	if (!m)
		return ferry_fail_errno(f, FERRY_REFUSE, -ENOMEM, "handshake");
	ferry_connection_dial(&c->connection, hello, m);
	rc = ferry_channel_send(c, m, stop_fd);
	if (rc < 0)
		return ferry_fail_errno(f, FERRY_LINK, rc, "sending Hello");
	rc = ferry_channel_receive(c, m, FERRY_HANDSHAKE_TIMEOUT_MS, stop_fd, f);
	if (rc == -ETIMEDOUT)
		return ferry_fail(f, FERRY_LINK, rc,
				  "no answer to Hello within %d s; is the address that of a pageferry "
				  "command?",
				  FERRY_HANDSHAKE_TIMEOUT_MS / 1000);
	if (rc == -ECONNRESET)
		return ferry_fail(f, FERRY_LINK, rc,
				  "the peer closed the connection instead of answering Hello; its "
				  "log may say why (does it want --tls or --psk?)");
	return rc;
}

int ferry_channel_dial(struct ferry_channel *c, struct ferry_tls *tls, const struct ferry_addr *to,
		       const struct ferry_hello *hello, int timeout_ms, int stop_fd,
		       struct ferry_failure *f)
{
	int fd = ferry_tls_dial(tls, to, class_of(hello->role), timeout_ms, stop_fd, f);
	int rc;

	*c = (struct ferry_channel){.fd = -1};
	if (fd < 0)
		return fd;
	rc = channel_init(c, fd);
	if (rc < 0) {
		ferry_close(fd);
		return ferry_fail_errno(f, FERRY_REFUSE, rc, "connection");
	}
	rc = handshake(c, hello, stop_fd, f);
	if (rc < 0) {
		(void)ferry_tls_explain(tls, fd, f);
		ferry_channel_close(c);
	}
	return rc;
}

int ferry_channel_welcome(struct ferry_channel *c, struct ferry_tls *tls, int fd,
			  enum ferry_side side, const struct ferry_hello *hello, struct ferry_failure *f)
{
	struct ferry_message m = {.type = FERRY_FRAME_HELLO, .hello = *hello};
	enum ferry_error_code code;
	char why[FERRY_MAX_TEXT];
	int rc = channel_init(c, fd);

	if (rc < 0) {
		ferry_close(fd);
		return ferry_fail_errno(f, FERRY_REFUSE, rc, "connection");
	}
	ferry_tls_tune(tls, fd, class_of(hello->role));
	ferry_connection_accept(&c->connection, side);
	c->connection.withheld = hello->withheld;
	rc = ferry_connection_check(&c->connection, &m, &code, why);
	if (rc < 0) {
		ferry_channel_refuse(fd, code, why);
		ferry_channel_close(c);
		return ferry_fail(f, FERRY_REFUSE, rc, "%s", why);
	}
	ferry_connection_welcome(&c->connection, &m);
	rc = ferry_channel_send(c, &m, -1);
	if (rc < 0) {
		ferry_channel_close(c);
		return ferry_fail_errno(f, FERRY_LINK, rc, "sending Welcome");
	}
	return 0;
}
