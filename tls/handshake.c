/* SPDX-License-Identifier: Apache-2.0 */
#include <arpa/inet.h>
#include <errno.h>
#include <openssl/err.h>
#include <openssl/sslerr.h>
#include <openssl/x509v3.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>

#include "base/clock.h"
#include "tls/internal.h"

/* --- whom it has to be ------------------------------------------------------------------------ */

static bool is_ip(const char *host)
{
	struct in6_addr a;

	return inet_pton(AF_INET, host, &a) == 1 || inet_pton(AF_INET6, host, &a) == 1;
}

static int expect_name(const struct ferry_tls *t, const struct ferry_addr *to, SSL *ssl,
		       struct ferry_failure *f)
{
	const char *name = to ? t->hostname : t->peer;

	if (to && !name && to->is_unix)
		return ferry_fail(f, FERRY_REFUSE, -EINVAL,
				  "a certificate can't name a UNIX socket; add --tls-hostname with "
				  "the name that it has");
	if (to && !name)
		name = to->host;
	if (!name)
		return 0;
	if (to && is_ip(name))
		return X509_VERIFY_PARAM_set1_ip_asc(SSL_get0_param(ssl), name) ? 0 : -ENOMEM;
	/* A name that a server goes by is in the alternative names; who a client is, often in the
	 * subject. */
	SSL_set_hostflags(ssl,
			  to ? X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS
			     : X509_CHECK_FLAG_NO_WILDCARDS | X509_CHECK_FLAG_ALWAYS_CHECK_SUBJECT);
	if (!SSL_set1_host(ssl, name) || (to && !SSL_set_tlsext_host_name(ssl, name)))
		return ferry_fail(f, FERRY_REFUSE, -EINVAL, "'%.100s' is no name of a host", name);
	return 0;
}

int ferry_handshake_prepare(struct ferry_tls *t, int fd, const struct ferry_addr *to, SSL **out,
			    struct ferry_failure *f)
{
	SSL *ssl = SSL_new(t->ctx);
	int rc = 0;

	if (!ssl || !SSL_set_fd(ssl, fd))
		rc = ferry_fail_errno(f, FERRY_REFUSE, -ENOMEM, "TLS");
	else if (!t->uses_psk)
		rc = expect_name(t, to, ssl, f);
	if (rc < 0) {
		SSL_free(ssl);
		ERR_clear_error();
		return rc;
	}
	if (to)
		SSL_set_connect_state(ssl);
	else
		SSL_set_accept_state(ssl);
	*out = ssl;
	return 0;
}

/* --- words for what goes wrong ---------------------------------------------------------------- */

static int refused_certificate(const struct ferry_tls *t, SSL *ssl, struct ferry_failure *f)
{
	long err = SSL_get_verify_result(ssl);
	const char *why = X509_verify_cert_error_string(err);

	if (t->uses_psk)
		return ferry_fail(f, FERRY_REFUSE, -EACCES,
				  "TLS: the peer answers with a certificate and not with the key; "
				  "give both ends --psk, or both --tls");
	switch (err) {
	case X509_V_ERR_HOSTNAME_MISMATCH:
	case X509_V_ERR_IP_ADDRESS_MISMATCH:
		if (t->accepts)
			return ferry_fail(f, FERRY_REFUSE, -EACCES,
					  "TLS: the peer's certificate is not that of '%.100s', as "
					  "--tls-peer wants it",
					  t->peer);
		return ferry_fail(f, FERRY_REFUSE, -EACCES,
				  "TLS: the certificate of what answers is for another name; dial "
				  "it by one that it has, or give that as --tls-hostname");
	case X509_V_ERR_CERT_HAS_EXPIRED:
	case X509_V_ERR_CERT_NOT_YET_VALID:
		return ferry_fail(f, FERRY_REFUSE, -EKEYEXPIRED,
				  "TLS: the peer's %s; renew it there, or set this host's clock",
				  why);
	case X509_V_ERR_CERT_REVOKED:
		return ferry_fail(f, FERRY_REFUSE, -EKEYREVOKED, "TLS: the peer's %s", why);
	default:
		return ferry_fail(
			f, FERRY_REFUSE, -EACCES,
			"TLS: the peer's certificate is not accepted: %s; is it signed by "
			"ca-cert.pem?",
			why);
	}
}

/* What the peer has told us by an alert. */
static int refused_by_peer(const struct ferry_tls *t, int reason, struct ferry_failure *f)
{
	const char *ours = t->accepts ? "server-cert.pem" : "client-cert.pem";

	switch (reason) {
	case SSL_R_TLSV1_ALERT_UNKNOWN_CA:
		return ferry_fail(
			f, FERRY_REFUSE, -EACCES,
			"TLS: the peer doesn't know who signed our %s; both ends need the "
			"same ca-cert.pem",
			ours);
	case SSL_R_SSLV3_ALERT_CERTIFICATE_EXPIRED:
		return ferry_fail(
			f, FERRY_REFUSE, -EKEYEXPIRED,
			"TLS: the peer says that our %s has expired; renew it, or set its "
			"clock",
			ours);
	case SSL_R_SSLV3_ALERT_CERTIFICATE_REVOKED:
		return ferry_fail(f, FERRY_REFUSE, -EKEYREVOKED,
				  "TLS: the peer says that our %s was revoked; get a new one",
				  ours);
	case SSL_R_SSLV3_ALERT_BAD_CERTIFICATE:
	case SSL_R_SSLV3_ALERT_UNSUPPORTED_CERTIFICATE:
	case SSL_R_SSLV3_ALERT_CERTIFICATE_UNKNOWN:
		return ferry_fail(f, FERRY_REFUSE, -EACCES,
				  "TLS: the peer does not accept our %s; its log says why", ours);
	case SSL_R_SSLV3_ALERT_ILLEGAL_PARAMETER:
	case SSL_R_TLSV1_ALERT_DECRYPT_ERROR:
		if (t->uses_psk)
			return ferry_fail(
				f, FERRY_REFUSE, -EACCES,
				"TLS: the peer has another key for this name; use the same "
				"--psk file on both ends");
		break;
	case SSL_R_SSLV3_ALERT_HANDSHAKE_FAILURE:
	case SSL_R_TLSV13_ALERT_CERTIFICATE_REQUIRED:
	case SSL_R_TLSV13_ALERT_MISSING_EXTENSION:
		return ferry_fail(f, FERRY_REFUSE, -EACCES,
				  t->uses_psk
					  ? "TLS: the peer doesn't know our key's name; use the "
					    "same --psk file on both ends"
					  : "TLS: the peer takes no certificates; give both ends "
					    "--tls, or both --psk");
	case SSL_R_TLSV1_ALERT_NO_APPLICATION_PROTOCOL:
		return ferry_fail(f, FERRY_REFUSE, -EPROTO,
				  "TLS: what answers is not Pageferry; check the address");
	}
	return ferry_fail(f, FERRY_REFUSE, -EACCES, "TLS: the peer refuses: %s",
			  ERR_reason_error_string(ERR_PACK(ERR_LIB_SSL, 0, reason)));
}

static int explain_ssl(const struct ferry_tls *t, SSL *ssl, bool shaking, struct ferry_failure *f)
{
	unsigned long e = ERR_peek_error();
	int reason = ERR_GET_REASON(e);
	char text[120];

	if (reason == SSL_R_UNEXPECTED_EOF_WHILE_READING)
		return ferry_fail(
			f, FERRY_LINK, -ECONNRESET,
			shaking ? "TLS: the peer closed the connection instead of shaking "
				  "hands; its log may say why"
				: "TLS: the connection was cut");
	if (reason == SSL_R_CERTIFICATE_VERIFY_FAILED)
		return refused_certificate(t, ssl, f);
	if (reason > SSL_AD_REASON_OFFSET)
		return refused_by_peer(t, reason, f);
	if (!shaking)
		return ferry_fail(f, FERRY_LINK, -EBADMSG, "TLS: what came is not authentic: %s",
				  ferry_tls_error_text(text, sizeof(text)));
	switch (reason) {
	case SSL_R_WRONG_VERSION_NUMBER:
	case SSL_R_HTTP_REQUEST:
	case SSL_R_HTTPS_PROXY_REQUEST:
	case SSL_R_PACKET_LENGTH_TOO_LONG:
	case SSL_R_BAD_RECORD_TYPE:
	case SSL_R_RECORD_LENGTH_MISMATCH:
		return ferry_fail(
			f, FERRY_REFUSE, -EPROTO,
			"TLS: the peer doesn't speak it; give both ends --tls (or --psk), "
			"or neither");
	case SSL_R_UNSUPPORTED_PROTOCOL:
		return ferry_fail(f, FERRY_REFUSE, -EPROTO, "TLS: the peer has no version 1.3");
	case SSL_R_PEER_DID_NOT_RETURN_A_CERTIFICATE:
		return ferry_fail(f, FERRY_REFUSE, -EACCES, "TLS: the peer has no certificate");
	case SSL_R_BINDER_DOES_NOT_VERIFY:
		return ferry_fail(f, FERRY_REFUSE, -EACCES,
				  "TLS: the peer has another key for its name");
	case SSL_R_NO_SUITABLE_SIGNATURE_ALGORITHM:
	case SSL_R_NO_SHARED_CIPHER:
		if (t->uses_psk)
			return ferry_fail(f, FERRY_REFUSE, -EACCES,
					  "TLS: the peer has no key that the --psk file knows");
	}
	return ferry_fail(f, FERRY_REFUSE, -EACCES, "TLS: %s",
			  ferry_tls_error_text(text, sizeof(text)));
}

int ferry_handshake_explain(const struct ferry_tls *t, SSL *ssl, int ret, int err, bool shaking,
			    struct ferry_failure *f)
{
	int rc;

	switch (SSL_get_error(ssl, ret)) {
	case SSL_ERROR_SSL:
		rc = explain_ssl(t, ssl, shaking, f);
		break;
	case SSL_ERROR_SYSCALL:
		rc = ferry_fail_errno(f, FERRY_LINK, err ? -err : -ECONNRESET, "TLS");
		break;
	default:
		rc = ferry_fail(f, FERRY_LINK, -ECONNRESET, "TLS: the peer closed the connection");
	}
	ERR_clear_error();
	return rc;
}

/* --- the handshake ---------------------------------------------------------------------------- */

/* Who it turned out to be, into the name for the log. */
static void note_identity(struct ferry_relay *r)
{
	X509 *cert = SSL_get0_peer_certificate(r->ssl);
	char who[64] = "";
	size_t len = strlen(r->name);

	if (!cert || X509_NAME_get_text_by_NID(X509_get_subject_name(cert), NID_commonName, who,
					       sizeof(who)) <= 0)
		return;
	for (char *p = who; *p; p++) {
		if (*p < ' ' || *p > '~')
			*p = '?';
	}
	snprintf(r->name + len, sizeof(r->name) - len, " (%s)", who);
}

static int check_agreed(struct ferry_relay *r, struct ferry_failure *f)
{
	const unsigned char *proto;
	unsigned int len;

	SSL_get0_alpn_selected(r->ssl, &proto, &len);
	if (!r->tls->is_foreign && (len != strlen(TLS_ALPN) || memcmp(proto, TLS_ALPN, len)))
		return ferry_fail(f, FERRY_REFUSE, -EPROTO,
				  "TLS: what answers is not Pageferry; check the address");
	if (r->tls->uses_psk ? !SSL_session_reused(r->ssl)
			     : SSL_get_verify_result(r->ssl) != X509_V_OK)
		return ferry_fail(f, FERRY_REFUSE, -EACCES, "TLS: the peer is not authenticated");
	note_identity(r);
	return 0;
}

static int too_slow(struct ferry_failure *f)
{
	return ferry_fail(
		f, FERRY_LINK, -ETIMEDOUT,
		"TLS: no handshake within %d s; does the other end have --tls (or --psk)?",
		FERRY_TLS_HANDSHAKE_MS / 1000);
}

int ferry_handshake_run(struct ferry_relay *r, struct ferry_failure *f)
{
	uint64_t deadline = ferry_now_ns() + (uint64_t)FERRY_TLS_HANDSHAKE_MS * FERRY_NS_PER_MS;

	while (!atomic_load(&r->stop)) {
		uint64_t now = ferry_now_ns();
		eventfd_t n;
		int ret, err, rc;

		ERR_clear_error();
		errno = 0;
		ret = SSL_do_handshake(r->ssl);
		err = errno;
		if (ret == 1)
			return check_agreed(r, f);
		ret = SSL_get_error(r->ssl, ret);
		if (ret != SSL_ERROR_WANT_READ && ret != SSL_ERROR_WANT_WRITE)
			return ferry_handshake_explain(r->tls, r->ssl, -1, err, true, f);
		if (now >= deadline)
			return too_slow(f);
		rc = ferry_net_wait(r->tcp_fd, ret == SSL_ERROR_WANT_READ ? POLLIN : POLLOUT,
				    (int)((deadline - now) / FERRY_NS_PER_MS) + 1, r->kick_fd);
		if (rc == -ETIMEDOUT)
			return too_slow(f);
		if (rc == -ECANCELED)
			eventfd_read(r->kick_fd, &n);
		else if (rc < 0)
			return ferry_fail_errno(f, FERRY_LINK, rc, "TLS");
	}
	return ferry_fail_errno(f, FERRY_LINK, -ECANCELED, "TLS");
}
