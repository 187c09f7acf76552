/* SPDX-License-Identifier: Apache-2.0 */
/* The session thread's part of a comparison (verify.h): asking the source, reading the memory back. */
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/net.h"
#include "base/still.h"
#include "base/util.h"
#include "uffd/engine.h"

#define PING_MS	      2000
#define SILENCE_MS    10000
#define READ_BYTES    (1024 * FERRY_KIB)
#define SETTLE_MS     2
#define SETTLE_ROUNDS 10

void ferry_engine_watch_still(struct ferry_target *t)
{
	/* Who has just been made to open a userfaultfd may be on its way back into its stop. */
	for (int i = 0; i < SETTLE_ROUNDS && !t->still; i++) {
		uint64_t before = ferry_still_mark(t->uffd.pid, 0);

		(void)ferry_net_wait(t->stop_fd, POLLIN, SETTLE_MS, -1);
		t->still = ferry_still_check(t->uffd.pid) == 1 &&
			   before == ferry_still_mark(t->uffd.pid, 0);
		t->still_mark = before;
	}
}

static void publish(struct ferry_target *t)
{
	pthread_mutex_lock(&t->lock);
	t->verified = t->verify->result;
	pthread_mutex_unlock(&t->lock);
}

/* --- with the source ---------------------------------------------------------------------------- */

static int receive_digests(struct ferry_target *t, struct ferry_channel *c, struct ferry_message *m,
			   struct ferry_failure *f)
{
	int silent_ms = 0;

	for (;;) {
		int rc = ferry_channel_receive(c, m, PING_MS, t->stop_fd, f);

		if (rc == -ETIMEDOUT) {
			struct ferry_message ping = {.type = FERRY_FRAME_PING,
						     .ping = {.sent_ns = ferry_now_ns()}};

			silent_ms += PING_MS;
			if (silent_ms >= SILENCE_MS)
				return ferry_fail(f, FERRY_LINK, rc, "nothing heard for %d s",
						  SILENCE_MS / 1000);
			rc = ferry_channel_send(c, &ping, t->stop_fd);
			if (rc < 0)
				return ferry_fail_errno(f, FERRY_LINK, rc, "sending Ping");
			continue;
		}
		if (rc < 0 || m->type == FERRY_FRAME_DIGESTS)
			return rc;
		silent_ms = 0;
	}
}

static int ask_source(struct ferry_target *t, struct ferry_channel *c, struct ferry_message *m,
		      struct ferry_failure *f)
{
	struct ferry_message request = {.type = FERRY_FRAME_DIGEST_REQUEST};
	int rc = 0;

	/* What an earlier link did not get an answer to is asked again. */
	if (t->verify->asking)
		request.digests = t->verify->asked;
	while (!rc && (t->verify->asking || ferry_verify_next(t->verify, &request.digests))) {
		t->verify->asking = true;
		rc = ferry_channel_send(c, &request, t->stop_fd);
		if (rc < 0)
			ferry_fail_errno(f, FERRY_LINK, rc, "sending DigestRequest");
		if (!rc)
			rc = receive_digests(t, c, m, f);
		if (!rc && ferry_verify_take(t->verify, &m->digests, m->payload) < 0) {
			ferry_channel_refuse(c->fd, FERRY_ERROR_PROTOCOL, "digests that were not asked for");
			rc = ferry_fail(f, FERRY_REFUSE, -EPROTO,
					"the source sent digests that were not asked for");
		}
		if (!rc)
			t->verify->asking = false;
		publish(t);
	}
	if (rc < 0)
		ferry_fail_prefix(f, "comparing the memory");
	return rc;
}

/* --- with the memory ---------------------------------------------------------------------------- */

static int read_run(const struct ferry_target *t, const struct ferry_run *run, uint8_t *buffer)
{
	uint64_t page_bytes = t->regions[run->region].info.desc.page_bytes;
	uint64_t at = atomic_load(&t->regions[run->region].start) + run->first_page * page_bytes;
	struct iovec local = {buffer, run->n_pages * page_bytes};
	struct iovec remote = {(void *)(uintptr_t)at, local.iov_len};
	ssize_t n = process_vm_readv(t->uffd.pid, &local, 1, &remote, 1, 0);

	if (n < 0)
		return -errno;
	return (size_t)n == local.iov_len ? 0 : -EFAULT;
}

static int read_region(struct ferry_target *t, uint32_t region, uint8_t *buffer, uint32_t most)
{
	uint64_t page_bytes = t->regions[region].info.desc.page_bytes;
	struct ferry_run run;

	for (uint64_t at = 0; ferry_verify_next_data(t->verify, region, at, most, &run);
	     at = run.first_page + run.n_pages) {
		int rc = ferry_net_wait(t->stop_fd, POLLIN, 0, -1) ? read_run(t, &run, buffer)
								    : -ECANCELED;

		if (rc < 0)
			return rc;
		for (uint32_t i = 0; i < run.n_pages; i++)
			ferry_verify_page(t->verify, region, run.first_page + i,
					  buffer + i * page_bytes);
	}
	return 0;
}

/* Only what has stood still since before its first page can be held against what was placed. */
static void read_back(struct ferry_target *t)
{
	struct ferry_verified before = t->verify->result;
	size_t bytes = FERRY_MAX(READ_BYTES, t->zeroes_bytes);
	_cleanup_free_ uint8_t *buffer = NULL;
	int rc = 0;

	if (!t->still || before.wrong || before.read_back)
		return;
	buffer = malloc(bytes);
	if (!buffer)
		rc = -ENOMEM;
	for (uint32_t i = 0; i < t->n_regions && !rc; i++)
		rc = read_region(t, i, buffer,
				 (uint32_t)(bytes / t->regions[i].info.desc.page_bytes));
	if (!rc && ferry_still_check(t->uffd.pid) == 1 &&
	    ferry_still_mark(t->uffd.pid, 0) == t->still_mark)
		return;
	/* What differs may be the process's own work. */
	t->verify->result = before;
	ferry_warn(t->log, "the memory can't be read back and compared: %s",
		   rc ? strerror(-rc) : "its process has run meanwhile");
}

/* --- the verdict -------------------------------------------------------------------------------- */

static void add_runs(const struct ferry_target *t, char *out, size_t size)
{
	const struct ferry_verified *v = &t->verify->result;

	for (uint32_t i = 0; i < v->n_runs; i++) {
		const struct ferry_run *run = &v->runs[i];
		size_t len = strlen(out);

		len += (size_t)snprintf(out + len, size - len, "%sregion %u page%s %" PRIu64,
					i ? ", " : "", run->region, run->n_pages > 1 ? "s" : "",
					run->first_page);
		if (run->n_pages > 1 && len < size)
			snprintf(out + len, size - len, "-%" PRIu64,
				 run->first_page + run->n_pages - 1);
		if (strlen(out) + 80 > size && i + 1 < v->n_runs) {
			len = strlen(out);
			snprintf(out + len, size - len, ", ...");
			return;
		}
	}
}

static int verdict(struct ferry_target *t, struct ferry_failure *f)
{
	const struct ferry_verified *v = &t->verify->result;
	char pages[240] = "";

	if (v->unknown)
		ferry_warn(t->log,
			   "%" PRIu64 " pages can't be verified: they were there before this command, "
			   "were discarded here before they came, or are lost",
			   v->unknown);
	if (!v->wrong)
		return 0;
	add_runs(t, pages, sizeof(pages));
	ferry_fail(f, FERRY_LOST, -EBADMSG,
		   "THE MEMORY IS NOT WHAT THE SOURCE HAS: %" PRIu64 " of %" PRIu64
		   " pages are wrong (%s)%s; don't trust what runs on it; the source is not released "
		   "and keeps its memory",
		   v->wrong, t->pager.pages_total, pages,
		   v->read_back ? ", changed after they were placed" : "");
	return FERRY_ENGINE_DIFFERS;
}

int ferry_engine_verify(struct ferry_target *t, struct ferry_channel *control, struct ferry_message *m,
			struct ferry_failure *f)
{
	int rc = ask_source(t, control, m, f);

	if (rc < 0)
		return rc;
	read_back(t);
	publish(t);
	return verdict(t, f);
}
