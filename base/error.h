/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How failures are spoken of everywhere.
 *
 * Functions return 0 or a negative errno; a positive value is an outcome that the function's own
 * comment names. What an error *means* for the guest is its consequence. Text for people is put
 * together at the edges, outermost part first, in a struct ferry_failure.
 */
#ifndef FERRY_BASE_ERROR_H
#define FERRY_BASE_ERROR_H

#include <stdbool.h>

/* What follows from an error. */
enum ferry_consequence {
	FERRY_OK = 0,
	FERRY_RETRY,  /* the same call may be tried again at once */
	FERRY_BENIGN, /* nothing is wrong; the wanted state was there already */
	FERRY_LINK,   /* the peer is out of reach: wait and resume */
	FERRY_REFUSE, /* before the switch: undo, the source keeps the guest */
	FERRY_LOST,   /* the guest or its memory is gone */
};

#define FERRY_FAILURE_TEXT_MAX 512

/* One failure with its story. Owned by the caller who wants to tell it; zero-initialise. */
struct ferry_failure {
	enum ferry_consequence consequence;
	int err; /* negative errno, or 0 when nothing failed */
	char text[FERRY_FAILURE_TEXT_MAX];
};

/**
 * ferry_fail() - note a failure and return its error
 * @f:   where to note it, or NULL when nobody wants the story
 * @err: negative errno
 * @fmt: printf format of what failed, without a trailing newline; for a system's error the text
 *       should end in what the user can do about it
 * Return: @err, so that `return ferry_fail(...)` reads well.
 */
int ferry_fail(struct ferry_failure *f, enum ferry_consequence c, int err, const char *fmt, ...)
	__attribute__((format(printf, 4, 5)));

/* Like ferry_fail(), with ": " and strerror(-err) put behind the text. */
int ferry_fail_errno(struct ferry_failure *f, enum ferry_consequence c, int err, const char *fmt,
		     ...) __attribute__((format(printf, 4, 5)));

/* Put "@fmt: " before the text that is there already. No effect when nothing failed. */
void ferry_fail_prefix(struct ferry_failure *f, const char *fmt, ...)
	__attribute__((format(printf, 2, 3)));

const char *ferry_consequence_name(enum ferry_consequence c);

#endif
