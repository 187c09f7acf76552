/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Many targets in one process: all connect to one page server, and are then filled at the same time, each
 * with all of it. Their memory is shared memory, so that what this process has of private memory is the
 * engines'.
 */
#include <errno.h>
#include <pageferry.h>
#include <stdlib.h>
#include <string.h>

#include "bench/bench.h"

struct client {
	struct pageferry_lazy *lazy;
	void *memory;
};

/* Private memory that is in use, KiB: of a line "RssAnon: N kB". */
static uint64_t private_kib(void)
{
	FILE *f = fopen("/proc/self/status", "re");
	unsigned long long kib = 0;
	char line[128];

	while (f && fgets(line, sizeof(line), f))
		if (sscanf(line, "RssAnon: %llu", &kib) == 1)
			break;
	if (f)
		fclose(f);
	return kib;
}

static void check_error(int rc, const struct pageferry_error *e)
{
	errno = 0;
	if (rc < 0)
		bench_die("%s", e->text);
}

int bench_clients(const struct bench_options *o)
{
	struct client *clients = calloc(o->clients, sizeof(*clients));
	uint64_t begin_kib = private_kib(), end_kib, begin_ns, end_ns;
	struct pageferry_error e = {0};

	if (!clients || !o->from)
		bench_die("clients: --from is missing");
	for (uint32_t i = 0; i < o->clients; i++) {
		struct client *c = &clients[i];
		struct pageferry_region region = {.bytes = o->bytes};

		c->memory = bench_map("shared", o->bytes);
		region.start = c->memory;
		check_error(pageferry_lazy_new(&c->lazy, &region, 1, NULL, &e), &e);
		check_error(pageferry_lazy_connect(c->lazy, o->from, &e), &e);
	}
	begin_ns = bench_now_ns();
	for (uint32_t i = 0; i < o->clients; i++)
		pageferry_lazy_push(clients[i].lazy);
	for (uint32_t i = 0; i < o->clients; i++) {
		int event;

		do {
			event = pageferry_lazy_wait(clients[i].lazy, -1, &e);
			check_error(event == PAGEFERRY_FAILED ? -1 : event, &e);
		} while (event != PAGEFERRY_COMPLETE);
	}
	end_ns = bench_now_ns();
	end_kib = private_kib();
	printf("{\"clients\":%u,\"bytes\":%llu,\"seconds\":%.6f,\"private_kib_each\":%.1f}\n",
	       o->clients, (unsigned long long)(o->bytes * o->clients),
	       (double)(end_ns - begin_ns) / 1e9, (double)(end_kib - begin_kib) / o->clients);
	for (uint32_t i = 0; i < o->clients; i++) {
		bench_check(clients[i].memory, o->bytes, o->every);
		pageferry_lazy_close(clients[i].lazy);
	}
	free(clients);
	return 0;
}
