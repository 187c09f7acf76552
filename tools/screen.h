/* SPDX-License-Identifier: Apache-2.0 */
/* The terminal, as a screen of lines. One at a time; one thread. */
#ifndef FERRY_TOOLS_SCREEN_H
#define FERRY_TOOLS_SCREEN_H

#include "base/error.h"
#include "tools/live.h"

enum screen_key {
	SCREEN_NOTHING,
	SCREEN_RESIZED,
	SCREEN_QUIT,
};

/* Take the terminal. Errors: -ENOTTY, -EINVAL (REFUSE), with what to do in @f. */
int screen_open(struct ferry_failure *f);

/* Give it back as it was. */
void screen_close(void);

/* Draw @l, as large as the terminal is now. */
void screen_draw(const struct live *l);

/* What the user did since; never waits. To be called again until it is SCREEN_NOTHING. */
enum screen_key screen_read(void);

#endif
