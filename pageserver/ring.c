/* SPDX-License-Identifier: Apache-2.0 */
#include "pageserver/ring.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/util.h"

#define RING_ENTRIES 256

static int make(struct io_uring *ring)
{
	/* One thread submits and reaps: the kernel then runs completions in our own wait, which is
	 * the shortest way for an answer. Kernels before 6.1 take the plain ring. */
	int rc = io_uring_queue_init(RING_ENTRIES, ring,
				     IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN |
					     IORING_SETUP_R_DISABLED);

	return rc == -EINVAL ? io_uring_queue_init(RING_ENTRIES, ring, IORING_SETUP_R_DISABLED)
			     : rc;
}

/* What we never submit, nobody does in our place. It holds from when the ring is enabled. */
static int restrict_operations(struct io_uring *ring)
{
	static const uint8_t ops[] = {IORING_OP_POLL_ADD, IORING_OP_POLL_REMOVE, IORING_OP_RECV,
				      IORING_OP_SENDMSG, IORING_OP_READ};
	struct io_uring_restriction r[FERRY_ARRAY_SIZE(ops)] = {0};

	for (size_t i = 0; i < FERRY_ARRAY_SIZE(ops); i++) {
		r[i].opcode = IORING_RESTRICTION_SQE_OP;
		r[i].sqe_op = ops[i];
	}
	/* liburing 2.3 forgot to export its function for this too. */
	return syscall(SYS_io_uring_register, ring->ring_fd, IORING_REGISTER_RESTRICTIONS, r,
		       FERRY_ARRAY_SIZE(ops)) < 0
		       ? -errno
		       : 0;
}

static int init(struct ferry_ring *r, struct ferry_failure *f)
{
	int rc = make(&r->uring);

	if (rc == -ENOSYS || rc == -EPERM)
		return ferry_fail(f, FERRY_REFUSE, -ENOSYS,
				  "io_uring is not available: %s; allow it (sysctl "
				  "kernel.io_uring_disabled=0, the container's seccomp profile)",
				  strerror(-rc));
	if (rc < 0)
		return ferry_fail_errno(f, FERRY_REFUSE, rc, "io_uring_queue_init");
	rc = restrict_operations(&r->uring);
	if (rc < 0)
		io_uring_queue_exit(&r->uring);
	return rc < 0 ? ferry_fail_errno(f, FERRY_REFUSE, rc, "io_uring restrictions") : 0;
}

int ferry_ring_new(struct ferry_ring **out, struct ferry_failure *f)
{
	struct ferry_ring *r = calloc(1, sizeof(*r));
	int rc = r ? init(r, f) : ferry_fail_errno(f, FERRY_REFUSE, -ENOMEM, "io_uring");

	if (rc < 0)
		free(r);
	else
		*out = r;
	return rc;
}

void ferry_ring_free(struct ferry_ring *r)
{
	if (!r)
		return;
	io_uring_queue_exit(&r->uring);
	free(r);
}

/* liburing 2.3 forgot to export its function for this. */
int ferry_ring_enable(struct ferry_ring *r)
{
	return syscall(SYS_io_uring_register, r->uring.ring_fd, IORING_REGISTER_ENABLE_RINGS, NULL,
		       0) < 0
		       ? -errno
		       : 0;
}
