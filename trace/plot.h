/* SPDX-License-Identifier: Apache-2.0 */
#ifndef FERRY_TRACE_PLOT_H
#define FERRY_TRACE_PLOT_H

#include <stdio.h>

#include "trace/stats.h"
#include "trace/svg.h"

/**
 * ferry_plot() - a trace as one SVG picture of four panels
 * Latency over time with its percentiles, residency over time, addresses over time, and the
 * distribution of each stage. Colours are never the only difference. The picture's size does not
 * grow with the trace: what would fall on the same spot is drawn once.
 * Return: 0, -ENOMEM, or the stream's error.
 */
int ferry_plot(FILE *to, const struct ferry_trace_log *log, struct ferry_stats *stats);

/* --- plot_panels.c ---------------------------------------------------------------------------- */

struct ferry_plot {
	FILE *to;
	const struct ferry_trace_log *log;
	struct ferry_stats *stats;
	struct ferry_axis time; /* seconds since the trace began; ->from and ->to unset */
};

/* Each draws into the frame @p (x, y, w, h set). Errors: -ENOMEM. */
int ferry_plot_latency(const struct ferry_plot *plot, struct ferry_panel p);
int ferry_plot_residency(const struct ferry_plot *plot, struct ferry_panel p);
int ferry_plot_addresses(const struct ferry_plot *plot, struct ferry_panel p);
int ferry_plot_stages(const struct ferry_plot *plot, struct ferry_panel p);

/* How a stage is drawn. */
const char *ferry_plot_stage_colour(enum ferry_span stage);

#endif
