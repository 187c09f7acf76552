/* SPDX-License-Identifier: Apache-2.0 */
/* The public face of the page server. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/net.h"
#include "base/util.h"
#include "lib/handle.h"
#include "pageserver/server.h"

/* What a handle, a struct pageferry_server *, stands for. */
struct serving {
	struct ferry_server *server;			 /* owned */
	struct ferry_source *sources[FERRY_MAX_REGIONS]; /* owned */
	uint32_t n_sources;
	void *state; /* owned */
	struct ferry_lib_log log;
	int stop_fd;			   /* eventfd, owned: ends a wait */
	char address[FERRY_ADDR_TEXT_MAX]; /* empty when it isn't known */
	pthread_mutex_t lock;		   /* of what follows */
	bool serving, stopped;
};

_Static_assert(FERRY_ADDR_TEXT_MAX <= PAGEFERRY_ADDRESS_MAX, "documented as enough");

#define OPTIONS_LEAST offsetof(struct pageferry_server_options, flags)
#define STATS_LEAST   offsetof(struct pageferry_server_stats, pages_lost)

static int open_source(struct ferry_source **out, const struct pageferry_region *in,
		       const struct ferry_lib_region *r, uint32_t i, struct ferry_failure *f)
{
	int fd;

	if (!r->readable)
		return ferry_fail(f, FERRY_REFUSE, -EFAULT, "region %u is not readable", i);
	if (!in->has_fd)
		return ferry_source_open_memory(out, r->desc.name, in->start, in->bytes,
						r->desc.page_bytes, f);
	fd = fcntl(in->fd, F_DUPFD_CLOEXEC, 0);
	if (fd < 0)
		return ferry_fail_errno(f, FERRY_REFUSE, -errno, "region %u: fd %d", i, in->fd);
	return ferry_source_open_fd(out, r->desc.name, fd, in->offset, in->bytes,
				    r->desc.page_bytes, f);
}

static int open_sources(struct serving *s, const struct pageferry_region *regions, uint32_t n,
			size_t region_size, struct ferry_failure *f)
{
	_cleanup_free_ struct pageferry_region *in = NULL;
	_cleanup_free_ struct ferry_lib_region *r = NULL;
	int rc;

	in = calloc(FERRY_MAX_REGIONS, sizeof(*in));
	r = calloc(FERRY_MAX_REGIONS, sizeof(*r));
	if (!in || !r)
		return ferry_fail_errno(f, FERRY_REFUSE, -ENOMEM, "regions");
	rc = ferry_lib_regions_take(in, regions, n, region_size, f);
	if (!rc)
		rc = ferry_lib_regions(r, in, n, f);
	for (uint32_t i = 0; !rc && i < n; i++) {
		/* On the wire each has a name. */
		if (!r[i].desc.name[0])
			snprintf(r[i].desc.name, sizeof(r[i].desc.name), "region%u", i);
		rc = open_source(&s->sources[i], &in[i], &r[i], i, f);
		if (!rc)
			s->n_sources++;
	}
	return rc;
}

/* Return: a listening socket; the address in s->address. */
static int listen_on(struct serving *s, const char *text, struct ferry_failure *f)
{
	_cleanup_close_ int fd = -1;
	struct ferry_addr asked, real;
	int rc = ferry_addr_parse(&asked, text, f);

	if (rc < 0)
		return rc;
	fd = ferry_net_listen(&asked, f);
	if (fd < 0)
		return fd;
	rc = ferry_net_local(fd, &asked, &real);
	if (rc < 0)
		return ferry_fail_errno(f, FERRY_REFUSE, rc, "listening on %s", text);
	ferry_addr_format(&real, s->address);
	return TAKE_FD(fd);
}

static int start(struct serving *s, const struct pageferry_server_options *o, int listen_fd,
		 struct ferry_failure *f)
{
	struct ferry_server_config config = {.sources = s->sources,
					     .n_sources = s->n_sources,
					     .state = s->state,
					     .state_bytes = o->state_bytes,
					     .max_sessions = o->max_sessions,
					     .max_bytes_per_second = o->max_bytes_per_second,
					     .no_checksum = o->flags & PAGEFERRY_NO_CHECKSUM,
					     .log = s->log.log.sink ? &s->log.log : NULL};
	sigset_t saved;
	int rc = ferry_server_new(&s->server, &config, f);

	if (rc < 0) {
		ferry_close(listen_fd);
		return rc;
	}
	rc = ferry_server_listen(s->server, listen_fd);
	if (rc < 0)
		return ferry_fail_errno(f, FERRY_REFUSE, rc, "listening");
	if (o->hold)
		ferry_server_hold(s->server);
	s->serving = !o->hold;
	ferry_lib_signals_block(&saved);
	rc = ferry_server_start(s->server, f);
	ferry_lib_signals_restore(&saved);
	return rc;
}

/* Is @fd what connections can be accepted from? */
static int check_listen_fd(int fd, struct ferry_failure *f)
{
	int type = 0, listens = 0;
	socklen_t size = sizeof(type);

	if (fd < 0)
		return ferry_fail(f, FERRY_REFUSE, -EINVAL,
				  "options: listen_fd is %d, which is no descriptor", fd);
	if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size) < 0)
		return ferry_fail(f, FERRY_REFUSE, -EINVAL,
				  "options: listen_fd %d is %s; give a stream socket that listens",
				  fd, errno == EBADF ? "not open" : "no socket");
	if (type != SOCK_STREAM)
		return ferry_fail(f, FERRY_REFUSE, -EINVAL,
				  "options: listen_fd %d is no stream socket; give TCP or a UNIX "
				  "stream socket that listens",
				  fd);
	size = sizeof(listens);
	if (getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &size) < 0 || !listens)
		return ferry_fail(f, FERRY_REFUSE, -EINVAL,
				  "options: listen_fd %d does not listen; call bind() and listen() "
				  "first",
				  fd);
	return 0;
}

static int check_options(const struct pageferry_server_options *o, struct ferry_failure *f)
{
	int rc;

	if (!o->listen == !o->has_listen_fd)
		return ferry_fail(f, FERRY_REFUSE, -EINVAL,
				  "options: an address to listen on or a socket that listens, one "
				  "of the two");
	rc = o->has_listen_fd ? check_listen_fd(o->listen_fd, f) : 0;
	if (rc < 0)
		return rc;
	if (o->state_bytes > FERRY_MAX_STATE_BYTES || (o->state_bytes && !o->state))
		return ferry_fail(f, FERRY_REFUSE, -EINVAL,
				  "options: %u bytes of state; at most %d, and where they are",
				  o->state_bytes, FERRY_MAX_STATE_BYTES);
	return ferry_lib_flags(o->flags, PAGEFERRY_NO_CHECKSUM, f);
}

/* @listen_fd: given; -1: listen on the address in @o */
static int set_up(struct serving *s, const struct pageferry_region *regions, uint32_t n_regions,
		  const struct pageferry_server_options *o, int listen_fd, struct ferry_failure *f)
{
	_cleanup_close_ int fd = listen_fd;
	int rc;

	s->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (s->stop_fd < 0)
		return ferry_fail_errno(f, FERRY_REFUSE, -errno, "eventfd");
	if (o->state_bytes) {
		s->state = malloc(o->state_bytes);
		if (!s->state)
			return ferry_fail_errno(f, FERRY_REFUSE, -ENOMEM, "state");
		memcpy(s->state, o->state, o->state_bytes);
	}
	rc = open_sources(s, regions, n_regions, o->region_size, f);
	if (rc < 0)
		return rc;
	if (!o->has_listen_fd) {
		fd = listen_on(s, o->listen, f);
		if (fd < 0)
			return fd;
	}
	return start(s, o, TAKE_FD(fd), f);
}

/* The socket that was given with @o, whatever else is wrong with them; -1: none. */
static int given_fd(const struct pageferry_server_options *o)
{
	return o && o->size >= OPTIONS_LEAST && o->has_listen_fd ? o->listen_fd : -1;
}

static void serving_free(struct serving *s)
{
	if (s->server)
		ferry_server_free(s->server);
	for (uint32_t i = 0; i < s->n_sources; i++)
		ferry_source_free(s->sources[i]);
	ferry_close(s->stop_fd);
	pthread_mutex_destroy(&s->lock);
	free(s->state);
	free(s);
}

/* For ferry_lib_retire(). */
static void end_calls(void *object)
{
	struct serving *s = object;
	uint64_t one = 1;

	(void)!write(s->stop_fd, &one, sizeof(one));
}

int pageferry_server_new(struct pageferry_server **out, const struct pageferry_region *regions,
			 uint32_t n_regions, const struct pageferry_server_options *options,
			 struct pageferry_error *e)
{
	_cleanup_close_ int fd = given_fd(options);
	struct pageferry_server_options o;
	struct ferry_failure f = {0};
	void *handle, *object;
	struct serving *s;
	int rc;

	if (!out || !options)
		return ferry_lib_tell(e, &f,
				      ferry_fail(&f, FERRY_REFUSE, -EINVAL, "no %s given",
						 out ? "options" : "room for the result"));
	rc = ferry_lib_options(&o, sizeof(o), OPTIONS_LEAST, options, &f);
	if (!rc)
		rc = check_options(&o, &f);
	if (rc < 0)
		return ferry_lib_tell(e, &f, rc);
	s = calloc(1, sizeof(*s));
	if (!s || ferry_lib_handle_new(&handle, FERRY_LIB_SERVER, s, &s->log) < 0) {
		free(s);
		return ferry_lib_tell(e, &f, ferry_fail_errno(&f, FERRY_REFUSE, -ENOMEM, "server"));
	}
	s->stop_fd = -1;
	pthread_mutex_init(&s->lock, NULL);
	ferry_lib_log_init(&s->log, o.log, o.log_ctx, o.log_level);
	rc = set_up(s, regions, n_regions, &o, TAKE_FD(fd), &f);
	if (rc < 0) {
		(void)ferry_lib_retire(&object, handle, FERRY_LIB_SERVER, end_calls);
		serving_free(s);
		return ferry_lib_tell(e, &f, rc);
	}
	*out = handle;
	return 0;
}

int pageferry_server_address(const struct pageferry_server *handle, char *out, size_t out_bytes)
{
	_cleanup_(ferry_lib_unpin) struct ferry_lib_pin pin = {0};
	const struct serving *s;
	int rc = ferry_lib_pin(&pin, handle, FERRY_LIB_SERVER, 0, NULL);

	if (rc < 0)
		return rc;
	if (!out)
		return -EINVAL;
	s = pin.object;
	if (!s->address[0])
		return -ENOENT;
	if (strlen(s->address) >= out_bytes)
		return -ENOSPC;
	memcpy(out, s->address, strlen(s->address) + 1);
	return 0;
}

int pageferry_server_serve(struct pageferry_server *handle, struct pageferry_error *e)
{
	_cleanup_(ferry_lib_unpin) struct ferry_lib_pin pin = {0};
	struct ferry_failure f = {0};
	struct serving *s;
	int rc = ferry_lib_pin(&pin, handle, FERRY_LIB_SERVER, 0, &f);

	if (rc < 0)
		return ferry_lib_tell(e, &f, rc);
	s = pin.object;
	pthread_mutex_lock(&s->lock);
	if (s->stopped)
		rc = ferry_fail(&f, FERRY_REFUSE, -ESHUTDOWN, "the server was stopped");
	else if (s->serving)
		rc = ferry_fail(&f, FERRY_REFUSE, -EALREADY, "the memory is served already");
	else
		rc = ferry_server_serve(s->server, &f);
	s->serving |= !rc;
	pthread_mutex_unlock(&s->lock);
	return ferry_lib_tell(e, &f, rc);
}

int pageferry_server_fd(const struct pageferry_server *handle)
{
	_cleanup_(ferry_lib_unpin) struct ferry_lib_pin pin = {0};
	int rc = ferry_lib_pin(&pin, handle, FERRY_LIB_SERVER, 0, NULL);

	return rc < 0 ? rc : ferry_server_events_fd(((struct serving *)pin.object)->server);
}

static enum pageferry_event event_of(int event)
{
	switch (event) {
	case FERRY_SERVER_COMPLETED:
		return PAGEFERRY_COMPLETE;
	case FERRY_SERVER_LINK_LOST:
		return PAGEFERRY_LINK_LOST;
	case FERRY_SERVER_FAILED:
	case FERRY_SERVER_DAMAGED:
	case FERRY_SERVER_PAGES_LOST:
		return PAGEFERRY_FAILED;
	default:
		return PAGEFERRY_NOTHING;
	}
}

int pageferry_server_wait(struct pageferry_server *handle, int timeout_ms,
			  struct pageferry_error *e)
{
	_cleanup_(ferry_lib_unpin) struct ferry_lib_pin pin = {0};
	struct ferry_failure f = {0};
	struct serving *s;
	int rc = ferry_lib_pin(&pin, handle, FERRY_LIB_SERVER, FERRY_LIB_WAIT, &f);

	if (!rc && timeout_ms < -1)
		rc = -EINVAL;
	if (rc < 0)
		return ferry_lib_tell(e, &f, rc);
	s = pin.object;
	rc = ferry_server_wait(s->server, timeout_ms, s->stop_fd, &f);
	if (rc == -ECANCELED)
		rc = ferry_fail(&f, FERRY_REFUSE, -ESHUTDOWN, "the server was stopped");
	if (rc < 0)
		return ferry_lib_tell(e, &f, rc);
	ferry_lib_tell_event(e, &f);
	return (int)event_of(rc);
}

int pageferry_server_stats(const struct pageferry_server *handle,
			   struct pageferry_server_stats *out)
{
	_cleanup_(ferry_lib_unpin) struct ferry_lib_pin pin = {0};
	struct pageferry_server_stats mine;
	struct ferry_server_stats st;
	int rc = ferry_lib_pin(&pin, handle, FERRY_LIB_SERVER, 0, NULL);

	if (rc < 0)
		return rc;
	if (!out)
		return -EINVAL;
	ferry_server_stats(((struct serving *)pin.object)->server, &st);
	mine = (struct pageferry_server_stats){.n_sessions = st.n_sessions,
					       .n_completed = st.n_completed,
					       .resumes = st.resumes,
					       .pages_urgent = st.pages_urgent,
					       .pages_pushed = st.pages_pushed,
					       .pages_zero = st.pages_zero,
					       .wire_bytes = st.wire_bytes,
					       .requests = st.requests,
					       .pages_total = st.pages_total,
					       .pages_sent = st.pages_sent,
					       .pages_lost = st.pages_lost};
	return ferry_lib_result(out, &mine, sizeof(mine), STATS_LEAST);
}

int pageferry_server_stop(struct pageferry_server *handle)
{
	_cleanup_(ferry_lib_unpin) struct ferry_lib_pin pin = {0};
	struct serving *s;
	int rc = ferry_lib_pin(&pin, handle, FERRY_LIB_SERVER, 0, NULL);

	if (rc < 0)
		return rc;
	s = pin.object;
	pthread_mutex_lock(&s->lock);
	if (!s->stopped) {
		s->stopped = true;
		end_calls(s);
		ferry_server_stop(s->server);
	}
	pthread_mutex_unlock(&s->lock);
	return 0;
}

void pageferry_server_free(struct pageferry_server *handle)
{
	void *object;

	if (!ferry_lib_retire(&object, handle, FERRY_LIB_SERVER, end_calls))
		serving_free(object);
}
