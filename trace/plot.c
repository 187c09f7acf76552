/* SPDX-License-Identifier: Apache-2.0 */
#include "trace/plot.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"

#define WIDTH	1320
#define HEIGHT	990
#define PANEL_W 540
#define PANEL_H 350
#define LEFT	90
#define TOP	120
#define COLUMN	(PANEL_W + 120)
#define ROW	(PANEL_H + 110)
#define HEAD	18.0
#define SUB	12.0

static struct ferry_panel panel(int column, int line)
{
	return (struct ferry_panel){
		.x = LEFT + column * COLUMN, .y = TOP + line * ROW, .w = PANEL_W, .h = PANEL_H};
}

static void head(const struct ferry_plot *p)
{
	const struct ferry_trace_log *log = p->log;
	time_t at = (time_t)(log->start_realtime_ns / FERRY_NS_PER_S);
	char text[256], when[64] = "";
	struct tm tm;

	if (gmtime_r(&at, &tm))
		strftime(when, sizeof(when), ", begun %Y-%m-%d %H:%M:%S UTC", &tm);
	snprintf(text, sizeof(text), "Page faults of process %u%s", log->pid, when);
	ferry_svg_text(p->to, LEFT, 32, HEAD, FERRY_START, FERRY_BLACK, text);
	snprintf(
		text, sizeof(text),
		"%zu pages were waited for; of those asked of the source p50 %.0f us, p99 %.0f us, "
		"p99.9 %.0f us, max %.0f us",
		log->faults.n + log->unanswered.n,
		(double)ferry_series_percentile(&p->stats->total, 500) / 1e3,
		(double)ferry_series_percentile(&p->stats->total, 990) / 1e3,
		(double)ferry_series_percentile(&p->stats->total, 999) / 1e3,
		(double)ferry_series_percentile(&p->stats->total, 1000) / 1e3);
	ferry_svg_text(p->to, LEFT, 52, SUB, FERRY_START, FERRY_BLACK, text);
	if (log->n_lost || !log->is_whole) {
		snprintf(text, sizeof(text), "Incomplete: %" PRIu64 " records were lost%s%s",
			 log->n_lost, log->is_whole ? "" : "; the file is ", log->warning);
		ferry_svg_text(p->to, LEFT, 70, SUB, FERRY_START, FERRY_VERMILLION, text);
	}
}

/* From the first thing that happened to the last. */
static struct ferry_axis time_axis(const struct ferry_trace_log *log)
{
	uint64_t first = log->end_ns;
	double low, high;

	if (log->faults.n && log->faults.v[0].time_ns < first)
		first = log->faults.v[0].time_ns;
	if (log->pushes.n && log->pushes.v[0].time_ns < first)
		first = log->pushes.v[0].time_ns;
	low = (double)(first - log->start_ns) / FERRY_NS_PER_S;
	high = (double)(log->end_ns - log->start_ns) / FERRY_NS_PER_S;
	/* A little room for what is at the very edge. */
	return (struct ferry_axis){.low = low - (high - low) * 0.01,
				   .high = high + (high - low) * 0.01 + 1e-6};
}

int ferry_plot(FILE *to, const struct ferry_trace_log *log, struct ferry_stats *stats)
{
	struct ferry_plot p = {.to = to, .log = log, .stats = stats, .time = time_axis(log)};
	int rc;

	ferry_svg_begin(to, WIDTH, HEIGHT);
	head(&p);
	rc = ferry_plot_latency(&p, panel(0, 0));
	if (!rc)
		rc = ferry_plot_residency(&p, panel(1, 0));
	if (!rc)
		rc = ferry_plot_addresses(&p, panel(0, 1));
	if (!rc)
		rc = ferry_plot_stages(&p, panel(1, 1));
	ferry_svg_end(to);
	if (!rc && ferror(to))
		rc = -EIO;
	return rc;
}
