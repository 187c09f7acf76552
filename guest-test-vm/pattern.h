/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the test guest writes into its pages, and how it finds out what went wrong with one.
 *
 * A page starts with three plain words (magic, page index, version), so that a person or a script
 * can find it in the guest's RAM file. Every word after that is an invertible mix of (page index,
 * version) and of the word's place in the page: any wrong byte is a mismatch, and a mismatching
 * word can be decoded again to say which page and which version it was written for.
 */
#ifndef PAGEFERRY_GUEST_PATTERN_H
#define PAGEFERRY_GUEST_PATTERN_H

#include <stdbool.h>
#include <stdint.h>

#define PATTERN_PAGE_BYTES 4096u
#define PATTERN_WORDS	   (PATTERN_PAGE_BYTES / sizeof(uint64_t))
/* "FERRYPG1" in memory on a little-endian machine */
#define PATTERN_MAGIC	     0x3147505952524546ULL
#define PATTERN_HEADER_WORDS 3u

/* Odd constants: multiplication by them is invertible modulo 2^64. */
#define PATTERN_MUL_NAME  0x9e3779b97f4a7c15ULL
#define PATTERN_MUL_WORD  0xbf58476d1ce4e5b9ULL
#define PATTERN_STEP_WORD 0x94d049bb133111ebULL

enum pattern_verdict {
	PATTERN_ZERO,	       /* the word is zero */
	PATTERN_OLDER_VERSION, /* this page's word, from an earlier version */
	PATTERN_NEWER_VERSION, /* this page's word, from a version not expected yet */
	PATTERN_OTHER_PAGE,    /* another page's word */
	PATTERN_GARBAGE,       /* never written by this guest at this place */
};

struct pattern_mismatch {
	uint64_t word_idx;
	uint64_t expected;
	uint64_t got;
	enum pattern_verdict verdict;
	uint32_t got_page; /* meaningful for OLDER, NEWER and OTHER_PAGE */
	uint32_t got_version;
	bool all_zero; /* the whole page is zero, not only this word */
};

static inline uint64_t pattern_key(uint64_t seed, uint32_t page, uint32_t version)
{
	uint64_t x = (((uint64_t)page << 32) | version) ^ seed;

	x *= PATTERN_MUL_NAME;
	return x ^ (x >> 32);
}

static inline uint64_t pattern_mix(uint64_t key, uint64_t word_idx)
{
	uint64_t x = (key + word_idx * PATTERN_STEP_WORD) * PATTERN_MUL_WORD;

	return x ^ (x >> 29);
}

/* Newton's iteration doubles the number of right low bits; an odd number starts with three. */
static inline uint64_t pattern_inverse(uint64_t odd)
{
	uint64_t inv = odd;

	for (int i = 0; i < 5; i++)
		inv *= 2 - odd * inv;
	return inv;
}

static inline uint64_t pattern_unmix(uint64_t seed, uint64_t word, uint64_t word_idx)
{
	uint64_t x = word ^ (word >> 29) ^ (word >> 58);

	x = x * pattern_inverse(PATTERN_MUL_WORD) - word_idx * PATTERN_STEP_WORD;
	x ^= x >> 32;
	return (x * pattern_inverse(PATTERN_MUL_NAME)) ^ seed;
}

static inline uint64_t pattern_word(uint64_t key, uint32_t page, uint32_t version, uint64_t idx)
{
	switch (idx) {
	case 0:
		return PATTERN_MAGIC;
	case 1:
		return page;
	case 2:
		return version;
	default:
		return pattern_mix(key, idx);
	}
}

static inline void pattern_write(volatile uint64_t *words, uint64_t seed, uint32_t page,
				 uint32_t version)
{
	uint64_t key = pattern_key(seed, page, version);

	words[0] = PATTERN_MAGIC;
	words[1] = page;
	words[2] = version;
	for (uint64_t i = PATTERN_HEADER_WORDS; i < PATTERN_WORDS; i++)
		words[i] = pattern_mix(key, i);
}

/* Reads every word, without an early way out: a check must touch the whole page. */
static inline bool pattern_matches(const volatile uint64_t *words, uint64_t seed, uint32_t page,
				   uint32_t version)
{
	uint64_t key = pattern_key(seed, page, version);
	uint64_t wrong = words[0] ^ PATTERN_MAGIC;

	wrong |= words[1] ^ page;
	wrong |= words[2] ^ version;
	for (uint64_t i = PATTERN_HEADER_WORDS; i < PATTERN_WORDS; i++)
		wrong |= words[i] ^ pattern_mix(key, i);
	return !wrong;
}

/*
 * Says what the first wrong word is. False if there is none (any more): the page was wrong when it
 * was checked and is right now, which the caller reports as well.
 */
static inline bool pattern_diagnose(const volatile uint64_t *words, uint64_t seed, uint32_t n_pages,
				    uint32_t page, uint32_t version, struct pattern_mismatch *out)
{
	uint64_t key = pattern_key(seed, page, version);
	uint64_t first = PATTERN_WORDS;
	uint64_t any = 0;
	uint64_t name;

	for (uint64_t i = 0; i < PATTERN_WORDS; i++) {
		uint64_t got = words[i];
		uint64_t expected = pattern_word(key, page, version, i);

		any |= got;
		if (got != expected && first == PATTERN_WORDS) {
			first = i;
			out->word_idx = i;
			out->expected = expected;
			out->got = got;
		}
	}
	if (first == PATTERN_WORDS)
		return false;

	if (first < PATTERN_HEADER_WORDS)
		name = (words[1] << 32) | (words[2] & UINT32_MAX);
	else
		name = pattern_unmix(seed, out->got, first);
	out->got_page = name >> 32;
	out->got_version = (uint32_t)name;
	out->all_zero = !any;

	if (!out->got)
		out->verdict = PATTERN_ZERO;
	else if (first == 0 || out->got_page >= n_pages || !out->got_version)
		out->verdict = PATTERN_GARBAGE;
	else if (out->got_page != page)
		out->verdict = PATTERN_OTHER_PAGE;
	else if (out->got_version < version)
		out->verdict = PATTERN_OLDER_VERSION;
	else
		out->verdict = PATTERN_NEWER_VERSION;
	return true;
}

#endif
