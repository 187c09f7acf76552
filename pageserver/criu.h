/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A page server for CRIU's lazily restored processes ('criu lazy-pages --page-server'), over the same
 * page sources as server.h. criu_wire.h has the protocol.
 *
 * One thread accepts; each connection has a thread, which answers one request after the other, as
 * the protocol wants it. A request that makes no sense, or asks for memory that is not here, ends its
 * connection: CRIU has no answer for that, and zeros would be wrong.
 *
 * Limits: 16 connections at a time; more are turned away. A peer that stops in the middle of a
 * request, or does not take an answer, has 30 s.
 */
#ifndef FERRY_PAGESERVER_CRIU_H
#define FERRY_PAGESERVER_CRIU_H

#include "base/log.h"
#include "pageserver/criu_wire.h"
#include "pageserver/source.h"

struct ferry_criu;

struct ferry_criu_config {
	struct ferry_source **sources;	/* borrowed until _free; pages of FERRY_CRIU_PAGE_BYTES */
	const struct ferry_criu_range *ranges; /* of each source; borrowed */
	uint32_t n_sources;
	uint64_t pid;		      /* see ferry_criu_find() */
	uint32_t header_bytes;	      /* FERRY_CRIU_HEADER_OLD or _NEW */
	/* Is what was given that of one moment? 0; a shortage (ferry_is_shortage()) when that can't
	 * be told yet, and it is asked again; or another negative errno: a client that is done is
	 * not told that we are. Connections' threads; NULL: yes. */
	int (*may_release)(void *ctx);
	void *ctx;
	const struct ferry_log *log; /* borrowed; may be NULL */
};

struct ferry_criu_stats {
	uint64_t pages, wire_bytes, requests;
	uint32_t n_connections; /* now, and not at their end */
	uint32_t n_connections_ever;
	uint32_t n_unfinished; /* that were given pages, and did not end as they should, or not yet
				*/
	uint32_t n_closed;     /* that ended as they should */
	uint32_t n_failed;
};

/* @listen_fd: given, on error too. Errors: negative errno (REFUSE) in @f. */
int ferry_criu_start(struct ferry_criu **out, const struct ferry_criu_config *config, int listen_fd,
		     struct ferry_failure *f);
/* Any thread. */
void ferry_criu_stats(const struct ferry_criu *c, struct ferry_criu_stats *out);
/* Ends all connections and threads. NULL is fine. */
void ferry_criu_free(struct ferry_criu *c);

#endif
