/* SPDX-License-Identifier: Apache-2.0 */
#include "report.h"

#include <stdlib.h>
#include <string.h>

bool report_take(struct report_counts *out, char *answer, const char *key)
{
	char *at = strstr(answer, key), *rest;

	if (!at)
		return false;
	rest = at + strlen(key);
	for (int i = 0; i < MICROVM_BUCKETS; i++) {
		char *end;

		out->n[i] = strtoull(rest, &end, 10);
		if (end == rest || *end != (i == MICROVM_BUCKETS - 1 ? '\0' : ','))
			return false;
		rest = end + 1;
	}
	while (at > answer && at[-1] == ' ')
		at--;
	*at = '\0';
	return true;
}

void report_add(struct report_counts *to, const struct report_counts *now,
		const struct report_counts *before)
{
	for (int i = 0; i < MICROVM_BUCKETS; i++)
		to->n[i] += now->n[i] - before->n[i];
}

static void label(char *out, size_t size, int bucket)
{
	unsigned long from = bucket ? 1ul << (bucket - 1) : 0, to = (1ul << bucket) - 1;

	if (!bucket)
		snprintf(out, size, "less than 1 us");
	else if (bucket == MICROVM_BUCKETS - 1)
		snprintf(out, size, "%lu us or more", from);
	else if (from == to)
		snprintf(out, size, "%lu us", from);
	else
		snprintf(out, size, "%lu to %lu us", from, to);
}

void report_print(FILE *out, const struct report_counts *guest, const struct report_counts *tracer)
{
	int first = MICROVM_BUCKETS, last = -1;
	uint64_t guest_all = 0, tracer_all = 0;
	char name[64];

	for (int i = 0; i < MICROVM_BUCKETS; i++) {
		if (guest->n[i] || tracer->n[i]) {
			first = first > i ? i : first;
			last = i;
		}
		guest_all += guest->n[i];
		tracer_all += tracer->n[i];
	}
	fprintf(out, "%20s  %16s  %16s\n", "", "stalls of vCPUs", "faults traced");
	for (int i = first; i <= last; i++) {
		label(name, sizeof(name), i);
		fprintf(out, "%20s  %16llu  %16llu\n", name, (unsigned long long)guest->n[i],
			(unsigned long long)tracer->n[i]);
	}
	fprintf(out, "%20s  %16llu  %16llu\n", "all", (unsigned long long)guest_all,
		(unsigned long long)tracer_all);
}
