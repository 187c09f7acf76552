// SPDX-License-Identifier: Apache-2.0
#include "handler/image.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/net.h"
#include "handler/cache.h"
#include "pageserver/server.h"

#define MAX_VIEWS    16u
#define AGAIN_MIN_MS 50 /* until a page server that is not there is tried again */
#define AGAIN_MAX_MS 2000

struct ferry_image_view {
	uint32_t n_users;
	struct ferry_vmm_message layout;		 /* addresses don't count */
	struct ferry_server *server;			 /* owned */
	struct ferry_source *sources[FERRY_MAX_REGIONS]; /* owned */
	uint32_t n_sources;
	struct ferry_replay_lists lists; /* owned */
	int socket_fd; /* owned; the socket's inode, without a name in any folder */
	struct ferry_addr address;
	pthread_t survey; /* finds the holes */
	bool has_survey;
	const struct ferry_log *log;
};

struct ferry_image {
	struct ferry_image_config config;
	struct ferry_cache *cache; /* owned; NULL for a file */
	int fd;			   /* borrowed: the file, or the cache's */
	uint64_t bytes;
	struct timespec written; /* the file, when it was opened */
	struct ferry_image_sets sets;
	_Atomic bool is_ready; /* what is above does not change any more */
	int ready_fd;	       /* owned; eventfd */
	pthread_t opener;      /* of a patient image */
	bool has_opener;
	int stop_fd;		   /* owned; eventfd: the opener ends */
	struct ferry_turns turns;  /* of all views' pushes */
	pthread_mutex_t bell_lock; /* of views' servers coming and going, for who rings */
	pthread_mutex_t lock;	   /* of what follows */
	struct ferry_image_view *views[MAX_VIEWS]; /* owned */
	struct ferry_failure missed;		   /* the last attempt; ->err 0 once it was told */
};

/* --- a view ----------------------------------------------------------------------------------- */

static void view_free(struct ferry_image_view *v)
{
	if (!v)
		return;
	if (v->has_survey)
		pthread_join(v->survey, NULL);
	ferry_server_free(v->server);
	for (uint32_t i = 0; i < v->n_sources; i++)
		ferry_source_free(v->sources[i]);
	free(v->lists.first);
	free(v->lists.last);
	ferry_close(v->socket_fd);
	free(v);
}

/* A listening socket that nobody can find: its file is gone, and we reach it by its descriptor. */
static int listen_in_private(struct ferry_image_view *v, struct ferry_failure *f)
{
	const char *tmp = getenv("TMPDIR");
	struct ferry_addr a = {.is_unix = true};
	char folder[sizeof(a.path) - 8];
	int fd, len;

	len = snprintf(folder, sizeof(folder), "%s/pageferry-XXXXXX", tmp && *tmp ? tmp : "/tmp");
	if (len >= (int)sizeof(folder) || !mkdtemp(folder))
		return ferry_fail_errno(f, FERRY_REFUSE, -errno,
					"a private folder in %.200s (TMPDIR says which)",
					tmp && *tmp ? tmp : "/tmp");
	snprintf(a.path, sizeof(a.path), "%s/pages", folder);
	fd = ferry_net_listen(&a, f);
	if (fd >= 0) {
		v->socket_fd = open(a.path, O_PATH | O_CLOEXEC);
		unlink(a.path);
	}
	rmdir(folder);
	if (fd >= 0 && v->socket_fd < 0) {
		ferry_close(fd);
		return ferry_fail_errno(f, FERRY_REFUSE, -EIO, "%s", a.path);
	}
	snprintf(a.path, sizeof(a.path), "/proc/self/fd/%d", v->socket_fd);
	v->address = a;
	return fd;
}

static bool cache_has(void *cache, uint64_t offset, uint64_t bytes, bool want)
{
	return ferry_cache_has(cache, offset, bytes, want);
}

static int open_source(struct ferry_image *i, struct ferry_image_view *v, uint32_t n,
		       struct ferry_failure *f)
{
	const struct ferry_vmm_region *r = &v->layout.regions[n];
	struct ferry_source_gate gate = {.has = cache_has, .ctx = i->cache};
	char name[32];
	int fd, rc;

	if (r->offset + r->bytes > i->bytes)
		return ferry_fail(
			f, FERRY_REFUSE, -ERANGE,
			"region %u ends at %llu of the snapshot, which has %llu bytes; is "
			"it the one that this VM was made of?",
			n, (unsigned long long)(r->offset + r->bytes),
			(unsigned long long)i->bytes);
	fd = fcntl(i->fd, F_DUPFD_CLOEXEC, 0);
	if (fd < 0)
		return ferry_fail_errno(f, FERRY_REFUSE, -errno, "the snapshot");
	snprintf(name, sizeof(name), "region%u", n);
	rc = i->cache ? ferry_source_open_gated(&v->sources[n], name, fd, r->offset, r->bytes,
						r->page_bytes, &gate, f)
		      : ferry_source_open_fd(&v->sources[n], name, fd, r->offset, r->bytes,
					     r->page_bytes, f);
	if (!rc)
		v->n_sources++;
	return rc;
}

static void *survey(void *view)
{
	struct ferry_image_view *v = view;
	struct ferry_failure f = {0};

	if (ferry_server_serve(v->server, &f) < 0)
		ferry_error(v->log, "%s", f.text);
	return NULL;
}

static int open_view(struct ferry_image *i, struct ferry_image_view *v, struct ferry_failure *f)
{
	struct ferry_server_config config = {
		.sources = v->sources,
		.n_sources = v->layout.n_regions,
		/* Ended sessions are remembered for a while; who connects is one of our VMs. */
		.max_sessions = 2 * i->config.max_vms + 16,
		.gives_up_lost = true,
		.max_bytes_per_second = i->cache ? 0 : i->config.max_bytes_per_second,
		.turns = &i->turns,
		.log = i->config.log,
	};
	int fd, rc = 0;

	for (uint32_t n = 0; n < v->layout.n_regions && !rc; n++)
		rc = open_source(i, v, n, f);
	if (!rc && i->sets.replay && ferry_replay_lists(i->sets.replay, &v->layout, &v->lists) < 0)
		rc = ferry_fail_errno(f, FERRY_REFUSE, -ENOMEM, "working set");
	config.first = v->lists.first;
	config.n_first = v->lists.n_first;
	config.last = v->lists.last;
	config.n_last = v->lists.n_last;
	if (!rc)
		rc = ferry_server_new(&v->server, &config, f);
	if (rc < 0)
		return rc;
	fd = listen_in_private(v, f);
	if (fd < 0)
		return fd;
	rc = ferry_server_listen(v->server, fd);
	if (rc < 0)
		return ferry_fail_errno(f, FERRY_REFUSE, rc, "listening");
	/* Answers first; where the holes are is found meanwhile. */
	ferry_server_hold(v->server);
	rc = ferry_server_start(v->server, f);
	if (rc < 0)
		return rc;
	rc = -pthread_create(&v->survey, NULL, survey, v);
	v->has_survey = !rc;
	return rc < 0 ? ferry_fail_errno(f, FERRY_REFUSE, rc, "cannot start a thread") : 0;
}

static int view_new(struct ferry_image *i, const struct ferry_vmm_message *m,
		    struct ferry_image_view **out, struct ferry_failure *f)
{
	struct ferry_image_view *v = calloc(1, sizeof(*v));
	int rc;

	if (!v)
		return ferry_fail_errno(f, FERRY_REFUSE, -ENOMEM, "page server");
	v->layout = *m;
	v->log = i->config.log;
	v->socket_fd = -1;
	rc = open_view(i, v, f);
	if (rc < 0)
		view_free(v);
	else
		*out = v;
	return rc;
}

/* Put @v into a slot; what was there is freed. */
static void put_view(struct ferry_image *i, struct ferry_image_view **slot,
		     struct ferry_image_view *v)
{
	struct ferry_image_view *before = *slot;

	pthread_mutex_lock(&i->bell_lock);
	*slot = v;
	pthread_mutex_unlock(&i->bell_lock);
	view_free(before);
}

/* --- the image -------------------------------------------------------------------------------- */

/* The cache has more: those who wait look again. */
static void ring(void *image)
{
	struct ferry_image *i = image;

	pthread_mutex_lock(&i->bell_lock);
	for (uint32_t n = 0; n < MAX_VIEWS; n++)
		if (i->views[n])
			ferry_server_arrived(i->views[n]->server);
	pthread_mutex_unlock(&i->bell_lock);
}

static int open_cache(struct ferry_image *i, int stop_fd, struct ferry_failure *f)
{
	struct ferry_cache_config config = {
		.from = i->config.from,
		.place = &i->config.place,
		.tls = i->config.tls,
		.stop_fd = stop_fd,
		.max_bytes_per_second = i->config.max_bytes_per_second,
		.arrived = ring,
		.ctx = i,
		.log = i->config.log,
	};
	int rc = ferry_cache_open(&i->cache, &config, f);

	i->config.place.epoch++; /* for the next attempt */
	if (rc < 0)
		return rc;
	i->fd = ferry_cache_fd(i->cache, &i->bytes);
	return ferry_cache_start(i->cache, f);
}

static int open_file(struct ferry_image *i, struct ferry_failure *f)
{
	struct stat st;

	if (fstat(i->config.fd, &st) < 0)
		return ferry_fail_errno(f, FERRY_REFUSE, -errno, "the snapshot");
	i->fd = i->config.fd;
	i->bytes = (uint64_t)st.st_size;
	i->written = st.st_mtim;
	return 0;
}

/* @stop_fd: gives up. It can be tried again after a failure. */
static int make_ready(struct ferry_image *i, int stop_fd, struct ferry_failure *f)
{
	int rc = i->config.from ? open_cache(i, stop_fd, f) : open_file(i, f);

	if (!rc && i->config.sized)
		rc = i->config.sized(i->config.ctx, i->bytes, &i->sets, f);
	if (rc < 0) {
		ferry_cache_close(i->cache);
		i->cache = NULL;
		return rc;
	}
	atomic_store(&i->is_ready, true);
	eventfd_write(i->ready_fd, 1);
	return 0;
}

static void *open_patiently(void *image)
{
	struct ferry_image *i = image;
	int wait_ms = AGAIN_MIN_MS;

	for (;;) {
		struct ferry_failure f = {0};

		if (!make_ready(i, i->stop_fd, &f))
			return NULL;
		ferry_fail_prefix(&f, "VMs wait for the snapshot");
		pthread_mutex_lock(&i->lock);
		i->missed = f;
		pthread_mutex_unlock(&i->lock);
		if (ferry_net_wait(i->stop_fd, POLLIN, wait_ms, -1) == 0)
			return NULL;
		wait_ms = FERRY_MIN(wait_ms * 2, AGAIN_MAX_MS);
	}
}

static int begin_open(struct ferry_image *i, struct ferry_failure *f)
{
	int rc;

	i->ready_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	i->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (i->ready_fd < 0 || i->stop_fd < 0)
		return ferry_fail_errno(f, FERRY_REFUSE, -errno, "snapshot");
	if (!i->config.from || !i->config.is_patient)
		return make_ready(i, i->config.stop_fd, f);
	rc = -pthread_create(&i->opener, NULL, open_patiently, i);
	i->has_opener = !rc;
	return rc < 0 ? ferry_fail_errno(f, FERRY_REFUSE, rc, "cannot start a thread") : 0;
}

int ferry_image_open(struct ferry_image **out, const struct ferry_image_config *config,
		     struct ferry_failure *f)
{
	struct ferry_image *i = calloc(1, sizeof(*i));
	int rc;

	if (!i)
		return ferry_fail_errno(f, FERRY_REFUSE, -ENOMEM, "snapshot");
	i->config = *config;
	i->fd = i->ready_fd = i->stop_fd = -1;
	/* Who places what is pushed needs the other half. */
	ferry_turns_init(&i->turns, (uint32_t)FERRY_MAX(sysconf(_SC_NPROCESSORS_ONLN) / 2, 1));
	pthread_mutex_init(&i->lock, NULL);
	pthread_mutex_init(&i->bell_lock, NULL);
	rc = begin_open(i, f);
	if (rc < 0)
		ferry_image_close(i);
	else
		*out = i;
	return rc;
}

bool ferry_image_is_ready(const struct ferry_image *i)
{
	return atomic_load(&i->is_ready);
}

int ferry_image_ready_fd(const struct ferry_image *i)
{
	return i->ready_fd;
}

struct ferry_image_sets ferry_image_sets(const struct ferry_image *i)
{
	return ferry_image_is_ready(i) ? i->sets : (struct ferry_image_sets){0};
}

void ferry_image_push_first(struct ferry_image *i, bool first)
{
	pthread_mutex_lock(&i->bell_lock);
	for (uint32_t n = 0; n < MAX_VIEWS; n++)
		if (i->views[n])
			ferry_server_push_first(i->views[n]->server, first);
	pthread_mutex_unlock(&i->bell_lock);
}

bool ferry_image_is_broken(struct ferry_image *i)
{
	bool is_broken = false;

	pthread_mutex_lock(&i->lock);
	for (uint32_t n = 0; n < MAX_VIEWS; n++)
		is_broken |= i->views[n] && i->views[n]->n_users &&
			     ferry_server_is_broken(i->views[n]->server);
	pthread_mutex_unlock(&i->lock);
	return is_broken;
}

enum ferry_target_event ferry_image_news(struct ferry_image *i, struct ferry_failure *f)
{
	enum ferry_target_event event = FERRY_TARGET_NOTHING;

	if (ferry_image_is_ready(i))
		return i->cache ? ferry_cache_news(i->cache, f) : FERRY_TARGET_NOTHING;
	pthread_mutex_lock(&i->lock);
	if (i->missed.err) {
		*f = i->missed;
		i->missed.err = 0;
		event = FERRY_TARGET_LINK_LOST;
	}
	pthread_mutex_unlock(&i->lock);
	return event;
}

void ferry_image_stats(struct ferry_image *i, struct ferry_target_stats *out)
{
	bool is_ready = ferry_image_is_ready(i);

	*out = (struct ferry_target_stats){.link_up = is_ready};
	if (is_ready && i->cache)
		ferry_cache_stats(i->cache, out);
}

bool ferry_image_has_changed(const struct ferry_image *i)
{
	struct stat st;

	return !i->cache && !fstat(i->fd, &st) &&
	       ((uint64_t)st.st_size != i->bytes || st.st_mtim.tv_sec != i->written.tv_sec ||
		st.st_mtim.tv_nsec != i->written.tv_nsec);
}

void ferry_image_leave(struct ferry_image *i)
{
	if (ferry_image_is_ready(i) && i->cache)
		ferry_cache_leave(i->cache);
}

void ferry_image_close(struct ferry_image *i)
{
	if (!i)
		return;
	if (i->has_opener) {
		eventfd_write(i->stop_fd, 1);
		pthread_join(i->opener, NULL);
	}
	for (uint32_t n = 0; n < MAX_VIEWS; n++)
		put_view(i, &i->views[n], NULL);
	ferry_cache_close(i->cache);
	ferry_close(i->ready_fd);
	ferry_close(i->stop_fd);
	ferry_turns_fini(&i->turns);
	pthread_mutex_destroy(&i->bell_lock);
	pthread_mutex_destroy(&i->lock);
	free(i);
}

static bool is_alike(const struct ferry_vmm_message *a, const struct ferry_vmm_message *b)
{
	if (a->n_regions != b->n_regions)
		return false;
	for (uint32_t i = 0; i < a->n_regions; i++) {
		const struct ferry_vmm_region *x = &a->regions[i], *y = &b->regions[i];

		if (x->offset != y->offset || x->bytes != y->bytes ||
		    x->page_bytes != y->page_bytes)
			return false;
	}
	return true;
}

/* The slot of a view for @m: its own, a free one, or one that nobody uses any more. */
static struct ferry_image_view **find_slot(struct ferry_image *i, const struct ferry_vmm_message *m)
{
	struct ferry_image_view **unused = NULL, **empty = NULL;

	for (uint32_t n = 0; n < MAX_VIEWS; n++) {
		struct ferry_image_view **slot = &i->views[n];

		if (*slot && !(*slot)->n_users && ferry_server_is_broken((*slot)->server))
			put_view(i, slot, NULL);
		if (*slot && is_alike(&(*slot)->layout, m))
			return slot;
		if (!*slot)
			empty = slot;
		else if (!(*slot)->n_users)
			unused = slot;
	}
	if (!empty && unused)
		put_view(i, unused, NULL);
	return empty ? empty : unused;
}

int ferry_image_use(struct ferry_image *i, const struct ferry_vmm_message *m,
		    struct ferry_image_view **view, struct ferry_failure *f)
{
	struct ferry_image_view **slot, *v = NULL;
	int rc = 0;

	if (ferry_image_has_changed(i))
		return ferry_fail(f, FERRY_REFUSE, -ESTALE,
				  "the snapshot's file was written to, or cut, since this handler "
				  "has it: start another handler for what it is now");
	pthread_mutex_lock(&i->lock);
	slot = find_slot(i, m);
	if (!slot)
		rc = ferry_fail(f, FERRY_REFUSE, -EBUSY,
				"VMs of %u different layouts are served already; start another "
				"handler for other snapshots",
				MAX_VIEWS);
	else if (!*slot) {
		rc = view_new(i, m, &v, f);
		if (!rc)
			put_view(i, slot, v);
	}
	if (!rc) {
		(*slot)->n_users++;
		*view = *slot;
	}
	pthread_mutex_unlock(&i->lock);
	return rc;
}

void ferry_image_unuse(struct ferry_image *i, struct ferry_image_view *view)
{
	pthread_mutex_lock(&i->lock);
	view->n_users--;
	pthread_mutex_unlock(&i->lock);
}

const struct ferry_addr *ferry_image_address(const struct ferry_image_view *view)
{
	return &view->address;
}
