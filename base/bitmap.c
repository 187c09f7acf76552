/* SPDX-License-Identifier: Apache-2.0 */
#include "base/bitmap.h"

#include <errno.h>
#include <stdlib.h>

#include "base/util.h"

int ferry_bitmap_init(struct ferry_bitmap *b, size_t n_bits)
{
	size_t n_words = ferry_bitmap_n_words(n_bits);
	void *words = calloc(n_words ? n_words : 1, sizeof(uint64_t));

	if (!words)
		return -ENOMEM;
	*b = (struct ferry_bitmap){.words = words, .n_bits = n_bits};
	return 0;
}

void ferry_bitmap_use(struct ferry_bitmap *b, void *words, size_t n_bits)
{
	*b = (struct ferry_bitmap){.words = words, .n_bits = n_bits, .is_borrowed = true};
}

void ferry_bitmap_fini(struct ferry_bitmap *b)
{
	if (!b->is_borrowed)
		free((void *)b->words);
	*b = (struct ferry_bitmap){0};
}

/* The bits of word @w that lie in [first, end). */
static uint64_t word_mask(size_t w, size_t first, size_t end)
{
	uint64_t mask = ~UINT64_C(0);

	if (w == first / 64)
		mask &= ~UINT64_C(0) << (first % 64);
	if (w == (end - 1) / 64)
		mask &= ~UINT64_C(0) >> (63 - (end - 1) % 64);
	return mask;
}

size_t ferry_bitmap_set_range(struct ferry_bitmap *b, size_t first, size_t n)
{
	size_t end = first + n, changed = 0;

	if (!n)
		return 0;
	for (size_t w = first / 64; w <= (end - 1) / 64; w++) {
		uint64_t mask = word_mask(w, first, end);
		uint64_t old = atomic_fetch_or_explicit(&b->words[w], mask, memory_order_seq_cst);

		changed += (size_t)__builtin_popcountll(mask & ~old);
	}
	return changed;
}

size_t ferry_bitmap_clear_range(struct ferry_bitmap *b, size_t first, size_t n)
{
	size_t end = first + n, changed = 0;

	if (!n)
		return 0;
	for (size_t w = first / 64; w <= (end - 1) / 64; w++) {
		uint64_t mask = word_mask(w, first, end);
		uint64_t old = atomic_fetch_and_explicit(&b->words[w], ~mask, memory_order_seq_cst);

		changed += (size_t)__builtin_popcountll(mask & old);
	}
	return changed;
}

/* Looks for a bit that differs from @invert's: 0 finds set bits, ~0 finds clear ones. */
static size_t next(const struct ferry_bitmap *b, size_t from, size_t end, uint64_t invert)
{
	if (from >= end)
		return end;
	for (size_t w = from / 64; w <= (end - 1) / 64; w++) {
		uint64_t v = atomic_load_explicit(&b->words[w], memory_order_seq_cst) ^ invert;

		v &= word_mask(w, from, end);
		if (v)
			return w * 64 + (size_t)__builtin_ctzll(v);
	}
	return end;
}

size_t ferry_bitmap_next_set(const struct ferry_bitmap *b, size_t from, size_t end)
{
	return next(b, from, end, 0);
}

size_t ferry_bitmap_next_clear(const struct ferry_bitmap *b, size_t from, size_t end)
{
	return next(b, from, end, ~UINT64_C(0));
}

size_t ferry_bitmap_next_clear_run(const struct ferry_bitmap *b, size_t from, size_t end,
				   size_t max, size_t *to)
{
	size_t first = ferry_bitmap_next_clear(b, from, end);

	*to = first == end
		      ? end
		      : ferry_bitmap_next_set(b, first + 1, first + FERRY_MIN(max, end - first));
	return first;
}

size_t ferry_bitmap_prev_clear(const struct ferry_bitmap *b, size_t from, size_t begin)
{
	if (from <= begin)
		return SIZE_MAX;
	for (size_t w = (from - 1) / 64 + 1; w-- > begin / 64;) {
		uint64_t v = ~atomic_load_explicit(&b->words[w], memory_order_seq_cst);

		v &= word_mask(w, begin, from);
		if (v)
			return w * 64 + 63 - (size_t)__builtin_clzll(v);
	}
	return SIZE_MAX;
}

size_t ferry_bitmap_count(const struct ferry_bitmap *b)
{
	size_t n = 0;

	for (size_t w = 0; w < ferry_bitmap_n_words(b->n_bits); w++)
		n += (size_t)__builtin_popcountll(
			atomic_load_explicit(&b->words[w], memory_order_seq_cst));
	return n;
}

void ferry_bitmap_export(const struct ferry_bitmap *b, size_t first, size_t n, uint8_t *out)
{
	for (size_t i = 0; i < ferry_bitmap_n_bytes(n); i++) {
		size_t bit = first + i * 8;
		uint64_t v = atomic_load_explicit(&b->words[bit / 64], memory_order_seq_cst);
		uint8_t byte = (uint8_t)(v >> (bit % 64));

		if (n - i * 8 < 8)
			byte &= (uint8_t)((1u << (n - i * 8)) - 1);
		out[i] = byte;
	}
}

void ferry_bitmap_import(struct ferry_bitmap *b, size_t first, size_t n, const uint8_t *in)
{
	for (size_t i = 0; i < ferry_bitmap_n_bytes(n); i++) {
		size_t bit = first + i * 8;
		uint8_t byte = in[i];

		if (n - i * 8 < 8)
			byte &= (uint8_t)((1u << (n - i * 8)) - 1);
		atomic_fetch_or_explicit(&b->words[bit / 64], (uint64_t)byte << (bit % 64),
					 memory_order_seq_cst);
	}
}
