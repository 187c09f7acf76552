// SPDX-License-Identifier: Apache-2.0
#include "handler/vm.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/net.h"
#include "base/util.h"
#include "uffd/pager.h"

#define AGAIN_MS      100
#define IMAGE_SOON_MS 500  /* when it is not there by then, that is told */
#define DEATH_MS      2000 /* that a process with much memory may take */

struct ferry_vm {
	struct ferry_vm_config config; /* its descriptors are owned */
	char *text;		       /* owned: the message */
	pthread_t thread;
	struct ferry_vmm_message message;
	struct ferry_image_view *view;	   /* of the image; in use */
	struct ferry_record_vm *recording; /* owned; NULL when there is none */
	bool recorded;
	struct ferry_replay_vm replay;
	struct ferry_replay *_Atomic set; /* borrowed; NULL for none, and before it is known */
	void *kept; /* owned mapping */
	size_t kept_bytes;
	bool is_new;	 /* no worker before us had it */
	uint32_t n_late; /* regions that the VMM had not registered */
	_Atomic enum ferry_vm_state state;
	_Atomic uint64_t ram_bytes, since_ns, until_ns;
	_Atomic bool ended;

	pthread_mutex_t lock;		/* of what follows */
	struct ferry_target *target;	/* owned; NULL before and after */
	struct ferry_target_stats last; /* of the target that was */
};

const char *ferry_vm_state_name(enum ferry_vm_state s)
{
	static const char *const names[] = {"opening", "filling", "complete",
					    "gone",    "refused", "stopped"};

	return s < FERRY_ARRAY_SIZE(names) ? names[s] : "?";
}

/* --- opening ---------------------------------------------------------------------------------- */

static void describe(const struct ferry_vmm_message *m, struct ferry_layout *layout,
		     struct ferry_target_region *regions)
{
	*layout = (struct ferry_layout){.n_regions = m->n_regions};
	for (uint32_t i = 0; i < m->n_regions; i++) {
		const struct ferry_vmm_region *r = &m->regions[i];
		struct ferry_region_desc d = {
			.id = i, .page_bytes = r->page_bytes, .n_pages = r->bytes / r->page_bytes};

		layout->regions[i] = d;
		/* A VMM that restores with a userfaultfd has its guest's memory private, so that
		 * what is discarded is zero. */
		regions[i] = (struct ferry_target_region){
			.desc = d,
			.start = r->start,
			.kind = r->page_bytes == FERRY_PAGE_SIZE_DEFAULT ? FERRY_MAPPING_ANON
									 : FERRY_MAPPING_HUGETLB,
			.is_private = true,
		};
	}
}

/* The memory that says which pages are known: a new one, or that of an earlier life. */
static int map_kept(struct ferry_vm *vm, size_t bytes, struct ferry_failure *f)
{
	struct stat st;
	int rc;

	if (vm->kept)
		return 0;
	if (vm->is_new)
		vm->config.known = memfd_create("pageferry-known", MFD_CLOEXEC);
	if (vm->config.known < 0 || (vm->is_new && ftruncate(vm->config.known, (off_t)bytes) < 0) ||
	    fstat(vm->config.known, &st) < 0)
		return ferry_fail_errno(f, FERRY_REFUSE, -errno, "the map of known pages");
	if ((size_t)st.st_size != bytes)
		return ferry_fail(f, FERRY_REFUSE, -EBADMSG,
				  "the map of known pages is of another layout");
	vm->kept = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, vm->config.known, 0);
	if (vm->kept == MAP_FAILED) {
		vm->kept = NULL;
		return ferry_fail_errno(f, FERRY_REFUSE, -errno, "the map of known pages");
	}
	vm->kept_bytes = bytes;
	rc = vm->is_new ? vm->config.keep(vm->config.ctx, vm->config.id, vm->config.known) : 0;
	return rc < 0 ? ferry_fail_errno(f, FERRY_REFUSE, rc, "the keeper") : 0;
}

/* Fault thread. */
static void note_fault(void *arg, uint32_t region, uint64_t page)
{
	struct ferry_vm *vm = arg;
	const struct ferry_vmm_region *r = &vm->message.regions[region];
	const struct ferry_replay *set = atomic_load(&vm->set);
	uint64_t offset = r->offset + page * r->page_bytes;

	if (vm->recording)
		ferry_record_fault(vm->recording, offset);
	if (set)
		ferry_replay_fault(set, &vm->replay, offset);
}

static bool wants_zero(void *arg, uint32_t region, uint64_t page)
{
	struct ferry_vm *vm = arg;
	const struct ferry_vmm_region *r = &vm->message.regions[region];
	const struct ferry_replay *set = atomic_load(&vm->set);

	return set && ferry_replay_has(set, r->offset + page * r->page_bytes);
}

/*
 * The VMM registers its memory before it connects: then nothing of it was read as zeros. What it
 * has not is registered here, and told.
 */
static int take_regions(struct ferry_vm *vm, const struct ferry_uffd *u, struct ferry_failure *f)
{
	for (uint32_t i = 0; i < vm->message.n_regions; i++) {
		const struct ferry_vmm_region *r = &vm->message.regions[i];
		bool is_late = r->page_bytes == FERRY_PAGE_SIZE_DEFAULT &&
			       ferry_uffd_is_unregistered(u, r->start);
		int rc = ferry_uffd_register(u, r->start, r->bytes);

		if (rc < 0)
			return ferry_fail_errno(
				f, FERRY_REFUSE, rc,
				"the VMM's message: region %u: process %d has no memory of %llu "
				"bytes at base_host_virt_addr %#llx that its userfaultfd can serve",
				i, (int)vm->config.pid, (unsigned long long)r->bytes,
				(unsigned long long)r->start.v);
		if (is_late && vm->is_new)
			vm->n_late++;
	}
	return 0;
}

static int open_target(struct ferry_vm *vm, struct ferry_target **out, struct ferry_failure *f)
{
	struct ferry_target_region regions[FERRY_MAX_REGIONS];
	struct ferry_layout layout;
	struct ferry_target_config config = {
		.regions = regions,
		.n_regions = vm->message.n_regions,
		/* The VMM registered them; if we fail they stay so. */
		.adopt = true,
		.hooks = {.ctx = vm, .faulted = note_fault, .wants_zero = wants_zero},
		.no_trace = true,
		.no_checksum = true, /* the pages come from this process */
		.log = vm->config.log,
	};
	int fd = fcntl(vm->config.uffd, F_DUPFD_CLOEXEC, 0), rc;

	if (fd < 0)
		return ferry_fail_errno(f, FERRY_REFUSE, -errno, "the userfaultfd");
	rc = ferry_uffd_from_peer(&config.uffd, fd, vm->config.conn, f);
	if (rc < 0)
		return rc;
	rc = take_regions(vm, &config.uffd, f);
	if (rc < 0) {
		ferry_uffd_close(&config.uffd);
		return rc;
	}
	describe(&vm->message, &layout, regions);
	rc = map_kept(vm, ferry_pager_kept_bytes(&layout), f);
	if (rc < 0) {
		ferry_uffd_close(&config.uffd);
		return rc;
	}
	config.kept = vm->kept;
	return ferry_target_new(out, &config, f);
}

static int open_vm(struct ferry_vm *vm, struct ferry_failure *f)
{
	struct ferry_target *target;
	uint64_t bytes = 0;
	int rc = ferry_vmm_message_parse(vm->text, vm->config.message_bytes, &vm->message, f);

	if (rc < 0)
		return rc;
	for (uint32_t i = 0; i < vm->message.n_regions; i++)
		bytes += vm->message.regions[i].bytes;
	atomic_store(&vm->ram_bytes, bytes);
	/* One that was served before has begun long ago. */
	if (vm->config.records && vm->is_new && ferry_record_begin(bytes, &vm->recording) < 0)
		return ferry_fail_errno(f, FERRY_REFUSE, -ENOMEM, "recording");
	rc = open_target(vm, &target, f);
	if (rc < 0)
		return rc;
	pthread_mutex_lock(&vm->lock);
	vm->target = target;
	pthread_mutex_unlock(&vm->lock);
	return ferry_target_start(target, f);
}

/* --- filling ---------------------------------------------------------------------------------- */

static void tell(struct ferry_vm *vm, enum ferry_vm_state state, const struct ferry_failure *why)
{
	atomic_store(&vm->state, state);
	vm->config.news(vm->config.ctx, vm, why);
}

/* Has the VMM closed its end? It sends nothing any more. */
static bool has_hung_up(struct ferry_vm *vm)
{
	char drain[256];
	ssize_t n = recv(vm->config.conn, drain, sizeof(drain), MSG_DONTWAIT);

	return !n || (n < 0 && errno != EINTR && !ferry_is_shortage(-errno));
}

/* Wait for news of the target, if there is one, the VMM or the owner. Return: the state that
 * follows. */
static enum ferry_vm_state wait_for_news(struct ferry_vm *vm, int timeout_ms)
{
	/* Once the image is there, that is no news. */
	int ready_fd = ferry_image_is_ready(vm->config.image)
			       ? -1
			       : ferry_image_ready_fd(vm->config.image);
	struct pollfd p[] = {
		{.fd = vm->config.stop_fd, .events = POLLIN},
		{.fd = vm->config.conn, .events = POLLIN},
		{.fd = ready_fd, .events = POLLIN},
		{.fd = vm->target ? ferry_target_events_fd(vm->target) : -1, .events = POLLIN}};

	if (poll(p, FERRY_ARRAY_SIZE(p), timeout_ms) < 0)
		return FERRY_VM_FILLING;
	if (p[0].revents)
		return FERRY_VM_STOPPED;
	if (p[1].revents && has_hung_up(vm))
		return FERRY_VM_GONE;
	return FERRY_VM_FILLING;
}

/* Return: the state that follows; FILLING once the image is there. */
static enum ferry_vm_state await_image(struct ferry_vm *vm)
{
	enum ferry_vm_state state = FERRY_VM_FILLING;
	uint64_t since = ferry_now_ns();
	struct ferry_failure f = {0};
	bool told = false;

	while (state == FERRY_VM_FILLING && !ferry_image_is_ready(vm->config.image)) {
		state = wait_for_news(vm, told ? -1 : IMAGE_SOON_MS);
		if (ferry_target_wait(vm->target, 0, -1, NULL) == FERRY_TARGET_GONE)
			return FERRY_VM_GONE;
		if (told || ferry_now_ns() - since < IMAGE_SOON_MS * (uint64_t)FERRY_NS_PER_MS)
			continue;
		ferry_fail(&f, FERRY_RETRY, -EAGAIN,
			   "its snapshot is not there yet; until it is, the VM waits where it "
			   "touches missing pages");
		if (state == FERRY_VM_FILLING)
			tell(vm, state, &f);
		told = true;
	}
	return state;
}

/*
 * Get the image, now or when it is there. A guest that runs already is not given up, whatever is in
 * the way, and no other for a shortage.
 * Return: the state that follows, REFUSED with why in @f; FILLING once its view is used.
 */
static enum ferry_vm_state use_image(struct ferry_vm *vm, struct ferry_failure *f)
{
	enum ferry_vm_state state = await_image(vm);
	bool told = false;

	while (state == FERRY_VM_FILLING) {
		int rc = ferry_image_use(vm->config.image, &vm->message, &vm->view, f);

		if (!rc)
			break;
		if (vm->is_new && !ferry_is_shortage(rc))
			return FERRY_VM_REFUSED;
		if (!told)
			tell(vm, FERRY_VM_FILLING, f);
		told = true;
		state = wait_for_news(vm, AGAIN_MS);
	}
	if (state != FERRY_VM_FILLING)
		return state;
	atomic_store(&vm->set, ferry_image_sets(vm->config.image).replay);
	atomic_store(&vm->since_ns, ferry_now_ns());
	tell(vm, FERRY_VM_FILLING, NULL);
	return FERRY_VM_FILLING;
}

/* Return: the state that follows; FILLING once the session is open. */
static enum ferry_vm_state connect_image(struct ferry_vm *vm)
{
	enum ferry_vm_state state = FERRY_VM_FILLING;
	bool told = false;

	while (state == FERRY_VM_FILLING) {
		struct ferry_failure f = {0};
		int rc = ferry_target_dial(vm->target, ferry_image_address(vm->view),
					   vm->config.stop_fd, &f);

		if (!rc)
			break;
		if (!told)
			tell(vm, FERRY_VM_FILLING, &f);
		told = true;
		state = wait_for_news(vm, AGAIN_MS);
	}
	return state;
}

/* What was touched so far is the working set. */
static void end_recording(struct ferry_vm *vm)
{
	struct ferry_record *record = ferry_image_sets(vm->config.image).record;
	struct ferry_failure f = {0};
	uint64_t n_pages;

	if (!vm->recorded && record && ferry_record_end(record, vm->recording, &n_pages, &f) < 0)
		tell(vm, FERRY_VM_FILLING, &f);
	vm->recorded = true;
}

/* How long until the recording ends, and the push may begin. -1: for ever. */
static int recording_ms(struct ferry_vm *vm)
{
	uint64_t since = ferry_now_ns() - atomic_load(&vm->since_ns);

	if (!vm->recording || vm->recorded)
		return -1;
	if (since < FERRY_RECORD_NS)
		return (int)((FERRY_RECORD_NS - since) / FERRY_NS_PER_MS) + 1;
	end_recording(vm);
	ferry_target_push(vm->target);
	return -1;
}

static void tell_change(struct ferry_vm *vm)
{
	struct ferry_failure f = {0};

	if (!ferry_image_has_changed(vm->config.image))
		return;
	ferry_fail(
		&f, FERRY_LOST, -ESTALE,
		"the snapshot's file was written to, or cut, while the VM was filled from it: its "
		"memory may be of two moments");
	tell(vm, FERRY_VM_FILLING, &f);
}

static enum ferry_vm_state fill(struct ferry_vm *vm, struct ferry_failure *why)
{
	enum ferry_vm_state state = use_image(vm, why);

	if (state == FERRY_VM_FILLING)
		state = connect_image(vm);
	if (state != FERRY_VM_FILLING)
		return state;
	if (!vm->recording)
		ferry_target_push(vm->target);
	for (;;) {
		struct ferry_failure f = {0};

		switch (ferry_target_wait(vm->target, 0, -1, &f)) {
		case FERRY_TARGET_COMPLETE:
			tell_change(vm);
			return FERRY_VM_COMPLETE;
		case FERRY_TARGET_GONE:
			return FERRY_VM_GONE;
		case FERRY_TARGET_FAILED:
		case FERRY_TARGET_PAGES_LOST:
			/* It is tried again, and the VM waits meanwhile. */
			tell(vm, FERRY_VM_FILLING, &f);
			break;
		default:
			state = wait_for_news(vm, recording_ms(vm));
			if (state != FERRY_VM_FILLING)
				return state;
		}
	}
}

/* --- the thread ------------------------------------------------------------------------------- */

static void end_target(struct ferry_vm *vm)
{
	struct ferry_target *target;

	pthread_mutex_lock(&vm->lock);
	target = vm->target;
	vm->target = NULL;
	if (target)
		ferry_target_stats(target, &vm->last);
	pthread_mutex_unlock(&vm->lock);
	ferry_target_free(target);
	if (vm->view)
		ferry_image_unuse(vm->config.image, vm->view);
	vm->view = NULL;
}

/* Did the working set help this VM? */
static void judge_set(struct ferry_vm *vm, enum ferry_vm_state state)
{
	bool is_whole = vm->is_new && state == FERRY_VM_COMPLETE;

	ferry_image_push_first(vm->config.image, ferry_replay_done(vm->set, &vm->replay, is_whole));
}

/* Did the VMM die meanwhile? Its memory goes before its connection does. */
static bool has_died(struct ferry_vm *vm, int err)
{
	struct pollfd p = {.fd = vm->config.conn, .events = POLLIN};

	return err == -ESRCH || (poll(&p, 1, err == -ENOMEM ? DEATH_MS : 0) > 0 && has_hung_up(vm));
}

static void tell_late(struct ferry_vm *vm)
{
	struct ferry_failure f = {0};

	if (!vm->n_late)
		return;
	ferry_fail(&f, FERRY_LOST, -EINVAL,
		   "%u of its %u regions were not registered with the userfaultfd when the VMM "
		   "connected: what it read there before was zeros, and not the snapshot",
		   vm->n_late, vm->message.n_regions);
	tell(vm, FERRY_VM_FILLING, &f);
}

/*
 * A guest that runs already is not given up, whatever is in the way: it is tried again.
 * Return: the state that follows: FILLING, GONE, STOPPED, or REFUSED with why in @f.
 */
static enum ferry_vm_state begin(struct ferry_vm *vm, struct ferry_failure *f)
{
	enum ferry_vm_state state = FERRY_VM_FILLING;
	bool told = false;
	int rc;

	while (state == FERRY_VM_FILLING && (rc = open_vm(vm, f)) < 0) {
		end_target(vm);
		if (has_died(vm, rc))
			return FERRY_VM_GONE;
		if (vm->is_new)
			return FERRY_VM_REFUSED;
		if (!told)
			tell(vm, FERRY_VM_FILLING, f);
		told = true;
		state = wait_for_news(vm, AGAIN_MS);
	}
	/* The target has its own. */
	ferry_close(TAKE_FD(vm->config.uffd));
	return state;
}

static void *vm_main(void *arg)
{
	struct ferry_vm *vm = arg;
	struct ferry_failure f = {0};
	enum ferry_vm_state state = begin(vm, &f);

	if (state == FERRY_VM_FILLING) {
		atomic_store(&vm->state, FERRY_VM_FILLING);
		tell_late(vm);
		state = fill(vm, &f);
	}
	atomic_store(&vm->until_ns, ferry_now_ns());
	if (vm->recording && state != FERRY_VM_REFUSED)
		end_recording(vm);
	if (vm->set && (state == FERRY_VM_COMPLETE || state == FERRY_VM_GONE))
		judge_set(vm, state);
	end_target(vm);
	tell(vm, state, state == FERRY_VM_REFUSED ? &f : NULL);
	atomic_store(&vm->ended, true);
	return NULL;
}

/* --- life ------------------------------------------------------------------------------------- */

static void vm_free(struct ferry_vm *vm)
{
	ferry_close(vm->config.conn);
	ferry_close(vm->config.uffd);
	ferry_close(vm->config.known);
	free(vm->recording);
	if (vm->kept)
		munmap(vm->kept, vm->kept_bytes);
	pthread_mutex_destroy(&vm->lock);
	free(vm->text);
	free(vm);
}

int ferry_vm_start(struct ferry_vm **out, const struct ferry_vm_config *config,
		   struct ferry_failure *f)
{
	struct ferry_vm *vm = calloc(1, sizeof(*vm));
	int rc = -ENOMEM;

	if (!vm) {
		ferry_close(config->conn);
		ferry_close(config->uffd);
		ferry_close(config->known);
		return ferry_fail_errno(f, FERRY_REFUSE, rc, "VM");
	}
	vm->config = *config;
	vm->is_new = config->known < 0;
	pthread_mutex_init(&vm->lock, NULL);
	vm->text = malloc(config->message_bytes);
	if (vm->text) {
		memcpy(vm->text, config->message, config->message_bytes);
		rc = -pthread_create(&vm->thread, NULL, vm_main, vm);
	}
	if (rc < 0) {
		vm_free(vm);
		return ferry_fail_errno(f, FERRY_REFUSE, rc, "VM");
	}
	*out = vm;
	return 0;
}

void ferry_vm_free(struct ferry_vm *vm)
{
	if (!vm)
		return;
	pthread_join(vm->thread, NULL);
	vm_free(vm);
}

bool ferry_vm_has_ended(const struct ferry_vm *vm)
{
	return atomic_load(&vm->ended);
}

void ferry_vm_info(const struct ferry_vm *vm, struct ferry_vm_info *out)
{
	uint64_t since = atomic_load(&vm->since_ns), until = atomic_load(&vm->until_ns);

	*out = (struct ferry_vm_info){
		.id = vm->config.id,
		.pid = vm->config.pid,
		.state = atomic_load(&vm->state),
		.ram_bytes = atomic_load(&vm->ram_bytes),
		.served_ns = since ? (until ? until : ferry_now_ns()) - since : 0,
	};
}

void ferry_vm_stats(struct ferry_vm *vm, struct ferry_target_stats *out)
{
	pthread_mutex_lock(&vm->lock);
	if (vm->target)
		ferry_target_stats(vm->target, out);
	else
		*out = vm->last;
	pthread_mutex_unlock(&vm->lock);
}
