/* SPDX-License-Identifier: Apache-2.0 */
/* What <linux/userfaultfd.h> of Debian 12 does not know yet. Source: Linux 6.18 uapi headers. */
#ifndef FERRY_UFFD_KERNEL_H
#define FERRY_UFFD_KERNEL_H

#include <linux/userfaultfd.h>
#include <stdint.h>

#ifndef UFFD_FEATURE_WP_UNPOPULATED
#define UFFD_FEATURE_WP_UNPOPULATED (1 << 13)
#endif
#ifndef UFFD_FEATURE_POISON
#define UFFD_FEATURE_POISON (1 << 14)
#endif
#ifndef UFFD_FEATURE_WP_ASYNC
#define UFFD_FEATURE_WP_ASYNC (1 << 15)
#endif
#ifndef UFFD_FEATURE_MOVE
#define UFFD_FEATURE_MOVE (1 << 16)
#endif

#endif
