/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Serves memory of its own to one target, and ends when the target has all of it.
 *
 *   serve ADDR [MIB]      ADDR: HOST:PORT, [v6]:PORT or unix:PATH; port 0 lets the kernel choose
 *
 * Prints "listening on ADDR" for example "lazy" to connect to.
 */
#include <inttypes.h>
#include <pageferry.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

static void say(void *ctx, enum pageferry_log_level level, const char *line)
{
	(void)ctx;
	(void)level;
	fprintf(stderr, "serve: %s\n", line);
}

/* Something to recognise: each word is its own offset. */
static void fill(uint64_t *words, uint64_t bytes)
{
	for (uint64_t i = 0; i < bytes / sizeof(*words); i++)
		words[i] = i * sizeof(*words);
}

/* Until the target has everything. A lost link is not the end: the target connects again. */
static int serve(struct pageferry_server *s)
{
	struct pageferry_error e = {0};

	for (;;) {
		switch (pageferry_server_wait(s, -1, &e)) {
		case PAGEFERRY_COMPLETE:
			return 0;
		case PAGEFERRY_LINK_LOST:
			fprintf(stderr, "serve: %s; waiting for the target to resume\n", e.text);
			break;
		case PAGEFERRY_FAILED:
			fprintf(stderr, "serve: %s\n", e.text);
			return 1;
		case PAGEFERRY_NOTHING:
		case PAGEFERRY_OPEN:
			break;
		default:
			fprintf(stderr, "serve: %s\n", e.text);
			return 1;
		}
	}
}

int main(int argc, char **argv)
{
	uint64_t bytes = (argc > 2 ? strtoull(argv[2], NULL, 10) : 64) << 20;
	struct pageferry_server_stats stats = {.size = sizeof(stats)};
	struct pageferry_region region = {.name = "example", .bytes = bytes};
	struct pageferry_server_options options = {
		.size = sizeof(options),
		.region_size = sizeof(region),
		.listen = argc > 1 ? argv[1] : NULL,
		.state = &bytes, /* anything that the target should know; here, how much memory */
		.state_bytes = sizeof(bytes),
		.log = say,
		.log_level = PAGEFERRY_LOG_WARN,
	};
	char address[PAGEFERRY_ADDRESS_MAX];
	struct pageferry_server *server;
	struct pageferry_error e;
	int rc;

	if (argc < 2 || argc > 3 || !bytes) {
		fprintf(stderr, "usage: serve ADDR [MIB]\n");
		return 2;
	}
	region.start =
		mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (region.start == MAP_FAILED) {
		perror("serve: mmap");
		return 1;
	}
	fill(region.start, bytes);

	/* From here on the memory must not change. */
	if (pageferry_server_new(&server, &region, 1, &options, &e) < 0) {
		fprintf(stderr, "serve: %s\n", e.text);
		return 1;
	}
	if (!pageferry_server_address(server, address, sizeof(address))) {
		printf("listening on %s\n", address);
		fflush(stdout);
	}
	rc = serve(server);
	if (!pageferry_server_stats(server, &stats))
		printf("served %" PRIu64 " pages on request and %" PRIu64 " ahead of it\n",
		       stats.pages_urgent, stats.pages_pushed);
	pageferry_server_free(server);
	return rc;
}
