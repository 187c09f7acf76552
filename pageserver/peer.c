/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "pageserver/server_internal.h"

static struct ferry_peer *find(const struct ferry_server *s, const struct ferry_session_id *id)
{
	for (struct ferry_peer *p = s->peers; p; p = p->next)
		if (!p->dead && ferry_same_session(ferry_session_id(p->session), id))
			return p;
	return NULL;
}

static bool is_completed(const struct ferry_peer *p)
{
	return ferry_session_state(p->session) == FERRY_SESSION_COMPLETED;
}

static bool is_lost(const struct ferry_peer *p)
{
	return ferry_session_state(p->session) == FERRY_SESSION_LOST;
}

/* --- the end of an epoch, and of a session -------------------------------------------------- */

static void detach(struct ferry_conn **slot)
{
	struct ferry_conn *c = *slot;

	*slot = NULL;
	if (!c)
		return;
	c->peer = NULL;
	/* One that is ENDING still has something to tell. */
	if (c->stage == CONN_LIVE)
		ferry_conn_close(c);
}

/* The push thread may still be writing: push_busy keeps the descriptors open until it has ended. */
static void close_conns(struct ferry_peer *p)
{
	if (p->push)
		ferry_push_stop(p->push);
	if (p->digest)
		ferry_digest_stop(p->digest);
	if (p->control)
		atomic_fetch_sub(&p->server->n.n_sessions, 1);
	detach(&p->control);
	detach(&p->urgent);
	for (uint32_t i = 0; i < FERRY_MAX_BULK; i++)
		detach(&p->bulk[i]);
	p->n_bulk = 0;
	p->push_wanted = false;
}

/* The epoch is over; the session waits for the next one. */
static void end_epoch(struct ferry_peer *p)
{
	ferry_session_lose(p->session);
	p->since_ns = ferry_now_ns();
	close_conns(p);
}

static void lose(struct ferry_peer *p, enum ferry_dial_news news)
{
	end_epoch(p);
	if (p->dialer)
		ferry_dialer_tell(p->dialer, ferry_session_epoch(p->session), news);
}

void ferry_peer_released(struct ferry_peer *p)
{
	if (p->released)
		return;
	p->released = true;
	atomic_fetch_add(&p->server->n.n_completed, 1);
	ferry_info(p->server->log, "the target has everything");
	ferry_server_post(p->server, FERRY_SERVER_COMPLETED, FERRY_OK, 0, "");
	if (p->dialer)
		ferry_dialer_tell(p->dialer, ferry_session_epoch(p->session), DIAL_ENDED);
}

static void kill_peer(struct ferry_peer *p)
{
	/* Complete was heard, even if our answer did not get through. */
	if (is_completed(p))
		ferry_peer_released(p);
	close_conns(p);
	p->dead = true;
}

void ferry_peer_conn_lost(struct ferry_conn *c, const char *why)
{
	struct ferry_peer *p = c->peer;

	if (is_completed(p)) {
		/* The target closes as it leaves. */
		if (c == p->control)
			kill_peer(p);
		else
			detach(c == p->urgent ? &p->urgent : &p->bulk[c->proto.hello.index]);
		return;
	}
	ferry_warn(p->server->log, "%s: %s; the session can be resumed", c->name, why);
	ferry_server_post(p->server, FERRY_SERVER_LINK_LOST, FERRY_LINK, -ENOTCONN, why);
	lose(p, DIAL_LOST);
}

void ferry_peer_refused(struct ferry_conn *c, enum ferry_error_code code, const char *why)
{
	struct ferry_peer *p = c->peer;

	ferry_warn(p->server->log, "%s: the target says: %s", c->name, why);
	ferry_server_post(p->server,
			  code == FERRY_ERROR_DAMAGED ? FERRY_SERVER_DAMAGED : FERRY_SERVER_FAILED,
			  FERRY_REFUSE, -ECONNREFUSED, why);
	/* A process that has ended comes back for nothing. */
	if (code == FERRY_ERROR_UNAVAILABLE && !p->dialer)
		kill_peer(p);
	else
		lose(p, DIAL_ENDED);
}

void ferry_peer_unavailable(struct ferry_peer *p, const struct ferry_run *run, int err)
{
	char text[FERRY_MAX_TEXT];

	snprintf(text, sizeof(text), "page %llu of region '%s' can't be had any more: %s",
		 (unsigned long long)run->first_page,
		 p->server->pages.layout.regions[run->region].name, strerror(-err));
	ferry_error(p->server->log, "%s", text);
	ferry_server_post(p->server, FERRY_SERVER_FAILED, FERRY_LOST, err, text);
	if (p->control)
		ferry_conn_refuse(p->control, FERRY_ERROR_UNAVAILABLE, text);
	lose(p, DIAL_ENDED);
}

void ferry_peer_condemn_all(struct ferry_server *s)
{
	if (s->condemned_told)
		return;
	s->condemned_told = true;
	ferry_error(s->log, "%s", s->condemned_why);
	for (struct ferry_peer *p = s->peers; p; p = p->next) {
		if (p->dead || is_completed(p))
			continue;
		if (p->control)
			ferry_conn_refuse(p->control, FERRY_ERROR_UNAVAILABLE, s->condemned_why);
		lose(p, DIAL_ENDED);
	}
	ferry_server_post(s, FERRY_SERVER_CHANGED, FERRY_LOST, -ESTALE, s->condemned_why);
}

static void free_peer(struct ferry_peer *p)
{
	struct ferry_server *s = p->server;

	pthread_mutex_lock(&s->lock);
	if (s->latest == p) {
		ferry_session_progress(p->session, &s->latest_total, &s->latest_sent);
		s->latest = NULL;
	}
	pthread_mutex_unlock(&s->lock);
	ferry_session_free(p->session);
	free(p);
}

/* --- letting in --------------------------------------------------------------------------- */

static void refuse(struct ferry_conn *c, enum ferry_error_code code, const char *text)
{
	ferry_warn(c->server->log, "%s: %s connection refused: %s", c->name,
		   ferry_role_name(c->proto.hello.role), text);
	ferry_conn_refuse(c, code, text);
}

/* May it go, for a new one? Not while a guest may wait for it. */
static bool may_give_up(const struct ferry_peer *p, uint64_t now)
{
	if (p->server->config.gives_up_lost && is_lost(p))
		return true;
	return !p->is_taken && (is_lost(p) || now - p->since_ns >= TAKE_NS);
}

/* Keep the table within its limit. Return: false when it is full, of which @n_lost have no link. */
static bool make_room(struct ferry_server *s, uint32_t *n_lost)
{
	struct ferry_peer *oldest = NULL;
	uint64_t now = ferry_now_ns();
	uint32_t n = 0;

	*n_lost = 0;
	for (struct ferry_peer *p = s->peers; p; p = p->next) {
		if (p->dead)
			continue;
		n++;
		*n_lost += is_lost(p);
		if (may_give_up(p, now) && (!oldest || p->since_ns < oldest->since_ns))
			oldest = p;
	}
	if (n < s->config.max_sessions)
		return true;
	if (!oldest)
		return false;
	ferry_warn(s->log, "a session %s %llu s ago is given up for a new one",
		   is_lost(oldest) ? "lost" : "that has taken no layout since it began",
		   (unsigned long long)((now - oldest->since_ns) / FERRY_NS_PER_S));
	kill_peer(oldest);
	return true;
}

static void refuse_busy(struct ferry_conn *c, uint32_t n_lost)
{
	uint32_t max = c->server->config.max_sessions;
	char text[FERRY_MAX_TEXT];

	snprintf(text, sizeof(text),
		 "the page server has as many sessions as it takes (%u), of which %u lost their "
		 "connections and keep their place for an hour, since a guest may wait there; try "
		 "again later, or start it with a higher limit (--max-sessions)",
		 max, n_lost);
	refuse(c, FERRY_ERROR_BUSY, text);
}

static struct ferry_peer *new_peer(struct ferry_server *s, const struct ferry_hello *h)
{
	struct ferry_peer *p = calloc(1, sizeof(*p));

	if (!p)
		return NULL;
	if (ferry_session_new(&p->session, &s->pages, &h->session, h->epoch) < 0) {
		free(p);
		return NULL;
	}
	p->server = s;
	p->since_ns = ferry_now_ns();
	p->dialer = ferry_dialer_find(s, &h->session);
	p->want_bulk = p->dialer ? ferry_dialer_n_bulk(p->dialer) : 1;
	p->next = s->peers;
	s->peers = p;
	atomic_fetch_add(&s->n.n_sessions_ever, 1);
	return p;
}

/* A known session comes back. Return: 1 when it has to wait, 0, or an error that was told. */
static int resume(struct ferry_conn *c, struct ferry_peer *p)
{
	char text[128];

	if (c->proto.hello.epoch <= ferry_session_epoch(p->session)) {
		snprintf(text, sizeof(text),
			 "epoch %u of this session has been; resume it with a higher one",
			 c->proto.hello.epoch);
		refuse(c, FERRY_ERROR_SESSION, text);
		return -ESTALE;
	}
	if (!is_lost(p))
		ferry_server_post(p->server, FERRY_SERVER_LINK_LOST, FERRY_LINK, -ENOTCONN,
				  "the target opened the session again");
	end_epoch(p);
	if (p->push || p->digest) {
		c->parked = true;
		return 1;
	}
	if (ferry_session_resume(p->session, c->proto.hello.epoch) < 0) {
		refuse(c, FERRY_ERROR_INTERNAL, "out of memory");
		return -ENOMEM;
	}
	p->push_begun = false;
	atomic_fetch_add(&p->server->n.resumes, 1);
	return 0;
}

/* It belongs to @p from here on. */
static bool let_in(struct ferry_conn *c, struct ferry_peer *p)
{
	struct ferry_message welcome;

	if (ferry_conn_prepare_role(c) < 0) {
		refuse(c, FERRY_ERROR_INTERNAL, "out of memory");
		return false;
	}
	c->peer = p;
	c->deadline_ns = 0;
	if (!ferry_connection_is_open(&c->proto)) {
		ferry_connection_welcome(&c->proto, &welcome);
		ferry_conn_send(c, &welcome);
	}
	return true;
}

static void admit_control(struct ferry_conn *c)
{
	struct ferry_server *s = c->server;
	struct ferry_peer *p = find(s, &c->proto.hello.session);
	struct ferry_message layout = {.type = FERRY_FRAME_LAYOUT,
				       .layout = s->pages.layout,
				       .payload = s->config.state,
				       .payload_bytes = s->config.state_bytes};
	uint32_t n_lost;

	if (atomic_load(&s->condemned)) {
		refuse(c, FERRY_ERROR_UNAVAILABLE, s->condemned_why);
		return;
	}
	if (p && is_completed(p)) {
		/* It did not hear that it was released. */
		kill_peer(p);
		p = NULL;
	}
	if (p) {
		if (resume(c, p))
			return;
	} else if (!make_room(s, &n_lost)) {
		refuse_busy(c, n_lost);
		return;
	} else {
		p = new_peer(s, &c->proto.hello);
		if (!p) {
			refuse(c, FERRY_ERROR_INTERNAL, "out of memory");
			return;
		}
	}
	if (!let_in(c, p)) {
		lose(p, DIAL_LOST);
		return;
	}
	p->control = c;
	atomic_fetch_add(&s->n.n_sessions, 1);
	pthread_mutex_lock(&s->lock);
	s->latest = p;
	pthread_mutex_unlock(&s->lock);
	ferry_conn_send(c, &layout);
}

/* All connections are there, and the target has taken the layout. */
static void tell_connected(struct ferry_peer *p)
{
	if (p->dialer && p->urgent && p->n_bulk == p->want_bulk &&
	    ferry_session_state(p->session) != FERRY_SESSION_OPENING)
		ferry_server_post(p->server, FERRY_SERVER_CONNECTED, FERRY_OK, 0, "");
}

static void admit_other(struct ferry_conn *c)
{
	const struct ferry_hello *h = &c->proto.hello;
	struct ferry_peer *p = find(c->server, &h->session);
	bool bulk = h->role == FERRY_ROLE_BULK;
	struct ferry_conn **slot;

	if (!p || !p->control) {
		refuse(c, FERRY_ERROR_SESSION,
		       "there is no such session here; open its control connection first");
		return;
	}
	if (h->epoch != ferry_session_epoch(p->session)) {
		refuse(c, FERRY_ERROR_SESSION, "the session is in another epoch");
		return;
	}
	slot = bulk ? &p->bulk[h->index] : &p->urgent;
	if (*slot) {
		refuse(c, FERRY_ERROR_SESSION, "the session has this connection already");
		return;
	}
	if (bulk && p->push_begun) {
		refuse(c, FERRY_ERROR_SESSION,
		       "the push has begun; open bulk connections before PushStart");
		return;
	}
	if (!let_in(c, p))
		return;
	*slot = c;
	p->n_bulk += bulk;
	tell_connected(p);
	ferry_peer_try_push(p);
}

void ferry_peer_admit(struct ferry_conn *c)
{
	switch (c->proto.hello.role) {
	case FERRY_ROLE_CONTROL:
		admit_control(c);
		break;
	case FERRY_ROLE_SWITCHOVER:
		refuse(c, FERRY_ERROR_SESSION,
		       "this is a page server, which takes no switchover; dial the target's "
		       "'pageferry receive'");
		break;
	default:
		admit_other(c);
	}
}

/* --- messages ----------------------------------------------------------------------------- */

void ferry_peer_try_push(struct ferry_peer *p)
{
	int rc;

	if (!p->push_wanted || p->push_begun || p->push || p->n_bulk < p->want_bulk ||
	    !atomic_load_explicit(&p->server->surveyed, memory_order_acquire))
		return;
	/* A Welcome that is on its way must not be cut in two. */
	for (uint32_t i = 0; i < FERRY_MAX_BULK; i++)
		if (p->bulk[i] && (p->bulk[i]->send_busy || p->bulk[i]->n_out_iov))
			return;
	p->push_begun = true;
	rc = ferry_push_start(p);
	if (rc < 0) {
		ferry_error(p->server->log, "cannot start a push: %s", strerror(-rc));
		ferry_server_post(p->server, FERRY_SERVER_LINK_LOST, FERRY_LINK, rc,
				  "cannot start a push");
		lose(p, DIAL_LOST);
	}
}

static uint64_t lower_rate(uint64_t a, uint64_t b)
{
	if (!a || !b)
		return a | b;
	return FERRY_MIN(a, b);
}

static void bad_message(struct ferry_conn *c, const char *why)
{
	ferry_warn(c->server->log, "%s: %s; the connection is closed", c->name, why);
	ferry_conn_refuse(c, FERRY_ERROR_PROTOCOL, why);
	ferry_peer_conn_lost(c, why);
}

static void start_digest(struct ferry_conn *c, const struct ferry_digest_range *range)
{
	struct ferry_peer *p = c->peer;
	int rc;

	if (p->digest || !atomic_load_explicit(&p->server->serving, memory_order_acquire)) {
		bad_message(c, p->digest ? "DigestRequest while another one is being answered"
					 : "DigestRequest while the memory still changes");
		return;
	}
	rc = ferry_digest_start(p, range);
	if (rc < 0) {
		ferry_conn_refuse(c, FERRY_ERROR_INTERNAL, strerror(-rc));
		ferry_peer_conn_lost(c, strerror(-rc));
	}
}

/* Before the session is complete: then it could not be lost any more. */
static bool may_release(struct ferry_conn *c)
{
	const struct ferry_server_config *config = &c->server->config;

	if (atomic_load(&c->server->condemned)) /* and is about to be told so */
		return false;
	if (!config->may_release || !config->may_release(config->may_release_ctx))
		return true;
	if (!atomic_load(&c->server->condemned))
		ferry_peer_conn_lost(c, "the target can't be released yet");
	return false;
}

static void pong(struct ferry_conn *c, const struct ferry_message *m)
{
	struct ferry_message out = {.type = FERRY_FRAME_PONG,
				    .pong = {m->ping.sent_ns, c->rx_ns, ferry_now_ns()}};

	ferry_conn_send(c, &out);
}

static void control_message(struct ferry_conn *c, const struct ferry_message *m)
{
	struct ferry_message out = {.type = FERRY_FRAME_RELEASED};
	struct ferry_peer *p = c->peer;
	char why[FERRY_MAX_TEXT];
	int rc;

	if (m->type == FERRY_FRAME_PONG)
		return;
	if (m->type == FERRY_FRAME_PING) {
		pong(c, m);
		return;
	}
	if (m->type == FERRY_FRAME_COMPLETE && !may_release(c))
		return;
	rc = ferry_session_control(p->session, m, why);
	if (!rc && m->type == FERRY_FRAME_LAYOUT_OK) {
		p->is_taken = true;
		tell_connected(p);
	}
	if (rc < 0) {
		bad_message(c, why);
	} else if (rc == FERRY_SESSION_PUSH) {
		p->push_wanted = true;
		p->push_rate = lower_rate(p->server->config.max_bytes_per_second,
					  m->push_start.max_bytes_per_second);
		if (p->push)
			ferry_push_set_rate(p->push, p->push_rate);
		ferry_peer_try_push(p);
	} else if (rc == FERRY_SESSION_DIGEST) {
		start_digest(c, &m->digests);
	} else if (rc == FERRY_SESSION_RELEASE) {
		if (p->server->config.completing)
			p->server->config.completing(p->server->config.completing_ctx);
		p->since_ns = ferry_now_ns();
		if (p->push)
			ferry_push_stop(p->push);
		c->tells_release = ferry_conn_send(c, &out);
	}
}

static void urgent_message(struct ferry_conn *c, const struct ferry_message *m)
{
	char why[FERRY_MAX_TEXT];

	if (m->type == FERRY_FRAME_PING) {
		pong(c, m);
		return;
	}
	atomic_fetch_add_explicit(&c->server->n.requests, 1, memory_order_relaxed);
	if (ferry_session_request(c->peer->session, &m->request, why) < 0)
		bad_message(c, why);
	else
		ferry_urgent_add(c->urgent, &m->request, c->rx_ns);
}

void ferry_peer_message(struct ferry_conn *c, const struct ferry_message *m)
{
	if (c->proto.hello.role == FERRY_ROLE_URGENT)
		urgent_message(c, m);
	else
		control_message(c, m);
}

/* --- in the course of time ---------------------------------------------------------------- */

/* The push thread has ended, for whatever reason. */
static void reap_push(struct ferry_peer *p)
{
	struct ferry_run failed;
	char why[128];
	int rc;

	for (struct ferry_conn *c = p->server->conns; c; c = c->next)
		if (c->push_busy && ferry_push_writes_to(p->push, c->fd))
			c->push_busy = false;
	rc = ferry_push_end(p->push, &failed);
	p->push = NULL;
	if (ferry_session_state(p->session) != FERRY_SESSION_PUSHING || rc == -ECANCELED)
		return;
	if (!rc) {
		ferry_session_pushed(p->session);
	} else if (failed.n_pages) {
		ferry_peer_unavailable(p, &failed, rc);
	} else {
		snprintf(why, sizeof(why), "bulk connection: %s", strerror(-rc));
		ferry_warn(p->server->log, "%s; the session can be resumed", why);
		ferry_server_post(p->server, FERRY_SERVER_LINK_LOST, FERRY_LINK, rc, why);
		lose(p, DIAL_LOST);
	}
}

static void expire(struct ferry_peer *p, uint64_t now)
{
	uint64_t limit = is_completed(p) ? RELEASED_NS : KEEP_LOST_NS;

	if (p->dead || !(is_lost(p) || is_completed(p)))
		return;
	if (now > p->since_ns && now - p->since_ns >= limit)
		kill_peer(p);
}

void ferry_peer_sweep(struct ferry_server *s, uint64_t now)
{
	struct ferry_peer **at = &s->peers;
	bool reaped = false;

	while (*at) {
		struct ferry_peer *p = *at;

		if (p->push && ferry_push_has_ended(p->push)) {
			reap_push(p);
			reaped = true;
		}
		reaped |= ferry_digest_reap(p);
		expire(p, now);
		if (p->dead && !p->push && !p->digest) {
			*at = p->next;
			free_peer(p);
		} else {
			at = &p->next;
		}
	}
	if (!reaped)
		return;
	for (struct ferry_conn *c = s->conns; c; c = c->next)
		if (c->parked)
			ferry_conn_unpark(c);
}

void ferry_peer_close_all(struct ferry_server *s)
{
	for (struct ferry_peer *p = s->peers; p; p = p->next)
		kill_peer(p);
}
