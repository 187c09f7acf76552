/* SPDX-License-Identifier: Apache-2.0 */
/* The checksum of a PageRun, and the digest of a page: XXH3 with 64 bits, seeded with where it belongs. */
#ifndef FERRY_PROTOCOL_CHECKSUM_H
#define FERRY_PROTOCOL_CHECKSUM_H

#include "protocol/connection.h"

/* What the checksum of @run begins with, so that a page in a wrong place does not fit either. */
static inline uint64_t ferry_checksum_seed(const struct ferry_page_run *run)
{
	return run->run.first_page ^ (uint64_t)run->run.n_pages << 32 ^
	       (uint64_t)run->run.region << 58 ^ (uint64_t)run->encoding << 56;
}

/* @data: may be NULL when @bytes is 0. Context: any thread. */
uint64_t ferry_checksum(uint64_t seed, const void *data, size_t bytes);

/* The same, from bytes that come in pieces. */
#define FERRY_CHECKSUM_STATE_BYTES 640u
void ferry_checksum_begin(void *state, uint64_t seed); /* aligned to 64 bytes */
void ferry_checksum_add(void *state, const void *data, size_t bytes);
uint64_t ferry_checksum_end(const void *state);

/*
 * The digest of one page, for a whole memory's comparison: 0 when all of it is zero, so that what was
 * never touched needs no look. That of several pages is their sum, modulo 2^64.
 */
static inline uint64_t ferry_page_digest_seed(uint32_t region, uint64_t page)
{
	return page ^ (uint64_t)region << 58;
}
uint64_t ferry_page_digest(uint32_t region, uint64_t page, const void *data, size_t bytes);

/* Is the payload of a decoded PageRun what was sent? True where checksums were not agreed on. */
bool ferry_checksum_fits(const struct ferry_connection *c, const struct ferry_message *m);

#endif
