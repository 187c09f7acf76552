/* SPDX-License-Identifier: Apache-2.0 */
#include "pageserver_client.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/net.h"
#include "base/util.h"
#include "protocol/connection.h"

#define TIMEOUT_MS 60000

void must_failed(const char *file, int line, const char *what)
{
	fprintf(stderr, "%s:%d: not so: %s (errno %s)\n", file, line, what, strerror(errno));
	abort();
}

bool world_is_hole(uint64_t page)
{
	return page % 16 >= 12;
}

bool world_is_zero(uint64_t page)
{
	return world_is_hole(page) || page % 16 == 3 || page % 16 == 7;
}

void world_page(uint64_t page, uint8_t *out)
{
	uint64_t *words = (uint64_t *)(void *)out;

	memset(out, 0, PAGE);
	/* Some pages show at the very end only that they aren't zero. */
	for (uint64_t i = page % 3 ? 0 : PAGE / 8 - 1; i < PAGE / 8 && !world_is_zero(page); i++)
		words[i] = (page + 1) * 0x9e3779b97f4a7c15u + i;
}

static void write_pages(int fd, uint64_t n_pages)
{
	_Alignas(8) uint8_t page[PAGE];

	must(fd >= 0);
	must(!ftruncate(fd, (off_t)(n_pages * PAGE)));
	for (uint64_t i = 0; i < n_pages; i++) {
		world_page(i, page);
		if (!world_is_hole(i))
			must(pwrite(fd, page, PAGE, (off_t)(i * PAGE)) == PAGE);
	}
}

static int make_memfd(uint64_t n_pages)
{
	int fd = memfd_create("ram", MFD_CLOEXEC);

	write_pages(fd, n_pages);
	return fd;
}

/* A private copy of it, touched where it has data. */
static void *make_memory(int fd, uint64_t n_pages)
{
	uint8_t *p = mmap(NULL, n_pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
			  -1, 0);

	must(p != MAP_FAILED);
	madvise(p, n_pages * PAGE, MADV_NOHUGEPAGE);
	for (uint64_t i = 0; i < n_pages; i++)
		if (!world_is_hole(i))
			must(pread(fd, p + i * PAGE, PAGE, (off_t)(i * PAGE)) == PAGE);
	return p;
}

static int make_disk_file(uint64_t n_pages)
{
	char path[] = "/var/tmp/pageferry-test-XXXXXX";
	int fd = mkstemp(path);

	must(fd >= 0);
	unlink(path);
	write_pages(fd, n_pages);
	must(!fsync(fd));
	posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
	return fd;
}

static void init(struct world *w, int fd, uint64_t n_pages, bool in_place,
		 const struct ferry_server_config *config, bool start)
{
	struct ferry_server_config c = config ? *config : (struct ferry_server_config){0};
	struct ferry_addr any = {.host = "127.0.0.1", .port = "0"};
	struct ferry_failure f = {0};
	int listen_fd;

	*w = (struct world){.n_pages = n_pages, .memfd = fcntl(fd, F_DUPFD_CLOEXEC, 0)};
	if (in_place) {
		w->memory = make_memory(fd, n_pages);
		close(fd);
		must(!ferry_source_open_memory(&w->source, "ram", w->memory, n_pages * PAGE, PAGE,
					       &f));
	} else {
		must(!ferry_source_open_fd(&w->source, "ram", fd, 0, n_pages * PAGE, PAGE, &f));
	}
	c.sources = &w->source;
	c.n_sources = 1;
	must(!ferry_server_new(&w->server, &c, &f));
	listen_fd = ferry_net_listen(&any, &f);
	must(listen_fd >= 0);
	must(!ferry_net_local(listen_fd, &any, &w->addr));
	must(!ferry_server_listen(w->server, listen_fd));
	if (start)
		world_start(w);
}

void world_init(struct world *w, uint64_t n_pages, bool in_place,
		const struct ferry_server_config *config, bool start)
{
	init(w, make_memfd(n_pages), n_pages, in_place, config, start);
}

void world_init_disk(struct world *w, uint64_t n_pages)
{
	init(w, make_disk_file(n_pages), n_pages, false, NULL, true);
}

void world_start(struct world *w)
{
	struct ferry_failure f = {0};

	must(!ferry_server_start(w->server, &f));
}

void world_fini(struct world *w)
{
	ferry_server_free(w->server);
	ferry_source_free(w->source);
	close(w->memfd);
	if (w->memory)
		munmap(w->memory, w->n_pages * PAGE);
}

void client_init(struct client *c, const struct world *w, uint8_t id, uint32_t n_bulk)
{
	*c = (struct client){.world = w, .n_bulk = n_bulk, .control = -1, .urgent = -1};
	memset(c->session.bytes, id, sizeof(c->session.bytes));
	for (int i = 0; i < CLIENT_BULK; i++)
		c->bulk[i] = -1;
	must(!ferry_bitmap_init(&c->have, w->n_pages));
	must(!ferry_arena_init(&c->arena));
	c->payload = malloc(FERRY_MAX_RUN_BYTES);
	must(c->payload);
}

void client_fini(struct client *c)
{
	client_close(c);
	ferry_bitmap_fini(&c->have);
	ferry_arena_fini(&c->arena);
	free(c->payload);
}

void client_send(struct client *c, int fd, const struct ferry_message *m)
{
	uint8_t out[FERRY_MAX_ENCODED_BYTES];
	int n = ferry_message_encode(m, out, sizeof(out));

	(void)c;
	must(n > 0);
	must(!ferry_net_write_all(fd, out, (size_t)n, TIMEOUT_MS, -1));
	if (m->payload_bytes)
		must(!ferry_net_write_all(fd, m->payload, m->payload_bytes, TIMEOUT_MS, -1));
}

bool client_read_any(struct client *c, int fd)
{
	uint8_t header[FERRY_FRAME_HEADER_BYTES], msg[FERRY_MAX_MESSAGE_BYTES];
	struct ferry_frame_header h;
	char why[FERRY_MAX_TEXT];
	int rc = ferry_net_read_all(fd, header, sizeof(header), TIMEOUT_MS, -1);

	if (rc == -ECONNRESET)
		return false;
	must(!rc);
	must(!ferry_frame_header_decode(header, &h));
	must(!ferry_net_read_all(fd, msg, h.msg_bytes, TIMEOUT_MS, -1));
	rc = ferry_net_read_all(fd, c->payload, h.payload_bytes, TIMEOUT_MS, -1);
	if (rc == -ECONNRESET)
		return false;
	must(!rc);
	must(!ferry_message_decode(&(struct ferry_frame){.type = h.type,
							 .msg = msg,
							 .msg_bytes = h.msg_bytes,
							 .payload = c->payload,
							 .payload_bytes = h.payload_bytes},
				   &c->arena, &c->m, why));
	return true;
}

/* The last frame is one. */
static void answer_ping(struct client *c)
{
	struct ferry_message pong = {.type = FERRY_FRAME_PONG};

	pong.pong = (struct ferry_pong){c->m.ping.sent_ns, 1, 2};
	client_send(c, c->control, &pong);
}

bool client_read(struct client *c, int fd)
{
	while (client_read_any(c, fd)) {
		if (c->m.type != FERRY_FRAME_PING)
			return true;
		if (fd == c->control) /* others want no answer */
			answer_ping(c);
	}
	return false;
}

bool client_await(struct client *c, int fd, int timeout_ms)
{
	uint64_t now = ferry_now_ns(), end = now + (uint64_t)timeout_ms * FERRY_NS_PER_MS;
	struct ferry_message last = c->m;

	for (; now < end; now = ferry_now_ns()) {
		struct pollfd p[] = {{.fd = fd, .events = POLLIN},
				     {.fd = c->control, .events = POLLIN}};

		must(poll(p, 2, (int)((end - now) / FERRY_NS_PER_MS) + 1) >= 0);
		if (p[0].revents)
			return true;
		if (!p[1].revents)
			continue;
		must(client_read_any(c, c->control));
		must(c->m.type == FERRY_FRAME_PING);
		answer_ping(c);
		c->m = last;
	}
	return false;
}

int client_dial(struct client *c, enum ferry_role role, uint32_t index)
{
	struct ferry_failure f = {0};
	struct ferry_connection proto;
	struct ferry_message hello;
	int fd = ferry_net_dial(&c->world->addr, TIMEOUT_MS, -1, &f);

	must(fd >= 0);
	ferry_connection_dial(&proto,
			      &(struct ferry_hello){.side = FERRY_SIDE_TARGET,
						    .role = role,
						    .session = c->session,
						    .index = index,
						    .epoch = c->epoch,
						    .withheld = c->withheld},
			      &hello);
	client_send(c, fd, &hello);
	must(client_read(c, fd));
	return fd;
}

static int dial_welcome(struct client *c, enum ferry_role role, uint32_t index)
{
	int fd = client_dial(c, role, index);

	must(c->m.type == FERRY_FRAME_WELCOME);
	return fd;
}

void client_open(struct client *c)
{
	struct ferry_message ok = {.type = FERRY_FRAME_LAYOUT_OK};

	c->control = dial_welcome(c, FERRY_ROLE_CONTROL, 0);
	must(client_read(c, c->control));
	must(c->m.type == FERRY_FRAME_LAYOUT);
	must(c->m.layout.n_regions == 1);
	must(!strcmp(c->m.layout.regions[0].name, "ram"));
	must(c->m.layout.regions[0].n_pages == c->world->n_pages);
	c->urgent = dial_welcome(c, FERRY_ROLE_URGENT, 0);
	for (uint32_t i = 0; i < c->n_bulk; i++) {
		c->bulk[i] = dial_welcome(c, FERRY_ROLE_BULK, i);
		c->bulk_done[i] = false;
	}
	client_send(c, c->control, &ok);
}

void client_close(struct client *c)
{
	ferry_close(TAKE_FD(c->control));
	ferry_close(TAKE_FD(c->urgent));
	for (int i = 0; i < CLIENT_BULK; i++)
		ferry_close(TAKE_FD(c->bulk[i]));
}

void client_request(struct client *c, uint64_t first, uint32_t n)
{
	struct ferry_message m = {
		.type = FERRY_FRAME_PAGE_REQUEST,
		.request = {.request_id = ++c->last_request,
			    .n_runs = 1,
			    .runs = {{.region = 0, .n_pages = n, .first_page = first}}}};

	client_send(c, c->urgent, &m);
}

void client_take(struct client *c)
{
	const struct ferry_run *r = &c->m.run.run;
	_Alignas(8) uint8_t page[PAGE];

	must(c->m.type == FERRY_FRAME_PAGE_RUN);
	must(r->region == 0 && r->first_page + r->n_pages <= c->world->n_pages);
	if (c->m.run.encoding == FERRY_ENCODING_RAW)
		must(c->m.payload_bytes == r->n_pages * PAGE);
	for (uint32_t i = 0; i < r->n_pages; i++) {
		uint64_t p = r->first_page + i;

		must(world_is_zero(p) == (c->m.run.encoding == FERRY_ENCODING_ZERO));
		c->n_zero += world_is_zero(p);
		c->n_duplicates += ferry_bitmap_test_and_set(&c->have, p);
		world_page(p, page);
		if (c->m.run.encoding == FERRY_ENCODING_RAW)
			must(!memcmp(c->payload + i * PAGE, page, PAGE));
	}
}

void client_send_resident(struct client *c)
{
	uint64_t step = FERRY_MAX_CONTROL_BYTES * 8ull;
	uint8_t *map = malloc(FERRY_MAX_CONTROL_BYTES);

	must(map);
	for (uint64_t first = 0; first < c->world->n_pages; first += step) {
		uint64_t n = FERRY_MIN(step, c->world->n_pages - first);
		struct ferry_message m = {.type = FERRY_FRAME_RESIDENT,
					  .resident = {0, first, n},
					  .payload = map,
					  .payload_bytes = (uint32_t)ferry_bitmap_n_bytes(n)};

		ferry_bitmap_export(&c->have, first, n, map);
		client_send(c, c->control, &m);
	}
	free(map);
}

void client_start_push(struct client *c, uint64_t max_bytes_per_second)
{
	struct ferry_message m = {.type = FERRY_FRAME_PUSH_START,
				  .push_start = {max_bytes_per_second}};

	client_send(c, c->control, &m);
}

void client_take_push(struct client *c)
{
	uint32_t left = 0;

	for (uint32_t i = 0; i < c->n_bulk; i++)
		left += !c->bulk_done[i];
	while (left) {
		struct pollfd p[CLIENT_BULK];

		for (uint32_t i = 0; i < c->n_bulk; i++)
			p[i] = (struct pollfd){.fd = c->bulk_done[i] ? -1 : c->bulk[i],
					       .events = POLLIN};
		must(poll(p, c->n_bulk, TIMEOUT_MS) > 0);
		for (uint32_t i = 0; i < c->n_bulk; i++) {
			if (!p[i].revents)
				continue;
			must(client_read(c, c->bulk[i]));
			if (c->m.type == FERRY_FRAME_PUSH_DONE) {
				c->bulk_done[i] = true;
				left--;
			} else {
				must(!c->m.run.request_id);
				client_take(c);
			}
		}
	}
}

void client_complete(struct client *c)
{
	struct ferry_message m = {.type = FERRY_FRAME_COMPLETE};

	client_send(c, c->control, &m);
	must(client_read(c, c->control));
	must(c->m.type == FERRY_FRAME_RELEASED);
}

void expect_event(struct world *w, enum ferry_server_event event, struct ferry_failure *f)
{
	struct ferry_failure story = {0};
	int rc = ferry_server_wait(w->server, TIMEOUT_MS, -1, &story);

	if (rc != (int)event)
		fprintf(stderr, "event %d, not %d: %s\n", rc, event, story.text);
	must(rc == (int)event);
	if (f)
		*f = story;
}
