/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Figures of a running command for Prometheus: made from the report's last counters, and served
 * over HTTP by a thread of their own.
 */
#ifndef FERRY_TOOLS_METRICS_H
#define FERRY_TOOLS_METRICS_H

#include <stdbool.h>
#include <stddef.h>

#include "base/addr.h"
#include "base/error.h"
#include "tools/report.h"

#define METRICS_TYPE_TEXT	 "text/plain; version=0.0.4; charset=utf-8"
#define METRICS_TYPE_OPENMETRICS "application/openmetrics-text; version=1.0.0; charset=utf-8"

/* Enough for every figure there is; a test fills all of them. */
#define METRICS_TEXT_MAX 32768

/**
 * metrics_render() - all figures as text. Pure.
 * @openmetrics: as OpenMetrics has it; else as Prometheus had it before, which most tools read
 * Return: its length; 0 when it does not fit into @size bytes with its closing NUL.
 * Source: https://github.com/prometheus/OpenMetrics/blob/main/specification/OpenMetrics.md
 */
size_t metrics_render(const struct report_snapshot *s, bool openmetrics, char *out, size_t size);

struct metrics;

/**
 * metrics_open() - listen, without a thread yet
 * @addr: without a host it is 127.0.0.1
 * @report: borrowed until metrics_free()
 * Errors: negative errno (REFUSE), with the address and why in @f.
 */
int metrics_open(struct metrics **out, const struct ferry_addr *addr, struct report *report,
		 struct ferry_failure *f);

/* Answer from now on, and tell the address. @m may be NULL. Errors: REFUSE, in @f. */
int metrics_start(struct metrics *m, struct ferry_failure *f);

/* NULL is fine. */
void metrics_free(struct metrics *m);

#endif
