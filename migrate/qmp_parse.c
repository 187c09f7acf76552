/* SPDX-License-Identifier: Apache-2.0 */
#include "migrate/qmp_parse.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/util.h"

#define FIRST_BYTES 16384u

void ferry_qmp_message_fini(struct ferry_qmp_message *m)
{
	json_decref(m->body);
	m->body = NULL;
}

void ferry_qmp_parser_init(struct ferry_qmp_parser *p)
{
	*p = (struct ferry_qmp_parser){0};
}

void ferry_qmp_parser_fini(struct ferry_qmp_parser *p)
{
	free(p->buffer);
	*p = (struct ferry_qmp_parser){0};
}

int ferry_qmp_parser_space(struct ferry_qmp_parser *p, char **data, size_t *len)
{
	if (p->begin) {
		memmove(p->buffer, p->buffer + p->begin, p->end - p->begin);
		p->end -= p->begin;
		p->seen -= p->begin;
		p->begin = 0;
	}
	if (p->end == p->size) {
		size_t size = p->size ? p->size * 2 : FIRST_BYTES;
		char *bigger;

		if (p->size >= FERRY_QMP_MAX_LINE)
			return -EMSGSIZE;
		bigger = realloc(p->buffer, size);
		if (!bigger)
			return -ENOMEM;
		p->buffer = bigger;
		p->size = size;
	}
	*data = p->buffer + p->end;
	*len = p->size - p->end;
	return 0;
}

void ferry_qmp_parser_advance(struct ferry_qmp_parser *p, size_t len)
{
	p->end += len;
}

/* These texts may end on a terminal: no control characters. */
static void copy_text(char *out, const char *in)
{
	size_t i = 0;

	for (; in[i] && i + 1 < FERRY_QMP_TEXT_MAX; i++)
		out[i] = (unsigned char)in[i] < 0x20 || in[i] == 0x7f ? ' ' : in[i];
	out[i] = '\0';
}

/* Takes what @root holds into @out. */
/* A host that can't tell the time says -1 for both. */
static uint64_t when(const json_t *timestamp)
{
	json_int_t s = json_integer_value(json_object_get(timestamp, "seconds"));
	json_int_t us = json_integer_value(json_object_get(timestamp, "microseconds"));

	return s > 0 && us >= 0 ? (uint64_t)s * FERRY_NS_PER_S + (uint64_t)us * FERRY_NS_PER_US : 0;
}

static int classify(json_t *root, struct ferry_qmp_message *out)
{
	json_t *v;

	*out = (struct ferry_qmp_message){.id = json_integer_value(json_object_get(root, "id"))};
	if ((v = json_object_get(root, "event"))) {
		if (!json_is_string(v))
			return -EPROTO;
		out->kind = FERRY_QMP_EVENT;
		copy_text(out->text, json_string_value(v));
		out->at_ns = when(json_object_get(root, "timestamp"));
		out->body = json_incref(json_object_get(root, "data"));
	} else if ((v = json_object_get(root, "return"))) {
		out->kind = FERRY_QMP_RETURN;
		out->body = json_incref(v);
	} else if ((v = json_object_get(root, "error"))) {
		const char *desc = json_string_value(json_object_get(v, "desc"));

		out->kind = FERRY_QMP_ERROR;
		copy_text(out->text, desc ? desc : "an error without a description");
	} else if ((v = json_object_get(root, "QMP"))) {
		out->kind = FERRY_QMP_GREETING;
		out->body = json_incref(v);
	} else {
		return -EPROTO;
	}
	return 0;
}

static int parse_line(const char *line, size_t len, struct ferry_qmp_message *out)
{
	json_t *root = json_loadb(line, len, 0, NULL);
	int rc = json_is_object(root) ? classify(root, out) : -EPROTO;

	json_decref(root);
	return rc;
}

static bool is_blank(const char *line, size_t len)
{
	for (size_t i = 0; i < len; i++) {
		if (line[i] != ' ' && line[i] != '\r' && line[i] != '\t')
			return false;
	}
	return true;
}

int ferry_qmp_parser_next(struct ferry_qmp_parser *p, struct ferry_qmp_message *out)
{
	while (p->seen < p->end) {
		char *line = p->buffer + p->begin;
		char *newline = memchr(p->buffer + p->seen, '\n', p->end - p->seen);
		size_t len;
		int rc;

		if (!newline) {
			p->seen = p->end;
			break;
		}
		len = (size_t)(newline - line);
		p->begin += len + 1;
		p->seen = p->begin;
		if (is_blank(line, len))
			continue;
		rc = parse_line(line, len, out);
		return rc < 0 ? rc : 1;
	}
	return 0;
}
