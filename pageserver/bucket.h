/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A token bucket: bytes that may be sent at a rate. It may be overdrawn, and is paid back by time.
 * What is less than a byte is not lost between two looks, however slow the rate, or often one looks.
 * Pure: the time is an argument.
 */
#ifndef FERRY_PAGESERVER_BUCKET_H
#define FERRY_PAGESERVER_BUCKET_H

#include <stdint.h>

struct ferry_bucket {
	int64_t bytes;	/* that may be sent now */
	double rest;	/* less than one */
	uint64_t at_ns; /* when that was */
};

void ferry_bucket_take(struct ferry_bucket *b, uint64_t bytes);

/**
 * ferry_bucket_fill() - what has flowed in until @now_ns
 * @rate: bytes a second; 0 for no limit, which forgets what was overdrawn
 * @most: bytes that it holds; at least 1
 * Return: 0 when something may be sent, else the ns until then
 */
uint64_t ferry_bucket_fill(struct ferry_bucket *b, uint64_t rate, uint32_t most, uint64_t now_ns);

#endif
