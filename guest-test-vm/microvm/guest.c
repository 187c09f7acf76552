/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The guest: fills its memory with pages that carry their number and version, then checks and
 * rewrites them for ever. Runs at privilege level 3 in long mode, without system calls, interrupts,
 * a C library or floating point. Its whole state is its general registers and its memory.
 */
#include "layout.h"

#define WORDS	  (MICROVM_PAGE / 8)
#define MIX	  0x9e3779b97f4a7c15ull
#define WORD_STEP 0xd1342543de82ef95ull

struct guest {
	struct microvm_control *control;
	struct microvm_vcpu_control *mine;
	uint32_t *table;
	uint64_t id;
	uint64_t random;
	uint64_t cursor;
	uint64_t last_tick;
};

/* A count that stays in a register while the compiler can't know what becomes of it. */
#define IN_REGISTER(n) __asm__ volatile("" : "+r"(n))

void guest_main(uint64_t id);

static uint64_t ticks(void)
{
	uint32_t low, high;

	__asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
	return (uint64_t)high << 32 | low;
}

/* Two bytes, "mov %eax,(%rdi)": a host that can't complete the store steps over it. */
static void ring(enum microvm_report report)
{
	__asm__ volatile(".byte 0x89, 0x07" : : "a"(report), "D"(MICROVM_DOORBELL) : "memory");
}

static volatile uint64_t *page_at(const struct guest *g, uint64_t page)
{
	return (volatile uint64_t *)(MICROVM_BASE + g->control->data + page * MICROVM_PAGE);
}

static uint64_t first_word(const struct guest *g, uint64_t page, uint64_t version)
{
	return (page * MIX ^ version) * MIX + g->control->seed;
}

static void write_page(struct guest *g, uint64_t page, uint32_t version)
{
	volatile uint64_t *p = page_at(g, page);
	uint64_t w = first_word(g, page, version);

	p[0] = page;
	p[1] = version;
	for (uint64_t i = 2; i < WORDS; i++, w += WORD_STEP)
		p[i] = w;
	g->table[page] = version;
	g->mine->writes++;
}

static void note_bad(struct guest *g, uint64_t page, uint64_t word, uint64_t value)
{
	struct microvm_vcpu_control *m = g->mine;

	if (!m->bad_pages++) {
		m->bad_page = page;
		m->bad_version = g->table[page];
		m->bad_word = word;
		m->bad_value = value;
	}
	g->table[page] |= MICROVM_BAD;
}

/* Look at every byte of a page. Return: 1 when it is as it was written last. */
static int check_page(struct guest *g, uint64_t page)
{
	volatile uint64_t *p = page_at(g, page);
	uint32_t version = g->table[page];
	uint64_t w, v;

	if (version & MICROVM_BAD)
		return 0;
	w = first_word(g, page, version);
	for (uint64_t i = 0; i < WORDS; i++) {
		uint64_t expected = i == 0 ? page : i == 1 ? version : w;

		v = p[i];
		if (v != expected) {
			note_bad(g, page, i, v);
			return 0;
		}
		if (i >= 2)
			w += WORD_STEP;
	}
	return 1;
}

static uint64_t next_random(struct guest *g)
{
	g->random ^= g->random << 13;
	g->random ^= g->random >> 7;
	g->random ^= g->random << 17;
	return g->random;
}

static uint64_t own_pages(const struct guest *g)
{
	const struct microvm_control *c = g->control;

	return (c->n_pages - g->id + c->n_vcpus - 1) / c->n_vcpus;
}

static void operate(struct guest *g)
{
	const struct microvm_control *c = g->control;
	uint64_t n = own_pages(g), nth, page;
	int write;

	if (c->workload == MICROVM_SEQUENTIAL) {
		nth = g->cursor++ % n;
		write = !(g->cursor & 3);
	} else {
		uint64_t r = next_random(g);

		if (c->workload == MICROVM_HOT && (r >> 2 & 63) < 58)
			n = n > 10 ? n / 10 : 1;
		nth = (r >> 8) % n;
		write = c->workload == MICROVM_WRITES || !(r & 3);
	}
	page = nth * c->n_vcpus + g->id;
	if (check_page(g, page) && write)
		write_page(g, page, (g->table[page] + 1) & ~MICROVM_BAD);
	g->mine->ops++;
}

static void measure(struct guest *g)
{
	uint64_t now = ticks(), gap = now - g->last_tick, us;
	struct microvm_vcpu_control *m = g->mine;
	unsigned int bucket = 0;

	g->last_tick = now;
	/* Another host may have another counter, which can be behind. */
	if ((int64_t)gap < 0)
		return;
	us = gap / g->control->ticks_per_us;
	if (us > m->stall_max_us)
		m->stall_max_us = us;
	if (us > 100)
		m->stalls_over_100us++;
	for (; us && bucket < MICROVM_BUCKETS - 1; us >>= 1)
		bucket++;
	m->stalls[bucket]++;
}

static void obey(struct guest *g)
{
	struct microvm_vcpu_control *m = g->mine;

	if (m->stop_at_ops && m->ops >= m->stop_at_ops) {
		m->stop_at_ops = 0;
		ring(MICROVM_REACHED);
	}
	if (m->verify) {
		for (uint64_t p = g->id; p < g->control->n_pages; p += g->control->n_vcpus)
			check_page(g, p);
		m->verify = 0;
		ring(MICROVM_VERIFIED);
		g->last_tick = ticks();
	}
}

__attribute__((section(".text.entry"), noreturn)) void guest_main(uint64_t id)
{
	struct guest g = {.control = (struct microvm_control *)MICROVM_BASE,
			  .table = (uint32_t *)(MICROVM_BASE + MICROVM_TABLE),
			  .id = id};
	uint64_t steps = 0;

	g.mine = &g.control->vcpu[id];
	g.random = (g.control->seed + id) * MIX | 1;
	for (uint64_t p = id; p < g.control->n_pages; p += g.control->n_vcpus)
		write_page(&g, p, 1);
	ring(MICROVM_READY);
	g.last_tick = ticks();
	for (;;) {
		obey(&g);
		operate(&g);
		measure(&g);
		/* Memory alone could go on with registers of an earlier time, and be right. */
		steps++;
		IN_REGISTER(steps);
		if (steps != g.mine->ops) {
			g.mine->bad_steps++;
			steps = g.mine->ops;
		}
	}
}
