/* SPDX-License-Identifier: Apache-2.0 */
/* A target's life: set up, threads, events for the owner, end. */
#include "uffd/target.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/net.h"
#include "base/util.h"
#include "uffd/engine.h"
#include "uffd/present.h"

/* How many holes are given back to the kernel early. Each may split a mapping in three; the kernel
 * allows 65530 mappings a process, and the VMM needs some itself. */
#define MAX_HOLES_LEFT 512u

/* Records that a reader may fall behind by; 128 bytes each. Only what is used takes memory, except
 * that of the fault thread, whose own writes must not fault. */
#define OWNER_SLOTS   256u
#define SESSION_SLOTS 4096u
#define FAULT_SLOTS   32768u
#define BULK_SLOTS    8192u


void ferry_engine_kick(int eventfd)
{
	uint64_t one = 1;

	(void)!write(eventfd, &one, sizeof(one));
}

void ferry_engine_unkick(int eventfd)
{
	uint64_t n;

	(void)!read(eventfd, &n, sizeof(n));
}

void ferry_engine_notify(struct ferry_target *t, enum ferry_target_event type,
			 const struct ferry_failure *why)
{
	struct ferry_engine_event *e;

	if (type == FERRY_TARGET_COMPLETE)
		atomic_store(&t->complete, true);
	pthread_mutex_lock(&t->lock);
	/* The owner is slow: the oldest that is no verdict goes. The same thing is not said twice. */
	e = t->n_events ? &t->events[(t->events_begin + t->n_events - 1) % FERRY_ENGINE_EVENTS]
			: NULL;
	if (!e || e->type != type) {
		if (t->n_events == FERRY_ENGINE_EVENTS) {
			t->events_begin = (t->events_begin + 1) % FERRY_ENGINE_EVENTS;
			t->n_events--;
		}
		e = &t->events[(t->events_begin + t->n_events++) % FERRY_ENGINE_EVENTS];
	}
	e->type = type;
	e->failure = why ? *why : (struct ferry_failure){0};
	pthread_mutex_unlock(&t->lock);
	ferry_engine_kick(t->events_fd);
}

void ferry_engine_link_broken(struct ferry_target *t, const struct ferry_failure *why)
{
	pthread_mutex_lock(&t->lock);
	if (!t->broken) {
		t->broken = true;
		t->broken_why = *why;
	}
	pthread_mutex_unlock(&t->lock);
	ferry_engine_kick(t->session_kick);
}

void ferry_engine_gone(struct ferry_target *t)
{
	struct ferry_failure why;

	if (atomic_exchange(&t->gone, true))
		return;
	ferry_fail(&why, FERRY_LOST, -ESRCH, "the process whose memory is being filled has ended");
	ferry_engine_notify(t, FERRY_TARGET_GONE, &why);
	ferry_engine_kick(t->session_kick);
}

void ferry_engine_progress(struct ferry_target *t)
{
	if (ferry_pager_is_complete(&t->pager))
		ferry_engine_kick(t->session_kick);
}

void ferry_engine_offer_urgent(struct ferry_target *t, int fd,
			       const struct ferry_connection *connection)
{
	pthread_mutex_lock(&t->lock);
	t->fault_offer = fd;
	if (connection)
		t->fault_connection = *connection;
	t->fault_generation++;
	ferry_engine_kick(t->fault_kick);
	while (t->fault_running && t->fault_seen != t->fault_generation)
		pthread_cond_wait(&t->changed, &t->lock);
	pthread_mutex_unlock(&t->lock);
}

/* --- set up ------------------------------------------------------------------------------------ */

/* Marks what is present already. */
static int find_present(struct ferry_target *t, uint32_t id, struct ferry_present *p)
{
	uint64_t start = atomic_load(&t->regions[id].start), from, to;
	uint64_t page_bytes = t->regions[id].info.desc.page_bytes;
	int rc;

	ferry_present_begin(p, start, t->regions[id].bytes);
	while ((rc = ferry_present_next(p, &from, &to)) > 0) {
		struct ferry_run run = {.region = id, .first_page = (from - start) / page_bytes};

		run.n_pages = (uint32_t)((to - start + page_bytes - 1) / page_bytes - run.first_page);
		atomic_fetch_add(&t->counters.pages_present, ferry_pager_placed(&t->pager, &run));
	}
	return rc;
}

static int find_all_present(struct ferry_target *t, struct ferry_failure *f)
{
	struct ferry_present p;
	int rc = ferry_present_open(&p, t->uffd.pid);

	if (rc < 0)
		return ferry_fail_errno(f, FERRY_REFUSE, rc, "/proc/%d/pagemap", (int)t->uffd.pid);
	for (uint32_t i = 0; i < t->n_regions && !rc; i++) {
		if (t->regions[i].in_place)
			continue;
		rc = find_present(t, i, &p);
		if (rc < 0)
			ferry_fail_errno(f, FERRY_REFUSE, rc, "region %u: reading /proc/%d/pagemap", i,
					 (int)t->uffd.pid);
	}
	ferry_present_close(&p);
	return rc;
}

/* What is in a region's file is present, mapped or not. */
static int find_written(struct ferry_target *t, uint32_t id)
{
	struct ferry_engine_region *r = &t->regions[id];
	uint64_t from = 0, to;
	int rc;

	while ((rc = ferry_memory_file_next(&r->file, &from, &to, r->bytes)) > 0) {
		while (from < to) {
			uint64_t n = FERRY_MIN((to - from) / r->info.desc.page_bytes,
					       (uint64_t)UINT32_MAX);
			struct ferry_run run = {.region = id,
						.first_page = from / r->info.desc.page_bytes,
						.n_pages = (uint32_t)n};

			atomic_fetch_add(&t->counters.pages_present,
					 ferry_pager_placed(&t->pager, &run));
			from += n * r->info.desc.page_bytes;
		}
	}
	return rc;
}

static void use_copy(struct ferry_target *t, uint32_t region, const char *why)
{
	ferry_memory_file_close(&t->regions[region].file);
	ferry_debug(t->log, "region %u is filled by UFFDIO_COPY: %s", region, why);
}

/* Shared memory is filled through its file, where that can be done. */
static void open_files(struct ferry_target *t)
{
	for (uint32_t i = 0; i < t->n_regions; i++) {
		struct ferry_engine_region *r = &t->regions[i];
		struct ferry_failure why;

		if (r->info.kind == FERRY_MAPPING_SHARED &&
		    ferry_memory_file_open(&r->file, t->uffd.pid, r->info.start, r->bytes, false,
					   &why) < 0)
			use_copy(t, i, why.text);
	}
}

/* Pages that come into the files from now on are ours. */
static void find_all_written(struct ferry_target *t)
{
	for (uint32_t i = 0; i < t->n_regions; i++) {
		const struct ferry_engine_region *r = &t->regions[i];
		int rc = r->file.fd >= 0 && !r->in_place ? find_written(t, i) : 0;

		if (rc < 0)
			use_copy(t, i, strerror(-rc));
	}
}

static int check_region(const struct ferry_target_region *r, uint32_t i, struct ferry_failure *f)
{
	uint32_t p = r->desc.page_bytes;

	if (r->kind == FERRY_MAPPING_FILE)
		return ferry_fail(f, FERRY_REFUSE, -ENODEV,
				  "region %u is mapped from an ordinary file, which userfaultfd can't "
				  "serve; put it on tmpfs, hugetlbfs or in a memfd",
				  i);
	if (p < FERRY_MIN_PAGE_BYTES || p > FERRY_MAX_PAGE_BYTES || p & (p - 1))
		return ferry_fail(f, FERRY_REFUSE, -EINVAL,
				  "region %u has pages of %u bytes; 4 KiB to 2 MiB are served", i, p);
	if (!r->desc.n_pages || r->desc.n_pages > FERRY_MAX_REGION_PAGES || r->start.v % p)
		return ferry_fail(f, FERRY_REFUSE, -EINVAL,
				  "region %u is empty, too large, or not aligned to its pages", i);
	return 0;
}

static int take_regions(struct ferry_target *t, const struct ferry_target_config *config,
			struct ferry_failure *f)
{
	uint32_t max_page_bytes = FERRY_MIN_PAGE_BYTES;

	if (!config->n_regions || config->n_regions > FERRY_MAX_REGIONS)
		return ferry_fail(f, FERRY_REFUSE, -EINVAL, "%u regions; 1 to %d are possible",
				  config->n_regions, FERRY_MAX_REGIONS);
	t->n_regions = config->n_regions;
	t->layout.n_regions = config->n_regions;
	for (uint32_t i = 0; i < t->n_regions; i++) {
		const struct ferry_target_region *r = &config->regions[i];
		int rc = check_region(r, i, f);

		if (rc < 0)
			return rc;
		t->regions[i].info = *r;
		t->regions[i].info.desc.id = i;
		t->regions[i].bytes = r->desc.n_pages * r->desc.page_bytes;
		atomic_store(&t->regions[i].start, r->start.v);
		t->layout.regions[i] = t->regions[i].info.desc;
		max_page_bytes = FERRY_MAX(max_page_bytes, r->desc.page_bytes);
		if (ferry_engine_discards(&t->regions[i]))
			t->has_discards = true;
	}
	t->zeroes_bytes = max_page_bytes;
	t->zeroes = mmap(NULL, max_page_bytes, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE,
			 -1, 0);
	if (t->zeroes == MAP_FAILED) {
		t->zeroes = NULL;
		return ferry_fail_errno(f, FERRY_REFUSE, -errno, "page of zeros");
	}
	return 0;
}

static void unregister_all(struct ferry_target *t)
{
	for (uint32_t i = 0; i < t->n_registered; i++)
		(void)ferry_uffd_unregister(&t->uffd,
					    (struct ferry_hva){atomic_load(&t->regions[i].start)},
					    t->regions[i].bytes);
}

static int not_registered(const struct ferry_target_region *r, uint32_t i, int rc,
			  struct ferry_failure *f)
{
	char which[FERRY_MAX_REGION_NAME + 32];

	snprintf(which, sizeof(which), r->desc.name[0] ? "'%s', at %#llx" : "%sat %#llx",
		 r->desc.name, (unsigned long long)r->start.v);
	/* Nothing else gives EBUSY: see userfaultfd_register() in the kernel's fs/userfaultfd.c. */
	if (rc == -EBUSY)
		return ferry_fail(
			f, FERRY_REFUSE, rc,
			"region %u (%s) is registered with a userfaultfd already, by this "
			"or another engine; end that one first",
			i, which);
	return ferry_fail_errno(f, FERRY_REFUSE, rc,
				"region %u (%s): UFFDIO_REGISTER (run 'pageferry probe')", i,
				which);
}

static int register_all(struct ferry_target *t, struct ferry_failure *f)
{
	for (uint32_t i = 0; i < t->n_regions; i++) {
		int rc = t->regions[i].in_place
				 ? 0
				 : ferry_uffd_register(&t->uffd, t->regions[i].info.start,
						       t->regions[i].bytes);

		if (rc < 0)
			return not_registered(&t->regions[i].info, i, rc, f);
		t->n_registered++;
	}
	return 0;
}

static int make_eventfd(int *fd)
{
	*fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	return *fd < 0 ? -errno : 0;
}

/* Without memory for it nothing is traced; the guest's memory comes all the same. */
static struct ferry_trace *start_trace(const struct ferry_target *t)
{
	struct ferry_trace_ring_config rings[3 + FERRY_MAX_BULK] = {
		{.kind = FERRY_RING_OWNER, .n_slots = OWNER_SLOTS},
		{.kind = FERRY_RING_SESSION, .n_slots = SESSION_SLOTS},
		{.kind = FERRY_RING_FAULT, .n_slots = FAULT_SLOTS, .populate = true},
	};
	struct ferry_trace_region regions[FERRY_MAX_REGIONS];
	struct ferry_trace_config config = {
		.rings = rings,
		.n_rings = FERRY_ARRAY_SIZE(rings),
		.regions = regions,
		.n_regions = t->n_regions,
		.pid = t->uffd.pid,
	};
	struct ferry_trace *trace = NULL;
	struct ferry_failure why = {0};

	_Static_assert(FERRY_MAX_REGIONS <= FERRY_TRACE_MAX_REGIONS &&
			       FERRY_MAX_REGION_NAME <= FERRY_TRACE_NAME_BYTES,
		       "a trace has room for every layout");
	for (uint32_t i = 0; i < FERRY_MAX_BULK; i++)
		rings[3 + i] = (struct ferry_trace_ring_config){
			.kind = FERRY_RING_BULK, .index = i, .n_slots = BULK_SLOTS};
	for (uint32_t i = 0; i < t->n_regions; i++)
		regions[i] = (struct ferry_trace_region){
			.n_pages = t->layout.regions[i].n_pages,
			.page_bytes = t->layout.regions[i].page_bytes,
			.start = atomic_load(&t->regions[i].start),
		};
	if (ferry_trace_new(&trace, &config, &why) < 0)
		ferry_warn(t->log, "%s; faults are not traced", why.text);
	return trace;
}

static void note_present(struct ferry_target *t)
{
	for (uint32_t i = 0; i < t->n_regions; i++) {
		uint64_t n = ferry_bitmap_count(&t->pager.regions[i].known);
		struct ferry_trace_record rec = {
			.type = FERRY_TRACE_PUSH,
			.flags = FERRY_PUSH_F_PRESENT,
			.region = i,
			.time_ns = ferry_now_ns(),
			.push = {.n_pages = (uint32_t)n, .n_new = (uint32_t)n},
		};

		if (n)
			ferry_trace_emit(ferry_trace_ring(t->trace, FERRY_RING_OWNER, 0), &rec);
	}
}

int ferry_target_new(struct ferry_target **out, const struct ferry_target_config *config,
		     struct ferry_failure *f)
{
	struct ferry_target *t = calloc(1, sizeof(*t));
	struct ferry_uffd uffd = config->uffd;
	int rc;

	if (!t) {
		ferry_uffd_close(&uffd);
		ferry_target_meeting_end(config->meeting);
		return ferry_fail_errno(f, FERRY_REFUSE, -ENOMEM, "target");
	}
	t->uffd = uffd;
	t->stop_fd = t->fault_kick = t->session_kick = t->events_fd = -1;
	t->fault_offer = -1;
	for (uint32_t i = 0; i < FERRY_MAX_REGIONS; i++)
		t->regions[i].file.fd = -1;
	t->max_bytes_per_second = config->max_bytes_per_second;
	t->n_bulk = config->n_bulk ? FERRY_MIN(config->n_bulk, (uint32_t)FERRY_MAX_BULK) : 1;
	t->tls = config->tls;
	t->log = config->log;
	t->hooks = config->hooks;
	t->withheld = config->no_checksum ? FERRY_FEATURE_CHECKSUM : 0;
	t->on_lost = config->on_lost;
	t->memory_id = config->memory_id;
	t->adopts = config->adopt;
	t->ends_with_push = config->ends_with_push;
	t->source_lost = config->source_lost;
	t->meeting = config->meeting;
	t->has_place = config->place;
	if (config->place)
		t->place = *config->place;
	atomic_store(&t->n_holes_left, MAX_HOLES_LEFT);
	ferry_engine_link_init(&t->incoming);
	pthread_mutex_init(&t->lock, NULL);
	pthread_mutex_init(&t->discard_lock, NULL);
	pthread_mutex_init(&t->overtaken_lock, NULL);
	pthread_cond_init(&t->changed, NULL);
	if (make_eventfd(&t->stop_fd) < 0 || make_eventfd(&t->fault_kick) < 0 ||
	    make_eventfd(&t->session_kick) < 0 || make_eventfd(&t->events_fd) < 0)
		rc = ferry_fail_errno(f, FERRY_REFUSE, -errno, "eventfd");
	else
		rc = take_regions(t, config, f);
	if (!rc && ferry_pager_init(&t->pager, &t->layout) < 0)
		rc = ferry_fail_errno(f, FERRY_REFUSE, -ENOMEM, "page maps");
	if (!rc && config->verify) {
		t->verify = calloc(1, sizeof(*t->verify));
		if (!t->verify || ferry_verify_init(t->verify, &t->layout) < 0)
			rc = ferry_fail_errno(f, FERRY_REFUSE, -ENOMEM, "digests of pages");
		else
			t->verified = t->verify->result;
	}
	if (!rc && config->kept)
		ferry_pager_keep(&t->pager, config->kept);
	if (!rc) {
		open_files(t);
		rc = ferry_engine_in_place_init(t, config, f);
	}
	if (!rc)
		rc = register_all(t, f);
	/*
	 * After registering: from then on only we make pages present. What is kept does without, in a
	 * process that we may not look into: a present page shows itself when it is to be placed.
	 */
	if (!rc && config->kept) {
		(void)find_all_present(t, NULL);
		atomic_store(&t->counters.pages_present, atomic_load(&t->pager.pages_known));
	} else if (!rc) {
		rc = find_all_present(t, f);
	}
	if (!rc)
		find_all_written(t);
	t->no_large_pages = config->no_large_pages;
	if (!rc && !config->no_large_pages)
		ferry_engine_collapse_init(t);
	if (rc < 0) {
		/* What was registered before us holds a guest's threads and stays so. */
		if (!config->adopt)
			ferry_target_abandon(t);
		ferry_target_free(t);
		return rc;
	}
	if (!config->no_trace)
		t->trace = start_trace(t);
	note_present(t);
	if (config->adopt) {
		/* What the one before us had read is not delivered again: let all fault anew. */
		for (uint32_t i = 0; i < t->n_regions; i++)
			(void)ferry_uffd_wake(&t->uffd, t->regions[i].info.start,
					      t->regions[i].bytes);
	}
	*out = t;
	return 0;
}

int ferry_target_start(struct ferry_target *t, struct ferry_failure *f)
{
	int rc = ferry_engine_fault_start(t);

	return rc < 0 ? ferry_fail_errno(f, FERRY_REFUSE, rc, "fault thread") : 0;
}

/* Which session is dialed, and from which epoch on. */
static int take_place(struct ferry_target *t)
{
	struct ferry_target_place place = t->place;
	int rc = 0;

	if (t->meeting)
		place = t->meeting->place;
	else if (!t->has_place)
		rc = ferry_target_place_new(&place);
	else /* a first attempt may have failed after some epochs */
		place.epoch = FERRY_MAX(place.epoch, t->next_epoch);
	if (rc < 0)
		return rc;
	t->session = place.session;
	t->first_epoch = t->next_epoch = place.epoch;
	return 0;
}

int ferry_target_dial(struct ferry_target *t, const struct ferry_addr *from, int stop_fd,
		      struct ferry_failure *f)
{
	int rc;

	if (t->session_running)
		return ferry_fail(f, FERRY_REFUSE, -EBUSY, "this target has a session already");
	rc = take_place(t);
	if (rc < 0)
		return ferry_fail_errno(f, FERRY_REFUSE, rc, "getrandom");
	t->dials = true;
	t->from = *from;
	pthread_mutex_lock(&t->lock);
	t->first_done = false;
	rc = -pthread_create(&t->session_thread, NULL, ferry_engine_session_thread, t);
	t->session_running = !rc;
	pthread_mutex_unlock(&t->lock);
	if (rc < 0)
		return ferry_fail_errno(f, FERRY_REFUSE, rc, "session thread");
	/* The first attempt is limited by the session's own time-outs. */
	pthread_mutex_lock(&t->lock);
	while (!t->first_done) {
		struct timespec soon;

		clock_gettime(CLOCK_REALTIME, &soon);
		soon.tv_nsec += 50 * 1000 * 1000;
		soon.tv_sec += soon.tv_nsec / 1000000000;
		soon.tv_nsec %= 1000000000;
		pthread_cond_timedwait(&t->changed, &t->lock, &soon);
		if (stop_fd >= 0 && !ferry_net_wait(stop_fd, POLLIN, 0, -1))
			ferry_engine_kick(t->stop_fd);
	}
	rc = t->first_rc;
	if (rc < 0 && f)
		*f = t->first_why;
	/* After a failed first attempt the thread ends by itself. */
	t->session_running = !rc;
	pthread_mutex_unlock(&t->lock);
	if (rc < 0)
		pthread_join(t->session_thread, NULL);
	return rc;
}

/* --- while it runs ---------------------------------------------------------------------------- */

const void *ferry_target_state(const struct ferry_target *t, uint32_t *bytes)
{
	*bytes = t->state_bytes;
	return t->state;
}

int ferry_target_want(struct ferry_target *t, const struct ferry_run *run)
{
	bool full;

	pthread_mutex_lock(&t->lock);
	full = t->n_wants == FERRY_ENGINE_WANTS;
	if (!full)
		t->wants[t->n_wants++] = *run;
	pthread_mutex_unlock(&t->lock);
	if (full)
		return -EAGAIN;
	ferry_engine_kick(t->fault_kick);
	return 0;
}

bool ferry_target_has(const struct ferry_target *t, const struct ferry_run *run)
{
	const struct ferry_bitmap *known = &t->pager.regions[run->region].known;
	size_t end = run->first_page + run->n_pages;

	return ferry_bitmap_next_clear(known, run->first_page, end) == end;
}

void ferry_target_leave(struct ferry_target *t)
{
	atomic_store(&t->leaves, true);
}

int ferry_target_push(struct ferry_target *t)
{
	pthread_mutex_lock(&t->lock);
	t->push_wanted = true;
	pthread_mutex_unlock(&t->lock);
	ferry_engine_kick(t->session_kick);
	return 0;
}

int ferry_target_wait(struct ferry_target *t, int timeout_ms, int stop_fd,
		      struct ferry_failure *f)
{
	for (;;) {
		struct ferry_engine_event e;
		bool have;
		int rc;

		pthread_mutex_lock(&t->lock);
		have = t->n_events;
		if (have) {
			e = t->events[t->events_begin];
			t->events_begin = (t->events_begin + 1) % FERRY_ENGINE_EVENTS;
			t->n_events--;
		} else {
			ferry_engine_unkick(t->events_fd);
		}
		pthread_mutex_unlock(&t->lock);
		if (have) {
			if (f)
				*f = e.failure;
			return (int)e.type;
		}
		rc = ferry_net_wait(t->events_fd, POLLIN, timeout_ms, stop_fd);
		if (rc == -ETIMEDOUT)
			return FERRY_TARGET_NOTHING;
		if (rc < 0)
			return rc;
	}
}

uint64_t ferry_target_memory_id(struct ferry_target *t)
{
	uint64_t id;

	pthread_mutex_lock(&t->lock);
	id = t->memory_id;
	pthread_mutex_unlock(&t->lock);
	return id;
}

bool ferry_target_is_in_place(const struct ferry_target *t, uint32_t region)
{
	return t->regions[region].in_place;
}

int ferry_target_events_fd(const struct ferry_target *t)
{
	return t->events_fd;
}

bool ferry_target_is_complete(const struct ferry_target *t)
{
	return atomic_load(&t->complete);
}

struct ferry_trace *ferry_target_trace(struct ferry_target *t)
{
	return t->trace;
}

uint32_t ferry_engine_overtake(struct ferry_target *t, const struct ferry_run *run,
			       uint64_t placed_ns)
{
	const struct ferry_bitmap *asked = &t->pager.regions[run->region].asked;
	size_t end = run->first_page + run->n_pages;
	uint32_t n = 0;

	for (size_t i = ferry_bitmap_next_set(asked, run->first_page, end); i < end;
	     i = ferry_bitmap_next_set(asked, i + 1, end)) {
		pthread_mutex_lock(&t->overtaken_lock);
		if (t->n_overtaken < FERRY_ENGINE_OVERTAKEN)
			t->overtaken[t->n_overtaken++] =
				(struct ferry_engine_overtaken){run->region, i, placed_ns};
		pthread_mutex_unlock(&t->overtaken_lock);
		n++;
	}
	return n;
}

void ferry_target_residency(const struct ferry_target *t, uint16_t *permille, uint32_t n_cells)
{
	ferry_pager_residency(&t->pager, permille, n_cells);
}

/* A slot that moves meanwhile may be counted twice or not at all; the next look is right again. */
static void count_waiting(const struct ferry_target *t, struct ferry_target_stats *out)
{
	uint64_t now = ferry_now_ns();

	for (size_t i = 0; i < FERRY_PENDING_SLOTS; i++) {
		uint64_t since =
			atomic_load_explicit(&t->waiting_since_ns[i], memory_order_relaxed);
		uint64_t waited = now > since ? now - since : 0;

		if (!since)
			continue;
		out->faults_in_flight++;
		out->faults_stalled += waited > FERRY_STALLED_NS;
		out->oldest_wait_ns = FERRY_MAX(out->oldest_wait_ns, waited);
	}
}

void ferry_target_stats(const struct ferry_target *t, struct ferry_target_stats *out)
{
	const struct ferry_engine_counters *c = &t->counters;

	*out = (struct ferry_target_stats){
		.pages_total = t->pager.pages_total,
		.pages_known = atomic_load(&t->pager.pages_known),
		.pages_urgent = atomic_load(&c->pages_urgent),
		.pages_pushed = atomic_load(&c->pages_pushed),
		.pages_zero = atomic_load(&c->pages_zero),
		.pages_duplicate = atomic_load(&c->pages_duplicate),
		.pages_present = atomic_load(&c->pages_present),
		.wire_bytes = atomic_load(&c->wire_bytes),
		.faults = atomic_load(&c->faults),
		.faults_coalesced = atomic_load(&c->faults_coalesced),
		.requests = atomic_load(&c->requests),
		.discarded_pages = atomic_load(&c->discarded_pages),
		.pages_lost = atomic_load(&c->pages_lost),
		.pages_poisoned = atomic_load(&c->pages_poisoned),
		.large_pages = atomic_load(&c->large_pages),
		.checksum_errors = atomic_load(&c->checksum_errors),
		.resumes = atomic_load(&c->resumes),
		.link_up = atomic_load(&t->link_up),
	};
	pthread_mutex_lock((pthread_mutex_t *)&t->lock);
	out->verified = t->verified;
	pthread_mutex_unlock((pthread_mutex_t *)&t->lock);
	ferry_histogram_merge(&out->fault_ns, &t->fault_ns);
	ferry_histogram_merge(&out->local_ns, &t->local_ns);
	count_waiting(t, out);
	ferry_target_residency(t, out->residency, FERRY_RESIDENCY_CELLS);
}

/* --- the end ----------------------------------------------------------------------------------- */

static void stop_threads(struct ferry_target *t)
{
	pthread_t fault = t->fault_thread, session = t->session_thread;
	bool had_fault, had_session;

	pthread_mutex_lock(&t->lock);
	had_fault = t->fault_thread;
	had_session = t->session_running;
	t->session_running = false;
	t->fault_thread = 0;
	pthread_mutex_unlock(&t->lock);
	if (t->stop_fd >= 0)
		ferry_engine_kick(t->stop_fd);
	if (had_session)
		pthread_join(session, NULL);
	if (had_fault)
		pthread_join(fault, NULL);
}

void ferry_target_abandon(struct ferry_target *t)
{
	stop_threads(t);
	ferry_engine_in_place_undo(t);
	unregister_all(t);
	t->abandoned = true;
}

static void leave(struct ferry_target *t)
{
	pid_t pid = t->uffd.pid;
	int rc = ferry_uffd_release(&t->uffd);

	if (rc < 0 && rc != -ESRCH)
		ferry_warn(t->log, "process %d keeps a userfaultfd that nobody needs: %s", (int)pid,
			   strerror(-rc));
}

void ferry_target_free(struct ferry_target *t)
{
	bool complete;

	if (!t)
		return;
	stop_threads(t);
	ferry_trace_free(t->trace);
	complete = t->pager.pages_total && ferry_pager_is_complete(&t->pager);
	/* Nothing is registered any more: the process needs no descriptor to hold its threads. */
	if (complete || t->abandoned)
		leave(t);
	else
		ferry_uffd_close(&t->uffd);
	ferry_engine_link_close(&t->incoming);
	ferry_target_meeting_end(t->meeting);
	ferry_pager_fini(&t->pager);
	ferry_engine_in_place_fini(t);
	for (uint32_t i = 0; i < t->n_regions; i++)
		ferry_memory_file_close(&t->regions[i].file);
	if (t->verify)
		ferry_verify_fini(t->verify);
	free(t->verify);
	if (t->zeroes)
		munmap(t->zeroes, t->zeroes_bytes);
	ferry_close(t->stop_fd);
	ferry_close(t->fault_kick);
	ferry_close(t->session_kick);
	ferry_close(t->events_fd);
	pthread_cond_destroy(&t->changed);
	pthread_mutex_destroy(&t->discard_lock);
	pthread_mutex_destroy(&t->overtaken_lock);
	pthread_mutex_destroy(&t->lock);
	free(t);
}
