/* SPDX-License-Identifier: Apache-2.0 */
/* What the source of a switchover does, action by action. */
#include "migrate/switch_source.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/net.h"
#include "base/util.h"

#define DIAL_TIMEOUT_MS	  5000
#define REDIAL_TIMEOUT_MS 1000
#define REDIAL_MIN_MS	  50u
#define REDIAL_MAX_MS	  1000u
#define UNDO_TELL_MS	  2000u /* for the target to be told; the guest runs again by then */
#define CANCEL_TIMEOUT_MS 30000
#define CANCEL_POLL_MS	  10
#define STATE_NAME	  "pageferry-state" /* of the pipe, at QEMU */
#define TELL_TARGET                                                                                \
	"what is missing is lost. There, 'pageferry receive --recover --source-lost --on-lost "    \
	"poison' says so, so that nobody waits for it any more"
#define EPOCHS_EACH_BITS  20		    /* more than one process ever gets through */

/* --- endings -------------------------------------------------------------------------------- */

void ferry_source_close_link(struct ferry_switch_source *s)
{
	ferry_watch_remove(&s->watch, s->link.fd);
	ferry_channel_close(&s->link);
}

void ferry_source_close_state(struct ferry_switch_source *s)
{
	ferry_watch_remove(&s->watch, s->state_fd);
	ferry_close(TAKE_FD(s->state_fd));
}

enum ferry_switch_event ferry_source_vmm_gone(struct ferry_switch_source *s)
{
	ferry_fail(&s->why, FERRY_LOST, -ECONNRESET,
		   "the source's QEMU has ended, or closed its monitor");
	ferry_watch_remove(&s->watch, ferry_qmp_fd(s->qmp));
	ferry_qemu_setup_fini(&s->setup);
	ferry_qmp_free(s->qmp);
	s->qmp = NULL;
	s->vmm_gone = true;
	return FERRY_EV_VMM_GONE;
}

/* The event that an error of the monitor amounts to. */
static enum ferry_switch_event vmm_failed(struct ferry_switch_source *s, int rc)
{
	return rc == -ECONNRESET ? ferry_source_vmm_gone(s) : FERRY_EV_FAILED;
}

/* The target may have said why before it closed. */
static enum ferry_switch_event link_failed(struct ferry_switch_source *s, int rc, const char *what)
{
	if (rc != -ECANCELED && !ferry_channel_receive(&s->link, &s->m, 0, -1, NULL) &&
	    s->m.type == FERRY_FRAME_ABORT) {
		ferry_fail(&s->why, FERRY_REFUSE, -ECANCELED, "the target gave up: %s",
			   s->m.abort.reason);
		ferry_source_close_link(s);
		return FERRY_EV_ABORT;
	}
	ferry_fail_errno(&s->why, FERRY_LINK, rc, "sending %s to the target", what);
	ferry_source_close_link(s);
	return rc == -ECANCELED ? FERRY_EV_USER_STOP : FERRY_EV_LINK_LOST;
}

/* --- check ---------------------------------------------------------------------------------- */

/* Once it is released the target ends: one after us must not look for it for ever. */
static void note_complete(void *source)
{
	struct ferry_switch_source *s = source;
	struct ferry_failure f = {0};

	s->entry.phase = FERRY_JOURNAL_COMPLETE;
	if (ferry_journal_update(&s->journal, &s->entry, &f) < 0)
		ferry_warn(s->config->log, "%s", f.text);
}

static int open_sources(struct ferry_switch_source *s)
{
	struct ferry_server_config config = {
		.sources = s->sources,
		.n_sources = s->qemu.n_ram,
		.tls = s->config->tls,
		.ring = s->config->ring,
		.no_checksum = s->config->no_checksum,
		.log = s->config->log,
		.completing = note_complete,
		.completing_ctx = s,
	};

	for (uint32_t i = 0; i < s->qemu.n_ram; i++) {
		struct ferry_qemu_ram *r = &s->qemu.ram[i];
		int rc = ferry_source_open_fd(&s->sources[i], r->desc.name, TAKE_FD(r->fd),
					      r->offset, r->desc.n_pages * r->desc.page_bytes,
					      r->desc.page_bytes, &s->why);

		if (rc < 0)
			return rc;
	}
	return ferry_server_new(&s->server, &config, &s->why);
}

static int open_link(struct ferry_switch_source *s, int timeout_ms, struct ferry_failure *f)
{
	int rc = ferry_channel_dial(&s->link, s->config->tls, &s->config->to, &s->hello, timeout_ms,
				    s->config->stop_fd, f);

	/* Also when it failed: the target may have seen this one, and takes none that is not newer.
	 */
	s->hello.epoch++;
	if (rc < 0)
		return rc;
	ferry_watch_add(&s->watch, s->link.fd, FERRY_WATCH_LINK);
	return 0;
}

static int open_state_pipe(struct ferry_switch_source *s)
{
	int fds[2];

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) < 0)
		return ferry_fail_errno(&s->why, FERRY_REFUSE, -errno, "socketpair");
	s->state_fd = fds[0];
	s->state_peer_fd = fds[1];
	return 0;
}

/* There is no record of a guest that was given away. */
static int nothing_to_resume(struct ferry_switch_source *s)
{
	if (s->journal.found == FERRY_KEEP_OTHER)
		return ferry_fail(&s->why, FERRY_REFUSE, -ESTALE,
				  "there is another guest behind this monitor: the one that was being "
				  "moved was in process %d, which has ended",
				  (int)s->entry.head.pid);
	return ferry_fail(&s->why, FERRY_REFUSE, -ENOENT,
			  "there is nothing to resume: no 'pageferry migrate' of this guest was "
			  "killed after it had given the guest away");
}

/* One before us could not tell its target that the guest stayed here. Best effort. */
static void tell_untold(struct ferry_switch_source *s)
{
	struct ferry_message m = {.type = FERRY_FRAME_ABORT,
				  .abort = {"an earlier attempt was undone: the guest runs at the source"}};
	struct ferry_hello hello = {.side = FERRY_SIDE_SOURCE,
				    .role = FERRY_ROLE_SWITCHOVER,
				    .session = s->entry.session,
				    .epoch = s->entry.takeovers << EPOCHS_EACH_BITS};
	struct ferry_failure f = {0};
	struct ferry_channel c;
	int rc = ferry_channel_dial(&c, s->config->tls, &s->entry.addr, &hello, REDIAL_TIMEOUT_MS,
				    s->config->stop_fd, &f);

	if (!rc)
		rc = ferry_channel_send(&c, &m, s->config->stop_fd);
	if (rc < 0)
		ferry_warn(s->config->log,
			   "the target of an earlier attempt, which was undone, can't be told so (%s)",
			   f.text);
	else
		ferry_info(s->config->log,
			   "the target of an earlier attempt was told that the guest stayed here");
	ferry_channel_close(&c);
}

/* The phase that one before us has left; 0 when there was none. */
static uint32_t phase_found(const struct ferry_switch_source *s)
{
	return s->journal.found == FERRY_KEEP_FOUND ? s->entry.phase : 0;
}

static enum ferry_switch_event go_on(struct ferry_switch_source *s)
{
	if (ferry_journal_check_encrypted(&s->entry, s->config->tls, &s->why) < 0)
		return FERRY_EV_ORPHAN_LEFT;
	ferry_info(s->config->log, "going on with the switchover of a process that was killed");
	s->took_over = true;
	if (s->config->steering)
		atomic_store(&s->config->steering->fate, FERRY_FATE_COMMITTED);
	return FERRY_EV_ORPHAN_COMMITTED;
}

/* QEMU can't be asked, or does not do as it is told: what one before us has left stays as it is. */
static enum ferry_switch_event look_later(struct ferry_switch_source *s, int rc)
{
	enum ferry_look_back look = ferry_switch_look_back(phase_found(s), FERRY_VMM_UNHEARD);
	enum ferry_switch_event event = s->qmp ? vmm_failed(s, rc) : FERRY_EV_FAILED;
	struct ferry_failure why = s->why;

	if (look == FERRY_LOOK_GO_ON && s->config->recovery != FERRY_RECOVER_NOT)
		return go_on(s);
	if (look == FERRY_LOOK_LEAVE || look == FERRY_LOOK_GO_ON)
		return FERRY_EV_ORPHAN_LEFT;
	s->record_stays = look == FERRY_LOOK_LATER;
	if (s->record_stays)
		ferry_fail(&s->why, why.consequence, why.err,
			   "%.300s; a process that was killed may have left the guest standing still, "
			   "and QEMU's settings changed: run the same command again",
			   why.text);
	return event;
}

/* It was killed before it gave the guest away: all it can have left is one that stands still. */
static int run_on(struct ferry_switch_source *s, bool runs)
{
	bool has_begun = s->entry.phase >= FERRY_JOURNAL_BEGUN;
	int rc = 0;

	if (has_begun && !runs && !s->entry.paused) {
		ferry_warn(s->config->log, "a process that was killed has left the guest standing "
					   "still; it is resumed");
		rc = ferry_qemu_cont(s->qmp, &s->why);
	}
	if (rc < 0)
		return rc;
	ferry_qemu_setup_put_back(s->qmp, s->entry.settings, s->config->log);
	if (!has_begun)
		return 0;
	/* The target may have loaded the guest since, and wait for a word, newer than any before. */
	s->entry.takeovers++;
	rc = ferry_journal_update(&s->journal, &s->entry, &s->why);
	if (!rc)
		tell_untold(s);
	return rc;
}

static enum ferry_switch_event undo_left(struct ferry_switch_source *s, bool runs)
{
	int rc = run_on(s, runs);

	if (rc < 0)
		return look_later(s, rc);
	if (s->config->recovery != FERRY_RECOVER_ONLY)
		return FERRY_EV_NOTHING;
	ferry_fail(&s->why, FERRY_REFUSE, -ENOENT,
		   "there is nothing to resume: the process that was killed had not given the guest "
		   "away, and it runs on here; begin anew, without --resume");
	return FERRY_EV_FAILED;
}

/* The guest was given away, and its memory here is not what it was then. */
static void tell_left(struct ferry_switch_source *s, const char *status)
{
	if (!strcmp(status, "running"))
		ferry_fail(&s->why, FERRY_REFUSE, -EEXIST,
			   "the guest was given away, and somebody has resumed it here all the same; "
			   "stop it, or the one on the target, since both write to the same disks");
	else if (s->config->recovery != FERRY_RECOVER_NOT)
		ferry_fail(&s->why, FERRY_LOST, -ESTALE,
			   "the guest was given away, and has been resumed here since ('%s'): its "
			   "memory is no longer what the guest lacks at the target, and can't be "
			   "served; " TELL_TARGET,
			   status);
}

/*
 * Was there one before us that was killed in the middle? Before the commit, all it has left is a
 * guest that stands still; after it, a target that waits for pages, and a guest that must never run
 * here again. Return: FERRY_EV_NOTHING to begin a switchover.
 */
static enum ferry_switch_event look_back(struct ferry_switch_source *s)
{
	enum ferry_vmm_look vmm = FERRY_VMM_STANDS;
	char status[FERRY_QMP_TEXT_MAX];
	enum ferry_look_back look;
	int rc;

	if (!phase_found(s) && s->config->recovery == FERRY_RECOVER_ONLY) {
		nothing_to_resume(s);
		return FERRY_EV_FAILED;
	}
	if (!phase_found(s))
		return FERRY_EV_NOTHING;
	rc = ferry_qemu_status(s->qmp, status, &s->why);
	if (rc < 0)
		return look_later(s, rc);
	if (!strcmp(status, "running"))
		vmm = FERRY_VMM_RUNS;
	else if (!strcmp(status, "postmigrate"))
		vmm = FERRY_VMM_GAVE;
	look = ferry_switch_look_back(s->entry.phase, vmm);
	if (look == FERRY_LOOK_UNDO)
		return undo_left(s, vmm == FERRY_VMM_RUNS);
	if (look == FERRY_LOOK_TELL) {
		tell_untold(s);
		return s->config->recovery == FERRY_RECOVER_ONLY && nothing_to_resume(s)
			       ? FERRY_EV_FAILED
			       : FERRY_EV_NOTHING;
	}
	if (s->config->recovery == FERRY_RECOVER_NOT)
		ferry_fail(&s->why, FERRY_REFUSE, -EEXIST,
			   "a 'pageferry migrate' of this guest was killed after it had given the "
			   "guest away");
	if (look == FERRY_LOOK_LEAVE)
		tell_left(s, status);
	if (look == FERRY_LOOK_LEAVE || s->config->recovery == FERRY_RECOVER_NOT)
		return FERRY_EV_ORPHAN_LEFT;
	return go_on(s);
}

/*
 * The QEMU that the guest was in has ended, and with it all that the target lacks. @unheard: no
 * other one is in its place, whose guest may be the one that is meant.
 */
static enum ferry_switch_event look_back_alone(struct ferry_switch_source *s, bool unheard)
{
	enum ferry_look_back look = ferry_switch_look_back(s->entry.phase, FERRY_VMM_ENDED);

	if (s->journal.found != FERRY_KEEP_OTHER || s->config->recovery == FERRY_RECOVER_NOT ||
	    look == FERRY_LOOK_BEGIN)
		return FERRY_EV_NOTHING;
	if (look == FERRY_LOOK_GO_ON)
		return unheard || s->config->recovery == FERRY_RECOVER_ONLY ? go_on(s)
									    : FERRY_EV_NOTHING;
	ferry_fail(&s->why, FERRY_LOST, -ESRCH,
		   "QEMU, process %d, has ended, and with it the memory that the guest lacks at "
		   "the target; " TELL_TARGET,
		   (int)s->entry.head.pid);
	return FERRY_EV_ORPHAN_LEFT;
}

/* As they were they are kept first: left as they are for us, they would spoil QEMU's own migration. */
static int change_settings(struct ferry_switch_source *s)
{
	int rc = ferry_qemu_setup_look(&s->setup, s->qmp, FERRY_SIDE_SOURCE, s->config->log,
				       &s->why);

	if (rc < 0)
		return rc;
	rc = ferry_qemu_setup_save(&s->setup, s->entry.settings);
	if (rc < 0)
		ferry_fail_errno(&s->why, FERRY_REFUSE, rc, "keeping QEMU's migration settings");
	else
		rc = ferry_journal_begin(&s->journal, FERRY_JOURNAL_SETTINGS, &s->qemu, &s->entry,
					 &s->why);
	if (rc < 0) {
		ferry_qemu_setup_fini(&s->setup); /* nothing is changed */
		return rc;
	}
	return ferry_qemu_setup_apply(&s->setup, &s->why);
}

static int new_session(struct ferry_switch_source *s)
{
	uint32_t n_bulk = s->config->n_bulk;

	s->entry = (struct ferry_journal_entry){
		.n_bulk = n_bulk ? FERRY_MIN(n_bulk, (uint32_t)FERRY_MAX_BULK) : 1,
		.paused = !s->qemu.runs,
		.encrypted = s->config->tls != NULL,
		.addr = s->config->to};
	if (getrandom(s->entry.session.bytes, sizeof(s->entry.session.bytes), 0) !=
	    sizeof(s->entry.session.bytes))
		return ferry_fail_errno(&s->why, FERRY_REFUSE, -errno, "getrandom");
	return 0;
}

/* Epochs of the one before us are below all of ours. */
static int next_epochs(struct ferry_switch_source *s)
{
	s->entry.takeovers++;
	s->entry.addr = s->config->to;
	s->hello.epoch = s->entry.takeovers << EPOCHS_EACH_BITS;
	return ferry_journal_update(&s->journal, &s->entry, &s->why);
}

static enum ferry_switch_event look_at_vmm(struct ferry_switch_source *s)
{
	int rc = ferry_journal_open(&s->journal, s->config->state_dir, FERRY_SIDE_SOURCE,
				    s->config->qmp_path, &s->entry, &s->why);
	enum ferry_switch_event event = rc < 0 ? FERRY_EV_NOTHING : look_back_alone(s, false);

	if (event)
		return event;
	if (rc == -ENOENT && s->config->recovery == FERRY_RECOVER_ONLY)
		ferry_fail(&s->why, FERRY_REFUSE, rc,
			   "%s: no such socket. If QEMU has ended, so has the memory that the "
			   "guest may lack at the target, and " TELL_TARGET,
			   s->config->qmp_path);
	if (!rc) {
		rc = ferry_qmp_connect(&s->qmp, s->config->qmp_path, s->config->stop_fd, &s->why);
		event = rc < 0 ? look_back_alone(s, true) : FERRY_EV_NOTHING;
	}
	if (event)
		return event;
	if (rc < 0)
		return look_later(s, rc);
	ferry_watch_add(&s->watch, ferry_qmp_fd(s->qmp), FERRY_WATCH_VMM);
	event = look_back(s);
	if (event)
		return event;
	rc = ferry_qemu_inspect_source(&s->qemu, s->qmp, s->config->log, &s->why);
	if (!rc)
		rc = open_sources(s);
	if (!rc)
		rc = new_session(s);
	if (!rc)
		rc = change_settings(s);
	if (!rc)
		rc = open_state_pipe(s);
	return rc < 0 ? vmm_failed(s, rc) : FERRY_EV_NOTHING;
}

enum ferry_switch_event ferry_source_check(struct ferry_switch_source *s)
{
	enum ferry_switch_event event;
	int rc = ferry_watch_init(&s->watch);

	if (rc < 0) {
		ferry_fail_errno(&s->why, FERRY_REFUSE, rc, "epoll");
		return FERRY_EV_FAILED;
	}
	ferry_watch_add(&s->watch, s->config->stop_fd, FERRY_WATCH_STOP);
	event = look_at_vmm(s);
	s->hello = (struct ferry_hello){.side = FERRY_SIDE_SOURCE,
					.role = FERRY_ROLE_SWITCHOVER,
					.session = s->entry.session};
	if (event == FERRY_EV_ORPHAN_COMMITTED && next_epochs(s) < 0)
		event = FERRY_EV_ORPHAN_LEFT;
	if (event) {
		ferry_fail_prefix(&s->why, "source");
		return event;
	}
	rc = open_link(s, DIAL_TIMEOUT_MS, &s->why);
	if (rc == -ECANCELED) {
		ferry_fail(&s->why, FERRY_REFUSE, rc, "stopped by the user");
		return FERRY_EV_USER_STOP;
	}
	if (rc < 0) {
		ferry_fail_prefix(&s->why, "target");
		return FERRY_EV_FAILED;
	}
	return FERRY_EV_CHECKED;
}

/* --- attach --------------------------------------------------------------------------------- */

static enum ferry_switch_event send_prepare(struct ferry_switch_source *s)
{
	struct ferry_prepare *p = &s->m.prepare;
	int rc;

	s->m = (struct ferry_message){.type = FERRY_FRAME_PREPARE};
	snprintf(p->vm, sizeof(p->vm), "%s", s->qemu.name);
	snprintf(p->vmm_version, sizeof(p->vmm_version), "%s", s->qemu.version);
	snprintf(p->machine, sizeof(p->machine), "%s", s->qemu.machine);
	p->n_bulk = s->entry.n_bulk;
	p->paused = !s->qemu.runs;
	ferry_qemu_layout(&s->qemu, &p->layout);
	p->n_dense = ferry_source_find_dense(s->sources, s->qemu.n_ram, p->dense);
	rc = ferry_channel_send(&s->link, &s->m, s->config->stop_fd);
	return rc < 0 ? link_failed(s, rc, "Prepare") : FERRY_EV_NOTHING;
}

static enum ferry_switch_event dial_pages(struct ferry_switch_source *s)
{
	int rc = 0;

	if (s->took_over && s->entry.phase == FERRY_JOURNAL_COMPLETE)
		return FERRY_EV_COMPLETE;
	if (s->took_over) {
		rc = ferry_qemu_inspect_orphan(&s->qemu, s->qmp, s->config->log, &s->why);
		if (!rc)
			rc = open_sources(s);
		s->qemu.runs = !s->entry.paused;
	} else {
		ferry_server_hold(s->server);
	}
	if (!rc)
		rc = ferry_server_start(s->server, &s->why);
	if (!rc)
		rc = ferry_server_dial(s->server, &s->config->to, &s->entry.session,
				       s->entry.n_bulk, s->entry.takeovers << EPOCHS_EACH_BITS,
				       &s->why);
	return rc < 0 ? FERRY_EV_FAILED : FERRY_EV_NOTHING;
}

/* --- stop, device state --------------------------------------------------------------------- */

/*
 * QEMU sets its migration up while the guest runs, some 20 ms, and stops it by itself as soon as only
 * the devices are left.
 */
static enum ferry_switch_event start_state(struct ferry_switch_source *s)
{
	int rc = ferry_qmp_give_fd(s->qmp, STATE_NAME, s->state_peer_fd, &s->why);

	if (rc < 0)
		return vmm_failed(s, rc);
	ferry_close(TAKE_FD(s->state_peer_fd));
	ferry_watch_add(&s->watch, s->state_fd, FERRY_WATCH_STATE);
	s->state_started = true;
	rc = ferry_qmp_execute(s->qmp, "migrate", FERRY_QMP_ARGS("{s:s}", "uri", "fd:" STATE_NAME),
			       NULL, &s->why);
	s->state_over = rc == -EREMOTEIO; /* it has not even begun */
	if (rc < 0)
		return vmm_failed(s, rc);
	return s->qemu.runs ? FERRY_EV_NOTHING : ferry_source_note_stop(s, 0);
}

enum ferry_switch_event ferry_source_note_stop(struct ferry_switch_source *s, uint64_t at_ns)
{
	struct timespec real;
	uint64_t ago = 0;

	clock_gettime(CLOCK_REALTIME, &real);
	s->stopped_ns = ferry_now_ns();
	if (at_ns)
		ago = (uint64_t)real.tv_sec * FERRY_NS_PER_S + (uint64_t)real.tv_nsec - at_ns;
	/* Unless that clock was set meanwhile. */
	s->stop_ns = s->stopped_ns - (ago < s->stopped_ns - s->entry.stop_ns ? ago : 0);
	s->entry.stop_ns = s->stop_ns;
	s->result->stop_ns = s->stopped_ns - s->stop_ns;
	return FERRY_EV_GUEST_STOPPED;
}

static enum ferry_switch_event send_simple(struct ferry_switch_source *s,
					   enum ferry_frame_type type)
{
	struct ferry_message m = {.type = type};
	int rc;

	if (type == FERRY_FRAME_DEVICE_STATE_END)
		m.device_state_end.total_bytes = s->result->device_state_bytes;
	rc = ferry_channel_send(&s->link, &m, s->config->stop_fd);
	return rc < 0 ? link_failed(s, rc, ferry_frame_type_name(type)) : FERRY_EV_NOTHING;
}

/*
 * Finding the holes of much RAM takes longer than the guest should stand still: it goes on beside
 * the device state.
 */
static void *serve(void *arg)
{
	struct ferry_switch_source *s = arg;

	if (ferry_server_serve(s->server, &s->serve_why) < 0)
		(void)!write(s->serve_failed_fd, &(uint64_t){1}, sizeof(uint64_t));
	return NULL;
}

static enum ferry_switch_event serve_pages(struct ferry_switch_source *s)
{
	int rc;

	s->serve_failed_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	rc = s->serve_failed_fd < 0 ? -errno : -pthread_create(&s->serve_thread, NULL, serve, s);
	if (rc < 0) {
		ferry_fail_errno(&s->why, FERRY_REFUSE, rc, "serving pages");
		return FERRY_EV_FAILED;
	}
	s->serving = true;
	ferry_watch_add(&s->watch, s->serve_failed_fd, FERRY_WATCH_SERVE);
	return FERRY_EV_NOTHING;
}

void ferry_source_stop_serving(struct ferry_switch_source *s)
{
	if (s->serving)
		pthread_join(s->serve_thread, NULL);
	s->serving = false;
	if (s->server)
		ferry_server_stop(s->server);
}

/* --- confirm -------------------------------------------------------------------------------- */

/*
 * Before the guest is stopped: one after us could not know that it must be resumed, or must not.
 * Before the core takes the step that there is no way back from: what is kept decides, not we.
 */
static enum ferry_switch_event record(struct ferry_switch_source *s)
{
	struct ferry_steering *steering = s->config->steering;
	uint32_t phase = ferry_switch_phase(&s->core);
	int fate = FERRY_FATE_OPEN;

	if (phase == FERRY_JOURNAL_BEGUN)
		s->entry.stop_ns = ferry_now_ns();
	else if (steering &&
		 !atomic_compare_exchange_strong(&steering->fate, &fate, FERRY_FATE_COMMITTED)) {
		ferry_fail(&s->why, FERRY_REFUSE, -ECANCELED, "cancelled by the user");
		return FERRY_EV_USER_STOP;
	}
	s->entry.phase = phase;
	if (ferry_journal_update(&s->journal, &s->entry, &s->why) < 0) {
		/* It may be there all the same, and the guest will run here. */
		s->entry.phase = FERRY_JOURNAL_BEGUN;
		(void)ferry_journal_update(&s->journal, &s->entry, NULL);
		return FERRY_EV_FAILED;
	}
	return phase == FERRY_JOURNAL_COMMITTED ? FERRY_EV_RECORDED : FERRY_EV_NOTHING;
}

/* From here on nothing is cancelled: a Commit half sent may have been read. */
static enum ferry_switch_event send_commit(struct ferry_switch_source *s)
{
	struct ferry_message m = {.type = FERRY_FRAME_COMMIT};
	uint64_t now = ferry_now_ns();
	int rc;

	if (!s->loaded_ns && !s->took_over) {
		s->loaded_ns = now;
		s->result->device_state_ns = now - s->stopped_ns;
	}
	m.commit.stopped_for_ns = s->qemu.runs ? now - s->entry.stop_ns : 0;
	rc = ferry_channel_send(&s->link, &m, -1);
	return rc < 0 ? link_failed(s, rc, "Commit") : FERRY_EV_NOTHING;
}

static void plan_redial(struct ferry_switch_source *s)
{
	s->redial_ms = s->redial_ms ? FERRY_MIN(s->redial_ms * 2, REDIAL_MAX_MS) : REDIAL_MIN_MS;
	s->redial_ns = ferry_now_ns() + s->redial_ms * (uint64_t)FERRY_NS_PER_MS;
}

enum ferry_switch_event ferry_source_redial(struct ferry_switch_source *s)
{
	struct ferry_failure why = {0};
	int rc;

	if (!s->redial_ns || ferry_now_ns() < s->redial_ns)
		return FERRY_EV_NOTHING;
	rc = open_link(s, REDIAL_TIMEOUT_MS, &why);
	if (rc < 0) {
		ferry_debug(s->config->log, "the switchover connection: %s", why.text);
		plan_redial(s);
		return FERRY_EV_NOTHING;
	}
	s->redial_ns = 0;
	s->redial_ms = 0;
	ferry_info(s->config->log, "the switchover connection is open again");
	return FERRY_EV_LINK_UP;
}

/* --- undo ----------------------------------------------------------------------------------- */

/* QEMU announces the end of a migration a moment before it lets the guest be resumed. */
static void await_migration_left(struct ferry_switch_source *s, uint64_t deadline)
{
	char status[FERRY_QMP_TEXT_MAX];

	while (!ferry_qemu_status(s->qmp, status, NULL) && !strcmp(status, "finish-migrate") &&
	       ferry_now_ns() < deadline)
		(void)ferry_net_wait(ferry_qmp_fd(s->qmp), POLLIN, CANCEL_POLL_MS, -1);
}

/*
 * A migration that goes on could still stop the guest again, and QEMU refuses to resume one in the
 * middle of it: wait for its end.
 */
static void cancel_state(struct ferry_switch_source *s)
{
	uint64_t deadline = ferry_now_ns() + CANCEL_TIMEOUT_MS * (uint64_t)FERRY_NS_PER_MS;
	bool over = !s->state_started || s->state_over;
	int rc = 0;

	/* First of all: QEMU answers to nothing while it is stuck in writing to us. */
	ferry_source_close_state(s);
	if (!s->qmp || !s->state_started)
		return;
	if (!over)
		rc = ferry_qmp_execute(s->qmp, "migrate_cancel", NULL, NULL, NULL);
	while (!over && rc != -ECONNRESET && ferry_now_ns() < deadline) {
		struct ferry_qmp_message m;
		const char *status;

		rc = ferry_qmp_event(s->qmp, &m, NULL);
		if (!rc)
			(void)ferry_net_wait(ferry_qmp_fd(s->qmp), POLLIN, 100, -1);
		if (rc <= 0)
			continue;
		status = json_string_value(json_object_get(m.body, "status"));
		over = status && (!strcmp(status, "cancelled") || !strcmp(status, "failed") ||
				  !strcmp(status, "completed"));
		ferry_qmp_message_fini(&m);
	}
	if (rc == -ECONNRESET)
		ferry_source_vmm_gone(s);
	else
		await_migration_left(s, deadline);
}

/*
 * A target that has loaded its devices has told the network that the guest is there. Best effort: a
 * guest without network devices has nobody to tell.
 */
static void announce_guest(struct ferry_switch_source *s)
{
	if (s->stopped_said)
		(void)ferry_qmp_execute(s->qmp, "announce-self",
					FERRY_QMP_ARGS("{s:i, s:i, s:i, s:i}", "initial", 50, "max",
						       550, "rounds", 5, "step", 100),
					NULL, NULL);
}

static void cont_guest(struct ferry_switch_source *s)
{
	struct ferry_failure why = {0};
	int rc;

	if (!s->qmp || !s->state_started || !s->qemu.runs)
		return;
	rc = ferry_qemu_cont(s->qmp, &why);
	if (!rc) {
		uint64_t stood_ns = s->stop_ns ? ferry_now_ns() - s->stop_ns : 0;

		ferry_info(s->config->log,
			   "the guest runs on at the source; it stood still for %.1f ms",
			   (double)stood_ns / FERRY_NS_PER_MS);
		announce_guest(s);
		return;
	}
	if (rc == -ECONNRESET) {
		ferry_source_vmm_gone(s);
		return;
	}
	ferry_fail(
		&s->story, FERRY_REFUSE, s->story.err,
		"%.200s; AND THE GUEST STANDS STILL: %.150s; resume it by 'cont' in the monitor of "
		"the source's QEMU",
		s->why.text, why.text);
}

/* Once all of the device state is sent, the target may hold a loaded guest and wait for our word. */
static void reach_target(struct ferry_switch_source *s)
{
	uint64_t end = ferry_now_ns() + (s->state_complete ? UNDO_TELL_MS : 0) *
						(uint64_t)FERRY_NS_PER_MS;

	while (open_link(s, REDIAL_TIMEOUT_MS, NULL) < 0 && ferry_now_ns() < end) {
		if (ferry_net_wait(s->config->stop_fd, POLLIN, REDIAL_MIN_MS, -1) != -ETIMEDOUT)
			return;
	}
}

static void tell_abort(struct ferry_switch_source *s)
{
	bool told;

	s->m = (struct ferry_message){.type = FERRY_FRAME_ABORT};
	snprintf(s->m.abort.reason, sizeof(s->m.abort.reason), "%.*s", FERRY_MAX_TEXT - 1,
		 s->why.text);
	if (s->link.fd < 0 && s->stopped_said)
		reach_target(s);
	told = s->link.fd >= 0 && !ferry_channel_send(&s->link, &s->m, -1);
	s->abort_untold = !told && s->state_complete;
	if (s->abort_untold)
		ferry_warn(s->config->log,
			   "the target could not be told that the guest stays here, and may wait for "
			   "that word; the next 'pageferry migrate' of this guest tells it");
	ferry_source_close_link(s);
}

void ferry_source_keep_untold(struct ferry_switch_source *s)
{
	struct ferry_failure f = {0};

	s->entry.phase = FERRY_JOURNAL_UNDONE;
	s->entry.takeovers++;
	if (ferry_journal_update(&s->journal, &s->entry, &f) < 0)
		ferry_warn(s->config->log, "%s", f.text);
}

static enum ferry_switch_event undo(struct ferry_switch_source *s, enum ferry_switch_action action)
{
	switch (action) {
	case FERRY_DO_CANCEL_STATE:
		cancel_state(s);
		break;
	case FERRY_DO_CONT_GUEST:
		cont_guest(s);
		break;
	case FERRY_DO_TELL_ABORT:
		tell_abort(s);
		break;
	case FERRY_DO_CLOSE_PAGES:
		ferry_source_stop_serving(s);
		break;
	case FERRY_DO_RESTORE_VMM:
		if (s->qmp)
			ferry_qemu_setup_restore(&s->setup);
		break;
	default:
		break;
	}
	return FERRY_EV_NOTHING;
}

enum ferry_switch_event ferry_source_perform(struct ferry_switch_source *s,
					     enum ferry_switch_action action)
{
	switch (action) {
	case FERRY_DO_SEND_PREPARE:
		return send_prepare(s);
	case FERRY_DO_DIAL_PAGES:
		return dial_pages(s);
	case FERRY_DO_RECORD:
		return record(s);
	case FERRY_DO_SEND_STOPPED:
		s->stopped_said = true;
		return send_simple(s, FERRY_FRAME_STOPPED);
	case FERRY_DO_START_STATE:
		return start_state(s);
	case FERRY_DO_SERVE_PAGES:
		return serve_pages(s);
	case FERRY_DO_SEND_STATE_END:
		return send_simple(s, FERRY_FRAME_DEVICE_STATE_END);
	case FERRY_DO_SEND_COMMIT:
		return send_commit(s);
	case FERRY_DO_REDIAL:
		plan_redial(s);
		return FERRY_EV_NOTHING;
	default:
		return undo(s, action);
	}
}
