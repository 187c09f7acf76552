// SPDX-License-Identifier: Apache-2.0
/* The target side of a VM's switchover. */
#include <errno.h>
#include <stdio.h>

#include "base/cleanup.h"
#include "base/net.h"
#include "migrate/journal.h"
#include "migrate/switchover.h"
#include "tools/confine.h"
#include "tools/isolation.h"
#include "tools/job.h"
#include "tools/json.h"
#include "tools/secure.h"

static const struct option_def receive_options[] = {
	{.name = "qmp",
	 .arg = "SOCK",
	 .help = "QMP socket of a QEMU that was started with -incoming defer",
	 .kind = OPTION_TEXT,
	 .required = true,
	 OPTION_AT(qmp)},
	{.name = "listen",
	 .arg = "ADDR",
	 .help = "address that 'pageferry migrate' dials; port 0 lets the kernel choose one, which "
		 "is printed (default with --recover: that of the one before)",
	 .kind = OPTION_ADDR_LISTEN,
	 OPTION_AT(listen)},
	{.name = "recover",
	 .help = "take over from an earlier receive of this QEMU that ended before everything was "
		 "here",
	 .kind = OPTION_FLAG,
	 OPTION_AT(recover)},
	OPTION_SUPERVISE,
	OPTIONS_SECURE_LISTEN,
	OPTION_ON_LOST,
	OPTION_SOURCE_LOST,
	OPTION_CHECKSUM,
	OPTION_VERIFY,
	OPTION_MAX_RATE,
	OPTION_NO_LARGE_PAGES,
	OPTIONS_TRACE,
	OPTION_METRICS,
	OPTION_CONTROL,
	OPTIONS_COMMON,
};

static int check(const struct options *o, struct ferry_failure *f)
{
	if (!o->listen.given && !o->recover)
		return ferry_fail(f, FERRY_REFUSE, -EINVAL,
				  "--listen is missing; add --listen ADDR (address that 'pageferry "
				  "migrate' dials)");
	if (option_check_source_lost(o, f) < 0)
		return -EINVAL;
	return secure_check(o, o->listen.given ? &o->listen.addr : NULL, f);
}

struct receive {
	struct job job;
	int listen_fd; /* owned */
	struct ferry_addr address;
};

static void on_stage(void *ctx, enum ferry_stage stage)
{
	struct receive *r = ctx;

	report_stage(&r->job.report, ferry_stage_name(stage));
}

static void on_progress(void *ctx, const struct ferry_target_stats *target,
			const struct ferry_server_stats *server)
{
	struct receive *r = ctx;

	(void)server;
	if (target)
		report_target(&r->job.report, target);
}

static void on_trace(void *ctx, struct ferry_trace *trace)
{
	struct receive *r = ctx;
	struct ferry_failure f = {0};

	/* The guest matters more than a record of its faults. */
	if (!trace)
		job_untrace(&r->job);
	else if (job_trace(&r->job, trace, &f) < 0)
		ferry_warn(&r->job.report.log, "%s; faults are not recorded", f.text);
}

static void on_lost(void *ctx, const struct ferry_failure *f)
{
	struct receive *r = ctx;
	json_t *fields = json_object();

	json_put(fields, "error", json_text(f->text));
	report_count_error(&r->job.report);
	report_event(&r->job.report, "pages-lost", fields, NULL); /* for people it is in the log */
}

/* The source dials where the one before us listened. */
static int find_address(const struct options *o, struct ferry_addr *out, struct ferry_failure *f)
{
	struct ferry_journal_entry left;
	enum ferry_keep_state state = FERRY_KEEP_EMPTY;

	if (o->recover || o->recover_any)
		state = ferry_journal_peek(NULL, FERRY_SIDE_TARGET, o->qmp, &left);
	if (state == FERRY_KEEP_HELD)
		return ferry_fail(f, FERRY_REFUSE, -EBUSY,
				  "another pageferry is at work on this guest; wait for its end");
	if (state == FERRY_KEEP_UNREAD)
		return ferry_fail_errno(f, FERRY_REFUSE, -errno,
					"what is kept of this QEMU can't be read");
	if (state != FERRY_KEEP_FOUND && !o->listen.given)
		return ferry_fail(f, FERRY_REFUSE, -ENOENT,
				  "there is nothing to recover: no 'pageferry receive' of this QEMU "
				  "was killed while a guest was in it");
	/* A port that the kernel chooses would be another one, which the source does not know. */
	*out = state == FERRY_KEEP_FOUND &&
			       (!o->listen.given ||
				(!o->listen.addr.is_unix && !strcmp(o->listen.addr.port, "0")))
		       ? left.addr
		       : o->listen.addr;
	return 0;
}

static int start(struct receive *r, const struct options *o, struct ferry_failure *f)
{
	struct ferry_addr wanted;
	int rc;

	r->job.may_trace = true;
	rc = job_open(&r->job, "receive", o, f);

	if (!rc)
		rc = job_secure(&r->job, o, true, f);
	if (rc < 0)
		return rc;
	rc = find_address(o, &wanted, f);
	if (!rc)
		rc = secure_check(o, &wanted, f);
	if (rc < 0)
		return rc;
	r->listen_fd = ferry_net_listen(&wanted, f);
	if (r->listen_fd < 0)
		return r->listen_fd;
	rc = ferry_net_local(r->listen_fd, &wanted, &r->address);
	if (rc < 0)
		return ferry_fail_errno(f, FERRY_REFUSE, rc, "the address that is listened on");
	/* Which process QEMU is, and what it runs under, is found out later. */
	rc = isolation_enter(ISOLATION_PTRACE | ISOLATION_PROC | ISOLATION_SECCOMP |
				     ISOLATION_LARGE | isolation_need_of_socket(o->qmp),
			     f);
	if (rc < 0)
		return rc;
	rc = job_start(&r->job, f);
	if (!rc)
		/* QEMU's memory is put into large pages before it is filled. */
		rc = confine_attaching(isolation_process_behind(o->qmp), CONFINE_ADVISES,
				       &r->job.report.log, f);
	if (rc < 0)
		return rc;
	report_listening(&r->job.report, &r->address);
	return 0;
}

static json_t *summary_json(const struct ferry_receive_result *result)
{
	json_t *o = json_object();

	json_put_count(o, "ram_bytes", result->ram_bytes);
	json_put_all(o, json_target(&result->stats));
	json_put(o, "total_ms", json_ms(result->total_ns));
	json_put(o, "downtime_ms", json_ms(result->downtime_ns));
	json_put(o, "attach_ms", json_ms(result->attach_ns));
	return o;
}

static int receive(struct receive *r, const struct options *o)
{
	struct ferry_receive_config config = {
		.qmp_path = o->qmp,
		.recovery = o->recover	     ? FERRY_RECOVER_ONLY
			    : o->recover_any ? FERRY_RECOVER_ANY
					     : FERRY_RECOVER_NOT,
		.address = r->address,
		.listen_fd = r->listen_fd,
		.stop_fd = r->job.stop_fd,
		.max_bytes_per_second = o->max_rate,
		.no_trace = o->no_trace,
		.no_large_pages = o->no_large_pages,
		.tls = r->job.tls,
		.no_checksum = o->checksum == CHECKSUM_OFF,
		.verify = o->verify,
		.on_lost = o->on_lost == ON_LOST_POISON ? FERRY_ON_LOST_POISON : FERRY_ON_LOST_WAIT,
		.source_lost = o->source_lost,
		.stop_on_lost = o->on_lost == ON_LOST_STOP,
		.log = &r->job.report.log,
		.observer = {.stage = on_stage,
			     .progress = on_progress,
			     .trace = on_trace,
			     .lost = on_lost,
			     .ctx = r},
	};
	struct ferry_receive_result result = {0};
	struct ferry_failure f = {0};
	enum ferry_outcome outcome = ferry_receive_run(&config, &result, &f);
	char text[SUMMARY_MAX];

	summary_target(&result.stats, result.ram_bytes, result.total_ns, result.downtime_ns, text,
		       sizeof(text));
	/* What happened since the last look: a resume is told, however short it was. */
	report_target(&r->job.report, &result.stats);
	if (outcome == FERRY_OUTCOME_DONE)
		return report_completed(&r->job.report, summary_json(&result), text);
	return report_failed(&r->job.report, &f, (int)outcome, summary_json(&result), NULL);
}

static bool guest_waits(const struct options *o)
{
	return ferry_journal_guest_waits(NULL, FERRY_SIDE_TARGET, o->qmp);
}

static int run(const struct options *o)
{
	struct receive r = {.listen_fd = -1};
	struct ferry_failure f = {0};
	int status;

	if (start(&r, o, &f) < 0)
		status = report_failed(&r.job.report, &f, guest_waits(o) ? EXIT_WAITS : EXIT_FAILED,
				       NULL, NULL);
	else
		status = receive(&r, o);
	ferry_close(r.listen_fd);
	job_close(&r.job);
	return status;
}

const struct command cmd_receive = {
	.name = "receive",
	.synopsis = "--qmp SOCK (--listen ADDR | --recover) [OPTION...]",
	.summary = "Be the target of a VM's switchover: run the guest here, then fetch its memory.",
	.notes = "One switchover is received; the command ends when all of the memory is here.\n",
	.options = receive_options,
	.may_need = ISOLATION_PTRACE | ISOLATION_PROC | ISOLATION_SECCOMP | ISOLATION_SOCKET |
		    ISOLATION_BIND | ISOLATION_LARGE,
	.check = check,
	.guest_waits = guest_waits,
	.run = run,
};
