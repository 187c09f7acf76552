/* SPDX-License-Identifier: Apache-2.0 */
#include "trace/svg.h"

#include <math.h>

#define TICK_ROOM  24
#define MAX_TICKS  64
#define TICK_SIZE  11.0
#define LABEL_SIZE 12.0
#define TITLE_SIZE 14.0

void ferry_svg_begin(FILE *to, double width, double height)
{
	fprintf(to,
		"<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%g\" height=\"%g\" "
		"viewBox=\"0 0 %g %g\" font-family=\"DejaVu Sans, Arial, Helvetica, "
		"sans-serif\">\n",
		width, height, width, height);
	ferry_svg_rect(to, 0, 0, width, height, "#FFFFFF");
}

void ferry_svg_end(FILE *to)
{
	fprintf(to, "</svg>\n");
}

void ferry_svg_line(FILE *to, double x1, double y1, double x2, double y2, const char *colour,
		    double width)
{
	fprintf(to, "<path d=\"M%.1f %.1fL%.1f %.1f\" stroke=\"%s\" stroke-width=\"%g\"/>\n", x1,
		y1, x2, y2, colour, width);
}

void ferry_svg_rect(FILE *to, double x, double y, double w, double h, const char *fill)
{
	fprintf(to, "<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\" fill=\"%s\"/>\n", x,
		y, w, h, fill);
}

void ferry_svg_marker(FILE *to, enum ferry_marker m, double x, double y, double r,
		      const char *colour)
{
	switch (m) {
	case FERRY_DOT:
		fprintf(to, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"%g\" fill=\"%s\"/>\n", x, y, r,
			colour);
		break;
	case FERRY_TRIANGLE:
		fprintf(to, "<path d=\"M%.1f %.1fl%g %gh%gz\" fill=\"%s\"/>\n", x, y - r, r, 2 * r,
			-2 * r, colour);
		break;
	case FERRY_SQUARE:
		ferry_svg_rect(to, x - r, y - r, 2 * r, 2 * r, colour);
		break;
	case FERRY_CROSS:
		fprintf(to,
			"<path d=\"M%.1f %.1fl%g %gm0 %gl%g %g\" stroke=\"%s\" "
			"stroke-width=\"0.8\"/>\n",
			x - r, y - r, 2 * r, 2 * r, -2 * r, -2 * r, 2 * r, colour);
		break;
	case FERRY_DIAMOND:
		fprintf(to, "<path d=\"M%.1f %.1fl%g %gl%g %gl%g %gz\" fill=\"%s\"/>\n", x, y - r,
			r, r, -r, r, -r, -r, colour);
		break;
	}
}

static void put_text(FILE *to, const char *text)
{
	for (; *text; text++) {
		unsigned char c = (unsigned char)*text;

		if (c == '<')
			fputs("&lt;", to);
		else if (c == '>')
			fputs("&gt;", to);
		else if (c == '&')
			fputs("&amp;", to);
		else
			fputc(c < ' ' || c > '~' ? '?' : c, to);
	}
}

void ferry_svg_text(FILE *to, double x, double y, double size, enum ferry_anchor anchor,
		    const char *colour, const char *text)
{
	static const char *const anchors[] = {"start", "middle", "end"};

	fprintf(to, "<text x=\"%.1f\" y=\"%.1f\" font-size=\"%g\" text-anchor=\"%s\" fill=\"%s\">",
		x, y, size, anchors[anchor], colour);
	put_text(to, text);
	fprintf(to, "</text>\n");
}

void ferry_svg_text_up(FILE *to, double x, double y, double size, const char *text)
{
	fprintf(to,
		"<text transform=\"translate(%.1f %.1f) rotate(-90)\" font-size=\"%g\" "
		"text-anchor=\"middle\">",
		x, y, size);
	put_text(to, text);
	fprintf(to, "</text>\n");
}

void ferry_svg_path_begin(FILE *to)
{
	fprintf(to, "<polyline points=\"");
}

void ferry_svg_point(FILE *to, double x, double y)
{
	fprintf(to, "%.1f,%.1f ", x, y);
}

void ferry_svg_path_end(FILE *to, const char *stroke, double width, const char *dash,
			const char *fill)
{
	fprintf(to, "\" stroke=\"%s\" stroke-width=\"%g\" fill=\"%s\"", stroke, width, fill);
	if (*dash)
		fprintf(to, " stroke-dasharray=\"%s\"", dash);
	fprintf(to, "/>\n");
}

/* --- axes ------------------------------------------------------------------------------------- */

double ferry_axis_at(const struct ferry_axis *a, double v)
{
	double part;

	v = fmin(fmax(v, a->low), a->high);
	part = a->is_log ? log(v / a->low) / log(a->high / a->low)
			 : (v - a->low) / (a->high - a->low);
	return a->from + part * (a->to - a->from);
}

/* 1, 2 or 5 times a power of ten, so that there are some 4 to 8 ticks. */
static double tick_step(const struct ferry_axis *a)
{
	double raw = (a->high - a->low) / 5, power = pow(10, floor(log10(raw)));
	double part = raw / power;

	return (part < 1.5 ? 1 : part < 3.5 ? 2 : part < 7.5 ? 5 : 10) * power;
}

/* The @i-th tick. Return: false behind the last one. */
static bool tick(const struct ferry_axis *a, int i, double *v)
{
	double before = *v;

	if (a->is_log)
		*v = pow(10, ceil(log10(a->low) - 1e-9) + i);
	else
		*v = (ceil(a->low / tick_step(a) - 1e-9) + i) * tick_step(a);
	/* Numbers so large that a step is lost in them have no ticks that could be told apart. */
	return *v <= a->high * (1 + 1e-9) && i < MAX_TICKS && (!i || *v > before);
}

void ferry_panel_h_axis(FILE *to, const struct ferry_panel *p, const char *label,
			void (*format)(double v, char *out))
{
	const struct ferry_axis *a = &p->h_axis;
	char text[TICK_ROOM];
	double v = 0;

	for (int i = 0; tick(a, i, &v); i++) {
		double x = ferry_axis_at(a, v);

		ferry_svg_line(to, x, p->y, x, p->y + p->h, FERRY_PALE, 0.7);
		format(v, text);
		ferry_svg_text(to, x, p->y + p->h + 15, TICK_SIZE, FERRY_MIDDLE, FERRY_BLACK, text);
	}
	ferry_svg_text(to, p->x + p->w / 2, p->y + p->h + 33, LABEL_SIZE, FERRY_MIDDLE, FERRY_BLACK,
		       label);
}

void ferry_panel_v_axis(FILE *to, const struct ferry_panel *p, const char *label,
			void (*format)(double v, char *out))
{
	const struct ferry_axis *a = &p->v_axis;
	char text[TICK_ROOM];
	double v = 0;

	for (int i = 0; tick(a, i, &v); i++) {
		double y = ferry_axis_at(a, v);

		ferry_svg_line(to, p->x, y, p->x + p->w, y, FERRY_PALE, 0.7);
		format(v, text);
		ferry_svg_text(to, p->x - 6, y + 4, TICK_SIZE, FERRY_END, FERRY_BLACK, text);
	}
	ferry_svg_text_up(to, p->x - 56, p->y + p->h / 2, LABEL_SIZE, label);
}

void ferry_panel_frame(FILE *to, const struct ferry_panel *p, const char *title)
{
	ferry_svg_text(to, p->x, p->y - 30, TITLE_SIZE, FERRY_START, FERRY_BLACK, title);
	fprintf(to,
		"<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\" fill=\"none\" "
		"stroke=\"%s\"/>\n",
		p->x, p->y, p->w, p->h, FERRY_BLACK);
}

void ferry_format_plain(double v, char *out)
{
	snprintf(out, TICK_ROOM, "%.10g", fabs(v) < 1e-12 ? 0 : v);
}

void ferry_format_us(double us, char *out)
{
	if (us < 999)
		snprintf(out, TICK_ROOM, "%g us", us);
	else if (us < 999e3)
		snprintf(out, TICK_ROOM, "%g ms", us / 1e3);
	else
		snprintf(out, TICK_ROOM, "%g s", us / 1e6);
}
