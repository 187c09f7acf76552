/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The part of Cloud Hypervisor's migration protocol by which a target that is restored in post-copy
 * is given its pages. We are the source: it listens, and we connect to it.
 *
 *   source  Start, version 0             on the first connection; each is answered
 *   source  Config, and JSON             the target makes the VM's memory
 *   source  the role "faults", 2 bytes   on a second connection; not answered
 *   source  State, and JSON              on the first again
 *   source  Complete, or CompletePaused
 *
 *   target  PageFault, and a range       on the second, from State on; one at a time
 *   source  Ok, its length; the bytes    all of the range, or Error
 *   target  closes                       when it has all of its memory
 *
 * Requests and answers are 16 bytes, all numbers little-endian; 6 bytes of a header are padding but
 * in Start. No MemoryFd is sent: then the target wants the pages on the connection.
 *
 * Source: Cloud Hypervisor 53, vm-migration/src/protocol.rs; vmm/src/lib.rs, send_migration(),
 * serve_postcopy() and vm_receive_migration_step(); vmm/src/migration/transport.rs; vmm/src/uffd.rs
 */
#ifndef FERRY_PAGESERVER_CLOUD_HYPERVISOR_WIRE_H
#define FERRY_PAGESERVER_CLOUD_HYPERVISOR_WIRE_H

#include <stdint.h>

#include "base/error.h"
#include "base/util.h"
#include "protocol/message.h"

#define FERRY_CLOUDHV_VERSION	   0u
#define FERRY_CLOUDHV_HEADER_BYTES 16u
#define FERRY_CLOUDHV_RANGE_BYTES  16u
#define FERRY_CLOUDHV_ROLE_BYTES   2u
#define FERRY_CLOUDHV_ROLE_FAULTS  2u
#define FERRY_CLOUDHV_PAGE_BYTES   4096u
#define FERRY_CLOUDHV_MAX_ANSWER   (1u << 30) /* a page of 1 GiB */

enum ferry_cloudhv_command {
	FERRY_CLOUDHV_START = 1,
	FERRY_CLOUDHV_CONFIG = 2,
	FERRY_CLOUDHV_STATE = 3,
	FERRY_CLOUDHV_COMPLETE = 5,
	FERRY_CLOUDHV_ABANDON =
		6, /* of the target: it wants no more pages; version 53 sends none */
	FERRY_CLOUDHV_COMPLETE_PAUSED = 8,
	FERRY_CLOUDHV_PAGE_FAULT = 9,
};

enum ferry_cloudhv_status {
	FERRY_CLOUDHV_OK = 1,
	FERRY_CLOUDHV_ERROR = 2,
};

/* Of a request or an answer. */
struct ferry_cloudhv_header {
	uint16_t kind;	  /* a command, or a status */
	uint16_t version; /* of Start; 0 in others */
	uint64_t length;  /* of what follows, bytes */
};

void ferry_cloudhv_encode(const struct ferry_cloudhv_header *h, uint8_t *bytes);
void ferry_cloudhv_decode(const uint8_t *bytes, struct ferry_cloudhv_header *h);
void ferry_cloudhv_encode_role(uint16_t role, uint8_t *bytes);

/* Guest-physical memory. */
struct ferry_cloudhv_range {
	struct ferry_gpa start;
	uint64_t bytes;
};

void ferry_cloudhv_decode_range(const uint8_t *bytes, struct ferry_cloudhv_range *r);

/**
 * ferry_cloudhv_check_answer() - does the target go along with a request?
 * @what: the request, for people
 * Errors: -ECONNREFUSED (REFUSE) when it says no; -EPROTO (REFUSE) when that is no answer. In @f.
 */
int ferry_cloudhv_check_answer(const struct ferry_cloudhv_header *h, const char *what,
			       struct ferry_failure *f);

/**
 * ferry_cloudhv_check_request() - is it one that is answered on the second connection?
 * Errors: -EBADMSG (LINK) in @f.
 */
int ferry_cloudhv_check_request(const struct ferry_cloudhv_header *h, struct ferry_failure *f);

/**
 * ferry_cloudhv_find() - the pages that a target asks for
 * @ranges: multiples of FERRY_CLOUDHV_PAGE_BYTES, that don't overlap
 * @run: all of what is asked for; ->region is the range
 * Errors: -EBADMSG (LINK) with what is wrong with it in @f; never pages that nobody has.
 */
int ferry_cloudhv_find(const struct ferry_cloudhv_range *ranges, uint32_t n_ranges,
		       const struct ferry_cloudhv_range *asked, struct ferry_run *run,
		       struct ferry_failure *f);

#endif
