/* SPDX-License-Identifier: Apache-2.0 */
/* Behaves as the environment variable SAMPLE says: what run_criterion.py judges run-criterion by.
 */
#include <criterion/criterion.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool is(const char *what)
{
	const char *sample = getenv("SAMPLE");

	return sample && !strcmp(sample, what);
}

Test(sample, first)
{
	if (is("fail"))
		cr_assert(false, "as asked for");
	if (is("crash"))
		raise(SIGKILL);
	if (is("exit"))
		exit(3);
	if (is("skip") || is("skip-all"))
		cr_skip_test("no such device here");
	if (is("skip-silently"))
		cr_skip_test();
	if (is("address-report"))
		fprintf(stderr, "==1==ERROR: AddressSanitizer: heap-use-after-free\n");
	if (is("leak-report"))
		fprintf(stderr, "==1==ERROR: LeakSanitizer: detected memory leaks\n");
	if (is("undefined-report"))
		fprintf(stderr, "a.c:1:2: runtime error: signed integer overflow\n");
	if (is("thread-report"))
		fprintf(stderr, "WARNING: ThreadSanitizer: data race (pid=1)\n");
}

Test(sample, second)
{
	if (is("skip-all"))
		cr_skip_test("nor this one");
}
