/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One thread, one poll. A connection goes through a slot:
 *
 *    accepted -> HELLO: exactly the bytes of one frame are read, as what follows belongs to whoever
 *                gets the connection
 *       |-> handed on (the slot is free again)
 *       |-> TELLING: Error was sent; the peer may still be sending, and closing now could destroy
 *           the Error on its way. Input is dropped until the peer closes.
 * Both have a time limit.
 */
#include "migrate/acceptor.h"

#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/net.h"
#include "base/util.h"
#include "protocol/connection.h"
#include "tls/gate.h"
#include "uffd/channel.h"

#define HELLO_LIMIT_NS (5ull * FERRY_NS_PER_S)
#define TELL_LIMIT_NS  (2ull * FERRY_NS_PER_S)
/* A Hello with room for fields of later versions; anything longer is no Hello. */
#define HELLO_MAX_BYTES 1024u

#define SWITCHOVER_BUSY                                                                            \
	"this 'pageferry receive' serves another source already; start one of its own for each "   \
	"guest"

enum slot_state {
	SLOT_FREE,
	SLOT_HELLO,
	SLOT_TELLING,
};

struct slot {
	enum slot_state state;
	int fd; /* owned while not free */
	uint64_t since_ns, deadline_ns;
	char name[FERRY_GATE_NAME_MAX]; /* of the peer, for the log */
	size_t have;
	uint8_t buffer[FERRY_FRAME_HEADER_BYTES + HELLO_MAX_BYTES];
};

struct ferry_acceptor {
	struct ferry_gate *gate; /* owned */
	const struct ferry_log *log;
	int stop_fd, ready_fd; /* owned: eventfds */
	pthread_t thread;
	bool running; /* it is to be joined */
	struct ferry_arena arena;
	struct slot slots[FERRY_ACCEPTOR_MAX_PENDING];

	pthread_mutex_t lock;	     /* of what follows */
	struct ferry_target *target; /* borrowed */
	bool seat_taken;
	bool epoch_seen; /* by the one in the seat */
	struct ferry_session_id seat;
	uint32_t epoch;
	int waiting_fd; /* owned: a switchover connection not yet taken; -1 */
	struct ferry_hello waiting_hello;
};

/* --- slots ---------------------------------------------------------------------------------- */

static void free_slot(struct slot *s)
{
	ferry_close(s->fd);
	s->fd = -1;
	s->state = SLOT_FREE;
}

/* Say why not, and leave the peer some time to read it. */
static void refuse(struct ferry_acceptor *a, struct slot *s, enum ferry_error_code code,
		   const char *text)
{
	ferry_warn(a->log, "a connection from %s was refused: %s", s->name, text);
	ferry_channel_refuse(s->fd, code, text);
	shutdown(s->fd, SHUT_WR);
	s->state = SLOT_TELLING;
	s->deadline_ns = ferry_now_ns() + TELL_LIMIT_NS;
}

static struct slot *find_slot(struct ferry_acceptor *a)
{
	struct slot *oldest = &a->slots[0];

	for (size_t i = 0; i < FERRY_ARRAY_SIZE(a->slots); i++) {
		if (a->slots[i].state == SLOT_FREE)
			return &a->slots[i];
		if (a->slots[i].since_ns < oldest->since_ns)
			oldest = &a->slots[i];
	}
	free_slot(oldest);
	return oldest;
}

static void accept_one(struct ferry_acceptor *a)
{
	char name[FERRY_GATE_NAME_MAX];
	int fd = ferry_gate_accept(a->gate, name);
	struct slot *s;

	if (fd < 0) {
		if (fd != -EAGAIN)
			ferry_warn(a->log, "a connection could not be accepted: %s", strerror(-fd));
		return;
	}
	s = find_slot(a);
	s->state = SLOT_HELLO;
	s->fd = fd;
	memcpy(s->name, name, sizeof(s->name));
	s->have = 0;
	s->since_ns = ferry_now_ns();
	s->deadline_ns = s->since_ns + HELLO_LIMIT_NS;
}

/* --- Hello ---------------------------------------------------------------------------------- */

/* Takes a switchover connection into the seat. Called with the lock held. */
static const char *seat(struct ferry_acceptor *a, int fd, const struct ferry_hello *h,
			enum ferry_error_code *code)
{
	if (a->seat_taken && memcmp(&a->seat, &h->session, sizeof(a->seat))) {
		*code = FERRY_ERROR_BUSY;
		return SWITCHOVER_BUSY;
	}
	if (a->seat_taken && a->epoch_seen && h->epoch <= a->epoch) {
		*code = FERRY_ERROR_SESSION;
		return "this switchover connection is older than one that came already";
	}
	ferry_close(a->waiting_fd);
	a->waiting_fd = fd;
	a->waiting_hello = *h;
	a->seat_taken = a->epoch_seen = true;
	a->seat = h->session;
	a->epoch = h->epoch;
	(void)!write(a->ready_fd, &(uint64_t){1}, sizeof(uint64_t));
	return NULL;
}

static void dispatch_switchover(struct ferry_acceptor *a, struct slot *s,
				const struct ferry_hello *h)
{
	enum ferry_error_code code;
	const char *why;

	pthread_mutex_lock(&a->lock);
	why = seat(a, s->fd, h, &code);
	pthread_mutex_unlock(&a->lock);
	if (why) {
		refuse(a, s, code, why);
		return;
	}
	s->fd = -1;
	s->state = SLOT_FREE;
}

static void dispatch_pages(struct ferry_acceptor *a, struct slot *s, const struct ferry_hello *h)
{
	struct ferry_failure f = {0};
	int rc = 0;

	pthread_mutex_lock(&a->lock);
	if (a->target)
		rc = ferry_target_adopt_conn(a->target, TAKE_FD(s->fd), h, &f);
	pthread_mutex_unlock(&a->lock);
	if (s->fd >= 0) {
		refuse(a, s, FERRY_ERROR_SESSION,
		       "no switchover has come so far that pages could be sent");
		return;
	}
	s->state = SLOT_FREE;
	if (rc < 0)
		ferry_warn(a->log, "a %s connection was refused: %s", ferry_role_name(h->role),
			   f.text);
}

static void dispatch(struct ferry_acceptor *a, struct slot *s, const struct ferry_frame *frame)
{
	struct ferry_connection connection;
	enum ferry_error_code code = FERRY_ERROR_PROTOCOL;
	struct ferry_message m;
	char why[FERRY_MAX_TEXT];

	ferry_connection_accept(&connection, FERRY_SIDE_TARGET);
	if (ferry_message_decode(frame, &a->arena, &m, why) < 0 ||
	    ferry_connection_check(&connection, &m, &code, why) < 0) {
		refuse(a, s, code, why);
		return;
	}
	if (m.hello.role == FERRY_ROLE_SWITCHOVER)
		dispatch_switchover(a, s, &m.hello);
	else
		dispatch_pages(a, s, &m.hello);
}

/* How many bytes the frame in the slot has, as far as that is known; 0 when it is no Hello. */
static size_t frame_bytes(const struct slot *s, struct ferry_frame *frame)
{
	struct ferry_frame_header h;

	if (s->have < FERRY_FRAME_HEADER_BYTES)
		return FERRY_FRAME_HEADER_BYTES;
	if (ferry_frame_header_decode(s->buffer, &h) < 0 || h.type != FERRY_FRAME_HELLO ||
	    h.msg_bytes > HELLO_MAX_BYTES || h.payload_bytes)
		return 0;
	*frame =
		(struct ferry_frame){.type = h.type,
				     .msg = s->buffer + FERRY_FRAME_HEADER_BYTES,
				     .msg_bytes = h.msg_bytes,
				     .payload = s->buffer + FERRY_FRAME_HEADER_BYTES + h.msg_bytes};
	return FERRY_FRAME_HEADER_BYTES + h.msg_bytes;
}

static void read_hello(struct ferry_acceptor *a, struct slot *s)
{
	for (;;) {
		struct ferry_frame frame;
		size_t want = frame_bytes(s, &frame);
		ssize_t n;

		if (!want) {
			refuse(a, s, FERRY_ERROR_PROTOCOL,
			       "what came is not the Pageferry protocol; only 'pageferry migrate' "
			       "connects here");
			return;
		}
		if (s->have == want && want > FERRY_FRAME_HEADER_BYTES) {
			dispatch(a, s, &frame);
			return;
		}
		n = recv(s->fd, s->buffer + s->have, want - s->have, MSG_DONTWAIT);
		if (n < 0 && (errno == EAGAIN || errno == EINTR))
			return;
		if (n <= 0) {
			free_slot(s);
			return;
		}
		s->have += (size_t)n;
		/* An empty message: the header is all of it. */
		if (s->have == FERRY_FRAME_HEADER_BYTES &&
		    frame_bytes(s, &frame) == FERRY_FRAME_HEADER_BYTES) {
			dispatch(a, s, &frame);
			return;
		}
	}
}

static void drop_input(struct slot *s)
{
	ssize_t n = recv(s->fd, s->buffer, sizeof(s->buffer), MSG_DONTWAIT);

	if (!n || (n < 0 && errno != EAGAIN && errno != EINTR))
		free_slot(s);
}

/* --- the thread ----------------------------------------------------------------------------- */

static void expire(struct ferry_acceptor *a, struct slot *s, uint64_t now)
{
	if (s->state == SLOT_FREE || now < s->deadline_ns)
		return;
	if (s->state == SLOT_HELLO)
		refuse(a, s, FERRY_ERROR_PROTOCOL, "no Hello came within 5 s");
	else
		free_slot(s);
}

/* Milliseconds to the next deadline, -1 when there is none. */
static int next_timeout(const struct ferry_acceptor *a)
{
	uint64_t now = ferry_now_ns(), first = UINT64_MAX;

	for (size_t i = 0; i < FERRY_ARRAY_SIZE(a->slots); i++) {
		if (a->slots[i].state != SLOT_FREE)
			first = FERRY_MIN(first, a->slots[i].deadline_ns);
	}
	if (first == UINT64_MAX)
		return -1;
	return first <= now ? 0 : (int)((first - now) / FERRY_NS_PER_MS) + 1;
}

static void *run(void *arg)
{
	struct ferry_acceptor *a = arg;
	struct pollfd p[FERRY_ACCEPTOR_MAX_PENDING + 2];

	for (;;) {
		p[0] = (struct pollfd){.fd = a->stop_fd, .events = POLLIN};
		p[1] = (struct pollfd){.fd = ferry_gate_fd(a->gate), .events = POLLIN};
		for (size_t i = 0; i < FERRY_ARRAY_SIZE(a->slots); i++)
			p[2 + i] = (struct pollfd){.fd = a->slots[i].fd, .events = POLLIN};
		if (poll(p, FERRY_ARRAY_SIZE(p), next_timeout(a)) < 0)
			continue;
		if (p[0].revents)
			return NULL;
		for (size_t i = 0; i < FERRY_ARRAY_SIZE(a->slots); i++) {
			struct slot *s = &a->slots[i];

			if (p[2 + i].revents && s->state == SLOT_HELLO)
				read_hello(a, s);
			else if (p[2 + i].revents && s->state == SLOT_TELLING)
				drop_input(s);
			expire(a, s, ferry_now_ns());
		}
		if (p[1].revents)
			accept_one(a);
	}
}

int ferry_acceptor_new(struct ferry_acceptor **out, int listen_fd, struct ferry_tls *tls,
		       const struct ferry_log *log, struct ferry_failure *f)
{
	struct ferry_acceptor *a = calloc(1, sizeof(*a));
	int rc;

	if (!a)
		return ferry_fail_errno(f, FERRY_REFUSE, -ENOMEM, "acceptor");
	a->log = log;
	a->waiting_fd = -1;
	for (size_t i = 0; i < FERRY_ARRAY_SIZE(a->slots); i++)
		a->slots[i].fd = -1;
	pthread_mutex_init(&a->lock, NULL);
	a->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	a->ready_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	rc = a->stop_fd < 0 || a->ready_fd < 0 ? -errno : ferry_arena_init(&a->arena);
	if (!rc)
		rc = ferry_gate_open(&a->gate, listen_fd, tls, log, f);
	if (rc < 0) {
		ferry_acceptor_free(a);
		return ferry_fail_errno(f, FERRY_REFUSE, rc, "acceptor");
	}
	*out = a;
	return 0;
}

int ferry_acceptor_start(struct ferry_acceptor *a, struct ferry_failure *f)
{
	int rc = -pthread_create(&a->thread, NULL, run, a);

	a->running = !rc;
	return rc < 0 ? ferry_fail_errno(f, FERRY_REFUSE, rc, "acceptor") : 0;
}

void ferry_acceptor_free(struct ferry_acceptor *a)
{
	if (!a)
		return;
	if (a->running) {
		(void)!write(a->stop_fd, &(uint64_t){1}, sizeof(uint64_t));
		pthread_join(a->thread, NULL);
	}
	for (size_t i = 0; i < FERRY_ARRAY_SIZE(a->slots); i++)
		free_slot(&a->slots[i]);
	ferry_gate_close(a->gate);
	ferry_close(a->waiting_fd);
	ferry_close(a->stop_fd);
	ferry_close(a->ready_fd);
	ferry_arena_fini(&a->arena);
	pthread_mutex_destroy(&a->lock);
	free(a);
}

/* --- the owner's side ----------------------------------------------------------------------- */

int ferry_acceptor_fd(const struct ferry_acceptor *a)
{
	return a->ready_fd;
}

int ferry_acceptor_take(struct ferry_acceptor *a, struct ferry_hello *hello)
{
	uint64_t n;
	int fd;

	pthread_mutex_lock(&a->lock);
	(void)!read(a->ready_fd, &n, sizeof(n));
	fd = TAKE_FD(a->waiting_fd);
	if (fd >= 0)
		*hello = a->waiting_hello;
	pthread_mutex_unlock(&a->lock);
	return fd >= 0 ? fd : -EAGAIN;
}

void ferry_acceptor_free_seat(struct ferry_acceptor *a)
{
	pthread_mutex_lock(&a->lock);
	/* Unless its successor (of the same session) waits already. */
	if (a->waiting_fd < 0)
		a->seat_taken = a->epoch_seen = false;
	pthread_mutex_unlock(&a->lock);
}

void ferry_acceptor_reserve(struct ferry_acceptor *a, const struct ferry_session_id *session)
{
	pthread_mutex_lock(&a->lock);
	a->seat_taken = true;
	a->epoch_seen = false;
	a->seat = *session;
	pthread_mutex_unlock(&a->lock);
}

void ferry_acceptor_set_target(struct ferry_acceptor *a, struct ferry_target *target)
{
	pthread_mutex_lock(&a->lock);
	a->target = target;
	pthread_mutex_unlock(&a->lock);
}
