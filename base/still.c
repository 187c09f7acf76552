/* SPDX-License-Identifier: Apache-2.0 */
#include "base/still.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"

/* Reads a small file of /proc or /sys as text. */
static bool read_text(const char *path, char *out, size_t size)
{
	_cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : read(fd, out, size - 1);

	if (n < 0)
		return false;
	out[n] = '\0';
	return true;
}

static bool is_frozen(pid_t pid)
{
	char path[4300], text[4096], *group, *end;

	snprintf(path, sizeof(path), "/proc/%d/cgroup", (int)pid);
	if (!read_text(path, text, sizeof(text)))
		return false;
	group = strstr(text, "0::/");
	if (!group)
		return false;
	group += 3;
	end = strchr(group, '\n');
	if (end)
		*end = '\0';
	snprintf(path, sizeof(path), "/sys/fs/cgroup%s/cgroup.events", group);
	return read_text(path, text, sizeof(text)) && strstr(text, "frozen 1");
}

static DIR *open_tasks(pid_t pid)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/task", (int)pid);
	return opendir(path);
}

int ferry_still_check(pid_t pid)
{
	DIR *tasks = open_tasks(pid);
	char path[300], text[512];
	bool running = false;
	struct dirent *e;

	if (!tasks)
		return -ESRCH;
	while ((e = readdir(tasks))) {
		char *state;

		if (e->d_name[0] == '.')
			continue;
		snprintf(path, sizeof(path), "/proc/%d/task/%s/stat", (int)pid, e->d_name);
		if (!read_text(path, text, sizeof(text)))
			continue;
		state = strrchr(text, ')');
		running |= state && !strchr("TtZX", state[2]);
	}
	closedir(tasks);
	return !running || is_frozen(pid);
}

/* FNV-1a */
static uint64_t add(uint64_t sum, const char *text)
{
	for (; *text; text++)
		sum = (sum ^ (uint8_t)*text) * UINT64_C(0x100000001b3);
	return sum;
}

uint64_t ferry_still_mark(pid_t pid, uint64_t seed)
{
	uint64_t sum = seed ^ UINT64_C(0xcbf29ce484222325);
	DIR *tasks = open_tasks(pid);
	struct dirent *e;
	char path[300];

	while (tasks && (e = readdir(tasks))) {
		_cleanup_fclose_ FILE *file = NULL;
		char line[256];

		snprintf(path, sizeof(path), "/proc/%d/task/%s/status", (int)pid, e->d_name);
		file = e->d_name[0] == '.' ? NULL : fopen(path, "re");
		while (file && fgets(line, sizeof(line), file))
			if (!strncmp(line, "Pid:", 4) || strstr(line, "_ctxt_switches:"))
				sum = add(sum, line);
	}
	if (tasks)
		closedir(tasks);
	return sum;
}
