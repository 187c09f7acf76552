/* SPDX-License-Identifier: Apache-2.0 */
#include "lib/handle.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/random.h>

#include "base/util.h"

/*
 * A handle, from the top: generation, slot, 1. It is odd, so that no object's address is one, and
 * its generation counts all objects of the process, so that none comes twice.
 */
#define SLOT_BITS (sizeof(uintptr_t) == 8 ? 20 : 10)
#define MAX_SLOTS (1u << SLOT_BITS)

struct slot {
	uintptr_t handle; /* 0: not in use, or ending */
	void *object;
	const struct ferry_lib_log *log;
	enum ferry_lib_kind kind;
	unsigned int alone; /* calls for one thread at a time that are under way */
	uint32_t n_calls;
	uint32_t next_free; /* index + 1; 0: the last */
};

static struct {
	pthread_mutex_t lock; /* of all of it; held for some instructions only */
	pthread_cond_t left;  /* the last call has left an object that ends */
	struct slot *slots;   /* owned; NULL while there are no objects */
	uint32_t n_slots, n_used;
	uint32_t first_free; /* index + 1; 0: none */
	uintptr_t generation;
	bool sees_forks;
} table = {.lock = PTHREAD_MUTEX_INITIALIZER, .left = PTHREAD_COND_INITIALIZER};

static void before_fork(void)
{
	pthread_mutex_lock(&table.lock);
}

static void after_fork(void)
{
	pthread_mutex_unlock(&table.lock);
}

/* The parent's objects can't be used here, and not be freed either: they stay as they are, and so
 * do their slots. */
static void in_child(void)
{
	for (uint32_t i = 0; i < table.n_slots; i++)
		table.slots[i].handle = 0;
	table.first_free = 0;
	table.left = (pthread_cond_t)PTHREAD_COND_INITIALIZER;
	pthread_mutex_unlock(&table.lock);
}

static int begin(void)
{
	uint32_t random = 0;

	if (table.sees_forks)
		return 0;
	if (pthread_atfork(before_fork, after_fork, in_child))
		return -ENOMEM;
	table.sees_forks = true;
	/* So that a handle of another copy of the library in the same process is none here. */
	if (getrandom(&random, sizeof(random), GRND_NONBLOCK) != sizeof(random))
		random = 0;
	table.generation = sizeof(uintptr_t) == 8 ? random : random >> 12;
	return 0;
}

static int grow(void)
{
	uint32_t n = FERRY_MIN(table.n_slots ? table.n_slots * 2 : 16, MAX_SLOTS);
	struct slot *more;

	if (n == table.n_slots)
		return -ENOMEM;
	more = realloc(table.slots, n * sizeof(*more));
	if (!more)
		return -ENOMEM;
	table.slots = more;
	for (uint32_t i = n; i-- > table.n_slots;) {
		more[i] = (struct slot){.next_free = table.first_free};
		table.first_free = i + 1;
	}
	table.n_slots = n;
	return 0;
}

int ferry_lib_handle_new(void **handle, enum ferry_lib_kind kind, void *object,
			 const struct ferry_lib_log *log)
{
	int rc;

	pthread_mutex_lock(&table.lock);
	rc = begin();
	if (!rc && !table.first_free)
		rc = grow();
	if (!rc) {
		uint32_t i = table.first_free - 1;
		struct slot *s = &table.slots[i];

		table.first_free = s->next_free;
		table.n_used++;
		table.generation++;
		*s = (struct slot){.handle = ((table.generation << SLOT_BITS) | i) << 1 | 1,
				   .object = object,
				   .log = log,
				   .kind = kind};
		*handle = (void *)s->handle;
	}
	pthread_mutex_unlock(&table.lock);
	return rc;
}

/* With the lock. Errors: -EBADF, -EDEADLK. */
static int look_up(struct slot **out, const void *handle, enum ferry_lib_kind kind)
{
	uintptr_t h = (uintptr_t)handle;
	uint32_t i = (uint32_t)(h >> 1) & (MAX_SLOTS - 1);

	if (!(h & 1) || i >= table.n_slots || table.slots[i].handle != h ||
	    table.slots[i].kind != kind)
		return -EBADF;
	if (ferry_lib_log_is_inside(table.slots[i].log))
		return -EDEADLK;
	*out = &table.slots[i];
	return 0;
}

static int refuse(int rc, struct ferry_failure *f)
{
	switch (rc) {
	case -EBADF:
		return ferry_fail(
			f, FERRY_REFUSE, rc,
			"there is no such object: it has ended, or is another function's, "
			"or another process's");
	case -EDEADLK:
		return ferry_fail(f, FERRY_REFUSE, rc,
				  "called from within the object's own log function");
	case -EBUSY:
		return ferry_fail(f, FERRY_RETRY, rc,
				  "another thread is in this call; it is for one at a time");
	default:
		return ferry_fail(f, FERRY_REFUSE, rc, "no object given");
	}
}

int ferry_lib_pin(struct ferry_lib_pin *pin, const void *handle, enum ferry_lib_kind kind,
		  unsigned int alone, struct ferry_failure *f)
{
	struct slot *s;
	int rc;

	if (!handle)
		return refuse(-EINVAL, f);
	pthread_mutex_lock(&table.lock);
	rc = look_up(&s, handle, kind);
	if (!rc && (s->alone & alone))
		rc = -EBUSY;
	if (!rc) {
		s->alone |= alone;
		s->n_calls++;
		*pin = (struct ferry_lib_pin){
			.object = s->object, .slot = (uint32_t)(s - table.slots), .alone = alone};
	}
	pthread_mutex_unlock(&table.lock);
	return rc ? refuse(rc, f) : 0;
}

void ferry_lib_unpin(struct ferry_lib_pin *pin)
{
	struct slot *s;

	if (!pin->object)
		return;
	pthread_mutex_lock(&table.lock);
	s = &table.slots[pin->slot];
	s->alone &= ~pin->alone;
	if (!--s->n_calls && !s->handle)
		pthread_cond_broadcast(&table.left);
	pthread_mutex_unlock(&table.lock);
	pin->object = NULL;
}

/* With the lock. Nothing is left when the last object has ended. */
static void release(uint32_t i)
{
	table.slots[i] = (struct slot){.next_free = table.first_free};
	table.first_free = i + 1;
	if (--table.n_used)
		return;
	free(table.slots);
	table.slots = NULL;
	table.n_slots = 0;
	table.first_free = 0;
}

int ferry_lib_retire(void **object, const void *handle, enum ferry_lib_kind kind,
		     void (*wake)(void *object))
{
	struct slot *s;
	uint32_t i = 0;
	int rc;

	if (!handle)
		return -EINVAL;
	pthread_mutex_lock(&table.lock);
	rc = look_up(&s, handle, kind);
	if (!rc) {
		i = (uint32_t)(s - table.slots);
		*object = s->object;
		s->handle = 0;
	}
	pthread_mutex_unlock(&table.lock);
	if (rc < 0)
		return rc;
	wake(*object);
	pthread_mutex_lock(&table.lock);
	/* The table may grow, and move, meanwhile. */
	while (table.slots[i].n_calls)
		pthread_cond_wait(&table.left, &table.lock);
	release(i);
	pthread_mutex_unlock(&table.lock);
	return 0;
}
