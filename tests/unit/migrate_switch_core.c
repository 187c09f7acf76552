/* SPDX-License-Identifier: Apache-2.0 */
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>

#include "migrate/switch_core.h"

static struct ferry_switch_actions step(struct ferry_switch *s, enum ferry_switch_event event)
{
	struct ferry_switch_actions a;

	cr_assert_eq(ferry_switch_step(s, event, &a), 0, "%s in %s", ferry_switch_event_name(event),
		     ferry_machine_state_name(&s->machine));
	return a;
}

static bool has(const struct ferry_switch_actions *a, enum ferry_switch_action action)
{
	return memchr(a->list, (int)action, a->n);
}

static const enum ferry_switch_event source_path[] = {
	FERRY_EV_CHECKED,    FERRY_EV_PREPARED, FERRY_EV_PAGES_OPEN, FERRY_EV_GUEST_STOPPED,
	FERRY_EV_STATE_SENT, FERRY_EV_LOADED,	FERRY_EV_RECORDED,   FERRY_EV_RUNNING,
	FERRY_EV_COMPLETE};

static const enum ferry_switch_event target_path[] = {
	FERRY_EV_CHECKED, FERRY_EV_PREPARE,    FERRY_EV_ATTACHED, FERRY_EV_STATE,
	FERRY_EV_STOPPED, FERRY_EV_STATE_END,  FERRY_EV_VMM_LOADED,
	FERRY_EV_COMMIT,  FERRY_EV_GUEST_RUNS, FERRY_EV_COMPLETE};

#define SOURCE_COMMIT 7 /* steps until it is the target's */
#define TARGET_COMMIT 8

static void walk(struct ferry_switch *s, enum ferry_side side, size_t n)
{
	ferry_switch_init(s, side);
	for (size_t i = 0; i < n; i++)
		step(s, side == FERRY_SIDE_SOURCE ? source_path[i] : target_path[i]);
}

Test(switch_core, the_good_way_ends_in_done)
{
	enum ferry_outcome outcome;
	struct ferry_switch s;

	walk(&s, FERRY_SIDE_SOURCE, sizeof(source_path) / sizeof(source_path[0]));
	cr_assert(ferry_switch_is_over(&s, &outcome));
	cr_assert_eq(outcome, FERRY_OUTCOME_DONE);
	walk(&s, FERRY_SIDE_TARGET, sizeof(target_path) / sizeof(target_path[0]));
	cr_assert(ferry_switch_is_over(&s, &outcome));
	cr_assert_eq(outcome, FERRY_OUTCOME_DONE);
}

Test(switch_core, ownership_passes_with_commit)
{
	struct ferry_switch s;

	for (size_t i = 0; i <= SOURCE_COMMIT; i++) {
		walk(&s, FERRY_SIDE_SOURCE, i);
		cr_assert_eq(ferry_switch_owns_guest(&s), i < SOURCE_COMMIT);
	}
	for (size_t i = 0; i <= TARGET_COMMIT; i++) {
		walk(&s, FERRY_SIDE_TARGET, i);
		cr_assert_eq(ferry_switch_owns_guest(&s), i >= TARGET_COMMIT);
	}
}

static const enum ferry_switch_event failures[] = {FERRY_EV_ABORT, FERRY_EV_PEER_LOST,
						   FERRY_EV_LINK_LOST, FERRY_EV_USER_STOP,
						   FERRY_EV_FAILED};

Test(switch_core, before_commit_every_failure_gives_the_guest_back)
{
	for (size_t i = 0; i < SOURCE_COMMIT; i++) {
		for (size_t k = 0; k < sizeof(failures) / sizeof(failures[0]); k++) {
			struct ferry_switch_actions a;
			enum ferry_outcome outcome;
			struct ferry_switch s;

			walk(&s, FERRY_SIDE_SOURCE, i);
			a = step(&s, failures[k]);
			cr_assert(ferry_switch_owns_guest(&s));
			/* Stopping is stage 3 of the path: from then on it must be resumed. */
			cr_assert_eq(has(&a, FERRY_DO_CONT_GUEST), i >= 3);
			cr_assert_eq(has(&a, FERRY_DO_CANCEL_STATE), i >= 3);
			cr_assert(has(&a, FERRY_DO_RESTORE_VMM));
			cr_assert_eq(has(&a, FERRY_DO_TELL_ABORT),
				     i >= 1 && failures[k] != FERRY_EV_ABORT);
			step(&s, FERRY_EV_UNDONE);
			cr_assert(ferry_switch_is_over(&s, &outcome));
			cr_assert_eq(outcome, FERRY_OUTCOME_AT_SOURCE);
		}
	}
}

/* A stream that still runs could stop the guest again; QEMU refuses to resume in the middle of it.
 */
Test(switch_core, the_stream_is_cancelled_before_the_guest_is_resumed)
{
	struct ferry_switch_actions a;
	struct ferry_switch s;
	const uint8_t *cancel, *cont;

	walk(&s, FERRY_SIDE_SOURCE, SOURCE_COMMIT - 1);
	a = step(&s, FERRY_EV_LINK_LOST);
	cancel = memchr(a.list, FERRY_DO_CANCEL_STATE, a.n);
	cont = memchr(a.list, FERRY_DO_CONT_GUEST, a.n);
	cr_assert(cancel && cont && cancel < cont);
}

Test(switch_core, after_commit_nothing_resumes_the_guest_at_the_source)
{
	for (size_t i = SOURCE_COMMIT; i < SOURCE_COMMIT + 2; i++) {
		for (unsigned int e = 0; e < FERRY_N_EVENTS; e++) {
			struct ferry_switch_actions a;
			struct ferry_switch s;

			walk(&s, FERRY_SIDE_SOURCE, i);
			if (ferry_switch_step(&s, (enum ferry_switch_event)e, &a) < 0)
				continue;
			cr_assert_not(has(&a, FERRY_DO_CONT_GUEST));
			cr_assert_not(ferry_switch_owns_guest(&s));
		}
	}
}

Test(switch_core, a_lost_link_after_commit_is_dialed_again_and_commit_repeated)
{
	struct ferry_switch_actions a;
	struct ferry_switch s;

	walk(&s, FERRY_SIDE_SOURCE, SOURCE_COMMIT);
	a = step(&s, FERRY_EV_LINK_LOST);
	cr_assert(has(&a, FERRY_DO_REDIAL));
	a = step(&s, FERRY_EV_LINK_UP);
	cr_assert(has(&a, FERRY_DO_SEND_COMMIT));
	step(&s, FERRY_EV_RUNNING);
	a = step(&s, FERRY_EV_LINK_LOST);
	cr_assert(has(&a, FERRY_DO_REDIAL));
	a = step(&s, FERRY_EV_LINK_UP);
	cr_assert(has(&a, FERRY_DO_SEND_COMMIT));
}

/* It can't know whether the source has committed. */
Test(switch_core, a_loaded_target_waits_and_never_runs_the_guest_by_itself)
{
	for (unsigned int e = 0; e < FERRY_N_EVENTS; e++) {
		struct ferry_switch_actions a;
		struct ferry_switch s;

		walk(&s, FERRY_SIDE_TARGET, TARGET_COMMIT - 1);
		if (ferry_switch_step(&s, (enum ferry_switch_event)e, &a) < 0)
			continue;
		cr_assert_eq(has(&a, FERRY_DO_RUN_GUEST), e == FERRY_EV_COMMIT);
		cr_assert_eq(ferry_switch_owns_guest(&s), e == FERRY_EV_COMMIT);
	}
}

Test(switch_core, a_loaded_target_outlives_its_link)
{
	struct ferry_switch_actions a;
	struct ferry_switch s;

	walk(&s, FERRY_SIDE_TARGET, TARGET_COMMIT - 1);
	a = step(&s, FERRY_EV_LINK_LOST);
	cr_assert_eq(a.n, 0);
	step(&s, FERRY_EV_LINK_UP);
	a = step(&s, FERRY_EV_COMMIT);
	cr_assert(has(&a, FERRY_DO_RUN_GUEST));
}

Test(switch_core, commit_said_twice_runs_the_guest_once)
{
	struct ferry_switch_actions a;
	struct ferry_switch s;

	walk(&s, FERRY_SIDE_TARGET, TARGET_COMMIT + 1);
	a = step(&s, FERRY_EV_COMMIT);
	cr_assert_not(has(&a, FERRY_DO_RUN_GUEST));
	cr_assert(has(&a, FERRY_DO_SEND_RUNNING));
}

Test(switch_core, before_commit_a_target_gives_up_everything)
{
	for (size_t i = 2; i < TARGET_COMMIT - 1; i++) {
		struct ferry_switch_actions a;
		enum ferry_outcome outcome;
		struct ferry_switch s;

		walk(&s, FERRY_SIDE_TARGET, i);
		a = step(&s, FERRY_EV_LINK_LOST);
		cr_assert(has(&a, FERRY_DO_ABANDON));
		cr_assert_eq(has(&a, FERRY_DO_DROP_LOAD), i >= 4);
		step(&s, FERRY_EV_UNDONE);
		cr_assert(ferry_switch_is_over(&s, &outcome));
		cr_assert_eq(outcome, FERRY_OUTCOME_AT_SOURCE);
	}
}

/* Memory that the guest may have run on is never given back to the kernel's zeros. */
Test(switch_core, after_commit_nothing_is_abandoned)
{
	for (size_t i = TARGET_COMMIT; i < TARGET_COMMIT + 2; i++) {
		for (unsigned int e = 0; e < FERRY_N_EVENTS; e++) {
			struct ferry_switch_actions a;
			struct ferry_switch s;

			walk(&s, FERRY_SIDE_TARGET, i);
			if (!ferry_switch_step(&s, (enum ferry_switch_event)e, &a))
				cr_assert_not(has(&a, FERRY_DO_ABANDON));
		}
	}
}

Test(switch_core, a_visitor_that_leaves_again_harms_nothing)
{
	struct ferry_switch_actions a;
	struct ferry_switch s;

	walk(&s, FERRY_SIDE_TARGET, 1);
	step(&s, FERRY_EV_LINK_UP);
	step(&s, FERRY_EV_ABORT); /* it means one before us */
	a = step(&s, FERRY_EV_LINK_LOST);
	cr_assert(has(&a, FERRY_DO_FREE_SEAT));
	a = step(&s, FERRY_EV_PREPARE);
	cr_assert(has(&a, FERRY_DO_ATTACH));
}

/* Of the source's record, and of its VMM. */
Test(switch_core, who_is_started_again_goes_by_the_record)
{
	static const struct {
		uint32_t phase;
		enum ferry_look_back ended, unheard, runs, stands, gave;
	} rows[] = {
		{0, FERRY_LOOK_BEGIN, FERRY_LOOK_BEGIN, FERRY_LOOK_BEGIN, FERRY_LOOK_BEGIN,
		 FERRY_LOOK_BEGIN},
		{FERRY_JOURNAL_SETTINGS, FERRY_LOOK_BEGIN, FERRY_LOOK_LATER, FERRY_LOOK_UNDO,
		 FERRY_LOOK_UNDO, FERRY_LOOK_UNDO},
		{FERRY_JOURNAL_BEGUN, FERRY_LOOK_BEGIN, FERRY_LOOK_LATER, FERRY_LOOK_UNDO,
		 FERRY_LOOK_UNDO, FERRY_LOOK_UNDO},
		{FERRY_JOURNAL_UNDONE, FERRY_LOOK_BEGIN, FERRY_LOOK_LATER, FERRY_LOOK_TELL,
		 FERRY_LOOK_TELL, FERRY_LOOK_TELL},
		{FERRY_JOURNAL_COMMITTED, FERRY_LOOK_LEAVE, FERRY_LOOK_LEAVE, FERRY_LOOK_LEAVE,
		 FERRY_LOOK_LEAVE, FERRY_LOOK_GO_ON},
		{FERRY_JOURNAL_COMPLETE, FERRY_LOOK_GO_ON, FERRY_LOOK_GO_ON, FERRY_LOOK_LEAVE,
		 FERRY_LOOK_GO_ON, FERRY_LOOK_GO_ON},
	};

	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		uint32_t p = rows[i].phase;

		cr_assert_eq(ferry_switch_look_back(p, FERRY_VMM_ENDED), rows[i].ended);
		cr_assert_eq(ferry_switch_look_back(p, FERRY_VMM_UNHEARD), rows[i].unheard);
		cr_assert_eq(ferry_switch_look_back(p, FERRY_VMM_RUNS), rows[i].runs);
		cr_assert_eq(ferry_switch_look_back(p, FERRY_VMM_STANDS), rows[i].stands);
		cr_assert_eq(ferry_switch_look_back(p, FERRY_VMM_GAVE), rows[i].gave);
	}
}

Test(switch_core, messages_out_of_place_change_nothing)
{
	static const enum ferry_switch_event messages[] = {
		FERRY_EV_PREPARE, FERRY_EV_PREPARED, FERRY_EV_STATE, FERRY_EV_STOPPED, FERRY_EV_STATE_END,
		FERRY_EV_LOADED,  FERRY_EV_COMMIT,   FERRY_EV_RUNNING};

	for (int side = FERRY_SIDE_SOURCE; side <= FERRY_SIDE_TARGET; side++) {
		size_t n = side == FERRY_SIDE_SOURCE ? SOURCE_COMMIT : TARGET_COMMIT;

		for (size_t i = 0; i < n; i++) {
			size_t legal = 0;

			for (size_t k = 0; k < sizeof(messages) / sizeof(messages[0]); k++) {
				struct ferry_switch_actions a;
				struct ferry_switch s;
				unsigned int before;

				walk(&s, (enum ferry_side)side, i);
				before = s.machine.state;
				if (!ferry_switch_step(&s, messages[k], &a))
					legal++;
				else
					cr_assert_eq(s.machine.state, before);
			}
			/* A paused guest's source may say Stopped before its device state begins. */
			cr_assert_leq(legal, side == FERRY_SIDE_TARGET && i == 3 ? 2 : 1);
		}
	}
}

Test(switch_core, a_qemu_that_dies)
{
	enum ferry_outcome outcome;
	struct ferry_switch s;

	/* At the source: the guest with it, until the target has it. */
	for (size_t i = 0; i < SOURCE_COMMIT; i++) {
		walk(&s, FERRY_SIDE_SOURCE, i);
		step(&s, FERRY_EV_VMM_GONE);
		cr_assert(ferry_switch_is_over(&s, &outcome));
		cr_assert_eq(outcome, FERRY_OUTCOME_LOST);
	}
	walk(&s, FERRY_SIDE_SOURCE, SOURCE_COMMIT + 1);
	step(&s, FERRY_EV_VMM_GONE);
	cr_assert_not(ferry_switch_is_over(&s, &outcome));
	/* At the target: the source keeps it, until the target has it. */
	for (size_t i = 1; i < TARGET_COMMIT; i++) {
		walk(&s, FERRY_SIDE_TARGET, i);
		step(&s, FERRY_EV_VMM_GONE);
		step(&s, FERRY_EV_UNDONE);
		cr_assert(ferry_switch_is_over(&s, &outcome));
		cr_assert_eq(outcome, FERRY_OUTCOME_AT_SOURCE);
	}
	walk(&s, FERRY_SIDE_TARGET, TARGET_COMMIT + 1);
	step(&s, FERRY_EV_VMM_GONE);
	cr_assert(ferry_switch_is_over(&s, &outcome));
	cr_assert_eq(outcome, FERRY_OUTCOME_LOST);
}

Test(switch_core, a_guest_that_cannot_be_run_is_filled_all_the_same)
{
	struct ferry_switch_actions a;
	enum ferry_outcome outcome;
	struct ferry_switch s;

	walk(&s, FERRY_SIDE_TARGET, TARGET_COMMIT);
	a = step(&s, FERRY_EV_RUN_REFUSED);
	cr_assert(has(&a, FERRY_DO_PUSH));
	cr_assert_not(has(&a, FERRY_DO_SEND_RUNNING));
	step(&s, FERRY_EV_COMPLETE);
	cr_assert(ferry_switch_is_over(&s, &outcome));
	cr_assert_eq(outcome, FERRY_OUTCOME_WAITS);
}

Test(switch_core, stages_are_entered_in_order_and_have_names)
{
	for (int side = FERRY_SIDE_SOURCE; side <= FERRY_SIDE_TARGET; side++) {
		size_t n = side == FERRY_SIDE_SOURCE ? 9 : 10;
		enum ferry_stage last = FERRY_STAGE_CHECK;

		for (size_t i = 0; i <= n; i++) {
			struct ferry_switch s;

			walk(&s, (enum ferry_side)side, i);
			cr_assert_geq(ferry_switch_stage(&s), last);
			last = ferry_switch_stage(&s);
		}
		cr_assert_eq(last, FERRY_STAGE_RELEASE);
	}
	for (int i = 0; i < FERRY_N_STAGES; i++)
		cr_assert(ferry_stages[i].name[0]);
	for (unsigned int e = 0; e < FERRY_N_EVENTS; e++)
		cr_assert_not_null(ferry_switch_event_name((enum ferry_switch_event)e));
}
