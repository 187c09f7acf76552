/* SPDX-License-Identifier: Apache-2.0 */
#include <criterion/criterion.h>
#include <errno.h>
#include <poll.h>
#include <string.h>

#include "fake_qemu.h"
#include "migrate/qmp.h"

/* --- the parser ----------------------------------------------------------------------------- */

static void feed(struct ferry_qmp_parser *p, const char *text, size_t len)
{
	while (len) {
		size_t room;
		char *to;

		cr_assert_eq(ferry_qmp_parser_space(p, &to, &room), 0);
		cr_assert_gt(room, 0);
		room = room < len ? room : len;
		memcpy(to, text, room);
		ferry_qmp_parser_advance(p, room);
		text += room;
		len -= room;
	}
}

static int parse(const char *text, struct ferry_qmp_message *m)
{
	struct ferry_qmp_parser p;
	int rc;

	ferry_qmp_parser_init(&p);
	feed(&p, text, strlen(text));
	rc = ferry_qmp_parser_next(&p, m);
	ferry_qmp_parser_fini(&p);
	return rc;
}

Test(qmp_parse, the_four_kinds_are_told_apart)
{
	struct ferry_qmp_message m;

	cr_assert_eq(parse(FAKE_GREETING, &m), 1);
	cr_assert_eq(m.kind, FERRY_QMP_GREETING);
	ferry_qmp_message_fini(&m);
	cr_assert_eq(parse("{\"return\": {\"a\": 1}, \"id\": 7}\n", &m), 1);
	cr_assert_eq(m.kind, FERRY_QMP_RETURN);
	cr_assert_eq(m.id, 7);
	cr_assert_eq(json_integer_value(json_object_get(m.body, "a")), 1);
	ferry_qmp_message_fini(&m);
	cr_assert_eq(
		parse("{\"id\": 8, \"error\": {\"class\": \"X\", \"desc\": \"no\\nway\"}}\n", &m),
		1);
	cr_assert_eq(m.kind, FERRY_QMP_ERROR);
	cr_assert_eq(m.id, 8);
	cr_assert_str_eq(m.text, "no way");
	ferry_qmp_message_fini(&m);
	cr_assert_eq(parse("{\"event\": \"STOP\", \"data\": {}}\n", &m), 1);
	cr_assert_eq(m.kind, FERRY_QMP_EVENT);
	cr_assert_str_eq(m.text, "STOP");
	ferry_qmp_message_fini(&m);
}

Test(qmp_parse, garbage_is_refused)
{
	static const char *const bad[] = {
		"hello\n",
		"{\n",
		"{}\n",
		"[]\n",
		"42\n",
		"{\"event\": 7}\n",
		"{\"return\": 1} {\n",
		"QEMU 7.2.22 monitor - type 'help' for more information\r\n",
		"{\"a\": \"\xff\xfe\"}\n"};
	struct ferry_qmp_message m;

	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		cr_assert_eq(parse(bad[i], &m), -EPROTO, "%s", bad[i]);
}

Test(qmp_parse, an_error_without_a_description_is_an_error)
{
	struct ferry_qmp_message m;

	cr_assert_eq(parse("{\"error\": 3}\n", &m), 1);
	cr_assert_eq(m.kind, FERRY_QMP_ERROR);
	cr_assert_neq(m.text[0], '\0');
}

Test(qmp_parse, lines_come_in_any_pieces)
{
	static const char text[] =
		"\r\n{\"return\": 1, \"id\": 1}\r\n\n{\"return\": 2, \"id\": 2}\n{";

	for (size_t piece = 1; piece < sizeof(text); piece++) {
		struct ferry_qmp_parser p;
		int64_t seen = 0;

		ferry_qmp_parser_init(&p);
		for (size_t at = 0; at < sizeof(text) - 1; at += piece) {
			size_t left = sizeof(text) - 1 - at;
			struct ferry_qmp_message m;

			feed(&p, text + at, left < piece ? left : piece);
			while (ferry_qmp_parser_next(&p, &m) == 1) {
				cr_assert_eq(m.id, ++seen);
				ferry_qmp_message_fini(&m);
			}
		}
		cr_assert_eq(seen, 2);
		ferry_qmp_parser_fini(&p);
	}
}

/* A line of the greatest length is taken, one byte more is not; no more memory is held than that.
 */
Test(qmp_parse, the_longest_line)
{
	for (int more = -1; more <= 1; more++) {
		size_t len = FERRY_QMP_MAX_LINE + (size_t)more;
		char *line = malloc(len);
		struct ferry_qmp_parser p;
		struct ferry_qmp_message m;
		size_t at = 0, room;
		char *to;
		int rc = 0;

		memset(line, ' ', len);
		memcpy(line, "{\"return\": 1}", 13);
		line[len - 1] = '\n';
		ferry_qmp_parser_init(&p);
		while (at < len && !(rc = ferry_qmp_parser_space(&p, &to, &room))) {
			room = room < len - at ? room : len - at;
			memcpy(to, line + at, room);
			ferry_qmp_parser_advance(&p, room);
			at += room;
			if (at < len)
				cr_assert_eq(ferry_qmp_parser_next(&p, &m), 0);
		}
		cr_assert_eq(rc, more > 0 ? -EMSGSIZE : 0);
		if (!rc) {
			cr_assert_eq(ferry_qmp_parser_next(&p, &m), 1);
			ferry_qmp_message_fini(&m);
		}
		ferry_qmp_parser_fini(&p);
		free(line);
	}
}

/* --- the client ----------------------------------------------------------------------------- */

static void connect_to(struct fake_qemu *fake, struct ferry_qmp **q)
{
	struct ferry_failure f = {0};

	cr_assert_eq(ferry_qmp_connect(q, fake->path, -1, &f), 0, "%s", f.text);
}

Test(qmp, connects_and_knows_whom_it_talks_to)
{
	struct fake_qemu fake;
	struct ferry_qmp *q;

	fake_start(&fake, NULL, NULL);
	connect_to(&fake, &q);
	cr_assert_eq(ferry_qmp_peer_pid(q), fake.pid);
	cr_assert_str_eq(ferry_qmp_version(q), "7.2.22");
	ferry_qmp_free(q);
	fake_stop(&fake);
}

Test(qmp, no_socket_is_explained)
{
	struct ferry_failure f = {0};
	struct ferry_qmp *q;

	cr_assert_eq(ferry_qmp_connect(&q, "/tmp/ferry-nothing-here", -1, &f), -ENOENT);
	cr_assert(strstr(f.text, "start QEMU with -qmp unix:/tmp/ferry-nothing-here"), "%s",
		  f.text);
}

Test(qmp, too_long_a_path_is_refused)
{
	struct ferry_failure f = {0};
	struct ferry_qmp *q;
	char path[200];

	memset(path, 'a', sizeof(path) - 1);
	path[sizeof(path) - 1] = '\0';
	cr_assert_eq(ferry_qmp_connect(&q, path, -1, &f), -ENAMETOOLONG);
}

/* QEMU accepts a second client into the backlog, and says nothing to it. */
Test(qmp, a_monitor_that_another_holds_is_told_from_one_that_hangs)
{
	struct ferry_failure f = {0};
	struct ferry_qmp *first, *second;
	struct fake_qemu fake;

	fake_start(&fake, NULL, NULL);
	connect_to(&fake, &first);
	cr_assert_eq(ferry_qmp_connect(&second, fake.path, -1, &f), -EBUSY);
	cr_assert(strstr(f.text,
			 "another program holds this monitor; give pageferry a QMP socket of "
			 "its own"),
		  "%s", f.text);
	cr_assert_eq(f.consequence, FERRY_REFUSE);
	ferry_qmp_free(first);
	fake_stop(&fake);
}

Test(qmp, a_human_monitor_is_refused)
{
	struct ferry_failure f = {0};
	struct fake_qemu fake;
	struct ferry_qmp *q;

	fake_start(&fake, "QEMU 7.2.22 monitor - type 'help' for more information\r\n(qemu) ",
		   NULL);
	cr_assert_eq(ferry_qmp_connect(&q, fake.path, -1, &f), -EPROTO);
	cr_assert(strstr(f.text, "mode=control"), "%s", f.text);
	fake_stop(&fake);
}

Test(qmp, answers_errors_and_late_answers)
{
	static const struct fake_answer script[] = {
		{"good", .json = "{\"n\": 5}"},
		{"bad", .error = "it can't be"},
		{"late", .raw = "{\"return\": {}, \"id\": 1}\n{\"event\": \"RTC_CHANGE\"}\n"
				"{\"event\": \"MIGRATION\", \"data\": {\"status\": \"setup\"}}\n"
				"{\"return\": {\"n\": 6}, \"id\": 4}\n"},
		{"garbage", .raw = "what?\n"},
		{0}};
	struct ferry_qmp_message m;
	struct ferry_failure f = {0};
	struct fake_qemu fake;
	struct ferry_qmp *q;
	json_t *ret;

	fake_start(&fake, NULL, script);
	connect_to(&fake, &q); /* id 1 */
	cr_assert_eq(ferry_qmp_execute(q, "good", json_pack("{s:s}", "a", "b"), &ret, &f), 0);
	cr_assert_eq(json_integer_value(json_object_get(ret, "n")), 5);
	json_decref(ret);
	cr_assert_eq(ferry_qmp_execute(q, "bad", NULL, &ret, &f), -EREMOTEIO);
	cr_assert_str_eq(f.text, "QEMU refuses 'bad': it can't be");
	cr_assert_eq(ferry_qmp_event(q, &m, &f), 0);
	cr_assert_eq(ferry_qmp_execute(q, "late", NULL, &ret, &f), 0);
	cr_assert_eq(json_integer_value(json_object_get(ret, "n")), 6);
	json_decref(ret);
	/* Only what somebody looks at is kept. */
	cr_assert_eq(ferry_qmp_event(q, &m, &f), 1);
	cr_assert_str_eq(m.text, "MIGRATION");
	ferry_qmp_message_fini(&m);
	cr_assert_eq(ferry_qmp_event(q, &m, &f), 0);
	cr_assert_eq(ferry_qmp_execute(q, "garbage", NULL, NULL, &f), -EPROTO);
	ferry_qmp_free(q);
	fake_stop(&fake);
}

Test(qmp, an_end_of_qemu_is_noticed)
{
	static const struct fake_answer script[] = {{"die", .dies = true}, {0}};
	struct ferry_failure f = {0};
	struct ferry_qmp_message m;
	struct fake_qemu fake;
	struct ferry_qmp *q;

	fake_start(&fake, NULL, script);
	connect_to(&fake, &q);
	cr_assert_eq(ferry_qmp_execute(q, "die", NULL, NULL, &f), -ECONNRESET);
	cr_assert_eq(f.consequence, FERRY_LOST);
	cr_assert_eq(ferry_qmp_event(q, &m, &f), -ECONNRESET);
	cr_assert_eq(ferry_qmp_execute(q, "more", NULL, NULL, &f), -ECONNRESET);
	ferry_qmp_free(q);
	fake_stop(&fake);
}

Test(qmp, a_command_that_is_not_answered_is_given_up)
{
	static const struct fake_answer script[] = {{"slow", .raw = ""}, {0}};
	struct ferry_failure f = {0};
	struct fake_qemu fake;
	struct ferry_qmp *q;

	fake_start(&fake, NULL, script);
	connect_to(&fake, &q);
	cr_assert_eq(ferry_qmp_execute_within(q, 50, "slow", NULL, NULL, &f), -ETIMEDOUT);
	cr_assert_eq(ferry_qmp_execute(q, "next", NULL, NULL, &f), 0);
	ferry_qmp_free(q);
	fake_stop(&fake);
}

/* More events than are kept: the newest stay. */
Test(qmp, a_flood_of_events_is_bounded)
{
	static char flood[200 * 64 + 64];
	struct fake_answer script[] = {{"flood", .raw = flood}, {0}};
	struct ferry_failure f = {0};
	struct ferry_qmp_message m;
	struct fake_qemu fake;
	struct ferry_qmp *q;
	json_int_t last = -1;
	size_t at = 0;
	int n = 0;

	for (int i = 0; i < 200; i++)
		at += (size_t)snprintf(flood + at, sizeof(flood) - at,
				       "{\"event\": \"MIGRATION\", \"data\": {\"n\": %d}}\n", i);
	snprintf(flood + at, sizeof(flood) - at, "{\"return\": {}, \"id\": 2}\n");
	fake_start(&fake, NULL, script);
	connect_to(&fake, &q);
	cr_assert_eq(ferry_qmp_execute(q, "flood", NULL, NULL, &f), 0);
	for (; ferry_qmp_event(q, &m, &f) == 1; n++) {
		last = json_integer_value(json_object_get(m.body, "n"));
		ferry_qmp_message_fini(&m);
	}
	cr_assert_eq(last, 199);
	cr_assert_leq(n, 32);
	ferry_qmp_free(q);
	fake_stop(&fake);
}
