/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The only program of the virtual machine in which the micro-VM has a /dev/kvm: loads the modules,
 * obeys /commands, a line at a time, and says how each ended.
 */
#include <errno.h>
#include <fcntl.h>
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

static int run(char *line)
{
	char *words[MAX_WORDS + 1] = {0};
	int n = 0, status = -1;
	pid_t child;

	for (char *w = strtok(line, " "); w && n < MAX_WORDS; w = strtok(NULL, " "))
		words[n++] = w;
	child = fork();
	if (child == 0) {
		execv(words[0], words);
		_exit(127);
	}
	if (child > 0)
		waitpid(child, &status, 0);
	return status;
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
