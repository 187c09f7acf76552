/* SPDX-License-Identifier: Apache-2.0 */
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>

#include "base/error.h"

Test(error, fail_notes_everything_and_returns_its_error)
{
	struct ferry_failure f = {0};

	cr_assert_eq(ferry_fail(&f, FERRY_REFUSE, -EPERM, "region %d: no", 2), -EPERM);
	cr_assert_eq(f.consequence, FERRY_REFUSE);
	cr_assert_eq(f.err, -EPERM);
	cr_assert_str_eq(f.text, "region 2: no");
}

Test(error, fail_errno_puts_the_system_text_behind)
{
	struct ferry_failure f = {0};

	cr_assert_eq(ferry_fail_errno(&f, FERRY_LINK, -ENOENT, "open %s", "x"), -ENOENT);
	cr_assert_str_eq(f.text, "open x: No such file or directory");
	cr_assert_eq(f.consequence, FERRY_LINK);
}

Test(error, nobody_has_to_listen)
{
	cr_assert_eq(ferry_fail(NULL, FERRY_LOST, -EIO, "x"), -EIO);
	cr_assert_eq(ferry_fail_errno(NULL, FERRY_LOST, -EIO, "x"), -EIO);
	ferry_fail_prefix(NULL, "x");
}

Test(error, prefixes_stack_outermost_first)
{
	struct ferry_failure f = {0};

	ferry_fail(&f, FERRY_LOST, -EIO, "innermost");
	ferry_fail_prefix(&f, "region %d", 2);
	ferry_fail_prefix(&f, "attach");
	cr_assert_str_eq(f.text, "attach: region 2: innermost");
	cr_assert_eq(f.err, -EIO);
	cr_assert_eq(f.consequence, FERRY_LOST);
}

Test(error, a_prefix_without_a_failure_does_nothing)
{
	struct ferry_failure f = {0};

	ferry_fail_prefix(&f, "attach");
	cr_assert_str_eq(f.text, "");
}

/* Texts of every length around the buffer's are cut, ended, and keep their beginning. */
Test(error, long_texts_are_cut)
{
	static char text[FERRY_FAILURE_TEXT_MAX + 8];

	for (size_t len = FERRY_FAILURE_TEXT_MAX - 8; len < sizeof(text); len++) {
		struct ferry_failure f = {0};
		size_t kept = len < sizeof(f.text) ? len : sizeof(f.text) - 1;

		memset(text, 'a', len);
		text[len] = '\0';
		ferry_fail(&f, FERRY_LOST, -EIO, "%s", text);
		cr_assert_eq(strlen(f.text), kept);
		ferry_fail_errno(&f, FERRY_LOST, -EIO, "%s", text);
		cr_assert_leq(strlen(f.text), sizeof(f.text) - 1);
		cr_assert_eq(memcmp(f.text, text, kept), 0);
		ferry_fail_prefix(&f, "outer");
		cr_assert_eq(strlen(f.text), sizeof(f.text) - 1);
		cr_assert_eq(strncmp(f.text, "outer: aaa", 10), 0);
		ferry_fail_prefix(&f, "%s", text);
		cr_assert_eq(memcmp(f.text, text, kept), 0);
		cr_assert_leq(strlen(f.text), sizeof(f.text) - 1);
	}
}

Test(error, consequences_have_names)
{
	static const char *const names[] = {"ok", "retry", "benign", "link", "refuse", "lost"};

	for (unsigned int c = FERRY_OK; c <= FERRY_LOST; c++)
		cr_assert_str_eq(ferry_consequence_name(c), names[c]);
	cr_assert_str_eq(ferry_consequence_name((enum ferry_consequence)99), "unknown");
}
