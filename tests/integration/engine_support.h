/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A source in a process of its own, and lazy memory here, both through the public API. Pages of the
 * source are data, zero or never touched, by their number.
 */
#ifndef FERRY_TESTS_ENGINE_SUPPORT_H
#define FERRY_TESTS_ENGINE_SUPPORT_H

#include <pageferry.h>
#include <stdbool.h>

#include "uffd_support.h"

enum memory_kind {
	MEMORY_ANON,
	MEMORY_SHARED,
	MEMORY_HUGE,
};

struct source {
	/* set by the test */
	enum memory_kind kind;
	uint64_t n_pages;
	uint64_t hole_first, hole_end; /* pages that are never touched */
	bool is_dense;		       /* all pages are data */
	bool hold;
	uint32_t state_bytes;
	/* set by source_start() */
	char address[128]; /* empty: one is chosen; kept for the next start */
	struct child child;
};

/* Returns when it listens. */
void source_start(struct source *s);
void source_serve(struct source *s); /* ends ->hold */
void source_kill(struct source *s);
/* Its memory may go; it must have ended well. */
void source_end(struct source *s);

struct target {
	enum memory_kind kind;
	uint64_t n_pages;
	uint64_t max_bytes_per_second; /* of the push */
	uint64_t flags;
	uint8_t *memory;
	int fd; /* of shared memory, else -1 */
	struct pageferry_lazy *lazy;
};

uint32_t page_bytes_of(enum memory_kind kind);

/* Shared memory is in files of this folder, a tmpfs; NULL: in memfds. */
extern const char *shared_memory_folder;

/* Fresh memory like the source's, lazy and connected. */
void target_start(struct target *t, const struct source *s);
void target_push(struct target *t);
/* Wait for one event; PAGEFERRY_FAILED and errors end the test. Others are passed over. */
void target_await(struct target *t, enum pageferry_event wanted);
/* Wait until so many pages are there. */
void target_await_pages(struct target *t, uint64_t n);
struct pageferry_lazy_stats target_stats(const struct target *t);
void target_close(struct target *t);

/* What the source has in page @page of @bytes bytes. */
void page_expect(const struct source *s, uint64_t page, uint8_t *out, uint32_t bytes);
/* Does @at hold page @page of the source? */
bool page_is(const struct source *s, uint64_t page, const uint8_t *at);
bool page_is_zero(const uint8_t *at, uint32_t bytes);
/* Compare all pages, byte by byte. */
void assert_all(const struct source *s, const uint8_t *memory);

#define N_READERS 8

/* Threads that read and check random pages until told to stop. */
struct readers {
	const struct source *source;
	const uint8_t *memory;
	unsigned long threads[N_READERS];
	uint64_t n_each; /* pages to read; 0: until stopped */
	uint64_t n_first; /* of the memory: they leave the rest alone; 0: they use all */
	_Atomic bool stop;
	_Atomic uint64_t n_read, n_wrong;
};

void readers_start(struct readers *r, const struct source *s, const uint8_t *memory,
		   uint64_t n_each);
void readers_join(struct readers *r);

#endif
