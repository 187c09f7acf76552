/* SPDX-License-Identifier: Apache-2.0 */
/* The target's side of a switchover, inside: what its two files share. */
#ifndef FERRY_MIGRATE_SWITCH_TARGET_H
#define FERRY_MIGRATE_SWITCH_TARGET_H

#include "migrate/acceptor.h"
#include "migrate/journal.h"
#include "migrate/qemu.h"
#include "migrate/qemu_setup.h"
#include "migrate/switch_core.h"
#include "migrate/watch.h"
#include "uffd/channel.h"

struct ferry_switch_target {
	const struct ferry_receive_config *config; /* borrowed */
	struct ferry_receive_result *result;	   /* borrowed */
	struct ferry_switch core;
	struct ferry_watch watch;

	struct ferry_qmp *qmp; /* owned; NULL once QEMU is gone, and mostly after taking over */
	bool vmm_unheard;      /* what it says can't be read any more */
	int pidfd;	       /* owned: of QEMU, after taking over; else -1 */
	struct ferry_qemu qemu;
	struct ferry_qemu_setup setup;

	struct ferry_acceptor *acceptor; /* owned */
	struct ferry_channel link;
	struct ferry_hello hello; /* of the link: the source's */
	struct ferry_message m;	  /* scratch */
	struct ferry_journal journal;
	struct ferry_journal_entry entry; /* what the source announced, and how far it came */
	struct ferry_uffd uffd;		  /* owned: left in QEMU by one before us; else none */

	struct ferry_target *target; /* owned */
	void *kept;		     /* owned: with the journal, what it knows; NULL for none */
	size_t kept_bytes;
	bool link_lost_said;	     /* of the page connections, in the log */

	int load_fd;	  /* owned: the device state goes in here; -1 when closed */
	int load_peer_fd; /* owned: QEMU's end, before QEMU has it */
	uint64_t load_bytes;
	bool load_started; /* QEMU was told to read it: it can't be used for another guest now */
	bool loaded;	   /* and says that it has */

	uint64_t begin_ns, deadline_ns;
	uint64_t alone_ns, remind_ns; /* loaded and without a link since; when to say so again */
	uint64_t rtt_ns;	      /* of the link, measured while the guest still ran */
	uint64_t commit_ns;	      /* when Commit was read; 0 when one before us has read it */
	uint64_t stopped_for_ns;      /* as it said */
	struct ferry_failure why;     /* of the latest event */
	struct ferry_failure refused; /* why QEMU would not run the guest */
	struct ferry_failure differs; /* why the memory is not verified */
	struct ferry_failure story;   /* of the outcome */
};

/* Stage check: the monitor and QEMU; then the door is opened. */
enum ferry_switch_event ferry_target_side_check(struct ferry_switch_target *s);

/* Return: what came of it, or NOTHING when it is to be waited for. */
enum ferry_switch_event ferry_target_side_perform(struct ferry_switch_target *s,
						  enum ferry_switch_action action);

/* A switchover connection waits in the acceptor: make it the link. */
enum ferry_switch_event ferry_target_side_take_link(struct ferry_switch_target *s);

/* What the message at hand amounts to, NOTHING when it is dealt with. */
enum ferry_switch_event ferry_target_side_message(struct ferry_switch_target *s);

/* A piece of device state came. */
enum ferry_switch_event ferry_target_side_load(struct ferry_switch_target *s, const void *data,
					       size_t len);

/* Notes that QEMU has ended. */
enum ferry_switch_event ferry_target_side_vmm_gone(struct ferry_switch_target *s);

/* The source can't have some pages any more, as s->why says. */
void ferry_target_side_pages_lost(struct ferry_switch_target *s);

void ferry_target_side_close_link(struct ferry_switch_target *s);

/* Tell the observer; @trace may be NULL. */
void ferry_target_side_show_trace(struct ferry_switch_target *s, struct ferry_trace *trace);

#endif
