/* SPDX-License-Identifier: Apache-2.0 */
/* Traces in forms that other tools read. Return: 0, -ENOMEM, or the stream's error. */
#ifndef FERRY_TRACE_EXPORT_H
#define FERRY_TRACE_EXPORT_H

#include <stdio.h>

#include "trace/stats.h"

/*
 * Trace events (JSON object format), which ui.perfetto.dev and chrome://tracing open: a track for
 * each thread of the guest with its waits and their stages, one for each bulk connection, counters.
 * Times are microseconds since the trace began.
 */
int ferry_export_perfetto(FILE *to, const struct ferry_trace_log *log, struct ferry_stats *stats);

/*
 * The fields of QEMU's query-migrate that are about post-copy faults, of the same names and units:
 * postcopy-blocktime and -vcpu-blocktime in ms, postcopy-latency, -vcpu-latency and
 * -non-vcpu-latency as means in ns, postcopy-latency-dist as 24 counts of [2^N, 2^(N+1)) us.
 * vCPUs are the threads named "CPU N/...", as QEMU does with debug-threads=on; without any, all.
 */
int ferry_export_qemu(FILE *to, const struct ferry_trace_log *log, struct ferry_stats *stats);

#endif
