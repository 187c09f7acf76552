/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Messages as plain structs. Encoding and decoding keep protobuf inside this folder: what comes out
 * of ferry_message_decode() has been validated against limits.h, and for what it says by itself;
 * whether it fits the layout and the state of the connection is the receiver's to check
 * (connection.h, layout.h).
 */
#ifndef FERRY_PROTOCOL_MESSAGE_H
#define FERRY_PROTOCOL_MESSAGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "protocol/frame.h"
#include "protocol/limits.h"

enum ferry_side {
	FERRY_SIDE_SOURCE = 1,
	FERRY_SIDE_TARGET = 2,
};

enum ferry_role {
	FERRY_ROLE_CONTROL = 1,
	FERRY_ROLE_URGENT = 2,
	FERRY_ROLE_BULK = 3,
	FERRY_ROLE_SWITCHOVER = 4,
};

enum ferry_error_code {
	FERRY_ERROR_PROTOCOL = 1,
	FERRY_ERROR_VERSION = 2,
	FERRY_ERROR_BUSY = 3,
	FERRY_ERROR_SESSION = 4,
	FERRY_ERROR_LAYOUT = 5,
	FERRY_ERROR_UNAVAILABLE = 6,
	FERRY_ERROR_INTERNAL = 7,
	FERRY_ERROR_DAMAGED = 8,
};

enum ferry_encoding {
	FERRY_ENCODING_RAW = 0,
	FERRY_ENCODING_ZERO = 1,
	FERRY_ENCODING_LOST = 2,
};

#define FERRY_FEATURE_SOURCE_TIMES (UINT64_C(1) << 0) /* answers carry the source's times */
#define FERRY_FEATURE_CHECKSUM	   (UINT64_C(1) << 1) /* every PageRun has one */
#define FERRY_FEATURE_LOST	   (UINT64_C(1) << 2) /* pages may be said to be lost */
#define FERRY_FEATURE_DIGEST	   (UINT64_C(1) << 3) /* the target may ask for digests */
#define FERRY_FEATURE_ALIVE	   (UINT64_C(1) << 4) /* urgent and bulk connections are watched */
#define FERRY_FEATURES_ALL                                                                         \
	(FERRY_FEATURE_SOURCE_TIMES | FERRY_FEATURE_CHECKSUM | FERRY_FEATURE_LOST |                \
	 FERRY_FEATURE_DIGEST | FERRY_FEATURE_ALIVE)

struct ferry_session_id {
	uint8_t bytes[FERRY_SESSION_ID_BYTES];
};

struct ferry_hello {
	uint32_t version_min, version_max;
	uint64_t features;
	struct ferry_session_id session;
	enum ferry_side side;
	enum ferry_role role;
	uint32_t index;
	uint32_t epoch;
	uint64_t withheld; /* not sent: features that the sender does not want */
};

struct ferry_welcome {
	uint32_t version;
	uint64_t features;
};

struct ferry_error_msg {
	enum ferry_error_code code;
	char text[FERRY_MAX_TEXT];
};

/* What both sides must have the same of. */
struct ferry_region_desc {
	uint32_t id;
	uint32_t page_bytes;
	uint64_t n_pages;
	char name[FERRY_MAX_REGION_NAME];
};

/* Is it one that a Layout could have? Of what comes from a file. */
bool ferry_region_desc_is_possible(const struct ferry_region_desc *r);

struct ferry_layout {
	uint32_t n_regions;
	struct ferry_region_desc regions[FERRY_MAX_REGIONS];
	uint64_t memory_id; /* 0 when absent */
};

/* A run of pages of one region. */
struct ferry_run {
	uint32_t region;
	uint32_t n_pages;
	uint64_t first_page;
};

struct ferry_page_request {
	uint64_t request_id;
	uint32_t n_runs;
	struct ferry_run runs[FERRY_MAX_REQUEST_RUNS];
};

struct ferry_page_run {
	struct ferry_run run;
	enum ferry_encoding encoding;
	uint64_t request_id;  /* 0 when pushed */
	uint64_t received_ns; /* source's clock; 0 when absent */
	uint64_t answered_ns;
	bool has_checksum;
	uint64_t checksum;
};

/* Resident, Discarded. */
struct ferry_page_range {
	uint32_t region;
	uint64_t first_page;
	uint64_t n_pages;
};

/* DigestRequest, Digests: pages, and how many of them each digest is of. */
struct ferry_digest_range {
	uint32_t region;
	uint32_t pages_each;
	uint64_t first_page;
	uint64_t n_pages;
};

static inline uint32_t ferry_digest_count(const struct ferry_digest_range *r)
{
	return (uint32_t)((r->n_pages + r->pages_each - 1) / r->pages_each);
}

/* Blocks of FERRY_DENSE_BLOCK_BYTES of a region, counted from its start. */
struct ferry_block_run {
	uint32_t region, first, n_blocks;
};

struct ferry_prepare {
	char vm[FERRY_MAX_TEXT];
	char vmm_version[FERRY_MAX_REGION_NAME];
	char machine[FERRY_MAX_REGION_NAME];
	uint32_t n_bulk;
	struct ferry_layout layout;
	bool paused; /* by its user: it stays so on the target */
	/* A hint: where nearly every page has content. Inside the layout, in no order. */
	uint32_t n_dense;
	struct ferry_block_run dense[FERRY_MAX_DENSE_RUNS];
};

struct ferry_pong {
	uint64_t ping_sent_ns, received_ns, sent_ns;
};

struct ferry_message {
	enum ferry_frame_type type;
	union {
		struct ferry_hello hello;
		struct ferry_welcome welcome;
		struct ferry_error_msg error;
		struct ferry_layout layout;
		struct ferry_page_range resident;
		struct ferry_page_range discarded;
		struct { uint64_t max_bytes_per_second; } push_start;
		struct { uint64_t sent_ns; } ping;
		struct ferry_pong pong;
		struct ferry_page_request request;
		struct ferry_page_run run;
		struct ferry_digest_range digests; /* both messages */
		struct ferry_prepare prepare;
		struct { uint64_t total_bytes; } device_state_end;
		struct { uint64_t stopped_for_ns; } commit;
		struct { uint64_t downtime_ns; } running;
		struct { char reason[FERRY_MAX_TEXT]; } abort;
	};
	/* What follows the message in its frame: given to encode, borrowed from the frame by decode. */
	const uint8_t *payload;
	uint32_t payload_bytes;
};

/* Memory for decoding one message at a time. Its size is fixed; nothing else is allocated. */
struct ferry_arena {
	uint8_t *data; /* owned */
	size_t size, used;
};

/* Errors: -ENOMEM. */
int ferry_arena_init(struct ferry_arena *a);
void ferry_arena_fini(struct ferry_arena *a);

/* The most that ferry_message_encode() ever writes. */
#define FERRY_MAX_ENCODED_BYTES (FERRY_FRAME_HEADER_BYTES + FERRY_MAX_MESSAGE_BYTES)

/* A PageRun's header and message never take more. */
#define FERRY_PAGE_RUN_BYTES 80u

/**
 * ferry_message_encode() - header and message, without the payload's bytes
 * @out, @size: FERRY_MAX_ENCODED_BYTES always suffice
 * The header counts m->payload_bytes; the caller sends the payload right behind.
 * Return: bytes written, or -EMSGSIZE.
 */
int ferry_message_encode(const struct ferry_message *m, uint8_t *out, size_t size);

/**
 * ferry_message_decode() - a message from a peer, checked
 * Errors: -EPROTO; a line for people in @why (FERRY_MAX_TEXT bytes).
 */
int ferry_message_decode(const struct ferry_frame *frame, struct ferry_arena *arena,
			 struct ferry_message *m, char *why);

#endif
