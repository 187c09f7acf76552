/* SPDX-License-Identifier: Apache-2.0 */
/* The source's side of a switchover, inside: what its two files share. */
#ifndef FERRY_MIGRATE_SWITCH_SOURCE_H
#define FERRY_MIGRATE_SWITCH_SOURCE_H

#include <pthread.h>

#include "migrate/journal.h"
#include "migrate/qemu.h"
#include "migrate/qemu_setup.h"
#include "migrate/switch_core.h"
#include "migrate/watch.h"
#include "uffd/channel.h"

/* How long the target may take for a step, and the device state to move on at all. While the guest
 * stands still, this is what it can stand still for before it is resumed here. */
#define FERRY_STEP_LIMIT_MS 30000
/* Stopping waits for the guest's disk writes that are under way. */
#define FERRY_STOP_LIMIT_MS 60000

struct ferry_switch_source {
	const struct ferry_migrate_config *config; /* borrowed */
	struct ferry_migrate_result *result;	   /* borrowed */
	struct ferry_switch core;
	struct ferry_watch watch;

	struct ferry_qmp *qmp; /* owned; NULL before QEMU is there, and once it is gone */
	bool vmm_gone;	       /* it was there */
	bool vmm_unheard;      /* what it says can't be read any more */
	struct ferry_qemu qemu;
	struct ferry_qemu_setup setup;

	struct ferry_channel link;
	struct ferry_hello hello; /* of the link; its epoch is the next one's */
	uint64_t redial_ns;	  /* when to dial the link again; 0: it is up, or nobody wants it */
	uint32_t redial_ms;	  /* the next wait between two attempts */
	struct ferry_message m;	  /* scratch */

	struct ferry_journal journal;
	struct ferry_journal_entry entry;
	bool took_over; /* from one that was killed after the commit */
	bool record_stays; /* what one before us left is not put right: the next one looks again */

	struct ferry_source *sources[FERRY_MAX_REGIONS]; /* owned */
	struct ferry_server *server;			 /* owned */
	pthread_t serve_thread;				 /* finds the holes */
	bool serving;					 /* it is to be joined */
	int serve_failed_fd; /* owned: eventfd; readable when it failed */
	struct ferry_failure serve_why;

	int state_fd;	     /* owned: the device state comes out here; -1 when closed */
	int state_peer_fd;   /* owned: QEMU's end, before QEMU has it */
	bool state_started;  /* QEMU was told to write it */
	bool state_over;     /* it has ended to do so, one way or the other */
	bool state_complete; /* and says that all is written */
	bool stopped_said;   /* Stopped was sent: the target may have loaded the guest */
	bool abort_untold;   /* and could not be told that the guest stays here */

	uint64_t begin_ns, stop_ns, stopped_ns, loaded_ns, deadline_ns;
	struct ferry_failure why;   /* of the latest event */
	struct ferry_failure differs; /* what the target says of its memory in the end */
	struct ferry_failure story; /* of the outcome */
};

/* Stage check: the monitor, QEMU, its memory, and the switchover connection. */
enum ferry_switch_event ferry_source_check(struct ferry_switch_source *s);

/* Return: what came of it, or NOTHING when it is to be waited for. */
enum ferry_switch_event ferry_source_perform(struct ferry_switch_source *s,
					     enum ferry_switch_action action);

/* QEMU has stopped the guest, for its device state. @at_ns: CLOCK_REALTIME; 0: now. */
enum ferry_switch_event ferry_source_note_stop(struct ferry_switch_source *s, uint64_t at_ns);

/* The target waits for our word and could not be reached: the next one of us is to tell it. */
void ferry_source_keep_untold(struct ferry_switch_source *s);

/* Open the link again when it is time for it. */
enum ferry_switch_event ferry_source_redial(struct ferry_switch_source *s);

/* Notes that QEMU has ended. */
enum ferry_switch_event ferry_source_vmm_gone(struct ferry_switch_source *s);

/* Ends the page server and its sessions. Twice is fine. */
void ferry_source_stop_serving(struct ferry_switch_source *s);

void ferry_source_close_link(struct ferry_switch_source *s);
void ferry_source_close_state(struct ferry_switch_source *s);

#endif
