/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The target's side of a switchover: asks the core what to do, does it, waits for what happens.
 *
 * Threads: this one; the acceptor's, which lets connections in; the engine's, which serve faults
 * from the moment the RAM is registered. So QEMU may touch any page while it loads the device
 * state, and this thread may wait for QEMU, without either waiting for the other.
 */
#include "migrate/switch_target.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/net.h"
#include "base/util.h"

#define TICK_MS		   100	 /* between two looks at the progress */
#define REMIND_S	   30	 /* between two words about a source that is silent */
#define PREPARE_TIMEOUT_MS 10000 /* for whoever took the seat to say what it wants */

/* --- what may happen ------------------------------------------------------------------------ */

static enum ferry_switch_event on_state_end(struct ferry_switch_target *s)
{
	if (s->m.device_state_end.total_bytes == s->load_bytes)
		return FERRY_EV_STATE_END;
	ferry_fail(&s->why, FERRY_REFUSE, -EPROTO,
		   "the source sent %" PRIu64 " bytes of device state, of which %" PRIu64 " came",
		   s->m.device_state_end.total_bytes, s->load_bytes);
	return FERRY_EV_FAILED;
}

enum ferry_switch_event ferry_target_side_message(struct ferry_switch_target *s)
{
	switch (s->m.type) {
	case FERRY_FRAME_PREPARE:
		return FERRY_EV_PREPARE;
	case FERRY_FRAME_STOPPED:
		return FERRY_EV_STOPPED;
	case FERRY_FRAME_DEVICE_STATE:
		if (s->core.machine.state == FERRY_TGT_PREPARED)
			return FERRY_EV_STATE; /* START_LOAD takes it from ->m */
		return ferry_target_side_load(s, s->m.payload, s->m.payload_bytes);
	case FERRY_FRAME_DEVICE_STATE_END:
		return on_state_end(s);
	case FERRY_FRAME_COMMIT:
		if (s->core.machine.state == FERRY_TGT_LOADED) {
			s->commit_ns = ferry_now_ns();
			s->stopped_for_ns = s->m.commit.stopped_for_ns;
		}
		return FERRY_EV_COMMIT;
	case FERRY_FRAME_ABORT:
		ferry_fail(&s->why, FERRY_REFUSE, -ECANCELED, "the source gave up: %s",
			   s->m.abort.reason);
		return FERRY_EV_ABORT;
	case FERRY_FRAME_PONG:
		s->rtt_ns = ferry_now_ns() - s->m.pong.ping_sent_ns;
		return FERRY_EV_NOTHING;
	default:
		return FERRY_EV_NOTHING;
	}
}

static enum ferry_switch_event look_at_link(struct ferry_switch_target *s)
{
	enum ferry_switch_event event;
	int rc;

	if (s->link.fd < 0)
		return FERRY_EV_NOTHING;
	do {
		rc = ferry_channel_receive(&s->link, &s->m, 0, -1, &s->why);
		if (rc == -ETIMEDOUT)
			return FERRY_EV_NOTHING;
		event = rc < 0 ? FERRY_EV_LINK_LOST : ferry_target_side_message(s);
	} while (event == FERRY_EV_NOTHING);
	if (rc < 0)
		ferry_target_side_close_link(s);
	return event;
}

static enum ferry_switch_event on_migration(struct ferry_switch_target *s, const char *status)
{
	if (!s->load_started)
		return FERRY_EV_NOTHING;
	if (!strcmp(status, "completed"))
		s->loaded = true;
	if (strcmp(status, "failed"))
		return FERRY_EV_NOTHING;
	ferry_fail(&s->why, FERRY_REFUSE, -EIO,
		   "the target's QEMU could not load the device state; its own log says why");
	return FERRY_EV_FAILED;
}

/* QEMU is only gone when its monitor is. With the guest given away nothing is waited for from it.
 */
static enum ferry_switch_event not_heard(struct ferry_switch_target *s, int rc)
{
	if (rc == -ECONNRESET)
		return ferry_target_side_vmm_gone(s);
	if (!ferry_switch_is_committed(&s->core))
		return FERRY_EV_FAILED;
	ferry_warn(s->config->log, "%s; nobody listens to it any more", s->why.text);
	ferry_watch_remove(&s->watch, ferry_qmp_fd(s->qmp));
	s->vmm_unheard = true;
	return FERRY_EV_NOTHING;
}

static enum ferry_switch_event look_at_vmm(struct ferry_switch_target *s)
{
	enum ferry_switch_event event = FERRY_EV_NOTHING;

	while (s->qmp && !s->vmm_unheard && event == FERRY_EV_NOTHING) {
		struct ferry_qmp_message m;
		int rc = ferry_qmp_event(s->qmp, &m, &s->why);
		const char *status;

		if (!rc)
			break;
		if (rc < 0)
			return not_heard(s, rc);
		status = json_string_value(json_object_get(m.body, "status"));
		if (!strcmp(m.text, "MIGRATION") && status && !ferry_switch_is_committed(&s->core))
			event = on_migration(s, status);
		ferry_qmp_message_fini(&m);
	}
	if (!event && s->pidfd >= 0 && !ferry_net_wait(s->pidfd, POLLIN, 0, -1))
		return ferry_target_side_vmm_gone(s);
	/* Only once all is sent: then it has read what we were told is all. */
	if (!event && s->loaded && s->core.machine.state == FERRY_TGT_FINISHING)
		event = FERRY_EV_VMM_LOADED;
	return event;
}

static enum ferry_switch_event on_engine(struct ferry_switch_target *s, int event)
{
	switch (event) {
	case FERRY_TARGET_OPEN:
		if (s->link_lost_said)
			ferry_info(s->config->log, "the page connections are open again");
		s->link_lost_said = false;
		return FERRY_EV_NOTHING;
	case FERRY_TARGET_LINK_LOST:
		s->link_lost_said = true; /* by the engine */
		return FERRY_EV_NOTHING;
	case FERRY_TARGET_DIFFERS:
		s->differs = s->why;
		return FERRY_EV_COMPLETE;
	case FERRY_TARGET_COMPLETE:
		return FERRY_EV_COMPLETE;
	case FERRY_TARGET_PAGES_LOST:
		ferry_target_side_pages_lost(s);
		return FERRY_EV_NOTHING;
	case FERRY_TARGET_GONE:
		return ferry_target_side_vmm_gone(s);
	case FERRY_TARGET_FAILED:
		ferry_fail_prefix(&s->why, "fetching pages");
		return FERRY_EV_FAILED;
	default:
		return FERRY_EV_NOTHING;
	}
}

static bool is_filling(const struct ferry_switch_target *s)
{
	return s->target && (s->core.machine.state == FERRY_TGT_PUSHING ||
			     s->core.machine.state == FERRY_TGT_HELD);
}

/* The guest is loaded and the source has not said whether it is ours. */
static bool is_left_alone(const struct ferry_switch_target *s)
{
	return s->core.machine.state == FERRY_TGT_LOADED && s->link.fd < 0;
}

static void remind(struct ferry_switch_target *s)
{
	uint64_t now = ferry_now_ns();

	if (!is_left_alone(s)) {
		s->alone_ns = s->remind_ns = 0;
		return;
	}
	if (!s->alone_ns) {
		s->alone_ns = now;
		s->remind_ns = now + REMIND_S * FERRY_NS_PER_S;
	}
	if (now < s->remind_ns)
		return;
	s->remind_ns = now + REMIND_S * FERRY_NS_PER_S;
	ferry_warn(s->config->log,
		   "the guest is loaded here, and for %" PRIu64 " s the source has not said whether it "
		   "was given up there: it stands still on this side; if it runs at the source, end "
		   "this command and its QEMU",
		   (now - s->alone_ns) / FERRY_NS_PER_S);
}

/* Wait for anything; the engine's news are an event of their own. */
static enum ferry_switch_event wait_for_any(struct ferry_switch_target *s, unsigned int *ready)
{
	int timeout = s->deadline_ns || is_filling(s) || is_left_alone(s) ? TICK_MS : -1;
	int rc;

	if (is_filling(s)) {
		rc = ferry_target_wait(s->target, timeout, s->watch.fd, &s->why);
		if (rc >= 0)
			return on_engine(s, rc);
		timeout = 0;
		if (rc != -ECANCELED) {
			ferry_fail_errno(&s->why, FERRY_REFUSE, rc, "waiting for the engine");
			return FERRY_EV_FAILED;
		}
	}
	*ready = ferry_watch_wait(&s->watch, timeout);
	return FERRY_EV_NOTHING;
}

/* Somebody took the seat and does not say what for. */
static enum ferry_switch_event check_deadline(struct ferry_switch_target *s)
{
	if (!s->deadline_ns || ferry_now_ns() < s->deadline_ns)
		return FERRY_EV_NOTHING;
	ferry_fail(&s->why, FERRY_LINK, -ETIMEDOUT, "the source sent no Prepare within %d s",
		   PREPARE_TIMEOUT_MS / 1000);
	ferry_target_side_close_link(s);
	return FERRY_EV_LINK_LOST;
}

static void report_progress(struct ferry_switch_target *s, uint64_t *last_ns)
{
	uint64_t now = ferry_now_ns();
	struct ferry_target_stats stats;

	if (!is_filling(s) || !s->config->observer.progress ||
	    now - *last_ns < TICK_MS * (uint64_t)FERRY_NS_PER_MS)
		return;
	*last_ns = now;
	ferry_target_stats(s->target, &stats);
	s->config->observer.progress(s->config->observer.ctx, &stats, NULL);
}

static enum ferry_switch_event await(struct ferry_switch_target *s)
{
	enum ferry_switch_event event;
	uint64_t reported_ns = 0;

	for (;;) {
		unsigned int ready = 0;

		event = look_at_link(s);
		if (!event)
			event = look_at_vmm(s);
		if (!event)
			event = check_deadline(s);
		if (event)
			return event;
		report_progress(s, &reported_ns);
		remind(s);
		event = wait_for_any(s, &ready);
		if (event)
			return event;
		if (ready & FERRY_WATCH_STOP) {
			ferry_fail(&s->why, FERRY_REFUSE, -ECANCELED, "stopped by the user");
			return FERRY_EV_USER_STOP;
		}
		if (ready & FERRY_WATCH_ACCEPTOR) {
			event = ferry_target_side_take_link(s);
			if (event)
				return event;
		}
	}
}

/* --- the run -------------------------------------------------------------------------------- */

static void announce(struct ferry_switch_target *s, int *last)
{
	enum ferry_outcome outcome;
	int stage = (int)ferry_switch_stage(&s->core);

	if (s->core.machine.state == FERRY_TGT_UNDOING ||
	    (ferry_switch_is_over(&s->core, &outcome) && outcome != FERRY_OUTCOME_DONE))
		return;
	for (; *last < stage; (*last)++) {
		if (s->config->observer.stage)
			s->config->observer.stage(s->config->observer.ctx,
						  (enum ferry_stage)(*last + 1));
	}
}

static void tell_waits(struct ferry_switch_target *s, unsigned int before)
{
	if (before == FERRY_TGT_LOADED)
		ferry_fail(
			&s->story, FERRY_LINK, s->why.err,
			"%.200s; the guest is loaded here and the source has not given it up: if "
			"the source says that it runs there, end this QEMU; else run the same "
			"command with --recover",
			s->why.text);
	else if (s->refused.err)
		ferry_fail(
			&s->story, FERRY_REFUSE, s->refused.err,
			"the guest is here and stands still: %.250s; put that right and resume it "
			"by 'cont' in the monitor",
			s->refused.text);
	else
		ferry_fail(
			&s->story, FERRY_LINK, s->why.err,
			"%.250s; pages are missing, and the guest's threads that need them wait: "
			"run the same command with --recover",
			s->why.text);
}

/* What the log and the outcome's text say; called when the state has just moved. */
static void tell(struct ferry_switch_target *s, enum ferry_switch_event event, unsigned int before)
{
	const struct ferry_log *log = s->config->log;
	unsigned int state = s->core.machine.state;

	if (state == FERRY_TGT_UNDOING) {
		s->story = s->why;
		s->story.consequence = FERRY_REFUSE;
		if (s->load_started)
			ferry_fail(
				&s->story, FERRY_REFUSE, s->why.err,
				"%.300s; the target's QEMU can't be used again: end it and start "
				"it anew with -incoming defer",
				s->why.text);
	} else if (state == FERRY_TGT_WAITS) {
		tell_waits(s, before);
	} else if (state == FERRY_TGT_LOST) {
		s->story = s->why;
		s->story.consequence = FERRY_LOST;
	} else if (state == FERRY_TGT_AWAITING && event == FERRY_EV_LINK_LOST) {
		ferry_warn(log, "a source came and left again: %s", s->why.text);
	} else if (state == FERRY_TGT_LOADED && event == FERRY_EV_LINK_LOST) {
		ferry_warn(
			log,
			"the link broke (%s) while the guest is loaded here; it stands still until "
			"the source says whether it was given up",
			s->why.text);
	} else if (state == FERRY_TGT_HELD && before == FERRY_TGT_RUNNING) {
		s->refused = s->why;
		ferry_error(log,
			    "QEMU would not run the guest (%s); it gets its pages all the same",
			    s->why.text);
	}
}

static enum ferry_switch_event perform_all(struct ferry_switch_target *s,
					   const struct ferry_switch_actions *actions)
{
	bool undoing = s->core.machine.state == FERRY_TGT_UNDOING;

	for (unsigned int i = 0; i < actions->n; i++) {
		enum ferry_switch_event event =
			ferry_target_side_perform(s, (enum ferry_switch_action)actions->list[i]);

		/* An undo list is gone through to its end. */
		if (event && !undoing)
			return event;
	}
	return undoing ? FERRY_EV_UNDONE : FERRY_EV_NOTHING;
}

/* The peer said something that it may not say now. */
static enum ferry_switch_event out_of_place(struct ferry_switch_target *s,
					    enum ferry_switch_event event)
{
	char history[256];

	ferry_machine_history(&s->core.machine, history, sizeof(history));
	ferry_fail(&s->why, FERRY_REFUSE, -EPROTO, "'%s' came out of place (%s)",
		   ferry_switch_event_name(event), history);
	if (!ferry_switch_is_committed(&s->core))
		return FERRY_EV_FAILED;
	ferry_target_side_close_link(s);
	return FERRY_EV_LINK_LOST;
}

static void set_deadline(struct ferry_switch_target *s)
{
	s->deadline_ns = s->core.machine.state == FERRY_TGT_AWAITING && s->link.fd >= 0
				 ? ferry_now_ns() + PREPARE_TIMEOUT_MS * (uint64_t)FERRY_NS_PER_MS
				 : 0;
}

static enum ferry_outcome drive(struct ferry_switch_target *s)
{
	enum ferry_switch_event event;
	enum ferry_outcome outcome;
	int stage = -1;

	announce(s, &stage);
	event = ferry_target_side_check(s);
	for (;;) {
		struct ferry_switch_actions actions;
		unsigned int before = s->core.machine.state;

		if (ferry_switch_step(&s->core, event, &actions) < 0) {
			event = out_of_place(s, event);
			continue;
		}
		ferry_debug(s->config->log, "%s: now %s", ferry_switch_event_name(event),
			    ferry_machine_state_name(&s->core.machine));
		tell(s, event, before);
		event = perform_all(s, &actions);
		set_deadline(s);
		announce(s, &stage);
		if (ferry_switch_is_over(&s->core, &outcome))
			return outcome;
		if (!event)
			event = await(s);
	}
}

/* Everything is here: was that all that was asked for? */
static enum ferry_outcome look_at_verified(struct ferry_switch_target *s, enum ferry_outcome outcome)
{
	const struct ferry_target_stats *stats = &s->result->stats;

	if (s->differs.err)
		s->story = s->differs;
	else if (outcome == FERRY_OUTCOME_WAITS && s->config->verify && stats->pages_total &&
		 stats->pages_known == stats->pages_total && !s->refused.err)
		ferry_fail(&s->story, FERRY_LINK, s->why.err,
			   "%.300s; everything is here, but it was not compared to the end", s->why.text);
	else
		return outcome;
	return FERRY_OUTCOME_UNVERIFIED;
}

/* What is left of it is of use only while pages are missing, or the guest has not been started. */
static void close_journal(struct ferry_switch_target *s, enum ferry_outcome outcome)
{
	const struct ferry_target_stats *stats = &s->result->stats;
	bool complete = stats->pages_total && stats->pages_known == stats->pages_total;
	bool started = s->entry.phase == FERRY_JOURNAL_RUNS || s->refused.err;

	ferry_journal_close(&s->journal, outcome != FERRY_OUTCOME_WAITS || (complete && started));
}

static void fini(struct ferry_switch_target *s)
{
	if (s->acceptor)
		ferry_acceptor_set_target(s->acceptor, NULL);
	if (s->target)
		ferry_target_side_show_trace(s, NULL);
	ferry_target_free(s->target);
	if (s->kept)
		munmap(s->kept, s->kept_bytes);
	ferry_uffd_close(&s->uffd);
	ferry_acceptor_free(s->acceptor);
	ferry_channel_close(&s->link);
	ferry_close(s->load_fd);
	ferry_close(s->load_peer_fd);
	ferry_close(s->pidfd);
	ferry_qemu_setup_fini(&s->setup);
	ferry_qemu_fini(&s->qemu);
	ferry_qmp_free(s->qmp);
	ferry_watch_fini(&s->watch);
	free(s);
}

enum ferry_outcome ferry_receive_run(const struct ferry_receive_config *config,
				     struct ferry_receive_result *result, struct ferry_failure *f)
{
	struct ferry_switch_target *s = calloc(1, sizeof(*s));
	enum ferry_outcome outcome;

	*result = (struct ferry_receive_result){0};
	if (!s) {
		ferry_fail_errno(f, FERRY_REFUSE, -ENOMEM, "receive");
		return FERRY_OUTCOME_AT_SOURCE;
	}
	s->config = config;
	s->result = result;
	s->link.fd = s->load_fd = s->load_peer_fd = s->watch.fd = s->pidfd = -1;
	s->journal = FERRY_JOURNAL_NONE;
	s->uffd = FERRY_UFFD_NONE;
	ferry_switch_init(&s->core, FERRY_SIDE_TARGET);
	outcome = drive(s);
	/* Nothing was done, and an earlier switchover may have been. */
	if (outcome == FERRY_OUTCOME_AT_SOURCE && s->journal.found == FERRY_KEEP_UNREAD)
		outcome = FERRY_OUTCOME_WAITS;
	result->total_ns = s->begin_ns ? ferry_now_ns() - s->begin_ns : 0;
	result->ram_bytes = s->qemu.ram_bytes;
	if (s->target)
		ferry_target_stats(s->target, &result->stats);
	outcome = look_at_verified(s, outcome);
	if (outcome == FERRY_OUTCOME_DONE)
		ferry_info(config->log, "everything is here; the guest needs us no more");
	else if (f)
		*f = s->story;
	close_journal(s, outcome);
	fini(s);
	return outcome;
}
