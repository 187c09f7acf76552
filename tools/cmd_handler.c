// SPDX-License-Identifier: Apache-2.0
/*
 * A userfaultfd handler for VMMs that restore snapshots, as Firecracker does.
 *
 * Two processes: the keeper (handler/keeper.h), which this one becomes, and its worker, which has
 * everything below start() and is started again when it dies.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/stat.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/net.h"
#include "handler/handler.h"
#include "handler/keeper.h"
#include "tools/confine.h"
#include "tools/isolation.h"
#include "tools/job.h"
#include "tools/json.h"
#include "tools/secure.h"

#define LOOK_MS		100 /* how often the counters are read */
#define MAX_VMS		64u
#define MAX_VMS_MOST	1024u
#define FDS_A_VM	20u
#define FDS_AT_LEAST	256u
#define STATUS_VMS_MOST 64u /* that are listed one by one */

static const struct option_def handler_options[] = {
	{.name = "socket",
	 .arg = "PATH",
	 .help = "UNIX socket that VMMs connect to: Firecracker's mem_backend.backend_path",
	 .kind = OPTION_TEXT,
	 .required = true,
	 OPTION_AT(socket)},
	{.name = "file",
	 .arg = "PATH",
	 .help = "the snapshot's memory file",
	 .kind = OPTION_TEXT,
	 OPTION_AT(file)},
	{.name = "from",
	 .arg = "ADDR",
	 .help = "address of the page server that has the snapshot's memory file, instead of "
		 "--file; "
		 "each page is fetched once for all VMs",
	 .kind = OPTION_ADDR_DIAL,
	 OPTION_AT(from)},
	OPTIONS_SECURE_DIAL,
	{.name = "record",
	 .arg = "FILE",
	 .help = "record which pages each VM touches in its first 10 seconds, and add them to the "
		 "working set in this file; nothing is pushed meanwhile",
	 .kind = OPTION_TEXT,
	 OPTION_AT(record)},
	{.name = "replay",
	 .arg = "FILE",
	 .help = "push the working set in this file first",
	 .kind = OPTION_TEXT,
	 OPTION_AT(replay)},
	{.name = "max-vms",
	 .arg = "N",
	 .help = "VMs at a time, 1 to 1024 (default: 64); others wait until one is complete",
	 .kind = OPTION_COUNT,
	 .max = MAX_VMS_MOST,
	 OPTION_AT(max_vms)},
	{.name = "user",
	 .arg = "USER",
	 .help = "name or number of the user that the VMMs run as, who gets the socket (default: "
		 "only root and this user may connect)",
	 .kind = OPTION_TEXT,
	 OPTION_AT(user)},
	OPTION_MAX_RATE,
	{.name = "config",
	 .arg = "FILE",
	 .help = "file with more options, one a line: NAME VALUE, without the dashes",
	 .kind = OPTION_CONFIG,
	 OPTION_AT(config)},
	OPTION_METRICS,
	OPTION_CONTROL,
	OPTIONS_COMMON,
};

static int check(const struct options *o, struct ferry_failure *f)
{
	if (!o->file == !o->from.given)
		return ferry_fail(
			f, FERRY_REFUSE, -EINVAL,
			"%s; give the snapshot's memory file with --file PATH, or the page "
			"server that has it with --from ADDR",
			o->file ? "--file and --from exclude each other"
				: "there is nothing to restore from");
	if (o->record && o->replay)
		return ferry_fail(f, FERRY_REFUSE, -EINVAL,
				  "--record and --replay exclude each other; record first, then "
				  "replay");
	return secure_check(o, o->from.given ? &o->from.addr : NULL, f);
}

/* What the keeper has, and each worker begins with. */
struct setup {
	const struct options *o;
	uint32_t max_vms;
	int file_fd; /* owned */
	struct ferry_addr address;
	struct ferry_target_place place; /* at the page server that --from names */
};

struct handler {
	struct job job;
	const struct setup *setup;
	const struct ferry_worker_start *begin;
	struct ferry_image *image;     /* owned */
	struct ferry_record *record;   /* owned; NULL for none */
	struct ferry_replay *replay;   /* owned; NULL for none */
	struct ferry_handler *handler; /* owned */
	struct ferry_handler_stats stats;
	struct ferry_target_stats image_stats;
	bool is_patient; /* VMs were here before the worker: no failure is worth its end */
	bool alone;	 /* without a keeper */
	bool drains;	 /* takes no more VMs; that was told */
	uint32_t n_signals;
};

/* --- the worker: what it tells ---------------------------------------------------------------- */

static json_t *json_vm(const struct ferry_vm_info *vm)
{
	json_t *o = json_object();

	json_put_count(o, "vm", vm->id);
	json_put_count(o, "vmm_pid", (uint64_t)vm->pid);
	json_put_count(o, "ram_bytes", vm->ram_bytes);
	json_put(o, "served_ms", json_ms(vm->served_ns));
	return o;
}

static void put_counts(json_t *o, const struct ferry_handler_stats *s)
{
	json_put_count(o, "vms", s->n_vms);
	json_put_count(o, "vms_filling", s->n_filling);
	json_put_count(o, "vms_ever", s->n_vms_ever);
	json_put_count(o, "vms_complete", s->n_complete);
	json_put_count(o, "vms_gone", s->n_gone);
	json_put_count(o, "vms_refused", s->n_refused);
}

/* Return: false when there is no working set. */
static bool get_replay(const struct handler *h, struct ferry_replay_stats *s)
{
	struct ferry_replay *r = ferry_image_sets(h->image).replay;

	if (r)
		ferry_replay_stats(r, s);
	return r;
}

/* What the working set is good for. */
static void put_replay(json_t *o, const struct handler *h)
{
	struct ferry_replay_stats s;
	json_t *replay;

	if (!get_replay(h, &s))
		return;
	replay = json_object();
	json_put_count(replay, "pages", s.pages);
	json_put_count(replay, "vms", s.n_vms);
	json_put_count(replay, "samples", s.samples_seen);
	json_put_count(replay, "hits", s.hits);
	json_put(replay, "hit_rate",
		 json_real(s.samples_seen ? (double)s.hits / (double)s.samples_seen : 0));
	json_put_count(replay, "late", s.late);
	json_put_count(replay, "missed", s.missed);
	json_put(replay, "pushed_first", json_boolean(s.is_first));
	json_put(o, "replay", replay);
}

/* What crossed the network, once for all VMs. */
static void put_source(json_t *o, const struct handler *h)
{
	const struct ferry_target_stats *s = &h->image_stats;
	json_t *source;

	if (!h->setup->o->from.given)
		return;
	source = json_object();
	json_put_count(source, "pages_total", s->pages_total);
	json_put_count(source, "pages_known", s->pages_known);
	json_put_count(source, "pages_urgent", s->pages_urgent);
	json_put_count(source, "pages_pushed", s->pages_pushed);
	json_put_count(source, "pages_zero", s->pages_zero);
	json_put_count(source, "wire_bytes", s->wire_bytes);
	json_put_count(source, "requests", s->requests);
	json_put_count(source, "resumes", s->resumes);
	json_put(o, "source", source);
}

/* For 'pageferry status'. */
static void more_status(void *ctx, json_t *status)
{
	struct handler *h = ctx;
	struct ferry_vm_info vms[STATUS_VMS_MOST];
	uint32_t n = ferry_handler_vms(h->handler, vms, STATUS_VMS_MOST);
	json_t *list = json_array();

	for (uint32_t i = 0; i < n; i++) {
		json_t *vm = json_vm(&vms[i]);

		json_put(vm, "state", json_text(ferry_vm_state_name(vms[i].state)));
		json_array_append_new(list, vm);
	}
	json_put(status, "vm_list", list);
	json_put_count(status, "pages_discarded", h->stats.target.discarded_pages);
	put_source(status, h);
	put_replay(status, h);
}

static void tell_vm(struct handler *h, const struct ferry_handler_event *e)
{
	char event[32], text[FERRY_FAILURE_TEXT_MAX + 100];
	const char *state = ferry_vm_state_name(e->vm.state);
	json_t *o = json_vm(&e->vm);
	bool trouble = e->why.err && e->vm.state == FERRY_VM_FILLING;

	snprintf(event, sizeof(event), "vm-%s", trouble ? "trouble" : state);
	snprintf(text, sizeof(text), "VM %" PRIu64 " (process %d): %s%s%s", e->vm.id,
		 (int)e->vm.pid, trouble ? "trouble" : state, e->why.err ? ": " : "", e->why.text);
	if (e->why.err) {
		json_put(o, "error", json_text(e->why.text));
		report_count_error(&h->job.report);
	}
	report_event(&h->job.report, event, o, text);
}

static void tell(struct handler *h, const struct ferry_handler_event *e)
{
	json_t *o;

	if (e->type == FERRY_HANDLER_NOTHING)
		return;
	if (e->type == FERRY_HANDLER_VM) {
		tell_vm(h, e);
		return;
	}
	h->alone |= e->type == FERRY_HANDLER_ALONE;
	o = json_object();
	json_put(o, "error", json_text(e->why.text));
	report_count_error(&h->job.report);
	report_event(&h->job.report,
		     e->type == FERRY_HANDLER_ALONE ? "alone"
		     : e->why.err == -EAGAIN	    ? "vm-waits"
						    : "turned-away",
		     o, e->why.text);
}

/* Nothing new is not told again and again. */
static void look(struct handler *h)
{
	uint64_t before = h->stats.target.faults + h->stats.target.wire_bytes + h->stats.n_vms;
	struct ferry_replay_stats replay;

	ferry_handler_stats(h->handler, &h->stats);
	ferry_image_stats(h->image, &h->image_stats);
	h->stats.target.link_up = h->image_stats.link_up;
	if (h->stats.target.faults + h->stats.target.wire_bytes + h->stats.n_vms != before)
		report_target(&h->job.report, &h->stats.target);
	if (get_replay(h, &replay))
		report_replay(&h->job.report, &replay);
}

/* What the session of --from does. */
static void tell_source(struct handler *h)
{
	struct ferry_failure f = {0};
	json_t *o;

	switch (ferry_image_news(h->image, &f)) {
	case FERRY_TARGET_LINK_LOST:
	case FERRY_TARGET_FAILED:
		report_link_lost(&h->job.report, f.text);
		break;
	case FERRY_TARGET_PAGES_LOST:
		o = json_object();
		json_put(o, "error", json_text(f.text));
		report_count_error(&h->job.report);
		report_event(&h->job.report, "pages-lost", o, f.text);
		break;
	case FERRY_TARGET_COMPLETE:
		report_event(&h->job.report, "source-complete", NULL,
			     "the whole snapshot is here; its page server is not needed any more");
		break;
	default:
		break;
	}
}

static bool is_readable(int fd)
{
	return ferry_net_wait(fd, POLLIN, 0, -1) == 0;
}

/* Whichever process the user has signalled: see keeper.h. */
static void heed_signals(struct handler *h)
{
	struct signalfd_siginfo s;

	while (read(h->job.stop_fd, &s, sizeof(s)) == sizeof(s))
		eventfd_write(++h->n_signals == 1 ? h->begin->drain_fd : h->begin->end_fd, 1);
}

static void look_for_drain(struct handler *h)
{
	char text[240];
	json_t *o;

	heed_signals(h);
	if (h->drains || !is_readable(h->begin->drain_fd))
		return;
	h->drains = true;
	look(h);
	report_stage(&h->job.report, "drain");
	if (!h->stats.n_filling)
		return;
	snprintf(text, sizeof(text),
		 "draining: %u VM%s still being filled, and no others are taken; a second signal "
		 "ends at once, and VMs that are not complete then wait for ever",
		 h->stats.n_filling, h->stats.n_filling == 1 ? " is" : "s are");
	o = json_object();
	json_put_count(o, "vms_filling", h->stats.n_filling);
	report_event(&h->job.report, "draining", o, text);
}

static int finish(struct handler *h, const struct ferry_failure *f, int status)
{
	uint64_t total_ns = ferry_now_ns() - h->job.report.start_ns;
	json_t *o = json_object();
	struct ferry_replay_stats replay;
	char text[SUMMARY_MAX];

	look(h);
	json_put_count(o, "ram_bytes", h->stats.ram_bytes);
	put_counts(o, &h->stats);
	json_put_all(o, json_target(&h->stats.target));
	put_source(o, h);
	put_replay(o, h);
	json_put(o, "total_ms", json_ms(total_ns));
	summary_target(&h->stats.target, h->stats.ram_bytes, total_ns, 0, text, sizeof(text));
	if (get_replay(h, &replay))
		summary_replay(&replay, text, sizeof(text));
	if (status == EXIT_DONE)
		return report_completed(&h->job.report, o, text);
	return report_failed(&h->job.report, f, status, o, text);
}

/* The end: all that were to be filled are, or the user does not wait. */
static int stopped(struct handler *h)
{
	struct ferry_handler_event e;
	struct ferry_failure f = {0};

	while (!ferry_handler_wait(h->handler, 0, -1, &e) && e.type != FERRY_HANDLER_NOTHING)
		tell(h, &e);
	look(h);
	ferry_image_leave(h->image);
	if (!h->stats.n_filling)
		return finish(h, NULL, EXIT_DONE);
	ferry_fail(&f, FERRY_LOST, -ECANCELED,
		   "stopped while %u VM%s not complete: %s where %s missing pages, and can't be "
		   "served again; a single signal lets VMs become complete first",
		   h->stats.n_filling, h->stats.n_filling == 1 ? " is" : "s are",
		   h->stats.n_filling == 1 ? "it waits" : "they wait",
		   h->stats.n_filling == 1 ? "it touches" : "they touch");
	return finish(h, &f, EXIT_WAITS);
}

static int serve(struct handler *h)
{
	uint64_t look_ns = 0;

	for (;;) {
		struct ferry_handler_event e;
		struct ferry_failure f = {0};
		int rc = ferry_handler_wait(h->handler, LOOK_MS, h->begin->end_fd, &e);

		if (rc == -ECANCELED)
			return stopped(h);
		if (rc < 0) {
			ferry_fail_errno(&f, FERRY_LINK, rc, "waiting for VMs");
			return finish(h, &f, EXIT_WAITS);
		}
		tell(h, &e);
		look_for_drain(h);
		/* The last thing that the keeper did may have been to give us a VM. */
		if (h->alone || ferry_now_ns() - look_ns >= LOOK_MS * (uint64_t)FERRY_NS_PER_MS) {
			look(h);
			tell_source(h);
			look_ns = ferry_now_ns();
		}
		if (ferry_image_is_broken(h->image)) {
			ferry_fail(&f, FERRY_LINK, -EIO,
				   "the page server of this process broke (the log says how); VMs "
				   "wait until another process has them");
			return finish(h, &f, EXIT_WAITS);
		}
		if (h->alone && h->drains && !h->stats.n_vms)
			return stopped(h);
		if (h->alone && !h->stats.n_vms) {
			ferry_fail(&f, FERRY_LINK, -EPIPE,
				   "the VMs that were here are done, and no others can come; start "
				   "the handler again");
			return finish(h, &f, EXIT_FAILED);
		}
	}
}

/* --- the worker: start ------------------------------------------------------------------------ */

static int open_set(struct handler *h, uint64_t bytes, struct ferry_failure *f)
{
	const struct options *o = h->setup->o;
	_cleanup_free_ char *text = NULL;
	size_t len;
	int rc;

	if (o->record) {
		rc = ferry_record_open(&h->record, o->record, bytes, f);
		if (rc < 0)
			ferry_fail_prefix(f, "--record");
		return rc;
	}
	if (!o->replay)
		return 0;
	rc = ferry_record_read(o->replay, &text, &len, f);
	if (!rc) {
		rc = ferry_replay_open(&h->replay, bytes, text, len, f);
		if (rc < 0)
			ferry_fail_prefix(f, "%s", o->replay);
	}
	if (rc < 0)
		ferry_fail_prefix(f, "--replay");
	return rc;
}

/* Working sets, once it is known how large the snapshot is. From the image. */
static int open_sets(void *ctx, uint64_t bytes, struct ferry_image_sets *sets,
		     struct ferry_failure *f)
{
	struct handler *h = ctx;
	int rc = open_set(h, bytes, f);

	/* VMs that are here are worth more than their working set. */
	if (rc < 0 && h->is_patient) {
		ferry_error(&h->job.report.log, "%s; going on without", f->text);
		report_count_error(&h->job.report);
		*f = (struct ferry_failure){0};
		rc = 0;
	}
	*sets = (struct ferry_image_sets){.record = h->record, .replay = h->replay};
	return rc;
}

static int start(struct handler *h, const struct ferry_worker_start *begin, struct ferry_failure *f)
{
	const struct options *o = h->setup->o;
	struct ferry_image_config image = {
		.fd = h->setup->file_fd,
		.from = o->from.given ? &o->from.addr : NULL,
		.place = ferry_target_place_of(&h->setup->place.session, begin->n_restarts),
		.stop_fd = -1,
		.max_vms = h->setup->max_vms,
		.max_bytes_per_second = o->max_rate,
		.is_patient = begin->is_awaited,
		.sized = open_sets,
		.ctx = h,
		.log = &h->job.report.log};
	struct ferry_handler_config handler = {.records = o->record,
					       .max_vms = h->setup->max_vms,
					       .start = begin,
					       .log = &h->job.report.log};
	unsigned int needs = ISOLATION_PTRACE | ISOLATION_PROC;
	int rc = job_open(&h->job, "handler", o, f);

	if (!rc)
		rc = job_secure(&h->job, o, false, f);
	if (rc < 0)
		return rc;
	h->job.report.stop_fd = begin->end_fd;
	image.stop_fd = begin->drain_fd;
	image.tls = h->job.tls;
	/* To look at another user's process, which its connection names. */
	if (o->from.addr.is_unix)
		needs |= isolation_need_of_socket(o->from.addr.path);
	rc = isolation_narrow(needs, f);
	if (!rc)
		rc = confine(CONFINE_SERVES | CONFINE_MAKES_RINGS | CONFINE_READS | CONFINE_FILLS,
			     f);
	if (rc < 0)
		return rc;
	rc = ferry_image_open(&h->image, &image, f);
	if (rc < 0)
		return rc;
	handler.image = h->image;
	rc = ferry_handler_new(&h->handler, &handler, f);
	if (rc < 0)
		return rc;
	h->job.report.more_ctx = h;
	h->job.report.more = more_status;
	return job_start(&h->job, f);
}

static void tell_restart(struct handler *h, const struct ferry_worker_start *begin)
{
	json_t *o = json_object();
	char text[120];

	snprintf(text, sizeof(text), "started again (%u), as the last worker %s%s",
		 begin->n_restarts, begin->last_signal ? "was killed: " : "failed",
		 begin->last_signal ? strsignal(begin->last_signal) : "");
	json_put_count(o, "restarts", begin->n_restarts);
	json_put_count(o, "pid", (uint64_t)getpid());
	report_count_error(&h->job.report);
	report_event(&h->job.report, "restarted", o, text);
}

static int work(void *setup, const struct ferry_worker_start *begin)
{
	struct handler h = {.setup = setup, .begin = begin, .is_patient = begin->is_awaited};
	struct ferry_failure f = {0};
	int status;

	if (start(&h, begin, &f) < 0) {
		status = report_failed(&h.job.report, &f, EXIT_FAILED, NULL, NULL);
	} else {
		if (begin->n_restarts)
			tell_restart(&h, begin);
		else
			report_listening(&h.job.report, &h.setup->address);
		report_stage(&h.job.report, "serve");
		status = serve(&h);
	}
	job_close(&h.job);
	ferry_handler_free(h.handler);
	ferry_image_close(h.image);
	ferry_record_close(h.record);
	ferry_replay_close(h.replay);
	return status;
}

/* --- the keeper ------------------------------------------------------------------------------- */

static int find_user(const char *text, uid_t *uid, struct ferry_failure *f)
{
	const struct passwd *pw = getpwnam(text);
	char *end;
	unsigned long n = strtoul(text, &end, 10);

	if (pw)
		*uid = pw->pw_uid;
	else if (*text >= '0' && *text <= '9' && !*end && n < UINT32_MAX)
		*uid = (uid_t)n;
	else
		return ferry_fail(f, FERRY_REFUSE, -EINVAL,
				  "--user: there is no user '%.60s'; give a name or a number",
				  text);
	return 0;
}

/*
 * The socket that systemd listens on already; its file, and whose it is, are systemd's matter.
 * Return: -1 for none. Source: sd_listen_fds(3)
 */
static int handed_over(void)
{
	const char *pid = getenv("LISTEN_PID"), *n = getenv("LISTEN_FDS");
	int fd = 3; /* SD_LISTEN_FDS_START */

	if (!pid || !n || strcmp(n, "1") || strtol(pid, NULL, 10) != getpid())
		return -1;
	if (fcntl(fd, F_SETFD, FD_CLOEXEC) < 0 || fcntl(fd, F_SETFL, O_NONBLOCK) < 0)
		return -1;
	return fd;
}

static int listen_for(struct setup *s, struct ferry_keeper_config *config, struct ferry_failure *f)
{
	_cleanup_close_ int fd = -1;

	s->address = (struct ferry_addr){.is_unix = true};
	if (strlen(s->o->socket) >= sizeof(s->address.path))
		return ferry_fail(f, FERRY_REFUSE, -EINVAL,
				  "--socket: the path is too long; at most %zu bytes are possible",
				  sizeof(s->address.path) - 1);
	strcpy(s->address.path, s->o->socket);
	fd = handed_over();
	if (fd >= 0)
		return TAKE_FD(fd);
	fd = ferry_net_listen(&s->address, f);
	if (fd < 0)
		return fd;
	config->path = s->o->socket;
	if (s->o->user && chown(s->o->socket, config->uid, (gid_t)-1) < 0) {
		ferry_fail_errno(f, FERRY_REFUSE, -errno,
				 "giving the socket to user %u; run as root",
				 (unsigned int)config->uid);
		unlink(s->o->socket);
		return f->err;
	}
	return TAKE_FD(fd);
}

/* A VM would find out what is wrong with it when it is too late. */
static int open_file(struct setup *s, struct ferry_failure *f)
{
	struct stat st;

	s->file_fd = open(s->o->file, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	if (s->file_fd < 0 || fstat(s->file_fd, &st) < 0)
		return ferry_fail_errno(f, FERRY_REFUSE, -errno, "cannot open %.300s", s->o->file);
	if (!S_ISREG(st.st_mode))
		return ferry_fail(f, FERRY_REFUSE, -EINVAL,
				  "%.300s is %s; give the snapshot's memory file with --file",
				  s->o->file,
				  S_ISDIR(st.st_mode) ? "a folder" : "no ordinary file");
	if (!st.st_size)
		return ferry_fail(f, FERRY_REFUSE, -EINVAL,
				  "%.300s is empty; give the snapshot's memory file with --file",
				  s->o->file);
	return 0;
}

/* Each VM takes some descriptors in the worker, and a few in the keeper. */
static void raise_fds(uint32_t max_vms)
{
	rlim_t need = FDS_AT_LEAST + max_vms * (rlim_t)FDS_A_VM;
	struct rlimit limit;

	if (getrlimit(RLIMIT_NOFILE, &limit) < 0 || limit.rlim_cur >= need)
		return;
	limit.rlim_cur = need;
	limit.rlim_max = FERRY_MAX(limit.rlim_max, need);
	if (!setrlimit(RLIMIT_NOFILE, &limit) || getrlimit(RLIMIT_NOFILE, &limit) < 0)
		return;
	limit.rlim_cur = limit.rlim_max;
	setrlimit(RLIMIT_NOFILE, &limit);
}

static int keep(struct setup *s, struct ferry_failure *f)
{
	struct ferry_keeper_config config = {
		.max_vms = s->max_vms, .uid = geteuid(), .worker = work, .ctx = s};
	int rc = s->o->user ? find_user(s->o->user, &config.uid, f) : 0;

	if (rc < 0)
		return rc;
	/* One worker after the other is the same target to the page server. */
	rc = ferry_target_place_new(&s->place);
	if (rc < 0)
		return ferry_fail_errno(f, FERRY_REFUSE, rc, "getrandom");
	if (s->o->file)
		rc = open_file(s, f);
	if (rc < 0)
		return rc;
	raise_fds(s->max_vms);
	config.listen_fd = listen_for(s, &config, f);
	if (config.listen_fd < 0)
		return config.listen_fd;
	/* A worker opens its control socket again, wherever it may be. */
	rc = isolation_enter(ISOLATION_PTRACE | ISOLATION_PROC | ISOLATION_SOCKET, f);
	if (rc < 0) {
		ferry_close(config.listen_fd);
		return rc;
	}
	return ferry_keeper_run(&config, f);
}

static int run(const struct options *o)
{
	struct setup s = {.o = o, .file_fd = -1, .max_vms = o->max_vms ? o->max_vms : MAX_VMS};
	struct ferry_failure f = {0};
	struct report report;
	int rc = keep(&s, &f);

	ferry_close(s.file_fd);
	if (rc >= 0)
		return rc;
	/* The worker has nothing to say of this. */
	if (rc == -ECANCELED)
		ferry_fail(&f, FERRY_LOST, rc,
			   "stopped, and the worker was killed; VMs that are not complete wait");
	report_init(&report, "handler", o);
	rc = report_failed(&report, &f, rc == -ECANCELED ? EXIT_WAITS : EXIT_FAILED, NULL, NULL);
	report_fini(&report);
	return rc;
}

const struct command cmd_handler = {
	.name = "handler",
	.synopsis = "--socket PATH (--file PATH | --from ADDR) [OPTION...]",
	.summary = "Serve the page faults of VMs that a VMM restores from a snapshot.",
	.notes = "A drop-in userfaultfd handler for Firecracker's mem_backend of type Uffd. Each "
		 "VM\n"
		 "is left as soon as it has everything. When the working process dies another one\n"
		 "takes over, and the VMs go on. SIGTERM or SIGINT: no other VM is taken, and it\n"
		 "ends once those that are here have everything; again: it ends at once.\n",
	.options = handler_options,
	.check = check,
	.run = run,
};
