/* SPDX-License-Identifier: Apache-2.0 */
/* How long the guest stood still and how long faults took, side by side. */
#ifndef MICROVM_REPORT_H
#define MICROVM_REPORT_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "layout.h"

/* Buckets as in layout.h. */
struct report_counts {
	uint64_t n[MICROVM_BUCKETS];
};

/**
 * report_take() - read the list behind @key ("stalls=") off a monitor's answer
 * @answer: what is from @key on is cut off, since it is not for people
 * Return: false when there is none, of as many numbers.
 */
bool report_take(struct report_counts *out, char *answer, const char *key);

/* Add @now - @before to @to. */
void report_add(struct report_counts *to, const struct report_counts *now,
		const struct report_counts *before);

/* A table with a line for each bucket from the first to the last that has something. */
void report_print(FILE *out, const struct report_counts *guest, const struct report_counts *tracer);

#endif
