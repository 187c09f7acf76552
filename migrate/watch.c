/* SPDX-License-Identifier: Apache-2.0 */
#include "migrate/watch.h"

#include <errno.h>
#include <stdbool.h>
#include <sys/epoll.h>

#include "base/cleanup.h"

#define MAX_EVENTS 8
#define MISSED_MS  100 /* until those are tried again */

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

/* Return: false when there was no memory for it. */
static bool add(struct ferry_watch *w, int fd, enum ferry_watch_what what)
{
	struct epoll_event e = {.events = EPOLLIN | EPOLLRDHUP, .data.u32 = what};

	return !epoll_ctl(w->fd, EPOLL_CTL_ADD, fd, &e) || (errno != ENOMEM && errno != ENOSPC);
}

void ferry_watch_add(struct ferry_watch *w, int fd, enum ferry_watch_what what)
{
	if (fd >= 0 && !add(w, fd, what) && w->n_missed < FERRY_WATCH_MAX)
		w->missed[w->n_missed++] = (struct ferry_watch_missed){fd, what};
}

static void forget_missed(struct ferry_watch *w, unsigned int i)
{
	w->missed[i] = w->missed[--w->n_missed];
}

void ferry_watch_remove(struct ferry_watch *w, int fd)
{
	if (fd < 0)
		return;
	for (unsigned int i = w->n_missed; i-- > 0;)
		if (w->missed[i].fd == fd)
			forget_missed(w, i);
	epoll_ctl(w->fd, EPOLL_CTL_DEL, fd, NULL);
}

unsigned int ferry_watch_wait(struct ferry_watch *w, int timeout_ms)
{
	struct epoll_event e[MAX_EVENTS];
	unsigned int ready = 0;
	int n;

	for (unsigned int i = w->n_missed; i-- > 0;)
		if (add(w, w->missed[i].fd, w->missed[i].what))
			forget_missed(w, i);
	if (w->n_missed && (timeout_ms < 0 || timeout_ms > MISSED_MS))
		timeout_ms = MISSED_MS;
	n = epoll_wait(w->fd, e, MAX_EVENTS, timeout_ms);
	for (int i = 0; i < n; i++)
		ready |= e[i].data.u32;
	return ready;
}
