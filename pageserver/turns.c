/* SPDX-License-Identifier: Apache-2.0 */
#include "pageserver/turns.h"

#include <errno.h>
#include <stddef.h>

#include "base/util.h"

/* A turn in which less was sent, as most of it was zero, took its time as well. */
#define LEAST_BYTES (64 * FERRY_KIB)

void ferry_turns_init(struct ferry_turns *t, uint32_t n_most)
{
	*t = (struct ferry_turns){.n_most = FERRY_MAX(n_most, 1u)};
	t->last = &t->first;
	pthread_mutex_init(&t->lock, NULL);
}

void ferry_turns_fini(struct ferry_turns *t)
{
	pthread_mutex_destroy(&t->lock);
}

void ferry_turn_init(struct ferry_turn *turn)
{
	*turn = (struct ferry_turn){0};
	sem_init(&turn->granted, 0, 0);
}

void ferry_turn_fini(struct ferry_turn *turn)
{
	sem_destroy(&turn->granted);
}

/* Let in who has had the least. */
static void grant(struct ferry_turns *t)
{
	struct ferry_turn **least = &t->first, *turn;

	if (!t->first || t->n_taken == t->n_most)
		return;
	for (struct ferry_turn **at = &t->first; *at; at = &(*at)->next)
		if ((*at)->at_bytes < (*least)->at_bytes)
			least = at;
	turn = *least;
	*least = turn->next;
	if (!turn->next)
		t->last = least;
	t->n_taken++;
	t->at_bytes = turn->at_bytes;
	sem_post(&turn->granted);
}

void ferry_turn_take(struct ferry_turns *t, struct ferry_turn *turn)
{
	pthread_mutex_lock(&t->lock);
	turn->at_bytes = FERRY_MAX(turn->at_bytes, t->at_bytes);
	turn->next = NULL;
	*t->last = turn;
	t->last = &turn->next;
	grant(t);
	pthread_mutex_unlock(&t->lock);
	while (sem_wait(&turn->granted) < 0 && errno == EINTR)
		;
}

void ferry_turn_give(struct ferry_turns *t, struct ferry_turn *turn, uint64_t bytes)
{
	pthread_mutex_lock(&t->lock);
	turn->at_bytes += FERRY_MAX(bytes, (uint64_t)LEAST_BYTES);
	t->n_taken--;
	grant(t);
	pthread_mutex_unlock(&t->lock);
}
