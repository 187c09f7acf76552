// SPDX-License-Identifier: Apache-2.0
#include "tools/options.h"

#include <errno.h>
#include <getopt.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"

#define MAX_OPTIONS  32
#define LONG_BASE    256 /* getopt's value of the first option; letters are below */
#define CONFIG_BYTES 65536u
#define HELP_INDENT  22
#define HELP_COLUMNS 80

int options_parse_size(const char *text, uint64_t *out)
{
	unsigned long long v;
	unsigned int shift;
	char *end;

	if (*text < '0' || *text > '9')
		return -EINVAL;
	errno = 0;
	v = strtoull(text, &end, 10);
	if (errno)
		return -ERANGE;
	switch (*end) {
	case '\0':
		shift = 0;
		break;
	case 'k':
	case 'K':
		shift = 10;
		break;
	case 'm':
	case 'M':
		shift = 20;
		break;
	case 'g':
	case 'G':
		shift = 30;
		break;
	default:
		return -EINVAL;
	}
	if (*end && end[1])
		return -EINVAL;
	if (v > UINT64_MAX >> shift)
		return -ERANGE;
	*out = (uint64_t)v << shift;
	return 0;
}

static int parse_number(const char *text, uint32_t max, uint32_t *out)
{
	unsigned long v;
	char *end;

	if (*text < '0' || *text > '9')
		return -EINVAL;
	errno = 0;
	v = strtoul(text, &end, 10);
	if (errno || *end || !v || v > max)
		return -EINVAL;
	*out = (uint32_t)v;
	return 0;
}

static int set_addr(const struct option_def *d, const char *text, struct option_addr *to,
		    struct ferry_failure *f)
{
	int rc = ferry_addr_parse(&to->addr, text, f);

	if (rc < 0) {
		ferry_fail_prefix(f, "--%s", d->name);
		return rc;
	}
	if (d->kind == OPTION_ADDR_DIAL && !to->addr.is_unix &&
	    (!to->addr.host[0] || !strcmp(to->addr.port, "0")))
		return ferry_fail(f, FERRY_REFUSE, -EINVAL,
				  "--%s: '%s' has no %s; give the one that the other side "
				  "listens on",
				  d->name, text, to->addr.host[0] ? "port" : "host");
	to->given = true;
	return 0;
}

static int set_texts(const struct option_def *d, const char *text, struct option_texts *to,
		     struct ferry_failure *f)
{
	if (to->n == FERRY_ARRAY_SIZE(to->v))
		return ferry_fail(f, FERRY_REFUSE, -EINVAL,
				  "--%s was given more than %zu times; use fewer regions", d->name,
				  FERRY_ARRAY_SIZE(to->v));
	to->v[to->n++] = text;
	return 0;
}

const char *const option_checksum_choices[] = {"on", "off", NULL};
const char *const option_on_lost_choices[] = {"wait", "poison", "stop", NULL};

int option_check_source_lost(const struct options *o, struct ferry_failure *f)
{
	if (!o->source_lost || (o->recover && o->on_lost == ON_LOST_POISON && !o->verify))
		return 0;
	if (o->verify)
		return ferry_fail(
			f, FERRY_REFUSE, -EINVAL,
			"--source-lost and --verify exclude each other: there is nobody to compare "
			"with");
	return ferry_fail(
		f, FERRY_REFUSE, -EINVAL,
		"--source-lost gives up every page that is missing, for good; it needs --recover "
		"and --on-lost poison, to say so");
}

static int set_choice(const struct option_def *d, const char *text, uint32_t *out,
		      struct ferry_failure *f)
{
	for (uint32_t i = 0; d->choices[i]; i++) {
		if (!strcmp(d->choices[i], text)) {
			*out = i + 1;
			return 0;
		}
	}
	return ferry_fail(f, FERRY_REFUSE, -EINVAL, "--%s: '%s' is not possible; give %s", d->name,
			  text, d->arg);
}

static int read_config(const char *path, char **out, struct ferry_failure *f)
{
	/* As argv is: there for as long as the process, and its texts with it. */
	static char text[CONFIG_BYTES + 1];
	_cleanup_fclose_ FILE *file = fopen(path, "re");
	size_t n;

	if (!file)
		return ferry_fail_errno(f, FERRY_REFUSE, -errno, "--config %s", path);
	n = fread(text, 1, CONFIG_BYTES, file);
	text[n] = '\0';
	if (ferror(file) || n == CONFIG_BYTES || memchr(text, 0, n))
		return ferry_fail(f, FERRY_REFUSE, -EINVAL,
				  "--config %s: not a text of less than %u bytes; give a file with "
				  "an option a line",
				  path, CONFIG_BYTES);
	*out = text;
	return 0;
}

static int set_value(const struct option_def *d, const char *text, struct options *o,
		     struct ferry_failure *f)
{
	void *at = (char *)o + d->offset;
	uint32_t n;

	if (d->kind == OPTION_OPERAND && !*text)
		return ferry_fail(f, FERRY_REFUSE, -EINVAL, "%s is empty; give the path", d->name);
	if (d->arg && !*text)
		return ferry_fail(f, FERRY_REFUSE, -EINVAL, "--%s is empty; give --%s %s", d->name,
				  d->name, d->arg);
	switch (d->kind) {
	case OPTION_FLAG:
		*(bool *)at = true;
		return 0;
	case OPTION_TEXT:
	case OPTION_OPERAND:
		*(const char **)at = text;
		return 0;
	case OPTION_CONFIG:
		return read_config(text, at, f);
	case OPTION_TEXTS:
		return set_texts(d, text, at, f);
	case OPTION_PID:
		if (parse_number(text, INT_MAX, &n) < 0)
			return ferry_fail(f, FERRY_REFUSE, -EINVAL,
					  "--%s: '%s' is no process; give its number", d->name,
					  text);
		*(pid_t *)at = (pid_t)n;
		return 0;
	case OPTION_COUNT:
		if (parse_number(text, d->max, at) < 0)
			return ferry_fail(f, FERRY_REFUSE, -EINVAL,
					  "--%s: '%s' is not possible; give a number from 1 to %u",
					  d->name, text, d->max);
		return 0;
	case OPTION_CHOICE:
		return set_choice(d, text, at, f);
	case OPTION_RATE:
		if (options_parse_size(text, at) < 0)
			return ferry_fail(f, FERRY_REFUSE, -EINVAL,
					  "--%s: '%s' is no rate; give bytes a second, as 1000000, "
					  "512K, 100M or 1G",
					  d->name, text);
		return 0;
	case OPTION_ADDR_LISTEN:
	case OPTION_ADDR_DIAL:
		return set_addr(d, text, at, f);
	}
	return 0;
}

/* What getopt_long() wants to know, made from our table. */
struct parser {
	struct option longs[MAX_OPTIONS + 1];
	char letters[2 * MAX_OPTIONS + 2];
	int n;
};

static void parser_init(struct parser *p, const struct option_def *defs)
{
	char *letter = p->letters;

	*letter++ = ':'; /* tell a missing argument from an unknown option */
	for (p->n = 0; defs[p->n].name && p->n < MAX_OPTIONS; p->n++) {
		const struct option_def *d = &defs[p->n];

		/* getopt knows no operands, and "" is the name of no long option that can be met. */
		p->longs[p->n] = (struct option){
			.name = d->kind == OPTION_OPERAND ? "" : d->name,
			.has_arg = d->arg ? required_argument : no_argument,
			.val = LONG_BASE + p->n,
		};
		if (!d->letter)
			continue;
		*letter++ = d->letter;
		if (d->arg)
			*letter++ = ':';
	}
	p->longs[p->n] = (struct option){0};
	*letter = '\0';
}

static const struct option_def *find(const struct option_def *defs, int value)
{
	if (value >= LONG_BASE)
		return &defs[value - LONG_BASE];
	for (const struct option_def *d = defs; d->name; d++) {
		if (d->letter && d->letter == value)
			return d;
	}
	return NULL;
}

static int fail_getopt(const struct option_def *defs, int c, char **argv, struct ferry_failure *f)
{
	const struct option_def *d = optopt ? find(defs, optopt) : NULL;

	if (c == ':' && d)
		return ferry_fail(f, FERRY_REFUSE, -EINVAL, "--%s needs an argument: --%s %s",
				  d->name, d->name, d->arg);
	if (d)
		return ferry_fail(f, FERRY_REFUSE, -EINVAL,
				  "--%s takes no argument; write it without one", d->name);
	if (optopt)
		return ferry_fail(f, FERRY_REFUSE, -EINVAL,
				  "unknown option '-%c'; --help lists what there is", optopt);
	return ferry_fail(f, FERRY_REFUSE, -EINVAL,
			  "unknown option '%.100s'; --help lists what there is", argv[optind - 1]);
}

static int check_required(const struct option_def *defs, const bool *seen, struct ferry_failure *f)
{
	for (int i = 0; defs[i].name; i++) {
		if (defs[i].required && !seen[i] && defs[i].kind == OPTION_OPERAND)
			return ferry_fail(f, FERRY_REFUSE, -EINVAL, "%s is missing; add it (%s)",
					  defs[i].name, defs[i].help);
		if (defs[i].required && !seen[i])
			return ferry_fail(f, FERRY_REFUSE, -EINVAL,
					  "--%s is missing; add --%s %s (%s)", defs[i].name,
					  defs[i].name, defs[i].arg, defs[i].help);
	}
	return 0;
}

/* Cuts the spaces off both ends. */
static char *trim(char *text)
{
	size_t n;

	text += strspn(text, " \t\r");
	n = strlen(text);
	while (n && strchr(" \t\r", text[n - 1]))
		n--;
	text[n] = '\0';
	return text;
}

/* @given: what the arguments gave; @seen: that, and what earlier lines did. */
static int take_line(const struct option_def *defs, char *line, const bool *given, bool *seen,
		     struct options *o, struct ferry_failure *f)
{
	char *value = line + strcspn(line, " \t=");
	const struct option_def *d = defs;
	bool more = *value, equals = *value == '=';

	if (more)
		*value++ = '\0';
	value = trim(value);
	if (more && !equals && *value == '=')
		value = trim(value + 1);
	while (d->name && (d->kind == OPTION_OPERAND || d->kind == OPTION_CONFIG || strcmp(d->name, line)))
		d++;
	if (!d->name || !strcmp(line, "help") || !strcmp(line, "version"))
		return ferry_fail(f, FERRY_REFUSE, -EINVAL,
				  "'%.100s' is no option of this command; --help lists them", line);
	if (!d->arg && *value)
		return ferry_fail(f, FERRY_REFUSE, -EINVAL,
				  "%s takes no value; write it without one", d->name);
	if (given[d - defs])
		return 0;
	if (seen[d - defs] && d->kind != OPTION_TEXTS)
		return ferry_fail(f, FERRY_REFUSE, -EINVAL, "%s was given twice; give it once",
				  d->name);
	seen[d - defs] = true;
	return set_value(d, value, o, f);
}

static int take_config(const struct option_def *defs, bool *seen, struct options *o,
		       struct ferry_failure *f)
{
	bool given[MAX_OPTIONS];
	char *rest = o->config;
	int rc = 0;

	memcpy(given, seen, sizeof(given));
	for (unsigned int n = 1; rest && !rc; n++) {
		char *line = trim(strsep(&rest, "\n"));

		if (*line && *line != '#')
			rc = take_line(defs, line, given, seen, o, f);
		if (rc < 0)
			ferry_fail_prefix(f, "--config, line %u", n);
	}
	return rc;
}

int options_parse(const struct option_def *defs, int argc, char **argv, struct options *out,
		  struct ferry_failure *f)
{
	bool seen[MAX_OPTIONS] = {false};
	struct options o = {0};
	struct parser p;
	int c, rc;

	parser_init(&p, defs);
	opterr = 0;
	optind = 1;
	while ((c = getopt_long(argc, argv, p.letters, p.longs, NULL)) != -1) {
		const struct option_def *d;

		if (c == '?' || c == ':')
			return fail_getopt(defs, c, argv, f);
		d = find(defs, c);
		if (seen[d - defs] && d->kind != OPTION_TEXTS && d->kind != OPTION_FLAG)
			return ferry_fail(f, FERRY_REFUSE, -EINVAL,
					  "--%s was given twice; give it once", d->name);
		seen[d - defs] = true;
		rc = set_value(d, optarg, &o, f);
		if (rc < 0)
			return rc;
		if (o.help || o.version) {
			*out = o;
			return 0;
		}
	}
	for (const struct option_def *d = defs; d->name && optind < argc; d++) {
		if (d->kind != OPTION_OPERAND)
			continue;
		seen[d - defs] = true;
		rc = set_value(d, argv[optind++], &o, f);
		if (rc < 0)
			return rc;
	}
	if (optind < argc)
		return ferry_fail(
			f, FERRY_REFUSE, -EINVAL,
			"'%.100s' is no option; options begin with '--', and --help lists "
			"them",
			argv[optind]);
	rc = o.config ? take_config(defs, seen, &o, f) : 0;
	if (!rc)
		rc = check_required(defs, seen, f);
	if (rc < 0)
		return rc;
	*out = o;
	return 0;
}

/* Words of @text from column @HELP_INDENT on, the first line begun already. */
static void print_wrapped(const char *text, FILE *to)
{
	size_t column = HELP_INDENT;

	while (*text) {
		size_t len = strcspn(text, " ");

		if (column > HELP_INDENT && column + len >= HELP_COLUMNS) {
			fprintf(to, "\n%*s", HELP_INDENT, "");
			column = HELP_INDENT;
		}
		fprintf(to, "%.*s", (int)len, text);
		text += len;
		column += len + 1;
		if (*text) {
			text++;
			if (column + strcspn(text, " ") < HELP_COLUMNS)
				fputc(' ', to);
		}
	}
	fputc('\n', to);
}

static int format_head(const struct option_def *d, char *out, size_t size)
{
	if (d->kind == OPTION_OPERAND)
		return snprintf(out, size, "  %s", d->name);
	return snprintf(out, size, "  %c%c%s--%s%s%s", d->letter ? '-' : ' ',
			d->letter ? d->letter : ' ', d->letter ? ", " : "  ", d->name,
			d->arg ? " " : "", d->arg ? d->arg : "");
}

void options_print(const struct option_def *defs, FILE *to)
{
	for (const struct option_def *d = defs; d->name; d++) {
		char head[80];
		int len = format_head(d, head, sizeof(head));

		fputs(head, to);
		if (len + 2 > HELP_INDENT) {
			fputc('\n', to);
			len = 0;
		}
		fprintf(to, "%*s", HELP_INDENT - len, "");
		print_wrapped(d->help, to);
	}
}
