// SPDX-License-Identifier: Apache-2.0
/* The source side of a VM's switchover. */
#include <errno.h>
#include <stdio.h>

#include "migrate/journal.h"
#include "migrate/switchover.h"
#include "pageserver/ring.h"
#include "tools/confine.h"
#include "tools/isolation.h"
#include "tools/job.h"
#include "tools/json.h"
#include "tools/steer.h"
#include "tools/secure.h"

static const struct option_def migrate_options[] = {
	{.name = "qmp",
	 .arg = "SOCK",
	 .help = "QMP socket of the QEMU that runs the guest",
	 .kind = OPTION_TEXT,
	 OPTION_AT(qmp)},
	{.name = "to",
	 .arg = "ADDR",
	 .help = "address that 'pageferry receive' listens on (default with --resume: that of the "
		 "one before)",
	 .kind = OPTION_ADDR_DIAL,
	 OPTION_AT(to)},
	{.name = "postcopy",
	 .help = "run the guest on the target first and send its memory afterwards (the only way "
		 "there is; it has to be asked for)",
	 .kind = OPTION_FLAG,
	 OPTION_AT(postcopy)},
	{.name = "resume",
	 .help = "go on where an earlier migrate of this guest ended after it had given it away",
	 .kind = OPTION_FLAG,
	 OPTION_AT(resume)},
	{.name = "pause",
	 .help = "let the push of a running migrate wait (find it by --control, or as the only one); "
		 "what the guest touches is sent all the same",
	 .kind = OPTION_FLAG,
	 OPTION_AT(pause)},
	{.name = "continue",
	 .help = "let the push of a running migrate go on",
	 .kind = OPTION_FLAG,
	 OPTION_AT(go_on)},
	{.name = "cancel",
	 .help = "end a running migrate with the guest here; refused once it was given away",
	 .kind = OPTION_FLAG,
	 OPTION_AT(cancel)},
	OPTION_SUPERVISE,
	OPTIONS_SECURE_DIAL,
	OPTION_CHECKSUM,
	OPTION_BULK,
	OPTION_CONTROL,
	OPTIONS_COMMON,
};

static int check(const struct options *o, struct ferry_failure *f)
{
	if (o->pause + o->go_on + o->cancel > 1)
		return ferry_fail(f, FERRY_REFUSE, -EINVAL,
				  "--pause, --continue and --cancel exclude each other; give one");
	if (steer_is_wanted(o))
		return 0;
	if (!o->qmp)
		return ferry_fail(f, FERRY_REFUSE, -EINVAL,
				  "--qmp is missing; add --qmp SOCK (QMP socket of the QEMU that runs "
				  "the guest)");
	if (o->resume)
		return secure_check(o, o->to.given ? &o->to.addr : NULL, f);
	if (!o->to.given)
		return ferry_fail(f, FERRY_REFUSE, -EINVAL,
				  "--to is missing; add --to ADDR (address that 'pageferry receive' "
				  "listens on)");
	if (!o->postcopy)
		return ferry_fail(f, FERRY_REFUSE, -EINVAL,
				  "only post-copy is there, which a guest does not survive if the "
				  "source is lost halfway; add --postcopy to ask for it");
	return secure_check(o, &o->to.addr, f);
}

static void on_stage(void *ctx, enum ferry_stage stage)
{
	struct job *j = ctx;

	report_stage(&j->report, ferry_stage_name(stage));
}

static void on_progress(void *ctx, const struct ferry_target_stats *target,
			const struct ferry_server_stats *server)
{
	struct job *j = ctx;

	(void)target;
	if (server)
		report_server(&j->report, server);
}

/* Where to. An empty one is never dialed: there is nothing to resume then. */
static struct ferry_addr find_address(const struct options *o)
{
	struct ferry_journal_entry left = {0};

	if (!o->to.given)
		(void)ferry_journal_peek(NULL, FERRY_SIDE_SOURCE, o->qmp, &left);
	return o->to.given ? o->to.addr : left.addr;
}

static int start(struct job *j, const struct options *o, const struct ferry_addr *to,
		 struct ferry_ring **ring, struct ferry_failure *f)
{
	/* The memory's file is opened through /proc/PID of QEMU. */
	unsigned int needs = ISOLATION_PTRACE | ISOLATION_PROC | isolation_need_of_socket(o->qmp);
	int rc = job_open(j, "migrate", o, f);

	if (!rc)
		rc = secure_check(o, to->is_unix || to->port[0] ? to : NULL, f);
	if (!rc)
		rc = job_secure(j, o, false, f);
	if (rc < 0)
		return rc;
	if (to->is_unix)
		needs |= isolation_need_of_socket(to->path);
	rc = isolation_enter(needs, f);
	if (rc < 0)
		return rc;
	rc = job_start(j, f);
	/* What is served is not known before QEMU was asked, and then nobody here makes a ring. */
	if (!rc)
		rc = ferry_ring_new(ring, f);
	return rc < 0 ? rc : confine(CONFINE_SERVES | CONFINE_ENABLES_RING | CONFINE_READS, f);
}

static json_t *summary_json(const struct ferry_migrate_result *result)
{
	json_t *o = json_object();

	json_put_count(o, "ram_bytes", result->ram_bytes);
	json_put_all(o, json_server(&result->stats));
	json_put_count(o, "device_state_bytes", result->device_state_bytes);
	json_put(o, "total_ms", json_ms(result->total_ns));
	json_put(o, "downtime_ms", json_ms(result->downtime_ns));
	json_put(o, "stop_ms", json_ms(result->stop_ns));
	json_put(o, "device_state_ms", json_ms(result->device_state_ns));
	json_put(o, "confirm_ms", json_ms(result->confirm_ns));
	return o;
}

static int migrate(struct job *j, const struct options *o, const struct ferry_addr *to,
		   struct ferry_steering *steering, struct ferry_ring *ring)
{
	struct ferry_migrate_config config = {
		.qmp_path = o->qmp,
		.recovery = o->resume	     ? FERRY_RECOVER_ONLY
			    : o->recover_any ? FERRY_RECOVER_ANY
					     : FERRY_RECOVER_NOT,
		.to = *to,
		.steering = steering,
		.stop_fd = j->stop_fd,
		.n_bulk = o->n_bulk,
		.tls = j->tls,
		.ring = ring,
		.no_checksum = o->checksum == CHECKSUM_OFF,
		.log = &j->report.log,
		.observer = {.stage = on_stage, .progress = on_progress, .ctx = j},
	};
	struct ferry_migrate_result result = {0};
	struct ferry_failure f = {0};
	enum ferry_outcome outcome = ferry_migrate_run(&config, &result, &f);
	char text[SUMMARY_MAX];

	summary_server(&result.stats, result.ram_bytes, result.total_ns, result.downtime_ns, text,
		       sizeof(text));
	if (outcome == FERRY_OUTCOME_DONE)
		return report_completed(&j->report, summary_json(&result), text);
	return report_failed(&j->report, &f, (int)outcome, summary_json(&result), NULL);
}

static bool guest_waits(const struct options *o)
{
	return o->qmp && ferry_journal_guest_waits(NULL, FERRY_SIDE_SOURCE, o->qmp);
}

static int run(const struct options *o)
{
	struct ferry_addr to;
	struct ferry_steering steering = {0};
	struct ferry_ring *ring = NULL;
	struct ferry_failure f = {0};
	struct job j = {.more_requests = steer_requests, .more_ctx = &steering};
	int status;

	if (steer_is_wanted(o))
		return steer(o);
	to = find_address(o);
	if (start(&j, o, &to, &ring, &f) < 0)
		status = report_failed(&j.report, &f, guest_waits(o) ? EXIT_WAITS : EXIT_FAILED,
				       NULL, NULL);
	else
		status = migrate(&j, o, &to, &steering, ring);
	ferry_ring_free(ring);
	job_close(&j);
	return status;
}

const struct command cmd_migrate = {
	.name = "migrate",
	.synopsis = "--qmp SOCK (--to ADDR --postcopy | --resume) [OPTION...]\n"
		    "       pageferry migrate --pause | --continue | --cancel [--control SOCK]",
	.summary =
		"Be the source of a VM's switchover: hand the guest over, then serve its memory.",
	.notes =
		"Until the target has confirmed that the guest may run there, any failure and any\n"
		"SIGINT or SIGTERM ends with the guest running here. After that it never does.\n",
	.options = migrate_options,
	.may_need = ISOLATION_PTRACE | ISOLATION_PROC | ISOLATION_SOCKET | ISOLATION_BIND,
	.check = check,
	.guest_waits = guest_waits,
	.run = run,
};
