/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What VMs are filled from: a snapshot's memory, whose pages a page server in this process gives to
 * each VM's target. VMs with the same layout of regions, as clones have, share one server. The
 * memory is a file's, or a cache's (cache.h) that is filled from a page server elsewhere.
 *
 * Any thread may call, except where it says otherwise.
 */
#ifndef FERRY_HANDLER_IMAGE_H
#define FERRY_HANDLER_IMAGE_H

#include <stdint.h>

#include "base/addr.h"
#include "base/log.h"
#include "handler/record.h"
#include "handler/replay.h"
#include "handler/vmm_message.h"
#include "uffd/target.h"

struct ferry_image;
struct ferry_image_view;

/* Working sets of its VMs. */
struct ferry_image_sets {
	struct ferry_record *record;
	struct ferry_replay *replay; /* each VM's push begins with it */
};

struct ferry_image_config {
	int fd;			       /* of the snapshot's memory file; borrowed; -1: see ->from */
	const struct ferry_addr *from; /* the page server that has it; NULL for none */
	struct ferry_target_place place; /* there */
	struct ferry_tls *tls;	       /* of connections to there; borrowed; NULL: plain */
	int stop_fd;		       /* gives up the first attempt to connect; -1 for none */
	uint32_t max_vms;
	uint64_t max_bytes_per_second; /* of each VM's push, or of the page server's; 0: no limit */
	/*
	 * VMs wait already: _open does not wait for ->from, which is tried, by a thread of the
	 * image's, until it is there. _news tells why it is not.
	 */
	bool is_patient;
	/*
	 * It is known how large the snapshot is, and nobody has used the image yet. It says what
	 * there is of working sets: borrowed until _close; NULL for none. From _open or the image's
	 * thread; may be NULL. Errors: as those of _open.
	 */
	int (*sized)(void *ctx, uint64_t bytes, struct ferry_image_sets *sets,
		     struct ferry_failure *f);
	void *ctx;
	const struct ferry_log *log; /* borrowed; may be NULL */
};

/* Errors: REFUSE, in @f. One thread. */
int ferry_image_open(struct ferry_image **out, const struct ferry_image_config *config,
		     struct ferry_failure *f);

/* Is it there, so that the functions below may be called? Once it is, it stays. */
bool ferry_image_is_ready(const struct ferry_image *i);
/* Readable (POLLIN) from then on. Borrowed until _close. */
int ferry_image_ready_fd(const struct ferry_image *i);

/* What config->sized said; before the image is ready: nothing. */
struct ferry_image_sets ferry_image_sets(const struct ferry_image *i);

/* Whether to push the working set first from now on. */
void ferry_image_push_first(struct ferry_image *i, bool first);

/*
 * What the page server that the image comes from does. Without one: nothing, and 100 %.
 * Also before it is ready: LINK_LOST then tells of an attempt that failed.
 */
enum ferry_target_event ferry_image_news(struct ferry_image *i, struct ferry_failure *f);
void ferry_image_stats(struct ferry_image *i, struct ferry_target_stats *out);

/* Was the snapshot's file written to, or cut, since _open? Then nothing of it is of one moment. */
bool ferry_image_has_changed(const struct ferry_image *i);

/* Has a page server that VMs use broken? They get nothing more from this process. */
bool ferry_image_is_broken(struct ferry_image *i);

/* Nobody uses a view any more. NULL is fine. */
/* No other process goes on with it: what it has at a page server is given up when it is closed. */
void ferry_image_leave(struct ferry_image *i);
void ferry_image_close(struct ferry_image *i);

/**
 * ferry_image_use() - a page server for a VM's layout
 * Once the image is ready.
 * @m: its regions; a region's pages are those at its offset in the image
 * Errors: REFUSE in @f: a region lies outside the image, there are too many layouts at once, or
 * -ESTALE when its file has changed.
 */
int ferry_image_use(struct ferry_image *i, const struct ferry_vmm_message *m,
		    struct ferry_image_view **view, struct ferry_failure *f);
void ferry_image_unuse(struct ferry_image *i, struct ferry_image_view *view);

/* Where its page server listens: only this process can connect. Borrowed until _unuse. */
const struct ferry_addr *ferry_image_address(const struct ferry_image_view *view);

#endif
