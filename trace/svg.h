/* SPDX-License-Identifier: Apache-2.0 */
/* Just enough SVG for a plot: shapes, text, and axes that know where a value lies. */
#ifndef FERRY_TRACE_SVG_H
#define FERRY_TRACE_SVG_H

#include <stdbool.h>
#include <stdio.h>

/* The palette of Okabe and Ito, which people with any colour vision can tell apart. */
#define FERRY_BLACK	 "#000000"
#define FERRY_ORANGE	 "#E69F00"
#define FERRY_SKY	 "#56B4E9"
#define FERRY_GREEN	 "#009E73"
#define FERRY_YELLOW	 "#F0E442"
#define FERRY_BLUE	 "#0072B2"
#define FERRY_VERMILLION "#D55E00"
#define FERRY_PURPLE	 "#CC79A7"
#define FERRY_GREY	 "#777777"
#define FERRY_PALE	 "#DDDDDD"

enum ferry_marker {
	FERRY_DOT,
	FERRY_TRIANGLE,
	FERRY_SQUARE,
	FERRY_CROSS,
	FERRY_DIAMOND,
};

enum ferry_anchor {
	FERRY_START,
	FERRY_MIDDLE,
	FERRY_END,
};

void ferry_svg_begin(FILE *to, double width, double height);
void ferry_svg_end(FILE *to);

void ferry_svg_line(FILE *to, double x1, double y1, double x2, double y2, const char *colour,
		    double width);
void ferry_svg_rect(FILE *to, double x, double y, double w, double h, const char *fill);
void ferry_svg_marker(FILE *to, enum ferry_marker m, double x, double y, double r,
		      const char *colour);
/* @text: any bytes; what is not printable ASCII is replaced. */
void ferry_svg_text(FILE *to, double x, double y, double size, enum ferry_anchor anchor,
		    const char *colour, const char *text);
/* Turned by 90 degrees to the left. */
void ferry_svg_text_up(FILE *to, double x, double y, double size, const char *text);

/* A line through points: begin, points, end. @dash as SVG has it, "" for none. */
void ferry_svg_path_begin(FILE *to);
void ferry_svg_point(FILE *to, double x, double y);
void ferry_svg_path_end(FILE *to, const char *stroke, double width, const char *dash,
			const char *fill);

/* --- axes ------------------------------------------------------------------------------------- */

struct ferry_axis {
	double low, high; /* values; low < high, and 0 < low when it is logarithmic */
	double from, to;  /* where they are drawn */
	bool is_log;
};

double ferry_axis_at(const struct ferry_axis *a, double v);

/* The panel's frame: where its data lies. */
struct ferry_panel {
	double x, y, w, h;
	struct ferry_axis h_axis, v_axis;
};

/**
 * ferry_panel_axes() - frame, grid, ticks and labels
 * @format: turns a tick's value into text of at most 23 characters
 */
void ferry_panel_h_axis(FILE *to, const struct ferry_panel *p, const char *label,
			void (*format)(double v, char *out));
void ferry_panel_v_axis(FILE *to, const struct ferry_panel *p, const char *label,
			void (*format)(double v, char *out));
void ferry_panel_frame(FILE *to, const struct ferry_panel *p, const char *title);

/* "0.5", "10", "2000": as many digits as the value needs. */
void ferry_format_plain(double v, char *out);
/* Microseconds as "10 us", "1 ms", "1 s". */
void ferry_format_us(double us, char *out);

#endif
