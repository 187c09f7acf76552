/* SPDX-License-Identifier: Apache-2.0 */
#ifndef FERRY_BASE_UTIL_H
#define FERRY_BASE_UTIL_H

#include <stddef.h>
#include <stdint.h>

#define FERRY_ARRAY_SIZE(a)	(sizeof(a) / sizeof((a)[0]))
#define FERRY_KIB		1024u
#define FERRY_MIB		(1024u * 1024u)
#define FERRY_PAGE_SIZE_DEFAULT 4096u

#define FERRY_MIN(a, b)                                                                            \
	({                                                                                         \
		__typeof__(a) a_ = (a);                                                            \
		__typeof__(b) b_ = (b);                                                            \
		a_ < b_ ? a_ : b_;                                                                 \
	})
#define FERRY_MAX(a, b)                                                                            \
	({                                                                                         \
		__typeof__(a) a_ = (a);                                                            \
		__typeof__(b) b_ = (b);                                                            \
		a_ > b_ ? a_ : b_;                                                                 \
	})

/* A guest-physical and a host-virtual address can't be swapped by mistake. */
struct ferry_gpa {
	uint64_t v;
};
struct ferry_hva {
	uint64_t v;
};

#endif
