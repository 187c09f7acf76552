/* SPDX-License-Identifier: Apache-2.0 */
#include "driver.h"

#include <dirent.h>
#include <netdb.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define HANG_S	 240
#define SETTLE_MS 5000
#define MOST_OF_EACH 100000

/* What a child tells; shared with it. */
struct told {
	uint64_t counts[FAULT_N_CALLS];
	enum fault_outcome outcome;
	bool struck;
	uintptr_t at;
	uint64_t ms;
	char why[256];
};

struct totals {
	unsigned int n, struck, outcomes[FAULT_WRONG + 1];
};

static struct told *told;

static size_t entries(const char *path)
{
	DIR *d = opendir(path);
	size_t n = 0;

	while (d && readdir(d))
		n++;
	if (d)
		closedir(d);
	return n;
}

static uint64_t now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

/* A thread that was joined may be seen for a moment longer. */
static bool settles(const char *path, size_t wanted)
{
	for (int i = 0; i < SETTLE_MS; i++) {
		if (entries(path) == wanted)
			return true;
		usleep(1000);
	}
	return false;
}

static void child(const struct fault_scenario *s, enum fault_call call, uint64_t nth, int error)
{
	size_t fds = entries("/proc/self/fd"), n_kept;
	uintptr_t at = 0;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	alarm(HANG_S);
	fault_arm(call, nth, error);
	told->ms = now_ms();
	told->outcome = s->run(s->arg, told->why);
	told->ms = now_ms() - told->ms;
	fault_disarm();
	told->struck = fault_has_struck();
	told->at = fault_struck_at();
	for (int i = 0; i < FAULT_N_CALLS; i++)
		told->counts[i] = fault_count(i);
	if (told->outcome == FAULT_WRONG)
		_exit(0);
	n_kept = fault_kept(&at);
	if (n_kept)
		snprintf(told->why, sizeof(told->why),
			 "%zu allocations are left, the first made at +%#zx", n_kept, (size_t)at);
	else if (!settles("/proc/self/fd", fds))
		snprintf(told->why, sizeof(told->why), "descriptors are left");
	else if (!settles("/proc/self/task", 3)) /* ".", ".." and this thread */
		snprintf(told->why, sizeof(told->why), "threads are left");
	else
		_exit(0);
	told->outcome = FAULT_WRONG;
	_exit(0);
}

static const char *error_name(enum fault_call call, int error)
{
	if (error == FAULT_SHORT)
		return "short";
	if (error == FAULT_KILL)
		return "killed";
	if (error == FAULT_CUT)
		return "cut";
	return call == FAULT_getaddrinfo || call == FAULT_getnameinfo ? gai_strerror(error)
								      : strerrorname_np(error);
}

/* Return: whether the child came to its end. */
static bool run_one(const struct fault_scenario *s, enum fault_call call, uint64_t nth, int error)
{
	int status;
	pid_t pid;

	memset(told, 0, sizeof(*told));
	fflush(NULL);
	pid = fork();
	if (!pid)
		child(s, call, nth, error);
	if (pid < 0 || waitpid(pid, &status, 0) != pid) {
		snprintf(told->why, sizeof(told->why), "fork");
	} else if (WIFSIGNALED(status)) {
		snprintf(told->why, sizeof(told->why), "%s",
			 WTERMSIG(status) == SIGALRM ? "it hangs" : strsignal(WTERMSIG(status)));
	} else if (WEXITSTATUS(status)) {
		snprintf(told->why, sizeof(told->why), "exit status %d", WEXITSTATUS(status));
	} else {
		return true;
	}
	told->outcome = FAULT_WRONG;
	return false;
}

static uint64_t n_errors(enum fault_call call)
{
	uint64_t n = 0;

	while (n < FAULT_MAX_ERRORS && fault_calls[call].errors[n])
		n++;
	return n;
}

struct options {
	uint64_t cap;
	const char *only;
	bool list;
};

/* One way to fail: of a call's @count occurrences @n are tried, from @skew/16 of the first stretch on. */
struct way {
	enum fault_call call;
	int error;
	uint64_t count, n, skew;
};

static void try_way(const struct fault_scenario *s, const struct way *w, const struct options *o,
		    struct totals *t)
{
	for (uint64_t i = 0; i < w->n; i++) {
		uint64_t nth = 1 + (16 * i + w->skew) * w->count / (16 * w->n);
		char line[128];

		snprintf(line, sizeof(line), "%s: %s %s %llu", s->name, fault_calls[w->call].name,
			 error_name(w->call, w->error), (unsigned long long)nth);
		if (o->only && !strstr(line, o->only))
			continue;
		run_one(s, w->call, nth, w->error);
		t->n++;
		t->struck += told->struck;
		t->outcomes[told->outcome]++;
		if (o->list || told->outcome == FAULT_WRONG)
			printf("%s%s (at +%#zx, %llu ms) %s\n",
			       told->outcome == FAULT_WRONG ? "WRONG: " : "", line, (size_t)told->at,
			       (unsigned long long)told->ms, told->why);
	}
}

static unsigned int find_ways(struct way *ways, const uint64_t *counts)
{
	unsigned int n = 0;

	for (int c = 0; c < FAULT_N_CALLS; c++)
		for (uint64_t e = 0; counts[c] && e < n_errors(c); e++, n++)
			ways[n] = (struct way){c, fault_calls[c].errors[e], counts[c], counts[c], 0};
	return n;
}

static uint64_t sum(const struct way *ways, unsigned int n, uint64_t most_of_each)
{
	uint64_t total = 0;

	for (unsigned int i = 0; i < n; i++)
		total += ways[i].count < most_of_each ? ways[i].count : most_of_each;
	return total;
}

/* As many of each as the cap allows: all of those that are rare. */
static void limit(struct way *ways, unsigned int n, uint64_t cap)
{
	uint64_t most = 0;

	while (most < MOST_OF_EACH && sum(ways, n, most + 1) <= cap)
		most++;
	for (unsigned int i = 0; i < n; i++) {
		ways[i].n = ways[i].count < most ? ways[i].count : most;
		if (!most)
			ways[i].n = (i + 1) * cap / n > i * cap / n;
		if (ways[i].n < ways[i].count)
			ways[i].skew = 7 * i % 16;
	}
}

/* Return: whether all was well. */
static bool run_scenario(const struct fault_scenario *s, const struct options *o)
{
	struct way ways[FAULT_N_CALLS * FAULT_MAX_ERRORS];
	struct totals t = {0};
	uint64_t total;
	unsigned int n;

	if (!run_one(s, 0, 0, 0) || told->outcome != FAULT_SURVIVED) {
		printf("WRONG: %s: without any failure: %s\n", s->name, told->why);
		return false;
	}
	n = find_ways(ways, told->counts);
	total = sum(ways, n, UINT64_MAX);
	if (o->cap && total > o->cap)
		limit(ways, n, o->cap);
	for (unsigned int i = 0; i < n; i++)
		try_way(s, &ways[i], o, &t);
	printf("%s: %llu failures are possible, of %u calls and errors; %u tried, %u struck: %u "
	       "survived, %u refused, %u given up, %u wrong\n",
	       s->name, (unsigned long long)total, n, t.n, t.struck, t.outcomes[FAULT_SURVIVED],
	       t.outcomes[FAULT_REFUSED], t.outcomes[FAULT_GIVEN_UP], t.outcomes[FAULT_WRONG]);
	return !t.outcomes[FAULT_WRONG] && (o->only || t.struck);
}

int fault_main(int argc, char **argv, const struct fault_scenario *scenarios, int n)
{
	struct options o = {0};
	bool ok = true;

	fault_exempt = true;
	for (int i = 1; i < argc; i++) {
		if (!strcmp(argv[i], "--list"))
			o.list = true;
		else if (!strcmp(argv[i], "--cap") && i + 1 < argc)
			o.cap = strtoull(argv[++i], NULL, 10);
		else if (!strcmp(argv[i], "--only") && i + 1 < argc)
			o.only = argv[++i];
		else
			return 2;
	}
	told = mmap(NULL, sizeof(*told), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (told == MAP_FAILED)
		return 1;
	for (int i = 0; i < n; i++)
		ok &= run_scenario(&scenarios[i], &o);
	return ok ? 0 : 1;
}
