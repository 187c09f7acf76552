/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A snapshot of Cloud Hypervisor: a folder with
 *   config.json    the VM's configuration
 *   state.json     a tree of states; each is JSON again, in a string
 *   memory-ranges  the ranges of memory that the state of the memory manager names, one behind the
 *                  other in that order, with holes where they are zero
 * and what a target that receives a migration wants in their place.
 *
 * Source: Cloud Hypervisor 53, vmm/src/vm.rs (Transportable::send), vmm/src/memory_manager.rs
 * (MemoryManagerSnapshotData, memory_range_table(), send()), vmm/src/lib.rs (VmMigrationConfig),
 * vm-migration/src/lib.rs (Snapshot); docs/snapshot_restore.md
 */
#ifndef FERRY_HANDLER_CLOUD_SNAPSHOT_H
#define FERRY_HANDLER_CLOUD_SNAPSHOT_H

#include <stddef.h>

#include "base/error.h"
#include "pageserver/cloud_hypervisor_wire.h"
#include "pageserver/source.h"

#define FERRY_CLOUD_SNAPSHOT_MAX (64u * FERRY_MIB) /* of config.json, and of state.json */

struct ferry_cloud_snapshot {
	uint32_t n_ranges;				      /* 1 to FERRY_MAX_REGIONS */
	struct ferry_cloudhv_range ranges[FERRY_MAX_REGIONS]; /* in the order of the file */
	char *vm_config; /* owned: what the request Config has */
	char *vm_state;	 /* owned: what State has, which is state.json as it is */
	struct ferry_source *sources[FERRY_MAX_REGIONS]; /* owned; of each range */
};

/**
 * ferry_cloud_snapshot_parse() - ranges and configuration from the two texts. Pure.
 * @config, @state: config.json and state.json, with a NUL behind
 * Refused is what a target in post-copy can't be given: memory that is shared through a file of its
 * own, and not in the snapshot; hot-plugged by virtio-mem; or populated at the start (prefault).
 *
 * Errors: -EBADMSG, -ENOTSUP (REFUSE) with what is wrong in @f.
 * Of @out, ->n_ranges, ->ranges and ->vm_config are written, on success only.
 */
int ferry_cloud_snapshot_parse(const char *config, const char *state,
			       struct ferry_cloud_snapshot *out, struct ferry_failure *f);

/**
 * ferry_cloud_snapshot_open() - the snapshot in a folder
 * Errors: as above, and of the files (REFUSE), in @f. _close is due all the same.
 */
int ferry_cloud_snapshot_open(struct ferry_cloud_snapshot *out, const char *folder,
			      struct ferry_failure *f);
void ferry_cloud_snapshot_close(struct ferry_cloud_snapshot *s);

#endif
