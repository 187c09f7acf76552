/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Framing. A frame is
 *
 *    0        4    5     6         8             12         16
 *    | "PFRY" |type|flags| msg_len | payload_len | reserved | message ... | payload ...
 *
 * all little-endian; flags and reserved are zero. Page bytes are the payload and never pass through
 * protobuf, so that they can be received where they are needed. Pure: no IO.
 */
#ifndef FERRY_PROTOCOL_FRAME_H
#define FERRY_PROTOCOL_FRAME_H

#include <stddef.h>
#include <stdint.h>

#define FERRY_FRAME_HEADER_BYTES 16u

enum ferry_frame_type {
	FERRY_FRAME_HELLO = 1,
	FERRY_FRAME_WELCOME = 2,
	FERRY_FRAME_ERROR = 3,
	FERRY_FRAME_LAYOUT = 10,
	FERRY_FRAME_LAYOUT_OK = 11,
	FERRY_FRAME_RESIDENT = 12,
	FERRY_FRAME_PUSH_START = 13,
	FERRY_FRAME_DISCARDED = 14,
	FERRY_FRAME_COMPLETE = 15,
	FERRY_FRAME_RELEASED = 16,
	FERRY_FRAME_PING = 17,
	FERRY_FRAME_PONG = 18,
	FERRY_FRAME_PAGE_REQUEST = 20,
	FERRY_FRAME_PAGE_RUN = 21,
	FERRY_FRAME_PUSH_DONE = 22,
	FERRY_FRAME_DIGEST_REQUEST = 24,
	FERRY_FRAME_DIGESTS = 25,
	FERRY_FRAME_PREPARE = 30,
	FERRY_FRAME_PREPARED = 31,
	FERRY_FRAME_STOPPED = 32,
	FERRY_FRAME_DEVICE_STATE = 33,
	FERRY_FRAME_DEVICE_STATE_END = 34,
	FERRY_FRAME_LOADED = 35,
	FERRY_FRAME_COMMIT = 36,
	FERRY_FRAME_RUNNING = 37,
	FERRY_FRAME_ABORT = 38,
};

#define FERRY_FRAME_TYPE_MAX 64u

struct ferry_frame_header {
	enum ferry_frame_type type;
	uint32_t msg_bytes;
	uint32_t payload_bytes;
};

/* One whole frame inside a buffer; both parts are borrowed from it. */
struct ferry_frame {
	enum ferry_frame_type type;
	const uint8_t *msg;
	uint32_t msg_bytes;
	const uint8_t *payload;
	uint32_t payload_bytes;
};

/* Name of a type, or NULL for one that does not exist. */
const char *ferry_frame_type_name(unsigned int type);

void ferry_frame_header_encode(const struct ferry_frame_header *h,
			       uint8_t out[FERRY_FRAME_HEADER_BYTES]);

/* Errors: -EPROTO for anything that is not a header of a known type within limits.h. */
int ferry_frame_header_decode(const uint8_t in[FERRY_FRAME_HEADER_BYTES],
			      struct ferry_frame_header *h);

/*
 * A buffer in which frames are put together from a stream. Receive into what _space gives, say how
 * much came with _advance, then take frames with _next until it returns 0.
 */
struct ferry_framebuf {
	uint8_t *data; /* owned */
	size_t size;   /* no frame larger than this can be taken */
	size_t begin;  /* first byte not yet taken */
	size_t end;    /* first byte not yet received */
};

/* @size: at least FERRY_FRAME_HEADER_BYTES. Errors: -ENOMEM. */
int ferry_framebuf_init(struct ferry_framebuf *b, size_t size);
void ferry_framebuf_fini(struct ferry_framebuf *b);

/* Room to receive into: at least one byte after _next returned 0. Frames taken before are gone. */
uint8_t *ferry_framebuf_space(struct ferry_framebuf *b, size_t *len);
void ferry_framebuf_advance(struct ferry_framebuf *b, size_t len);

/*
 * Return: 1 with a frame that stays valid until the next _space; 0 when more bytes are needed.
 * Errors: -EPROTO (not a frame), -EMSGSIZE (a frame larger than the buffer).
 */
int ferry_framebuf_next(struct ferry_framebuf *b, struct ferry_frame *out);

#endif
