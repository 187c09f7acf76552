/* SPDX-License-Identifier: Apache-2.0 */
/* What the target of a switchover does, action by action. */
#include "migrate/switch_target.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/net.h"
#include "base/util.h"
#include "migrate/qemu_ram.h"

/* QEMU reads the device state as fast as it loads it, which may need pages from the source. */
#define LOAD_TIMEOUT_MS 30000
#define STOP_TIMEOUT_MS 10000 /* a processor that waits for a page does not stop */
#define RTT_TIMEOUT_MS	1000
#define VMM_ATTEMPTS	30		  /* of two seconds each */
#define STATE_NAME	"pageferry-state" /* of the pipe, at QEMU */

/* --- the link and the monitor ---------------------------------------------------------------- */

void ferry_target_side_close_link(struct ferry_switch_target *s)
{
	ferry_watch_remove(&s->watch, s->link.fd);
	ferry_channel_close(&s->link);
}

enum ferry_switch_event ferry_target_side_vmm_gone(struct ferry_switch_target *s)
{
	ferry_fail(&s->why, FERRY_LOST, -ECONNRESET,
		   "the target's QEMU has ended%s, or closed its monitor; its own log says why",
		   s->core.machine.state == FERRY_TGT_STARTING ||
				   s->core.machine.state == FERRY_TGT_LOADING ||
				   s->core.machine.state == FERRY_TGT_FINISHING
			   ? " while it loaded the device state"
			   : "");
	if (s->qmp) {
		ferry_watch_remove(&s->watch, ferry_qmp_fd(s->qmp));
		ferry_qemu_setup_fini(&s->setup);
		ferry_qmp_free(s->qmp);
		s->qmp = NULL;
	}
	ferry_watch_remove(&s->watch, s->pidfd);
	ferry_close(TAKE_FD(s->pidfd));
	return FERRY_EV_VMM_GONE;
}

/* The event that an error of the monitor amounts to. */
static enum ferry_switch_event vmm_failed(struct ferry_switch_target *s, int rc)
{
	return rc == -ECONNRESET ? ferry_target_side_vmm_gone(s) : FERRY_EV_FAILED;
}

enum ferry_switch_event ferry_target_side_take_link(struct ferry_switch_target *s)
{
	struct ferry_failure why = {0};
	struct ferry_hello hello;
	int fd = ferry_acceptor_take(s->acceptor, &hello);

	if (fd < 0)
		return FERRY_EV_NOTHING;
	/* A newer one of the same session: the source has lost the old one. */
	ferry_target_side_close_link(s);
	if (ferry_channel_welcome(&s->link, s->config->tls, fd, FERRY_SIDE_TARGET, &hello, &why) < 0) {
		s->why = why;
		return FERRY_EV_LINK_LOST;
	}
	s->hello = hello;
	ferry_watch_add(&s->watch, s->link.fd, FERRY_WATCH_LINK);
	return FERRY_EV_LINK_UP;
}

/* --- check ---------------------------------------------------------------------------------- */

/*
 * Was there one before us that was killed? Then its userfaultfd is still open in QEMU.
 * Return: 1 when the guest is, or may be, here; 0 when not; or why that one can't be taken over.
 */
static int find_predecessor(struct ferry_switch_target *s)
{
	int rc;

	if (s->journal.found != FERRY_KEEP_FOUND)
		return 0;
	rc = ferry_uffd_adopt(&s->uffd, (pid_t)s->entry.head.pid, &s->why);
	if (rc < 0 && rc != -ENOENT)
		return rc;
	return !rc && ferry_switch_orphan(s->entry.phase) != FERRY_EV_NOTHING;
}

static enum ferry_switch_event nothing_to_recover(struct ferry_switch_target *s)
{
	if (s->journal.found == FERRY_KEEP_OTHER)
		ferry_fail(&s->why, FERRY_REFUSE, -ESTALE,
			   "there is another guest behind this monitor: the one that was received "
			   "was in process %d, which has ended",
			   (int)s->entry.head.pid);
	else
		ferry_fail(&s->why, FERRY_REFUSE, -ENOENT,
			   "there is nothing to recover: no 'pageferry receive' of this QEMU was "
			   "killed while a guest was in it");
	return FERRY_EV_FAILED;
}

/* The record of one that is served already: without it, only the next recovery would suffer. */
static void note(struct ferry_switch_target *s)
{
	struct ferry_failure f = {0};

	if (ferry_journal_update(&s->journal, &s->entry, &f) < 0)
		ferry_warn(s->config->log, "%s", f.text);
}

/* QEMU is not asked for anything before faults are served again: it may wait for a page. */
static enum ferry_switch_event take_over(struct ferry_switch_target *s)
{
	s->begin_ns = ferry_now_ns();
	ferry_info(s->config->log, "going on with the switchover of a process that was killed");
	ferry_journal_qemu(&s->entry, &s->qemu);
	s->pidfd = (int)syscall(SYS_pidfd_open, s->entry.head.pid, 0);
	ferry_watch_add(&s->watch, s->pidfd, FERRY_WATCH_VMM);
	s->entry.takeovers++;
	s->entry.addr = s->config->address;
	note(s);
	return ferry_switch_orphan(s->entry.phase);
}

static int connect_vmm(struct ferry_switch_target *s)
{
	int rc = ferry_qmp_connect(&s->qmp, s->config->qmp_path, s->config->stop_fd, &s->why);

	if (rc < 0)
		return rc;
	ferry_watch_add(&s->watch, ferry_qmp_fd(s->qmp), FERRY_WATCH_VMM);
	return 0;
}

/* Return: FERRY_EV_NOTHING to begin a switchover. */
static enum ferry_switch_event look_back(struct ferry_switch_target *s)
{
	int found = find_predecessor(s);

	if (found < 0)
		return FERRY_EV_ORPHAN_LEFT;
	if (found && s->config->source_lost && s->entry.phase < FERRY_JOURNAL_COMMITTED) {
		ferry_fail(
			&s->why, FERRY_REFUSE, -EEXIST,
			"the source has never said that the guest was given up there, so that "
			"it may run on: if it does not, end this QEMU, and start the guest anew");
		return FERRY_EV_ORPHAN_LEFT;
	}
	if (found && !s->config->source_lost &&
	    ferry_journal_check_encrypted(&s->entry, s->config->tls, &s->why) < 0)
		return FERRY_EV_ORPHAN_LEFT;
	if (found && s->config->recovery != FERRY_RECOVER_NOT)
		return take_over(s);
	if (found) {
		ferry_fail(&s->why, FERRY_REFUSE, -EEXIST,
			   "a 'pageferry receive' of this QEMU was killed while a guest was in it");
		return FERRY_EV_ORPHAN_LEFT;
	}
	return s->config->recovery == FERRY_RECOVER_ONLY ? nothing_to_recover(s)
							 : FERRY_EV_NOTHING;
}

static enum ferry_switch_event look_at_vmm(struct ferry_switch_target *s)
{
	int rc = ferry_journal_open(&s->journal, s->config->state_dir, FERRY_SIDE_TARGET,
				    s->config->qmp_path, &s->entry, &s->why);
	enum ferry_switch_event event = rc < 0 ? FERRY_EV_FAILED : look_back(s);

	if (event)
		return event;
	rc = connect_vmm(s);
	if (rc < 0)
		return FERRY_EV_FAILED;
	rc = ferry_qemu_inspect_target(&s->qemu, s->qmp, s->config->log, &s->why);
	if (!rc)
		rc = ferry_qemu_setup_look(&s->setup, s->qmp, FERRY_SIDE_TARGET, s->config->log,
					   &s->why);
	if (!rc)
		rc = ferry_qemu_setup_apply(&s->setup, &s->why);
	return rc < 0 ? vmm_failed(s, rc) : FERRY_EV_CHECKED;
}

enum ferry_switch_event ferry_target_side_check(struct ferry_switch_target *s)
{
	int rc = ferry_watch_init(&s->watch);
	enum ferry_switch_event event;

	if (rc < 0) {
		ferry_fail_errno(&s->why, FERRY_REFUSE, rc, "epoll");
		return FERRY_EV_FAILED;
	}
	ferry_watch_add(&s->watch, s->config->stop_fd, FERRY_WATCH_STOP);
	event = look_at_vmm(s);
	if (event == FERRY_EV_FAILED || event == FERRY_EV_VMM_GONE ||
	    event == FERRY_EV_ORPHAN_LEFT) {
		ferry_fail_prefix(&s->why, "target");
		return event;
	}
	rc = ferry_acceptor_new(&s->acceptor, s->config->listen_fd, s->config->tls, s->config->log,
				&s->why);
	/* Who takes over starts it once the target is there: see adopt(). */
	if (!rc && event == FERRY_EV_CHECKED)
		rc = ferry_acceptor_start(s->acceptor, &s->why);
	if (rc < 0)
		return event == FERRY_EV_CHECKED ? FERRY_EV_FAILED : FERRY_EV_ORPHAN_LEFT;
	ferry_watch_add(&s->watch, ferry_acceptor_fd(s->acceptor), FERRY_WATCH_ACCEPTOR);
	return event;
}

void ferry_target_side_show_trace(struct ferry_switch_target *s, struct ferry_trace *trace)
{
	const struct ferry_switch_observer *o = &s->config->observer;

	if (o->trace)
		o->trace(o->ctx, trace);
}

/* --- attach --------------------------------------------------------------------------------- */

/* What came with Prepare, the message at hand. */
static int take_prepare(struct ferry_switch_target *s)
{
	const struct ferry_prepare *p = &s->m.prepare;

	if (s->config->verify && !(s->link.connection.features & FERRY_FEATURE_DIGEST))
		return ferry_fail(&s->why, FERRY_REFUSE, -EOPNOTSUPP,
				  "the source can't be asked for digests of its memory; use a later "
				  "release there, or leave --verify out");
	s->begin_ns = ferry_now_ns();
	s->entry = (struct ferry_journal_entry){.session = s->hello.session,
						.n_bulk = p->n_bulk,
						.paused = p->paused,
						.encrypted = s->config->tls != NULL,
						.addr = s->config->address};
	ferry_info(s->config->log, "the guest '%s' wants to come, from QEMU %s", p->vm,
		   p->vmm_version);
	if (strcmp(p->vmm_version, s->qemu.version))
		ferry_warn(s->config->log,
			   "the target's QEMU is %s; QEMU supports moving to the same or a newer "
			   "version",
			   s->qemu.version);
	return ferry_qemu_compare(&s->qemu, p, &s->why);
}

/* @adopt: the RAM is registered already, and partly filled */
static int make_target(struct ferry_switch_target *s, bool adopt)
{
	struct ferry_target_region regions[FERRY_MAX_REGIONS];
	struct ferry_target_config config = {
		.uffd = s->uffd,
		.regions = regions,
		.n_regions = s->qemu.n_ram,
		.n_bulk = s->entry.n_bulk,
		.adopt = adopt,
		.ends_with_push = true,
		.max_bytes_per_second = s->config->max_bytes_per_second,
		.no_trace = s->config->no_trace,
		.no_large_pages = s->config->no_large_pages,
		.source_lost = s->config->source_lost && adopt,
		.dense = adopt ? NULL : s->m.prepare.dense,
		.n_dense = adopt ? 0 : s->m.prepare.n_dense,
		.tls = s->config->tls,
		.no_checksum = s->config->no_checksum,
		.verify = s->config->verify,
		.on_lost = s->config->on_lost,
		.log = s->config->log,
	};
	uint64_t begin = ferry_now_ns();
	int rc = 0;

	for (uint32_t i = 0; i < s->qemu.n_ram; i++)
		regions[i] = (struct ferry_target_region){.desc = s->qemu.ram[i].desc,
							  .start = s->qemu.ram[i].start,
							  .kind = s->qemu.ram[i].kind};
	if (config.uffd.fd < 0)
		rc = ferry_uffd_attach(&config.uffd, s->qemu.pid, FERRY_TARGET_UFFD_FEATURES,
				       &s->why);
	if (rc < 0) {
		ferry_fail_prefix(&s->why, "the target's QEMU (pid %d)", (int)s->qemu.pid);
		return rc;
	}
	s->result->attach_ns = ferry_now_ns() - begin;
	s->uffd = FERRY_UFFD_NONE; /* it is the target's */
	if (ferry_journal_map(&s->journal, &s->qemu, !adopt, &s->kept, &s->kept_bytes) < 0)
		ferry_warn(s->config->log,
			   "no room to keep what is known of each page: should this process be killed, "
			   "pages that were discarded may come back");
	config.kept = s->kept;
	rc = ferry_target_new(&s->target, &config, &s->why);
	if (!rc)
		ferry_target_side_show_trace(s, ferry_target_trace(s->target));
	return rc;
}

static int open_load_pipe(struct ferry_switch_target *s)
{
	int fds[2], rc;

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) < 0)
		return ferry_fail_errno(&s->why, FERRY_REFUSE, -errno, "socketpair");
	s->load_fd = fds[0];
	s->load_peer_fd = fds[1];
	rc = ferry_qmp_give_fd(s->qmp, STATE_NAME, s->load_peer_fd, &s->why);
	if (!rc)
		ferry_close(TAKE_FD(s->load_peer_fd));
	return rc;
}

/* What is filled in place was looked at when it was made ready. */
static int check_still_empty(struct ferry_switch_target *s)
{
	int rc = 0;

	for (uint32_t i = 0; i < s->qemu.n_ram && !rc; i++)
		if (!ferry_target_is_in_place(s->target, i))
			rc = ferry_qemu_check_ram_empty(&s->qemu.ram[i], &s->why);
	return rc;
}

/* So that one after us can go on when we are killed. */
static enum ferry_switch_event record(struct ferry_switch_target *s)
{
	enum ferry_journal_phase phase = ferry_switch_phase(&s->core);
	int rc = 0;

	s->entry.phase = phase;
	if (phase >= FERRY_JOURNAL_COMMITTED)
		note(s);
	else if (phase == FERRY_JOURNAL_BEGUN)
		rc = ferry_journal_begin(&s->journal, phase, &s->qemu, &s->entry, &s->why);
	else
		rc = ferry_journal_update(&s->journal, &s->entry, &s->why);
	return rc < 0 ? FERRY_EV_FAILED : FERRY_EV_NOTHING;
}

static enum ferry_switch_event attach(struct ferry_switch_target *s)
{
	int rc = take_prepare(s);

	if (!rc)
		rc = make_target(s, false);
	/* Again, now that nobody can add a page unseen. */
	if (!rc)
		rc = check_still_empty(s);
	if (!rc)
		rc = ferry_target_start(s->target, &s->why);
	if (!rc)
		rc = ferry_target_expect(s->target, &s->entry.session, s->entry.n_bulk, &s->why);
	if (!rc)
		rc = open_load_pipe(s);
	if (rc < 0)
		return vmm_failed(s, rc);
	ferry_acceptor_set_target(s->acceptor, s->target);
	return FERRY_EV_ATTACHED;
}

static enum ferry_switch_event adopt(struct ferry_switch_target *s)
{
	int rc = make_target(s, true);

	if (!rc)
		rc = ferry_target_start(s->target, &s->why);
	if (!rc)
		rc = ferry_target_expect(s->target, &s->entry.session, s->entry.n_bulk, &s->why);
	if (rc < 0)
		return FERRY_EV_FAILED;
	ferry_acceptor_reserve(s->acceptor, &s->entry.session);
	ferry_acceptor_set_target(s->acceptor, s->target);
	return ferry_acceptor_start(s->acceptor, &s->why) < 0 ? FERRY_EV_FAILED : FERRY_EV_NOTHING;
}

static int send_simple(struct ferry_switch_target *s, enum ferry_frame_type type)
{
	struct ferry_message m = {.type = type};
	int rc;

	if (s->link.fd < 0)
		return -ENOTCONN;
	if (type == FERRY_FRAME_PING)
		m.ping.sent_ns = ferry_now_ns();
	if (type == FERRY_FRAME_RUNNING)
		m.running.downtime_ns = s->result->downtime_ns;
	rc = ferry_channel_send(&s->link, &m, s->config->stop_fd);
	if (rc < 0) {
		ferry_fail_errno(&s->why, FERRY_LINK, rc, "sending %s to the source",
				 ferry_frame_type_name(type));
		ferry_target_side_close_link(s);
	}
	return rc;
}

/* While the source has nothing to do but to answer: later its own work would be in the time. */
static enum ferry_switch_event measure_rtt(struct ferry_switch_target *s)
{
	int rc = send_simple(s, FERRY_FRAME_PING);

	if (!rc)
		rc = ferry_channel_receive(&s->link, &s->m, RTT_TIMEOUT_MS, s->config->stop_fd,
					   &s->why);
	if (!rc)
		return ferry_target_side_message(s);
	if (rc == -ETIMEDOUT)
		return FERRY_EV_NOTHING;
	ferry_target_side_close_link(s);
	if (rc != -ECANCELED)
		return FERRY_EV_LINK_LOST;
	ferry_fail(&s->why, FERRY_REFUSE, rc, "stopped by the user");
	return FERRY_EV_USER_STOP;
}

static enum ferry_switch_event send_prepared(struct ferry_switch_target *s)
{
	enum ferry_switch_event event = measure_rtt(s);

	if (event)
		return event;
	return send_simple(s, FERRY_FRAME_PREPARED) < 0 ? FERRY_EV_LINK_LOST : FERRY_EV_NOTHING;
}

/* --- device state --------------------------------------------------------------------------- */

static enum ferry_switch_event start_load(struct ferry_switch_target *s)
{
	int rc;

	s->load_started = true;
	/*
	 * The source's guest was running when its QEMU began to write, and says so in its state: this QEMU
	 * would run it as soon as it has loaded. A 'stop' now is for then.
	 * Source: QEMU, qmp_stop(): autostart in RUN_STATE_INMIGRATE
	 */
	rc = ferry_qmp_execute(s->qmp, "stop", NULL, NULL, &s->why);
	if (rc < 0)
		return vmm_failed(s, rc);
	rc = ferry_qmp_execute(s->qmp, "migrate-incoming",
			       FERRY_QMP_ARGS("{s:s}", "uri", "fd:" STATE_NAME), NULL, &s->why);
	if (rc < 0)
		return vmm_failed(s, rc);
	return s->m.type == FERRY_FRAME_DEVICE_STATE
		       ? ferry_target_side_load(s, s->m.payload, s->m.payload_bytes)
		       : FERRY_EV_NOTHING;
}

/*
 * QEMU takes it when it has the page that it may be waiting for, which does not come any more once
 * the source has left.
 * Errors: -ECANCELED, -ENOTCONN without a source, -ETIMEDOUT, send()'s.
 */
static int write_state(struct ferry_switch_target *s, const char *data, size_t len)
{
	struct pollfd p[] = {{.fd = s->load_fd, .events = POLLOUT},
			     {.fd = s->config->stop_fd, .events = POLLIN},
			     {.fd = s->link.fd, .events = POLLRDHUP}};

	while (len) {
		ssize_t n = send(s->load_fd, data, len, MSG_NOSIGNAL | MSG_DONTWAIT);
		int rc;

		if (n > 0) {
			data += n;
			len -= (size_t)n;
			continue;
		}
		if (errno != EAGAIN && errno != EINTR)
			return -errno;
		rc = poll(p, FERRY_ARRAY_SIZE(p), LOAD_TIMEOUT_MS);
		if (!rc)
			return -ETIMEDOUT;
		if (rc < 0 || p[0].revents)
			continue;
		return p[1].revents ? -ECANCELED : -ENOTCONN;
	}
	return 0;
}

enum ferry_switch_event ferry_target_side_load(struct ferry_switch_target *s, const void *data,
					       size_t len)
{
	int rc;

	if (s->core.machine.state != FERRY_TGT_STARTING &&
	    s->core.machine.state != FERRY_TGT_LOADING) {
		ferry_fail(&s->why, FERRY_REFUSE, -EPROTO, "device state came out of place");
		return FERRY_EV_FAILED;
	}
	s->load_bytes += len;
	if (s->load_bytes > FERRY_MAX_DEVICE_STATE) {
		ferry_fail(&s->why, FERRY_REFUSE, -EFBIG, "there is no end to the device state");
		return FERRY_EV_FAILED;
	}
	rc = write_state(s, data, len);
	if (!rc)
		return FERRY_EV_NOTHING;
	if (rc == -ECANCELED) {
		ferry_fail(&s->why, FERRY_REFUSE, rc, "stopped by the user");
		return FERRY_EV_USER_STOP;
	}
	if (rc == -ENOTCONN) {
		ferry_fail(&s->why, FERRY_LINK, rc,
			   "the source left while its device state was loaded");
		return FERRY_EV_LINK_LOST;
	}
	ferry_fail_errno(&s->why, FERRY_REFUSE, rc,
			 "the target's QEMU does not take the device state (its own log says why)");
	return FERRY_EV_FAILED;
}

/* --- run ------------------------------------------------------------------------------------ */

/* After taking over: QEMU answers once it has the page that it may be waiting for. */
static int await_vmm(struct ferry_switch_target *s)
{
	int rc = -EBUSY;

	for (int i = 0; rc == -EBUSY && i < VMM_ATTEMPTS; i++)
		rc = connect_vmm(s);
	return rc;
}

static void note_downtime(struct ferry_switch_target *s)
{
	if (s->entry.paused || !s->commit_ns)
		return;
	s->result->downtime_ns =
		s->stopped_for_ns + s->rtt_ns / 2 + (ferry_now_ns() - s->commit_ns);
	ferry_info(s->config->log, "the guest runs here; it stood still for about %.1f ms",
		   (double)s->result->downtime_ns / FERRY_NS_PER_MS);
}

static enum ferry_switch_event run_guest(struct ferry_switch_target *s)
{
	int rc = 0;

	if (!s->qmp)
		rc = await_vmm(s);
	if (s->entry.paused)
		ferry_info(s->config->log, "the guest was paused when it left and stays paused");
	else if (!rc)
		rc = ferry_qemu_cont(s->qmp, &s->why);
	if (rc < 0)
		return rc == -ECONNRESET ? ferry_target_side_vmm_gone(s) : FERRY_EV_RUN_REFUSED;
	note_downtime(s);
	return FERRY_EV_GUEST_RUNS;
}

void ferry_target_side_pages_lost(struct ferry_switch_target *s)
{
	const struct ferry_switch_observer *o = &s->config->observer;
	struct ferry_failure why = {0};
	int rc = 0;

	if (o->lost)
		o->lost(o->ctx, &s->why);
	if (!s->config->stop_on_lost)
		return;
	if (!s->qmp)
		rc = ferry_qmp_connect(&s->qmp, s->config->qmp_path, s->config->stop_fd, &why);
	if (!rc)
		rc = ferry_qmp_execute_within(s->qmp, STOP_TIMEOUT_MS, "stop", NULL, NULL, &why);
	if (rc < 0)
		ferry_error(s->config->log, "the guest can't be stopped: %s", why.text);
	else
		ferry_error(s->config->log, "the guest is stopped, as --on-lost says");
}

/* --- undo ----------------------------------------------------------------------------------- */

static void drop_load(struct ferry_switch_target *s)
{
	ferry_close(TAKE_FD(s->load_fd));
	ferry_close(TAKE_FD(s->load_peer_fd));
}

static void tell_abort(struct ferry_switch_target *s)
{
	s->m = (struct ferry_message){.type = FERRY_FRAME_ABORT};
	snprintf(s->m.abort.reason, sizeof(s->m.abort.reason), "%.*s", FERRY_MAX_TEXT - 1,
		 s->why.text);
	if (s->link.fd >= 0)
		(void)ferry_channel_send(&s->link, &s->m, -1);
	ferry_target_side_close_link(s);
}

static void tell_lost(struct ferry_switch_target *s)
{
	if (s->link.fd >= 0)
		ferry_channel_refuse(s->link.fd, FERRY_ERROR_INTERNAL, s->why.text);
	ferry_target_side_close_link(s);
}

static void abandon(struct ferry_switch_target *s)
{
	if (!s->target)
		return;
	ferry_acceptor_set_target(s->acceptor, NULL);
	ferry_target_abandon(s->target);
	ferry_target_stats(s->target, &s->result->stats);
	ferry_target_side_show_trace(s, NULL);
	ferry_target_free(s->target);
	s->target = NULL;
}

static enum ferry_switch_event undo(struct ferry_switch_target *s, enum ferry_switch_action action)
{
	switch (action) {
	case FERRY_DO_DROP_LOAD:
		drop_load(s);
		break;
	case FERRY_DO_TELL_ABORT:
		tell_abort(s);
		break;
	case FERRY_DO_TELL_LOST:
		tell_lost(s);
		break;
	case FERRY_DO_ABANDON:
		abandon(s);
		break;
	case FERRY_DO_RESTORE_VMM:
		/* A QEMU whose loading was cut off can't be used again, or has ended already. */
		if (s->qmp && (s->core.machine.state != FERRY_TGT_UNDOING || !s->load_started))
			ferry_qemu_setup_restore(&s->setup);
		break;
	default:
		break;
	}
	return FERRY_EV_NOTHING;
}

enum ferry_switch_event ferry_target_side_perform(struct ferry_switch_target *s,
						  enum ferry_switch_action action)
{
	switch (action) {
	case FERRY_DO_FREE_SEAT:
		ferry_acceptor_free_seat(s->acceptor);
		return FERRY_EV_NOTHING;
	case FERRY_DO_ATTACH:
		return attach(s);
	case FERRY_DO_ADOPT:
		return adopt(s);
	case FERRY_DO_RECORD:
		return record(s);
	case FERRY_DO_SEND_PREPARED:
		return send_prepared(s);
	case FERRY_DO_START_LOAD:
		return start_load(s);
	case FERRY_DO_SEND_LOADED:
		return send_simple(s, FERRY_FRAME_LOADED) < 0 ? FERRY_EV_LINK_LOST
							      : FERRY_EV_NOTHING;
	case FERRY_DO_RUN_GUEST:
		return run_guest(s);
	case FERRY_DO_SEND_RUNNING:
		/* When it does not arrive, the source asks again. */
		(void)send_simple(s, FERRY_FRAME_RUNNING);
		return FERRY_EV_NOTHING;
	case FERRY_DO_PUSH:
		(void)ferry_target_push(s->target);
		return FERRY_EV_NOTHING;
	default:
		return undo(s, action);
	}
}
