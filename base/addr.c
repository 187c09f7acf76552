/* SPDX-License-Identifier: Apache-2.0 */
#include "base/addr.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int refuse(struct ferry_failure *f, const char *text, const char *why)
{
	return ferry_fail(f, FERRY_REFUSE, -EINVAL,
			  "address '%s': %s; write HOST:PORT, [v6]:PORT or unix:PATH", text, why);
}

static bool is_port(const char *s)
{
	char *end;
	long v;

	if (*s < '0' || *s > '9')
		return false;
	v = strtol(s, &end, 10);
	return !*end && v <= 65535;
}

int ferry_addr_parse(struct ferry_addr *out, const char *text, struct ferry_failure *f)
{
	struct ferry_addr a = {0};
	const char *host = text, *host_end, *port;
	size_t host_len;

	if (!strncmp(text, "unix:", 5)) {
		const char *path = text + 5;

		if (!*path)
			return refuse(f, text, "the path is empty");
		if (strlen(path) >= sizeof(a.path))
			return refuse(f, text, "the path is longer than a socket's may be");
		a.is_unix = true;
		strcpy(a.path, path);
		*out = a;
		return 0;
	}
	if (*text == '[') {
		host = text + 1;
		host_end = strchr(host, ']');
		if (!host_end || host_end[1] != ':')
			return refuse(f, text, "no ']:' after the IPv6 address");
		port = host_end + 2;
	} else {
		host_end = strrchr(text, ':');
		if (!host_end)
			return refuse(f, text, "it has no port");
		if (memchr(text, ':', (size_t)(host_end - text)))
			return refuse(f, text, "an IPv6 address goes in brackets");
		port = host_end + 1;
	}
	host_len = (size_t)(host_end - host);
	if (host_len >= sizeof(a.host))
		return refuse(f, text, "the host name is too long");
	if (!is_port(port))
		return refuse(f, text, "the port is not a number from 0 to 65535");
	memcpy(a.host, host, host_len);
	snprintf(a.port, sizeof(a.port), "%ld", strtol(port, NULL, 10));
	*out = a;
	return 0;
}

void ferry_addr_format(const struct ferry_addr *a, char *out)
{
	if (a->is_unix)
		snprintf(out, FERRY_ADDR_TEXT_MAX, "unix:%s", a->path);
	else if (strchr(a->host, ':'))
		snprintf(out, FERRY_ADDR_TEXT_MAX, "[%s]:%s", a->host, a->port);
	else
		snprintf(out, FERRY_ADDR_TEXT_MAX, "%s:%s", a->host, a->port);
}

bool ferry_addr_is_whole(const struct ferry_addr *a)
{
	/* A bool that is neither can't be looked at as one. */
	return *(const unsigned char *)&a->is_unix <= 1 && memchr(a->host, 0, sizeof(a->host)) &&
	       memchr(a->port, 0, sizeof(a->port)) && memchr(a->path, 0, sizeof(a->path));
}

bool ferry_addr_is_local(const struct ferry_addr *a)
{
	struct in6_addr v6;
	struct in_addr v4;

	if (a->is_unix || !strcmp(a->host, "localhost"))
		return true;
	if (inet_pton(AF_INET, a->host, &v4) == 1)
		return ntohl(v4.s_addr) >> 24 == IN_LOOPBACKNET;
	return inet_pton(AF_INET6, a->host, &v6) == 1 && IN6_IS_ADDR_LOOPBACK(&v6);
}
