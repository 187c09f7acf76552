/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A connection's thread. What it moves, with a buffer for each direction that is read into only
 * when it is empty (so a slow reader holds up its sender, and nobody else):
 *
 *      who uses the connection     socket pair        relay             TCP
 *            app_fd  <===============> inner  <--- in ---  tcp_fd  <===========> peer
 *                                             --- out -->
 *
 *   the app's end shut for writing, or closed   what was read still leaves, then close_notify, FIN
 *   close_notify from the peer                  what was decrypted is delivered, then an end
 *   the app's end closed                        as above; what still comes is dropped, for as long
 *                                               as the peer needs to close, or TLS_LINGER_MS:
 * closing with unread bytes would reset the connection, and the reset overtake what was sent last
 *   a break                                     both ends are closed at once
 */
#include <errno.h>
#include <openssl/err.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "tls/internal.h"

#define HALF_BYTES  (64u * 1024)
#define STACK_BYTES (256u * 1024)
#define URGENT_NICE (-10) /* as the threads at both ends of an urgent connection */

struct half {
	unsigned char *data; /* owned: HALF_BYTES */
	size_t begin, end;
	bool eof; /* nothing more comes into it */
};

struct pump {
	struct ferry_relay *r;
	int inner; /* owned */
	struct half out, in;
	bool app_gone;		    /* its end is closed: nobody reads what comes */
	bool out_closed, in_closed; /* the end was passed on */
	bool broken;
	short tcp_events, inner_events; /* what the next step waits for */
	uint64_t linger_ns;		/* the end of patience; 0: none yet */
};

static bool is_empty(const struct half *h)
{
	return h->begin == h->end;
}

static void filled(struct half *h, size_t n)
{
	h->begin = 0;
	h->end = n;
}

static void break_off(struct pump *p, const struct ferry_failure *f)
{
	struct ferry_relay *r = p->r;

	ferry_tls_keep_story(r->tls, r->app_fd, f);
	if (!p->app_gone)
		ferry_warn(r->tls->log, "%s: %s", r->name, f->text);
	p->broken = true;
}

static void break_peer(struct pump *p, int ret, int err)
{
	struct ferry_failure f = {0};

	ferry_handshake_explain(p->r->tls, p->r->ssl, ret, err, false, &f);
	break_off(p, &f);
}

/* Of the pair: a reset means that its end was closed, with unread bytes. */
static void break_app(struct pump *p, int err)
{
	struct ferry_failure f = {0};

	if (err == EPIPE || err == ECONNRESET) {
		p->app_gone = true;
		return;
	}
	ferry_fail_errno(&f, FERRY_LINK, -err, "TLS: the socket pair");
	break_off(p, &f);
}

/* --- steps: each returns whether it got anywhere ---------------------------------------------- */

static bool read_app(struct pump *p)
{
	ssize_t n;

	if (p->out.eof || !is_empty(&p->out))
		return false;
	n = recv(p->inner, p->out.data, HALF_BYTES, MSG_DONTWAIT);
	if (n > 0) {
		filled(&p->out, (size_t)n);
		return true;
	}
	if (n < 0 && (errno == EAGAIN || errno == EINTR)) {
		p->inner_events |= POLLIN;
		return errno == EINTR;
	}
	if (n < 0)
		break_app(p, errno);
	p->out.eof = true;
	return true;
}

/* Return: true when the call is to be repeated later. Else it broke. */
static bool would_block(struct pump *p, int ret, int err)
{
	switch (SSL_get_error(p->r->ssl, ret)) {
	case SSL_ERROR_WANT_READ:
		p->tcp_events |= POLLIN;
		return true;
	case SSL_ERROR_WANT_WRITE:
		p->tcp_events |= POLLOUT;
		return true;
	default:
		break_peer(p, ret, err);
		return false;
	}
}

static bool write_peer(struct pump *p)
{
	size_t n;
	int ret;

	if (is_empty(&p->out))
		return false;
	ERR_clear_error();
	errno = 0;
	ret = SSL_write_ex(p->r->ssl, p->out.data + p->out.begin, p->out.end - p->out.begin, &n);
	if (ret == 1) {
		p->out.begin += n;
		return true;
	}
	would_block(p, ret, errno);
	return false;
}

static bool close_peer(struct pump *p)
{
	int ret;

	if (!p->out.eof || !is_empty(&p->out) || p->out_closed)
		return false;
	ERR_clear_error();
	errno = 0;
	ret = SSL_shutdown(p->r->ssl);
	if (ret < 0) {
		would_block(p, ret, errno);
		return false;
	}
	shutdown(p->r->tcp_fd, SHUT_WR);
	p->out_closed = true;
	return true;
}

static bool read_peer(struct pump *p)
{
	size_t n;
	int ret;

	if (p->in.eof || !is_empty(&p->in))
		return false;
	ERR_clear_error();
	errno = 0;
	ret = SSL_read_ex(p->r->ssl, p->in.data, HALF_BYTES, &n);
	if (ret == 1) {
		filled(&p->in, n);
		return true;
	}
	if (SSL_get_error(p->r->ssl, ret) == SSL_ERROR_ZERO_RETURN) {
		p->in.eof = true;
		return true;
	}
	would_block(p, ret, errno);
	return false;
}

static bool write_app(struct pump *p)
{
	ssize_t n;

	if (is_empty(&p->in))
		return false;
	if (p->app_gone) {
		p->in.begin = p->in.end;
		return true;
	}
	n = send(p->inner, p->in.data + p->in.begin, p->in.end - p->in.begin,
		 MSG_DONTWAIT | MSG_NOSIGNAL);
	if (n >= 0) {
		p->in.begin += (size_t)n;
		return true;
	}
	if (errno == EAGAIN) {
		p->inner_events |= POLLOUT;
		return false;
	}
	if (errno != EINTR)
		break_app(p, errno);
	return !p->broken;
}

static bool close_app(struct pump *p)
{
	if (!p->in.eof || !is_empty(&p->in) || p->in_closed)
		return false;
	shutdown(p->inner, SHUT_WR);
	p->in_closed = true;
	return true;
}

/* --- the pump --------------------------------------------------------------------------------- */

static void apply_class(struct ferry_relay *r, int *applied)
{
	int class = atomic_load(&r->class);

	if (class == *applied)
		return;
	*applied = class;
	ferry_net_tune(r->tcp_fd, (enum ferry_net_class) class);
	/* Urgent before bulk on the processor, too, where we may. */
	(void)!setpriority(PRIO_PROCESS, (id_t)gettid(), class == FERRY_NET_BULK ? 0 : URGENT_NICE);
}

/* Milliseconds that are left once an end is wanted; -1 before. 0: it is time. */
static int patience(struct pump *p)
{
	uint64_t now = ferry_now_ns();

	if (!p->app_gone && !atomic_load(&p->r->stop))
		return -1;
	if (!p->linger_ns)
		p->linger_ns = now + (uint64_t)TLS_LINGER_MS * FERRY_NS_PER_MS;
	return now >= p->linger_ns ? 0 : (int)((p->linger_ns - now) / FERRY_NS_PER_MS) + 1;
}

/* Waits for what the steps want. The end of the app's side is seen also while nothing is. */
static void wait_for_work(struct pump *p, int timeout_ms)
{
	struct pollfd fds[3] = {
		{.fd = p->tcp_events ? p->r->tcp_fd : -1, .events = p->tcp_events},
		{.fd = p->app_gone ? -1 : p->inner, .events = p->inner_events},
		{.fd = p->r->kick_fd, .events = POLLIN},
	};
	eventfd_t n;

	if (poll(fds, FERRY_ARRAY_SIZE(fds), timeout_ms) <= 0)
		return;
	if (fds[1].revents & (POLLHUP | POLLERR))
		p->app_gone = true;
	if (fds[2].revents)
		eventfd_read(p->r->kick_fd, &n);
}

static void run_pump(struct pump *p)
{
	int class = -1, timeout_ms;

	while (!p->broken) {
		bool moved;

		apply_class(p->r, &class);
		p->tcp_events = p->inner_events = 0;
		/* Deliver before taking in more: what is waited for is at the far end. */
		moved = write_app(p);
		moved |= write_peer(p);
		moved |= !p->broken && read_peer(p);
		moved |= read_app(p);
		moved |= close_app(p);
		moved |= !p->broken && close_peer(p);
		if (p->out_closed && p->in_closed)
			return;
		if (moved)
			continue;
		timeout_ms = patience(p);
		if (!timeout_ms || p->broken)
			return;
		wait_for_work(p, timeout_ms);
	}
}

void ferry_relay_pump(struct ferry_relay *r, int inner)
{
	struct pump p = {.r = r, .inner = inner};
	struct ferry_failure f = {0};

	p.out.data = malloc(HALF_BYTES);
	p.in.data = malloc(HALF_BYTES);
	if (p.out.data && p.in.data) {
		run_pump(&p);
	} else {
		ferry_fail_errno(&f, FERRY_LINK, -ENOMEM, "TLS");
		break_off(&p, &f);
	}
	free(p.out.data);
	free(p.in.data);
	ferry_close(inner);
}

/* --- the thread ------------------------------------------------------------------------------- */

/* The connection, and our end of it. */
static int open_ends(struct ferry_relay *r, int *inner, struct ferry_failure *f)
{
	int ends[2];

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends) < 0)
		return ferry_fail_errno(f, FERRY_LINK, -errno, "TLS: socketpair");
	r->app_fd = ends[0];
	*inner = ends[1];
	return 0;
}

/* The peer is to read our alert: see above for what closing at once would do. */
static void dismiss(struct ferry_relay *r)
{
	uint64_t end = ferry_now_ns() + FERRY_NS_PER_S, now;
	char drop[4096];

	shutdown(r->tcp_fd, SHUT_WR);
	while (!atomic_load(&r->stop) && (now = ferry_now_ns()) < end) {
		ssize_t n = recv(r->tcp_fd, drop, sizeof(drop), MSG_DONTWAIT);

		if (!n || (n < 0 && errno != EAGAIN && errno != EINTR))
			return;
		if (n < 0 &&
		    ferry_net_wait(r->tcp_fd, POLLIN, (int)((end - now) / FERRY_NS_PER_MS) + 1,
				   r->kick_fd) < 0)
			return;
	}
}

static void set_state(struct ferry_relay *r, enum ferry_relay_state state)
{
	pthread_mutex_lock(&r->tls->lock);
	r->state = state;
	pthread_mutex_unlock(&r->tls->lock);
}

static void *relay_main(void *arg)
{
	struct ferry_relay *r = arg;
	struct ferry_failure f = {0};
	int inner = -1, rc = ferry_handshake_run(r, &f);

	if (!rc)
		rc = open_ends(r, &inner, &f);
	r->failure = f;
	if (!rc)
		ferry_tls_keep_story(r->tls, r->app_fd, NULL);
	set_state(r, rc < 0 ? RELAY_FAILED : RELAY_OPEN);
	r->done(r, r->ctx);
	if (rc < 0)
		dismiss(r);
	else
		ferry_relay_pump(r, inner);
	/* Not before: it may still write. */
	SSL_free(r->ssl);
	ferry_close(r->tcp_fd);
	OPENSSL_thread_stop();
	set_state(r, RELAY_ENDED);
	return NULL;
}

/* Signals are the program's business, and a write to a socket that was closed is no reason for one.
 */
static int start_thread(struct ferry_relay *r)
{
	sigset_t all, before;
	pthread_attr_t attr;
	int rc;

	sigfillset(&all);
	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, STACK_BYTES);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	rc = -pthread_create(&r->thread, &attr, relay_main, r);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	pthread_attr_destroy(&attr);
	return rc;
}

static void free_relay(struct ferry_relay *r)
{
	ferry_close(r->kick_fd);
	free(r);
}

int ferry_relay_start(struct ferry_relay **out, struct ferry_tls *t, int fd,
		      const struct ferry_addr *to, const struct sockaddr_storage *from,
		      enum ferry_net_class class, const char *name,
		      void (*done)(struct ferry_relay *r, void *ctx), void *ctx,
		      struct ferry_failure *f)
{
	struct ferry_relay *r = calloc(1, sizeof(*r));
	int rc;

	ferry_tls_reap(t, false);
	if (!r) {
		ferry_close(fd);
		return ferry_fail_errno(f, FERRY_LINK, -ENOMEM, "TLS");
	}
	*r = (struct ferry_relay){
		.tls = t, .tcp_fd = fd, .app_fd = -1, .done = done, .ctx = ctx, .is_watched = true};
	if (from)
		r->from = *from;
	atomic_store(&r->class, class);
	snprintf(r->name, sizeof(r->name), "%s", name);
	ferry_net_tune(fd, class);
	r->kick_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	rc = r->kick_fd < 0 ? ferry_fail_errno(f, FERRY_LINK, -errno, "TLS: eventfd")
			    : ferry_handshake_prepare(t, fd, to, &r->ssl, f);
	if (rc < 0) {
		ferry_close(fd);
		free_relay(r);
		return rc;
	}
	pthread_mutex_lock(&t->lock);
	rc = start_thread(r);
	if (!rc) {
		r->next = t->relays;
		t->relays = r;
		*out = r;
	}
	pthread_mutex_unlock(&t->lock);
	if (rc < 0) {
		SSL_free(r->ssl);
		ferry_close(fd);
		free_relay(r);
		return ferry_fail_errno(f, FERRY_LINK, rc, "TLS: cannot start a thread");
	}
	return 0;
}

void ferry_relay_stop(struct ferry_relay *r)
{
	atomic_store(&r->stop, true);
	eventfd_write(r->kick_fd, 1);
}

/* Takes one that may be freed off the list. Called with the lock held. */
static struct ferry_relay *take_one(struct ferry_tls *t, bool all)
{
	for (struct ferry_relay **at = &t->relays; *at; at = &(*at)->next) {
		struct ferry_relay *r = *at;

		if (!all && (r->state != RELAY_ENDED || r->is_watched))
			continue;
		*at = r->next;
		return r;
	}
	return NULL;
}

void ferry_tls_reap(struct ferry_tls *t, bool all)
{
	for (;;) {
		struct ferry_relay *r;

		pthread_mutex_lock(&t->lock);
		r = take_one(t, all);
		pthread_mutex_unlock(&t->lock);
		if (!r)
			return;
		pthread_join(r->thread, NULL);
		free_relay(r);
	}
}
