/* SPDX-License-Identifier: Apache-2.0 */
#include <criterion/criterion.h>
#include <pthread.h>
#include <stdatomic.h>

#include "base/util.h"
#include "pageserver/turns.h"

#define N_THREADS 6
#define TURNS	  300

struct world {
	struct ferry_turns turns;
	_Atomic uint32_t in_turn, most, n_turns;
};

struct one {
	struct world *w;
	struct ferry_turn turn;
	pthread_t thread;
	uint64_t bytes, sum; /* of each of its turns; of all */
};

/* A turn lasts until all others have a turn too, or wait for one. */
static void wait_for_others(struct world *w)
{
	uint32_t n;

	do {
		sched_yield();
		pthread_mutex_lock(&w->turns.lock);
		n = w->turns.n_taken;
		for (struct ferry_turn *t = w->turns.first; t; t = t->next)
			n++;
		pthread_mutex_unlock(&w->turns.lock);
	} while (n < N_THREADS && atomic_load(&w->n_turns) < TURNS);
}

static void *take_turns(void *arg)
{
	struct one *o = arg;
	struct world *w = o->w;

	while (atomic_load(&w->n_turns) < TURNS) {
		uint32_t n;

		ferry_turn_take(&w->turns, &o->turn);
		n = atomic_fetch_add(&w->in_turn, 1) + 1;
		if (n > atomic_load(&w->most))
			atomic_store(&w->most, n);
		wait_for_others(w);
		if (atomic_fetch_add(&w->n_turns, 1) < TURNS)
			o->sum += o->bytes;
		atomic_fetch_sub(&w->in_turn, 1);
		ferry_turn_give(&w->turns, &o->turn, o->bytes);
	}
	return NULL;
}

/* @bytes: of each thread's turns */
static void run(struct world *w, struct one *all, const uint64_t *bytes, uint32_t n_most)
{
	ferry_turns_init(&w->turns, n_most);
	for (int i = 0; i < N_THREADS; i++) {
		all[i] = (struct one){.w = w, .bytes = bytes[i]};
		ferry_turn_init(&all[i].turn);
		pthread_create(&all[i].thread, NULL, take_turns, &all[i]);
	}
	for (int i = 0; i < N_THREADS; i++) {
		pthread_join(all[i].thread, NULL);
		ferry_turn_fini(&all[i].turn);
	}
	ferry_turns_fini(&w->turns);
}

Test(turns, no_more_than_so_many_at_once)
{
	const uint64_t bytes[N_THREADS] = {65536, 65536, 65536, 65536, 65536, 65536};
	struct one all[N_THREADS];
	struct world w = {0};

	run(&w, all, bytes, 2);
	cr_assert_eq(w.most, 2, "%u at once", w.most);
}

/* One that sends four times as much in a turn gets a quarter of the turns. */
Test(turns, bytes_are_shared_evenly)
{
	const uint64_t bytes[N_THREADS] = {262144, 65536, 65536, 65536, 131072, 65536};
	struct one all[N_THREADS];
	struct world w = {0};
	uint64_t least = UINT64_MAX, most = 0;

	run(&w, all, bytes, 1);
	for (int i = 0; i < N_THREADS; i++) {
		least = FERRY_MIN(least, all[i].sum);
		most = FERRY_MAX(most, all[i].sum);
	}
	cr_assert_leq(most - least, 2 * 262144, "%lu to %lu bytes", least, most);
}

/* Who was away has no claim to what the others had meanwhile. */
Test(turns, nobody_saves_up)
{
	struct ferry_turns t;
	struct ferry_turn busy, late;

	ferry_turns_init(&t, 1);
	ferry_turn_init(&busy);
	ferry_turn_init(&late);
	for (int i = 0; i < 100; i++) {
		ferry_turn_take(&t, &busy);
		ferry_turn_give(&t, &busy, FERRY_MIB);
	}
	ferry_turn_take(&t, &late);
	ferry_turn_give(&t, &late, FERRY_MIB);
	cr_assert_geq(late.at_bytes, busy.at_bytes);
	ferry_turn_fini(&late);
	ferry_turn_fini(&busy);
	ferry_turns_fini(&t);
}
