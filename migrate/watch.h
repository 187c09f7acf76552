/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a side of a switchover waits for, all at once: a few descriptors, each with a name. The
 * whole set can be handed as a stop_fd to whoever waits for something else.
 */
#ifndef FERRY_MIGRATE_WATCH_H
#define FERRY_MIGRATE_WATCH_H

enum ferry_watch_what {
	FERRY_WATCH_LINK = 1,	  /* the switchover connection */
	FERRY_WATCH_VMM = 2,	  /* the monitor */
	FERRY_WATCH_STATE = 4,	  /* the pipe of the device state */
	FERRY_WATCH_ACCEPTOR = 8, /* a new switchover connection */
	FERRY_WATCH_STOP = 16,	  /* the user */
	FERRY_WATCH_SERVE = 32,	  /* pages can't be served */
};

#define FERRY_WATCH_MAX 8

struct ferry_watch {
	int fd; /* owned: readable while any of the set is */
	/* Those that the kernel had no memory for: tried again with each _wait. */
	struct ferry_watch_missed {
		int fd;
		enum ferry_watch_what what;
	} missed[FERRY_WATCH_MAX];
	unsigned int n_missed;
};

/* Errors: negative errno. */
int ferry_watch_init(struct ferry_watch *w);
void ferry_watch_fini(struct ferry_watch *w);

/* @fd: borrowed until _remove, or until it is closed; -1 is left out */
void ferry_watch_add(struct ferry_watch *w, int fd, enum ferry_watch_what what);
void ferry_watch_remove(struct ferry_watch *w, int fd);

/* Return: the ones that are readable or hung up, 0 when @timeout_ms passed (-1: no limit). */
unsigned int ferry_watch_wait(struct ferry_watch *w, int timeout_ms);

#endif
