/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Attaching to a process that runs, while a call fails, of ours or inside of it, or while it is
 * killed: it goes on as before, with nothing of ours in it, unless all went well or it is told.
 */
#include <dirent.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <grp.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "driver.h"
#include "uffd/uffd.h"

#define PAGE	  4096u
#define NOBODY	  65534
#define N_THREADS 2
#define TURNS	  1000	/* of the computation, before it is looked at */
#define SETTLE_MS 10000 /* in which it gets a processor */

struct variant {
	bool waits; /* its first thread waits in a system call, and the second computes */
	bool unprivileged;
	bool adopted; /* it has a userfaultfd, which is taken over */
};

/* What the process and we see. */
struct shared {
	_Atomic bool stop;
	_Atomic bool wrong;
	_Atomic uint64_t turns;
};

struct process {
	pid_t pid;
	int wait_fd; /* owned: its waiting thread gets a byte from it */
	uint8_t *memory;
};

/* What must be as before. */
struct facts {
	unsigned int n_fds, n_mappings, n_mapped;
	uint64_t masks[N_THREADS];
};

/* --- the process ---------------------------------------------------------------------------------
 */

static struct shared *shared;
static int wait_fd;

static uint64_t next(uint64_t x)
{
	x ^= x << 13, x ^= x >> 7, x ^= x << 17;
	return x;
}

/* The same sum again and again: whatever happened to its registers would be seen. */
static void *compute(void *arg)
{
	uint64_t expected = 1;

	for (int i = 0; i < TURNS; i++)
		expected = next(expected);
	while (!shared->stop) {
		uint64_t x = 1;

		for (int i = 0; i < TURNS; i++)
			x = next(x);
		if (x != expected)
			shared->wrong = true;
		shared->turns++;
	}
	return arg;
}

/* No signal of ours may be seen here: the call would end with EINTR. */
static void *wait_for_byte(void *arg)
{
	char b;

	if (syscall(SYS_read, wait_fd, &b, 1) != 1)
		shared->wrong = true;
	return arg;
}

static void become_nobody(void)
{
	if (setgroups(0, NULL) < 0 || setresgid(NOBODY, NOBODY, NOBODY) < 0 ||
	    setresuid(NOBODY, NOBODY, NOBODY) < 0)
		_exit(92);
	prctl(PR_SET_PDEATHSIG, SIGKILL);
}

static void be_process(const struct variant *v)
{
	pthread_t other;

	fault_disarm(); /* its calls are not ours */
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (v->unprivileged)
		become_nobody();
	if (pthread_create(&other, NULL, v->waits ? compute : wait_for_byte, NULL))
		_exit(93);
	(v->waits ? wait_for_byte : compute)(NULL);
	pthread_join(other, NULL);
	_exit(shared->wrong ? 1 : 0);
}

static bool start(struct process *p, const struct variant *v)
{
	int pipes[2];

	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1,
		      0);
	p->memory = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (shared == MAP_FAILED || p->memory == MAP_FAILED || pipe2(pipes, O_CLOEXEC) < 0)
		return false;
	p->wait_fd = pipes[1];
	wait_fd = pipes[0];
	p->pid = fork();
	if (!p->pid) {
		close(pipes[1]);
		be_process(v);
	}
	close(pipes[0]);
	fault_victim = p->pid;
	return p->pid > 0;
}

/* --- looking at it -------------------------------------------------------------------------------
 */

static unsigned int count_entries(pid_t pid, const char *what, unsigned int *total)
{
	char path[64], line[512];
	unsigned int n = 0;
	FILE *file;

	snprintf(path, sizeof(path), "/proc/%d/%s", (int)pid, what);
	file = fopen(path, "re");
	*total = 0;
	while (file && fgets(line, sizeof(line), file)) {
		unsigned long from, to;

		if (sscanf(line, "%lx-%lx", &from, &to) == 2)
			*total += (unsigned int)((to - from) / PAGE);
		n++;
	}
	if (file)
		fclose(file);
	return n;
}

static unsigned int list_dir(pid_t pid, const char *what, pid_t *numbers, unsigned int max)
{
	char path[64];
	unsigned int n = 0;
	struct dirent *e;
	DIR *d;

	snprintf(path, sizeof(path), "/proc/%d/%s", (int)pid, what);
	d = opendir(path);
	while (d && (e = readdir(d)) && n < max)
		if (e->d_name[0] != '.')
			numbers[n++] = (pid_t)strtol(e->d_name, NULL, 10);
	if (d)
		closedir(d);
	return n;
}

struct thread_facts {
	char state;
	int tracer;
	unsigned long mask;
	bool in_read;
};

static FILE *open_of_thread(pid_t pid, pid_t tid, const char *what)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/task/%d/%s", (int)pid, (int)tid, what);
	return fopen(path, "re");
}

/* Whether it waits is asked first: what it does before that changes the rest. */
static bool look_at_thread(pid_t pid, pid_t tid, struct thread_facts *t)
{
	FILE *file = open_of_thread(pid, tid, "syscall");
	char line[256];

	*t = (struct thread_facts){0};
	t->in_read = file && fgets(line, sizeof(line), file) && line[0] != 'r' &&
		     strtol(line, NULL, 10) == SYS_read;
	if (file)
		fclose(file);
	file = open_of_thread(pid, tid, "status");
	if (!file)
		return false;
	while (fgets(line, sizeof(line), file)) {
		sscanf(line, "State: %c", &t->state);
		sscanf(line, "TracerPid: %d", &t->tracer);
		sscanf(line, "SigBlk: %lx", &t->mask);
	}
	fclose(file);
	return true;
}

/* Return: whether no thread is stopped or traced, and one of them waits. */
static bool runs(const struct process *p, struct facts *f)
{
	pid_t tids[N_THREADS + 1], fds[64];
	unsigned int n = list_dir(p->pid, "task", tids, N_THREADS + 1), n_reads = 0;

	if (n != N_THREADS)
		return false;
	for (unsigned int i = 0; i < n; i++) {
		struct thread_facts t;

		if (!look_at_thread(p->pid, tids[i], &t) || t.tracer || !strchr("RS", t.state))
			return false;
		f->masks[i] = t.mask;
		n_reads += t.in_read;
	}
	f->n_fds = list_dir(p->pid, "fd", fds, 64);
	f->n_mappings = count_entries(p->pid, "maps", &f->n_mapped);
	return n_reads == 1;
}

/* Return: that it runs, and gets on. */
static bool gets_on(const struct process *p, struct facts *f)
{
	uint64_t turns = shared->turns;

	for (int i = 0; i < SETTLE_MS; i++) {
		if (shared->turns > turns + 1 && runs(p, f))
			return true;
		usleep(1000);
	}
	return false;
}

/* @n_more: descriptors than before. Return: NULL, or what is wrong. */
static const char *unharmed(const struct process *p, const struct facts *before,
			    unsigned int n_more)
{
	struct facts now = {0};

	if (!gets_on(p, &now))
		return "the process does not go on";
	if (shared->wrong)
		return "what the process computes is wrong, or what it waits for was interrupted";
	if (now.n_fds != before->n_fds + n_more)
		return now.n_fds > before->n_fds + n_more ? "descriptors are left in the process"
							  : "the process misses descriptors";
	if (now.n_mappings != before->n_mappings || now.n_mapped != before->n_mapped)
		return "mappings are left in the process";
	if (memcmp(now.masks, before->masks, sizeof(now.masks)) != 0)
		return "signals are blocked";
	return NULL;
}

static bool is_killed(const struct process *p)
{
	siginfo_t si = {0};

	return !waitid(P_PID, (id_t)p->pid, &si, WEXITED | WNOWAIT | WNOHANG) && si.si_pid;
}

/* Was it killed on the way? It may take a moment. */
static bool was_killed(const struct process *p)
{
	if (!fault_has_struck_with(FAULT_KILL))
		return false;
	for (int i = 0; i < SETTLE_MS && !is_killed(p); i++)
		usleep(1000);
	return true;
}

/* Return: whether it came to its end as it should. */
static bool end(const struct process *p, bool killed)
{
	int status;

	shared->stop = true;
	if (!killed && write(p->wait_fd, "t", 1) != 1)
		return false;
	close(p->wait_fd);
	if (waitpid(p->pid, &status, 0) != p->pid)
		return false;
	munmap(shared, sizeof(*shared));
	munmap(p->memory, PAGE);
	return killed ? WIFSIGNALED(status) : WIFEXITED(status) && !WEXITSTATUS(status);
}

/* --- one run -------------------------------------------------------------------------------------
 */

static bool is_told(int rc, const struct ferry_failure *f)
{
	return rc < 0 && f->err == rc && f->text[0] && f->consequence == FERRY_REFUSE &&
	       !strchr(f->text, '\n');
}

static int get(struct ferry_uffd *u, const struct process *p, const struct variant *v,
	       struct ferry_failure *f)
{
	if (v->adopted)
		return WITH_FAULTS(ferry_uffd_adopt(u, p->pid, f));
	return WITH_FAULTS(ferry_uffd_attach(u, p->pid, UFFD_FEATURE_THREAD_ID, f));
}

/* A userfaultfd of the process, which has one by now. */
static const char *use(struct ferry_uffd *u, const struct process *p, const struct facts *before,
		       char *why)
{
	struct ferry_hva at = {(uintptr_t)p->memory};
	const char *wrong;
	int rc;

	rc = ferry_uffd_register(u, at, PAGE);
	if (!rc)
		rc = ferry_uffd_unregister(u, at, PAGE);
	if (rc < 0 && !was_killed(p))
		return "it is no use";
	wrong = was_killed(p) ? NULL : unharmed(p, before, 1);
	if (wrong)
		return wrong;
	rc = WITH_FAULTS(ferry_uffd_release(u));
	if (rc < 0)
		snprintf(why, 256, "release: %s", strerror(-rc));
	return was_killed(p) ? NULL : unharmed(p, before, rc < 0);
}

static enum fault_outcome take(const struct process *p, const struct variant *v,
			       const struct facts *before, char *why)
{
	struct ferry_failure f = {0};
	const char *wrong;
	struct ferry_uffd u;
	int rc = get(&u, p, v, &f);

	if (rc < 0 && !is_told(rc, &f))
		return WRONG("%d, %d, '%.100s'", rc, f.consequence, f.text);
	if (rc == -ESRCH && !was_killed(p))
		return WRONG("it is said to have ended: %.200s", f.text);
	if (!rc)
		wrong = use(&u, p, before, why);
	else
		wrong = was_killed(p) ? NULL : unharmed(p, before, v->adopted);
	if (wrong)
		return WRONG("%s (%d: %.150s)", wrong, rc, rc ? f.text : why);
	if (!rc)
		return why[0] ? FAULT_GIVEN_UP : FAULT_SURVIVED;
	snprintf(why, 256, "%.200s", f.text);
	return FAULT_REFUSED;
}

static enum fault_outcome run(const void *arg, char why[256])
{
	const struct variant *v = arg;
	struct facts before = {0};
	struct ferry_failure f = {0};
	enum fault_outcome outcome;
	struct ferry_uffd u;
	struct process p;

	if (!start(&p, v) || !gets_on(&p, &before))
		return WRONG("the process does not start");
	if (v->adopted) {
		fault_disarm(); /* it has a thread of its own for this */
		if (ferry_uffd_attach(&u, p.pid, UFFD_FEATURE_THREAD_ID, &f) < 0)
			return WRONG("attach: %.200s", f.text);
		ferry_uffd_close(&u);
		fault_rearm();
	}
	outcome = take(&p, v, &before, why);
	if (!end(&p, was_killed(&p)) && outcome != FAULT_WRONG)
		return WRONG("the process has not ended well");
	return outcome;
}

int main(int argc, char **argv)
{
	static const struct variant computes = {0}, waits = {.waits = true},
				    unprivileged = {.waits = true, .unprivileged = true},
				    adopted = {.adopted = true};
	static const struct fault_scenario scenarios[] = {
		{"a process that computes", run, &computes},
		{"one that waits", run, &waits},
		{"one without rights", run, &unprivileged},
		{"one that has a userfaultfd", run, &adopted},
	};

	fault_exempt = true;
	if (geteuid() != 0) {
		printf("SKIP: attaching to others' processes takes root\n");
		return 77;
	}
	return fault_main(argc, argv, scenarios, 4);
}
