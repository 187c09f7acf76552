/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The switchover of a QEMU guest: source side (migrate) and target side (receive).
 *
 *   stage         source                              target                      undo
 *   check         QMP, RAM layout; Prepare            QMP, RAM layout fits        close
 *   attach                                            userfaultfd into the VMM,   unregister
 *                 page connections                    register; Prepared
 *   stop          migrate to our socket, which stops  -                           cancel, cont
 *                 the guest
 *   device-state  serve pages; DeviceState            migrate-incoming; Loaded    -
 *   confirm       Commit: from here on never again    -                           none
 *   run           -                                   cont; Running               none
 *   push          serve                               push to the end             none
 *   release       Released                            unregister, leave           none
 *
 * QEMU sets its migration up while the guest still runs, some 20 ms, and then stops it by itself for its
 * devices. Its state says therefore that the guest was running: the target's QEMU is told to stand still.
 *
 * Ownership: the source owns the guest until it sends Commit, and the target from the moment it
 * reads it. Between the two, when the link breaks, neither runs it until they have spoken again.
 */
#ifndef FERRY_MIGRATE_SWITCHOVER_H
#define FERRY_MIGRATE_SWITCHOVER_H

#include <stdatomic.h>
#include <stdint.h>

#include "base/addr.h"
#include "base/error.h"
#include "base/log.h"
#include "pageserver/server.h"
#include "uffd/target.h"

enum ferry_stage {
	FERRY_STAGE_CHECK,
	FERRY_STAGE_ATTACH,
	FERRY_STAGE_STOP,
	FERRY_STAGE_DEVICE_STATE,
	FERRY_STAGE_CONFIRM,
	FERRY_STAGE_RUN,
	FERRY_STAGE_PUSH,
	FERRY_STAGE_RELEASE,
	FERRY_N_STAGES,
};

const char *ferry_stage_name(enum ferry_stage stage); /* as in the table above */

/* Where the guest is when a command ends; the value is the exit status. */
enum ferry_outcome {
	FERRY_OUTCOME_DONE = 0, /* the guest runs on the target, everything is resident */
	FERRY_OUTCOME_AT_SOURCE =
		1,		 /* failed; the guest runs on the source, or nothing was changed */
	FERRY_OUTCOME_WAITS = 3, /* the guest is on the target and waits for recovery */
	FERRY_OUTCOME_LOST = 4,
	/* the guest runs on the target with all of its memory, but that is not what the source has, or
	 * verifying it did not come to an end */
	FERRY_OUTCOME_UNVERIFIED = 5,
};

/* Called from the thread that called _run. */
struct ferry_switch_observer {
	void (*stage)(void *ctx, enum ferry_stage stage);
	/* About ten times a second from stage push on; the other side's pointer is NULL. */
	void (*progress)(void *ctx, const struct ferry_target_stats *target,
			 const struct ferry_server_stats *server);
	/*
	 * A target is there: its records of faults, NULL when it keeps none. Again, with NULL,
	 * before they go. May be NULL.
	 */
	void (*trace)(void *ctx, struct ferry_trace *trace);
	/* The source can't have some pages any more. May be NULL. */
	void (*lost)(void *ctx, const struct ferry_failure *f);
	void *ctx;
};

/* What to do about a switchover of this QEMU whose process was killed. */
enum ferry_recovery {
	FERRY_RECOVER_NOT,  /* leave it, and say how it is recovered */
	FERRY_RECOVER_ONLY, /* go on with it; without one, refuse */
	FERRY_RECOVER_ANY,  /* go on with it, or begin */
};

struct ferry_receive_config {
	const char *qmp_path;
	enum ferry_recovery recovery;
	struct ferry_addr address; /* that is listened on, for who recovers us */
	int listen_fd; /* borrowed */
	int stop_fd; /* readable: give up (before the guest runs), or leave (after); -1 for none */
	uint64_t max_bytes_per_second; /* of the push; 0: no limit */
	bool no_trace;		       /* keep no records of faults */
	bool no_large_pages;	       /* leave memory in small pages */
	struct ferry_tls *tls;	       /* of all connections; borrowed; NULL: plain */
	bool no_checksum;	       /* don't ask for checksums of pages */
	bool verify;		       /* compare all of it before the source is released */
	enum ferry_on_lost on_lost;    /* what becomes of a page that the source has lost */
	bool stop_on_lost;	       /* and the guest is stopped */
	bool source_lost;      /* on recovery: no source will come, what is missing is lost */
	const char *state_dir; /* for what must outlive us, see journal.h; NULL: a default */
	const struct ferry_log *log;
	struct ferry_switch_observer observer;
};

struct ferry_receive_result {
	uint64_t ram_bytes;
	uint64_t downtime_ns; /* estimate, see Running in the protocol */
	uint64_t total_ns;    /* from Prepare to the end */
	uint64_t attach_ns; /* the VMM was stopped for this long to get a userfaultfd, all in all */
	struct ferry_target_stats stats;
};

/* Serve one switchover. On any outcome but DONE @f says why. */
enum ferry_outcome ferry_receive_run(const struct ferry_receive_config *config,
				     struct ferry_receive_result *result, struct ferry_failure *f);

/* How others steer a migration that runs. Any thread. */
struct ferry_steering {
	_Atomic bool paused; /* the push waits; what the guest touches is sent all the same */
	_Atomic int fate;    /* enum ferry_fate: moves from OPEN once */
};

enum ferry_fate {
	FERRY_FATE_OPEN,
	FERRY_FATE_CANCELLED, /* it will not commit; who sets this makes ->stop_fd readable */
	FERRY_FATE_COMMITTED, /* the guest is given away */
};

struct ferry_migrate_config {
	const char *qmp_path;
	enum ferry_recovery recovery;
	struct ferry_addr to;
	struct ferry_steering *steering; /* borrowed; may be NULL */
	int stop_fd;	       /* readable: cancel (before Commit), or leave (after); -1 for none */
	uint32_t n_bulk;       /* bulk connections; 0: a default of 1 */
	struct ferry_tls *tls; /* as above */
	struct ferry_ring *ring; /* that pages are served through; borrowed; NULL: one is made */
	bool no_checksum;      /* don't offer checksums of pages */
	const char *state_dir; /* as above */
	const struct ferry_log *log;
	struct ferry_switch_observer observer;
};

struct ferry_migrate_result {
	uint64_t ram_bytes;
	uint64_t downtime_ns;
	uint64_t total_ns;
	uint64_t device_state_bytes;
	uint64_t stop_ns, device_state_ns, confirm_ns; /* how long each part of the downtime took */
	struct ferry_server_stats stats;
};

enum ferry_outcome ferry_migrate_run(const struct ferry_migrate_config *config,
				     struct ferry_migrate_result *result, struct ferry_failure *f);

#endif
