/* SPDX-License-Identifier: Apache-2.0 */
#include "base/still.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/util.h"

#define SETTLE_MS     2
#define SETTLE_ROUNDS 10

/* Reads a small file of /proc or /sys as text. */
static int read_text(const char *path, char *out, size_t size)
{
	_cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : read(fd, out, size - 1);

	if (n < 0)
		return -errno;
	out[n] = '\0';
	return 0;
}

/* Return: 1 or 0; a negative errno when that can't be told this time. */
static int is_frozen(pid_t pid)
{
	char path[4300], text[4096], *group, *end;
	int rc;

	snprintf(path, sizeof(path), "/proc/%d/cgroup", (int)pid);
	rc = read_text(path, text, sizeof(text));
	if (rc < 0)
		return ferry_is_shortage(rc) ? rc : 0;
	group = strstr(text, "0::/");
	if (!group)
		return 0;
	group += 3;
	end = strchr(group, '\n');
	if (end)
		*end = '\0';
	snprintf(path, sizeof(path), "/sys/fs/cgroup%s/cgroup.events", group);
	rc = read_text(path, text, sizeof(text));
	if (rc < 0)
		return ferry_is_shortage(rc) ? rc : 0;
	return strstr(text, "frozen 1") != NULL;
}

static DIR *open_tasks(pid_t pid)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/task", (int)pid);
	return opendir(path);
}

/* Return: whether there is one more; @rc: when that can't be told. */
static bool next_task(DIR *tasks, struct dirent **e, int *rc)
{
	do {
		errno = 0;
		*e = readdir(tasks);
	} while (*e && (*e)->d_name[0] == '.');
	/* A process that has ended has none. */
	if (!*e && errno && errno != ENOENT && errno != ESRCH && !*rc)
		*rc = -errno;
	return *e;
}

int ferry_still_check(pid_t pid)
{
	DIR *tasks = open_tasks(pid);
	char path[300], text[512];
	bool running = false;
	struct dirent *e;
	int rc = 0;

	if (!tasks)
		return errno == ENOENT ? -ESRCH : -errno;
	while (!rc && next_task(tasks, &e, &rc)) {
		char *state;

		snprintf(path, sizeof(path), "/proc/%d/task/%s/stat", (int)pid, e->d_name);
		rc = read_text(path, text, sizeof(text));
		if (rc == -ENOENT || rc == -ESRCH) {
			rc = 0; /* it has ended */
			continue;
		}
		state = rc ? NULL : strrchr(text, ')');
		running |= state && !strchr("TtZX", state[2]);
	}
	closedir(tasks);
	if (rc < 0)
		return rc;
	return running ? is_frozen(pid) : 1;
}

/* FNV-1a */
static uint64_t add(uint64_t sum, const char *text)
{
	for (; *text; text++)
		sum = (sum ^ (uint8_t)*text) * UINT64_C(0x100000001b3);
	return sum;
}

/* Errors: a thread that is there could not be looked at. One that has ended is left out. */
static int add_thread(pid_t pid, const char *thread, uint64_t *sum)
{
	_cleanup_fclose_ FILE *file = NULL;
	char path[300], line[256];

	snprintf(path, sizeof(path), "/proc/%d/task/%s/status", (int)pid, thread);
	file = fopen(path, "re");
	if (!file)
		return errno == ENOENT || errno == ESRCH ? 0 : -errno;
	while (fgets(line, sizeof(line), file))
		if (!strncmp(line, "Pid:", 4) || strstr(line, "_ctxt_switches:"))
			*sum = add(*sum, line);
	if (ferror(file) && errno != ESRCH)
		return -errno;
	return 0;
}

/* Errors: as above; @out is written all the same. */
static int read_mark(pid_t pid, uint64_t seed, uint64_t *out)
{
	DIR *tasks = open_tasks(pid);
	struct dirent *e;
	int rc = tasks || errno == ENOENT || errno == ESRCH ? 0 : -errno;

	*out = seed ^ UINT64_C(0xcbf29ce484222325);
	while (tasks && next_task(tasks, &e, &rc)) {
		int one = add_thread(pid, e->d_name, out);

		rc = rc ? rc : one;
	}
	if (tasks)
		closedir(tasks);
	return rc;
}

uint64_t ferry_still_mark(pid_t pid, uint64_t seed)
{
	uint64_t mark;

	(void)read_mark(pid, seed, &mark);
	return mark;
}

static bool has_ended(const struct ferry_still *s)
{
	struct pollfd p = {.fd = s->pidfd, .events = POLLIN};

	return poll(&p, 1, 0) > 0;
}

int ferry_still_open(struct ferry_still *s, pid_t pid)
{
	const struct timespec pause = {.tv_nsec = SETTLE_MS * FERRY_NS_PER_MS};
	int rc;

	*s = (struct ferry_still){.pid = pid, .pidfd = (int)syscall(SYS_pidfd_open, pid, 0)};
	if (s->pidfd < 0)
		return -errno;
	/* It is called stopped a moment before it has left the processor. */
	for (int i = 0; i < SETTLE_ROUNDS; i++) {
		rc = read_mark(pid, 0, &s->mark);
		if (rc < 0)
			break;
		nanosleep(&pause, NULL);
		rc = ferry_still_look(s);
		if (rc)
			break;
	}
	if (rc == 1)
		return 0;
	ferry_still_close(s);
	return rc ? rc : -EBUSY;
}

int ferry_still_look(const struct ferry_still *s)
{
	uint64_t mark;
	int rc = ferry_still_check(s->pid), marked = read_mark(s->pid, 0, &mark);

	/* What it looks like while it ends is no matter. */
	if (has_ended(s))
		return -ESRCH;
	if (rc < 0 || marked < 0)
		return rc < 0 ? rc : marked;
	return rc && mark == s->mark;
}

void ferry_still_close(struct ferry_still *s)
{
	ferry_close(s->pidfd);
	*s = FERRY_STILL_NONE;
}
