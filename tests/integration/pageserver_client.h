/* SPDX-License-Identifier: Apache-2.0 */
/* A page server on loopback with known memory, and a target that only remembers what it got. Works
 * under Criterion and in plain programs: what fails ends the process. */
#ifndef FERRY_TESTS_PAGESERVER_CLIENT_H
#define FERRY_TESTS_PAGESERVER_CLIENT_H

#include <stdbool.h>
#include <stdint.h>

#include "base/bitmap.h"
#include "pageserver/server.h"
#include "protocol/message.h"

#define must(cond)                                                                                 \
	do {                                                                                       \
		if (!(cond))                                                                       \
			must_failed(__FILE__, __LINE__, #cond);                                    \
	} while (0)

void must_failed(const char *file, int line, const char *what) __attribute__((noreturn));

#define PAGE 4096u

/* One region, "ram": a memfd. Of each 16 pages, 4 were never touched, 2 are zero, 10 have data. */
struct world {
	struct ferry_source *source;
	struct ferry_server *server;
	struct ferry_addr addr;
	uint64_t n_pages;
	int memfd;    /* a duplicate of the source's */
	void *memory; /* what is served in place, or NULL */
};

bool world_is_hole(uint64_t page);
bool world_is_zero(uint64_t page); /* also of holes */
void world_page(uint64_t page, uint8_t *out);

/* @in_place: served from memory of ours instead of the memfd. @config: without sources; NULL for
 * the defaults. @start: otherwise only set up. */
void world_init(struct world *w, uint64_t n_pages, bool in_place,
		const struct ferry_server_config *config, bool start);
/* The same in a file of a real filesystem, none of it in the page cache. */
void world_init_disk(struct world *w, uint64_t n_pages);
void world_start(struct world *w);
void world_fini(struct world *w);

#define CLIENT_BULK 4

struct client {
	const struct world *world;
	struct ferry_session_id session;
	uint32_t epoch;
	uint64_t withheld; /* features that are not wanted */
	int control, urgent, bulk[CLIENT_BULK];
	uint32_t n_bulk;
	bool bulk_done[CLIENT_BULK];
	struct ferry_bitmap have;
	uint64_t n_duplicates, n_zero;
	uint64_t last_request;
	struct ferry_arena arena;
	uint8_t *payload;	/* of the last frame */
	struct ferry_message m; /* the last frame */
};

void client_init(struct client *c, const struct world *w, uint8_t id, uint32_t n_bulk);
void client_fini(struct client *c);

/* Connects and says Hello. Return: an fd, with Welcome or Error in c->m. */
int client_dial(struct client *c, enum ferry_role role, uint32_t index);
/* All connections; takes the layout and answers it. */
void client_open(struct client *c);
void client_close(struct client *c);

void client_send(struct client *c, int fd, const struct ferry_message *m);
/* Reads a frame into c->m and c->payload. Return: false when the peer closed. Pings are answered on
 * ->control, and dropped elsewhere. */
bool client_read(struct client *c, int fd);
/* The same, whatever it is. */
bool client_read_any(struct client *c, int fd);
/* Waits until there is something to read, and answers Pings on ->control meanwhile. Keeps c->m. */
bool client_await(struct client *c, int fd, int timeout_ms);

void client_request(struct client *c, uint64_t first, uint32_t n);
/* Takes the run in c->m: compares it with what the world has, and remembers it. */
void client_take(struct client *c);
void client_send_resident(struct client *c);
void client_start_push(struct client *c, uint64_t max_bytes_per_second);
/* Takes what is pushed until every bulk connection said PushDone. */
void client_take_push(struct client *c);
/* Complete, and wait for Released. */
void client_complete(struct client *c);

/* Waits for an event, skipping none. */
void expect_event(struct world *w, enum ferry_server_event event, struct ferry_failure *f);

#endif
