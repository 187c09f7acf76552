/* SPDX-License-Identifier: Apache-2.0 */
#ifndef FERRY_BASE_UTIL_H
#define FERRY_BASE_UTIL_H

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define FERRY_ARRAY_SIZE(a)	(sizeof(a) / sizeof((a)[0]))
#define FERRY_KIB		1024u
#define FERRY_MIB		(1024u * 1024u)
#define FERRY_PAGE_SIZE_DEFAULT 4096u

/* Each argument is evaluated once; the names are new each time, so that uses may be nested. */
#define FERRY_MIN(a, b)		    FERRY_PICK_(a, b, <, __COUNTER__)
#define FERRY_MAX(a, b)		    FERRY_PICK_(a, b, >, __COUNTER__)
#define FERRY_PICK_(a, b, op, n)    FERRY_PICK_AS_(a, b, op, n)
#define FERRY_PICK_AS_(a, b, op, n)                                                                \
	({                                                                                         \
		__typeof__(a) a_##n = (a);                                                         \
		__typeof__(b) b_##n = (b);                                                         \
		a_##n op b_##n ? a_##n : b_##n;                                                    \
	})

/* Is a negative errno the want of something that others give back again? */
static inline bool ferry_is_shortage(int err)
{
	return err == -ENOMEM || err == -EMFILE || err == -ENFILE || err == -ENOBUFS ||
	       err == -EAGAIN;
}

/* A guest-physical and a host-virtual address can't be swapped by mistake. */
struct ferry_gpa {
	uint64_t v;
};
struct ferry_hva {
	uint64_t v;
};

#endif
