// SPDX-License-Identifier: Apache-2.0
/*
 * The text of the metrics. The two formats differ in little: OpenMetrics names a counter's family
 * without _total, and has a last line.
 */
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "tools/metrics.h"

/* Bounds of the buckets: powers of two in nanoseconds, where the histogram counts exactly. */
#define BOUND_FIRST 13 /* 8.2 us */
#define BOUND_LAST  33 /* 8.6 s */

struct text {
	char *out;
	size_t size, len;
	bool openmetrics, is_full;
};

static void __attribute__((format(printf, 2, 3))) put(struct text *t, const char *format, ...)
{
	va_list args;
	int n;

	if (t->is_full)
		return;
	va_start(args, format);
	n = vsnprintf(t->out + t->len, t->size - t->len, format, args);
	va_end(args);
	if (n < 0 || (size_t)n >= t->size - t->len)
		t->is_full = true;
	else
		t->len += (size_t)n;
}

static void family(struct text *t, const char *name, const char *type, const char *help)
{
	int len = (int)strlen(name);

	if (t->openmetrics && !strcmp(type, "counter"))
		len -= (int)strlen("_total");
	put(t, "# HELP %.*s %s\n# TYPE %.*s %s\n", len, name, help, len, name, type);
}

static void counter(struct text *t, const char *name, const char *help, uint64_t v)
{
	family(t, name, "counter", help);
	put(t, "%s %" PRIu64 "\n", name, v);
}

static void gauge(struct text *t, const char *name, const char *help, double v)
{
	family(t, name, "gauge", help);
	put(t, "%s %.15g\n", name, v);
}

static void of_path(struct text *t, const char *name, const char *path, uint64_t v)
{
	put(t, "%s{path=\"%s\"} %" PRIu64 "\n", name, path, v);
}

static void histogram(struct text *t, const char *name, const char *path,
		      const struct ferry_histogram *h)
{
	uint64_t all = ferry_histogram_count_below(h, UINT64_MAX);

	for (unsigned int bit = BOUND_FIRST; bit <= BOUND_LAST; bit++)
		put(t, "%s_bucket{path=\"%s\",le=\"%.10g\"} %" PRIu64 "\n", name, path,
		    (double)(UINT64_C(1) << bit) / FERRY_NS_PER_S,
		    ferry_histogram_count_below(h, UINT64_C(1) << bit));
	/* All counts from the buckets: ->n was read at another moment. */
	put(t, "%s_bucket{path=\"%s\",le=\"+Inf\"} %" PRIu64 "\n", name, path, all);
	put(t, "%s_sum{path=\"%s\"} %.9f\n", name, path, (double)h->sum_ns / FERRY_NS_PER_S);
	put(t, "%s_count{path=\"%s\"} %" PRIu64 "\n", name, path, all);
}

static void target(struct text *t, const struct ferry_target_stats *s)
{
	family(t, "pageferry_fault_latency_seconds", "histogram",
	       "Time from reading a fault's message to waking its threads.");
	histogram(t, "pageferry_fault_latency_seconds", "source", &s->fault_ns);
	histogram(t, "pageferry_fault_latency_seconds", "local", &s->local_ns);
	gauge(t, "pageferry_memory_pages", "Pages of the memory.", (double)s->pages_total);
	gauge(t, "pageferry_resident_pages", "Pages that are here, or known to be zero.",
	      (double)s->pages_known);
	gauge(t, "pageferry_resident_ratio", "Share of the pages that are here, from 0 to 1.",
	      s->pages_total ? (double)s->pages_known / (double)s->pages_total : 0);
	family(t, "pageferry_pages_total", "counter", "Pages by the way they came.");
	of_path(t, "pageferry_pages_total", "urgent", s->pages_urgent);
	of_path(t, "pageferry_pages_total", "push", s->pages_pushed);
	of_path(t, "pageferry_pages_total", "zero", s->pages_zero);
	of_path(t, "pageferry_pages_total", "present", s->pages_present);
	counter(t, "pageferry_duplicate_pages_total",
		"Pages that came when they were here already.", s->pages_duplicate);
	counter(t, "pageferry_discarded_pages_total", "Pages that the guest discarded.",
		s->discarded_pages);
	counter(t, "pageferry_received_bytes_total", "Bytes received, frames and pages.",
		s->wire_bytes);
	counter(t, "pageferry_faults_total", "Messages of the userfaultfd that were read.",
		s->faults);
	counter(t, "pageferry_coalesced_faults_total",
		"Messages for a page that was waited for already.", s->faults_coalesced);
	gauge(t, "pageferry_faults_in_flight", "Pages that threads wait for.", s->faults_in_flight);
	gauge(t, "pageferry_faults_stalled",
	      "Pages that threads have been waiting for for more than 100 ms.", s->faults_stalled);
	gauge(t, "pageferry_oldest_wait_seconds", "How long the longest wait has been so far.",
	      (double)s->oldest_wait_ns / FERRY_NS_PER_S);
	counter(t, "pageferry_requests_total", "Requests for pages that were sent to the source.",
		s->requests);
	counter(t, "pageferry_resumes_total", "Times the session went on after a lost connection.",
		s->resumes);
	gauge(t, "pageferry_link_up", "1 while all connections to the source are open.",
	      s->link_up);
}

static void server(struct text *t, const struct ferry_server_stats *s)
{
	gauge(t, "pageferry_open_sessions", "Sessions that are open.", s->n_sessions);
	counter(t, "pageferry_sessions_total", "Sessions that were ever opened.",
		s->n_sessions_ever);
	counter(t, "pageferry_completed_sessions_total", "Sessions whose target has everything.",
		s->n_completed);
	family(t, "pageferry_served_pages_total", "counter", "Pages by the way they were sent.");
	of_path(t, "pageferry_served_pages_total", "urgent", s->pages_urgent);
	of_path(t, "pageferry_served_pages_total", "push", s->pages_pushed);
	of_path(t, "pageferry_served_pages_total", "zero", s->pages_zero);
	counter(t, "pageferry_sent_bytes_total", "Bytes sent, frames and pages.", s->wire_bytes);
	counter(t, "pageferry_served_requests_total", "Requests for pages that were read.",
		s->requests);
	counter(t, "pageferry_served_resumes_total",
		"Times a session went on after a lost connection.", s->resumes);
}

static void replay(struct text *t, const struct ferry_replay_stats *s)
{
	gauge(t, "pageferry_working_set_pages", "Pages of the working set.", (double)s->pages);
	counter(t, "pageferry_working_set_vms_total", "VMs that say what it is good for.",
		s->n_vms);
	counter(t, "pageferry_working_set_samples_total",
		"Pages of it that were pushed last, to see whether they are wanted.",
		s->samples_seen);
	counter(t, "pageferry_working_set_hits_total", "Samples that VMs touched before they came.",
		s->hits);
	gauge(t, "pageferry_working_set_hit_ratio", "Share of the samples, from 0 to 1.",
	      s->samples_seen ? (double)s->hits / (double)s->samples_seen : 0);
	counter(t, "pageferry_working_set_late_pages_total",
		"Other pages of it that VMs touched before they came.", s->late);
	counter(t, "pageferry_working_set_missed_pages_total",
		"Pages that VMs waited for and that it has not.", s->missed);
	gauge(t, "pageferry_working_set_pushed_first", "1 while it is pushed before all else.",
	      s->is_first);
}

size_t metrics_render(const struct report_snapshot *s, bool openmetrics, char *out, size_t size)
{
	struct text t = {.out = out, .size = size, .openmetrics = openmetrics};

	family(&t, "pageferry_build_info", "gauge", "1, with the version and the command.");
	put(&t, "pageferry_build_info{version=\"%s\",command=\"%s\"} 1\n", PAGEFERRY_VERSION,
	    s->command);
	if (s->has_target)
		target(&t, &s->target);
	if (s->has_server)
		server(&t, &s->server);
	if (s->has_replay)
		replay(&t, &s->replay);
	counter(&t, "pageferry_link_losses_total", "Times the connections were lost.",
		s->n_links_lost);
	counter(&t, "pageferry_errors_total",
		"Sessions that failed, and the command's own failure.", s->n_errors);
	if (openmetrics)
		put(&t, "# EOF\n");
	return t.is_full ? 0 : t.len;
}
