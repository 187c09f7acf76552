// SPDX-License-Identifier: Apache-2.0
#include "handler/cache.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "base/bitmap.h"
#include "base/cleanup.h"

struct ferry_cache {
	struct ferry_cache_config config;
	int fd; /* owned; memfd */
	void *map;
	uint64_t bytes;
	struct ferry_bitmap wanted;  /* pages that were asked for: once is enough */
	struct ferry_target *target; /* owned */
};

static void known(void *cache, const struct ferry_run *run)
{
	struct ferry_cache *c = cache;

	(void)run;
	c->config.arrived(c->config.ctx);
}

static int check_layout(const struct ferry_layout *l, struct ferry_failure *f)
{
	if (l->n_regions != 1)
		return ferry_fail(
			f, FERRY_REFUSE, -EINVAL,
			"the page server has %u regions; serve the snapshot's memory file, "
			"and nothing else",
			l->n_regions);
	if (l->regions[0].page_bytes != FERRY_PAGE_SIZE_DEFAULT)
		return ferry_fail(
			f, FERRY_REFUSE, -EINVAL,
			"the page server has pages of %u bytes; serve the snapshot from an "
			"ordinary file, not from hugetlbfs",
			l->regions[0].page_bytes);
	return 0;
}

static int make_memory(struct ferry_cache *c, struct ferry_failure *f)
{
	c->fd = memfd_create("pageferry-cache", MFD_CLOEXEC);
	if (c->fd < 0 || ftruncate(c->fd, (off_t)c->bytes) < 0)
		return ferry_fail_errno(f, FERRY_REFUSE, -errno, "memory for the snapshot");
	c->map = mmap(NULL, c->bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, c->fd, 0);
	if (c->map == MAP_FAILED)
		return ferry_fail_errno(f, FERRY_REFUSE, -errno, "memory for the snapshot");
	if (ferry_bitmap_init(&c->wanted, c->bytes / FERRY_PAGE_SIZE_DEFAULT) < 0)
		return ferry_fail_errno(f, FERRY_REFUSE, -ENOMEM, "memory for the snapshot");
	return 0;
}

/* @meeting: given */
static int make_target(struct ferry_cache *c, struct ferry_target_meeting *meeting,
		       struct ferry_failure *f)
{
	struct ferry_target_region region = {
		.desc = {.page_bytes = FERRY_PAGE_SIZE_DEFAULT,
			 .n_pages = c->bytes / FERRY_PAGE_SIZE_DEFAULT},
		.start = {(uintptr_t)c->map},
		.kind = FERRY_MAPPING_SHARED,
	};
	struct ferry_target_config config = {
		.regions = &region,
		.n_regions = 1,
		.max_bytes_per_second = c->config.max_bytes_per_second,
		.hooks = {.ctx = c, .known = known},
		.tls = c->config.tls,
		.meeting = meeting,
		.no_trace = true,
		.log = c->config.log,
	};
	int rc = ferry_uffd_open(&config.uffd, FERRY_TARGET_UFFD_FEATURES, f);

	if (rc < 0) {
		ferry_target_meeting_end(meeting);
		return rc;
	}
	return ferry_target_new(&c->target, &config, f);
}

int ferry_cache_open(struct ferry_cache **out, const struct ferry_cache_config *config,
		     struct ferry_failure *f)
{
	struct ferry_cache *c = calloc(1, sizeof(*c));
	struct ferry_target_meeting *meeting = NULL;
	const struct ferry_layout *layout;
	int rc;

	if (!c)
		return ferry_fail_errno(f, FERRY_REFUSE, -ENOMEM, "cache");
	c->config = *config;
	c->fd = -1;
	c->map = MAP_FAILED;
	rc = ferry_target_meet(&meeting, config->from, config->place, config->tls, config->stop_fd,
			       f);
	if (!rc) {
		layout = ferry_target_meeting_layout(meeting);
		c->bytes = layout->regions[0].n_pages * layout->regions[0].page_bytes;
		rc = check_layout(layout, f);
	}
	if (!rc)
		rc = make_memory(c, f);
	if (rc < 0)
		ferry_target_meeting_end(meeting);
	else
		rc = make_target(c, meeting, f);
	if (rc < 0)
		ferry_cache_close(c);
	else
		*out = c;
	return rc;
}

int ferry_cache_start(struct ferry_cache *c, struct ferry_failure *f)
{
	int rc = ferry_target_start(c->target, f);

	if (!rc)
		rc = ferry_target_dial(c->target, c->config.from, c->config.stop_fd, f);
	return rc < 0 ? rc : ferry_target_push(c->target);
}

void ferry_cache_leave(struct ferry_cache *c)
{
	ferry_target_leave(c->target);
}

void ferry_cache_close(struct ferry_cache *c)
{
	if (!c)
		return;
	ferry_target_free(c->target);
	ferry_bitmap_fini(&c->wanted);
	if (c->map != MAP_FAILED)
		munmap(c->map, c->bytes);
	ferry_close(c->fd);
	free(c);
}

int ferry_cache_fd(const struct ferry_cache *c, uint64_t *bytes)
{
	*bytes = c->bytes;
	return c->fd;
}

static void want(struct ferry_cache *c, const struct ferry_run *run)
{
	uint64_t end = run->first_page + run->n_pages;

	for (uint64_t p = run->first_page; p < end;) {
		struct ferry_run missing = {
			.first_page = ferry_bitmap_next_clear_run(&c->wanted, p, end, end, &p)};

		if (missing.first_page == end)
			return;
		missing.n_pages = (uint32_t)(p - missing.first_page);
		ferry_bitmap_set_range(&c->wanted, missing.first_page, missing.n_pages);
		/* No room: whoever wants it asks again when something has arrived. */
		if (ferry_target_want(c->target, &missing) < 0)
			ferry_bitmap_clear_range(&c->wanted, missing.first_page, missing.n_pages);
	}
}

bool ferry_cache_has(struct ferry_cache *c, uint64_t offset, uint64_t bytes, bool wanted)
{
	uint64_t end = offset + bytes + FERRY_PAGE_SIZE_DEFAULT - 1;
	struct ferry_run run = {.first_page = offset / FERRY_PAGE_SIZE_DEFAULT};
	bool has;

	run.n_pages = (uint32_t)(end / FERRY_PAGE_SIZE_DEFAULT - run.first_page);
	has = ferry_target_has(c->target, &run);
	if (!has && wanted)
		want(c, &run);
	return has;
}

enum ferry_target_event ferry_cache_news(struct ferry_cache *c, struct ferry_failure *f)
{
	int event = ferry_target_wait(c->target, 0, -1, f);

	return event < 0 ? FERRY_TARGET_NOTHING : (enum ferry_target_event)event;
}

void ferry_cache_stats(struct ferry_cache *c, struct ferry_target_stats *out)
{
	ferry_target_stats(c->target, out);
}
