// SPDX-License-Identifier: Apache-2.0
#include "tools/writer.h"

#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>

#include "base/util.h"

void writer_init(struct writer *w, int fd)
{
	w->fd = fd;
	w->used = 0;
}

/* A pipe that polls as writable takes PIPE_BUF bytes without blocking. */
static bool can_write(int fd)
{
	struct pollfd p = {.fd = fd, .events = POLLOUT};

	return poll(&p, 1, 0) > 0;
}

/* Write what is kept as far as it goes at once. A reader that is gone wants nothing more. */
static void flush(struct writer *w)
{
	size_t done = 0;

	while (done < w->used && can_write(w->fd)) {
		ssize_t n =
			write(w->fd, w->kept + done, FERRY_MIN(w->used - done, (size_t)PIPE_BUF));

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN)
			break;
		if (n < 0)
			done = w->used;
		else
			done += (size_t)n;
	}
	w->used -= done;
	memmove(w->kept, w->kept + done, w->used);
}

void writer_put(struct writer *w, const char *text, size_t len, bool is_optional)
{
	flush(w);
	if (len > sizeof(w->kept) - w->used || (is_optional && (w->used || !can_write(w->fd))))
		return;
	memcpy(w->kept + w->used, text, len);
	w->used += len;
	flush(w);
}

void writer_finish(struct writer *w, int stop_fd)
{
	struct pollfd p[2] = {{.fd = w->fd, .events = POLLOUT}, {.fd = stop_fd, .events = POLLIN}};

	flush(w);
	while (w->used) {
		if (poll(p, 2, -1) < 0 && errno != EINTR)
			return;
		if (p[1].revents)
			return;
		flush(w);
	}
}
