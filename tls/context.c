/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <openssl/err.h>
#include <string.h>

#include "tls/internal.h"

static const unsigned char alpn[] = {
	sizeof(TLS_ALPN) - 1, 'p', 'a', 'g', 'e', 'f', 'e', 'r', 'r', 'y'};

static int select_alpn(SSL *ssl, const unsigned char **out, unsigned char *out_len,
		       const unsigned char *in, unsigned int in_len, void *ctx)
{
	unsigned char *found;

	(void)ssl, (void)ctx;
	if (SSL_select_next_proto(&found, out_len, alpn, sizeof(alpn), in, in_len) !=
	    OPENSSL_NPN_NEGOTIATED)
		return SSL_TLSEXT_ERR_ALERT_FATAL;
	*out = found;
	return SSL_TLSEXT_ERR_OK;
}

/* No sessions that are resumed, no early data, no renegotiation: each connection proves itself. */
static int set_up(struct ferry_tls *t, struct ferry_failure *f)
{
	bool ok = SSL_CTX_set_min_proto_version(t->ctx, TLS1_3_VERSION) &&
		  SSL_CTX_set_max_proto_version(t->ctx, TLS1_3_VERSION) &&
		  SSL_CTX_set_num_tickets(t->ctx, 0) && SSL_CTX_set_max_early_data(t->ctx, 0);

	SSL_CTX_set_options(t->ctx,
			    SSL_OP_NO_TICKET | SSL_OP_NO_RENEGOTIATION | SSL_OP_ENABLE_KTLS);
	SSL_CTX_set_session_cache_mode(t->ctx, SSL_SESS_CACHE_OFF);
	SSL_CTX_set_mode(t->ctx,
			 SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
	/* Several records with one read. */
	SSL_CTX_set_read_ahead(t->ctx, 1);
	SSL_CTX_set_default_read_buffer_len(t->ctx, 68 * 1024);
	if (t->accepts)
		SSL_CTX_set_alpn_select_cb(t->ctx, select_alpn, NULL);
	else if (!t->is_foreign)
		ok = ok && !SSL_CTX_set_alpn_protos(t->ctx, alpn, sizeof(alpn));
	if (!SSL_CTX_set_app_data(t->ctx, t))
		return ferry_fail_errno(f, FERRY_REFUSE, -ENOMEM, "TLS");
	return ok ? 0 : ferry_fail(f, FERRY_REFUSE, -ENOTSUP, "this OpenSSL has no TLS 1.3");
}

int ferry_tls_context_init(struct ferry_tls *t, const struct ferry_tls_config *config,
			   struct ferry_failure *f)
{
	int rc;

	t->ctx = SSL_CTX_new(t->accepts ? TLS_server_method() : TLS_client_method());
	if (!t->ctx) {
		ERR_clear_error();
		return ferry_fail_errno(f, FERRY_REFUSE, -ENOMEM, "TLS");
	}
	rc = set_up(t, f);
	if (rc < 0)
		return rc;
	return t->uses_psk ? ferry_psk_load(t, config->psk, f) : ferry_x509_load(t, config->dir, f);
}

void ferry_tls_context_fini(struct ferry_tls *t)
{
	SSL_CTX_free(t->ctx);
	ferry_psks_fini(&t->psks);
}
