/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the link takes by itself, loopback or through our forwarder: the shortest round trip of a request
 * and a page, and the fastest stream, between two threads.
 */
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "bench/bench.h"

#define REQUEST_BYTES 32u
#define CHUNK_BYTES   (256u * 1024)
#define WARM_TRIPS    50u

struct server {
	int listener;
	uint64_t bytes; /* of a stream; 0: answers requests */
};

static void *serve(void *arg)
{
	static uint8_t chunk[CHUNK_BYTES];
	const struct server *s = arg;
	int fd = bench_accept(s->listener);
	uint8_t request[REQUEST_BYTES];

	/* The client's first word starts a stream. */
	while (bench_read(fd, request, sizeof(request))) {
		uint64_t left = s->bytes;

		if (!left && !bench_write(fd, chunk, BENCH_PAGE))
			break;
		for (; left && bench_write(fd, chunk, sizeof(chunk)); left -= sizeof(chunk))
			;
	}
	close(fd);
	return NULL;
}

static void round_trips(int fd, uint32_t n)
{
	uint8_t request[REQUEST_BYTES] = {0}, page[BENCH_PAGE];
	struct bench_samples took;

	bench_samples_init(&took, n);
	for (uint32_t i = 0; i < n + WARM_TRIPS; i++) {
		uint64_t before = bench_now_ns();

		if (!bench_write(fd, request, sizeof(request)) ||
		    !bench_read(fd, page, sizeof(page)))
			bench_die("round trip");
		if (i >= WARM_TRIPS)
			bench_samples_add(&took, bench_now_ns() - before);
	}
	printf("{");
	bench_samples_print(&took, "us");
	printf("}\n");
	bench_samples_fini(&took);
}

static void stream(int fd, uint64_t bytes)
{
	static uint8_t chunk[CHUNK_BYTES];
	uint64_t before = bench_now_ns();

	if (!bench_write(fd, chunk, REQUEST_BYTES))
		bench_die("stream");
	for (uint64_t left = bytes; left;) {
		ssize_t n = recv(fd, chunk, sizeof(chunk), 0);

		if (n <= 0)
			bench_die("stream");
		left -= (uint64_t)n;
	}
	printf("{\"bytes\":%llu,\"seconds\":%.6f}\n", (unsigned long long)bytes,
	       (double)(bench_now_ns() - before) / 1e9);
}

int bench_link(const struct bench_options *o)
{
	bool streams = o->what && !strcmp(o->what, "stream");
	struct server s = {.bytes = streams ? o->bytes / CHUNK_BYTES * CHUNK_BYTES : 0};
	uint16_t port;
	int fd;

	s.listener = bench_listen(&port);
	bench_spawn(serve, &s);
	if (o->delay_us) {
		char to[32];

		snprintf(to, sizeof(to), "127.0.0.1:%u", port);
		port = bench_forward_start(to, o->delay_us);
	}
	fd = bench_dial_port(port);
	if (streams)
		stream(fd, s.bytes);
	else
		round_trips(fd, o->faults);
	return 0;
}
