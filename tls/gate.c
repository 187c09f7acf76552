/* SPDX-License-Identifier: Apache-2.0 */
/*
 * With TLS, a thread accepts and starts a relay for each who comes; the relay's done() puts the
 * connection into a queue, which the owner empties. Without, the owner accepts from the socket
 * itself.
 *
 * A stranger is whose relay has not ended its handshake, or its dismissal. Their number is limited
 * by stopping the oldest: of the same address when that has its share already, or else of all.
 * Refusing the newcomer instead would let a few who connect and wait keep everybody out.
 */
#include "tls/gate.h"

#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "tls/internal.h"

#define PAUSE_MS 500 /* when there is no descriptor or memory for one more */

/* One who is inside, and not yet taken. */
struct guest {
	struct guest *next;
	int fd; /* owned */
	char name[FERRY_GATE_NAME_MAX];
};

struct ferry_gate {
	int listen_fd; /* borrowed */
	bool is_unix;
	struct ferry_tls *tls; /* borrowed; NULL: what follows is not used */
	const struct ferry_log *log;

	int stop_fd, ready_fd; /* owned; eventfds */
	pthread_t thread;
	pthread_mutex_t lock; /* of what follows */
	pthread_cond_t changed;
	unsigned int n_shaking; /* relays that are going to call us */
	struct guest *first, **last;
};

/* --- who it is -------------------------------------------------------------------------------- */

static void name_peer(const struct sockaddr_storage *from, socklen_t len, char *out)
{
	char host[64], port[8];

	snprintf(out, FERRY_GATE_NAME_MAX, "a local process");
	if (from->ss_family != AF_UNIX &&
	    !getnameinfo((const struct sockaddr *)from, len, host, sizeof(host), port, sizeof(port),
			 NI_NUMERICHOST | NI_NUMERICSERV))
		snprintf(out, FERRY_GATE_NAME_MAX, "%s port %s", host, port);
}

/* The file's mode says so already, unless somebody has changed it. */
static bool is_welcome(const struct ferry_gate *g, int fd)
{
	struct ucred peer = {.uid = (uid_t)-1};
	socklen_t len = sizeof(peer);

	if (!g->is_unix)
		return true;
	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &len) < 0) {
		ferry_warn(g->log, "a connection was refused, as it can't be told whose it is: %s",
			   strerror(errno));
		return false;
	}
	if (!peer.uid || peer.uid == geteuid())
		return true;
	ferry_warn(
		g->log,
		"a connection of process %d was refused: it belongs to user %u, and only processes "
		"of this command's own user and of root may use this socket",
		(int)peer.pid, (unsigned int)peer.uid);
	return false;
}

static int accept_one(struct ferry_gate *g, struct sockaddr_storage *from, char *name)
{
	for (;;) {
		socklen_t len = sizeof(*from);
		int fd;

		*from = (struct sockaddr_storage){.ss_family = AF_UNIX};
		fd = accept4(g->listen_fd, (struct sockaddr *)from, &len,
			     SOCK_CLOEXEC | SOCK_NONBLOCK);
		if (fd < 0 && (errno == ECONNABORTED || errno == EINTR))
			continue;
		if (fd < 0)
			return -errno;
		if (is_welcome(g, fd)) {
			name_peer(from, len, name);
			return fd;
		}
		ferry_close(fd);
	}
}

/* --- strangers -------------------------------------------------------------------------------- */

/* What of an address one owner has for sure: IPv4, or the network part of IPv6. */
static bool same_origin(const struct sockaddr_storage *a, const struct sockaddr_storage *b)
{
	const struct sockaddr_in *a4 = (const void *)a, *b4 = (const void *)b;
	const struct sockaddr_in6 *a6 = (const void *)a, *b6 = (const void *)b;

	if (a->ss_family != b->ss_family)
		return false;
	if (a->ss_family == AF_INET)
		return a4->sin_addr.s_addr == b4->sin_addr.s_addr;
	if (a->ss_family != AF_INET6)
		return true;
	if (IN6_IS_ADDR_V4MAPPED(&a6->sin6_addr))
		return !memcmp(&a6->sin6_addr, &b6->sin6_addr, 16);
	return !memcmp(&a6->sin6_addr, &b6->sin6_addr, 8);
}

static bool is_stranger(const struct ferry_gate *g, const struct ferry_relay *r)
{
	return r->ctx == g && (r->state == RELAY_SHAKING || r->state == RELAY_FAILED) &&
	       !atomic_load(&r->stop);
}

static void limit_strangers(struct ferry_gate *g, const struct sockaddr_storage *from)
{
	struct ferry_relay *oldest = NULL, *oldest_of_one = NULL;
	unsigned int n = 0, n_of_one = 0;

	pthread_mutex_lock(&g->tls->lock);
	/* The newest is the first of the list. */
	for (struct ferry_relay *r = g->tls->relays; r; r = r->next) {
		if (!is_stranger(g, r))
			continue;
		n++;
		oldest = r;
		if (!same_origin(&r->from, from))
			continue;
		n_of_one++;
		oldest_of_one = r;
	}
	if (n_of_one >= FERRY_GATE_MAX_STRANGERS_OF_ONE)
		ferry_relay_stop(oldest_of_one);
	else if (n >= FERRY_GATE_MAX_STRANGERS)
		ferry_relay_stop(oldest);
	pthread_mutex_unlock(&g->tls->lock);
}

static void let_in(struct ferry_gate *g, int fd, const char *name)
{
	struct guest *guest = malloc(sizeof(*guest));

	if (!guest) {
		ferry_warn(g->log, "a connection from %s was refused: %s", name, strerror(ENOMEM));
		ferry_close(fd);
		return;
	}
	guest->next = NULL;
	guest->fd = fd;
	snprintf(guest->name, sizeof(guest->name), "%s", name);
	*g->last = guest;
	g->last = &guest->next;
	eventfd_write(g->ready_fd, 1);
}

/* On the relay's thread. The last touch of the gate is to unlock it. */
static void relay_done(struct ferry_relay *r, void *ctx)
{
	struct ferry_gate *g = ctx;
	int fd = -1;

	pthread_mutex_lock(&r->tls->lock);
	if (r->state == RELAY_OPEN)
		fd = r->app_fd;
	r->is_watched = false;
	pthread_mutex_unlock(&r->tls->lock);
	if (fd < 0 && r->failure.err != -ECANCELED)
		ferry_warn(g->log, "a connection from %s was refused: %s", r->name,
			   r->failure.text);
	pthread_mutex_lock(&g->lock);
	if (fd >= 0)
		let_in(g, fd, r->name);
	g->n_shaking--;
	pthread_cond_signal(&g->changed);
	pthread_mutex_unlock(&g->lock);
}

static void receive(struct ferry_gate *g, int fd, const struct sockaddr_storage *from,
		    const char *name)
{
	struct ferry_failure f = {0};
	struct ferry_relay *r;

	limit_strangers(g, from);
	pthread_mutex_lock(&g->lock);
	g->n_shaking++;
	pthread_mutex_unlock(&g->lock);
	if (ferry_relay_start(&r, g->tls, fd, NULL, from, FERRY_NET_CONTROL, name, relay_done, g,
			      &f) < 0) {
		ferry_warn(g->log, "a connection from %s was refused: %s", name, f.text);
		pthread_mutex_lock(&g->lock);
		g->n_shaking--;
		pthread_mutex_unlock(&g->lock);
	}
}

static void *gate_main(void *arg)
{
	struct ferry_gate *g = arg;

	for (;;) {
		struct sockaddr_storage from;
		char name[FERRY_GATE_NAME_MAX];
		int fd;

		if (ferry_net_wait(g->listen_fd, POLLIN, -1, g->stop_fd) < 0)
			return NULL;
		fd = accept_one(g, &from, name);
		if (fd >= 0) {
			receive(g, fd, &from, name);
			continue;
		}
		if (fd == -EAGAIN)
			continue;
		ferry_warn(g->log, "a connection could not be accepted: %s", strerror(-fd));
		if (ferry_net_wait(g->stop_fd, POLLIN, PAUSE_MS, -1) != -ETIMEDOUT)
			return NULL;
	}
}

/* --- life ------------------------------------------------------------------------------------- */

static int start(struct ferry_gate *g)
{
	g->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	g->ready_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (g->stop_fd < 0 || g->ready_fd < 0)
		return -errno;
	return -pthread_create(&g->thread, NULL, gate_main, g);
}

static void fini(struct ferry_gate *g)
{
	for (struct guest *next; g->first; g->first = next) {
		next = g->first->next;
		ferry_close(g->first->fd);
		free(g->first);
	}
	ferry_close(g->stop_fd);
	ferry_close(g->ready_fd);
	pthread_cond_destroy(&g->changed);
	pthread_mutex_destroy(&g->lock);
	free(g);
}

int ferry_gate_open(struct ferry_gate **out, int listen_fd, struct ferry_tls *t,
		    const struct ferry_log *log, struct ferry_failure *f)
{
	struct ferry_gate *g = calloc(1, sizeof(*g));
	struct sockaddr_storage ss;
	socklen_t len = sizeof(ss);
	int rc;

	if (!g)
		return ferry_fail_errno(f, FERRY_REFUSE, -ENOMEM, "listening");
	*g = (struct ferry_gate){
		.listen_fd = listen_fd, .tls = t, .log = log, .stop_fd = -1, .ready_fd = -1};
	g->last = &g->first;
	g->is_unix =
		!getsockname(listen_fd, (struct sockaddr *)&ss, &len) && ss.ss_family == AF_UNIX;
	pthread_mutex_init(&g->lock, NULL);
	pthread_cond_init(&g->changed, NULL);
	rc = t ? start(g) : 0;
	if (rc < 0) {
		fini(g);
		return ferry_fail_errno(f, FERRY_REFUSE, rc, "listening");
	}
	*out = g;
	return 0;
}

void ferry_gate_close(struct ferry_gate *g)
{
	if (!g)
		return;
	if (g->tls) {
		eventfd_write(g->stop_fd, 1);
		pthread_join(g->thread, NULL);
		pthread_mutex_lock(&g->tls->lock);
		for (struct ferry_relay *r = g->tls->relays; r; r = r->next) {
			if (r->ctx == g && r->state == RELAY_SHAKING)
				ferry_relay_stop(r);
		}
		pthread_mutex_unlock(&g->tls->lock);
		pthread_mutex_lock(&g->lock);
		while (g->n_shaking)
			pthread_cond_wait(&g->changed, &g->lock);
		pthread_mutex_unlock(&g->lock);
	}
	fini(g);
}

int ferry_gate_fd(const struct ferry_gate *g)
{
	return g->tls ? g->ready_fd : g->listen_fd;
}

int ferry_gate_accept(struct ferry_gate *g, char *name)
{
	struct sockaddr_storage from;
	struct guest *guest;
	eventfd_t n;
	int fd;

	if (!g->tls)
		return accept_one(g, &from, name);
	pthread_mutex_lock(&g->lock);
	guest = g->first;
	if (!guest) {
		eventfd_read(g->ready_fd, &n);
		pthread_mutex_unlock(&g->lock);
		return -EAGAIN;
	}
	g->first = guest->next;
	if (!g->first)
		g->last = &g->first;
	pthread_mutex_unlock(&g->lock);
	fd = guest->fd;
	snprintf(name, FERRY_GATE_NAME_MAX, "%s", guest->name);
	free(guest);
	return fd;
}
