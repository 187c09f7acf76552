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
	json_t *capabilities; /* owned: an argument list for migrate-set-capabilities, to go back */
	json_t *parameters;   /* owned: the same for migrate-set-parameters */
};

/**
 * ferry_qemu_setup_apply() - make QEMU's settings fit
 * @side: which end of the switchover this QEMU is
 * Errors: negative errno (REFUSE) with what to do in @f; everything is then as it was.
 */
int ferry_qemu_setup_apply(struct ferry_qemu_setup *s, struct ferry_qmp *qmp, enum ferry_side side,
			   const struct ferry_log *log, struct ferry_failure *f);

/* Put everything back, best effort. Twice is fine. */
void ferry_qemu_setup_restore(struct ferry_qemu_setup *s);

/* Forget it: QEMU is gone. */
void ferry_qemu_setup_fini(struct ferry_qemu_setup *s);

#endif
