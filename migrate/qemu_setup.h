/* SPDX-License-Identifier: Apache-2.0 */
/*
 * QEMU's migration settings for the time of a switchover: what is changed is remembered and put
 * back, and every switch that an operator had set otherwise is said in the log.
 */
#ifndef FERRY_MIGRATE_QEMU_SETUP_H
#define FERRY_MIGRATE_QEMU_SETUP_H

#include <jansson.h>

#include "base/log.h"
#include "migrate/qmp.h"
#include "protocol/message.h"

struct ferry_qemu_setup {
	struct ferry_qmp *qmp; /* borrowed; NULL when nothing is to be put back */
	const struct ferry_log *log;
	json_t *change;	      /* owned: capabilities to be changed, in the same form */
	json_t *capabilities; /* owned: an argument list for migrate-set-capabilities, to go back */
	json_t *parameters;   /* owned: the same for migrate-set-parameters */
};

/* Bytes of what ferry_qemu_setup_save() writes, with the NUL. */
#define FERRY_QEMU_SETTINGS_MAX 4096

/**
 * ferry_qemu_setup_look() - see which settings have to be changed
 * @side: which end of the switchover this QEMU is
 * Errors: negative errno (REFUSE) with what to do in @f.
 */
int ferry_qemu_setup_look(struct ferry_qemu_setup *s, struct ferry_qmp *qmp, enum ferry_side side,
			  const struct ferry_log *log, struct ferry_failure *f);

/**
 * ferry_qemu_setup_apply() - change them
 * Errors: negative errno (REFUSE) with what to do in @f; everything is then as it was.
 */
int ferry_qemu_setup_apply(struct ferry_qemu_setup *s, struct ferry_failure *f);

/* As they were, as text, for another process to put back. Errors: -ENOMEM, -EMSGSIZE. */
int ferry_qemu_setup_save(const struct ferry_qemu_setup *s, char out[FERRY_QEMU_SETTINGS_MAX]);

/* What a process that was killed has saved is put back, best effort. "": nothing. */
void ferry_qemu_setup_put_back(struct ferry_qmp *qmp, const char *saved,
			       const struct ferry_log *log);

/* Put everything back, best effort. Twice is fine. */
void ferry_qemu_setup_restore(struct ferry_qemu_setup *s);

/* Forget it: QEMU is gone. */
void ferry_qemu_setup_fini(struct ferry_qemu_setup *s);

#endif
