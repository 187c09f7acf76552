/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A handshake of both ends of ours, with somebody in between: the input says who dials, and which
 * bytes of the Hello and the Welcome are changed on the way. The rest is then sent to both.
 *
 *    byte 0    bit 0 side of the dialer, bits 1-2 role, bits 3-6 index
 *    byte 1    how many changes to the Hello (low half) and the Welcome (high half)
 *    then      the changes: an offset and a new value each; then bytes for both
 */
#include <errno.h>
#include <string.h>

#include "base/cleanup.h"
#include "fuzz.h"
#include "message_equal.h"
#include "protocol/connection.h"

#define BUFFER_BYTES 4096u

struct input {
	const uint8_t *data;
	size_t size;
};

static uint8_t take_byte(struct input *in)
{
	if (!in->size)
		return 0;
	in->size--;
	return *in->data++;
}

/* Changes @n bytes of what is on the way. Return: whether any is different now. */
static bool change(struct input *in, unsigned int n, uint8_t *bytes, int len)
{
	bool changed = false;

	while (n-- && in->size >= 2) {
		unsigned int at = take_byte(in) % (unsigned int)len;
		uint8_t value = take_byte(in);

		changed |= bytes[at] != value;
		bytes[at] = value;
	}
	return changed;
}

/* Gives @c whatever frames are in @bytes, up to the first error. Return: that, or 0. */
static int deliver(struct ferry_connection *c, struct ferry_framebuf *b, struct ferry_arena *a,
		   const uint8_t *bytes, size_t len)
{
	static struct ferry_message m;
	enum ferry_error_code code;
	char why[FERRY_MAX_TEXT];
	struct ferry_frame frame;
	size_t room;
	uint8_t *to = ferry_framebuf_space(b, &room);
	int rc;

	len = len < room ? len : room;
	if (len)
		memcpy(to, bytes, len);
	ferry_framebuf_advance(b, len);
	while ((rc = ferry_framebuf_next(b, &frame)) == 1) {
		rc = ferry_message_decode(&frame, a, &m, why);
		if (!rc)
			rc = ferry_connection_check(c, &m, &code, why);
		if (rc)
			return rc;
		/* Nothing opens a connection but the two messages of the handshake. */
		MUST(ferry_connection_is_open(c) ||
		     c->machine.state == FERRY_CONNECTION_HELLO_RECEIVED);
		if (!ferry_connection_is_open(c))
			return 0;
	}
	return rc;
}

static void run(struct input *in, struct ferry_framebuf b[2], struct ferry_arena *a)
{
	uint8_t how = take_byte(in), changes = take_byte(in);
	struct ferry_hello hello = {
		.session = {{1}},
		.side = how & 1 ? FERRY_SIDE_TARGET : FERRY_SIDE_SOURCE,
		.role = (enum ferry_role)(1 + (how >> 1 & 3)),
		.index = (how >> 1 & 3) == 2 ? how >> 3 & 15 : 0,
	};
	struct ferry_connection dialer, acceptor;
	static uint8_t wire[FERRY_MAX_ENCODED_BYTES];
	struct ferry_message m;
	bool changed;
	int n, rc;

	ferry_connection_dial(&dialer, &hello, &m);
	n = ferry_message_encode(&m, wire, sizeof(wire));
	MUST(n > 0);
	changed = change(in, changes & 15, wire, n);
	ferry_connection_accept(&acceptor, how & 1 ? FERRY_SIDE_SOURCE : FERRY_SIDE_TARGET);
	rc = deliver(&acceptor, &b[0], a, wire, (size_t)n);
	if (!changed)
		MUST(!rc && acceptor.machine.state == FERRY_CONNECTION_HELLO_RECEIVED &&
		     hellos_equal(&acceptor.hello, &dialer.hello));
	if (acceptor.machine.state != FERRY_CONNECTION_HELLO_RECEIVED)
		return;
	MUST(acceptor.hello.side != acceptor.side);
	ferry_connection_welcome(&acceptor, &m);
	MUST(ferry_connection_is_open(&acceptor) && acceptor.version == FERRY_VERSION_MAX);
	MUST(!(acceptor.features & ~acceptor.hello.features));
	n = ferry_message_encode(&m, wire, sizeof(wire));
	MUST(n > 0);
	if (!change(in, changes >> 4, wire, n) && !changed) {
		MUST(!deliver(&dialer, &b[1], a, wire, (size_t)n));
		MUST(ferry_connection_is_open(&dialer) && dialer.version == acceptor.version &&
		     dialer.features == acceptor.features);
	} else {
		deliver(&dialer, &b[1], a, wire, (size_t)n);
		/* Whatever happened: never more than was offered. */
		if (ferry_connection_is_open(&dialer))
			MUST(dialer.version == FERRY_VERSION_MAX &&
			     !(dialer.features & ~dialer.hello.features));
	}
	deliver(&acceptor, &b[0], a, in->data, in->size);
	deliver(&dialer, &b[1], a, in->data, in->size);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input in = {data, size};
	struct ferry_framebuf b[2];
	struct ferry_arena a;

	MUST(!ferry_framebuf_init(&b[0], BUFFER_BYTES) &&
	     !ferry_framebuf_init(&b[1], BUFFER_BYTES));
	MUST(!ferry_arena_init(&a));
	run(&in, b, &a);
	ferry_framebuf_fini(&b[0]);
	ferry_framebuf_fini(&b[1]);
	ferry_arena_fini(&a);
	return 0;
}
