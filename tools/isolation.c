// SPDX-License-Identifier: Apache-2.0
#include "tools/isolation.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/capability.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/util.h"

#define NICE_LIMIT 40	  /* any priority: the limit is 20 - nice */
#define FDS_LIMIT  65536u /* of the largest number of sessions, with TLS */

static const struct {
	unsigned int need;
	cap_value_t cap;
} kept[] = {
	{ISOLATION_PTRACE, CAP_SYS_PTRACE}, {ISOLATION_PROC, CAP_DAC_READ_SEARCH},
	{ISOLATION_SECCOMP, CAP_SYS_ADMIN}, {ISOLATION_SOCKET, CAP_DAC_OVERRIDE},
	{ISOLATION_KILL, CAP_KILL},	    {ISOLATION_BIND, CAP_NET_BIND_SERVICE},
	{ISOLATION_LARGE, CAP_SYS_NICE},
};

static bool is_needed(unsigned int needs, cap_value_t cap)
{
	for (size_t i = 0; i < FERRY_ARRAY_SIZE(kept); i++) {
		if (kept[i].cap == cap)
			return needs & kept[i].need;
	}
	return false;
}

static bool has(cap_t caps, cap_value_t cap, cap_flag_t flag)
{
	cap_flag_value_t value = CAP_CLEAR;

	return !cap_get_flag(caps, cap, flag, &value) && value == CAP_SET;
}

/* Takes CAP_SETPCAP; without it, PR_SET_NO_NEW_PRIVS does the same by itself. */
static void drop_bounds(unsigned int needs)
{
	for (cap_value_t cap = 0; cap < cap_max_bits(); cap++) {
		if (!is_needed(needs, cap))
			cap_drop_bound(cap);
	}
}

/* @in_effect: or else there to be taken, by us or by a child. */
static int narrow(unsigned int needs, bool in_effect, struct ferry_failure *f)
{
	cap_t now = cap_get_proc(), then = cap_init();
	int rc = 0;

	if (!now || !then) {
		rc = -ENOMEM;
		goto out;
	}
	for (size_t i = 0; i < FERRY_ARRAY_SIZE(kept); i++) {
		cap_value_t cap = kept[i].cap;

		if (!(needs & kept[i].need) || !has(now, cap, CAP_PERMITTED))
			continue;
		cap_set_flag(then, CAP_PERMITTED, 1, &cap, CAP_SET);
		if (in_effect)
			cap_set_flag(then, CAP_EFFECTIVE, 1, &cap, CAP_SET);
	}
	drop_bounds(needs);
	cap_reset_ambient();
	if (cap_set_proc(then) < 0)
		rc = -errno;
out:
	cap_free(now);
	cap_free(then);
	return rc < 0 ? ferry_fail_errno(f, FERRY_REFUSE, rc, "cannot give up capabilities") : 0;
}

int isolation_narrow(unsigned int needs, struct ferry_failure *f)
{
	return narrow(needs, true, f);
}

/* As high as we may: to what there is no limit of, or else to what the administrator allows. */
static void raise_limit(__rlimit_resource_t resource, rlim_t wanted)
{
	struct rlimit limit = {wanted, wanted};

	if (!setrlimit(resource, &limit) || getrlimit(resource, &limit) < 0)
		return;
	limit.rlim_cur = limit.rlim_max;
	setrlimit(resource, &limit);
}

/* Enough for as many peers as we let in, and no more: what is over is refused by our own limits. */
static void limit_descriptors(void)
{
	struct rlimit limit;

	if (getrlimit(RLIMIT_NOFILE, &limit) < 0)
		return;
	limit.rlim_cur = limit.rlim_max = FERRY_MIN(limit.rlim_max, (rlim_t)FDS_LIMIT);
	setrlimit(RLIMIT_NOFILE, &limit);
}

static int enter(unsigned int needs, bool in_effect, struct ferry_failure *f)
{
	static const struct rlimit none = {0, 0};

	setrlimit(RLIMIT_CORE, &none);
	limit_descriptors();
	raise_limit(RLIMIT_MEMLOCK, RLIM_INFINITY);
	raise_limit(RLIMIT_NICE, NICE_LIMIT);
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
		return ferry_fail_errno(f, FERRY_REFUSE, -errno, "PR_SET_NO_NEW_PRIVS");
	if (prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) < 0)
		return ferry_fail_errno(f, FERRY_REFUSE, -errno, "PR_SET_DUMPABLE");
	return narrow(needs, in_effect, f);
}

int isolation_enter(unsigned int needs, struct ferry_failure *f)
{
	return enter(needs, true, f);
}

int isolation_supervise(unsigned int needs, struct ferry_failure *f)
{
	return enter(needs, false, f);
}

int isolation_regain(struct ferry_failure *f)
{
	cap_t caps = cap_get_proc();
	int rc = caps ? 0 : -ENOMEM;

	for (size_t i = 0; i < FERRY_ARRAY_SIZE(kept) && !rc; i++) {
		cap_value_t cap = kept[i].cap;

		if (has(caps, cap, CAP_PERMITTED))
			cap_set_flag(caps, CAP_EFFECTIVE, 1, &cap, CAP_SET);
	}
	if (!rc && cap_set_proc(caps) < 0)
		rc = -errno;
	cap_free(caps);
	return rc < 0 ? ferry_fail_errno(f, FERRY_REFUSE, rc, "cannot take up capabilities") : 0;
}

/* Asked with the capabilities that override permissions out of effect for a moment. */
unsigned int isolation_need_of_socket(const char *path)
{
	cap_value_t override[] = {CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH};
	cap_t before = cap_get_proc(), asking = before ? cap_dup(before) : NULL;
	unsigned int need = ISOLATION_NOTHING;

	if (asking && !cap_set_flag(asking, CAP_EFFECTIVE, 2, override, CAP_CLEAR) &&
	    !cap_set_proc(asking)) {
		if (faccessat(AT_FDCWD, path, W_OK, AT_EACCESS) < 0 && errno == EACCES)
			need = ISOLATION_SOCKET;
		if (cap_set_proc(before) < 0)
			need = ISOLATION_NOTHING;
	}
	cap_free(asking);
	cap_free(before);
	return need;
}

static bool has_filter(pid_t pid, const char *thread)
{
	_cleanup_fclose_ FILE *file = NULL;
	char path[300], line[200];
	int mode = 0;

	snprintf(path, sizeof(path), "/proc/%d/task/%s/status", (int)pid, thread);
	file = fopen(path, "re");
	while (file && fgets(line, sizeof(line), file)) {
		if (sscanf(line, "Seccomp: %d", &mode) == 1)
			break;
	}
	return mode;
}

unsigned int isolation_need_of_process(pid_t pid)
{
	unsigned int needs = ISOLATION_PTRACE | ISOLATION_PROC;
	struct dirent *e;
	char path[64];
	DIR *tasks;

	snprintf(path, sizeof(path), "/proc/%d/task", (int)pid);
	tasks = opendir(path);
	while (tasks && (e = readdir(tasks))) {
		if (e->d_name[0] != '.' && has_filter(pid, e->d_name))
			needs |= ISOLATION_SECCOMP;
	}
	if (tasks)
		closedir(tasks);
	return needs;
}

pid_t isolation_process_behind(const char *path)
{
	_cleanup_close_ int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	struct sockaddr_un a = {.sun_family = AF_UNIX};
	struct ucred peer = {0};
	socklen_t len = sizeof(peer);

	if (!strncmp(path, "unix:", 5))
		path += 5;
	snprintf(a.sun_path, sizeof(a.sun_path), "%s", path);
	if (fd < 0 || connect(fd, (struct sockaddr *)&a, sizeof(a)) < 0 ||
	    getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &len) < 0)
		return 0;
	return peer.pid;
}
