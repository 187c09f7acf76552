/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Answers to DigestRequest: what the memory is, for a target that compares all of it.
 *
 * A thread of its own for each request, one at a time a session, of a low priority: it reads the
 * source anew, so that nothing that was remembered while pages were sent (holes, zero pages, bytes
 * on their way) has a say. Holes are those that the kernel knows of now.
 *
 *  1. ferry_digest_start() by the loop thread, when the request comes.
 *  2. The thread reads pieces into its buffer and adds up; it looks at the wish to stop between two.
 *  3. It wakes the loop, which joins it and sends the answer, or drops it in another epoch.
 *
 * Limits: FERRY_MAX_DIGESTS times FERRY_MAX_DIGEST_PAGES pages a request, one buffer of a piece.
 */
#include <endian.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "pageserver/server_internal.h"
#include "protocol/checksum.h"

#define PIECE_BYTES (256 * FERRY_KIB)
#define STACK_BYTES (128 * FERRY_KIB)
#define LOOK_US	    5000 /* how often a gated source is asked again */

struct ferry_digest {
	struct ferry_server *server;
	uint32_t epoch;
	pthread_t thread;
	atomic_bool stop, ended;
	struct ferry_digest_range range;
	uint64_t sums[FERRY_MAX_DIGESTS]; /* in the byte order of the wire once it has ended */
	uint8_t *scratch;		  /* owned; NULL when the source doesn't copy */
	int result;
	struct ferry_run failed;
};

static bool stopped(const struct ferry_digest *d)
{
	return atomic_load_explicit(&d->stop, memory_order_relaxed);
}

static int add_page(struct ferry_digest *d, uint64_t page, const void *data)
{
	struct ferry_source *source = d->server->config.sources[d->range.region];
	int rc = ferry_source_is_zero(source, page, data);
	uint64_t sum;

	if (rc)
		return rc < 0 ? rc : 0;
	rc = ferry_source_checksum(source, page, 1, data,
				   ferry_page_digest_seed(d->range.region, page), &sum);
	if (!rc)
		d->sums[(page - d->range.first_page) / d->range.pages_each] += sum;
	return rc;
}

static int add_piece(struct ferry_digest *d, const struct ferry_run *piece)
{
	struct ferry_source *source = d->server->config.sources[piece->region];
	uint32_t page_bytes = ferry_source_desc(source)->page_bytes;
	const uint8_t *data;
	const void *at;
	int rc;

	/* What a cache does not keep comes again. */
	while (!ferry_source_has(source, piece->first_page, piece->n_pages, true)) {
		if (stopped(d))
			return -ECANCELED;
		usleep(LOOK_US);
	}
	rc = ferry_source_pages(source, piece->first_page, piece->n_pages, d->scratch, &at);
	data = at;
	for (uint32_t i = 0; i < piece->n_pages && !rc; i++)
		rc = add_page(d, piece->first_page + i, data + (size_t)i * page_bytes);
	if (rc < 0)
		d->failed = *piece;
	return rc;
}

static int run(struct ferry_digest *d)
{
	struct ferry_source *source = d->server->config.sources[d->range.region];
	uint32_t most = FERRY_MAX(PIECE_BYTES / ferry_source_desc(source)->page_bytes, 1u);
	uint64_t end = d->range.first_page + d->range.n_pages, data_end = d->range.first_page;

	for (uint64_t at = d->range.first_page; at < end;) {
		struct ferry_run piece = {.region = d->range.region};
		uint64_t first = at;
		int rc = 0;

		if (stopped(d))
			return -ECANCELED;
		if (at == data_end) {
			rc = ferry_source_next_data(source, at, &first, &data_end);
			if (rc < 0)
				d->failed = (struct ferry_run){d->range.region, 1, at};
		}
		if (rc < 0 || first >= end)
			return rc;
		piece.first_page = first;
		piece.n_pages = (uint32_t)FERRY_MIN(FERRY_MIN(data_end, end) - first, (uint64_t)most);
		rc = add_piece(d, &piece);
		if (rc < 0)
			return rc;
		at = first + piece.n_pages;
	}
	return 0;
}

static void *digest_main(void *arg)
{
	struct ferry_digest *d = arg;
	struct ferry_server *s = d->server; /* @d is not ours any more once it has ended */

	setpriority(PRIO_PROCESS, (id_t)gettid(), s->is_raised ? 0 : LOW_NICE);
	d->result = run(d);
	for (uint32_t i = 0; i < ferry_digest_count(&d->range); i++)
		d->sums[i] = htole64(d->sums[i]);
	atomic_store(&d->ended, true);
	ferry_loop_wake(s);
	return NULL;
}

int ferry_digest_start(struct ferry_peer *p, const struct ferry_digest_range *range)
{
	struct ferry_source *source = p->server->config.sources[range->region];
	struct ferry_digest *d = calloc(1, sizeof(*d));
	size_t bytes = FERRY_MAX(PIECE_BYTES, (size_t)ferry_source_desc(source)->page_bytes);
	int rc;

	if (!d)
		return -ENOMEM;
	d->server = p->server;
	d->epoch = ferry_session_epoch(p->session);
	d->range = *range;
	if (ferry_source_copies(source))
		d->scratch = aligned_alloc(FERRY_PAGE_SIZE_DEFAULT, bytes);
	rc = ferry_source_copies(source) && !d->scratch
		     ? -ENOMEM
		     : ferry_server_thread(&d->thread, STACK_BYTES, digest_main, d);
	if (rc < 0) {
		free(d->scratch);
		free(d);
		return rc;
	}
	p->digest = d;
	return 0;
}

void ferry_digest_stop(struct ferry_digest *d)
{
	atomic_store_explicit(&d->stop, true, memory_order_relaxed);
}

/* Tell the target what came out. Return: false to be called again when there is room for it. */
static bool answer(struct ferry_peer *p, const struct ferry_digest *d)
{
	struct ferry_message m = {
		.type = FERRY_FRAME_DIGESTS,
		.digests = d->range,
		.payload = (const uint8_t *)d->sums,
		.payload_bytes = ferry_digest_count(&d->range) * 8,
	};

	if (!p->control || d->epoch != ferry_session_epoch(p->session) || d->result == -ECANCELED)
		return true;
	if (d->result < 0) {
		ferry_peer_unavailable(p, &d->failed, d->result);
		return true;
	}
	return p->control->stage != CONN_LIVE || ferry_conn_send_copied(p->control, &m);
}

bool ferry_digest_reap(struct ferry_peer *p)
{
	struct ferry_digest *d = p->digest;

	if (!d || !atomic_load(&d->ended) || !answer(p, d))
		return false;
	pthread_join(d->thread, NULL);
	p->digest = NULL;
	free(d->scratch);
	free(d);
	return true;
}
