/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Several targets at once that push, ask, lose their link and resume, while the owner looks at the
 * statistics. A plain program, for the thread sanitizer to watch the server.
 */
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/util.h"
#include "pageserver_client.h"

#define N_TARGETS 4
#define N_PAGES	  6000
#define N_EPOCHS  4

struct target {
	const struct world *world;
	pthread_t thread;
	uint8_t id;
	unsigned int seed;
};

/* Takes what comes on all connections for a while, and asks now and then. */
static void go_on(struct client *c, unsigned int *seed, int n_frames)
{
	for (int i = 0; i < n_frames; i++) {
		struct pollfd p[1 + CLIENT_BULK] = {{.fd = c->urgent, .events = POLLIN}};

		if (rand_r(seed) % 4 == 0)
			client_request(c, (uint64_t)rand_r(seed) % (N_PAGES - 8), 8);
		for (uint32_t b = 0; b < c->n_bulk; b++)
			p[1 + b] = (struct pollfd){.fd = c->bulk_done[b] ? -1 : c->bulk[b],
						   .events = POLLIN};
		must(poll(p, 1 + c->n_bulk, 60000) >= 0);
		for (uint32_t b = 0; b <= c->n_bulk; b++) {
			if (!p[b].revents)
				continue;
			must(client_read(c, p[b].fd));
			if (c->m.type == FERRY_FRAME_PUSH_DONE)
				c->bulk_done[b - 1] = true;
			else
				client_take(c);
		}
		if (ferry_bitmap_count(&c->have) == N_PAGES)
			return;
	}
}

static void *target_main(void *arg)
{
	struct target *t = arg;
	struct client c;

	client_init(&c, t->world, t->id, 1 + t->id % 3);
	for (c.epoch = 0; c.epoch < N_EPOCHS; c.epoch++) {
		client_open(&c);
		if (c.epoch)
			client_send_resident(&c);
		client_start_push(&c, 0);
		if (c.epoch == N_EPOCHS - 1)
			break;
		go_on(&c, &t->seed, 50);
		client_close(&c);
	}
	client_take_push(&c);
	must(ferry_bitmap_count(&c.have) == N_PAGES);
	client_complete(&c);
	client_fini(&c);
	return NULL;
}

static void run(bool in_place, unsigned int seed)
{
	struct target t[N_TARGETS];
	struct ferry_server_stats stats;
	uint32_t completed = 0;
	struct world w;

	world_init(&w, N_PAGES, in_place, NULL, true);
	for (uint8_t i = 0; i < N_TARGETS; i++) {
		t[i] = (struct target){.world = &w, .id = (uint8_t)(i + 1), .seed = seed + i};
		must(!pthread_create(&t[i].thread, NULL, target_main, &t[i]));
	}
	while (completed < N_TARGETS) {
		struct ferry_failure f;
		int rc = ferry_server_wait(w.server, 60000, -1, &f);

		must(rc == FERRY_SERVER_COMPLETED || rc == FERRY_SERVER_LINK_LOST);
		completed += rc == FERRY_SERVER_COMPLETED;
		ferry_server_stats(w.server, &stats);
		must(stats.pages_total == N_PAGES || !stats.pages_total);
	}
	for (int i = 0; i < N_TARGETS; i++)
		pthread_join(t[i].thread, NULL);
	ferry_server_stats(w.server, &stats);
	must(stats.n_completed == N_TARGETS);
	must(stats.resumes == N_TARGETS * (N_EPOCHS - 1));
	world_fini(&w);
}

int main(void)
{
	for (unsigned int seed = 1; seed <= 3; seed++) {
		run(true, seed);
		run(false, seed);
	}
	return 0;
}
