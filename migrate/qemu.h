/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Facts about a QEMU, and what makes one unfit for a switchover: found before anything is touched,
 * and refused with what to change.
 */
#ifndef FERRY_MIGRATE_QEMU_H
#define FERRY_MIGRATE_QEMU_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"
#include "base/log.h"
#include "migrate/qmp.h"
#include "protocol/message.h"
#include "uffd/maps.h"

/* A block of the guest's RAM that travels by page faults. */
struct ferry_qemu_ram {
	struct ferry_region_desc
		desc;		/* ->name is QEMU's name of the block, the same on both sides */
	struct ferry_hva start; /* in QEMU */
	enum ferry_mapping_kind kind; /* shared or hugetlb */
	int fd;			      /* owned: the file that it is, or part of, read-only */
	uint64_t offset;	      /* in that file */
};

struct ferry_qemu {
	struct ferry_qmp *qmp; /* borrowed */
	pid_t pid;
	char name[FERRY_MAX_REGION_NAME]; /* -name, or "pid N" */
	char machine[FERRY_MAX_REGION_NAME];
	char version[FERRY_MAX_REGION_NAME];
	bool runs; /* source: the guest runs; it may also have been paused by its user */
	uint32_t n_ram;
	uint64_t ram_bytes;
	struct ferry_qemu_ram ram[FERRY_MAX_REGIONS];
};

/**
 * ferry_qemu_inspect() - look at a QEMU that is to give its guest away
 * @qmp: borrowed for the life of @q
 * Nothing is changed in QEMU.
 * Errors: negative errno (REFUSE), or -ECONNRESET (LOST), with what to change in @f.
 */
int ferry_qemu_inspect_source(struct ferry_qemu *q, struct ferry_qmp *qmp,
			      const struct ferry_log *log, struct ferry_failure *f);

/* The same for one that is to take a guest over: it waits with -incoming defer, its RAM is empty.
 */
int ferry_qemu_inspect_target(struct ferry_qemu *q, struct ferry_qmp *qmp,
			      const struct ferry_log *log, struct ferry_failure *f);

/* The same for one whose guest was taken over already and misses pages: after our own death. */
int ferry_qemu_inspect_orphan(struct ferry_qemu *q, struct ferry_qmp *qmp,
			      const struct ferry_log *log, struct ferry_failure *f);

/* Zeroed and half-built ones are fine. */
void ferry_qemu_fini(struct ferry_qemu *q);

/* "running", "paused", "inmigrate", ... into @out. Errors: as ferry_qmp_execute(). */
int ferry_qemu_status(struct ferry_qmp *qmp, char out[FERRY_QMP_TEXT_MAX], struct ferry_failure *f);

/**
 * ferry_qemu_cont() - have the guest run
 * There is nothing to fall back to, so that it is tried again unless QEMU has said no, or nothing.
 * Errors: as ferry_qmp_execute().
 */
int ferry_qemu_cont(struct ferry_qmp *qmp, struct ferry_failure *f);

void ferry_qemu_layout(const struct ferry_qemu *q, struct ferry_layout *out);

/**
 * ferry_qemu_compare() - does a source's guest fit into this target?
 * Errors: -EINVAL (REFUSE) with the difference and what to change in @f.
 */
int ferry_qemu_compare(const struct ferry_qemu *target, const struct ferry_prepare *source,
		       struct ferry_failure *f);

#endif
