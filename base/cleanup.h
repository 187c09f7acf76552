/* SPDX-License-Identifier: Apache-2.0 */
/* Scope-bound ownership: a variable so marked is released when it goes out of scope. */
#ifndef FERRY_BASE_CLEANUP_H
#define FERRY_BASE_CLEANUP_H

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static inline void ferry_freep(void *p)
{
	free(*(void **)p);
}

/* Closes without touching errno, so that it can run on an error path. */
static inline void ferry_close(int fd)
{
	if (fd >= 0) {
		int saved = errno;

		close(fd);
		errno = saved;
	}
}

static inline void ferry_closep(int *fd)
{
	ferry_close(*fd);
}

static inline void ferry_fclosep(FILE **f)
{
	if (*f)
		fclose(*f);
}

#define _cleanup_(f)	  __attribute__((cleanup(f)))
#define _cleanup_free_	  _cleanup_(ferry_freep)
#define _cleanup_close_	  _cleanup_(ferry_closep)
#define _cleanup_fclose_  _cleanup_(ferry_fclosep)

/* Hand over what a cleanup variable owns. */
#define TAKE_FD(fd)                                                                                \
	({                                                                                         \
		int *taken_ = &(fd);                                                               \
		int value_ = *taken_;                                                              \
		*taken_ = -1;                                                                      \
		value_;                                                                            \
	})
#define TAKE_PTR(p)                                                                                \
	({                                                                                         \
		__typeof__(p) *taken_ = &(p);                                                      \
		__typeof__(p) value_ = *taken_;                                                    \
		*taken_ = NULL;                                                                    \
		value_;                                                                            \
	})

#endif
