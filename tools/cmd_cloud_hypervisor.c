// SPDX-License-Identifier: Apache-2.0
/* Restore a snapshot of Cloud Hypervisor's in a VMM elsewhere, which asks for its memory meanwhile.
 */
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/net.h"
#include "base/util.h"
#include "handler/cloud_snapshot.h"
#include "pageserver/cloud_hypervisor.h"
#include "tools/confine.h"
#include "tools/isolation.h"
#include "tools/job.h"
#include "tools/json.h"

#define LOOK_MS 100 /* how often the counters are read */

static const struct option_def cloud_hypervisor_options[] = {
	{.name = "snapshot",
	 .arg = "FOLDER",
	 .help = "the snapshot: config.json, state.json and memory-ranges",
	 .kind = OPTION_TEXT,
	 .required = true,
	 OPTION_AT(file)},
	{.name = "to",
	 .arg = "ADDR",
	 .help = "where the target listens: its receiver_url without 'tcp:'",
	 .kind = OPTION_ADDR_DIAL,
	 .required = true,
	 OPTION_AT(to)},
	{.name = "paused",
	 .help = "leave the restored VM paused (default: it runs)",
	 .kind = OPTION_FLAG,
	 OPTION_AT(pause)},
	{.name = "tls",
	 .arg = "DIR",
	 .help = "encrypt with TLS 1.3 and certificates of both sides, as the target has to with "
		 "its "
		 "tls_dir; the folder has ca-cert.pem, client-cert.pem and client-key.pem",
	 .kind = OPTION_TEXT,
	 OPTION_AT(tls)},
	{.name = "tls-hostname",
	 .arg = "NAME",
	 .help = "name that the target's certificate must have (default: the host that is dialed)",
	 .kind = OPTION_TEXT,
	 OPTION_AT(tls_hostname)},
	{.name = "plaintext",
	 .help = "do not encrypt, also where others could read and change what is sent (default: "
		 "only "
		 "on a loopback address or a UNIX socket)",
	 .kind = OPTION_FLAG,
	 OPTION_AT(plaintext)},
	OPTION_CONTROL,
	OPTIONS_COMMON,
};

static int check(const struct options *o, struct ferry_failure *f)
{
	char text[FERRY_ADDR_TEXT_MAX];

	if (o->tls && o->plaintext)
		return ferry_fail(f, FERRY_REFUSE, -EINVAL,
				  "--tls and --plaintext exclude each other; give one of them");
	if (o->tls_hostname && !o->tls)
		return ferry_fail(f, FERRY_REFUSE, -EINVAL,
				  "--tls-hostname is about a certificate; add --tls DIR");
	if (o->tls || o->plaintext || ferry_addr_is_local(&o->to.addr))
		return 0;
	ferry_addr_format(&o->to.addr, text);
	return ferry_fail(f, FERRY_REFUSE, -EINVAL,
			  "'%.200s' is not on this host alone, and a guest's memory would be sent "
			  "openly; add --tls DIR, or --plaintext if the network is trusted",
			  text);
}

struct restore {
	struct job job;
	struct ferry_cloud_snapshot snapshot;
	uint64_t ram_bytes;
	struct ferry_cloudhv *source; /* owned */
};

static int open_snapshot(struct restore *r, const struct options *o, struct ferry_failure *f)
{
	int rc = ferry_cloud_snapshot_open(&r->snapshot, o->file, f);

	if (rc < 0) {
		ferry_fail_prefix(f, "--snapshot %.200s", o->file);
		return rc;
	}
	for (uint32_t i = 0; i < r->snapshot.n_ranges; i++) {
		const struct ferry_cloudhv_range *range = &r->snapshot.ranges[i];

		r->ram_bytes += range->bytes;
		ferry_info(&r->job.report.log, "memory: %" PRIu64 " bytes at %#" PRIx64,
			   range->bytes, range->start.v);
	}
	return 0;
}

/* Cloud Hypervisor's TLS names no protocol. */
static int open_tls(struct job *j, const struct options *o, struct ferry_failure *f)
{
	struct ferry_tls_config config = {
		.dir = o->tls,
		.hostname = o->tls_hostname,
		.is_foreign = true,
		.log = &j->report.log,
	};
	int rc = o->tls ? ferry_tls_new(&j->tls, &config, f) : 0;

	if (rc < 0)
		ferry_fail_prefix(f, "--tls");
	return rc;
}

/* The files are open; the target's socket is connected to later. */
static int give_up_privileges(struct restore *r, const struct options *o, struct ferry_failure *f)
{
	const struct ferry_addr *to = &o->to.addr;
	int rc = isolation_enter(
		to->is_unix ? isolation_need_of_socket(to->path) : ISOLATION_NOTHING, f);

	if (!rc)
		rc = job_start(&r->job, f);
	return rc < 0 ? rc : confine(CONFINE_NOTHING, f);
}

static int start(struct restore *r, const struct options *o, struct ferry_failure *f)
{
	struct ferry_cloudhv_config config = {
		.to = o->to.addr,
		.sources = r->snapshot.sources,
		.ranges = r->snapshot.ranges,
		.leave_paused = o->pause,
	};
	int rc = job_open(&r->job, "cloud-hypervisor", o, f);

	if (rc < 0)
		return rc;
	report_stage(&r->job.report, "open");
	rc = open_tls(&r->job, o, f);
	if (!rc)
		rc = open_snapshot(r, o, f);
	if (!rc)
		rc = give_up_privileges(r, o, f);
	if (rc < 0)
		return rc;
	config.tls = r->job.tls;
	config.n_sources = r->snapshot.n_ranges;
	config.vm_config = r->snapshot.vm_config;
	config.vm_state = r->snapshot.vm_state;
	return ferry_cloudhv_start(&r->source, &config, f);
}

static json_t *summary(const struct restore *r, const struct ferry_cloudhv_stats *s)
{
	json_t *o = json_object();

	json_put_count(o, "ram_bytes", r->ram_bytes);
	json_put_count(o, "pages_total", s->pages_total);
	json_put_count(o, "pages_known", s->pages_known);
	json_put_count(o, "wire_bytes", s->wire_bytes);
	json_put_count(o, "requests", s->requests);
	json_put(o, "total_ms", json_ms(ferry_now_ns() - r->job.report.start_ns));
	return o;
}

static void tell_stage(struct restore *r, enum ferry_cloudhv_stage now,
		       enum ferry_cloudhv_stage *told)
{
	static const char *const names[] = {"connect", "configure", "restore", "serve"};

	while (*told < now && *told + 1u < FERRY_ARRAY_SIZE(names)) {
		++*told;
		report_stage(&r->job.report, names[*told]);
	}
}

static void tell_stopped(const struct ferry_cloudhv_stats *s, struct ferry_failure *f)
{
	if (s->stage < FERRY_CLOUDHV_SERVES)
		ferry_fail(f, FERRY_REFUSE, -ECANCELED,
			   "stopped before the VM was on the target, which drops it");
	else
		ferry_fail(f, FERRY_LOST, -ECANCELED,
			   "stopped when the target had %" PRIu64 " of %" PRIu64
			   " pages: its VM ends, as nobody can give it the others",
			   s->pages_known, s->pages_total);
}

static int finish(struct restore *r, const struct ferry_cloudhv_stats *s,
		  const struct ferry_failure *f)
{
	char text[SUMMARY_MAX];

	snprintf(text, sizeof(text),
		 "%" PRIu64 " of %" PRIu64 " pages given, by %" PRIu64 " requests\n",
		 s->pages_known, s->pages_total, s->requests);
	if (!f->err)
		return report_completed(&r->job.report, summary(r, s), text);
	return report_failed(&r->job.report, f,
			     f->consequence == FERRY_LOST ? EXIT_LOST : EXIT_FAILED, summary(r, s),
			     text);
}

static int serve(struct restore *r)
{
	enum ferry_cloudhv_stage told = FERRY_CLOUDHV_CONNECTS;
	struct ferry_cloudhv_stats s;
	struct ferry_failure f = {0};
	bool is_stopped;

	report_stage(&r->job.report, "connect");
	do {
		is_stopped = ferry_net_wait(r->job.stop_fd, POLLIN, LOOK_MS, -1) != -ETIMEDOUT;
		ferry_cloudhv_stats(r->source, &s);
		tell_stage(r, s.stage, &told);
	} while (!is_stopped && s.stage < FERRY_CLOUDHV_ENDED);
	if (s.stage == FERRY_CLOUDHV_ENDED)
		(void)ferry_cloudhv_result(r->source, &f);
	else if (s.stage < FERRY_CLOUDHV_SERVES || s.pages_known < s.pages_total)
		tell_stopped(&s, &f);
	return finish(r, &s, &f);
}

static int run(const struct options *o)
{
	struct restore r = {0};
	struct ferry_failure f = {0};
	int status;

	if (start(&r, o, &f) < 0)
		status = report_failed(&r.job.report, &f, EXIT_FAILED, NULL, NULL);
	else
		status = serve(&r);
	ferry_cloudhv_free(r.source);
	ferry_cloud_snapshot_close(&r.snapshot);
	job_close(&r.job);
	return status;
}

const struct command cmd_cloud_hypervisor = {
	.name = "cloud-hypervisor",
	.synopsis = "--snapshot FOLDER --to ADDR [OPTION...]",
	.summary = "Restore a snapshot in a Cloud Hypervisor that asks for its pages.",
	.options = cloud_hypervisor_options,
	.check = check,
	.run = run,
};
