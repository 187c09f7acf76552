/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a QEMU monitor says, taken apart. QMP is a stream of JSON objects, one a line; each is a
 * greeting, an event, or the answer to a command. Pure: bytes in, messages out, no IO.
 */
#ifndef FERRY_MIGRATE_QMP_PARSE_H
#define FERRY_MIGRATE_QMP_PARSE_H

#include <jansson.h>
#include <stddef.h>
#include <stdint.h>

/* The longest line that is taken. Texts of the human monitor reach some 100 KiB. */
#define FERRY_QMP_MAX_LINE (4u * 1024 * 1024)
#define FERRY_QMP_TEXT_MAX 256

enum ferry_qmp_kind {
	FERRY_QMP_GREETING,
	FERRY_QMP_RETURN,
	FERRY_QMP_ERROR,
	FERRY_QMP_EVENT,
};

struct ferry_qmp_message {
	enum ferry_qmp_kind kind;
	int64_t id;   /* of RETURN and ERROR, 0 when there is none */
	uint64_t at_ns; /* of an event: when it was, CLOCK_REALTIME; 0 when it doesn't say */
	json_t *body; /* owned: what was returned, the event's data, or the greeting; may be NULL */
	char text[FERRY_QMP_TEXT_MAX]; /* the event's name, or the error's text for people */
};

/* Releases ->body. Twice is fine. */
void ferry_qmp_message_fini(struct ferry_qmp_message *m);

struct ferry_qmp_parser {
	char *buffer; /* owned */
	size_t size, begin, end;
	size_t seen; /* no line ends before this */
};

void ferry_qmp_parser_init(struct ferry_qmp_parser *p);
void ferry_qmp_parser_fini(struct ferry_qmp_parser *p);

/*
 * Room to receive into, at least one byte, and how much of it was used.
 * Errors: -ENOMEM; -EMSGSIZE for a line longer than FERRY_QMP_MAX_LINE.
 */
int ferry_qmp_parser_space(struct ferry_qmp_parser *p, char **data, size_t *len);
void ferry_qmp_parser_advance(struct ferry_qmp_parser *p, size_t len);

/**
 * ferry_qmp_parser_next() - the next whole message
 * @out: the caller's to _fini; written when 1 is returned
 * Empty lines are skipped.
 * Return: 1 with a message, 0 when more bytes are needed.
 * Errors: -EPROTO: a line that no monitor would say.
 */
int ferry_qmp_parser_next(struct ferry_qmp_parser *p, struct ferry_qmp_message *out);

#endif
