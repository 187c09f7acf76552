/* SPDX-License-Identifier: Apache-2.0 */
/* What a page server's ring does not do, whoever asks it. */
#include "pageserver/ring.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>

static struct ferry_ring *new_ring(void)
{
	struct ferry_ring *r = NULL;
	struct ferry_failure f = {0};

	cr_assert_eq(ferry_ring_new(&r, &f), 0, "%s", f.text);
	return r;
}

/* Return: what comes of the one operation that is there. */
static int result(struct ferry_ring *r)
{
	struct io_uring_cqe *cqe;
	int rc = io_uring_submit_and_wait(&r->uring, 1);

	if (rc < 0)
		return rc;
	cr_assert_eq(io_uring_peek_cqe(&r->uring, &cqe), 0);
	rc = cqe->res;
	io_uring_cqe_seen(&r->uring, cqe);
	return rc;
}

Test(ring, refuses_what_no_page_server_does)
{
	static const uint8_t forbidden[] = {
		IORING_OP_OPENAT,    IORING_OP_OPENAT2,	 IORING_OP_SOCKET, IORING_OP_CONNECT,
		IORING_OP_ACCEPT,    IORING_OP_WRITE,	 IORING_OP_SEND,   IORING_OP_RECVMSG,
		IORING_OP_UNLINKAT,  IORING_OP_RENAMEAT, IORING_OP_STATX,  IORING_OP_SPLICE,
		IORING_OP_URING_CMD, IORING_OP_MSG_RING, IORING_OP_NOP,
	};
	struct ferry_ring *r = new_ring();

	cr_assert_eq(ferry_ring_enable(r), 0);
	for (size_t i = 0; i < sizeof(forbidden); i++) {
		struct io_uring_sqe *sqe = io_uring_get_sqe(&r->uring);

		/* Without a file or a path: a ring that took it would still do no harm. */
		io_uring_prep_rw(forbidden[i], sqe, -1, NULL, 0, 0);
		cr_expect_eq(result(r), -EACCES, "operation %d", forbidden[i]);
	}
	ferry_ring_free(r);
}

Test(ring, does_what_a_page_server_does)
{
	struct ferry_ring *r = new_ring();
	int fd = eventfd(1, EFD_CLOEXEC);
	eventfd_t n = 0;

	cr_assert_eq(ferry_ring_enable(r), 0);
	io_uring_prep_poll_add(io_uring_get_sqe(&r->uring), fd, POLLIN);
	cr_expect(result(r) & POLLIN);
	io_uring_prep_read(io_uring_get_sqe(&r->uring), fd, &n, sizeof(n), 0);
	cr_expect_eq(result(r), sizeof(n));
	cr_expect_eq(n, 1);
	close(fd);
	ferry_ring_free(r);
}

/* Files, buffers, and restrictions that allow more. */
Test(ring, takes_no_registrations)
{
	struct io_uring_restriction more = {.opcode = IORING_RESTRICTION_SQE_OP,
					    .sqe_op = IORING_OP_OPENAT};
	struct ferry_ring *r = new_ring();
	int fd = r->uring.ring_fd, files[] = {0};

	cr_expect_lt(syscall(SYS_io_uring_register, fd, IORING_REGISTER_RESTRICTIONS, &more, 1), 0);
	cr_expect_eq(errno, EBUSY, "%d", errno);
	cr_assert_eq(ferry_ring_enable(r), 0);
	cr_expect_lt(syscall(SYS_io_uring_register, fd, IORING_REGISTER_FILES, files, 1), 0);
	cr_expect_eq(errno, EACCES, "%d", errno);
	cr_expect_lt(syscall(SYS_io_uring_register, fd, IORING_REGISTER_RESTRICTIONS, &more, 1), 0);
	cr_expect(errno == EACCES || errno == EBADFD, "%d", errno);
	ferry_ring_free(r);
}

Test(ring, does_nothing_before_it_is_enabled)
{
	struct ferry_ring *r = new_ring();

	io_uring_prep_nop(io_uring_get_sqe(&r->uring));
	cr_expect_eq(result(r), -EBADFD);
	ferry_ring_free(r);
}
