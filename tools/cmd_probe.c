// SPDX-License-Identifier: Apache-2.0
#include <stdio.h>
#include <stdlib.h>

#include "base/util.h"
#include "tools/command.h"
#include "tools/json.h"
#include "uffd/probe.h"

static const struct option_def probe_options[] = {OPTIONS_COMMON};

static const char *verdict_name(enum ferry_probe_verdict v)
{
	switch (v) {
	case FERRY_PROBE_OK:
		return "ok";
	case FERRY_PROBE_LIMITED:
		return "limited";
	case FERRY_PROBE_MISSING:
		return "missing";
	}
	return "unknown";
}

static bool is_failure(const struct ferry_probe_item *it)
{
	return it->required && it->verdict == FERRY_PROBE_MISSING;
}

static void print_json(json_t *o)
{
	char *line = json_line(o);

	if (line)
		puts(line);
	free(line);
	json_decref(o);
}

static void print_item_json(const struct ferry_probe_item *it)
{
	json_t *o = json_object();

	json_put(o, "event", json_text("item"));
	json_put(o, "id", json_text(it->id));
	json_put(o, "verdict", json_text(verdict_name(it->verdict)));
	json_put(o, "required", json_boolean(it->required));
	json_put(o, "what", json_text(it->what));
	json_put(o, "detail", json_text(it->detail));
	json_put(o, "mend", json_text(it->mend));
	print_json(o);
}

static void print_end_json(unsigned int n_failures, const char *text)
{
	json_t *o = json_object();

	json_put(o, "event", json_text(n_failures ? "failed" : "completed"));
	json_put(o, "command", json_text("probe"));
	if (n_failures) {
		json_put(o, "error", json_text(text));
		json_put(o, "consequence", json_text(ferry_consequence_name(FERRY_REFUSE)));
	}
	json_put(o, "exit", json_integer(n_failures ? EXIT_FAILED : EXIT_DONE));
	print_json(o);
}

static void print_item(const struct ferry_probe_item *it)
{
	printf("%-8s %-20s %s%s\n", verdict_name(it->verdict), it->id, it->what,
	       it->required ? " (required)" : "");
	if (it->detail[0])
		printf("%30s%s\n", "", it->detail);
	if (it->mend[0])
		printf("%30sto mend: %s\n", "", it->mend);
}

static int run(const struct options *o)
{
	struct ferry_probe_item items[FERRY_PROBE_MAX];
	size_t n = ferry_probe_run(items);
	unsigned int n_failures = 0;
	char text[160];

	for (size_t i = 0; i < n; i++) {
		n_failures += is_failure(&items[i]);
		if (o->json)
			print_item_json(&items[i]);
		else
			print_item(&items[i]);
	}
	snprintf(text, sizeof(text),
		 "%u of the things that receive and attach can't do without %s missing; mend %s as "
		 "said above",
		 n_failures, n_failures == 1 ? "is" : "are", n_failures == 1 ? "it" : "them");
	if (o->json)
		print_end_json(n_failures, text);
	if (n_failures)
		fprintf(stderr, "pageferry probe: %s\n", text);
	return n_failures ? EXIT_FAILED : EXIT_DONE;
}

const struct command cmd_probe = {
	.name = "probe",
	.synopsis = "[OPTION...]",
	.summary = "Say what this host allows, and how to mend what it doesn't.",
	.notes = "Each thing is tried, with the rights of who runs the command. The status is 0 "
		 "when\n"
		 "everything that receive and attach can't do without is there, else 1.\n",
	.options = probe_options,
	.run = run,
};
