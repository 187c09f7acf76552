/* SPDX-License-Identifier: Apache-2.0 */
/* Connections that were accepted for a target: who may join its session, and as what. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/cleanup.h"
#include "uffd/engine.h"

int ferry_target_expect(struct ferry_target *t, const struct ferry_session_id *session,
			uint32_t n_bulk, struct ferry_failure *f)
{
	int rc;

	if (!n_bulk || n_bulk > FERRY_MAX_BULK)
		return ferry_fail(f, FERRY_REFUSE, -EINVAL, "%u bulk connections; 1 to %d are possible",
				  n_bulk, FERRY_MAX_BULK);
	pthread_mutex_lock(&t->lock);
	if (t->session_running) {
		pthread_mutex_unlock(&t->lock);
		return ferry_fail(f, FERRY_REFUSE, -EBUSY, "this target has a session already");
	}
	t->session = *session;
	t->n_bulk = n_bulk;
	t->expects = true;
	rc = -pthread_create(&t->session_thread, NULL, ferry_engine_session_thread, t);
	t->session_running = !rc;
	pthread_mutex_unlock(&t->lock);
	return rc < 0 ? ferry_fail_errno(f, FERRY_REFUSE, rc, "session thread") : 0;
}

/* May a connection join? Called with the lock held. */
static int judge(const struct ferry_target *t, const struct ferry_hello *h,
		 enum ferry_error_code *code, struct ferry_failure *f)
{
	*code = FERRY_ERROR_SESSION;
	if (!t->expects || memcmp(&h->session, &t->session, sizeof(h->session))) {
		*code = t->expects ? FERRY_ERROR_BUSY : FERRY_ERROR_SESSION;
		return ferry_fail(f, FERRY_REFUSE, -EPERM,
				  "this is another session than the one that is served here");
	}
	if (h->role == FERRY_ROLE_CONTROL) {
		if (h->epoch < t->next_epoch)
			return ferry_fail(f, FERRY_REFUSE, -ESTALE,
					  "epoch %u of the session is over; the next is %u", h->epoch,
					  t->next_epoch);
		return 0;
	}
	if (h->epoch + 1 != t->next_epoch)
		return ferry_fail(f, FERRY_REFUSE, -ESTALE,
				  "epoch %u has no control connection; open that first", h->epoch);
	if (h->role == FERRY_ROLE_BULK && h->index >= t->n_bulk)
		return ferry_fail(f, FERRY_REFUSE, -EINVAL, "%u bulk connections were announced",
				  t->n_bulk);
	if (h->role == FERRY_ROLE_BULK ? t->incoming.bulk[h->index] >= 0 : t->incoming.urgent >= 0)
		return ferry_fail(f, FERRY_REFUSE, -EEXIST, "this connection is open already");
	return 0;
}

/* Put an open channel where it belongs. Called with the lock held. */
static void join(struct ferry_target *t, struct ferry_channel *c, const struct ferry_hello *h)
{
	struct ferry_engine_link *in = &t->incoming;

	switch (h->role) {
	case FERRY_ROLE_CONTROL:
		ferry_engine_link_close(in);
		in->epoch = h->epoch;
		in->control = *c;
		in->has_control = true;
		t->next_epoch = h->epoch + 1;
		/* The source began anew: what is open now is over. */
		if (!t->broken) {
			t->broken = true;
			ferry_fail(&t->broken_why, FERRY_LINK, -ESTALE,
				   "the source opened the session anew");
		}
		break;
	case FERRY_ROLE_URGENT:
		in->urgent = ferry_channel_take(c, &in->urgent_connection);
		break;
	default:
		in->bulk[h->index] = ferry_channel_take(c, &in->bulk_connection[h->index]);
		break;
	}
}

int ferry_target_adopt_conn(struct ferry_target *t, int fd, const struct ferry_hello *hello,
			    struct ferry_failure *f)
{
	struct ferry_hello theirs = *hello;
	enum ferry_error_code code;
	struct ferry_channel c;
	int rc;

	theirs.withheld = t->withheld;

	/* Under the lock as a whole: two connections for one place must not both be welcomed. The
	 * welcome is a few bytes into an empty socket buffer and doesn't wait. */
	pthread_mutex_lock(&t->lock);
	rc = judge(t, hello, &code, f);
	if (rc < 0) {
		pthread_mutex_unlock(&t->lock);
		ferry_channel_refuse(fd, code, f->text);
		ferry_close(fd);
		return rc;
	}
	rc = ferry_channel_welcome(&c, t->tls, fd, FERRY_SIDE_TARGET, &theirs, f);
	if (!rc)
		join(t, &c, hello);
	pthread_mutex_unlock(&t->lock);
	if (!rc)
		ferry_engine_kick(t->session_kick);
	return rc;
}
