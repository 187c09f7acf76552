/* SPDX-License-Identifier: Apache-2.0 */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/addr.h"
#include "base/util.h"

#define FORMS "; write HOST:PORT, [v6]:PORT or unix:PATH"

static const struct {
	const char *text, *host, *port, *path, *again;
} good[] = {
	{"localhost:80", "localhost", "80", "", NULL},
	{"10.0.0.1:0", "10.0.0.1", "0", "", NULL},
	{"host.example:65535", "host.example", "65535", "", NULL},
	{":7000", "", "7000", "", NULL},
	{"[::1]:80", "::1", "80", "", NULL},
	{"[fe80::1%eth0]:80", "fe80::1%eth0", "80", "", NULL},
	{"[::]:0", "::", "0", "", NULL},
	{"host:0080", "host", "80", "", "host:80"},
	{"[host]:80", "host", "80", "", "host:80"},
	{"unix:/run/x", "", "", "/run/x", NULL},
	{"unix:relative", "", "", "relative", NULL},
	{"unix:a:1", "", "", "a:1", NULL},
	{"unix:80", "", "", "80", NULL},
};

Test(addr, every_form_is_read_and_written)
{
	for (size_t i = 0; i < FERRY_ARRAY_SIZE(good); i++) {
		char text[FERRY_ADDR_TEXT_MAX];
		struct ferry_failure f = {0};
		struct ferry_addr a;

		cr_assert_eq(ferry_addr_parse(&a, good[i].text, &f), 0, "%s: %s", good[i].text,
			     f.text);
		cr_assert_eq(a.is_unix, good[i].path[0] != '\0', "%s", good[i].text);
		cr_assert_str_eq(a.host, good[i].host);
		cr_assert_str_eq(a.port, good[i].port);
		cr_assert_str_eq(a.path, good[i].path);
		ferry_addr_format(&a, text);
		cr_assert_str_eq(text, good[i].again ? good[i].again : good[i].text);
	}
}

static const struct {
	const char *text, *why;
} wrong[] = {
	{"", "it has no port"},
	{"host", "it has no port"},
	{"host:", "the port is not a number from 0 to 65535"},
	{"host:x", "the port is not a number from 0 to 65535"},
	{"host:1x", "the port is not a number from 0 to 65535"},
	{"host:-1", "the port is not a number from 0 to 65535"},
	{"host:+1", "the port is not a number from 0 to 65535"},
	{"host: 1", "the port is not a number from 0 to 65535"},
	{"host:65536", "the port is not a number from 0 to 65535"},
	{"host:99999999999999999999999", "the port is not a number from 0 to 65535"},
	{"::1:80", "an IPv6 address goes in brackets"},
	{"a:b:80", "an IPv6 address goes in brackets"},
	{"[::1]", "no ']:' after the IPv6 address"},
	{"[::1]80", "no ']:' after the IPv6 address"},
	{"[::1", "no ']:' after the IPv6 address"},
	{"[::1]:", "the port is not a number from 0 to 65535"},
	{"unix:", "the path is empty"},
};

Test(addr, what_is_wrong_is_said_with_the_forms)
{
	for (size_t i = 0; i < FERRY_ARRAY_SIZE(wrong); i++) {
		struct ferry_addr a = {.port = "untouched"};
		char want[FERRY_FAILURE_TEXT_MAX];
		struct ferry_failure f = {0};

		cr_assert_eq(ferry_addr_parse(&a, wrong[i].text, &f), -EINVAL, "%s was taken",
			     wrong[i].text);
		snprintf(want, sizeof(want), "address '%s': %s" FORMS, wrong[i].text, wrong[i].why);
		cr_assert_str_eq(f.text, want);
		cr_assert_eq(f.consequence, FERRY_REFUSE);
		cr_assert_str_eq(a.port, "untouched");
	}
}

/* The longest path and host that fit, and one byte more. */
Test(addr, lengths_at_the_limit)
{
	char text[FERRY_ADDR_TEXT_MAX + 64];
	struct ferry_addr a;

	strcpy(text, "unix:");
	memset(text + 5, 'p', sizeof(a.path));
	text[5 + sizeof(a.path) - 1] = '\0';
	cr_assert_eq(ferry_addr_parse(&a, text, NULL), 0);
	cr_assert_eq(strlen(a.path), sizeof(a.path) - 1);
	text[5 + sizeof(a.path) - 1] = 'p';
	text[5 + sizeof(a.path)] = '\0';
	cr_assert_eq(ferry_addr_parse(&a, text, NULL), -EINVAL);

	memset(text, 'h', sizeof(a.host));
	strcpy(text + sizeof(a.host) - 1, ":1");
	cr_assert_eq(ferry_addr_parse(&a, text, NULL), 0);
	cr_assert_eq(strlen(a.host), sizeof(a.host) - 1);
	text[sizeof(a.host) - 1] = 'h';
	strcpy(text + sizeof(a.host), ":1");
	cr_assert_eq(ferry_addr_parse(&a, text, NULL), -EINVAL);
}
