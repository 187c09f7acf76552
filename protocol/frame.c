/* SPDX-License-Identifier: Apache-2.0 */
#include "protocol/frame.h"

#include <endian.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "protocol/limits.h"

static const char magic[4] = {'P', 'F', 'R', 'Y'};

const char *ferry_frame_type_name(unsigned int type)
{
	static const char *const names[FERRY_FRAME_TYPE_MAX] = {
		[FERRY_FRAME_HELLO] = "Hello",
		[FERRY_FRAME_WELCOME] = "Welcome",
		[FERRY_FRAME_ERROR] = "Error",
		[FERRY_FRAME_LAYOUT] = "Layout",
		[FERRY_FRAME_LAYOUT_OK] = "LayoutOk",
		[FERRY_FRAME_RESIDENT] = "Resident",
		[FERRY_FRAME_PUSH_START] = "PushStart",
		[FERRY_FRAME_DISCARDED] = "Discarded",
		[FERRY_FRAME_COMPLETE] = "Complete",
		[FERRY_FRAME_RELEASED] = "Released",
		[FERRY_FRAME_PING] = "Ping",
		[FERRY_FRAME_PONG] = "Pong",
		[FERRY_FRAME_PAGE_REQUEST] = "PageRequest",
		[FERRY_FRAME_PAGE_RUN] = "PageRun",
		[FERRY_FRAME_PUSH_DONE] = "PushDone",
		[FERRY_FRAME_DIGEST_REQUEST] = "DigestRequest",
		[FERRY_FRAME_DIGESTS] = "Digests",
		[FERRY_FRAME_PREPARE] = "Prepare",
		[FERRY_FRAME_PREPARED] = "Prepared",
		[FERRY_FRAME_STOPPED] = "Stopped",
		[FERRY_FRAME_DEVICE_STATE] = "DeviceState",
		[FERRY_FRAME_DEVICE_STATE_END] = "DeviceStateEnd",
		[FERRY_FRAME_LOADED] = "Loaded",
		[FERRY_FRAME_COMMIT] = "Commit",
		[FERRY_FRAME_RUNNING] = "Running",
		[FERRY_FRAME_ABORT] = "Abort",
	};

	return type < FERRY_FRAME_TYPE_MAX ? names[type] : NULL;
}

/* Page runs may be large; only these others have a payload at all. */
static uint32_t max_payload(enum ferry_frame_type type)
{
	switch (type) {
	case FERRY_FRAME_PAGE_RUN:
		return FERRY_MAX_RUN_BYTES;
	case FERRY_FRAME_LAYOUT:
	case FERRY_FRAME_RESIDENT:
	case FERRY_FRAME_DEVICE_STATE:
		return FERRY_MAX_CONTROL_BYTES;
	case FERRY_FRAME_DIGESTS:
		return FERRY_MAX_DIGESTS * 8u;
	default:
		return 0;
	}
}

void ferry_frame_header_encode(const struct ferry_frame_header *h,
			       uint8_t out[FERRY_FRAME_HEADER_BYTES])
{
	uint16_t msg_bytes = htole16((uint16_t)h->msg_bytes);
	uint32_t payload_bytes = htole32(h->payload_bytes);

	memset(out, 0, FERRY_FRAME_HEADER_BYTES);
	memcpy(out, magic, sizeof(magic));
	out[4] = (uint8_t)h->type;
	memcpy(out + 6, &msg_bytes, sizeof(msg_bytes));
	memcpy(out + 8, &payload_bytes, sizeof(payload_bytes));
}

int ferry_frame_header_decode(const uint8_t in[FERRY_FRAME_HEADER_BYTES],
			      struct ferry_frame_header *h)
{
	uint32_t payload_bytes, reserved;
	uint16_t msg_bytes;

	memcpy(&msg_bytes, in + 6, sizeof(msg_bytes));
	memcpy(&payload_bytes, in + 8, sizeof(payload_bytes));
	memcpy(&reserved, in + 12, sizeof(reserved));
	msg_bytes = le16toh(msg_bytes);
	payload_bytes = le32toh(payload_bytes);
	if (memcmp(in, magic, sizeof(magic)) || in[5] || reserved)
		return -EPROTO;
	if (!ferry_frame_type_name(in[4]) || msg_bytes > FERRY_MAX_MESSAGE_BYTES ||
	    payload_bytes > max_payload(in[4]))
		return -EPROTO;
	h->type = in[4];
	h->msg_bytes = msg_bytes;
	h->payload_bytes = payload_bytes;
	return 0;
}

int ferry_framebuf_init(struct ferry_framebuf *b, size_t size)
{
	b->data = malloc(size);
	if (!b->data)
		return -ENOMEM;
	b->size = size;
	b->begin = 0;
	b->end = 0;
	return 0;
}

void ferry_framebuf_fini(struct ferry_framebuf *b)
{
	free(b->data);
	*b = (struct ferry_framebuf){0};
}

uint8_t *ferry_framebuf_space(struct ferry_framebuf *b, size_t *len)
{
	if (b->begin == b->end) {
		b->begin = 0;
		b->end = 0;
	} else if (b->begin && b->size - b->end < b->size / 2) {
		/* What is left is less than one frame; moving it is rarer and cheaper than a ring's
		 * split frames. */
		memmove(b->data, b->data + b->begin, b->end - b->begin);
		b->end -= b->begin;
		b->begin = 0;
	}
	*len = b->size - b->end;
	return b->data + b->end;
}

void ferry_framebuf_advance(struct ferry_framebuf *b, size_t len)
{
	b->end += len;
}

int ferry_framebuf_next(struct ferry_framebuf *b, struct ferry_frame *out)
{
	const uint8_t *p = b->data + b->begin;
	struct ferry_frame_header h;
	size_t have = b->end - b->begin, total;
	int rc;

	if (have < FERRY_FRAME_HEADER_BYTES)
		return 0;
	rc = ferry_frame_header_decode(p, &h);
	if (rc < 0)
		return rc;
	total = FERRY_FRAME_HEADER_BYTES + h.msg_bytes + h.payload_bytes;
	if (total > b->size)
		return -EMSGSIZE;
	if (have < total)
		return 0;
	out->type = h.type;
	out->msg = p + FERRY_FRAME_HEADER_BYTES;
	out->msg_bytes = h.msg_bytes;
	out->payload = out->msg + h.msg_bytes;
	out->payload_bytes = h.payload_bytes;
	b->begin += total;
	return 1;
}
