/* SPDX-License-Identifier: Apache-2.0 */
/* What is found out about a QEMU, and what is refused with which words. */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "fake_qemu.h"
#include "migrate/qemu.h"
#include "migrate/qemu_ram.h"
#include "migrate/qemu_setup.h"

#define MIB ((size_t)1 << 20)

static const char mtree[] =
	"FlatView #0\r\n AS \"I/O\", root: io\r\n Root memory region: io\r\n"
	"  0000000000000000-00000000000bffff (prio 0, ram): decoy\r\n\r\n"
	"FlatView #1\r\n AS \"memory\", root: system\r\n AS \"cpu-memory-0\", root: system\r\n"
	" Root memory region: system\r\n"
	"  0000000000000000-00000000000bffff (prio 0, i/o): ram0\r\n"
	"  0000000000100000-00000000001fffff (prio 0, ram): ram0 @0000000000100000 KVM\r\n"
	"  0000000100000000-00000001001fffff (prio 0, rom): /objects/ram1\r\n"
	"  0000000200000000-00000002001fffff (prio 0, nv-ram): ram10\r\n";

Test(mtree, finds_the_first_place_of_a_block_in_the_guest)
{
	struct ferry_mtree_entry e;

	cr_assert(ferry_mtree_find(mtree, "ram0", &e));
	cr_assert_eq(e.gpa.v, 0x100000);
	cr_assert_eq(e.offset, 0x100000);
	cr_assert(ferry_mtree_find(mtree, "ram1", &e));
	cr_assert_eq(e.gpa.v, 0x100000000);
	cr_assert_eq(e.offset, 0);
	cr_assert(ferry_mtree_find(mtree, "ram10", &e));
	cr_assert_eq(e.gpa.v, 0x200000000);
}

Test(mtree, what_the_guest_does_not_see_is_not_found)
{
	struct ferry_mtree_entry e;

	cr_assert_not(ferry_mtree_find(mtree, "decoy", &e));
	cr_assert_not(ferry_mtree_find(mtree, "ram", &e));
	cr_assert_not(ferry_mtree_find(mtree, "", &e));
	cr_assert_not(ferry_mtree_find("", "ram0", &e));
	cr_assert_not(ferry_mtree_find("FlatView\n AS \"memory\"\n (prio\n0-1 (prio 0, ram): \n",
				       "x", &e));
}

Test(mtree, an_address_is_taken_for_its_own_block_only)
{
	struct ferry_hva hva;

	cr_assert_eq(ferry_hva_parse("Host virtual address for 0x0 (ram0) is 0x7f2f2bfff000\r\n",
				     "ram0", &hva),
		     0);
	cr_assert_eq(hva.v, 0x7f2f2bfff000);
	cr_assert_eq(ferry_hva_parse("Host virtual address for 0x0 (ram1) is 0x7f2f2bfff000",
				     "ram0", &hva),
		     -EPROTO);
	cr_assert_eq(ferry_hva_parse("No memory is mapped at address 0x0", "ram0", &hva), -EPROTO);
	cr_assert_eq(ferry_hva_parse("Host virtual address for 0x0 (ram0) is 0x", "ram0", &hva),
		     -EPROTO);
	cr_assert_eq(ferry_hva_parse("", "ram0", &hva), -EPROTO);
}

/* --- a whole one ---------------------------------------------------------------------------- */

/* A guest with two backends of the same size, both memfds; its memory is the child's as well. */
struct guest {
	int fd[2];
	char *at[2];
	char hva[2][128];
	struct fake_answer script[24];
	size_t n;
	struct fake_qemu fake;
	struct ferry_qmp *qmp;
	struct ferry_qemu qemu;
	struct ferry_failure f;
};

#define MTREE_JSON                                                                                 \
	"\"FlatView #1\\r\\n AS \\\"memory\\\", root: system\\r\\n"                                \
	"  0000000000000000-00000000001fffff (prio 0, ram): ram0\\r\\n"                            \
	"  0000000100000000-00000001001fffff (prio 0, ram): ram1\\r\\n\""

static void answer(struct guest *g, struct fake_answer a)
{
	g->script[g->n++] = a;
}

/* Answers that are given first win. */
static void usual_answers(struct guest *g, const char *status)
{
	static char status_json[64];

	snprintf(status_json, sizeof(status_json), "{\"status\": \"%s\"}", status);
	answer(g, (struct fake_answer){"query-status", .json = status_json});
	answer(g, (struct fake_answer){"query-cpus-fast", .json = "[{\"thread-id\": %d}]"});
	answer(g, (struct fake_answer){"query-name", .json = "{\"name\": \"web-1\"}"});
	answer(g, (struct fake_answer){"qom-get", "confidential", .error = "no such property"});
	answer(g, (struct fake_answer){"qom-get", "\"type\"", .json = "\"pc-i440fx-7.2-machine\""});
	answer(g, (struct fake_answer){"qom-list", .json = "[]"});
	answer(g, (struct fake_answer){
			  "query-memdev",
			  .json = "[{\"id\": \"ram1\", \"size\": 2097152, \"share\": true},"
				  "{\"id\": \"unused\", \"size\": 4096, \"share\": false},"
				  "{\"id\": \"ram0\", \"size\": 2097152, \"share\": true}]"});
	answer(g, (struct fake_answer){
			  "query-memory-size-summary",
			  .json = "{\"base-memory\": 2097152, \"plugged-memory\": 2097152}"});
	answer(g, (struct fake_answer){"human-monitor-command", "info mtree", .json = MTREE_JSON});
	answer(g,
	       (struct fake_answer){"human-monitor-command", "gpa2hva 0x0\"", .json = g->hva[0]});
	answer(g, (struct fake_answer){"human-monitor-command", "gpa2hva 0x100000000\"",
				       .json = g->hva[1]});
	answer(g, (struct fake_answer){"human-monitor-command", "info network", .json = "\"\""});
}

static void make_ram(struct guest *g)
{
	for (int i = 0; i < 2; i++) {
		g->fd[i] = memfd_create("same-name", MFD_CLOEXEC);
		cr_assert_eq(ftruncate(g->fd[i], 2 * (off_t)MIB), 0);
		g->at[i] = mmap(NULL, 2 * MIB, PROT_READ | PROT_WRITE, MAP_SHARED, g->fd[i], 0);
		cr_assert_neq(g->at[i], MAP_FAILED);
		snprintf(g->hva[i], sizeof(g->hva[i]),
			 "\"Host virtual address for 0x%s (ram%d) is 0x%llx\\r\\n\"",
			 i ? "100000000" : "0", i, (unsigned long long)(uintptr_t)g->at[i]);
	}
}

static int inspect(struct guest *g, enum ferry_side side)
{
	int rc;

	fake_start(&g->fake, NULL, g->script);
	cr_assert_eq(ferry_qmp_connect(&g->qmp, g->fake.path, -1, &g->f), 0, "%s", g->f.text);
	rc = side == FERRY_SIDE_SOURCE ? ferry_qemu_inspect_source(&g->qemu, g->qmp, NULL, &g->f)
				       : ferry_qemu_inspect_target(&g->qemu, g->qmp, NULL, &g->f);
	return rc;
}

static void finish(struct guest *g)
{
	ferry_qemu_fini(&g->qemu);
	ferry_qmp_free(g->qmp);
	fake_stop(&g->fake);
}

static bool is_file(int a, int b)
{
	struct stat x, y;

	return !fstat(a, &x) && !fstat(b, &y) && x.st_ino == y.st_ino && x.st_dev == y.st_dev;
}

Test(qemu, blocks_of_equal_size_and_name_are_told_apart)
{
	struct guest g = {0};

	make_ram(&g);
	usual_answers(&g, "running");
	cr_assert_eq(inspect(&g, FERRY_SIDE_SOURCE), 0, "%s", g.f.text);
	cr_assert_eq(g.qemu.pid, g.fake.pid);
	cr_assert_str_eq(g.qemu.name, "web-1");
	cr_assert_str_eq(g.qemu.machine, "pc-i440fx-7.2-machine");
	cr_assert(g.qemu.runs);
	cr_assert_eq(g.qemu.n_ram, 2);
	cr_assert_eq(g.qemu.ram_bytes, 4 * MIB);
	for (uint32_t i = 0; i < 2; i++) {
		const struct ferry_qemu_ram *r = &g.qemu.ram[i];

		cr_assert_str_eq(r->desc.name, i ? "ram1" : "ram0");
		cr_assert_eq(r->desc.id, i);
		cr_assert_eq(r->desc.n_pages, 512);
		cr_assert_eq(r->desc.page_bytes, 4096);
		cr_assert_eq(r->start.v, (uintptr_t)g.at[i]);
		cr_assert_eq(r->offset, 0);
		cr_assert(is_file(r->fd, g.fd[i]));
	}
	finish(&g);
}

Test(qemu, a_paused_guest_may_be_moved)
{
	struct guest g = {0};

	make_ram(&g);
	usual_answers(&g, "paused");
	cr_assert_eq(inspect(&g, FERRY_SIDE_SOURCE), 0, "%s", g.f.text);
	cr_assert_not(g.qemu.runs);
	finish(&g);
}

Test(qemu, an_empty_target_is_fine_and_one_with_a_page_is_not)
{
	for (int pages = 0; pages < 2; pages++) {
		struct guest g = {0};

		make_ram(&g);
		if (pages)
			g.at[1][2 * MIB - 1] = 1;
		usual_answers(&g, "inmigrate");
		cr_assert_eq(inspect(&g, FERRY_SIDE_TARGET), pages ? -EEXIST : 0, "%s", g.f.text);
		if (pages)
			cr_assert(strstr(g.f.text, "the target's RAM 'ram1' has pages already") &&
					  strstr(g.f.text, "without prealloc=on"),
				  "%s", g.f.text);
		finish(&g);
	}
}

struct refusal {
	struct fake_answer answer; /* instead of the usual one */
	const char *says[2];
};

static void refuses(const struct refusal *r, const char *status, enum ferry_side side)
{
	struct guest g = {0};

	make_ram(&g);
	if (r->answer.command)
		answer(&g, r->answer);
	usual_answers(&g, status);
	cr_assert_lt(inspect(&g, side), 0, "not refused: %s", r->says[0]);
	cr_assert_eq(g.f.consequence, FERRY_REFUSE);
	for (int i = 0; i < 2 && r->says[i]; i++)
		cr_assert(strstr(g.f.text, r->says[i]), "'%s' is not in: %s", r->says[i], g.f.text);
	finish(&g);
}

Test(qemu, states_that_do_not_fit_are_refused)
{
	static const struct {
		const char *status;
		enum ferry_side side;
		struct refusal r;
	} cases[] = {
		{"inmigrate", FERRY_SIDE_SOURCE, {.says = {"'pageferry receive'"}}},
		{"postmigrate",
		 FERRY_SIDE_SOURCE,
		 {.says = {"only if it runs nowhere else", "'cont'"}}},
		{"suspended", FERRY_SIDE_SOURCE, {.says = {"system_wakeup"}}},
		{"shutdown", FERRY_SIDE_SOURCE, {.says = {"in state 'shutdown'"}}},
		{"running",
		 FERRY_SIDE_TARGET,
		 {.says = {"in state 'running'", "start it with -incoming defer"}}},
		{"paused", FERRY_SIDE_TARGET, {.says = {"-incoming defer"}}},
	};

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
		refuses(&cases[i].r, cases[i].status, cases[i].side);
}

Test(qemu, layouts_that_can_not_be_served_are_refused_with_what_to_change)
{
	static const struct refusal cases[] = {
		{{"query-memdev",
		  .json = "[{\"id\": \"ram0\", \"size\": 2097152, \"share\": false}]"},
		 {"private to QEMU", "-object memory-backend-memfd,id=ram0,size=2M,share=on "
				     "-machine memory-backend=ram0"}},
		{{"query-memdev", .json = "[]"},
		 {"private to QEMU", "id=ram0,size=2M,share=on -machine memory-backend=ram0"}},
		{{"query-memdev",
		  .json = "[{\"id\": \"ram0\", \"size\": 2097152, \"share\": true}]"},
		 {"private to QEMU"}},
		{{"query-memdev",
		  .json = "[{\"id\": \"ram0\", \"size\": 1099511627776, \"share\": true}]"},
		 {"does not have the guest's RAM 'ram0' where QEMU says it is", "PID namespace"}},
		{{"human-monitor-command", "gpa2hva", .json = "\"No memory is mapped\""},
		 {"does not say where its RAM"}},
		{{"human-monitor-command", "gpa2hva", .json = "17"}, {"is no text"}},
		{{"qom-list", "peripheral\"",
		  .json = "[{\"name\": \"gpu0\", \"type\": \"child<vfio-pci>\"}]"},
		 {"the device 'gpu0' (vfio-pci) can't be moved: it is passed through",
		  "device_del gpu0"}},
		{{"qom-list", "peripheral-anon",
		  .json = "[{\"name\": \"type\", \"type\": \"string\"}, "
			  "{\"name\": \"device[0]\", \"type\": \"child<vhost-user-fs-pci>\"}]"},
		 {"another process serves it"}},
		{{"human-monitor-command", "info network",
		  .json = "\"net0: index=0,type=vhost-user,\""},
		 {"served by vhost-user", "use a tap device"}},
		{{"qom-get", "confidential", .json = "\"/objects/sev0\""},
		 {"memory is encrypted (/objects/sev0)"}},
		{{"query-migrate", .json = "{\"blocked-reasons\": [\"a device said no\"]}"},
		 {"can't be moved: a device said no"}},
		{{"query-migrate", .json = "{\"status\": \"active\"}"}, {"under way (active)"}},
		{{"query-cpus-fast", .json = "[]"}, {"same PID namespace"}},
		{{"query-name", .error = "nobody"}, {"QEMU refuses 'query-name': nobody"}},
	};

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
		refuses(&cases[i], "running", FERRY_SIDE_SOURCE);
}

Test(qemu, a_target_that_waits_otherwise_is_refused)
{
	static const struct refusal cases[] = {
		{{"query-migrate", .json = "{\"status\": \"setup\"}"}, {"-incoming defer"}},
		{{"query-migrate", .json = "{\"socket-address\": []}"}, {"-incoming defer"}},
	};

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
		refuses(&cases[i], "inmigrate", FERRY_SIDE_TARGET);
}

/* Odd types in answers are no reason to crash. */
Test(qemu, answers_of_the_wrong_shape_are_survived)
{
	static const char *const commands[] = {"query-status",
					       "query-migrate",
					       "query-cpus-fast",
					       "query-name",
					       "qom-get",
					       "qom-list",
					       "query-memdev",
					       "human-monitor-command",
					       "query-memory-size-summary"};
	static const char *const odd[] = {
		"null",	 "[]",
		"{}",	 "3",
		"\"x\"", "[null]",
		"[[1]]", "[{\"id\": 3, \"size\": \"x\", \"name\": [], \"type\": {}}]"};

	for (size_t i = 0; i < sizeof(commands) / sizeof(commands[0]); i++) {
		for (size_t k = 0; k < sizeof(odd) / sizeof(odd[0]); k++) {
			struct guest g = {0};

			make_ram(&g);
			answer(&g, (struct fake_answer){commands[i], .json = odd[k]});
			usual_answers(&g, "running");
			(void)inspect(&g, FERRY_SIDE_SOURCE);
			finish(&g);
			for (int r = 0; r < 2; r++) {
				munmap(g.at[r], 2 * MIB);
				close(g.fd[r]);
			}
		}
	}
}

/* --- two that are to fit -------------------------------------------------------------------- */

static struct ferry_qemu target_of(uint64_t n_pages, uint32_t page_bytes, const char *name)
{
	struct ferry_qemu q = {.machine = "pc", .n_ram = 1};

	q.ram[0].desc = (struct ferry_region_desc){.n_pages = n_pages, .page_bytes = page_bytes};
	snprintf(q.ram[0].desc.name, sizeof(q.ram[0].desc.name), "%s", name);
	return q;
}

Test(qemu, differences_are_named)
{
	static const struct {
		const char *machine, *name, *says;
		uint32_t page_bytes, n_regions;
		uint64_t n_pages;
	} cases[] = {
		{"pc", "ram0", NULL, 4096, 1, 512},
		{"q35", "ram0", "the source is a 'q35' and the target a 'pc'", 4096, 1, 512},
		{"pc", "mem", "the source's RAM 'mem' is called 'ram0'", 4096, 1, 512},
		{"pc", "ram0", "4 MiB on the source and 2 MiB on the target", 4096, 1, 1024},
		{"pc", "ram0", "pages of 2048 KiB on the source and of 4 KiB", 2097152, 1, 1},
		{"pc", "ram0", "2 memory backends and the target 1", 4096, 2, 512},
	};
	struct ferry_qemu target = target_of(512, 4096, "ram0");

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		static struct ferry_prepare p;
		struct ferry_failure f = {0};
		int rc;

		p = (struct ferry_prepare){.layout.n_regions = cases[i].n_regions};
		snprintf(p.machine, sizeof(p.machine), "%s", cases[i].machine);
		p.layout.regions[0] = (struct ferry_region_desc){.n_pages = cases[i].n_pages,
								 .page_bytes = cases[i].page_bytes};
		snprintf(p.layout.regions[0].name, sizeof(p.layout.regions[0].name), "%s",
			 cases[i].name);
		rc = ferry_qemu_compare(&target, &p, &f);
		cr_assert_eq(rc, cases[i].says ? -EINVAL : 0);
		if (cases[i].says)
			cr_assert(strstr(f.text, cases[i].says), "%s", f.text);
	}
}

/* --- settings ------------------------------------------------------------------------------- */

Test(qemu_setup, a_qemu_that_is_too_old_is_refused)
{
	static const struct fake_answer script[] = {
		{"query-migrate-capabilities",
		 .json = "[{\"capability\": \"events\", \"state\": false}]"},
		{0}};
	struct ferry_qemu_setup s;
	struct ferry_failure f = {0};
	struct fake_qemu fake;
	struct ferry_qmp *q;

	fake_start(&fake, NULL, script);
	cr_assert_eq(ferry_qmp_connect(&q, fake.path, -1, &f), 0);
	cr_assert_eq(ferry_qemu_setup_look(&s, q, FERRY_SIDE_SOURCE, NULL, &f), -EOPNOTSUPP);
	cr_assert(strstr(f.text, "x-ignore-shared") && strstr(f.text, "4.0 or newer"), "%s",
		  f.text);
	ferry_qmp_free(q);
	fake_stop(&fake);
}

/* What the fake does not expect to be set back is refused, and then said in the log. */
static void count_lines(void *ctx, enum ferry_log_level level, const char *line)
{
	int *n = ctx;

	if (level <= FERRY_LOG_INFO &&
	    (strstr(line, "postcopy-ram") || strstr(line, "not put back")))
		(*n)++;
}

Test(qemu_setup, what_was_set_otherwise_is_said_and_put_back)
{
	static const struct fake_answer script[] = {
		{"query-migrate-capabilities",
		 .json = "[{\"capability\": \"events\", \"state\": false},"
			 "{\"capability\": \"x-ignore-shared\", \"state\": false},"
			 "{\"capability\": \"postcopy-ram\", \"state\": true},"
			 "{\"capability\": \"auto-converge\", \"state\": true}]"},
		{"query-migrate-parameters",
		 .json = "{\"max-bandwidth\": 1000, \"tls-creds\": \"\"}"},
		/* The change, and then the way back; nothing else. */
		{"migrate-set-capabilities",
		 "[{\"capability\":\"events\",\"state\":true},"
		 "{\"capability\":\"x-ignore-shared\",\"state\":true},"
		 "{\"capability\":\"postcopy-ram\",\"state\":false}]",
		 .json = "{}"},
		{"migrate-set-capabilities",
		 "[{\"capability\":\"events\",\"state\":false},"
		 "{\"capability\":\"x-ignore-shared\",\"state\":false},"
		 "{\"capability\":\"postcopy-ram\",\"state\":true}]",
		 .json = "{}"},
		{"migrate-set-capabilities", .error = "not that"},
		{"migrate-set-parameters", "\"max-bandwidth\":1000", .json = "{}"},
		{"migrate-set-parameters", "\"max-bandwidth\":1125899906842624", .json = "{}"},
		{"migrate-set-parameters", .error = "not that"},
		{0}};
	int n = 0;
	struct ferry_log log = {FERRY_LOG_INFO, count_lines, &n};
	struct ferry_qemu_setup s;
	struct ferry_failure f = {0};
	struct fake_qemu fake;
	struct ferry_qmp *q;

	fake_start(&fake, NULL, script);
	cr_assert_eq(ferry_qmp_connect(&q, fake.path, -1, &f), 0);
	cr_assert_eq(ferry_qemu_setup_look(&s, q, FERRY_SIDE_SOURCE, &log, &f), 0, "%s", f.text);
	cr_assert_eq(ferry_qemu_setup_apply(&s, &f), 0, "%s", f.text);
	cr_assert_eq(n, 1);
	ferry_qemu_setup_restore(&s);
	cr_assert_eq(n, 1);
	ferry_qemu_setup_restore(&s);
	ferry_qmp_free(q);
	fake_stop(&fake);
}
