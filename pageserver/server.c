/* SPDX-License-Identifier: Apache-2.0 */
#include "pageserver/server.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>

#include "base/cleanup.h"
#include "base/net.h"
#include "pageserver/server_internal.h"
#include "protocol/checksum.h"

/* --- the sources, as sessions see them ---------------------------------------------------- */

static bool pages_copies(void *ctx, uint32_t region)
{
	const struct ferry_server *s = ctx;

	return ferry_source_copies(s->config.sources[region]);
}

static int pages_get(void *ctx, const struct ferry_run *run, void *scratch, const void **data)
{
	const struct ferry_server *s = ctx;

	return ferry_source_pages(s->config.sources[run->region], run->first_page, run->n_pages,
				  scratch, data);
}

static int pages_is_zero(void *ctx, uint32_t region, uint64_t page, const void *data)
{
	const struct ferry_server *s = ctx;

	return ferry_source_is_zero(s->config.sources[region], page, data);
}

/* Of all regions together; 0 when one of them has none. */
static uint64_t identity(const struct ferry_server *s)
{
	uint64_t all = 0;

	for (uint32_t i = 0; i < s->config.n_sources; i++) {
		uint64_t one = ferry_source_identity(s->config.sources[i]);

		if (!one)
			return 0;
		all = ferry_checksum(all, &one, sizeof(one));
	}
	return all;
}

static int make_layout(struct ferry_server *s, struct ferry_failure *f)
{
	struct ferry_layout *l = &s->pages.layout;
	struct ferry_message m = {.type = FERRY_FRAME_LAYOUT};
	uint8_t out[CONN_OUT_BYTES];

	for (uint32_t i = 0; i < s->config.n_sources; i++) {
		const struct ferry_source *source = s->config.sources[i];

		l->regions[i] = *ferry_source_desc(source);
		l->regions[i].id = i;
		for (uint32_t j = 0; j < i; j++)
			if (!strcmp(l->regions[j].name, l->regions[i].name))
				return ferry_fail(f, FERRY_REFUSE, -EINVAL,
						  "two regions are named '%s'; give each another "
						  "name",
						  l->regions[i].name);
		if (ferry_source_copies(source))
			s->scratch_page_bytes =
				FERRY_MAX(s->scratch_page_bytes, (size_t)l->regions[i].page_bytes);
	}
	l->n_regions = s->config.n_sources;
	l->memory_id = identity(s);
	m.layout = *l;
	if (ferry_message_encode(&m, out, sizeof(out) - CONN_REPLY_BYTES) < 0)
		return ferry_fail(f, FERRY_REFUSE, -EINVAL, "the regions' names are too long");
	return 0;
}

static int check_config(const struct ferry_server_config *c, struct ferry_failure *f)
{
	if (!c->n_sources || c->n_sources > FERRY_MAX_REGIONS)
		return ferry_fail(f, FERRY_REFUSE, -EINVAL, "%u page sources; 1 to %d are possible",
				  c->n_sources, FERRY_MAX_REGIONS);
	if (c->state_bytes > FERRY_MAX_STATE_BYTES)
		return ferry_fail(f, FERRY_REFUSE, -EINVAL,
				  "%u bytes of state; at most %u are possible", c->state_bytes,
				  FERRY_MAX_STATE_BYTES);
	return 0;
}

/* --- life --------------------------------------------------------------------------------- */

static int init(struct ferry_server *s, struct ferry_failure *f)
{
	int rc = make_layout(s, f);

	if (rc < 0)
		return rc;
	s->pages.ctx = s;
	s->pages.copies = pages_copies;
	s->pages.get = pages_get;
	s->pages.is_zero = pages_is_zero;
	s->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	s->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	s->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (s->wake_fd < 0 || s->stop_fd < 0 || s->event_fd < 0)
		return ferry_fail_errno(f, FERRY_REFUSE, -errno, "eventfd");
	if (ferry_pages_init(&s->pages) < 0 || ferry_arena_init(&s->arena) < 0)
		return ferry_fail_errno(f, FERRY_REFUSE, -ENOMEM, "page server");
	return ferry_loop_init(s, f);
}

static void fini(struct ferry_server *s)
{
	ferry_arena_fini(&s->arena);
	ferry_pages_fini(&s->pages);
	ferry_close(s->wake_fd);
	ferry_close(s->stop_fd);
	ferry_close(s->event_fd);
	pthread_mutex_destroy(&s->lock);
	sem_destroy(&s->enabled);
	free(s);
}

int ferry_server_new(struct ferry_server **out, const struct ferry_server_config *config,
		     struct ferry_failure *f)
{
	struct ferry_server *s;
	int rc = check_config(config, f);

	if (rc < 0)
		return rc;
	s = calloc(1, sizeof(*s));
	if (!s)
		return ferry_fail_errno(f, FERRY_REFUSE, -ENOMEM, "page server");
	s->config = *config;
	if (!s->config.max_sessions)
		s->config.max_sessions = MAX_SESSIONS;
	s->log = config->log;
	s->wake_fd = s->stop_fd = s->event_fd = -1;
	pthread_mutex_init(&s->lock, NULL);
	sem_init(&s->enabled, 0, 0);
	rc = init(s, f);
	if (rc < 0) {
		fini(s);
		return rc;
	}
	*out = s;
	return 0;
}

int ferry_server_listen(struct ferry_server *s, int listen_fd)
{
	struct ferry_listener *l = &s->listeners[s->n_listeners];
	int rc = -ENOSPC;

	if (s->n_listeners < MAX_LISTENERS)
		rc = ferry_gate_open(&l->gate, listen_fd, s->config.tls, s->log, NULL);
	if (rc < 0) {
		ferry_close(listen_fd);
		return rc;
	}
	l->fd = listen_fd;
	s->n_listeners++;
	return 0;
}

void ferry_server_hold(struct ferry_server *s)
{
	s->held = true;
}

/* Until the holes are known, any page may hold data: then it is looked at when it is asked for. */
static void assume_data(struct ferry_server *s)
{
	for (uint32_t i = 0; i < s->config.n_sources; i++)
		ferry_bitmap_set_range(&s->pages.data[i], 0, s->pages.data[i].n_bits);
}

static int find_holes(struct ferry_server *s, uint32_t region, struct ferry_failure *f)
{
	uint64_t n_pages = s->pages.layout.regions[region].n_pages, from, first, end = 0;

	while (end < n_pages) {
		int rc;

		from = end;
		rc = ferry_source_next_data(s->config.sources[region], from, &first, &end);
		if (rc < 0)
			return ferry_fail_errno(f, FERRY_REFUSE, rc, "region '%s'",
						s->pages.layout.regions[region].name);
		ferry_bitmap_clear_range(&s->pages.data[region], from, first - from);
	}
	return 0;
}

int ferry_server_serve(struct ferry_server *s, struct ferry_failure *f)
{
	if (atomic_load(&s->serving))
		return 0;
	if (!s->held)
		assume_data(s);
	atomic_store_explicit(&s->serving, true, memory_order_release);
	ferry_loop_wake(s);
	for (uint32_t i = 0; i < s->config.n_sources; i++) {
		int rc = find_holes(s, i, f);

		if (rc < 0)
			return rc;
	}
	atomic_store_explicit(&s->surveyed, true, memory_order_release);
	ferry_loop_wake(s);
	return 0;
}

int ferry_server_start(struct ferry_server *s, struct ferry_failure *f)
{
	int rc;

	if (s->running)
		return 0;
	if (s->held)
		assume_data(s);
	rc = s->held ? 0 : ferry_server_serve(s, f);
	if (rc < 0)
		return rc;
	rc = pthread_create(&s->thread, NULL, ferry_loop_run, s);
	if (rc)
		return ferry_fail_errno(f, FERRY_REFUSE, -rc, "cannot start a thread");
	while (sem_wait(&s->enabled) < 0)
		;
	if (s->enable_rc < 0) {
		pthread_join(s->thread, NULL);
		return ferry_fail_errno(f, FERRY_REFUSE, s->enable_rc, "io_uring");
	}
	s->running = true;
	return 0;
}

static void close_listeners(struct ferry_server *s)
{
	for (uint32_t i = 0; i < s->n_listeners; i++) {
		ferry_gate_close(s->listeners[i].gate);
		ferry_close(s->listeners[i].fd);
	}
	s->n_listeners = 0;
}

void ferry_server_stop(struct ferry_server *s)
{
	if (!s->running)
		return;
	ferry_dialers_stop(s);
	atomic_store(&s->stopping, true);
	ferry_loop_wake(s);
	pthread_join(s->thread, NULL);
	s->running = false;
	close_listeners(s);
}

void ferry_server_free(struct ferry_server *s)
{
	if (!s)
		return;
	ferry_server_stop(s);
	ferry_dialers_free(s);
	ferry_loop_fini(s);
	close_listeners(s);
	fini(s);
}

void ferry_server_push_first(struct ferry_server *s, bool first)
{
	atomic_store(&s->no_first, !first);
}

void ferry_server_arrived(struct ferry_server *s)
{
	if (atomic_exchange(&s->awaits, false))
		ferry_loop_wake(s);
}

bool ferry_server_has(struct ferry_server *s, const struct ferry_run *run, bool want)
{
	return ferry_source_has(s->config.sources[run->region], run->first_page, run->n_pages,
				want);
}

/* --- what the owner gets to know ---------------------------------------------------------- */

void ferry_server_stats(const struct ferry_server *server, struct ferry_server_stats *out)
{
	struct ferry_server *s = (struct ferry_server *)server; /* for the lock */

	*out = (struct ferry_server_stats){
		.n_sessions = atomic_load(&s->n.n_sessions),
		.n_sessions_ever = atomic_load(&s->n.n_sessions_ever),
		.n_completed = atomic_load(&s->n.n_completed),
		.pages_urgent = atomic_load(&s->n.pages_urgent),
		.pages_pushed = atomic_load(&s->n.pages_pushed),
		.pages_zero = atomic_load(&s->n.pages_zero),
		.pages_lost = atomic_load(&s->n.pages_lost),
		.wire_bytes = atomic_load(&s->n.wire_bytes),
		.requests = atomic_load(&s->n.requests),
		.resumes = atomic_load(&s->n.resumes),
	};
	pthread_mutex_lock(&s->lock);
	out->pages_total = s->latest_total;
	out->pages_sent = s->latest_sent;
	if (s->latest)
		ferry_session_progress(s->latest->session, &out->pages_total, &out->pages_sent);
	pthread_mutex_unlock(&s->lock);
}

uint64_t ferry_server_memory_id(const struct ferry_server *s)
{
	return s->pages.layout.memory_id;
}

void ferry_server_pause(struct ferry_server *s, bool paused)
{
	atomic_store_explicit(&s->paused, paused, memory_order_relaxed);
}

void ferry_server_condemn(struct ferry_server *s, const char *why)
{
	pthread_mutex_lock(&s->lock);
	if (!atomic_load(&s->condemned)) {
		snprintf(s->condemned_why, sizeof(s->condemned_why), "%s", why);
		atomic_store(&s->condemned, true);
	}
	pthread_mutex_unlock(&s->lock);
	ferry_loop_wake(s);
}

int ferry_server_thread(pthread_t *thread, size_t stack_bytes, void *(*main)(void *), void *arg)
{
	pthread_attr_t attr;
	int rc;

	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, stack_bytes);
	rc = pthread_create(thread, &attr, main, arg);
	pthread_attr_destroy(&attr);
	/* Thread-local memory of a sanitizer may not fit such a stack. */
	if (rc == EINVAL)
		rc = pthread_create(thread, NULL, main, arg);
	return -rc;
}

uint64_t ferry_server_withheld(const struct ferry_server *s)
{
	return s->config.no_checksum ? FERRY_FEATURE_CHECKSUM : 0;
}

/* The first one is told; the counter and the target's own log have the others. */
static void tell_lost(struct ferry_server *s, const struct ferry_run *run)
{
	char text[FERRY_MAX_TEXT];

	if (atomic_exchange(&s->lost_said, true))
		return;
	snprintf(text, sizeof(text),
		 "page %llu of region '%s' can't be read any more, and the target is told so",
		 (unsigned long long)run->first_page, s->pages.layout.regions[run->region].name);
	ferry_error(s->log, "%s", text);
	ferry_server_post(s, FERRY_SERVER_PAGES_LOST, FERRY_LOST, -EIO, text);
}

int ferry_server_finish_piece(struct ferry_server *s, struct ferry_page_run *piece, const void *data,
			      uint64_t features, bool is_urgent)
{
	_Atomic uint64_t *n = piece->encoding == FERRY_ENCODING_ZERO   ? &s->n.pages_zero
			      : piece->encoding == FERRY_ENCODING_LOST ? &s->n.pages_lost
			      : is_urgent			       ? &s->n.pages_urgent
								       : &s->n.pages_pushed;
	uint64_t seed = ferry_checksum_seed(piece);
	int rc = 0;

	piece->has_checksum = features & FERRY_FEATURE_CHECKSUM;
	if (piece->has_checksum && data)
		rc = ferry_source_checksum(s->config.sources[piece->run.region],
					   piece->run.first_page, piece->run.n_pages, data, seed,
					   &piece->checksum);
	else if (piece->has_checksum)
		piece->checksum = ferry_checksum(seed, NULL, 0);
	if (rc < 0)
		return rc;
	atomic_fetch_add_explicit(n, piece->run.n_pages, memory_order_relaxed);
	if (piece->encoding == FERRY_ENCODING_LOST)
		tell_lost(s, &piece->run);
	return 0;
}

void ferry_server_post(struct ferry_server *s, enum ferry_server_event event,
		       enum ferry_consequence c, int err, const char *text)
{
	struct ferry_event *e;

	pthread_mutex_lock(&s->lock);
	if (s->n_events == N_EVENTS) {
		/* Nobody listens; the oldest news is the least worth. */
		s->first_event = (s->first_event + 1) % N_EVENTS;
		s->n_events--;
	}
	e = &s->events[(s->first_event + s->n_events++) % N_EVENTS];
	e->event = event;
	e->failure = (struct ferry_failure){.consequence = c, .err = err};
	snprintf(e->failure.text, sizeof(e->failure.text), "%s", text);
	eventfd_write(s->event_fd, 1);
	pthread_mutex_unlock(&s->lock);
}

static bool take_event(struct ferry_server *s, struct ferry_event *out)
{
	bool any;

	pthread_mutex_lock(&s->lock);
	any = s->n_events;
	if (any) {
		*out = s->events[s->first_event];
		s->first_event = (s->first_event + 1) % N_EVENTS;
		s->n_events--;
	} else {
		eventfd_t n;

		eventfd_read(s->event_fd, &n);
	}
	pthread_mutex_unlock(&s->lock);
	return any;
}

int ferry_server_wait(struct ferry_server *s, int timeout_ms, int stop_fd, struct ferry_failure *f)
{
	uint64_t end = ferry_now_ns() + (uint64_t)timeout_ms * FERRY_NS_PER_MS;
	struct ferry_event e;

	for (;;) {
		int left = timeout_ms, rc;

		if (take_event(s, &e)) {
			if (e.failure.err && f)
				*f = e.failure;
			return (int)e.event;
		}
		if (timeout_ms >= 0) {
			uint64_t now = ferry_now_ns();

			left = now >= end
				       ? 0
				       : (int)((end - now + FERRY_NS_PER_MS - 1) / FERRY_NS_PER_MS);
		}
		rc = ferry_net_wait(s->event_fd, POLLIN, left, stop_fd);
		if (rc == -ETIMEDOUT)
			return FERRY_SERVER_NOTHING;
		if (rc < 0)
			return rc;
	}
}

bool ferry_server_is_broken(const struct ferry_server *s)
{
	return atomic_load(&s->broken);
}

int ferry_server_events_fd(const struct ferry_server *s)
{
	return s->event_fd;
}
