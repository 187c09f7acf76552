/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The only program of the virtual machine in which the micro-VM has a /dev/kvm: loads the modules,
 * obeys /commands, a line at a time, and says how each ended. Of one that takes too long it says
 * where its threads are.
 */
#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define MAX_WORDS 32
#define LIMIT_S	  100

static void mount_all(void)
{
	static const char *const what[][2] = {
		{"/proc", "proc"}, {"/dev", "devtmpfs"}, {"/sys", "sysfs"}, {"/tmp", "tmpfs"}};

	for (size_t i = 0; i < sizeof(what) / sizeof(what[0]); i++) {
		mkdir(what[i][0], 0755);
		mount(what[i][1], what[i][0], what[i][1], 0, NULL);
	}
}

static void load(const char *module)
{
	int fd = open(module, O_RDONLY | O_CLOEXEC);

	/* That there is no /dev/kvm then, the commands say. */
	if (fd < 0 || syscall(SYS_finit_module, fd, "", 0) < 0)
		printf("%s: %s\n", module, strerror(errno));
	if (fd >= 0)
		close(fd);
}

static void print_file(const char *path)
{
	char text[4096];
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? 0 : read(fd, text, sizeof(text));

	if (n > 0)
		printf("%s: %.*s\n", path, (int)n, text);
	if (fd >= 0)
		close(fd);
}

/* What every thread is doing: it takes too long. */
static void tell_threads(void)
{
	static const char *const what[] = {"comm", "stat", "syscall", "stack"};
	char path[512];
	glob_t tasks;

	if (glob("/proc/[0-9]*/task/*", 0, NULL, &tasks))
		return;
	for (size_t t = 0; t < tasks.gl_pathc; t++) {
		for (size_t i = 0; i < sizeof(what) / sizeof(what[0]); i++) {
			snprintf(path, sizeof(path), "%s/%s", tasks.gl_pathv[t], what[i]);
			print_file(path);
		}
	}
	globfree(&tasks);
}

static int wait_for(pid_t child)
{
	int status;

	for (int i = 0; i < 10 * LIMIT_S; i++) {
		if (waitpid(child, &status, WNOHANG) == child)
			return status;
		usleep(100000);
	}
	printf("nothing for %d s\n", LIMIT_S);
	tell_threads();
	kill(child, SIGKILL);
	waitpid(child, &status, 0);
	return status;
}

static int run(char *line)
{
	char *words[MAX_WORDS + 1] = {0};
	int n = 0;
	pid_t child;

	for (char *w = strtok(line, " "); w && n < MAX_WORDS; w = strtok(NULL, " "))
		words[n++] = w;
	child = fork();
	if (child == 0) {
		execv(words[0], words);
		_exit(127);
	}
	return child > 0 ? wait_for(child) : -1;
}

int main(void)
{
	char line[1024];
	FILE *commands;
	int console;

	mount_all();
	console = open("/dev/console", O_RDWR);
	for (int fd = 0; console >= 0 && fd <= 2; fd++)
		dup2(console, fd);
	setvbuf(stdout, NULL, _IONBF, 0);
	setenv("LD_LIBRARY_PATH", "/lib", 1);
	load("/irqbypass.ko");
	load("/kvm.ko");
	load("/kvm-amd.ko");
	commands = fopen("/commands", "re");
	while (commands && fgets(line, sizeof(line), commands)) {
		line[strcspn(line, "\n")] = '\0';
		printf("RUN %s\n", line);
		printf("RESULT %d\n", run(line));
	}
	reboot(RB_POWER_OFF);
	return 1;
}
