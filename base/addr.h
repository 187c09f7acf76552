/* SPDX-License-Identifier: Apache-2.0 */
/* Addresses as users write them: HOST:PORT, [v6]:PORT or unix:PATH. */
#ifndef FERRY_BASE_ADDR_H
#define FERRY_BASE_ADDR_H

#include <netdb.h>
#include <stdbool.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "base/error.h"

struct ferry_addr {
	bool is_unix;
	char host[NI_MAXHOST]; /* without brackets; empty means every address (to listen on) */
	char port[NI_MAXSERV]; /* decimal, 0 to 65535; 0 lets the kernel choose (to listen on) */
	char path[sizeof(((struct sockaddr_un *)0)->sun_path)];
};

#define FERRY_ADDR_TEXT_MAX (NI_MAXHOST + NI_MAXSERV + 8)

/**
 * ferry_addr_parse() - read an address as the command line has it
 * Errors: -EINVAL (REFUSE), with what is wrong and the three forms in @f. @out is written on
 *         success only.
 */
int ferry_addr_parse(struct ferry_addr *out, const char *text, struct ferry_failure *f);

/* The same in the form that ferry_addr_parse() reads. @out: FERRY_ADDR_TEXT_MAX bytes. */
void ferry_addr_format(const struct ferry_addr *a, char *out);

/* Of one that comes from a file: does every text in it end? */
bool ferry_addr_is_whole(const struct ferry_addr *a);

/* Does what is sent there stay on this host? By its form, without asking for names. */
bool ferry_addr_is_local(const struct ferry_addr *a);

#endif
