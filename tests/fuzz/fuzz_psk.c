/* SPDX-License-Identifier: Apache-2.0 */
/* What a file of keys may hold: lines NAME:KEY. */
#include <errno.h>
#include <string.h>

#include "base/cleanup.h"
#include "fuzz.h"
#include "tls/internal.h"

static void check(const struct ferry_psks *p)
{
	MUST(p->n && p->n <= PSK_MAX_KEYS);
	for (size_t i = 0; i < p->n; i++) {
		const struct ferry_psk *k = &p->keys[i];

		MUST(memchr(k->name, 0, sizeof(k->name)) && k->name[0]);
		MUST(!strpbrk(k->name, ":\n"));
		MUST(k->key_bytes >= PSK_KEY_MIN && k->key_bytes <= PSK_KEY_MAX);
	}
}

/* Written as it was understood it says the same. */
static void check_again(const struct ferry_psks *p)
{
	_cleanup_free_ char *text = NULL;
	struct ferry_psks again;
	size_t len;
	FILE *to = open_memstream(&text, &len);

	MUST(to);
	for (size_t i = 0; i < p->n; i++) {
		fprintf(to, "%s:", p->keys[i].name);
		for (size_t b = 0; b < p->keys[i].key_bytes; b++)
			fprintf(to, "%02x", p->keys[i].key[b]);
		fputc('\n', to);
	}
	MUST(!fclose(to));
	MUST(!ferry_psk_parse(&again, text, len, NULL) && again.n == p->n);
	MUST(!memcmp(again.keys, p->keys, p->n * sizeof(*p->keys)));
	ferry_psks_fini(&again);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct ferry_failure f = {0};
	struct ferry_psks p;

	if (!ferry_psk_parse(&p, (const char *)data, size, &f)) {
		check(&p);
		check_again(&p);
		ferry_psks_fini(&p);
	} else {
		MUST(f.err == -EINVAL && f.text[0] && memchr(f.text, 0, sizeof(f.text)));
	}
	return 0;
}
