// SPDX-License-Identifier: Apache-2.0
/*
 * A screen is put together as a list of lines, each with a rank; when there are more lines than
 * rows, those of the highest rank go. Lines are made of fields; a field that no longer fits is left
 * out.
 */
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/util.h"
#include "tools/live.h"

#define NAME_COLUMNS   8u
#define COUNT_COLUMNS  9u
#define FIGURE_COLUMNS 10u
#define STRIP_MAX      300u /* columns: three bytes each fit a line */

/* When something has to go. */
enum rank {
	RANK_ALWAYS,
	RANK_MAIN,
	RANK_TOTAL,
	RANK_MORE,
	RANK_STAGE,
	RANK_STRIP,
	RANK_HELP,
	RANK_BLANK,
};

struct screen {
	struct live_line *lines;
	unsigned int n, columns;
	bool utf8;
};

static struct live_line *add_line(struct screen *s, enum rank rank, enum live_style style)
{
	struct live_line *line = &s->lines[s->n < LIVE_LINES_MAX ? s->n++ : LIVE_LINES_MAX - 1];

	line->style = style;
	line->rank = rank;
	line->text[0] = '\0';
	return line;
}

/* One more field, if there is room. */
static void __attribute__((format(printf, 3, 4)))
add(const struct screen *s, struct live_line *line, const char *format, ...)
{
	size_t len = strlen(line->text), gap = len ? 3 : 0;
	char field[200];
	va_list args;

	va_start(args, format);
	vsnprintf(field, sizeof(field), format, args);
	va_end(args);
	/* The first one is cut rather than left out. */
	if (!len)
		snprintf(line->text, FERRY_MIN((size_t)s->columns + 1, sizeof(line->text)), "%s",
			 field);
	else if (len + gap + strlen(field) <= s->columns &&
		 len + gap + strlen(field) < sizeof(line->text))
		snprintf(line->text + len, sizeof(line->text) - len, "%*s%s", (int)gap, "", field);
}

static void add_blank(struct screen *s)
{
	add_line(s, RANK_BLANK, LIVE_STYLE_PLAIN);
}

/* --- figures ------------------------------------------------------------------------------------
 */

static void format_left(const struct live *l, char *out, size_t size)
{
	const struct progress *p = &l->progress;
	uint64_t left_s;

	*out = '\0';
	if (!p->pages_per_second || p->pages_known >= p->pages_total)
		return;
	left_s = (p->pages_total - p->pages_known) / p->pages_per_second;
	snprintf(out, size, "%" PRIu64 ":%02" PRIu64 " left", left_s / 60, left_s % 60);
}

static void render_title(struct screen *s, const struct live *l)
{
	struct live_line *line = add_line(s, RANK_ALWAYS, LIVE_STYLE_TITLE);
	char running[FIGURE_MAX];

	add(s, line, "pageferry %s", l->command);
	add(s, line, "%s", l->has_ended ? "has ended" : l->stage);
	add(s, line, "link %s", l->link);
	add(s, line, "process %d", l->pid);
	add(s, line, "%s", format_duration(l->running_ns, running));
}

static void render_alarms(struct screen *s, const struct live *l)
{
	if (live_lost(l))
		add(s, add_line(s, RANK_ALWAYS, LIVE_STYLE_ALARM),
		    "LOST: %" PRIu64 " records; the figures below lack them", live_lost(l));
	if (l->is_silent && !l->has_ended)
		add(s, add_line(s, RANK_ALWAYS, LIVE_STYLE_ALARM),
		    "The command gives no answer; what is shown is old");
}

static void render_progress(struct screen *s, const struct live *l)
{
	struct live_line *line = add_line(s, RANK_ALWAYS, LIVE_STYLE_PLAIN);
	unsigned int full = (unsigned int)(progress_percent(&l->progress) / 5);
	char cells[21], left[40];

	for (unsigned int i = 0; i < 20; i++)
		cells[i] = i < full ? '#' : '.';
	cells[20] = '\0';
	add(s, line, "%s %5.1f %% [%s]", l->is_target ? "resident " : "sent     ",
	    progress_percent(&l->progress), cells);
	format_left(l, left, sizeof(left));
	if (*left)
		add(s, line, "%s", left);
	add(s, line, "%" PRIu64 " of %" PRIu64 " pages", l->progress.pages_known,
	    l->progress.pages_total);
}

static void render_bandwidth(struct screen *s, const struct live *l)
{
	struct live_line *line = add_line(s, RANK_MAIN, LIVE_STYLE_PLAIN);
	char a[FIGURE_MAX];

	add(s, line, "bandwidth %s/s", format_bytes(l->progress.bytes_per_second, a));
	add(s, line, "%s %s", l->is_target ? "received" : "sent",
	    format_bytes(l->progress.wire_bytes, a));
	add(s, line, "resumes %u", l->progress.resumes);
}

static void render_pages(struct screen *s, const struct live *l)
{
	struct live_line *line = add_line(s, RANK_MORE, LIVE_STYLE_PLAIN);

	add(s, line, "pages     urgent %" PRIu64, l->pages_urgent);
	add(s, line, "pushed %" PRIu64, l->pages_pushed);
	add(s, line, "zero %" PRIu64, l->pages_zero);
	if (l->has_push)
		add(s, line, "push at %.1f %%", l->push_permille / 10.0);
}

static void render_waiting(struct screen *s, const struct live *l)
{
	struct live_line *line =
		add_line(s, RANK_ALWAYS, l->stalled ? LIVE_STYLE_ALARM : LIVE_STYLE_PLAIN);
	char wait[FIGURE_MAX];

	add(s, line, "waiting   in flight %" PRIu64, l->in_flight);
	add(s, line, "stalled for > 100 ms: %" PRIu64, l->stalled);
	if (l->in_flight)
		add(s, line, "longest %s", format_duration(l->oldest_wait_ns, wait));
}

static void render_faults(struct screen *s, const struct live *l)
{
	struct live_line *line = add_line(s, RANK_MAIN, LIVE_STYLE_PLAIN);

	add(s, line, "%s %" PRIu64, l->is_target ? "faults   " : "requests ", l->progress.faults);
	add(s, line, "%" PRIu64 "/s", l->faults_per_second);
	if (l->has_records) {
		add(s, line, "local %" PRIu64, l->all.n_local);
		add(s, line, "pushed meanwhile %" PRIu64, l->all.n_pushed);
		add(s, line, "asked again %" PRIu64, l->all.n_resent);
	}
	if (!l->is_target) {
		add(s, line, "sessions %u", l->progress.sessions);
		add(s, line, "ever %" PRIu64, l->sessions_ever);
		add(s, line, "completed %" PRIu64, l->sessions_completed);
	}
}

/* --- the address space --------------------------------------------------------------------------
 */

static const char *heat(unsigned int permille, bool utf8)
{
	static const char *const blocks[] = {" ",      "\u2581", "\u2582", "\u2583", "\u2584",
					     "\u2585", "\u2586", "\u2587", "\u2588"};
	static const char *const ascii[] = {" ", ".", ":", "-", "=", "+", "*", "%", "#"};
	unsigned int step = permille * 8 / 1000;

	/* A little is not nothing; and only all of it is full. */
	if (!step && permille)
		step = 1;
	return utf8 ? blocks[step] : ascii[step];
}

static void render_strip(struct screen *s, const struct live *l)
{
	unsigned int columns = FERRY_MIN(s->columns, STRIP_MAX);
	struct live_line *line;
	size_t len = 0;

	if (!l->n_cells || columns < 8)
		return;
	add_blank(s);
	line = add_line(s, RANK_STRIP, LIVE_STYLE_DIM);
	add(s, line, "address space, by residency%s",
	    l->has_push ? "; ^ is where the push is" : "");
	line = add_line(s, RANK_STRIP, LIVE_STYLE_HEAT);
	for (unsigned int x = 0; x < columns; x++) {
		const char *cell = heat(l->residency[x * l->n_cells / columns], s->utf8);

		memcpy(line->text + len, cell, strlen(cell) + 1);
		len += strlen(cell);
	}
	if (!l->has_push)
		return;
	line = add_line(s, RANK_STRIP, LIVE_STYLE_PLAIN);
	snprintf(line->text, sizeof(line->text), "%*s",
		 (int)(l->push_permille * (columns - 1) / 1000 + 1), "^");
}

/* --- stages
 * --------------------------------------------------------------------------------------- */

/* The columns of figures, in the order in which they are given up on a narrow screen. */
enum {
	COLUMN_P90 = 1 << 0,
	COLUMN_P999 = 1 << 1,
	COLUMN_COUNT = 1 << 2,
};

static unsigned int table_columns(unsigned int columns)
{
	unsigned int have = COLUMN_P90 | COLUMN_P999 | COLUMN_COUNT;
	unsigned int need = NAME_COLUMNS + COUNT_COLUMNS + 5 * FIGURE_COLUMNS;

	if (need > columns) {
		have &= ~COLUMN_P90;
		need -= FIGURE_COLUMNS;
	}
	if (need > columns) {
		have &= ~COLUMN_P999;
		need -= FIGURE_COLUMNS;
	}
	if (need > columns)
		have &= ~COLUMN_COUNT;
	return have;
}

/* @text: right-aligned, if there is room */
static void cell(const struct screen *s, struct live_line *line, unsigned int width,
		 const char *text)
{
	size_t len = strlen(line->text);

	if (len + width <= s->columns && len + width < sizeof(line->text))
		snprintf(line->text + len, sizeof(line->text) - len, "%*s", (int)width, text);
}

static void row(struct screen *s, const char *name, const struct ferry_histogram *h,
		const char *meaning, enum rank rank)
{
	static const struct {
		unsigned int permille, column;
	} figures[] = {{500, 0}, {900, COLUMN_P90}, {990, 0}, {999, COLUMN_P999}, {1000, 0}};
	struct live_line *line = add_line(s, rank, LIVE_STYLE_PLAIN);
	unsigned int have = table_columns(s->columns);
	char text[FIGURE_MAX];

	add(s, line, "%-*s", (int)NAME_COLUMNS, name);
	snprintf(text, sizeof(text), "%" PRIu64, h->n);
	if (have & COLUMN_COUNT)
		cell(s, line, COUNT_COLUMNS, text);
	for (size_t i = 0; i < FERRY_ARRAY_SIZE(figures); i++) {
		uint64_t ns = ferry_histogram_percentile(h, figures[i].permille);

		if (figures[i].column && !(have & figures[i].column))
			continue;
		cell(s, line, FIGURE_COLUMNS, h->n ? format_duration(ns, text) : "-");
	}
	if (meaning)
		add(s, line, "%s", meaning);
}

static void render_stages(struct screen *s, const struct live *l)
{
	unsigned int have = table_columns(s->columns);
	struct live_line *line;
	char name[32];

	if (!l->has_records)
		return;
	add_blank(s);
	line = add_line(s, RANK_MORE, LIVE_STYLE_HEAD);
	add(s, line, "%-*s", (int)NAME_COLUMNS, "stage");
	if (have & COLUMN_COUNT)
		cell(s, line, COUNT_COLUMNS, "faults");
	cell(s, line, FIGURE_COLUMNS, "p50");
	if (have & COLUMN_P90)
		cell(s, line, FIGURE_COLUMNS, "p90");
	cell(s, line, FIGURE_COLUMNS, "p99");
	if (have & COLUMN_P999)
		cell(s, line, FIGURE_COLUMNS, "p99.9");
	cell(s, line, FIGURE_COLUMNS, "max");
	row(s, "total", &l->all.total, "of faults that went to the source", RANK_TOTAL);
	snprintf(name, sizeof(name), "last %us",
		 (unsigned int)((l->last_ns + FERRY_NS_PER_S / 2) / FERRY_NS_PER_S));
	if (l->last_ns)
		row(s, name, &l->last.total, "of them", RANK_TOTAL);
	for (unsigned int i = 0; i < FERRY_N_SPANS; i++)
		if (l->all.stages[i].n)
			row(s, ferry_span_name(i), &l->all.stages[i], ferry_span_meaning(i),
			    RANK_STAGE);
}

/* Leave out what has the highest rank, from below, until it fits. */
static unsigned int fit(struct live_line *lines, unsigned int n, unsigned int rows)
{
	while (n > rows) {
		unsigned int worst = 0;

		for (unsigned int i = 0; i < n; i++)
			if (lines[i].rank >= lines[worst].rank)
				worst = i;
		memmove(&lines[worst], &lines[worst + 1], (n - 1 - worst) * sizeof(*lines));
		n--;
	}
	return n;
}

unsigned int live_render(const struct live *l, unsigned int columns, unsigned int rows, bool utf8,
			 struct live_line *out)
{
	struct screen s = {.lines = out, .columns = columns, .utf8 = utf8};

	render_title(&s, l);
	render_alarms(&s, l);
	render_progress(&s, l);
	if (l->is_target)
		render_waiting(&s, l);
	render_faults(&s, l);
	render_bandwidth(&s, l);
	render_pages(&s, l);
	render_strip(&s, l);
	render_stages(&s, l);
	add_blank(&s);
	add(&s, add_line(&s, RANK_HELP, LIVE_STYLE_DIM), "q: quit");
	return fit(out, s.n, rows);
}

void live_plain(const struct live *l, char *out, size_t size)
{
	/* As wide as it gets: the fields are the same as on the screen. */
	struct screen s = {.columns = LIVE_LINE_MAX - 1};
	const struct ferry_histogram *h = &l->last.total;
	struct live_line line = {0};
	char a[FIGURE_MAX], b[FIGURE_MAX], left[40];

	if (live_lost(l))
		add(&s, &line, "LOST %" PRIu64 " records", live_lost(l));
	add(&s, &line, "%s %s", l->command, format_duration(l->running_ns, a));
	add(&s, &line, "%s", l->stage);
	add(&s, &line, "link %s", l->link);
	add(&s, &line, "%.1f %%", progress_percent(&l->progress));
	add(&s, &line, "%s/s", format_bytes(l->progress.bytes_per_second, a));
	add(&s, &line, "%s %" PRIu64 ", %" PRIu64 "/s", l->is_target ? "faults" : "requests",
	    l->progress.faults, l->faults_per_second);
	if (l->is_target)
		add(&s, &line, "in flight %" PRIu64 ", stalled %" PRIu64, l->in_flight, l->stalled);
	else
		add(&s, &line, "sessions %u", l->progress.sessions);
	if (h->n) {
		add(&s, &line, "p50 %s, p99 %s",
		    format_duration(ferry_histogram_percentile(h, 500), a),
		    format_duration(ferry_histogram_percentile(h, 990), b));
		add(&s, &line, "p99.9 %s, max %s",
		    format_duration(ferry_histogram_percentile(h, 999), a),
		    format_duration(h->max_ns, b));
	}
	format_left(l, left, sizeof(left));
	if (*left)
		add(&s, &line, "%s", left);
	snprintf(out, size, "%s", line.text);
}
