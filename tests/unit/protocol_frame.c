/* SPDX-License-Identifier: Apache-2.0 */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "message_equal.h"

static uint64_t next_random(uint64_t *seed)
{
	*seed ^= *seed << 13;
	*seed ^= *seed >> 7;
	*seed ^= *seed << 17;
	return *seed;
}

/* A frame of @type with so many bytes of each part, counting up. Return: its size. */
static size_t put_frame(uint8_t *out, enum ferry_frame_type type, uint32_t msg_bytes,
			uint32_t payload_bytes)
{
	struct ferry_frame_header h = {type, msg_bytes, payload_bytes};

	ferry_frame_header_encode(&h, out);
	for (uint32_t i = 0; i < msg_bytes + payload_bytes; i++)
		out[FERRY_FRAME_HEADER_BYTES + i] = (uint8_t)(i * 31 + type);
	return FERRY_FRAME_HEADER_BYTES + msg_bytes + payload_bytes;
}

static void check_frame(const struct ferry_frame *f, const uint8_t *sent)
{
	uint16_t msg_bytes;
	uint32_t payload_bytes;

	memcpy(&msg_bytes, sent + 6, sizeof(msg_bytes));
	memcpy(&payload_bytes, sent + 8, sizeof(payload_bytes));
	cr_assert_eq(f->type, sent[4]);
	cr_assert_eq(f->msg_bytes, msg_bytes);
	cr_assert_eq(f->payload_bytes, payload_bytes);
	cr_assert_eq(memcmp(f->msg, sent + 16, msg_bytes), 0);
	cr_assert_eq(memcmp(f->payload, sent + 16 + msg_bytes, payload_bytes), 0);
}

Test(frame, only_known_types_have_names)
{
	unsigned int n = 0;

	for (unsigned int t = 0; t < 300; t++)
		n += ferry_frame_type_name(t) != NULL;
	cr_assert_eq(n, N_FRAME_TYPES);
	cr_assert_str_eq(ferry_frame_type_name(FERRY_FRAME_PAGE_RUN), "PageRun");
}

/* Every type: lengths at its limits are taken, one more is not, and the sizes come back. */
Test(frame, lengths_at_the_limits)
{
	for (unsigned int i = 0; i < N_FRAME_TYPES; i++) {
		enum ferry_frame_type type = frame_type_at(i);
		bool has_payload = type == FERRY_FRAME_LAYOUT || type == FERRY_FRAME_RESIDENT ||
				   type == FERRY_FRAME_DEVICE_STATE;
		uint32_t max = type == FERRY_FRAME_PAGE_RUN ? FERRY_MAX_RUN_BYTES
			       : has_payload		    ? FERRY_MAX_CONTROL_BYTES
			       : type == FERRY_FRAME_DIGESTS ? FERRY_MAX_DIGESTS * 8u
							    : 0;

		for (int64_t d = -1; d <= 1; d++) {
			uint32_t payload = (uint32_t)(max + d), msg = (uint32_t)(16384 + d);
			struct ferry_frame_header h, sent = {type, 1, payload};
			uint8_t bytes[FERRY_FRAME_HEADER_BYTES];

			ferry_frame_header_encode(&sent, bytes);
			cr_assert_eq(ferry_frame_header_decode(bytes, &h),
				     payload > max ? -EPROTO : 0);
			sent = (struct ferry_frame_header){type, msg, 0};
			ferry_frame_header_encode(&sent, bytes);
			cr_assert_eq(ferry_frame_header_decode(bytes, &h), d > 0 ? -EPROTO : 0);
			if (d <= 0)
				cr_assert(h.type == type && h.msg_bytes == msg &&
					  h.payload_bytes == 0);
		}
	}
}

Test(frame, every_changed_bit_of_magic_flags_and_reserved_is_refused)
{
	struct ferry_frame_header h, sent = {FERRY_FRAME_PING, 9, 0};

	for (unsigned int bit = 0; bit < FERRY_FRAME_HEADER_BYTES * 8; bit++) {
		uint8_t bytes[FERRY_FRAME_HEADER_BYTES];
		unsigned int byte = bit / 8;

		ferry_frame_header_encode(&sent, bytes);
		bytes[byte] ^= (uint8_t)(1u << (bit % 8));
		if (byte < 4 || byte == 5 || byte >= 12)
			cr_assert_eq(ferry_frame_header_decode(bytes, &h), -EPROTO, "bit %u", bit);
	}
}

/* The same stream, however it is cut: byte by byte, whole, and at random. */
Test(framebuf, frames_do_not_depend_on_how_the_stream_is_cut)
{
	static uint8_t stream[400000];
	static size_t at[200];
	uint64_t seed = 11;
	size_t len = 0;
	unsigned int n = 0;

	while (n < 200) {
		static const enum ferry_frame_type with_payload[] = {
			FERRY_FRAME_PAGE_RUN, FERRY_FRAME_LAYOUT, FERRY_FRAME_RESIDENT};
		uint64_t r = next_random(&seed);

		at[n++] = len;
		if (r % 3)
			len += put_frame(stream + len, frame_type_at((unsigned int)(r % 24)),
					 (uint32_t)(r >> 8) % 60, 0);
		else
			len += put_frame(stream + len, with_payload[(r >> 4) % 3],
					 (uint32_t)(r >> 8) % 60, (uint32_t)(r >> 20) % 4000);
	}
	for (unsigned int way = 0; way < 40; way++) {
		struct ferry_framebuf b;
		size_t fed = 0;
		unsigned int taken = 0;

		/* The largest frame just fits at way 0 and 1. */
		cr_assert_eq(ferry_framebuf_init(&b, way < 2 ? 4076 : 4076 + way * 97), 0);
		while (fed < len) {
			size_t room, want = way == 0   ? 1
					    : way == 1 ? SIZE_MAX
						       : 1 + next_random(&seed) % (way * 100);
			uint8_t *to = ferry_framebuf_space(&b, &room);
			struct ferry_frame f;
			int rc;

			cr_assert_geq(room, 1);
			want = want > room ? room : want;
			want = want > len - fed ? len - fed : want;
			memcpy(to, stream + fed, want);
			ferry_framebuf_advance(&b, want);
			fed += want;
			while ((rc = ferry_framebuf_next(&b, &f)) == 1)
				check_frame(&f, stream + at[taken++]);
			cr_assert_eq(rc, 0);
		}
		cr_assert_eq(taken, n);
		ferry_framebuf_fini(&b);
	}
}

/* A frame of the buffer's size is taken, one that is a byte larger is refused, at its header. */
Test(framebuf, frames_larger_than_the_buffer_are_refused)
{
	for (uint32_t payload = 99; payload <= 101; payload++) {
		uint8_t bytes[256];
		size_t room, len = put_frame(bytes, FERRY_FRAME_LAYOUT, 10, payload);
		struct ferry_framebuf b;
		struct ferry_frame f;
		uint8_t *to;

		cr_assert_eq(ferry_framebuf_init(&b, FERRY_FRAME_HEADER_BYTES + 110), 0);
		to = ferry_framebuf_space(&b, &room);
		memcpy(to, bytes, FERRY_FRAME_HEADER_BYTES);
		ferry_framebuf_advance(&b, FERRY_FRAME_HEADER_BYTES);
		cr_assert_eq(ferry_framebuf_next(&b, &f), payload > 100 ? -EMSGSIZE : 0);
		if (payload <= 100) {
			to = ferry_framebuf_space(&b, &room);
			cr_assert_geq(room, len - FERRY_FRAME_HEADER_BYTES);
			memcpy(to, bytes + FERRY_FRAME_HEADER_BYTES,
			       len - FERRY_FRAME_HEADER_BYTES);
			ferry_framebuf_advance(&b, len - FERRY_FRAME_HEADER_BYTES);
			cr_assert_eq(ferry_framebuf_next(&b, &f), 1);
			check_frame(&f, bytes);
		}
		ferry_framebuf_fini(&b);
	}
}

Test(framebuf, rubbish_behind_a_good_frame_is_refused_after_it)
{
	struct ferry_framebuf b;
	struct ferry_frame f;
	uint8_t *to;
	size_t room, len;

	cr_assert_eq(ferry_framebuf_init(&b, 256), 0);
	to = ferry_framebuf_space(&b, &room);
	len = put_frame(to, FERRY_FRAME_PING, 9, 0);
	memset(to + len, 'x', 16);
	ferry_framebuf_advance(&b, len + 16);
	cr_assert_eq(ferry_framebuf_next(&b, &f), 1);
	cr_assert_eq(ferry_framebuf_next(&b, &f), -EPROTO);
	cr_assert_eq(ferry_framebuf_next(&b, &f), -EPROTO);
	ferry_framebuf_fini(&b);
}
