/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sessions that we dial: a thread each, since names are resolved and connections made by calls that
 * block.
 *
 *  1. Dial control, send Hello, wait for Welcome, hand the socket to the loop; then urgent; then
 *     each bulk connection. From there the loop treats them like accepted ones.
 *  2. Sleep until the loop says that the epoch is lost; then, after a pause that grows with each
 *     failure in a row, the same with the next epoch.
 *  3. End when the loop says that the session is over, when the target refuses it, or at stop.
 */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>

#include "base/cleanup.h"
#include "base/net.h"
#include "pageserver/server_internal.h"

#define DIAL_TIMEOUT_MS	   5000
#define WELCOME_TIMEOUT_MS 5000
#define FIRST_PAUSE_MS	   50
#define MAX_PAUSE_MS	   1000

struct ferry_dialer {
	struct ferry_server *server;
	struct ferry_dialer *next;
	struct ferry_addr to;
	struct ferry_session_id session;
	uint32_t n_bulk;
	pthread_t thread;
	bool was_open; /* the thread's: all connections were there once */

	/* Under server->lock. */
	pthread_cond_t cond;
	uint32_t epoch; /* being opened, or open */
	bool lost, ended, stop;
	/* A socket that waits for the loop to take it. */
	int fd; /* owned; -1: none */
	struct ferry_hello hello;
	uint64_t features;
};

/* --- the loop's side ---------------------------------------------------------------------- */

void ferry_dialer_tell(struct ferry_dialer *d, uint32_t epoch, enum ferry_dial_news news)
{
	pthread_mutex_lock(&d->server->lock);
	if (epoch == d->epoch) {
		d->lost |= news == DIAL_LOST;
		d->ended |= news == DIAL_ENDED;
	}
	pthread_cond_signal(&d->cond);
	pthread_mutex_unlock(&d->server->lock);
}

struct ferry_dialer *ferry_dialer_find(struct ferry_server *s, const struct ferry_session_id *id)
{
	struct ferry_dialer *d;

	pthread_mutex_lock(&s->lock);
	for (d = s->dialers; d; d = d->next)
		if (ferry_same_session(&d->session, id))
			break;
	pthread_mutex_unlock(&s->lock);
	return d;
}

uint32_t ferry_dialer_n_bulk(const struct ferry_dialer *d)
{
	return d->n_bulk;
}

/* Takes one socket from a dialer that has one. Return: -1 when none has. */
static int take_one(struct ferry_server *s, struct ferry_hello *hello, uint64_t *features,
		    char *name)
{
	int fd = -1;

	pthread_mutex_lock(&s->lock);
	for (struct ferry_dialer *d = s->dialers; d && fd < 0; d = d->next) {
		fd = TAKE_FD(d->fd);
		*hello = d->hello;
		*features = d->features;
		ferry_addr_format(&d->to, name);
		pthread_cond_signal(&d->cond);
	}
	pthread_mutex_unlock(&s->lock);
	return fd;
}

void ferry_dialers_take(struct ferry_server *s)
{
	char name[FERRY_ADDR_TEXT_MAX];
	struct ferry_hello hello;
	uint64_t features;
	int fd;

	while ((fd = take_one(s, &hello, &features, name)) >= 0) {
		struct ferry_conn *c;

		if (ferry_conn_new(s, fd, name, &hello, features, &c) < 0)
			continue;
		ferry_peer_admit(c);
		ferry_conn_process(c);
	}
}

/* --- the thread --------------------------------------------------------------------------- */

static int read_answer(struct ferry_dialer *d, int fd, struct ferry_message *m,
		       struct ferry_failure *f)
{
	uint8_t header[FERRY_FRAME_HEADER_BYTES], *body = NULL;
	_cleanup_free_ uint8_t *bytes = malloc(FERRY_MAX_MESSAGE_BYTES);
	struct ferry_frame_header h;
	struct ferry_arena arena;
	char why[FERRY_MAX_TEXT];
	int rc, stop_fd = d->server->stop_fd;

	if (!bytes || ferry_arena_init(&arena) < 0)
		return ferry_fail_errno(f, FERRY_LINK, -ENOMEM, "handshake");
	body = bytes;
	rc = ferry_net_read_all(fd, header, sizeof(header), WELCOME_TIMEOUT_MS, stop_fd);
	if (!rc && (ferry_frame_header_decode(header, &h) < 0 || h.payload_bytes))
		rc = -EPROTO;
	if (!rc)
		rc = ferry_net_read_all(fd, body, h.msg_bytes, WELCOME_TIMEOUT_MS, stop_fd);
	if (!rc)
		rc = ferry_message_decode(&(struct ferry_frame){.type = h.type,
								.msg = body,
								.msg_bytes = h.msg_bytes},
					  &arena, m, why);
	ferry_arena_fini(&arena);
	if (rc == -EPROTO)
		return ferry_fail(f, FERRY_REFUSE, rc,
				  "what answers is not Pageferry; check the address");
	return rc < 0 ? ferry_fail_errno(f, FERRY_LINK, rc, "no answer to Hello") : 0;
}

/* TLS has said why. Whoever is on the way can forge what is said before the peer is authenticated:
 * to a session that was open before, that is one more lost link. */
static int explain(const struct ferry_dialer *d, int fd, int rc, struct ferry_failure *f)
{
	(void)ferry_tls_explain(d->server->config.tls, fd, f);
	if (d->server->config.tls && d->epoch)
		f->consequence = FERRY_LINK;
	return rc;
}

/* A target that is busy may have room later, if it had some before. And one that we knew, and that
 * says that it has no such session, may be about to end, for another to go on in its place. */
static enum ferry_consequence consequence(const struct ferry_dialer *d, enum ferry_error_code code)
{
	return (code == FERRY_ERROR_BUSY && d->epoch) ||
			       (code == FERRY_ERROR_SESSION && d->was_open)
		       ? FERRY_LINK
		       : FERRY_REFUSE;
}

/* Dials and shakes hands. Return: a connected fd, or a negative error with its story. */
static int open_one(struct ferry_dialer *d, const struct ferry_hello *hello, uint64_t *features,
		    struct ferry_failure *f)
{
	_cleanup_free_ struct ferry_message *m = malloc(sizeof(*m));
	_cleanup_close_ int fd = -1;
	struct ferry_connection proto;
	uint8_t out[512];
	enum ferry_error_code code;
	char why[FERRY_MAX_TEXT];
	int rc;

	if (!m)
		return ferry_fail_errno(f, FERRY_LINK, -ENOMEM, "handshake");
	fd = ferry_tls_dial(d->server->config.tls, &d->to, FERRY_NET_CONTROL, DIAL_TIMEOUT_MS,
			    d->server->stop_fd, f);
	if (fd < 0)
		return explain(d, -1, fd, f);
	ferry_connection_dial(&proto, hello, m);
	rc = ferry_message_encode(m, out, sizeof(out));
	if (rc > 0)
		rc = ferry_net_write_all(fd, out, (size_t)rc, WELCOME_TIMEOUT_MS,
					 d->server->stop_fd);
	if (rc < 0)
		return ferry_fail_errno(f, FERRY_LINK, rc, "Hello");
	rc = read_answer(d, fd, m, f);
	if (rc < 0)
		return explain(d, fd, rc, f);
	rc = ferry_connection_check(&proto, m, &code, why);
	if (rc == -ECONNREFUSED)
		return ferry_fail(f, consequence(d, m->error.code), rc, "the target says: %s", why);
	if (rc < 0)
		return ferry_fail(f, FERRY_REFUSE, rc, "%s", why);
	*features = proto.features;
	return TAKE_FD(fd);
}

/* Gives a socket to the loop and waits until it has it. Errors: -ECANCELED; @fd is given anyway. */
static int hand_over(struct ferry_dialer *d, int fd, const struct ferry_hello *hello,
		     uint64_t features)
{
	struct ferry_server *s = d->server;

	pthread_mutex_lock(&s->lock);
	d->fd = fd;
	d->hello = *hello;
	d->features = features;
	ferry_loop_wake(s);
	while (d->fd >= 0 && !d->stop)
		pthread_cond_wait(&d->cond, &s->lock);
	fd = TAKE_FD(d->fd);
	pthread_mutex_unlock(&s->lock);
	ferry_close(fd);
	return fd < 0 ? 0 : -ECANCELED;
}

static int open_role(struct ferry_dialer *d, enum ferry_role role, uint32_t index,
		     struct ferry_failure *f)
{
	struct ferry_hello hello = {.side = FERRY_SIDE_SOURCE,
				    .session = d->session,
				    .role = role,
				    .index = index,
				    .epoch = d->epoch,
				    .withheld = ferry_server_withheld(d->server)};
	uint64_t features;
	int fd = open_one(d, &hello, &features, f);

	if (fd < 0) {
		ferry_fail_prefix(f, "%s connection", ferry_role_name(role));
		return fd;
	}
	return hand_over(d, fd, &hello, features);
}

static int open_all(struct ferry_dialer *d, struct ferry_failure *f)
{
	int rc = open_role(d, FERRY_ROLE_CONTROL, 0, f);

	if (!rc)
		rc = open_role(d, FERRY_ROLE_URGENT, 0, f);
	for (uint32_t i = 0; i < d->n_bulk && !rc; i++)
		rc = open_role(d, FERRY_ROLE_BULK, i, f);
	return rc;
}

/* Return: true when the session was lost and is to be opened again. */
static bool wait_for_loss(struct ferry_dialer *d)
{
	bool again;

	pthread_mutex_lock(&d->server->lock);
	while (!d->lost && !d->ended && !d->stop)
		pthread_cond_wait(&d->cond, &d->server->lock);
	again = !d->ended && !d->stop;
	pthread_mutex_unlock(&d->server->lock);
	return again;
}

/* Return: false when it is over. */
static bool next_epoch(struct ferry_dialer *d, int pause_ms)
{
	bool go_on;

	if (ferry_net_wait(d->server->stop_fd, POLLIN, pause_ms, -1) != -ETIMEDOUT)
		return false;
	pthread_mutex_lock(&d->server->lock);
	go_on = !d->ended && !d->stop;
	d->epoch++;
	d->lost = false;
	pthread_mutex_unlock(&d->server->lock);
	return go_on;
}

static void *dial_main(void *arg)
{
	struct ferry_dialer *d = arg;
	int pause_ms, next_pause_ms = FIRST_PAUSE_MS;
	bool told = false;

	do {
		struct ferry_failure f = {0};
		int rc = open_all(d, &f);

		pause_ms = next_pause_ms;
		next_pause_ms = FERRY_MIN(2 * pause_ms, MAX_PAUSE_MS);
		if (!rc) {
			d->was_open = true;
			pause_ms = next_pause_ms = FIRST_PAUSE_MS;
			told = false;
			if (!wait_for_loss(d))
				break;
			continue;
		}
		if (rc == -ECANCELED)
			break;
		if (f.consequence == FERRY_REFUSE) {
			ferry_server_post(d->server, FERRY_SERVER_FAILED, FERRY_REFUSE, rc, f.text);
			break;
		}
		/* One event for each outage, not for each attempt. */
		if (!told)
			ferry_server_post(d->server, FERRY_SERVER_LINK_LOST, FERRY_LINK, rc,
					  f.text);
		told = true;
	} while (next_epoch(d, pause_ms));
	return NULL;
}

/* --- life --------------------------------------------------------------------------------- */

int ferry_server_dial(struct ferry_server *s, const struct ferry_addr *to,
		      const struct ferry_session_id *session, uint32_t n_bulk, uint32_t epoch,
		      struct ferry_failure *f)
{
	struct ferry_dialer *d;
	int rc;

	if (!s->running)
		return ferry_fail(f, FERRY_REFUSE, -EINVAL, "the page server was not started");
	if (!n_bulk || n_bulk > FERRY_MAX_BULK)
		return ferry_fail(f, FERRY_REFUSE, -EINVAL,
				  "%u bulk connections; 1 to %d are possible", n_bulk,
				  FERRY_MAX_BULK);
	if (ferry_dialer_find(s, session))
		return ferry_fail(f, FERRY_REFUSE, -EEXIST, "this session is being dialed already");
	d = calloc(1, sizeof(*d));
	if (!d)
		return ferry_fail_errno(f, FERRY_REFUSE, -ENOMEM, "dial");
	d->server = s;
	d->to = *to;
	d->session = *session;
	d->n_bulk = n_bulk;
	d->epoch = epoch;
	d->fd = -1;
	pthread_cond_init(&d->cond, NULL);
	pthread_mutex_lock(&s->lock);
	rc = -pthread_create(&d->thread, NULL, dial_main, d);
	if (!rc) {
		d->next = s->dialers;
		s->dialers = d;
	}
	pthread_mutex_unlock(&s->lock);
	if (rc < 0) {
		pthread_cond_destroy(&d->cond);
		free(d);
		return ferry_fail_errno(f, FERRY_REFUSE, rc, "cannot start a thread");
	}
	return 0;
}

void ferry_dialers_stop(struct ferry_server *s)
{
	eventfd_write(s->stop_fd, 1);
	pthread_mutex_lock(&s->lock);
	for (struct ferry_dialer *d = s->dialers; d; d = d->next) {
		d->stop = true;
		pthread_cond_signal(&d->cond);
	}
	pthread_mutex_unlock(&s->lock);
	for (struct ferry_dialer *d = s->dialers; d; d = d->next)
		pthread_join(d->thread, NULL);
}

void ferry_dialers_free(struct ferry_server *s)
{
	struct ferry_dialer *next;

	for (struct ferry_dialer *d = s->dialers; d; d = next) {
		next = d->next;
		pthread_cond_destroy(&d->cond);
		free(d);
	}
	s->dialers = NULL;
}
