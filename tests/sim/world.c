/* SPDX-License-Identifier: Apache-2.0 */
#include "world.h"

#include <stdio.h>
#include <stdlib.h>

/* splitmix64 */
uint64_t sim_random(struct sim_clock *c)
{
	uint64_t z = c->rng += UINT64_C(0x9e3779b97f4a7c15);

	z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
	z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
	return z ^ z >> 31;
}

uint64_t sim_below(struct sim_clock *c, uint64_t n)
{
	return sim_random(c) % n;
}

bool sim_once_in(struct sim_clock *c, uint64_t n)
{
	return !sim_below(c, n);
}

static bool before(const struct sim_event *a, const struct sim_event *b)
{
	return a->at < b->at || (a->at == b->at && a->order < b->order);
}

void sim_after(struct sim_clock *c, uint64_t delay_ns, void (*run)(void *, void *, uint64_t),
	       void *arg, uint64_t n)
{
	struct sim_event e = {c->now + delay_ns, c->order++, run, arg, n};
	size_t i = c->n_events++;

	if (c->n_events > SIM_MAX_EVENTS) {
		fprintf(stderr, "sim: more than %d events at once\n", SIM_MAX_EVENTS);
		abort();
	}
	while (i && before(&e, &c->events[(i - 1) / 2])) {
		c->events[i] = c->events[(i - 1) / 2];
		i = (i - 1) / 2;
	}
	c->events[i] = e;
}

bool sim_step(struct sim_clock *c)
{
	struct sim_event first, last;
	size_t i = 0, child;

	if (!c->n_events)
		return false;
	first = c->events[0];
	last = c->events[--c->n_events];
	while ((child = 2 * i + 1) < c->n_events) {
		if (child + 1 < c->n_events && before(&c->events[child + 1], &c->events[child]))
			child++;
		if (!before(&c->events[child], &last))
			break;
		c->events[i] = c->events[child];
		i = child;
	}
	c->events[i] = last;
	c->now = first.at;
	first.run(c->ctx, first.arg, first.n);
	return true;
}
