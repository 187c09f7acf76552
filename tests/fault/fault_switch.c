/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A switchover between two processes that play QEMU, its source's and target's sides in this one,
 * while a call fails on either side: the guest then runs on exactly one side. When that is the
 * source, the next attempt moves it; when the target has it and waits, --resume and --recover go
 * on. In the end its memory is right, and no record is left.
 */
#include <dirent.h>
#include <fcntl.h>
#include <jansson.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/net.h"
#include "driver.h"
#include "migrate/switchover.h"

#define PAGE	    4096u
#define N_PAGES	    640u /* more than a block of 2 MiB: filled in place */
#define BYTES	    ((size_t)N_PAGES * PAGE)
#define STATE_BYTES (96u * 1024)
#define LIMIT_MS    20000
#define LOST_MS	    1000   /* then both sides are told to end, and started again */
#define MOST_MS	    100000 /* of a whole move */
#define ALONE_MS    500	   /* the target, once the source has ended */

/* --- the process that plays QEMU -----------------------------------------------------------------
 */

/* What it and the test see. */
struct vmm_state {
	_Atomic bool runs, stopped, checked, wrong;
	_Atomic bool ignores_shared; /* capability */
};

struct vmm {
	pid_t pid;
	char path[96];
	struct vmm_state *state;
	uint8_t *ram; /* mapped here as well, at the same address; the test looks only while it is
			 whole */
	int ram_fd;   /* owned */
};

static char folder[] = "/var/tmp/pageferry-fault-XXXXXX";

struct player {
	struct vmm *vmm;
	int fd;	     /* of the monitor */
	int pipe_fd; /* of getfd */
	bool is_source;
	const char *status;
	char buffer[65536];
	size_t have;
};

static uint64_t word(uint64_t page, uint64_t i)
{
	return page % 8 == 3 ? 0 : (page + 1) * 0x9e3779b97f4a7c15u + i;
}

static bool is_right(const uint8_t *ram)
{
	const uint64_t *w = (const uint64_t *)ram;

	for (uint64_t i = 0; i < BYTES / sizeof(*w); i++)
		if (w[i] != word(i / (PAGE / sizeof(*w)), i % (PAGE / sizeof(*w))))
			return false;
	return true;
}

static void fill_ram(uint8_t *ram)
{
	uint64_t *w = (uint64_t *)ram;

	for (uint64_t i = 0; i < BYTES / sizeof(*w); i++) {
		uint64_t v = word(i / (PAGE / sizeof(*w)), i % (PAGE / sizeof(*w)));

		if (v)
			w[i] = v;
	}
}

/* Whoever has left does not hear it; the next one is let in. */
static void say(struct player *p, const char *text)
{
	(void)ferry_net_write_all(p->fd, text, strlen(text), LIMIT_MS, -1);
}

static void say_event(struct player *p, const char *name, const char *status)
{
	char line[160];

	snprintf(line, sizeof(line), "{\"event\": \"%s\", \"data\": {\"status\": \"%s\"}}\r\n",
		 name, status);
	say(p, line);
}

/* The guest: it looks at all of its memory once it runs. */
static void *be_guest(void *arg)
{
	struct player *p = arg;

	if (!is_right(p->vmm->ram))
		p->vmm->state->wrong = true;
	p->vmm->state->checked = true;
	return NULL;
}

static void run_guest(struct player *p)
{
	pthread_t thread;

	p->status = "running";
	p->vmm->state->runs = true;
	if (!p->vmm->state->checked && pthread_create(&thread, NULL, be_guest, p))
		_exit(1);
}

static void write_state(struct player *p)
{
	static char state[STATE_BYTES];
	int rc;

	/* Without it the memory would be in the stream. */
	if (!p->vmm->state->ignores_shared)
		p->vmm->state->wrong = true;
	say_event(p, "MIGRATION", "active");
	p->vmm->state->runs = false;
	p->status = "postmigrate";
	say_event(p, "STOP", "");
	memset(state, 's', sizeof(state));
	rc = ferry_net_write_all(p->pipe_fd, state, sizeof(state), LIMIT_MS, -1);
	ferry_close(TAKE_FD(p->pipe_fd));
	say_event(p, "MIGRATION", rc < 0 ? "failed" : "completed");
}

static void read_state(struct player *p)
{
	char state[4096];
	size_t n = 0;
	ssize_t got;

	/* Where the state ends is said in it. */
	while (n < STATE_BYTES && (got = read(p->pipe_fd, state, sizeof(state))) > 0)
		n += (size_t)got;
	ferry_close(TAKE_FD(p->pipe_fd));
	if (n != STATE_BYTES) {
		say_event(p, "MIGRATION", "failed");
		_exit(1); /* as QEMU does */
	}
	p->status = "paused";
	/* Its source's guest was running. */
	if (!p->vmm->state->stopped)
		run_guest(p);
	say_event(p, "MIGRATION", "completed");
}

static const struct {
	const char *command, *word, *json;
} answers[] = {
	{"query-cpus-fast", NULL, "[{\"thread-id\": %d}]"},
	{"query-name", NULL, "{\"name\": \"web-1\"}"},
	{"qom-get", "\"type\"", "\"pc-i440fx-7.2-machine\""},
	{"qom-list", NULL, "[]"},
	{"query-migrate-capabilities", NULL,
	 "[{\"capability\": \"x-ignore-shared\", \"state\": false},"
	 "{\"capability\": \"events\", \"state\": false}]"},
	{"query-migrate-parameters", NULL, "{\"max-bandwidth\": 1, \"tls-creds\": \"\"}"},
	{"query-memdev", NULL, "[{\"id\": \"ram0\", \"size\": %zu, \"share\": true}]"},
	{"query-memory-size-summary", NULL, "{\"base-memory\": %zu, \"plugged-memory\": 0}"},
	{"human-monitor-command", "info mtree",
	 "\"FlatView #1\\r\\n AS \\\"memory\\\", root: system\\r\\n"
	 "  0000000000000000-000000000007ffff (prio 0, ram): ram0\\r\\n\""},
	{"human-monitor-command", "gpa2hva", "\"Host virtual address for 0x0 (ram0) is %p\\r\\n\""},
	{"human-monitor-command", NULL, "\"\""},
};

static bool is_command(const char *line, const char *command)
{
	char key[96];

	snprintf(key, sizeof(key), "\"execute\":\"%s\"", command);
	return strstr(line, key);
}

#pragma GCC diagnostic ignored "-Wformat-nonliteral"
static void find_answer(const struct player *p, const char *line, char out[1024])
{
	snprintf(out, 1024, "{}");
	if (is_command(line, "query-status"))
		snprintf(out, 1024, "{\"status\": \"%s\"}", p->status);
	for (size_t i = 0; i < sizeof(answers) / sizeof(answers[0]); i++) {
		const char *json = answers[i].json;

		if (!is_command(line, answers[i].command) ||
		    (answers[i].word && !strstr(line, answers[i].word)))
			continue;
		if (strstr(json, "%d"))
			snprintf(out, 1024, json, (int)getpid());
		else if (strstr(json, "%zu"))
			snprintf(out, 1024, json, BYTES);
		else
			snprintf(out, 1024, json, p->vmm->ram);
		return;
	}
}

static void answer(struct player *p, const char *line)
{
	const char *id = strstr(line, "\"id\":");
	char body[1024], out[1200];
	bool refused = is_command(line, "qom-get") && strstr(line, "confidential");

	find_answer(p, line, body);
	if (is_command(line, "cont"))
		run_guest(p);
	if (is_command(line, "stop"))
		p->vmm->state->stopped = true;
	if (is_command(line, "migrate-set-capabilities"))
		p->vmm->state->ignores_shared =
			strstr(line, "\"x-ignore-shared\",\"state\":true") != NULL;
	snprintf(out, sizeof(out),
		 refused ? "{\"error\": {\"desc\": \"no such property\"}, \"id\": %ld}\r\n"
			 : "{\"return\": %2$s, \"id\": %1$ld}\r\n",
		 id ? strtol(id + 5, NULL, 10) : 0, body);
	say(p, out);
	if (is_command(line, "migrate") && p->pipe_fd >= 0)
		write_state(p);
	if (is_command(line, "migrate-incoming") && p->pipe_fd >= 0)
		read_state(p);
}

/* A descriptor comes with the line that names it. */
static ssize_t receive(struct player *p)
{
	union {
		char buf[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control;
	struct iovec iov = {p->buffer + p->have, sizeof(p->buffer) - 1 - p->have};
	struct msghdr msg = {.msg_iov = &iov,
			     .msg_iovlen = 1,
			     .msg_control = &control,
			     .msg_controllen = sizeof(control)};
	ssize_t n = recvmsg(p->fd, &msg, MSG_CMSG_CLOEXEC);
	struct cmsghdr *c = n > 0 ? CMSG_FIRSTHDR(&msg) : NULL;

	if (c && c->cmsg_type == SCM_RIGHTS) {
		ferry_close(p->pipe_fd);
		memcpy(&p->pipe_fd, CMSG_DATA(c), sizeof(int));
	}
	return n;
}

static void serve_monitor(struct player *p)
{
	say(p, "{\"QMP\": {\"version\": {\"qemu\": {\"micro\": 22, \"minor\": 2, \"major\": "
	       "7}}}}\r\n");
	for (;;) {
		ssize_t n = receive(p);
		char *newline;

		if (n <= 0)
			return;
		p->have += (size_t)n;
		p->buffer[p->have] = '\0';
		while ((newline = strchr(p->buffer, '\n'))) {
			*newline = '\0';
			answer(p, p->buffer);
			p->have -= (size_t)(newline + 1 - p->buffer);
			memmove(p->buffer, newline + 1, p->have + 1);
		}
	}
}

static void play(struct vmm *v, int listen_fd, bool is_source)
{
	static struct player p;

	fault_disarm(); /* its calls are not ours */
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	p = (struct player){.vmm = v,
			    .is_source = is_source,
			    .pipe_fd = -1,
			    .status = is_source ? "running" : "inmigrate"};
	listen(listen_fd, 1);
	kill(getpid(), SIGSTOP);
	for (;;) {
		p.fd = accept(listen_fd, NULL, NULL);
		p.have = 0;
		serve_monitor(&p);
		close(p.fd);
	}
}

static bool start_vmm(struct vmm *v, bool is_source)
{
	static int number;
	struct sockaddr_un sun = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	snprintf(v->path, sizeof(v->path), "%s/qmp-%d-%d", folder, (int)getpid(), number++);
	snprintf(sun.sun_path, sizeof(sun.sun_path), "%s", v->path);
	v->state = mmap(NULL, sizeof(*v->state), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
			-1, 0);
	v->ram_fd = memfd_create("ram", MFD_CLOEXEC);
	if (fd < 0 || v->state == MAP_FAILED || v->ram_fd < 0 ||
	    ftruncate(v->ram_fd, (off_t)BYTES) < 0 ||
	    bind(fd, (struct sockaddr *)&sun, sizeof(sun)) < 0)
		return false;
	v->ram = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, v->ram_fd, 0);
	if (v->ram == MAP_FAILED)
		return false;
	if (is_source)
		fill_ram(v->ram);
	v->state->runs = v->state->checked = is_source;
	v->pid = fork();
	if (!v->pid)
		play(v, fd, is_source);
	close(fd);
	/* The socket's owner is who listens; it does once it has stopped itself. */
	return v->pid > 0 && waitpid(v->pid, NULL, WUNTRACED) == v->pid && !kill(v->pid, SIGCONT);
}

static void stop_vmm(struct vmm *v)
{
	kill(v->pid, SIGKILL);
	waitpid(v->pid, NULL, 0);
	munmap(v->state, sizeof(*v->state));
	munmap(v->ram, BYTES);
	close(v->ram_fd);
	unlink(v->path);
}

/* --- both sides ----------------------------------------------------------------------------------
 */

struct side {
	pthread_t thread;
	bool counts;
	_Atomic bool over;
	enum ferry_outcome outcome;
	struct ferry_failure f;
	struct ferry_log log;
};

struct move {
	struct vmm *from, *to;
	struct side source, target;
	_Atomic bool lost; /* the source could not read a page: it is not asked for again before a
			      new epoch */
	struct ferry_migrate_config migrate;
	struct ferry_receive_config receive;
};

static void drop_line(void *ctx, enum ferry_log_level level, const char *line)
{
	(void)ctx, (void)level;
	if (getenv("PAGEFERRY_FAULT_LOG"))
		fprintf(stderr, "%s\n", line);
}

static void note_lost(void *ctx, const struct ferry_failure *f)
{
	struct move *m = ctx;

	(void)f;
	m->lost = true;
}

static void *run_source(void *arg)
{
	struct ferry_migrate_result result;
	struct move *m = arg;

	fault_exempt = !m->source.counts;
	m->source.outcome = ferry_migrate_run(&m->migrate, &result, &m->source.f);
	fault_exempt = true;
	m->source.over = true;
	return NULL;
}

/* Nobody listens once it has ended: its process would be gone. */
static void *run_target(void *arg)
{
	struct ferry_receive_result result;
	struct move *m = arg;

	fault_exempt = !m->target.counts;
	m->target.outcome = ferry_receive_run(&m->receive, &result, &m->target.f);
	fault_exempt = true;
	ferry_close(m->receive.listen_fd);
	m->target.over = true;
	return NULL;
}

/* @again: where it was before, which its source dials. */
static bool set_up_target(struct move *m, enum ferry_recovery recovery, bool again)
{
	struct ferry_addr any, at = m->receive.address;

	m->target.over = false;
	m->target.log = (struct ferry_log){FERRY_LOG_DEBUG, drop_line, NULL};
	m->receive = (struct ferry_receive_config){.qmp_path = m->to->path,
						   .recovery = recovery,
						   .listen_fd = -1,
						   .stop_fd = eventfd(0, EFD_CLOEXEC),
						   .state_dir = folder,
						   .log = &m->target.log,
						   .observer = {.lost = note_lost, .ctx = m}};
	if (!ferry_addr_parse(&any, "127.0.0.1:0", NULL))
		m->receive.listen_fd = ferry_net_listen(again ? &at : &any, NULL);
	return m->receive.listen_fd >= 0 && m->receive.stop_fd >= 0 &&
	       !ferry_net_local(m->receive.listen_fd, &any, &m->receive.address) &&
	       !pthread_create(&m->target.thread, NULL, run_target, m);
}

static bool set_up_source(struct move *m, enum ferry_recovery recovery)
{
	m->source.log = (struct ferry_log){FERRY_LOG_DEBUG, drop_line, NULL};
	m->migrate = (struct ferry_migrate_config){.qmp_path = m->from->path,
						   .recovery = recovery,
						   .to = m->receive.address,
						   .stop_fd = eventfd(0, EFD_CLOEXEC),
						   .state_dir = folder,
						   .log = &m->source.log};
	return !pthread_create(&m->source.thread, NULL, run_source, m);
}

static bool await(const _Atomic bool *what, unsigned int ms)
{
	for (unsigned int i = 0; i < ms && !*what; i++)
		usleep(1000);
	return *what;
}

static void end_target(struct move *m)
{
	pthread_join(m->target.thread, NULL);
	close(m->receive.stop_fd);
}

/* A source that has given its guest away waits for a target that has ended: until it is recovered.
 */
static bool await_source(struct move *m)
{
	for (unsigned int i = 0; i < MOST_MS && !m->source.over; i++) {
		if (m->lost && i > LOST_MS) {
			eventfd_write(m->migrate.stop_fd, 1);
			eventfd_write(m->receive.stop_fd, 1);
			return await(&m->source.over, LIMIT_MS);
		}
		if (m->target.over && m->target.outcome == FERRY_OUTCOME_WAITS && i > ALONE_MS) {
			end_target(m);
			m->target.counts = false;
			if (!set_up_target(m, FERRY_RECOVER_ONLY, true))
				return false;
		}
		usleep(1000);
	}
	return m->source.over;
}

/* Both sides to their ends. Return: NULL, or what is wrong. */
static const char *run_move(struct move *m, enum ferry_recovery recovery)
{
	if (!set_up_target(m, recovery, false) || !set_up_source(m, recovery))
		return "the test's own set-up";
	if (!await_source(m))
		return "the source hangs";
	/* A target whose source has left waits for it, or for another one, until it is told to end.
	 */
	if (!await(&m->target.over, m->source.outcome ? ALONE_MS : LIMIT_MS))
		eventfd_write(m->receive.stop_fd, 1);
	if (!await(&m->target.over, 2 * LIMIT_MS))
		return "the target hangs";
	pthread_join(m->source.thread, NULL);
	close(m->migrate.stop_fd);
	end_target(m);
	return NULL;
}

/* --- what came of it -----------------------------------------------------------------------------
 */

static bool is_told(const struct side *s)
{
	return s->outcome == FERRY_OUTCOME_DONE ||
	       (s->f.err < 0 && s->f.text[0] && s->f.consequence != FERRY_OK &&
		!strchr(s->f.text, '\n'));
}

/* One move that must work, of the guest in @from. */
static const char *move_whole(struct vmm *from, struct vmm *to, enum ferry_recovery recovery)
{
	struct move m = {.from = from, .to = to};
	const char *wrong = run_move(&m, recovery);

	if (wrong)
		return wrong;
	if (m.source.outcome || m.target.outcome) {
		static char text[240];

		snprintf(text, sizeof(text), "the next one: %d, %d: %.100s; %.100s",
			 m.source.outcome, m.target.outcome, m.source.f.text, m.target.f.text);
		return text;
	}
	return NULL;
}

static const char *is_at_target(const struct vmm *from, const struct vmm *to)
{
	if (from->state->runs || !to->state->runs)
		return from->state->runs ? "it runs at the source" : "it runs nowhere";
	if (!await(&to->state->checked, LIMIT_MS))
		return "it waits for pages";
	return from->state->wrong || to->state->wrong || !is_right(to->ram) ? "its memory is wrong"
									    : NULL;
}

/* The guest stayed: a move of it to a new QEMU works. */
static const char *try_anew(struct vmm *from, const struct vmm *to)
{
	const char *wrong;
	struct vmm next;

	if (!from->state->runs || to->state->runs)
		return to->state->runs ? "both run it"
				       : "it is said to be at the source, and stands "
					 "still";
	if (!start_vmm(&next, false))
		return "the test's own set-up";
	wrong = move_whole(from, &next, FERRY_RECOVER_NOT);
	if (!wrong)
		wrong = is_at_target(from, &next);
	stop_vmm(&next);
	return wrong;
}

/* The target has it, and one of the two has given up. */
static const char *go_on(struct vmm *from, struct vmm *to, const struct move *m)
{
	const char *wrong;

	if (from->state->runs)
		return "it was given away, and runs at the source";
	if (m->target.outcome == FERRY_OUTCOME_DONE || m->source.outcome == FERRY_OUTCOME_DONE)
		return is_at_target(from, to);
	/* One that had everything when it was told to end has nothing to recover. */
	wrong = move_whole(from, to, FERRY_RECOVER_ONLY);
	return is_at_target(from, to) ? wrong ?: is_at_target(from, to) : NULL;
}

/* Those that say something: one that could not be locked is empty. Away with them, for the next
 * run. */
static unsigned int count_records(void)
{
	unsigned int n = 0;
	struct dirent *e;
	DIR *d = opendir(folder);

	while (d && (e = readdir(d))) {
		struct stat st;

		if (e->d_name[0] == '.' || !strncmp(e->d_name, "qmp-", 4))
			continue;
		n += !fstatat(dirfd(d), e->d_name, &st, 0) && st.st_size;
		unlinkat(dirfd(d), e->d_name, 0);
	}
	if (d)
		closedir(d);
	return n;
}

static enum fault_outcome judge(struct vmm *from, struct vmm *to, const struct move *m, char *why)
{
	const char *wrong = NULL;

	if (!is_told(&m->source) || !is_told(&m->target))
		return WRONG("%d: '%.100s'; %d: '%.100s'", m->source.outcome, m->source.f.text,
			     m->target.outcome, m->target.f.text);
	if (!m->source.outcome && !m->target.outcome)
		wrong = is_at_target(from, to);
	else if (m->source.outcome == FERRY_OUTCOME_AT_SOURCE)
		wrong = try_anew(from, to);
	else if (m->source.outcome == FERRY_OUTCOME_LOST || m->target.outcome == FERRY_OUTCOME_LOST)
		/* Who resets the connection to its monitor is taken for ended. */
		wrong = fault_has_struck_with(ECONNRESET) ? NULL : "it is said to be lost";
	else
		wrong = go_on(from, to, m);
	if (wrong)
		return WRONG("%s (%d: %.80s; %d: %.80s)", wrong, m->source.outcome,
			     m->source.f.text, m->target.outcome, m->target.f.text);
	if (!m->source.outcome && !m->target.outcome)
		return FAULT_SURVIVED;
	snprintf(why, 256, "%d: %.100s; %d: %.100s", m->source.outcome, m->source.f.text,
		 m->target.outcome, m->target.f.text);
	return m->source.outcome == FERRY_OUTCOME_AT_SOURCE ? FAULT_REFUSED : FAULT_GIVEN_UP;
}

static enum fault_outcome run(const void *arg, char why[256])
{
	struct move m = {.source.counts = !*(const bool *)arg, .target.counts = *(const bool *)arg};
	enum fault_outcome outcome;
	struct vmm from, to;
	const char *wrong;
	bool may_be_left;

	if (!start_vmm(&from, true) || !start_vmm(&to, false))
		return WRONG("the processes do not start");
	m.from = &from;
	m.to = &to;
	wrong = run_move(&m, FERRY_RECOVER_NOT);
	fault_disarm();
	if (wrong)
		return WRONG("%s (%.100s; %.100s)", wrong, m.source.f.text, m.target.f.text);
	outcome = judge(&from, &to, &m, why);
	stop_vmm(&from);
	stop_vmm(&to);
	/* A source that gave up before it heard that its target has everything keeps its own. */
	may_be_left = fault_has_struck_in(FAULT_unlink) ||
		      (m.source.outcome == FERRY_OUTCOME_WAITS && !m.target.outcome);
	if (outcome != FAULT_WRONG && count_records() && !may_be_left)
		return WRONG("records are left (%d: %.100s; %d: %.100s)", m.source.outcome,
			     m.source.f.text, m.target.outcome, m.target.f.text);
	return outcome;
}

int main(int argc, char **argv)
{
	static const bool source = false, target = true;
	static const struct fault_scenario scenarios[] = {
		{"source", run, &source},
		{"target", run, &target},
	};
	int rc;

	fault_exempt = true;
	if (geteuid() != 0) {
		printf("SKIP: attaching to others' processes takes root\n");
		return 77;
	}
	json_set_alloc_funcs(fault_jansson_malloc, fault_jansson_free);
	json_object_seed(1); /* it opens a file for that once */
	if (!mkdtemp(folder))
		return 1;
	rc = fault_main(argc, argv, scenarios, 2);
	rmdir(folder);
	return rc;
}
