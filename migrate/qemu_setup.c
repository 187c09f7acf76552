/* SPDX-License-Identifier: Apache-2.0 */
#include "migrate/qemu_setup.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>

#include "base/util.h"

struct wanted {
	const char *name;
	bool state;
	bool needed; /* QEMU must know it; others are left out where QEMU does not */
	unsigned int sides;
	const char *why;
};

#define SOURCE (1u << FERRY_SIDE_SOURCE)
#define TARGET (1u << FERRY_SIDE_TARGET)
#define BOTH   (SOURCE | TARGET)

static const struct wanted wanted[] = {
	{"x-ignore-shared", true, true, BOTH, "RAM travels by page faults"},
	{"events", true, true, BOTH, "progress is told, not asked for"},
	/* Else the target takes the locks of the disk images as soon as it is loaded, and the
	 * source could not resume when the switchover fails after that. */
	{"late-block-activate", true, false, TARGET, "the disks are the source's until the end"},
	/* What follows needs the RAM in the stream, a way back through it, or a second channel. */
	{"postcopy-ram", false, false, BOTH, "Pageferry does this part"},
	{"postcopy-preempt", false, false, BOTH, "Pageferry does this part"},
	{"return-path", false, false, BOTH, "the stream of the device state goes one way"},
	{"switchover-ack", false, false, BOTH, "the stream of the device state goes one way"},
	{"pause-before-switchover", false, false, BOTH, "the guest is stopped before the stream"},
	{"multifd", false, false, BOTH, "there is no RAM in the stream"},
	{"mapped-ram", false, false, BOTH, "there is no RAM in the stream"},
	{"compress", false, false, BOTH, "there is no RAM in the stream"},
	{"xbzrle", false, false, BOTH, "there is no RAM in the stream"},
	{"zero-copy-send", false, false, BOTH, "there is no RAM in the stream"},
	{"rdma-pin-all", false, false, BOTH, "there is no RAM in the stream"},
	{"background-snapshot", false, false, BOTH, "it is no snapshot"},
	{"x-colo", false, false, BOTH, "it needs QEMU's own migration"},
	{"block", false, false, BOTH, "disks must be shared, or copied beforehand"},
	{"release-ram", false, false, BOTH, "the source's RAM is served until the end"},
};

static const struct wanted *find_wanted(const char *name, enum ferry_side side)
{
	for (size_t i = 0; i < FERRY_ARRAY_SIZE(wanted); i++) {
		if (wanted[i].sides & 1u << side && !strcmp(wanted[i].name, name))
			return &wanted[i];
	}
	return NULL;
}

static int append(json_t *list, const char *name, bool state)
{
	return json_array_append_new(list,
				     json_pack("{s:s, s:b}", "capability", name, "state", state));
}

static int set_capabilities(struct ferry_qmp *qmp, json_t *list, struct ferry_failure *f)
{
	return ferry_qmp_execute(qmp, "migrate-set-capabilities",
				 FERRY_QMP_ARGS("{s:O}", "capabilities", list), NULL, f);
}

/* Those that differ from what we want go into @change, and as they are into @back. */
static int compare(const json_t *now, enum ferry_side side, json_t *change, json_t *back,
		   const struct ferry_log *log)
{
	const json_t *e;
	size_t i;

	json_array_foreach((json_t *)now, i, e)
	{
		const char *name = json_string_value(json_object_get(e, "capability"));
		bool state = json_is_true(json_object_get(e, "state"));
		const struct wanted *w = name ? find_wanted(name, side) : NULL;

		if (!w || w->state == state)
			continue;
		if (append(change, name, w->state) < 0 || append(back, name, state) < 0)
			return -ENOMEM;
		if (state) /* somebody has set it on purpose */
			ferry_info(log, "QEMU's capability %s is off until the move is over: %s",
				   name, w->why);
	}
	return 0;
}

static int check_known(const json_t *now, enum ferry_side side, struct ferry_failure *f)
{
	for (size_t i = 0; i < FERRY_ARRAY_SIZE(wanted); i++) {
		bool known = false;
		const json_t *e;
		size_t k;

		json_array_foreach((json_t *)now, k, e)
		{
			const char *name = json_string_value(json_object_get(e, "capability"));

			known = known || (name && !strcmp(name, wanted[i].name));
		}
		if (!known && wanted[i].needed && wanted[i].sides & 1u << side)
			return ferry_fail(
				f, FERRY_REFUSE, -EOPNOTSUPP,
				"this QEMU has no migration capability '%s'; use version 4.0 "
				"or newer",
				wanted[i].name);
	}
	return 0;
}

static int look_at_capabilities(struct ferry_qemu_setup *s, enum ferry_side side,
				struct ferry_failure *f)
{
	json_t *now = NULL;
	int rc = ferry_qmp_execute(s->qmp, "query-migrate-capabilities", NULL, &now, f);

	s->change = json_array();
	s->capabilities = json_array();
	if (!rc)
		rc = check_known(now, side, f);
	if (!rc && compare(now, side, s->change, s->capabilities, s->log) < 0)
		rc = ferry_fail_errno(f, FERRY_REFUSE, -ENOMEM, "capabilities");
	json_decref(now);
	return rc;
}

static int look_at_parameters(struct ferry_qemu_setup *s, struct ferry_failure *f)
{
	static const char *const names[] = {"max-bandwidth", "tls-creds"};
	json_t *now = NULL;
	int rc = ferry_qmp_execute(s->qmp, "query-migrate-parameters", NULL, &now, f);

	s->parameters = json_object();
	for (size_t i = 0; !rc && i < FERRY_ARRAY_SIZE(names); i++) {
		json_t *v = json_object_get(now, names[i]);

		if (v && json_object_set(s->parameters, names[i], v) < 0)
			rc = ferry_fail_errno(f, FERRY_REFUSE, -ENOMEM, "parameters");
	}
	json_decref(now);
	return rc;
}

int ferry_qemu_setup_look(struct ferry_qemu_setup *s, struct ferry_qmp *qmp, enum ferry_side side,
			  const struct ferry_log *log, struct ferry_failure *f)
{
	int rc;

	*s = (struct ferry_qemu_setup){.qmp = qmp, .log = log};
	rc = look_at_capabilities(s, side, f);
	if (!rc)
		rc = look_at_parameters(s, f);
	if (rc < 0) {
		ferry_fail_prefix(f, "QEMU's migration settings");
		ferry_qemu_setup_fini(s);
	}
	return rc;
}

int ferry_qemu_setup_apply(struct ferry_qemu_setup *s, struct ferry_failure *f)
{
	int rc = json_array_size(s->change) ? set_capabilities(s->qmp, s->change, f) : 0;

	/* The device state is sent while the guest stands still: nothing may hold it back. */
	if (!rc)
		rc = ferry_qmp_execute(s->qmp, "migrate-set-parameters",
				       FERRY_QMP_ARGS("{s:I, s:s}", "max-bandwidth",
						      (json_int_t)1 << 50, "tls-creds", ""),
				       NULL, f);
	if (rc < 0) {
		/* An answer may be lost: then it was done all the same. */
		ferry_fail_prefix(f, "QEMU's migration settings");
		ferry_qemu_setup_restore(s);
	}
	return rc;
}

int ferry_qemu_setup_save(const struct ferry_qemu_setup *s, char out[FERRY_QEMU_SETTINGS_MAX])
{
	json_t *all = json_pack("{s:O, s:O}", "capabilities", s->capabilities, "parameters",
				s->parameters);
	size_t n = all ? json_dumpb(all, out, FERRY_QEMU_SETTINGS_MAX - 1, JSON_COMPACT) : 0;

	json_decref(all);
	if (!n || n > FERRY_QEMU_SETTINGS_MAX - 1)
		return n ? -EMSGSIZE : -ENOMEM;
	out[n] = '\0';
	return 0;
}

void ferry_qemu_setup_put_back(struct ferry_qmp *qmp, const char *saved,
			       const struct ferry_log *log)
{
	json_t *all = saved[0] ? json_loads(saved, 0, NULL) : NULL;
	struct ferry_qemu_setup s = {
		.qmp = qmp,
		.log = log,
		.capabilities = json_incref(json_object_get(all, "capabilities")),
		.parameters = json_incref(json_object_get(all, "parameters")),
	};

	ferry_qemu_setup_restore(&s);
	json_decref(all);
}

void ferry_qemu_setup_restore(struct ferry_qemu_setup *s)
{
	struct ferry_failure f = {0};
	int rc = 0;

	if (!s->qmp)
		return;
	if (s->parameters)
		rc = ferry_qmp_execute(s->qmp, "migrate-set-parameters", json_incref(s->parameters),
				       NULL, &f);
	if (s->capabilities && json_array_size(s->capabilities) && rc != -ECONNRESET)
		rc = set_capabilities(s->qmp, s->capabilities, &f) ?: rc;
	if (rc < 0)
		ferry_warn(s->log, "QEMU's migration settings were not put back: %s", f.text);
	ferry_qemu_setup_fini(s);
}

void ferry_qemu_setup_fini(struct ferry_qemu_setup *s)
{
	json_decref(s->change);
	json_decref(s->capabilities);
	json_decref(s->parameters);
	*s = (struct ferry_qemu_setup){0};
}
