/* SPDX-License-Identifier: Apache-2.0 */
/* Figures as people read them, and the progress bar that is made of them. Pure. */
#ifndef FERRY_TOOLS_BAR_H
#define FERRY_TOOLS_BAR_H

#include <stddef.h>
#include <stdint.h>

/* How far a command is, in the same words for all of them. */
struct progress {
	uint64_t pages_total, pages_known; /* a server's: sent */
	uint64_t wire_bytes;
	uint64_t faults;	 /* a server's: requests */
	uint64_t p50_ns, p99_ns; /* 0 when there are none, and for a server */
	uint32_t resumes;
	uint32_t sessions; /* a server's */
	/* From two samples, smoothed. */
	uint64_t bytes_per_second, pages_per_second;
};

/* Return: 0 to 100; 0 while nothing is known about the memory. */
double progress_percent(const struct progress *p);

#define FIGURE_MAX 32

/* Into FIGURE_MAX bytes. Return: @out. */
const char *format_bytes(uint64_t bytes, char *out); /* "1.5 GiB" */
const char *format_duration(uint64_t ns, char *out); /* "120 us", "1.25 s", "3 min 20 s" */

/**
 * bar_format() - one line of at most @columns - 1 characters
 * @label: what is going on
 */
void bar_format(const struct progress *p, const char *label, unsigned int columns, char *out,
		size_t size);

#endif
