// SPDX-License-Identifier: Apache-2.0
#include "handler/handler.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include "base/cleanup.h"
#include "base/net.h"
#include "handler/keeper_link.h"

#define N_EVENTS	64u
#define SHORT_MEMORY_MS 1 /* until what lacked it is tried again */

struct ferry_handler {
	struct ferry_handler_config config;
	int link;			   /* owned; -1 once the keeper has ended */
	int stop_fd;			   /* owned; eventfd: all VMs end */
	int event_fd;			   /* owned; eventfd: an event, or a VM's end */
	struct ferry_keeper_packet packet; /* of the owner's thread */

	pthread_mutex_t lock;  /* of what follows */
	struct ferry_vm **vms; /* owned; max_vms slots */
	struct ferry_handler_event events[N_EVENTS];
	uint32_t first_event, n_events;
	struct ferry_handler_stats ended; /* sums over the VMs that are no more here */
	struct ferry_target_stats scratch;
};

/* --- to the keeper ---------------------------------------------------------------------------- */

/* Is what could not be sent to be sent again? Waits until then. */
static bool may_send_again(const struct ferry_handler *h, int rc)
{
	if (rc == -EAGAIN)
		return ferry_net_wait(h->config.start->link, POLLOUT, -1, h->stop_fd) == 0;
	return ferry_is_shortage(rc) &&
	       ferry_net_wait(h->stop_fd, POLLIN, SHORT_MEMORY_MS, -1) == -ETIMEDOUT;
}

/* VMs' threads. Return: 0 also when there is no keeper any more. */
static int send_keeper(struct ferry_handler *h, enum ferry_keeper_type type, uint64_t id, int fd)
{
	struct ferry_keeper_packet p;
	int rc;

	p.type = type;
	p.n_bytes = 0;
	p.id = id;
	p.fds[0] = fd;
	p.fds[1] = -1;
	do
		rc = ferry_keeper_send(h->config.start->link, &p);
	while (may_send_again(h, rc));
	return rc == -EPIPE || rc == -ECONNRESET ? 0 : rc;
}

static int keep(void *ctx, uint64_t id, int known)
{
	return send_keeper(ctx, FERRY_KEEPER_KEEP, id, known);
}

/* --- events ----------------------------------------------------------------------------------- */

static void post(struct ferry_handler *h, const struct ferry_handler_event *e)
{
	pthread_mutex_lock(&h->lock);
	/* The owner is slow: the oldest news is the least worth. */
	if (h->n_events == N_EVENTS) {
		h->first_event = (h->first_event + 1) % N_EVENTS;
		h->n_events--;
	}
	h->events[(h->first_event + h->n_events++) % N_EVENTS] = *e;
	pthread_mutex_unlock(&h->lock);
	eventfd_write(h->event_fd, 1);
}

static void news(void *ctx, struct ferry_vm *vm, const struct ferry_failure *why)
{
	struct ferry_handler_event e = {.type = FERRY_HANDLER_VM};
	struct ferry_handler *h = ctx;

	ferry_vm_info(vm, &e.vm);
	if (why)
		e.why = *why;
	/* In this order: it may be the last one, and the keeper says that we are done then. */
	post(h, &e);
	if (e.vm.state >= FERRY_VM_COMPLETE && e.vm.state != FERRY_VM_STOPPED)
		(void)send_keeper(h, FERRY_KEEPER_FORGET, e.vm.id, -1);
}

static bool take_event(struct ferry_handler *h, struct ferry_handler_event *e)
{
	bool any;

	pthread_mutex_lock(&h->lock);
	any = h->n_events;
	if (any) {
		*e = h->events[h->first_event];
		h->first_event = (h->first_event + 1) % N_EVENTS;
		h->n_events--;
	}
	pthread_mutex_unlock(&h->lock);
	return any;
}

/* --- the table -------------------------------------------------------------------------------- */

static void add_up(struct ferry_target_stats *to, const struct ferry_target_stats *s)
{
	to->pages_total += s->pages_total;
	to->pages_known += s->pages_known;
	to->pages_urgent += s->pages_urgent;
	to->pages_pushed += s->pages_pushed;
	to->pages_zero += s->pages_zero;
	to->pages_duplicate += s->pages_duplicate;
	to->pages_present += s->pages_present;
	to->pages_lost += s->pages_lost;
	to->wire_bytes += s->wire_bytes;
	to->faults += s->faults;
	to->faults_coalesced += s->faults_coalesced;
	to->requests += s->requests;
	to->discarded_pages += s->discarded_pages;
	to->resumes += s->resumes;
	to->faults_in_flight += s->faults_in_flight;
	to->faults_stalled += s->faults_stalled;
	to->oldest_wait_ns = FERRY_MAX(to->oldest_wait_ns, s->oldest_wait_ns);
	ferry_histogram_merge(&to->fault_ns, &s->fault_ns);
	ferry_histogram_merge(&to->local_ns, &s->local_ns);
}

static void count(struct ferry_handler_stats *to, const struct ferry_vm_info *vm)
{
	to->n_vms_ever++;
	to->ram_bytes += vm->ram_bytes;
	to->n_complete += vm->state == FERRY_VM_COMPLETE;
	to->n_gone += vm->state == FERRY_VM_GONE;
	to->n_refused += vm->state == FERRY_VM_REFUSED;
}

/* VMs whose thread has ended make room. */
static void reap(struct ferry_handler *h)
{
	for (uint32_t i = 0; i < h->config.max_vms; i++) {
		struct ferry_vm *vm = h->vms[i];
		struct ferry_vm_info info;

		if (!vm || !ferry_vm_has_ended(vm))
			continue;
		ferry_vm_info(vm, &info);
		pthread_mutex_lock(&h->lock);
		ferry_vm_stats(vm, &h->scratch);
		add_up(&h->ended.target, &h->scratch);
		count(&h->ended, &info);
		h->vms[i] = NULL;
		pthread_mutex_unlock(&h->lock);
		ferry_vm_free(vm);
	}
}

/* The keeper never gives more than there is room for; ended ones may be here still. */
static struct ferry_vm **free_slot(struct ferry_handler *h)
{
	reap(h);
	for (uint32_t i = 0; i < h->config.max_vms; i++)
		if (!h->vms[i])
			return &h->vms[i];
	return NULL;
}

/* The process that connected; 0 when that can't be told. */
static pid_t peer_of(int conn)
{
	struct ucred peer;
	socklen_t len = sizeof(peer);

	return getsockopt(conn, SOL_SOCKET, SO_PEERCRED, &peer, &len) < 0 ? 0 : peer.pid;
}

/* @known: of a guest that runs already; -1 for a new one. Return: 0; an error was told. */
static int add_vm(struct ferry_handler *h, uint64_t id, int conn, int uffd, int known,
		  const char *message, uint32_t message_bytes)
{
	struct ferry_vm_config config = {.id = id,
					 .pid = peer_of(conn),
					 .conn = conn,
					 .uffd = uffd,
					 .known = known,
					 .message = message,
					 .message_bytes = message_bytes,
					 .image = h->config.image,
					 .records = h->config.records,
					 .stop_fd = h->stop_fd,
					 .log = h->config.log,
					 .keep = keep,
					 .news = news,
					 .ctx = h};
	struct ferry_handler_event e = {
		.type = FERRY_HANDLER_VM,
		.vm = {.id = id, .pid = config.pid, .state = FERRY_VM_REFUSED}};
	struct ferry_vm **slot, *vm = NULL;
	int rc;

	/* A VM that said its last word has told the keeper before its thread ends. */
	while (!(slot = free_slot(h)))
		(void)ferry_net_wait(h->event_fd, POLLIN, 10, -1);
	rc = ferry_vm_start(&vm, &config, &e.why);
	if (rc < 0) {
		post(h, &e);
		if (known < 0)
			(void)send_keeper(h, FERRY_KEEPER_FORGET, id, -1);
		return rc;
	}
	pthread_mutex_lock(&h->lock);
	*slot = vm;
	pthread_mutex_unlock(&h->lock);
	return 0;
}

/* --- from the keeper -------------------------------------------------------------------------- */

static void hear(struct ferry_handler *h)
{
	struct ferry_handler_event e = {.type = FERRY_HANDLER_ALONE};
	struct ferry_keeper_packet *p = &h->packet;
	int rc = ferry_keeper_receive(h->link, p);

	/* With a shortage of memory it is still there. */
	if (rc == -EAGAIN || rc == -EBADMSG || rc == -ENOMEM)
		return;
	if (rc < 0) {
		h->link = -1;
		ferry_fail(&e.why, FERRY_LINK, rc,
			   "the process that holds the VMs' descriptors has ended: those that are "
			   "here are served on, and no others");
		post(h, &e);
		return;
	}
	if (p->type == FERRY_KEEPER_NEW) {
		(void)add_vm(h, p->id, p->fds[0], p->fds[1], -1, p->bytes, p->n_bytes);
		return;
	}
	if (p->type == FERRY_KEEPER_SAYS) {
		e.type = FERRY_HANDLER_SAYS;
		ferry_fail(&e.why, p->id == EAGAIN ? FERRY_RETRY : FERRY_REFUSE, -(int)p->id,
			   "%.400s", p->bytes);
		post(h, &e);
	}
	ferry_close(p->fds[0]);
	ferry_close(p->fds[1]);
}

int ferry_handler_wait(struct ferry_handler *h, int timeout_ms, int stop_fd,
		       struct ferry_handler_event *e)
{
	for (;;) {
		struct pollfd p[] = {{.fd = stop_fd, .events = POLLIN},
				     {.fd = h->link, .events = POLLIN},
				     {.fd = h->event_fd, .events = POLLIN}};
		eventfd_t n;
		int rc;

		if (take_event(h, e))
			return 0;
		reap(h);
		rc = poll(p, FERRY_ARRAY_SIZE(p), timeout_ms);
		if (rc < 0 && errno == ENOMEM)
			(void)poll(NULL, 0, SHORT_MEMORY_MS);
		else if (rc < 0 && errno != EINTR)
			return -errno;
		if (rc < 0)
			continue;
		if (!rc) {
			*e = (struct ferry_handler_event){.type = FERRY_HANDLER_NOTHING};
			return 0;
		}
		if (p[0].revents)
			return -ECANCELED;
		if (p[2].revents)
			eventfd_read(h->event_fd, &n);
		if (p[1].revents)
			hear(h);
	}
}

/* --- figures ---------------------------------------------------------------------------------- */

void ferry_handler_stats(struct ferry_handler *h, struct ferry_handler_stats *out)
{
	uint32_t residency[FERRY_RESIDENCY_CELLS] = {0};

	pthread_mutex_lock(&h->lock);
	*out = h->ended;
	for (uint32_t i = 0; i < h->config.max_vms; i++) {
		struct ferry_vm_info info;

		if (!h->vms[i])
			continue;
		ferry_vm_info(h->vms[i], &info);
		ferry_vm_stats(h->vms[i], &h->scratch);
		count(out, &info);
		add_up(&out->target, &h->scratch);
		out->n_vms++;
		out->n_filling += info.state <= FERRY_VM_FILLING;
		for (uint32_t c = 0; c < FERRY_RESIDENCY_CELLS; c++)
			residency[c] += h->scratch.residency[c];
	}
	pthread_mutex_unlock(&h->lock);
	for (uint32_t c = 0; c < FERRY_RESIDENCY_CELLS; c++)
		out->target.residency[c] =
			(uint16_t)(out->n_vms ? residency[c] / out->n_vms : 1000);
	out->target.link_up = true;
}

uint32_t ferry_handler_vms(struct ferry_handler *h, struct ferry_vm_info *out, uint32_t max)
{
	uint32_t n = 0;

	pthread_mutex_lock(&h->lock);
	for (uint32_t i = 0; i < h->config.max_vms && n < max; i++)
		if (h->vms[i])
			ferry_vm_info(h->vms[i], &out[n++]);
	pthread_mutex_unlock(&h->lock);
	return n;
}

/* --- life ------------------------------------------------------------------------------------- */

/* Takes over VMs that a worker before us had. Return: how many slots are done; @rc: of the last. */
static uint32_t take_over(struct ferry_handler *h, int *rc)
{
	const struct ferry_worker_start *start = h->config.start;
	uint32_t i = 0;

	for (*rc = 0; i < start->n_slots && !*rc; i++) {
		const struct ferry_kept_vm *vm = &start->vms[i];

		/* Without what is known of them they would get back what they had discarded. */
		if (vm->id && !vm->is_unkept)
			*rc = add_vm(h, vm->id, vm->conn, vm->uffd, vm->known, vm->message,
				     vm->message_bytes);
		/* A guest that runs already is for the next worker then. */
		if (vm->known < 0)
			*rc = 0;
	}
	return i;
}

static void close_kept(const struct ferry_worker_start *start, uint32_t from)
{
	for (uint32_t i = from; i < start->n_slots; i++) {
		ferry_close(start->vms[i].conn);
		ferry_close(start->vms[i].uffd);
		ferry_close(start->vms[i].known);
	}
}

int ferry_handler_new(struct ferry_handler **out, const struct ferry_handler_config *config,
		      struct ferry_failure *f)
{
	struct ferry_handler *h = calloc(1, sizeof(*h));
	uint32_t n_done = 0;
	int rc;

	if (!h) {
		ferry_close(config->start->link);
		close_kept(config->start, 0);
		return ferry_fail_errno(f, FERRY_REFUSE, -ENOMEM, "handler");
	}
	h->config = *config;
	h->link = config->start->link;
	h->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	h->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	h->vms = calloc(config->max_vms, sizeof(h->vms[0]));
	pthread_mutex_init(&h->lock, NULL);
	rc = h->stop_fd < 0 || h->event_fd < 0 || !h->vms ? -ENOMEM : 0;
	if (!rc)
		n_done = take_over(h, &rc);
	if (!rc) {
		*out = h;
		return 0;
	}
	close_kept(config->start, n_done);
	ferry_handler_free(h);
	return ferry_fail_errno(f, FERRY_REFUSE, rc, "handler");
}

void ferry_handler_free(struct ferry_handler *h)
{
	if (!h)
		return;
	if (h->stop_fd >= 0)
		eventfd_write(h->stop_fd, 1);
	for (uint32_t i = 0; h->vms && i < h->config.max_vms; i++)
		ferry_vm_free(h->vms[i]);
	free(h->vms);
	ferry_close(h->config.start->link);
	ferry_close(h->stop_fd);
	ferry_close(h->event_fd);
	pthread_mutex_destroy(&h->lock);
	free(h);
}
