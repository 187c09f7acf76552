/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a killed command may have left: the records of an attach and of a switchover, as they come
 * off a disk, torn, another build's, or whole.
 *
 * The last byte says how: bit 0 the input is a file as it is. Else it is what a record has behind
 * its head, zeros where it ends early, and the head is put right. Bit 1: of an attach, else of a
 * switchover; bit 2: a good record was there before; bit 3: the last byte of the new one did not
 * get there.
 */
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "base/util.h"
#include "fuzz.h"
#include "migrate/journal.h"
#include "uffd/attach_record.h"
#include "uffd/pager.h"

enum { AS_IT_IS = 1, ATTACH = 2, HAD_ONE = 4, TORN = 8 };

union record {
	struct ferry_keep_head head;
	struct ferry_journal_entry journal;
	struct ferry_attach_record attach;
};

/* Of each kind: its file, and what a good one is. */
struct kind {
	int fd;
	size_t bytes;
	union record good;
};

static char dir[] = "/dev/shm/pageferry-fuzz-XXXXXX";
static struct kind kinds[2]; /* of a switchover, of an attach */

/* --- good ones -------------------------------------------------------------------------------- */

static void clean_up(void)
{
	char command[64];

	snprintf(command, sizeof(command), "rm -r %s", dir);
	(void)!system(command);
}

static void keep_kind(struct kind *k, const struct ferry_keep *file, size_t bytes)
{
	k->bytes = bytes;
	MUST(pread(file->fd, &k->good, bytes, 0) == (ssize_t)bytes);
	k->fd = open(file->path, O_RDWR | O_CLOEXEC);
	MUST(k->fd >= 0);
}

static void set_up(void)
{
	static struct ferry_qemu q = {.n_ram = 1};
	static struct ferry_journal_entry e;
	static struct ferry_attach_record r;
	struct ferry_journal j;
	struct ferry_keep k;

	if (kinds[0].bytes)
		return;
	MUST(mkdtemp(dir) && !atexit(clean_up));
	q.pid = getpid();
	q.ram[0] =
		(struct ferry_qemu_ram){.desc = {.page_bytes = 4096, .n_pages = 1, .name = "ram"},
					.kind = FERRY_MAPPING_SHARED};
	MUST(!ferry_journal_open(&j, dir, FERRY_SIDE_SOURCE, dir, &e, NULL));
	e.n_bulk = 1;
	MUST(!ferry_journal_begin(&j, FERRY_JOURNAL_BEGUN, &q, &e, NULL));
	keep_kind(&kinds[0], &j.file, sizeof(e));
	ferry_journal_close(&j, false);
	MUST(!ferry_attach_record_open(&k, dir, getpid(), &r, NULL));
	r.n_regions = 1;
	r.regions[0].desc = q.ram[0].desc;
	MUST(!ferry_keep_write(&k, &r, sizeof(r), getpid()));
	keep_kind(&kinds[1], &k, sizeof(r));
	ferry_keep_close(&k, false);
}

/* --- what is there ---------------------------------------------------------------------------- */

static void put(int fd, const void *bytes, size_t n, off_t at)
{
	MUST(pwrite(fd, bytes, n, at) == (ssize_t)n);
}

static void put_right(const struct kind *k, const uint8_t *data, size_t size, int how)
{
	const size_t room = k->bytes - sizeof(struct ferry_keep_head);
	off_t behind = (off_t)((k->bytes + 4095) / 4096 * 4096);
	union record r;

	memset(&r, 0, sizeof(r));
	r.head = k->good.head;
	memcpy((uint8_t *)&r + sizeof(r.head), data, FERRY_MIN(size, room));
	r.head.version = how & HAD_ONE ? 2 : 1;
	r.head.checksum = 0;
	r.head.checksum = XXH3_64bits(&r, k->bytes);
	if (how & TORN)
		((uint8_t *)&r)[k->bytes - 1] ^= 1;
	if (how & HAD_ONE)
		put(k->fd, &k->good, k->bytes, 0);
	put(k->fd, &r, k->bytes, how & HAD_ONE ? behind : 0);
}

static void check_desc(const struct ferry_region_desc *d)
{
	MUST(d->n_pages && d->n_pages <= FERRY_MAX_REGION_PAGES && d->page_bytes);
	MUST(d->page_bytes <= FERRY_MAX_PAGE_BYTES && memchr(d->name, 0, sizeof(d->name)));
}

static void check_addr(const struct ferry_addr *a)
{
	char text[FERRY_ADDR_TEXT_MAX];

	MUST(memchr(a->host, 0, sizeof(a->host)) && memchr(a->port, 0, sizeof(a->port)) &&
	     memchr(a->path, 0, sizeof(a->path)));
	ferry_addr_format(a, text);
	MUST(strlen(text) < sizeof(text));
	(void)ferry_addr_is_local(a);
}

static enum ferry_keep_state look_at_journal(struct ferry_journal_entry *e)
{
	enum ferry_keep_state found = ferry_journal_peek(dir, FERRY_SIDE_SOURCE, dir, e);
	static struct ferry_qemu q;
	struct ferry_failure f;

	if (found == FERRY_KEEP_EMPTY) {
		MUST(!e->phase && !e->n_regions);
		return found;
	}
	MUST(e->phase <= FERRY_JOURNAL_COMPLETE && e->n_bulk <= FERRY_MAX_BULK);
	MUST(memchr(e->settings, 0, sizeof(e->settings)));
	check_addr(&e->addr);
	(void)ferry_journal_check_encrypted(e, false, &f);
	ferry_journal_qemu(e, &q);
	MUST(q.n_ram && q.n_ram <= FERRY_MAX_REGIONS && q.ram_bytes);
	for (uint32_t i = 0; i < q.n_ram; i++)
		check_desc(&q.ram[i].desc);
	return found;
}

static enum ferry_keep_state look_at_attach(struct ferry_attach_record *r)
{
	enum ferry_keep_state found = ferry_attach_record_peek(dir, getpid(), r);

	if (found == FERRY_KEEP_EMPTY) {
		MUST(!r->n_regions);
		return found;
	}
	MUST(r->n_regions && r->n_regions <= FERRY_MAX_REGIONS);
	check_addr(&r->from);
	for (uint32_t i = 0; i < r->n_regions; i++) {
		check_desc(&r->regions[i].desc);
		MUST(r->regions[i].kind < FERRY_MAPPING_FILE);
		MUST(*(const uint8_t *)&r->regions[i].is_private <= 1);
	}
	return found;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	/* Of its exact size each, so that reading past its end is seen. */
	static struct ferry_journal_entry journal;
	static struct ferry_attach_record attach;
	enum ferry_keep_state found;
	const struct kind *k;
	uint8_t how;

	if (!size)
		return 0;
	set_up();
	how = data[--size];
	k = &kinds[!!(how & ATTACH)];
	MUST(!ftruncate(k->fd, 0));
	if (how & AS_IT_IS)
		put(k->fd, data, size, 0);
	else
		put_right(k, data, size, how);
	found = how & ATTACH ? look_at_attach(&attach) : look_at_journal(&journal);
	/* What was written in part never counts, and what was there before does. */
	if ((how & (AS_IT_IS | TORN)) == TORN) {
		MUST(found == (how & HAD_ONE ? FERRY_KEEP_FOUND : FERRY_KEEP_EMPTY));
		MUST(!(how & HAD_ONE) ||
		     !memcmp(how & ATTACH ? (void *)&attach : &journal, &k->good, k->bytes));
	}
	return 0;
}
