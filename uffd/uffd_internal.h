/* SPDX-License-Identifier: Apache-2.0 */
/* Shared by the files that obtain a userfaultfd. */
#ifndef FERRY_UFFD_UFFD_INTERNAL_H
#define FERRY_UFFD_UFFD_INTERNAL_H

#include <stdint.h>

#define FERRY_UFFD_FLAGS (O_CLOEXEC | O_NONBLOCK)

/* The text of a /proc/PID/fd link to a userfaultfd. */
#define FERRY_UFFD_LINK "anon_inode:[userfaultfd]"

/*
 * Ask this kernel which UFFD_FEATURE_* it has. UFFDIO_API can be done once per descriptor, so a
 * descriptor of our own is used up for the question; it may be one for user-mode faults only,
 * which no host refuses.
 * Errors: negative errno, -ENOSYS where the kernel has no userfaultfd.
 */
int ferry_uffd_supported(uint64_t *features);

/*
 * Do UFFDIO_API on a new userfaultfd. Works on a duplicate as well as on the original.
 * @features: in: wanted; out: those of them that are on
 */
int ferry_uffd_handshake(int fd, uint64_t *features);

/*
 * Make sure that @fd, which somebody else opened, is a userfaultfd with UFFDIO_API done, and find
 * out which features are on.
 * Source: /proc/self/fdinfo/FD, the line "API:"
 * Errors: -EBADF when it is no userfaultfd; another negative errno.
 */
int ferry_uffd_make_ready(int fd, uint64_t *features);

#endif
