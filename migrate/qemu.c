/* SPDX-License-Identifier: Apache-2.0 */
#include "migrate/qemu.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/util.h"
#include "migrate/qemu_ram.h"

#define DEFER		"start it with -incoming defer"
#define CONT_TIMEOUT_MS 60000
#define CONT_ATTEMPTS	3

int ferry_qemu_status(struct ferry_qmp *qmp, char out[FERRY_QMP_TEXT_MAX], struct ferry_failure *f)
{
	const char *status;
	json_t *ret;
	int rc = ferry_qmp_execute(qmp, "query-status", NULL, &ret, f);

	if (rc < 0)
		return rc;
	status = json_string_value(json_object_get(ret, "status"));
	snprintf(out, FERRY_QMP_TEXT_MAX, "%s", status ? status : "unknown");
	json_decref(ret);
	return 0;
}

int ferry_qemu_cont(struct ferry_qmp *qmp, struct ferry_failure *f)
{
	int rc = -EAGAIN;

	for (int i = 0; i < CONT_ATTEMPTS && rc < 0; i++) {
		rc = ferry_qmp_execute_within(qmp, CONT_TIMEOUT_MS, "cont", NULL, NULL, f);
		if (rc == -EREMOTEIO || rc == -ETIMEDOUT || rc == -ECONNRESET)
			break;
	}
	return rc;
}

/* --- who it is ------------------------------------------------------------------------------ */

static bool has_thread(pid_t pid, pid_t tid)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/task/%d", (int)pid, (int)tid);
	return !access(path, F_OK);
}

/* The process that a thread belongs to, 0 when it can't be told. */
static pid_t process_of(pid_t tid)
{
	_cleanup_fclose_ FILE *file = NULL;
	char line[256];
	int tgid = 0;

	snprintf(line, sizeof(line), "/proc/%d/status", (int)tid);
	file = fopen(line, "re");
	while (file && fgets(line, sizeof(line), file)) {
		if (sscanf(line, "Tgid: %d", &tgid) == 1)
			break;
	}
	return tgid;
}

/*
 * The process at the other end of the socket is QEMU, unless QEMU was given the socket by whoever
 * started it. The threads of the vCPUs are QEMU's own.
 */
static int find_process(struct ferry_qemu *q, struct ferry_failure *f)
{
	pid_t peer = ferry_qmp_peer_pid(q->qmp), tid;
	json_t *ret;
	int rc = ferry_qmp_execute(q->qmp, "query-cpus-fast", NULL, &ret, f);

	if (rc < 0)
		return rc;
	tid = (pid_t)json_integer_value(json_object_get(json_array_get(ret, 0), "thread-id"));
	json_decref(ret);
	q->pid = peer > 0 && has_thread(peer, tid) ? peer : process_of(tid);
	if (q->pid <= 0 || q->pid == getpid())
		return ferry_fail(
			f, FERRY_REFUSE, -ESRCH,
			"the process of this QEMU is not visible from here; run pageferry "
			"on the same host and in the same PID namespace as QEMU");
	return 0;
}

static int get_string(struct ferry_qemu *q, const char *command, json_t *args, const char *key,
		      char out[FERRY_MAX_REGION_NAME], struct ferry_failure *f)
{
	const char *text;
	json_t *ret;
	int rc = ferry_qmp_execute(q->qmp, command, args, &ret, f);

	if (rc < 0)
		return rc;
	text = json_string_value(key ? json_object_get(ret, key) : ret);
	snprintf(out, FERRY_MAX_REGION_NAME, "%.*s", FERRY_MAX_REGION_NAME - 1, text ? text : "");
	json_decref(ret);
	return 0;
}

static int find_identity(struct ferry_qemu *q, struct ferry_failure *f)
{
	int rc = find_process(q, f);

	if (rc < 0)
		return rc;
	snprintf(q->version, sizeof(q->version), "%s", ferry_qmp_version(q->qmp));
	rc = get_string(q, "query-name", NULL, "name", q->name, f);
	if (rc < 0)
		return rc;
	if (!q->name[0])
		snprintf(q->name, sizeof(q->name), "pid %d", (int)q->pid);
	return get_string(q, "qom-get",
			  FERRY_QMP_ARGS("{s:s, s:s}", "path", "/machine", "property", "type"),
			  NULL, q->machine, f);
}

/* --- what can't be moved -------------------------------------------------------------------- */

struct unfit {
	const char *part; /* of the device's type */
	const char *why;
};

/* Devices whose state, or whose way to the guest's memory, is outside QEMU. */
static const struct unfit unfit_devices[] = {
	{"vfio", "it is passed through from the host and reaches the guest's RAM past QEMU"},
	{"vdpa", "it reaches the guest's RAM past QEMU"},
	{"vhost-user", "another process serves it, which reaches the guest's RAM past QEMU"},
	{"ivshmem", "its memory is shared with others and would not travel"},
	{"sgx-epc", "its memory can't be read from outside"},
};

static int check_device(const char *name, const char *type, struct ferry_failure *f)
{
	for (size_t i = 0; i < FERRY_ARRAY_SIZE(unfit_devices); i++) {
		if (strstr(type, unfit_devices[i].part))
			return ferry_fail(
				f, FERRY_REFUSE, -EOPNOTSUPP,
				"the device '%s' (%s) can't be moved: %s; remove it from both "
				"QEMUs (device_del %s) first",
				name, type, unfit_devices[i].why, name);
	}
	return 0;
}

static int check_devices_in(struct ferry_qemu *q, const char *path, struct ferry_failure *f)
{
	json_t *ret, *e;
	size_t i;
	int rc = ferry_qmp_execute(q->qmp, "qom-list", FERRY_QMP_ARGS("{s:s}", "path", path), &ret,
				   f);

	if (rc < 0)
		return rc;
	json_array_foreach(ret, i, e)
	{
		const char *name = json_string_value(json_object_get(e, "name"));
		const char *type = json_string_value(json_object_get(e, "type"));
		char bare[FERRY_QMP_TEXT_MAX];

		/* "child<virtio-net-pci>"; anything else is a property. */
		if (!rc && name && type && sscanf(type, "child<%200[^>]", bare) == 1)
			rc = check_device(name, bare, f);
	}
	json_decref(ret);
	return rc;
}

/* The device's type does not tell how its network end is served. */
static int check_network(struct ferry_qemu *q, struct ferry_failure *f)
{
	static const char *const unfit[] = {"vhost-user", "vhost-vdpa"};
	_cleanup_free_ char *text = NULL;
	int rc = ferry_qmp_human(q->qmp, "info network", &text, f);

	for (size_t i = 0; !rc && i < FERRY_ARRAY_SIZE(unfit); i++) {
		char key[32];

		snprintf(key, sizeof(key), "type=%s", unfit[i]);
		if (strstr(text, key))
			rc = ferry_fail(
				f, FERRY_REFUSE, -EOPNOTSUPP,
				"a network device is served by %s, which reaches the guest's "
				"RAM past QEMU; use a tap device with vhost=on or off instead",
				unfit[i]);
	}
	return rc;
}

/* Encrypted guests; machines without such a property have none. */
static int check_confidential(struct ferry_qemu *q, struct ferry_failure *f)
{
	char link[FERRY_MAX_REGION_NAME];
	int rc = get_string(q, "qom-get",
			    FERRY_QMP_ARGS("{s:s, s:s}", "path", "/machine", "property",
					   "confidential-guest-support"),
			    NULL, link, f);

	if (rc == -EREMOTEIO)
		return 0;
	if (!rc && link[0])
		return ferry_fail(f, FERRY_REFUSE, -EOPNOTSUPP,
				  "the guest's memory is encrypted (%s) and can't be read from "
				  "outside; it can't be moved by Pageferry",
				  link);
	return rc;
}

static bool is_under_way(const char *status)
{
	static const char *const idle[] = {"none", "completed", "failed", "cancelled"};

	for (size_t i = 0; i < FERRY_ARRAY_SIZE(idle); i++) {
		if (!strcmp(status, idle[i]))
			return false;
	}
	return true;
}

/* @incoming: of a target, where anything but "none" means that it has been used. */
static int check_migration(struct ferry_qemu *q, bool incoming, struct ferry_failure *f)
{
	const char *status, *reason;
	json_t *ret;
	int rc = ferry_qmp_execute(q->qmp, "query-migrate", NULL, &ret, f);

	if (rc < 0)
		return rc;
	status = json_string_value(json_object_get(ret, "status"));
	reason = json_string_value(json_array_get(json_object_get(ret, "blocked-reasons"), 0));
	if (reason)
		rc = ferry_fail(f, FERRY_REFUSE, -EOPNOTSUPP,
				"QEMU says that this guest can't be moved: %.200s", reason);
	else if (incoming &&
		 (json_object_get(ret, "socket-address") || (status && strcmp(status, "none"))))
		rc = ferry_fail(f, FERRY_REFUSE, -EBUSY,
				"this QEMU waits for another migration already; " DEFER);
	else if (status && is_under_way(status))
		rc = ferry_fail(
			f, FERRY_REFUSE, -EBUSY,
			"a migration of this guest is under way (%.40s); wait for its end, or "
			"end it with migrate_cancel",
			status);
	json_decref(ret);
	return rc;
}

static int check_devices(struct ferry_qemu *q, struct ferry_failure *f)
{
	int rc = check_devices_in(q, "/machine/peripheral", f);

	if (!rc)
		rc = check_devices_in(q, "/machine/peripheral-anon", f);
	if (!rc)
		rc = check_network(q, f);
	if (!rc)
		rc = check_confidential(q, f);
	return rc;
}

/* --- the whole ------------------------------------------------------------------------------ */

static int check_source_status(struct ferry_qemu *q, struct ferry_failure *f)
{
	char status[FERRY_QMP_TEXT_MAX];
	int rc = ferry_qemu_status(q->qmp, status, f);

	if (rc < 0)
		return rc;
	q->runs = !strcmp(status, "running");
	if (q->runs || !strcmp(status, "paused") || !strcmp(status, "prelaunch"))
		return 0;
	if (!strcmp(status, "inmigrate"))
		return ferry_fail(
			f, FERRY_REFUSE, -EINVAL,
			"this QEMU waits for a guest, it has none to give; use its socket "
			"with 'pageferry receive'");
	if (!strcmp(status, "postmigrate"))
		return ferry_fail(
			f, FERRY_REFUSE, -EINVAL,
			"this guest was moved away, or a move of it was cut off; only if it "
			"runs nowhere else: resume it by 'cont' in the monitor, then try "
			"again");
	if (!strcmp(status, "suspended"))
		return ferry_fail(f, FERRY_REFUSE, -EINVAL,
				  "the guest sleeps; wake it (system_wakeup) and try again");
	return ferry_fail(
		f, FERRY_REFUSE, -EINVAL,
		"the guest is in state '%s'; only one that runs or is paused can be moved", status);
}

static int check_target_status(struct ferry_qemu *q, struct ferry_failure *f)
{
	char status[FERRY_QMP_TEXT_MAX];
	int rc = ferry_qemu_status(q->qmp, status, f);

	if (rc < 0 || !strcmp(status, "inmigrate"))
		return rc;
	return ferry_fail(f, FERRY_REFUSE, -EINVAL,
			  "this QEMU is in state '%s' and does not wait for a guest; " DEFER,
			  status);
}

static int check_orphan_status(struct ferry_qemu *q, struct ferry_failure *f)
{
	char status[FERRY_QMP_TEXT_MAX];
	int rc = ferry_qemu_status(q->qmp, status, f);

	if (rc < 0)
		return rc;
	q->runs = !strcmp(status, "running");
	return 0;
}

int ferry_qemu_inspect_source(struct ferry_qemu *q, struct ferry_qmp *qmp,
			      const struct ferry_log *log, struct ferry_failure *f)
{
	int rc;

	*q = (struct ferry_qemu){.qmp = qmp};
	rc = check_source_status(q, f);
	if (!rc)
		rc = check_migration(q, false, f);
	if (!rc)
		rc = find_identity(q, f);
	if (!rc)
		rc = check_devices(q, f);
	if (!rc)
		rc = ferry_qemu_find_ram(q, log, f);
	return rc;
}

int ferry_qemu_inspect_target(struct ferry_qemu *q, struct ferry_qmp *qmp,
			      const struct ferry_log *log, struct ferry_failure *f)
{
	int rc;

	*q = (struct ferry_qemu){.qmp = qmp};
	rc = check_target_status(q, f);
	if (!rc)
		rc = check_migration(q, true, f);
	if (!rc)
		rc = find_identity(q, f);
	if (!rc)
		rc = check_devices(q, f);
	if (!rc)
		rc = ferry_qemu_find_ram(q, log, f);
	if (!rc)
		rc = ferry_qemu_check_empty(q, f);
	return rc;
}

int ferry_qemu_inspect_orphan(struct ferry_qemu *q, struct ferry_qmp *qmp,
			      const struct ferry_log *log, struct ferry_failure *f)
{
	int rc;

	*q = (struct ferry_qemu){.qmp = qmp};
	rc = check_orphan_status(q, f);
	if (!rc)
		rc = find_identity(q, f);
	if (!rc)
		rc = ferry_qemu_find_ram(q, log, f);
	return rc;
}

void ferry_qemu_fini(struct ferry_qemu *q)
{
	for (uint32_t i = 0; i < q->n_ram; i++)
		ferry_close(q->ram[i].fd);
	q->n_ram = 0;
}

void ferry_qemu_layout(const struct ferry_qemu *q, struct ferry_layout *out)
{
	out->n_regions = q->n_ram;
	for (uint32_t i = 0; i < q->n_ram; i++)
		out->regions[i] = q->ram[i].desc;
}

static int compare_region(const struct ferry_region_desc *t, const struct ferry_region_desc *s,
			  struct ferry_failure *f)
{
	if (strcmp(t->name, s->name))
		return ferry_fail(
			f, FERRY_REFUSE, -EINVAL,
			"the source's RAM '%s' is called '%s' on the target; give the memory "
			"backends the same ids on both sides",
			s->name, t->name);
	if (t->n_pages * t->page_bytes != s->n_pages * s->page_bytes)
		return ferry_fail(
			f, FERRY_REFUSE, -EINVAL,
			"RAM '%s' has %" PRIu64 " MiB on the source and %" PRIu64
			" MiB on the target; start the target with the source's -m and size=",
			s->name, s->n_pages * s->page_bytes / FERRY_MIB,
			t->n_pages * t->page_bytes / FERRY_MIB);
	if (t->page_bytes != s->page_bytes)
		return ferry_fail(f, FERRY_REFUSE, -EINVAL,
				  "RAM '%s' has pages of %u KiB on the source and of %u KiB on the "
				  "target; use huge pages on both sides or on neither",
				  s->name, s->page_bytes / FERRY_KIB, t->page_bytes / FERRY_KIB);
	return 0;
}

int ferry_qemu_compare(const struct ferry_qemu *target, const struct ferry_prepare *source,
		       struct ferry_failure *f)
{
	int rc = 0;

	if (strcmp(target->machine, source->machine))
		return ferry_fail(
			f, FERRY_REFUSE, -EINVAL,
			"the source is a '%s' and the target a '%s'; start the target with "
			"the source's -machine",
			source->machine, target->machine);
	if (target->n_ram != source->layout.n_regions)
		return ferry_fail(f, FERRY_REFUSE, -EINVAL,
				  "the source has %u memory backends and the target %u; start the "
				  "target with the same -object and -device options as the source",
				  source->layout.n_regions, target->n_ram);
	for (uint32_t i = 0; !rc && i < target->n_ram; i++)
		rc = compare_region(&target->ram[i].desc, &source->layout.regions[i], f);
	return rc;
}
