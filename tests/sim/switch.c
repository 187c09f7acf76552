/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Every interleaving of a switchover: both sides' deciding cores, the messages between them, a link
 * that is cut at any moment, VMMs that die, users who stop, processes that are killed and started
 * again, and steps that fail. All states that can be reached are visited, breadth first, with a
 * limited number of disturbances of each kind.
 *
 *   sim_switch [--deep]
 *
 * Each side has its record, which outlives it; RECORD in the core's rules says when it is written.
 * A side may be killed before, between and after the actions of a step. Somebody always starts it
 * again; what it then does is decided by the real code from the record and from its VMM, which is
 * played here. A side that has ended by itself may be started again, or not.
 *
 * Checked in each state
 *   - the guest does not run on both sides, and never at the source once it has run at the target
 *   - the two sides never both own the guest, by their cores or, when they are dead, their records;
 *     it runs on none that does not
 *   - a side that has ended says what is true: that the guest is here, and it runs; that it is
 *     lost, and it does not; that it waits, and there is a record to go on from
 * and where nothing can happen any more
 *   - the guest runs somewhere, unless its VMM has died, or refuses to run it, or a side that a
 *     user has stopped, or where a step has failed, says that the guest waits
 *   - at the target it has all its pages, with the same exceptions
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "migrate/switch_core.h"

#define QUEUE 6

/* What one side has before it, beside its core's state. */
struct side {
	uint8_t state;
	bool alive;	   /* our process */
	bool vmm, runs;	   /* the VMM is there; the guest runs in it */
	bool told;	   /* target: the VMM was told to load, and can't begin anew */
	bool link;	   /* it thinks that the connection is there */
	bool completes;	   /* target: the push is under way */
	bool sent_all;	   /* source: the target may have loaded the guest */
	bool untold;	   /* source: and could not be told that the guest stays here */
	bool record_stays; /* source: nothing could be done about it */
	bool refused;	   /* target: the VMM would not run the guest */
	uint8_t phase;	   /* of its record; 0: there is none. Outlives the process */
	uint8_t session;   /* of its record, or its link; 0: the target's seat is free */
	uint8_t n_in;
	uint8_t in[QUEUE]; /* events of the peer's messages, oldest first */
	uint32_t pending;  /* bit e: local event e will come, or fail */
};

struct budget {
	uint8_t cuts, failures, user_stops, vmm_deaths, kills;
	uint8_t attempts; /* switchovers that the source may begin */
};

struct state {
	struct side side[2]; /* source, target */
	struct budget left;  /* what may still happen */
	bool ran_at_target, redialing;
	bool has_all;	 /* the target has every page */
	bool unrecorded; /* the target could not write down that the guest is its own */
	bool pad[2];
};

/* It is compared by its bytes. */
_Static_assert(sizeof(struct state) == 60, "there is padding");

struct node {
	struct state s;
	uint32_t parent;
	const char *how;
	uint8_t who, event;
};

struct search {
	struct budget budget;
	struct node *nodes;
	uint32_t n_nodes, max_nodes, n_slots, *table; /* open addressing, index + 1 */
	uint32_t n_ends;
};

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
	fprintf(stderr, "  %-8s %-16s %-20s -> %s%s | %s%s\n", i ? side_names[n->who] : "",
		i ? n->how : "start", i ? ferry_switch_event_name(n->event) : "",
		ferry_machine_state_name(&core[0].machine), n->s.side[0].runs ? " (runs)" : "",
		ferry_machine_state_name(&core[1].machine), n->s.side[1].runs ? " (runs)" : "");
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
	uint64_t i = hash(s) % q->n_slots;

	for (; q->table[i]; i = (i + 1) % q->n_slots)
		if (!memcmp(&q->nodes[q->table[i] - 1].s, s, sizeof(*s)))
			return;
	if (q->n_nodes == q->max_nodes) {
		fprintf(stderr, "sim_switch: more than %u states\n", q->max_nodes);
		exit(1);
	}
	q->nodes[q->n_nodes] = (struct node){.s = *s,
					     .parent = parent,
					     .how = how,
					     .who = (uint8_t)who,
					     .event = (uint8_t)event};
	q->table[i] = ++q->n_nodes;
}

/* --- questions ---------------------------------------------------------------------------- */

static bool is_over(const struct state *s, unsigned int i, enum ferry_outcome *outcome)
{
	struct ferry_switch core;

	load_core(&core, s, i);
	return ferry_switch_is_over(&core, outcome);
}

static bool ended_with(const struct state *s, unsigned int i, enum ferry_outcome wanted)
{
	enum ferry_outcome outcome;

	return is_over(s, i, &outcome) && outcome == wanted;
}

static bool is_checking(const struct state *s, unsigned int i)
{
	return s->side[i].state == (i ? (unsigned int)FERRY_TGT_CHECKING : FERRY_SRC_CHECKING);
}

/* A side that undoes goes through its list and looks at nothing else. */
static bool is_undoing(const struct state *s, unsigned int i)
{
	return s->side[i].state == (i ? (unsigned int)FERRY_TGT_UNDOING : FERRY_SRC_UNDOING);
}

/* Who is dead, or has only just been started, owns what its record says. */
static bool owns(const struct state *s, unsigned int i)
{
	unsigned int phase = s->side[i].phase;
	struct ferry_switch core;

	load_core(&core, s, i);
	if (s->side[i].alive && !is_checking(s, i))
		return ferry_switch_owns_guest(&core);
	return i ? phase == FERRY_JOURNAL_COMMITTED || phase == FERRY_JOURNAL_RUNS
		 : phase != FERRY_JOURNAL_COMMITTED && phase != FERRY_JOURNAL_COMPLETE;
}

/* Would the target's process let a connection of the source's session in? */
static bool is_reachable(const struct state *s)
{
	const struct side *t = &s->side[1];
	enum ferry_outcome outcome;

	return t->alive && !is_checking(s, 1) && !is_undoing(s, 1) && !is_over(s, 1, &outcome) &&
	       (!t->session || t->session == s->side[0].session);
}

/* --- what actions do ---------------------------------------------------------------------- */

static void expect(struct side *x, unsigned int event)
{
	x->pending |= 1u << event;
}

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

/* What has arrived already may be read before its end is noticed. */
static void close_link(struct state *s, unsigned int i)
{
	s->side[i].link = false;
	s->side[i].n_in = 0;
	memset(s->side[i].in, 0, QUEUE);
	if (s->side[!i].link)
		expect(&s->side[!i], FERRY_EV_LINK_LOST);
}

/* In place of the one before, if there was one. */
static void open_link(struct state *s, unsigned int i)
{
	struct side *x = &s->side[i];

	x->link = true;
	x->n_in = 0;
	memset(x->in, 0, QUEUE);
	x->pending &= ~(1u << FERRY_EV_LINK_LOST);
	expect(x, FERRY_EV_LINK_UP);
}

/* The source dials only to say Abort, and hangs up. */
static bool reach_target(struct state *s)
{
	if (!is_reachable(s))
		return false;
	s->side[1].session = s->side[0].session;
	open_link(s, 1);
	s->side[1].in[s->side[1].n_in++] = FERRY_EV_ABORT;
	expect(&s->side[1], FERRY_EV_LINK_LOST);
	return true;
}

static void tell_abort(struct state *s, unsigned int i)
{
	struct side *x = &s->side[i];

	if (x->link)
		tell(s, i, FERRY_EV_ABORT);
	else if (x->sent_all)
		x->untold = !reach_target(s);
	close_link(s, i);
}

static unsigned int record(struct state *s, unsigned int i)
{
	struct ferry_switch core;

	load_core(&core, s, i);
	s->side[i].phase = (uint8_t)ferry_switch_phase(&core);
	if (i)
		s->unrecorded = false;
	return core.machine.state == FERRY_SRC_COMMITTING && !i ? FERRY_EV_RECORDED
								: FERRY_EV_NOTHING;
}

/* Return: what came of it at once. */
static unsigned int perform(struct state *s, unsigned int i, unsigned int action)
{
	struct side *x = &s->side[i];

	switch (action) {
	case FERRY_DO_RECORD:
		return record(s, i);
	case FERRY_DO_SEND_PREPARE:
		tell(s, i, FERRY_EV_PREPARE);
		break;
	case FERRY_DO_DIAL_PAGES:
		if (x->phase == FERRY_JOURNAL_COMPLETE)
			return FERRY_EV_COMPLETE;
		if (x->state == FERRY_SRC_CONNECTING)
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
		x->sent_all = true;
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
	case FERRY_DO_FREE_SEAT:
		x->session = 0;
		break;
	case FERRY_DO_ATTACH:
		expect(x, FERRY_EV_ATTACHED);
		break;
	case FERRY_DO_SEND_PREPARED:
		tell(s, i, FERRY_EV_PREPARED);
		break;
	case FERRY_DO_START_LOAD:
		x->told = true;
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
		if (s->has_all)
			expect(x, FERRY_EV_COMPLETE);
		else
			x->completes = true;
		break;
	case FERRY_DO_TELL_ABORT:
		tell_abort(s, i);
		break;
	case FERRY_DO_TELL_LOST:
		tell(s, i, FERRY_EV_PEER_LOST);
		close_link(s, i);
		break;
	}
	return FERRY_EV_NOTHING;
}

/* --- processes begin and end -------------------------------------------------------------- */

/* Only the record, the VMM and the VMM's guest outlive it. */
static void stop_process(struct state *s, unsigned int i)
{
	struct side *x = &s->side[i];

	close_link(s, i);
	x->pending = 0;
	x->completes = x->sent_all = x->untold = x->record_stays = x->refused = false;
	if (!i)
		s->redialing = false;
}

static void die(struct search *q, uint32_t parent, struct state s, unsigned int i,
		unsigned int event, const char *how)
{
	struct side *x = &s.side[i];
	uint32_t pending = x->pending;

	if (!s.left.kills)
		return;
	s.left.kills--;
	stop_process(&s, i);
	x->alive = false;
	x->state = i ? (unsigned int)FERRY_TGT_CHECKING : FERRY_SRC_CHECKING;
	add(q, &s, parent, i, event, how);
	/* What the VMM was told to do, it does. */
	if (pending & 1u << FERRY_EV_GUEST_STOPPED) {
		x->runs = false;
		add(q, &s, parent, i, event, how);
	}
	if (pending & 1u << FERRY_EV_GUEST_RUNS) {
		x->runs = x->vmm;
		s.ran_at_target |= x->vmm;
		add(q, &s, parent, i, event, how);
	}
}

static void start_again(struct search *q, uint32_t parent, struct state s, unsigned int i,
			const char *how)
{
	struct side *x = &s.side[i];

	x->alive = true;
	x->state = i ? (unsigned int)FERRY_TGT_CHECKING : FERRY_SRC_CHECKING;
	x->record_stays = x->untold = x->refused = false;
	expect(x, FERRY_EV_CHECKED);
	add(q, &s, parent, i, FERRY_EV_NOTHING, how);
}

/* The end of a run: what becomes of the record. */
static void end(struct search *q, uint32_t parent, struct state s, unsigned int i,
		unsigned int event, const char *how, enum ferry_outcome outcome)
{
	struct side *x = &s.side[i];
	bool waits = outcome == FERRY_OUTCOME_WAITS, keep = waits || x->record_stays;
	bool untold = x->untold, record_stays = x->record_stays, refused = x->refused;

	if (i && waits)
		keep = !s.has_all || (x->phase != FERRY_JOURNAL_RUNS && !refused);
	die(q, parent, s, i, event, "killed as it ends");
	stop_process(&s, i);
	if (!i && untold && outcome == FERRY_OUTCOME_AT_SOURCE)
		x->phase = FERRY_JOURNAL_UNDONE;
	else if (!keep)
		x->phase = 0;
	x->record_stays = record_stays;
	x->refused = refused;
	add(q, &s, parent, i, event, how);
}

/* --- steps -------------------------------------------------------------------------------- */

static void step(struct search *q, uint32_t parent, struct state s, unsigned int i,
		 unsigned int event, const char *how);

static void act(struct search *q, uint32_t parent, struct state s, unsigned int i,
		unsigned int event, const char *how, const struct ferry_switch_actions *actions,
		unsigned int k);

/* An action fails instead. */
static void fail_action(struct search *q, uint32_t parent, struct state s, unsigned int i,
			unsigned int event, const struct ferry_switch_actions *actions,
			unsigned int k)
{
	unsigned int action = actions->list[k];
	struct state kept;

	if (!s.left.failures || (action != FERRY_DO_RECORD && action != FERRY_DO_ADOPT))
		return;
	s.left.failures--;
	/* A target that has the guest goes on without, and says so. */
	if (i && action == FERRY_DO_RECORD && s.side[1].state >= FERRY_TGT_RUNNING) {
		s.unrecorded = true;
		act(q, parent, s, i, event, "makes no record", actions, k + 1);
		return;
	}
	step(q, parent, s, i, FERRY_EV_FAILED, "makes no record");
	if (action != FERRY_DO_RECORD)
		return;
	/* It may be there all the same; one that gives the guest away is taken back at once. */
	kept = s;
	(void)record(&kept, i);
	die(q, parent, kept, i, event, "killed with a record");
	if (i || kept.side[0].phase != FERRY_JOURNAL_COMMITTED)
		step(q, parent, kept, i, FERRY_EV_FAILED, "knows of no record");
}

/* From action @k on. The process may be killed before and after each. */
static void act(struct search *q, uint32_t parent, struct state s, unsigned int i,
		unsigned int event, const char *how, const struct ferry_switch_actions *actions,
		unsigned int k)
{
	struct side *x = &s.side[i];
	enum ferry_outcome outcome;

	for (; k < actions->n; k++) {
		unsigned int came;

		die(q, parent, s, i, event, "killed at");
		fail_action(q, parent, s, i, event, actions, k);
		came = perform(&s, i, actions->list[k]);
		if (!came || is_undoing(&s, i))
			continue;
		die(q, parent, s, i, event, "killed at");
		step(q, parent, s, i, came, how);
		return;
	}
	if (is_undoing(&s, i)) {
		x->pending = 0;
		expect(x, x->vmm ? FERRY_EV_UNDONE : FERRY_EV_VMM_GONE);
	}
	if (is_over(&s, i, &outcome))
		end(q, parent, s, i, event, how, outcome);
	else
		add(q, &s, parent, i, event, how);
}

/* Let side @i take an event, as its driver does. */
static void step(struct search *q, uint32_t parent, struct state s, unsigned int i,
		 unsigned int event, const char *how)
{
	struct side *x = &s.side[i];
	struct ferry_switch_actions actions;
	enum ferry_outcome outcome;
	struct ferry_switch core;

	load_core(&core, &s, i);
	if (ferry_switch_is_over(&core, &outcome))
		return;
	if (event == FERRY_EV_GUEST_STOPPED)
		x->runs = false;
	if (event == FERRY_EV_GUEST_RUNS && x->vmm)
		x->runs = s.ran_at_target = true;
	while (ferry_switch_step(&core, (enum ferry_switch_event)event, &actions) < 0) {
		if (event == FERRY_EV_FAILED || event == FERRY_EV_LINK_LOST)
			fail(q, parent, "a failure has no place");
		/* Out of place: a failure before the commit, a broken link after it. */
		if (!ferry_switch_is_committed(&core)) {
			event = FERRY_EV_FAILED;
		} else {
			event = FERRY_EV_LINK_LOST;
			close_link(&s, i);
		}
	}
	if (core.machine.state != x->state && core.machine.state == FERRY_SRC_UNDOING && !i)
		x->pending = 0;
	x->state = (uint8_t)core.machine.state;
	x->refused |= i && x->state == FERRY_TGT_HELD;
	act(q, parent, s, i, event, how, &actions, 0);
}

/* --- what a start finds ------------------------------------------------------------------- */

static void dial(struct state *s)
{
	for (unsigned int i = 0; i < 2; i++)
		open_link(s, i);
	s->side[0].pending &= ~(1u << FERRY_EV_LINK_UP);
	s->side[1].session = s->side[0].session;
}

/* A switchover begins, if the target takes it. */
static void begin_source(struct search *q, uint32_t n, struct state s)
{
	struct side *x = &s.side[0];
	bool dialed = x->link; /* in the first attempt */

	/* A guest that stands still as after a switchover is not moved, nor is more tried than may
	 * be. */
	if (!x->runs || (!dialed && !s.left.attempts)) {
		step(q, n, s, 0, FERRY_EV_FAILED, "does not begin");
		return;
	}
	x->phase = FERRY_JOURNAL_SETTINGS;
	if (!dialed) {
		x->session = (uint8_t)(q->budget.attempts - s.left.attempts + 2);
		s.left.attempts--;
	}
	die(q, n, s, 0, FERRY_EV_NOTHING, "killed as it begins");
	if (!dialed && s.side[1].state == FERRY_TGT_AWAITING && !s.side[1].session) {
		dial(&s);
		dialed = true;
	}
	step(q, n, s, 0, dialed ? FERRY_EV_CHECKED : FERRY_EV_FAILED, "begins");
}

/* One before it was killed before the guest was given away, or could not tell the target so. */
static void undo_left(struct search *q, uint32_t n, struct state s, bool tells)
{
	/* --resume: there is nothing to. */
	struct state refuses;

	/* Before that nobody has stopped it. */
	if (s.side[0].phase >= FERRY_JOURNAL_BEGUN)
		s.side[0].runs = s.side[0].vmm;
	die(q, n, s, 0, FERRY_EV_NOTHING, "killed as it undoes");
	if (tells)
		(void)reach_target(&s);
	die(q, n, s, 0, FERRY_EV_NOTHING, "killed as it undoes");
	refuses = s;
	step(q, n, refuses, 0, FERRY_EV_FAILED, "has undone");
	begin_source(q, n, s);
}

static void look_source(struct search *q, uint32_t n, struct state s, bool heard)
{
	struct side *x = &s.side[0];
	enum ferry_vmm_look vmm = !x->vmm   ? FERRY_VMM_ENDED
				  : !heard  ? FERRY_VMM_UNHEARD
				  : x->runs ? FERRY_VMM_RUNS
					    : FERRY_VMM_GAVE;

	switch (ferry_switch_look_back(x->phase, vmm)) {
	case FERRY_LOOK_BEGIN:
		if (heard && x->vmm)
			begin_source(q, n, s);
		else
			step(q, n, s, 0, FERRY_EV_FAILED, "fails");
		break;
	case FERRY_LOOK_UNDO:
		undo_left(q, n, s, false); /* it can't be reached */
		undo_left(q, n, s, x->phase >= FERRY_JOURNAL_BEGUN);
		break;
	case FERRY_LOOK_TELL:
		undo_left(q, n, s, false);
		undo_left(q, n, s, true);
		break;
	case FERRY_LOOK_LATER:
		x->record_stays = true;
		step(q, n, s, 0, FERRY_EV_FAILED, "leaves it");
		break;
	case FERRY_LOOK_GO_ON:
		step(q, n, s, 0, FERRY_EV_ORPHAN_COMMITTED, "takes over");
		break;
	case FERRY_LOOK_LEAVE:
		step(q, n, s, 0, FERRY_EV_ORPHAN_LEFT, "leaves it");
		break;
	}
}

static void look_target(struct search *q, uint32_t n, struct state s, bool heard)
{
	struct side *x = &s.side[1];
	unsigned int event = x->vmm ? ferry_switch_orphan(x->phase) : FERRY_EV_NOTHING;

	if (event != FERRY_EV_NOTHING) {
		step(q, n, s, 1, heard ? event : FERRY_EV_ORPHAN_LEFT, "takes over");
		return;
	}
	if (!heard || !x->vmm || x->told) {
		step(q, n, s, 1, FERRY_EV_FAILED, "does not begin");
		return;
	}
	if (!x->link)
		x->session = 0;
	step(q, n, s, 1, FERRY_EV_CHECKED, "begins");
}

static void look(struct search *q, uint32_t n, unsigned int i)
{
	struct state s = q->nodes[n].s;

	s.side[i].pending &= ~(1u << FERRY_EV_CHECKED);
	for (int heard = 1; heard >= 0; heard--) {
		if (!heard && !s.left.failures)
			break;
		if (!heard)
			s.left.failures--;
		if (i)
			look_target(q, n, s, heard);
		else
			look_source(q, n, s, heard);
	}
}

/* --- what may happen next ----------------------------------------------------------------- */

/* Local steps that may as well fail. */
static bool may_fail(unsigned int event)
{
	return event == FERRY_EV_PAGES_OPEN || event == FERRY_EV_GUEST_STOPPED ||
	       event == FERRY_EV_STATE_SENT || event == FERRY_EV_ATTACHED ||
	       event == FERRY_EV_VMM_LOADED || event == FERRY_EV_GUEST_RUNS;
}

static void local_event(struct search *q, uint32_t n, unsigned int i, unsigned int e)
{
	struct state s = q->nodes[n].s;

	s.side[i].pending &= ~(1u << e);
	if (e == FERRY_EV_LINK_LOST) {
		/* What had arrived before is read first, or was lost: both are tried. */
		s.side[i].link = false;
		s.side[i].n_in = 0;
		memset(s.side[i].in, 0, QUEUE);
	}
	step(q, n, s, i, e, "");
	if (!may_fail(e) || !s.left.failures)
		return;
	s.left.failures--;
	step(q, n, s, i, e == FERRY_EV_GUEST_RUNS ? FERRY_EV_RUN_REFUSED : FERRY_EV_FAILED,
	     "fails");
}

static void local_events(struct search *q, uint32_t n, unsigned int i)
{
	uint32_t pending = q->nodes[n].s.side[i].pending;
	bool undoing = is_undoing(&q->nodes[n].s, i);

	for (unsigned int e = 0; e < FERRY_N_EVENTS; e++) {
		if (!(pending & 1u << e) ||
		    (undoing && e != FERRY_EV_UNDONE && e != FERRY_EV_VMM_GONE))
			continue;
		if (e == FERRY_EV_CHECKED)
			look(q, n, i);
		else if (!is_checking(&q->nodes[n].s, i))
			local_event(q, n, i, e);
	}
}

/* The target reads its first message when it has looked at its VMM. */
static bool may_receive(const struct state *s, unsigned int i)
{
	return s->side[i].n_in && s->side[i].link && !is_undoing(s, i) && !is_checking(s, i);
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

static bool may_complete(const struct state *s)
{
	const struct side *source = &s->side[0], *target = &s->side[1];

	return target->completes && source->alive &&
	       (source->state == FERRY_SRC_COMMITTED || source->state == FERRY_SRC_PUSHING) &&
	       (target->state == FERRY_TGT_PUSHING || target->state == FERRY_TGT_HELD) &&
	       source->session == target->session;
}

/* Every page is there: the source hears Complete, notes that, and says so, if it comes to that. */
static void complete(struct search *q, uint32_t n)
{
	struct state s = q->nodes[n].s;

	s.has_all = true;
	s.side[1].completes = false;
	expect(&s.side[1], FERRY_EV_COMPLETE);
	s.side[0].phase = FERRY_JOURNAL_COMPLETE;
	die(q, n, s, 0, FERRY_EV_COMPLETE, "killed as all is there");
	expect(&s.side[0], FERRY_EV_COMPLETE);
	add(q, &s, n, 1, FERRY_EV_COMPLETE, "all is there");
}

static void redial(struct search *q, uint32_t n)
{
	struct state s = q->nodes[n].s;

	s.redialing = false;
	dial(&s);
	expect(&s.side[0], FERRY_EV_LINK_UP);
	add(q, &s, n, 0, FERRY_EV_LINK_UP, "dials again");
}

static void disturb(struct search *q, uint32_t n, unsigned int i)
{
	const struct state *now = &q->nodes[n].s;
	/* Who looks at what one before it has left is asked for nothing else, and finds what there
	 * is. */
	bool looks_back = is_checking(now, i) && !now->side[i].link;
	struct state s = *now;

	die(q, n, s, i, FERRY_EV_NOTHING, "is killed");
	if (now->left.user_stops && !is_undoing(now, i) && !looks_back) {
		s.left.user_stops--;
		step(q, n, s, i, FERRY_EV_USER_STOP, "");
	}
}

static void kill_vmm(struct search *q, uint32_t n, unsigned int i)
{
	struct state s = q->nodes[n].s;
	enum ferry_outcome outcome;

	s.left.vmm_deaths--;
	s.side[i].vmm = s.side[i].runs = false;
	if (!s.side[i].alive || is_over(&s, i, &outcome) ||
	    (is_checking(&s, i) && !s.side[i].link)) {
		add(q, &s, n, i, FERRY_EV_VMM_GONE, "unseen");
		return;
	}
	if (is_undoing(&s, i))
		s.side[i].pending = 0;
	step(q, n, s, i, FERRY_EV_VMM_GONE, "");
}

/* --- what must hold ----------------------------------------------------------------------- */

static void check(struct search *q, uint32_t n)
{
	const struct state *s = &q->nodes[n].s;
	const struct side *source = &s->side[0];

	if (source->runs && s->side[1].runs)
		fail(q, n, "the guest runs on both sides");
	if (source->runs && s->ran_at_target)
		fail(q, n, "the guest runs at the source after it has run at the target");
	for (unsigned int i = 0; i < 2; i++)
		if (s->side[i].runs && !ended_with(s, i, FERRY_OUTCOME_WAITS) && !owns(s, i) &&
		    !s->unrecorded)
			fail(q, n, "the guest runs on a side that does not own it");
	if (owns(s, 0) && owns(s, 1))
		fail(q, n, "both sides own the guest");
	if (ended_with(s, 0, FERRY_OUTCOME_AT_SOURCE) && source->vmm && !source->runs &&
	    !source->record_stays)
		fail(q, n, "the source says that the guest is there, and it stands still");
	if (ended_with(s, 1, FERRY_OUTCOME_WAITS) && s->side[1].vmm && !s->side[1].runs &&
	    !s->side[1].phase && !s->side[1].refused)
		fail(q, n, "the target says that the guest waits, and has no record to go on from");
	for (unsigned int i = 0; i < 2; i++)
		if (ended_with(s, i, FERRY_OUTCOME_LOST) && (source->runs || s->side[1].runs))
			fail(q, n, "a side says that the guest is lost, and it runs");
}

/* A side says that the guest waits, and somebody has made it so. */
static bool waits(const struct search *q, const struct state *s)
{
	return (s->left.user_stops < q->budget.user_stops ||
		s->left.failures < q->budget.failures) &&
	       (ended_with(s, 0, FERRY_OUTCOME_WAITS) || ended_with(s, 1, FERRY_OUTCOME_WAITS) ||
		s->side[0].record_stays);
}

/* Nothing happens any more by itself. */
static void check_end(struct search *q, uint32_t n)
{
	const struct state *s = &q->nodes[n].s;
	const struct side *source = &s->side[0], *target = &s->side[1];

	q->n_ends++;
	if (source->runs || waits(q, s))
		return;
	/* With the source's VMM goes what the target lacks, unless the process that serves it
	 * lives. */
	if (!source->vmm && !s->has_all)
		return;
	if (target->runs && !s->has_all)
		fail(q, n, "the guest lacks pages, and nobody says why");
	if (target->runs || (!target->vmm && !owns(s, 0)))
		return;
	/* The VMM refused to run it, and we say so; who was started after that has no record of it.
	 */
	if (target->refused || s->unrecorded)
		return;
	fail(q, n, "the guest runs nowhere, and nobody says why");
}

/* Somebody starts a side again that has ended by itself. */
static void try_again(struct search *q, uint32_t n, unsigned int i)
{
	struct state s = q->nodes[n].s;
	struct side *x = &s.side[i];
	/* Where no record is left, there is nothing to go on with. */
	bool waiting = x->phase && (ended_with(&s, i, FERRY_OUTCOME_WAITS) || x->record_stays);

	if (!waiting && (!s.left.attempts || !ended_with(&s, i, FERRY_OUTCOME_AT_SOURCE)))
		return;
	/* With a new VMM, where the one before can't be used again. */
	if (i && !waiting && x->vmm)
		x->told = false;
	start_again(q, n, s, i, "is tried again");
}

static void expand(struct search *q, uint32_t n)
{
	const struct state now = q->nodes[n].s;
	enum ferry_outcome outcome;
	bool moved = false;

	check(q, n);
	for (unsigned int i = 0; i < 2; i++) {
		if (!now.side[i].alive) {
			moved = true;
			start_again(q, n, now, i, "is started again");
		}
		if (!now.side[i].alive || is_over(&now, i, &outcome))
			continue;
		moved |= now.side[i].pending || may_receive(&now, i);
		local_events(q, n, i);
		if (may_receive(&now, i))
			receive_message(q, n, i);
	}
	if (may_complete(&now)) {
		moved = true;
		complete(q, n);
	}
	if (now.redialing && !now.side[0].link && is_reachable(&now)) {
		moved = true;
		redial(q, n);
	}
	if (!moved)
		check_end(q, n);
	for (unsigned int i = 0; i < 2; i++) {
		if (now.side[i].alive && !is_over(&now, i, &outcome))
			disturb(q, n, i);
		else if (now.side[i].alive)
			try_again(q, n, i);
		if (now.left.vmm_deaths && now.side[i].vmm)
			kill_vmm(q, n, i);
	}
	if (now.left.cuts && (now.side[0].link || now.side[1].link)) {
		struct state s = now;

		s.left.cuts--;
		for (unsigned int i = 0; i < 2; i++)
			if (s.side[i].link)
				expect(&s.side[i], FERRY_EV_LINK_LOST);
		add(q, &s, n, 0, FERRY_EV_LINK_LOST, "cut");
	}
}

static void explore(const char *name, uint32_t max_nodes, struct budget budget)
{
	struct search q = {.budget = budget, .max_nodes = max_nodes, .n_slots = max_nodes * 2};
	struct state s;

	q.nodes = calloc(q.max_nodes, sizeof(*q.nodes));
	q.table = calloc(q.n_slots, sizeof(*q.table));
	if (!q.nodes || !q.table)
		exit(1);
	memset(&s, 0, sizeof(s));
	s.left = budget;
	for (unsigned int i = 0; i < 2; i++) {
		s.side[i].alive = s.side[i].vmm = s.side[i].link = true;
		s.side[i].session = 1;
		expect(&s.side[i], FERRY_EV_CHECKED);
	}
	s.side[0].state = FERRY_SRC_CHECKING;
	s.side[1].state = FERRY_TGT_CHECKING;
	s.side[0].runs = true;
	add(&q, &s, 0, 0, 0, "start");
	for (uint32_t n = 0; n < q.n_nodes; n++)
		expand(&q, n);
	printf("sim_switch: %s: %u states, %u ends: all right\n", name, q.n_nodes, q.n_ends);
	fflush(stdout);
	free(q.nodes);
	free(q.table);
}

#define MILLION (1u << 20)

int main(int argc, char **argv)
{
	bool deep = argc > 1 && !strcmp(argv[1], "--deep");

	explore("undisturbed", MILLION, (struct budget){0});
	explore("3 cuts", MILLION, (struct budget){.cuts = 3});
	explore("3 cuts, two failing steps", MILLION, (struct budget){.cuts = 3, .failures = 2});
	explore("2 cuts, a user who stops", MILLION, (struct budget){.cuts = 2, .user_stops = 1});
	explore("2 cuts, a VMM that dies", MILLION, (struct budget){.cuts = 2, .vmm_deaths = 1});
	explore("2 cuts, 4 killed processes", MILLION,
		(struct budget){.cuts = 2, .kills = 4, .attempts = 1});
	explore("a cut, 3 failing steps, 2 killed processes", MILLION,
		(struct budget){.cuts = 1, .failures = 3, .kills = 2});
	explore("2 cuts, 2 killed processes, one of everything else", MILLION,
		(struct budget){2, 1, 1, 1, 2, 1});
	if (deep) {
		explore("3 cuts and two of everything else", MILLION * 64,
			(struct budget){3, 2, 2, 2, 2, 2});
		explore("3 cuts, 3 killed processes, two of everything else", MILLION * 64,
			(struct budget){3, 2, 2, 2, 3, 2});
	}
	return 0;
}
