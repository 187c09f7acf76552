/* SPDX-License-Identifier: Apache-2.0 */
#include "pageserver/criu.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>

#include "base/cleanup.h"
#include "base/net.h"
#include "base/util.h"
#include "tls/gate.h"

#define MAX_CONNECTIONS 16u
#define STALL_MS	30000 /* in the middle of something */
#define LEAVE_MS	5000  /* for the client to close */
#define PAUSE_MS	500   /* after an accept that failed */

struct conn {
	struct ferry_criu *criu;
	pthread_t thread;
	bool in_use; /* accepting thread's */
	atomic_bool has_ended;
	int fd; /* owned */
	bool was_given;	  /* pages */
	bool is_done;	  /* its client lacks nothing, and is not counted any more */
	uint8_t *scratch; /* owned; NULL where no source copies */
	char name[FERRY_GATE_NAME_MAX];
};

struct ferry_criu {
	struct ferry_criu_config config;
	bool copies;
	int listen_fd, stop_fd;	 /* owned */
	struct ferry_gate *gate; /* owned */
	pthread_t thread;
	bool is_running;
	struct conn conns[MAX_CONNECTIONS];
	_Atomic uint64_t pages, wire_bytes, requests;
	_Atomic uint32_t n_connections, n_connections_ever, n_unfinished, n_closed, n_failed;
};

/* --- a connection ----------------------------------------------------------------------------- */

static int answer(struct conn *c, const struct ferry_criu_message *get, struct ferry_failure *f)
{
	struct ferry_criu *s = c->criu;
	uint8_t header[FERRY_CRIU_HEADER_NEW];
	struct ferry_criu_message m = *get;
	struct ferry_run run;
	const void *data;
	size_t bytes;
	int rc = ferry_criu_find(s->config.ranges, s->config.n_sources, s->config.pid, get, &run, f);

	if (rc < 0)
		return rc;
	rc = ferry_source_read(s->config.sources[run.region], run.first_page, run.n_pages,
			       c->scratch, &data, STALL_MS, s->stop_fd);
	if (rc < 0)
		return ferry_fail_errno(f, FERRY_LOST, rc, "the page at %#llx can't be had any more",
					(unsigned long long)get->address);
	m.command = FERRY_CRIU_ADD_F;
	m.flags = FERRY_CRIU_PRESENT;
	m.n_pages = run.n_pages;
	ferry_criu_encode(&m, s->config.header_bytes, header);
	bytes = (size_t)run.n_pages * FERRY_CRIU_PAGE_BYTES;
	rc = ferry_net_writev_all(c->fd,
				  (struct iovec[]){{header, s->config.header_bytes},
						   {(void *)data, bytes}},
				  2, STALL_MS, s->stop_fd);
	if (rc < 0)
		return ferry_fail_errno(f, FERRY_LINK, rc, "answering");
	if (!c->was_given)
		atomic_fetch_add(&s->n_unfinished, 1);
	c->was_given = true;
	atomic_fetch_add(&s->pages, run.n_pages);
	atomic_fetch_add(&s->wire_bytes, bytes + s->config.header_bytes);
	atomic_fetch_add(&s->requests, 1);
	return 0;
}

/* Return: as config->may_release, but for what passes; -ECANCELED when we stop. */
static int ask_release(struct ferry_criu *s)
{
	for (;;) {
		int rc = s->config.may_release ? s->config.may_release(s->config.ctx) : 0;

		if (!ferry_is_shortage(rc))
			return rc;
		if (ferry_net_wait(s->stop_fd, POLLIN, PAUSE_MS, -1) != -ETIMEDOUT)
			return -ECANCELED;
	}
}

/* The client is done, and closes when it has heard that we are. */
static int leave(struct conn *c, struct ferry_failure *f)
{
	const int32_t status = 0;
	uint8_t more;
	int rc = ask_release(c->criu);

	if (rc < 0)
		return ferry_fail(
			f, FERRY_LOST, rc,
			"the process has run or ended meanwhile: what was given of it may be of "
			"two moments");
	c->is_done = true;
	atomic_fetch_sub(&c->criu->n_connections, 1);
	rc = ferry_net_write_all(c->fd, &status, sizeof(status), STALL_MS, c->criu->stop_fd);
	if (rc < 0)
		return ferry_fail_errno(f, FERRY_LINK, rc, "answering");
	if (c->was_given)
		atomic_fetch_sub(&c->criu->n_unfinished, 1);
	atomic_fetch_add(&c->criu->n_closed, 1);
	(void)ferry_net_read_all(c->fd, &more, 1, LEAVE_MS, c->criu->stop_fd);
	return 0;
}

/* Return: 0 at a good end, -ECANCELED when we stop, or another negative error in @f. */
static int converse(struct conn *c, struct ferry_failure *f)
{
	struct ferry_criu *s = c->criu;

	for (;;) {
		uint8_t header[FERRY_CRIU_HEADER_NEW];
		struct ferry_criu_message m;
		/* Between requests it may think for as long as it likes. */
		int rc = ferry_net_wait(c->fd, POLLIN, -1, s->stop_fd);

		if (!rc)
			rc = ferry_net_read_all(c->fd, header, s->config.header_bytes, STALL_MS,
						s->stop_fd);
		if (rc < 0)
			return ferry_fail_errno(f, FERRY_LINK, rc, "waiting for a request");
		ferry_criu_decode(header, s->config.header_bytes, &m);
		switch (m.command) {
		case FERRY_CRIU_GET:
			rc = answer(c, &m, f);
			if (rc < 0)
				return rc;
			break;
		case FERRY_CRIU_CLOSE:
		case FERRY_CRIU_FORCE_CLOSE:
			return leave(c, f);
		default:
			return ferry_fail(f, FERRY_LINK, -EBADMSG,
					  "command %u is none that asks for pages; this is a server "
					  "for 'criu lazy-pages'",
					  m.command);
		}
	}
}

static void *conn_main(void *arg)
{
	struct conn *c = arg;
	struct ferry_failure f = {0};
	int rc = converse(c, &f);

	if (rc < 0 && rc != -ECANCELED) {
		atomic_fetch_add(&c->criu->n_failed, 1);
		ferry_warn(c->criu->config.log, "%s: %s; the connection is closed", c->name, f.text);
	}
	shutdown(c->fd, SHUT_RDWR);
	if (!c->is_done)
		atomic_fetch_sub(&c->criu->n_connections, 1);
	atomic_store(&c->has_ended, true);
	return NULL;
}

static void end_conn(struct conn *c)
{
	if (!c->in_use)
		return;
	pthread_join(c->thread, NULL);
	ferry_close(c->fd);
	free(c->scratch);
	c->in_use = false;
}

/* @fd: given */
static void begin_conn(struct ferry_criu *s, int fd, const char *name)
{
	struct conn *c = NULL;
	int rc = 0;

	for (uint32_t i = 0; i < MAX_CONNECTIONS && !c; i++)
		if (!s->conns[i].in_use)
			c = &s->conns[i];
	if (!c) {
		ferry_warn(s->config.log, "%s: turned away, as there are %u connections already", name,
			   MAX_CONNECTIONS);
		ferry_close(fd);
		return;
	}
	*c = (struct conn){.criu = s, .fd = fd};
	memcpy(c->name, name, sizeof(c->name));
	ferry_net_tune(fd, FERRY_NET_URGENT);
	if (s->copies)
		c->scratch = aligned_alloc(FERRY_CRIU_PAGE_BYTES, FERRY_CRIU_MAX_ANSWER_PAGES *
									  FERRY_CRIU_PAGE_BYTES);
	atomic_fetch_add(&s->n_connections, 1);
	atomic_fetch_add(&s->n_connections_ever, 1);
	rc = s->copies && !c->scratch ? -ENOMEM
				      : -pthread_create(&c->thread, NULL, conn_main, c);
	c->in_use = !rc;
	if (!rc)
		return;
	ferry_warn(s->config.log, "%s: %s; the connection is closed", name, strerror(-rc));
	atomic_fetch_sub(&s->n_connections, 1);
	ferry_close(fd);
	free(c->scratch);
}

/* --- accepting -------------------------------------------------------------------------------- */

static void *accept_main(void *arg)
{
	struct ferry_criu *s = arg;

	while (ferry_net_wait(ferry_gate_fd(s->gate), POLLIN, -1, s->stop_fd) != -ECANCELED) {
		char name[FERRY_GATE_NAME_MAX] = "";
		int fd = ferry_gate_accept(s->gate, name);

		for (uint32_t i = 0; i < MAX_CONNECTIONS; i++)
			if (s->conns[i].in_use && atomic_load(&s->conns[i].has_ended))
				end_conn(&s->conns[i]);
		if (fd >= 0) {
			begin_conn(s, fd, name);
		} else if (fd != -EAGAIN) {
			ferry_warn(s->config.log, "accept: %s", strerror(-fd));
			if (ferry_net_wait(s->stop_fd, POLLIN, PAUSE_MS, -1) != -ETIMEDOUT)
				break;
		}
	}
	return NULL;
}

/* --- life ------------------------------------------------------------------------------------- */

int ferry_criu_start(struct ferry_criu **out, const struct ferry_criu_config *config, int listen_fd,
		     struct ferry_failure *f)
{
	struct ferry_criu *s = calloc(1, sizeof(*s));
	int rc;

	if (!s) {
		ferry_close(listen_fd);
		return ferry_fail_errno(f, FERRY_REFUSE, -ENOMEM, "page server");
	}
	s->config = *config;
	s->listen_fd = listen_fd;
	for (uint32_t i = 0; i < config->n_sources; i++)
		s->copies |= ferry_source_copies(config->sources[i]);
	s->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	rc = s->stop_fd < 0 ? ferry_fail_errno(f, FERRY_REFUSE, -errno, "eventfd")
			    : ferry_gate_open(&s->gate, listen_fd, NULL, config->log, f);
	if (!rc) {
		rc = -pthread_create(&s->thread, NULL, accept_main, s);
		s->is_running = !rc;
		if (rc < 0)
			ferry_fail_errno(f, FERRY_REFUSE, rc, "cannot start a thread");
	}
	if (rc < 0)
		ferry_criu_free(s);
	else
		*out = s;
	return rc;
}

void ferry_criu_stats(const struct ferry_criu *c, struct ferry_criu_stats *out)
{
	*out = (struct ferry_criu_stats){
		.pages = atomic_load(&c->pages),
		.wire_bytes = atomic_load(&c->wire_bytes),
		.requests = atomic_load(&c->requests),
		.n_connections = atomic_load(&c->n_connections),
		.n_connections_ever = atomic_load(&c->n_connections_ever),
		.n_unfinished = atomic_load(&c->n_unfinished),
		.n_closed = atomic_load(&c->n_closed),
		.n_failed = atomic_load(&c->n_failed),
	};
}

void ferry_criu_free(struct ferry_criu *c)
{
	if (!c)
		return;
	if (c->stop_fd >= 0)
		eventfd_write(c->stop_fd, 1);
	if (c->is_running)
		pthread_join(c->thread, NULL);
	for (uint32_t i = 0; i < MAX_CONNECTIONS; i++)
		end_conn(&c->conns[i]);
	ferry_gate_close(c->gate);
	ferry_close(c->listen_fd);
	ferry_close(c->stop_fd);
	free(c);
}
