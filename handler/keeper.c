// SPDX-License-Identifier: Apache-2.0
#include "handler/keeper.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/net.h"
#include "handler/keeper_link.h"
#include "uffd/uffd.h"

#define MAX_INCOMING   16u
#define INCOMING_NS    (10 * (uint64_t)FERRY_NS_PER_S)
#define SHORT_LIFE_NS  (5 * (uint64_t)FERRY_NS_PER_S)
#define BACKOFF_MIN_MS 50u
#define BACKOFF_MAX_MS 2000u
#define SHORT_MEMORY_MS 1  /* until a wait is tried again */

#define FREE_SLOT ((struct ferry_kept_vm){.conn = -1, .uffd = -1, .known = -1})

/* A VMM whose message has not come as a whole. */
struct incoming {
	int conn, uffd; /* owned; conn -1: the slot is free */
	pid_t pid;
	uint64_t deadline_ns;
	size_t used;
	char data[FERRY_VMM_MESSAGE_MAX];
};

struct keeper {
	const struct ferry_keeper_config *config;
	int listen_fd; /* owned; -1 once nobody else is taken */
	int signals;  /* owned; signalfd */
	int drain_fd, end_fd; /* owned; see struct ferry_worker_start */
	int link;     /* owned; -1 while there is no worker */
	pid_t worker; /* 0 while there is none */
	bool draining;
	uint32_t n_signals; /* of the user's */
	uint32_t n_restarts, backoff_ms;
	int last_signal;
	uint64_t started_ns, start_ns; /* the worker: when it was, when it is to be */
	uint64_t next_id;
	uint64_t paused_until_ns;  /* accepting, after it failed */
	bool was_full;		   /* that VMs wait was said */
	struct ferry_kept_vm *vms; /* owned; max_vms slots */
	struct incoming incoming[MAX_INCOMING];
	struct ferry_keeper_packet packet;
};

__attribute__((format(printf, 3, 4))) static void say(struct keeper *k, int err, const char *fmt,
						      ...)
{
	struct ferry_keeper_packet *p = &k->packet;
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(p->bytes, 400, fmt, ap);
	va_end(ap);
	p->type = FERRY_KEEPER_SAYS;
	p->id = (uint64_t)err;
	p->n_bytes = (uint32_t)strlen(p->bytes) + 1;
	p->fds[0] = p->fds[1] = -1;
	/* When nobody hears it, it is not worth waiting for. */
	if (k->link >= 0)
		(void)ferry_keeper_send(k->link, p);
}

/* --- VMs -------------------------------------------------------------------------------------- */

static void forget(struct ferry_kept_vm *vm)
{
	ferry_close(vm->conn);
	ferry_close(vm->uffd);
	ferry_close(vm->known);
	free(vm->message);
	*vm = FREE_SLOT;
}

static struct ferry_kept_vm *find(struct keeper *k, uint64_t id)
{
	for (uint32_t i = 0; i < k->config->max_vms; i++)
		if (k->vms[i].id == id)
			return &k->vms[i];
	return NULL;
}

static uint32_t count_vms(const struct keeper *k)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < k->config->max_vms; i++)
		n += k->vms[i].id != 0;
	return n;
}

/* Tell the worker of those that it does not know. Return: false when it takes no more for now. */
static bool tell(struct keeper *k)
{
	struct ferry_keeper_packet *p = &k->packet;

	for (uint32_t i = 0; i < k->config->max_vms; i++) {
		struct ferry_kept_vm *vm = &k->vms[i];

		if (!vm->id || vm->told)
			continue;
		p->type = FERRY_KEEPER_NEW;
		p->id = vm->id;
		p->n_bytes = vm->message_bytes;
		memcpy(p->bytes, vm->message, vm->message_bytes);
		p->fds[0] = vm->conn;
		p->fds[1] = vm->uffd;
		if (ferry_keeper_send(k->link, p) < 0)
			return false;
		vm->told = true;
	}
	return true;
}

/* @known: given; -1 when there was no descriptor free for it */
static void keep(struct keeper *k, struct ferry_kept_vm *vm, int known)
{
	vm->known = known;
	vm->is_unkept = known < 0;
	if (vm->is_unkept)
		say(k, EPERM,
		    "no descriptor is free to keep what is known of VM %llu's pages: should its "
		    "worker die, it waits for ever",
		    (unsigned long long)vm->id);
}

/* Read what the worker has to say, also after its death. */
static void hear(struct keeper *k)
{
	struct ferry_keeper_packet *p = &k->packet;

	while (k->link >= 0 && !ferry_keeper_receive(k->link, p)) {
		struct ferry_kept_vm *vm = p->id ? find(k, p->id) : NULL;

		if (vm && p->type == FERRY_KEEPER_FORGET)
			forget(vm);
		if (vm && p->type == FERRY_KEEPER_KEEP && vm->known < 0)
			keep(k, vm, TAKE_FD(p->fds[0]));
		ferry_close(p->fds[0]);
		ferry_close(p->fds[1]);
	}
}

/* --- VMMs that connect ------------------------------------------------------------------------ */

static void drop(struct incoming *in)
{
	ferry_close(in->conn);
	ferry_close(in->uffd);
	in->conn = in->uffd = -1;
}

static void take_in(struct keeper *k, struct incoming *in, size_t len)
{
	struct ferry_kept_vm *vm = find(k, 0);
	char *message = malloc(len);

	if (!vm || !message) {
		say(k, EPERM,
		    "process %d: no memory for its VM; it waits where it touches missing pages",
		    (int)in->pid);
		free(message);
		drop(in);
		return;
	}
	memcpy(message, in->data, len);
	*vm = (struct ferry_kept_vm){.id = ++k->next_id,
				     .conn = TAKE_FD(in->conn),
				     .uffd = TAKE_FD(in->uffd),
				     .known = -1,
				     .message = message,
				     .message_bytes = (uint32_t)len};
}

/* What came of the message so far. */
static void look_at(struct keeper *k, struct incoming *in)
{
	ssize_t end = ferry_vmm_message_end(in->data, in->used);

	if (end < 0 || (!end && in->used == sizeof(in->data))) {
		say(k, EPERM,
		    "process %d sent something that is no message of a VMM (%s); it is turned away",
		    (int)in->pid, end < 0 ? "no JSON array" : "too long");
		drop(in);
	} else if (end && in->uffd >= 0) {
		take_in(k, in, (size_t)end);
	}
}

static void read_incoming(struct keeper *k, struct incoming *in)
{
	bool cut = false;
	int fd = -1;
	ssize_t n = ferry_uffd_recv_bytes(in->conn, in->data + in->used,
					  sizeof(in->data) - in->used, &fd, &cut);

	if (n == -EAGAIN)
		return;
	if (in->uffd < 0)
		in->uffd = fd;
	else
		ferry_close(fd);
	if (n <= 0 || cut) {
		say(k, EPERM, "process %d %s; it is turned away", (int)in->pid,
		    cut ? "sent more than 16 descriptors, or there is none free for them"
			: "closed before its message was complete");
		drop(in);
		return;
	}
	in->used += (size_t)n;
	look_at(k, in);
}

static bool is_allowed(const struct keeper *k, const struct ucred *peer)
{
	return peer->uid == 0 || peer->uid == geteuid() || peer->uid == k->config->uid;
}

static struct incoming *free_incoming(struct keeper *k)
{
	for (uint32_t i = 0; i < MAX_INCOMING; i++)
		if (k->incoming[i].conn < 0)
			return &k->incoming[i];
	return NULL;
}

static uint32_t count_incoming(const struct keeper *k)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < MAX_INCOMING; i++)
		n += k->incoming[i].conn >= 0;
	return n;
}

static bool has_room(const struct keeper *k)
{
	uint32_t n = count_incoming(k);

	return n < MAX_INCOMING && count_vms(k) + n < k->config->max_vms;
}

static void accept_one(struct keeper *k)
{
	struct incoming *in = free_incoming(k);
	_cleanup_close_ int fd = ferry_net_accept(k->listen_fd);
	struct ucred peer = {0};
	socklen_t len = sizeof(peer);

	if (fd == -EAGAIN && k->draining)
		ferry_close(TAKE_FD(k->listen_fd));
	if (fd < 0) {
		/* It stays readable: whatever is short will not be there at once. */
		if (fd != -EAGAIN && fd != -ECONNABORTED)
			k->paused_until_ns = ferry_now_ns() + FERRY_NS_PER_S;
		return;
	}
	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &len) < 0 || !is_allowed(k, &peer)) {
		say(k, EPERM, "process %d of user %u may not connect; see --user", (int)peer.pid,
		    (unsigned int)peer.uid);
		return;
	}
	in->conn = TAKE_FD(fd);
	in->uffd = -1;
	in->pid = peer.pid;
	in->used = 0;
	in->deadline_ns = ferry_now_ns() + INCOMING_NS;
}

static void drop_late(struct keeper *k, uint64_t now)
{
	for (uint32_t i = 0; i < MAX_INCOMING; i++) {
		struct incoming *in = &k->incoming[i];

		if (in->conn < 0 || now < in->deadline_ns)
			continue;
		say(k, EPERM, "process %d connected, and sent no %s in time; it is turned away",
		    (int)in->pid,
		    in->used ? "userfaultfd, or only a part of its message" : "message");
		drop(in);
	}
}

/* --- the worker ------------------------------------------------------------------------------- */

/* Is there a VMM, or may there be one, that nobody else would ever serve? */
static bool is_awaited(const struct keeper *k)
{
	struct pollfd p = {.fd = k->listen_fd, .events = POLLIN};

	return count_vms(k) || count_incoming(k) || poll(&p, 1, 0) > 0;
}

/* In the child: what it doesn't need of the keeper. */
static void shed(struct keeper *k)
{
	sigset_t set;

	ferry_close(k->signals);
	ferry_close(k->listen_fd);
	for (uint32_t i = 0; i < MAX_INCOMING; i++)
		drop(&k->incoming[i]);
	sigemptyset(&set);
	sigaddset(&set, SIGCHLD);
	sigprocmask(SIG_UNBLOCK, &set, NULL);
}

static int start_worker(struct keeper *k, struct ferry_failure *f)
{
	struct ferry_worker_start start = {.vms = k->vms,
					   .n_slots = k->config->max_vms,
					   .n_restarts = k->n_restarts,
					   .last_signal = k->last_signal,
					   .is_awaited = is_awaited(k),
					   .drain_fd = k->drain_fd,
					   .end_fd = k->end_fd};
	int pair[2], rc = ferry_keeper_pair(pair);

	if (rc < 0)
		return ferry_fail_errno(f, FERRY_REFUSE, rc, "socketpair");
	fflush(NULL);
	k->worker = fork();
	if (k->worker < 0) {
		k->worker = 0;
		ferry_close(pair[0]);
		ferry_close(pair[1]);
		return ferry_fail_errno(f, FERRY_REFUSE, -errno, "fork");
	}
	if (!k->worker) {
		ferry_close(pair[0]);
		shed(k);
		start.link = pair[1];
		exit(k->config->worker(k->config->ctx, &start));
	}
	ferry_close(pair[1]);
	k->link = pair[0];
	k->started_ns = ferry_now_ns();
	for (uint32_t i = 0; i < k->config->max_vms; i++)
		k->vms[i].told = true;
	return 0;
}

/* Is the worker to end? Also when it has served everybody that there was. */
static bool is_ending(struct keeper *k)
{
	if (k->draining && !is_awaited(k))
		eventfd_write(k->end_fd, 1);
	return ferry_net_wait(k->end_fd, POLLIN, 0, -1) == 0;
}

/* When it is ending, and there is no worker to say how. */
static int last_status(const struct keeper *k)
{
	return is_awaited(k) ? -ECANCELED : 0;
}

/* Return: 1 when it is to be started again; 0 with the final status in @status. */
static int judge(struct keeper *k, int wait_status, int *status)
{
	uint64_t now = ferry_now_ns();

	if (WIFEXITED(wait_status)) {
		*status = WEXITSTATUS(wait_status);
		if (!*status || !is_awaited(k) || is_ending(k))
			return 0;
		k->last_signal = 0;
	} else {
		*status = last_status(k);
		if (is_ending(k))
			return 0;
		k->last_signal = WTERMSIG(wait_status);
	}
	k->backoff_ms =
		now - k->started_ns > SHORT_LIFE_NS
			? 0
			: FERRY_MIN(FERRY_MAX(k->backoff_ms * 2, BACKOFF_MIN_MS), BACKOFF_MAX_MS);
	k->n_restarts++;
	k->start_ns = now + k->backoff_ms * (uint64_t)FERRY_NS_PER_MS;
	return 1;
}

/*
 * Nobody else is let in. By our own socket those come still who had connected before: they don't
 * look whether we are there.
 */
static void drain(struct keeper *k)
{
	k->draining = true;
	if (k->config->path)
		unlink(k->config->path);
	if (!k->config->path || shutdown(k->listen_fd, SHUT_RD) < 0)
		ferry_close(TAKE_FD(k->listen_fd));
	eventfd_write(k->drain_fd, 1);
}

static void take_signals(struct keeper *k)
{
	struct signalfd_siginfo s;

	while (read(k->signals, &s, sizeof(s)) == sizeof(s)) {
		if (s.ssi_signo == SIGCHLD)
			continue;
		if (++k->n_signals > 1)
			eventfd_write(k->end_fd, 1);
		else if (!k->draining)
			drain(k);
	}
}

/* Return: as judge(); 1 also when the worker lives. */
static int look_after_worker(struct keeper *k, int *status)
{
	int wait_status;

	if (!k->worker || waitpid(k->worker, &wait_status, WNOHANG) != k->worker)
		return 1;
	k->worker = 0;
	hear(k);
	ferry_close(TAKE_FD(k->link));
	return judge(k, wait_status, status);
}

/* --- the loop --------------------------------------------------------------------------------- */

static int wait_ms(const struct keeper *k, uint64_t now)
{
	uint64_t next = k->worker ? UINT64_MAX : k->start_ns;

	if (k->paused_until_ns > now)
		next = FERRY_MIN(next, k->paused_until_ns);

	for (uint32_t i = 0; i < MAX_INCOMING; i++)
		if (k->incoming[i].conn >= 0)
			next = FERRY_MIN(next, k->incoming[i].deadline_ns);
	if (next == UINT64_MAX)
		return -1;
	return next > now ? (int)((next - now) / FERRY_NS_PER_MS) + 1 : 0;
}

static int step(struct keeper *k, bool all_told)
{
	struct pollfd p[4 + MAX_INCOMING], *in = p + 4;
	bool room = has_room(k), paused = ferry_now_ns() < k->paused_until_ns;
	/* One who waits is told once; a socket that is shut down is always readable. */
	bool listens = !paused && (room || (!k->was_full && !k->draining));

	p[0] = (struct pollfd){.fd = k->signals, .events = POLLIN};
	p[1] = (struct pollfd){.fd = k->link, .events = (short)(POLLIN | (all_told ? 0 : POLLOUT))};
	p[2] = (struct pollfd){.fd = listens ? k->listen_fd : -1, .events = POLLIN};
	p[3] = (struct pollfd){.fd = k->draining ? -1 : k->drain_fd, .events = POLLIN};
	for (uint32_t i = 0; i < MAX_INCOMING; i++)
		in[i] = (struct pollfd){.fd = k->incoming[i].conn, .events = POLLIN};
	if (poll(p, FERRY_ARRAY_SIZE(p), wait_ms(k, ferry_now_ns())) < 0) {
		if (errno != EINTR && errno != ENOMEM)
			return -errno;
		if (errno == ENOMEM)
			(void)poll(NULL, 0, SHORT_MEMORY_MS);
		return 0;
	}
	if (p[0].revents)
		take_signals(k);
	if (p[1].revents)
		hear(k);
	for (uint32_t i = 0; i < MAX_INCOMING; i++)
		if (in[i].revents)
			read_incoming(k, &k->incoming[i]);
	if (p[2].revents && room)
		accept_one(k);
	else if (p[2].revents)
		say(k, EAGAIN,
		    "a VM waits to be let in: %u are served, which is the limit (--max-vms)",
		    k->config->max_vms);
	k->was_full = !room && (k->was_full || p[2].revents);
	if (p[3].revents && !k->draining)
		drain(k);
	drop_late(k, ferry_now_ns());
	return 0;
}

static int run(struct keeper *k, struct ferry_failure *f)
{
	for (;;) {
		int status = 0, rc;

		if (!look_after_worker(k, &status))
			return status;
		if (is_ending(k) && !k->worker)
			return last_status(k);
		if (!k->worker && ferry_now_ns() >= k->start_ns) {
			rc = start_worker(k, f);
			if (rc < 0 && !k->n_restarts)
				return rc;
			if (rc < 0)
				k->start_ns = ferry_now_ns() + FERRY_NS_PER_S;
		}
		rc = step(k, k->link < 0 || tell(k));
		if (rc < 0)
			return ferry_fail_errno(f, FERRY_LINK, rc, "poll");
	}
}

static int open_signals(struct keeper *k, struct ferry_failure *f)
{
	sigset_t set;

	signal(SIGPIPE, SIG_IGN);
	signal(SIGHUP, SIG_IGN);
	sigemptyset(&set);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGCHLD);
	sigprocmask(SIG_BLOCK, &set, NULL);
	k->signals = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	k->drain_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	k->end_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	return k->signals < 0 || k->drain_fd < 0 || k->end_fd < 0
		       ? ferry_fail_errno(f, FERRY_REFUSE, -errno, "signalfd, eventfd")
		       : 0;
}

int ferry_keeper_run(const struct ferry_keeper_config *config, struct ferry_failure *f)
{
	struct keeper *k = calloc(1, sizeof(*k));
	int rc = -ENOMEM;

	if (k)
		k->vms = calloc(config->max_vms, sizeof(k->vms[0]));
	if (!k || !k->vms) {
		ferry_close(config->listen_fd);
		if (config->path)
			unlink(config->path);
		free(k);
		return ferry_fail_errno(f, FERRY_REFUSE, rc, "the table of VMs");
	}
	k->config = config;
	k->listen_fd = config->listen_fd;
	k->signals = k->link = k->drain_fd = k->end_fd = -1;
	for (uint32_t i = 0; i < config->max_vms; i++)
		k->vms[i] = FREE_SLOT;
	for (uint32_t i = 0; i < MAX_INCOMING; i++)
		k->incoming[i].conn = k->incoming[i].uffd = -1;
	rc = open_signals(k, f);
	if (!rc)
		rc = run(k, f);
	for (uint32_t i = 0; i < config->max_vms; i++)
		forget(&k->vms[i]);
	for (uint32_t i = 0; i < MAX_INCOMING; i++)
		drop(&k->incoming[i]);
	if (!k->draining && config->path)
		unlink(config->path);
	ferry_close(k->link);
	ferry_close(k->signals);
	ferry_close(k->drain_fd);
	ferry_close(k->end_fd);
	ferry_close(k->listen_fd);
	free(k->vms);
	free(k);
	return rc;
}
