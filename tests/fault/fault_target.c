/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a target does beyond placing pages, while a call fails: it compares the memory with its
 * source and never calls what is right damaged; pages that the source has lost are an error to who
 * touches them; shared memory is filled in place, or put into large pages, and read meanwhile; and
 * what another has filled in place is not taken over without its record.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/net.h"
#include "driver.h"
#include "pageserver/server.h"
#include "pageserver/source.h"
#include "uffd/memory_file.h"
#include "uffd/pager.h"
#include "uffd/target.h"

#define PAGE	 4096u
#define LIMIT_MS 60000
#define RETRY_MS 1500 /* after a failure was told, that much longer */

struct variant {
	uint64_t n_pages;
	uint64_t n_there;  /* the source loses what is behind them; 0: nothing */
	bool elsewhere;	   /* the memory is that of a process that stands still */
	bool verified;	   /* so that it is read back */
	bool shared;	   /* memory of a file */
	uint32_t n_blocks; /* to be filled in place */
};

struct run {
	const struct variant *v;
	size_t bytes;
	uint8_t *memory;
	int memory_fd, source_fd; /* owned */
	pid_t pid;		  /* whose memory it is; 0: ours */
	int to_process;		  /* owned */
	struct ferry_source *source;
	struct ferry_server *server;
	struct ferry_target *target;
	struct ferry_addr address;
	pthread_t reader;
	bool has_reader;
	_Atomic bool stop, over, wrong; /* ->over: zeros may be seen from here on */
	bool failed, lost;		/* a failure was told; that pages are lost */
	char story[200];
};

static bool has_large;
static void *kept; /* what is known of pages; each child's own */

static uint64_t word(uint64_t page, uint64_t i)
{
	return page % 32 == 3 ? 0 : (page + 1) * 0x9e3779b97f4a7c15u + i;
}

static bool page_is_right(const uint8_t *page, uint64_t n)
{
	const uint64_t *w = (const uint64_t *)page;

	for (uint64_t i = 0; i < PAGE / sizeof(*w); i++)
		if (w[i] != word(n, i))
			return false;
	return true;
}

static bool all_is_right(const uint8_t *memory, uint64_t n_pages)
{
	for (uint64_t p = 0; p < n_pages; p++)
		if (!page_is_right(memory + p * PAGE, p))
			return false;
	return true;
}

static uint64_t n_there(const struct variant *v)
{
	return v->n_there ? v->n_there : v->n_pages;
}

static uint64_t now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

static bool is_told(int rc, const struct ferry_failure *f)
{
	return rc < 0 && f->err == rc && f->text[0] && f->consequence != FERRY_OK &&
	       !strchr(f->text, '\n');
}

/* --- the memory, and who uses it -----------------------------------------------------------------
 */

/* What is lost must not be read as anything: by a system call, which has an error for that. */
static bool can_read(const struct run *r, uint64_t page, uint8_t out[PAGE])
{
	struct iovec to = {out, PAGE}, from = {r->memory + page * PAGE, PAGE};

	return process_vm_readv(getpid(), &to, 1, &from, 1, 0) == PAGE;
}

/* One that the source could not read once is lost, too. */
static bool is_right(const struct run *r, uint64_t page)
{
	uint8_t copy[PAGE];

	if (!r->v->n_there)
		return page_is_right(r->memory + page * PAGE, page);
	return can_read(r, page, copy) ? page_is_right(copy, page)
				       : fault_has_struck_in(FAULT_pread64);
}

static void *read_pages(void *arg)
{
	struct run *r = arg;
	uint64_t x = 0x9e3779b97f4a7c15u;

	fault_exempt = true;
	while (!r->stop) {
		x ^= x << 13, x ^= x >> 7, x ^= x << 17;
		if (!is_right(r, x % n_there(r->v)) && !r->over)
			r->wrong = true;
	}
	return NULL;
}

/* Gives its userfaultfd away, stands still until it is woken, and looks at all of its memory. */
static void be_process(const struct run *r, int sock)
{
	struct ferry_uffd u;
	char b = 0;

	fault_disarm(); /* its calls are not ours */
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (ferry_uffd_open(&u, FERRY_TARGET_UFFD_FEATURES, NULL) < 0 ||
	    ferry_uffd_send(&u, sock, &u.features, sizeof(u.features)) < 0)
		_exit(2);
	kill(getpid(), SIGSTOP);
	if (read(sock, &b, 1) != 1)
		_exit(3);
	_exit(all_is_right(r->memory, r->v->n_pages) ? 0 : 1);
}

static bool start_process(struct run *r, struct ferry_uffd *u)
{
	int ends[2];
	bool cut;

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) < 0)
		return false;
	r->to_process = ends[0];
	r->pid = fork();
	if (!r->pid)
		be_process(r, ends[1]);
	close(ends[1]);
	*u = (struct ferry_uffd){.fd = -1, .pid = r->pid, .remote_fd = -1};
	if (r->pid < 0 || waitpid(r->pid, NULL, WUNTRACED) != r->pid ||
	    ferry_uffd_recv_bytes(ends[0], &u->features, sizeof(u->features), &u->fd, &cut) !=
		    sizeof(u->features))
		return false;
	u->pidfd = (int)syscall(SYS_pidfd_open, r->pid, 0);
	return u->fd >= 0 && u->pidfd >= 0;
}

static bool map_memory(struct run *r)
{
	size_t room = r->bytes + FERRY_LARGE_BYTES;
	uint8_t *p = mmap(NULL, room, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (p == MAP_FAILED)
		return false;
	p += (FERRY_LARGE_BYTES - (uintptr_t)p % FERRY_LARGE_BYTES) % FERRY_LARGE_BYTES;
	r->memory_fd = r->v->shared ? memfd_create("memory", MFD_CLOEXEC) : -1;
	if (r->v->shared && (r->memory_fd < 0 || ftruncate(r->memory_fd, (off_t)r->bytes) < 0))
		return false;
	r->memory = mmap(p, r->bytes, PROT_READ | PROT_WRITE,
			 MAP_FIXED | (r->v->shared ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS),
			 r->memory_fd, 0);
	return r->memory != MAP_FAILED;
}

static bool make_source(struct run *r)
{
	r->source_fd = memfd_create("source", MFD_CLOEXEC);
	for (uint64_t p = 0; p < r->v->n_pages; p++) {
		uint64_t words[PAGE / sizeof(uint64_t)];

		for (uint64_t i = 0; i < PAGE / sizeof(uint64_t); i++)
			words[i] = word(p, i);
		if (word(p, 1) && pwrite(r->source_fd, words, PAGE, (off_t)(p * PAGE)) != PAGE)
			return false;
	}
	return !ftruncate(r->source_fd, (off_t)r->bytes);
}

/* --- both sides ----------------------------------------------------------------------------------
 */

static int serve(struct run *r, struct ferry_failure *f)
{
	struct ferry_server_config config = {.sources = &r->source, .n_sources = 1};
	struct ferry_addr any;
	int fd, rc = WITH_FAULTS(ferry_source_open_fd(&r->source, "memory", dup(r->source_fd), 0,
						      r->bytes, PAGE, f));

	if (!rc)
		rc = WITH_FAULTS(ferry_server_new(&r->server, &config, f));
	if (rc < 0 || ferry_addr_parse(&any, "127.0.0.1:0", f) < 0)
		return rc;
	fd = ferry_net_listen(&any, f);
	if (fd < 0 || ferry_net_local(fd, &any, &r->address) < 0)
		return fd;
	rc = WITH_FAULTS(ferry_server_listen(r->server, fd));
	if (rc < 0)
		return ferry_fail_errno(f, FERRY_REFUSE, rc, "listening");
	return WITH_FAULTS(ferry_server_start(r->server, f));
}

static void stop_serving(struct run *r)
{
	WITH_FAULTS((ferry_server_free(r->server), 0));
	WITH_FAULTS((ferry_source_free(r->source), 0));
}

/* Return: false when it is told badly. */
static bool hear(struct run *r, int event, const struct ferry_failure *f, char *why)
{
	if (event != FERRY_TARGET_FAILED && event != FERRY_TARGET_DIFFERS &&
	    event != FERRY_TARGET_PAGES_LOST)
		return true;
	if (!is_told(f->err, f)) {
		snprintf(why, 256, "event %d: %d, '%.100s'", event, f->err, f->text);
		return false;
	}
	if (event == FERRY_TARGET_PAGES_LOST && r->v->n_there) {
		r->lost = true;
		return true;
	}
	r->failed = true;
	snprintf(r->story, sizeof(r->story), "%.199s", f->text);
	return true;
}

/* Return: the last event: COMPLETE, DIFFERS, or FAILED; -1 when something is wrong. */
static int await_end(struct run *r, char *why)
{
	uint64_t end = now_ms() + LIMIT_MS;

	while (now_ms() < end) {
		struct ferry_failure f = {0};
		bool before = r->failed;
		int event = WITH_FAULTS(ferry_target_wait(r->target, 5, -1, &f));

		if (event < 0 && !ferry_is_shortage(event) && event != -EINTR) {
			snprintf(why, 256, "a wait: %d", event);
			return -1;
		}
		if (!hear(r, event, &f, why))
			return -1;
		if (event == FERRY_TARGET_COMPLETE || event == FERRY_TARGET_DIFFERS)
			return event;
		event = WITH_FAULTS(ferry_server_wait(r->server, 0, -1, &f));
		if (event == FERRY_SERVER_FAILED && !hear(r, FERRY_TARGET_FAILED, &f, why))
			return -1;
		if (r->failed && !before)
			end = now_ms() + RETRY_MS;
	}
	if (!r->failed)
		snprintf(why, 256, "nothing comes any more, and nothing was said");
	return r->failed ? FERRY_TARGET_FAILED : -1;
}

static int dial(struct run *r, struct ferry_failure *f)
{
	int rc = WITH_FAULTS(ferry_target_start(r->target, f));

	if (rc < 0)
		return rc;
	rc = WITH_FAULTS(ferry_target_dial(r->target, &r->address, -1, f));
	if (rc < 0 && is_told(rc, f))
		rc = WITH_FAULTS(ferry_target_dial(r->target, &r->address, -1, f));
	return rc;
}

static int new_target(struct run *r, struct ferry_failure *f)
{
	struct ferry_target_region region = {
		.desc = {.page_bytes = PAGE, .n_pages = r->v->n_pages, .name = "memory"},
		.start = {(uintptr_t)r->memory},
		.kind = r->v->shared ? FERRY_MAPPING_SHARED : FERRY_MAPPING_ANON};
	struct ferry_block_run dense = {.n_blocks = r->v->n_blocks};
	struct ferry_target_config config = {.regions = &region,
					     .n_regions = 1,
					     .dense = &dense,
					     .n_dense = r->v->n_blocks ? 1 : 0,
					     .no_trace = true, /* which asks the kernel too */
					     .verify = r->v->verified,
					     .on_lost = r->v->n_there ? FERRY_ON_LOST_POISON
								      : FERRY_ON_LOST_WAIT};

	if (r->v->elsewhere) {
		config.kept = kept;
		if (!start_process(r, &config.uffd))
			return ferry_fail(f, FERRY_OK, -EILSEQ, "the process does not start");
	} else {
		int rc = ferry_uffd_open(&config.uffd, FERRY_TARGET_UFFD_FEATURES, f);

		if (rc < 0)
			return rc;
	}
	return WITH_FAULTS(ferry_target_new(&r->target, &config, f));
}

/* --- what came of it -----------------------------------------------------------------------------
 */

static enum fault_outcome judge(struct run *r, char *why)
{
	struct ferry_target_stats st;
	uint8_t copy[PAGE];

	ferry_target_stats(r->target, &st);
	if (r->v->elsewhere) {
		int status;

		kill(r->pid, SIGCONT);
		if (write(r->to_process, "", 1) != 1 || waitpid(r->pid, &status, 0) != r->pid ||
		    status)
			return WRONG("its memory is wrong");
		r->pid = 0;
	}
	for (uint64_t p = 0; !r->v->elsewhere && p < n_there(r->v); p++)
		if (!is_right(r, p))
			return WRONG("page %llu is wrong", (unsigned long long)p);
	if (r->v->verified && (!st.verified.done || st.verified.wrong || st.verified.unknown))
		return WRONG("%llu wrong, %llu unknown pages",
			     (unsigned long long)st.verified.wrong,
			     (unsigned long long)st.verified.unknown);
	if (!fault_has_struck() && r->v->verified && !st.verified.read_back)
		return WRONG("it was not read back");
	for (uint64_t p = n_there(r->v); p < r->v->n_pages; p++)
		if (word(p, 1) && can_read(r, p, copy))
			return WRONG("page %llu is lost and can be read", (unsigned long long)p);
	if (r->v->n_there && !r->lost)
		return WRONG("nobody was told that pages are lost");
	/* Whether there is one free is the machine's affair. */
	if (!fault_has_struck() && r->v->shared && has_large && !fault_count(FAULT_madvise))
		return WRONG("no large page was asked for");
	return FAULT_SURVIVED;
}

static enum fault_outcome fill(struct run *r, char *why)
{
	struct ferry_failure f = {0};
	int rc = dial(r, &f), event;

	if (rc < 0 && !is_told(rc, &f))
		return WRONG("dial: %d, '%.100s'", rc, f.text);
	if (rc < 0) {
		snprintf(why, 256, "dial: %.200s", f.text);
		return FAULT_GIVEN_UP;
	}
	/* Now: it must have been there when it was served. */
	if (r->v->n_there && ftruncate(r->source_fd, (off_t)(r->v->n_there * PAGE)) < 0)
		return WRONG("the source");
	if (!r->v->elsewhere)
		r->has_reader = !pthread_create(&r->reader, NULL, read_pages, r);
	rc = ferry_target_push(r->target);
	if (rc < 0)
		return WRONG("push: %d", rc);
	event = await_end(r, why);
	if (event < 0)
		return FAULT_WRONG;
	if (event == FERRY_TARGET_COMPLETE)
		return judge(r, why);
	if (event == FERRY_TARGET_DIFFERS) {
		struct ferry_target_stats st;

		ferry_target_stats(r->target, &st);
		if (st.verified.wrong)
			return WRONG("what is right is called wrong: %.100s", r->story);
	}
	snprintf(why, 256, "%s", r->story);
	return FAULT_GIVEN_UP;
}

static void end_process(struct run *r)
{
	if (r->pid > 0) {
		kill(r->pid, SIGKILL);
		waitpid(r->pid, NULL, 0);
	}
	ferry_close(r->to_process);
}

static enum fault_outcome run(const void *arg, char why[256])
{
	struct run r = {.v = arg, .memory_fd = -1, .to_process = -1};
	struct ferry_failure f = {0};
	enum fault_outcome outcome;
	int rc;

	r.bytes = r.v->n_pages * PAGE;
	if (!make_source(&r) || !map_memory(&r))
		return WRONG("the test's own set-up");
	rc = serve(&r, &f);
	if (!rc)
		rc = new_target(&r, &f);
	if (rc < 0 && !is_told(rc, &f))
		return WRONG("set-up: %d, '%.100s'", rc, f.text);
	if (rc < 0) {
		snprintf(why, 256, "%.200s", f.text);
		outcome = FAULT_REFUSED;
		for (uint64_t p = 0; !r.v->elsewhere && p < r.v->n_pages; p++)
			if (r.memory[p * PAGE])
				outcome = WRONG("it is not what it was");
	} else {
		outcome = fill(&r, why);
	}
	r.over = outcome != FAULT_SURVIVED;
	if (r.target && r.over)
		WITH_FAULTS((ferry_target_abandon(r.target), 0));
	r.stop = true;
	if (r.has_reader)
		pthread_join(r.reader, NULL);
	if (r.wrong)
		outcome = WRONG("a page was read wrong");
	if (outcome == FAULT_WRONG)
		return outcome;
	WITH_FAULTS((ferry_target_free(r.target), 0));
	stop_serving(&r);
	end_process(&r);
	ferry_close(r.source_fd);
	ferry_close(r.memory_fd);
	return outcome;
}

/* Its first target has ended, and its record with it. */
static enum fault_outcome take_over(const void *arg, char why[256])
{
	struct run r = {.v = arg, .bytes = ((const struct variant *)arg)->n_pages * PAGE};
	struct ferry_target_region region = {
		.desc = {.page_bytes = PAGE, .n_pages = r.v->n_pages, .name = "memory"},
		.kind = FERRY_MAPPING_SHARED};
	struct ferry_block_run dense = {.n_blocks = r.v->n_blocks};
	struct ferry_target_config config = {
		.regions = &region, .n_regions = 1, .dense = &dense, .n_dense = 1};
	struct ferry_failure f = {0};
	struct ferry_uffd own;
	int rc;

	if (!map_memory(&r) || ferry_uffd_open(&own, FERRY_TARGET_UFFD_FEATURES, NULL) < 0)
		return WRONG("the test's own set-up");
	region.start.v = (uintptr_t)r.memory;
	config.uffd = own;
	config.uffd.fd = fcntl(own.fd, F_DUPFD_CLOEXEC, 0);
	if (ferry_target_new(&r.target, &config, &f) < 0)
		return WRONG("%.200s", f.text);
	ferry_target_free(r.target);
	r.target = NULL;
	config.uffd = own;
	config.uffd.fd = fcntl(own.fd, F_DUPFD_CLOEXEC, 0);
	config.adopt = true;
	rc = WITH_FAULTS(ferry_target_new(&r.target, &config, &f));
	if (!rc)
		return WRONG("it is taken over without its record");
	if (!is_told(rc, &f))
		return WRONG("%d, '%.100s'", rc, f.text);
	ferry_uffd_unregister(&own, region.start, r.bytes);
	ferry_uffd_close(&own);
	ferry_close(r.memory_fd);
	snprintf(why, 256, "%.200s", f.text);
	return rc == -ENODATA ? FAULT_SURVIVED : FAULT_REFUSED;
}

/* --- all of it -----------------------------------------------------------------------------------
 */

/* The kernel has them, or nothing here can be shown. */
static bool has_large_pages(void)
{
	struct ferry_memory_file file = {.fd = memfd_create("large", MFD_CLOEXEC)};
	bool has = !ftruncate(file.fd, FERRY_LARGE_BYTES) && pwrite(file.fd, "", 1, 0) == 1 &&
		   !ferry_memory_file_enlarge(&file, 0);

	close(file.fd);
	return has;
}

int main(int argc, char **argv)
{
	static const struct variant verified = {.n_pages = 300,
						.elsewhere = true,
						.verified = true},
				    poisoned = {.n_pages = 300, .n_there = 220},
				    large = {.n_pages = 1100, .shared = true},
				    in_place = {.n_pages = 1100, .shared = true, .n_blocks = 2},
				    elsewhere = {.n_pages = 1100,
						 .shared = true,
						 .n_blocks = 2,
						 .elsewhere = true};
	static const struct fault_scenario scenarios[] = {
		{"verified", run, &verified},
		{"lost pages", run, &poisoned},
		{"large pages afterwards", run, &large},
		{"filled in place", run, &in_place},
		{"filled in place in a process", run, &elsewhere},
		{"without its record", take_over, &in_place},
	};
	const struct ferry_layout layout = {
		.n_regions = 1, .regions = {{.page_bytes = PAGE, .n_pages = elsewhere.n_pages}}};
	struct ferry_uffd u;
	int rc;

	fault_exempt = true;
	rc = ferry_uffd_open(&u, FERRY_TARGET_UFFD_FEATURES, NULL);
	if (rc < 0) {
		printf("SKIP: no userfaultfd: run 'pageferry probe'\n");
		return 77;
	}
	ferry_uffd_close(&u);
	has_large = has_large_pages();
	kept = mmap(NULL, ferry_pager_kept_bytes(&layout), PROT_READ | PROT_WRITE,
		    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (kept == MAP_FAILED)
		return 1;
	return fault_main(argc, argv, scenarios, sizeof(scenarios) / sizeof(scenarios[0]));
}
