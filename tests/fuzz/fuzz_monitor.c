/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What comes from a QEMU monitor. The first byte says in how large pieces; the rest goes through
 * the parser of QMP, and, as a text of the human monitor, through those of "info mtree" and
 * "gpa2hva".
 */
#include <errno.h>
#include <string.h>

#include "base/cleanup.h"
#include "fuzz.h"
#include "migrate/qemu_ram.h"
#include "migrate/qmp_parse.h"

/* Return: how many messages there are before the first error, and a mark of what they said. */
static unsigned int parse(const uint8_t *data, size_t size, size_t piece, uint64_t *mark)
{
	struct ferry_qmp_message m;
	struct ferry_qmp_parser p;
	unsigned int n = 0;
	int rc = 0;

	*mark = 0;
	ferry_qmp_parser_init(&p);
	while (size && rc >= 0) {
		size_t room;
		char *to;

		if (ferry_qmp_parser_space(&p, &to, &room) < 0)
			break;
		MUST(room);
		room = piece < room ? piece : room;
		room = size < room ? size : room;
		memcpy(to, data, room);
		ferry_qmp_parser_advance(&p, room);
		data += room;
		size -= room;
		while ((rc = ferry_qmp_parser_next(&p, &m)) == 1) {
			MUST(m.kind <= FERRY_QMP_EVENT);
			MUST(memchr(m.text, 0, sizeof(m.text)));
			*mark = *mark * 31 + m.kind + (uint64_t)m.id + strlen(m.text);
			n++;
			ferry_qmp_message_fini(&m);
		}
		MUST(rc == 0 || rc == -EPROTO);
	}
	ferry_qmp_parser_fini(&p);
	return n;
}

static void human(const uint8_t *data, size_t size)
{
	_cleanup_free_ char *text = strndup((const char *)data, size);
	struct ferry_mtree_entry e = {0};
	struct ferry_hva hva = {0};

	MUST(text);
	if (ferry_mtree_find(text, "ram0", &e))
		MUST(strstr(text, "ram0"));
	if (!ferry_hva_parse(text, "ram0", &hva))
		MUST(hva.v && strstr(text, "ram0"));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	uint64_t whole, cut;

	if (!size)
		return 0;
	/* However it is cut, it says the same. */
	MUST(parse(data + 1, size - 1, SIZE_MAX, &whole) ==
	     parse(data + 1, size - 1, (size_t)data[0] + 1, &cut));
	MUST(whole == cut);
	human(data + 1, size - 1);
	return 0;
}
