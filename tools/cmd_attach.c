// SPDX-License-Identifier: Apache-2.0
/*
 * Fill the memory of a running process from a page server.
 *
 * Until the first session is open nothing is lost by giving the memory back: its missing pages are
 * then what they were before. From the first session on the process may have seen pages of the
 * source, and whatever fails leaves the rest registered: threads wait, for 'attach --recover'.
 */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "tools/confine.h"
#include "tools/isolation.h"
#include "tools/job.h"
#include "tools/json.h"
#include "tools/mappings.h"
#include "tools/secure.h"
#include "uffd/attach_record.h"
#include "uffd/kernel.h"
#include "uffd/target.h"
#include "uffd/uffd.h"

#define LOOK_MS 100 /* how often the counters are read */

static const struct option_def attach_options[] = {
	{.name = "pid",
	 .arg = "PID",
	 .help = "process whose memory is to be filled",
	 .kind = OPTION_PID,
	 .required = true,
	 OPTION_AT(pid)},
	{.name = "match",
	 .arg = "TEXT",
	 .help = "which of its mappings: part of the name, or 0xSTART[-0xEND], as in "
		 "/proc/PID/maps; may be given several times; the mappings are the server's "
		 "regions, in this order",
	 .kind = OPTION_TEXTS,
	 OPTION_AT(matches)},
	{.name = "from",
	 .arg = "ADDR",
	 .help = "address of the page server",
	 .kind = OPTION_ADDR_DIAL,
	 OPTION_AT(from)},
	{.name = "recover",
	 .help = "take over from an earlier attach that ended before everything was there; its "
		 "--match and --from need not be given again",
	 .kind = OPTION_FLAG,
	 OPTION_AT(recover)},
	OPTION_SUPERVISE,
	OPTIONS_SECURE_DIAL,
	OPTION_ON_LOST,
	OPTION_SOURCE_LOST,
	OPTION_CHECKSUM,
	OPTION_VERIFY,
	OPTION_MAX_RATE,
	OPTION_BULK,
	OPTION_NO_LARGE_PAGES,
	OPTIONS_TRACE,
	OPTION_METRICS,
	OPTION_CONTROL,
	OPTIONS_COMMON,
};

static int check(const struct options *o, struct ferry_failure *f)
{
	if (!o->matches.n && !o->recover)
		return ferry_fail(f, FERRY_REFUSE, -EINVAL,
				  "--match is missing; add --match TEXT (part of a name in "
				  "/proc/%d/maps)",
				  (int)o->pid);
	if (!o->from.given && !o->recover)
		return ferry_fail(f, FERRY_REFUSE, -EINVAL,
				  "--from is missing; add --from ADDR (address of the page server)");
	if (option_check_source_lost(o, f) < 0)
		return -EINVAL;
	return secure_check(o, o->from.given ? &o->from.addr : NULL, f);
}

struct attach {
	struct job job;
	struct ferry_keep record_file;
	struct ferry_attach_record record;
	void *kept; /* owned: with the record; NULL for none */
	size_t kept_bytes;
	bool recovers; /* an earlier attach */
	struct ferry_target *target; /* owned */
	uint64_t ram_bytes;
};

static int add_region(struct ferry_target_region *r, uint32_t id, const struct ferry_mapping *m,
		      struct ferry_failure *f)
{
	if (m->kind == FERRY_MAPPING_FILE)
		return ferry_fail(f, FERRY_REFUSE, -EINVAL,
				  "'%.200s' is an ordinary file, whose faults can't be served; use "
				  "anonymous memory, a memfd, tmpfs or hugetlbfs",
				  m->name);
	/* Without a name, regions match the server's by order and size. */
	*r = (struct ferry_target_region){
		.desc =
			{
				.id = id,
				.page_bytes = m->page_bytes,
				.n_pages = m->len / m->page_bytes,
			},
		.start = m->start,
		.kind = m->kind,
	};
	return 0;
}

static int nothing_to_recover(struct attach *a, const struct options *o, struct ferry_failure *f)
{
	a->recovers = false;
	return ferry_fail(f, FERRY_REFUSE, -ENOENT,
			  "there is nothing to recover: process %d holds nothing that an earlier "
			  "attach left; attach without --recover",
			  (int)o->pid);
}

/* It was there when an earlier attach began: what it waited for, nobody waits for any more. */
static int process_ended(struct attach *a, const struct options *o, struct ferry_failure *f)
{
	a->recovers = true;
	return ferry_fail(f, FERRY_LOST, -ESRCH,
			  "there is nothing to recover: process %d has ended", (int)o->pid);
}

static int open_uffd(struct attach *a, struct ferry_uffd *u, const struct options *o,
		     struct ferry_failure *f)
{
	int rc = a->recovers ? ferry_uffd_adopt(u, o->pid, f) : -ENOENT;

	if (rc == -ENOENT && o->recover)
		return nothing_to_recover(a, o, f);
	if (rc == -ESRCH && a->recovers)
		return process_ended(a, o, f);
	/* The one before us was killed before it had touched the process. */
	a->recovers = !rc;
	return rc == -ENOENT ? ferry_uffd_attach(u, o->pid, FERRY_TARGET_UFFD_FEATURES, f) : rc;
}

static int select_regions(struct ferry_attach_record *r, const struct options *o,
			  struct ferry_failure *f)
{
	struct mappings found;
	int rc = mappings_select(o->pid, &o->matches, &found, f);

	for (uint32_t i = 0; !rc && i < found.n; i++)
		rc = add_region(&r->regions[i], i, &found.v[i], f);
	if (!rc)
		r->n_regions = found.n;
	return rc;
}

static int write_record(struct attach *a, const struct options *o, struct ferry_failure *f)
{
	int rc = a->record_file.fd < 0 ? 0
				       : ferry_keep_write(&a->record_file, &a->record,
							  sizeof(a->record), o->pid);

	return rc < 0 ? ferry_fail_errno(f, FERRY_REFUSE, rc, "%s", a->record_file.path) : 0;
}

/* Also one that its parent has not waited for. */
static bool has_ended(pid_t pid)
{
	_cleanup_close_ int fd = (int)syscall(SYS_pidfd_open, pid, 0);
	struct pollfd p = {.fd = fd, .events = POLLIN};

	return fd < 0 ? errno == ESRCH : poll(&p, 1, 0) > 0;
}

static int new_place(struct ferry_attach_record *r, struct ferry_failure *f)
{
	struct ferry_target_place place;
	int rc = ferry_target_place_new(&place);

	if (rc < 0)
		return ferry_fail_errno(f, FERRY_REFUSE, rc, "getrandom");
	r->session = place.session;
	return 0;
}

/* What is to be filled, and from where: as given, or else as an earlier attach was told. */
static int plan(struct attach *a, const struct options *o, struct ferry_failure *f)
{
	struct ferry_attach_record *r = &a->record;
	struct ferry_failure why = {0};
	enum ferry_keep_state found = ferry_attach_record_peek(NULL, o->pid, r);
	bool is_gone = has_ended(o->pid), left;
	int rc;

	/* The number may be another's by now. Who begins anew, or does either, is not told of that.
	 */
	if (o->recover ? is_gone || found == FERRY_KEEP_OTHER
		       : o->recover_any && is_gone && found != FERRY_KEEP_EMPTY)
		return process_ended(a, o, f);
	rc = ferry_attach_record_open(&a->record_file, NULL, o->pid, r, &why);
	left = !rc && r->n_regions;
	if (rc == -EBUSY || rc == -EBADMSG || (rc < 0 && found == FERRY_KEEP_UNREAD)) {
		a->recovers &= rc != -EBUSY; /* somebody else is at it */
		*f = why;
		return rc;
	}
	if (rc < 0)
		ferry_warn(&a->job.report.log, "%s; --recover will need --match and --from", why.text);
	if (left && !o->recover && !o->recover_any) {
		ferry_keep_close(&a->record_file, false);
		return ferry_fail(f, FERRY_REFUSE, -EEXIST,
				  "an earlier attach to process %d ended before everything was there; "
				  "to go on with it, add --recover",
				  (int)o->pid);
	}
	a->recovers = o->recover || (o->recover_any && left);
	if (left && r->encrypted && !a->job.tls && !o->source_lost)
		return ferry_fail(
			f, FERRY_REFUSE, -EPERM,
			"the connections of the earlier attach were encrypted; add --tls or --psk "
			"as they were given before");
	r->encrypted = a->job.tls != NULL;
	if (a->recovers && !left && (!o->matches.n || !o->from.given))
		return nothing_to_recover(a, o, f);
	rc = 0;
	if (o->matches.n && !(left && o->recover_any))
		rc = select_regions(r, o, f);
	if (o->from.given)
		r->from = o->from.addr;
	if (o->n_bulk)
		r->n_bulk = o->n_bulk;
	if (!rc && left)
		r->takeovers++;
	else if (!rc)
		rc = new_place(r, f);
	for (uint32_t i = 0; i < r->n_regions; i++)
		a->ram_bytes += r->regions[i].desc.n_pages * r->regions[i].desc.page_bytes;
	return rc < 0 ? rc : write_record(a, o, f);
}

static int open_target(struct attach *a, const struct options *o, struct ferry_failure *f)
{
	struct ferry_target_place place =
		ferry_target_place_of(&a->record.session, a->record.takeovers);
	struct ferry_target_config config = {
		.place = &place,
		.regions = a->record.regions,
		.n_regions = a->record.n_regions,
		.n_bulk = a->record.n_bulk,
		.max_bytes_per_second = o->max_rate,
		.no_trace = o->no_trace,
		.no_large_pages = o->no_large_pages,
		.tls = a->job.tls,
		.no_checksum = o->checksum == CHECKSUM_OFF,
		.verify = o->verify,
		.on_lost = o->on_lost == ON_LOST_POISON ? FERRY_ON_LOST_POISON : FERRY_ON_LOST_WAIT,
		.source_lost = o->source_lost,
		.memory_id = a->recovers ? a->record.memory_id : 0,
		.log = &a->job.report.log,
	};
	int rc = open_uffd(a, &config.uffd, o, f);

	if (rc < 0)
		return rc;
	config.adopt = a->recovers;
	if (a->record_file.fd >= 0 &&
	    ferry_attach_record_map(&a->record_file, &a->record, !a->recovers, &a->kept,
				    &a->kept_bytes) < 0)
		ferry_warn(&a->job.report.log,
			   "no room to keep what is known of each page: should this process be killed, "
			   "pages that were discarded may come back");
	config.kept = a->kept;
	rc = ferry_target_new(&a->target, &config, f);
	if (rc == -EBUSY && !a->recovers)
		ferry_fail(
			f, FERRY_REFUSE, rc,
			"the memory has a userfaultfd already; if an earlier attach left it, add "
			"--recover");
	return rc;
}

static bool guest_waits(const struct options *o)
{
	struct ferry_attach_record r;
	enum ferry_keep_state found = ferry_attach_record_peek(NULL, o->pid, &r);

	return o->recover || found == FERRY_KEEP_FOUND || found == FERRY_KEEP_UNREAD;
}

static int start(struct attach *a, const struct options *o, struct ferry_failure *f)
{
	unsigned int needs = isolation_need_of_process(o->pid);
	int rc;

	/* Whatever fails before we have looked: the process waits. */
	a->recovers = (o->recover || o->recover_any) && guest_waits(o);
	a->job.may_trace = true;
	rc = job_open(&a->job, "attach", o, f);

	if (!rc)
		rc = job_secure(&a->job, o, false, f);
	if (rc < 0)
		return rc;
	rc = plan(a, o, f);
	if (!rc)
		rc = secure_check(o, &a->record.from, f);
	if (rc < 0)
		return rc;
	if (a->record.from.is_unix)
		needs |= isolation_need_of_socket(a->record.from.path);
	if (o->on_lost == ON_LOST_STOP)
		needs |= ISOLATION_KILL;
	rc = isolation_enter(needs, f);
	if (rc < 0)
		return rc;
	report_stage(&a->job.report, "attach");
	rc = open_target(a, o, f);
	if (rc < 0)
		return rc;
	/* In the end the process's own descriptor is closed, by attaching once more. */
	rc = isolation_narrow(needs & ~ISOLATION_PROC, f);
	if (rc < 0)
		return rc;
	rc = job_trace(&a->job, ferry_target_trace(a->target), f);
	if (rc < 0)
		return rc;
	rc = ferry_target_start(a->target, f);
	if (rc < 0)
		return rc;
	rc = job_start(&a->job, f);
	if (!rc)
		rc = confine_attaching(o->pid, CONFINE_NOTHING, &a->job.report.log, f);
	if (rc < 0)
		return rc;
	report_stage(&a->job.report, "connect");
	rc = ferry_target_dial(a->target, &a->record.from, a->job.stop_fd, f);
	if (rc < 0)
		return rc;
	a->record.memory_id = ferry_target_memory_id(a->target);
	rc = write_record(a, o, f);
	if (rc < 0)
		return rc;
	report_stage(&a->job.report, "push");
	rc = ferry_target_push(a->target);
	return rc < 0 ? ferry_fail_errno(f, FERRY_LINK, rc, "asking for the push") : 0;
}

static int finish(struct attach *a, const struct ferry_failure *f, int status)
{
	uint64_t total_ns = ferry_now_ns() - a->job.report.start_ns;
	struct ferry_target_stats stats;
	json_t *o = json_object();
	char text[SUMMARY_MAX];

	ferry_target_stats(a->target, &stats);
	json_put_count(o, "ram_bytes", a->ram_bytes);
	json_put_all(o, json_target(&stats));
	json_put(o, "total_ms", json_ms(total_ns));
	summary_target(&stats, a->ram_bytes, total_ns, 0, text, sizeof(text));
	if (status == EXIT_DONE)
		return report_completed(&a->job.report, o, text);
	return report_failed(&a->job.report, f, status, o, text);
}

/* The story of a target that lacks pages: what it waits for, and how it goes on. */
static int finish_waiting(struct attach *a, const struct options *o, const char *why)
{
	struct ferry_failure f = {0};
	struct ferry_target_stats stats;

	ferry_target_stats(a->target, &stats);
	if (o->verify && stats.pages_known == stats.pages_total) {
		ferry_fail(&f, FERRY_LINK, -ECANCELED,
			   "%.300s; everything is there, but it was not compared to the end", why);
		return finish(a, &f, EXIT_UNVERIFIED);
	}
	ferry_fail(&f, FERRY_LINK, -ECANCELED,
		   "%.300s; process %d waits where it touches missing pages; go on with the same "
		   "command and --recover",
		   why, (int)o->pid);
	return finish(a, &f, EXIT_WAITS);
}

static void pages_lost(struct attach *a, const struct options *o, const struct ferry_failure *f)
{
	json_t *fields = json_object();

	json_put(fields, "error", json_text(f->text));
	report_count_error(&a->job.report);
	report_event(&a->job.report, "pages-lost", fields, NULL); /* for people it is in the log */
	if (o->on_lost != ON_LOST_STOP)
		return;
	if (kill(o->pid, SIGSTOP) < 0)
		ferry_error(&a->job.report.log, "process %d can't be stopped: %s", (int)o->pid,
			    strerror(errno));
	else
		ferry_error(&a->job.report.log, "process %d is stopped, as --on-lost says",
			    (int)o->pid);
}

static int follow(struct attach *a, const struct options *o)
{
	for (;;) {
		struct ferry_failure f = {0};
		struct ferry_target_stats stats;
		int event = ferry_target_wait(a->target, LOOK_MS, a->job.stop_fd, &f);

		switch (event) {
		case FERRY_TARGET_COMPLETE:
			return finish(a, NULL, EXIT_DONE);
		case FERRY_TARGET_DIFFERS:
			return finish(a, &f, EXIT_UNVERIFIED);
		case FERRY_TARGET_GONE:
			return finish(a, &f, EXIT_LOST);
		case FERRY_TARGET_FAILED:
			return finish_waiting(a, o, f.text);
		case -ECANCELED:
			return finish_waiting(a, o, "stopped");
		case FERRY_TARGET_LINK_LOST:
			report_link_lost(&a->job.report, f.text);
			break;
		case FERRY_TARGET_PAGES_LOST:
			pages_lost(a, o, &f);
			break;
		default:
			if (event < 0)
				return finish_waiting(a, o, strerror(-event));
		}
		ferry_target_stats(a->target, &stats);
		report_target(&a->job.report, &stats);
	}
}

/* Nothing has come yet. A recovered process has pages of the source already: it goes on waiting. */
static int give_up(struct attach *a, const struct options *o, const struct ferry_failure *f)
{
	if (a->recovers && f->consequence == FERRY_LOST)
		return report_failed(&a->job.report, f, EXIT_LOST, NULL, NULL);
	if (a->recovers && a->target)
		return finish_waiting(a, o, f->text);
	if (a->recovers)
		return report_failed(&a->job.report, f, EXIT_WAITS, NULL, NULL);
	if (a->target)
		ferry_target_abandon(a->target);
	return report_failed(&a->job.report, f, EXIT_FAILED, NULL, NULL);
}

static int run(const struct options *o)
{
	struct attach a = {.record_file = FERRY_KEEP_NONE};
	struct ferry_failure f = {0};
	int status;

	if (start(&a, o, &f) < 0)
		status = give_up(&a, o, &f);
	else
		status = follow(&a, o);
	job_untrace(&a.job);
	ferry_target_free(a.target);
	if (a.kept)
		munmap(a.kept, a.kept_bytes);
	ferry_keep_close(&a.record_file, status != EXIT_WAITS);
	job_close(&a.job);
	return status;
}

const struct command cmd_attach = {
	.name = "attach",
	.synopsis = "--pid PID (--match TEXT... --from ADDR | --recover) [OPTION...]",
	.summary = "Fill the memory of a running process from a page server.",
	.notes = "Pages that the process touches come first. A broken link is dialed again until "
		 "the\n"
		 "process has everything; meanwhile its threads wait where they touch missing "
		 "pages.\n",
	.options = attach_options,
	.may_need = ISOLATION_PTRACE | ISOLATION_PROC | ISOLATION_SECCOMP | ISOLATION_SOCKET |
		    ISOLATION_KILL | ISOLATION_BIND,
	.check = check,
	.guest_waits = guest_waits,
	.run = run,
};
