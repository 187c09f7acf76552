// SPDX-License-Identifier: Apache-2.0
/*
 * The parent holds no descriptor of the guest's and needs none: the userfaultfd that keeps missing
 * pages missing is open in the guest's own process, where the next child finds it.
 *
 * It reads nothing but signals and how its child has ended. The capabilities that a child may need
 * are not in effect in it.
 */
#include "tools/supervise.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "tools/isolation.h"
#include "tools/json.h"

/* One that is killed at once every time would keep a processor busy. */
#define PAUSE_MIN_MS  1u
#define PAUSE_MAX_MS  1000u
#define STEADY_MS     5000u /* who lived for so long starts again at once */

static void tell(const struct command *c, const struct options *o, int sig)
{
	char text[128];

	snprintf(text, sizeof(text), "was ended by signal %d (%s); it is started again", sig,
		 strsignal(sig));
	fprintf(stderr, "pageferry %s: %s\n", c->name, text);
	if (o->json)
		json_print_restarted(c->name, sig);
}

/* There is no command to tell of it. */
static int give_up(const struct command *c, const struct options *o, const char *why)
{
	char text[FERRY_FAILURE_TEXT_MAX + 100];
	bool waits;
	int status;

	/* Who may look at another user's guest is asked for the last time. */
	(void)isolation_regain(NULL);
	waits = c->guest_waits(o);
	status = waits ? EXIT_WAITS : EXIT_FAILED;
	snprintf(text, sizeof(text), "%s%s", why,
		 waits ? "; what waits for pages waits on: run the same command again" : "");
	fprintf(stderr, "pageferry %s: %s\n", c->name, text);
	if (o->json)
		json_print_usage_error(c->name, text, status);
	return status;
}

static int be_child(const struct command *c, const struct options *o, const sigset_t *before)
{
	struct ferry_failure f = {0};

	sigprocmask(SIG_SETMASK, before, NULL);
	return isolation_regain(&f) < 0 ? give_up(c, o, f.text) : c->run(o);
}

/* No process can be started now; it is tried until one can. Return: whether it goes on. */
static bool hold_out(const struct command *c, int err, const sigset_t *set)
{
	const struct timespec pause = {.tv_sec = 1};
	int sig;

	fprintf(stderr, "pageferry %s: cannot start a process: %s; it is tried again\n", c->name,
		strerror(err));
	do
		sig = sigtimedwait(set, NULL, &pause);
	while (sig == SIGCHLD);
	return sig < 0;
}

/* The child's end; what is asked of us meanwhile is passed on. */
static int await_child(pid_t pid, const sigset_t *set)
{
	int status, sig;

	while (waitpid(pid, &status, WNOHANG) != pid) {
		if (!sigwait(set, &sig) && sig != SIGCHLD)
			kill(pid, sig);
	}
	return status;
}

int supervise(const struct command *c, const struct options *o)
{
	struct options child = *o;
	unsigned int pause_ms = PAUSE_MIN_MS;
	struct ferry_failure f = {0};
	sigset_t set, before;

	if (isolation_supervise(c->may_need, &f) < 0)
		return give_up(c, o, f.text);
	child.recover_any = !o->recover && !o->resume;
	sigemptyset(&set);
	sigaddset(&set, SIGCHLD);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGTERM);
	sigprocmask(SIG_BLOCK, &set, &before);
	signal(SIGHUP, SIG_IGN);
	for (;;) {
		uint64_t begin_ns = ferry_now_ns();
		pid_t pid = fork();
		int status;

		if (pid < 0 && hold_out(c, errno, &set))
			continue;
		if (pid < 0)
			return give_up(c, o,
				       "stopped by the user while no process could be started");
		if (!pid)
			return be_child(c, &child, &before);
		status = await_child(pid, &set);
		if (!WIFSIGNALED(status))
			return WEXITSTATUS(status);
		tell(c, o, WTERMSIG(status));
		if (ferry_now_ns() - begin_ns > STEADY_MS * (uint64_t)FERRY_NS_PER_MS)
			pause_ms = PAUSE_MIN_MS;
		usleep(pause_ms * 1000);
		pause_ms = pause_ms * 4 < PAUSE_MAX_MS ? pause_ms * 4 : PAUSE_MAX_MS;
		/* It may have got further than to where there is nothing to resume yet. */
		child.recover = child.resume = false;
		child.recover_any = true;
	}
}
