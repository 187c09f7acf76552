/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The source's side of a switchover: asks the core what to do, does it, waits for what happens.
 *
 * One thread. It waits for all there is at once: the switchover connection, the monitor, the device
 * state, the user, and (while pages are served) the page server. Up to the commit, whatever goes
 * wrong ends in the core's undo list; from the commit on the only ways out are the target's
 * completion and the user.
 */
#include "migrate/switch_source.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/util.h"

#define TICK_MS 100 /* between two looks at the progress */

/* --- what may happen ------------------------------------------------------------------------ */

static enum ferry_switch_event on_message(struct ferry_switch_source *s)
{
	switch (s->m.type) {
	case FERRY_FRAME_PREPARED:
		return FERRY_EV_PREPARED;
	case FERRY_FRAME_LOADED:
		return FERRY_EV_LOADED;
	case FERRY_FRAME_RUNNING:
		return FERRY_EV_RUNNING;
	case FERRY_FRAME_ABORT:
		ferry_fail(&s->why, FERRY_REFUSE, -ECANCELED, "the target gave up: %s",
			   s->m.abort.reason);
		return FERRY_EV_ABORT;
	default:
		return FERRY_EV_NOTHING; /* a Pong */
	}
}

static enum ferry_switch_event look_at_link(struct ferry_switch_source *s)
{
	enum ferry_switch_event event;
	int rc;

	if (s->link.fd < 0)
		return ferry_source_redial(s);
	do {
		rc = ferry_channel_receive(&s->link, &s->m, 0, -1, &s->why);
		if (rc == -ETIMEDOUT)
			return FERRY_EV_NOTHING;
		event = rc < 0 ? FERRY_EV_LINK_LOST : on_message(s);
	} while (event == FERRY_EV_NOTHING);
	if (rc == -ECONNREFUSED && s->m.error.code == FERRY_ERROR_INTERNAL)
		event = FERRY_EV_PEER_LOST;
	if (rc < 0)
		ferry_source_close_link(s);
	return event;
}

/* Why QEMU's own migration failed, as far as it says. */
static void ask_why(struct ferry_switch_source *s, const char *status)
{
	const char *desc = NULL;
	json_t *ret = NULL;

	if (!ferry_qmp_execute(s->qmp, "query-migrate", NULL, &ret, NULL))
		desc = json_string_value(json_object_get(ret, "error-desc"));
	ferry_fail(&s->why, FERRY_REFUSE, -EIO, "QEMU did not write its device state (%s%s%.200s)",
		   status, desc ? ": " : "", desc ? desc : "");
	json_decref(ret);
}

static enum ferry_switch_event on_migration(struct ferry_switch_source *s, const char *status)
{
	if (!s->state_started)
		return FERRY_EV_NOTHING;
	if (!strcmp(status, "completed"))
		s->state_over = s->state_complete = true;
	if (strcmp(status, "failed") && strcmp(status, "cancelled"))
		return FERRY_EV_NOTHING;
	s->state_over = true;
	ask_why(s, status);
	return FERRY_EV_FAILED;
}

/* QEMU is only gone when its monitor is. With the guest given away nothing is waited for from it.
 */
static enum ferry_switch_event not_heard(struct ferry_switch_source *s, int rc)
{
	if (rc == -ECONNRESET)
		return ferry_source_vmm_gone(s);
	if (!ferry_switch_is_committed(&s->core))
		return FERRY_EV_FAILED;
	ferry_warn(s->config->log, "%s; nobody listens to it any more", s->why.text);
	ferry_watch_remove(&s->watch, ferry_qmp_fd(s->qmp));
	s->vmm_unheard = true;
	return FERRY_EV_NOTHING;
}

static enum ferry_switch_event look_at_vmm(struct ferry_switch_source *s)
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
		if (!strcmp(m.text, "MIGRATION") && status) {
			event = on_migration(s, status);
		} else if (!strcmp(m.text, "STOP") && s->core.machine.state == FERRY_SRC_STOPPING) {
			event = ferry_source_note_stop(s, m.at_ns);
		} else if (!strcmp(m.text, "SHUTDOWN") && !ferry_switch_is_committed(&s->core)) {
			ferry_fail(&s->why, FERRY_REFUSE, -ESHUTDOWN, "the guest has shut down");
			event = FERRY_EV_FAILED;
		}
		ferry_qmp_message_fini(&m);
	}
	return event;
}

static void set_deadline(struct ferry_switch_source *s)
{
	unsigned int state = s->core.machine.state;
	bool limited = state >= FERRY_SRC_PREPARING && state <= FERRY_SRC_LOADING;
	uint64_t ms = state == FERRY_SRC_STOPPING ? FERRY_STOP_LIMIT_MS : FERRY_STEP_LIMIT_MS;

	s->deadline_ns = limited ? ferry_now_ns() + ms * FERRY_NS_PER_MS : 0;
}

static enum ferry_switch_event relay(struct ferry_switch_source *s, const uint8_t *data, size_t len)
{
	struct ferry_message m = {
		.type = FERRY_FRAME_DEVICE_STATE, .payload = data, .payload_bytes = (uint32_t)len};
	int rc;

	s->result->device_state_bytes += len;
	if (s->result->device_state_bytes > FERRY_MAX_DEVICE_STATE) {
		ferry_fail(
			&s->why, FERRY_REFUSE, -EFBIG,
			"the device state is larger than %llu MiB; is there RAM that is not in a "
			"shared memory backend?",
			FERRY_MAX_DEVICE_STATE / FERRY_MIB);
		return FERRY_EV_FAILED;
	}
	set_deadline(s);
	rc = ferry_channel_send(&s->link, &m, s->config->stop_fd);
	if (!rc)
		return FERRY_EV_NOTHING;
	if (rc == -ECANCELED)
		return FERRY_EV_USER_STOP;
	ferry_fail_errno(&s->why, FERRY_LINK, rc, "sending device state");
	ferry_source_close_link(s);
	return FERRY_EV_LINK_LOST;
}

/* The stream's end alone does not tell that it is complete: QEMU must say so as well. */
static enum ferry_switch_event look_at_state(struct ferry_switch_source *s)
{
	uint8_t buffer[FERRY_MAX_STATE_BYTES];

	while (s->state_started && s->state_fd >= 0) {
		ssize_t n = recv(s->state_fd, buffer, sizeof(buffer), MSG_DONTWAIT);
		enum ferry_switch_event event;

		if (n < 0 && errno == EAGAIN)
			return FERRY_EV_NOTHING;
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0) {
			ferry_source_close_state(s);
			break;
		}
		event = relay(s, buffer, (size_t)n);
		if (event)
			return event;
	}
	return FERRY_EV_NOTHING;
}

/* Whichever of the two comes last, the end of the stream or QEMU's word. */
static enum ferry_switch_event check_sent(const struct ferry_switch_source *s)
{
	return s->core.machine.state == FERRY_SRC_SENDING && s->state_complete && s->state_fd < 0
		       ? FERRY_EV_STATE_SENT
		       : FERRY_EV_NOTHING;
}

static enum ferry_switch_event on_server(struct ferry_switch_source *s, int event)
{
	switch (event) {
	case FERRY_SERVER_CONNECTED:
		return s->core.machine.state == FERRY_SRC_CONNECTING ? FERRY_EV_PAGES_OPEN
								     : FERRY_EV_NOTHING;
	case FERRY_SERVER_COMPLETED:
		return FERRY_EV_COMPLETE;
	case FERRY_SERVER_DAMAGED:
		s->differs = s->why;
		return FERRY_EV_COMPLETE;
	case FERRY_SERVER_LINK_LOST:
		ferry_warn(s->config->log, "%s; the page connections are opened again",
			   s->why.text);
		return FERRY_EV_NOTHING;
	case FERRY_SERVER_FAILED:
		ferry_fail_prefix(&s->why, "serving pages");
		return FERRY_EV_FAILED;
	default:
		return FERRY_EV_NOTHING;
	}
}

static bool is_serving(const struct ferry_switch_source *s)
{
	return s->core.machine.state == FERRY_SRC_CONNECTING || ferry_switch_is_committed(&s->core);
}

/* Wait for anything; the page server's news are an event of their own. */
static enum ferry_switch_event wait_for_any(struct ferry_switch_source *s, unsigned int *ready)
{
	int timeout = TICK_MS, rc;

	if (s->redial_ns) {
		uint64_t now = ferry_now_ns();
		uint64_t ms = s->redial_ns > now ? (s->redial_ns - now) / FERRY_NS_PER_MS + 1 : 0;

		timeout = (int)FERRY_MIN((uint64_t)timeout, ms);
	}
	if (is_serving(s)) {
		rc = ferry_server_wait(s->server, timeout, s->watch.fd, &s->why);
		if (rc >= 0)
			return on_server(s, rc);
		timeout = 0;
		if (rc != -ECANCELED) {
			ferry_fail_errno(&s->why, FERRY_REFUSE, rc, "waiting for the page server");
			return FERRY_EV_FAILED;
		}
	}
	*ready = ferry_watch_wait(&s->watch, timeout);
	return FERRY_EV_NOTHING;
}

static enum ferry_switch_event check_deadline(struct ferry_switch_source *s)
{
	if (!s->deadline_ns || ferry_now_ns() < s->deadline_ns)
		return FERRY_EV_NOTHING;
	ferry_fail(&s->why, FERRY_REFUSE, -ETIMEDOUT,
		   "nothing has moved for %d s (state %s); look at the target and its QEMU",
		   FERRY_STEP_LIMIT_MS / 1000, ferry_machine_state_name(&s->core.machine));
	return FERRY_EV_FAILED;
}

static void report_progress(struct ferry_switch_source *s, uint64_t *last_ns)
{
	uint64_t now = ferry_now_ns();
	struct ferry_server_stats stats;

	if (!ferry_switch_is_committed(&s->core) || !s->config->observer.progress ||
	    now - *last_ns < TICK_MS * (uint64_t)FERRY_NS_PER_MS)
		return;
	*last_ns = now;
	ferry_server_stats(s->server, &stats);
	s->config->observer.progress(s->config->observer.ctx, NULL, &stats);
}

static enum ferry_switch_event await(struct ferry_switch_source *s)
{
	enum ferry_switch_event event = FERRY_EV_NOTHING;
	uint64_t reported_ns = 0;

	for (;;) {
		unsigned int ready = 0;

		event = look_at_state(s);
		if (!event)
			event = look_at_link(s);
		if (!event)
			event = look_at_vmm(s);
		if (!event)
			event = check_sent(s);
		if (!event)
			event = check_deadline(s);
		if (event)
			return event;
		if (s->config->steering && s->server)
			ferry_server_pause(s->server, atomic_load(&s->config->steering->paused));
		report_progress(s, &reported_ns);
		event = wait_for_any(s, &ready);
		if (event)
			return event;
		if (ready & FERRY_WATCH_STOP) {
			ferry_fail(&s->why, FERRY_REFUSE, -ECANCELED, "stopped by the user");
			return FERRY_EV_USER_STOP;
		}
		if (ready & FERRY_WATCH_SERVE) {
			ferry_watch_remove(&s->watch, s->serve_failed_fd);
			s->why = s->serve_why;
			return FERRY_EV_FAILED;
		}
	}
}

/* --- the run -------------------------------------------------------------------------------- */

static void announce(struct ferry_switch_source *s, int *last)
{
	enum ferry_outcome outcome;
	int stage = (int)ferry_switch_stage(&s->core);

	if (s->core.machine.state == FERRY_SRC_UNDOING ||
	    (ferry_switch_is_over(&s->core, &outcome) && outcome != FERRY_OUTCOME_DONE))
		return;
	for (; *last < stage; (*last)++) {
		if (s->config->observer.stage)
			s->config->observer.stage(s->config->observer.ctx,
						  (enum ferry_stage)(*last + 1));
	}
}

/* As seen from here: with the way of Running back to us, so it is an upper bound. */
static void note_running(struct ferry_switch_source *s)
{
	uint64_t now = ferry_now_ns();

	if (s->took_over) {
		ferry_info(s->config->log, "the target says that the guest runs there");
		return;
	}
	s->result->confirm_ns = now - s->loaded_ns;
	s->result->downtime_ns = now - s->stop_ns;
	ferry_info(
		s->config->log,
		"the guest runs on the target; it stood still for %.1f ms (stop %.1f, device state "
		"%.1f, confirm %.1f)",
		(double)s->result->downtime_ns / FERRY_NS_PER_MS,
		(double)s->result->stop_ns / FERRY_NS_PER_MS,
		(double)s->result->device_state_ns / FERRY_NS_PER_MS,
		(double)s->result->confirm_ns / FERRY_NS_PER_MS);
}

/* What the outcome's text is made of; called when the state has just moved. */
static void tell(struct ferry_switch_source *s, enum ferry_switch_event event)
{
	const struct ferry_log *log = s->config->log;

	switch (s->core.machine.state) {
	case FERRY_SRC_UNDOING:
		s->story = s->why;
		if (event == FERRY_EV_LINK_LOST)
			ferry_fail(&s->story, FERRY_LINK, s->why.err,
				   "the link to the target broke before the guest was handed over "
				   "(%.250s); it stays here",
				   s->why.text);
		s->story.consequence = FERRY_REFUSE;
		break;
	case FERRY_SRC_COMMITTED:
	case FERRY_SRC_PUSHING:
		if (event == FERRY_EV_RUNNING && !s->result->downtime_ns)
			note_running(s);
		else if (event == FERRY_EV_LINK_LOST)
			ferry_warn(log, "the switchover connection broke (%s); it is dialed again",
				   s->why.text);
		else if (event == FERRY_EV_VMM_GONE)
			ferry_warn(log, "the source's QEMU has ended; its memory is served all the "
					"same");
		break;
	case FERRY_SRC_WAITS:
		/* Nothing that is done here helps any more. */
		if (s->why.consequence == FERRY_LOST) {
			s->story = s->why;
			break;
		}
		ferry_fail(
			&s->story, FERRY_LINK, s->why.err ?: -ECANCELED,
			"%.250s; the guest is the target's now and waits there for pages: run the "
			"same command with --resume, and never resume the guest here",
			s->why.text);
		break;
	case FERRY_SRC_LOST:
		s->story = s->why;
		s->story.consequence = FERRY_LOST;
		if (event == FERRY_EV_ABORT || event == FERRY_EV_PEER_LOST)
			ferry_fail(
				&s->story, FERRY_LOST, s->why.err,
				"%.250s; the source's QEMU still holds the guest as it was when it "
				"stopped",
				s->why.text);
		break;
	default:
		break;
	}
}

static enum ferry_switch_event perform_all(struct ferry_switch_source *s,
					   const struct ferry_switch_actions *actions)
{
	bool undoing = s->core.machine.state == FERRY_SRC_UNDOING;

	for (unsigned int i = 0; i < actions->n; i++) {
		enum ferry_switch_event event =
			ferry_source_perform(s, (enum ferry_switch_action)actions->list[i]);

		/* An undo list is gone through to its end. */
		if (event && !undoing)
			return event;
	}
	if (!undoing)
		return FERRY_EV_NOTHING;
	return s->vmm_gone ? FERRY_EV_VMM_GONE : FERRY_EV_UNDONE;
}

/* The peer said something that it may not say now. */
static enum ferry_switch_event out_of_place(struct ferry_switch_source *s,
					    enum ferry_switch_event event)
{
	char history[256];

	ferry_machine_history(&s->core.machine, history, sizeof(history));
	ferry_fail(&s->why, FERRY_REFUSE, -EPROTO, "'%s' came out of place (%s)",
		   ferry_switch_event_name(event), history);
	if (!ferry_switch_is_committed(&s->core))
		return FERRY_EV_FAILED;
	ferry_source_close_link(s);
	return FERRY_EV_LINK_LOST;
}

static enum ferry_outcome drive(struct ferry_switch_source *s)
{
	enum ferry_switch_event event;
	enum ferry_outcome outcome;
	int stage = -1;

	announce(s, &stage);
	event = ferry_source_check(s);
	for (;;) {
		struct ferry_switch_actions actions;
		unsigned int before = s->core.machine.state;

		if (ferry_switch_step(&s->core, event, &actions) < 0) {
			event = out_of_place(s, event);
			continue;
		}
		ferry_debug(s->config->log, "%s: now %s", ferry_switch_event_name(event),
			    ferry_machine_state_name(&s->core.machine));
		if (s->core.machine.state != before)
			set_deadline(s);
		tell(s, event);
		event = perform_all(s, &actions);
		announce(s, &stage);
		if (ferry_switch_is_over(&s->core, &outcome))
			return outcome;
		if (!event)
			event = await(s);
	}
}

static void fini(struct ferry_switch_source *s)
{
	ferry_source_stop_serving(s);
	if (s->server)
		ferry_server_free(s->server);
	for (size_t i = 0; i < FERRY_ARRAY_SIZE(s->sources); i++)
		ferry_source_free(s->sources[i]);
	ferry_channel_close(&s->link);
	ferry_close(s->state_fd);
	ferry_close(s->state_peer_fd);
	ferry_close(s->serve_failed_fd);
	ferry_qemu_setup_fini(&s->setup);
	ferry_qemu_fini(&s->qemu);
	ferry_qmp_free(s->qmp);
	ferry_watch_fini(&s->watch);
	free(s);
}

enum ferry_outcome ferry_migrate_run(const struct ferry_migrate_config *config,
				     struct ferry_migrate_result *result, struct ferry_failure *f)
{
	struct ferry_switch_source *s = calloc(1, sizeof(*s));
	enum ferry_outcome outcome;

	*result = (struct ferry_migrate_result){0};
	if (!s) {
		ferry_fail_errno(f, FERRY_REFUSE, -ENOMEM, "migrate");
		return FERRY_OUTCOME_AT_SOURCE;
	}
	s->config = config;
	s->result = result;
	s->link.fd = s->state_fd = s->state_peer_fd = s->watch.fd = s->serve_failed_fd = -1;
	s->journal = FERRY_JOURNAL_NONE;
	s->begin_ns = ferry_now_ns();
	ferry_switch_init(&s->core, FERRY_SIDE_SOURCE);
	outcome = drive(s);
	/* Nothing was done, and an earlier switchover may have been. */
	if (outcome == FERRY_OUTCOME_AT_SOURCE && s->journal.found == FERRY_KEEP_UNREAD)
		outcome = FERRY_OUTCOME_WAITS;
	result->total_ns = ferry_now_ns() - s->begin_ns;
	result->ram_bytes = s->qemu.ram_bytes;
	if (s->server)
		ferry_server_stats(s->server, &result->stats);
	if (s->differs.err) {
		outcome = FERRY_OUTCOME_UNVERIFIED;
		ferry_fail(&s->story, FERRY_LOST, s->differs.err,
			   "the target says: %.400s; this side's QEMU still holds the guest as it was when it "
			   "stopped",
			   s->differs.text);
	}
	if (outcome == FERRY_OUTCOME_DONE)
		ferry_info(config->log,
			   "the target has everything; the source's QEMU can be ended");
	else if (f)
		*f = s->story;
	if (outcome == FERRY_OUTCOME_AT_SOURCE && s->abort_untold)
		ferry_source_keep_untold(s);
	/* Its loop writes to the record. */
	ferry_source_stop_serving(s);
	ferry_journal_close(&s->journal,
			    outcome != FERRY_OUTCOME_WAITS && !s->abort_untold && !s->record_stays);
	fini(s);
	return outcome;
}
