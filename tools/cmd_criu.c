// SPDX-License-Identifier: Apache-2.0
/* Serve the pages of a stopped process to CRIU, which restores it lazily elsewhere. */
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/net.h"
#include "base/still.h"
#include "pageserver/criu.h"
#include "tools/confine.h"
#include "tools/isolation.h"
#include "tools/job.h"
#include "tools/json.h"
#include "tools/mappings.h"
#include "tools/secure.h"

#define LOOK_MS	      100  /* how often the counters are read */
#define LOOK_STILL_MS 1000 /* how often it is looked whether the process has run */

static const char *const header_choices[] = {"32", "24", NULL};

static const struct option_def criu_options[] = {
	{.name = "pid",
	 .arg = "PID",
	 .help = "stopped process whose memory has the pages",
	 .kind = OPTION_PID,
	 .required = true,
	 OPTION_AT(pid)},
	{.name = "match",
	 .arg = "TEXT",
	 .help = "which of its mappings: part of the name, or 0xSTART[-0xEND], as in "
		 "/proc/PID/maps; may be given several times",
	 .kind = OPTION_TEXTS,
	 .required = true,
	 OPTION_AT(matches)},
	{.name = "listen",
	 .arg = "ADDR",
	 .help = "address to serve on; port 0 lets the kernel choose one, which is printed",
	 .kind = OPTION_ADDR_LISTEN,
	 .required = true,
	 OPTION_AT(listen)},
	{.name = "header",
	 .arg = "32|24",
	 .help = "bytes of CRIU's headers: 32 as of CRIU 4.2, 24 before (default: 32)",
	 .kind = OPTION_CHOICE,
	 .choices = header_choices,
	 OPTION_AT(criu_header)},
	{.name = "plaintext",
	 .help = "serve also where others could read and change what is sent: CRIU's protocol is not "
		 "encrypted (default: only on a loopback address or a UNIX socket)",
	 .kind = OPTION_FLAG,
	 OPTION_AT(plaintext)},
	{.name = "once",
	 .help = "end when the first CRIU is done (default: serve on)",
	 .kind = OPTION_FLAG,
	 OPTION_AT(once)},
	OPTION_CONTROL,
	OPTIONS_COMMON,
};

static int check(const struct options *o, struct ferry_failure *f)
{
	char text[FERRY_ADDR_TEXT_MAX];

	if (o->plaintext || ferry_addr_is_local(&o->listen.addr))
		return 0;
	ferry_addr_format(&o->listen.addr, text);
	return ferry_fail(f, FERRY_REFUSE, -EINVAL,
			  "'%.200s' is not on this host alone, and CRIU's protocol is not encrypted; "
			  "listen on 127.0.0.1 and forward it by SSH or the like, or add --plaintext "
			  "if the network is trusted",
			  text);
}

struct criu {
	struct job job;
	struct mappings mappings;
	struct ferry_still still; /* of the process */
	bool shares;		  /* memory that outlives the process is served */
	uint64_t still_ns;	  /* when that was looked at */
	atomic_bool has_changed;
	struct ferry_source *sources[FERRY_MAX_REGIONS]; /* owned */
	struct ferry_criu_range ranges[FERRY_MAX_REGIONS];
	uint32_t n_sources;
	uint64_t ram_bytes;
	struct ferry_addr local;
	int listen_fd;		   /* owned */
	struct ferry_criu *server; /* owned */
};

/* As CRIU knows it: its number in its own, innermost namespace. */
static uint64_t inner_pid(pid_t pid)
{
	char path[64], line[256];
	uint64_t inner = (uint64_t)pid;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/status", (int)pid);
	f = fopen(path, "re");
	while (f && fgets(line, sizeof(line), f)) {
		const char *last = strrchr(line, '\t');

		if (!strncmp(line, "NSpid:", 6) && last)
			inner = strtoul(last, NULL, 10);
	}
	if (f)
		fclose(f);
	return inner;
}

static int open_process(struct criu *c, const struct options *o, struct ferry_failure *f)
{
	int rc = mappings_select(o->pid, &o->matches, &c->mappings, f);

	if (rc < 0)
		return rc;
	/* Before the first page is looked at. */
	rc = ferry_still_open(&c->still, o->pid);
	if (rc == -EBUSY)
		return ferry_fail(f, FERRY_REFUSE, rc,
				  "process %d does not stand still; stop it first (kill -STOP %d)",
				  (int)o->pid, (int)o->pid);
	if (rc < 0)
		return ferry_fail_errno(f, FERRY_REFUSE, rc, "process %d", (int)o->pid);
	for (uint32_t i = 0; i < c->mappings.n && !rc; i++) {
		const struct ferry_mapping *m = &c->mappings.v[i];
		char name[FERRY_MAX_REGION_NAME];

		mapping_region_name(m, name, sizeof(name));
		if (m->page_bytes != FERRY_CRIU_PAGE_BYTES)
			return ferry_fail(f, FERRY_REFUSE, -EINVAL,
					  "'%s' has pages of %u bytes; CRIU's protocol knows those of "
					  "%u only",
					  name, m->page_bytes, FERRY_CRIU_PAGE_BYTES);
		rc = ferry_source_open_process(&c->sources[i], name, o->pid, m->start.v, m->len,
					       m->page_bytes, f);
		if (rc < 0)
			return rc;
		c->ranges[i] = (struct ferry_criu_range){
			.address = m->start.v, .n_pages = m->len / FERRY_CRIU_PAGE_BYTES};
		c->shares |= m->kind != FERRY_MAPPING_ANON;
		c->ram_bytes += m->len;
		c->n_sources++;
	}
	return rc;
}

/* A CRIU is done; is what it has that of one moment? Its thread. */
static int may_release(void *ctx)
{
	struct criu *c = ctx;
	int looked = ferry_still_look(&c->still);

	if (!looked || looked == -ESRCH)
		c->has_changed = true;
	if (looked < 0 && looked != -ESRCH)
		return -EAGAIN; /* that can't be told this time */
	return looked == 1 ? 0 : -ESTALE;
}

/* From time to time. Private memory of one that has ended tells so by itself, page by page. */
static void look_still(struct criu *c)
{
	uint64_t now = ferry_now_ns();
	int looked;

	if (now - c->still_ns < LOOK_STILL_MS * (uint64_t)FERRY_NS_PER_MS)
		return;
	c->still_ns = now;
	looked = ferry_still_look(&c->still);
	if (!looked || (looked == -ESRCH && c->shares))
		c->has_changed = true;
}

static int start(struct criu *c, const struct options *o, struct ferry_failure *f)
{
	struct ferry_criu_config config = {
		.sources = c->sources,
		.ranges = c->ranges,
		.pid = inner_pid(o->pid),
		.header_bytes = o->criu_header == 2 ? FERRY_CRIU_HEADER_OLD : FERRY_CRIU_HEADER_NEW,
		.may_release = may_release,
		.ctx = c,
		.log = &c->job.report.log,
	};
	int rc = job_open(&c->job, "criu", o, f);

	if (rc < 0)
		return rc;
	report_stage(&c->job.report, "open");
	rc = open_process(c, o, f);
	if (rc < 0)
		return rc;
	config.n_sources = c->n_sources;
	c->listen_fd = ferry_net_listen(&o->listen.addr, f);
	if (c->listen_fd < 0)
		return c->listen_fd;
	rc = ferry_net_local(c->listen_fd, &o->listen.addr, &c->local);
	if (rc < 0)
		return ferry_fail_errno(f, FERRY_REFUSE, rc, "the address that is listened on");
	rc = isolation_enter(ISOLATION_PTRACE, f);
	if (!rc)
		rc = job_start(&c->job, f);
	if (!rc)
		rc = confine(CONFINE_READS, f);
	if (!rc)
		rc = ferry_criu_start(&c->server, &config, TAKE_FD(c->listen_fd), f);
	if (rc < 0)
		return rc;
	report_listening(&c->job.report, &c->local);
	report_stage(&c->job.report, "serve");
	return 0;
}

static json_t *summary(const struct criu *c, const struct ferry_criu_stats *s)
{
	json_t *o = json_object();

	json_put_count(o, "ram_bytes", c->ram_bytes);
	json_put_count(o, "pages_urgent", s->pages);
	json_put_count(o, "wire_bytes", s->wire_bytes);
	json_put_count(o, "requests", s->requests);
	json_put_count(o, "sessions", s->n_connections);
	json_put_count(o, "sessions_ever", s->n_connections_ever);
	json_put_count(o, "sessions_completed", s->n_closed);
	json_put_count(o, "sessions_failed", s->n_failed);
	json_put(o, "total_ms", json_ms(ferry_now_ns() - c->job.report.start_ns));
	return o;
}

/* Nothing more can be had here, by nobody. */
static int changed(struct criu *c, const struct ferry_criu_stats *s, const char *text)
{
	/* Who was told that all is well has what is of one moment. */
	bool is_lost = s->n_unfinished;
	struct ferry_failure f = {0};
	json_t *o = json_object();

	ferry_fail(&f, is_lost ? FERRY_LOST : FERRY_REFUSE, -ESTALE,
		   "process %d, whose memory is served, has run or ended meanwhile (was it "
		   "continued?): CRIU can't be given the rest of it%s",
		   (int)c->still.pid,
		   is_lost ? "; what it has may be of two moments: end what it has restored" : "");
	json_put(o, "error", json_text(f.text));
	report_event(&c->job.report, "memory-changed", o, NULL);
	return report_failed(&c->job.report, &f, is_lost ? EXIT_LOST : EXIT_FAILED, summary(c, s),
			     text);
}

/* While CRIU is connected there may be pages that it lacks. */
static int serve(struct criu *c, const struct options *o)
{
	struct ferry_criu_stats s;
	struct ferry_failure f = {0};
	char text[SUMMARY_MAX];
	bool is_stopped;

	do {
		is_stopped = ferry_net_wait(c->job.stop_fd, POLLIN, LOOK_MS, -1) != -ETIMEDOUT;
		look_still(c);
		ferry_criu_stats(c->server, &s);
	} while (!is_stopped && !c->has_changed && !(o->once && s.n_closed));
	snprintf(text, sizeof(text), "%" PRIu64 " pages given, by %" PRIu64 " requests of %u CRIUs\n",
		 s.pages, s.requests, s.n_connections_ever);
	if (c->has_changed && !(o->once && s.n_closed))
		return changed(c, &s, text);
	if (!is_stopped || !s.n_connections)
		return report_completed(&c->job.report, summary(c, &s), text);
	ferry_fail(&f, FERRY_LINK, -ECANCELED,
		   "stopped while CRIU was connected: what it has restored waits for its pages, which "
		   "nobody can give it any more");
	return report_failed(&c->job.report, &f, EXIT_WAITS, summary(c, &s), text);
}

static int run(const struct options *o)
{
	struct criu c = {.listen_fd = -1, .still = FERRY_STILL_NONE};
	struct ferry_failure f = {0};
	int status;

	if (start(&c, o, &f) < 0)
		status = report_failed(&c.job.report, &f, EXIT_FAILED, NULL, NULL);
	else
		status = serve(&c, o);
	ferry_criu_free(c.server);
	for (uint32_t i = 0; i < c.n_sources; i++)
		ferry_source_free(c.sources[i]);
	ferry_close(c.listen_fd);
	ferry_still_close(&c.still);
	job_close(&c.job);
	return status;
}

const struct command cmd_criu = {
	.name = "criu",
	.synopsis = "--pid PID --match TEXT... --listen ADDR [OPTION...]",
	.summary = "Serve the pages of a stopped process to 'criu lazy-pages --page-server'.",
	.options = criu_options,
	.check = check,
	.run = run,
};
