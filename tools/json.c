// SPDX-License-Identifier: Apache-2.0
#include "tools/json.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "tools/command.h"

#define LINE_FLAGS (JSON_COMPACT | JSON_PRESERVE_ORDER | JSON_REAL_PRECISION(9))

json_t *json_text(const char *text)
{
	json_t *value = json_string(text);
	char *copy;

	if (value)
		return value;
	copy = strdup(text);
	if (!copy)
		return NULL;
	for (char *c = copy; *c; c++) {
		if (*c & 0x80)
			*c = '?';
	}
	value = json_string(copy);
	free(copy);
	return value;
}

json_t *json_ms(uint64_t ns)
{
	return json_real((double)ns / FERRY_NS_PER_MS);
}

json_t *json_us(uint64_t ns)
{
	return json_real((double)ns / FERRY_NS_PER_US);
}

void json_put(json_t *object, const char *key, json_t *value)
{
	json_object_set_new(object, key, value);
}

void json_put_count(json_t *object, const char *key, uint64_t value)
{
	json_put(object, key, json_integer((json_int_t)value));
}

void json_put_all(json_t *to, json_t *from)
{
	if (!from)
		return;
	json_object_update(to, from);
	json_decref(from);
}

char *json_line(const json_t *value)
{
	return json_dumps(value, LINE_FLAGS);
}

json_t *json_latency(const struct ferry_histogram *h)
{
	json_t *o = json_object();

	json_put_count(o, "n", h->n);
	json_put(o, "p50", json_us(ferry_histogram_percentile(h, 500)));
	json_put(o, "p99", json_us(ferry_histogram_percentile(h, 990)));
	json_put(o, "p999", json_us(ferry_histogram_percentile(h, 999)));
	json_put(o, "max", json_us(h->max_ns));
	return o;
}

static json_t *json_verified(const struct ferry_verified *v)
{
	json_t *o = json_object(), *wrong = json_array();

	for (uint32_t i = 0; i < v->n_runs; i++) {
		json_t *run = json_object();

		json_put_count(run, "region", v->runs[i].region);
		json_put_count(run, "first_page", v->runs[i].first_page);
		json_put_count(run, "n_pages", v->runs[i].n_pages);
		json_array_append_new(wrong, run);
	}
	json_put(o, "complete", json_boolean(v->done));
	json_put_count(o, "pages", v->pages);
	json_put_count(o, "read_back", v->read_back);
	json_put_count(o, "unknown", v->unknown);
	json_put_count(o, "wrong", v->wrong);
	json_put(o, "wrong_runs", wrong);
	return o;
}

json_t *json_target(const struct ferry_target_stats *s)
{
	json_t *o = json_object();

	json_put_count(o, "pages_total", s->pages_total);
	json_put_count(o, "pages_known", s->pages_known);
	json_put_count(o, "pages_urgent", s->pages_urgent);
	json_put_count(o, "pages_pushed", s->pages_pushed);
	json_put_count(o, "pages_zero", s->pages_zero);
	json_put_count(o, "pages_present", s->pages_present);
	json_put_count(o, "pages_duplicate", s->pages_duplicate);
	json_put_count(o, "pages_discarded", s->discarded_pages);
	json_put_count(o, "pages_lost", s->pages_lost);
	json_put_count(o, "pages_poisoned", s->pages_poisoned);
	json_put_count(o, "large_pages", s->large_pages);
	json_put_count(o, "checksum_errors", s->checksum_errors);
	if (s->verified.wanted)
		json_put(o, "verify", json_verified(&s->verified));
	json_put_count(o, "wire_bytes", s->wire_bytes);
	json_put_count(o, "faults", s->faults);
	json_put_count(o, "faults_coalesced", s->faults_coalesced);
	json_put_count(o, "requests", s->requests);
	json_put_count(o, "resumes", s->resumes);
	json_put(o, "fault_us", json_latency(&s->fault_ns));
	json_put(o, "local_fault_us", json_latency(&s->local_ns));
	return o;
}

json_t *json_server(const struct ferry_server_stats *s)
{
	json_t *o = json_object();

	json_put_count(o, "pages_total", s->pages_total);
	json_put_count(o, "pages_sent", s->pages_sent);
	json_put_count(o, "pages_urgent", s->pages_urgent);
	json_put_count(o, "pages_pushed", s->pages_pushed);
	json_put_count(o, "pages_zero", s->pages_zero);
	json_put_count(o, "pages_lost", s->pages_lost);
	json_put_count(o, "wire_bytes", s->wire_bytes);
	json_put_count(o, "requests", s->requests);
	json_put_count(o, "resumes", s->resumes);
	json_put_count(o, "sessions", s->n_sessions);
	json_put_count(o, "sessions_ever", s->n_sessions_ever);
	json_put_count(o, "sessions_completed", s->n_completed);
	return o;
}

static void print_line(json_t *o)
{
	char *line = json_line(o);

	if (line)
		puts(line);
	fflush(stdout);
	free(line);
	json_decref(o);
}

void json_print_restarted(const char *command, int sig)
{
	json_t *o = json_object();

	json_put(o, "event", json_text("restarted"));
	json_put(o, "command", json_text(command));
	json_put(o, "signal", json_integer(sig));
	print_line(o);
}

void json_print_asked(const char *command, const char *what, const char *error, int status)
{
	json_t *o = json_object();

	json_put(o, "event", json_text(error ? "failed" : "completed"));
	json_put(o, "command", json_text(command));
	json_put(o, "asked", json_text(what));
	if (error) {
		json_put(o, "error", json_text(error));
		json_put(o, "consequence", json_text(ferry_consequence_name(FERRY_REFUSE)));
	}
	json_put(o, "exit", json_integer(status));
	print_line(o);
}

void json_print_usage_error(const char *command, const char *text, int status)
{
	json_t *o = json_object();

	json_put(o, "event", json_text("failed"));
	json_put(o, "command", json_text(command));
	json_put(o, "error", json_text(text));
	json_put(o, "consequence",
		 json_text(
			 ferry_consequence_name(status == EXIT_WAITS ? FERRY_LINK : FERRY_REFUSE)));
	json_put(o, "exit", json_integer(status));
	print_line(o);
}
