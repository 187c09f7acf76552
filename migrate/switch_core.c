/* SPDX-License-Identifier: Apache-2.0 */
#include "migrate/switch_core.h"

#include <errno.h>

#include "base/util.h"

#define DO(a) FERRY_DO_##a
#define EV(e) FERRY_EV_##e

/* --- stages --------------------------------------------------------------------------------- */

const struct ferry_stage_def ferry_stages[FERRY_N_STAGES] = {
	[FERRY_STAGE_CHECK] = {"check",
			       "look at the VMM, set it up, send Prepare",
			       "look at the VMM, set it up, wait for Prepare",
			       {DO(RESTORE_VMM)},
			       {DO(RESTORE_VMM)}},
	[FERRY_STAGE_ATTACH] = {"attach",
				"open the page connections",
				"register the RAM with userfaultfd, send Prepared",
				{DO(TELL_ABORT), DO(CLOSE_PAGES)},
				{DO(TELL_ABORT), DO(ABANDON)}},
	[FERRY_STAGE_STOP] =
		{"stop",
		 "let the VMM write its device state and stop the guest for it, send Stopped",
		 "",
		 {DO(CANCEL_STATE), DO(CONT_GUEST)},
		 {0}},
	[FERRY_STAGE_DEVICE_STATE] = {"device-state",
				      "serve pages, send what the VMM writes, wait for Loaded",
				      "let the VMM load it, send Loaded",
				      {0},
				      {DO(DROP_LOAD)}},
	[FERRY_STAGE_CONFIRM] = {"confirm",
				 "send Commit: from here on never again run the guest",
				 "wait for Commit, for as long as it takes",
				 {0},
				 {0}},
	[FERRY_STAGE_RUN] = {"run", "", "run the guest, send Running", {0}, {0}},
	[FERRY_STAGE_PUSH] = {"push", "serve pages", "fetch what is missing", {0}, {0}},
	[FERRY_STAGE_RELEASE] = {"release", "leave", "leave", {0}, {0}},
};

const char *ferry_stage_name(enum ferry_stage stage)
{
	return ferry_stages[stage].name;
}

/* --- states --------------------------------------------------------------------------------- */

#define TO(s) FERRY_STATE_BIT(FERRY_SRC_##s)
/* Any failure before the commit; the death of the VMM takes the guest with it. */
#define FAIL (TO(UNDOING) | TO(LOST))

static const struct ferry_state_def source_states[FERRY_SRC_N_STATES] = {
	[FERRY_SRC_CHECKING] = {"checking", "looking at the VMM",
				TO(PREPARING) | TO(COMMITTED) | TO(WAITS) | FAIL},
	[FERRY_SRC_PREPARING] = {"preparing", "Prepare is sent; the target attaches",
				 TO(CONNECTING) | FAIL},
	[FERRY_SRC_CONNECTING] = {"connecting", "opening the page connections",
				  TO(STOPPING) | FAIL},
	[FERRY_SRC_STOPPING] = {"stopping", "the VMM begins its device state, and stops the guest", TO(SENDING) | FAIL},
	[FERRY_SRC_SENDING] = {"sending", "the guest stands still; its device state is on its way",
			       TO(LOADING) | FAIL},
	[FERRY_SRC_LOADING] = {"loading", "all is sent; Loaded is awaited", TO(COMMITTING) | FAIL},
	[FERRY_SRC_COMMITTING] = {"committing", "that the guest is given away is being recorded",
				  TO(COMMITTED) | FAIL},
	[FERRY_SRC_COMMITTED] = {"committed", "Commit is said and not yet confirmed",
				 TO(COMMITTED) | TO(PUSHING) | TO(DONE) | TO(WAITS) | TO(LOST)},
	[FERRY_SRC_PUSHING] = {"pushing", "the guest runs on the target and gets its pages",
			       TO(PUSHING) | TO(DONE) | TO(WAITS) | TO(LOST)},
	[FERRY_SRC_UNDOING] = {"undoing", "the guest is given back to the source's VMM",
			       TO(AT_SOURCE) | TO(LOST)},
	[FERRY_SRC_DONE] = {"done", "the target has everything", 0},
	[FERRY_SRC_AT_SOURCE] = {"at-source", "the guest is where it was", 0},
	[FERRY_SRC_WAITS] = {"waits", "the guest is the target's and waits for recovery", 0},
	[FERRY_SRC_LOST] = {"lost", "the guest is gone", 0},
};

const struct ferry_machine_def ferry_switch_source_machine = {"switchover-source", source_states,
							      FERRY_SRC_N_STATES};

#undef TO
#undef FAIL
#define TO(s) FERRY_STATE_BIT(FERRY_TGT_##s)

static const struct ferry_state_def target_states[FERRY_TGT_N_STATES] = {
	[FERRY_TGT_CHECKING] = {"checking", "looking at the VMM",
				TO(AWAITING) | TO(LOADED) | TO(RUNNING) | TO(PUSHING) |
					TO(UNDOING) | TO(WAITS)},
	[FERRY_TGT_AWAITING] = {"awaiting", "no source has come yet",
				TO(AWAITING) | TO(ATTACHING) | TO(UNDOING)},
	[FERRY_TGT_ATTACHING] = {"attaching", "the RAM is being registered",
				 TO(PREPARED) | TO(UNDOING)},
	[FERRY_TGT_PREPARED] = {"prepared", "faults are served; the source may stop the guest",
				TO(PREPARED) | TO(STARTING) | TO(LOADING) | TO(UNDOING)},
	[FERRY_TGT_STARTING] = {"starting",
				"device state goes into the VMM; the source has yet to stop the guest",
				TO(STARTING) | TO(LOADING) | TO(UNDOING)},
	[FERRY_TGT_LOADING] = {"loading", "device state goes into the VMM",
			       TO(LOADING) | TO(FINISHING) | TO(UNDOING)},
	[FERRY_TGT_FINISHING] = {"finishing", "the VMM has all of it and loads",
				 TO(FINISHING) | TO(LOADED) | TO(UNDOING)},
	[FERRY_TGT_LOADED] = {"loaded", "the guest could run; Commit is awaited",
			      TO(LOADED) | TO(RUNNING) | TO(UNDOING) | TO(WAITS)},
	[FERRY_TGT_RUNNING] = {"running", "the guest is ours and is being started",
			       TO(RUNNING) | TO(PUSHING) | TO(HELD) | TO(WAITS) | TO(LOST)},
	[FERRY_TGT_PUSHING] = {"pushing", "the guest runs and gets its pages",
			       TO(PUSHING) | TO(DONE) | TO(WAITS) | TO(LOST)},
	[FERRY_TGT_HELD] = {"held",
			    "the guest is ours and the VMM refuses to run it; it gets its pages",
			    TO(HELD) | TO(WAITS) | TO(LOST)},
	[FERRY_TGT_UNDOING] = {"undoing", "the VMM is given back as far as that is possible",
			       TO(AT_SOURCE)},
	[FERRY_TGT_DONE] = {"done", "everything is here", 0},
	[FERRY_TGT_AT_SOURCE] = {"at-source", "the guest has stayed with the source", 0},
	[FERRY_TGT_WAITS] = {"waits", "the guest is here and waits for recovery", 0},
	[FERRY_TGT_LOST] = {"lost", "the guest is gone", 0},
};

const struct ferry_machine_def ferry_switch_target_machine = {"switchover-target", target_states,
							      FERRY_TGT_N_STATES};

#undef TO

/* --- rules ---------------------------------------------------------------------------------- */

struct rule {
	uint8_t state, event, next;
	uint8_t actions[4]; /* ends with NOTHING */
};

#define RULE(state, event, next, ...)                                                              \
	{                                                                                          \
		FERRY_SRC_##state, FERRY_EV_##event, FERRY_SRC_##next,                             \
		{                                                                                  \
			__VA_ARGS__                                                                \
		}                                                                                  \
	}

static const struct rule source_rules[] = {
	RULE(CHECKING, CHECKED, PREPARING, DO(SEND_PREPARE)),
	RULE(CHECKING, ORPHAN_COMMITTED, COMMITTED, DO(DIAL_PAGES), DO(REDIAL)),
	RULE(CHECKING, ORPHAN_LEFT, WAITS, 0),
	RULE(PREPARING, PREPARED, CONNECTING, DO(DIAL_PAGES)),
	RULE(CONNECTING, PAGES_OPEN, STOPPING, DO(RECORD), DO(START_STATE)),
	RULE(STOPPING, GUEST_STOPPED, SENDING, DO(SEND_STOPPED), DO(SERVE_PAGES)),
	RULE(SENDING, STATE_SENT, LOADING, DO(SEND_STATE_END)),
	RULE(LOADING, LOADED, COMMITTING, DO(RECORD)),
	RULE(COMMITTING, RECORDED, COMMITTED, DO(SEND_COMMIT)),

	RULE(COMMITTED, RUNNING, PUSHING, 0),
	RULE(COMMITTED, LINK_LOST, COMMITTED, DO(REDIAL)),
	RULE(COMMITTED, LINK_UP, COMMITTED, DO(SEND_COMMIT)),
	/* It takes pages to the end only with a Commit. */
	RULE(COMMITTED, COMPLETE, DONE, 0),
	RULE(COMMITTED, VMM_GONE, COMMITTED, 0), /* we still have its memory */
	RULE(COMMITTED, ABORT, LOST, 0),
	RULE(COMMITTED, PEER_LOST, LOST, 0),
	RULE(COMMITTED, USER_STOP, WAITS, 0),
	RULE(COMMITTED, FAILED, WAITS, 0),

	RULE(PUSHING, RUNNING, PUSHING, 0),
	RULE(PUSHING, LINK_LOST, PUSHING, DO(REDIAL)),
	RULE(PUSHING, LINK_UP, PUSHING, DO(SEND_COMMIT)),
	RULE(PUSHING, COMPLETE, DONE, 0),
	RULE(PUSHING, VMM_GONE, PUSHING, 0),
	RULE(PUSHING, PEER_LOST, LOST, 0),
	RULE(PUSHING, USER_STOP, WAITS, 0),
	RULE(PUSHING, FAILED, WAITS, 0),

	RULE(UNDOING, UNDONE, AT_SOURCE, 0),
	RULE(UNDOING, VMM_GONE, LOST, 0),
};

#undef RULE
#define RULE(state, event, next, ...)                                                              \
	{                                                                                          \
		FERRY_TGT_##state, FERRY_EV_##event, FERRY_TGT_##next,                             \
		{                                                                                  \
			__VA_ARGS__                                                                \
		}                                                                                  \
	}

static const struct rule target_rules[] = {
	RULE(CHECKING, CHECKED, AWAITING, 0),
	RULE(CHECKING, ORPHAN_LOADED, LOADED, DO(ADOPT)),
	RULE(CHECKING, ORPHAN_COMMITTED, RUNNING, DO(ADOPT), DO(RUN_GUEST)),
	RULE(CHECKING, ORPHAN_RUNS, PUSHING, DO(ADOPT), DO(PUSH)),
	RULE(CHECKING, ORPHAN_LEFT, WAITS, 0),
	RULE(AWAITING, LINK_UP, AWAITING, 0),
	/* Whoever it was, it left before it wanted anything. */
	RULE(AWAITING, LINK_LOST, AWAITING, DO(FREE_SEAT)),
	/* Or it is a source that was started again, and means one before us. */
	RULE(AWAITING, ABORT, AWAITING, 0),
	RULE(AWAITING, PREPARE, ATTACHING, DO(ATTACH)),
	RULE(ATTACHING, ATTACHED, PREPARED, DO(RECORD), DO(SEND_PREPARED)),
	RULE(PREPARED, LINK_UP, PREPARED, 0),
	RULE(PREPARED, STATE, STARTING, DO(RECORD), DO(START_LOAD)),
	RULE(PREPARED, STOPPED, LOADING, DO(RECORD), DO(START_LOAD)),
	RULE(STARTING, LINK_UP, STARTING, 0),
	RULE(STARTING, STOPPED, LOADING, 0),
	RULE(LOADING, LINK_UP, LOADING, 0),
	RULE(LOADING, STATE_END, FINISHING, 0),
	RULE(FINISHING, LINK_UP, FINISHING, 0),
	RULE(FINISHING, VMM_LOADED, LOADED, DO(RECORD), DO(SEND_LOADED)),

	RULE(LOADED, LINK_LOST, LOADED, 0),
	RULE(LOADED, LINK_UP, LOADED, 0),
	RULE(LOADED, COMMIT, RUNNING, DO(RECORD), DO(RUN_GUEST)),
	RULE(LOADED, USER_STOP, WAITS, 0),
	RULE(LOADED, FAILED, WAITS, 0),

	RULE(RUNNING, GUEST_RUNS, PUSHING, DO(RECORD), DO(SEND_RUNNING), DO(PUSH)),
	RULE(RUNNING, RUN_REFUSED, HELD, DO(PUSH)),
	RULE(RUNNING, LINK_LOST, RUNNING, 0),
	RULE(RUNNING, LINK_UP, RUNNING, 0),
	RULE(RUNNING, VMM_GONE, LOST, DO(TELL_LOST)),
	RULE(RUNNING, USER_STOP, WAITS, 0),
	RULE(RUNNING, FAILED, WAITS, 0),

	RULE(PUSHING, LINK_LOST, PUSHING, 0),
	RULE(PUSHING, LINK_UP, PUSHING, 0),
	RULE(PUSHING, COMMIT, PUSHING, DO(SEND_RUNNING)),
	RULE(PUSHING, COMPLETE, DONE, DO(RESTORE_VMM)),
	RULE(PUSHING, VMM_GONE, LOST, DO(TELL_LOST)),
	RULE(PUSHING, USER_STOP, WAITS, 0),
	RULE(PUSHING, FAILED, WAITS, 0),

	RULE(HELD, LINK_LOST, HELD, 0),
	RULE(HELD, LINK_UP, HELD, 0),
	RULE(HELD, COMMIT, HELD, 0),
	RULE(HELD, COMPLETE, WAITS, DO(RESTORE_VMM)),
	RULE(HELD, VMM_GONE, LOST, DO(TELL_LOST)),
	RULE(HELD, USER_STOP, WAITS, 0),
	RULE(HELD, FAILED, WAITS, 0),

	RULE(UNDOING, UNDONE, AT_SOURCE, 0),
	RULE(UNDOING, VMM_GONE, AT_SOURCE, 0),
};

#undef RULE

/* How far either side has come in each state; what was begun is undone. */
static const uint8_t source_stages[FERRY_SRC_N_STATES] = {
	[FERRY_SRC_CHECKING] = FERRY_STAGE_CHECK,
	[FERRY_SRC_PREPARING] = FERRY_STAGE_ATTACH,
	[FERRY_SRC_CONNECTING] = FERRY_STAGE_ATTACH,
	[FERRY_SRC_STOPPING] = FERRY_STAGE_STOP,
	[FERRY_SRC_SENDING] = FERRY_STAGE_DEVICE_STATE,
	[FERRY_SRC_LOADING] = FERRY_STAGE_DEVICE_STATE,
	[FERRY_SRC_COMMITTING] = FERRY_STAGE_DEVICE_STATE,
	[FERRY_SRC_COMMITTED] = FERRY_STAGE_CONFIRM,
	[FERRY_SRC_PUSHING] = FERRY_STAGE_PUSH,
	[FERRY_SRC_DONE] = FERRY_STAGE_RELEASE,
};

static const uint8_t target_stages[FERRY_TGT_N_STATES] = {
	[FERRY_TGT_CHECKING] = FERRY_STAGE_CHECK,
	[FERRY_TGT_AWAITING] = FERRY_STAGE_CHECK,
	[FERRY_TGT_ATTACHING] = FERRY_STAGE_ATTACH,
	[FERRY_TGT_PREPARED] = FERRY_STAGE_STOP,
	[FERRY_TGT_STARTING] = FERRY_STAGE_DEVICE_STATE,
	[FERRY_TGT_LOADING] = FERRY_STAGE_DEVICE_STATE,
	[FERRY_TGT_FINISHING] = FERRY_STAGE_DEVICE_STATE,
	[FERRY_TGT_LOADED] = FERRY_STAGE_CONFIRM,
	[FERRY_TGT_RUNNING] = FERRY_STAGE_RUN,
	[FERRY_TGT_PUSHING] = FERRY_STAGE_PUSH,
	[FERRY_TGT_HELD] = FERRY_STAGE_PUSH,
	[FERRY_TGT_DONE] = FERRY_STAGE_RELEASE,
};

/* --- what outlives us ------------------------------------------------------------------------ */

static const uint8_t source_phases[FERRY_SRC_N_STATES] = {
	[FERRY_SRC_STOPPING] = FERRY_JOURNAL_BEGUN,
	[FERRY_SRC_COMMITTING] = FERRY_JOURNAL_COMMITTED,
};

static const uint8_t target_phases[FERRY_TGT_N_STATES] = {
	[FERRY_TGT_PREPARED] = FERRY_JOURNAL_BEGUN,    [FERRY_TGT_STARTING] = FERRY_JOURNAL_LOADING,
	[FERRY_TGT_LOADING] = FERRY_JOURNAL_LOADING,   [FERRY_TGT_LOADED] = FERRY_JOURNAL_LOADED,
	[FERRY_TGT_RUNNING] = FERRY_JOURNAL_COMMITTED, [FERRY_TGT_PUSHING] = FERRY_JOURNAL_RUNS,
};

enum ferry_journal_phase ferry_switch_phase(const struct ferry_switch *s)
{
	const uint8_t *phases = s->side == FERRY_SIDE_SOURCE ? source_phases : target_phases;

	return (enum ferry_journal_phase)phases[s->machine.state];
}

enum ferry_look_back ferry_switch_look_back(uint32_t phase, enum ferry_vmm_look vmm)
{
	switch (phase) {
	case FERRY_JOURNAL_COMMITTED:
		return vmm == FERRY_VMM_GAVE ? FERRY_LOOK_GO_ON : FERRY_LOOK_LEAVE;
	case FERRY_JOURNAL_COMPLETE:
		/* Nothing of it is needed any more. */
		return vmm == FERRY_VMM_RUNS ? FERRY_LOOK_LEAVE : FERRY_LOOK_GO_ON;
	default:
		break;
	}
	if (!phase || vmm == FERRY_VMM_ENDED)
		return FERRY_LOOK_BEGIN;
	if (vmm == FERRY_VMM_UNHEARD)
		return FERRY_LOOK_LATER;
	return phase == FERRY_JOURNAL_UNDONE ? FERRY_LOOK_TELL : FERRY_LOOK_UNDO;
}

enum ferry_switch_event ferry_switch_orphan(uint32_t phase)
{
	switch (phase) {
	case FERRY_JOURNAL_LOADED:
		return FERRY_EV_ORPHAN_LOADED;
	case FERRY_JOURNAL_COMMITTED:
		return FERRY_EV_ORPHAN_COMMITTED;
	case FERRY_JOURNAL_RUNS:
		return FERRY_EV_ORPHAN_RUNS;
	default:
		return FERRY_EV_NOTHING;
	}
}

/* --- stepping ------------------------------------------------------------------------------- */

void ferry_switch_init(struct ferry_switch *s, enum ferry_side side)
{
	*s = (struct ferry_switch){.side = side};
	if (side == FERRY_SIDE_SOURCE)
		ferry_machine_init(&s->machine, &ferry_switch_source_machine, FERRY_SRC_CHECKING);
	else
		ferry_machine_init(&s->machine, &ferry_switch_target_machine, FERRY_TGT_CHECKING);
}

static const struct rule *find_rule(const struct ferry_switch *s, enum ferry_switch_event event)
{
	bool source = s->side == FERRY_SIDE_SOURCE;
	const struct rule *rules = source ? source_rules : target_rules;
	size_t n = source ? FERRY_ARRAY_SIZE(source_rules) : FERRY_ARRAY_SIZE(target_rules);

	for (size_t i = 0; i < n; i++) {
		if (rules[i].state == s->machine.state && rules[i].event == event)
			return &rules[i];
	}
	return NULL;
}

static void append(struct ferry_switch_actions *out, const uint8_t *list, size_t max,
		   enum ferry_switch_event event)
{
	for (size_t i = 0; i < max && list[i] != FERRY_DO_NOTHING; i++) {
		/* Who has said Abort knows. */
		if (list[i] != FERRY_DO_TELL_ABORT || event != FERRY_EV_ABORT)
			out->list[out->n++] = list[i];
	}
}

static bool is_undoable(const struct ferry_switch *s)
{
	if (s->side == FERRY_SIDE_SOURCE)
		return s->machine.state < FERRY_SRC_COMMITTED;
	return s->machine.state <= FERRY_TGT_LOADED;
}

static bool is_failure(enum ferry_switch_event event)
{
	return event == FERRY_EV_ABORT || event == FERRY_EV_PEER_LOST ||
	       event == FERRY_EV_LINK_LOST || event == FERRY_EV_VMM_GONE ||
	       event == FERRY_EV_USER_STOP || event == FERRY_EV_FAILED;
}

/* The stages that were begun, the last one first. */
static int undo(struct ferry_switch *s, enum ferry_switch_event event,
		struct ferry_switch_actions *out)
{
	bool source = s->side == FERRY_SIDE_SOURCE;
	int stage = (int)ferry_switch_stage(s);

	if (source && event == FERRY_EV_VMM_GONE) {
		/* There is nothing to give the guest back to. */
		static const uint8_t rest[] = {DO(TELL_ABORT), DO(CLOSE_PAGES)};

		append(out, rest, sizeof(rest), event);
		return ferry_machine_move(&s->machine, FERRY_SRC_LOST);
	}
	for (; stage >= 0; stage--) {
		const struct ferry_stage_def *d = &ferry_stages[stage];

		append(out, source ? d->undo_source : d->undo_target, sizeof(d->undo_source),
		       event);
	}
	return ferry_machine_move(&s->machine,
				  source ? (unsigned int)FERRY_SRC_UNDOING : FERRY_TGT_UNDOING);
}

int ferry_switch_step(struct ferry_switch *s, enum ferry_switch_event event,
		      struct ferry_switch_actions *out)
{
	const struct rule *r = find_rule(s, event);

	*out = (struct ferry_switch_actions){0};
	if (r) {
		append(out, r->actions, sizeof(r->actions), event);
		return ferry_machine_move(&s->machine, r->next);
	}
	if (is_failure(event) && is_undoable(s))
		return undo(s, event, out);
	return -EPROTO;
}

/* --- questions ------------------------------------------------------------------------------ */

bool ferry_switch_owns_guest(const struct ferry_switch *s)
{
	unsigned int state = s->machine.state;

	if (s->side == FERRY_SIDE_SOURCE)
		return state < FERRY_SRC_COMMITTED || state == FERRY_SRC_UNDOING ||
		       state == FERRY_SRC_AT_SOURCE;
	return state == FERRY_TGT_RUNNING || state == FERRY_TGT_PUSHING ||
	       state == FERRY_TGT_HELD || state == FERRY_TGT_DONE;
}

bool ferry_switch_is_committed(const struct ferry_switch *s)
{
	if (s->side == FERRY_SIDE_SOURCE)
		return s->machine.state == FERRY_SRC_COMMITTED ||
		       s->machine.state == FERRY_SRC_PUSHING;
	return s->machine.state >= FERRY_TGT_LOADED && s->machine.state <= FERRY_TGT_HELD;
}

bool ferry_switch_is_over(const struct ferry_switch *s, enum ferry_outcome *outcome)
{
	static const enum ferry_outcome outcomes[] = {FERRY_OUTCOME_DONE, FERRY_OUTCOME_AT_SOURCE,
						      FERRY_OUTCOME_WAITS, FERRY_OUTCOME_LOST};
	unsigned int first =
		s->side == FERRY_SIDE_SOURCE ? (unsigned int)FERRY_SRC_DONE : FERRY_TGT_DONE;

	if (s->machine.state < first)
		return false;
	*outcome = outcomes[s->machine.state - first];
	return true;
}

enum ferry_stage ferry_switch_stage(const struct ferry_switch *s)
{
	return s->side == FERRY_SIDE_SOURCE ? source_stages[s->machine.state]
					    : target_stages[s->machine.state];
}

const char *ferry_switch_event_name(enum ferry_switch_event event)
{
	static const char *const names[FERRY_N_EVENTS] = {
		[EV(NOTHING)] = "nothing",
		[EV(CHECKED)] = "checked",
		[EV(ORPHAN_LOADED)] = "taken over, loaded",
		[EV(ORPHAN_COMMITTED)] = "taken over, committed",
		[EV(ORPHAN_RUNS)] = "taken over, running",
		[EV(ORPHAN_LEFT)] = "not taken over",
		[EV(ATTACHED)] = "attached",
		[EV(PAGES_OPEN)] = "page connections open",
		[EV(GUEST_STOPPED)] = "guest stopped",
		[EV(RECORDED)] = "recorded",
		[EV(STATE_SENT)] = "device state sent",
		[EV(VMM_LOADED)] = "VMM loaded",
		[EV(GUEST_RUNS)] = "guest runs",
		[EV(RUN_REFUSED)] = "VMM refuses to run",
		[EV(COMPLETE)] = "complete",
		[EV(UNDONE)] = "undone",
		[EV(PREPARE)] = "Prepare",
		[EV(PREPARED)] = "Prepared",
		[EV(STOPPED)] = "Stopped",
		[EV(STATE)] = "DeviceState",
		[EV(STATE_END)] = "DeviceStateEnd",
		[EV(LOADED)] = "Loaded",
		[EV(COMMIT)] = "Commit",
		[EV(RUNNING)] = "Running",
		[EV(ABORT)] = "Abort",
		[EV(PEER_LOST)] = "peer lost the guest",
		[EV(LINK_LOST)] = "link lost",
		[EV(LINK_UP)] = "link up",
		[EV(VMM_GONE)] = "VMM gone",
		[EV(USER_STOP)] = "stopped by the user",
		[EV(FAILED)] = "failed",
	};

	return names[event];
}
