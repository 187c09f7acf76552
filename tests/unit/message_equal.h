/* SPDX-License-Identifier: Apache-2.0 */
/* Do two messages say the same? Field by field, without what is between and behind the fields. */
#ifndef FERRY_TESTS_MESSAGE_EQUAL_H
#define FERRY_TESTS_MESSAGE_EQUAL_H

#include <stdbool.h>
#include <string.h>

#include "protocol/message.h"

static inline bool layouts_equal(const struct ferry_layout *a, const struct ferry_layout *b)
{
	if (a->n_regions != b->n_regions || a->memory_id != b->memory_id)
		return false;
	for (uint32_t i = 0; i < a->n_regions; i++) {
		const struct ferry_region_desc *x = &a->regions[i], *y = &b->regions[i];

		if (x->id != y->id || x->page_bytes != y->page_bytes || x->n_pages != y->n_pages ||
		    strcmp(x->name, y->name))
			return false;
	}
	return true;
}

static inline bool runs_equal(const struct ferry_run *a, const struct ferry_run *b)
{
	return a->region == b->region && a->n_pages == b->n_pages && a->first_page == b->first_page;
}

static inline bool ranges_equal(const struct ferry_page_range *a, const struct ferry_page_range *b)
{
	return a->region == b->region && a->n_pages == b->n_pages && a->first_page == b->first_page;
}

static inline bool requests_equal(const struct ferry_page_request *a,
				  const struct ferry_page_request *b)
{
	if (a->request_id != b->request_id || a->n_runs != b->n_runs)
		return false;
	for (uint32_t i = 0; i < a->n_runs; i++)
		if (!runs_equal(&a->runs[i], &b->runs[i]))
			return false;
	return true;
}

static inline bool hellos_equal(const struct ferry_hello *a, const struct ferry_hello *b)
{
	return a->version_min == b->version_min && a->version_max == b->version_max &&
	       a->features == b->features && a->side == b->side && a->role == b->role &&
	       a->index == b->index && a->epoch == b->epoch &&
	       !memcmp(a->session.bytes, b->session.bytes, FERRY_SESSION_ID_BYTES);
}

static inline bool messages_equal(const struct ferry_message *a, const struct ferry_message *b)
{
	if (a->type != b->type)
		return false;
	switch (a->type) {
	case FERRY_FRAME_HELLO:
		return hellos_equal(&a->hello, &b->hello);
	case FERRY_FRAME_WELCOME:
		return a->welcome.version == b->welcome.version &&
		       a->welcome.features == b->welcome.features;
	case FERRY_FRAME_ERROR:
		return a->error.code == b->error.code && !strcmp(a->error.text, b->error.text);
	case FERRY_FRAME_LAYOUT:
		return layouts_equal(&a->layout, &b->layout);
	case FERRY_FRAME_RESIDENT:
		return ranges_equal(&a->resident, &b->resident);
	case FERRY_FRAME_DISCARDED:
		return ranges_equal(&a->discarded, &b->discarded);
	case FERRY_FRAME_PUSH_START:
		return a->push_start.max_bytes_per_second == b->push_start.max_bytes_per_second;
	case FERRY_FRAME_PING:
		return a->ping.sent_ns == b->ping.sent_ns;
	case FERRY_FRAME_PONG:
		return a->pong.ping_sent_ns == b->pong.ping_sent_ns &&
		       a->pong.received_ns == b->pong.received_ns &&
		       a->pong.sent_ns == b->pong.sent_ns;
	case FERRY_FRAME_PAGE_REQUEST:
		return requests_equal(&a->request, &b->request);
	case FERRY_FRAME_PAGE_RUN:
		return runs_equal(&a->run.run, &b->run.run) && a->run.encoding == b->run.encoding &&
		       a->run.request_id == b->run.request_id &&
		       a->run.received_ns == b->run.received_ns &&
		       a->run.answered_ns == b->run.answered_ns &&
		       a->run.has_checksum == b->run.has_checksum &&
		       a->run.checksum == b->run.checksum;
	case FERRY_FRAME_DIGEST_REQUEST:
	case FERRY_FRAME_DIGESTS:
		return a->digests.region == b->digests.region &&
		       a->digests.first_page == b->digests.first_page &&
		       a->digests.n_pages == b->digests.n_pages &&
		       a->digests.pages_each == b->digests.pages_each;
	case FERRY_FRAME_PREPARE:
		return !strcmp(a->prepare.vm, b->prepare.vm) &&
		       !strcmp(a->prepare.vmm_version, b->prepare.vmm_version) &&
		       !strcmp(a->prepare.machine, b->prepare.machine) &&
		       a->prepare.n_bulk == b->prepare.n_bulk &&
		       a->prepare.paused == b->prepare.paused &&
		       a->prepare.n_dense == b->prepare.n_dense &&
		       !memcmp(a->prepare.dense, b->prepare.dense,
			       a->prepare.n_dense * sizeof(a->prepare.dense[0])) &&
		       layouts_equal(&a->prepare.layout, &b->prepare.layout);
	case FERRY_FRAME_DEVICE_STATE_END:
		return a->device_state_end.total_bytes == b->device_state_end.total_bytes;
	case FERRY_FRAME_COMMIT:
		return a->commit.stopped_for_ns == b->commit.stopped_for_ns;
	case FERRY_FRAME_RUNNING:
		return a->running.downtime_ns == b->running.downtime_ns;
	case FERRY_FRAME_ABORT:
		return !strcmp(a->abort.reason, b->abort.reason);
	case FERRY_FRAME_LAYOUT_OK:
	case FERRY_FRAME_COMPLETE:
	case FERRY_FRAME_RELEASED:
	case FERRY_FRAME_PUSH_DONE:
	case FERRY_FRAME_PREPARED:
	case FERRY_FRAME_STOPPED:
	case FERRY_FRAME_DEVICE_STATE:
	case FERRY_FRAME_LOADED:
		return true;
	}
	return false;
}

/* The value of enum ferry_frame_type numbered @i, 0 past the last. */
static inline enum ferry_frame_type frame_type_at(unsigned int i)
{
	for (unsigned int t = 0; t < FERRY_FRAME_TYPE_MAX; t++)
		if (ferry_frame_type_name(t) && i-- == 0)
			return (enum ferry_frame_type)t;
	return (enum ferry_frame_type)0;
}

#define N_FRAME_TYPES 26u

#endif
