/* SPDX-License-Identifier: Apache-2.0 */
#include "protocol/connection.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/util.h"

#define TO(s) FERRY_STATE_BIT(FERRY_CONNECTION_##s)

static const struct ferry_state_def states[] = {
	[FERRY_CONNECTION_HELLO_SENT] = {"hello-sent", "we dialed; Welcome is awaited",
					 TO(OPEN) | TO(FAILED)},
	[FERRY_CONNECTION_HELLO_AWAITED] = {"hello-awaited", "we accepted; Hello is awaited",
					    TO(HELLO_RECEIVED) | TO(FAILED)},
	[FERRY_CONNECTION_HELLO_RECEIVED] = {"hello-received",
					     "the owner decides whether the peer is welcome",
					     TO(OPEN) | TO(FAILED)},
	[FERRY_CONNECTION_OPEN] = {"open", "messages of the role may come", TO(FAILED)},
	[FERRY_CONNECTION_FAILED] = {"failed", "nothing may come any more", 0},
};

const struct ferry_machine_def ferry_connection_machine = {"connection", states,
							   FERRY_ARRAY_SIZE(states)};

/* Who may send a type, and on which roles, once the connection is open. */
struct permission {
	uint8_t sides; /* bit per enum ferry_side */
	uint8_t roles; /* bit per enum ferry_role */
};

#define SOURCE	   (1u << FERRY_SIDE_SOURCE)
#define TARGET	   (1u << FERRY_SIDE_TARGET)
#define EITHER	   (SOURCE | TARGET)
#define CONTROL	   (1u << FERRY_ROLE_CONTROL)
#define URGENT	   (1u << FERRY_ROLE_URGENT)
#define BULK	   (1u << FERRY_ROLE_BULK)
#define SWITCHOVER (1u << FERRY_ROLE_SWITCHOVER)

static const struct permission permissions[FERRY_FRAME_TYPE_MAX] = {
	[FERRY_FRAME_LAYOUT] = {SOURCE, CONTROL},
	[FERRY_FRAME_LAYOUT_OK] = {TARGET, CONTROL},
	[FERRY_FRAME_RESIDENT] = {TARGET, CONTROL},
	[FERRY_FRAME_PUSH_START] = {TARGET, CONTROL},
	[FERRY_FRAME_DISCARDED] = {TARGET, CONTROL},
	[FERRY_FRAME_COMPLETE] = {TARGET, CONTROL},
	[FERRY_FRAME_RELEASED] = {SOURCE, CONTROL},
	[FERRY_FRAME_PING] = {EITHER,
			      CONTROL | URGENT | BULK | SWITCHOVER},  /* bulk: see may_send() */
	[FERRY_FRAME_PONG] = {EITHER, CONTROL | URGENT | SWITCHOVER}, /* urgent: the same */
	[FERRY_FRAME_PAGE_REQUEST] = {TARGET, URGENT},
	[FERRY_FRAME_PAGE_RUN] = {SOURCE, URGENT | BULK},
	[FERRY_FRAME_PUSH_DONE] = {SOURCE, BULK},
	[FERRY_FRAME_DIGEST_REQUEST] = {TARGET, CONTROL},
	[FERRY_FRAME_DIGESTS] = {SOURCE, CONTROL},
	[FERRY_FRAME_PREPARE] = {SOURCE, SWITCHOVER},
	[FERRY_FRAME_PREPARED] = {TARGET, SWITCHOVER},
	[FERRY_FRAME_STOPPED] = {SOURCE, SWITCHOVER},
	[FERRY_FRAME_DEVICE_STATE] = {SOURCE, SWITCHOVER},
	[FERRY_FRAME_DEVICE_STATE_END] = {SOURCE, SWITCHOVER},
	[FERRY_FRAME_LOADED] = {TARGET, SWITCHOVER},
	[FERRY_FRAME_COMMIT] = {SOURCE, SWITCHOVER},
	[FERRY_FRAME_RUNNING] = {TARGET, SWITCHOVER},
	[FERRY_FRAME_ABORT] = {EITHER, SWITCHOVER},
};

static bool may_send(enum ferry_frame_type type, enum ferry_side side, enum ferry_role role)
{
	const struct permission *p = &permissions[type];

	if ((type == FERRY_FRAME_PING && role == FERRY_ROLE_BULK) ||
	    (type == FERRY_FRAME_PONG && role == FERRY_ROLE_URGENT))
		return side == FERRY_SIDE_SOURCE;
	return p->sides & 1u << side && p->roles & 1u << role;
}

const char *ferry_role_name(enum ferry_role role)
{
	static const char *const names[] = {"?", "control", "urgent", "bulk", "switchover"};

	return names[role];
}

const char *ferry_side_name(enum ferry_side side)
{
	static const char *const names[] = {"?", "source", "target"};

	return names[side];
}

static enum ferry_side other(enum ferry_side side)
{
	return side == FERRY_SIDE_SOURCE ? FERRY_SIDE_TARGET : FERRY_SIDE_SOURCE;
}

void ferry_connection_dial(struct ferry_connection *c, const struct ferry_hello *hello,
			   struct ferry_message *out)
{
	*c = (struct ferry_connection){.side = hello->side, .hello = *hello};
	c->hello.version_min = FERRY_VERSION_MIN;
	c->hello.version_max = FERRY_VERSION_MAX;
	c->hello.features = FERRY_FEATURES_ALL & ~hello->withheld;
	ferry_machine_init(&c->machine, &ferry_connection_machine, FERRY_CONNECTION_HELLO_SENT);
	*out = (struct ferry_message){.type = FERRY_FRAME_HELLO, .hello = c->hello};
}

void ferry_connection_accept(struct ferry_connection *c, enum ferry_side side)
{
	*c = (struct ferry_connection){.side = side};
	ferry_machine_init(&c->machine, &ferry_connection_machine, FERRY_CONNECTION_HELLO_AWAITED);
}

static int fail(struct ferry_connection *c, int err)
{
	if (c->machine.state != FERRY_CONNECTION_FAILED)
		ferry_machine_move(&c->machine, FERRY_CONNECTION_FAILED);
	return err;
}

static int check_hello(struct ferry_connection *c, const struct ferry_hello *h,
		       enum ferry_error_code *code, char *why)
{
	if (h->side != other(c->side)) {
		snprintf(why, FERRY_MAX_TEXT, "both ends are the %s; connect a source to a target",
			 ferry_side_name(c->side));
		return fail(c, -EPROTO);
	}
	if (h->version_max < FERRY_VERSION_MIN || h->version_min > FERRY_VERSION_MAX) {
		*code = FERRY_ERROR_VERSION;
		snprintf(why, FERRY_MAX_TEXT,
			 "the peer speaks protocol versions %u to %u, this end %u to %u; use "
			 "releases that have one in common",
			 h->version_min, h->version_max, FERRY_VERSION_MIN, FERRY_VERSION_MAX);
		return fail(c, -EPROTO);
	}
	c->hello = *h;
	return ferry_machine_move(&c->machine, FERRY_CONNECTION_HELLO_RECEIVED);
}

static int check_welcome(struct ferry_connection *c, const struct ferry_welcome *w,
			 enum ferry_error_code *code, char *why)
{
	if (w->version < FERRY_VERSION_MIN || w->version > FERRY_VERSION_MAX ||
	    w->features & ~c->hello.features) {
		*code = FERRY_ERROR_VERSION;
		snprintf(why, FERRY_MAX_TEXT,
			 "the peer chose version %u with features %#llx, which were not offered",
			 w->version, (unsigned long long)w->features);
		return fail(c, -EPROTO);
	}
	c->version = w->version;
	c->features = w->features;
	return ferry_machine_move(&c->machine, FERRY_CONNECTION_OPEN);
}

/* Only what was agreed on comes. Return: why not, or NULL. */
static const char *check_agreed(const struct ferry_connection *c, const struct ferry_message *m)
{
	const struct ferry_page_run *r = &m->run;

	if (m->type == FERRY_FRAME_DIGEST_REQUEST || m->type == FERRY_FRAME_DIGESTS)
		return c->features & FERRY_FEATURE_DIGEST
			       ? NULL
			       : "digests of memory, which were not agreed on";
	if (m->type == FERRY_FRAME_PING || m->type == FERRY_FRAME_PONG)
		return c->hello.role == FERRY_ROLE_CONTROL ||
				       c->hello.role == FERRY_ROLE_SWITCHOVER ||
				       c->features & FERRY_FEATURE_ALIVE
			       ? NULL
			       : "pings on a connection for pages, which were not agreed on";
	if (m->type != FERRY_FRAME_PAGE_RUN)
		return NULL;
	if (c->features & FERRY_FEATURE_CHECKSUM && !r->has_checksum)
		return "pages without the checksum that was agreed on";
	if (r->encoding == FERRY_ENCODING_LOST && !(c->features & FERRY_FEATURE_LOST))
		return "pages are said to be lost, which was not agreed on";
	return NULL;
}

int ferry_connection_check(struct ferry_connection *c, const struct ferry_message *m,
			   enum ferry_error_code *code, char *why)
{
	const char *broken;

	*code = FERRY_ERROR_PROTOCOL;
	if (m->type == FERRY_FRAME_ERROR && c->machine.state != FERRY_CONNECTION_FAILED) {
		memcpy(why, m->error.text, FERRY_MAX_TEXT);
		return fail(c, -ECONNREFUSED);
	}
	switch (c->machine.state) {
	case FERRY_CONNECTION_HELLO_AWAITED:
		if (m->type == FERRY_FRAME_HELLO)
			return check_hello(c, &m->hello, code, why);
		break;
	case FERRY_CONNECTION_HELLO_SENT:
		if (m->type == FERRY_FRAME_WELCOME)
			return check_welcome(c, &m->welcome, code, why);
		break;
	case FERRY_CONNECTION_OPEN:
		if (!may_send(m->type, other(c->side), c->hello.role))
			break;
		broken = check_agreed(c, m);
		if (!broken)
			return 0;
		snprintf(why, FERRY_MAX_TEXT, "%s", broken);
		return fail(c, -EPROTO);
	}
	snprintf(why, FERRY_MAX_TEXT, "unexpected %s on a connection that is %s",
		 ferry_frame_type_name(m->type), ferry_machine_state_name(&c->machine));
	return fail(c, -EPROTO);
}

void ferry_connection_welcome(struct ferry_connection *c, struct ferry_message *out)
{
	c->version = FERRY_MIN(c->hello.version_max, FERRY_VERSION_MAX);
	c->features = c->hello.features & FERRY_FEATURES_ALL & ~c->withheld;
	ferry_machine_move(&c->machine, FERRY_CONNECTION_OPEN);
	*out = (struct ferry_message){
		.type = FERRY_FRAME_WELCOME,
		.welcome = {.version = c->version, .features = c->features},
	};
}
