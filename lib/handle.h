/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which objects of the library's there are, so that a call with any other pointer is an error.
 *
 * What a program holds is no address but a handle: a number that is given out once. So a handle
 * whose object has ended is told from that of a newer object, wherever that is in memory. The table
 * is the one thing that all objects of a process share; a call pins its object with it, so that the
 * object's end, in another thread, waits for the call to leave.
 *
 *   new --> live --(retire)--> ending: unknown to new calls, those inside are woken --> free, when
 *                              the last has left
 *
 * A child made by fork() has none of its parent's threads, so it knows none of its parent's
 * objects.
 */
#ifndef FERRY_LIB_HANDLE_H
#define FERRY_LIB_HANDLE_H

#include <stdint.h>

#include "lib/internal.h"

enum ferry_lib_kind {
	FERRY_LIB_SERVER,
	FERRY_LIB_LAZY,
};

/* Calls that one thread at a time may be in. */
#define FERRY_LIB_WAIT	  1u
#define FERRY_LIB_CONNECT 2u

/* A call that is under way. Zero: none. */
struct ferry_lib_pin {
	void *object; /* borrowed until the pin's end */
	uint32_t slot;
	unsigned int alone;
};

/**
 * ferry_lib_handle_new() - make an object known
 * @object, @log: borrowed until retired; @log is its own
 * Return: 0, or -ENOMEM
 */
int ferry_lib_handle_new(void **handle, enum ferry_lib_kind kind, void *object,
			 const struct ferry_lib_log *log);

/**
 * ferry_lib_pin() - begin a call: what is @handle?
 * @alone: of the bits above, that of this call; 0 for a call that any number may be in
 * @f: may be NULL
 * Errors: -EINVAL (NULL), -EBADF (none, another kind, or ended), -EDEADLK (from within the object's
 * log function) (REFUSE); -EBUSY (RETRY).
 */
int ferry_lib_pin(struct ferry_lib_pin *pin, const void *handle, enum ferry_lib_kind kind,
		  unsigned int alone, struct ferry_failure *f);
void ferry_lib_unpin(struct ferry_lib_pin *pin);

/**
 * ferry_lib_retire() - from here on @handle is none; returns when all calls have left
 * @wake: called once, before that: ends the calls that wait
 * Errors: as ferry_lib_pin(). Return: 0, and *@object is the caller's alone.
 */
int ferry_lib_retire(void **object, const void *handle, enum ferry_lib_kind kind,
		     void (*wake)(void *object));

#endif
