/* SPDX-License-Identifier: Apache-2.0 */
/* The credentials folder has the names that QEMU's has, so that one set serves both. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base/cleanup.h"
#include "tls/internal.h"

#define CA_FILE	 "ca-cert.pem"
#define CRL_FILE "ca-crl.pem"

struct paths {
	char ca[PATH_MAX], crl[PATH_MAX], cert[PATH_MAX], key[PATH_MAX];
};

const char *ferry_tls_error_text(char *out, size_t size)
{
	unsigned long e = ERR_get_error();
	const char *text = e ? ERR_reason_error_string(e) : NULL;

	if (text)
		snprintf(out, size, "%s", text);
	else
		snprintf(out, size, "error %lx of OpenSSL", e);
	ERR_clear_error();
	return out;
}

static int cannot_read(const char *path, struct ferry_failure *f)
{
	char text[120];

	return ferry_fail(f, FERRY_REFUSE, -EINVAL, "%.200s: %s; is it a file in PEM form?", path,
			  ferry_tls_error_text(text, sizeof(text)));
}

int ferry_tls_open_secret(const char *path, struct ferry_failure *f)
{
	_cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	struct stat st;

	if (fd < 0 || fstat(fd, &st) < 0)
		return ferry_fail_errno(f, FERRY_REFUSE, -errno, "cannot open it");
	if (!S_ISREG(st.st_mode))
		return ferry_fail(f, FERRY_REFUSE, -EINVAL, "it is no regular file");
	if (st.st_mode & (S_IRWXO | S_IWGRP))
		return ferry_fail(f, FERRY_REFUSE, -EPERM,
				  "it is a secret that others may %s; chmod 600 it, and make a new "
				  "one if they may have",
				  st.st_mode & (S_IROTH | S_IXOTH) ? "read" : "write");
	return TAKE_FD(fd);
}

static int open_file(BIO **out, const char *path, struct ferry_failure *f)
{
	errno = 0;
	*out = BIO_new_file(path, "r");
	if (*out)
		return 0;
	ERR_clear_error();
	return ferry_fail_errno(f, FERRY_REFUSE, errno ? -errno : -EIO, "%.200s: cannot open it",
				path);
}

/* Does the queue hold only that there was nothing more in the file? */
static bool is_end_of_file(void)
{
	unsigned long e = ERR_peek_last_error();

	return ERR_GET_LIB(e) == ERR_LIB_PEM && ERR_GET_REASON(e) == PEM_R_NO_START_LINE;
}

static int load_ca(struct ferry_tls *t, const char *path, struct ferry_failure *f)
{
	X509_STORE *store = SSL_CTX_get_cert_store(t->ctx);
	unsigned int n = 0;
	X509 *cert;
	BIO *in;
	int rc = open_file(&in, path, f);

	if (rc < 0)
		return rc;
	while ((cert = PEM_read_bio_X509(in, NULL, NULL, NULL))) {
		/* One whose key can't be used has signed for nobody. */
		if (X509_get0_pubkey(cert) && X509_STORE_add_cert(store, cert)) {
			n++;
			SSL_CTX_add_client_CA(t->ctx, cert);
		}
		X509_free(cert);
	}
	BIO_free(in);
	if (!n || !is_end_of_file())
		return cannot_read(path, f);
	ERR_clear_error();
	return 0;
}

static int load_crl(struct ferry_tls *t, const char *path, struct ferry_failure *f)
{
	X509_STORE *store = SSL_CTX_get_cert_store(t->ctx);
	bool is_whole = true;
	unsigned int n = 0;
	X509_CRL *crl;
	BIO *in;
	int rc = open_file(&in, path, f);

	if (rc == -ENOENT)
		return 0;
	if (rc < 0)
		return rc;
	while ((crl = PEM_read_bio_X509_CRL(in, NULL, NULL, NULL))) {
		n++;
		is_whole = is_whole && X509_STORE_add_crl(store, crl);
		X509_CRL_free(crl);
	}
	BIO_free(in);
	if (!n || !is_whole || !is_end_of_file())
		return cannot_read(path, f);
	ERR_clear_error();
	X509_STORE_set_flags(store, X509_V_FLAG_CRL_CHECK);
	return 0;
}

/* Nobody is there to be asked. */
static int no_passphrase(char *buf, int size, int rwflag, void *ctx)
{
	(void)buf, (void)size, (void)rwflag, (void)ctx;
	return -1;
}

static int load_key(struct ferry_tls *t, const struct paths *p, struct ferry_failure *f)
{
	_cleanup_close_ int fd = ferry_tls_open_secret(p->key, f);
	EVP_PKEY *key;
	BIO *in;
	bool fits;

	if (fd < 0) {
		ferry_fail_prefix(f, "%.200s", p->key);
		return fd;
	}
	in = BIO_new_fd(fd, BIO_NOCLOSE);
	key = in ? PEM_read_bio_PrivateKey(in, NULL, no_passphrase, NULL) : NULL;
	BIO_free(in);
	if (!key) {
		ERR_clear_error();
		return ferry_fail(f, FERRY_REFUSE, -EINVAL,
				  "%.200s: there is no private key in it that can be read; it is "
				  "expected in PEM form, without a passphrase",
				  p->key);
	}
	fits = SSL_CTX_use_PrivateKey(t->ctx, key) == 1;
	EVP_PKEY_free(key);
	ERR_clear_error();
	return fits ? 0
		    : ferry_fail(f, FERRY_REFUSE, -EKEYREJECTED,
				 "%.200s: it is not the key of %.200s; copy the two that were "
				 "made together",
				 p->key, p->cert);
}

/* What the other end is going to say of our certificate, said here. */
static int check_own(struct ferry_tls *t, const struct paths *p, struct ferry_failure *f)
{
	X509_STORE_CTX *c = X509_STORE_CTX_new();
	STACK_OF(X509) *chain = NULL;
	const char *path = p->cert;
	int err, depth;

	SSL_CTX_get0_chain_certs(t->ctx, &chain);
	if (!c ||
	    !X509_STORE_CTX_init(c, SSL_CTX_get_cert_store(t->ctx),
				 SSL_CTX_get0_certificate(t->ctx), chain) ||
	    !X509_STORE_CTX_set_default(c, t->accepts ? "ssl_server" : "ssl_client")) {
		ERR_clear_error();
		X509_STORE_CTX_free(c);
		return ferry_fail_errno(f, FERRY_REFUSE, -ENOMEM, "certificates");
	}
	X509_verify_cert(c);
	err = X509_STORE_CTX_get_error(c);
	depth = X509_STORE_CTX_get_error_depth(c);
	X509_STORE_CTX_free(c);
	ERR_clear_error();
	switch (err) {
	case X509_V_OK:
		return 0;
	case X509_V_ERR_CERT_HAS_EXPIRED:
	case X509_V_ERR_CERT_NOT_YET_VALID:
		if (depth)
			path = p->ca;
		return ferry_fail(f, FERRY_REFUSE, -EKEYEXPIRED,
				  "%.200s: %s; make a new one, or set this host's clock", path,
				  X509_verify_cert_error_string(err));
	case X509_V_ERR_CRL_HAS_EXPIRED:
	case X509_V_ERR_CRL_NOT_YET_VALID:
	case X509_V_ERR_UNABLE_TO_GET_CRL:
		return ferry_fail(f, FERRY_REFUSE, -EKEYEXPIRED,
				  "%.200s: %s; get a new one from who signs the certificates",
				  p->crl, X509_verify_cert_error_string(err));
	case X509_V_ERR_CERT_REVOKED:
		return ferry_fail(f, FERRY_REFUSE, -EKEYREVOKED,
				  "%.200s: it was revoked; get a new one", path);
	default:
		return ferry_fail(f, FERRY_REFUSE, -EKEYREJECTED,
				  "%.200s: it is not signed by %s for the %s of a connection: %s; "
				  "sign it anew",
				  path, CA_FILE, t->accepts ? "server" : "client",
				  X509_verify_cert_error_string(err));
	}
}

static int find_files(struct paths *p, const char *dir, bool accepts, struct ferry_failure *f)
{
	const char *side = accepts ? "server" : "client";
	struct stat st;

	if (strlen(dir) + sizeof("/server-cert.pem") > PATH_MAX)
		return ferry_fail_errno(f, FERRY_REFUSE, -ENAMETOOLONG, "%.200s", dir);
	if (stat(dir, &st) < 0)
		return ferry_fail_errno(f, FERRY_REFUSE, -errno, "%.200s: no credentials folder",
					dir);
	if (!S_ISDIR(st.st_mode))
		return ferry_fail(f, FERRY_REFUSE, -ENOTDIR,
				  "%.200s: it is no folder; give the one that has ca-cert.pem, "
				  "%s-cert.pem and %s-key.pem",
				  dir, side, side);
	snprintf(p->ca, sizeof(p->ca), "%s/" CA_FILE, dir);
	snprintf(p->crl, sizeof(p->crl), "%s/" CRL_FILE, dir);
	snprintf(p->cert, sizeof(p->cert), "%s/%s-cert.pem", dir, side);
	snprintf(p->key, sizeof(p->key), "%s/%s-key.pem", dir, side);
	return 0;
}

int ferry_x509_load(struct ferry_tls *t, const char *dir, struct ferry_failure *f)
{
	struct paths p;
	BIO *in;
	int rc = find_files(&p, dir, t->accepts, f);

	if (!rc)
		rc = load_ca(t, p.ca, f);
	if (!rc)
		rc = load_crl(t, p.crl, f);
	if (!rc)
		rc = open_file(&in, p.cert, f);
	if (rc < 0)
		return rc;
	BIO_free(in);
	if (SSL_CTX_use_certificate_chain_file(t->ctx, p.cert) != 1)
		return cannot_read(p.cert, f);
	rc = load_key(t, &p, f);
	if (!rc)
		rc = check_own(t, &p, f);
	SSL_CTX_set_verify(t->ctx, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, NULL);
	return rc;
}
