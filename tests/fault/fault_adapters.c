/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The page servers for CRIU and Cloud Hypervisor, while a call fails, with clients that look at
 * each byte: a page is right, or its connection ends and it is said why. Of a process that has
 * stood still nobody is told that it has not. A VM that has everything is not called lost, and one
 * that has not is.
 */
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <poll.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/net.h"
#include "base/still.h"
#include "driver.h"
#include "handler/cloud_snapshot.h"
#include "pageserver/cloud_hypervisor.h"
#include "pageserver/criu.h"

#define PAGE	 4096u
#define N_PAGES	 300u /* of each of two ranges; more than one answer has */
#define N_RANGES 2
#define BYTES	 ((size_t)N_PAGES * PAGE)
#define LIMIT_MS 20000
#define PID	 77

static char folder[] = "/var/tmp/pageferry-fault-XXXXXX";
static uint8_t *memory; /* both ranges */
static pid_t stopped;	/* has it too */

static uint64_t word(uint64_t page, uint64_t i)
{
	return page % 8 == 3 ? 0 : (page + 1) * 0x9e3779b97f4a7c15u + i;
}

static bool page_is_right(const uint8_t *page, uint64_t n)
{
	const uint64_t *w = (const uint64_t *)page;

	for (uint64_t i = 0; i < PAGE / sizeof(*w); i++)
		if (w[i] != word(n, i))
			return false;
	return true;
}

static bool is_told(int rc, const struct ferry_failure *f)
{
	return rc < 0 && f->err == rc && f->text[0] && f->consequence != FERRY_OK &&
	       !strchr(f->text, '\n');
}

static int read_all(int fd, void *buf, size_t len)
{
	return ferry_net_read_all(fd, buf, len, LIMIT_MS, -1);
}

/* What passes must not end what nobody can resume. */
static bool was_shortage(void)
{
	static const int errors[] = {ENOMEM, ENOBUFS, EMFILE, EAGAIN, EINTR, FAULT_SHORT};

	for (size_t i = 0; i < sizeof(errors) / sizeof(errors[0]); i++)
		if (fault_has_struck_with(errors[i]))
			return true;
	return false;
}

/* --- CRIU ----------------------------------------------------------------------------------------
 */

struct criu {
	struct ferry_source *sources[N_RANGES];
	struct ferry_criu_range ranges[N_RANGES];
	struct ferry_still still;
	struct ferry_criu *server;
	struct ferry_addr address;
	struct ferry_log log;
	_Atomic bool accused; /* it is said to have run */
	_Atomic uint32_t n_said;
	char said[200];	  /* first */
	uint64_t n_pages; /* that came */
};

static void note_line(void *ctx, enum ferry_log_level level, const char *line)
{
	struct criu *c = ctx;

	(void)level;
	if (!atomic_fetch_add(&c->n_said, 1))
		snprintf(c->said, sizeof(c->said), "%.199s", line);
}

static int may_release(void *ctx)
{
	struct criu *c = ctx;
	int looked = ferry_still_look(&c->still);

	if (looked < 0 && looked != -ESRCH)
		return -EAGAIN;
	c->accused |= looked != 1;
	return looked == 1 ? 0 : -ESTALE;
}

static int open_criu(struct criu *c, struct ferry_failure *f)
{
	struct ferry_criu_config config = {.sources = c->sources,
					   .ranges = c->ranges,
					   .n_sources = N_RANGES,
					   .pid = PID,
					   .header_bytes = FERRY_CRIU_HEADER_NEW,
					   .may_release = may_release,
					   .ctx = c,
					   .log = &c->log};
	int fd, rc = WITH_FAULTS(ferry_still_open(&c->still, stopped));

	if (rc < 0)
		return ferry_fail_errno(f, FERRY_REFUSE, rc, "standing still");
	for (int i = 0; i < N_RANGES && !rc; i++) {
		uint64_t at = (uintptr_t)memory + i * BYTES;

		c->ranges[i] = (struct ferry_criu_range){at, N_PAGES};
		rc = WITH_FAULTS(ferry_source_open_process(&c->sources[i], "memory", stopped, at,
							   BYTES, PAGE, f));
	}
	if (rc < 0)
		return rc;
	snprintf(c->address.path, sizeof(c->address.path), "%s/criu-%d", folder, (int)getpid());
	fd = WITH_FAULTS(ferry_net_listen(&c->address, f));
	return fd < 0 ? fd : WITH_FAULTS(ferry_criu_start(&c->server, &config, fd, f));
}

/* Return: 0 when all pages came and were right, and the server was done too; a negative errno when
 * the connection ended; 1 when something is wrong. */
static int restore(struct criu *c, char *why)
{
	_cleanup_close_ int fd = ferry_net_dial(&c->address, LIMIT_MS, -1, NULL);
	uint8_t header[FERRY_CRIU_HEADER_NEW];
	static uint8_t pages[BYTES];
	struct ferry_criu_message m = {.command = FERRY_CRIU_CLOSE};
	int32_t status = -1;
	int rc = fd < 0 ? fd : 0;

	for (uint64_t n = 0; n < N_RANGES * N_PAGES && !rc;) {
		struct ferry_criu_message get = {.command = FERRY_CRIU_GET,
						 .pid = PID,
						 .n_pages = N_PAGES - n % N_PAGES,
						 .address = (uintptr_t)memory + n * PAGE};

		ferry_criu_encode(&get, sizeof(header), header);
		rc = ferry_net_write_all(fd, header, sizeof(header), LIMIT_MS, -1);
		if (!rc)
			rc = read_all(fd, header, sizeof(header));
		if (rc < 0)
			break;
		ferry_criu_decode(header, sizeof(header), &m);
		if (m.command != FERRY_CRIU_ADD_F || !m.n_pages || m.n_pages > get.n_pages ||
		    m.address != get.address) {
			snprintf(why, 256, "an answer to something else");
			return 1;
		}
		rc = read_all(fd, pages, m.n_pages * PAGE);
		for (uint64_t i = 0; i < m.n_pages && !rc; i++)
			if (!page_is_right(pages + i * PAGE, n + i)) {
				snprintf(why, 256, "page %llu is wrong",
					 (unsigned long long)(n + i));
				return 1;
			}
		n += m.n_pages;
		c->n_pages += m.n_pages;
	}
	m = (struct ferry_criu_message){.command = FERRY_CRIU_CLOSE};
	ferry_criu_encode(&m, sizeof(header), header);
	if (!rc)
		rc = ferry_net_write_all(fd, header, sizeof(header), LIMIT_MS, -1);
	if (!rc)
		rc = read_all(fd, &status, sizeof(status));
	return rc ? rc : status ? -EREMOTEIO : 0;
}

static enum fault_outcome use_criu(struct criu *c, char *why)
{
	struct ferry_criu_stats st;
	int first = restore(c, why), second = first;

	if (first < 0 && c->n_pages && was_shortage())
		return WRONG("it was left in its middle: %.150s", c->said);
	if (first < 0)
		second = restore(c, why);
	if (first > 0 || second > 0)
		return FAULT_WRONG;
	if (second < 0)
		return WRONG("the second attempt: %s, after %s: %.100s", strerror(-second),
			     strerror(-first), c->said);
	if (c->accused)
		return WRONG("it is said to have run: %.150s", c->said);
	if (first == -ETIMEDOUT)
		return WRONG("no answer came");
	if (first && !c->n_said)
		return WRONG("the connection ended without a word");
	/* They are counted once the client has its answer. */
	for (int i = 0; i < LIMIT_MS; i++) {
		ferry_criu_stats(c->server, &st);
		if (st.n_closed && (first || !st.n_unfinished))
			break;
		usleep(1000);
	}
	if (!st.n_closed || (!first && st.n_unfinished))
		return WRONG("%u closed, %u unfinished", st.n_closed, st.n_unfinished);
	snprintf(why, 256, "%s", c->said);
	return first ? FAULT_REFUSED : FAULT_SURVIVED;
}

static enum fault_outcome run_criu(const void *arg, char why[256])
{
	struct criu c = {.still = FERRY_STILL_NONE, .address = {.is_unix = true}};
	struct ferry_failure f = {0};
	enum fault_outcome outcome = FAULT_REFUSED;
	int rc;

	(void)arg;
	c.log = (struct ferry_log){FERRY_LOG_WARN, note_line, &c};
	rc = open_criu(&c, &f);
	if (rc == -EBUSY && !fault_has_struck_in(FAULT_bind))
		return WRONG("it is said not to stand still");
	if (rc < 0 && !is_told(rc, &f))
		return WRONG("%d, '%.100s'", rc, f.text);
	snprintf(why, 256, "%.200s", f.text);
	if (!rc)
		outcome = use_criu(&c, why);
	WITH_FAULTS((ferry_criu_free(c.server), 0));
	for (int i = 0; i < N_RANGES; i++)
		WITH_FAULTS((ferry_source_free(c.sources[i]), 0));
	ferry_still_close(&c.still);
	unlink(c.address.path);
	return outcome;
}

/* --- Cloud Hypervisor ----------------------------------------------------------------------------
 */

struct cloud {
	struct ferry_cloud_snapshot snapshot;
	struct ferry_cloudhv *server;
	int listen_fd, main_fd, fault_fd; /* owned */
	bool is_ready;			  /* it may be told to run */
	bool runs, is_whole;		  /* it was told to; it has all of its memory */
};

/* Return: a connection, or -1 once the other side has ended. */
static int accept_one(struct cloud *c)
{
	for (int i = 0; i < LIMIT_MS / 10; i++) {
		struct ferry_cloudhv_stats st;
		int fd = ferry_net_wait(c->listen_fd, POLLIN, 10, -1)
				 ? -1
				 : ferry_net_accept(c->listen_fd);

		if (fd >= 0)
			return fd;
		ferry_cloudhv_stats(c->server, &st);
		if (st.stage == FERRY_CLOUDHV_ENDED)
			return -1;
	}
	return -1;
}

static bool answer(int fd)
{
	uint8_t bytes[FERRY_CLOUDHV_HEADER_BYTES];

	ferry_cloudhv_encode(&(struct ferry_cloudhv_header){.kind = FERRY_CLOUDHV_OK}, bytes);
	return !ferry_net_write_all(fd, bytes, sizeof(bytes), LIMIT_MS, -1);
}

/* Return: whether it came before the other side has ended, as its owner would close then. */
static bool receive(const struct cloud *c, int fd, void *buf, size_t len)
{
	struct ferry_cloudhv_stats st = {0};
	int rc = -ETIMEDOUT;

	for (int i = 0; i < LIMIT_MS / 10 && rc == -ETIMEDOUT && st.stage != FERRY_CLOUDHV_ENDED;
	     i++) {
		rc = ferry_net_wait(fd, POLLIN, 10, -1);
		ferry_cloudhv_stats(c->server, &st);
	}
	return !rc && !read_all(fd, buf, len);
}

/* Return: whether it came. @expected: its text, which must be in it; NULL for none */
static bool take(struct cloud *c, uint16_t command, const char *expected, char *why)
{
	uint8_t bytes[FERRY_CLOUDHV_HEADER_BYTES];
	static char text[65536];
	struct ferry_cloudhv_header h;

	if (!receive(c, c->main_fd, bytes, sizeof(bytes)))
		return false;
	ferry_cloudhv_decode(bytes, &h);
	if (h.kind != command || h.length >= sizeof(text)) {
		snprintf(why, 256, "command %u and not %u", h.kind, command);
		return false;
	}
	if (h.length && !receive(c, c->main_fd, text, h.length))
		return false;
	text[h.length] = '\0';
	if (expected && !strstr(text, expected))
		snprintf(why, 256, "command %u has something else", h.kind);
	return !expected || strstr(text, expected);
}

/* Return: whether it came. */
static bool get_page(const struct cloud *c, uint64_t n, char *why)
{
	static const uint64_t starts[N_RANGES] = {0, UINT64_C(1) << 32};
	uint64_t ask[4] = {FERRY_CLOUDHV_PAGE_FAULT, FERRY_CLOUDHV_RANGE_BYTES,
			   starts[n / N_PAGES] + n % N_PAGES * PAGE, PAGE};
	uint8_t bytes[FERRY_CLOUDHV_HEADER_BYTES], page[PAGE];
	struct ferry_cloudhv_header h;

	if (ferry_net_write_all(c->fault_fd, ask, sizeof(ask), LIMIT_MS, -1) < 0 ||
	    !receive(c, c->fault_fd, bytes, sizeof(bytes)))
		return false;
	ferry_cloudhv_decode(bytes, &h);
	if (h.kind != FERRY_CLOUDHV_OK || h.length != PAGE || !receive(c, c->fault_fd, page, PAGE))
		return false;
	if (!page_is_right(page, n))
		snprintf(why, 256, "page %llu is wrong", (unsigned long long)n);
	return page_is_right(page, n);
}

/* As far as it gets. @why: what is wrong, if anything is. */
static void be_target(struct cloud *c, char *why)
{
	uint8_t role[FERRY_CLOUDHV_ROLE_BYTES];

	c->main_fd = accept_one(c);
	if (c->main_fd < 0 || !take(c, FERRY_CLOUDHV_START, NULL, why) || !answer(c->main_fd) ||
	    !take(c, FERRY_CLOUDHV_CONFIG, "\"boot_vcpus\":2", why) || !answer(c->main_fd))
		return;
	c->fault_fd = accept_one(c);
	if (c->fault_fd < 0 || !receive(c, c->fault_fd, role, sizeof(role)) ||
	    !take(c, FERRY_CLOUDHV_STATE, "memory-manager", why) || !get_page(c, 5, why))
		return;
	c->is_ready = answer(c->main_fd);
	if (!c->is_ready || !take(c, FERRY_CLOUDHV_COMPLETE, NULL, why))
		return;
	c->runs = true;
	if (!answer(c->main_fd))
		return;
	for (uint64_t n = 0; n < N_RANGES * N_PAGES; n++)
		if (n != 5 && !get_page(c, n, why))
			return;
	c->is_whole = true;
}

static enum fault_outcome judge_cloud(const struct cloud *c, char *why)
{
	struct ferry_failure f = {0};
	struct ferry_cloudhv_stats st;
	int rc;

	for (int i = 0; i < LIMIT_MS; i++) {
		ferry_cloudhv_stats(c->server, &st);
		if (st.stage == FERRY_CLOUDHV_ENDED)
			break;
		usleep(1000);
	}
	if (st.stage != FERRY_CLOUDHV_ENDED)
		return WRONG("it does not end");
	if (why[0])
		return FAULT_WRONG;
	rc = ferry_cloudhv_result(c->server, &f);
	if (rc < 0 && !is_told(rc, &f))
		return WRONG("%d, '%.100s'", rc, f.text);
	if (!rc != c->is_whole)
		return WRONG("%s: %.150s", rc ? "it has everything" : "it has not everything",
			     f.text);
	if (rc && c->runs && f.consequence != FERRY_LOST)
		return WRONG("it runs: %.150s", f.text);
	if (rc && !c->is_ready && f.consequence == FERRY_LOST)
		return WRONG("there is nothing to be lost: %.150s", f.text);
	if (rc && c->runs && was_shortage())
		return WRONG("a VM that runs is lost: %.150s", f.text);
	snprintf(why, 256, "%.200s", f.text);
	return rc ? c->runs ? FAULT_GIVEN_UP : FAULT_REFUSED : FAULT_SURVIVED;
}

static enum fault_outcome serve_cloud(struct cloud *c, char *why)
{
	struct ferry_cloudhv_config config = {.sources = c->snapshot.sources,
					      .ranges = c->snapshot.ranges,
					      .n_sources = c->snapshot.n_ranges,
					      .vm_config = c->snapshot.vm_config,
					      .vm_state = c->snapshot.vm_state,
					      .to = {.is_unix = true}};
	struct ferry_failure f = {0};
	enum fault_outcome outcome = FAULT_REFUSED;
	int rc;

	snprintf(config.to.path, sizeof(config.to.path), "%s/cloud-%d", folder, (int)getpid());
	c->listen_fd = ferry_net_listen(&config.to, NULL);
	if (c->listen_fd < 0)
		return WRONG("the socket");
	rc = WITH_FAULTS(ferry_cloudhv_start(&c->server, &config, &f));
	if (rc < 0 && !is_told(rc, &f))
		return WRONG("%d, '%.100s'", rc, f.text);
	if (!rc)
		be_target(c, why);
	ferry_close(TAKE_FD(c->main_fd));
	ferry_close(TAKE_FD(c->fault_fd));
	if (rc)
		snprintf(why, 256, "%.200s", f.text);
	else
		outcome = judge_cloud(c, why);
	unlink(config.to.path);
	ferry_close(c->listen_fd);
	return outcome;
}

static enum fault_outcome run_cloud(const void *arg, char why[256])
{
	struct cloud c = {.listen_fd = -1, .main_fd = -1, .fault_fd = -1};
	struct ferry_failure f = {0};
	enum fault_outcome outcome = FAULT_REFUSED;
	int rc;

	(void)arg;
	rc = WITH_FAULTS(ferry_cloud_snapshot_open(&c.snapshot, folder, &f));
	if (rc < 0 && !is_told(rc, &f))
		return WRONG("%d, '%.100s'", rc, f.text);
	snprintf(why, 256, "%.200s", f.text);
	if (!rc)
		outcome = serve_cloud(&c, why);
	WITH_FAULTS((ferry_cloudhv_free(c.server), 0));
	WITH_FAULTS((ferry_cloud_snapshot_close(&c.snapshot), 0));
	return outcome;
}

/* --- all of it -----------------------------------------------------------------------------------
 */

static bool write_file(const char *name, const void *data, size_t len)
{
	char path[96];
	FILE *file;
	bool ok;

	snprintf(path, sizeof(path), "%s/%s", folder, name);
	file = fopen(path, "we");
	ok = file && fwrite(data, 1, len, file) == len;
	return file && !fclose(file) && ok;
}

static bool make_snapshot(void)
{
	static const char config[] = "{\"cpus\":{\"boot_vcpus\":2},\"memory\":{\"size\":2457600}}";
	static const char state[] =
		"{\"snapshot_data\":{\"state\":\"{\\\"common_cpuid\\\":[1]}\"},\"snapshots\":{"
		"\"memory-manager\":{\"snapshots\":{},\"snapshot_data\":{\"state\":\""
		"{\\\"memory_ranges\\\":{\\\"data\\\":["
		"{\\\"gpa\\\":0,\\\"length\\\":1228800},"
		"{\\\"gpa\\\":4294967296,\\\"length\\\":1228800}]},"
		"\\\"guest_ram_mappings\\\":["
		"{\\\"gpa\\\":0,\\\"size\\\":1228800,\\\"virtio_mem\\\":false},"
		"{\\\"gpa\\\":4294967296,\\\"size\\\":1228800,\\\"virtio_mem\\\":false}]}"
		"\"}}}}";

	return write_file("config.json", config, sizeof(config) - 1) &&
	       write_file("state.json", state, sizeof(state) - 1) &&
	       write_file("memory-ranges", memory, N_RANGES * BYTES);
}

/* It has the memory as we have. */
static pid_t start_stopped(void)
{
	pid_t pid = fork();

	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		for (;;)
			kill(getpid(), SIGSTOP);
	}
	return pid > 0 && waitpid(pid, NULL, WUNTRACED) == pid ? pid : -1;
}

static void remove_files(void)
{
	static const char *const names[] = {"config.json", "state.json", "memory-ranges"};
	char path[96];

	for (int i = 0; i < 3; i++) {
		snprintf(path, sizeof(path), "%s/%s", folder, names[i]);
		unlink(path);
	}
	rmdir(folder);
}

int main(int argc, char **argv)
{
	static const struct fault_scenario scenarios[] = {
		{"criu", run_criu, NULL},
		{"cloud hypervisor", run_cloud, NULL},
	};
	int rc;

	fault_exempt = true;
	memory = mmap(NULL, N_RANGES * BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
		      -1, 0);
	if (memory == MAP_FAILED || !mkdtemp(folder))
		return 1;
	for (uint64_t p = 0; p < N_RANGES * N_PAGES; p++)
		for (uint64_t i = 0; i < PAGE / sizeof(uint64_t) && word(p, i); i++)
			((uint64_t *)(memory + p * PAGE))[i] = word(p, i);
	stopped = start_stopped();
	json_set_alloc_funcs(fault_jansson_malloc, fault_jansson_free);
	json_object_seed(1); /* it opens a file for that once */
	if (stopped < 0 || !make_snapshot())
		return 1;
	rc = fault_main(argc, argv, scenarios, sizeof(scenarios) / sizeof(scenarios[0]));
	kill(stopped, SIGKILL);
	waitpid(stopped, NULL, 0);
	remove_files();
	return rc;
}
