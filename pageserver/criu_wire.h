/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The part of CRIU's page-server protocol by which lazily restored processes are given their pages.
 *
 *   client  GET  (pages, address, pid)             any number, also before the answers
 *   server  ADD_F | present, the same; the pages   in the order of the requests; perhaps fewer pages
 *   client  CLOSE
 *   server  a status of 32 bits, 0; then the client closes
 *
 * No hello, no version; the byte order and padding are the host's. CRIU up to 4.1.1 has headers of 24
 * bytes, CRIU 4.2 of 32; nothing on the wire tells which.
 * Source: CRIU's criu/page-xfer.c and criu/include/page-xfer.h
 */
#ifndef FERRY_PAGESERVER_CRIU_WIRE_H
#define FERRY_PAGESERVER_CRIU_WIRE_H

#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "protocol/message.h"

#define FERRY_CRIU_PAGE_BYTES	  4096u
#define FERRY_CRIU_HEADER_OLD	  24u
#define FERRY_CRIU_HEADER_NEW	  32u
#define FERRY_CRIU_MAX_ANSWER_PAGES 256u /* of one answer; the client asks for the rest again */

enum ferry_criu_command {
	FERRY_CRIU_ADD_F = 6,
	FERRY_CRIU_GET = 7,
	FERRY_CRIU_CLOSE = 0x1023,
	FERRY_CRIU_FORCE_CLOSE = 0x1024,
};

struct ferry_criu_message {
	uint16_t command, flags;
	uint64_t n_pages, address, pid;
};

#define FERRY_CRIU_PRESENT 4u /* a flag */

/* @header_bytes: of the two above. */
void ferry_criu_decode(const uint8_t *bytes, uint32_t header_bytes, struct ferry_criu_message *m);
void ferry_criu_encode(const struct ferry_criu_message *m, uint32_t header_bytes, uint8_t *bytes);

/* Memory that is served: one region's pages, and where they are in the process. */
struct ferry_criu_range {
	uint64_t address, n_pages;
};

/**
 * ferry_criu_find() - the pages that a GET gets: the first of those that it asks for, at least one
 * @pid: whose memory this is, as the client knows it
 * @run: ->region is the range
 * Errors: -EBADMSG (LINK) with what is wrong with it in @f; never pages that nobody has.
 */
int ferry_criu_find(const struct ferry_criu_range *ranges, uint32_t n_ranges, uint64_t pid,
		    const struct ferry_criu_message *m, struct ferry_run *run,
		    struct ferry_failure *f);

#endif
