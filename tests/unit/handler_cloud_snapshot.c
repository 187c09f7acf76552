/* SPDX-License-Identifier: Apache-2.0 */
/* What the texts of a Cloud Hypervisor snapshot say. */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "handler/cloud_snapshot.h"

#define CONFIG		   "{\"memory\":{\"size\":12288}}"
#define VM		   "{\\\"clock\\\":null,\\\"common_cpuid\\\":[{\\\"eax\\\":4294967295}]}"
#define RANGE(gpa, length) "{\\\"gpa\\\":" gpa ",\\\"length\\\":" length "}"
#define MAPPING(gpa, size)                                                                         \
	"{\\\"slot\\\":0,\\\"gpa\\\":" gpa ",\\\"size\\\":" size ",\\\"virtio_mem\\\":false}"
#define MEMORY(ranges, mappings)                                                                   \
	"{\\\"memory_ranges\\\":{\\\"data\\\":[" ranges "]},\\\"guest_ram_mappings\\\":[" mappings \
	"],\\\"arch_mem_regions\\\":[{\\\"size\\\":18446744073709551615}]}"

static int parse(const char *config, const char *vm, const char *memory,
		 struct ferry_cloud_snapshot *s)
{
	_cleanup_free_ char *state = NULL;
	struct ferry_failure f = {0};
	int rc;

	*s = (struct ferry_cloud_snapshot){0};
	cr_assert_geq(
		asprintf(&state,
			 "{\"snapshots\":{\"memory-manager\":{\"snapshots\":{},\"snapshot_data\":"
			 "{\"state\":\"%s\"}}},\"snapshot_data\":{\"state\":\"%s\"}}",
			 memory, vm),
		0);
	rc = ferry_cloud_snapshot_parse(config, state, s, &f);
	cr_assert_eq(rc < 0, f.err != 0);
	cr_assert(!rc || (f.text[0] && !s->vm_config && !s->n_ranges));
	return rc;
}

Test(cloud_snapshot, ranges_and_configuration_are_taken)
{
	struct ferry_cloud_snapshot s;

	cr_assert_eq(parse(CONFIG, VM,
			   MEMORY(RANGE("4294967296", "8192") "," RANGE("0", "4096"),
				  MAPPING("0", "4096") "," MAPPING("4294967296", "8192")),
			   &s),
		     0);
	cr_assert_eq(s.n_ranges, 2);
	cr_assert_eq(s.ranges[0].start.v, 1ull << 32);
	cr_assert_eq(s.ranges[0].bytes, 8192);
	cr_assert_eq(s.ranges[1].start.v, 0);
	cr_assert_str_eq(
		s.vm_config,
		"{\"vm_config\":{\"memory\":{\"size\":12288}},\"common_cpuid\":[{\"eax\":"
		"4294967295}],"
		"\"memory_manager_data\":{\"memory_ranges\":{\"data\":[{\"gpa\":4294967296,"
		"\"length\":8192},{\"gpa\":0,\"length\":4096}]},\"guest_ram_mappings\":[{\"slot\":"
		"0,"
		"\"gpa\":0,\"size\":4096,\"virtio_mem\":false},{\"slot\":0,\"gpa\":4294967296,"
		"\"size\":8192,\"virtio_mem\":false}],\"arch_mem_regions\":[{\"size\":"
		"18446744073709551615}]},\"memory_mode\":\"Postcopy\"}");
	ferry_cloud_snapshot_close(&s);
}

Test(cloud_snapshot, other_processors_have_no_cpuid)
{
	struct ferry_cloud_snapshot s;

	cr_assert_eq(parse(CONFIG, "{}", MEMORY(RANGE("0", "4096"), MAPPING("0", "4096")), &s), 0);
	cr_assert(!strstr(s.vm_config, "cpuid"));
	ferry_cloud_snapshot_close(&s);
}

Test(cloud_snapshot, what_makes_no_sense_is_refused)
{
	static const struct {
		const char *config, *vm, *memory;
		int rc;
	} all[] = {
		{"", VM, MEMORY(RANGE("0", "4096"), MAPPING("0", "4096")), -EBADMSG},
		{"[]", VM, MEMORY(RANGE("0", "4096"), MAPPING("0", "4096")), -EBADMSG},
		{"{}", VM, MEMORY(RANGE("0", "4096"), MAPPING("0", "4096")), -EBADMSG},
		{"{\"memory\":{\"prefault\":true}}", VM,
		 MEMORY(RANGE("0", "4096"), MAPPING("0", "4096")), -ENOTSUP},
		{CONFIG, "[]", MEMORY(RANGE("0", "4096"), MAPPING("0", "4096")), -EBADMSG},
		{CONFIG, "{", MEMORY(RANGE("0", "4096"), MAPPING("0", "4096")), -EBADMSG},
		{CONFIG, VM, "", -EBADMSG},
		{CONFIG, VM, "{}", -EBADMSG},
		{CONFIG, VM, MEMORY(RANGE("0", "4096"), ""), -EBADMSG},
		{CONFIG, VM, MEMORY("", MAPPING("0", "4096")), -ENOTSUP},
		{CONFIG, VM, MEMORY(RANGE("0", "4096"), MAPPING("0", "8192")), -ENOTSUP},
		{CONFIG, VM, MEMORY(RANGE("4096", "4096"), MAPPING("0", "4096")), -ENOTSUP},
		{CONFIG, VM, MEMORY(RANGE("0", "4097"), MAPPING("0", "4096")), -EBADMSG},
		{CONFIG, VM, MEMORY(RANGE("1", "4096"), MAPPING("0", "4096")), -EBADMSG},
		{CONFIG, VM, MEMORY(RANGE("0", "0"), MAPPING("0", "4096")), -EBADMSG},
		{CONFIG, VM, MEMORY(RANGE("0", "-4096"), MAPPING("0", "4096")), -EBADMSG},
		{CONFIG, VM, MEMORY(RANGE("0", "4096.5"), MAPPING("0", "4096")), -EBADMSG},
		{CONFIG, VM, MEMORY(RANGE("0", "18446744073709551615"), MAPPING("0", "4096")),
		 -EBADMSG},
		{CONFIG, VM, MEMORY(RANGE("0", "\\\"4096\\\""), MAPPING("0", "4096")), -EBADMSG},
		{CONFIG, VM,
		 MEMORY(RANGE("0", "8192") "," RANGE("4096", "8192"), MAPPING("0", "4096")),
		 -EBADMSG},
	};
	struct ferry_cloud_snapshot s;

	for (size_t i = 0; i < FERRY_ARRAY_SIZE(all); i++)
		cr_assert_eq(parse(all[i].config, all[i].vm, all[i].memory, &s), all[i].rc, "%zu",
			     i);
}

Test(cloud_snapshot, there_is_a_limit_of_ranges)
{
	for (uint64_t n = FERRY_MAX_REGIONS - 1; n <= FERRY_MAX_REGIONS + 1; n++) {
		struct ferry_cloud_snapshot s;
		char memory[8192] = "{\\\"memory_ranges\\\":{\\\"data\\\":[";
		size_t len = strlen(memory);

		for (uint64_t i = 0; i < n; i++)
			len += (size_t)snprintf(memory + len, sizeof(memory) - len,
						"%s" RANGE("%llu", "4096"), i ? "," : "",
						(unsigned long long)(i * 4096));
		snprintf(memory + len, sizeof(memory) - len,
			 "]},\\\"guest_ram_mappings\\\":[" MAPPING("0", "4096") "]}");
		cr_assert_eq(parse(CONFIG, VM, memory, &s), n > FERRY_MAX_REGIONS ? -EBADMSG : 0);
		free(s.vm_config);
	}
}
