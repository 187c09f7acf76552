/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Every interleaving of a switchover: both sides' deciding cores, the messages between them, a link
 * that is cut at any moment, VMMs that die, users who stop, processes that are killed, and steps that
 * fail. All states that can be reached are visited, breadth first, with a limited number of
 * disturbances of each kind.
 *
 * Checked in each state
 *   - the guest does not run on both sides, and never at the source once it has run at the target
 *   - the two cores never both say that they own the guest
 *   - where nothing can happen any more: the guest runs somewhere, unless its VMM has died, its
 *     owner's process was killed, or the user stopped a side that says that the guest waits
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "migrate/switch_core.h"

#define QUEUE	  6
#define MAX_STATES (1u << 17)

/* What one side has before it, beside its core's state. */
struct side {
	uint8_t state;
	bool alive;	  /* our process */
	bool vmm, runs;   /* the VMM is there; the guest runs in it */
	bool link;	  /* it thinks that the connection is there */
	bool completes;	  /* the engine's Complete may come */
	uint32_t pending; /* bit e: local event e will come, or fail */
	uint8_t n_in;
	uint8_t in[QUEUE]; /* events of the peer's messages, oldest first */
};

struct state {
	struct side side[2]; /* source, target */
	uint8_t cuts, failures, user_stops, vmm_deaths, kills; /* that may still happen */
	bool ran_at_target, redialing;
	uint8_t pad[3];
};

struct node {
	struct state s;
	uint32_t parent;
	const char *how;
	uint8_t who, event;
};

struct search {
	struct node *nodes;
	uint32_t n_nodes, *table; /* open addressing, index + 1 */
	uint32_t n_ends;
};

#define TABLE (MAX_STATES * 2)

static const char *const side_names[] = {"source", "target"};

static void load_core(struct ferry_switch *core, const struct state *s, unsigned int i)
{
	ferry_switch_init(core, i ? FERRY_SIDE_TARGET : FERRY_SIDE_SOURCE);
	core->machine.state = s->side[i].state;
}

static void print_path(const struct search *q, uint32_t i)
{
	const struct node *n = &q->nodes[i];
	struct ferry_switch core[2];

	if (i)
		print_path(q, n->parent);
	for (unsigned int k = 0; k < 2; k++)
		load_core(&core[k], &n->s, k);
	fprintf(stderr, "  %-8s %-16s %-20s -> %s%s | %s%s\n", i ? side_names[n->who] : "", i ? n->how : "start",
		i ? ferry_switch_event_name(n->event) : "", ferry_machine_state_name(&core[0].machine),
		n->s.side[0].runs ? " (runs)" : "", ferry_machine_state_name(&core[1].machine),
		n->s.side[1].runs ? " (runs)" : "");
}

static void fail(const struct search *q, uint32_t i, const char *what)
{
	fprintf(stderr, "sim_switch: %s\n", what);
	print_path(q, i);
	exit(1);
}

static uint64_t hash(const struct state *s)
{
	const uint8_t *p = (const uint8_t *)s;
	uint64_t h = UINT64_C(0xcbf29ce484222325);

	for (size_t i = 0; i < sizeof(*s); i++)
		h = (h ^ p[i]) * UINT64_C(0x100000001b3);
	return h ^ h >> 29;
}

static void add(struct search *q, const struct state *s, uint32_t parent, unsigned int who,
		unsigned int event, const char *how)
{
	uint64_t i = hash(s) % TABLE;

	for (; q->table[i]; i = (i + 1) % TABLE)
		if (!memcmp(&q->nodes[q->table[i] - 1].s, s, sizeof(*s)))
			return;
	if (q->n_nodes == MAX_STATES) {
		fprintf(stderr, "sim_switch: more than %u states\n", MAX_STATES);
		exit(1);
	}
	q->nodes[q->n_nodes] =
		(struct node){.s = *s, .parent = parent, .how = how, .who = (uint8_t)who, .event = (uint8_t)event};
	q->table[i] = ++q->n_nodes;
}

/* --- what actions do ---------------------------------------------------------------------- */

static void tell(struct state *s, unsigned int from, unsigned int event)
{
	struct side *to = &s->side[!from];

	/* Sent into a link that is down, or whose other end is gone, a message is lost. */
	if (!s->side[from].link || !to->link || !to->alive)
		return;
	if (to->n_in == QUEUE) {
		fprintf(stderr, "sim_switch: a queue is too short\n");
		exit(1);
	}
	to->in[to->n_in++] = (uint8_t)event;
}

static void expect(struct side *x, unsigned int event)
{
	x->pending |= 1u << event;
}

static void perform(struct state *s, unsigned int i, unsigned int action)
{
	struct side *x = &s->side[i];

	switch (action) {
	case FERRY_DO_SEND_PREPARE:
		tell(s, i, FERRY_EV_PREPARE);
		break;
	case FERRY_DO_DIAL_PAGES:
		expect(x, FERRY_EV_PAGES_OPEN);
		break;
	case FERRY_DO_START_STATE:
		expect(x, FERRY_EV_GUEST_STOPPED);
		tell(s, i, FERRY_EV_STATE);
		break;
	case FERRY_DO_SEND_STOPPED:
		expect(x, FERRY_EV_STATE_SENT);
		tell(s, i, FERRY_EV_STOPPED);
		break;
	case FERRY_DO_SEND_STATE_END:
		tell(s, i, FERRY_EV_STATE_END);
		break;
	case FERRY_DO_SEND_COMMIT:
		tell(s, i, FERRY_EV_COMMIT);
		break;
	case FERRY_DO_REDIAL:
		s->redialing = true;
		break;
	case FERRY_DO_CONT_GUEST:
		x->runs = x->vmm;
		break;
	case FERRY_DO_ATTACH:
		expect(x, FERRY_EV_ATTACHED);
		break;
	case FERRY_DO_SEND_PREPARED:
		tell(s, i, FERRY_EV_PREPARED);
		break;
	case FERRY_DO_SEND_LOADED:
		tell(s, i, FERRY_EV_LOADED);
		break;
	case FERRY_DO_RUN_GUEST:
		expect(x, FERRY_EV_GUEST_RUNS);
		break;
	case FERRY_DO_SEND_RUNNING:
		tell(s, i, FERRY_EV_RUNNING);
		break;
	case FERRY_DO_PUSH:
		x->completes = true;
		break;
	case FERRY_DO_TELL_ABORT:
		tell(s, i, FERRY_EV_ABORT);
		break;
	case FERRY_DO_TELL_LOST:
		tell(s, i, FERRY_EV_PEER_LOST);
		break;
	}
}

/* Let side @i take an event, as its driver does. */
static void step(struct search *q, uint32_t parent, struct state s, unsigned int i,
		 unsigned int event, const char *how)
{
	struct side *x = &s.side[i];
	struct ferry_switch_actions actions;
	enum ferry_outcome outcome;
	struct ferry_switch core;
	unsigned int took = event;

	load_core(&core, &s, i);
	if (ferry_switch_is_over(&core, &outcome))
		return;
	if (took == FERRY_EV_GUEST_STOPPED)
		x->runs = false;
	if (took == FERRY_EV_GUEST_RUNS)
		x->runs = s.ran_at_target = x->vmm;
	while (ferry_switch_step(&core, took, &actions) < 0) {
		if (took == FERRY_EV_FAILED || took == FERRY_EV_LINK_LOST)
			fail(q, parent, "a failure has no place");
		/* Out of place: a failure before the commit, a broken link after it. */
		if (!ferry_switch_is_committed(&core)) {
			took = FERRY_EV_FAILED;
		} else {
			took = FERRY_EV_LINK_LOST;
			x->link = false;
			x->n_in = 0;
			if (s.side[!i].link)
				expect(&s.side[!i], FERRY_EV_LINK_LOST);
		}
	}
	if (core.machine.state != x->state && (core.machine.state == FERRY_SRC_UNDOING && !i))
		x->pending = 0;
	x->state = (uint8_t)core.machine.state;
	/* After the state has moved the process may die before any of the actions. */
	if (s.kills && actions.n) {
		struct state dead = s;

		dead.kills--;
		dead.side[i].alive = dead.side[i].link = false;
		dead.side[i].pending = 0;
		dead.side[i].n_in = 0;
		if (dead.side[!i].link)
			expect(&dead.side[!i], FERRY_EV_LINK_LOST);
		add(q, &dead, parent, i, took, "killed at");
	}
	for (unsigned int k = 0; k < actions.n; k++)
		perform(&s, i, actions.list[k]);
	if ((!i && x->state == FERRY_SRC_UNDOING) || (i && x->state == FERRY_TGT_UNDOING)) {
		x->pending = 0;
		expect(x, x->vmm ? FERRY_EV_UNDONE : FERRY_EV_VMM_GONE);
	}
	/* A side that is done closes its connection. */
	load_core(&core, &s, i);
	if (ferry_switch_is_over(&core, &outcome)) {
		x->link = false;
		x->n_in = 0;
		x->pending = 0;
		if (s.side[!i].link && s.side[!i].alive)
			expect(&s.side[!i], FERRY_EV_LINK_LOST);
	}
	add(q, &s, parent, i, took, how);
}

/* --- what may happen next ----------------------------------------------------------------- */

/* A side that undoes goes through its list and looks at nothing else. */
static bool is_undoing(const struct state *s, unsigned int i)
{
	return s->side[i].state == (i ? (unsigned int)FERRY_TGT_UNDOING : FERRY_SRC_UNDOING);
}

static bool is_over(const struct state *s, unsigned int i, enum ferry_outcome *outcome)
{
	struct ferry_switch core;

	load_core(&core, s, i);
	return ferry_switch_is_over(&core, outcome);
}

/* Local steps that may as well fail. */
static bool may_fail(unsigned int event)
{
	return event == FERRY_EV_PAGES_OPEN || event == FERRY_EV_GUEST_STOPPED ||
	       event == FERRY_EV_STATE_SENT || event == FERRY_EV_ATTACHED ||
	       event == FERRY_EV_VMM_LOADED || event == FERRY_EV_GUEST_RUNS ||
	       event == FERRY_EV_CHECKED;
}

static void local_events(struct search *q, uint32_t n, unsigned int i)
{
	const struct state *now = &q->nodes[n].s;

	for (unsigned int e = 0; e < FERRY_N_EVENTS; e++) {
		struct state s = *now;

		if (!(now->side[i].pending & 1u << e))
			continue;
		if (is_undoing(now, i) && e != FERRY_EV_UNDONE && e != FERRY_EV_VMM_GONE)
			continue;
		s.side[i].pending &= ~(1u << e);
		if (e == FERRY_EV_LINK_LOST) {
			/* What had arrived before is read first, or was lost: both are tried. */
			s.side[i].link = false;
			s.side[i].n_in = 0;
		}
		step(q, n, s, i, e, "");
		if (may_fail(e) && now->failures) {
			s = *now;
			s.failures--;
			s.side[i].pending &= ~(1u << e);
			step(q, n, s, i,
			     e == FERRY_EV_GUEST_RUNS ? FERRY_EV_RUN_REFUSED : FERRY_EV_FAILED, "fails");
		}
	}
}

/* The target reads its first message when it has looked at its VMM. */
static bool may_receive(const struct state *s, unsigned int i)
{
	return s->side[i].n_in && s->side[i].link && !is_undoing(s, i) &&
	       (!i || s->side[1].state != FERRY_TGT_CHECKING);
}

static void receive_message(struct search *q, uint32_t n, unsigned int i)
{
	struct state s = q->nodes[n].s;
	struct side *x = &s.side[i];
	unsigned int event = x->in[0];

	memmove(x->in, x->in + 1, QUEUE - 1);
	x->in[QUEUE - 1] = 0;
	x->n_in--;
	/* The VMM loads once it has everything. */
	if (event == FERRY_EV_STATE_END)
		expect(x, FERRY_EV_VMM_LOADED);
	step(q, n, s, i, event, "receives");
}

static void lose_link(struct state *s)
{
	for (unsigned int i = 0; i < 2; i++)
		if (s->side[i].link)
			expect(&s->side[i], FERRY_EV_LINK_LOST);
}

static void complete(struct search *q, uint32_t n)
{
	struct state s = q->nodes[n].s;

	/* Everything is there: the target hears it first, the source by Complete. */
	s.side[1].completes = false;
	s.side[0].completes = true;
	step(q, n, s, 1, FERRY_EV_COMPLETE, "");
}

static void redial(struct search *q, uint32_t n)
{
	struct state s = q->nodes[n].s;

	s.redialing = false;
	for (unsigned int i = 0; i < 2; i++) {
		s.side[i].link = true;
		s.side[i].n_in = 0;
		s.side[i].pending &= ~(1u << FERRY_EV_LINK_LOST);
		expect(&s.side[i], FERRY_EV_LINK_UP);
	}
	add(q, &s, n, 0, FERRY_EV_LINK_UP, "dials again");
}

static void disturb(struct search *q, uint32_t n, unsigned int i)
{
	const struct state *now = &q->nodes[n].s;
	struct state s;

	if (now->user_stops && !is_undoing(now, i)) {
		s = *now;
		s.user_stops--;
		step(q, n, s, i, FERRY_EV_USER_STOP, "");
	}
	if (now->vmm_deaths && now->side[i].vmm) {
		s = *now;
		s.vmm_deaths--;
		s.side[i].vmm = s.side[i].runs = false;
		if (is_undoing(now, i))
			s.side[i].pending = 0;
		step(q, n, s, i, FERRY_EV_VMM_GONE, "");
	}
	if (now->kills) {
		s = *now;
		s.kills--;
		lose_link(&s);
		s.side[i].alive = s.side[i].link = false;
		s.side[i].pending = 0;
		s.side[i].n_in = 0;
		add(q, &s, n, i, FERRY_EV_NOTHING, "is killed");
	}
}

static void check(struct search *q, uint32_t n)
{
	const struct state *s = &q->nodes[n].s;
	struct ferry_switch core[2];

	for (unsigned int i = 0; i < 2; i++)
		load_core(&core[i], s, i);
	if (s->side[0].runs && s->side[1].runs)
		fail(q, n, "the guest runs on both sides");
	if (s->side[0].runs && s->ran_at_target)
		fail(q, n, "the guest runs at the source after it has run at the target");
	if (ferry_switch_owns_guest(&core[0]) && ferry_switch_owns_guest(&core[1]))
		fail(q, n, "both sides own the guest");
}

/* Nothing happens any more by itself. */
static void check_end(struct search *q, uint32_t n)
{
	const struct state *s = &q->nodes[n].s;
	enum ferry_outcome outcome;

	q->n_ends++;
	if (s->side[0].runs || s->side[1].runs)
		return;
	for (unsigned int i = 0; i < 2; i++) {
		if (!s->side[i].alive || !s->side[i].vmm)
			return;
		if (is_over(s, i, &outcome) && outcome == FERRY_OUTCOME_WAITS)
			return;
	}
	/* The VMM refused to run it, and we say so. */
	if (s->side[1].state == FERRY_TGT_HELD)
		return;
	fail(q, n, "the guest runs nowhere, and nobody says why");
}

static void expand(struct search *q, uint32_t n)
{
	const struct state *now = &q->nodes[n].s;
	bool moved = false;

	check(q, n);
	for (unsigned int i = 0; i < 2; i++) {
		enum ferry_outcome outcome;

		if (!now->side[i].alive || is_over(now, i, &outcome))
			continue;
		moved |= now->side[i].pending || may_receive(now, i);
		local_events(q, n, i);
		if (may_receive(now, i))
			receive_message(q, n, i);
		if (i == 1 && now->side[1].completes && now->side[1].state == FERRY_TGT_PUSHING) {
			moved = true;
			complete(q, n);
		}
		if (i == 0 && now->side[0].completes) {
			struct state s = *now;

			moved = true;
			s.side[0].completes = false;
			step(q, n, s, 0, FERRY_EV_COMPLETE, "");
		}
	}
	/* The source can be reached again as long as the target's process accepts. */
	if (now->redialing && now->side[0].alive && now->side[1].alive && !now->side[0].link) {
		enum ferry_outcome outcome;

		if (!is_over(now, 0, &outcome) && !is_over(now, 1, &outcome)) {
			moved = true;
			redial(q, n);
		}
	}
	if (!moved)
		check_end(q, n);
	for (unsigned int i = 0; i < 2; i++) {
		enum ferry_outcome outcome;

		if (now->side[i].alive && !is_over(now, i, &outcome))
			disturb(q, n, i);
	}
	if (now->cuts && (now->side[0].link || now->side[1].link)) {
		struct state s = *now;

		s.cuts--;
		lose_link(&s);
		add(q, &s, n, 0, FERRY_EV_LINK_LOST, "cut");
	}
}

static void explore(const char *name, uint8_t cuts, uint8_t failures, uint8_t user_stops,
		    uint8_t vmm_deaths, uint8_t kills)
{
	struct search q = {.nodes = calloc(MAX_STATES, sizeof(struct node)),
			   .table = calloc(TABLE, sizeof(uint32_t))};
	struct state s;

	if (!q.nodes || !q.table)
		exit(1);
	memset(&s, 0, sizeof(s));
	s.cuts = cuts;
	s.failures = failures;
	s.user_stops = user_stops;
	s.vmm_deaths = vmm_deaths;
	s.kills = kills;
	for (unsigned int i = 0; i < 2; i++) {
		s.side[i].alive = s.side[i].vmm = s.side[i].link = true;
		expect(&s.side[i], FERRY_EV_CHECKED);
	}
	s.side[0].state = FERRY_SRC_CHECKING;
	s.side[1].state = FERRY_TGT_CHECKING;
	s.side[0].runs = true;
	add(&q, &s, 0, 0, 0, "start");
	for (uint32_t n = 0; n < q.n_nodes; n++)
		expand(&q, n);
	printf("sim_switch: %s: %u states, %u ends: all right\n", name, q.n_nodes, q.n_ends);
	free(q.nodes);
	free(q.table);
}

int main(void)
{
	explore("undisturbed", 0, 0, 0, 0, 0);
	explore("3 cuts", 3, 0, 0, 0, 0);
	explore("3 cuts, two failing steps", 3, 2, 0, 0, 0);
	explore("2 cuts, a user who stops", 2, 0, 1, 0, 0);
	explore("2 cuts, a VMM that dies", 2, 0, 0, 1, 0);
	explore("2 cuts, a killed process", 2, 0, 0, 0, 1);
	explore("3 cuts and two of everything else", 3, 2, 2, 2, 2);
	return 0;
}
