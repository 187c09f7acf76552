/* SPDX-License-Identifier: Apache-2.0 */
#include "base/error.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static void note(struct ferry_failure *f, enum ferry_consequence c, int err, const char *fmt,
		 va_list ap)
{
	f->consequence = c;
	f->err = err;
	vsnprintf(f->text, sizeof(f->text), fmt, ap);
}

int ferry_fail(struct ferry_failure *f, enum ferry_consequence c, int err, const char *fmt, ...)
{
	if (f) {
		va_list ap;

		va_start(ap, fmt);
		note(f, c, err, fmt, ap);
		va_end(ap);
	}
	return err;
}

int ferry_fail_errno(struct ferry_failure *f, enum ferry_consequence c, int err, const char *fmt,
		     ...)
{
	if (f) {
		va_list ap;
		size_t len;

		va_start(ap, fmt);
		note(f, c, err, fmt, ap);
		va_end(ap);
		len = strlen(f->text);
		snprintf(f->text + len, sizeof(f->text) - len, ": %s", strerror(-err));
	}
	return err;
}

void ferry_fail_prefix(struct ferry_failure *f, const char *fmt, ...)
{
	char old[FERRY_FAILURE_TEXT_MAX];
	va_list ap;
	size_t len;

	if (!f || !f->err)
		return;
	memcpy(old, f->text, sizeof(old));
	va_start(ap, fmt);
	vsnprintf(f->text, sizeof(f->text), fmt, ap);
	va_end(ap);
	len = strlen(f->text);
	snprintf(f->text + len, sizeof(f->text) - len, ": %.*s", (int)(sizeof(f->text) - len - 3),
		 old);
}

const char *ferry_consequence_name(enum ferry_consequence c)
{
	switch (c) {
	case FERRY_OK:
		return "ok";
	case FERRY_RETRY:
		return "retry";
	case FERRY_BENIGN:
		return "benign";
	case FERRY_LINK:
		return "link";
	case FERRY_REFUSE:
		return "refuse";
	case FERRY_LOST:
		return "lost";
	}
	return "unknown";
}
