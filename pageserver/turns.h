/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Turns: the pushes of many sessions share the processor evenly, by bytes, a piece at a time, and
 * leave some of it to those who answer and place what threads wait for.
 *
 * Only so many have a turn at once. Of those who wait, the one with the fewest bytes is next; who
 * comes, or comes back, begins where the others are, so that nobody saves up (start-time fair
 * queueing). A turn is short: nobody waits for a peer, or for a rate, in it.
 *
 * Any thread.
 */
#ifndef FERRY_PAGESERVER_TURNS_H
#define FERRY_PAGESERVER_TURNS_H

#include <pthread.h>
#include <semaphore.h>
#include <stdint.h>

/* One who takes turns. */
struct ferry_turn {
	struct ferry_turn *next; /* of those who wait */
	uint64_t at_bytes;	 /* where its next turn begins, in the time of them all */
	sem_t granted;
};

struct ferry_turns {
	pthread_mutex_t lock; /* of what follows, and of ->next and ->at_bytes of each turn */
	uint32_t n_most, n_taken;
	uint64_t at_bytes; /* where the latest turn began */
	struct ferry_turn *first, **last; /* who waits; in the order in which they came */
};

/* @n_most: turns at once; at least 1 */
void ferry_turns_init(struct ferry_turns *t, uint32_t n_most);
/* Nobody has a turn, or waits for one. */
void ferry_turns_fini(struct ferry_turns *t);

void ferry_turn_init(struct ferry_turn *turn);
void ferry_turn_fini(struct ferry_turn *turn);

/* Waits for it. */
void ferry_turn_take(struct ferry_turns *t, struct ferry_turn *turn);
/* @bytes: that were sent in it */
void ferry_turn_give(struct ferry_turns *t, struct ferry_turn *turn, uint64_t bytes);

#endif
