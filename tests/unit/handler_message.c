/* SPDX-License-Identifier: Apache-2.0 */
/* The message of a VMM that restores a snapshot. */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "handler/vmm_message.h"

/* What Firecracker sends, from its documentation: the older key beside the newer. */
static const char example[] =
	"[{\"base_host_virt_addr\":140127413305344,\"size\":805306368,\"offset\":0,"
	"\"page_size\":4096,\"page_size_kib\":4096},"
	"{\"base_host_virt_addr\":140126339563520,\"size\":268435456,\"offset\":805306368,"
	"\"page_size\":4096,\"page_size_kib\":4096}]";

static int parse(const char *text, struct ferry_vmm_message *m)
{
	struct ferry_failure f = {0};
	int rc = ferry_vmm_message_parse(text, strlen(text), m, &f);

	cr_assert_eq(rc < 0, f.err != 0);
	cr_assert(!rc || f.text[0]);
	return rc;
}

Test(handler_message, of_firecracker_is_understood)
{
	struct ferry_vmm_message m;

	cr_assert_eq(parse(example, &m), 0);
	cr_assert_eq(m.n_regions, 2);
	cr_assert_eq(m.regions[0].start.v, 140127413305344);
	cr_assert_eq(m.regions[0].bytes, 805306368);
	cr_assert_eq(m.regions[1].offset, 805306368);
	cr_assert_eq(m.regions[1].page_bytes, 4096);
}

Test(handler_message, page_size_is_taken_before_the_older_key)
{
	struct ferry_vmm_message m;

	cr_assert_eq(parse("[{\"page_size_kib\":4096,\"offset\":0,\"size\":2097152,\"page_size\":"
			   "2097152,"
			   "\"base_host_virt_addr\":2097152}]",
			   &m),
		     0);
	cr_assert_eq(m.regions[0].page_bytes, 2097152);
	cr_assert_eq(parse("[{\"page_size_kib\":2097152,\"offset\":0,\"size\":2097152,"
			   "\"base_host_virt_addr\":2097152}]",
			   &m),
		     0);
	cr_assert_eq(m.regions[0].page_bytes, 2097152);
	cr_assert_eq(parse("[{\"offset\":0,\"size\":8192,\"base_host_virt_addr\":4096}]", &m), 0);
	cr_assert_eq(m.regions[0].page_bytes, 4096);
}

Test(handler_message, unknown_keys_are_ignored)
{
	struct ferry_vmm_message m;

	cr_assert_eq(parse("[{\"gpa_start\":{\"x\":[1.5]},\"offset\":0,\"size\":4096,"
			   "\"base_host_virt_addr\":4096,\"is_guest_memfd\":true}]",
			   &m),
		     0);
}

Test(handler_message, unknown_keys_may_hold_anything)
{
	static const char *const any[] = {
		"18446744073709551615",
		"9223372036854775808",
		"-170141183460469231731687303715884105728",
		"1e400",
		"-1.5E-9999",
		"null",
		"\"\\u0000\"",
		"\"\\ud800\"",
		"\"\\\"]}\"",
		"\"\xff\xfe\"",
		"{\"size\":1,\"size\":[{}],\"x\":1e999}",
		"[[],[[\"offset\"]],{\"offset\":-1}]",
		"{}",
	};

	for (size_t i = 0; i < FERRY_ARRAY_SIZE(any); i++) {
		struct ferry_vmm_message m;
		char text[400];

		snprintf(text, sizeof(text),
			 " \r\n\t[ {\"x\" : %s, \"offset\":0,\"size\":4096,\"y\":%s,"
			 "\"base_host_virt_addr\":9223372036854767616,\"x\":%s} ]\n",
			 any[i], any[i], any[i]);
		cr_expect_eq(parse(text, &m), 0, "%s", text);
		cr_expect_eq(m.regions[0].start.v, 9223372036854767616u);
		cr_expect_eq(ferry_vmm_message_end(text, strlen(text)), strlen(text) - 1);
	}
}

Test(handler_message, nonsense_is_refused)
{
	static const char *const bad[] = {
		"",
		"[]",
		"{}",
		"[1]",
		"[{}]",
		"null",
		"[{\"offset\":0,\"size\":4096}]",
		/* negative, no number, beyond 2^63 */
		"[{\"offset\":-4096,\"size\":4096,\"base_host_virt_addr\":4096}]",
		"[{\"offset\":0,\"size\":\"4096\",\"base_host_virt_addr\":4096}]",
		"[{\"offset\":0,\"size\":4096.0,\"base_host_virt_addr\":4096}]",
		"[{\"offset\":0,\"size\":4096,\"base_host_virt_addr\":18446744073709547520}]",
		/* not whole pages, empty, pages of no size that there is */
		"[{\"offset\":1,\"size\":4096,\"base_host_virt_addr\":4096}]",
		"[{\"offset\":0,\"size\":4095,\"base_host_virt_addr\":4096}]",
		"[{\"offset\":0,\"size\":4096,\"base_host_virt_addr\":4097}]",
		"[{\"offset\":0,\"size\":0,\"base_host_virt_addr\":4096}]",
		"[{\"offset\":0,\"size\":4096,\"base_host_virt_addr\":4096,\"page_size\":0}]",
		"[{\"offset\":0,\"size\":4096,\"base_host_virt_addr\":4096,\"page_size\":4}]",
		"[{\"offset\":0,\"size\":8192,\"base_host_virt_addr\":8192,\"page_size\":12288}]",
		"[{\"offset\":0,\"size\":4194304,\"base_host_virt_addr\":4194304,\"page_size\":"
		"4194304}]",
		/* they overlap */
		"[{\"offset\":0,\"size\":8192,\"base_host_virt_addr\":4096},"
		"{\"offset\":8192,\"size\":4096,\"base_host_virt_addr\":8192}]",
		"[{\"offset\":0,\"size\":4096,\"base_host_virt_addr\":9223372036854775808}]",
		"[{\"offset\":00,\"size\":4096,\"base_host_virt_addr\":4096}]",
		"[{\"offset\":0,\"size\":4096,\"base_host_virt_addr\":4096,\"page_size\":null}]",
		/* no JSON */
		"[",
		"[{",
		"[{\"offset\"",
		"[{\"offset\":",
		"[{\"offset\":0",
		"[{\"x\":",
		"[{\"x\":[",
		"[{\"x\":\"",
		"[{\"x\":\"\\",
		"[{\"x\":}]",
		"[{\"offset\":0,\"size\":4096,\"base_host_virt_addr\":4096,}]",
		"[{\"offset\":0 \"size\":4096,\"base_host_virt_addr\":4096}]",
		"[{\"offset\":0,\"size\":4096,\"base_host_virt_addr\":4096},]",
		"[{\"offset\":0,\"size\":4096,\"base_host_virt_addr\":4096}",
		"[{\"x\":1 2,\"offset\":0,\"size\":4096,\"base_host_virt_addr\":4096}]",
		/* something behind it; a key twice */
		"[{\"offset\":0,\"size\":4096,\"base_host_virt_addr\":4096}]x",
		"[{\"offset\":0,\"offset\":0,\"size\":4096,\"base_host_virt_addr\":4096}]",
	};

	for (size_t i = 0; i < FERRY_ARRAY_SIZE(bad); i++) {
		struct ferry_vmm_message m = {.n_regions = 77};

		cr_expect_eq(parse(bad[i], &m), -EBADMSG, "%s", bad[i]);
		cr_expect_eq(m.n_regions, 77, "written on error: %s", bad[i]);
	}
}

Test(handler_message, as_many_regions_as_a_layout_has)
{
	for (int n = FERRY_MAX_REGIONS - 1; n <= FERRY_MAX_REGIONS + 1; n++) {
		char text[8192] = "[";
		struct ferry_vmm_message m;

		for (int i = 0; i < n; i++)
			sprintf(text + strlen(text),
				"%s{\"offset\":%d,\"size\":4096,\"base_host_virt_addr\":%d}",
				i ? "," : "", i * 4096, (i + 1) * 4096);
		strcat(text, "]");
		cr_assert_gt(strlen(text), 1024);
		cr_assert_eq(parse(text, &m), n <= FERRY_MAX_REGIONS ? 0 : -EBADMSG);
	}
}

Test(handler_message, its_end_is_found_in_a_stream)
{
	static const char text[] = "[{\"a\":\"]}\\\"]\",\"b\":[[]]}]";

	for (size_t n = 0; n < sizeof(text) - 1; n++)
		cr_assert_eq(ferry_vmm_message_end(text, n), 0, "%zu", n);
	cr_assert_eq(ferry_vmm_message_end(text, sizeof(text) - 1), sizeof(text) - 1);
	cr_assert_eq(ferry_vmm_message_end("[]xx", 4), 2);
	cr_assert_eq(ferry_vmm_message_end(" \n[]", 4), 4);
	cr_assert_eq(ferry_vmm_message_end(" \n\t", 3), 0);
	cr_assert_eq(ferry_vmm_message_end(" {", 2), -EBADMSG);
	cr_assert_eq(ferry_vmm_message_end("{}", 2), -EBADMSG);
}
