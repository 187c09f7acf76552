/* SPDX-License-Identifier: Apache-2.0 */
/* --tls, --psk, --plaintext: what protects a command's connections. */
#ifndef FERRY_TOOLS_SECURE_H
#define FERRY_TOOLS_SECURE_H

#include "tls/tls.h"
#include "tools/options.h"

/**
 * secure_check() - do the options go together, and is nothing sent openly by mistake?
 * @addr: that the command listens on or dials; NULL when that is not known yet
 * Errors: -EINVAL; one line that says what to do in @f.
 */
int secure_check(const struct options *o, const struct ferry_addr *addr, struct ferry_failure *f);

/**
 * secure_open() - read the credentials
 * Before privileges are given up, as the files may be somebody else's.
 * @out: NULL when connections are plain
 */
int secure_open(struct ferry_tls **out, const struct options *o, bool accepts,
		const struct ferry_log *log, struct ferry_failure *f);

#endif
