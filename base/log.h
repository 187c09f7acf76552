/* SPDX-License-Identifier: Apache-2.0 */
/* Messages for people. The context is passed in; the line goes to one function of the owner's. */
#ifndef FERRY_BASE_LOG_H
#define FERRY_BASE_LOG_H

enum ferry_log_level {
	FERRY_LOG_ERROR,
	FERRY_LOG_WARN,
	FERRY_LOG_INFO,
	FERRY_LOG_DEBUG,
};

/* @sink may be called from any thread; @line has no newline and is borrowed until return. */
struct ferry_log {
	enum ferry_log_level level; /* lines above it are dropped */
	void (*sink)(void *ctx, enum ferry_log_level level, const char *line);
	void *ctx;
};

/* @log may be NULL: then nothing is said. errno is kept. */
void ferry_log(const struct ferry_log *log, enum ferry_log_level level, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));

const char *ferry_log_level_name(enum ferry_log_level level);

#define ferry_error(log, ...) ferry_log(log, FERRY_LOG_ERROR, __VA_ARGS__)
#define ferry_warn(log, ...)  ferry_log(log, FERRY_LOG_WARN, __VA_ARGS__)
#define ferry_info(log, ...)  ferry_log(log, FERRY_LOG_INFO, __VA_ARGS__)
#define ferry_debug(log, ...) ferry_log(log, FERRY_LOG_DEBUG, __VA_ARGS__)

#endif
