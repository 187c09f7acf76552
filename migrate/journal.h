/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What must outlive our own death: one small file for each QEMU that a switchover is under way for.
 * A command that finds one for its QEMU goes on where the last one was killed. It has all that is
 * needed to serve faults again without asking QEMU, whose monitor may itself wait for a page.
 *
 * The file is named after the monitor's socket (device and inode), and is good for one process
 * only. It is written by single writes, so that it is whole whenever we are killed, and lies on a
 * file system in memory, as no QEMU outlives its host either.
 */
#ifndef FERRY_MIGRATE_JOURNAL_H
#define FERRY_MIGRATE_JOURNAL_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"
#include "migrate/qemu.h"
#include "protocol/message.h"

enum ferry_journal_phase {
	FERRY_JOURNAL_BEGUN = 1, /* target: the RAM is registered; source: the guest is stopped */
	FERRY_JOURNAL_LOADING,	 /* target: QEMU was told to load the device state */
	FERRY_JOURNAL_LOADED,	 /* target: it has */
	FERRY_JOURNAL_COMMITTED, /* source: Commit may have been said; target: it was read */
	FERRY_JOURNAL_RUNS,	 /* target: the guest was started */
};

struct ferry_journal_region {
	struct ferry_region_desc desc;
	uint64_t start;
	uint32_t kind;
};

struct ferry_journal_entry {
	uint32_t phase; /* enum ferry_journal_phase */
	struct ferry_session_id session;
	uint32_t n_bulk;
	uint32_t takeovers; /* how often the session was taken over from a killed one */
	uint32_t paused;    /* not 0: the guest was paused by its user when it left */
	int32_t pid;	    /* of QEMU */
	uint64_t started;   /* its start time, which tells processes of the same number apart */
	uint64_t stop_ns;   /* source: when the guest was stopped; CLOCK_MONOTONIC */
	uint32_t n_regions;
	struct ferry_journal_region regions[FERRY_MAX_REGIONS];
};

struct ferry_journal {
	int fd; /* owned; -1 when there is none */
	char path[160];
};

#define FERRY_JOURNAL_NONE ((struct ferry_journal){.fd = -1})

/**
 * ferry_journal_load() - is there an entry for the QEMU behind this monitor?
 * @dir: NULL for the default: $RUNTIME_DIRECTORY, /run/pageferry for root, or
 *       $XDG_RUNTIME_DIR/pageferry
 * Those of processes that have ended are removed, whichever monitor they were for.
 * Return: true with @out; the journal is then open.
 */
bool ferry_journal_load(struct ferry_journal *j, const char *dir, enum ferry_side side,
			const char *qmp_path, struct ferry_journal_entry *out);

/**
 * ferry_journal_begin() - make the file, with phase BEGUN
 * @e: its session, n_bulk, paused and stop_ns are set; the rest is taken from @q
 * Errors: negative errno with the story in @f. Nothing then outlives us.
 */
int ferry_journal_begin(struct ferry_journal *j, const char *dir, enum ferry_side side,
			const char *qmp_path, const struct ferry_qemu *q,
			struct ferry_journal_entry *e, struct ferry_failure *f);

/* Write it again: one system call. Nothing happens when there is no file. */
void ferry_journal_update(struct ferry_journal *j, const struct ferry_journal_entry *e);

/* Close, and remove the file when it is of no more use. Twice is fine. */
void ferry_journal_close(struct ferry_journal *j, bool remove);

/* What is known of QEMU and its RAM from the entry; ->qmp is NULL and no file is open. */
void ferry_journal_qemu(const struct ferry_journal_entry *e, struct ferry_qemu *out);

#endif
