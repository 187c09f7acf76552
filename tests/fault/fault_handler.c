/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The two processes of a handler, each with two VMs, while a call fails. The worker fills a VM, or
 * says why not, and the other one all the same; none reads anything but the snapshot's bytes. The
 * keeper hands a VMM on, or turns it away, and the next attempt gets in. A working set's file is
 * whole, or as it was.
 */
#include <fcntl.h>
#include <jansson.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/net.h"
#include "driver.h"
#include "handler/handler.h"
#include "handler/keeper_link.h"
#include "pageserver/server.h"
#include "uffd/pager.h"
#include "uffd/uffd.h"

#define PAGE	 4096u
#define N_PAGES	 128u
#define BYTES	 ((size_t)N_PAGES * PAGE)
#define N_VMS	 2
#define LIMIT_MS 20000
#define TOLD_MS	 1000 /* once something was said */

static int snapshot_fd;
static char folder[] = "/var/tmp/pageferry-fault-XXXXXX";
static struct ferry_addr page_server = {.is_unix = true};

static uint64_t word(uint64_t page, uint64_t i)
{
	return page % 8 == 3 ? 0 : (page + 1) * 0x9e3779b97f4a7c15u + i;
}

static bool is_right(const uint8_t *memory)
{
	const uint64_t *w = (const uint64_t *)memory;

	for (uint64_t i = 0; i < BYTES / sizeof(*w); i++)
		if (w[i] != word(i / (PAGE / sizeof(*w)), i % (PAGE / sizeof(*w))))
			return false;
	return true;
}

static bool make_snapshot(void)
{
	snapshot_fd = memfd_create("snapshot", MFD_CLOEXEC);
	for (uint64_t p = 0; p < N_PAGES; p++) {
		uint64_t words[PAGE / sizeof(uint64_t)];

		for (uint64_t i = 0; i < PAGE / sizeof(uint64_t); i++)
			words[i] = word(p, i);
		if (pwrite(snapshot_fd, words, PAGE, (off_t)(p * PAGE)) != PAGE)
			return false;
	}
	return true;
}

/* A process that has the snapshot. Return: its number, or -1. */
static pid_t start_page_server(void)
{
	struct ferry_server_config config = {.n_sources = 1, .max_sessions = 4096};
	struct ferry_source *source;
	struct ferry_server *server;
	struct ferry_failure f = {0};
	pid_t pid;
	int fd;

	snprintf(page_server.path, sizeof(page_server.path), "%s/pages", folder);
	fd = ferry_net_listen(&page_server, NULL);
	pid = fd < 0 ? -1 : fork();
	if (pid) {
		ferry_close(fd);
		return pid;
	}
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	config.sources = &source;
	if (ferry_source_open_fd(&source, "snapshot", dup(snapshot_fd), 0, BYTES, PAGE, &f) < 0 ||
	    ferry_server_new(&server, &config, &f) < 0 || ferry_server_listen(server, fd) < 0 ||
	    ferry_server_start(server, &f) < 0)
		_exit(1);
	for (;;)
		ferry_server_wait(server, -1, -1, NULL);
}

static bool is_told(int rc, const struct ferry_failure *f)
{
	return rc < 0 && f->err == rc && f->text[0] && f->consequence != FERRY_OK &&
	       !strchr(f->text, '\n');
}

/* --- the worker ----------------------------------------------------------------------------------
 */

struct vm {
	uint8_t *memory;
	struct ferry_uffd uffd; /* the VMM's own */
	int conn;		/* owned: the VMM's end */
	pthread_t guest;
	_Atomic bool over; /* zeros may be seen from here on */
	_Atomic bool wrong;
	char message[128];
	enum ferry_vm_state state;
	bool told, forgotten;
};

/* Where its snapshot is, and who has had its VMs. */
struct origin {
	const struct ferry_addr *from; /* a page server; NULL: the file */
	bool takes_over;	       /* a worker before it, which gave nothing */
	bool is_patient;	       /* it waits for the page server, as its VMs do */
};

struct worker {
	const struct origin *origin;
	struct ferry_image *image;
	struct ferry_handler *handler;
	int keeper; /* owned: its end of the link */
	struct ferry_worker_start start;
	struct ferry_kept_vm kept[N_VMS];
	struct ferry_log log;
	_Atomic unsigned int n_said; /* in the log */
	bool alone;		     /* it says that the keeper has ended */
	struct vm vms[N_VMS];
};

static void note_line(void *ctx, enum ferry_log_level level, const char *line)
{
	struct worker *w = ctx;

	(void)level, (void)line;
	w->n_said++;
}

/* Reads all of it, backwards. */
static void *be_guest(void *arg)
{
	struct vm *v = arg;
	uint64_t sum = 0;

	fault_exempt = true;
	for (size_t i = BYTES; i > 0; i -= PAGE)
		sum += v->memory[i - PAGE];
	if (!v->over && (!is_right(v->memory) || !sum) && !v->over)
		v->wrong = true;
	return NULL;
}

/* What the keeper has of a VM. @conn: given */
static bool keep_vm(struct worker *w, unsigned int n, int conn)
{
	struct ferry_layout layout = {.n_regions = 1,
				      .regions = {{.page_bytes = PAGE, .n_pages = N_PAGES}}};
	struct vm *v = &w->vms[n];
	struct ferry_kept_vm *k = &w->kept[n];

	*k = (struct ferry_kept_vm){.id = n + 1,
				    .conn = conn,
				    .uffd = fcntl(v->uffd.fd, F_DUPFD_CLOEXEC, 0),
				    .known = memfd_create("known", MFD_CLOEXEC),
				    .message = v->message,
				    .message_bytes = (uint32_t)strlen(v->message)};
	return !ftruncate(k->known, (off_t)ferry_pager_kept_bytes(&layout));
}

/* @conn: given */
static bool hand_vm(struct worker *w, unsigned int n, int conn)
{
	struct ferry_keeper_packet p = {.type = FERRY_KEEPER_NEW, .id = n + 1};
	int rc;

	p.n_bytes = (uint32_t)strlen(w->vms[n].message);
	memcpy(p.bytes, w->vms[n].message, p.n_bytes);
	p.fds[0] = conn;
	p.fds[1] = w->vms[n].uffd.fd;
	rc = ferry_keeper_send(w->keeper, &p);
	close(conn);
	return !rc;
}

/* A VMM that restores a snapshot, up to its message. */
static bool start_vm(struct worker *w, unsigned int n)
{
	struct vm *v = &w->vms[n];
	int ends[2];

	v->memory = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (v->memory == MAP_FAILED || socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) < 0)
		return false;
	v->conn = ends[0];
	if (ferry_uffd_open(&v->uffd, UFFD_FEATURE_EVENT_REMOVE, NULL) < 0 ||
	    ferry_uffd_register(&v->uffd, (struct ferry_hva){(uintptr_t)v->memory}, BYTES) < 0)
		return false;
	snprintf(v->message, sizeof(v->message),
		 "[{\"base_host_virt_addr\":%llu,\"size\":%zu,\"offset\":0,\"page_size\":4096}]",
		 (unsigned long long)(uintptr_t)v->memory, BYTES);
	/* Something behind its message: whether it has hung up is looked at once more. */
	return (w->origin->takes_over ? keep_vm(w, n, ends[1]) : hand_vm(w, n, ends[1])) &&
	       write(v->conn, "", 1) == 1 && !pthread_create(&v->guest, NULL, be_guest, v);
}

/* What the keeper is told. */
static void be_keeper(struct worker *w)
{
	static struct ferry_keeper_packet p;

	while (!ferry_keeper_receive(w->keeper, &p)) {
		if (p.type == FERRY_KEEPER_FORGET && p.id && p.id <= N_VMS)
			w->vms[p.id - 1].forgotten = true;
		ferry_close(p.fds[0]);
		ferry_close(p.fds[1]);
	}
}

static bool has_ended(const struct vm *v)
{
	return v->state == FERRY_VM_COMPLETE || v->state == FERRY_VM_REFUSED ||
	       v->state == FERRY_VM_GONE;
}

/* A word to the keeper may be what was lost: then it has the VM until the VMM leaves. */
static bool is_forgotten(const struct vm *v)
{
	return v->forgotten || fault_has_struck_with(ECONNRESET) ||
	       fault_has_struck_with(FAULT_SHORT);
}

/* What became of the link to the page server is said too. Return: false when it is said badly. */
static bool hear_of_source(struct worker *w, char *why)
{
	struct ferry_failure f = {0};
	int event = WITH_FAULTS(ferry_image_news(w->image, &f));

	if (event != FERRY_TARGET_LINK_LOST && event != FERRY_TARGET_FAILED)
		return true;
	w->n_said++;
	if (!is_told(f.err, &f))
		snprintf(why, 256, "the source: %d, '%.100s'", f.err, f.text);
	return is_told(f.err, &f);
}

/* Return: whether all VMs have come to an end, or it was said why they can't. */
static bool serve(struct worker *w, char *why)
{
	bool all = false;

	for (int i = 0; i < (w->n_said || w->alone ? TOLD_MS : LIMIT_MS) / 10 && !all; i++) {
		struct ferry_handler_event e = {0};
		int rc = WITH_FAULTS(ferry_handler_wait(w->handler, 10, -1, &e));

		if (rc < 0 || (e.why.err && !is_told(e.why.err, &e.why))) {
			snprintf(why, 256, "wait: %d, '%.100s'", rc, e.why.text);
			return false;
		}
		w->alone = w->alone || (e.type == FERRY_HANDLER_ALONE && e.why.err);
		if (e.type == FERRY_HANDLER_VM && e.vm.id && e.vm.id <= N_VMS) {
			struct vm *v = &w->vms[e.vm.id - 1];

			v->state = e.vm.state;
			v->told = v->told || e.why.err;
		}
		be_keeper(w);
		if (!hear_of_source(w, why))
			return false;
		all = true;
		for (unsigned int n = 0; n < N_VMS; n++)
			all = all && has_ended(&w->vms[n]) && is_forgotten(&w->vms[n]);
	}
	if (!all && !w->n_said && !w->alone)
		snprintf(why, 256, "a VM waits: %s, %s", ferry_vm_state_name(w->vms[0].state),
			 ferry_vm_state_name(w->vms[1].state));
	return all || w->n_said || w->alone;
}

/* The guest goes on, whatever is there. */
static void end_vm(struct vm *v)
{
	v->over = v->state != FERRY_VM_COMPLETE;
	if (v->over)
		ferry_uffd_unregister(&v->uffd, (struct ferry_hva){(uintptr_t)v->memory}, BYTES);
	pthread_join(v->guest, NULL);
	ferry_uffd_close(&v->uffd);
	close(v->conn);
	munmap(v->memory, BYTES);
}

static enum fault_outcome judge_vms(const struct worker *w, char *why)
{
	unsigned int n_complete = 0;

	for (unsigned int n = 0; n < N_VMS; n++) {
		const struct vm *v = &w->vms[n];

		n_complete += v->state == FERRY_VM_COMPLETE;
		if (v->wrong)
			return WRONG("a page is wrong");
		/* A VMM whose connection is reset has ended. */
		if (v->state == FERRY_VM_GONE && fault_has_struck_with(ECONNRESET))
			continue;
		if (v->state == FERRY_VM_GONE)
			return WRONG("a VM is said to have ended");
		if (v->state == FERRY_VM_REFUSED && !v->told)
			return WRONG("a VM was refused without a word");
		if (w->origin->takes_over && (v->forgotten || v->state == FERRY_VM_REFUSED) &&
		    v->state != FERRY_VM_COMPLETE)
			return WRONG("a guest that runs was given up");
	}
	snprintf(why, 256, "%u of %u are served", n_complete, N_VMS);
	if (n_complete == N_VMS)
		return FAULT_SURVIVED;
	if (w->n_said || w->alone)
		return FAULT_GIVEN_UP;
	return n_complete ? FAULT_REFUSED : WRONG("none was served");
}

static int open_worker(struct worker *w, struct ferry_failure *f)
{
	const struct ferry_addr *from = w->origin->from;
	struct ferry_image_config image = {.fd = from ? -1 : snapshot_fd,
					   .from = from,
					   .stop_fd = -1,
					   .is_patient = w->origin->is_patient,
					   .max_vms = N_VMS,
					   .log = &w->log};
	struct ferry_handler_config config = {.max_vms = N_VMS, .start = &w->start, .log = &w->log};
	int rc = WITH_FAULTS(ferry_image_open(&w->image, &image, f));

	if (rc < 0)
		return rc;
	config.image = w->image;
	return WITH_FAULTS(ferry_handler_new(&w->handler, &config, f));
}

static enum fault_outcome run_worker(const void *arg, char why[256])
{
	struct worker w = {.origin = arg};
	struct ferry_failure f = {0};
	enum fault_outcome outcome;
	int link[2], rc;

	if (ferry_keeper_pair(link) < 0)
		return WRONG("the link");
	w.log = (struct ferry_log){FERRY_LOG_WARN, note_line, &w};
	w.keeper = link[0];
	w.start = (struct ferry_worker_start){.link = link[1], .vms = w.kept};
	for (unsigned int n = 0; w.origin->takes_over && n < N_VMS; n++, w.start.n_slots++)
		if (!start_vm(&w, n))
			return WRONG("a VM does not start");
	rc = open_worker(&w, &f);
	if (rc < 0) {
		if (!is_told(rc, &f))
			return WRONG("%d, '%.100s'", rc, f.text);
		WITH_FAULTS((ferry_image_close(w.image), 0));
		snprintf(why, 256, "%.200s", f.text);
		be_keeper(&w);
		for (unsigned int n = 0; n < w.start.n_slots; n++) {
			if (w.vms[n].forgotten)
				return WRONG("a guest that runs was given up");
			if (!w.image) {
				close(w.kept[n].conn);
				close(w.kept[n].uffd);
				close(w.kept[n].known);
			}
			end_vm(&w.vms[n]);
		}
		/* It closes its end of the link once it is there. */
		close(link[0]);
		if (w.image)
			return FAULT_REFUSED;
		close(link[1]);
		return FAULT_REFUSED;
	}
	for (unsigned int n = 0; !w.origin->takes_over && n < N_VMS; n++)
		if (!start_vm(&w, n))
			return WRONG("a VM does not start");
	if (!serve(&w, why))
		return FAULT_WRONG;
	WITH_FAULTS((ferry_handler_free(w.handler), 0));
	WITH_FAULTS((ferry_image_close(w.image), 0));
	for (unsigned int n = 0; n < N_VMS; n++)
		end_vm(&w.vms[n]);
	outcome = judge_vms(&w, why);
	close(link[0]);
	return outcome;
}

/* --- the keeper ----------------------------------------------------------------------------------
 */

/* Lets each VMM know that it has come in. Ends when all have. */
static int welcome(void *ctx, const struct ferry_worker_start *start)
{
	static struct ferry_keeper_packet p;
	unsigned int n = 0;

	(void)ctx;
	fault_disarm(); /* only the keeper's calls are of interest */
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	while (n < N_VMS) {
		int rc;

		if (ferry_net_wait(start->link, POLLIN, LIMIT_MS, -1) < 0)
			return 3;
		rc = ferry_keeper_receive(start->link, &p);
		if (rc == -ECONNRESET)
			return 4;
		if (rc < 0 || p.type != FERRY_KEEPER_NEW)
			continue;
		if (p.fds[0] < 0 || p.fds[1] < 0 || p.n_bytes != 4 || memcmp(p.bytes, "[{}]", 4))
			return 5;
		n += write(p.fds[0], "k", 1) == 1;
		p.type = FERRY_KEEPER_KEEP;
		p.n_bytes = 0;
		ferry_close(p.fds[0]);
		p.fds[0] = TAKE_FD(p.fds[1]);
		ferry_keeper_send(start->link, &p);
		ferry_close(p.fds[0]);
	}
	_exit(0);
}

/* A process that tries until it is let in. */
static void be_vmm(const struct ferry_addr *a)
{
	struct ferry_uffd any = {.fd = snapshot_fd};

	fault_disarm();
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	for (int i = 0; i < 20; i++) {
		int fd = ferry_net_dial(a, LIMIT_MS, -1, NULL);
		char answer = 0;

		if (fd < 0)
			_exit(1);
		/* Sooner than the worker, should its word have been lost. */
		if (!ferry_uffd_send(&any, fd, "[{}]", 4) &&
		    !ferry_net_read_all(fd, &answer, 1, LIMIT_MS / 4, -1) && answer == 'k')
			_exit(0);
		close(fd);
	}
	_exit(2);
}

static enum fault_outcome run_keeper(const void *arg, char why[256])
{
	struct ferry_keeper_config config = {.max_vms = N_VMS + 1, .worker = welcome};
	struct ferry_addr a = {.is_unix = true};
	struct ferry_failure f = {0};
	pid_t vmms[N_VMS];
	int rc, n_ended = 0;

	(void)arg;
	snprintf(a.path, sizeof(a.path), "%s/%d", folder, (int)getpid());
	config.listen_fd = ferry_net_listen(&a, NULL);
	if (config.listen_fd < 0)
		return WRONG("the socket");
	for (int i = 0; i < N_VMS; i++) {
		vmms[i] = fork();
		if (!vmms[i])
			be_vmm(&a);
	}
	rc = WITH_FAULTS(ferry_keeper_run(&config, &f));
	unlink(a.path);
	for (int i = 0; i < N_VMS; i++) {
		int status;

		if (rc)
			kill(vmms[i], SIGKILL);
		waitpid(vmms[i], &status, 0);
		n_ended += WIFEXITED(status) && !WEXITSTATUS(status);
	}
	if (rc < 0 && !is_told(rc, &f))
		return WRONG("%d, '%.100s'", rc, f.text);
	if (rc > 0 || (!rc && n_ended != N_VMS))
		return WRONG("the worker ended with %d, and %d VMs were let in", rc, n_ended);
	snprintf(why, 256, "%.200s", f.text);
	return rc < 0 ? FAULT_REFUSED : FAULT_SURVIVED;
}

/* --- a working set -------------------------------------------------------------------------------
 */

/* Return: how many pages the file has; -1 when there is none, -2 when it is not whole. */
static int pages_in(const char *path)
{
	struct ferry_working_set w;
	struct ferry_failure f = {0};
	char *text;
	size_t len;
	int n = -2;

	if (ferry_record_read(path, &text, &len, &f) < 0)
		return -1;
	if (!ferry_working_set_init(&w, BYTES)) {
		if (!ferry_working_set_parse(&w, text, len, &f))
			n = (int)ferry_working_set_size(&w);
		ferry_working_set_fini(&w);
	}
	free(text);
	return n;
}

/* Records @n pages more. Return: 0, or an error that was told. */
static int record(const char *path, uint64_t first, unsigned int n, struct ferry_failure *f)
{
	struct ferry_record_vm *vm = NULL;
	struct ferry_record *r;
	uint64_t n_pages;
	int rc = WITH_FAULTS(ferry_record_open(&r, path, BYTES, f));

	if (rc < 0)
		return is_told(rc, f) ? rc : -EILSEQ;
	rc = WITH_FAULTS(ferry_record_begin(BYTES, &vm));
	if (rc < 0)
		ferry_fail_errno(f, FERRY_REFUSE, rc, "begin");
	for (unsigned int i = 0; !rc && i < n; i++)
		ferry_record_fault(vm, (first + i) * PAGE);
	if (!rc)
		rc = WITH_FAULTS(ferry_record_end(r, vm, &n_pages, f));
	WITH_FAULTS((free(vm), 0));
	ferry_record_close(r);
	return rc < 0 && !is_told(rc, f) ? -EILSEQ : rc;
}

static enum fault_outcome replay(const char *path, char *why)
{
	struct ferry_vmm_message m = {.n_regions = 1,
				      .regions = {{.bytes = BYTES, .page_bytes = PAGE}}};
	struct ferry_replay_lists lists = {0};
	struct ferry_failure f = {0};
	struct ferry_replay *r = NULL;
	char *text = NULL;
	size_t len = 0;
	int rc = WITH_FAULTS(ferry_record_read(path, &text, &len, &f));

	if (!rc)
		rc = WITH_FAULTS(ferry_replay_open(&r, BYTES, text, len, &f));
	if (rc < 0 && !is_told(rc, &f))
		return WRONG("replay: %d, '%.100s'", rc, f.text);
	if (!rc)
		rc = WITH_FAULTS(ferry_replay_lists(r, &m, &lists));
	WITH_FAULTS((free(lists.first), free(lists.last), free(text), 0));
	ferry_replay_close(r);
	snprintf(why, 256, "%.200s", rc < 0 ? f.text : "");
	return rc < 0 ? FAULT_REFUSED : FAULT_SURVIVED;
}

static enum fault_outcome run_working_set(const void *arg, char why[256])
{
	struct ferry_failure f = {0};
	enum fault_outcome outcome;
	char path[96], tmp[104];
	int first, second, has;

	(void)arg;
	snprintf(path, sizeof(path), "%s/set-%d", folder, (int)getpid());
	snprintf(tmp, sizeof(tmp), "%s.new", path);
	first = record(path, 0, 20, &f);
	has = pages_in(path);
	if (first == -EILSEQ || has != (first ? -1 : 20))
		return WRONG("the first: %d, and %d pages are in it: %.100s", first, has, f.text);
	second = record(path, 60, 40, &f);
	has = pages_in(path);
	if (second == -EILSEQ || has != (second ? 20 : first ? 40 : 60))
		return WRONG("the second: %d, and %d pages are in it: %.100s", second, has, f.text);
	outcome = replay(path, why);
	if (unlink(path) < 0 || !access(tmp, F_OK))
		return WRONG("files are left");
	if (outcome == FAULT_SURVIVED && (first || second)) {
		snprintf(why, 256, "%.200s", f.text);
		return FAULT_REFUSED;
	}
	return outcome;
}

/* --- all of it -----------------------------------------------------------------------------------
 */

int main(int argc, char **argv)
{
	static const struct origin file = {0}, server = {.from = &page_server},
				   before = {.takes_over = true},
				   patient = {.from = &page_server,
					      .takes_over = true,
					      .is_patient = true};
	static const struct fault_scenario scenarios[] = {
		{"worker", run_worker, &file},
		{"worker of a page server", run_worker, &server},
		{"worker that takes over", run_worker, &before},
		{"worker that takes over and waits", run_worker, &patient},
		{"keeper", run_keeper, NULL},
		{"working set", run_working_set, NULL},
	};
	struct ferry_uffd u;
	pid_t pages;
	int rc;

	fault_exempt = true;
	rc = ferry_uffd_open(&u, UFFD_FEATURE_EVENT_REMOVE, NULL);
	if (rc < 0) {
		printf("SKIP: no userfaultfd: run 'pageferry probe'\n");
		return 77;
	}
	ferry_uffd_close(&u);
	json_set_alloc_funcs(fault_jansson_malloc, fault_jansson_free);
	json_object_seed(1); /* it opens a file for that once */
	if (!make_snapshot() || !mkdtemp(folder))
		return 1;
	pages = start_page_server();
	if (pages < 0)
		return 1;
	rc = fault_main(argc, argv, scenarios, FERRY_ARRAY_SIZE(scenarios));
	kill(pages, SIGKILL);
	waitpid(pages, NULL, 0);
	unlink(page_server.path);
	rmdir(folder);
	return rc;
}
