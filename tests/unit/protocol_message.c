/* SPDX-License-Identifier: Apache-2.0 */
/* What is encoded is decoded again: seeded random messages of every type, with values at the
 * limits. */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/util.h"
#include "message_equal.h"

struct random {
	uint64_t state;
};

static uint64_t any(struct random *r)
{
	r->state ^= r->state << 13;
	r->state ^= r->state >> 7;
	r->state ^= r->state << 17;
	return r->state;
}

/* From @min to @max; the ends themselves come often. */
static uint64_t between(struct random *r, uint64_t min, uint64_t max)
{
	switch (any(r) % 4) {
	case 0:
		return min;
	case 1:
		return max;
	default:
		return max - min == UINT64_MAX ? any(r) : min + any(r) % (max - min + 1);
	}
}

/* Text of any length that fits, with characters of one to four bytes. */
static void some_text(struct random *r, char *out, size_t size, size_t min)
{
	static const char *const characters[] = {"a", "Z", " ", "~", "é", "€", "😀", "\"", "\\"};
	size_t len = between(r, min, size - 1), at = 0;

	while (at < len) {
		const char *c = characters[any(r) % FERRY_ARRAY_SIZE(characters)];

		if (at + strlen(c) > len)
			c = "x";
		memcpy(out + at, c, strlen(c));
		at += strlen(c);
	}
	out[at] = '\0';
}

static void some_layout(struct random *r, struct ferry_layout *l)
{
	l->n_regions = (uint32_t)between(r, 1, FERRY_MAX_REGIONS);
	for (uint32_t i = 0; i < l->n_regions; i++) {
		l->regions[i].id = i;
		l->regions[i].page_bytes = 1u << between(r, 12, 21);
		l->regions[i].n_pages = between(r, 1, FERRY_MAX_REGION_PAGES);
		some_text(r, l->regions[i].name, FERRY_MAX_REGION_NAME, 1);
	}
}

static struct ferry_page_range some_range(struct random *r, uint64_t max_pages)
{
	struct ferry_page_range p;

	p.region = (uint32_t)between(r, 0, FERRY_MAX_REGIONS - 1);
	p.n_pages = between(r, 1, max_pages);
	p.first_page = between(r, 0, FERRY_MAX_REGION_PAGES - p.n_pages);
	return p;
}

static struct ferry_run some_run(struct random *r, uint64_t max_pages)
{
	struct ferry_page_range p = some_range(r, max_pages);

	return (struct ferry_run){p.region, (uint32_t)p.n_pages, p.first_page};
}

static void some_hello(struct random *r, struct ferry_hello *h)
{
	h->version_min = (uint32_t)between(r, 0, UINT32_MAX);
	h->version_max = (uint32_t)between(r, h->version_min, UINT32_MAX);
	h->features = between(r, 0, UINT64_MAX);
	for (size_t i = 0; i < FERRY_SESSION_ID_BYTES; i++)
		h->session.bytes[i] = (uint8_t)any(r);
	h->side = (enum ferry_side)between(r, FERRY_SIDE_SOURCE, FERRY_SIDE_TARGET);
	h->role = (enum ferry_role)between(r, FERRY_ROLE_CONTROL, FERRY_ROLE_SWITCHOVER);
	h->index = h->role == FERRY_ROLE_BULK ? (uint32_t)between(r, 0, FERRY_MAX_BULK - 1) : 0;
	h->epoch = (uint32_t)between(r, 0, UINT32_MAX);
}

static void some_page_run(struct random *r, struct ferry_message *m)
{
	m->run.encoding = (enum ferry_encoding)between(r, 0, 1);
	m->run.request_id = between(r, 0, UINT64_MAX);
	m->run.received_ns = between(r, 0, UINT64_MAX);
	m->run.answered_ns = between(r, 0, UINT64_MAX);
	if (m->run.encoding == FERRY_ENCODING_ZERO) {
		m->run.run = some_run(r, UINT32_MAX);
	} else {
		m->run.run = some_run(r, FERRY_MAX_RUN_BYTES / FERRY_MIN_PAGE_BYTES);
		m->payload_bytes = m->run.run.n_pages * FERRY_MIN_PAGE_BYTES;
	}
}

static void some_message(struct random *r, enum ferry_frame_type type, struct ferry_message *m)
{
	*m = (struct ferry_message){.type = type};
	switch (type) {
	case FERRY_FRAME_HELLO:
		some_hello(r, &m->hello);
		break;
	case FERRY_FRAME_WELCOME:
		m->welcome.version = (uint32_t)between(r, 0, UINT32_MAX);
		m->welcome.features = between(r, 0, UINT64_MAX);
		break;
	case FERRY_FRAME_ERROR:
		m->error.code = (enum ferry_error_code)between(r, 1, 7);
		some_text(r, m->error.text, sizeof(m->error.text), 0);
		break;
	case FERRY_FRAME_LAYOUT:
		some_layout(r, &m->layout);
		m->layout.memory_id = any(r);
		m->payload_bytes = (uint32_t)between(r, 0, FERRY_MAX_CONTROL_BYTES);
		break;
	case FERRY_FRAME_RESIDENT:
		m->resident = some_range(r, FERRY_MAX_CONTROL_BYTES * 8);
		m->resident.first_page &= ~UINT64_C(63);
		m->payload_bytes = (uint32_t)((m->resident.n_pages + 7) / 8);
		break;
	case FERRY_FRAME_DISCARDED:
		m->discarded = some_range(r, FERRY_MAX_REGION_PAGES);
		break;
	case FERRY_FRAME_PUSH_START:
		m->push_start.max_bytes_per_second = between(r, 0, UINT64_MAX);
		break;
	case FERRY_FRAME_PING:
		m->ping.sent_ns = between(r, 0, UINT64_MAX);
		break;
	case FERRY_FRAME_PONG:
		m->pong = (struct ferry_pong){any(r), any(r), any(r)};
		break;
	case FERRY_FRAME_PAGE_REQUEST:
		m->request.request_id = between(r, 1, UINT64_MAX);
		m->request.n_runs = (uint32_t)between(r, 1, FERRY_MAX_REQUEST_RUNS);
		for (uint32_t i = 0; i < m->request.n_runs; i++)
			m->request.runs[i] = some_run(r, FERRY_MAX_REQUEST_RUN_PAGES);
		break;
	case FERRY_FRAME_PAGE_RUN:
		some_page_run(r, m);
		break;
	case FERRY_FRAME_DIGEST_REQUEST:
	case FERRY_FRAME_DIGESTS: {
		struct ferry_page_range p = some_range(r, FERRY_MAX_DIGESTS * FERRY_MAX_DIGEST_PAGES);
		uint64_t least = (p.n_pages + FERRY_MAX_DIGESTS - 1) / FERRY_MAX_DIGESTS;

		m->digests = (struct ferry_digest_range){
			p.region, (uint32_t)between(r, least, FERRY_MAX_DIGEST_PAGES), p.first_page,
			p.n_pages};
		if (type == FERRY_FRAME_DIGESTS)
			m->payload_bytes = ferry_digest_count(&m->digests) * 8;
		break;
	}
	case FERRY_FRAME_PREPARE:
		some_text(r, m->prepare.vm, sizeof(m->prepare.vm), 0);
		some_text(r, m->prepare.vmm_version, sizeof(m->prepare.vmm_version), 0);
		some_text(r, m->prepare.machine, sizeof(m->prepare.machine), 0);
		m->prepare.n_bulk = (uint32_t)between(r, 1, FERRY_MAX_BULK);
		m->prepare.paused = any(r) & 1;
		some_layout(r, &m->prepare.layout);
		break;
	case FERRY_FRAME_DEVICE_STATE:
		m->payload_bytes = (uint32_t)between(r, 1, FERRY_MAX_CONTROL_BYTES);
		break;
	case FERRY_FRAME_DEVICE_STATE_END:
		m->device_state_end.total_bytes = between(r, 0, UINT64_MAX);
		break;
	case FERRY_FRAME_COMMIT:
		m->commit.stopped_for_ns = between(r, 0, UINT64_MAX);
		break;
	case FERRY_FRAME_RUNNING:
		m->running.downtime_ns = between(r, 0, UINT64_MAX);
		break;
	case FERRY_FRAME_ABORT:
		some_text(r, m->abort.reason, sizeof(m->abort.reason), 0);
		break;
	default:
		break; /* empty */
	}
}

/* Room for a whole frame; what is behind the message counts as the payload. */
static struct ferry_frame frame_in(const uint8_t *bytes, int encoded)
{
	struct ferry_frame_header h;

	cr_assert_eq(ferry_frame_header_decode(bytes, &h), 0);
	cr_assert_eq(FERRY_FRAME_HEADER_BYTES + h.msg_bytes, (size_t)encoded);
	return (struct ferry_frame){h.type, bytes + FERRY_FRAME_HEADER_BYTES, h.msg_bytes,
				    bytes + encoded, h.payload_bytes};
}

Test(message, what_is_encoded_is_decoded_again)
{
	_cleanup_free_ uint8_t *bytes = malloc(FERRY_MAX_ENCODED_BYTES + FERRY_MAX_RUN_BYTES);
	static struct ferry_message m, back;
	struct random r = {42};
	struct ferry_arena arena;

	cr_assert(bytes);
	cr_assert_eq(ferry_arena_init(&arena), 0);
	for (unsigned int round = 0; round < 500; round++) {
		for (unsigned int i = 0; i < N_FRAME_TYPES; i++) {
			const char *name = ferry_frame_type_name(frame_type_at(i));
			char why[FERRY_MAX_TEXT] = "";
			struct ferry_frame f;
			int n;

			some_message(&r, frame_type_at(i), &m);
			n = ferry_message_encode(&m, bytes, FERRY_MAX_ENCODED_BYTES);
			cr_assert_geq(n, (int)FERRY_FRAME_HEADER_BYTES, "%s", name);
			f = frame_in(bytes, n);
			memset(&back, 0x5a, sizeof(back));
			cr_assert_eq(ferry_message_decode(&f, &arena, &back, why), 0,
				     "round %u, %s: %s", round, name, why);
			cr_assert(messages_equal(&m, &back), "round %u, %s", round, name);
			cr_assert_eq(back.payload, f.payload);
			cr_assert_eq(back.payload_bytes, m.payload_bytes);
		}
	}
	ferry_arena_fini(&arena);
}

Test(message, a_page_run_takes_no_more_than_promised)
{
	struct ferry_message m = {FERRY_FRAME_PAGE_RUN,
				  .run = {{UINT32_MAX, UINT32_MAX, UINT64_MAX},
					  FERRY_ENCODING_ZERO,
					  UINT64_MAX,
					  UINT64_MAX,
					  UINT64_MAX,
					  true,
					  UINT64_MAX}};
	uint8_t out[FERRY_MAX_ENCODED_BYTES];

	cr_assert_leq(ferry_message_encode(&m, out, sizeof(out)), (int)FERRY_PAGE_RUN_BYTES);
}

/* Every message of every size of buffer: it fits or is refused, and no byte past it is touched. */
Test(message, encoding_keeps_within_its_buffer)
{
	static struct ferry_message m;
	static uint8_t out[FERRY_MAX_ENCODED_BYTES + 1];
	struct random r = {7};

	for (unsigned int i = 0; i < N_FRAME_TYPES; i++) {
		int n;

		some_message(&r, frame_type_at(i), &m);
		n = ferry_message_encode(&m, out, FERRY_MAX_ENCODED_BYTES);
		cr_assert_gt(n, 0);
		for (size_t size = 0; size <= (size_t)n; size++) {
			int got;

			out[size] = 0xa5;
			got = ferry_message_encode(&m, out, size);
			cr_assert_eq(got, size < (size_t)n ? -EMSGSIZE : n,
				     "%s, %zu of %d bytes: %d", ferry_frame_type_name(m.type), size,
				     n, got);
			cr_assert_eq(out[size], 0xa5);
		}
	}
}

Test(message, too_much_of_our_own_is_refused)
{
	static struct ferry_message m;
	static uint8_t out[FERRY_MAX_ENCODED_BYTES];

	m = (struct ferry_message){FERRY_FRAME_PAGE_REQUEST};
	m.request.n_runs = FERRY_MAX_REQUEST_RUNS + 1;
	cr_assert_eq(ferry_message_encode(&m, out, sizeof(out)), -EMSGSIZE);
	m = (struct ferry_message){FERRY_FRAME_LAYOUT};
	m.layout.n_regions = FERRY_MAX_REGIONS + 1;
	cr_assert_eq(ferry_message_encode(&m, out, sizeof(out)), -EMSGSIZE);
	m = (struct ferry_message){FERRY_FRAME_PREPARE};
	m.prepare.layout.n_regions = FERRY_MAX_REGIONS + 1;
	cr_assert_eq(ferry_message_encode(&m, out, sizeof(out)), -EMSGSIZE);
}

/* Cut anywhere, with any byte changed: refused or understood, but never read past its end. */
Test(message, damaged_messages_do_no_harm)
{
	static struct ferry_message m, back;
	static uint8_t bytes[FERRY_MAX_ENCODED_BYTES];
	struct random r = {99};
	struct ferry_arena arena;

	cr_assert_eq(ferry_arena_init(&arena), 0);
	for (unsigned int round = 0; round < 40 * N_FRAME_TYPES; round++) {
		char why[FERRY_MAX_TEXT];
		struct ferry_frame f;
		int n;

		some_message(&r, frame_type_at(round % N_FRAME_TYPES), &m);
		n = ferry_message_encode(&m, bytes, sizeof(bytes));
		f = frame_in(bytes, n);
		for (unsigned int i = 0; i < 50 && f.msg_bytes; i++) {
			uint32_t len = (uint32_t)between(&r, 0, f.msg_bytes);
			/* Of its exact size, so that a sanitizer sees what is read behind it. */
			_cleanup_free_ uint8_t *copy = malloc(len ? len : 1);
			struct ferry_frame damaged = {f.type, copy, len, NULL, f.payload_bytes};

			cr_assert(copy);
			memcpy(copy, f.msg, len);
			if (len)
				copy[any(&r) % len] = (uint8_t)any(&r);
			ferry_message_decode(&damaged, &arena, &back, why);
		}
	}
	ferry_arena_fini(&arena);
}
