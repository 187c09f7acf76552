/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A snapshot's memory that is filled from a page server: one session, however many VMs are restored
 * from it, so that each page crosses the network once, whichever VM wants it first.
 *
 * It is a memfd, and the target of that session: its known pages are there, or zero, and nothing is
 * ever discarded. What a VM waits for is asked for at once, in the order in which it is wanted; the
 * rest is pushed behind.
 */
#ifndef FERRY_HANDLER_CACHE_H
#define FERRY_HANDLER_CACHE_H

#include "uffd/target.h"

struct ferry_cache;

struct ferry_cache_config {
	const struct ferry_addr *from; /* borrowed until _close, as the others */
	const struct ferry_target_place *place; /* there; needed by _open only */
	struct ferry_tls *tls;	       /* NULL: plain */
	int stop_fd;		       /* gives up the first attempt to connect; -1 for none */
	uint64_t max_bytes_per_second; /* of the push; 0: no limit */
	/* More pages are there than before. From threads in the way of a page: must not wait. */
	void (*arrived)(void *ctx);
	void *ctx;
	const struct ferry_log *log; /* may be NULL */
};

/**
 * ferry_cache_open() - connect, and learn how large it is
 * Errors: LINK or REFUSE in @f: no connection, more than one region, huge pages.
 */
int ferry_cache_open(struct ferry_cache **out, const struct ferry_cache_config *config,
		     struct ferry_failure *f);
/* Pages may come, and ->arrived may be called, from now on. */
int ferry_cache_start(struct ferry_cache *c, struct ferry_failure *f);
/* NULL is fine. */
/* No other process goes on with it: its place at the page server is given up when it is closed. */
void ferry_cache_leave(struct ferry_cache *c);
void ferry_cache_close(struct ferry_cache *c);

/* Return: its memfd; borrowed until _close. */
int ferry_cache_fd(const struct ferry_cache *c, uint64_t *bytes);

/* See struct ferry_source_gate. Any thread. */
bool ferry_cache_has(struct ferry_cache *c, uint64_t offset, uint64_t bytes, bool want);

/* What the session does: an event, or NOTHING, at once. */
enum ferry_target_event ferry_cache_news(struct ferry_cache *c, struct ferry_failure *f);
void ferry_cache_stats(struct ferry_cache *c, struct ferry_target_stats *out);

#endif
