/* SPDX-License-Identifier: Apache-2.0 */
/* JSON as this program prints it: compact, in the order in which it was put together. */
#ifndef FERRY_TOOLS_JSON_H
#define FERRY_TOOLS_JSON_H

#include <jansson.h>
#include <stdint.h>

#include "pageserver/server.h"
#include "uffd/target.h"

/* A string value of any bytes: what is not valid UTF-8 is replaced. */
json_t *json_text(const char *text);

/* Nanoseconds as milliseconds, or microseconds, with fractions. */
json_t *json_ms(uint64_t ns);
json_t *json_us(uint64_t ns);

/* Put @value (given) into @object (borrowed). A missing value for want of memory is left out. */
void json_put(json_t *object, const char *key, json_t *value);
void json_put_count(json_t *object, const char *key, uint64_t value);

/* Everything of @from (given) into @to (borrowed). @from may be NULL. */
void json_put_all(json_t *to, json_t *from);

/* The value as one line without its end. Owned by the caller; NULL for want of memory. */
char *json_line(const json_t *value);

/* {"n":..,"p50":..,"p99":..,"p999":..,"max":..}, in microseconds. */
json_t *json_latency(const struct ferry_histogram *h);

/* The parts of a summary that the engines' counters give. */
json_t *json_target(const struct ferry_target_stats *s);
json_t *json_server(const struct ferry_server_stats *s);

/* A line of a supervised command's parent: it starts the command again. */
void json_print_restarted(const char *command, int sig);

/* The last line of a command that asked another one for something. @error: NULL when it was done. */
void json_print_asked(const char *command, const char *what, const char *error, int status);

/* The last line of a command that never began. */
void json_print_usage_error(const char *command, const char *text, int status);

#endif
