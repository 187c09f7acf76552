/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Virtual time for simulations: a seeded random generator and a queue of events. Everything that
 * happens is an event; the same seed gives the same history.
 */
#ifndef FERRY_SIM_WORLD_H
#define FERRY_SIM_WORLD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SIM_MAX_EVENTS 4096

struct sim_event {
	uint64_t at; /* virtual nanoseconds */
	uint64_t order; /* events of the same time happen in the order in which they were made */
	void (*run)(void *ctx, void *arg, uint64_t n);
	void *arg;
	uint64_t n;
};

struct sim_clock {
	uint64_t now, order, rng;
	void *ctx; /* given to every event */
	size_t n_events;
	struct sim_event events[SIM_MAX_EVENTS]; /* a heap */
};

uint64_t sim_random(struct sim_clock *c);
/* Return: 0 <= x < n */
uint64_t sim_below(struct sim_clock *c, uint64_t n);
/* True once in @n times, on average. */
bool sim_once_in(struct sim_clock *c, uint64_t n);

void sim_after(struct sim_clock *c, uint64_t delay_ns, void (*run)(void *, void *, uint64_t),
	       void *arg, uint64_t n);

/* Run the next event. Return: false when there is none. */
bool sim_step(struct sim_clock *c);

#endif
