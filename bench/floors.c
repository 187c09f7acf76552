/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the kernel takes by itself: a fault served inside one process, and the rates at which pages can
 * be put in place. Whatever serves faults from elsewhere takes at least that.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "bench/bench.h"
#include "uffd/kernel.h"

#define KIB 1024u
/* Copied from again and again: in the cache, as what was just received is. */
#define WARM_BYTES (256u * KIB)

/* --- one fault ---------------------------------------------------------------------------------- */

struct served {
	int uffd;
	const void *page;
};

static void *serve(void *arg)
{
	const struct served *s = arg;
	uint64_t address;

	for (;;)
		if (bench_uffd_next(s->uffd, -1, &address))
			bench_uffd_copy(s->uffd, address, s->page, BENCH_PAGE);
	return NULL;
}

static int round_trip(const struct bench_options *o)
{
	static _Alignas(BENCH_PAGE) uint8_t page[BENCH_PAGE];
	uint64_t n = o->faults;
	const volatile uint8_t *memory = bench_map(o->memory, n * BENCH_PAGE);
	struct served s = {.uffd = bench_uffd_open((void *)memory, n * BENCH_PAGE, false),
			   .page = page};
	struct bench_samples took;

	memset(page, 1, sizeof(page));
	bench_samples_init(&took, (uint32_t)n);
	bench_spawn(serve, &s);
	for (uint64_t i = 0; i < n; i++) {
		uint64_t before = bench_now_ns();

		(void)memory[i * BENCH_PAGE];
		bench_samples_add(&took, bench_now_ns() - before);
	}
	printf("{");
	bench_samples_print(&took, "us");
	printf("}\n");
	bench_samples_fini(&took);
	return 0;
}

/* --- rates -------------------------------------------------------------------------------------- */

/* What is filled, and from where; prepared and not timed. */
struct fill {
	uint8_t *to, *from;
	uint64_t from_bytes, bytes, piece;
	int uffd, memfd;
};

static void copy(struct fill *f, uint64_t at)
{
	bench_uffd_copy(f->uffd, (uintptr_t)f->to + at, f->from + at % f->from_bytes, f->piece);
}

static void move(struct fill *f, uint64_t at)
{
	struct uffdio_move m = {
		.dst = (uintptr_t)f->to + at, .src = (uintptr_t)f->from + at, .len = f->piece};

	if (ioctl(f->uffd, UFFDIO_MOVE, &m) < 0)
		bench_die("UFFDIO_MOVE");
}

static void resume(struct fill *f, uint64_t at)
{
	struct uffdio_continue c = {.range = {.start = (uintptr_t)f->to + at, .len = f->piece}};

	if (ioctl(f->uffd, UFFDIO_CONTINUE, &c) < 0)
		bench_die("UFFDIO_CONTINUE");
}

static void write_file(struct fill *f, uint64_t at)
{
	if (pwrite(f->memfd, f->from + at % f->from_bytes, f->piece, (off_t)at) !=
	    (ssize_t)f->piece)
		bench_die("pwrite");
}

static const struct rate {
	const char *name;
	void (*fill)(struct fill *f, uint64_t at);
	uint64_t piece;
	bool shared, all_from; /* all_from: the source has to be as large */
	bool minor;
} rates[] = {
	{"copy-anon-4k", copy, 4 * KIB, false, false, false},
	{"copy-anon-256k", copy, 256 * KIB, false, false, false},
	{"copy-shared-4k", copy, 4 * KIB, true, false, false},
	{"copy-shared-256k", copy, 256 * KIB, true, false, false},
	{"move-256k", move, 256 * KIB, false, true, false},
	{"continue-256k", resume, 256 * KIB, true, false, true},
	{"pwrite-256k", write_file, 256 * KIB, true, false, false},
};

static int rate(const struct bench_options *o, const struct rate *r)
{
	struct fill f = {.bytes = o->bytes, .piece = r->piece, .memfd = -1};
	uint64_t before;

	f.from_bytes = r->all_from ? f.bytes : WARM_BYTES;
	f.from = bench_map("anon", f.from_bytes);
	memset(f.from, 1, f.from_bytes);
	if (r->shared) {
		f.memfd = memfd_create("ferry-bench", MFD_CLOEXEC);
		if (f.memfd < 0 || ftruncate(f.memfd, (off_t)f.bytes) < 0)
			bench_die("memfd");
		f.to = mmap(NULL, f.bytes, PROT_READ | PROT_WRITE, MAP_SHARED, f.memfd, 0);
		if (f.to == MAP_FAILED)
			bench_die("mmap");
	} else {
		f.to = bench_map("anon", f.bytes);
	}
	if (r->minor)
		for (uint64_t at = 0; at < f.bytes; at += f.piece)
			write_file(&f, at);
	f.uffd = bench_uffd_open(f.to, f.bytes, r->minor);
	before = bench_now_ns();
	for (uint64_t at = 0; at < f.bytes; at += f.piece)
		r->fill(&f, at);
	printf("{\"bytes\":%llu,\"seconds\":%.6f}\n", (unsigned long long)f.bytes,
	       (double)(bench_now_ns() - before) / 1e9);
	return 0;
}

int bench_floor(const struct bench_options *o)
{
	if (!o->what || !strcmp(o->what, "fault"))
		return round_trip(o);
	for (size_t i = 0; i < sizeof(rates) / sizeof(rates[0]); i++)
		if (!strcmp(rates[i].name, o->what))
			return rate(o, &rates[i]);
	errno = 0;
	bench_die("no floor '%s'", o->what);
}
