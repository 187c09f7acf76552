/* SPDX-License-Identifier: Apache-2.0 */
#ifndef FERRY_BASE_CLOCK_H
#define FERRY_BASE_CLOCK_H

#include <stdint.h>
#include <time.h>

/* CLOCK_MONOTONIC in nanoseconds. Never goes back; comparable within one machine only. */
static inline uint64_t ferry_now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

#define FERRY_NS_PER_US 1000u
#define FERRY_NS_PER_MS 1000000u
#define FERRY_NS_PER_S	1000000000u

#endif
