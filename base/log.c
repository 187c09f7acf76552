/* SPDX-License-Identifier: Apache-2.0 */
#include "base/log.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>

void ferry_log(const struct ferry_log *log, enum ferry_log_level level, const char *fmt, ...)
{
	int saved = errno;
	char line[1024];
	va_list ap;

	if (!log || !log->sink || level > log->level)
		return;
	va_start(ap, fmt);
	vsnprintf(line, sizeof(line), fmt, ap);
	va_end(ap);
	log->sink(log->ctx, level, line);
	errno = saved;
}

const char *ferry_log_level_name(enum ferry_log_level level)
{
	static const char *const names[] = {"error", "warning", "info", "debug"};

	return names[level];
}
