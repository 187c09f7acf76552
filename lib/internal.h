/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the parts of libpageferry share. The library translates: public structs into those of the
 * engines, failures into struct pageferry_error. What it decides by itself is only whether a call
 * makes sense.
 */
#ifndef FERRY_LIB_INTERNAL_H
#define FERRY_LIB_INTERNAL_H

#include <signal.h>
#include <stdbool.h>

#include "base/error.h"
#include "base/log.h"
#include "pageferry.h"
#include "protocol/message.h"
#include "uffd/maps.h"

/* The caller's log function and the engines' way to it. Must stay where it was set up. */
struct ferry_lib_log {
	struct ferry_log log;
	pageferry_log_fn fn;
	void *ctx;
};

void ferry_lib_log_init(struct ferry_lib_log *l, pageferry_log_fn fn, void *ctx,
			enum pageferry_log_level level);

/* Is this thread in @l's function? */
bool ferry_lib_log_is_inside(const struct ferry_lib_log *l);

/* Copy the story to the caller. @e may be NULL. Return: @rc. */
int ferry_lib_tell(struct pageferry_error *e, const struct ferry_failure *f, int rc);

/* Only when there is a story (f->err): for events. */
void ferry_lib_tell_event(struct pageferry_error *e, const struct ferry_failure *f);

/**
 * ferry_lib_options() - take a versioned struct from the caller
 * @in: begins with its size; @out, @known: ours
 * Errors: -EINVAL when it is smaller than the first version (@least), or has something in members
 * that this version doesn't know.
 */
int ferry_lib_options(void *out, size_t known, size_t least, const void *in,
		      struct ferry_failure *f);

/* Errors: -EINVAL: bits of @flags that are not in @known. */
int ferry_lib_flags(uint64_t flags, uint64_t known, struct ferry_failure *f);

/* The way back: @in to a caller whose struct begins with its size. Errors: -EINVAL. */
int ferry_lib_result(void *out, const void *in, size_t known, size_t least);

/**
 * ferry_lib_regions_take() - take an array of regions from the caller, of whatever version
 * @out: room for FERRY_MAX_REGIONS
 * @region_size: of each in @in; 0: as in the first version
 * Errors (REFUSE): -EINVAL: no regions, too many, no such size, or members that are not known.
 */
int ferry_lib_regions_take(struct pageferry_region *out, const struct pageferry_region *in,
			   uint32_t n, size_t region_size, struct ferry_failure *f);

/* A region of the caller's, checked, with what the kernel says about it. */
struct ferry_lib_region {
	struct ferry_region_desc desc;
	struct ferry_hva start;
	enum ferry_mapping_kind kind;
	bool readable, is_private;
};

/**
 * ferry_lib_regions() - check the caller's regions against each other and against the kernel
 * @out: room for @n; @in: as taken
 * Errors (REFUSE): -EINVAL, -EFAULT (not mapped, or as several kinds of memory).
 */
int ferry_lib_regions(struct ferry_lib_region *out, const struct pageferry_region *in, uint32_t n,
		      struct ferry_failure *f);

/* Threads that are started in between get no signals. */
void ferry_lib_signals_block(sigset_t *saved);
void ferry_lib_signals_restore(const sigset_t *saved);

#endif
