/* SPDX-License-Identifier: Apache-2.0 */
#include <criterion/criterion.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/net.h"
#include "migrate/acceptor.h"
#include "uffd/channel.h"

#define LIMIT_MS 60000

struct door {
	struct ferry_acceptor *acceptor;
	struct ferry_addr addr;
	int listen_fd;
};

/* Nobody is let in yet. */
static void build_door(struct door *d)
{
	struct ferry_failure f = {0};
	struct ferry_addr any;

	cr_assert_eq(ferry_addr_parse(&any, "127.0.0.1:0", &f), 0);
	d->listen_fd = ferry_net_listen(&any, &f);
	cr_assert_geq(d->listen_fd, 0, "%s", f.text);
	cr_assert_eq(ferry_net_local(d->listen_fd, &any, &d->addr), 0);
	cr_assert_eq(ferry_acceptor_new(&d->acceptor, d->listen_fd, NULL, NULL, &f), 0, "%s", f.text);
}

static void open_door(struct door *d)
{
	struct ferry_failure f = {0};

	build_door(d);
	cr_assert_eq(ferry_acceptor_start(d->acceptor, &f), 0, "%s", f.text);
}

static void close_door(struct door *d)
{
	ferry_acceptor_free(d->acceptor);
	close(d->listen_fd);
}

static int dial(struct door *d)
{
	struct ferry_failure f = {0};
	int fd = ferry_net_dial(&d->addr, LIMIT_MS, -1, &f);

	cr_assert_geq(fd, 0, "%s", f.text);
	return fd;
}

static struct ferry_hello hello(enum ferry_role role, uint8_t session, uint32_t epoch)
{
	return (struct ferry_hello){.version_min = FERRY_VERSION_MIN,
				    .version_max = FERRY_VERSION_MAX,
				    .features = FERRY_FEATURES_ALL,
				    .session = {{session}},
				    .side = FERRY_SIDE_SOURCE,
				    .role = role,
				    .epoch = epoch};
}

static int say(struct door *d, const struct ferry_hello *h)
{
	struct ferry_message m = {.type = FERRY_FRAME_HELLO, .hello = *h};
	uint8_t out[FERRY_MAX_ENCODED_BYTES];
	int n = ferry_message_encode(&m, out, sizeof(out));
	int fd = dial(d);

	cr_assert_eq(ferry_net_write_all(fd, out, (size_t)n, LIMIT_MS, -1), 0);
	return fd;
}

/* Reads an Error and then the end of the connection. */
static void expect_error(int fd, enum ferry_error_code code, const char *text)
{
	uint8_t buffer[FERRY_FRAME_HEADER_BYTES + FERRY_MAX_MESSAGE_BYTES];
	struct ferry_frame_header h;
	struct ferry_frame frame = {.type = FERRY_FRAME_ERROR,
				    .msg = buffer + FERRY_FRAME_HEADER_BYTES};
	struct ferry_arena arena;
	struct ferry_message m;
	char why[FERRY_MAX_TEXT];

	cr_assert_eq(ferry_net_read_all(fd, buffer, FERRY_FRAME_HEADER_BYTES, LIMIT_MS, -1), 0);
	cr_assert_eq(ferry_frame_header_decode(buffer, &h), 0);
	cr_assert_eq(h.type, FERRY_FRAME_ERROR);
	frame.msg_bytes = h.msg_bytes;
	cr_assert_eq(ferry_net_read_all(fd, buffer + FERRY_FRAME_HEADER_BYTES, h.msg_bytes,
					LIMIT_MS, -1),
		     0);
	cr_assert_eq(ferry_arena_init(&arena), 0);
	cr_assert_eq(ferry_message_decode(&frame, &arena, &m, why), 0, "%s", why);
	ferry_arena_fini(&arena);
	cr_assert_eq(m.error.code, code);
	cr_assert(strstr(m.error.text, text), "%s", m.error.text);
	cr_assert_eq(ferry_net_read_all(fd, buffer, 1, LIMIT_MS, -1), -ECONNRESET);
	close(fd);
}

static int take(struct door *d, struct ferry_hello *h)
{
	cr_assert_eq(ferry_net_wait(ferry_acceptor_fd(d->acceptor), POLLIN, LIMIT_MS, -1), 0);
	return ferry_acceptor_take(d->acceptor, h);
}

Test(acceptor, a_source_comes_through)
{
	struct ferry_hello h = hello(FERRY_ROLE_SWITCHOVER, 1, 0), got;
	struct door d;
	int fd, taken;

	open_door(&d);
	fd = say(&d, &h);
	taken = take(&d, &got);
	cr_assert_geq(taken, 0);
	cr_assert_eq(memcmp(&got.session, &h.session, sizeof(h.session)), 0);
	cr_assert_eq(ferry_acceptor_take(d.acceptor, &got), -EAGAIN);
	close(taken);
	close(fd);
	close_door(&d);
}

Test(acceptor, only_the_hello_is_read)
{
	struct ferry_hello h = hello(FERRY_ROLE_SWITCHOVER, 1, 0), got;
	char byte = 0;
	struct door d;
	int fd, taken;

	open_door(&d);
	fd = say(&d, &h);
	cr_assert_eq(ferry_net_write_all(fd, "x", 1, LIMIT_MS, -1), 0);
	taken = take(&d, &got);
	cr_assert_eq(ferry_net_read_all(taken, &byte, 1, LIMIT_MS, -1), 0);
	cr_assert_eq(byte, 'x');
	close(taken);
	close(fd);
	close_door(&d);
}

Test(acceptor, a_second_source_is_told_that_this_one_is_busy)
{
	struct ferry_hello first = hello(FERRY_ROLE_SWITCHOVER, 1, 0), got;
	struct ferry_hello second = hello(FERRY_ROLE_SWITCHOVER, 2, 0);
	struct door d;
	int fd, taken;

	open_door(&d);
	fd = say(&d, &first);
	taken = take(&d, &got);
	expect_error(say(&d, &second), FERRY_ERROR_BUSY, "serves another source already");
	/* Once the first is gone for good, another may try. */
	ferry_acceptor_free_seat(d.acceptor);
	close(taken);
	close(fd);
	fd = say(&d, &second);
	taken = take(&d, &got);
	cr_assert_eq(got.session.bytes[0], 2);
	close(taken);
	close(fd);
	close_door(&d);
}

Test(acceptor, the_same_session_comes_again_with_a_higher_epoch_only)
{
	struct ferry_hello h = hello(FERRY_ROLE_SWITCHOVER, 1, 3), got;
	struct door d;
	int fd, again, taken;

	open_door(&d);
	fd = say(&d, &h);
	close(take(&d, &got));
	expect_error(say(&d, &h), FERRY_ERROR_SESSION, "older");
	h.epoch = 4;
	again = say(&d, &h);
	taken = take(&d, &got);
	cr_assert_eq(got.epoch, 4);
	close(taken);
	close(again);
	close(fd);
	close_door(&d);
}

Test(acceptor, a_reserved_seat_is_for_one_session)
{
	struct ferry_hello mine = hello(FERRY_ROLE_SWITCHOVER, 1, 1 << 20), got;
	struct ferry_hello other = hello(FERRY_ROLE_SWITCHOVER, 2, 0);
	struct door d;
	int fd;

	open_door(&d);
	ferry_acceptor_reserve(d.acceptor, &mine.session);
	expect_error(say(&d, &other), FERRY_ERROR_BUSY, "another source");
	fd = say(&d, &mine);
	close(take(&d, &got));
	close(fd);
	close_door(&d);
}

/* A source that dials all the time must not be refused by one that is about to take over. */
Test(acceptor, who_comes_early_waits)
{
	struct ferry_hello pages = hello(FERRY_ROLE_CONTROL, 1, 0);
	struct ferry_hello mine = hello(FERRY_ROLE_SWITCHOVER, 1, 1), got;
	struct ferry_failure f = {0};
	int early, fd;
	struct door d;

	build_door(&d);
	early = say(&d, &pages);
	fd = say(&d, &mine);
	cr_assert_eq(ferry_net_wait(early, POLLIN, 200, -1), -ETIMEDOUT);
	ferry_acceptor_reserve(d.acceptor, &mine.session);
	cr_assert_eq(ferry_acceptor_start(d.acceptor, &f), 0, "%s", f.text);
	close(take(&d, &got));
	cr_assert_eq(got.epoch, 1);
	expect_error(early, FERRY_ERROR_SESSION, "no switchover");
	close(fd);
	close_door(&d);
}

Test(acceptor, pages_before_a_switchover_are_refused)
{
	static const enum ferry_role roles[] = {FERRY_ROLE_CONTROL, FERRY_ROLE_URGENT,
						FERRY_ROLE_BULK};
	struct door d;

	open_door(&d);
	for (size_t i = 0; i < 3; i++) {
		struct ferry_hello h = hello(roles[i], 1, 0);

		expect_error(say(&d, &h), FERRY_ERROR_SESSION, "no switchover");
	}
	close_door(&d);
}

Test(acceptor, garbage_is_told_so_and_harms_nobody)
{
	static const char *const garbage[] = {
		"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
		"PFRY\xff\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00",
		"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"
		"ABCDEF"};
	struct ferry_hello h = hello(FERRY_ROLE_SWITCHOVER, 1, 0), got;
	struct door d;
	int fd;

	open_door(&d);
	for (size_t i = 0; i < sizeof(garbage) / sizeof(garbage[0]); i++) {
		fd = dial(&d);
		cr_assert_eq(ferry_net_write_all(fd, garbage[i], 16, LIMIT_MS, -1), 0);
		expect_error(fd, FERRY_ERROR_PROTOCOL, "not the Pageferry protocol");
	}
	fd = say(&d, &h);
	close(take(&d, &got));
	close(fd);
	close_door(&d);
}

Test(acceptor, a_hello_with_other_sides_or_versions_is_refused)
{
	struct ferry_hello h = hello(FERRY_ROLE_SWITCHOVER, 1, 0);
	struct door d;

	open_door(&d);
	h.side = FERRY_SIDE_TARGET;
	expect_error(say(&d, &h), FERRY_ERROR_PROTOCOL, "both ends are the target");
	h = hello(FERRY_ROLE_SWITCHOVER, 1, 0);
	h.version_min = h.version_max = FERRY_VERSION_MAX + 1;
	expect_error(say(&d, &h), FERRY_ERROR_VERSION, "releases that have one in common");
	close_door(&d);
}

/* A Hello that is too long, or has pages behind it, is no Hello. */
Test(acceptor, a_header_that_announces_too_much_is_refused)
{
	static const struct ferry_frame_header headers[] = {
		{FERRY_FRAME_HELLO, 1025, 0},
		{FERRY_FRAME_HELLO, FERRY_MAX_MESSAGE_BYTES, 0},
		{FERRY_FRAME_PREPARE, 16, 0},
	};
	struct door d;

	open_door(&d);
	for (size_t i = 0; i < sizeof(headers) / sizeof(headers[0]); i++) {
		uint8_t out[FERRY_FRAME_HEADER_BYTES];
		int fd = dial(&d);

		ferry_frame_header_encode(&headers[i], out);
		cr_assert_eq(ferry_net_write_all(fd, out, sizeof(out), LIMIT_MS, -1), 0);
		expect_error(fd, FERRY_ERROR_PROTOCOL, "not the Pageferry protocol");
	}
	close_door(&d);
}

Test(acceptor, those_who_say_nothing_keep_nobody_out)
{
	struct ferry_hello h = hello(FERRY_ROLE_SWITCHOVER, 1, 0), got;
	int silent[FERRY_ACCEPTOR_MAX_PENDING + 8];
	char byte;
	struct door d;
	int fd;

	open_door(&d);
	for (size_t i = 0; i < sizeof(silent) / sizeof(silent[0]); i++)
		silent[i] = dial(&d);
	fd = say(&d, &h);
	close(take(&d, &got));
	/* The oldest were closed for the newcomers. */
	cr_assert_eq(ferry_net_read_all(silent[0], &byte, 1, LIMIT_MS, -1), -ECONNRESET);
	for (size_t i = 0; i < sizeof(silent) / sizeof(silent[0]); i++)
		close(silent[i]);
	close(fd);
	close_door(&d);
}

Test(acceptor, a_hello_in_single_bytes_is_a_hello)
{
	struct ferry_message m = {.type = FERRY_FRAME_HELLO,
				  .hello = hello(FERRY_ROLE_SWITCHOVER, 1, 0)};
	uint8_t out[FERRY_MAX_ENCODED_BYTES];
	int n = ferry_message_encode(&m, out, sizeof(out));
	struct ferry_hello got;
	struct door d;
	int fd, one = 1;

	open_door(&d);
	fd = dial(&d);
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	for (int i = 0; i < n; i++)
		cr_assert_eq(ferry_net_write_all(fd, out + i, 1, LIMIT_MS, -1), 0);
	close(take(&d, &got));
	close(fd);
	close_door(&d);
}
