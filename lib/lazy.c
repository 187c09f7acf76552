/* SPDX-License-Identifier: Apache-2.0 */
/* The public face of the target's engine, for memory of this process. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/addr.h"
#include "base/cleanup.h"
#include "base/clock.h"
#include "base/util.h"
#include "lib/handle.h"
#include "trace/recorder.h"
#include "uffd/target.h"

/* What a handle, a struct pageferry_lazy *, stands for. */
struct lazy {
	struct ferry_target *target; /* owned */
	struct ferry_recorder *recorder; /* owned; NULL when nothing is recorded */
	struct ferry_lib_log log;
	int end_fd;		/* eventfd, owned: ends calls that wait */
	_Atomic bool ends;	/* the same */
	_Atomic bool connected; /* _connect has returned 0 */
};

/* What a program that was built with the first version gives. */
#define OPTIONS_LEAST offsetof(struct pageferry_lazy_options, trace_file)
#define STATS_LEAST   offsetof(struct pageferry_lazy_stats, pages_lost)
#define FLAGS	      (PAGEFERRY_NO_CHECKSUM | PAGEFERRY_POISON_LOST | PAGEFERRY_NO_LARGE_PAGES)

static int make_target(struct lazy *l, const struct pageferry_region *in, uint32_t n,
		       const struct pageferry_lazy_options *o, struct ferry_failure *f)
{
	_cleanup_free_ struct pageferry_region *taken = NULL;
	_cleanup_free_ struct ferry_lib_region *checked = NULL;
	_cleanup_free_ struct ferry_target_region *regions = NULL;
	struct ferry_target_config config = {.n_bulk = o->n_bulk,
					     .max_bytes_per_second = o->max_bytes_per_second,
					     .no_trace = !o->trace_file,
					     .no_checksum = o->flags & PAGEFERRY_NO_CHECKSUM,
					     .no_large_pages = o->flags & PAGEFERRY_NO_LARGE_PAGES,
					     .on_lost = o->flags & PAGEFERRY_POISON_LOST
								? FERRY_ON_LOST_POISON
								: FERRY_ON_LOST_WAIT,
					     .log = l->log.log.sink ? &l->log.log : NULL};
	sigset_t saved;
	int rc;

	taken = calloc(FERRY_MAX_REGIONS, sizeof(*taken));
	checked = calloc(FERRY_MAX_REGIONS, sizeof(*checked));
	regions = calloc(FERRY_MAX_REGIONS, sizeof(*regions));
	if (!taken || !checked || !regions)
		return ferry_fail_errno(f, FERRY_REFUSE, -ENOMEM, "regions");
	rc = ferry_lib_regions_take(taken, in, n, o->region_size, f);
	if (!rc)
		rc = ferry_lib_regions(checked, taken, n, f);
	if (rc < 0)
		return rc;
	for (uint32_t i = 0; i < n; i++)
		regions[i] = (struct ferry_target_region){.desc = checked[i].desc,
							  .start = checked[i].start,
							  .kind = checked[i].kind,
							  .is_private = checked[i].is_private};
	rc = ferry_uffd_open(&config.uffd, FERRY_TARGET_UFFD_FEATURES, f);
	if (rc < 0)
		return rc;
	config.regions = regions;
	config.n_regions = n;
	rc = ferry_target_new(&l->target, &config, f);
	if (rc < 0)
		return rc;
	ferry_lib_signals_block(&saved);
	rc = ferry_target_start(l->target, f);
	ferry_lib_signals_restore(&saved);
	return rc;
}

static int start_recorder(struct lazy *l, const char *path, struct ferry_failure *f)
{
	_cleanup_close_ int rings = -1;
	sigset_t saved;
	int file, rc;

	file = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOCTTY, 0600);
	if (file < 0)
		return ferry_fail_errno(f, FERRY_REFUSE, -errno, "trace file %s", path);
	rings = ferry_trace_fd(ferry_target_trace(l->target));
	if (rings < 0) {
		ferry_close(file);
		return ferry_fail_errno(f, FERRY_REFUSE, rings, "faults can't be traced");
	}
	rc = ferry_recorder_open(&l->recorder, file, rings, f);
	if (rc < 0)
		return rc;
	ferry_lib_signals_block(&saved);
	rc = ferry_recorder_start(l->recorder, f);
	ferry_lib_signals_restore(&saved);
	return rc;
}

static void lazy_free(struct lazy *l)
{
	struct ferry_failure f = {0};

	if (l->target)
		ferry_target_leave(l->target);
	ferry_target_free(l->target);
	if (l->recorder && ferry_recorder_close(l->recorder, NULL, NULL, &f) < 0)
		ferry_warn(l->log.log.sink ? &l->log.log : NULL, "%s", f.text);
	ferry_close(l->end_fd);
	free(l);
}

static void lazy_abandon(struct lazy *l)
{
	if (l->target)
		ferry_target_abandon(l->target);
	lazy_free(l);
}

/* For ferry_lib_retire(). */
static void end_calls(void *object)
{
	struct lazy *l = object;
	uint64_t one = 1;

	l->ends = true;
	(void)!write(l->end_fd, &one, sizeof(one));
}

static int set_up(struct lazy *l, const struct pageferry_region *regions, uint32_t n_regions,
		  const struct pageferry_lazy_options *o, struct ferry_failure *f)
{
	int rc;

	l->end_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (l->end_fd < 0)
		return ferry_fail_errno(f, FERRY_REFUSE, -errno, "eventfd");
	rc = make_target(l, regions, n_regions, o, f);
	return !rc && o->trace_file ? start_recorder(l, o->trace_file, f) : rc;
}

int pageferry_lazy_new(struct pageferry_lazy **out, const struct pageferry_region *regions,
		       uint32_t n_regions, const struct pageferry_lazy_options *options,
		       struct pageferry_error *e)
{
	struct pageferry_lazy_options o = {0};
	struct ferry_failure f = {0};
	void *handle, *object;
	struct lazy *l;
	int rc = 0;

	if (!out)
		return ferry_lib_tell(
			e, &f,
			ferry_fail(&f, FERRY_REFUSE, -EINVAL, "no room for the result given"));
	if (options)
		rc = ferry_lib_options(&o, sizeof(o), OPTIONS_LEAST, options, &f);
	if (!rc && o.n_bulk > FERRY_MAX_BULK)
		rc = ferry_fail(&f, FERRY_REFUSE, -EINVAL, "options: %u connections; at most %d",
				o.n_bulk, FERRY_MAX_BULK);
	if (!rc)
		rc = ferry_lib_flags(o.flags, FLAGS, &f);
	if (rc < 0)
		return ferry_lib_tell(e, &f, rc);
	l = calloc(1, sizeof(*l));
	if (!l || ferry_lib_handle_new(&handle, FERRY_LIB_LAZY, l, &l->log) < 0) {
		free(l);
		return ferry_lib_tell(e, &f, -ENOMEM);
	}
	l->end_fd = -1;
	ferry_lib_log_init(&l->log, o.log, o.log_ctx, o.log_level);
	rc = set_up(l, regions, n_regions, &o, &f);
	if (rc < 0) {
		(void)ferry_lib_retire(&object, handle, FERRY_LIB_LAZY, end_calls);
		lazy_abandon(l);
		return ferry_lib_tell(e, &f, rc);
	}
	*out = handle;
	return 0;
}

/* The object ends in another thread. */
static int has_ended(struct ferry_failure *f)
{
	return ferry_fail(f, FERRY_REFUSE, -ESHUTDOWN, "it was closed or abandoned meanwhile");
}

int pageferry_lazy_connect(struct pageferry_lazy *handle, const char *from,
			   struct pageferry_error *e)
{
	_cleanup_(ferry_lib_unpin) struct ferry_lib_pin pin = {0};
	struct ferry_failure f = {0};
	struct ferry_addr addr;
	struct lazy *l;
	sigset_t saved;
	int rc = ferry_lib_pin(&pin, handle, FERRY_LIB_LAZY, FERRY_LIB_CONNECT, &f);

	if (!rc)
		rc = from ? ferry_addr_parse(&addr, from, &f) : -EINVAL;
	if (rc < 0)
		return ferry_lib_tell(e, &f, rc);
	l = pin.object;
	if (l->connected) {
		rc = ferry_fail(&f, FERRY_REFUSE, -EISCONN, "it was connected before");
	} else {
		ferry_lib_signals_block(&saved);
		rc = ferry_target_dial(l->target, &addr, l->end_fd, &f);
		ferry_lib_signals_restore(&saved);
		l->connected = !rc;
		if (rc < 0 && l->ends)
			rc = has_ended(&f);
	}
	return ferry_lib_tell(e, &f, rc);
}

const void *pageferry_lazy_state(const struct pageferry_lazy *handle, uint32_t *bytes)
{
	_cleanup_(ferry_lib_unpin) struct ferry_lib_pin pin = {0};
	const struct lazy *l;
	const void *state = NULL;
	uint32_t n = 0;

	(void)ferry_lib_pin(&pin, handle, FERRY_LIB_LAZY, 0, NULL);
	l = pin.object;
	if (l && l->connected)
		state = ferry_target_state(l->target, &n);
	if (bytes)
		*bytes = n;
	return n ? state : NULL;
}

int pageferry_lazy_push(struct pageferry_lazy *handle)
{
	_cleanup_(ferry_lib_unpin) struct ferry_lib_pin pin = {0};
	struct lazy *l;
	int rc = ferry_lib_pin(&pin, handle, FERRY_LIB_LAZY, 0, NULL);

	if (rc < 0)
		return rc;
	l = pin.object;
	return l->connected ? ferry_target_push(l->target) : -ENOTCONN;
}

int pageferry_lazy_fd(const struct pageferry_lazy *handle)
{
	_cleanup_(ferry_lib_unpin) struct ferry_lib_pin pin = {0};
	int rc = ferry_lib_pin(&pin, handle, FERRY_LIB_LAZY, 0, NULL);

	return rc < 0 ? rc : ferry_target_events_fd(((struct lazy *)pin.object)->target);
}

static enum pageferry_event event_of(int event)
{
	switch (event) {
	case FERRY_TARGET_OPEN:
		return PAGEFERRY_OPEN;
	case FERRY_TARGET_LINK_LOST:
		return PAGEFERRY_LINK_LOST;
	case FERRY_TARGET_COMPLETE:
		return PAGEFERRY_COMPLETE;
	case FERRY_TARGET_GONE:
	case FERRY_TARGET_FAILED:
	case FERRY_TARGET_PAGES_LOST:
		return PAGEFERRY_FAILED;
	default:
		return PAGEFERRY_NOTHING;
	}
}

int pageferry_lazy_wait(struct pageferry_lazy *handle, int timeout_ms, struct pageferry_error *e)
{
	_cleanup_(ferry_lib_unpin) struct ferry_lib_pin pin = {0};
	struct ferry_failure f = {0};
	struct lazy *l;
	int rc = ferry_lib_pin(&pin, handle, FERRY_LIB_LAZY, FERRY_LIB_WAIT, &f);

	if (!rc && timeout_ms < -1)
		rc = -EINVAL;
	if (rc < 0)
		return ferry_lib_tell(e, &f, rc);
	l = pin.object;
	rc = ferry_target_wait(l->target, timeout_ms, l->end_fd, &f);
	if (rc == -ECANCELED)
		rc = has_ended(&f);
	if (rc < 0)
		return ferry_lib_tell(e, &f, rc);
	ferry_lib_tell_event(e, &f);
	return (int)event_of(rc);
}

static double percentile_us(const struct ferry_histogram *h, unsigned int permille)
{
	return (double)ferry_histogram_percentile(h, permille) / FERRY_NS_PER_US;
}

static void fill_buckets(uint64_t *out, const struct ferry_histogram *h)
{
	uint64_t below = 0;

	for (int i = 0; i < PAGEFERRY_FAULT_BUCKETS - 1; i++) {
		uint64_t now = ferry_histogram_count_below(h, (uint64_t)FERRY_NS_PER_US << i);

		out[i] = now - below;
		below = now;
	}
	/* Not h->n: it may be ahead of the buckets. */
	out[PAGEFERRY_FAULT_BUCKETS - 1] = ferry_histogram_count_below(h, UINT64_MAX) - below;
}

int pageferry_lazy_stats(const struct pageferry_lazy *handle, struct pageferry_lazy_stats *out)
{
	_cleanup_(ferry_lib_unpin) struct ferry_lib_pin pin = {0};
	_cleanup_free_ struct ferry_target_stats *st = NULL;
	struct pageferry_lazy_stats mine;
	int rc = ferry_lib_pin(&pin, handle, FERRY_LIB_LAZY, 0, NULL);

	if (rc < 0)
		return rc;
	if (!out)
		return -EINVAL;
	st = calloc(1, sizeof(*st));
	if (!st)
		return -ENOMEM;
	ferry_target_stats(((struct lazy *)pin.object)->target, st);
	mine = (struct pageferry_lazy_stats){
		.pages_total = st->pages_total,
		.pages_resident = st->pages_known,
		.pages_urgent = st->pages_urgent,
		.pages_pushed = st->pages_pushed,
		.pages_zero = st->pages_zero,
		.pages_present = st->pages_present,
		.pages_discarded = st->discarded_pages,
		.wire_bytes = st->wire_bytes,
		.faults = st->faults,
		.requests = st->requests,
		.resumes = st->resumes,
		.is_connected = st->link_up,
		.fault_n = st->fault_ns.n,
		.fault_p50_us = percentile_us(&st->fault_ns, 500),
		.fault_p99_us = percentile_us(&st->fault_ns, 990),
		.fault_p999_us = percentile_us(&st->fault_ns, 999),
		.fault_max_us = (double)st->fault_ns.max_ns / FERRY_NS_PER_US,
		.pages_lost = st->pages_lost,
		.pages_poisoned = st->pages_poisoned,
		.checksum_errors = st->checksum_errors,
	};
	fill_buckets(mine.fault_buckets, &st->fault_ns);
	return ferry_lib_result(out, &mine, sizeof(mine), STATS_LEAST);
}

int pageferry_lazy_close(struct pageferry_lazy *handle)
{
	struct ferry_lib_pin pin = {0};
	bool complete;
	void *object;
	int rc;

	if (!handle)
		return 0;
	rc = ferry_lib_pin(&pin, handle, FERRY_LIB_LAZY, 0, NULL);
	if (rc < 0)
		return rc;
	/* What is complete stays so. */
	complete = ferry_target_is_complete(((struct lazy *)pin.object)->target);
	ferry_lib_unpin(&pin);
	if (!complete)
		return -EBUSY;
	rc = ferry_lib_retire(&object, handle, FERRY_LIB_LAZY, end_calls);
	if (rc < 0)
		return rc;
	lazy_free(object);
	return 0;
}

void pageferry_lazy_abandon(struct pageferry_lazy *handle)
{
	void *object;

	if (!ferry_lib_retire(&object, handle, FERRY_LIB_LAZY, end_calls))
		lazy_abandon(object);
}
