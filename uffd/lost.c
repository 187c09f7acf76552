/* SPDX-License-Identifier: Apache-2.0 */
/* Pages that the source has lost, and pages that were damaged on their way. */
#include <errno.h>
#include <poll.h>

#include "base/net.h"
#include "uffd/engine.h"

/* Of one step of giving up what is missing. */
#define LOSE_PAGES 4096u

/* Threads that touch these pages are told of a memory error, instead of waiting for ever. */
static int poison(struct ferry_target *t, const struct ferry_run *run)
{
	const struct ferry_bitmap *known = &t->pager.regions[run->region].known;
	uint32_t page_bytes = t->regions[run->region].info.desc.page_bytes;
	size_t end = run->first_page + run->n_pages, j;
	int rc = 0;

	for (size_t i = ferry_bitmap_next_clear_run(known, run->first_page, end, end, &j);
	     i < end && !rc; i = ferry_bitmap_next_clear_run(known, j, end, end, &j)) {
		struct ferry_run did = {.region = run->region, .first_page = i};
		struct ferry_hva at = {atomic_load(&t->regions[run->region].start) + i * page_bytes};
		struct ferry_placed placed;

		/* What is there for it in a large page is no content. */
		if (t->regions[run->region].in_place)
			(void)ferry_memory_file_punch(&t->regions[run->region].file, i * page_bytes,
						      (j - i) * page_bytes);
		rc = ferry_place_poison(&t->uffd, at, (uint32_t)(j - i), page_bytes, &placed);
		did.n_pages = placed.n_new + placed.n_dup;
		if (did.n_pages)
			ferry_pager_placed(&t->pager, &did);
		atomic_fetch_add(&t->counters.pages_poisoned, placed.n_new);
	}
	return rc;
}

int ferry_engine_lose(struct ferry_target *t, const struct ferry_run *run)
{
	uint64_t n = ferry_pager_lost(&t->pager, run);
	struct ferry_failure why;
	int rc = 0;

	atomic_fetch_add(&t->counters.pages_lost, n);
	if (t->verify)
		ferry_verify_lost(t->verify);
	if (t->on_lost == FERRY_ON_LOST_POISON) {
		if (t->has_discards)
			pthread_mutex_lock(&t->discard_lock);
		rc = poison(t, run);
		if (t->has_discards)
			pthread_mutex_unlock(&t->discard_lock);
	}
	if (n && !atomic_exchange(&t->lost_said, true)) {
		const char *then = "threads that touch such pages wait";

		if (t->on_lost == FERRY_ON_LOST_POISON)
			then = rc ? "they can't be poisoned here, and threads that touch them wait"
				  : "threads that touch such pages get a memory error";
		ferry_fail(&why, FERRY_LOST, -EIO,
			   "THE SOURCE HAS LOST MEMORY: page %llu of region %u, perhaps more, can't be "
			   "had any more; %s",
			   (unsigned long long)run->first_page, run->region, then);
		ferry_error(t->log, "%s", why.text);
		ferry_engine_notify(t, FERRY_TARGET_PAGES_LOST, &why);
	}
	return rc == -EINVAL || rc == -ENOTTY ? 0 : rc;
}

int ferry_engine_lose_missing(struct ferry_target *t, struct ferry_failure *f)
{
	for (uint32_t i = 0; i < t->n_regions; i++) {
		struct ferry_run run = {.region = i};

		while (ferry_pager_next_missing(&t->pager, &run, LOSE_PAGES)) {
			int rc = ferry_engine_lose(t, &run);

			if (rc == -EAGAIN) {
				/* The fault thread reads the event of a change that is under way.
				 */
				ferry_engine_kick(t->fault_kick);
				if (ferry_net_wait(t->stop_fd, POLLIN, 1, -1) != -ETIMEDOUT)
					return ferry_fail(f, FERRY_LINK, -ECANCELED, "stopped");
				continue;
			}
			if (rc == -ESRCH) {
				ferry_engine_gone(t);
				return ferry_fail(f, FERRY_LOST, rc, "the process has ended");
			}
			if (rc < 0)
				return ferry_fail_errno(f, FERRY_LINK, rc,
							"poisoning what is lost");
			run.first_page += run.n_pages;
		}
	}
	if (!ferry_pager_is_complete(&t->pager))
		return ferry_fail(
			f, FERRY_LINK, -EOPNOTSUPP,
			"what is lost can't be poisoned here, which takes Linux 6.6; threads that "
			"touch it wait");
	return 0;
}

int ferry_engine_bad_checksum(struct ferry_target *t, const struct ferry_run *run,
			      struct ferry_failure *why)
{
	atomic_fetch_add(&t->counters.checksum_errors, 1);
	return ferry_fail(why, FERRY_LINK, -EBADMSG,
			  "%u pages from %llu of region %u came damaged (their checksum does not "
			  "fit); they are asked for again",
			  run->n_pages, (unsigned long long)run->first_page, run->region);
}
