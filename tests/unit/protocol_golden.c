/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The golden vectors of tests/golden/vectors.txt against our C code. What each of them says is
 * written here a second time, by hand, from the "values" lines.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/util.h"
#include "message_equal.h"

/* Tables and initialisers read better as they are. */
/* clang-format off */
#define MAX_PAGES  UINT64_C(0xffffffff)
#define SESSION	   {{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}}
#define RUN(r, f, n) {.region = (r), .first_page = (f), .n_pages = (n)}
#define REGION(i, s, n, p) {.id = (i), .name = s, .n_pages = (n), .page_bytes = (p)}

struct expectation {
	const char *name;
	struct ferry_message m;
	struct {
		uint8_t byte;
		uint32_t n;
	} payload[4]; /* so many of each byte, one after the other */
};

static const struct expectation expectations[] = {
	{"hello_target_control",
	 {FERRY_FRAME_HELLO, .hello = {1, 1, 1, SESSION, FERRY_SIDE_TARGET, FERRY_ROLE_CONTROL}}},
	{"hello_source_last_bulk_resumed",
	 {FERRY_FRAME_HELLO,
	  .hello = {1, 1, 1, SESSION, FERRY_SIDE_SOURCE, FERRY_ROLE_BULK, 15, UINT32_MAX}}},
	{"hello_source_switchover",
	 {FERRY_FRAME_HELLO,
	  .hello = {1, 1, 1, SESSION, FERRY_SIDE_SOURCE, FERRY_ROLE_SWITCHOVER, 0, 1}}},
	{"welcome", {FERRY_FRAME_WELCOME, .welcome = {1, 1}}},
	{"welcome_without_features", {FERRY_FRAME_WELCOME, .welcome = {1, 0}}},
	{"error_busy", {FERRY_FRAME_ERROR, .error = {FERRY_ERROR_BUSY, "being served"}}},
	{"layout_smallest",
	 {FERRY_FRAME_LAYOUT, .layout = {1, {REGION(0, "ram", 1, 4096)}}}},
	{"layout_limits_with_state",
	 {FERRY_FRAME_LAYOUT,
	  .layout = {2,
		     {REGION(0,
			     "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
			     MAX_PAGES, 4096),
		      REGION(1, "b", 3, 2097152)}}},
	 {{1, 1}, {2, 1}, {3, 1}}},
	{"layout_of_known_memory",
	 {FERRY_FRAME_LAYOUT,
	  .layout = {1, {REGION(0, "ram", 1, 4096)}, .memory_id = 0x1122334455667788}}},
	{"layout_ok", {FERRY_FRAME_LAYOUT_OK}},
	{"resident_one_page", {FERRY_FRAME_RESIDENT, .resident = {0, 0, 1}}, {{1, 1}}},
	{"resident_odd_size",
	 {FERRY_FRAME_RESIDENT, .resident = {31, 64, 65}},
	 {{0x81, 1}, {0, 7}, {1, 1}}},
	{"resident_largest",
	 {FERRY_FRAME_RESIDENT, .resident = {1, 524288, 524288}},
	 {{0xff, 65536}}},
	{"push_start", {FERRY_FRAME_PUSH_START, .push_start = {1000000000}}},
	{"discarded", {FERRY_FRAME_DISCARDED, .discarded = {2, 5, 7}}},
	{"discarded_last_page", {FERRY_FRAME_DISCARDED, .discarded = {0, MAX_PAGES - 1, 1}}},
	{"complete", {FERRY_FRAME_COMPLETE}},
	{"released", {FERRY_FRAME_RELEASED}},
	{"ping", {FERRY_FRAME_PING, .ping = {0x0102030405060708}}},
	{"pong", {FERRY_FRAME_PONG, .pong = {1, 2, UINT64_MAX}}},
	{"page_request_one_page", {FERRY_FRAME_PAGE_REQUEST, .request = {1, 1, {RUN(0, 7, 1)}}}},
	{"page_request_batch",
	 {FERRY_FRAME_PAGE_REQUEST,
	  .request = {UINT64_MAX,
		      3,
		      {RUN(0, 300, 2), RUN(0, 5, 1), RUN(31, MAX_PAGES - 1024, 1024)}}}},
	{"page_run_raw_answer",
	 {FERRY_FRAME_PAGE_RUN, .run = {RUN(0, 7, 1), FERRY_ENCODING_RAW, 1}},
	 {{0x5a, 4096}}},
	{"page_run_raw_answer_with_times",
	 {FERRY_FRAME_PAGE_RUN, .run = {RUN(1, 300, 2), FERRY_ENCODING_RAW, 2, 1000, 2000}},
	 {{0x11, 4096}, {0x22, 4096}}},
	{"page_run_raw_largest",
	 {FERRY_FRAME_PAGE_RUN, .run = {RUN(0, 0, 2), FERRY_ENCODING_RAW}},
	 {{0xee, 4194304}}},
	{"page_run_zero_pushed",
	 {FERRY_FRAME_PAGE_RUN, .run = {RUN(3, 0, UINT32_MAX), FERRY_ENCODING_ZERO}}},
	{"page_run_raw_with_checksum",
	 {FERRY_FRAME_PAGE_RUN,
	  .run = {RUN(1, 3, 2), FERRY_ENCODING_RAW, .has_checksum = true, .checksum = 0xa6caa702d4629c41}},
	 {{0x11, 4096}, {0x22, 4096}}},
	{"page_run_zero_with_checksum",
	 {FERRY_FRAME_PAGE_RUN,
	  .run = {RUN(1, 5, 600), FERRY_ENCODING_ZERO, .has_checksum = true, .checksum = 0xaffbcf11f901fa72}}},
	{"page_run_lost", {FERRY_FRAME_PAGE_RUN, .run = {RUN(0, 9, 4), FERRY_ENCODING_LOST, 3}}},
	{"push_done", {FERRY_FRAME_PUSH_DONE}},
	{"digest_request",
	 {FERRY_FRAME_DIGEST_REQUEST, .digests = {1, 256, 512, 65000}}},
	{"digest_request_one_page",
	 {FERRY_FRAME_DIGEST_REQUEST, .digests = {0, 1, MAX_PAGES - 1, 1}}},
	{"digests",
	 {FERRY_FRAME_DIGESTS, .digests = {1, 1, 7, 2}},
	 {{0, 8}, {0x11, 8}}},
	{"digests_most", {FERRY_FRAME_DIGESTS, .digests = {0, 1024, 0, 262144}}, {{0xff, 2048}}},
	{"error_damaged", {FERRY_FRAME_ERROR, .error = {FERRY_ERROR_DAMAGED, "page 7"}}},
	{"prepare",
	 {FERRY_FRAME_PREPARE,
	  .prepare = {"web-1", "7.2.22", "pc-i440fx-7.2", 2,
		      {1, {REGION(0, "pc.ram", 65536, 4096)}}}}},
	{"prepare_paused",
	 {FERRY_FRAME_PREPARE,
	  .prepare = {"", "", "", 1, {1, {REGION(0, "r", 1, 4096)}}, .paused = true}}},
	{"prepare_dense",
	 {FERRY_FRAME_PREPARE,
	  .prepare = {"", "", "", 1, {1, {REGION(0, "r", 2048, 4096)}},
		      .n_dense = 2, .dense = {{0, 0, 1}, {0, 2, 2}}}}},
	{"prepared", {FERRY_FRAME_PREPARED}},
	{"stopped", {FERRY_FRAME_STOPPED}},
	{"device_state", {FERRY_FRAME_DEVICE_STATE}, {{'Q', 1}, {'E', 1}, {'V', 1}, {'M', 1}}},
	{"device_state_largest", {FERRY_FRAME_DEVICE_STATE}, {{0, 65536}}},
	{"device_state_end", {FERRY_FRAME_DEVICE_STATE_END, .device_state_end = {4}}},
	{"loaded", {FERRY_FRAME_LOADED}},
	{"commit", {FERRY_FRAME_COMMIT, .commit = {9000000}}},
	{"running", {FERRY_FRAME_RUNNING, .running = {9500000}}},
	{"abort", {FERRY_FRAME_ABORT, .abort = {"the operator said so"}}},
	/* These need not be written so, but must be understood. */
	{"hello_of_a_later_version",
	 {FERRY_FRAME_HELLO,
	  .hello = {1, 9, UINT64_MAX, SESSION, FERRY_SIDE_TARGET, FERRY_ROLE_URGENT, 0, 2}}},
	{"welcome_with_software", {FERRY_FRAME_WELCOME, .welcome = {1, 0}}},
	{"error_of_a_later_version", {FERRY_FRAME_ERROR, .error = {FERRY_ERROR_INTERNAL, "new"}}},
	{"error_text_made_harmless",
	 {FERRY_FRAME_ERROR, .error = {FERRY_ERROR_PROTOCOL, "a?[2Jb?c?d"}}},
	{"layout_ok_with_unknown_field", {FERRY_FRAME_LAYOUT_OK}},
	{"push_start_without_limit", {FERRY_FRAME_PUSH_START}},
	{"prepare_without_optional_fields",
	 {FERRY_FRAME_PREPARE, .prepare = {"", "", "", 1, {1, {REGION(0, "r", 1, 4096)}}}}},
	{"page_request_lists_not_packed",
	 {FERRY_FRAME_PAGE_REQUEST, .request = {9, 2, {RUN(1, 2, 3), RUN(1, 8, 1)}}}},
	{"ping_field_twice", {FERRY_FRAME_PING, .ping = {2}}},
	{"discarded_fields_out_of_order", {FERRY_FRAME_DISCARDED, .discarded = {1, 2, 3}}},
	{"resident_bits_past_the_end", {FERRY_FRAME_RESIDENT, .resident = {0, 0, 1}}, {{0xff, 1}}},
};
/* clang-format on */

static bool expectation_of(const char *name, struct expectation *out)
{
	static struct expectation long_text;

	for (size_t i = 0; i < FERRY_ARRAY_SIZE(expectations); i++) {
		if (!strcmp(expectations[i].name, name)) {
			*out = expectations[i];
			return true;
		}
	}
	long_text = (struct expectation){name, {FERRY_FRAME_ERROR}};
	if (!strcmp(name, "error_longest_text")) {
		long_text.m.error.code = FERRY_ERROR_INTERNAL;
		memset(long_text.m.error.text, 'x', 399);
	} else if (!strcmp(name, "error_text_cut_between_characters")) {
		long_text.m.error.code = FERRY_ERROR_PROTOCOL;
		memset(long_text.m.error.text, 'x', 398);
	} else {
		return false;
	}
	*out = long_text;
	return true;
}

/* --- reading the vectors ------------------------------------------------------------------ */

#define MAX_VECTOR_BYTES (5u * FERRY_MIB)

struct vector {
	char name[64], is[16], detail[256];
	uint8_t *bytes; /* owned; MAX_VECTOR_BYTES */
	size_t n_bytes;
};

static unsigned int hex_digit(char c)
{
	return (unsigned int)(c <= '9' ? c - '0' : c - 'a' + 10);
}

/* "xx xx xx" or "(xx xx)*n" */
static void read_hex(struct vector *v, const char *s)
{
	size_t begin = v->n_bytes, unit, n = 1;
	const char *times = strstr(s, ")*");

	for (; *s && *s != ')'; s++) {
		if (strchr("( \n", *s))
			continue;
		cr_assert_lt(v->n_bytes, MAX_VECTOR_BYTES);
		v->bytes[v->n_bytes++] = (uint8_t)(hex_digit(s[0]) << 4 | hex_digit(s[1]));
		s++;
	}
	unit = v->n_bytes - begin;
	if (times)
		n = strtoul(times + 2, NULL, 10);
	cr_assert_leq(begin + n * unit, MAX_VECTOR_BYTES);
	for (size_t i = 1; i < n; i++)
		memcpy(v->bytes + begin + i * unit, v->bytes + begin, unit);
	v->n_bytes = begin + n * unit;
}

static bool take(const char *line, const char *key, char *out, size_t size)
{
	size_t len = strlen(key);

	if (strncmp(line, key, len))
		return false;
	snprintf(out, size, "%.*s", (int)strcspn(line + len, "\n"), line + len);
	return true;
}

/* Calls @fn for each vector of the kind @is. Return: how many there were. */
static unsigned int for_each_vector(const char *is, void (*fn)(const struct vector *))
{
	_cleanup_fclose_ FILE *f = fopen(GOLDEN_VECTORS, "re");
	_cleanup_free_ uint8_t *bytes = malloc(MAX_VECTOR_BYTES);
	_cleanup_free_ char *line = NULL;
	struct vector v = {.bytes = bytes};
	unsigned int n = 0;
	size_t size = 0;

	cr_assert(f && bytes, "cannot read %s", GOLDEN_VECTORS);
	while (getline(&line, &size, f) > 0) {
		if (take(line, "name: ", v.name, sizeof(v.name)))
			v.n_bytes = 0;
		else if (!strncmp(line, "hex: ", 5))
			read_hex(&v, line + 5);
		else if (!take(line, "is: ", v.is, sizeof(v.is)) &&
			 !take(line, "values: ", v.detail, sizeof(v.detail)))
			take(line, "why: ", v.detail, sizeof(v.detail));
		if (line[0] == '\n' && v.n_bytes && !strcmp(v.is, is)) {
			fn(&v);
			n++;
		}
	}
	return n;
}

/* --- the tests ---------------------------------------------------------------------------- */

/* Return: what framing makes of the vector's bytes; *frame borrows from @b. */
static int frame_of(struct ferry_framebuf *b, const struct vector *v, struct ferry_frame *frame)
{
	size_t room;
	uint8_t *to;

	cr_assert_eq(ferry_framebuf_init(b, MAX_VECTOR_BYTES), 0);
	to = ferry_framebuf_space(b, &room);
	memcpy(to, v->bytes, v->n_bytes);
	ferry_framebuf_advance(b, v->n_bytes);
	return ferry_framebuf_next(b, frame);
}

static void check_payload(const struct expectation *e, const struct ferry_message *m)
{
	uint32_t at = 0;

	for (size_t i = 0; i < FERRY_ARRAY_SIZE(e->payload); i++) {
		for (uint32_t j = 0; j < e->payload[i].n; j++, at++) {
			cr_assert_lt(at, m->payload_bytes, "%s", e->name);
			cr_assert_eq(m->payload[at], e->payload[i].byte, "%s: byte %u", e->name,
				     at);
		}
	}
	cr_assert_eq(m->payload_bytes, at, "%s: payload of %u", e->name, m->payload_bytes);
}

static void check_decode(const struct vector *v)
{
	char why[FERRY_MAX_TEXT] = "";
	struct ferry_arena arena;
	struct ferry_message m;
	struct ferry_framebuf b;
	struct ferry_frame frame;
	struct expectation e;

	cr_assert(expectation_of(v->name, &e), "nothing is expected of %s", v->name);
	cr_assert_eq(frame_of(&b, v, &frame), 1, "%s", v->name);
	cr_assert_eq(ferry_arena_init(&arena), 0);
	cr_assert_eq(ferry_message_decode(&frame, &arena, &m, why), 0, "%s: %s", v->name, why);
	cr_assert(messages_equal(&m, &e.m), "%s", v->name);
	check_payload(&e, &m);
	ferry_arena_fini(&arena);
	ferry_framebuf_fini(&b);
}

/* Hello and Welcome carry our name and version behind the rest, and the header counts it. */
static size_t software_bytes(const struct ferry_message *m, const uint8_t *at)
{
	static const char *const name = "pageferry ";
	uint8_t tag = m->type == FERRY_FRAME_HELLO ? 9 << 3 | 2 : 3 << 3 | 2;

	cr_assert_eq(at[0], tag);
	cr_assert_eq(memcmp(at + 2, name, strlen(name)), 0);
	return 2u + at[1];
}

static void check_encode(const struct vector *v)
{
	uint8_t out[FERRY_MAX_ENCODED_BYTES];
	size_t want = v->n_bytes, more = 0;
	struct expectation e;
	uint16_t msg_bytes;
	int n;

	cr_assert(expectation_of(v->name, &e), "nothing is expected of %s", v->name);
	for (size_t i = 0; i < FERRY_ARRAY_SIZE(e.payload); i++)
		e.m.payload_bytes += e.payload[i].n;
	want -= e.m.payload_bytes;
	n = ferry_message_encode(&e.m, out, sizeof(out));
	cr_assert_geq(n, (int)want, "%s", v->name);
	if (e.m.type == FERRY_FRAME_HELLO || e.m.type == FERRY_FRAME_WELCOME)
		more = software_bytes(&e.m, out + want);
	cr_assert_eq((size_t)n, want + more, "%s: %d bytes instead of %zu", v->name, n, want);
	memcpy(&msg_bytes, out + 6, sizeof(msg_bytes));
	msg_bytes = (uint16_t)(msg_bytes - more);
	memcpy(out + 6, &msg_bytes, sizeof(msg_bytes));
	for (size_t i = 0; i < want; i++)
		cr_assert_eq(out[i], v->bytes[i], "%s: byte %zu is %02x instead of %02x", v->name,
			     i, out[i], v->bytes[i]);
}

static void check_header_refused(const struct vector *v)
{
	struct ferry_framebuf b;
	struct ferry_frame frame;

	cr_assert_geq(v->n_bytes, FERRY_FRAME_HEADER_BYTES, "%s", v->name);
	cr_assert_eq(frame_of(&b, v, &frame), -EPROTO, "%s was taken", v->name);
	ferry_framebuf_fini(&b);
}

static void check_message_refused(const struct vector *v)
{
	char why[FERRY_MAX_TEXT] = "";
	struct ferry_arena arena;
	struct ferry_message m;
	struct ferry_framebuf b;
	struct ferry_frame frame;

	cr_assert_eq(frame_of(&b, v, &frame), 1, "%s", v->name);
	cr_assert_eq(ferry_arena_init(&arena), 0);
	cr_assert_eq(ferry_message_decode(&frame, &arena, &m, why), -EPROTO, "%s was taken",
		     v->name);
	cr_assert(strstr(why, v->detail), "%s: '%s', not '%s'", v->name, why, v->detail);
	cr_assert_eq(strncmp(why, ferry_frame_type_name(frame.type),
			     strlen(ferry_frame_type_name(frame.type))),
		     0, "%s: '%s' does not name the message", v->name, why);
	ferry_arena_fini(&arena);
	ferry_framebuf_fini(&b);
}

static void check_incomplete(const struct vector *v)
{
	struct ferry_framebuf b;
	struct ferry_frame frame;

	cr_assert_eq(frame_of(&b, v, &frame), 0, "%s", v->name);
	ferry_framebuf_fini(&b);
}

static uint64_t types_seen;

static void note_type(const struct vector *v)
{
	types_seen |= UINT64_C(1) << v->bytes[4];
}

Test(golden, every_type_has_an_exact_vector)
{
	uint64_t all = 0;

	for (unsigned int i = 0; i < N_FRAME_TYPES; i++)
		all |= UINT64_C(1) << frame_type_at(i);
	cr_assert_eq(frame_type_at(N_FRAME_TYPES), 0);
	for_each_vector("exact", note_type);
	cr_assert_eq(types_seen, all);
}

Test(golden, our_bytes_are_the_golden_bytes)
{
	cr_assert_geq(for_each_vector("exact", check_encode), 37);
}

Test(golden, golden_bytes_say_what_they_should)
{
	unsigned int n = for_each_vector("exact", check_decode);

	n += for_each_vector("decode", check_decode);
	cr_assert_eq(n, FERRY_ARRAY_SIZE(expectations) + 2, "%u vectors", n);
}

Test(golden, bad_headers_are_refused)
{
	cr_assert_geq(for_each_vector("header", check_header_refused), 40);
}

Test(golden, bad_messages_are_refused_with_the_reason)
{
	cr_assert_geq(for_each_vector("message", check_message_refused), 70);
}

Test(golden, beginnings_wait_for_more)
{
	cr_assert_eq(for_each_vector("incomplete", check_incomplete), 3);
}
