/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a trace says, for people and for programs. All of them write to a stream and return 0, or
 * -ENOMEM, or the stream's error. Lost records are said first.
 */
#ifndef FERRY_TRACE_REPORT_H
#define FERRY_TRACE_REPORT_H

#include <stdio.h>

#include "trace/stats.h"

/* @stats may be sorted inside by any of them. @n_slowest: how many faults to tell in full. */
int ferry_report_text(FILE *to, const struct ferry_trace_log *log, struct ferry_stats *stats,
		      unsigned int n_slowest);

/* One object on one line, the last of a command's output: it has "event":"completed". */
int ferry_report_json(FILE *to, const struct ferry_trace_log *log, struct ferry_stats *stats,
		      unsigned int n_slowest);

/* A line for each message: faults, then who joined, then the unanswered; each by time, in ns. */
int ferry_report_csv(FILE *to, const struct ferry_trace_log *log, struct ferry_stats *stats);

/* "write, joined by 2, asked again" and so on; empty when there is nothing to tell. */
const char *ferry_report_flags(const struct ferry_trace_record *rec, char *room, size_t size);

/* For programs: "write zero pushed", words parted by a blank. */
const char *ferry_report_flag_words(uint16_t flags, char *room, size_t size);

#endif
