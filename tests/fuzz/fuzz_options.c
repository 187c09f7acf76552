/* SPDX-License-Identifier: Apache-2.0 */
/* What a file of options (--config) may hold, for a command with an option of every kind. */
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "fuzz.h"
#include "tools/options.h"

#define MAX_COUNT 16u

static const char *const choices[] = {"on", "off", "perhaps", NULL};

static const struct option_def defs[] = {
	{.name = "config", .arg = "FILE", .kind = OPTION_CONFIG, OPTION_AT(config)},
	{.name = "once", .kind = OPTION_FLAG, OPTION_AT(once)},
	{.name = "socket", .arg = "PATH", .kind = OPTION_TEXT, OPTION_AT(socket)},
	{.name = "match", .arg = "TEXT", .kind = OPTION_TEXTS, OPTION_AT(matches)},
	{.name = "pid", .letter = 'p', .arg = "PID", .kind = OPTION_PID, OPTION_AT(pid)},
	{.name = "bulk", .arg = "N", .kind = OPTION_COUNT, .max = MAX_COUNT, OPTION_AT(n_bulk)},
	{.name = "checksum",
	 .arg = "HOW",
	 .kind = OPTION_CHOICE,
	 .choices = choices,
	 OPTION_AT(checksum)},
	{.name = "max-rate", .arg = "BYTES/S", .kind = OPTION_RATE, OPTION_AT(max_rate)},
	{.name = "listen", .arg = "ADDR", .kind = OPTION_ADDR_LISTEN, OPTION_AT(listen)},
	{.name = "to", .arg = "ADDR", .kind = OPTION_ADDR_DIAL, OPTION_AT(to)},
	{.name = "FILE", .kind = OPTION_OPERAND, OPTION_AT(file)},
	OPTIONS_COMMON,
};

static bool is_whole(const struct option_addr *a)
{
	if (!a->given)
		return true;
	return memchr(a->addr.host, 0, sizeof(a->addr.host)) &&
	       memchr(a->addr.port, 0, sizeof(a->addr.port)) &&
	       memchr(a->addr.path, 0, sizeof(a->addr.path));
}

static void check(const struct options *o)
{
	const char *end = o->config + 65536;

	MUST(!o->help && !o->version && !o->file && o->config);
	MUST(o->pid >= 0 && o->n_bulk <= MAX_COUNT && o->checksum <= 3);
	MUST(o->matches.n <= FERRY_MAX_REGIONS && is_whole(&o->listen) && is_whole(&o->to));
	MUST(!o->to.given || o->to.addr.is_unix || o->to.addr.host[0]);
	MUST(!o->socket || (o->socket[0] && o->socket > o->config && o->socket < end));
	for (uint32_t i = 0; i < o->matches.n; i++)
		MUST(o->matches.v[i][0] && !strchr(o->matches.v[i], '\n'));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static char path[64];
	static int fd = -1;
	char *argv[] = {"x", "--config", path, NULL};
	struct ferry_failure f = {0};
	static struct options o;

	if (fd < 0) {
		fd = memfd_create("config", MFD_CLOEXEC);
		MUST(fd >= 0);
		snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	}
	MUST(!ftruncate(fd, 0) && pwrite(fd, data, size, 0) == (ssize_t)size);
	if (!options_parse(defs, 3, argv, &o, &f))
		check(&o);
	else
		MUST(f.err == -EINVAL && f.text[0] && memchr(f.text, 0, sizeof(f.text)));
	return 0;
}
