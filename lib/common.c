/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "base/util.h"
#include "lib/internal.h"

_Static_assert(PAGEFERRY_ERROR_TEXT_MAX == FERRY_FAILURE_TEXT_MAX, "texts fit");
_Static_assert(PAGEFERRY_MAX_REGIONS == FERRY_MAX_REGIONS, "documented as it is");
_Static_assert(PAGEFERRY_MAX_STATE_BYTES == FERRY_MAX_STATE_BYTES, "documented as it is");

const char *pageferry_version(void)
{
	return FERRY_VERSION_TEXT;
}

/* The log functions that this thread is in, the innermost first: each may use other objects. */
struct inside {
	const struct ferry_lib_log *log;
	const struct inside *outer;
};

static _Thread_local const struct inside *inside;

static void sink(void *ctx, enum ferry_log_level level, const char *line)
{
	struct ferry_lib_log *l = ctx;
	struct inside here = {.log = l, .outer = inside};

	inside = &here;
	l->fn(l->ctx, (enum pageferry_log_level)(level + 1), line);
	inside = here.outer;
}

bool ferry_lib_log_is_inside(const struct ferry_lib_log *l)
{
	for (const struct inside *i = inside; i; i = i->outer)
		if (i->log == l)
			return true;
	return false;
}

void ferry_lib_log_init(struct ferry_lib_log *l, pageferry_log_fn fn, void *ctx,
			enum pageferry_log_level level)
{
	*l = (struct ferry_lib_log){.fn = fn, .ctx = ctx};
	/* Without a sink the engines say nothing. */
	if (fn && level != PAGEFERRY_LOG_NONE) {
		unsigned int top =
			FERRY_MIN((unsigned int)level, (unsigned int)PAGEFERRY_LOG_DEBUG);

		l->log = (struct ferry_log){
			.level = (enum ferry_log_level)(top - 1), .sink = sink, .ctx = l};
	}
}

static enum pageferry_consequence consequence(enum ferry_consequence c)
{
	switch (c) {
	case FERRY_OK:
	case FERRY_BENIGN:
		return PAGEFERRY_OK;
	case FERRY_RETRY:
		return PAGEFERRY_RETRY;
	case FERRY_LINK:
		return PAGEFERRY_LINK;
	case FERRY_REFUSE:
		return PAGEFERRY_REFUSE;
	case FERRY_LOST:
		break;
	}
	return PAGEFERRY_LOST;
}

int ferry_lib_tell(struct pageferry_error *e, const struct ferry_failure *f, int rc)
{
	if (e && rc < 0) {
		e->err = rc;
		/* One without a story: nothing was begun. */
		e->consequence = f->consequence == FERRY_OK ? PAGEFERRY_REFUSE
							   : consequence(f->consequence);
		snprintf(e->text, sizeof(e->text), "%s", f->text[0] ? f->text : strerror(-rc));
	}
	return rc;
}

void ferry_lib_tell_event(struct pageferry_error *e, const struct ferry_failure *f)
{
	if (f->err < 0)
		(void)ferry_lib_tell(e, f, f->err);
}

int ferry_lib_options(void *out, size_t known, size_t least, const void *in,
		      struct ferry_failure *f)
{
	const unsigned char *bytes = in;
	size_t size;

	memcpy(&size, in, sizeof(size));
	if (size < least)
		return ferry_fail(f, FERRY_REFUSE, -EINVAL,
				  "options: size is %zu; set it to sizeof(the struct)", size);
	for (size_t i = known; i < size; i++)
		if (bytes[i])
			return ferry_fail(f, FERRY_REFUSE, -EINVAL,
					  "options: they ask for something that version %s of the "
					  "library doesn't know",
					  FERRY_VERSION_TEXT);
	memset(out, 0, known);
	memcpy(out, in, FERRY_MIN(size, known));
	return 0;
}

int ferry_lib_flags(uint64_t flags, uint64_t known, struct ferry_failure *f)
{
	return flags & ~known ? ferry_fail(f, FERRY_REFUSE, -EINVAL,
					   "options: flags %#llx are not for this, or not known to version "
					   "%s of the library",
					   (unsigned long long)(flags & ~known), FERRY_VERSION_TEXT)
			      : 0;
}

int ferry_lib_result(void *out, const void *in, size_t known, size_t least)
{
	unsigned char *to = out;
	size_t size;

	memcpy(&size, out, sizeof(size));
	if (size < least)
		return -EINVAL;
	memcpy(to + sizeof(size), (const unsigned char *)in + sizeof(size),
	       FERRY_MIN(size, known) - sizeof(size));
	if (size > known)
		memset(to + known, 0, size - known);
	return 0;
}

void ferry_lib_signals_block(sigset_t *saved)
{
	sigset_t all;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, saved);
}

void ferry_lib_signals_restore(const sigset_t *saved)
{
	pthread_sigmask(SIG_SETMASK, saved, NULL);
}
