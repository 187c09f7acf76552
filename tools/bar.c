// SPDX-License-Identifier: Apache-2.0
#include "tools/bar.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/util.h"

#define BAR_CELLS 20

double progress_percent(const struct progress *p)
{
	if (!p->pages_total)
		return 0;
	if (p->pages_known >= p->pages_total)
		return 100;
	return 100.0 * (double)p->pages_known / (double)p->pages_total;
}

const char *format_bytes(uint64_t bytes, char *out)
{
	static const char *const units[] = {"bytes", "KiB", "MiB", "GiB", "TiB"};
	double v = (double)bytes;
	size_t unit = 0;

	while (v >= 1024 && unit + 1 < FERRY_ARRAY_SIZE(units)) {
		v /= 1024;
		unit++;
	}
	snprintf(out, FIGURE_MAX, unit ? "%.1f %s" : "%.0f %s", v, units[unit]);
	return out;
}

const char *format_duration(uint64_t ns, char *out)
{
	uint64_t s = ns / FERRY_NS_PER_S;

	if (ns < FERRY_NS_PER_MS)
		snprintf(out, FIGURE_MAX, "%.0f us", (double)ns / FERRY_NS_PER_US);
	else if (ns < FERRY_NS_PER_S)
		snprintf(out, FIGURE_MAX, "%.2f ms", (double)ns / FERRY_NS_PER_MS);
	else if (s < 60)
		snprintf(out, FIGURE_MAX, "%.2f s", (double)ns / FERRY_NS_PER_S);
	else
		snprintf(out, FIGURE_MAX, "%" PRIu64 " min %" PRIu64 " s", s / 60, s % 60);
	return out;
}

static void append(char *out, size_t size, const char *text)
{
	size_t len = strlen(out);

	snprintf(out + len, size - len, "%s", text);
}

static void append_cells(char *out, size_t size, double percent)
{
	unsigned int full = (unsigned int)(percent * BAR_CELLS / 100);
	char cells[BAR_CELLS + 4] = " [";

	for (unsigned int i = 0; i < BAR_CELLS; i++)
		cells[2 + i] = i < full ? '#' : '.';
	cells[2 + BAR_CELLS] = ']';
	append(out, size, cells);
}

void bar_format(const struct progress *p, const char *label, unsigned int columns, char *out,
		size_t size)
{
	char line[256], part[80], a[FIGURE_MAX], b[FIGURE_MAX];

	snprintf(line, sizeof(line), "%.32s", label);
	if (p->pages_total) {
		snprintf(part, sizeof(part), " %.1f %%", progress_percent(p));
		append_cells(line, sizeof(line), progress_percent(p));
		append(line, sizeof(line), part);
	}
	if (p->wire_bytes) {
		snprintf(part, sizeof(part), "  %s/s", format_bytes(p->bytes_per_second, a));
		append(line, sizeof(line), part);
	}
	if (p->faults) {
		snprintf(part, sizeof(part), "  %" PRIu64 " faults", p->faults);
		append(line, sizeof(line), part);
	}
	if (p->p99_ns) {
		snprintf(part, sizeof(part), "  p50 %s, p99 %s", format_duration(p->p50_ns, a),
			 format_duration(p->p99_ns, b));
		append(line, sizeof(line), part);
	}
	if (p->pages_per_second && p->pages_known < p->pages_total) {
		uint64_t left_s = (p->pages_total - p->pages_known) / p->pages_per_second;

		snprintf(part, sizeof(part), "  %" PRIu64 ":%02" PRIu64 " left", left_s / 60,
			 left_s % 60);
		append(line, sizeof(line), part);
	}
	if (columns && columns <= strlen(line))
		line[columns - 1] = '\0';
	snprintf(out, size, "%s", line);
}
