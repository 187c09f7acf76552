/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the parts of the benchmark's program share. It measures one thing a run, prints one JSON object
 * a line, and ends the process with a line on standard error when something fails: bench/run tells.
 */
#ifndef FERRY_BENCH_H
#define FERRY_BENCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#define BENCH_PAGE 4096u
/* Content comes in stripes of this size, so that what lies between them are large holes. */
#define BENCH_STRIPE_PAGES 512u

struct bench_options {
	const char *from, *to, *file, *memory, *via, *what;
	uint64_t bytes;
	uint32_t threads, faults, every, clients, delay_us;
	bool push;
};

int bench_floor(const struct bench_options *o);	      /* floors.c */
int bench_link(const struct bench_options *o);	      /* link.c */
int bench_forward(const struct bench_options *o);     /* forward.c */
int bench_content(const struct bench_options *o);     /* content.c */
int bench_plain_serve(const struct bench_options *o); /* plain.c */
int bench_target(const struct bench_options *o);      /* target.c */
int bench_clients(const struct bench_options *o);     /* clients.c */
int bench_plain_handler(const struct bench_options *o); /* plain_handler.c */

/* --- util.c ------------------------------------------------------------------------------------ */

uint64_t bench_now_ns(void);

/* printf() to standard error, with errno's text behind it when it is set, and the end. */
_Noreturn void bench_die(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Latencies in nanoseconds. */
struct bench_samples {
	uint32_t *ns; /* owned */
	uint32_t n, max;
};

void bench_samples_init(struct bench_samples *s, uint32_t max);
void bench_samples_fini(struct bench_samples *s);
/* Beyond ->max nothing is kept. */
void bench_samples_add(struct bench_samples *s, uint64_t ns);
void bench_samples_merge(struct bench_samples *s, const struct bench_samples *from);
/* "NAME":{"n":..,"p50":..,"p90":..,"p99":..,"max":..} in microseconds. Sorts. */
void bench_samples_print(struct bench_samples *s, const char *name);

/* Fresh memory: "anon" (private) or "shared" (a memfd of its own, which is closed). */
void *bench_map(const char *kind, uint64_t bytes);

/* A listening TCP socket on loopback, and the port that the kernel chose. */
int bench_listen(uint16_t *port);
int bench_accept(int listen_fd);
/* @address: "127.0.0.1:PORT" */
int bench_dial(const char *address);
int bench_dial_port(uint16_t port);
/* All of it. Return: false when the peer is gone. */
bool bench_read(int fd, void *to, size_t n);
bool bench_write(int fd, const void *from, size_t n);

/* Starts a thread that nobody joins. */
void bench_spawn(void *(*run)(void *), void *arg);

/* --- uffd.c ------------------------------------------------------------------------------------ */

/* Registered for missing pages (and minor faults if @minor). */
int bench_uffd_open(void *start, uint64_t bytes, bool minor);
/* The page of the next message; sleeps in poll for at most @timeout_ms. Return: false: none came. */
bool bench_uffd_next(int uffd, int timeout_ms, uint64_t *address);
void bench_uffd_copy(int uffd, uint64_t to, const void *from, uint64_t bytes);

/* --- forward.c --------------------------------------------------------------------------------- */

/* Forwards connections to @to, each byte @delay_us late. Return: the port to dial instead. */
uint16_t bench_forward_start(const char *to, uint32_t delay_us);

/* --- content.c --------------------------------------------------------------------------------- */

/* What every word of a page has: zero for pages of the holes. @every: one stripe of so many is data. */
uint64_t bench_word(uint64_t page, uint32_t every);
/* Ends the process when a page is wrong: a benchmark of wrong memory is worth nothing. */
void bench_check(const void *memory, uint64_t bytes, uint32_t every);

/* --- plain.c ----------------------------------------------------------------------------------- */

struct bench_plain;

/* Serves @memory's faults one at a time from a server; with @fill, and fetches page by page meanwhile. */
struct bench_plain *bench_plain_start(void *memory, uint64_t bytes, const char *from);
void bench_plain_fill(struct bench_plain *p);
/* Sleeps until all is there. */
void bench_plain_wait(struct bench_plain *p);
/* Faults, message read to woken. */
struct bench_samples *bench_plain_samples(struct bench_plain *p);

#endif
