/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Uses memory that another program has: touches it at once, while it is still coming.
 *
 *   lazy ADDR [MIB]       ADDR and MIB as example "serve" has them
 */
#include <inttypes.h>
#include <pageferry.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

static void say(void *ctx, enum pageferry_log_level level, const char *line)
{
	(void)ctx;
	(void)level;
	fprintf(stderr, "lazy: %s\n", line);
}

struct work {
	const uint64_t *words;
	uint64_t n;
	atomic_ulong n_wrong;
};

/* The program's own work: it knows nothing of where the memory comes from. */
static void *use(void *arg)
{
	struct work *w = arg;
	uint64_t at = 1;

	for (uint64_t i = 0; i < w->n; i++) {
		at = (at * 6364136223846793005u + 1442695040888963407u) % w->n;
		if (w->words[at] != at * sizeof(*w->words))
			atomic_fetch_add(&w->n_wrong, 1);
	}
	return NULL;
}

static int wait_until_complete(struct pageferry_lazy *lazy)
{
	struct pageferry_error e = {0};

	for (;;) {
		int event = pageferry_lazy_wait(lazy, -1, &e);

		if (event == PAGEFERRY_COMPLETE)
			return 0;
		if (event == PAGEFERRY_LINK_LOST)
			fprintf(stderr, "lazy: %s; connecting again\n", e.text);
		if (event < 0 || event == PAGEFERRY_FAILED) {
			fprintf(stderr, "lazy: %s\n", e.text);
			return -1;
		}
	}
}

static int tell(const struct pageferry_lazy *lazy)
{
	struct pageferry_lazy_stats s = {.size = sizeof(s)};

	if (pageferry_lazy_stats(lazy, &s) < 0)
		return -1;
	printf("%" PRIu64 " pages: %" PRIu64 " on request, %" PRIu64 " ahead of it; "
	       "a fault took %.0f us (median), %.0f us (99 %%)\n",
	       s.pages_total, s.pages_urgent, s.pages_pushed, s.fault_p50_us, s.fault_p99_us);
	return 0;
}

int main(int argc, char **argv)
{
	uint64_t bytes = (argc > 2 ? strtoull(argv[2], NULL, 10) : 64) << 20;
	struct pageferry_region region = {.name = "example", .bytes = bytes};
	struct pageferry_lazy_options options = {
		.size = sizeof(options),
		.region_size = sizeof(region),
		.log = say,
		.log_level = PAGEFERRY_LOG_WARN,
	};
	struct work work = {.n = bytes / sizeof(uint64_t)};
	struct pageferry_lazy *lazy;
	struct pageferry_error e;
	const void *state;
	uint32_t state_bytes;
	pthread_t thread;

	if (argc < 2 || argc > 3 || !bytes) {
		fprintf(stderr, "usage: lazy ADDR [MIB]\n");
		return 2;
	}
	/* Fresh memory: nothing of it was ever touched. */
	region.start =
		mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (region.start == MAP_FAILED) {
		perror("lazy: mmap");
		return 1;
	}
	if (pageferry_lazy_new(&lazy, &region, 1, &options, &e) < 0) {
		fprintf(stderr, "lazy: %s\n", e.text);
		return 1;
	}
	if (pageferry_lazy_connect(lazy, argv[1], &e) < 0) {
		fprintf(stderr, "lazy: %s\n", e.text);
		pageferry_lazy_abandon(lazy);
		return 1;
	}
	state = pageferry_lazy_state(lazy, &state_bytes);
	if (!state || state_bytes != sizeof(bytes) || memcmp(state, &bytes, sizeof(bytes))) {
		fprintf(stderr, "lazy: this is not example \"serve\"\n");
		pageferry_lazy_abandon(lazy);
		return 1;
	}

	/* The memory can be used from here on. The rest of it comes by itself. */
	work.words = region.start;
	if (pthread_create(&thread, NULL, use, &work)) {
		pageferry_lazy_abandon(lazy);
		return 1;
	}
	pageferry_lazy_push(lazy);
	if (wait_until_complete(lazy) < 0)
		return 1; /* with it ends whoever waits for a page */
	pthread_join(thread, NULL);
	tell(lazy);
	pageferry_lazy_close(lazy);
	if (work.n_wrong)
		fprintf(stderr, "lazy: %lu words were wrong\n", work.n_wrong);
	return work.n_wrong ? 1 : 0;
}
