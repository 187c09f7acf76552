/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/net.h"
#include "pageserver/server_internal.h"

/* Receive buffers. Hello is short; a control connection's grows when Resident comes, which is the
 * only long frame that a target sends. */
#define HELLO_BYTES	  2048u
#define CONTROL_BYTES	  4096u
#define CONTROL_MAX_BYTES (FERRY_MAX_ENCODED_BYTES + FERRY_MAX_CONTROL_BYTES)
#define URGENT_BYTES	  (32u * 1024)

static void free_conn(struct ferry_conn *c)
{
	ferry_close(c->fd);
	ferry_framebuf_fini(&c->in);
	ferry_urgent_free(c->urgent);
	free(c);
}

/* A receive buffer of another size, with what is in it. Nothing is being received. */
static int resize_in(struct ferry_conn *c, size_t size)
{
	struct ferry_framebuf bigger;
	int rc = ferry_framebuf_init(&bigger, size);

	if (rc < 0)
		return rc;
	memcpy(bigger.data, c->in.data + c->in.begin, c->in.end - c->in.begin);
	bigger.end = c->in.end - c->in.begin;
	ferry_framebuf_fini(&c->in);
	c->in = bigger;
	return 0;
}

int ferry_conn_prepare_role(struct ferry_conn *c)
{
	int rc;

	switch (c->proto.hello.role) {
	case FERRY_ROLE_CONTROL:
		ferry_tls_tune(c->server->config.tls, c->fd, FERRY_NET_CONTROL);
		return resize_in(c, CONTROL_BYTES);
	case FERRY_ROLE_URGENT:
		ferry_tls_tune(c->server->config.tls, c->fd, FERRY_NET_URGENT);
		rc = ferry_urgent_new(&c->urgent, c->server);
		return rc < 0 ? rc : resize_in(c, URGENT_BYTES);
	default:
		ferry_tls_tune(c->server->config.tls, c->fd, FERRY_NET_BULK);
		return 0;
	}
}

static void recv_done(struct ferry_server *s, struct ferry_op *op, int res);
static void send_done(struct ferry_server *s, struct ferry_op *op, int res);

int ferry_conn_new(struct ferry_server *s, int fd, const char *name,
		   const struct ferry_hello *hello, uint64_t features, struct ferry_conn **out)
{
	struct ferry_conn *c = calloc(1, sizeof(*c));
	int rc;

	if (!c) {
		ferry_close(fd);
		return -ENOMEM;
	}
	c->server = s;
	c->fd = fd;
	c->recv_op.done = recv_done;
	c->send_op.done = send_done;
	rc = ferry_framebuf_init(&c->in, HELLO_BYTES);
	if (rc < 0) {
		free_conn(c);
		return rc;
	}
	snprintf(c->name, sizeof(c->name), "%s", name);
	/* On a non-blocking socket the ring would report EAGAIN instead of waiting. */
	fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_NONBLOCK);
	c->rx_ns = ferry_now_ns();
	if (hello) {
		c->proto.side = FERRY_SIDE_SOURCE;
		c->proto.hello = *hello;
		c->proto.version = FERRY_VERSION_MAX;
		c->proto.features = features;
		ferry_machine_init(&c->proto.machine, &ferry_connection_machine,
				   FERRY_CONNECTION_OPEN);
	} else {
		ferry_connection_accept(&c->proto, FERRY_SIDE_SOURCE);
		ferry_tls_tune(s->config.tls, fd, FERRY_NET_CONTROL);
		c->proto.withheld = ferry_server_withheld(s);
		c->deadline_ns = c->rx_ns + HANDSHAKE_NS;
	}
	c->next = s->conns;
	s->conns = c;
	if (!hello)
		ferry_conn_process(c);
	*out = c;
	return 0;
}

/* --- ending ------------------------------------------------------------------------------- */

void ferry_conn_close(struct ferry_conn *c)
{
	if (c->stage == CONN_CLOSED)
		return;
	c->stage = CONN_CLOSED;
	c->server->any_closed = true;
	/* Ends what is in flight, and a push thread's writes. */
	shutdown(c->fd, SHUT_RDWR);
}

void ferry_conn_refuse(struct ferry_conn *c, enum ferry_error_code code, const char *text)
{
	struct ferry_message m = {.type = FERRY_FRAME_ERROR, .error = {.code = code}};

	if (c->stage != CONN_LIVE)
		return;
	snprintf(m.error.text, sizeof(m.error.text), "%s", text);
	/* Behind half a pushed frame an Error would be taken for page bytes. */
	if (c->push_busy || !ferry_conn_send(c, &m)) {
		ferry_conn_close(c);
		return;
	}
	c->stage = CONN_ENDING;
	c->parked = false;
	c->deadline_ns = ferry_now_ns() + ENDING_NS;
	/* Unread data would turn our close into a reset that overtakes the text. */
	ferry_conn_process(c);
	ferry_conn_flush(c);
}

void ferry_conn_sweep(struct ferry_server *s)
{
	struct ferry_conn **at = &s->conns;

	s->any_closed = false;
	while (*at) {
		struct ferry_conn *c = *at;

		if (c->stage != CONN_CLOSED) {
			at = &c->next;
		} else if (c->recv_busy || c->send_busy || c->read_busy || c->push_busy ||
			   c->processing) {
			s->any_closed = true;
			at = &c->next;
		} else {
			*at = c->next;
			free_conn(c);
		}
	}
}

static void lost(struct ferry_conn *c, int err)
{
	char why[128];

	snprintf(why, sizeof(why), "%s connection: %s", ferry_role_name(c->proto.hello.role),
		 err ? strerror(-err) : "closed by the target");
	if (c->peer)
		ferry_peer_conn_lost(c, why);
	ferry_conn_close(c);
}

/* What came is not what may come. */
static void bad_peer(struct ferry_conn *c, enum ferry_error_code code, const char *why)
{
	struct ferry_peer *p = c->peer;

	ferry_warn(c->server->log, "%s: %s; the connection is closed", c->name, why);
	ferry_conn_refuse(c, code, why);
	if (p)
		ferry_peer_conn_lost(c, why);
}

static void ping(struct ferry_conn *c, uint64_t now)
{
	struct ferry_message m = {.type = FERRY_FRAME_PING, .ping = {.sent_ns = now}};

	if (now - c->ping_ns < PING_IDLE_NS)
		return;
	/* Without room, Pings are on their way already. */
	ferry_conn_send(c, &m);
	c->ping_ns = now;
}

/* The target wants to hear from us on connections for pages, whatever keeps these. */
static void tick_pages(struct ferry_conn *c, uint64_t now)
{
	if (!(c->proto.features & FERRY_FEATURE_ALIVE))
		return;
	/* While we take no more requests, we don't see its Pings either. */
	if (c->urgent && !c->recv_busy)
		ping(c, now);
	else if (!c->urgent && c->push_busy && c->peer->push)
		ferry_push_ping(c->peer->push, c->fd, now);
	else if (!c->urgent && c->peer->push_wanted && !c->peer->push_begun)
		ping(c, now);
}

void ferry_conn_tick(struct ferry_conn *c, uint64_t now)
{
	if (c->stage != CONN_CLOSED && c->deadline_ns && now >= c->deadline_ns && !c->parked) {
		ferry_debug(c->server->log, "%s: time is up", c->name);
		ferry_conn_close(c);
		return;
	}
	if (c->stage != CONN_LIVE || !c->peer || now < c->rx_ns)
		return;
	if (c->proto.hello.role != FERRY_ROLE_CONTROL)
		tick_pages(c, now);
	else if (now - c->rx_ns >= SILENCE_NS && c->ping_ns > c->rx_ns)
		lost(c, -ETIMEDOUT);
	else if (now - c->rx_ns >= PING_IDLE_NS)
		ping(c, now);
}

/* --- receiving ---------------------------------------------------------------------------- */

/* Is there room for whatever the next frame makes us hold? If not, the peer has to wait. */
static bool can_take(const struct ferry_conn *c)
{
	return CONN_OUT_BYTES - c->out_used >= CONN_REPLY_BYTES &&
	       CONN_OUT_IOVS - c->n_out_iov >= 2 &&
	       (!c->urgent || ferry_urgent_has_room(c->urgent));
}

static void submit_recv(struct ferry_conn *c)
{
	struct io_uring_sqe *sqe;
	uint8_t *space;
	size_t len;

	if (c->recv_busy || c->stage == CONN_CLOSED)
		return;
	if (c->stage == CONN_ENDING)
		c->in.begin = c->in.end;
	else if (c->parked || !can_take(c))
		return;
	space = ferry_framebuf_space(&c->in, &len);
	sqe = ferry_loop_sqe(c->server);
	io_uring_prep_recv(sqe, c->fd, space, len, 0);
	io_uring_sqe_set_data(sqe, &c->recv_op);
	c->recv_busy = true;
}

static void handle(struct ferry_conn *c, const struct ferry_frame *frame)
{
	struct ferry_server *s = c->server;
	enum ferry_error_code code = FERRY_ERROR_PROTOCOL;
	char why[FERRY_MAX_TEXT] = "";
	int rc = ferry_message_decode(frame, &s->arena, &s->message, why);

	if (!rc)
		rc = ferry_connection_check(&c->proto, &s->message, &code, why);
	if (rc == -ECONNREFUSED && c->peer)
		ferry_peer_refused(c, s->message.error.code, why);
	else if (rc == -ECONNREFUSED)
		ferry_conn_close(c);
	else if (rc < 0)
		bad_peer(c, code, why);
	else if (s->message.type == FERRY_FRAME_HELLO)
		ferry_peer_admit(c);
	else
		ferry_peer_message(c, &s->message);
}

/* A frame that does not fit. */
static int make_room(struct ferry_conn *c)
{
	if (c->proto.hello.role != FERRY_ROLE_CONTROL || !ferry_connection_is_open(&c->proto) ||
	    c->in.size >= CONTROL_MAX_BYTES)
		return -EMSGSIZE;
	return resize_in(c, CONTROL_MAX_BYTES);
}

void ferry_conn_process(struct ferry_conn *c)
{
	struct ferry_frame frame;
	int rc;

	/* While a recv is in flight there is no whole frame in the buffer. */
	if (c->processing || c->recv_busy)
		return;
	c->processing = true;
	while (c->stage == CONN_LIVE && !c->parked && can_take(c)) {
		rc = ferry_framebuf_next(&c->in, &frame);
		if (!rc)
			break;
		if (rc > 0)
			handle(c, &frame);
		else if (rc != -EMSGSIZE)
			bad_peer(c, FERRY_ERROR_PROTOCOL, "what came is not a Pageferry frame");
		else if (make_room(c) < 0)
			bad_peer(c, FERRY_ERROR_PROTOCOL, "a frame is longer than it may be");
	}
	c->processing = false;
	submit_recv(c);
	ferry_conn_flush(c);
}

void ferry_conn_unpark(struct ferry_conn *c)
{
	c->parked = false;
	ferry_peer_admit(c);
	ferry_conn_process(c);
}

static void recv_done(struct ferry_server *s, struct ferry_op *op, int res)
{
	struct ferry_conn *c = FERRY_CONTAINER(op, struct ferry_conn, recv_op);

	(void)s;
	c->recv_busy = false;
	if (c->stage == CONN_CLOSED)
		return;
	if (res > 0) {
		ferry_framebuf_advance(&c->in, (size_t)res);
		c->rx_ns = ferry_now_ns();
	} else if (res != -EINTR && res != -EAGAIN) {
		lost(c, res);
		return;
	}
	ferry_conn_process(c);
}

/* --- sending ------------------------------------------------------------------------------ */

static bool queue(struct ferry_conn *c, const void *bytes, size_t len)
{
	if (c->n_out_iov == CONN_OUT_IOVS)
		return false;
	c->out_iov[c->n_out_iov++] = (struct iovec){(void *)bytes, len};
	return true;
}

bool ferry_conn_send(struct ferry_conn *c, const struct ferry_message *m)
{
	uint8_t *at = c->out + c->out_used;
	int n;

	if (c->stage != CONN_LIVE || CONN_OUT_IOVS - c->n_out_iov < 2)
		return false;
	n = ferry_message_encode(m, at, CONN_OUT_BYTES - c->out_used);
	if (n < 0)
		return false;
	c->out_used += (size_t)n;
	queue(c, at, (size_t)n);
	if (m->payload_bytes)
		queue(c, m->payload, m->payload_bytes);
	if (!c->processing)
		ferry_conn_flush(c);
	return true;
}

bool ferry_conn_send_copied(struct ferry_conn *c, const struct ferry_message *m)
{
	struct ferry_message copied = *m;
	uint8_t *at = c->out + c->out_used;

	/* In front of the message, which then takes what is left. */
	if (c->stage != CONN_LIVE || CONN_OUT_BYTES - c->out_used < m->payload_bytes)
		return false;
	memcpy(at, m->payload, m->payload_bytes);
	copied.payload = at;
	c->out_used += m->payload_bytes;
	if (ferry_conn_send(c, &copied))
		return true;
	c->out_used -= m->payload_bytes;
	return false;
}

static void submit_send(struct ferry_conn *c)
{
	struct io_uring_sqe *sqe = ferry_loop_sqe(c->server);

	io_uring_prep_sendmsg(sqe, c->fd, &c->msg, MSG_NOSIGNAL);
	io_uring_sqe_set_data(sqe, &c->send_op);
	c->send_busy = true;
}

static void fill_urgent(struct ferry_conn *c)
{
	struct ferry_run failed;
	struct iovec *iov;
	size_t n;
	int rc = ferry_urgent_fill(c, &iov, &n, &failed);

	if (rc < 0) {
		ferry_peer_unavailable(c->peer, &failed, rc);
	} else if (n) {
		c->msg = (struct msghdr){.msg_iov = iov, .msg_iovlen = n};
		c->sending_out = false;
		submit_send(c);
	}
}

void ferry_conn_flush(struct ferry_conn *c)
{
	if (c->send_busy || c->stage == CONN_CLOSED)
		return;
	if (c->out_iov_done < c->n_out_iov) {
		c->msg = (struct msghdr){.msg_iov = c->out_iov + c->out_iov_done,
					 .msg_iovlen = c->n_out_iov - c->out_iov_done};
		c->sending_out = true;
		submit_send(c);
		return;
	}
	c->out_used = c->n_out_iov = c->out_iov_done = 0;
	if (c->stage == CONN_ENDING)
		shutdown(c->fd, SHUT_WR);
	else if (c->urgent && c->peer)
		fill_urgent(c);
}

/* All of a submission left. */
static void sent(struct ferry_conn *c)
{
	if (c->sending_out)
		c->out_iov_done = (size_t)(c->msg.msg_iov - c->out_iov);
	if (c->tells_release && c->peer && c->out_iov_done == c->n_out_iov) {
		c->tells_release = false;
		ferry_peer_released(c->peer);
	}
	ferry_conn_flush(c);
	/* There is room again, and a push may wait for the Welcome that has just left. */
	ferry_conn_process(c);
	if (c->peer && c->proto.hello.role == FERRY_ROLE_BULK)
		ferry_peer_try_push(c->peer);
}

static void send_done(struct ferry_server *s, struct ferry_op *op, int res)
{
	struct ferry_conn *c = FERRY_CONTAINER(op, struct ferry_conn, send_op);
	size_t n = res > 0 ? (size_t)res : 0;

	c->send_busy = false;
	atomic_fetch_add(&s->n.wire_bytes, n);
	if (c->stage == CONN_CLOSED)
		return;
	if (res == -EFAULT && c->peer && !c->sending_out) {
		struct ferry_run failed = ferry_urgent_first(c->urgent);

		ferry_peer_unavailable(c->peer, &failed, res);
		ferry_conn_close(c); /* half a frame may have left */
		return;
	}
	if (res <= 0 && res != -EINTR && res != -EAGAIN) {
		lost(c, res ? res : -EPIPE);
		return;
	}
	while (c->msg.msg_iovlen && n >= c->msg.msg_iov->iov_len) {
		n -= c->msg.msg_iov->iov_len;
		c->msg.msg_iov++;
		c->msg.msg_iovlen--;
	}
	if (!c->msg.msg_iovlen) {
		sent(c);
		return;
	}
	c->msg.msg_iov->iov_base = (uint8_t *)c->msg.msg_iov->iov_base + n;
	c->msg.msg_iov->iov_len -= n;
	submit_send(c);
}
