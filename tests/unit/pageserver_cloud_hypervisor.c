/* SPDX-License-Identifier: Apache-2.0 */
/* What passes between a Cloud Hypervisor target and us. */
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>

#include "pageserver/cloud_hypervisor_wire.h"

#define PAGE 4096u
#define GIB  (1ull << 30)

static const struct ferry_cloudhv_range ranges[] = {
	{.start = {4 * GIB}, .bytes = 2 * GIB},
	{.start = {0}, .bytes = 100 * PAGE},
	{.start = {0xfffffffffffff000}, .bytes = PAGE},
};

static int find(uint64_t gpa, uint64_t bytes, struct ferry_run *run)
{
	struct ferry_cloudhv_range asked = {.start = {gpa}, .bytes = bytes};
	struct ferry_failure f = {0};
	int rc = ferry_cloudhv_find(ranges, 3, &asked, run, &f);

	cr_assert_eq(rc < 0, f.err != 0);
	return rc;
}

static void expect_run(uint64_t gpa, uint64_t bytes, uint32_t region, uint64_t first, uint32_t n)
{
	struct ferry_run run = {0};

	cr_assert_eq(find(gpa, bytes, &run), 0);
	cr_assert_eq(run.region, region);
	cr_assert_eq(run.first_page, first);
	cr_assert_eq(run.n_pages, n);
}

Test(cloud_hypervisor, headers_are_little_endian)
{
	static const uint8_t start[16] = {1}, answer[16] = {1, 0, 0, 0, 0, 0, 0, 0, 0, 0x10};
	static const uint8_t fault[16] = {9, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 16};
	struct ferry_cloudhv_header h = {.kind = FERRY_CLOUDHV_START, .version = 0};
	uint8_t bytes[16], role[2];

	ferry_cloudhv_encode(&h, bytes);
	cr_assert(!memcmp(bytes, start, 16));
	ferry_cloudhv_encode(
		&(struct ferry_cloudhv_header){.kind = FERRY_CLOUDHV_OK, .length = PAGE}, bytes);
	cr_assert(!memcmp(bytes, answer, 16));
	ferry_cloudhv_decode(fault, &h);
	cr_assert_eq(h.kind, FERRY_CLOUDHV_PAGE_FAULT);
	cr_assert_eq(h.length, 16);
	ferry_cloudhv_encode_role(FERRY_CLOUDHV_ROLE_FAULTS, role);
	cr_assert(role[0] == 2 && role[1] == 0);
}

Test(cloud_hypervisor, answers_are_ok_and_nothing_else)
{
	static const struct {
		struct ferry_cloudhv_header h;
		int rc;
	} all[] = {
		{{.kind = 1}, 0},
		{{.kind = 1, .version = 7}, 0}, /* padding */
		{{.kind = 2}, -ECONNREFUSED},
		{{.kind = 2, .length = 5}, -ECONNREFUSED},
		{{.kind = 0}, -EPROTO},
		{{.kind = 3}, -EPROTO},
		{{.kind = 1, .length = 1}, -EPROTO},
	};
	struct ferry_failure f;

	for (size_t i = 0; i < FERRY_ARRAY_SIZE(all); i++)
		cr_assert_eq(ferry_cloudhv_check_answer(&all[i].h, "x", &f), all[i].rc, "%zu", i);
}

Test(cloud_hypervisor, requests_are_for_pages)
{
	static const struct {
		struct ferry_cloudhv_header h;
		int rc;
	} all[] = {
		{{.kind = 9, .length = 16}, 0},
		{{.kind = 6}, 0},
		{{.kind = 9, .length = 15}, -EBADMSG},
		{{.kind = 9, .length = 17}, -EBADMSG},
		{{.kind = 9}, -EBADMSG},
		{{.kind = 6, .length = 1}, -EBADMSG},
		{{.kind = 4, .length = 16}, -EBADMSG},
		{{.kind = 0xff09, .length = 16}, -EBADMSG},
	};
	struct ferry_failure f;

	for (size_t i = 0; i < FERRY_ARRAY_SIZE(all); i++)
		cr_assert_eq(ferry_cloudhv_check_request(&all[i].h, &f), all[i].rc, "%zu", i);
}

Test(cloud_hypervisor, pages_are_found_where_they_are)
{
	expect_run(0, PAGE, 1, 0, 1);
	expect_run(99 * PAGE, PAGE, 1, 99, 1);
	expect_run(0, 100 * PAGE, 1, 0, 100);
	expect_run(4 * GIB, GIB, 0, 0, 1u << 18);
	expect_run(5 * GIB, GIB, 0, 1u << 18, 1u << 18);
	expect_run(0xfffffffffffff000, PAGE, 2, 0, 1);
}

Test(cloud_hypervisor, what_is_not_there_is_not_found)
{
	static const struct ferry_cloudhv_range all[] = {
		{{100 * PAGE}, PAGE},
		{{99 * PAGE}, 2 * PAGE},
		{{0}, 101 * PAGE},
		{{4 * GIB - PAGE}, PAGE},
		{{4 * GIB - PAGE}, 2 * PAGE},
		{{6 * GIB}, PAGE},
		{{6 * GIB - PAGE}, 2 * PAGE},
		{{0xfffffffffffff000}, 2 * PAGE},
		{{0}, 0},
		{{0}, 1},
		{{0}, PAGE + 1},
		{{1}, PAGE},
		{{4 * GIB}, GIB + PAGE},
		{{4 * GIB}, UINT64_MAX & ~(PAGE - 1ull)},
	};
	struct ferry_run run;

	for (size_t i = 0; i < FERRY_ARRAY_SIZE(all); i++)
		cr_assert_eq(find(all[i].start.v, all[i].bytes, &run), -EBADMSG, "%zu", i);
}
