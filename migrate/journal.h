/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What must outlive our own death: one record for each QEMU that a switchover is under way for. A
 * command that is told to goes on where the last one was killed. The record has all that is needed
 * to serve faults again without asking QEMU, whose monitor may itself wait for a page.
 *
 * The source's record is what keeps it from ever running a guest again that it gave away: it is
 * written before the first byte of Commit, and read before anything is resumed. The file is named
 * after the monitor's socket (device and inode), is good for one process only, and is held for as
 * long as a command is at work: there is one at a time for a guest.
 */
#ifndef FERRY_MIGRATE_JOURNAL_H
#define FERRY_MIGRATE_JOURNAL_H

#include <stdint.h>

#include "base/addr.h"
#include "base/keep.h"
#include "migrate/qemu.h"
#include "migrate/qemu_setup.h"
#include "migrate/switch_core.h"
#include "protocol/message.h"

struct ferry_journal_region {
	struct ferry_region_desc desc;
	uint64_t start;
	uint32_t kind;
};

struct ferry_journal_entry {
	struct ferry_keep_head head; /* the process is QEMU */
	uint32_t phase;		     /* enum ferry_journal_phase */
	struct ferry_session_id session;
	uint32_t n_bulk;
	uint32_t takeovers; /* how often the session was taken over from a killed one */
	uint32_t paused;    /* not 0: the guest was paused by its user when it left */
	uint32_t encrypted; /* not 0: so the connections were, and must be again */
	uint64_t stop_ns;   /* source: when the guest was stopped; CLOCK_MONOTONIC */
	struct ferry_addr addr; /* source: the target's; target: where it listens */
	char settings[FERRY_QEMU_SETTINGS_MAX]; /* source: QEMU's, as they were: see qemu_setup.h */
	uint32_t n_regions;
	struct ferry_journal_region regions[FERRY_MAX_REGIONS];
};

struct ferry_journal {
	struct ferry_keep file;
	enum ferry_keep_state found; /* when it was opened */
};

#define FERRY_JOURNAL_NONE ((struct ferry_journal){.file = FERRY_KEEP_NONE})

/**
 * ferry_journal_open() - the record of the QEMU behind this monitor, from now on ours
 * @dir: NULL for the default, see base/keep.h
 * @out: what was there; ->phase is 0 when there was nothing that is whole
 * On success j->found tells whose it is; on error it is UNREAD where that is why.
 * Errors: -EBUSY (REFUSE) when another command is at work on this guest, others when there may be
 *         something that can't be read, in @f.
 */
int ferry_journal_open(struct ferry_journal *j, const char *dir, enum ferry_side side,
		       const char *qmp_path, struct ferry_journal_entry *out,
		       struct ferry_failure *f);

/* Look at it without holding it. */
enum ferry_keep_state ferry_journal_peek(const char *dir, enum ferry_side side,
					 const char *qmp_path, struct ferry_journal_entry *out);

/*
 * Is the guest on the target, or may it be, and lack pages, with nobody at work on that? By the
 * record of either side: a command that can't even begin must not say that the guest runs on the
 * source.
 */
bool ferry_journal_guest_waits(const char *dir, enum ferry_side side, const char *qmp_path);

/* Errors: -EPERM (REFUSE): what was encrypted is to go on without. @has_tls: it is not. */
int ferry_journal_check_encrypted(const struct ferry_journal_entry *e, bool has_tls,
				  struct ferry_failure *f);

/**
 * ferry_journal_begin() - the first record of a phase, SETTINGS or BEGUN
 * @e: its session, n_bulk, paused, stop_ns and addr are set; the rest is taken from @q
 * Errors: negative errno with the story in @f.
 */
int ferry_journal_begin(struct ferry_journal *j, enum ferry_journal_phase phase,
			const struct ferry_qemu *q, struct ferry_journal_entry *e,
			struct ferry_failure *f);

/* Write it again. On return it will be found. Errors: as above. */
int ferry_journal_update(struct ferry_journal *j, struct ferry_journal_entry *e,
			 struct ferry_failure *f);

/**
 * ferry_journal_map() - what the target knows of each page, kept with the record
 * See ferry_attach_record_map().
 */
int ferry_journal_map(const struct ferry_journal *j, const struct ferry_qemu *q, bool fresh,
		      void **out, size_t *bytes);

/* Let it go, and remove it when it is of no more use. Twice is fine. */
void ferry_journal_close(struct ferry_journal *j, bool remove);

/* What is known of QEMU and its RAM from the entry; ->qmp is NULL and no file is open. */
void ferry_journal_qemu(const struct ferry_journal_entry *e, struct ferry_qemu *out);

#endif
