/* SPDX-License-Identifier: Apache-2.0 */
/* Who is let in, what a lost link and a bad peer lead to, and that sessions don't harm each other.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/net.h"
#include "base/util.h"
#include "pageserver/ring.h"
#include "pageserver_client.h"

static void expect_refusal(struct client *c, enum ferry_role role, uint32_t index,
			   enum ferry_error_code code)
{
	_cleanup_close_ int fd = client_dial(c, role, index);

	cr_assert_eq(c->m.type, FERRY_FRAME_ERROR, "%s", ferry_frame_type_name(c->m.type));
	cr_assert_eq(c->m.error.code, code, "%s", c->m.error.text);
	cr_assert_gt(strlen(c->m.error.text), 10);
	cr_assert_not(client_read(c, fd), "a refused connection stays open");
}

/* A client that is new here gets all that it should. */
static void is_served(const struct world *w, uint8_t id)
{
	struct client c;

	client_init(&c, w, id, 1);
	client_open(&c);
	client_request(&c, 1, 1);
	must(client_read(&c, c.urgent));
	client_take(&c);
	client_start_push(&c, 0);
	client_take_push(&c);
	cr_assert_eq(ferry_bitmap_count(&c.have), w->n_pages);
	client_complete(&c);
	client_fini(&c);
}

static int connect_raw(const struct world *w)
{
	struct ferry_failure f = {0};
	int fd = ferry_net_dial(&w->addr, 10000, -1, &f);

	must(fd >= 0);
	return fd;
}

Test(sessions, are_resumed_from_the_targets_bitmap_any_number_of_times)
{
	struct ferry_server_stats stats;
	struct ferry_failure f;
	struct client c;
	struct world w;

	world_init(&w, 20000, true, NULL, true);
	client_init(&c, &w, 1, 2);
	for (c.epoch = 0; c.epoch < 4; c.epoch++) {
		client_open(&c);
		if (c.epoch)
			client_send_resident(&c);
		client_start_push(&c, 0);
		if (c.epoch == 3)
			break;
		client_request(&c, 19000 + c.epoch, 1);
		must(client_read(&c, c.urgent));
		client_take(&c);
		for (int i = 0; i < 300; i++) {
			must(client_read(&c, c.bulk[i % 2]));
			if (c.m.type == FERRY_FRAME_PAGE_RUN)
				client_take(&c);
		}
		client_close(&c);
		expect_event(&w, FERRY_SERVER_LINK_LOST, &f);
		cr_assert_eq(f.consequence, FERRY_LINK);
	}
	client_take_push(&c);
	cr_assert_eq(ferry_bitmap_count(&c.have), w.n_pages);
	cr_assert_leq(c.n_duplicates, 300, "what the target has is sent again");
	client_complete(&c);
	expect_event(&w, FERRY_SERVER_COMPLETED, NULL);
	ferry_server_stats(w.server, &stats);
	cr_assert_eq(stats.resumes, 3);
	cr_assert_eq(stats.n_sessions_ever, 1);
	client_fini(&c);
	world_fini(&w);
}

Test(sessions, are_resumed_at_once_although_the_old_connections_linger)
{
	struct client old, c;
	struct world w;

	world_init(&w, 20000, false, NULL, true);
	client_init(&old, &w, 1, 1);
	client_open(&old);
	/* Its push is blocked in the middle of a frame: nobody reads. */
	client_start_push(&old, 0);
	client_init(&c, &w, 1, 1);
	c.epoch = 5;
	client_open(&c);
	client_start_push(&c, 0);
	client_take_push(&c);
	cr_assert_eq(ferry_bitmap_count(&c.have), w.n_pages);
	cr_assert_eq(c.n_duplicates, 0);
	client_complete(&c);
	while (client_read(&old, old.control))
		;
	client_fini(&old);
	client_fini(&c);
	world_fini(&w);
}

Test(sessions, of_a_server_that_was_restarted_are_resumed_by_another)
{
	struct client c;
	struct world w;

	world_init(&w, 2000, true, NULL, true);
	client_init(&c, &w, 1, 1);
	ferry_bitmap_set_range(&c.have, 0, 1500);
	c.epoch = 7;
	client_open(&c);
	client_send_resident(&c);
	client_start_push(&c, 0);
	client_take_push(&c);
	cr_assert_eq(ferry_bitmap_count(&c.have), w.n_pages);
	cr_assert_eq(c.n_duplicates, 0);
	client_complete(&c);
	client_fini(&c);
	world_fini(&w);
}

Test(sessions, take_no_connection_of_an_epoch_that_has_been)
{
	struct client c, again;
	struct world w;

	world_init(&w, 100, true, NULL, true);
	client_init(&c, &w, 1, 1);
	client_init(&again, &w, 1, 1);
	c.epoch = 1;
	client_open(&c);
	expect_refusal(&again, FERRY_ROLE_CONTROL, 0, FERRY_ERROR_SESSION);
	expect_refusal(&again, FERRY_ROLE_URGENT, 0, FERRY_ERROR_SESSION);
	expect_refusal(&again, FERRY_ROLE_BULK, 1, FERRY_ERROR_SESSION);
	again.epoch = 1;
	expect_refusal(&again, FERRY_ROLE_CONTROL, 0, FERRY_ERROR_SESSION);
	expect_refusal(&again, FERRY_ROLE_URGENT, 0, FERRY_ERROR_SESSION);
	expect_refusal(&again, FERRY_ROLE_BULK, 0, FERRY_ERROR_SESSION);
	again.epoch = 2;
	expect_refusal(&again, FERRY_ROLE_URGENT, 0, FERRY_ERROR_SESSION);
	/* None of it harmed the one that is there. */
	client_start_push(&c, 0);
	client_take_push(&c);
	client_complete(&c);
	client_fini(&c);
	client_fini(&again);
	world_fini(&w);
}

Test(sessions, begin_with_their_control_connection)
{
	struct client c;
	struct world w;

	world_init(&w, 100, true, NULL, true);
	client_init(&c, &w, 1, 1);
	expect_refusal(&c, FERRY_ROLE_URGENT, 0, FERRY_ERROR_SESSION);
	expect_refusal(&c, FERRY_ROLE_BULK, 0, FERRY_ERROR_SESSION);
	expect_refusal(&c, FERRY_ROLE_SWITCHOVER, 0, FERRY_ERROR_SESSION);
	cr_assert(strstr(c.m.error.text, "pageferry receive"));
	is_served(&w, 1);
	client_fini(&c);
	world_fini(&w);
}

Test(sessions, are_as_many_as_configured_and_lost_ones_keep_their_place)
{
	struct ferry_server_config config = {.max_sessions = 2};
	struct client a, b, c;
	struct world w;

	world_init(&w, 100, true, &config, true);
	client_init(&a, &w, 1, 1);
	client_init(&b, &w, 2, 1);
	client_init(&c, &w, 3, 1);
	client_open(&a);
	client_open(&b);
	client_close(&a);
	expect_event(&w, FERRY_SERVER_LINK_LOST, NULL);
	for (int i = 0; i < 3; i++)
		expect_refusal(&c, FERRY_ROLE_CONTROL, 0, FERRY_ERROR_BUSY);
	cr_assert(strstr(c.m.error.text, "(2), of which 1 lost"), "%s", c.m.error.text);
	a.epoch = 1;
	client_open(&a);
	client_start_push(&a, 0);
	client_take_push(&a);
	client_fini(&a);
	client_fini(&b);
	client_fini(&c);
	world_fini(&w);
}

Test(sessions, that_took_no_layout_make_room_once_they_are_lost)
{
	struct ferry_server_config config = {.max_sessions = 1};
	struct client stranger, c;
	struct world w;
	int fd;

	world_init(&w, 100, true, &config, true);
	client_init(&stranger, &w, 1, 1);
	client_init(&c, &w, 2, 1);
	fd = client_dial(&stranger, FERRY_ROLE_CONTROL, 0);
	must(stranger.m.type == FERRY_FRAME_WELCOME);
	expect_refusal(&c, FERRY_ROLE_CONTROL, 0, FERRY_ERROR_BUSY);
	close(fd);
	expect_event(&w, FERRY_SERVER_LINK_LOST, NULL);
	client_open(&c);
	client_start_push(&c, 0);
	client_take_push(&c);
	client_fini(&stranger);
	client_fini(&c);
	world_fini(&w);
}

Test(sessions, of_a_server_of_ones_own_make_room_once_they_are_lost)
{
	struct ferry_server_config config = {.max_sessions = 2, .gives_up_lost = true};
	struct client a, b, c;
	struct world w;

	world_init(&w, 100, true, &config, true);
	client_init(&a, &w, 1, 1);
	client_init(&b, &w, 2, 1);
	client_init(&c, &w, 3, 1);
	client_open(&a);
	client_open(&b);
	expect_refusal(&c, FERRY_ROLE_CONTROL, 0, FERRY_ERROR_BUSY);
	client_close(&a);
	expect_event(&w, FERRY_SERVER_LINK_LOST, NULL);
	client_open(&c);
	client_start_push(&c, 0);
	client_take_push(&c);
	client_start_push(&b, 0);
	client_take_push(&b);
	client_fini(&a);
	client_fini(&b);
	client_fini(&c);
	world_fini(&w);
}

Test(sessions, of_several_targets_are_served_side_by_side)
{
	struct ferry_server_stats stats;
	struct client c[6];
	struct world w;

	world_init(&w, 3000, true, NULL, true);
	for (uint8_t i = 0; i < 6; i++) {
		client_init(&c[i], &w, (uint8_t)(i + 1), 1 + i % 2);
		client_open(&c[i]);
		client_start_push(&c[i], 0);
	}
	ferry_server_stats(w.server, &stats);
	cr_assert_eq(stats.n_sessions, 6);
	for (uint8_t i = 0; i < 6; i++) {
		client_take_push(&c[i]);
		cr_assert_eq(ferry_bitmap_count(&c[i].have), w.n_pages);
	}
	for (uint8_t i = 0; i < 6; i++) {
		client_complete(&c[i]);
		expect_event(&w, FERRY_SERVER_COMPLETED, NULL);
		client_fini(&c[i]);
	}
	world_fini(&w);
}

Test(sessions, with_a_target_that_does_not_read_hold_up_nobody)
{
	struct ferry_message m = {.type = FERRY_FRAME_PAGE_REQUEST};
	uint8_t out[FERRY_MAX_ENCODED_BYTES];
	struct client slow;
	struct world w;
	size_t sent = 0;
	int n;

	world_init(&w, 20000, true, NULL, true);
	client_init(&slow, &w, 1, 1);
	client_open(&slow);
	client_start_push(&slow, 0);
	/* Requests without end: at some point the server stops taking them. */
	m.request.n_runs = FERRY_MAX_REQUEST_RUNS;
	for (uint32_t i = 0; i < m.request.n_runs; i++)
		m.request.runs[i] = (struct ferry_run){.region = 0, .n_pages = 16};
	for (;;) {
		m.request.request_id++;
		n = ferry_message_encode(&m, out, sizeof(out));
		must(n > 0);
		if (ferry_net_write_all(slow.urgent, out, (size_t)n, 300, -1) < 0)
			break;
		sent++;
		cr_assert_lt(sent, 20000, "requests are taken without a bound");
	}
	is_served(&w, 2);
	is_served(&w, 3);
	client_fini(&slow);
	world_fini(&w);
}

Test(sessions, pings_are_answered_and_a_flood_of_them_waits)
{
	struct ferry_message ping = {.type = FERRY_FRAME_PING};
	struct client c;
	struct world w;

	world_init(&w, 100, true, NULL, true);
	client_init(&c, &w, 1, 1);
	client_open(&c);
	for (uint64_t i = 1; i <= 3000; i++) {
		ping.ping.sent_ns = i;
		client_send(&c, c.control, &ping);
	}
	for (uint64_t i = 1; i <= 3000; i++) {
		must(client_read(&c, c.control));
		cr_assert_eq(c.m.type, FERRY_FRAME_PONG);
		cr_assert_eq(c.m.pong.ping_sent_ns, i);
	}
	client_fini(&c);
	world_fini(&w);
}

Test(sessions, garbage_ends_its_own_connection_only)
{
	static const uint8_t too_long[16] = {'P', 'F', 'R', 'Y', FERRY_FRAME_HELLO, 0, 0, 0x40};
	static const char http[] = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";
	struct client other, c;
	struct world w;
	int fd;

	world_init(&w, 1000, true, NULL, true);
	client_init(&other, &w, 9, 1);
	client_open(&other);
	client_init(&c, &w, 1, 1);
	fd = connect_raw(&w);
	must(!ferry_net_write_all(fd, http, sizeof(http), 1000, -1));
	must(client_read(&c, fd));
	cr_assert_eq(c.m.type, FERRY_FRAME_ERROR);
	cr_assert_eq(c.m.error.code, FERRY_ERROR_PROTOCOL);
	cr_assert_not(client_read(&c, fd));
	close(fd);
	/* A header that announces a Hello longer than any. */
	fd = connect_raw(&w);
	must(!ferry_net_write_all(fd, too_long, sizeof(too_long), 1000, -1));
	must(client_read(&c, fd));
	cr_assert_eq(c.m.error.code, FERRY_ERROR_PROTOCOL);
	close(fd);
	client_start_push(&other, 0);
	client_take_push(&other);
	cr_assert_eq(ferry_bitmap_count(&other.have), w.n_pages);
	client_fini(&other);
	client_fini(&c);
	world_fini(&w);
}

Test(sessions, two_sources_are_told_so)
{
	struct ferry_message hello = {.type = FERRY_FRAME_HELLO,
				      .hello = {.version_min = 1,
						.version_max = 1,
						.side = FERRY_SIDE_SOURCE,
						.role = FERRY_ROLE_CONTROL}};
	struct client c;
	struct world w;
	int fd;

	world_init(&w, 100, true, NULL, true);
	client_init(&c, &w, 1, 1);
	fd = connect_raw(&w);
	client_send(&c, fd, &hello);
	must(client_read(&c, fd));
	cr_assert_eq(c.m.type, FERRY_FRAME_ERROR);
	cr_assert(strstr(c.m.error.text, "source"));
	close(fd);
	client_fini(&c);
	world_fini(&w);
}

static void bad_message_ends_the_session(const struct ferry_message *m, bool on_urgent)
{
	struct client c;
	struct world w;
	int fd;

	world_init(&w, 1000, true, NULL, true);
	client_init(&c, &w, 1, 1);
	client_open(&c);
	fd = on_urgent ? c.urgent : c.control;
	client_send(&c, fd, m);
	must(client_read(&c, fd));
	cr_assert_eq(c.m.type, FERRY_FRAME_ERROR);
	cr_assert_eq(c.m.error.code, FERRY_ERROR_PROTOCOL);
	cr_assert_not(client_read(&c, c.bulk[0]), "the session's other connections stay open");
	expect_event(&w, FERRY_SERVER_LINK_LOST, NULL);
	client_close(&c);
	/* It may come back and behave. */
	c.epoch = 1;
	client_open(&c);
	client_start_push(&c, 0);
	client_take_push(&c);
	client_complete(&c);
	client_fini(&c);
	world_fini(&w);
}

Test(sessions, a_request_for_pages_that_dont_exist_ends_the_session)
{
	struct ferry_message m = {
		.type = FERRY_FRAME_PAGE_REQUEST,
		.request = {.request_id = 1, .n_runs = 1, .runs = {{0, 1, 1000}}}};

	bad_message_ends_the_session(&m, true);
	m.request.runs[0] = (struct ferry_run){.region = 1, .n_pages = 1};
	bad_message_ends_the_session(&m, true);
}

Test(sessions, a_message_of_another_connections_role_ends_the_session)
{
	struct ferry_message m = {.type = FERRY_FRAME_COMPLETE};

	bad_message_ends_the_session(&m, true);
	m = (struct ferry_message){.type = FERRY_FRAME_PAGE_REQUEST,
				   .request = {.request_id = 1, .n_runs = 1, .runs = {{0, 1, 0}}}};
	bad_message_ends_the_session(&m, false);
}

Test(sessions, bulk_connections_are_opened_before_the_push)
{
	struct client c;
	struct world w;

	world_init(&w, 1000, true, NULL, true);
	client_init(&c, &w, 1, 1);
	client_open(&c);
	client_start_push(&c, 0);
	must(client_read(&c, c.bulk[0]));
	client_take(&c);
	expect_refusal(&c, FERRY_ROLE_BULK, 1, FERRY_ERROR_SESSION);
	client_take_push(&c);
	cr_assert_eq(ferry_bitmap_count(&c.have), w.n_pages);
	client_fini(&c);
	world_fini(&w);
}

Test(sessions, a_push_waits_for_the_first_bulk_connection)
{
	struct ferry_message ok = {.type = FERRY_FRAME_LAYOUT_OK};
	struct client c;
	struct world w;

	world_init(&w, 1000, true, NULL, true);
	client_init(&c, &w, 1, 1);
	c.control = client_dial(&c, FERRY_ROLE_CONTROL, 0);
	must(client_read(&c, c.control));
	client_send(&c, c.control, &ok);
	client_start_push(&c, 0);
	c.bulk[0] = client_dial(&c, FERRY_ROLE_BULK, 0);
	cr_assert_eq(c.m.type, FERRY_FRAME_WELCOME);
	client_take_push(&c);
	cr_assert_eq(ferry_bitmap_count(&c.have), w.n_pages);
	client_fini(&c);
	world_fini(&w);
}

Test(sessions, connections_that_say_nothing_keep_nobody_out)
{
	struct world w;
	int idle[300];

	world_init(&w, 100, true, NULL, true);
	for (size_t i = 0; i < FERRY_ARRAY_SIZE(idle); i++)
		idle[i] = connect_raw(&w);
	is_served(&w, 1);
	for (size_t i = 0; i < FERRY_ARRAY_SIZE(idle); i++)
		close(idle[i]);
	world_fini(&w);
}

Test(sessions, complete_ends_a_push_that_is_going_on)
{
	struct client c;
	struct world w;

	world_init(&w, 20000, true, NULL, true);
	client_init(&c, &w, 1, 1);
	client_open(&c);
	client_start_push(&c, 0);
	client_complete(&c);
	expect_event(&w, FERRY_SERVER_COMPLETED, NULL);
	client_close(&c);
	/* The same target begins anew: the session is not known any more. */
	client_open(&c);
	client_start_push(&c, 0);
	client_take_push(&c);
	cr_assert_eq(ferry_bitmap_count(&c.have), w.n_pages);
	client_fini(&c);
	world_fini(&w);
}

Test(sessions, stopping_the_server_ends_them_and_may_be_done_twice)
{
	struct client c;
	struct world w;

	world_init(&w, 20000, false, NULL, true);
	client_init(&c, &w, 1, 2);
	client_open(&c);
	client_start_push(&c, 0);
	must(client_read(&c, c.bulk[0]));
	ferry_server_stop(w.server);
	ferry_server_stop(w.server);
	while (client_read(&c, c.control))
		;
	client_fini(&c);
	world_fini(&w);
}

Test(sessions, are_served_through_a_ring_that_was_made_ahead)
{
	struct ferry_server_config config = {0};
	struct ferry_failure f = {0};
	struct world w;

	must(!ferry_ring_new(&config.ring, &f));
	world_init(&w, 2000, false, &config, true);
	is_served(&w, 1);
	world_fini(&w);
	ferry_ring_free(config.ring);
}
