// SPDX-License-Identifier: Apache-2.0
#include "handler/image.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/net.h"
#include "handler/cache.h"
#include "pageserver/server.h"

#define MAX_VIEWS 16u

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
	struct ferry_replay *replay; /* borrowed; NULL for none */
	struct ferry_turns turns;    /* of all views' pushes */
	pthread_mutex_t bell_lock;   /* of views' servers coming and going, for who rings */
	pthread_mutex_t lock;	     /* of what follows */
	struct ferry_image_view *views[MAX_VIEWS]; /* owned */
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
		/* Ended sessions are remembered for a while. */
		.max_sessions = 2 * i->config.max_vms + 16,
		.max_bytes_per_second = i->cache ? 0 : i->config.max_bytes_per_second,
		.turns = &i->turns,
		.log = i->config.log,
	};
	int fd, rc = 0;

	for (uint32_t n = 0; n < v->layout.n_regions && !rc; n++)
		rc = open_source(i, v, n, f);
	if (!rc && i->replay && ferry_replay_lists(i->replay, &v->layout, &v->lists) < 0)
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

static int open_cache(struct ferry_image *i, struct ferry_failure *f)
{
	struct ferry_cache_config config = {
		.from = i->config.from,
		.tls = i->config.tls,
		.stop_fd = i->config.stop_fd,
		.max_bytes_per_second = i->config.max_bytes_per_second,
		.arrived = ring,
		.ctx = i,
		.log = i->config.log,
	};
	int rc = ferry_cache_open(&i->cache, &config, f);

	if (rc < 0)
		return rc;
	i->fd = ferry_cache_fd(i->cache, &i->bytes);
	return ferry_cache_start(i->cache, f);
}

int ferry_image_open(struct ferry_image **out, const struct ferry_image_config *config,
		     struct ferry_failure *f)
{
	struct ferry_image *i = calloc(1, sizeof(*i));
	struct stat st;
	int rc = 0;

	if (!i)
		return ferry_fail_errno(f, FERRY_REFUSE, -ENOMEM, "snapshot");
	i->config = *config;
	i->fd = config->fd;
	/* Who places what is pushed needs the other half. */
	ferry_turns_init(&i->turns, (uint32_t)FERRY_MAX(sysconf(_SC_NPROCESSORS_ONLN) / 2, 1));
	pthread_mutex_init(&i->lock, NULL);
	pthread_mutex_init(&i->bell_lock, NULL);
	if (config->from)
		rc = open_cache(i, f);
	else if (fstat(i->fd, &st) < 0)
		rc = ferry_fail_errno(f, FERRY_REFUSE, -errno, "the snapshot");
	else
		i->bytes = (uint64_t)st.st_size;
	if (rc < 0)
		ferry_image_close(i);
	else
		*out = i;
	return rc;
}

uint64_t ferry_image_bytes(const struct ferry_image *i)
{
	return i->bytes;
}

void ferry_image_replay(struct ferry_image *i, struct ferry_replay *r)
{
	i->replay = r;
}

void ferry_image_push_first(struct ferry_image *i, bool first)
{
	pthread_mutex_lock(&i->bell_lock);
	for (uint32_t n = 0; n < MAX_VIEWS; n++)
		if (i->views[n])
			ferry_server_push_first(i->views[n]->server, first);
	pthread_mutex_unlock(&i->bell_lock);
}

enum ferry_target_event ferry_image_news(struct ferry_image *i, struct ferry_failure *f)
{
	return i->cache ? ferry_cache_news(i->cache, f) : FERRY_TARGET_NOTHING;
}

void ferry_image_stats(struct ferry_image *i, struct ferry_target_stats *out)
{
	*out = (struct ferry_target_stats){.link_up = true};
	if (i->cache)
		ferry_cache_stats(i->cache, out);
}

void ferry_image_close(struct ferry_image *i)
{
	if (!i)
		return;
	for (uint32_t n = 0; n < MAX_VIEWS; n++)
		put_view(i, &i->views[n], NULL);
	ferry_cache_close(i->cache);
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
