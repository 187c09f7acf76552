/* SPDX-License-Identifier: Apache-2.0 */
#include "handler/cloud_snapshot.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/cleanup.h"

/* Some of its numbers have 64 bits, which no integer here has; no address has more bits than a real
 * number is exact with. */
#define LOAD_FLAGS (JSON_DECODE_INT_AS_REAL | JSON_REJECT_DUPLICATES)
#define EXACT_MAX  ((double)(1ull << 53))

static void json_freep(json_t **o)
{
	json_decref(*o);
}

#define _cleanup_json_ _cleanup_(json_freep)

/* --- what the texts say ----------------------------------------------------------------------- */

static int bad(struct ferry_failure *f, const char *what)
{
	return ferry_fail(f, FERRY_REFUSE, -EBADMSG,
			  "%s; is this a snapshot of Cloud Hypervisor 53 or later?", what);
}

static int load(const char *text, size_t flags, const char *name, json_t **out,
		struct ferry_failure *f)
{
	json_error_t e;

	*out = json_loads(text, flags, &e);
	if (!json_is_object(*out))
		return ferry_fail(f, FERRY_REFUSE, -EBADMSG, "%s is no JSON object%s%.200s", name,
				  *out ? "" : ": ", *out ? "" : e.text);
	return 0;
}

/* The state of one node of the tree: text, or NULL. */
static const char *state_text(const json_t *node)
{
	return json_string_value(json_object_get(json_object_get(node, "snapshot_data"), "state"));
}

static bool number(const json_t *o, const char *key, uint64_t *out)
{
	const json_t *value = json_object_get(o, key);
	double v = json_real_value(value);

	if (!json_is_real(value) || !(v >= 0 && v <= EXACT_MAX) || v != (double)(uint64_t)v)
		return false;
	*out = (uint64_t)v;
	return true;
}

static bool overlaps(const struct ferry_cloudhv_range *a, const struct ferry_cloudhv_range *b)
{
	return a->start.v < b->start.v + b->bytes && b->start.v < a->start.v + a->bytes;
}

static int take_range(const json_t *json, struct ferry_cloud_snapshot *s, struct ferry_failure *f)
{
	struct ferry_cloudhv_range *r = &s->ranges[s->n_ranges];

	if (!number(json, "gpa", &r->start.v) || !number(json, "length", &r->bytes))
		return bad(f, "state.json: a range of memory has no gpa or length");
	if (!r->bytes || (r->start.v | r->bytes) % FERRY_CLOUDHV_PAGE_BYTES)
		return bad(f, "state.json: a range of memory has no whole pages");
	for (uint32_t i = 0; i < s->n_ranges; i++)
		if (overlaps(&s->ranges[i], r))
			return bad(f, "state.json: ranges of memory overlap");
	s->n_ranges++;
	return 0;
}

static int take_ranges(const json_t *memory, struct ferry_cloud_snapshot *s,
		       struct ferry_failure *f)
{
	const json_t *data = json_object_get(json_object_get(memory, "memory_ranges"), "data");
	size_t n = json_array_size(data);

	if (!json_is_array(data) || n > FERRY_MAX_REGIONS)
		return ferry_fail(f, FERRY_REFUSE, -EBADMSG,
				  "state.json: %zu ranges of memory; up to %d are possible", n,
				  FERRY_MAX_REGIONS);
	for (size_t i = 0; i < n; i++) {
		int rc = take_range(json_array_get(data, i), s, f);

		if (rc < 0)
			return rc;
	}
	return 0;
}

static bool is_covered(const struct ferry_cloud_snapshot *s, const struct ferry_cloudhv_range *r)
{
	for (uint32_t i = 0; i < s->n_ranges; i++)
		if (r->start.v >= s->ranges[i].start.v &&
		    r->start.v + r->bytes <= s->ranges[i].start.v + s->ranges[i].bytes)
			return true;
	return false;
}

/* The target asks for all memory that the VM has: is that what the snapshot has? */
static int check_mappings(const json_t *memory, const struct ferry_cloud_snapshot *s,
			  struct ferry_failure *f)
{
	const json_t *mappings = json_object_get(memory, "guest_ram_mappings"), *m;
	size_t i;

	if (!json_array_size(mappings))
		return bad(f, "state.json: the memory manager names no memory");
	json_array_foreach(mappings, i, m)
	{
		struct ferry_cloudhv_range r;

		if (!number(m, "gpa", &r.start.v) || !number(m, "size", &r.bytes))
			return bad(f, "state.json: a mapping has no gpa or size");
		if (json_is_true(json_object_get(m, "virtio_mem")))
			return ferry_fail(
				f, FERRY_REFUSE, -ENOTSUP,
				"the VM has memory that is hot-plugged by virtio-mem, which "
				"can't be restored in post-copy");
		if (!is_covered(s, &r))
			return ferry_fail(
				f, FERRY_REFUSE, -ENOTSUP,
				"the memory at %#llx is not in the snapshot: it is shared "
				"through a file of its own",
				(unsigned long long)r.start.v);
	}
	return 0;
}

static bool has_prefault(const json_t *memory)
{
	const json_t *zones = json_object_get(memory, "zones"), *zone;
	size_t i;

	json_array_foreach(zones, i,
			   zone) if (json_is_true(json_object_get(zone, "prefault"))) return true;
	return json_is_true(json_object_get(memory, "prefault"));
}

static int check_config(const char *config, struct ferry_failure *f)
{
	_cleanup_json_ json_t *o = NULL;
	int rc = load(config, LOAD_FLAGS, "config.json", &o, f);

	if (rc < 0)
		return rc;
	if (!json_is_object(json_object_get(o, "memory")))
		return bad(f, "config.json: there is no memory in it");
	if (has_prefault(json_object_get(o, "memory")))
		return ferry_fail(f, FERRY_REFUSE, -ENOTSUP,
				  "the VM's memory is populated at its start, which no target in "
				  "post-copy takes; set prefault to false in config.json");
	return 0;
}

/* What hosts have in common, as text; NULL where there is none (not on x86). */
static int take_cpuid(const char *vm_state, char **out, struct ferry_failure *f)
{
	_cleanup_json_ json_t *o = NULL;
	const json_t *cpuid;
	int rc = load(vm_state, 0, "state.json: the VM's own state", &o, f);

	if (rc < 0)
		return rc;
	cpuid = json_object_get(o, "common_cpuid");
	*out = cpuid ? json_dumps(cpuid, JSON_COMPACT | JSON_ENCODE_ANY) : NULL;
	return cpuid && !*out ? ferry_fail_errno(f, FERRY_REFUSE, -ENOMEM, "state.json") : 0;
}

/* VmMigrationConfig. The mode is what versions after 53 go by; 53 passes it over. */
static int make_config(const char *config, const char *vm_state, const char *memory,
		       struct ferry_cloud_snapshot *out, struct ferry_failure *f)
{
	_cleanup_free_ char *cpuid = NULL;
	int rc = take_cpuid(vm_state, &cpuid, f);

	if (rc < 0)
		return rc;
	if (asprintf(&out->vm_config,
		     "{\"vm_config\":%s%s%s,\"memory_manager_data\":%s,\"memory_mode\":"
		     "\"Postcopy\"}",
		     config, cpuid ? ",\"common_cpuid\":" : "", cpuid ? cpuid : "", memory) < 0)
		return ferry_fail_errno(f, FERRY_REFUSE, -ENOMEM, "config.json");
	return 0;
}

static int take_memory(const char *text, struct ferry_cloud_snapshot *s, struct ferry_failure *f)
{
	_cleanup_json_ json_t *memory = NULL;
	int rc = load(text, LOAD_FLAGS, "state.json: the memory manager's state", &memory, f);

	if (!rc)
		rc = take_ranges(memory, s, f);
	return rc < 0 ? rc : check_mappings(memory, s, f);
}

int ferry_cloud_snapshot_parse(const char *config, const char *state,
			       struct ferry_cloud_snapshot *out, struct ferry_failure *f)
{
	struct ferry_cloud_snapshot s = {0};
	_cleanup_json_ json_t *tree = NULL;
	const char *own, *memory;
	int rc = check_config(config, f);

	if (!rc)
		rc = load(state, LOAD_FLAGS, "state.json", &tree, f);
	if (rc < 0)
		return rc;
	own = state_text(tree);
	memory = state_text(json_object_get(json_object_get(tree, "snapshots"), "memory-manager"));
	if (!own || !memory)
		return bad(f, "state.json: the state of the VM or of its memory is missing");
	rc = take_memory(memory, &s, f);
	if (!rc)
		rc = make_config(config, own, memory, &s, f);
	if (rc < 0)
		return rc;
	out->n_ranges = s.n_ranges;
	memcpy(out->ranges, s.ranges, sizeof(s.ranges));
	out->vm_config = s.vm_config;
	return 0;
}

/* --- the files -------------------------------------------------------------------------------- */

static int open_file(const char *folder, const char *name, struct stat *st, struct ferry_failure *f)
{
	_cleanup_free_ char *path = NULL;
	int fd;

	if (asprintf(&path, "%s/%s", folder, name) < 0)
		return ferry_fail_errno(f, FERRY_REFUSE, -ENOMEM, "%s", name);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return ferry_fail_errno(f, FERRY_REFUSE, -errno, "%s", path);
	if (fstat(fd, st) < 0 || !S_ISREG(st->st_mode)) {
		ferry_close(fd);
		return ferry_fail(f, FERRY_REFUSE, -EINVAL, "%s is no file", path);
	}
	return fd;
}

static int read_text(const char *folder, const char *name, char **out, struct ferry_failure *f)
{
	struct stat st;
	_cleanup_close_ int fd = open_file(folder, name, &st, f);
	_cleanup_free_ char *text = NULL;
	ssize_t n;

	if (fd < 0)
		return fd;
	if (st.st_size > FERRY_CLOUD_SNAPSHOT_MAX)
		return ferry_fail(f, FERRY_REFUSE, -EFBIG, "%s has more than %u bytes", name,
				  FERRY_CLOUD_SNAPSHOT_MAX);
	text = calloc(1, (size_t)st.st_size + 1);
	if (!text)
		return ferry_fail_errno(f, FERRY_REFUSE, -ENOMEM, "%s", name);
	n = read(fd, text, (size_t)st.st_size);
	if (n != st.st_size)
		return ferry_fail_errno(f, FERRY_REFUSE, n < 0 ? -errno : -EIO, "%s", name);
	if (strlen(text) != (size_t)n)
		return ferry_fail(f, FERRY_REFUSE, -EBADMSG, "%s is no text: it has a byte of 0", name);
	*out = TAKE_PTR(text);
	return 0;
}

static int open_sources(struct ferry_cloud_snapshot *s, const char *folder, struct ferry_failure *f)
{
	struct stat st;
	_cleanup_close_ int fd = open_file(folder, "memory-ranges", &st, f);
	uint64_t offset = 0, total = 0;

	if (fd < 0)
		return fd;
	for (uint32_t i = 0; i < s->n_ranges; i++)
		total += s->ranges[i].bytes;
	if (total != (uint64_t)st.st_size)
		return ferry_fail(
			f, FERRY_REFUSE, -EINVAL,
			"memory-ranges has %lld bytes, and by state.json it ought to have "
			"%llu: the snapshot is not whole",
			(long long)st.st_size, (unsigned long long)total);
	for (uint32_t i = 0; i < s->n_ranges; i++) {
		char name[FERRY_MAX_REGION_NAME];
		int rc, own = fcntl(fd, F_DUPFD_CLOEXEC, 0);

		if (own < 0)
			return ferry_fail_errno(f, FERRY_REFUSE, -errno, "memory-ranges");
		snprintf(name, sizeof(name), "%#llx", (unsigned long long)s->ranges[i].start.v);
		rc = ferry_source_open_fd(&s->sources[i], name, own, offset, s->ranges[i].bytes,
					  FERRY_CLOUDHV_PAGE_BYTES, f);
		if (rc < 0) {
			ferry_fail_prefix(f, "memory-ranges");
			return rc;
		}
		offset += s->ranges[i].bytes;
	}
	return 0;
}

int ferry_cloud_snapshot_open(struct ferry_cloud_snapshot *out, const char *folder,
			      struct ferry_failure *f)
{
	_cleanup_free_ char *config = NULL;
	int rc;

	*out = (struct ferry_cloud_snapshot){0};
	rc = read_text(folder, "config.json", &config, f);
	if (!rc)
		rc = read_text(folder, "state.json", &out->vm_state, f);
	if (!rc)
		rc = ferry_cloud_snapshot_parse(config, out->vm_state, out, f);
	return rc < 0 ? rc : open_sources(out, folder, f);
}

void ferry_cloud_snapshot_close(struct ferry_cloud_snapshot *s)
{
	for (uint32_t i = 0; i < s->n_ranges; i++)
		ferry_source_free(s->sources[i]);
	free(s->vm_config);
	free(s->vm_state);
}
