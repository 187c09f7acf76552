/* SPDX-License-Identifier: Apache-2.0 */
#include "migrate/watch.h"

#include <errno.h>
#include <sys/epoll.h>

#include "base/cleanup.h"

#define MAX_EVENTS 8

int ferry_watch_init(struct ferry_watch *w)
{
	w->fd = epoll_create1(EPOLL_CLOEXEC);
	return w->fd < 0 ? -errno : 0;
}

void ferry_watch_fini(struct ferry_watch *w)
{
	ferry_close(w->fd);
	w->fd = -1;
}

void ferry_watch_add(struct ferry_watch *w, int fd, enum ferry_watch_what what)
{
	struct epoll_event e = {.events = EPOLLIN | EPOLLRDHUP, .data.u32 = what};

	if (fd >= 0)
		epoll_ctl(w->fd, EPOLL_CTL_ADD, fd, &e);
}

void ferry_watch_remove(struct ferry_watch *w, int fd)
{
	if (fd >= 0)
		epoll_ctl(w->fd, EPOLL_CTL_DEL, fd, NULL);
}

unsigned int ferry_watch_wait(struct ferry_watch *w, int timeout_ms)
{
	struct epoll_event e[MAX_EVENTS];
	unsigned int ready = 0;
	int n = epoll_wait(w->fd, e, MAX_EVENTS, timeout_ms);

	for (int i = 0; i < n; i++)
		ready |= e[i].data.u32;
	return ready;
}
