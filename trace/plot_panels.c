/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/util.h"
#include "trace/plot.h"

#define LEGEND_SIZE 11.0
#define TIME_LABEL  "time since the trace began, s"
#define BINS	    60	/* of time, for percentiles */
#define STEPS	    270 /* of time, for residency */
#define COLUMNS	    90	/* of a histogram */

/* --- a legend above the frame, from left to right ----------------------------------------------
 */

struct legend {
	FILE *to;
	double x, y;
};

static struct legend legend(const struct ferry_plot *plot, const struct ferry_panel *p)
{
	return (struct legend){plot->to, p->x, p->y - 9};
}

static void legend_text(struct legend *l, const char *text)
{
	ferry_svg_text(l->to, l->x + 24, l->y, LEGEND_SIZE, FERRY_START, FERRY_BLACK, text);
	/* Text is no wider on average. */
	l->x += 24 + (double)strlen(text) * 6.1 + 12;
}

static void legend_marker(struct legend *l, enum ferry_marker m, const char *colour,
			  const char *text)
{
	ferry_svg_marker(l->to, m, l->x + 11, l->y - 4, 4, colour);
	legend_text(l, text);
}

static void legend_line(struct legend *l, const char *colour, const char *dash, const char *text)
{
	ferry_svg_path_begin(l->to);
	ferry_svg_point(l->to, l->x, l->y - 4);
	ferry_svg_point(l->to, l->x + 20, l->y - 4);
	ferry_svg_path_end(l->to, colour, 2, dash, "none");
	legend_text(l, text);
}

static void legend_box(struct legend *l, const char *colour, const char *text)
{
	ferry_svg_rect(l->to, l->x + 4, l->y - 9, 14, 10, colour);
	legend_text(l, text);
}

/* --- each spot is drawn once --------------------------------------------------------------------
 */

/* Spots of 2 by 2 units of the picture. */
struct spots {
	const struct ferry_panel *p;
	uint8_t *taken; /* owned; a bit for each kind of mark */
	size_t w, h;
};

static int spots_init(struct spots *s, const struct ferry_panel *p)
{
	*s = (struct spots){.p = p, .w = (size_t)p->w / 2 + 1, .h = (size_t)p->h / 2 + 1};
	s->taken = calloc(s->w, s->h);
	return s->taken ? 0 : -ENOMEM;
}

static bool spot_is_free(struct spots *s, double x, double y, unsigned int kind)
{
	size_t i = FERRY_MIN((size_t)((x - s->p->x) / 2), s->w - 1);
	size_t j = FERRY_MIN((size_t)((y - s->p->y) / 2), s->h - 1);
	uint8_t *at = &s->taken[j * s->w + i];

	if (*at >> kind & 1)
		return false;
	*at |= (uint8_t)(1u << kind);
	return true;
}

static double seconds(const struct ferry_plot *plot, uint64_t ns)
{
	return (double)(ns - plot->log->start_ns) / FERRY_NS_PER_S;
}

static struct ferry_axis h_time(const struct ferry_plot *plot, const struct ferry_panel *p)
{
	struct ferry_axis a = plot->time;

	a.from = p->x;
	a.to = p->x + p->w;
	return a;
}

/* --- latency over time --------------------------------------------------------------------------
 */

enum kind {
	KIND_SOURCE,
	KIND_PUSHED,
	KIND_LOCAL,
	N_KINDS,
};

static const struct {
	enum ferry_marker marker;
	const char *colour, *text;
} kinds[N_KINDS] = {
	[KIND_SOURCE] = {FERRY_DOT, FERRY_SKY, "answered"},
	[KIND_PUSHED] = {FERRY_TRIANGLE, FERRY_ORANGE, "push was first"},
	[KIND_LOCAL] = {FERRY_SQUARE, FERRY_GREEN, "by the target"},
};

static enum kind kind_of(const struct ferry_trace_record *rec)
{
	if (rec->flags & FERRY_FAULT_F_LOCAL)
		return KIND_LOCAL;
	return rec->fault.received_ns ? KIND_SOURCE : KIND_PUSHED;
}

/* Latencies in us; whole decades, so that the grid has its first and last line at the frame. */
static struct ferry_axis us_axis(double low_ns, double high_ns)
{
	double low = pow(10, floor(log10(fmax(low_ns, 100) / 1e3)));
	double high = pow(10, ceil(log10(fmax(high_ns, low_ns) / 1e3 + 1e-9)));

	return (struct ferry_axis){.low = low, .high = fmax(high, low * 10), .is_log = true};
}

static int latency_marks(const struct ferry_plot *plot, const struct ferry_panel *p)
{
	const struct ferry_trace_records *f = &plot->log->faults;
	struct spots spots;

	if (spots_init(&spots, p) < 0)
		return -ENOMEM;
	for (size_t i = 0; i < f->n; i++) {
		enum kind kind = kind_of(&f->v[i]);
		double x = ferry_axis_at(&p->h_axis, seconds(plot, f->v[i].time_ns));
		double y = ferry_axis_at(&p->v_axis, (double)plot->stats->splits[i].total_ns / 1e3);

		if (spot_is_free(&spots, x, y, kind))
			ferry_svg_marker(plot->to, kinds[kind].marker, x, y, 1.8,
					 kinds[kind].colour);
	}
	free(spots.taken);
	return 0;
}

/* One percentile of each bin of time, of the faults that went to the source. */
static int latency_line(const struct ferry_plot *plot, const struct ferry_panel *p,
			unsigned int permille, const char *colour, const char *dash)
{
	const struct ferry_trace_records *f = &plot->log->faults;
	double width = (plot->time.high - plot->time.low) / BINS;
	size_t i = 0;
	int rc = 0;

	ferry_svg_path_begin(plot->to);
	for (int bin = 0; bin < BINS && !rc; bin++) {
		double end = plot->time.low + (bin + 1) * width;
		struct ferry_series s = {0};

		for (; i < f->n && !rc && seconds(plot, f->v[i].time_ns) < end; i++)
			if (!(f->v[i].flags & FERRY_FAULT_F_LOCAL))
				rc = ferry_series_add(&s, plot->stats->splits[i].total_ns);
		if (s.n)
			ferry_svg_point(
				plot->to, ferry_axis_at(&p->h_axis, end - width / 2),
				ferry_axis_at(&p->v_axis,
					      (double)ferry_series_percentile(&s, permille) / 1e3));
		ferry_series_fini(&s);
	}
	ferry_svg_path_end(plot->to, colour, 2, dash, "none");
	return rc;
}

int ferry_plot_latency(const struct ferry_plot *plot, struct ferry_panel p)
{
	const struct ferry_stats *s = plot->stats;
	struct legend l = legend(plot, &p);
	double low = INFINITY, high = 0;
	int rc;

	for (size_t i = 0; i < plot->log->faults.n; i++) {
		low = fmin(low, (double)s->splits[i].total_ns);
		high = fmax(high, (double)s->splits[i].total_ns);
	}
	p.h_axis = h_time(plot, &p);
	p.v_axis = us_axis(isinf(low) ? 1e4 : low, high);
	p.v_axis.from = p.y + p.h;
	p.v_axis.to = p.y;
	ferry_panel_h_axis(plot->to, &p, TIME_LABEL, ferry_format_plain);
	ferry_panel_v_axis(plot->to, &p, "latency: read to woken", ferry_format_us);
	rc = latency_marks(plot, &p);
	if (!rc)
		rc = latency_line(plot, &p, 500, FERRY_BLACK, "");
	if (!rc)
		rc = latency_line(plot, &p, 990, FERRY_VERMILLION, "6 3");
	ferry_panel_frame(plot->to, &p, "Latency of faults");
	for (int i = 0; i < N_KINDS; i++)
		legend_marker(&l, kinds[i].marker, kinds[i].colour, kinds[i].text);
	legend_line(&l, FERRY_BLACK, "", "p50");
	legend_line(&l, FERRY_VERMILLION, "6 3", "p99");
	return rc;
}

/* --- residency over time ------------------------------------------------------------------------
 */

enum way {
	WAY_PRESENT,
	WAY_ASKED,
	WAY_PUSHED,
	WAY_ZERO,
	N_WAYS,
};

static const struct {
	const char *colour, *text;
} ways[N_WAYS] = {
	[WAY_PRESENT] = {FERRY_GREY, "before"},
	[WAY_ASKED] = {FERRY_BLUE, "asked for"},
	[WAY_PUSHED] = {FERRY_ORANGE, "pushed"},
	[WAY_ZERO] = {FERRY_SKY, "known to be zero"},
};

/* Pages that came in each step of time, then summed up. */
struct residency {
	double pages[STEPS + 1][N_WAYS];
};

static void came(const struct ferry_plot *plot, struct residency *r, uint64_t at_ns, enum way way,
		 uint64_t n)
{
	double part = (seconds(plot, at_ns) - plot->time.low) / (plot->time.high - plot->time.low);
	int step = (int)ceil(fmin(fmax(part, 0), 1) * STEPS);

	r->pages[step][way] += (double)n;
}

static void sum_up(const struct ferry_plot *plot, struct residency *r)
{
	const struct ferry_trace_records *f = &plot->log->faults, *pushes = &plot->log->pushes;

	for (size_t i = 0; i < f->n; i++)
		if (f->v[i].fault.received_ns && !(f->v[i].flags & FERRY_FAULT_F_FOUND))
			came(plot, r, f->v[i].fault.placed_ns,
			     f->v[i].flags & FERRY_FAULT_F_ZERO ? WAY_ZERO : WAY_ASKED, 1);
	for (size_t i = 0; i < pushes->n; i++) {
		uint16_t flags = pushes->v[i].flags;

		came(plot, r, pushes->v[i].time_ns,
		     flags & FERRY_PUSH_F_PRESENT ? WAY_PRESENT
		     : flags & FERRY_PUSH_F_ZERO  ? WAY_ZERO
		     : flags & FERRY_PUSH_F_SWEPT ? WAY_ASKED
						  : WAY_PUSHED,
		     pushes->v[i].push.n_new);
	}
	for (int step = 1; step <= STEPS; step++)
		for (int way = 0; way < N_WAYS; way++)
			r->pages[step][way] += r->pages[step - 1][way];
}

int ferry_plot_residency(const struct ferry_plot *plot, struct ferry_panel p)
{
	_cleanup_free_ struct residency *r = calloc(1, sizeof(*r));
	double total = (double)FERRY_MAX(plot->log->pages_total, UINT64_C(1));
	double width = (plot->time.high - plot->time.low) / STEPS;
	struct legend l = legend(plot, &p);

	if (!r)
		return -ENOMEM;
	sum_up(plot, r);
	p.h_axis = h_time(plot, &p);
	p.v_axis = (struct ferry_axis){.low = 0, .high = 100, .from = p.y + p.h, .to = p.y};
	/* From the top of the stack down, each over the one behind it. */
	for (int way = N_WAYS; way-- > 0;) {
		ferry_svg_path_begin(plot->to);
		ferry_svg_point(plot->to, p.x, p.y + p.h);
		for (int step = 0; step <= STEPS; step++) {
			double sum = 0;

			for (int below = 0; below <= way; below++)
				sum += r->pages[step][below];
			ferry_svg_point(plot->to,
					ferry_axis_at(&p.h_axis, plot->time.low + step * width),
					ferry_axis_at(&p.v_axis, 100 * sum / total));
		}
		ferry_svg_point(plot->to, p.x + p.w, p.y + p.h);
		ferry_svg_path_end(plot->to, FERRY_BLACK, 0.6, "", ways[way].colour);
	}
	ferry_panel_h_axis(plot->to, &p, TIME_LABEL, ferry_format_plain);
	ferry_panel_v_axis(plot->to, &p, "pages that are there, % of all", ferry_format_plain);
	ferry_panel_frame(plot->to, &p, "Residency, by the way that pages came");
	for (int way = 0; way < N_WAYS; way++)
		legend_box(&l, ways[way].colour, ways[way].text);
	return 0;
}

/* --- addresses over time
 * -------------------------------------------------------------------------- */

/* Regions lie one behind the other. */
static double offset_of(const struct ferry_trace_log *log, uint32_t region, uint64_t page)
{
	double bytes = 0;

	for (uint32_t i = 0; i < region; i++)
		bytes += (double)log->regions[i].n_pages * log->regions[i].page_bytes;
	return (bytes + (double)page * log->regions[region].page_bytes) / FERRY_MIB;
}

static void draw_runs(const struct ferry_plot *plot, const struct ferry_panel *p,
		      struct spots *spots)
{
	const struct ferry_trace_records *pushes = &plot->log->pushes;

	for (size_t i = 0; i < pushes->n; i++) {
		const struct ferry_trace_record *r = &pushes->v[i];
		bool is_zero = r->flags & FERRY_PUSH_F_ZERO;
		double x, y, y_end;

		if (r->flags & FERRY_PUSH_F_PRESENT)
			continue;
		x = ferry_axis_at(&p->h_axis, seconds(plot, r->time_ns));
		y = ferry_axis_at(&p->v_axis, offset_of(plot->log, r->region, r->push.first_page));
		y_end = ferry_axis_at(&p->v_axis, offset_of(plot->log, r->region,
							    r->push.first_page + r->push.n_pages));
		/* A run may hide another only where it covers it. */
		if (y - y_end > 2 || spot_is_free(spots, x, y, is_zero))
			ferry_svg_rect(plot->to, x - 1, y_end, 2, fmax(y - y_end, 1),
				       is_zero ? FERRY_SKY : FERRY_ORANGE);
	}
}

static void draw_faults(const struct ferry_plot *plot, const struct ferry_panel *p,
			struct spots *spots)
{
	const struct ferry_trace_records *f = &plot->log->faults;

	for (size_t i = 0; i < f->n; i++) {
		double x = ferry_axis_at(&p->h_axis, seconds(plot, f->v[i].time_ns));
		double y = ferry_axis_at(&p->v_axis,
					 offset_of(plot->log, f->v[i].region, f->v[i].fault.page));

		if (spot_is_free(spots, x, y, 2))
			ferry_svg_marker(plot->to, FERRY_CROSS, x, y, 1.5, FERRY_BLACK);
	}
}

static void draw_regions(const struct ferry_plot *plot, const struct ferry_panel *p)
{
	char room[FERRY_TRACE_NAME_BYTES];
	double last_y = INFINITY;

	for (uint32_t i = 0; i < plot->log->n_regions && plot->log->n_regions > 1; i++) {
		double y = ferry_axis_at(&p->v_axis, offset_of(plot->log, i, 0));

		ferry_svg_line(plot->to, p->x, y, p->x + p->w, y, FERRY_PURPLE, 1);
		/* Of regions too small to be told apart the first has its name. */
		if (last_y - y < 13)
			continue;
		snprintf(room, sizeof(room), "%.24s",
			 ferry_trace_region_name(plot->log, i, room, sizeof(room)));
		ferry_svg_text(plot->to, p->x + p->w + 4, y, 10, FERRY_START, FERRY_PURPLE, room);
		last_y = y;
	}
}

int ferry_plot_addresses(const struct ferry_plot *plot, struct ferry_panel p)
{
	const struct ferry_trace_log *log = plot->log;
	struct legend l = legend(plot, &p);
	struct spots spots;
	double end = 0;

	if (spots_init(&spots, &p) < 0)
		return -ENOMEM;
	if (log->n_regions)
		end = offset_of(log, log->n_regions - 1, log->regions[log->n_regions - 1].n_pages);
	p.h_axis = h_time(plot, &p);
	p.v_axis = (struct ferry_axis){
		.low = 0, .high = fmax(end, 0.01), .from = p.y + p.h, .to = p.y};
	ferry_panel_h_axis(plot->to, &p, TIME_LABEL, ferry_format_plain);
	ferry_panel_v_axis(plot->to, &p, "address in the regions, MiB", ferry_format_plain);
	draw_runs(plot, &p, &spots);
	draw_faults(plot, &p, &spots);
	draw_regions(plot, &p);
	ferry_panel_frame(plot->to, &p, "Where pages were waited for, and where the push was");
	legend_marker(&l, FERRY_CROSS, FERRY_BLACK, "fault");
	legend_box(&l, FERRY_ORANGE, "run pushed");
	legend_box(&l, FERRY_SKY, "run of zeros");
	free(spots.taken);
	return 0;
}

/* --- the distribution of each stage --------------------------------------------------------------
 */

const char *ferry_plot_stage_colour(enum ferry_span stage)
{
	static const char *const colours[FERRY_N_SPANS] = {
		[FERRY_SPAN_QUEUE] = FERRY_PURPLE, [FERRY_SPAN_OUTAGE] = FERRY_YELLOW,
		[FERRY_SPAN_OUT] = FERRY_SKY,	   [FERRY_SPAN_SOURCE] = FERRY_VERMILLION,
		[FERRY_SPAN_BACK] = FERRY_BLUE,	   [FERRY_SPAN_NET] = FERRY_SKY,
		[FERRY_SPAN_REMOTE] = FERRY_SKY,   [FERRY_SPAN_PUSH] = FERRY_ORANGE,
		[FERRY_SPAN_PLACE] = FERRY_GREEN,  [FERRY_SPAN_LOCAL] = FERRY_GREEN,
	};

	return colours[stage];
}

static void stage_row(const struct ferry_plot *plot, const struct ferry_panel *p, double y,
		      double h, const char *name, const char *colour, struct ferry_series *s)
{
	double counts[COLUMNS] = {0}, most = 1, width = p->w / COLUMNS;
	double p50 = (double)ferry_series_percentile(s, 500) / 1e3;
	double p99 = (double)ferry_series_percentile(s, 990) / 1e3;
	char text[64];

	for (size_t i = 0; i < s->n; i++) {
		double x = ferry_axis_at(&p->h_axis, (double)s->v[i] / 1e3);
		int column = (int)((x - p->x) / width);

		column = column < COLUMNS ? column : COLUMNS - 1;
		counts[column]++;
		most = fmax(most, counts[column]);
	}
	for (int i = 0; i < COLUMNS; i++)
		if (counts[i] > 0)
			ferry_svg_rect(plot->to, p->x + i * width,
				       y + h - counts[i] / most * (h - 8), width,
				       counts[i] / most * (h - 8), colour);
	ferry_svg_line(plot->to, p->x, y + h, p->x + p->w, y + h, FERRY_BLACK, 0.6);
	ferry_svg_marker(plot->to, FERRY_DIAMOND, ferry_axis_at(&p->h_axis, p50), y + h, 5,
			 FERRY_BLACK);
	ferry_svg_marker(plot->to, FERRY_TRIANGLE, ferry_axis_at(&p->h_axis, p99), y + h, 5,
			 FERRY_BLACK);
	ferry_svg_text(plot->to, p->x - 6, y + h - 3, LEGEND_SIZE, FERRY_END, FERRY_BLACK, name);
	snprintf(text, sizeof(text), "n %zu", s->n);
	ferry_svg_text(plot->to, p->x + p->w - 4, y + 14, 10, FERRY_END, FERRY_GREY, text);
}

int ferry_plot_stages(const struct ferry_plot *plot, struct ferry_panel p)
{
	struct ferry_stats *s = plot->stats;
	struct legend l = legend(plot, &p);
	double low = INFINITY, high = 0, row_h, y = p.y;
	int n = s->total.n ? 1 : 0;

	for (unsigned int i = 0; i < FERRY_N_SPANS; i++) {
		if (!s->stages[i].n)
			continue;
		n++;
		low = fmin(low, (double)ferry_series_percentile(&s->stages[i], 10));
		high = fmax(high, (double)ferry_series_percentile(&s->stages[i], 1000));
	}
	high = fmax(high, (double)ferry_series_percentile(&s->total, 1000));
	p.h_axis = us_axis(isinf(low) ? 1e3 : low, high);
	p.h_axis.from = p.x;
	p.h_axis.to = p.x + p.w;
	ferry_panel_h_axis(plot->to, &p, "duration; shorter ones are drawn at the left edge",
			   ferry_format_us);
	row_h = p.h / (n ? n : 1);
	for (unsigned int i = 0; i < FERRY_N_SPANS; i++) {
		if (!s->stages[i].n)
			continue;
		stage_row(plot, &p, y, row_h, ferry_span_name(i), ferry_plot_stage_colour(i),
			  &s->stages[i]);
		y += row_h;
	}
	if (s->total.n)
		stage_row(plot, &p, y, row_h, "total", FERRY_GREY, &s->total);
	ferry_panel_frame(plot->to, &p, "How long each stage took: faults by duration");
	legend_marker(&l, FERRY_DIAMOND, FERRY_BLACK, "p50");
	legend_marker(&l, FERRY_TRIANGLE, FERRY_BLACK, "p99");
	legend_box(&l, FERRY_GREY, "height: share of the row's highest column");
	return 0;
}
