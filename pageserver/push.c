/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The push thread of a session: holes first, then runs in push order, until all is sent.
 *
 *  1. For each bulk connection (lane) whose last frames have left, cut up to LANE_PIECES pieces and
 *     encode their headers; one sendmsg takes them all.
 *  2. When no lane takes more, wait until one does, or for the stop request.
 *  3. At the end every lane gets a PushDone.
 *
 * Where many sessions share a process, a push takes its turn for each round of 1 (turns.h).
 *
 * The rate is kept by a token bucket, which urgent answers are charged to as well: they don't wait,
 * but the push then does. The thread has a lower priority than the loop's, and a small stack;
 * nothing is allocated once it runs. Sources that copy have room in each lane, in the size of a
 * processor's cache.
 *
 * A target may want to hear of us on each bulk connection until its PushDone, and this thread may
 * wait for long: for its turn, a disk, its rate. So the loop sends a Ping where nothing was sent
 * for a while; the lanes' ->send_lock keeps it from cutting a frame in two. Nor does the thread
 * wait while half a frame is to be sent, but for a disk.
 *
 * Failure modes: a socket's error ends it (the loop mostly sees it first and stops it); so does a
 * page that can't be had.
 */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/resource.h>

#include "base/cleanup.h"
#include "base/net.h"
#include "pageserver/bucket.h"
#include "pageserver/server_internal.h"

#define PUSH_BYTES  (256 * FERRY_KIB) /* of one sendmsg */
#define LANE_PIECES 32
#define STACK_BYTES (128 * FERRY_KIB)
/* A limited push goes out in about this many sendmsg a second, to leave the link free between. */
#define PACED_SENDS   200
#define MIN_PACED     (16u * FERRY_KIB)
#define GIVE_WAY_MS   20
#define PACE_LOOK_MS  100 /* how often one that waits for its rate looks at it */
#define PAUSE_LOOK_MS 50 /* how often a push that is paused looks whether it still is */
/* Runs that a gated source is waited for, before no others are looked at. */
#define PARKED_MAX    64u
#define PARKED_MAX_MS 16
/* The same for those that are asked for: what threads wait for must not wait long behind them. */
#define LISTED_MAX 8u

struct lane {
	int fd; /* the connection's, as the next */
	uint64_t features;
	struct iovec iov[2 * LANE_PIECES];
	struct iovec *next; /* to be sent */
	size_t n_iov;
	struct ferry_run first; /* of what is being sent */
	bool told_done;
	pthread_mutex_t send_lock; /* of fd, and what follows */
	bool in_frame;		   /* some of it has left */
	bool is_done;		   /* PushDone has left */
	uint64_t sent_ns;	   /* something has left */
	struct ferry_scratch scratch;
	uint8_t headers[LANE_PIECES][FERRY_PAGE_RUN_BYTES];
};

struct ferry_push {
	struct ferry_server *server;
	struct ferry_session *session; /* borrowed; outlives the thread */
	pthread_t thread;
	int stop_fd; /* owned; eventfd */
	atomic_bool stop, ended;
	_Atomic uint64_t rate, charged;
	bool gives_way; /* to urgent answers: its pages are huge */
	atomic_bool urgent;
	int result;
	struct ferry_run failed;

	uint32_t n_first, n_last; /* of the server's lists: taken */
	bool is_listed;		  /* the list of what comes first is not at its end */
	struct ferry_run rest;	  /* of the list's run at hand */
	bool no_more_holes;
	struct ferry_run parked[PARKED_MAX]; /* claimed, but a gated source has not got them yet */
	uint32_t n_parked;
	struct ferry_cut cut;
	struct ferry_bucket bucket;
	struct ferry_turn turn;
	uint64_t turn_bytes; /* sent in it */
	uint32_t n_lanes;
	struct lane lanes[];
};

/* --- rate --------------------------------------------------------------------------------- */

static uint32_t paced_bytes(uint64_t rate)
{
	uint64_t bytes = rate / PACED_SENDS;

	if (!rate || bytes > PUSH_BYTES)
		return PUSH_BYTES;
	return bytes < MIN_PACED ? MIN_PACED : (uint32_t)bytes;
}

/* Frames of a lane have left in part: whatever we wait for, the rest must follow as soon as it can.
 */
static bool is_behind(const struct ferry_push *p)
{
	for (uint32_t i = 0; i < p->n_lanes; i++)
		if (p->lanes[i].in_frame)
			return true;
	return false;
}

/* Waits until the bucket allows for more. Errors: -ECANCELED; -EAGAIN once lanes that are behind
 * are not any more. */
static int pace(struct ferry_push *p)
{
	while (atomic_load_explicit(&p->server->paused, memory_order_relaxed)) {
		if (is_behind(p))
			return -EAGAIN;
		if (ferry_net_wait(p->stop_fd, POLLIN, PAUSE_LOOK_MS, -1) != -ETIMEDOUT)
			return -ECANCELED;
	}
	for (;;) {
		uint64_t rate = atomic_load_explicit(&p->rate, memory_order_relaxed);
		uint64_t wait_ns;
		int rc;

		ferry_bucket_take(&p->bucket, atomic_exchange(&p->charged, 0));
		wait_ns = ferry_bucket_fill(&p->bucket, rate, paced_bytes(rate), ferry_now_ns());
		if (!wait_ns)
			return 0;
		if (is_behind(p))
			return -EAGAIN;
		/* The rate may be changed meanwhile. */
		wait_ns = FERRY_MIN(wait_ns, PACE_LOOK_MS * FERRY_NS_PER_MS);
		rc = ferry_net_wait(p->stop_fd, POLLIN, (int)(wait_ns / FERRY_NS_PER_MS) + 1, -1);
		if (rc != -ETIMEDOUT)
			return -ECANCELED;
	}
}

/*
 * A huge page keeps a processor, and a link, as busy as hundreds of small ones: an urgent one is not to
 * share them with the push. The wait has an end, so that no urgent connection can hold the push for good.
 */
static int give_way(struct ferry_push *p)
{
	for (int i = 0; p->gives_way && i < GIVE_WAY_MS && atomic_load(&p->urgent); i++)
		if (ferry_net_wait(p->stop_fd, POLLIN, 1, -1) != -ETIMEDOUT)
			return -ECANCELED;
	return 0;
}

static void take_turn(struct ferry_push *p)
{
	p->turn_bytes = 0;
	if (p->server->config.turns)
		ferry_turn_take(p->server->config.turns, &p->turn);
}

static void give_turn(struct ferry_push *p)
{
	if (p->server->config.turns)
		ferry_turn_give(p->server->config.turns, &p->turn, p->turn_bytes);
}

/* --- a lane's next frames ----------------------------------------------------------------- */

/* The next of a list of runs, from @at on. */
static bool claim_listed(struct ferry_push *p, const struct ferry_run *list, uint32_t n,
			 uint32_t *at, bool put_back, uint32_t max_bytes, struct ferry_run *run)
{
	for (;;) {
		if (!p->rest.n_pages) {
			if (*at == n)
				return false;
			p->rest = list[(*at)++];
			if (put_back)
				ferry_session_put_back(p->session, &p->rest);
		}
		if (ferry_session_next_of(p->session, &p->rest, max_bytes, run))
			return true;
	}
}

static bool claim_run(struct ferry_push *p, uint32_t max_bytes, struct ferry_run *run)
{
	const struct ferry_server_config *c = &p->server->config;

	p->is_listed = p->is_listed &&
		       claim_listed(p, c->first, c->n_first, &p->n_first, false, max_bytes, run);
	if (p->is_listed)
		return true;
	if (!p->no_more_holes && !ferry_session_next_hole(p->session, run))
		p->no_more_holes = true;
	return !p->no_more_holes || ferry_session_next_run(p->session, max_bytes, run) ||
	       claim_listed(p, c->last, c->n_last, &p->n_last, true, max_bytes, run);
}

static bool take_parked(struct ferry_push *p, struct ferry_run *run)
{
	for (uint32_t i = 0; i < p->n_parked; i++) {
		*run = p->parked[i];
		if (!ferry_server_has(p->server, run, false))
			continue;
		p->parked[i] = p->parked[--p->n_parked];
		return true;
	}
	return false;
}

/* Return: 1 with ->cut, 0 at the end, -ECANCELED, or -EAGAIN as pace(). */
static int next_run(struct ferry_push *p, const struct lane *l, uint32_t max_bytes)
{
	int wait_ms = 1, rc;

	for (;;) {
		struct ferry_run run;
		bool found = take_parked(p, &run);

		while (!found && p->n_parked < (p->is_listed ? LISTED_MAX : PARKED_MAX) &&
		       claim_run(p, max_bytes, &run)) {
			found = ferry_server_has(p->server, &run, p->is_listed);
			if (!found)
				p->parked[p->n_parked++] = run;
		}
		if (found) {
			p->cut = (struct ferry_cut){.rest = run,
						    .says_lost = l->features & FERRY_FEATURE_LOST};
			return 1;
		}
		if (!p->n_parked)
			return 0;
		if (is_behind(p))
			return -EAGAIN;
		give_turn(p);
		rc = ferry_net_wait(p->stop_fd, POLLIN, wait_ms, -1);
		take_turn(p);
		if (rc != -ETIMEDOUT)
			return -ECANCELED;
		wait_ms = FERRY_MIN(2 * wait_ms, PARKED_MAX_MS);
	}
}

static size_t put(struct lane *l, uint32_t i, const struct ferry_message *m, const void *data)
{
	int n = ferry_message_encode(m, l->headers[i], FERRY_PAGE_RUN_BYTES);

	l->iov[l->n_iov++] = (struct iovec){l->headers[i], (size_t)n};
	if (m->payload_bytes)
		l->iov[l->n_iov++] = (struct iovec){(void *)data, m->payload_bytes};
	return (size_t)n + m->payload_bytes;
}

/* Return: bytes, or a negative error. */
static ssize_t put_piece(struct ferry_push *p, struct lane *l, uint32_t i, uint32_t max_bytes)
{
	struct ferry_message m = {.type = FERRY_FRAME_PAGE_RUN};
	const struct ferry_region_desc *regions = p->server->pages.layout.regions;
	const void *data;
	int rc = ferry_session_cut(p->session, &p->cut, max_bytes, &l->scratch, &m.run, &data);

	if (rc < 0) {
		p->failed = p->cut.rest;
		return rc;
	}
	if (rc == FERRY_CUT_FULL)
		return 0;
	rc = ferry_server_finish_piece(p->server, &m.run, data, l->features, false);
	if (rc < 0) {
		p->failed = m.run.run;
		return rc;
	}
	if (data)
		m.payload_bytes = m.run.run.n_pages * regions[m.run.run.region].page_bytes;
	if (!i)
		l->first = m.run.run;
	return (ssize_t)put(l, i, &m, data);
}

static int fill(struct ferry_push *p, struct lane *l)
{
	uint32_t max_bytes = paced_bytes(atomic_load_explicit(&p->rate, memory_order_relaxed));
	struct ferry_message done = {.type = FERRY_FRAME_PUSH_DONE};
	size_t bytes = 0;
	uint32_t i;
	int rc;

	l->next = l->iov;
	l->n_iov = 0;
	l->scratch.used = 0;
	p->cut.n_have = 0; /* those bytes may be in another lane's scratch memory */
	for (i = 0; i < LANE_PIECES && bytes < max_bytes; i++) {
		ssize_t n;

		if (!p->cut.rest.n_pages) {
			rc = next_run(p, l, max_bytes);
			if (rc == -EAGAIN && i)
				break;
			if (rc < 0)
				return rc;
			if (!rc)
				break;
		}
		n = put_piece(p, l, i, max_bytes);
		if (n < 0)
			return (int)n;
		if (!n)
			break;
		bytes += (size_t)n;
	}
	ferry_bucket_take(&p->bucket, bytes);
	if (!i) {
		put(l, 0, &done, NULL);
		l->told_done = true;
	}
	return 0;
}

/* --- sending ------------------------------------------------------------------------------ */

/* Return: 0 when all of it left, -EAGAIN when not, or another negative error. */
static int send_locked(struct ferry_push *p, struct lane *l)
{
	while (l->n_iov) {
		struct msghdr msg = {.msg_iov = l->next, .msg_iovlen = l->n_iov};
		ssize_t n = sendmsg(l->fd, &msg, MSG_NOSIGNAL | MSG_DONTWAIT);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EFAULT)
			p->failed = l->first;
		if (n < 0)
			return -errno;
		atomic_fetch_add_explicit(&p->server->n.wire_bytes, (uint64_t)n,
					  memory_order_relaxed);
		p->turn_bytes += (uint64_t)n;
		while (l->n_iov && (size_t)n >= l->next->iov_len) {
			n -= (ssize_t)l->next->iov_len;
			l->next++;
			l->n_iov--;
		}
		if (l->n_iov) {
			l->next->iov_base = (uint8_t *)l->next->iov_base + n;
			l->next->iov_len -= (size_t)n;
		}
	}
	return 0;
}

static int send_lane(struct ferry_push *p, struct lane *l)
{
	int rc;

	pthread_mutex_lock(&l->send_lock);
	rc = send_locked(p, l);
	l->in_frame = l->n_iov;
	l->is_done = l->told_done && !l->n_iov;
	l->sent_ns = ferry_now_ns();
	pthread_mutex_unlock(&l->send_lock);
	return rc;
}

void ferry_push_ping(struct ferry_push *p, int fd, uint64_t now)
{
	struct ferry_message m = {.type = FERRY_FRAME_PING, .ping = {.sent_ns = now}};
	uint8_t out[FERRY_PAGE_RUN_BYTES];
	int len = ferry_message_encode(&m, out, sizeof(out));
	struct lane *l = NULL;
	ssize_t n;

	for (uint32_t i = 0; i < p->n_lanes; i++)
		if (p->lanes[i].fd == fd)
			l = &p->lanes[i];
	/* If it is sending, there is something to hear. */
	if (!l || pthread_mutex_trylock(&l->send_lock))
		return;
	if (!l->in_frame && !l->is_done && now > l->sent_ns && now - l->sent_ns >= PING_IDLE_NS) {
		l->sent_ns = now;
		n = send(fd, out, (size_t)len, MSG_NOSIGNAL | MSG_DONTWAIT);
		/* A full socket has something on its way; one that took a part is of no use any
		 * more. */
		if (n >= 0 && n < len)
			shutdown(fd, SHUT_RDWR);
	}
	pthread_mutex_unlock(&l->send_lock);
}

/* Waits until a lane that has something to send takes it. */
static int wait_writable(struct ferry_push *p)
{
	struct pollfd fds[FERRY_MAX_BULK + 1] = {{.fd = p->stop_fd, .events = POLLIN}};
	nfds_t n = 1;

	for (uint32_t i = 0; i < p->n_lanes; i++)
		if (p->lanes[i].n_iov)
			fds[n++] = (struct pollfd){.fd = p->lanes[i].fd, .events = POLLOUT};
	while (poll(fds, n, -1) < 0)
		if (errno != EINTR)
			return -errno;
	return 0;
}

/* Return: 0 when its frames left, -EAGAIN when not, or another negative error. */
static int serve_lane(struct ferry_push *p, struct lane *l)
{
	bool is_empty = !l->n_iov;
	int rc = is_empty ? pace(p) : 0;

	if (!rc && is_empty)
		rc = give_way(p);
	if (rc < 0)
		return rc;
	take_turn(p);
	if (is_empty)
		rc = fill(p, l);
	if (!rc)
		rc = send_lane(p, l);
	give_turn(p);
	return rc;
}

static int run(struct ferry_push *p)
{
	for (;;) {
		bool moved = false, busy = false;

		for (uint32_t i = 0; i < p->n_lanes; i++) {
			struct lane *l = &p->lanes[i];
			int rc;

			if (atomic_load_explicit(&p->stop, memory_order_relaxed))
				return -ECANCELED;
			if (!l->n_iov && l->told_done)
				continue;
			busy = true;
			rc = serve_lane(p, l);
			if (rc < 0 && rc != -EAGAIN)
				return rc;
			moved |= !rc;
		}
		if (!busy)
			return 0;
		if (!moved) {
			int rc = wait_writable(p);

			if (rc < 0)
				return rc;
		}
	}
}

static void *push_main(void *arg)
{
	struct ferry_push *p = arg;
	/* Not ours any more once it has ended. */
	struct ferry_server *s = p->server;

	/* Best effort: an urgent answer's processor time goes before ours. The loop started us, so
	 * that we begin with its priority. */
	setpriority(PRIO_PROCESS, (id_t)gettid(), s->is_raised ? 0 : LOW_NICE);
	p->result = run(p);
	atomic_store(&p->ended, true);
	ferry_loop_wake(s);
	return NULL;
}

/* --- life --------------------------------------------------------------------------------- */

static void free_push(struct ferry_push *p)
{
	for (uint32_t i = 0; i < p->n_lanes; i++) {
		pthread_mutex_destroy(&p->lanes[i].send_lock);
		free(p->lanes[i].scratch.data);
	}
	ferry_close(p->stop_fd);
	ferry_turn_fini(&p->turn);
	free(p);
}

static int init_lanes(struct ferry_push *p, const struct ferry_peer *peer)
{
	for (uint32_t i = 0; i < FERRY_MAX_BULK; i++) {
		size_t size = p->server->scratch_page_bytes;
		struct lane *l;

		if (!peer->bulk[i])
			continue;
		l = &p->lanes[p->n_lanes++];
		l->fd = peer->bulk[i]->fd;
		l->features = peer->bulk[i]->proto.features;
		pthread_mutex_init(&l->send_lock, NULL);
		l->sent_ns = p->bucket.at_ns;
		if (!size)
			continue;
		l->scratch.size = FERRY_MAX(size, (size_t)PUSH_BYTES);
		l->scratch.data = aligned_alloc(FERRY_PAGE_SIZE_DEFAULT, l->scratch.size);
		if (!l->scratch.data)
			return -ENOMEM;
	}
	return 0;
}

int ferry_push_start(struct ferry_peer *peer)
{
	struct ferry_push *p = calloc(1, sizeof(*p) + peer->n_bulk * sizeof(p->lanes[0]));
	int rc;

	if (!p)
		return -ENOMEM;
	p->server = peer->server;
	p->session = peer->session;
	p->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	p->bucket.at_ns = ferry_now_ns();
	ferry_turn_init(&p->turn);
	atomic_init(&p->rate, peer->push_rate);
	for (uint32_t i = 0; i < p->server->pages.layout.n_regions; i++)
		p->gives_way |= p->server->pages.layout.regions[i].page_bytes > PUSH_BYTES;
	p->is_listed = !atomic_load(&p->server->no_first);
	for (uint32_t i = 0; i < p->server->config.n_last; i++)
		ferry_session_put_off(p->session, &p->server->config.last[i]);
	rc = p->stop_fd < 0 ? -errno : init_lanes(p, peer);
	if (!rc)
		rc = ferry_server_thread(&p->thread, STACK_BYTES, push_main, p);
	if (rc < 0) {
		free_push(p);
		return rc;
	}
	for (uint32_t i = 0; i < FERRY_MAX_BULK; i++)
		if (peer->bulk[i])
			peer->bulk[i]->push_busy = true;
	peer->push = p;
	return 0;
}

void ferry_push_set_rate(struct ferry_push *p, uint64_t bytes_per_second)
{
	atomic_store_explicit(&p->rate, bytes_per_second, memory_order_relaxed);
}

void ferry_push_give_way(struct ferry_push *p, bool urgent)
{
	atomic_store(&p->urgent, urgent);
}

void ferry_push_charge(struct ferry_push *p, uint64_t bytes)
{
	atomic_fetch_add_explicit(&p->charged, bytes, memory_order_relaxed);
}

void ferry_push_stop(struct ferry_push *p)
{
	atomic_store_explicit(&p->stop, true, memory_order_relaxed);
	eventfd_write(p->stop_fd, 1);
}

bool ferry_push_has_ended(const struct ferry_push *p)
{
	return atomic_load(&p->ended);
}

bool ferry_push_writes_to(const struct ferry_push *p, int fd)
{
	for (uint32_t i = 0; i < p->n_lanes; i++)
		if (p->lanes[i].fd == fd)
			return true;
	return false;
}

int ferry_push_end(struct ferry_push *p, struct ferry_run *failed)
{
	int rc;

	pthread_join(p->thread, NULL);
	rc = p->result;
	*failed = p->failed;
	free_push(p);
	return rc;
}
