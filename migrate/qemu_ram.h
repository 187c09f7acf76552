/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which of QEMU's memory is the guest's RAM, and where it is in QEMU's process.
 *
 * 1. query-memdev lists the memory backends with size and share.
 * 2. "info mtree -f" tells which of them are mapped into the guest, and one guest address of each.
 * 3. "gpa2hva" turns that address into one of QEMU's process, which is unambiguous also when
 *    several backends have the same size, type and file name.
 * 4. /proc/PID/maps has the file (by inode), its offset and page size there.
 */
#ifndef FERRY_MIGRATE_QEMU_RAM_H
#define FERRY_MIGRATE_QEMU_RAM_H

#include <stdbool.h>

#include "migrate/qemu.h"

/* Where a block of RAM is first seen by the guest. */
struct ferry_mtree_entry {
	struct ferry_gpa gpa;
	uint64_t offset; /* in the block */
};

/**
 * ferry_mtree_find() - look a block up in the text of "info mtree -f"
 * @name: the memory backend's id
 * Return: true with @out when the guest has the block in its memory.
 */
bool ferry_mtree_find(const char *text, const char *name, struct ferry_mtree_entry *out);

/**
 * ferry_hva_parse() - read the answer to "gpa2hva"
 * Errors: -EPROTO when it is not such an answer, or not for the block @name.
 */
int ferry_hva_parse(const char *text, const char *name, struct ferry_hva *out);

/* Fills q->ram, q->n_ram and q->ram_bytes; q->pid is known. Errors: as ferry_qemu_inspect_source().
 */
int ferry_qemu_find_ram(struct ferry_qemu *q, const struct ferry_log *log, struct ferry_failure *f);

/**
 * ferry_qemu_check_empty() - has nothing been written to the RAM yet?
 * Errors: -EEXIST (REFUSE) with which block has pages already, and why that may be, in @f.
 */
int ferry_qemu_check_empty(const struct ferry_qemu *q, struct ferry_failure *f);

/* The same of one block of RAM. */
int ferry_qemu_check_ram_empty(const struct ferry_qemu_ram *r, struct ferry_failure *f);

#endif
