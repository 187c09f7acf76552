// SPDX-License-Identifier: Apache-2.0
/* Serve the pages of files, or of a stopped process. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/keep.h"
#include "base/net.h"
#include "base/still.h"
#include "pageserver/server.h"
#include "pageserver/source.h"
#include "protocol/checksum.h"
#include "tools/confine.h"
#include "tools/isolation.h"
#include "tools/job.h"
#include "tools/json.h"
#include "tools/mappings.h"
#include "tools/secure.h"

#define LOOK_MS	      100  /* how often the counters are read */
#define LOOK_STILL_MS 1000 /* how often it is looked whether the process has run */
#define TELL_MS                                                                                    \
	2000 /* for targets, also those that dial just now, to hear why they get nothing more */

static const struct option_def serve_options[] = {
	{.name = "file",
	 .arg = "PATH",
	 .help = "file with the pages: memory shared through a file, or a snapshot; several make "
		 "several regions, in this order",
	 .kind = OPTION_TEXTS,
	 OPTION_AT(files)},
	{.name = "pid",
	 .arg = "PID",
	 .help = "stopped process whose memory has the pages",
	 .kind = OPTION_PID,
	 OPTION_AT(pid)},
	{.name = "match",
	 .arg = "TEXT",
	 .help = "which of its mappings: part of the name, or 0xSTART[-0xEND], as in "
		 "/proc/PID/maps; may be given several times",
	 .kind = OPTION_TEXTS,
	 OPTION_AT(matches)},
	{.name = "listen",
	 .arg = "ADDR",
	 .help = "address to serve on; port 0 lets the kernel choose one, which is printed",
	 .kind = OPTION_ADDR_LISTEN,
	 .required = true,
	 OPTION_AT(listen)},
	OPTIONS_SECURE_LISTEN,
	{.name = "resume",
	 .help = "serve on for targets that an earlier serve on this address has left incomplete; "
		 "refused when there is none, or when the memory is not the same",
	 .kind = OPTION_FLAG,
	 OPTION_AT(resume)},
	OPTION_MAX_RATE,
	{.name = "max-sessions",
	 .arg = "N",
	 .help = "targets at a time, 1 to 1024 (default: 64); one that has lost its connections "
		 "keeps its place for an hour",
	 .kind = OPTION_COUNT,
	 .max = 1024,
	 OPTION_AT(max_sessions)},
	{.name = "once",
	 .help = "end when the first target has everything (default: serve on)",
	 .kind = OPTION_FLAG,
	 OPTION_AT(once)},
	OPTION_CHECKSUM,
	OPTION_METRICS,
	OPTION_CONTROL,
	OPTIONS_COMMON,
};

static int check(const struct options *o, struct ferry_failure *f)
{
	if (o->files.n && (o->pid || o->matches.n))
		return ferry_fail(f, FERRY_REFUSE, -EINVAL,
				  "--file and --pid exclude each other; give one of the two");
	if (!o->files.n && !o->pid && !o->matches.n)
		return ferry_fail(f, FERRY_REFUSE, -EINVAL,
				  "there is nothing to serve; add --file PATH, or --pid PID "
				  "--match TEXT");
	if (o->pid && !o->matches.n)
		return ferry_fail(f, FERRY_REFUSE, -EINVAL,
				  "--match is missing; add --match TEXT (part of a name in "
				  "/proc/%d/maps)",
				  (int)o->pid);
	if (o->matches.n && !o->pid)
		return ferry_fail(f, FERRY_REFUSE, -EINVAL,
				  "--pid is missing; add --pid PID (whose mappings --match means)");
	return secure_check(o, &o->listen.addr, f);
}

/* What a serve leaves while a target is incomplete, for the one that resumes it. */
struct record {
	struct ferry_keep_head head; /* the process that is served, or none */
	struct ferry_keep_file file; /* the first of those that are served */
	uint64_t memory_id;
};

struct serve {
	struct job job;
	struct ferry_keep record_file;
	struct record record;
	bool is_recorded;
	struct ferry_addr local;
	struct ferry_source *sources[FERRY_MAX_REGIONS]; /* owned */
	uint32_t n_sources;
	uint64_t ram_bytes;
	struct ferry_still still;    /* of the process */
	bool shares;		     /* memory that outlives the process is served */
	uint64_t still_ns;	     /* when that was looked at */
	struct ferry_server *server; /* owned */
	int listen_fd;		     /* owned */
	uint32_t n_completed;	     /* as told so far */
};

static int open_files(struct serve *s, const struct options *o, struct ferry_failure *f)
{
	for (uint32_t i = 0; i < o->files.n; i++) {
		int rc = ferry_source_open_path(&s->sources[i], o->files.v[i], f);

		if (rc < 0) {
			ferry_fail_prefix(f, "--file %.200s", o->files.v[i]);
			return rc;
		}
		s->n_sources++;
	}
	return 0;
}

static int open_process(struct serve *s, const struct options *o, struct ferry_failure *f)
{
	struct mappings found;
	int rc = mappings_select(o->pid, &o->matches, &found, f);

	if (rc < 0)
		return rc;
	/* Before the first page is looked at. One that runs is refused below, with what to do. */
	rc = ferry_still_open(&s->still, o->pid);
	if (rc < 0 && rc != -EBUSY)
		return ferry_fail_errno(f, FERRY_REFUSE, rc, "process %d", (int)o->pid);
	for (uint32_t i = 0; i < found.n; i++) {
		const struct ferry_mapping *m = &found.v[i];
		char name[FERRY_MAX_REGION_NAME];

		mapping_region_name(m, name, sizeof(name));
		rc = ferry_source_open_process(&s->sources[i], name, o->pid, m->start.v, m->len,
					       m->page_bytes, f);
		if (rc < 0)
			return rc;
		s->shares |= m->kind != FERRY_MAPPING_ANON;
		s->n_sources++;
	}
	return s->still.pidfd < 0
		       ? ferry_fail(f, FERRY_REFUSE, -EBUSY,
				    "process %d does not stand still; stop it first (kill "
				    "-STOP %d)",
				    (int)o->pid, (int)o->pid)
		       : 0;
}

/* What was read of it, and what would be, is not of one moment. Any thread. */
static void condemn(struct serve *s, int looked)
{
	char text[FERRY_MAX_TEXT];

	snprintf(text, sizeof(text),
		 "process %d, whose memory is served, has %s: its targets can't be given the rest "
		 "of it; what they have may be of two moments",
		 (int)s->still.pid,
		 looked == -ESRCH ? "ended, and may have run before"
				  : "run meanwhile (was it continued?)");
	ferry_server_condemn(s->server, text);
}

/* A target has everything; is that what the process had when it began? The loop's thread. */
static int may_release(void *ctx)
{
	struct serve *s = ctx;
	int looked = ferry_still_look(&s->still);

	if (looked == 1)
		return 0;
	if (!looked || looked == -ESRCH)
		condemn(s, looked);
	return looked ? looked : -ESTALE;
}

/* From time to time. Private memory of one that has ended tells so by itself, page by page. */
static void look_still(struct serve *s)
{
	uint64_t now = ferry_now_ns();
	int looked;

	if (s->still.pidfd < 0 || now - s->still_ns < LOOK_STILL_MS * (uint64_t)FERRY_NS_PER_MS)
		return;
	s->still_ns = now;
	looked = ferry_still_look(&s->still);
	if (!looked || (looked == -ESRCH && s->shares))
		condemn(s, looked);
}

/* There is one for each address: where the targets dial again. */
static int look_back(struct serve *s, const struct options *o, struct ferry_failure *f)
{
	uint64_t id = ferry_server_memory_id(s->server);
	enum ferry_keep_state found = FERRY_KEEP_EMPTY;
	char text[FERRY_ADDR_TEXT_MAX], name[32];
	struct ferry_failure why = {0};
	int rc;

	ferry_addr_format(&s->local, text);
	snprintf(name, sizeof(name), "serve-%016" PRIx64, ferry_checksum(0, text, strlen(text)));
	rc = ferry_keep_open(&s->record_file, NULL, name, &why);
	if (rc < 0 && o->resume) {
		*f = why;
		return rc;
	}
	if (rc < 0)
		ferry_warn(&s->job.report.log, "%s; --resume will not know of this serve", why.text);
	else
		found = ferry_keep_read(&s->record_file, &s->record, sizeof(s->record));
	if (found == FERRY_KEEP_UNREAD) {
		rc = ferry_fail_errno(f, FERRY_REFUSE, -errno, "what is kept in %s can't be read",
				      s->record_file.path);
		ferry_keep_close(&s->record_file, false);
		return rc;
	}
	/* What is left of other memory on this address is of no use any more, once that is served. */
	s->is_recorded = found == FERRY_KEEP_FOUND && s->record.memory_id == id;
	if (o->resume && found == FERRY_KEEP_EMPTY)
		return ferry_fail(f, FERRY_REFUSE, -ENOENT,
				  "there is nothing to resume: no 'pageferry serve' on %.100s ended while "
				  "a target was incomplete; serve without --resume",
				  text);
	if (o->resume && (found == FERRY_KEEP_OTHER || s->record.memory_id != id)) {
		ferry_keep_close(&s->record_file, false);
		return ferry_fail(f, FERRY_REFUSE, -ESTALE,
				  "this is another guest's memory than the one that was served on %.100s, "
				  "or it has run or changed since: its targets can't be given the rest of "
				  "it",
				  text);
	}
	s->record = (struct record){.memory_id = id};
	if (!o->pid)
		ferry_keep_about(&s->record.file, o->files.v[0]);
	return 0;
}

/* While there are targets that have begun and are not complete, whether they are connected or not. */
static void keep_record(struct serve *s, const struct options *o,
			const struct ferry_server_stats *stats)
{
	bool wanted = stats->n_sessions_ever > stats->n_completed;

	/* One that was found stays until the first target is complete. */
	if (s->record_file.fd < 0 || wanted == s->is_recorded || (!wanted && !stats->n_completed))
		return;
	s->is_recorded = wanted;
	if (wanted)
		(void)ferry_keep_write(&s->record_file, &s->record, sizeof(s->record), o->pid);
	else
		(void)!ftruncate(s->record_file.fd, 0);
}

static int open_server(struct serve *s, const struct options *o, struct ferry_failure *f)
{
	struct ferry_server_config config = {
		.sources = s->sources,
		.n_sources = s->n_sources,
		.max_sessions = o->max_sessions,
		.max_bytes_per_second = o->max_rate,
		.tls = s->job.tls,
		.no_checksum = o->checksum == CHECKSUM_OFF,
		.may_release = o->pid ? may_release : NULL,
		.may_release_ctx = s,
		.log = &s->job.report.log,
	};
	int rc = ferry_server_new(&s->server, &config, f);

	if (rc < 0)
		return rc;
	rc = look_back(s, o, f);
	if (rc < 0)
		return rc;
	rc = ferry_server_listen(s->server, TAKE_FD(s->listen_fd));
	if (rc < 0)
		return ferry_fail_errno(f, FERRY_REFUSE, rc, "cannot serve on that address");
	return ferry_server_start(s->server, f);
}

static int start(struct serve *s, const struct options *o, struct ferry_failure *f)
{
	int rc = job_open(&s->job, "serve", o, f);

	if (!rc)
		rc = job_secure(&s->job, o, true, f);
	if (rc < 0)
		return rc;
	report_stage(&s->job.report, "open");
	rc = o->pid ? open_process(s, o, f) : open_files(s, o, f);
	if (rc < 0)
		return rc;
	for (uint32_t i = 0; i < s->n_sources; i++) {
		const struct ferry_region_desc *d = ferry_source_desc(s->sources[i]);

		s->ram_bytes += d->n_pages * d->page_bytes;
		ferry_info(&s->job.report.log, "region %u: '%s', %" PRIu64 " pages of %u bytes", i,
			   d->name, d->n_pages, d->page_bytes);
	}
	s->listen_fd = ferry_net_listen(&o->listen.addr, f);
	if (s->listen_fd < 0)
		return s->listen_fd;
	rc = ferry_net_local(s->listen_fd, &o->listen.addr, &s->local);
	if (rc < 0)
		return ferry_fail_errno(f, FERRY_REFUSE, rc, "the address that is listened on");
	/* Files are open; memory of a process is read with process_vm_readv to the end. */
	rc = isolation_enter(o->pid ? ISOLATION_PTRACE : ISOLATION_NOTHING, f);
	if (rc < 0)
		return rc;
	rc = open_server(s, o, f);
	if (rc < 0)
		return rc;
	rc = job_start(&s->job, f);
	if (!rc)
		rc = confine(CONFINE_SERVES | (o->pid ? CONFINE_READS : 0), f);
	if (rc < 0)
		return rc;
	report_listening(&s->job.report, &s->local);
	report_stage(&s->job.report, "serve");
	return 0;
}

/* Tell of the sessions that were completed since. */
static void tell_completed(struct serve *s, const struct ferry_server_stats *stats)
{
	while (s->n_completed < stats->n_completed) {
		json_t *o = json_object();
		char text[64];

		s->n_completed++;
		json_put_count(o, "n", s->n_completed);
		snprintf(text, sizeof(text), "session %u is complete", s->n_completed);
		report_event(&s->job.report, "session-completed", o, text);
	}
}

static json_t *summary_json(const struct serve *s, const struct ferry_server_stats *stats,
			    uint64_t total_ns)
{
	json_t *o = json_object();

	json_put_count(o, "ram_bytes", s->ram_bytes);
	json_put_all(o, json_server(stats));
	json_put(o, "total_ms", json_ms(total_ns));
	return o;
}

/* How it ended: @f tells why, when it isn't the way it should. */
static int finish(struct serve *s, const struct ferry_failure *f, int status)
{
	uint64_t total_ns = ferry_now_ns() - s->job.report.start_ns;
	struct ferry_server_stats stats;
	char text[SUMMARY_MAX];

	ferry_server_stop(s->server);
	ferry_server_stats(s->server, &stats);
	tell_completed(s, &stats);
	summary_server(&stats, s->ram_bytes, total_ns, 0, text, sizeof(text));
	if (status == EXIT_DONE)
		return report_completed(&s->job.report, summary_json(s, &stats, total_ns), text);
	return report_failed(&s->job.report, f, status, summary_json(s, &stats, total_ns), text);
}

static int stopped(struct serve *s, const struct options *o)
{
	struct ferry_server_stats stats;
	struct ferry_failure f = {0};

	ferry_server_stats(s->server, &stats);
	if (stats.n_sessions) {
		ferry_fail(&f, FERRY_LINK, -ECANCELED,
			   "stopped while %u target%s not complete and wait%s for pages; run "
			   "the same command with --resume",
			   stats.n_sessions, stats.n_sessions == 1 ? " is" : "s are",
			   stats.n_sessions == 1 ? "s" : "");
		return finish(s, &f, EXIT_WAITS);
	}
	if (o->once && !stats.n_completed) {
		ferry_fail(&f, FERRY_REFUSE, -ECANCELED, "stopped before any target was complete");
		return finish(s, &f, EXIT_FAILED);
	}
	return finish(s, &f, EXIT_DONE);
}

/* Its targets get nothing more from this process, but from another one of us. */
static int broken(struct serve *s, const struct options *o)
{
	struct ferry_server_stats stats;
	struct ferry_failure f = {0};
	uint32_t n;

	ferry_server_stats(s->server, &stats);
	keep_record(s, o, &stats);
	n = stats.n_sessions_ever - stats.n_completed;
	if (!n) {
		ferry_fail(&f, FERRY_REFUSE, -EIO,
			   "io_uring broke (the log says how); run the same command again");
		return finish(s, &f, EXIT_FAILED);
	}
	ferry_fail(&f, FERRY_LINK, -EIO,
		   "io_uring broke (the log says how), and %u target%s not complete and wait%s for "
		   "pages; run the same command with --resume",
		   n, n == 1 ? " is" : "s are", n == 1 ? "s" : "");
	return finish(s, &f, EXIT_WAITS);
}

static void tell_failed(struct serve *s, const struct ferry_failure *f)
{
	json_t *o = json_object();

	json_put(o, "error", json_text(f->text));
	json_put(o, "consequence", json_text(ferry_consequence_name(f->consequence)));
	report_count_error(&s->job.report);
	report_event(&s->job.report, "session-failed", o, f->text);
}

static void tell_lost(struct serve *s, const struct ferry_failure *f)
{
	json_t *o = json_object();

	json_put(o, "error", json_text(f->text));
	report_count_error(&s->job.report);
	report_event(&s->job.report, "pages-lost", o, NULL); /* for people it is in the log */
}

/* Nothing more can be had here, by nobody. */
static int changed(struct serve *s, struct ferry_failure *f)
{
	uint64_t end_ns = ferry_now_ns() + TELL_MS * (uint64_t)FERRY_NS_PER_MS, now_ns;
	struct ferry_server_stats stats;
	json_t *o = json_object();

	json_put(o, "error", json_text(f->text));
	report_event(&s->job.report, "memory-changed", o, NULL); /* for people it is in the log */
	ferry_server_stats(s->server, &stats);
	if (stats.n_sessions_ever <= stats.n_completed) {
		f->consequence = FERRY_REFUSE;
		return finish(s, f, EXIT_FAILED);
	}
	while ((now_ns = ferry_now_ns()) < end_ns) {
		int left_ms = (int)((end_ns - now_ns) / FERRY_NS_PER_MS) + 1;

		if (ferry_server_wait(s->server, left_ms, s->job.stop_fd, NULL) < 0)
			break;
	}
	return finish(s, f, EXIT_LOST);
}

static int serve(struct serve *s, const struct options *o)
{
	for (;;) {
		struct ferry_failure f = {0};
		struct ferry_server_stats stats;
		int event = ferry_server_wait(s->server, LOOK_MS, s->job.stop_fd, &f);

		if (event == -ECANCELED)
			return stopped(s, o);
		if (event < 0) {
			ferry_fail_errno(&f, FERRY_LINK, event, "waiting for targets");
			return finish(s, &f, EXIT_FAILED);
		}
		if (ferry_server_is_broken(s->server))
			return broken(s, o);
		if (event == FERRY_SERVER_LINK_LOST)
			report_link_lost(&s->job.report, f.text);
		if (event == FERRY_SERVER_PAGES_LOST)
			tell_lost(s, &f);
		if (event == FERRY_SERVER_CHANGED)
			return changed(s, &f);
		if (event == FERRY_SERVER_FAILED || event == FERRY_SERVER_DAMAGED) {
			if (o->once)
				return finish(s, &f,
					      event == FERRY_SERVER_DAMAGED ? EXIT_UNVERIFIED
					      : f.consequence == FERRY_LOST ? EXIT_LOST
									    : EXIT_FAILED);
			tell_failed(s, &f);
		}
		ferry_server_stats(s->server, &stats);
		keep_record(s, o, &stats);
		report_server(&s->job.report, &stats);
		tell_completed(s, &stats);
		look_still(s);
		if (o->once && event == FERRY_SERVER_COMPLETED)
			return finish(s, &f, EXIT_DONE);
	}
}

static int run(const struct options *o)
{
	struct serve s = {
		.listen_fd = -1, .record_file = FERRY_KEEP_NONE, .still = FERRY_STILL_NONE};
	struct ferry_failure f = {0};
	int status;

	if (start(&s, o, &f) < 0)
		status = report_failed(&s.job.report, &f, EXIT_FAILED, NULL, NULL);
	else
		status = serve(&s, o);
	ferry_server_free(s.server);
	for (uint32_t i = 0; i < s.n_sources; i++)
		ferry_source_free(s.sources[i]);
	ferry_close(s.listen_fd);
	ferry_still_close(&s.still);
	ferry_keep_close(&s.record_file, !s.is_recorded);
	job_close(&s.job);
	return status;
}

const struct command cmd_serve = {
	.name = "serve",
	.synopsis = "(--file PATH... | --pid PID --match TEXT...) --listen ADDR [OPTION...]",
	.summary = "Serve the pages of files, or of a stopped process, to targets that attach.",
	.options = serve_options,
	.check = check,
	.run = run,
};
