/* SPDX-License-Identifier: Apache-2.0 */
#include "monitor.h"

#include <errno.h>
#include <pageferry.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "snapshot.h"

struct monitor {
	const struct machine_config *config;
	FILE *out;
	struct machine *machine;
	struct machine_state state; /* of the stopped guest */
	bool is_stopped;
	struct pageferry_server *server; /* while we are the source */
	struct pageferry_lazy *lazy;	 /* while we are the target */
	int handler[2];	   /* owned: what keeps a restored guest's pages coming; -1 for none */
	uint64_t begun_ns; /* the take */
	char why[CPU_WHY_MAX];
};

struct command {
	const char *name;
	int (*run)(struct monitor *m, const char *arg);
};

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

__attribute__((format(printf, 2, 3))) static int ok(struct monitor *m, const char *fmt, ...)
{
	va_list ap;

	fputs("ok", m->out);
	va_start(ap, fmt);
	vfprintf(m->out, fmt, ap);
	va_end(ap);
	fputc('\n', m->out);
	return 0;
}

static int error(struct monitor *m, const char *why)
{
	fprintf(m->out, "error: %s\n", why);
	return -1;
}

/* Numbers by bucket, and the end of the line. */
static void put_counts(FILE *out, const uint64_t *n)
{
	for (int i = 0; i < MICROVM_BUCKETS; i++)
		fprintf(out, "%s%llu", i ? "," : "", (unsigned long long)n[i]);
	fputc('\n', out);
}

static int make_machine(struct monitor *m)
{
	if (m->machine)
		return error(m, "there is a machine already");
	return machine_new(&m->machine, m->config, m->why) < 0 ? error(m, m->why) : 0;
}

/* --- the guest ---------------------------------------------------------------------------------
 */

static int do_boot(struct monitor *m, const char *arg)
{
	(void)arg;
	if (make_machine(m) < 0)
		return -1;
	if (machine_boot(m->machine, m->why) < 0)
		return error(m, m->why);
	return ok(m, " cpu=%s", machine_cpu_name(m->machine));
}

static int do_reach(struct monitor *m, const char *arg)
{
	uint64_t from = now_ns();

	if (!m->machine || machine_reach(m->machine, strtoull(arg, NULL, 10), m->why) < 0)
		return error(m, m->machine ? m->why : "no machine");
	return ok(m, " ms=%.1f", (double)(now_ns() - from) / 1e6);
}

static int do_stop(struct monitor *m, const char *arg)
{
	(void)arg;
	if (!m->machine || m->is_stopped)
		return error(m, "no guest runs");
	if (machine_stop(m->machine, &m->state, m->why) < 0)
		return error(m, m->why);
	m->is_stopped = true;
	return ok(m, " rip=%#llx", (unsigned long long)m->state.regs[0].rip);
}

static int do_corrupt(struct monitor *m, const char *arg)
{
	unsigned long long page;
	unsigned int byte;
	unsigned char *at;

	if (!m->machine || !m->is_stopped || m->server)
		return error(m, "stop the guest first, and corrupt before serving");
	if (sscanf(arg, "%llu %u", &page, &byte) != 2 || byte >= MICROVM_PAGE ||
	    machine_page_offset(m->machine, page) >= m->config->bytes)
		return error(m, "corrupt PAGE BYTE");
	at = machine_memory(m->machine);
	at[machine_page_offset(m->machine, page) + byte] ^= 1;
	return ok(m, "%s", "");
}

static int do_verify(struct monitor *m, const char *arg)
{
	struct machine_stats s;
	char bad[CPU_WHY_MAX];

	(void)arg;
	if (!m->machine || machine_verify(m->machine, m->why) < 0)
		return error(m, m->machine ? m->why : "no machine");
	machine_stats(m->machine, &s);
	machine_describe_bad(m->machine, bad, sizeof(bad));
	return ok(m, " bad=%llu%s%s", (unsigned long long)(s.bad_pages + s.bad_steps),
		  bad[0] ? " first: " : "", bad);
}

static int do_stats(struct monitor *m, const char *arg)
{
	struct machine_stats s;

	(void)arg;
	if (!m->machine)
		return error(m, "no machine");
	machine_stats(m->machine, &s);
	fprintf(m->out,
		"ok ops=%llu writes=%llu bad=%llu stall_max_us=%llu stalls_over_100us=%llu "
		"stalls=",
		(unsigned long long)s.ops, (unsigned long long)s.writes,
		(unsigned long long)(s.bad_pages + s.bad_steps), (unsigned long long)s.stall_max_us,
		(unsigned long long)s.stalls_over_100us);
	put_counts(m->out, s.stalls);
	return 0;
}

/* --- moving ------------------------------------------------------------------------------------
 */

static struct pageferry_region region_of(const struct monitor *m)
{
	int fd = machine_memory_fd(m->machine);

	return (struct pageferry_region){.name = "ram",
					 .start = machine_memory(m->machine),
					 .bytes = m->config->bytes,
					 .has_fd = fd >= 0,
					 .fd = fd};
}

static int do_serve(struct monitor *m, const char *arg)
{
	struct pageferry_region region;
	struct pageferry_server_options options = {
		.size = sizeof(options), .listen = arg, .region_size = sizeof(region)};
	char address[PAGEFERRY_ADDRESS_MAX];
	struct pageferry_error e;
	uint64_t from = now_ns();

	if (!m->machine || m->server || m->lazy)
		return error(m, "no guest, or it is moving");
	if (!m->is_stopped && machine_stop(m->machine, &m->state, m->why) < 0)
		return error(m, m->why);
	m->is_stopped = true;
	options.state = &m->state;
	options.state_bytes = sizeof(m->state);
	region = region_of(m);
	if (pageferry_server_new(&m->server, &region, 1, &options, &e) < 0)
		return error(m, e.text);
	if (pageferry_server_address(m->server, address, sizeof(address)) < 0)
		return error(m, "no address");
	return ok(m, " address=%s ms=%.1f", address, (double)(now_ns() - from) / 1e6);
}

static int take(struct monitor *m, const char *from)
{
	struct pageferry_region region = region_of(m);
	struct pageferry_lazy_options options = {.size = sizeof(options),
						 .trace_file = m->config->trace_file,
						 .region_size = sizeof(region)};
	struct pageferry_error e;
	const void *state;
	uint32_t bytes;

	region.has_fd = 0;
	if (pageferry_lazy_new(&m->lazy, &region, 1, &options, &e) < 0 ||
	    pageferry_lazy_connect(m->lazy, from, &e) < 0)
		return error(m, e.text);
	state = pageferry_lazy_state(m->lazy, &bytes);
	if (!state || bytes != sizeof(m->state))
		return error(m, "what is served there is no micro-VM");
	memcpy(&m->state, state, sizeof(m->state));
	if (machine_resume(m->machine, &m->state, m->why) < 0)
		return error(m, m->why);
	m->is_stopped = false;
	return 0;
}

static int come(struct monitor *m, const char *from, bool push)
{
	m->begun_ns = now_ns();
	if (make_machine(m) < 0 || take(m, from) < 0)
		return -1;
	if (push)
		(void)pageferry_lazy_push(m->lazy);
	return ok(m, " cpu=%s ms=%.1f", machine_cpu_name(m->machine),
		  (double)(now_ns() - m->begun_ns) / 1e6);
}

static int do_take(struct monitor *m, const char *arg)
{
	return come(m, arg, true);
}

static int do_lazy(struct monitor *m, const char *arg)
{
	return come(m, arg, false);
}

static int do_push(struct monitor *m, const char *arg)
{
	(void)arg;
	if (!m->lazy || pageferry_lazy_push(m->lazy) < 0)
		return error(m, "nothing comes");
	return ok(m, "%s", "");
}

static int do_faults(struct monitor *m, const char *arg)
{
	struct pageferry_lazy_stats s = {.size = sizeof(s)};

	(void)arg;
	if (!m->lazy || pageferry_lazy_stats(m->lazy, &s) < 0)
		return error(m, "nothing comes");
	return ok(m, " faults=%llu urgent=%llu pushed=%llu traced=%llu",
		  (unsigned long long)s.faults, (unsigned long long)s.pages_urgent,
		  (unsigned long long)s.pages_pushed, (unsigned long long)s.fault_n);
}

static int do_save(struct monitor *m, const char *arg)
{
	if (!m->machine || !m->is_stopped)
		return error(m, "stop the guest first");
	if (snapshot_save(arg, m->machine, m->config->bytes, &m->state, m->why) < 0)
		return error(m, m->why);
	return ok(m, "%s", "");
}

static int do_restore(struct monitor *m, const char *arg)
{
	char file[512], socket[128];
	uint64_t from = now_ns();

	if (sscanf(arg, "%511s %127s", file, socket) != 2)
		return error(m, "restore FILE SOCKET");
	if (make_machine(m) < 0)
		return -1;
	if (snapshot_load_state(file, &m->state, m->why) < 0 ||
	    snapshot_hand_over(socket, m->machine, m->config->bytes, m->handler, m->why) < 0 ||
	    machine_resume(m->machine, &m->state, m->why) < 0)
		return error(m, m->why);
	return ok(m, " cpu=%s ms=%.1f", machine_cpu_name(m->machine),
		  (double)(now_ns() - from) / 1e6);
}

/* Wait for an event of whichever side we are; others are passed over. */
static int await(struct monitor *m, enum pageferry_event wanted, struct pageferry_error *e)
{
	uint64_t end = now_ns() + (uint64_t)machine_patience_ms(m->config) * 1000000u;

	for (;;) {
		uint64_t now = now_ns();
		int left = now >= end ? 0 : (int)((end - now) / 1000000u) + 1;
		int event = m->lazy ? pageferry_lazy_wait(m->lazy, left, e)
				    : pageferry_server_wait(m->server, left, e);

		if (event == (int)wanted)
			return 0;
		if (event < 0 || event == PAGEFERRY_FAILED)
			return error(m, e->text);
		if (event == PAGEFERRY_NOTHING)
			return error(m, "it did not happen in time");
	}
}

static int do_lost(struct monitor *m, const char *arg)
{
	struct pageferry_error e = {0};

	(void)arg;
	if (!m->lazy && !m->server)
		return error(m, "nothing moves");
	return await(m, PAGEFERRY_LINK_LOST, &e) < 0 ? -1 : ok(m, " why=%s", e.text);
}

static int complete_target(struct monitor *m)
{
	struct pageferry_lazy_stats s = {.size = sizeof(s)};
	double ms = (double)(now_ns() - m->begun_ns) / 1e6;

	if (pageferry_lazy_stats(m->lazy, &s) < 0 || pageferry_lazy_close(m->lazy) < 0)
		return error(m, "closing");
	m->lazy = NULL;
	/* Both have the same edges; the guest has fewer of them. */
	_Static_assert(MICROVM_BUCKETS <= PAGEFERRY_FAULT_BUCKETS, "the last takes the rest");
	for (int i = MICROVM_BUCKETS; i < PAGEFERRY_FAULT_BUCKETS; i++)
		s.fault_buckets[MICROVM_BUCKETS - 1] += s.fault_buckets[i];
	fprintf(m->out,
		"ok ms=%.1f urgent=%llu pushed=%llu zero=%llu resumes=%u fault_p50_us=%.0f "
		"fault_p99_us=%.0f fault_max_us=%.0f faults=",
		ms, (unsigned long long)s.pages_urgent, (unsigned long long)s.pages_pushed,
		(unsigned long long)s.pages_zero, s.resumes, s.fault_p50_us, s.fault_p99_us,
		s.fault_max_us);
	put_counts(m->out, s.fault_buckets);
	return 0;
}

static int do_complete(struct monitor *m, const char *arg)
{
	struct pageferry_error e = {0};

	(void)arg;
	if (!m->lazy && !m->server)
		return error(m, "nothing moves");
	if (await(m, PAGEFERRY_COMPLETE, &e) < 0)
		return -1;
	return m->lazy ? complete_target(m) : ok(m, "%s", "");
}

static int do_release(struct monitor *m, const char *arg)
{
	(void)arg;
	if (!m->server)
		return error(m, "nothing is served");
	pageferry_server_free(m->server);
	m->server = NULL;
	machine_free(m->machine);
	m->machine = NULL;
	m->is_stopped = false;
	return ok(m, "%s", "");
}

/* --- lines ---------------------------------------------------------------------------------------
 */

static const struct command commands[] = {
	{"boot", do_boot},	 {"reach", do_reach},	    {"stop", do_stop},
	{"corrupt", do_corrupt}, {"serve", do_serve},	    {"take", do_take},
	{"lost", do_lost},	 {"complete", do_complete}, {"release", do_release},
	{"verify", do_verify},	 {"stats", do_stats},	    {"save", do_save},
	{"restore", do_restore}, {"lazy", do_lazy},	    {"push", do_push},
	{"faults", do_faults},
};

static int obey(struct monitor *m, char *line)
{
	char *arg = strchr(line, ' ');

	if (arg)
		*arg++ = '\0';
	for (size_t i = 0; i < sizeof(commands) / sizeof(commands[0]); i++)
		if (!strcmp(line, commands[i].name))
			return commands[i].run(m, arg ? arg : "");
	return error(m, "unknown command");
}

int monitor_run(const struct machine_config *config, FILE *in, FILE *out)
{
	struct monitor m = {.config = config, .out = out, .handler = {-1, -1}};
	char line[PAGEFERRY_ADDRESS_MAX + 64];
	int rc = 0;

	while (fgets(line, sizeof(line), in)) {
		line[strcspn(line, "\n")] = '\0';
		if (!strcmp(line, "quit"))
			break;
		if (obey(&m, line) < 0)
			rc = 1;
		fflush(out);
	}
	/* The guest, or KVM for it, may wait for pages, and its end would wait for that. */
	if (m.lazy)
		pageferry_lazy_abandon(m.lazy);
	if (m.handler[0] >= 0)
		snapshot_abandon(m.machine, config->bytes, m.handler);
	pageferry_server_free(m.server);
	machine_free(m.machine);
	return rc;
}
