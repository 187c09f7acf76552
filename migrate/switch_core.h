/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The deciding part of a switchover: what may happen when, who owns the guest, and what is to be
 * undone. Events in, actions out; no IO, no clock. tests/sim explores it on virtual time with links
 * cut and sides killed at every point.
 *
 * source                                        target
 *
 *   CHECKING                                      CHECKING
 *      |                                             |
 *   PREPARING ------------ Prepare ------------>  AWAITING
 *      |                                          ATTACHING
 *   CONNECTING <---------- Prepared ------------  PREPARED
 *      |                                             |
 *   STOPPING ------------- DeviceState ------->  STARTING
 *   SENDING -------------- Stopped ------------>  LOADING
 *      |     ------------- DeviceState ------->      |
 *   LOADING -------------- DeviceStateEnd ----->  FINISHING
 *   COMMITTING <---------- Loaded --------------  LOADED
 *      | the record is made                          |
 *  ====|===================================================== until here a failure is undone
 *   COMMITTED ------------ Commit ------------->  RUNNING ---> HELD (it could not be started)
 *   PUSHING <------------- Running -------------  PUSHING
 *      |                                             |
 *    DONE                                          DONE
 *
 * The source owns the guest until it enters COMMITTED, which it does before a byte of Commit is
 * sent; the target owns it once it enters RUNNING, which it does only on reading Commit. A source
 * in COMMITTED whose link breaks dials again and says Commit again; a target in LOADED waits for
 * that, and never gives up by itself: it can't know whether the source has committed.
 *
 * Either side may be killed between any two actions. RECORD is the action that makes what the next
 * one goes by (journal.h), so its place in a rule is what a restart finds; what that then does is
 * decided here as well.
 */
#ifndef FERRY_MIGRATE_SWITCH_CORE_H
#define FERRY_MIGRATE_SWITCH_CORE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/machine.h"
#include "migrate/switchover.h"
#include "protocol/message.h"

enum ferry_switch_source_state {
	FERRY_SRC_CHECKING,
	FERRY_SRC_PREPARING,
	FERRY_SRC_CONNECTING,
	FERRY_SRC_STOPPING,
	FERRY_SRC_SENDING,
	FERRY_SRC_LOADING,
	FERRY_SRC_COMMITTING,
	FERRY_SRC_COMMITTED,
	FERRY_SRC_PUSHING,
	FERRY_SRC_UNDOING,
	FERRY_SRC_DONE,
	FERRY_SRC_AT_SOURCE,
	FERRY_SRC_WAITS,
	FERRY_SRC_LOST,
	FERRY_SRC_N_STATES,
};

enum ferry_switch_target_state {
	FERRY_TGT_CHECKING,
	FERRY_TGT_AWAITING,
	FERRY_TGT_ATTACHING,
	FERRY_TGT_PREPARED,
	FERRY_TGT_STARTING,
	FERRY_TGT_LOADING,
	FERRY_TGT_FINISHING,
	FERRY_TGT_LOADED,
	FERRY_TGT_RUNNING,
	FERRY_TGT_PUSHING,
	FERRY_TGT_HELD,
	FERRY_TGT_UNDOING,
	FERRY_TGT_DONE,
	FERRY_TGT_AT_SOURCE,
	FERRY_TGT_WAITS,
	FERRY_TGT_LOST,
	FERRY_TGT_N_STATES,
};

extern const struct ferry_machine_def ferry_switch_source_machine;
extern const struct ferry_machine_def ferry_switch_target_machine;

/* How far a side came, as its record says: see journal.h. */
enum ferry_journal_phase {
	FERRY_JOURNAL_SETTINGS = 1, /* source: QEMU's settings may be changed; the guest is as it was */
	FERRY_JOURNAL_BEGUN,	 /* target: the RAM is registered; source: the guest is stopped */
	FERRY_JOURNAL_LOADING,	 /* target: QEMU was told to load the device state */
	FERRY_JOURNAL_LOADED,	 /* target: it has */
	FERRY_JOURNAL_COMMITTED, /* source: Commit may have been said; target: it was read */
	FERRY_JOURNAL_RUNS,	 /* target: the guest was started */
	FERRY_JOURNAL_UNDONE,	 /* source: the guest runs here, and the target was not told so */
	FERRY_JOURNAL_COMPLETE,	 /* source: the target has everything, and may have ended */
};

enum ferry_switch_event {
	FERRY_EV_NOTHING,
	/* here */
	FERRY_EV_CHECKED, /* the VMM is fit and set up */
	/* or it is in the middle of a switchover whose process was killed, and is taken over: */
	FERRY_EV_ORPHAN_LOADED,	   /* target: the guest is loaded */
	FERRY_EV_ORPHAN_COMMITTED, /* either: and Commit was said, or read */
	FERRY_EV_ORPHAN_RUNS,	   /* target: and it was started */
	FERRY_EV_ORPHAN_LEFT,	   /* either: but nobody asked for that */
	FERRY_EV_ATTACHED,	   /* target: the RAM is registered */
	FERRY_EV_PAGES_OPEN,	   /* source: the page connections are there */
	FERRY_EV_GUEST_STOPPED,
	FERRY_EV_RECORDED,   /* source: that the guest is given away */
	FERRY_EV_STATE_SENT, /* source: all of the device state, and the VMM says it is complete */
	FERRY_EV_VMM_LOADED, /* target: the VMM has read the device state */
	FERRY_EV_GUEST_RUNS,
	FERRY_EV_RUN_REFUSED, /* target: the VMM would not run the guest */
	FERRY_EV_COMPLETE,    /* every page is on the target */
	FERRY_EV_UNDONE,
	/* from the peer */
	FERRY_EV_PREPARE,
	FERRY_EV_PREPARED,
	FERRY_EV_STOPPED,
	FERRY_EV_STATE, /* the first piece of the device state */
	FERRY_EV_STATE_END,
	FERRY_EV_LOADED,
	FERRY_EV_COMMIT,
	FERRY_EV_RUNNING,
	FERRY_EV_ABORT,
	FERRY_EV_PEER_LOST, /* the peer said Error: it lost the guest */
	/* what may happen at any time */
	FERRY_EV_LINK_LOST, /* the switchover connection */
	FERRY_EV_LINK_UP,   /* again, in the same session */
	FERRY_EV_VMM_GONE,
	FERRY_EV_USER_STOP,
	FERRY_EV_FAILED, /* anything else that can't go on */
	FERRY_N_EVENTS,
};

enum ferry_switch_action {
	FERRY_DO_NOTHING,
	/* source */
	FERRY_DO_SEND_PREPARE,
	FERRY_DO_DIAL_PAGES,
	FERRY_DO_START_STATE, /* make the VMM write its device state, for which it stops the guest */
	FERRY_DO_SEND_STOPPED,
	FERRY_DO_SERVE_PAGES,
	FERRY_DO_SEND_STATE_END,
	FERRY_DO_SEND_COMMIT,
	FERRY_DO_REDIAL,
	FERRY_DO_CANCEL_STATE,
	FERRY_DO_CONT_GUEST,
	FERRY_DO_CLOSE_PAGES,
	/* target */
	FERRY_DO_FREE_SEAT, /* let another source try */
	FERRY_DO_ATTACH,
	FERRY_DO_ADOPT, /* the same, of RAM that is registered already and partly filled */
	FERRY_DO_SEND_PREPARED,
	FERRY_DO_START_LOAD,
	FERRY_DO_SEND_LOADED,
	FERRY_DO_RUN_GUEST,
	FERRY_DO_SEND_RUNNING,
	FERRY_DO_PUSH,
	FERRY_DO_DROP_LOAD,
	FERRY_DO_ABANDON,
	/* both */
	FERRY_DO_RECORD, /* write down ferry_switch_phase() */
	FERRY_DO_TELL_ABORT,
	FERRY_DO_TELL_LOST,
	FERRY_DO_RESTORE_VMM,
	FERRY_N_ACTIONS,
};

/* A stage, what either side does in it, and what undoes it there, in this order. */
struct ferry_stage_def {
	const char *name;
	const char *source;
	const char *target;
	uint8_t undo_source[3], undo_target[3]; /* enum ferry_switch_action; ends with NOTHING */
};

extern const struct ferry_stage_def ferry_stages[FERRY_N_STAGES];

#define FERRY_SWITCH_MAX_ACTIONS 8u

struct ferry_switch_actions {
	unsigned int n;
	uint8_t list[FERRY_SWITCH_MAX_ACTIONS]; /* enum ferry_switch_action, to be done in this
						   order */
};

struct ferry_switch {
	enum ferry_side side;
	struct ferry_machine machine; /* of that side's states */
};

void ferry_switch_init(struct ferry_switch *s, enum ferry_side side);

/**
 * ferry_switch_step() - something happened
 * The state has moved before any action is done.
 * Return: 0 with @out (perhaps empty).
 * Errors: -EPROTO: that can't happen now. Nothing has changed.
 */
int ferry_switch_step(struct ferry_switch *s, enum ferry_switch_event event,
		      struct ferry_switch_actions *out);

/* What RECORD writes down in this state; 0 in those that have no record of their own. */
enum ferry_journal_phase ferry_switch_phase(const struct ferry_switch *s);

/* What the source's VMM does when one is started after another that was killed. */
enum ferry_vmm_look {
	FERRY_VMM_ENDED,   /* there is none, or another one */
	FERRY_VMM_UNHEARD, /* it can't be asked */
	FERRY_VMM_RUNS,
	FERRY_VMM_STANDS,
	FERRY_VMM_GAVE, /* it stands, has written its devices away, and has not run since */
};

enum ferry_look_back {
	FERRY_LOOK_BEGIN,  /* there is nothing to be done before a new switchover begins */
	FERRY_LOOK_TELL,   /* the target is told that the guest stayed here; then one may begin */
	FERRY_LOOK_UNDO,   /* the same, and if the guest stands still it is resumed before */
	FERRY_LOOK_LATER,  /* one of these, but not now: the record is kept for the next one */
	FERRY_LOOK_GO_ON,  /* the guest was given away: ORPHAN_COMMITTED, if that is asked for */
	FERRY_LOOK_LEAVE,  /* it was, and can't be served: ORPHAN_LEFT, the record is kept */
};

/* What the source's record asks for. @phase: enum ferry_journal_phase; 0: there is none. */
enum ferry_look_back ferry_switch_look_back(uint32_t phase, enum ferry_vmm_look vmm);

/* What the target's record amounts to, to go on: ORPHAN_*; NOTHING: to begin anew. */
enum ferry_switch_event ferry_switch_orphan(uint32_t phase);

/* May the guest run on this side? Never true on both sides at once. */
bool ferry_switch_owns_guest(const struct ferry_switch *s);

/* Is there no way back any more, so that a lost link is dialed again instead of undoing? */
bool ferry_switch_is_committed(const struct ferry_switch *s);

/* Return: true with @outcome once nothing more happens. */
bool ferry_switch_is_over(const struct ferry_switch *s, enum ferry_outcome *outcome);

enum ferry_stage ferry_switch_stage(const struct ferry_switch *s);

const char *ferry_switch_event_name(enum ferry_switch_event event);

#endif
