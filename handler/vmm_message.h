/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The one message of a VMM that restores a snapshot, as Firecracker sends it: a JSON array of the
 * guest's memory regions, with nothing but white space before or behind it. Pure.
 *
 * Source: Firecracker, src/vmm/src/persist.rs, GuestRegionUffdMapping; docs/snapshotting/
 * handling-page-faults-on-snapshot-resume.md
 */
#ifndef FERRY_HANDLER_VMM_MESSAGE_H
#define FERRY_HANDLER_VMM_MESSAGE_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"
#include "base/util.h"
#include "protocol/limits.h"

#define FERRY_VMM_MESSAGE_MAX (64u * FERRY_KIB)

struct ferry_vmm_region {
	struct ferry_hva
		start; /* in the VMM's process; a multiple of the page size, as the others */
	uint64_t bytes;
	uint64_t offset; /* in the snapshot's memory file */
	uint32_t page_bytes;
};

struct ferry_vmm_message {
	uint32_t n_regions; /* 1 to FERRY_MAX_REGIONS */
	struct ferry_vmm_region regions[FERRY_MAX_REGIONS];
};

/**
 * ferry_vmm_message_end() - where the message ends in a stream
 * Looks at brackets and strings only. White space may come first.
 * Return: its length in bytes; 0 when more has to come.
 * Errors: -EBADMSG when it does not begin with an array.
 */
ssize_t ferry_vmm_message_end(const char *data, size_t len);

/**
 * ferry_vmm_message_parse() - read and check a whole message
 * Keys may be in any order, and unknown ones are ignored, whatever they hold. Without "page_size",
 * "page_size_kib" is taken, which is in bytes for all that; without both, 4096. Errors: -EBADMSG
 * (REFUSE) with what is wrong in @f: no JSON, no or too many regions, a known key twice, numbers
 * that are not whole, not from 0 to below 2^63 (where no process has memory), or not multiples of
 * the page size, ranges that are empty, overlap or wrap around. @out is written on success only.
 */
int ferry_vmm_message_parse(const char *data, size_t len, struct ferry_vmm_message *out,
			    struct ferry_failure *f);

#endif
