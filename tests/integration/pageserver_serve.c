/* SPDX-License-Identifier: Apache-2.0 */
/* A target's view of a page server: what it gets, and in what order. */
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "pageserver_client.h"

static uint64_t allocated(const struct world *w)
{
	struct stat st;

	must(!fstat(w->memfd, &st));
	return (uint64_t)st.st_blocks * 512;
}

static void everything_arrives(bool in_place, uint32_t n_bulk)
{
	struct ferry_server_stats stats;
	uint64_t before;
	struct client c;
	struct world w;

	world_init(&w, 5000, in_place, NULL, true);
	before = allocated(&w);
	client_init(&c, &w, 1, n_bulk);
	client_open(&c);
	client_start_push(&c, 0);
	client_take_push(&c);
	cr_assert_eq(ferry_bitmap_count(&c.have), w.n_pages);
	cr_assert_eq(c.n_duplicates, 0);
	client_complete(&c);
	expect_event(&w, FERRY_SERVER_COMPLETED, NULL);
	ferry_server_stats(w.server, &stats);
	cr_assert_eq(stats.n_completed, 1);
	cr_assert_eq(stats.pages_total, w.n_pages);
	cr_assert_eq(stats.pages_sent, w.n_pages);
	cr_assert_eq(stats.pages_zero, c.n_zero);
	cr_assert_eq(stats.pages_pushed + stats.pages_zero, w.n_pages);
	cr_assert_gt(stats.wire_bytes, stats.pages_pushed * PAGE);
	cr_assert_eq(allocated(&w), before, "holes of the source were filled");
	client_fini(&c);
	world_fini(&w);
}

Test(serve, push_brings_every_page_once_and_leaves_holes_holes)
{
	everything_arrives(false, 1);
}

Test(serve, push_sends_memory_of_ours_in_place)
{
	everything_arrives(true, 1);
}

Test(serve, push_uses_several_bulk_connections)
{
	everything_arrives(true, 3);
	everything_arrives(false, 4);
}

Test(serve, every_page_can_be_requested_without_a_push)
{
	struct client c;
	struct world w;

	world_init(&w, 1000, true, NULL, true);
	client_init(&c, &w, 1, 1);
	client_open(&c);
	for (uint64_t i = 0; i < w.n_pages; i++) {
		client_request(&c, i, 1);
		must(client_read(&c, c.urgent));
		cr_assert_eq(c.m.run.request_id, i + 1);
		cr_assert_gt(c.m.run.received_ns, 0);
		cr_assert_geq(c.m.run.answered_ns, c.m.run.received_ns);
		client_take(&c);
	}
	cr_assert_eq(ferry_bitmap_count(&c.have), w.n_pages);
	client_complete(&c);
	client_fini(&c);
	world_fini(&w);
}

Test(serve, requests_are_pipelined_and_a_run_is_cut_where_zero_pages_are)
{
	uint64_t answered = 0;
	struct client c;
	struct world w;

	world_init(&w, 4096, false, NULL, true);
	client_init(&c, &w, 1, 1);
	client_open(&c);
	for (uint64_t i = 0; i < w.n_pages; i += 64)
		client_request(&c, i, 64);
	while (answered < w.n_pages) {
		must(client_read(&c, c.urgent));
		cr_assert_eq(c.m.run.request_id, c.m.run.run.first_page / 64 + 1);
		client_take(&c);
		answered += c.m.run.run.n_pages;
	}
	cr_assert_eq(ferry_bitmap_count(&c.have), w.n_pages);
	cr_assert_eq(c.n_duplicates, 0);
	client_fini(&c);
	world_fini(&w);
}

Test(serve, a_page_is_answered_again_however_often_it_was_sent)
{
	struct client c;
	struct world w;

	world_init(&w, 256, true, NULL, true);
	client_init(&c, &w, 1, 1);
	client_open(&c);
	client_start_push(&c, 0);
	client_take_push(&c);
	for (int i = 0; i < 3; i++) {
		client_request(&c, 17, 1);
		must(client_read(&c, c.urgent));
		client_take(&c);
	}
	cr_assert_eq(c.n_duplicates, 3);
	client_fini(&c);
	world_fini(&w);
}

Test(serve, an_urgent_page_is_not_pushed_and_does_not_wait_for_the_push)
{
	struct ferry_server_stats stats;
	struct client c;
	struct world w;

	world_init(&w, 20000, true, NULL, true);
	client_init(&c, &w, 1, 1);
	client_open(&c);
	client_request(&c, 19000, 1);
	must(client_read(&c, c.urgent));
	client_take(&c);
	client_start_push(&c, 0);
	/* Nobody reads the bulk connection yet: it is as full as it gets. */
	client_request(&c, 18000, 1);
	must(client_read(&c, c.urgent));
	client_take(&c);
	client_take_push(&c);
	cr_assert_eq(ferry_bitmap_count(&c.have), w.n_pages);
	cr_assert_leq(c.n_duplicates, 1, "only what had been claimed by the push may come twice");
	ferry_server_stats(w.server, &stats);
	cr_assert_eq(stats.pages_urgent, 2);
	cr_assert_eq(stats.requests, 2);
	client_fini(&c);
	world_fini(&w);
}

Test(serve, pages_around_a_request_are_pushed_next)
{
	uint64_t fault = 15008, pushed = 0;
	struct client c;
	struct world w;

	world_init(&w, 20000, true, NULL, true);
	client_init(&c, &w, 1, 1);
	client_open(&c);
	client_request(&c, fault, 1);
	must(client_read(&c, c.urgent));
	client_take(&c);
	client_start_push(&c, 0);
	/* Holes come first; then what is near. */
	for (;;) {
		must(client_read(&c, c.bulk[0]));
		client_take(&c);
		if (c.m.run.encoding == FERRY_ENCODING_ZERO)
			continue;
		pushed += c.m.run.run.n_pages;
		if (pushed > 100)
			break;
		cr_assert_lt(llabs((long long)c.m.run.run.first_page - (long long)fault), 500);
	}
	client_fini(&c);
	world_fini(&w);
}

Test(serve, discarded_pages_are_not_pushed)
{
	struct ferry_message m = {.type = FERRY_FRAME_DISCARDED, .discarded = {0, 100, 200}};
	struct client c;
	struct world w;

	world_init(&w, 1000, true, NULL, true);
	client_init(&c, &w, 1, 1);
	client_open(&c);
	client_send(&c, c.control, &m);
	client_start_push(&c, 0);
	client_take_push(&c);
	cr_assert_eq(ferry_bitmap_count(&c.have), w.n_pages - 200);
	cr_assert_eq(ferry_bitmap_next_clear(&c.have, 0, w.n_pages), 100);
	cr_assert_eq(ferry_bitmap_next_set(&c.have, 100, w.n_pages), 300);
	client_fini(&c);
	world_fini(&w);
}

Test(serve, the_push_keeps_to_the_lower_of_both_rates)
{
	struct ferry_server_config config = {.max_bytes_per_second = 400u << 20};
	uint64_t begin, ns;
	struct client c;
	struct world w;

	world_init(&w, 4096, true, &config, true);
	client_init(&c, &w, 1, 1);
	client_open(&c);
	begin = ferry_now_ns();
	client_start_push(&c, 20u << 20);
	client_take_push(&c);
	ns = ferry_now_ns() - begin;
	/* 10 MiB of data; slower it may be, on a busy machine. */
	cr_assert_gt(ns, 450 * FERRY_NS_PER_MS);
	client_fini(&c);
	world_fini(&w);
}

Test(serve, state_travels_with_the_layout)
{
	static const char state[] = "registers of a small machine";
	struct ferry_server_config config = {.state = state, .state_bytes = sizeof(state)};
	struct client c;
	struct world w;

	world_init(&w, 16, true, &config, true);
	client_init(&c, &w, 1, 1);
	client_open(&c);
	client_close(&c);
	c.epoch = 1;
	c.control = client_dial(&c, FERRY_ROLE_CONTROL, 0);
	must(client_read(&c, c.control));
	cr_assert_eq(c.m.type, FERRY_FRAME_LAYOUT);
	cr_assert_eq(c.m.payload_bytes, sizeof(state));
	cr_assert_eq(memcmp(c.m.payload, state, sizeof(state)), 0);
	client_fini(&c);
	world_fini(&w);
}

Test(serve, a_snapshot_that_is_not_in_the_page_cache)
{
	uint64_t answered = 0;
	struct client c;
	struct world w;

	world_init_disk(&w, 8192);
	client_init(&c, &w, 1, 1);
	client_open(&c);
	for (uint64_t i = 0; i < 4096; i += 64)
		client_request(&c, (i * 37) % 4096, 64);
	while (answered < 4096) {
		must(client_read(&c, c.urgent));
		client_take(&c);
		answered += c.m.run.run.n_pages;
	}
	cr_assert_eq(ferry_bitmap_count(&c.have), 4096);
	client_start_push(&c, 0);
	client_take_push(&c);
	cr_assert_eq(ferry_bitmap_count(&c.have), w.n_pages);
	cr_assert_eq(c.n_duplicates, 0);
	client_complete(&c);
	client_fini(&c);
	world_fini(&w);
}

/* Pages that are slow to come, here held ones, don't look like a link that is lost. */
#define N_MANY 600 /* more than fit */

Test(serve, a_target_that_waits_hears_of_it_on_each_connection)
{
	struct ferry_message ping = {.type = FERRY_FRAME_PING, .ping = {9}};
	struct ferry_failure f = {0};
	struct client c;
	struct world w;

	world_init(&w, 1000, true, NULL, false);
	ferry_server_hold(w.server);
	world_start(&w);
	client_init(&c, &w, 1, 2);
	client_open(&c);
	client_request(&c, 5, 1);
	client_send(&c, c.urgent, &ping);
	must(client_read_any(&c, c.urgent));
	cr_assert_eq(c.m.type, FERRY_FRAME_PONG);
	cr_assert_eq(c.m.pong.ping_sent_ns, 9);
	/* Now it takes no more, not even a Ping. */
	for (uint32_t i = 0; i < N_MANY; i++)
		client_request(&c, i % 1000, 1);
	client_start_push(&c, 0);
	for (int i = 0; i < 2; i++) {
		must(client_await(&c, c.urgent, 60000));
		must(client_read_any(&c, c.urgent));
		cr_assert_eq(c.m.type, FERRY_FRAME_PING);
		for (uint32_t k = 0; k < 2; k++) {
			must(client_await(&c, c.bulk[k], 60000));
			must(client_read_any(&c, c.bulk[k]));
			cr_assert_eq(c.m.type, FERRY_FRAME_PING);
		}
	}
	must(!ferry_server_serve(w.server, &f));
	for (int i = 0; i <= N_MANY; i++) {
		must(client_read(&c, c.urgent));
		client_take(&c);
	}
	client_fini(&c);
	world_fini(&w);
}

Test(serve, a_push_that_has_nothing_to_send_for_long_is_heard_of)
{
	struct client c;
	struct world w;

	for (int old = 0; old < 2; old++) {
		int wait_ms = old ? 3500 : 60000; /* for a Ping: it does not come, or it does */

		world_init(&w, 1000, true, NULL, true);
		client_init(&c, &w, 1, 1);
		c.withheld = old ? FERRY_FEATURE_ALIVE : 0;
		client_open(&c);
		client_start_push(&c, 2000);
		must(client_read_any(&c, c.bulk[0]));
		while (c.m.type == FERRY_FRAME_PAGE_RUN && client_await(&c, c.bulk[0], wait_ms))
			must(client_read_any(&c, c.bulk[0]));
		cr_assert_eq(c.m.type, old ? FERRY_FRAME_PAGE_RUN : FERRY_FRAME_PING);
		client_fini(&c);
		world_fini(&w);
	}
}

Test(serve, a_held_server_answers_and_pushes_only_once_it_serves)
{
	struct ferry_message ping = {.type = FERRY_FRAME_PING, .ping = {7}};
	struct ferry_server_stats stats;
	struct ferry_failure f = {0};
	struct client c;
	struct world w;

	world_init(&w, 1000, true, NULL, false);
	ferry_server_hold(w.server);
	world_start(&w);
	client_init(&c, &w, 1, 1);
	client_open(&c);
	client_request(&c, 5, 1);
	client_start_push(&c, 0);
	/* Once it has answered a Ping it has read what came before. */
	client_send(&c, c.control, &ping);
	must(client_read(&c, c.control));
	cr_assert_eq(c.m.type, FERRY_FRAME_PONG);
	cr_assert_eq(c.m.pong.ping_sent_ns, 7);
	ferry_server_stats(w.server, &stats);
	cr_assert_eq(stats.pages_urgent + stats.pages_pushed + stats.pages_zero, 0);
	/* The memory may still change. */
	must(!ferry_server_serve(w.server, &f));
	must(client_read(&c, c.urgent));
	client_take(&c);
	client_take_push(&c);
	cr_assert_eq(ferry_bitmap_count(&c.have), w.n_pages);
	client_fini(&c);
	world_fini(&w);
}

/* Where that was agreed on, the pages are said to be lost, and everything else is served on. */
Test(serve, pages_of_a_truncated_source_are_said_to_be_lost)
{
	struct ferry_failure f;
	uint64_t n_lost = 0;
	struct client c;
	struct world w;

	world_init(&w, 1000, false, NULL, true);
	client_init(&c, &w, 1, 1);
	client_open(&c);
	must(!ftruncate(w.memfd, 100 * PAGE));
	client_request(&c, 98, 4);
	for (uint64_t n = 0; n < 4; n += c.m.run.run.n_pages) {
		must(client_read(&c, c.urgent));
		cr_assert_eq(c.m.run.request_id, c.last_request);
		cr_assert_eq(c.m.run.encoding == FERRY_ENCODING_LOST, c.m.run.run.first_page >= 100);
	}
	expect_event(&w, FERRY_SERVER_PAGES_LOST, &f);
	cr_assert_eq(f.consequence, FERRY_LOST);
	client_start_push(&c, 0);
	while (client_read(&c, c.bulk[0]) && c.m.type != FERRY_FRAME_PUSH_DONE) {
		if (c.m.run.encoding == FERRY_ENCODING_LOST)
			n_lost += c.m.run.run.n_pages;
		else
			cr_assert(c.m.run.run.first_page < 100 ||
				  c.m.run.encoding == FERRY_ENCODING_ZERO);
	}
	cr_assert_eq(c.m.type, FERRY_FRAME_PUSH_DONE);
	cr_assert_gt(n_lost, 100);
	client_fini(&c);
	world_fini(&w);
}

Test(serve, a_truncated_source_is_an_error_and_never_zeros)
{
	struct ferry_failure f;
	struct client c;
	struct world w;

	world_init(&w, 1000, false, NULL, true);
	client_init(&c, &w, 1, 1);
	c.withheld = FERRY_FEATURE_LOST;
	client_open(&c);
	must(!ftruncate(w.memfd, 100 * PAGE));
	client_request(&c, 64, 1);
	must(client_read(&c, c.urgent));
	client_take(&c);
	client_request(&c, 512, 1);
	must(client_read(&c, c.control));
	cr_assert_eq(c.m.type, FERRY_FRAME_ERROR);
	cr_assert_eq(c.m.error.code, FERRY_ERROR_UNAVAILABLE);
	cr_assert_not(client_read(&c, c.urgent));
	expect_event(&w, FERRY_SERVER_FAILED, &f);
	cr_assert_eq(f.consequence, FERRY_LOST);
	cr_assert_eq(f.err, -EIO);
	client_fini(&c);
	world_fini(&w);
}

Test(serve, a_truncated_source_ends_the_push_as_well)
{
	struct client c;
	struct world w;

	world_init(&w, 1000, false, NULL, true);
	client_init(&c, &w, 1, 1);
	c.withheld = FERRY_FEATURE_LOST;
	client_open(&c);
	must(!ftruncate(w.memfd, 100 * PAGE));
	client_start_push(&c, 0);
	must(client_read(&c, c.control));
	cr_assert_eq(c.m.type, FERRY_FRAME_ERROR);
	cr_assert_eq(c.m.error.code, FERRY_ERROR_UNAVAILABLE);
	while (client_read(&c, c.bulk[0]))
		client_take(&c);
	expect_event(&w, FERRY_SERVER_FAILED, NULL);
	client_fini(&c);
	world_fini(&w);
}
