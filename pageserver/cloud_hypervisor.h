/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The source of a Cloud Hypervisor target that is restored in post-copy, over the same page sources
 * as server.h. cloud_hypervisor_wire.h has the protocol.
 *
 * Happy path:
 *  1. connect; Start, Config
 *  2. connect again, for page faults; a second thread answers them, one by one, from then on
 *  3. State
 *  4. once pages are asked for, Complete: the VM runs
 *  5. the target asks for all of its memory by and by, and closes
 *
 * Failure modes:
 *  - Up to Complete what goes wrong is an error, and the target drops the VM. A target that was not
 *    told to be one for post-copy takes the VM, and would run it on zeros: it asks for no pages, so
 *    it is never told to run.
 *  - Complete without an answer: the target may have the VM, and it is called lost.
 *  - From then on Cloud Hypervisor ends the VM when its connection breaks or a page can't be had;
 *    nothing can be resumed. What was restored from is as it was.
 *  - A request that makes no sense, or asks for memory that is not here, is answered by an error,
 *    and ends the connection: zeros would be wrong.
 *  - The target does not say why it closes. It has everything when each page was given once.
 *
 * Limits: a peer that stops in the middle of a request, or does not take an answer, has 30 s; so
 * has one that neither answers a request of ours nor asks for pages meanwhile.
 */
#ifndef FERRY_PAGESERVER_CLOUD_HYPERVISOR_H
#define FERRY_PAGESERVER_CLOUD_HYPERVISOR_H

#include <stdbool.h>

#include "base/addr.h"
#include "pageserver/cloud_hypervisor_wire.h"
#include "pageserver/source.h"
#include "tls/tls.h"

struct ferry_cloudhv;

/* All pointers are borrowed until _free. */
struct ferry_cloudhv_config {
	struct ferry_addr to;
	struct ferry_tls *tls;			  /* NULL: a plain connection */
	struct ferry_source **sources;		  /* pages of FERRY_CLOUDHV_PAGE_BYTES */
	const struct ferry_cloudhv_range *ranges; /* of each source */
	uint32_t n_sources;			  /* up to FERRY_MAX_REGIONS */
	const char *vm_config, *vm_state;	  /* JSON, as the target reads it */
	bool leave_paused;			  /* the restored VM */
};

enum ferry_cloudhv_stage {
	FERRY_CLOUDHV_CONNECTS,
	FERRY_CLOUDHV_CONFIGURES,
	FERRY_CLOUDHV_RESTORES,
	FERRY_CLOUDHV_SERVES, /* the VM is on the target */
	FERRY_CLOUDHV_ENDED,
};

struct ferry_cloudhv_stats {
	enum ferry_cloudhv_stage stage;
	uint64_t pages_total, pages_known; /* of all memory; that were given at least once */
	uint64_t wire_bytes, requests;
};

/* Errors: negative errno (REFUSE) in @f. */
int ferry_cloudhv_start(struct ferry_cloudhv **out, const struct ferry_cloudhv_config *config,
			struct ferry_failure *f);
/* Any thread. */
void ferry_cloudhv_stats(const struct ferry_cloudhv *c, struct ferry_cloudhv_stats *out);
/**
 * ferry_cloudhv_result() - how it ended, once the stage is FERRY_CLOUDHV_ENDED
 * Return: 0, the target has all of its memory; or a negative errno with the story in @f: LOST when
 * the VM was on the target already, or may have been.
 */
int ferry_cloudhv_result(const struct ferry_cloudhv *c, struct ferry_failure *f);
/* Ends the connections and threads. NULL is fine. */
void ferry_cloudhv_free(struct ferry_cloudhv *c);

#endif
