/* SPDX-License-Identifier: Apache-2.0 */
/* What the keeper and its worker tell each other: packets of a socket pair, with descriptors. */
#ifndef FERRY_HANDLER_KEEPER_LINK_H
#define FERRY_HANDLER_KEEPER_LINK_H

#include <stddef.h>
#include <stdint.h>

#include "handler/vmm_message.h"

#define FERRY_KEEPER_FDS 2

enum ferry_keeper_type {
	FERRY_KEEPER_NEW,  /* to the worker: a VM; its message; its connection and userfaultfd */
	FERRY_KEEPER_SAYS, /* to the worker: a line for people; ->id: EPERM, or EAGAIN for a VM that
			      waits */
	FERRY_KEEPER_KEEP, /* to the keeper: what is known of a VM's pages, a memfd */
	FERRY_KEEPER_FORGET, /* to the keeper: a VM needs nobody any more */
};

struct ferry_keeper_packet {
	enum ferry_keeper_type type;
	uint32_t n_bytes;
	uint64_t id; /* of the VM */
	char bytes[FERRY_VMM_MESSAGE_MAX];
	/* Not on the way as they are. Given to whoever receives; borrowed when sent; -1 for none.
	 */
	int fds[FERRY_KEEPER_FDS];
};

/* A pair of sockets for both. Errors: negative errno. */
int ferry_keeper_pair(int fds[2]);

/* Never waits. Errors: -EAGAIN (RETRY when it is writable), -EPIPE, ... */
int ferry_keeper_send(int fd, const struct ferry_keeper_packet *p);

/* Never waits. Errors: -EAGAIN when there is none, -ECONNRESET when the other has ended, -EBADMSG.
 */
int ferry_keeper_receive(int fd, struct ferry_keeper_packet *p);

#endif
