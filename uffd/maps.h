/* SPDX-License-Identifier: Apache-2.0 */
/* The mappings of a process, as /proc/PID/maps has them. */
#ifndef FERRY_UFFD_MAPS_H
#define FERRY_UFFD_MAPS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"
#include "base/util.h"

enum ferry_mapping_kind {
	FERRY_MAPPING_ANON,	/* private anonymous */
	FERRY_MAPPING_SHARED,	/* shared memory: memfd, tmpfs, shared anonymous */
	FERRY_MAPPING_HUGETLB,	/* huge pages from the pool, shared or private */
	FERRY_MAPPING_FILE,	/* any other file: userfaultfd can't serve it */
};

#define FERRY_MAPPING_NAME_MAX 256

struct ferry_mapping {
	struct ferry_hva start;
	uint64_t len;	     /* bytes */
	uint64_t offset;     /* in the file, bytes */
	uint64_t ino;	     /* 0 for none */
	uint32_t dev_major, dev_minor;
	uint32_t page_bytes; /* 4096, or the huge page size of hugetlb */
	bool readable, writable, shared;
	enum ferry_mapping_kind kind;
	char name[FERRY_MAPPING_NAME_MAX]; /* path, "[heap]", "/memfd:x (deleted)"; cut if longer */
};

/**
 * ferry_maps_find() - the mappings of a process whose name contains a text
 * @pid:    the process
 * @match:  part of the name; "" matches all
 * @out, @n: an array owned by the caller after success (free()), in order of address; neighbours
 *          that continue the same file (or are both anonymous with the same name) and have the
 *          same rights are joined into one
 * Errors: -ESRCH, -EACCES (REFUSE) with how to mend it; -ENOENT when none matches, with the names
 *         of what is there in @f (the largest few).
 */
int ferry_maps_find(pid_t pid, const char *match, struct ferry_mapping **out, size_t *n,
		    struct ferry_failure *f);

/**
 * ferry_maps_at() - the mapping that has all of a piece of memory
 * Errors: as above; -ENOENT (REFUSE) when there is none such.
 */
int ferry_maps_at(pid_t pid, struct ferry_hva start, uint64_t bytes, struct ferry_mapping *out,
		  struct ferry_failure *f);

/* Is a part of it registered as ferry_uffd_register_hidden() does?
 * Return: 1 or 0; a negative errno when that can't be told.
 * Source: proc_pid_smaps(5), VmFlags */
int ferry_maps_are_hidden(pid_t pid, struct ferry_hva start, uint64_t bytes);

/**
 * ferry_maps_open() - open the file that a mapping is of
 * Through a descriptor that the process holds of it, or else through the mapping itself, which
 * takes CAP_CHECKPOINT_RESTORE.
 * @flags: O_RDONLY or O_RDWR
 * Return: an fd, owned by the caller; a negative errno.
 */
int ferry_maps_open(pid_t pid, const struct ferry_mapping *m, int flags);

#endif
