/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What 'pageferry trace live' knows of a running command, from its status and its records of
 * faults, and how that looks: a screen of lines, one line for a log, or JSON. Pure: no terminal, no
 * clock.
 */
#ifndef FERRY_TOOLS_LIVE_H
#define FERRY_TOOLS_LIVE_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "tools/bar.h"
#include "trace/ring.h"
#include "trace/stats.h"

#define LIVE_CELLS_MAX 256u
#define LIVE_NAME_MAX  48u

/* Zero-initialise. */
struct live {
	/* of the status */
	char command[LIVE_NAME_MAX], stage[LIVE_NAME_MAX], link[LIVE_NAME_MAX];
	int pid;
	bool is_target;
	struct progress progress; /* ->faults: a server's requests; p50 and p99 are not used */
	uint64_t running_ns;
	uint64_t pages_urgent, pages_pushed, pages_zero;
	uint64_t in_flight, stalled, oldest_wait_ns;
	uint64_t sessions_ever, sessions_completed;
	uint16_t residency[LIVE_CELLS_MAX]; /* per mille */
	uint32_t n_cells;

	/* of the records */
	bool has_records;
	struct ferry_live_stats all;	 /* all that the rings had and that came since */
	struct ferry_live_stats current; /* since the last live_tick() */
	struct ferry_live_stats last;	 /* between the two before that */
	uint64_t n_untold;		 /* faults that the command had no room to record */
	uint64_t n_overwritten;		 /* records that came too fast to be read */
	bool has_push;
	uint32_t push_region;
	uint64_t push_page;
	uint16_t push_permille; /* of all regions, in their order */

	/* of both */
	uint64_t tick_ns, last_ns; /* when the last interval ended, and how long it was */
	uint64_t tick_faults;
	uint64_t faults_per_second;
	bool is_silent; /* the command gave no answer the last time */
	bool has_ended;
};

/* @status: borrowed; as report_status() makes it, but not trusted */
void live_status(struct live *l, const json_t *status);

/* @header: of the rings that @rec is from */
void live_record(struct live *l, const struct ferry_trace_record *rec,
		 const struct ferry_trace_header *header);

/* An interval is over. */
void live_tick(struct live *l, uint64_t now_ns);

/* Records that nobody will see. */
uint64_t live_lost(const struct live *l);

/* --- how it looks ----------------------------------------------------------------------------- */

enum live_style {
	LIVE_STYLE_PLAIN,
	LIVE_STYLE_TITLE,
	LIVE_STYLE_HEAD,
	LIVE_STYLE_ALARM,
	LIVE_STYLE_HEAT,
	LIVE_STYLE_DIM,
};

#define LIVE_LINE_MAX  1024u
#define LIVE_LINES_MAX 40u

struct live_line {
	enum live_style style;
	unsigned int rank; /* those of high rank go first when there is no room */
	char text[LIVE_LINE_MAX];
};

/**
 * live_render() - the screen
 * @columns, @rows: of the terminal; what does not fit is left out, the least important first
 * @utf8: block characters may be used
 * @out: LIVE_LINES_MAX lines
 * Return: how many lines, at most @rows, each at most @columns characters wide.
 */
unsigned int live_render(const struct live *l, unsigned int columns, unsigned int rows, bool utf8,
			 struct live_line *out);

/* One line of the last interval, for a log. */
void live_plain(const struct live *l, char *out, size_t size);

/* The same and the stages, for programs. Owned by the caller. */
json_t *live_json(const struct live *l);

#endif
