/* SPDX-License-Identifier: Apache-2.0 */
#include "tls/tls.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>

#include "base/cleanup.h"
#include "tls/internal.h"

int ferry_tls_new(struct ferry_tls **out, const struct ferry_tls_config *config,
		  struct ferry_failure *f)
{
	struct ferry_tls *t = calloc(1, sizeof(*t));
	int rc = 0;

	if (!t)
		return ferry_fail_errno(f, FERRY_REFUSE, -ENOMEM, "TLS");
	t->accepts = config->accepts;
	t->is_foreign = config->is_foreign;
	t->uses_psk = config->psk;
	t->log = config->log;
	for (uint32_t i = 0; i < TLS_MAX_STORIES; i++)
		t->stories[i].fd = -1;
	pthread_mutex_init(&t->lock, NULL);
	if (config->hostname && !(t->hostname = strdup(config->hostname)))
		rc = -ENOMEM;
	if (config->peer && !(t->peer = strdup(config->peer)))
		rc = -ENOMEM;
	rc = rc < 0 ? ferry_fail_errno(f, FERRY_REFUSE, rc, "TLS")
		    : ferry_tls_context_init(t, config, f);
	if (rc < 0) {
		ferry_tls_free(t);
		return rc;
	}
	*out = t;
	return 0;
}

void ferry_tls_free(struct ferry_tls *t)
{
	if (!t)
		return;
	pthread_mutex_lock(&t->lock);
	for (struct ferry_relay *r = t->relays; r; r = r->next)
		ferry_relay_stop(r);
	pthread_mutex_unlock(&t->lock);
	ferry_tls_reap(t, true);
	ferry_tls_context_fini(t);
	pthread_mutex_destroy(&t->lock);
	free(t->hostname);
	free(t->peer);
	free(t);
}

/* --- dialing ---------------------------------------------------------------------------------- */

static void dial_done(struct ferry_relay *r, void *ctx)
{
	/* Whoever waits takes the lock before it closes the descriptor. */
	pthread_mutex_lock(&r->tls->lock);
	eventfd_write(*(int *)ctx, 1);
	pthread_mutex_unlock(&r->tls->lock);
}

/* Waits for the handshake, whose time is limited. */
static int await(struct ferry_relay *r, int done_fd, int stop_fd, struct ferry_failure *f)
{
	int rc = ferry_net_wait(done_fd, POLLIN, -1, stop_fd), fd = -1;

	if (rc < 0) {
		/* It still writes to done_fd. */
		ferry_relay_stop(r);
		(void)ferry_net_wait(done_fd, POLLIN, -1, -1);
	}
	pthread_mutex_lock(&r->tls->lock);
	fd = r->app_fd;
	if (!rc && fd < 0) {
		rc = r->failure.err;
		if (f)
			*f = r->failure;
	}
	r->is_watched = false;
	pthread_mutex_unlock(&r->tls->lock);
	if (rc < 0) {
		ferry_close(fd);
		return rc;
	}
	return fd;
}

static int shake_hands(struct ferry_tls *t, int fd, const struct ferry_addr *a,
		       enum ferry_net_class class, int stop_fd, struct ferry_failure *f)
{
	_cleanup_close_ int done_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	char name[FERRY_ADDR_TEXT_MAX];
	struct ferry_relay *r;
	int rc;

	if (done_fd < 0) {
		rc = ferry_fail_errno(f, FERRY_LINK, -errno, "TLS: eventfd");
		ferry_close(fd);
		return rc;
	}
	ferry_addr_format(a, name);
	rc = ferry_relay_start(&r, t, fd, a, NULL, class, name, dial_done, &done_fd, f);
	return rc < 0 ? rc : await(r, done_fd, stop_fd, f);
}

int ferry_tls_dial(struct ferry_tls *t, const struct ferry_addr *a, enum ferry_net_class class,
		   int timeout_ms, int stop_fd, struct ferry_failure *f)
{
	int fd = ferry_net_dial(a, timeout_ms, stop_fd, f);

	if (fd < 0)
		return fd;
	if (t)
		return shake_hands(t, fd, a, class, stop_fd, f);
	ferry_net_tune(fd, class);
	return fd;
}

/* --- connections that are there --------------------------------------------------------------- */

void ferry_tls_tune(struct ferry_tls *t, int fd, enum ferry_net_class class)
{
	ferry_net_tune(fd, class);
	if (!t)
		return;
	pthread_mutex_lock(&t->lock);
	/* The newest first: the number may have been another connection's before. */
	for (struct ferry_relay *r = t->relays; r; r = r->next) {
		if (r->app_fd != fd)
			continue;
		atomic_store(&r->class, class);
		eventfd_write(r->kick_fd, 1);
		break;
	}
	pthread_mutex_unlock(&t->lock);
}

void ferry_tls_keep_story(struct ferry_tls *t, int fd, const struct ferry_failure *f)
{
	pthread_mutex_lock(&t->lock);
	for (uint32_t i = 0; i < TLS_MAX_STORIES; i++) {
		if (t->stories[i].fd == fd)
			t->stories[i].fd = -1;
	}
	if (f) {
		t->stories[t->next_story] = (struct ferry_tls_story){fd, *f};
		t->next_story = (t->next_story + 1) % TLS_MAX_STORIES;
	}
	pthread_mutex_unlock(&t->lock);
}

bool ferry_tls_explain(struct ferry_tls *t, int fd, struct ferry_failure *f)
{
	bool found = false;

	if (!t || fd < 0)
		return false;
	pthread_mutex_lock(&t->lock);
	for (uint32_t i = 0; i < TLS_MAX_STORIES && !found; i++) {
		found = t->stories[i].fd == fd;
		if (found && f)
			*f = t->stories[i].failure;
	}
	pthread_mutex_unlock(&t->lock);
	return found;
}
