/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A TLS handshake of ours, with what is in the input changed of what the peer sends, or with the
 * input in place of a peer. Whatever comes: who does not have the right key or certificate never
 * gets in, who has it does when nothing was changed, and what went wrong is told.
 *
 *    byte 0    bit 0 we accept, bit 1 by keys (else by certificates), bit 2 the peer has the wrong
 *              ones, bit 3 there is no peer: what follows is what comes, bit 4 the peer has
 *              certificates where we have keys, and the other way round
 *    then      changes: an offset of two bytes into what the peer sends, and the new value
 *
 * With a peer it takes a hundred times as long: libFuzzer, which prefers what gets far, is let have
 * one for one input of SELDOM.
 */
#include <openssl/bio.h>
#include <openssl/err.h>
#include <string.h>
#include <sys/stat.h>

#include "base/util.h"
#include "fuzz.h"
#include "tls/internal.h"

#ifndef SELDOM
#define SELDOM 1
#endif

enum { ACCEPTS = 1, BY_KEYS = 2, WRONG = 4, NO_PEER = 8, OTHER_KIND = 16 };

/* What the other end has said so far, and the other end. */
struct wire {
	uint8_t said[16384];
	size_t at, end;
	SSL *peer;		  /* owned; NULL for none */
	BIO *to_peer, *from_peer; /* the peer's */
	const uint8_t *changes;
	size_t n_changes;
	bool is_changed;
};

/* By content, so that an input that fails once fails always. */
static bool is_chosen(const uint8_t *data, size_t size)
{
	uint32_t sum = 0;

	for (size_t i = 0; i < size; i++)
		sum = sum * 31 + data[i];
	return sum % SELDOM == 0;
}

static struct ferry_tls *contexts[8]; /* by the bits of an input's first byte */
static BIO_METHOD *method;

static void let_peer_speak(struct wire *w)
{
	size_t before = w->end;
	int n;

	if (!w->peer)
		return;
	SSL_do_handshake(w->peer);
	n = BIO_read(w->from_peer, w->said + before, (int)(sizeof(w->said) - before));
	w->end += n > 0 ? (size_t)n : 0;
	for (size_t i = 0; i < w->n_changes; i++) {
		const uint8_t *c = w->changes + 3 * i;
		size_t at = c[0] | (size_t)c[1] << 8;

		if (at < before || at >= w->end)
			continue;
		w->is_changed |= w->said[at] != c[2];
		w->said[at] = c[2];
	}
	/* Its errors are none of ours. */
	ERR_clear_error();
}

/* Waits for nothing: when the peer has no more to say, that is the end. */
static int wire_read(BIO *b, char *to, int len)
{
	struct wire *w = BIO_get_data(b);
	size_t n;

	if (w->at == w->end)
		let_peer_speak(w);
	n = FERRY_MIN((size_t)len, w->end - w->at);
	memcpy(to, w->said + w->at, n);
	w->at += n;
	return (int)n;
}

static int wire_write(BIO *b, const char *bytes, int len)
{
	struct wire *w = BIO_get_data(b);

	return w->peer ? BIO_write(w->to_peer, bytes, len) : len;
}

static long wire_ctrl(BIO *b, int what, long n, void *at)
{
	(void)b, (void)n, (void)at;
	return what == BIO_CTRL_FLUSH;
}

/* --- who there is ----------------------------------------------------------------------------- */

static void write_keys(const char *path, const char *line)
{
	FILE *to = fopen(path, "w");

	MUST(to && !chmod(path, 0600) && fputs(line, to) >= 0 && !fclose(to));
}

static void make_contexts(void)
{
	static const char *const keys[] = {"alice:0123456789abcdef0123456789abcdef\n",
					   "alice:fedcba9876543210fedcba9876543210\n"};
	char folder[] = "/tmp/pageferry-fuzz-XXXXXX", command[512], dir[64], file[64];

	MUST(mkdtemp(folder));
	for (int how = 0; how < 8; how++) {
		struct ferry_tls_config config = {.accepts = how & ACCEPTS};
		struct ferry_failure f;

		snprintf(file, sizeof(file), "%s/keys", folder);
		write_keys(file, keys[!!(how & WRONG)]);
		snprintf(dir, sizeof(dir), "%s/%d/localhost", folder, how & WRONG);
		snprintf(command, sizeof(command), "test -e %s || '%s' %s/%d localhost >/dev/null",
			 dir, MAKE_CREDENTIALS, folder, how & WRONG);
		MUST(!system(command));
		*(how & BY_KEYS ? &config.psk : &config.dir) = how & BY_KEYS ? file : dir;
		if (ferry_tls_new(&contexts[how], &config, &f) < 0)
			fprintf(stderr, "%s\n", f.text);
		MUST(contexts[how]);
	}
	snprintf(command, sizeof(command), "rm -r %s", folder);
	MUST(!system(command));
}

static void set_up(void)
{
	if (method)
		return;
	make_contexts();
	method = BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, "wire");
	MUST(method && BIO_meth_set_read(method, wire_read) &&
	     BIO_meth_set_write(method, wire_write) && BIO_meth_set_ctrl(method, wire_ctrl));
}

static void prepare_peer(struct wire *w, int how, const struct ferry_addr *to)
{
	struct ferry_failure f;

	how ^= how & OTHER_KIND ? ACCEPTS | BY_KEYS : ACCEPTS;
	MUST(!ferry_handshake_prepare(contexts[how & 7], -1, how & ACCEPTS ? NULL : to, &w->peer,
				      &f));
	w->to_peer = BIO_new(BIO_s_mem());
	w->from_peer = BIO_new(BIO_s_mem());
	MUST(w->to_peer && w->from_peer);
	SSL_set_bio(w->peer, w->to_peer, w->from_peer);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const struct ferry_addr to = {.host = "localhost", .port = "1"};
	static struct wire w;
	struct ferry_relay r = {.name = "peer", .tcp_fd = -1, .kick_fd = -1};
	struct ferry_failure f = {0};
	int how, rc;
	BIO *b;

	if (!size)
		return 0;
	set_up();
	how = data[0] & 31;
	if (!is_chosen(data, size))
		how |= NO_PEER;
	w = (struct wire){.changes = data + 1, .n_changes = (size - 1) / 3};
	if (how & NO_PEER) {
		w.end = FERRY_MIN(size - 1, sizeof(w.said));
		memcpy(w.said, data + 1, w.end);
	} else {
		prepare_peer(&w, how, &to);
	}
	r.tls = contexts[how & (ACCEPTS | BY_KEYS)];
	MUST(!ferry_handshake_prepare(r.tls, -1, how & ACCEPTS ? NULL : &to, &r.ssl, &f));
	b = BIO_new(method);
	MUST(b);
	BIO_set_data(b, &w);
	BIO_set_init(b, 1);
	SSL_set_bio(r.ssl, b, b);
	rc = ferry_handshake_run(&r, &f);
	if (rc < 0) {
		MUST((how & (WRONG | NO_PEER | OTHER_KIND)) || w.is_changed);
		MUST(f.err == rc && f.text[0] && memchr(f.text, 0, sizeof(f.text)));
		MUST(f.consequence == FERRY_LINK || f.consequence == FERRY_REFUSE);
	} else {
		MUST(!(how & (WRONG | NO_PEER | OTHER_KIND)));
	}
	MUST(memchr(r.name, 0, sizeof(r.name)));
	SSL_free(r.ssl);
	SSL_free(w.peer);
	ERR_clear_error();
	return 0;
}
