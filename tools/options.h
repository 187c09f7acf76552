/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Options: one table a command says what it takes; parsing, --help and the errors come from it.
 * All commands share one struct that the values go to.
 */
#ifndef FERRY_TOOLS_OPTIONS_H
#define FERRY_TOOLS_OPTIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/types.h>

#include "base/addr.h"
#include "base/error.h"
#include "base/util.h"
#include "protocol/limits.h"

/* An option that may be given several times. */
struct option_texts {
	const char *v[FERRY_MAX_REGIONS]; /* borrowed from argv */
	uint32_t n;
};

struct option_addr {
	bool given;
	struct ferry_addr addr;
};

/* Zero (NULL, false) is "not given" for all of them. Texts are borrowed from argv. */
struct options {
	bool help, version, json, verbose;
	bool once, postcopy, recover, resume, supervise, verify;
	bool pause, go_on, cancel;
	bool source_lost;
	bool recover_any; /* no option: recover if there is something, as supervised commands do */
	bool csv, no_trace, no_large_pages, plain, plaintext;
	pid_t pid;
	uint32_t n_bulk, max_sessions;
	uint32_t checksum, on_lost; /* choices, below */
	uint32_t criu_header;	    /* a choice of its command's */
	uint32_t duration_s, interval_s, n_slowest;
	uint64_t max_rate; /* bytes a second */
	const char *qmp, *control;
	const char *tls, *tls_hostname, *tls_peer, *psk;
	const char *file; /* an operand, or the one of a command that takes one */
	const char *socket, *user, *record, *replay;
	char *config; /* the file's content once it is read; texts are borrowed from it */
	uint32_t max_vms;
	const char *output, *trace, *format;
	struct option_texts files, matches;
	struct option_addr listen, from, to, metrics;
};

enum option_kind {
	OPTION_FLAG,	    /* bool */
	OPTION_TEXT,	    /* const char * */
	OPTION_TEXTS,	    /* struct option_texts; may be given several times */
	OPTION_PID,	    /* pid_t, from 1 on */
	OPTION_COUNT,	    /* uint32_t, from 1 to ->max */
	OPTION_CHOICE,	    /* uint32_t, one of ->choices, counted from 1; 0 when not given */
	OPTION_RATE,	    /* uint64_t; digits, then nothing or K, M or G (1024 each) */
	OPTION_ADDR_LISTEN, /* struct option_addr */
	OPTION_ADDR_DIAL,   /* struct option_addr; host and port must be there */
	OPTION_CONFIG,	    /* char *: a file of more options, see options_parse() */
	OPTION_OPERAND,	    /* const char *; no option, but an argument of its own: ->name as --help
			       shows it; at most one a command */
};

struct option_def {
	const char *name;
	char letter;	  /* 0 for none */
	const char *arg;  /* what --help calls its argument; NULL for a flag */
	const char *help; /* with its default and unit */
	enum option_kind kind;
	bool required;
	uint32_t max;
	const char *const *choices; /* the last is NULL */
	size_t offset; /* in struct options */
};

#define OPTION_AT(member) .offset = offsetof(struct options, member)

/* What every command has, and every command that runs for long; they go into its table. */
#define OPTIONS_COMMON                                                                             \
	{.name = "json",                                                                           \
	 .help = "print one JSON object a line on standard output",                                \
	 .kind = OPTION_FLAG,                                                                      \
	 OPTION_AT(json)},                                                                         \
		{.name = "verbose",                                                                \
		 .letter = 'v',                                                                    \
		 .help = "say more on standard error",                                             \
		 .kind = OPTION_FLAG,                                                              \
		 OPTION_AT(verbose)},                                                              \
		{.name = "help",                                                                   \
		 .letter = 'h',                                                                    \
		 .help = "print this and end",                                                     \
		 .kind = OPTION_FLAG,                                                              \
		 OPTION_AT(help)},                                                                 \
		{.name = "version",                                                                \
		 .letter = 'V',                                                                    \
		 .help = "print the version and end",                                              \
		 .kind = OPTION_FLAG,                                                              \
		 OPTION_AT(version)},                                                              \
	{                                                                                          \
		.name = NULL                                                                       \
	}

#define OPTION_CONTROL                                                                             \
	{                                                                                          \
		.name = "control", .arg = "SOCK",                                                  \
		.help = "path of the UNIX socket that 'pageferry status' asks (default: "          \
			"COMMAND-PID.sock in $XDG_RUNTIME_DIR/pageferry, for root in "             \
			"/run/pageferry)",                                                         \
		.kind = OPTION_TEXT, OPTION_AT(control)                                            \
	}

#define OPTIONS_TRACE                                                                              \
	{.name = "trace", .arg = "FILE",                                                           \
	 .help = "record every fault, from the start to the end, in this file for 'pageferry "     \
		 "trace'",                                                                         \
	 .kind = OPTION_TEXT, OPTION_AT(trace)},                                                   \
	{                                                                                          \
		.name = "no-trace",                                                                \
		.help = "keep no records of faults in memory: nothing can be traced",              \
		.kind = OPTION_FLAG, OPTION_AT(no_trace)                                           \
	}

#define OPTION_NO_LARGE_PAGES                                                                      \
	{                                                                                          \
		.name = "no-large-pages",                                                          \
		.help = "leave shared memory in the small pages that it comes in; without this "   \
			"it is put into pages of 2 MiB once all is there, where the host allows "  \
			"it",                                                                      \
		.kind = OPTION_FLAG, OPTION_AT(no_large_pages)                                     \
	}

#define OPTION_METRICS                                                                             \
	{                                                                                          \
		.name = "metrics", .arg = "ADDR",                                                  \
		.help = "serve figures for Prometheus at http://ADDR/metrics; without a host, on " \
			"127.0.0.1 only (default: none)",                                          \
		.kind = OPTION_ADDR_LISTEN, OPTION_AT(metrics)                                     \
	}

/* Who the other side is: of the commands that listen, and of those that dial. */
#define OPTIONS_SECURE_                                                                            \
	{.name = "tls",                                                                            \
	 .arg = "DIR",                                                                             \
	 .help = "encrypt with TLS 1.3 and certificates of both sides; the folder has "            \
		 "ca-cert.pem, server-cert.pem and server-key.pem (of who listens), "              \
		 "client-cert.pem and client-key.pem (of who dials), and perhaps ca-crl.pem",      \
	 .kind = OPTION_TEXT,                                                                      \
	 OPTION_AT(tls)},                                                                          \
		{.name = "psk",                                                                    \
		 .arg = "FILE",                                                                    \
		 .help = "encrypt with TLS 1.3 and a key that both sides have; the file has lines " \
			 "NAME:KEY, the key in hexadecimal; who dials uses the first",             \
		 .kind = OPTION_TEXT,                                                              \
		 OPTION_AT(psk)},                                                                  \
	{                                                                                          \
		.name = "plaintext",                                                               \
		.help = "do not encrypt, also where others could read and change what is sent "   \
			"(default: only on a loopback address or a UNIX socket)",                  \
		.kind = OPTION_FLAG, OPTION_AT(plaintext)                                          \
	}

#define OPTIONS_SECURE_LISTEN                                                                      \
	OPTIONS_SECURE_,                                                                           \
	{                                                                                          \
		.name = "tls-peer", .arg = "NAME",                                                 \
		.help = "let in only who has a certificate with this name as subject or "          \
			"alternative name (default: whoever ca-cert.pem has signed for)",          \
		.kind = OPTION_TEXT, OPTION_AT(tls_peer)                                           \
	}

#define OPTIONS_SECURE_DIAL                                                                        \
	OPTIONS_SECURE_,                                                                           \
	{                                                                                          \
		.name = "tls-hostname", .arg = "NAME",                                             \
		.help = "name that the certificate of who listens must have (default: the host "  \
			"that is dialed)",                                                         \
		.kind = OPTION_TEXT, OPTION_AT(tls_hostname)                                       \
	}

#define OPTION_BULK                                                                                \
	{                                                                                          \
		.name = "bulk", .arg = "N", .help = "bulk connections, 1 to 16 (default: 1)",      \
		.kind = OPTION_COUNT, .max = FERRY_MAX_BULK, OPTION_AT(n_bulk)                     \
	}

enum { CHECKSUM_ON = 1, CHECKSUM_OFF };
enum { ON_LOST_WAIT = 1, ON_LOST_POISON, ON_LOST_STOP };
/* Errors: -EINVAL: --source-lost without what it needs. */
int option_check_source_lost(const struct options *o, struct ferry_failure *f);

extern const char *const option_checksum_choices[], *const option_on_lost_choices[];

#define OPTION_CHECKSUM                                                                            \
	{                                                                                          \
		.name = "checksum", .arg = "on|off",                                               \
		.help = "check every page against a checksum that its source made, before it is "  \
			"placed; both sides must want it (default: on)",                           \
		.kind = OPTION_CHOICE, .choices = option_checksum_choices, OPTION_AT(checksum)     \
	}

#define OPTION_ON_LOST                                                                             \
	{                                                                                          \
		.name = "on-lost", .arg = "wait|poison|stop",                                      \
		.help = "when the source can't have a page any more: let threads that touch it "   \
			"wait, give them a memory error (SIGBUS), or stop the whole guest as it "  \
			"is (default: wait)",                                                      \
		.kind = OPTION_CHOICE, .choices = option_on_lost_choices, OPTION_AT(on_lost)       \
	}

#define OPTION_SOURCE_LOST                                                                         \
	{                                                                                          \
		.name = "source-lost",                                                             \
		.help = "with --recover and --on-lost poison: the source is gone for good; all "   \
			"that "                                                                    \
			"is missing is poisoned",                                                  \
		.kind = OPTION_FLAG, OPTION_AT(source_lost)                                        \
	}

#define OPTION_VERIFY                                                                              \
	{                                                                                          \
		.name = "verify",                                                                  \
		.help = "when everything is there, compare it with the source's memory, which is " \
			"read anew for that, and only then release the source; differing pages "   \
			"are named",                                                               \
		.kind = OPTION_FLAG, OPTION_AT(verify)                                             \
	}

#define OPTION_SUPERVISE                                                                           \
	{                                                                                          \
		.name = "supervise",                                                               \
		.help = "when this command is killed, start it again by itself, in milliseconds, " \
			"to go on; also with what an earlier one has left",                        \
		.kind = OPTION_FLAG, OPTION_AT(supervise)                                          \
	}

#define OPTION_MAX_RATE                                                                            \
	{                                                                                          \
		.name = "max-rate", .arg = "BYTES/S",                                              \
		.help = "limit of the pre-push in bytes a second, with K, M or G for KiB, MiB or " \
			"GiB; "                                                                    \
			"pages that are waited for may exceed it (default: 0, no limit)",          \
		.kind = OPTION_RATE, OPTION_AT(max_rate)                                           \
	}

/**
 * options_parse() - read a command's arguments
 * @argv: its first entry is the command's name; may be reordered
 * Ends early, successful, when --help or --version was met. A file that an OPTION_CONFIG names has an
 * option a line, "NAME VALUE" or "NAME = VALUE" without the dashes; empty lines and those that begin
 * with # are passed over. What the arguments give goes before what the file does.
 * Errors: -EINVAL; one line that says what to do in @f. @out is written on success only.
 */
int options_parse(const struct option_def *defs, int argc, char **argv, struct options *out,
		  struct ferry_failure *f);

/* The part of --help that lists @defs. */
void options_print(const struct option_def *defs, FILE *to);

/* Digits with an optional K, M or G. Errors: -EINVAL, -ERANGE. */
int options_parse_size(const char *text, uint64_t *out);

#endif
