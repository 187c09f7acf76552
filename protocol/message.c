/* SPDX-License-Identifier: Apache-2.0 */
#include "protocol/message.h"

#include <errno.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "protocol/pageferry.pb-c.h"

#define SOFTWARE "pageferry " FERRY_VERSION_TEXT

int ferry_arena_init(struct ferry_arena *a)
{
	a->data = malloc(FERRY_ARENA_BYTES);
	if (!a->data)
		return -ENOMEM;
	a->size = FERRY_ARENA_BYTES;
	a->used = 0;
	return 0;
}

void ferry_arena_fini(struct ferry_arena *a)
{
	free(a->data);
	*a = (struct ferry_arena){0};
}

static void *arena_alloc(void *ctx, size_t size)
{
	struct ferry_arena *a = ctx;
	size_t rounded = (size + 15) & ~(size_t)15;
	void *p;

	if (rounded < size || rounded > a->size - a->used)
		return NULL;
	p = a->data + a->used;
	a->used += rounded;
	return p;
}

/* Everything is freed at once, when the next message is decoded. */
static void arena_free(void *ctx, void *p)
{
	(void)ctx;
	(void)p;
}

static int bad(char *why, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

static int bad(char *why, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(why, FERRY_MAX_TEXT, fmt, ap);
	va_end(ap);
	return -EPROTO;
}

/* Return: the bytes of the UTF-8 character at @in, 0 when there is none. */
static size_t utf8_bytes(const unsigned char *in)
{
	size_t n;

	if (in[0] < 0x80)
		return 1;
	if (in[0] < 0xc2 || in[0] > 0xf4)
		return 0;
	n = in[0] < 0xe0 ? 2 : in[0] < 0xf0 ? 3 : 4;
	for (size_t i = 1; i < n; i++)
		if ((in[i] & 0xc0) != 0x80)
			return 0;
	/* Overlong forms, surrogates, and what lies past the last character. */
	if ((in[0] == 0xe0 && in[1] < 0xa0) || (in[0] == 0xed && in[1] > 0x9f) ||
	    (in[0] == 0xf0 && in[1] < 0x90) || (in[0] == 0xf4 && in[1] > 0x8f))
		return 0;
	return n;
}

/*
 * Copies text from a peer: cut to fit between two characters, and with '?' for control characters
 * and for what is not UTF-8. It may end on a terminal or in a line of JSON.
 */
static void copy_text(char *out, size_t size, const char *text)
{
	const unsigned char *in = (const unsigned char *)(text ? text : "");
	size_t len = 0;

	while (*in) {
		size_t n = utf8_bytes(in);
		bool plain = n > 2 || (n == 2 && (in[0] != 0xc2 || in[1] >= 0xa0)) ||
			     (n == 1 && in[0] >= 0x20 && in[0] != 0x7f);

		if (len + (plain ? n : 1) >= size)
			break;
		if (plain)
			memcpy(out + len, in, n);
		else
			out[len] = '?';
		len += plain ? n : 1;
		in += n ? n : 1;
	}
	out[len] = '\0';
}

/* --- encoding ----------------------------------------------------------------------------- */

struct regions_wire {
	Pageferry__Region region[FERRY_MAX_REGIONS];
	Pageferry__Region *list[FERRY_MAX_REGIONS];
};

static void layout_to_wire(const struct ferry_layout *l, struct regions_wire *w)
{
	for (uint32_t i = 0; i < l->n_regions; i++) {
		const struct ferry_region_desc *r = &l->regions[i];

		pageferry__region__init(&w->region[i]);
		w->region[i].id = r->id;
		w->region[i].name = (char *)r->name;
		w->region[i].n_pages = r->n_pages;
		w->region[i].page_bytes = r->page_bytes;
		w->list[i] = &w->region[i];
	}
}

/* Packs @msg behind the header. Return: the size of the message, or -EMSGSIZE. */
static int pack(const ProtobufCMessage *msg, uint8_t *out, size_t size)
{
	size_t n = protobuf_c_message_get_packed_size(msg);

	if (n > FERRY_MAX_MESSAGE_BYTES || FERRY_FRAME_HEADER_BYTES + n > size)
		return -EMSGSIZE;
	protobuf_c_message_pack(msg, out + FERRY_FRAME_HEADER_BYTES);
	return (int)n;
}

static int pack_request(const struct ferry_page_request *r, uint8_t *out, size_t size)
{
	Pageferry__PageRequest w = PAGEFERRY__PAGE_REQUEST__INIT;
	uint64_t first_page[FERRY_MAX_REQUEST_RUNS];
	uint32_t region[FERRY_MAX_REQUEST_RUNS];
	uint32_t n_pages[FERRY_MAX_REQUEST_RUNS];

	if (r->n_runs > FERRY_MAX_REQUEST_RUNS)
		return -EMSGSIZE;
	for (uint32_t i = 0; i < r->n_runs; i++) {
		region[i] = r->runs[i].region;
		first_page[i] = r->runs[i].first_page;
		n_pages[i] = r->runs[i].n_pages;
	}
	w.request_id = r->request_id;
	w.n_region = w.n_first_page = w.n_n_pages = r->n_runs;
	w.region = region;
	w.first_page = first_page;
	w.n_pages = n_pages;
	return pack(&w.base, out, size);
}

static int pack_run(const struct ferry_page_run *r, uint8_t *out, size_t size)
{
	Pageferry__PageRun w = PAGEFERRY__PAGE_RUN__INIT;

	w.region = r->run.region;
	w.first_page = r->run.first_page;
	w.n_pages = r->run.n_pages;
	w.encoding = (uint32_t)r->encoding;
	w.request_id = r->request_id;
	w.has_received_ns = r->received_ns != 0;
	w.received_ns = r->received_ns;
	w.has_answered_ns = r->answered_ns != 0;
	w.answered_ns = r->answered_ns;
	w.has_checksum = r->has_checksum;
	w.checksum = r->checksum;
	return pack(&w.base, out, size);
}

static int pack_hello(const struct ferry_hello *h, uint8_t *out, size_t size)
{
	Pageferry__Hello w = PAGEFERRY__HELLO__INIT;

	w.version_min = h->version_min;
	w.version_max = h->version_max;
	w.features = h->features;
	w.session_id.data = (uint8_t *)h->session.bytes;
	w.session_id.len = FERRY_SESSION_ID_BYTES;
	w.side = (Pageferry__Side)h->side;
	w.role = (Pageferry__Role)h->role;
	w.index = h->index;
	w.has_epoch = h->epoch != 0;
	w.epoch = h->epoch;
	w.software = (char *)SOFTWARE;
	return pack(&w.base, out, size);
}

static int pack_prepare(const struct ferry_prepare *p, uint8_t *out, size_t size)
{
	Pageferry__Prepare w = PAGEFERRY__PREPARE__INIT;
	struct regions_wire regions;
	uint32_t dense[3 * FERRY_MAX_DENSE_RUNS];

	if (p->layout.n_regions > FERRY_MAX_REGIONS || p->n_dense > FERRY_MAX_DENSE_RUNS)
		return -EMSGSIZE;
	layout_to_wire(&p->layout, &regions);
	for (uint32_t i = 0; i < p->n_dense; i++) {
		dense[3 * i] = p->dense[i].region;
		dense[3 * i + 1] = p->dense[i].first;
		dense[3 * i + 2] = p->dense[i].n_blocks;
	}
	w.n_dense = 3 * p->n_dense;
	w.dense = dense;
	w.vm = (char *)p->vm;
	w.n_regions = p->layout.n_regions;
	w.regions = regions.list;
	w.vmm_version = (char *)p->vmm_version;
	w.machine = (char *)p->machine;
	w.has_n_bulk = 1;
	w.n_bulk = p->n_bulk;
	w.has_paused = w.paused = p->paused;
	return pack(&w.base, out, size);
}

static int pack_range(enum ferry_frame_type type, const struct ferry_page_range *r, uint8_t *out,
		      size_t size)
{
	if (type == FERRY_FRAME_RESIDENT) {
		Pageferry__Resident w = PAGEFERRY__RESIDENT__INIT;

		w.region = r->region;
		w.first_page = r->first_page;
		w.n_pages = r->n_pages;
		return pack(&w.base, out, size);
	} else {
		Pageferry__Discarded w = PAGEFERRY__DISCARDED__INIT;

		w.region = r->region;
		w.first_page = r->first_page;
		w.n_pages = r->n_pages;
		return pack(&w.base, out, size);
	}
}

static int pack_digests(enum ferry_frame_type type, const struct ferry_digest_range *r, uint8_t *out,
			size_t size)
{
	Pageferry__DigestRequest request = PAGEFERRY__DIGEST_REQUEST__INIT;
	Pageferry__Digests digests = PAGEFERRY__DIGESTS__INIT;

	if (type == FERRY_FRAME_DIGEST_REQUEST) {
		request.region = r->region;
		request.first_page = r->first_page;
		request.n_pages = r->n_pages;
		request.pages_each = r->pages_each;
		return pack(&request.base, out, size);
	}
	digests.region = r->region;
	digests.first_page = r->first_page;
	digests.n_pages = r->n_pages;
	digests.pages_each = r->pages_each;
	return pack(&digests.base, out, size);
}

static int pack_message(const struct ferry_message *m, uint8_t *out, size_t size)
{
	switch (m->type) {
	case FERRY_FRAME_HELLO:
		return pack_hello(&m->hello, out, size);
	case FERRY_FRAME_WELCOME: {
		Pageferry__Welcome w = PAGEFERRY__WELCOME__INIT;

		w.version = m->welcome.version;
		w.features = m->welcome.features;
		w.software = (char *)SOFTWARE;
		return pack(&w.base, out, size);
	}
	case FERRY_FRAME_ERROR: {
		Pageferry__Error w = PAGEFERRY__ERROR__INIT;

		w.code = (Pageferry__ErrorCode)m->error.code;
		w.text = (char *)m->error.text;
		return pack(&w.base, out, size);
	}
	case FERRY_FRAME_LAYOUT: {
		Pageferry__Layout w = PAGEFERRY__LAYOUT__INIT;
		struct regions_wire regions;

		if (m->layout.n_regions > FERRY_MAX_REGIONS)
			return -EMSGSIZE;
		layout_to_wire(&m->layout, &regions);
		w.n_regions = m->layout.n_regions;
		w.regions = regions.list;
		w.has_memory_id = m->layout.memory_id != 0;
		w.memory_id = m->layout.memory_id;
		return pack(&w.base, out, size);
	}
	case FERRY_FRAME_RESIDENT:
		return pack_range(m->type, &m->resident, out, size);
	case FERRY_FRAME_DISCARDED:
		return pack_range(m->type, &m->discarded, out, size);
	case FERRY_FRAME_PUSH_START: {
		Pageferry__PushStart w = PAGEFERRY__PUSH_START__INIT;

		w.has_max_bytes_per_second = 1;
		w.max_bytes_per_second = m->push_start.max_bytes_per_second;
		return pack(&w.base, out, size);
	}
	case FERRY_FRAME_PING: {
		Pageferry__Ping w = PAGEFERRY__PING__INIT;

		w.sent_ns = m->ping.sent_ns;
		return pack(&w.base, out, size);
	}
	case FERRY_FRAME_PONG: {
		Pageferry__Pong w = PAGEFERRY__PONG__INIT;

		w.ping_sent_ns = m->pong.ping_sent_ns;
		w.received_ns = m->pong.received_ns;
		w.sent_ns = m->pong.sent_ns;
		return pack(&w.base, out, size);
	}
	case FERRY_FRAME_PAGE_REQUEST:
		return pack_request(&m->request, out, size);
	case FERRY_FRAME_PAGE_RUN:
		return pack_run(&m->run, out, size);
	case FERRY_FRAME_DIGEST_REQUEST:
	case FERRY_FRAME_DIGESTS:
		return pack_digests(m->type, &m->digests, out, size);
	case FERRY_FRAME_PREPARE:
		return pack_prepare(&m->prepare, out, size);
	case FERRY_FRAME_DEVICE_STATE_END: {
		Pageferry__DeviceStateEnd w = PAGEFERRY__DEVICE_STATE_END__INIT;

		w.total_bytes = m->device_state_end.total_bytes;
		return pack(&w.base, out, size);
	}
	case FERRY_FRAME_COMMIT: {
		Pageferry__Commit w = PAGEFERRY__COMMIT__INIT;

		w.stopped_for_ns = m->commit.stopped_for_ns;
		return pack(&w.base, out, size);
	}
	case FERRY_FRAME_RUNNING: {
		Pageferry__Running w = PAGEFERRY__RUNNING__INIT;

		w.downtime_ns = m->running.downtime_ns;
		return pack(&w.base, out, size);
	}
	case FERRY_FRAME_ABORT: {
		Pageferry__Abort w = PAGEFERRY__ABORT__INIT;

		w.reason = (char *)m->abort.reason;
		return pack(&w.base, out, size);
	}
	/* The type says it all: these messages are empty. */
	case FERRY_FRAME_LAYOUT_OK:
	case FERRY_FRAME_COMPLETE:
	case FERRY_FRAME_RELEASED:
	case FERRY_FRAME_PUSH_DONE:
	case FERRY_FRAME_PREPARED:
	case FERRY_FRAME_STOPPED:
	case FERRY_FRAME_DEVICE_STATE:
	case FERRY_FRAME_LOADED:
		return size < FERRY_FRAME_HEADER_BYTES ? -EMSGSIZE : 0;
	}
	return -EINVAL;
}

int ferry_message_encode(const struct ferry_message *m, uint8_t *out, size_t size)
{
	int n = pack_message(m, out, size);

	if (n < 0)
		return n;
	ferry_frame_header_encode(&(struct ferry_frame_header){.type = m->type,
							       .msg_bytes = (uint32_t)n,
							       .payload_bytes = m->payload_bytes},
				  out);
	return (int)FERRY_FRAME_HEADER_BYTES + n;
}

/* --- decoding ----------------------------------------------------------------------------- */

static bool is_size(uint64_t n_pages)
{
	return n_pages && n_pages <= FERRY_MAX_REGION_PAGES;
}

static bool is_page_size(uint32_t bytes)
{
	return bytes >= FERRY_MIN_PAGE_BYTES && bytes <= FERRY_MAX_PAGE_BYTES &&
	       !(bytes & (bytes - 1));
}

bool ferry_region_desc_is_possible(const struct ferry_region_desc *r)
{
	return is_size(r->n_pages) && is_page_size(r->page_bytes) &&
	       memchr(r->name, 0, sizeof(r->name));
}

static int layout_from_wire(size_t n, Pageferry__Region **list, uint64_t memory_id,
			    struct ferry_layout *out, char *why)
{
	if (!n || n > FERRY_MAX_REGIONS)
		return bad(why, "%zu regions; 1 to %d are possible", n, FERRY_MAX_REGIONS);
	out->n_regions = (uint32_t)n;
	out->memory_id = memory_id;
	for (uint32_t i = 0; i < n; i++) {
		const Pageferry__Region *w = list[i];
		struct ferry_region_desc *r = &out->regions[i];

		if (w->id != i)
			return bad(why, "region %u has id %u", i, w->id);
		if (!*w->name || strlen(w->name) >= FERRY_MAX_REGION_NAME)
			return bad(why, "region %u: its name is empty or too long", i);
		if (!is_size(w->n_pages))
			return bad(why, "region %u: impossible size", i);
		if (!is_page_size(w->page_bytes))
			return bad(why, "region %u: impossible page size %u", i, w->page_bytes);
		r->id = i;
		r->n_pages = w->n_pages;
		r->page_bytes = w->page_bytes;
		copy_text(r->name, sizeof(r->name), w->name);
	}
	return 0;
}

static int hello_from_wire(const Pageferry__Hello *w, struct ferry_hello *h, char *why)
{
	if (w->version_min > w->version_max)
		return bad(why, "version range %u to %u", w->version_min, w->version_max);
	if (w->session_id.len != FERRY_SESSION_ID_BYTES)
		return bad(why, "session id of %zu bytes", w->session_id.len);
	if (w->side < PAGEFERRY__SIDE__SIDE_SOURCE || w->side > PAGEFERRY__SIDE__SIDE_TARGET)
		return bad(why, "unknown side %d", (int)w->side);
	if (w->role < PAGEFERRY__ROLE__ROLE_CONTROL || w->role > PAGEFERRY__ROLE__ROLE_SWITCHOVER)
		return bad(why, "unknown role %d", (int)w->role);
	if (w->index >= (w->role == PAGEFERRY__ROLE__ROLE_BULK ? FERRY_MAX_BULK : 1))
		return bad(why, "connection index %u is too high", w->index);
	h->version_min = w->version_min;
	h->version_max = w->version_max;
	h->features = w->features;
	memcpy(h->session.bytes, w->session_id.data, FERRY_SESSION_ID_BYTES);
	h->side = (enum ferry_side)w->side;
	h->role = (enum ferry_role)w->role;
	h->index = w->index;
	h->epoch = w->has_epoch ? w->epoch : 0;
	return 0;
}

/* A range as such; whether the region has these pages is for whoever knows the layout. */
static int check_range(uint32_t region, uint64_t first, uint64_t n, char *why)
{
	if (region >= FERRY_MAX_REGIONS || !n || n > FERRY_MAX_REGION_PAGES ||
	    first > FERRY_MAX_REGION_PAGES - n)
		return bad(why, "impossible pages %llu+%llu of region %u",
			   (unsigned long long)first, (unsigned long long)n, region);
	return 0;
}

static int request_from_wire(const Pageferry__PageRequest *w, struct ferry_page_request *r,
			     char *why)
{
	size_t n = w->n_region;

	if (!w->request_id)
		return bad(why, "request id 0");
	if (!n || n > FERRY_MAX_REQUEST_RUNS || w->n_first_page != n || w->n_n_pages != n)
		return bad(why, "request of %zu/%zu/%zu runs", n, w->n_first_page, w->n_n_pages);
	r->request_id = w->request_id;
	r->n_runs = (uint32_t)n;
	for (size_t i = 0; i < n; i++) {
		if (w->n_pages[i] > FERRY_MAX_REQUEST_RUN_PAGES)
			return bad(why, "request for %u pages in one run", w->n_pages[i]);
		if (check_range(w->region[i], w->first_page[i], w->n_pages[i], why) < 0)
			return -EPROTO;
		r->runs[i] = (struct ferry_run){.region = w->region[i],
						.first_page = w->first_page[i],
						.n_pages = w->n_pages[i]};
	}
	return 0;
}

static int run_from_wire(const Pageferry__PageRun *w, uint32_t payload_bytes,
			 struct ferry_page_run *r, char *why)
{
	if (check_range(w->region, w->first_page, w->n_pages, why) < 0)
		return -EPROTO;
	switch (w->encoding) {
	case FERRY_ENCODING_RAW:
		if (payload_bytes % w->n_pages || payload_bytes / w->n_pages < FERRY_MIN_PAGE_BYTES)
			return bad(why, "%u bytes for %u pages", payload_bytes, w->n_pages);
		break;
	case FERRY_ENCODING_ZERO:
	case FERRY_ENCODING_LOST:
		if (payload_bytes)
			return bad(why, "pages without content with %u bytes", payload_bytes);
		break;
	default:
		return bad(why, "unknown encoding %u", w->encoding);
	}
	r->run = (struct ferry_run){
		.region = w->region, .first_page = w->first_page, .n_pages = w->n_pages};
	r->encoding = (enum ferry_encoding)w->encoding;
	r->request_id = w->request_id;
	r->received_ns = w->has_received_ns ? w->received_ns : 0;
	r->answered_ns = w->has_answered_ns ? w->answered_ns : 0;
	r->has_checksum = w->has_checksum;
	r->checksum = w->has_checksum ? w->checksum : 0;
	return 0;
}

static int resident_from_wire(const Pageferry__Resident *w, uint32_t payload_bytes,
			      struct ferry_page_range *r, char *why)
{
	if (check_range(w->region, w->first_page, w->n_pages, why) < 0)
		return -EPROTO;
	if (w->first_page % 64 || payload_bytes != (w->n_pages + 7) / 8)
		return bad(why, "bitmap of %u bytes for %llu pages from %llu", payload_bytes,
			   (unsigned long long)w->n_pages, (unsigned long long)w->first_page);
	*r = (struct ferry_page_range){w->region, w->first_page, w->n_pages};
	return 0;
}

static int digests_from_wire(const struct ferry_digest_range *r, char *why)
{
	if (check_range(r->region, r->first_page, r->n_pages, why) < 0)
		return -EPROTO;
	if (!r->pages_each || r->pages_each > FERRY_MAX_DIGEST_PAGES ||
	    r->n_pages > (uint64_t)r->pages_each * FERRY_MAX_DIGESTS)
		return bad(why, "digests of %llu pages, of %u pages each",
			   (unsigned long long)r->n_pages, r->pages_each);
	return 0;
}

static int dense_from_wire(const Pageferry__Prepare *w, struct ferry_prepare *p, char *why)
{
	if (w->n_dense % 3 || w->n_dense / 3 > FERRY_MAX_DENSE_RUNS)
		return bad(why, "%zu numbers for runs of dense blocks", w->n_dense);
	p->n_dense = (uint32_t)(w->n_dense / 3);
	for (uint32_t i = 0; i < p->n_dense; i++) {
		const uint32_t *at = &w->dense[3 * i];
		const struct ferry_region_desc *r =
			&p->layout.regions[FERRY_MIN(at[0], (uint32_t)FERRY_MAX_REGIONS - 1)];

		if (at[0] >= p->layout.n_regions || !at[2] ||
		    ((uint64_t)at[1] + at[2]) * FERRY_DENSE_BLOCK_BYTES > r->n_pages * r->page_bytes)
			return bad(why, "impossible dense blocks %u+%u of region %u", at[1], at[2],
				   at[0]);
		p->dense[i] = (struct ferry_block_run){
			.region = at[0], .first = at[1], .n_blocks = at[2]};
	}
	return 0;
}

static int prepare_from_wire(const Pageferry__Prepare *w, struct ferry_prepare *p, char *why)
{
	p->n_bulk = w->has_n_bulk ? w->n_bulk : 1;
	if (!p->n_bulk || p->n_bulk > FERRY_MAX_BULK)
		return bad(why, "%u bulk connections; 1 to %d are possible", p->n_bulk,
			   FERRY_MAX_BULK);
	p->paused = w->has_paused && w->paused;
	copy_text(p->vm, sizeof(p->vm), w->vm);
	copy_text(p->vmm_version, sizeof(p->vmm_version), w->vmm_version);
	copy_text(p->machine, sizeof(p->machine), w->machine);
	if (layout_from_wire(w->n_regions, w->regions, 0, &p->layout, why) < 0)
		return -EPROTO;
	return dense_from_wire(w, p, why);
}

static const ProtobufCMessageDescriptor *descriptor(enum ferry_frame_type type)
{
	switch (type) {
	case FERRY_FRAME_HELLO:
		return &pageferry__hello__descriptor;
	case FERRY_FRAME_WELCOME:
		return &pageferry__welcome__descriptor;
	case FERRY_FRAME_ERROR:
		return &pageferry__error__descriptor;
	case FERRY_FRAME_LAYOUT:
		return &pageferry__layout__descriptor;
	case FERRY_FRAME_LAYOUT_OK:
		return &pageferry__layout_ok__descriptor;
	case FERRY_FRAME_RESIDENT:
		return &pageferry__resident__descriptor;
	case FERRY_FRAME_PUSH_START:
		return &pageferry__push_start__descriptor;
	case FERRY_FRAME_DISCARDED:
		return &pageferry__discarded__descriptor;
	case FERRY_FRAME_COMPLETE:
		return &pageferry__complete__descriptor;
	case FERRY_FRAME_RELEASED:
		return &pageferry__released__descriptor;
	case FERRY_FRAME_PING:
		return &pageferry__ping__descriptor;
	case FERRY_FRAME_PONG:
		return &pageferry__pong__descriptor;
	case FERRY_FRAME_PAGE_REQUEST:
		return &pageferry__page_request__descriptor;
	case FERRY_FRAME_PAGE_RUN:
		return &pageferry__page_run__descriptor;
	case FERRY_FRAME_PUSH_DONE:
		return &pageferry__push_done__descriptor;
	case FERRY_FRAME_DIGEST_REQUEST:
		return &pageferry__digest_request__descriptor;
	case FERRY_FRAME_DIGESTS:
		return &pageferry__digests__descriptor;
	case FERRY_FRAME_PREPARE:
		return &pageferry__prepare__descriptor;
	case FERRY_FRAME_PREPARED:
		return &pageferry__prepared__descriptor;
	case FERRY_FRAME_STOPPED:
		return &pageferry__stopped__descriptor;
	case FERRY_FRAME_DEVICE_STATE:
		return &pageferry__device_state__descriptor;
	case FERRY_FRAME_DEVICE_STATE_END:
		return &pageferry__device_state_end__descriptor;
	case FERRY_FRAME_LOADED:
		return &pageferry__loaded__descriptor;
	case FERRY_FRAME_COMMIT:
		return &pageferry__commit__descriptor;
	case FERRY_FRAME_RUNNING:
		return &pageferry__running__descriptor;
	case FERRY_FRAME_ABORT:
		return &pageferry__abort__descriptor;
	}
	return NULL;
}

/* A code that a later version added still says that something failed. */
static enum ferry_error_code error_code_from_wire(Pageferry__ErrorCode code)
{
	if (code < PAGEFERRY__ERROR_CODE__ERROR_PROTOCOL ||
	    code > PAGEFERRY__ERROR_CODE__ERROR_DAMAGED)
		return FERRY_ERROR_INTERNAL;
	return (enum ferry_error_code)code;
}

static int from_wire(const ProtobufCMessage *base, struct ferry_message *m, char *why)
{
	const void *w = base;

	switch (m->type) {
	case FERRY_FRAME_HELLO:
		return hello_from_wire(w, &m->hello, why);
	case FERRY_FRAME_WELCOME:
		m->welcome.version = ((const Pageferry__Welcome *)w)->version;
		m->welcome.features = ((const Pageferry__Welcome *)w)->features;
		return 0;
	case FERRY_FRAME_ERROR:
		m->error.code = error_code_from_wire(((const Pageferry__Error *)w)->code);
		copy_text(m->error.text, sizeof(m->error.text), ((const Pageferry__Error *)w)->text);
		return 0;
	case FERRY_FRAME_LAYOUT: {
		const Pageferry__Layout *l = w;

		return layout_from_wire(l->n_regions, l->regions,
					l->has_memory_id ? l->memory_id : 0, &m->layout, why);
	}
	case FERRY_FRAME_RESIDENT:
		return resident_from_wire(w, m->payload_bytes, &m->resident, why);
	case FERRY_FRAME_DISCARDED: {
		const Pageferry__Discarded *d = w;

		m->discarded = (struct ferry_page_range){d->region, d->first_page, d->n_pages};
		return check_range(d->region, d->first_page, d->n_pages, why);
	}
	case FERRY_FRAME_PUSH_START: {
		const Pageferry__PushStart *p = w;

		m->push_start.max_bytes_per_second =
			p->has_max_bytes_per_second ? p->max_bytes_per_second : 0;
		return 0;
	}
	case FERRY_FRAME_PING:
		m->ping.sent_ns = ((const Pageferry__Ping *)w)->sent_ns;
		return 0;
	case FERRY_FRAME_PONG: {
		const Pageferry__Pong *p = w;

		m->pong = (struct ferry_pong){p->ping_sent_ns, p->received_ns, p->sent_ns};
		return 0;
	}
	case FERRY_FRAME_PAGE_REQUEST:
		return request_from_wire(w, &m->request, why);
	case FERRY_FRAME_PAGE_RUN:
		return run_from_wire(w, m->payload_bytes, &m->run, why);
	case FERRY_FRAME_DIGEST_REQUEST: {
		const Pageferry__DigestRequest *d = w;

		m->digests = (struct ferry_digest_range){d->region, d->pages_each, d->first_page,
							 d->n_pages};
		return digests_from_wire(&m->digests, why);
	}
	case FERRY_FRAME_DIGESTS: {
		const Pageferry__Digests *d = w;
		int rc;

		m->digests = (struct ferry_digest_range){d->region, d->pages_each, d->first_page,
							 d->n_pages};
		rc = digests_from_wire(&m->digests, why);
		if (!rc && m->payload_bytes != ferry_digest_count(&m->digests) * 8)
			rc = bad(why, "%u bytes for %u digests", m->payload_bytes,
				 ferry_digest_count(&m->digests));
		return rc;
	}
	case FERRY_FRAME_PREPARE:
		return prepare_from_wire(w, &m->prepare, why);
	case FERRY_FRAME_DEVICE_STATE:
		return m->payload_bytes ? 0 : bad(why, "an empty piece of device state");
	case FERRY_FRAME_DEVICE_STATE_END:
		m->device_state_end.total_bytes =
			((const Pageferry__DeviceStateEnd *)w)->total_bytes;
		return 0;
	case FERRY_FRAME_COMMIT:
		m->commit.stopped_for_ns = ((const Pageferry__Commit *)w)->stopped_for_ns;
		return 0;
	case FERRY_FRAME_RUNNING:
		m->running.downtime_ns = ((const Pageferry__Running *)w)->downtime_ns;
		return 0;
	case FERRY_FRAME_ABORT:
		copy_text(m->abort.reason, sizeof(m->abort.reason),
			  ((const Pageferry__Abort *)w)->reason);
		return 0;
	case FERRY_FRAME_LAYOUT_OK:
	case FERRY_FRAME_COMPLETE:
	case FERRY_FRAME_RELEASED:
	case FERRY_FRAME_PUSH_DONE:
	case FERRY_FRAME_PREPARED:
	case FERRY_FRAME_STOPPED:
	case FERRY_FRAME_LOADED:
		return 0;
	}
	return bad(why, "unknown type");
}

int ferry_message_decode(const struct ferry_frame *frame, struct ferry_arena *arena,
			 struct ferry_message *m, char *why)
{
	ProtobufCAllocator allocator = {arena_alloc, arena_free, arena};
	const ProtobufCMessageDescriptor *d = descriptor(frame->type);
	ProtobufCMessage *w;
	char detail[FERRY_MAX_TEXT] = "";
	int rc;

	if (!d)
		return bad(why, "unknown message type %d", (int)frame->type);
	arena->used = 0;
	w = protobuf_c_message_unpack(d, &allocator, frame->msg_bytes, frame->msg);
	if (!w)
		return bad(why, "%s: not a valid message", ferry_frame_type_name(frame->type));
	m->type = frame->type;
	m->payload = frame->payload;
	m->payload_bytes = frame->payload_bytes;
	rc = from_wire(w, m, detail);
	if (rc < 0)
		snprintf(why, FERRY_MAX_TEXT, "%.20s: %.360s", ferry_frame_type_name(frame->type), detail);
	return rc;
}
