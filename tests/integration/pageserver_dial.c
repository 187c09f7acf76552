/* SPDX-License-Identifier: Apache-2.0 */
/* Sessions that the page server opens itself, to a target that listens. */
#include <criterion/criterion.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/net.h"
#include "pageserver_client.h"
#include "protocol/connection.h"

static const struct ferry_session_id id = {{4, 2}};

/* A socket that the target listens on. */
static int listen_any(struct ferry_addr *at)
{
	struct ferry_addr any = {.host = "127.0.0.1", .port = "0"};
	struct ferry_failure f = {0};
	int fd = ferry_net_listen(&any, &f);

	must(fd >= 0);
	must(!ferry_net_local(fd, &any, at));
	return fd;
}

/* An address where nobody listens, and that nobody else is given. Return: the socket that keeps it. */
static int reserve_any(struct ferry_addr *at)
{
	struct sockaddr_in any = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1;

	must(fd >= 0 && !setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one)));
	must(!bind(fd, (struct sockaddr *)&any, sizeof(any)));
	must(!ferry_net_local(fd, &(struct ferry_addr){.host = "127.0.0.1"}, at));
	return fd;
}

/* Takes one connection and reads its Hello. */
static int take_hello(struct client *c, int listen_fd)
{
	int fd;

	must(!ferry_net_wait(listen_fd, POLLIN, 20000, -1));
	fd = ferry_net_accept(listen_fd);
	must(fd >= 0);
	must(client_read(c, fd));
	must(c->m.type == FERRY_FRAME_HELLO);
	must(c->m.hello.side == FERRY_SIDE_SOURCE);
	must(!memcmp(c->m.hello.session.bytes, id.bytes, sizeof(id.bytes)));
	must(c->m.hello.epoch == c->epoch);
	return fd;
}

static int accept_one(struct client *c, int listen_fd, enum ferry_role role, uint32_t index)
{
	struct ferry_connection proto;
	struct ferry_message welcome;
	enum ferry_error_code code;
	char why[FERRY_MAX_TEXT];
	int fd = take_hello(c, listen_fd);

	cr_assert_eq(c->m.hello.role, role);
	cr_assert_eq(c->m.hello.index, index);
	ferry_connection_accept(&proto, FERRY_SIDE_TARGET);
	must(!ferry_connection_check(&proto, &c->m, &code, why));
	ferry_connection_welcome(&proto, &welcome);
	client_send(c, fd, &welcome);
	return fd;
}

static void accept_all(struct client *c, int listen_fd)
{
	struct ferry_message ok = {.type = FERRY_FRAME_LAYOUT_OK};

	c->control = accept_one(c, listen_fd, FERRY_ROLE_CONTROL, 0);
	must(client_read(c, c->control));
	cr_assert_eq(c->m.type, FERRY_FRAME_LAYOUT, "the layout does not wait for the others");
	client_send(c, c->control, &ok);
	c->urgent = accept_one(c, listen_fd, FERRY_ROLE_URGENT, 0);
	for (uint32_t i = 0; i < c->n_bulk; i++) {
		c->bulk[i] = accept_one(c, listen_fd, FERRY_ROLE_BULK, i);
		c->bulk_done[i] = false;
	}
}

Test(dial, opens_all_connections_and_serves_like_an_accepted_session)
{
	struct ferry_failure f = {0};
	struct ferry_addr to;
	_cleanup_close_ int listen_fd = listen_any(&to);
	struct client c;
	struct world w;

	world_init(&w, 3000, true, NULL, true);
	client_init(&c, &w, 0, 3);
	c.epoch = 2;
	must(!ferry_server_dial(w.server, &to, &id, 3, 2, &f));
	cr_assert_eq(ferry_server_dial(w.server, &to, &id, 1, 0, &f), -EEXIST);
	accept_all(&c, listen_fd);
	expect_event(&w, FERRY_SERVER_CONNECTED, NULL);
	client_request(&c, 5, 1);
	must(client_read(&c, c.urgent));
	client_take(&c);
	client_start_push(&c, 0);
	client_take_push(&c);
	cr_assert_eq(ferry_bitmap_count(&c.have), w.n_pages);
	client_complete(&c);
	expect_event(&w, FERRY_SERVER_COMPLETED, NULL);
	client_fini(&c);
	/* It is over: nobody dials again. */
	cr_assert_eq(ferry_net_wait(listen_fd, POLLIN, 300, -1), -ETIMEDOUT);
	world_fini(&w);
}

Test(dial, a_push_that_is_asked_for_early_uses_every_bulk_connection)
{
	struct ferry_message ok = {.type = FERRY_FRAME_LAYOUT_OK};
	struct ferry_failure f = {0};
	struct ferry_addr to;
	_cleanup_close_ int listen_fd = listen_any(&to);
	struct client c;
	struct world w;

	world_init(&w, 3000, true, NULL, true);
	client_init(&c, &w, 0, 2);
	must(!ferry_server_dial(w.server, &to, &id, 2, 0, &f));
	c.control = accept_one(&c, listen_fd, FERRY_ROLE_CONTROL, 0);
	must(client_read(&c, c.control));
	client_send(&c, c.control, &ok);
	client_start_push(&c, 0);
	c.urgent = accept_one(&c, listen_fd, FERRY_ROLE_URGENT, 0);
	c.bulk[0] = accept_one(&c, listen_fd, FERRY_ROLE_BULK, 0);
	c.bulk[1] = accept_one(&c, listen_fd, FERRY_ROLE_BULK, 1);
	client_take_push(&c);
	cr_assert_eq(ferry_bitmap_count(&c.have), w.n_pages);
	client_fini(&c);
	world_fini(&w);
}

Test(dial, dials_again_with_the_next_epoch_until_the_target_has_everything)
{
	struct ferry_failure f = {0};
	struct ferry_addr to;
	_cleanup_close_ int listen_fd = listen_any(&to);
	struct client c;
	struct world w;

	world_init(&w, 20000, true, NULL, true);
	client_init(&c, &w, 0, 1);
	must(!ferry_server_dial(w.server, &to, &id, 1, 0, &f));
	for (;;) {
		accept_all(&c, listen_fd);
		expect_event(&w, FERRY_SERVER_CONNECTED, NULL);
		if (c.epoch)
			client_send_resident(&c);
		client_start_push(&c, 0);
		if (c.epoch == 3)
			break;
		for (int i = 0; i < 100; i++) {
			must(client_read(&c, c.bulk[0]));
			client_take(&c);
		}
		client_close(&c);
		expect_event(&w, FERRY_SERVER_LINK_LOST, NULL);
		c.epoch++;
	}
	client_take_push(&c);
	cr_assert_eq(ferry_bitmap_count(&c.have), w.n_pages);
	client_complete(&c);
	expect_event(&w, FERRY_SERVER_COMPLETED, NULL);
	client_fini(&c);
	world_fini(&w);
}

Test(dial, tells_once_of_a_target_that_is_not_there_and_goes_on_trying)
{
	struct ferry_failure f = {0};
	struct ferry_addr to;
	_cleanup_close_ int reserved_fd = reserve_any(&to);
	struct client c;
	struct world w;
	int fd, listen_fd;

	must(reserved_fd >= 0);
	world_init(&w, 100, true, NULL, true);
	client_init(&c, &w, 0, 1);
	must(!ferry_server_dial(w.server, &to, &id, 1, 0, &f));
	expect_event(&w, FERRY_SERVER_LINK_LOST, &f);
	cr_assert_eq(f.consequence, FERRY_LINK);
	cr_assert(strstr(f.text, to.port), "%s", f.text);
	listen_fd = ferry_net_listen(&to, &f);
	must(listen_fd >= 0);
	/* How many attempts there were meanwhile is a matter of time. */
	must(!ferry_net_wait(listen_fd, POLLIN, 20000, -1));
	fd = ferry_net_accept(listen_fd);
	must(client_read(&c, fd));
	cr_assert_geq(c.m.hello.epoch, 1);
	close(fd);
	close(listen_fd);
	client_fini(&c);
	world_fini(&w);
}

Test(dial, a_refusal_is_final_and_is_told)
{
	struct ferry_message no = {
		.type = FERRY_FRAME_ERROR,
		.error = {.code = FERRY_ERROR_SESSION, .text = "no such guest is expected here"}};
	struct ferry_failure f = {0};
	struct ferry_addr to;
	_cleanup_close_ int listen_fd = listen_any(&to);
	struct client c;
	struct world w;
	int fd;

	world_init(&w, 100, true, NULL, true);
	client_init(&c, &w, 0, 1);
	must(!ferry_server_dial(w.server, &to, &id, 1, 0, &f));
	fd = take_hello(&c, listen_fd);
	client_send(&c, fd, &no);
	expect_event(&w, FERRY_SERVER_FAILED, &f);
	cr_assert_eq(f.consequence, FERRY_REFUSE);
	cr_assert(strstr(f.text, no.error.text), "%s", f.text);
	close(fd);
	client_fini(&c);
	world_fini(&w);
}

/* It may be about to end, and another one go on in its place. */
Test(dial, a_target_that_has_forgotten_its_session_is_dialed_again)
{
	struct ferry_message no = {
		.type = FERRY_FRAME_ERROR,
		.error = {.code = FERRY_ERROR_SESSION, .text = "no such guest is expected here"}};
	struct ferry_failure f = {0};
	struct ferry_addr to;
	_cleanup_close_ int listen_fd = listen_any(&to);
	struct client c;
	struct world w;
	int fd;

	world_init(&w, 100, true, NULL, true);
	client_init(&c, &w, 0, 1);
	must(!ferry_server_dial(w.server, &to, &id, 1, 0, &f));
	accept_all(&c, listen_fd);
	expect_event(&w, FERRY_SERVER_CONNECTED, NULL);
	client_close(&c);
	c.epoch = 1;
	fd = take_hello(&c, listen_fd);
	client_send(&c, fd, &no);
	close(fd);
	c.epoch = 2;
	accept_all(&c, listen_fd);
	client_send_resident(&c);
	client_start_push(&c, 0);
	client_take_push(&c);
	cr_assert_eq(ferry_bitmap_count(&c.have), w.n_pages);
	client_fini(&c);
	world_fini(&w);
}

Test(dial, a_layout_that_does_not_fit_is_told_and_final)
{
	struct ferry_message no = {
		.type = FERRY_FRAME_ERROR,
		.error = {.code = FERRY_ERROR_LAYOUT, .text = "region 'ram' is larger here"}};
	struct ferry_failure f = {0};
	struct ferry_addr to;
	_cleanup_close_ int listen_fd = listen_any(&to);
	struct client c;
	struct world w;

	world_init(&w, 100, true, NULL, true);
	client_init(&c, &w, 0, 1);
	must(!ferry_server_dial(w.server, &to, &id, 1, 0, &f));
	c.control = accept_one(&c, listen_fd, FERRY_ROLE_CONTROL, 0);
	must(client_read(&c, c.control));
	client_send(&c, c.control, &no);
	expect_event(&w, FERRY_SERVER_FAILED, &f);
	cr_assert(strstr(f.text, no.error.text), "%s", f.text);
	client_fini(&c);
	world_fini(&w);
}

Test(dial, what_is_no_pageferry_is_told_so)
{
	static const char http[] = "HTTP/1.1 400 Bad Request\r\n\r\n";
	struct ferry_failure f = {0};
	struct ferry_addr to;
	_cleanup_close_ int listen_fd = listen_any(&to);
	struct client c;
	struct world w;
	int fd;

	world_init(&w, 100, true, NULL, true);
	client_init(&c, &w, 0, 1);
	must(!ferry_server_dial(w.server, &to, &id, 1, 0, &f));
	fd = take_hello(&c, listen_fd);
	must(!ferry_net_write_all(fd, http, sizeof(http), 1000, -1));
	expect_event(&w, FERRY_SERVER_FAILED, &f);
	cr_assert(strstr(f.text, "not Pageferry"), "%s", f.text);
	close(fd);
	client_fini(&c);
	world_fini(&w);
}

Test(dial, stops_while_it_is_trying)
{
	struct ferry_failure f = {0};
	struct ferry_addr to;
	_cleanup_close_ int listen_fd = listen_any(&to);
	struct world w;

	world_init(&w, 100, true, NULL, true);
	/* Nobody accepts: it waits for a Welcome. */
	must(!ferry_server_dial(w.server, &to, &id, 1, 0, &f));
	must(!ferry_net_wait(listen_fd, POLLIN, 20000, -1));
	world_fini(&w);
}
