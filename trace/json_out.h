/* SPDX-License-Identifier: Apache-2.0 */
/* JSON written as it comes, in constant memory: traces have millions of events. */
#ifndef FERRY_TRACE_JSON_OUT_H
#define FERRY_TRACE_JSON_OUT_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

struct ferry_json {
	FILE *to; /* borrowed */
	bool has_before; /* a comma is due */
};

/* @key is NULL inside arrays and at the top. @bracket: '{' or '['; for _close '}' or ']'. */
void ferry_json_open(struct ferry_json *j, const char *key, char bracket);
void ferry_json_close(struct ferry_json *j, char bracket);

void ferry_json_u64(struct ferry_json *j, const char *key, uint64_t v);
void ferry_json_i64(struct ferry_json *j, const char *key, int64_t v);
/* Nanoseconds as microseconds, with all their digits. */
void ferry_json_us(struct ferry_json *j, const char *key, uint64_t ns);
void ferry_json_bool(struct ferry_json *j, const char *key, bool v);
/* Any bytes; what is not ASCII is replaced. */
void ferry_json_text(struct ferry_json *j, const char *key, const char *text);

#endif
