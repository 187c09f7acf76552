/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the guest and its host agree on: where things are in the guest's memory, and what they say
 * to each other there. The guest sees its memory at MICROVM_BASE, whichever CPU runs it.
 *
 *   0          control page
 *   0x1000     code
 *   0x10000    stacks, one a vCPU
 *   0x100000   table: the version that each data page must have, 4 bytes a page
 *   behind it  data pages; page p belongs to vCPU p % n_vcpus
 *
 * The guest talks by storing a report at MICROVM_DOORBELL, where nothing is mapped.
 */
#ifndef MICROVM_LAYOUT_H
#define MICROVM_LAYOUT_H

#include <stdint.h>

#define MICROVM_BASE	 0x200000000000ull
#define MICROVM_DOORBELL (MICROVM_BASE - 0x200000)

#define MICROVM_PAGE	    4096u
#define MICROVM_MAX_VCPUS   8u
#define MICROVM_CODE	    0x1000u
#define MICROVM_CODE_MAX    0xf000u
#define MICROVM_STACKS	    0x10000u
#define MICROVM_STACK_BYTES 0x4000u
#define MICROVM_TABLE	    0x100000u
#define MICROVM_MIN_BYTES   (16ull << 20)
#define MICROVM_MAX_BYTES   (8ull << 30)

#define MICROVM_MAGIC 0x6d767966757266ull

/* The bit of a table entry that says that the page was found bad: it is left alone from then on. */
#define MICROVM_BAD 0x80000000u

enum microvm_workload {
	MICROVM_SEQUENTIAL, /* check page after page, rewrite one in four */
	MICROVM_RANDOM,	    /* the same at random */
	MICROVM_WRITES,	    /* at random, rewrite each */
	MICROVM_HOT,	    /* nine of ten in one tenth of the memory, the others anywhere */
};

enum microvm_report {
	MICROVM_READY = 1, /* all pages are filled */
	MICROVM_REACHED,   /* stop_at_ops operations are done */
	MICROVM_VERIFIED,  /* all pages of this vCPU were looked at */
};

/* Power-of-two buckets of microseconds: 0, 1, 2-3, 4-7, ... */
#define MICROVM_BUCKETS 20

/* Of one vCPU. Only it writes here, but for the two commands. */
struct microvm_vcpu_control {
	/* commands: the host sets, the guest clears */
	volatile uint32_t verify;
	uint32_t reserved;
	volatile uint64_t stop_at_ops;

	uint64_t ops;
	uint64_t writes;
	uint64_t bad_pages;
	uint64_t bad_page, bad_version; /* the first of them: what was expected, */
	uint64_t bad_word, bad_value;	/* where it differed and what was there */
	uint64_t bad_steps;		/* how often its registers were not those of its memory */
	uint64_t stall_max_us;
	uint64_t stalls_over_100us;
	uint64_t stalls[MICROVM_BUCKETS]; /* between the ends of two operations */
};

struct microvm_control {
	uint64_t magic;
	uint32_t n_vcpus;
	uint32_t workload;
	uint64_t n_pages; /* data pages */
	uint64_t data;	  /* offset of the first */
	uint64_t seed;
	uint64_t ticks_per_us; /* of the time-stamp counter */
	struct microvm_vcpu_control vcpu[MICROVM_MAX_VCPUS];
};

_Static_assert(sizeof(struct microvm_control) <= MICROVM_PAGE, "the control page is one page");

#endif
