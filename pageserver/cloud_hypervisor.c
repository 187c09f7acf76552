/* SPDX-License-Identifier: Apache-2.0 */
#include "pageserver/cloud_hypervisor.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>

#include "base/bitmap.h"
#include "base/cleanup.h"
#include "base/net.h"

#define DIAL_MS	    5000
#define STALL_MS    30000 /* in the middle of something */
#define FIRST_MS    10000 /* until the first page is asked for */
#define PIECE_PAGES 256u  /* that are read at a time */

struct ferry_cloudhv {
	struct ferry_cloudhv_config config;
	struct ferry_bitmap given[FERRY_MAX_REGIONS]; /* serving thread's; of each source's pages */
	uint8_t *scratch;			      /* owned */
	int stop_fd;				      /* owned */
	int begun_fd; /* owned; readable when pages were asked for, or serving has ended */
	int control_fd, fault_fd; /* owned */
	pthread_t thread, server;
	bool is_running;
	bool was_told; /* main thread's: the target, that the VM is its own */
	uint64_t pages_total;
	_Atomic uint64_t pages_known, wire_bytes, requests;
	atomic_int stage;

	/* How serving ended: 0 when the target closed. The serving thread's until it is joined. */
	int served;
	struct ferry_failure serve_failure;
	/* How all of it ended. The thread's until the stage is ENDED. */
	int result;
	struct ferry_failure failure;
};

/* --- pages ------------------------------------------------------------------------------------ */

static int lost(struct ferry_failure *f, int rc, const struct ferry_cloudhv_range *asked)
{
	return ferry_fail_errno(f, FERRY_LOST, rc, "the page at %#llx can't be had any more",
				(unsigned long long)asked->start.v);
}

/* The bytes of a run, behind a header that is there already. */
static int send_pages(struct ferry_cloudhv *s, struct ferry_run run,
		      const struct ferry_cloudhv_range *asked, struct ferry_failure *f)
{
	uint8_t header[FERRY_CLOUDHV_HEADER_BYTES];
	struct iovec iov[2] = {{header, sizeof(header)}};

	ferry_cloudhv_encode(
		&(struct ferry_cloudhv_header){.kind = FERRY_CLOUDHV_OK, .length = asked->bytes},
		header);
	while (run.n_pages) {
		uint32_t n = FERRY_MIN(run.n_pages, PIECE_PAGES);
		const void *data;
		int rc = ferry_source_read(s->config.sources[run.region], run.first_page, n,
					   s->scratch, &data, STALL_MS, s->stop_fd);

		if (rc < 0)
			return lost(f, rc, asked);
		iov[1] = (struct iovec){(void *)data, (size_t)n * FERRY_CLOUDHV_PAGE_BYTES};
		rc = ferry_net_writev_all(s->fault_fd, iov, 2, STALL_MS, s->stop_fd);
		if (rc < 0)
			return ferry_fail_errno(f, FERRY_LINK, rc, "answering");
		iov[0].iov_len = 0; /* there is one header */
		run.first_page += n;
		run.n_pages -= n;
	}
	return 0;
}

static void say_error(struct ferry_cloudhv *s)
{
	uint8_t header[FERRY_CLOUDHV_HEADER_BYTES];

	ferry_cloudhv_encode(&(struct ferry_cloudhv_header){.kind = FERRY_CLOUDHV_ERROR}, header);
	(void)ferry_net_write_all(s->fault_fd, header, sizeof(header), STALL_MS, s->stop_fd);
}

static int answer(struct ferry_cloudhv *s, const struct ferry_cloudhv_range *asked,
		  struct ferry_failure *f)
{
	struct ferry_run run;
	int rc = ferry_cloudhv_find(s->config.ranges, s->config.n_sources, asked, &run, f);

	if (rc < 0) {
		say_error(s);
		return rc;
	}
	rc = send_pages(s, run, asked, f);
	if (rc < 0)
		return rc;
	atomic_fetch_add(&s->pages_known, ferry_bitmap_set_range(&s->given[run.region],
								 run.first_page, run.n_pages));
	atomic_fetch_add(&s->wire_bytes, FERRY_CLOUDHV_HEADER_BYTES + asked->bytes);
	if (!atomic_fetch_add(&s->requests, 1))
		eventfd_write(s->begun_fd, 1);
	return 0;
}

/* Return: 0 with a request, 1 when the target has closed or wants no more, or a negative error. */
static int next_request(struct ferry_cloudhv *s, struct ferry_cloudhv_range *asked,
			struct ferry_failure *f)
{
	uint8_t bytes[FERRY_CLOUDHV_HEADER_BYTES];
	struct ferry_cloudhv_header h;
	/* Between requests it may think for as long as it likes. */
	int rc = ferry_net_wait(s->fault_fd, POLLIN, -1, s->stop_fd);

	if (!rc)
		rc = ferry_net_read_all(s->fault_fd, bytes, sizeof(bytes), STALL_MS, s->stop_fd);
	if (rc == -ECONNRESET)
		return 1;
	if (rc < 0)
		return ferry_fail_errno(f, FERRY_LINK, rc, "waiting for a request");
	ferry_cloudhv_decode(bytes, &h);
	rc = ferry_cloudhv_check_request(&h, f);
	if (rc < 0) {
		say_error(s);
		return rc;
	}
	if (h.kind == FERRY_CLOUDHV_ABANDON)
		return 1;
	rc = ferry_net_read_all(s->fault_fd, bytes, FERRY_CLOUDHV_RANGE_BYTES, STALL_MS,
				s->stop_fd);
	if (rc < 0)
		return rc == -ECONNRESET ? 1
					 : ferry_fail_errno(f, FERRY_LINK, rc, "reading a request");
	ferry_cloudhv_decode_range(bytes, asked);
	return 0;
}

static void *serve_main(void *arg)
{
	struct ferry_cloudhv *s = arg;
	struct ferry_cloudhv_range asked;
	int rc;

	do {
		rc = next_request(s, &asked, &s->serve_failure);
		if (!rc)
			rc = answer(s, &asked, &s->serve_failure);
	} while (!rc);
	s->served = FERRY_MIN(rc, 0);
	shutdown(s->fault_fd, SHUT_RDWR);
	/* Nobody has to wait for an answer of a target that gets no pages. */
	if (rc < 0)
		shutdown(s->control_fd, SHUT_RDWR);
	eventfd_write(s->begun_fd, 1);
	return NULL;
}

/* --- the conversation ------------------------------------------------------------------------- */

/* A target that restores asks for pages meanwhile, and may take as long as these do. */
static int wait_answer(struct ferry_cloudhv *s)
{
	uint64_t before, now = atomic_load(&s->requests);
	int rc;

	do {
		before = now;
		rc = ferry_net_wait(s->control_fd, POLLIN, STALL_MS, s->stop_fd);
		now = atomic_load(&s->requests);
	} while (rc == -ETIMEDOUT && now != before);
	return rc;
}

/* @body: text, or NULL */
static int request(struct ferry_cloudhv *s, enum ferry_cloudhv_command command, const char *body,
		   const char *what, struct ferry_failure *f)
{
	struct ferry_cloudhv_header h = {.kind = (uint16_t)command,
					 .version = FERRY_CLOUDHV_VERSION,
					 .length = body ? strlen(body) : 0};
	uint8_t bytes[FERRY_CLOUDHV_HEADER_BYTES];
	int rc;

	ferry_cloudhv_encode(&h, bytes);
	rc = ferry_net_writev_all(
		s->control_fd, (struct iovec[]){{bytes, sizeof(bytes)}, {(void *)body, h.length}},
		2, STALL_MS, s->stop_fd);
	if (!rc)
		rc = wait_answer(s);
	if (!rc)
		rc = ferry_net_read_all(s->control_fd, bytes, sizeof(bytes), STALL_MS, s->stop_fd);
	if (rc < 0) {
		ferry_fail_errno(f, FERRY_LINK, rc, "the target does not answer to %s", what);
		(void)ferry_tls_explain(s->config.tls, s->control_fd, f);
		return rc;
	}
	ferry_cloudhv_decode(bytes, &h);
	return ferry_cloudhv_check_answer(&h, what, f);
}

static int dial(struct ferry_cloudhv *s, struct ferry_failure *f)
{
	return ferry_tls_dial(s->config.tls, &s->config.to, FERRY_NET_URGENT, DIAL_MS, s->stop_fd,
			      f);
}

/* The connection for page faults, and the thread that answers them. */
static int open_faults(struct ferry_cloudhv *s, struct ferry_failure *f)
{
	uint8_t role[FERRY_CLOUDHV_ROLE_BYTES];
	int rc;

	s->fault_fd = dial(s, f);
	if (s->fault_fd < 0)
		return s->fault_fd;
	ferry_cloudhv_encode_role(FERRY_CLOUDHV_ROLE_FAULTS, role);
	rc = ferry_net_write_all(s->fault_fd, role, sizeof(role), STALL_MS, s->stop_fd);
	if (rc < 0)
		return ferry_fail_errno(f, FERRY_LINK, rc, "the connection for page faults");
	rc = -pthread_create(&s->server, NULL, serve_main, s);
	return rc < 0 ? ferry_fail_errno(f, FERRY_REFUSE, rc, "cannot start a thread") : 0;
}

/* A VM that runs without asking for pages would have zeros in their place. */
static int wait_begun(struct ferry_cloudhv *s, struct ferry_failure *f)
{
	int rc = ferry_net_wait(s->begun_fd, POLLIN, FIRST_MS, s->stop_fd);

	if (rc == -ECANCELED)
		return ferry_fail_errno(f, FERRY_LINK, rc, "waiting for a request");
	if (!atomic_load(&s->requests))
		return ferry_fail(
			f, FERRY_REFUSE, -EPROTO,
			"the target asks for no pages, and is not told to run; start it with "
			"'receive-migration receiver_url=...,memory_mode=postcopy'");
	return 0;
}

/* Up to the VM's being on the target. */
static int hand_over(struct ferry_cloudhv *s, struct ferry_failure *f)
{
	const struct ferry_cloudhv_config *c = &s->config;
	int rc = request(s, FERRY_CLOUDHV_STATE, c->vm_state, "the VM's state", f);

	if (!rc)
		rc = wait_begun(s, f);
	if (rc < 0)
		return rc;
	s->was_told = true;
	return request(s, c->leave_paused ? FERRY_CLOUDHV_COMPLETE_PAUSED : FERRY_CLOUDHV_COMPLETE,
		       NULL, "the end of the migration", f);
}

static int serve_to_end(struct ferry_cloudhv *s, struct ferry_failure *f)
{
	uint64_t known;

	atomic_store(&s->stage, FERRY_CLOUDHV_SERVES);
	pthread_join(s->server, NULL);
	known = atomic_load(&s->pages_known);
	if (s->served < 0) {
		*f = s->serve_failure;
		f->consequence = FERRY_LOST;
		ferry_fail_prefix(f, "the VM on the target is lost");
		return s->served;
	}
	if (known < s->pages_total)
		return ferry_fail(
			f, FERRY_LOST, -ECONNRESET,
			"the target closed when it had %llu of %llu pages: its VM has ended",
			(unsigned long long)known, (unsigned long long)s->pages_total);
	return 0;
}

static int converse(struct ferry_cloudhv *s, struct ferry_failure *f)
{
	int rc;

	s->control_fd = dial(s, f);
	if (s->control_fd < 0)
		return s->control_fd;
	atomic_store(&s->stage, FERRY_CLOUDHV_CONFIGURES);
	rc = request(s, FERRY_CLOUDHV_START, NULL, "Start", f);
	if (!rc)
		rc = request(s, FERRY_CLOUDHV_CONFIG, s->config.vm_config, "the VM's configuration",
			     f);
	if (!rc)
		rc = open_faults(s, f);
	if (rc < 0)
		return rc;
	atomic_store(&s->stage, FERRY_CLOUDHV_RESTORES);
	rc = hand_over(s, f);
	if (!rc)
		return serve_to_end(s, f);
	shutdown(s->fault_fd, SHUT_RDWR);
	pthread_join(s->server, NULL);
	/* What went wrong with a page is why there is no answer; but that connection has now been
	 * ended too. */
	if (s->served < 0 && s->served != -ECANCELED && s->served != -ECONNRESET) {
		*f = s->serve_failure;
		rc = s->served;
	}
	/* A target that has not answered may have it, and gets no more pages. */
	if (s->was_told && f->consequence == FERRY_LINK) {
		f->consequence = FERRY_LOST;
		ferry_fail_prefix(f, "the VM may be on the target, and is lost");
	}
	return rc;
}

static void *main_thread(void *arg)
{
	struct ferry_cloudhv *s = arg;

	s->result = converse(s, &s->failure);
	atomic_store(&s->stage, FERRY_CLOUDHV_ENDED);
	return NULL;
}

/* --- life ------------------------------------------------------------------------------------- */

static int prepare(struct ferry_cloudhv *s)
{
	s->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	s->begun_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	s->scratch =
		aligned_alloc(FERRY_CLOUDHV_PAGE_BYTES, PIECE_PAGES * FERRY_CLOUDHV_PAGE_BYTES);
	if (s->stop_fd < 0 || s->begun_fd < 0 || !s->scratch)
		return -ENOMEM;
	for (uint32_t i = 0; i < s->config.n_sources; i++) {
		uint64_t n = s->config.ranges[i].bytes / FERRY_CLOUDHV_PAGE_BYTES;
		int rc = ferry_bitmap_init(&s->given[i], n);

		if (rc < 0)
			return rc;
		s->pages_total += n;
	}
	return 0;
}

int ferry_cloudhv_start(struct ferry_cloudhv **out, const struct ferry_cloudhv_config *config,
			struct ferry_failure *f)
{
	struct ferry_cloudhv *s = calloc(1, sizeof(*s));
	int rc;

	if (!s)
		return ferry_fail_errno(f, FERRY_REFUSE, -ENOMEM, "page server");
	s->config = *config;
	s->control_fd = s->fault_fd = -1;
	rc = prepare(s);
	if (!rc)
		rc = -pthread_create(&s->thread, NULL, main_thread, s);
	s->is_running = !rc;
	if (rc < 0) {
		ferry_cloudhv_free(s);
		return ferry_fail_errno(f, FERRY_REFUSE, rc, "page server");
	}
	*out = s;
	return 0;
}

void ferry_cloudhv_stats(const struct ferry_cloudhv *c, struct ferry_cloudhv_stats *out)
{
	*out = (struct ferry_cloudhv_stats){
		.stage = (enum ferry_cloudhv_stage)atomic_load(&c->stage),
		.pages_total = c->pages_total,
		.pages_known = atomic_load(&c->pages_known),
		.wire_bytes = atomic_load(&c->wire_bytes),
		.requests = atomic_load(&c->requests),
	};
}

int ferry_cloudhv_result(const struct ferry_cloudhv *c, struct ferry_failure *f)
{
	if (c->result < 0)
		*f = c->failure;
	return c->result;
}

void ferry_cloudhv_free(struct ferry_cloudhv *c)
{
	if (!c)
		return;
	if (c->stop_fd >= 0)
		eventfd_write(c->stop_fd, 1);
	if (c->is_running)
		pthread_join(c->thread, NULL);
	for (uint32_t i = 0; i < c->config.n_sources; i++)
		ferry_bitmap_fini(&c->given[i]);
	ferry_close(c->control_fd);
	ferry_close(c->fault_fd);
	ferry_close(c->stop_fd);
	ferry_close(c->begun_fd);
	free(c->scratch);
	free(c);
}
