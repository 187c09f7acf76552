/* SPDX-License-Identifier: Apache-2.0 */
/* Records that outlive us: whatever fails, one is there whole, or none, and what was kept is kept. */
#include <dirent.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/keep.h"
#include "driver.h"

#define RECORD_BYTES 9000 /* more than two pages */
#define MAP_BYTES    20000

struct record {
	struct ferry_keep_head head;
	uint8_t bytes[RECORD_BYTES];
};

static char dir[] = "/var/tmp/pageferry-fault-XXXXXX";

static bool all_are(const struct record *r, uint8_t v)
{
	for (size_t i = 0; i < sizeof(r->bytes); i++)
		if (r->bytes[i] != v)
			return false;
	return true;
}

/* Return: 0 when there is none, 1, 2 or 3 as written, -1 when it is neither. */
static int what_is_kept(void)
{
	static struct record r;
	enum ferry_keep_state state = ferry_keep_peek(dir, "record", &r, sizeof(r));

	if (state == FERRY_KEEP_EMPTY)
		return 0;
	if (state == FERRY_KEEP_OTHER)
		return -1; /* we have not ended */
	for (int v = 1; v <= 3; v++)
		if (all_are(&r, (uint8_t)v))
			return v;
	return -1;
}

static int write_record(const struct ferry_keep *k, uint8_t v)
{
	static struct record r;

	memset(r.bytes, v, sizeof(r.bytes));
	return WITH_FAULTS(ferry_keep_write(k, &r, sizeof(r), getpid()));
}

static bool could_not_be_read(enum ferry_keep_state found)
{
	return found == FERRY_KEEP_UNREAD && fault_has_struck_in(FAULT_pread64);
}

static enum fault_outcome use(struct ferry_keep *k, char *why)
{
	static struct record r;
	int first, second, third, kept, rc;
	enum ferry_keep_state found;
	void *map;

	found = WITH_FAULTS(ferry_keep_read(k, &r, sizeof(r)));
	if (found != FERRY_KEEP_EMPTY && !could_not_be_read(found))
		return WRONG("a new record is not empty");
	first = write_record(k, 1);
	kept = what_is_kept();
	if (kept < 0 || kept == 2 || (!first && kept != 1))
		return WRONG("the first write: %d, and %d is kept", first, kept);
	rc = WITH_FAULTS(ferry_keep_map(k, sizeof(r), MAP_BYTES, true, &map));
	if (!rc) {
		for (size_t i = 0; i < MAP_BYTES; i++)
			if (((uint8_t *)map)[i])
				return WRONG("fresh memory is not zero");
		WITH_FAULTS(munmap(map, MAP_BYTES));
		if (!first && what_is_kept() != 1)
			return WRONG("the record is gone with the map");
	}
	second = write_record(k, 2);
	kept = what_is_kept();
	if (kept < 0 || (!first && !kept) || (!second && kept != 2))
		return WRONG("the second write: %d, and %d is kept", second, kept);
	/* In the place of the first one. */
	third = write_record(k, 3);
	kept = what_is_kept();
	if (kept < 0 || (!second && kept < 2) || (!third && kept != 3))
		return WRONG("the third write: %d, and %d is kept", third, kept);
	found = WITH_FAULTS(ferry_keep_read(k, &r, sizeof(r)));
	if (kept ? found != FERRY_KEEP_FOUND && !could_not_be_read(found)
		 : found == FERRY_KEEP_FOUND)
		return WRONG("%d is kept, and what is read is %d", kept, (int)found);
	if (!first && !rc && !second && !third)
		return FAULT_SURVIVED;
	snprintf(why, 256, "%s", strerror(-(first ? first : rc ? rc : second ? second : third)));
	return FAULT_REFUSED;
}

static enum fault_outcome run(const void *arg, char why[256])
{
	struct ferry_failure f = {0};
	struct ferry_keep k;
	enum fault_outcome outcome;
	DIR *d = opendir(dir);
	int rc;

	(void)arg;
	rc = d ? WITH_FAULTS(ferry_keep_open(&k, dir, "record", &f)) : -1;
	if (rc < 0 && (f.err != rc || !f.text[0] || f.consequence != FERRY_REFUSE || k.fd >= 0))
		return WRONG("open: %d, '%.100s'", rc, f.text);
	if (rc < 0) {
		snprintf(why, 256, "%.200s", f.text);
		closedir(d);
		return FAULT_REFUSED;
	}
	outcome = use(&k, why);
	WITH_FAULTS((ferry_keep_close(&k, true), 0));
	/* Whoever comes next finds none. */
	if (outcome != FAULT_WRONG && what_is_kept() && !fault_has_struck_in(FAULT_unlink))
		return WRONG("the record was not removed");
	unlinkat(dirfd(d), "record", 0);
	closedir(d);
	return outcome;
}

int main(int argc, char **argv)
{
	static const struct fault_scenario scenario = {"records", run, NULL};
	int rc;

	if (!mkdtemp(dir))
		return 1;
	rc = fault_main(argc, argv, &scenario, 1);
	rmdir(dir);
	return rc;
}
