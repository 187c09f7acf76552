/* SPDX-License-Identifier: Apache-2.0 */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tools/command.h"

#define PARSE(command, o, f, ...)                                                                  \
	parse((command)->options, (const char *const[]){"x", __VA_ARGS__, NULL}, o, f)

static int parse(const struct option_def *defs, const char *const *args, struct options *o,
		 struct ferry_failure *f)
{
	char *argv[40];
	int argc = 0;

	for (; args[argc]; argc++)
		argv[argc] = (char *)args[argc];
	argv[argc] = NULL;
	return options_parse(defs, argc, argv, o, f);
}

Test(options, sizes_have_binary_suffixes)
{
	uint64_t v = 7;

	cr_assert_eq(options_parse_size("0", &v), 0);
	cr_assert_eq(v, 0);
	cr_assert_eq(options_parse_size("1023", &v), 0);
	cr_assert_eq(v, 1023);
	cr_assert_eq(options_parse_size("3K", &v), 0);
	cr_assert_eq(v, 3072);
	cr_assert_eq(options_parse_size("2m", &v), 0);
	cr_assert_eq(v, 2u << 20);
	cr_assert_eq(options_parse_size("1G", &v), 0);
	cr_assert_eq(v, 1u << 30);
}

Test(options, sizes_end_at_64_bits)
{
	uint64_t v = 7;

	cr_assert_eq(options_parse_size("18446744073709551615", &v), 0);
	cr_assert_eq(v, UINT64_MAX);
	cr_assert_eq(options_parse_size("18446744073709551616", &v), -ERANGE);
	cr_assert_eq(options_parse_size("17179869183G", &v), 0);
	cr_assert_eq(v, UINT64_C(17179869183) << 30);
	v = 7;
	cr_assert_eq(options_parse_size("17179869184G", &v), -ERANGE);
	cr_assert_eq(v, 7);
}

Test(options, what_is_no_size_is_refused)
{
	static const char *const bad[] = {"", "-1", "+1", " 1", "K", "1KK", "1KB", "1.5M", "0x10", "1T"};
	uint64_t v = 7;

	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		cr_assert_eq(options_parse_size(bad[i], &v), -EINVAL, "'%s'", bad[i]);
	cr_assert_eq(v, 7);
}

Test(options, values_reach_their_places)
{
	struct ferry_failure f = {0};
	struct options o;

	cr_assert_eq(PARSE(&cmd_attach, &o, &f, "--pid", "12", "--match=a", "--match", "b", "--from",
			   "unix:/x", "--bulk=16", "--max-rate", "1M", "-v", "--json"),
		     0, "%s", f.text);
	cr_assert_eq(o.pid, 12);
	cr_assert_eq(o.matches.n, 2);
	cr_assert_str_eq(o.matches.v[0], "a");
	cr_assert_str_eq(o.matches.v[1], "b");
	cr_assert(o.from.given && o.from.addr.is_unix);
	cr_assert_eq(o.n_bulk, 16);
	cr_assert_eq(o.max_rate, 1u << 20);
	cr_assert(o.verbose && o.json);
	cr_assert(!o.resume && !o.control);
}

Test(options, the_output_is_not_touched_by_a_failure)
{
	struct options o, before;
	struct ferry_failure f = {0};

	memset(&o, 0x5a, sizeof(o));
	before = o;
	cr_assert_eq(PARSE(&cmd_attach, &o, &f, "--bulk", "12"), -EINVAL);
	cr_assert_eq(memcmp(&o, &before, sizeof(o)), 0);
	cr_assert_str_eq(f.text,
			 "--pid is missing; add --pid PID (process whose memory is to be filled)");
}

Test(options, counts_are_tried_at_their_limits)
{
	static const struct {
		const char *text;
		int rc;
	} cases[] = {{"0", -EINVAL}, {"1", 0}, {"16", 0}, {"17", -EINVAL}, {"4294967297", -EINVAL}};

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct ferry_failure f = {0};
		struct options o;

		cr_assert_eq(PARSE(&cmd_migrate, &o, &f, "--qmp", "q", "--to", "h:1", "--bulk",
				   cases[i].text),
			     cases[i].rc, "%s", cases[i].text);
	}
}

Test(options, as_many_texts_as_there_can_be_regions)
{
	const char *args[2 * FERRY_MAX_REGIONS + 6] = {"x", "--listen", ":0"};
	struct ferry_failure f = {0};
	struct options o;
	int n = 3;

	for (int i = 0; i < FERRY_MAX_REGIONS; i++)
		args[n++] = "--file=a";
	cr_assert_eq(parse(cmd_serve.options, args, &o, &f), 0, "%s", f.text);
	cr_assert_eq(o.files.n, FERRY_MAX_REGIONS);
	args[n++] = "--file=a";
	cr_assert_eq(parse(cmd_serve.options, args, &o, &f), -EINVAL);
}

Test(options, help_ends_the_reading)
{
	struct ferry_failure f = {0};
	struct options o;

	cr_assert_eq(PARSE(&cmd_attach, &o, &f, "--help", "--nonsense"), 0);
	cr_assert(o.help);
	cr_assert_eq(PARSE(&cmd_attach, &o, &f, "--nonsense", "--help"), -EINVAL);
}

static int parse_config(const char *text, struct options *o, struct ferry_failure *f,
			const char *more, const char *value)
{
	char path[] = "/tmp/ferry-config-XXXXXX";
	int fd = mkstemp(path), rc;

	cr_assert_eq(write(fd, text, strlen(text)), (ssize_t)strlen(text));
	close(fd);
	rc = PARSE(&cmd_handler, o, f, "--config", path, more, value);
	unlink(path);
	return rc;
}

Test(options, a_file_gives_options_and_arguments_go_before_it)
{
	struct ferry_failure f = {0};
	struct options o;

	cr_assert_eq(parse_config("# of one host\n\n socket = /run/a b.sock \nfile\t/srv/x\r\n"
				  "max-vms 3\nmax-rate=2M\njson",
				  &o, &f, "--max-vms", "7"),
		     0, "%s", f.text);
	cr_assert_str_eq(o.socket, "/run/a b.sock");
	cr_assert_str_eq(o.file, "/srv/x");
	cr_assert_eq(o.max_vms, 7);
	cr_assert_eq(o.max_rate, 2u << 20);
	cr_assert(o.json);
}

Test(options, what_is_wrong_in_a_file_is_told_with_its_line)
{
	static const struct {
		const char *text, *error;
	} all[] = {
		{"socket /a\nnonsense 1\n", "line 2: 'nonsense'"},
		{"socket /a\nsocket /b\n", "line 2: socket was given twice"},
		{"json yes\n", "line 1: json takes no value"},
		{"\nmax-vms lots\n", "line 2: --max-vms: 'lots'"},
		{"socket\n", "line 1: --socket is empty"},
		{"config /b\n", "line 1: 'config'"},
		{"help\n", "line 1: 'help'"},
		{"file /x\n", "--socket is missing"},
	};
	struct ferry_failure f = {0};
	struct options o;

	for (size_t i = 0; i < FERRY_ARRAY_SIZE(all); i++) {
		cr_assert_eq(parse_config(all[i].text, &o, &f, "--max-rate", "1"), -EINVAL, "%s",
			     all[i].text);
		cr_assert(strstr(f.text, all[i].error), "%s", f.text);
	}
	cr_assert_eq(PARSE(&cmd_handler, &o, &f, "--config", "/nonexistent/x"), -ENOENT);
}

/* Names are unique in a table, and every option says something of itself. */
Test(options, tables_are_sound)
{
	static const struct command *const all[] = {
		&cmd_probe,   &cmd_serve,  &cmd_attach, &cmd_handler,	      &cmd_receive,
		&cmd_migrate, &cmd_status, &cmd_criu,	&cmd_cloud_hypervisor};

	for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
		for (const struct option_def *d = all[i]->options; d->name; d++) {
			cr_assert(d->help && *d->help, "%s --%s", all[i]->name, d->name);
			cr_assert_eq(!d->arg, d->kind == OPTION_FLAG, "%s --%s", all[i]->name,
				     d->name);
			cr_assert_eq(d->max != 0, d->kind == OPTION_COUNT);
			for (const struct option_def *e = d + 1; e->name; e++) {
				cr_assert_str_neq(d->name, e->name);
				cr_assert(!d->letter || d->letter != e->letter);
			}
		}
	}
}
