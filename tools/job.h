/* SPDX-License-Identifier: Apache-2.0 */
/* What every command that runs for long has: a report, a wish to stop, a control socket. */
#ifndef FERRY_TOOLS_JOB_H
#define FERRY_TOOLS_JOB_H

#include "tls/tls.h"
#include "trace/recorder.h"
#include "tools/command.h"
#include "tools/control.h"
#include "tools/metrics.h"
#include "tools/report.h"

#define JOB_REQUESTS_MAX 8

struct job {
	/* Set by the command before job_open(), or NULL: what else it answers; with its context. */
	const struct control_request *more_requests;
	void *more_ctx;
	bool may_trace; /* set as these: it calls job_trace(), unless the user says no */
	struct control_request requests[JOB_REQUESTS_MAX];
	struct report report;
	struct control *control; /* owned; NULL when it couldn't be had */
	struct metrics *metrics; /* owned; NULL without --metrics */
	struct ferry_tls *tls;	 /* owned; NULL: plain connections */
	int stop_fd;		 /* owned; readable when the user wants an end */
	int record_fd;		 /* owned: the file of --trace; -1 for none */
	struct ferry_recorder *recorder; /* owned; NULL for none */
	_Atomic int trace_fd;	 /* owned: what 'pageferry trace' gets; -1 for none */
};

/**
 * job_open() - with the privileges that the user has, and before any thread
 * Errors: negative errno in @f; job_close() is due all the same.
 */
int job_open(struct job *j, const char *command, const struct options *o, struct ferry_failure *f);

/**
 * job_secure() - read the credentials of --tls or --psk
 * @accepts: the command listens; else it dials
 * As job_open(), whose success it follows.
 */
int job_secure(struct job *j, const struct options *o, bool accepts, struct ferry_failure *f);

/* Answer 'pageferry status', and --metrics, from now on: starts threads. */
int job_start(struct job *j, struct ferry_failure *f);

/*
 * There are records of faults from now on: let others read them, and begin to record with --trace.
 * @trace: borrowed until job_untrace(); NULL when there are none
 * Errors: negative errno in @f.
 */
int job_trace(struct job *j, struct ferry_trace *trace, struct ferry_failure *f);
/* The records end. What is recorded is written out by job_close(). */
void job_untrace(struct job *j);

void job_close(struct job *j);

/* Room for summary_*(): figures for people, some lines. */
#define SUMMARY_MAX 1024

/* @downtime_ns: 0 for none */
void summary_target(const struct ferry_target_stats *s, uint64_t ram_bytes, uint64_t total_ns,
		    uint64_t downtime_ns, char *out, size_t size);
void summary_server(const struct ferry_server_stats *s, uint64_t ram_bytes, uint64_t total_ns,
		    uint64_t downtime_ns, char *out, size_t size);

/* A line about a working set, behind what is in @out. */
void summary_replay(const struct ferry_replay_stats *s, char *out, size_t size);

#endif
