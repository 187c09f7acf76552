/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <openssl/crypto.h>
#include <openssl/err.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/cleanup.h"
#include "tls/internal.h"

/* The hash of a key is fixed with it; SHA-256 is what everybody takes for one from outside. */
#define PSK_CIPHERSUITES "TLS_AES_128_GCM_SHA256:TLS_CHACHA20_POLY1305_SHA256"

static const unsigned char psk_cipher[2] = {0x13, 0x01}; /* TLS_AES_128_GCM_SHA256 */

/* --- the file -------------------------------------------------------------------------------- */

static int hex_value(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	if (c >= 'a' && c <= 'f')
		return c - 'a' + 10;
	if (c >= 'A' && c <= 'F')
		return c - 'A' + 10;
	return -1;
}

static bool parse_key(struct ferry_psk *k, const char *hex, size_t len)
{
	if (len % 2 || len / 2 < PSK_KEY_MIN || len / 2 > PSK_KEY_MAX)
		return false;
	for (size_t i = 0; i < len / 2; i++) {
		int high = hex_value(hex[2 * i]), low = hex_value(hex[2 * i + 1]);

		if (high < 0 || low < 0)
			return false;
		k->key[i] = (unsigned char)(high << 4 | low);
	}
	k->key_bytes = len / 2;
	return true;
}

/* Return: NULL, or what is wrong. */
static const char *parse_line(struct ferry_psk *k, const char *line, size_t len)
{
	const char *colon = memchr(line, ':', len);
	size_t name_len = colon ? (size_t)(colon - line) : 0;

	if (!name_len || name_len > PSK_NAME_MAX || memchr(line, '\0', len))
		return "write NAME:KEY, with a name of at most 128 characters";
	*k = (struct ferry_psk){0};
	memcpy(k->name, line, name_len);
	if (!parse_key(k, colon + 1, len - name_len - 1))
		return "write the key as 32 to 128 hexadecimal digits (16 to 64 bytes)";
	return NULL;
}

static bool is_blank(const char *line, size_t len)
{
	/* The text has no end of its own. */
	for (size_t i = 0; i < len && line[0] != '#'; i++)
		if (line[i] != ' ' && line[i] != '\t')
			return false;
	return true;
}

int ferry_psk_parse(struct ferry_psks *out, const char *text, size_t len, struct ferry_failure *f)
{
	struct ferry_psks p = {.keys = calloc(PSK_MAX_KEYS, sizeof(*p.keys))};
	const char *why = NULL;
	unsigned int n_lines = 0;

	if (!p.keys)
		return ferry_fail_errno(f, FERRY_REFUSE, -ENOMEM, "keys");
	while (len && !why) {
		const char *end = memchr(text, '\n', len);
		size_t with_end = end ? (size_t)(end - text) + 1 : len,
		       n = end ? with_end - 1 : len;

		n_lines++;
		if (n && text[n - 1] == '\r')
			n--;
		if (is_blank(text, n))
			;
		else if (p.n == PSK_MAX_KEYS)
			why = "there are more than 256 keys";
		else
			why = parse_line(&p.keys[p.n++], text, n);
		text += with_end;
		len -= with_end;
	}
	if (why || !p.n) {
		ferry_psks_fini(&p);
		return why ? ferry_fail(f, FERRY_REFUSE, -EINVAL, "line %u: %s", n_lines, why)
			   : ferry_fail(f, FERRY_REFUSE, -EINVAL,
					"there is no key in it; write a line NAME:KEY");
	}
	*out = p;
	return 0;
}

void ferry_psks_fini(struct ferry_psks *p)
{
	if (p->keys)
		OPENSSL_cleanse(p->keys, PSK_MAX_KEYS * sizeof(*p->keys));
	free(p->keys);
	*p = (struct ferry_psks){0};
}

/* --- what OpenSSL asks for ------------------------------------------------------------------ */

static SSL_SESSION *session_of(SSL *ssl, const struct ferry_psk *k)
{
	const SSL_CIPHER *cipher = SSL_CIPHER_find(ssl, psk_cipher);
	SSL_SESSION *s = SSL_SESSION_new();

	if (s && cipher && SSL_SESSION_set1_master_key(s, k->key, k->key_bytes) &&
	    SSL_SESSION_set_cipher(s, cipher) &&
	    SSL_SESSION_set_protocol_version(s, TLS1_3_VERSION))
		return s;
	SSL_SESSION_free(s);
	return NULL;
}

static const struct ferry_psks *keys_of(SSL *ssl)
{
	const struct ferry_tls *t = SSL_CTX_get_app_data(SSL_get_SSL_CTX(ssl));

	return &t->psks;
}

/* We dial: the first key of the file is ours. */
static int use_session(SSL *ssl, const EVP_MD *md, const unsigned char **id, size_t *id_len,
		       SSL_SESSION **out)
{
	const struct ferry_psk *k = &keys_of(ssl)->keys[0];

	*out = NULL;
	if (md && EVP_MD_get_type(md) != NID_sha256)
		return 1;
	*out = session_of(ssl, k);
	*id = (const unsigned char *)k->name;
	*id_len = strlen(k->name);
	return *out != NULL;
}

/* We accept: any key of the file. */
static int find_session(SSL *ssl, const unsigned char *id, size_t id_len, SSL_SESSION **out)
{
	const struct ferry_psks *p = keys_of(ssl);

	*out = NULL;
	for (size_t i = 0; i < p->n; i++) {
		if (strlen(p->keys[i].name) != id_len || memcmp(p->keys[i].name, id, id_len))
			continue;
		*out = session_of(ssl, &p->keys[i]);
		return *out != NULL;
	}
	return 1;
}

static int read_file(struct ferry_psks *out, const char *path, struct ferry_failure *f)
{
	_cleanup_close_ int fd = ferry_tls_open_secret(path, f);
	char *text;
	ssize_t n;
	int rc;

	if (fd < 0)
		return fd;
	text = malloc(PSK_FILE_MAX + 1);
	if (!text)
		return ferry_fail_errno(f, FERRY_REFUSE, -ENOMEM, "keys");
	n = read(fd, text, PSK_FILE_MAX + 1);
	if (n < 0)
		rc = ferry_fail_errno(f, FERRY_REFUSE, -errno, "read");
	else if (n > PSK_FILE_MAX)
		rc = ferry_fail(f, FERRY_REFUSE, -EFBIG, "it is longer than 64 KiB");
	else
		rc = ferry_psk_parse(out, text, (size_t)n, f);
	OPENSSL_cleanse(text, PSK_FILE_MAX + 1);
	free(text);
	return rc;
}

int ferry_psk_load(struct ferry_tls *t, const char *path, struct ferry_failure *f)
{
	int rc = read_file(&t->psks, path, f);

	if (rc < 0) {
		ferry_fail_prefix(f, "%.200s", path);
		return rc;
	}
	if (!SSL_CTX_set_ciphersuites(t->ctx, PSK_CIPHERSUITES))
		return ferry_fail(f, FERRY_REFUSE, -ENOTSUP,
				  "this OpenSSL has none of the ciphers %s", PSK_CIPHERSUITES);
	if (t->accepts) {
		/* Without a certificate of ours there is no handshake but by a key. */
		SSL_CTX_set_psk_find_session_callback(t->ctx, find_session);
		return 0;
	}
	SSL_CTX_set_psk_use_session_callback(t->ctx, use_session);
	/* Nobody has signed for a certificate that comes instead of the key. */
	SSL_CTX_set_verify(t->ctx, SSL_VERIFY_PEER, NULL);
	return 0;
}
