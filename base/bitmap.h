/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Bitmaps of pages. One bit a page; bit i of the map is bit i % 64 of word i / 64. Single bits are
 * set and cleared atomically and sequentially consistent, so that several threads can share maps
 * ("I set a here, then look at b" on one thread and the mirror of it on another never both miss);
 * a search sees each word at some moment during the search. Bits past n_bits are always zero.
 */
#ifndef FERRY_BASE_BITMAP_H
#define FERRY_BASE_BITMAP_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct ferry_bitmap {
	_Atomic uint64_t *words; /* owned, unless ->is_borrowed */
	size_t n_bits;
	bool is_borrowed;
};

/* Errors: -ENOMEM. The map starts all zero. n_bits may be 0. */
int ferry_bitmap_init(struct ferry_bitmap *b, size_t n_bits);
void ferry_bitmap_fini(struct ferry_bitmap *b);

/* A map in memory of the caller's, ferry_bitmap_n_words(n_bits) words, as it is there. @words:
 * borrowed until _fini. */
void ferry_bitmap_use(struct ferry_bitmap *b, void *words, size_t n_bits);

static inline size_t ferry_bitmap_n_words(size_t n_bits)
{
	return (n_bits + 63) / 64;
}

static inline bool ferry_bitmap_test(const struct ferry_bitmap *b, size_t i)
{
	return atomic_load_explicit(&b->words[i / 64], memory_order_seq_cst) >> (i % 64) & 1;
}

/* Return: whether the bit was set before. */
static inline bool ferry_bitmap_test_and_set(struct ferry_bitmap *b, size_t i)
{
	uint64_t bit = UINT64_C(1) << (i % 64);

	return atomic_fetch_or_explicit(&b->words[i / 64], bit, memory_order_seq_cst) & bit;
}

static inline bool ferry_bitmap_test_and_clear(struct ferry_bitmap *b, size_t i)
{
	uint64_t bit = UINT64_C(1) << (i % 64);

	return atomic_fetch_and_explicit(&b->words[i / 64], ~bit, memory_order_seq_cst) & bit;
}

/*
 * Set or clear @n bits from @first on. Return: how many of them changed.
 */
size_t ferry_bitmap_set_range(struct ferry_bitmap *b, size_t first, size_t n);
size_t ferry_bitmap_clear_range(struct ferry_bitmap *b, size_t first, size_t n);

/* Return: the first set (or clear) bit at or after @from and below @end, or @end. */
size_t ferry_bitmap_next_set(const struct ferry_bitmap *b, size_t from, size_t end);
size_t ferry_bitmap_next_clear(const struct ferry_bitmap *b, size_t from, size_t end);

/*
 * The next run of clear bits at or after @from and below @end, no longer than @max: from the value
 * returned to below @to; both are @end when there is none. A run that was found has a bit at least,
 * whatever other threads set meanwhile: two searches, one for each end, could come out empty.
 */
size_t ferry_bitmap_next_clear_run(const struct ferry_bitmap *b, size_t from, size_t end,
				   size_t max, size_t *to);

/* Return: the last clear bit below @from and at or after @begin, or SIZE_MAX. */
size_t ferry_bitmap_prev_clear(const struct ferry_bitmap *b, size_t from, size_t begin);

size_t ferry_bitmap_count(const struct ferry_bitmap *b);

/*
 * The wire form: little-endian 64-bit words, cut to whole bytes of n_bits. _export writes
 * ferry_bitmap_n_bytes(n) bytes of the bits [first, first + n), first a multiple of 64. _import
 * ORs them in and ignores bits past n.
 */
static inline size_t ferry_bitmap_n_bytes(size_t n_bits)
{
	return (n_bits + 7) / 8;
}
void ferry_bitmap_export(const struct ferry_bitmap *b, size_t first, size_t n, uint8_t *out);
void ferry_bitmap_import(struct ferry_bitmap *b, size_t first, size_t n, const uint8_t *in);

#endif
