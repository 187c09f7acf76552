/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Whatever a peer may send, cut in any way: framing, decoding, and the check of the connection.
 * The last byte of the input says how: bit 0 our side, bits 1-2 the role, bit 3 whether the
 * connection is open already, bits 4-7 how much comes at a time.
 */
#include <errno.h>
#include <string.h>

#include "base/cleanup.h"
#include "fuzz.h"
#include "message_equal.h"
#include "protocol/connection.h"

/* Smaller than a PageRun may be, larger than anything else. */
#define BUFFER_BYTES (96u * 1024)

struct peer {
	struct ferry_connection connection;
	struct ferry_arena arena;
	struct ferry_framebuf buffer;
};

static void handshake(struct ferry_connection *c, uint8_t how)
{
	enum ferry_side side = how & 1 ? FERRY_SIDE_TARGET : FERRY_SIDE_SOURCE;
	struct ferry_message m = {.type = FERRY_FRAME_HELLO,
				  .hello = {.version_min = 1,
					    .version_max = 1,
					    .side = how & 1 ? FERRY_SIDE_SOURCE : FERRY_SIDE_TARGET,
					    .role = (enum ferry_role)(1 + (how >> 1 & 3))}};
	enum ferry_error_code code;
	char why[FERRY_MAX_TEXT];

	ferry_connection_accept(c, side);
	if (how & 8) {
		MUST(!ferry_connection_check(c, &m, &code, why));
		ferry_connection_welcome(c, &m);
		MUST(ferry_connection_is_open(c));
	}
}

/* What was taken says the same when it is encoded and decoded again. */
static void check_again(const struct ferry_message *m, struct ferry_arena *arena)
{
	static uint8_t out[FERRY_MAX_ENCODED_BYTES];
	static struct ferry_message again;
	struct ferry_frame_header h;
	char why[FERRY_MAX_TEXT];
	struct ferry_frame f;
	int n = ferry_message_encode(m, out, sizeof(out));

	MUST(n >= (int)FERRY_FRAME_HEADER_BYTES);
	MUST(!ferry_frame_header_decode(out, &h) && h.payload_bytes == m->payload_bytes);
	f = (struct ferry_frame){h.type, out + FERRY_FRAME_HEADER_BYTES, h.msg_bytes, m->payload,
				 m->payload_bytes};
	MUST(!ferry_message_decode(&f, arena, &again, why));
	MUST(messages_equal(m, &again));
}

static int take(struct peer *p, const struct ferry_frame *frame)
{
	/* Of its exact size, so that reading past its end is seen. */
	_cleanup_free_ uint8_t *msg = malloc(frame->msg_bytes ? frame->msg_bytes : 1);
	static struct ferry_message m;
	struct ferry_frame f = *frame;
	enum ferry_error_code code;
	char why[FERRY_MAX_TEXT];
	int rc;

	MUST(msg);
	memcpy(msg, frame->msg, frame->msg_bytes);
	f.msg = msg;
	memset(why, '#', sizeof(why));
	rc = ferry_message_decode(&f, &p->arena, &m, why);
	MUST(p->arena.used <= p->arena.size);
	if (rc) {
		MUST(rc == -EPROTO && memchr(why, '\0', sizeof(why)));
		return rc;
	}
	check_again(&m, &p->arena);
	rc = ferry_connection_check(&p->connection, &m, &code, why);
	if (rc) {
		MUST(rc == -EPROTO || rc == -ECONNREFUSED);
		MUST(p->connection.machine.state == FERRY_CONNECTION_FAILED);
		MUST(memchr(why, '\0', sizeof(why)));
	} else if (p->connection.machine.state == FERRY_CONNECTION_HELLO_RECEIVED) {
		ferry_connection_welcome(&p->connection, &m);
		MUST(ferry_connection_is_open(&p->connection));
	} else {
		MUST(ferry_connection_is_open(&p->connection));
	}
	return rc;
}

static void run(struct peer *p, const uint8_t *data, size_t size, uint8_t how)
{
	size_t chunk = how >> 4 ? (size_t)1 << (how >> 4) : 1;

	while (size) {
		struct ferry_frame frame;
		size_t room, n;
		uint8_t *to = ferry_framebuf_space(&p->buffer, &room);
		int rc;

		MUST(room);
		n = chunk < size ? chunk : size;
		n = n < room ? n : room;
		memcpy(to, data, n);
		ferry_framebuf_advance(&p->buffer, n);
		data += n;
		size -= n;
		while ((rc = ferry_framebuf_next(&p->buffer, &frame)) == 1)
			if (take(p, &frame))
				return;
		if (rc < 0) {
			MUST(rc == -EPROTO || rc == -EMSGSIZE);
			return;
		}
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct peer p;

	if (!size)
		return 0;
	MUST(!ferry_framebuf_init(&p.buffer, BUFFER_BYTES) && !ferry_arena_init(&p.arena));
	handshake(&p.connection, data[size - 1]);
	run(&p, data, size - 1, data[size - 1]);
	ferry_framebuf_fini(&p.buffer);
	ferry_arena_fini(&p.arena);
	return 0;
}
