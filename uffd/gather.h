/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Large pages for private memory of our own process: 2 MiB that the push brings one run after the
 * other are received into a large page of ours, and that is moved to where it belongs
 * (UFFDIO_MOVE). Against copying them (fill.c) it saves the making of 512 small pages, and one
 * copy; and the owner has large pages.
 *
 * What is held back is not known to anybody: it counts as not received, as what is in the
 * connection does. So there are limits to it. A block is begun only while nothing of it is known or
 * asked for; it is let go, page by page, when a thread asks for something of it, when another run
 * comes, or after HOLD_MS. Where a thread waits there is a page table, and the kernel would move
 * page by page, which costs more than copying them.
 *
 * Failure modes: the kernel had no large page for us, or can't move it there (memory that is
 * locked, executable, read-only, or in two mappings): no other block is gathered on this connection
 * then. Source: ioctl_userfaultfd(2), UFFDIO_MOVE
 */
#ifndef FERRY_UFFD_GATHER_H
#define FERRY_UFFD_GATHER_H

#include "uffd/target.h"

/* Of one bulk connection's thread. */
struct ferry_gather {
	struct ferry_target *t; /* borrowed */
	uint8_t *map;		/* owned; NULL: nothing is gathered */
	uint8_t *block;		/* the large page, in it */
	int pagemap;		/* owned; -1 for none */
	struct ferry_run held;	/* the block's beginning; no pages: nothing is held */
	uint64_t since_ns;
	bool was_moved; /* all of what is held, or some of it, or it was tried */
	bool is_over;	/* no more blocks */
};

/* Nothing is gathered where it can't be: that is no error. */
void ferry_gather_init(struct ferry_gather *g, struct ferry_target *t);
void ferry_gather_fini(struct ferry_gather *g);

/* Where the bytes of the next run are to be received; NULL: the run is not of the block, nor begins
 * one. A block that is held is let go before it is not gone on with. */
uint8_t *ferry_gather_room(struct ferry_gather *g, const struct ferry_run *run);

/* It was received there, and is what was sent. */
void ferry_gather_add(struct ferry_gather *g, const struct ferry_run *run);

/* Is the block whole, and wanted by nobody yet? */
bool ferry_gather_can_move(const struct ferry_gather *g);

/* Is what is held to be let go now? */
bool ferry_gather_is_due(const struct ferry_gather *g);

/**
 * ferry_gather_move() - move the whole block to where it belongs
 * @done, @n_new: as those of ferry_engine_fill(); what is left can be placed from ->block
 * Return: 0, though nothing may have been moved. Errors: -EAGAIN, -ENOMEM, -ESRCH, as
 * ferry_engine_fill().
 */
int ferry_gather_move(struct ferry_gather *g, uint32_t *done, uint32_t *n_new);

/* What was held is placed, by whichever way: nothing is held. What was torn is given back. */
void ferry_gather_end(struct ferry_gather *g);

#endif
