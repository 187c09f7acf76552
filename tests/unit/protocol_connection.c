/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Who may say what when. The table here is written from docs/protocol.md, not from connection.c:
 * one line a message, a column for each role, with S, T or both where the source or target may send
 * it.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/util.h"
#include "message_equal.h"
#include "protocol/checksum.h"

static const struct {
	enum ferry_frame_type type;
	const char *control, *urgent, *bulk, *switchover;
} rules[] = {
	{FERRY_FRAME_HELLO, "", "", "", ""},
	{FERRY_FRAME_WELCOME, "", "", "", ""},
	{FERRY_FRAME_LAYOUT, "S", "", "", ""},
	{FERRY_FRAME_LAYOUT_OK, "T", "", "", ""},
	{FERRY_FRAME_RESIDENT, "T", "", "", ""},
	{FERRY_FRAME_PUSH_START, "T", "", "", ""},
	{FERRY_FRAME_DISCARDED, "T", "", "", ""},
	{FERRY_FRAME_COMPLETE, "T", "", "", ""},
	{FERRY_FRAME_RELEASED, "S", "", "", ""},
	{FERRY_FRAME_PING, "ST", "ST", "S", "ST"},
	{FERRY_FRAME_PONG, "ST", "S", "", "ST"},
	{FERRY_FRAME_PAGE_REQUEST, "", "T", "", ""},
	{FERRY_FRAME_PAGE_RUN, "", "S", "S", ""},
	{FERRY_FRAME_PUSH_DONE, "", "", "S", ""},
	{FERRY_FRAME_DIGEST_REQUEST, "T", "", "", ""},
	{FERRY_FRAME_DIGESTS, "S", "", "", ""},
	{FERRY_FRAME_PREPARE, "", "", "", "S"},
	{FERRY_FRAME_PREPARED, "", "", "", "T"},
	{FERRY_FRAME_STOPPED, "", "", "", "S"},
	{FERRY_FRAME_DEVICE_STATE, "", "", "", "S"},
	{FERRY_FRAME_DEVICE_STATE_END, "", "", "", "S"},
	{FERRY_FRAME_LOADED, "", "", "", "T"},
	{FERRY_FRAME_COMMIT, "", "", "", "S"},
	{FERRY_FRAME_RUNNING, "", "", "", "T"},
	{FERRY_FRAME_ABORT, "", "", "", "ST"},
};

/* FERRY_FRAME_ERROR has no line: it may come always, and ends the connection. */
static bool allowed(enum ferry_frame_type type, enum ferry_role role, enum ferry_side sender)
{
	for (size_t i = 0; i < FERRY_ARRAY_SIZE(rules); i++) {
		const char *const by_role[] = {"", rules[i].control, rules[i].urgent, rules[i].bulk,
					       rules[i].switchover};

		if (rules[i].type == type)
			return strchr(by_role[role], sender == FERRY_SIDE_SOURCE ? 'S' : 'T');
	}
	return false;
}

static enum ferry_side other(enum ferry_side side)
{
	return side == FERRY_SIDE_SOURCE ? FERRY_SIDE_TARGET : FERRY_SIDE_SOURCE;
}

static struct ferry_hello hello_of(enum ferry_side side, enum ferry_role role)
{
	return (struct ferry_hello){.version_min = 1,
				    .version_max = 1,
				    .features = FERRY_FEATURES_ALL,
				    .session = {{1, 2, 3}},
				    .side = side,
				    .role = role,
				    .epoch = 5};
}

static struct ferry_message message_of(enum ferry_frame_type type, enum ferry_side sender,
				       enum ferry_role role)
{
	struct ferry_message m = {.type = type};

	if (type == FERRY_FRAME_HELLO)
		m.hello = hello_of(sender, role);
	else if (type == FERRY_FRAME_WELCOME)
		m.welcome = (struct ferry_welcome){1, FERRY_FEATURES_ALL};
	else if (type == FERRY_FRAME_PAGE_RUN)
		m.run.has_checksum = true;
	else if (type == FERRY_FRAME_ERROR)
		strcpy(m.error.text, "no");
	return m;
}

/* A connection of ours in a state, reached as connections reach it. */
static void bring_to(struct ferry_connection *c, enum ferry_connection_state state, bool dialed,
		     enum ferry_side ours, enum ferry_role role)
{
	struct ferry_hello mine = hello_of(ours, role);
	struct ferry_message m, hello = message_of(FERRY_FRAME_HELLO, other(ours), role);
	struct ferry_message welcome = message_of(FERRY_FRAME_WELCOME, other(ours), role);
	struct ferry_message error = message_of(FERRY_FRAME_ERROR, other(ours), role);
	enum ferry_error_code code;
	char why[FERRY_MAX_TEXT];

	if (dialed) {
		ferry_connection_dial(c, &mine, &m);
		if (state == FERRY_CONNECTION_OPEN)
			cr_assert_eq(ferry_connection_check(c, &welcome, &code, why), 0);
	} else {
		ferry_connection_accept(c, ours);
		if (state == FERRY_CONNECTION_HELLO_RECEIVED || state == FERRY_CONNECTION_OPEN)
			cr_assert_eq(ferry_connection_check(c, &hello, &code, why), 0);
		if (state == FERRY_CONNECTION_OPEN)
			ferry_connection_welcome(c, &m);
	}
	if (state == FERRY_CONNECTION_FAILED)
		cr_assert_eq(ferry_connection_check(c, &error, &code, why), -ECONNREFUSED);
	cr_assert_eq(c->machine.state, state);
}

/* What must become of one message in one state. Return: 0 or the error; *next is the state then. */
static int verdict(enum ferry_connection_state state, enum ferry_frame_type type,
		   enum ferry_role role, enum ferry_side sender, enum ferry_connection_state *next)
{
	*next = FERRY_CONNECTION_FAILED;
	if (state == FERRY_CONNECTION_FAILED)
		return -EPROTO;
	if (type == FERRY_FRAME_ERROR)
		return -ECONNREFUSED;
	if (state == FERRY_CONNECTION_HELLO_AWAITED && type == FERRY_FRAME_HELLO) {
		*next = FERRY_CONNECTION_HELLO_RECEIVED;
		return 0;
	}
	if ((state == FERRY_CONNECTION_HELLO_SENT && type == FERRY_FRAME_WELCOME) ||
	    (state == FERRY_CONNECTION_OPEN && allowed(type, role, sender))) {
		*next = FERRY_CONNECTION_OPEN;
		return 0;
	}
	return -EPROTO;
}

static void check_one(enum ferry_connection_state state, bool dialed, enum ferry_side ours,
		      enum ferry_role role, enum ferry_frame_type type)
{
	struct ferry_message m = message_of(type, other(ours), role);
	char what[128], why[FERRY_MAX_TEXT] = "";
	enum ferry_connection_state next;
	enum ferry_error_code code = 0;
	struct ferry_connection c;
	int want, got;

	bring_to(&c, state, dialed, ours, role);
	snprintf(what, sizeof(what), "%s to the %s, %s, %s", ferry_frame_type_name(type),
		 ferry_side_name(ours), ferry_role_name(role),
		 ferry_connection_machine.states[state].name);
	want = verdict(state, type, role, other(ours), &next);
	got = ferry_connection_check(&c, &m, &code, why);
	cr_assert_eq(got, want, "%s: %d instead of %d", what, got, want);
	cr_assert_eq(c.machine.state, next, "%s: now %s", what,
		     ferry_machine_state_name(&c.machine));
	cr_assert_eq(ferry_connection_is_open(&c), next == FERRY_CONNECTION_OPEN);
	if (want == -EPROTO) {
		cr_assert_eq(code, FERRY_ERROR_PROTOCOL);
		cr_assert(strstr(why, ferry_frame_type_name(type)), "%s: '%s'", what, why);
	} else if (want == -ECONNREFUSED) {
		cr_assert_str_eq(why, "no");
	}
}

/* Every message, role and side in every state, of connections that we dialed and accepted. */
Test(connection, every_message_is_judged_by_the_table)
{
	static const enum ferry_connection_state dialed[] = {
		FERRY_CONNECTION_HELLO_SENT, FERRY_CONNECTION_OPEN, FERRY_CONNECTION_FAILED};
	static const enum ferry_connection_state accepted[] = {
		FERRY_CONNECTION_HELLO_AWAITED, FERRY_CONNECTION_HELLO_RECEIVED,
		FERRY_CONNECTION_OPEN, FERRY_CONNECTION_FAILED};

	for (unsigned int side = FERRY_SIDE_SOURCE; side <= FERRY_SIDE_TARGET; side++) {
		for (unsigned int role = FERRY_ROLE_CONTROL; role <= FERRY_ROLE_SWITCHOVER;
		     role++) {
			for (unsigned int i = 0; i < N_FRAME_TYPES; i++) {
				for (size_t s = 0; s < FERRY_ARRAY_SIZE(dialed); s++)
					check_one(dialed[s], true, side, role, frame_type_at(i));
				for (size_t s = 0; s < FERRY_ARRAY_SIZE(accepted); s++)
					check_one(accepted[s], false, side, role, frame_type_at(i));
			}
		}
	}
}

Test(connection, the_dialer_offers_what_it_can)
{
	struct ferry_hello mine = {.session = {{9}},
				   .side = FERRY_SIDE_TARGET,
				   .role = FERRY_ROLE_BULK,
				   .index = 3,
				   .epoch = 4};
	struct ferry_connection c;
	struct ferry_message m;

	ferry_connection_dial(&c, &mine, &m);
	cr_assert_eq(m.type, FERRY_FRAME_HELLO);
	cr_assert_eq(m.hello.version_min, FERRY_VERSION_MIN);
	cr_assert_eq(m.hello.version_max, FERRY_VERSION_MAX);
	cr_assert_eq(m.hello.features, FERRY_FEATURES_ALL);
	cr_assert_eq(m.hello.role, FERRY_ROLE_BULK);
	cr_assert_eq(m.hello.index, 3);
	cr_assert_eq(m.hello.epoch, 4);
	cr_assert_eq(m.hello.session.bytes[0], 9);
	cr_assert_not(ferry_connection_is_open(&c));
}

Test(connection, both_ends_agree_on_version_and_features)
{
	struct ferry_hello mine = hello_of(FERRY_SIDE_TARGET, FERRY_ROLE_URGENT);
	struct ferry_connection dialer, acceptor;
	struct ferry_message hello, welcome;
	enum ferry_error_code code;
	char why[FERRY_MAX_TEXT];

	ferry_connection_dial(&dialer, &mine, &hello);
	hello.hello.version_max = 9;
	hello.hello.features = UINT64_MAX;
	ferry_connection_accept(&acceptor, FERRY_SIDE_SOURCE);
	cr_assert_eq(ferry_connection_check(&acceptor, &hello, &code, why), 0);
	cr_assert_eq(acceptor.hello.epoch, 5);
	ferry_connection_welcome(&acceptor, &welcome);
	cr_assert_eq(welcome.welcome.version, FERRY_VERSION_MAX);
	cr_assert_eq(welcome.welcome.features, FERRY_FEATURES_ALL);
	cr_assert_eq(ferry_connection_check(&dialer, &welcome, &code, why), 0);
	cr_assert(ferry_connection_is_open(&dialer) && ferry_connection_is_open(&acceptor));
	cr_assert_eq(dialer.version, acceptor.version);
	cr_assert_eq(dialer.features, acceptor.features);
}

static void check_hello(uint32_t min, uint32_t max, enum ferry_side sender, int want,
			enum ferry_error_code want_code, const char *text)
{
	struct ferry_message m = message_of(FERRY_FRAME_HELLO, sender, FERRY_ROLE_CONTROL);
	enum ferry_error_code code = 0;
	char why[FERRY_MAX_TEXT] = "";
	struct ferry_connection c;

	m.hello.version_min = min;
	m.hello.version_max = max;
	ferry_connection_accept(&c, FERRY_SIDE_SOURCE);
	cr_assert_eq(ferry_connection_check(&c, &m, &code, why), want);
	if (want) {
		cr_assert_eq(code, want_code);
		cr_assert(strstr(why, text), "%s", why);
		cr_assert_eq(c.machine.state, FERRY_CONNECTION_FAILED);
	}
}

Test(connection, a_hello_must_fit)
{
	check_hello(1, 1, FERRY_SIDE_TARGET, 0, 0, "");
	check_hello(0, 1, FERRY_SIDE_TARGET, 0, 0, "");
	check_hello(1, UINT32_MAX, FERRY_SIDE_TARGET, 0, 0, "");
	check_hello(0, 0, FERRY_SIDE_TARGET, -EPROTO, FERRY_ERROR_VERSION, "versions 0 to 0");
	check_hello(2, 3, FERRY_SIDE_TARGET, -EPROTO, FERRY_ERROR_VERSION, "versions 2 to 3");
	check_hello(1, 1, FERRY_SIDE_SOURCE, -EPROTO, FERRY_ERROR_PROTOCOL,
		    "both ends are the source");
}

static void check_welcome(uint32_t version, uint64_t features, int want)
{
	struct ferry_hello mine = hello_of(FERRY_SIDE_TARGET, FERRY_ROLE_CONTROL);
	enum ferry_error_code code = 0;
	char why[FERRY_MAX_TEXT] = "";
	struct ferry_connection c;
	struct ferry_message m;

	ferry_connection_dial(&c, &mine, &m);
	m = (struct ferry_message){FERRY_FRAME_WELCOME, .welcome = {version, features}};
	cr_assert_eq(ferry_connection_check(&c, &m, &code, why), want);
	if (want)
		cr_assert(code == FERRY_ERROR_VERSION && strstr(why, "not offered"), "%s", why);
}

/* A target's urgent connection to a source that offers all, of which we withhold some. */
static void open_without(struct ferry_connection *c, uint64_t withheld)
{
	struct ferry_hello theirs = hello_of(FERRY_SIDE_SOURCE, FERRY_ROLE_URGENT);
	struct ferry_message m = {FERRY_FRAME_HELLO, .hello = theirs};
	enum ferry_error_code code;
	char why[FERRY_MAX_TEXT];

	ferry_connection_accept(c, FERRY_SIDE_TARGET);
	c->withheld = withheld;
	cr_assert_eq(ferry_connection_check(c, &m, &code, why), 0);
	ferry_connection_welcome(c, &m);
	cr_assert_eq(m.welcome.features, FERRY_FEATURES_ALL & ~withheld);
}

Test(connection, digests_come_only_where_they_were_agreed_on)
{
	struct ferry_message m = {FERRY_FRAME_DIGEST_REQUEST, .digests = {0, 1, 0, 1}};
	enum ferry_error_code code;
	char why[FERRY_MAX_TEXT];
	struct ferry_connection c;

	bring_to(&c, FERRY_CONNECTION_OPEN, false, FERRY_SIDE_SOURCE, FERRY_ROLE_CONTROL);
	cr_assert_eq(ferry_connection_check(&c, &m, &code, why), 0);
	c.features &= ~FERRY_FEATURE_DIGEST;
	cr_assert_eq(ferry_connection_check(&c, &m, &code, why), -EPROTO);
}

Test(connection, page_connections_are_pinged_only_where_it_was_agreed_on)
{
	static const struct {
		enum ferry_frame_type type;
		enum ferry_role role;
		enum ferry_side ours;
		bool always;
	} cases[] = {
		{FERRY_FRAME_PING, FERRY_ROLE_CONTROL, FERRY_SIDE_SOURCE, true},
		{FERRY_FRAME_PONG, FERRY_ROLE_SWITCHOVER, FERRY_SIDE_TARGET, true},
		{FERRY_FRAME_PING, FERRY_ROLE_URGENT, FERRY_SIDE_SOURCE, false},
		{FERRY_FRAME_PING, FERRY_ROLE_URGENT, FERRY_SIDE_TARGET, false},
		{FERRY_FRAME_PONG, FERRY_ROLE_URGENT, FERRY_SIDE_TARGET, false},
		{FERRY_FRAME_PING, FERRY_ROLE_BULK, FERRY_SIDE_TARGET, false},
	};

	for (size_t i = 0; i < FERRY_ARRAY_SIZE(cases); i++) {
		struct ferry_message m = {cases[i].type};
		enum ferry_error_code code;
		char why[FERRY_MAX_TEXT];
		struct ferry_connection c;

		bring_to(&c, FERRY_CONNECTION_OPEN, false, cases[i].ours, cases[i].role);
		cr_assert_eq(ferry_connection_check(&c, &m, &code, why), 0);
		c.features &= ~FERRY_FEATURE_ALIVE;
		cr_assert_eq(ferry_connection_check(&c, &m, &code, why),
			     cases[i].always ? 0 : -EPROTO, "case %zu", i);
	}
}

static int check_run(uint64_t withheld, struct ferry_page_run run)
{
	struct ferry_message m = {FERRY_FRAME_PAGE_RUN, .run = run};
	enum ferry_error_code code;
	char why[FERRY_MAX_TEXT];
	struct ferry_connection c;

	open_without(&c, withheld);
	return ferry_connection_check(&c, &m, &code, why);
}

Test(connection, what_was_agreed_on_holds_for_every_run)
{
	struct ferry_page_run plain = {.encoding = FERRY_ENCODING_RAW};
	struct ferry_page_run lost = {.encoding = FERRY_ENCODING_LOST, .has_checksum = true};

	cr_assert_eq(check_run(0, plain), -EPROTO);
	cr_assert_eq(check_run(FERRY_FEATURE_CHECKSUM, plain), 0);
	cr_assert_eq(check_run(0, lost), 0);
	cr_assert_eq(check_run(FERRY_FEATURE_LOST, lost), -EPROTO);
}

Test(connection, what_is_withheld_is_not_offered)
{
	struct ferry_hello mine = hello_of(FERRY_SIDE_TARGET, FERRY_ROLE_BULK);
	struct ferry_connection c;
	struct ferry_message m;

	mine.withheld = FERRY_FEATURE_CHECKSUM;
	ferry_connection_dial(&c, &mine, &m);
	cr_assert_eq(m.hello.features, FERRY_FEATURES_ALL & ~FERRY_FEATURE_CHECKSUM);
}

/* The same bytes in another place, or taken for another kind, don't fit either. */
Test(connection, a_checksum_tells_content_and_place)
{
	uint8_t page[4096] = {1, 2, 3};
	struct ferry_message m = {.type = FERRY_FRAME_PAGE_RUN,
				  .run = {.run = {.region = 3, .n_pages = 1, .first_page = 77},
					  .has_checksum = true},
				  .payload = page,
				  .payload_bytes = sizeof(page)};
	struct ferry_message wrong;
	struct ferry_connection c;

	open_without(&c, 0);
	m.run.checksum = ferry_checksum(ferry_checksum_seed(&m.run), page, sizeof(page));
	cr_assert(ferry_checksum_fits(&c, &m));
	wrong = m;
	wrong.run.run.first_page++;
	cr_assert_not(ferry_checksum_fits(&c, &wrong));
	wrong = m;
	wrong.run.run.region = 2;
	cr_assert_not(ferry_checksum_fits(&c, &wrong));
	for (size_t i = 0; i < sizeof(page); i += 511) {
		page[i] ^= 0x10;
		cr_assert_not(ferry_checksum_fits(&c, &m), "byte %zu", i);
		page[i] ^= 0x10;
	}
	open_without(&c, FERRY_FEATURE_CHECKSUM);
	cr_assert(ferry_checksum_fits(&c, &wrong));
}

Test(connection, a_welcome_names_nothing_that_was_not_offered)
{
	check_welcome(1, 0, 0);
	check_welcome(1, FERRY_FEATURES_ALL, 0);
	check_welcome(0, 0, -EPROTO);
	check_welcome(2, 0, -EPROTO);
	check_welcome(1, FERRY_FEATURES_ALL + 1, -EPROTO);
	check_welcome(1, UINT64_MAX, -EPROTO);
}
