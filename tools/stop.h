/* SPDX-License-Identifier: Apache-2.0 */
/* The wish to end, as a descriptor: signals never interrupt anything, least of all an undo. */
#ifndef FERRY_TOOLS_STOP_H
#define FERRY_TOOLS_STOP_H

#include "base/error.h"

/**
 * stop_open() - from now on SIGINT and SIGTERM make a descriptor readable, and do nothing else
 * It stays readable: further signals change nothing. SIGPIPE and SIGHUP are ignored: neither a
 * reader that went away nor a closed terminal may take the pages away from a guest.
 * Context: before any thread is started; they inherit it.
 * Errors: negative errno in @f. Return: the descriptor, which the caller owns.
 */
int stop_open(struct ferry_failure *f);

#endif
