/* SPDX-License-Identifier: Apache-2.0 */
#include "trace/json_out.h"

#include <inttypes.h>

static void put_text(FILE *to, const char *text)
{
	fputc('"', to);
	for (; *text; text++) {
		unsigned char c = (unsigned char)*text;

		if (c == '"' || c == '\\')
			fprintf(to, "\\%c", c);
		else if (c < ' ' || c > '~')
			fputc('?', to);
		else
			fputc(c, to);
	}
	fputc('"', to);
}

static void begin(struct ferry_json *j, const char *key)
{
	if (j->has_before)
		fputc(',', j->to);
	j->has_before = true;
	if (key) {
		put_text(j->to, key);
		fputc(':', j->to);
	}
}

void ferry_json_open(struct ferry_json *j, const char *key, char bracket)
{
	begin(j, key);
	fputc(bracket, j->to);
	j->has_before = false;
}

void ferry_json_close(struct ferry_json *j, char bracket)
{
	fputc(bracket, j->to);
	j->has_before = true;
}

void ferry_json_u64(struct ferry_json *j, const char *key, uint64_t v)
{
	begin(j, key);
	fprintf(j->to, "%" PRIu64, v);
}

void ferry_json_i64(struct ferry_json *j, const char *key, int64_t v)
{
	begin(j, key);
	fprintf(j->to, "%" PRId64, v);
}

void ferry_json_us(struct ferry_json *j, const char *key, uint64_t ns)
{
	begin(j, key);
	fprintf(j->to, "%" PRIu64 ".%03u", ns / 1000, (unsigned int)(ns % 1000));
}

void ferry_json_bool(struct ferry_json *j, const char *key, bool v)
{
	begin(j, key);
	fputs(v ? "true" : "false", j->to);
}

void ferry_json_text(struct ferry_json *j, const char *key, const char *text)
{
	begin(j, key);
	put_text(j->to, text);
}
