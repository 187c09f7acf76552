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
 *      |     <------------ Loaded --------------  LOADED
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

/* May the guest run on this side? Never true on both sides at once. */
bool ferry_switch_owns_guest(const struct ferry_switch *s);

/* Is there no way back any more, so that a lost link is dialed again instead of undoing? */
bool ferry_switch_is_committed(const struct ferry_switch *s);

/* Return: true with @outcome once nothing more happens. */
bool ferry_switch_is_over(const struct ferry_switch *s, enum ferry_outcome *outcome);

enum ferry_stage ferry_switch_stage(const struct ferry_switch *s);

const char *ferry_switch_event_name(enum ferry_switch_event event);

#endif
