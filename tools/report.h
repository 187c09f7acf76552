/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a command that runs for long tells its user, in one of three ways: JSON lines on standard
 * output; a progress bar on a terminal; or plain lines for stages. The same state answers
 * 'pageferry status'. Any thread may call; nothing here waits for a reader before the end.
 */
#ifndef FERRY_TOOLS_REPORT_H
#define FERRY_TOOLS_REPORT_H

#include <jansson.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/addr.h"
#include "base/error.h"
#include "base/log.h"
#include "handler/replay.h"
#include "pageserver/server.h"
#include "tools/bar.h"
#include "tools/options.h"
#include "tools/writer.h"
#include "uffd/target.h"

struct report {
	const char *command;
	bool has_json, has_bar;
	int stop_fd; /* ends the wait for a slow reader at the end; -1 for none */
	uint64_t start_ns;
	struct ferry_log log; /* to this report */

	pthread_mutex_t lock; /* of everything below */
	struct writer out, err;
	bool bar_is_shown;
	const char *stage;
	struct ferry_trace *trace; /* borrowed: gets the stages as marks; NULL for none */
	bool has_link, link_is_lost;
	char address[FERRY_ADDR_TEXT_MAX]; /* empty when nothing listens */
	struct progress now;
	struct progress sampled; /* what the rates were last taken from, at ->sampled_ns */
	uint64_t sampled_ns, json_ns, bar_ns;
	uint64_t told_bytes; /* of the last progress in JSON */

	/* What a command adds to its status. Any thread; ->lock is held. */
	void (*more)(void *ctx, json_t *status);
	void *more_ctx;

	/* The last counters, of one of the two. */
	bool has_target, has_server;
	struct ferry_target_stats target;
	struct ferry_server_stats server;
	bool has_replay;
	struct ferry_replay_stats replay;
	uint64_t n_links_lost, n_errors;
};

/* What is known of a running command at one moment. */
struct report_snapshot {
	const char *command, *stage; /* valid as long as the report */
	bool has_target, has_server, has_replay;
	struct ferry_target_stats target;
	struct ferry_server_stats server;
	struct ferry_replay_stats replay;
	uint64_t n_links_lost; /* outages so far */
	uint64_t n_errors;     /* sessions that failed, and the command's own failure */
};

void report_snapshot(struct report *r, struct report_snapshot *out);

/* One more thing went wrong; the command goes on. */
void report_count_error(struct report *r);

/* @command: lives as long as the report. */
void report_init(struct report *r, const char *command, const struct options *o);
void report_fini(struct report *r);

/* The address that is really listened on. */
void report_listening(struct report *r, const struct ferry_addr *a);

/* @stage lives as long as the report. */
void report_stage(struct report *r, const char *stage);

/* Mark the stages, this one first, in @trace from now on; NULL: not any more. */
void report_trace(struct report *r, struct ferry_trace *trace);

/* New counters: progress at its pace, and lost and resumed links as the counters tell them. */
void report_target(struct report *r, const struct ferry_target_stats *s);
void report_server(struct report *r, const struct ferry_server_stats *s);

/* What a handler's working set is good for. */
void report_replay(struct report *r, const struct ferry_replay_stats *s);

/* A lost link, once until it is resumed. */
void report_link_lost(struct report *r, const char *why);

/* Any other event. @fields: given, may be NULL. @text: for people, NULL to say nothing. */
void report_event(struct report *r, const char *event, json_t *fields, const char *text);

/*
 * The last line. @summary: given, may be NULL; @text: the same for people, printed as it is.
 * Return: @status, so that `return report_failed(...)` reads well.
 */
int report_completed(struct report *r, json_t *summary, const char *text);
int report_failed(struct report *r, const struct ferry_failure *f, int status, json_t *summary,
		  const char *text);

/* For 'pageferry status'. */
json_t *report_status(struct report *r);

#endif
