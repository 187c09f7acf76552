/* SPDX-License-Identifier: Apache-2.0 */
#include "protocol/checksum.h"

#include <string.h>

#define XXH_STATIC_LINKING_ONLY /* the state's size */
#ifdef FERRY_XXHASH_DISPATCH
#include <xxh_x86dispatch.h>
#else
#include <xxhash.h>
#endif

_Static_assert(sizeof(XXH3_state_t) <= FERRY_CHECKSUM_STATE_BYTES, "room for the state");

uint64_t ferry_checksum(uint64_t seed, const void *data, size_t bytes)
{
	return XXH3_64bits_withSeed(data, bytes, seed);
}

void ferry_checksum_begin(void *state, uint64_t seed)
{
	XXH3_INITSTATE((XXH3_state_t *)state);
	(void)XXH3_64bits_reset_withSeed(state, seed);
}

void ferry_checksum_add(void *state, const void *data, size_t bytes)
{
	(void)XXH3_64bits_update(state, data, bytes);
}

uint64_t ferry_checksum_end(const void *state)
{
	return XXH3_64bits_digest(state);
}

uint64_t ferry_page_digest(uint32_t region, uint64_t page, const void *data, size_t bytes)
{
	const uint8_t *d = data;

	if (!d[0] && !memcmp(d, d + 1, bytes - 1))
		return 0;
	return ferry_checksum(ferry_page_digest_seed(region, page), data, bytes);
}

bool ferry_checksum_fits(const struct ferry_connection *c, const struct ferry_message *m)
{
	return !(c->features & FERRY_FEATURE_CHECKSUM) ||
	       ferry_checksum(ferry_checksum_seed(&m->run), m->payload, m->payload_bytes) ==
		       m->run.checksum;
}
