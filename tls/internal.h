/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation
 *   context.c    an SSL_CTX for TLS 1.3 and nothing older
 *   x509.c       certificates: reads and checks them
 *   psk.c        keys: reads them, and finds them for OpenSSL
 *   handshake.c  one handshake, and words for what goes wrong in it
 *   relay.c      a connection's thread: handshake, then bytes both ways
 *   tls.c        the connections of a context
 *   gate.c       those that come in
 *
 * Happy path of a connection: 1. it is dialed or accepted, and a relay is started for it; 2. the
 * relay's thread shakes hands, with a deadline; 3. it opens a socket pair, tells who waits for it
 * that one end of it is the connection, and pumps bytes between the TCP socket and the other end
 * until both directions have ended; 4. it marks itself as ended, and is joined and freed when the
 * next relay is started, or at the end.
 *
 * Failure modes: a handshake that fails closes the TCP socket, and says why to who waits. A record
 * that is not authentic, a reset, or an end without close_notify (somebody may have cut the stream)
 * is a *break*: the story is kept for ferry_tls_explain(), and both sockets are closed. The reader
 * sees the end of the stream in the middle of the protocol, where every end is a lost link.
 *
 * Threads: a relay's sockets and SSL object are its thread's alone. What others may look at is
 * under tls->lock: the state, the list, the stories.
 */
#ifndef FERRY_TLS_INTERNAL_H
#define FERRY_TLS_INTERNAL_H

#include <openssl/ssl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/socket.h>

#include "base/util.h"
#include "tls/gate.h"
#include "tls/tls.h"

#define TLS_ALPN	"pageferry" /* no other program's TLS is taken for ours, and ours for none */
#define TLS_MAX_STORIES 16u
#define TLS_LINGER_MS	2000 /* for the last bytes of a connection that was closed */
#define TLS_NAME_MAX	FERRY_GATE_NAME_MAX

/* --- psk.c ---------------------------------------------------------------------------------- */

#define PSK_NAME_MAX 128
#define PSK_KEY_MIN  16 /* bytes */
#define PSK_KEY_MAX  64
#define PSK_MAX_KEYS 256
#define PSK_FILE_MAX (64 * 1024)

struct ferry_psk {
	char name[PSK_NAME_MAX + 1];
	unsigned char key[PSK_KEY_MAX];
	size_t key_bytes;
};

struct ferry_psks {
	struct ferry_psk *keys; /* owned */
	size_t n;
};

/**
 * ferry_psk_parse() - the text of a keys file
 * Lines of `name:hexadecimal`, as QEMU's keys.psk; empty ones and such with # are skipped.
 * Errors: -EINVAL with the line in @f; -ENOMEM. @out is written on success only.
 */
int ferry_psk_parse(struct ferry_psks *out, const char *text, size_t len, struct ferry_failure *f);
void ferry_psks_fini(struct ferry_psks *p); /* and wipe */

/* Read @path into the context's keys and make @ctx use them. */
int ferry_psk_load(struct ferry_tls *t, const char *path, struct ferry_failure *f);

/* --- x509.c --------------------------------------------------------------------------------- */

int ferry_x509_load(struct ferry_tls *t, const char *dir, struct ferry_failure *f);

/* Open a file with a secret. Errors: -EPERM when others than its owner (and group) may read it. */
int ferry_tls_open_secret(const char *path, struct ferry_failure *f);

/* The first of OpenSSL's queue of errors in words; empties it. */
const char *ferry_tls_error_text(char *out, size_t size);

/* --- context.c ------------------------------------------------------------------------------ */

int ferry_tls_context_init(struct ferry_tls *t, const struct ferry_tls_config *config,
			   struct ferry_failure *f);
void ferry_tls_context_fini(struct ferry_tls *t);

/* --- tls.c ---------------------------------------------------------------------------------- */

struct ferry_relay;

struct ferry_tls_story {
	int fd; /* -1: no story */
	struct ferry_failure failure;
};

struct ferry_tls {
	SSL_CTX *ctx; /* owned */
	bool accepts, uses_psk, is_foreign;
	char *hostname, *peer; /* owned; NULL for none */
	struct ferry_psks psks;
	const struct ferry_log *log;

	pthread_mutex_t lock; /* of what follows, and of the relays' states */
	struct ferry_relay *relays;
	struct ferry_tls_story stories[TLS_MAX_STORIES];
	uint32_t next_story;
};

/* --- relay.c -------------------------------------------------------------------------------- */

enum ferry_relay_state {
	RELAY_SHAKING,
	RELAY_OPEN, /* app_fd is there */
	RELAY_FAILED,
	RELAY_ENDED, /* its thread is about to return */
};

struct ferry_relay {
	struct ferry_tls *tls;
	struct ferry_relay *next;
	pthread_t thread;
	int tcp_fd;		 /* owned */
	int kick_fd;		 /* owned; eventfd: look at stop and class */
	SSL *ssl;		 /* owned */
	char name[TLS_NAME_MAX]; /* of the peer, for the log */
	atomic_bool stop;	 /* come to an end */
	atomic_int class;	 /* enum ferry_net_class */

	/* Who started it; done() is called once on its thread, with the lock not held. */
	void (*done)(struct ferry_relay *r, void *ctx);
	void *ctx;
	bool is_watched; /* its starter still looks at it: not to be freed */

	enum ferry_relay_state state; /* under tls->lock */
	int app_fd;		      /* done() takes it; from then on only its number is here */
	struct ferry_failure failure; /* of the handshake; written before done() */

	struct sockaddr_storage from; /* the gate's */
};

/**
 * ferry_relay_start() - shake hands on a connected socket, and relay
 * @fd: given, on error too
 * @to: the address that was dialed; NULL for an accepted one, which came @from (else NULL)
 */
int ferry_relay_start(struct ferry_relay **out, struct ferry_tls *t, int fd,
		      const struct ferry_addr *to, const struct sockaddr_storage *from,
		      enum ferry_net_class class, const char *name,
		      void (*done)(struct ferry_relay *r, void *ctx), void *ctx,
		      struct ferry_failure *f);
/* Any thread: make it end. */
void ferry_relay_stop(struct ferry_relay *r);
/* The pump; relay thread. @inner: given. */
void ferry_relay_pump(struct ferry_relay *r, int inner);
/* Join and free those that have ended, or (@all) wait for all. */
void ferry_tls_reap(struct ferry_tls *t, bool all);
/* Keep why the connection @fd broke. */
void ferry_tls_keep_story(struct ferry_tls *t, int fd, const struct ferry_failure *f);

/* --- handshake.c ---------------------------------------------------------------------------- */

/* An SSL object for @fd, and whom it has to be. */
int ferry_handshake_prepare(struct ferry_tls *t, int fd, const struct ferry_addr *to, SSL **out,
			    struct ferry_failure *f);
/**
 * ferry_handshake_run() - to its end
 * @kick_fd: readable when @stop may be true
 * Errors: in @f, LINK or REFUSE.
 */
int ferry_handshake_run(struct ferry_relay *r, struct ferry_failure *f);

/* Words for a failed SSL call: @ret its result, @err errno after it. */
int ferry_handshake_explain(const struct ferry_tls *t, SSL *ssl, int ret, int err, bool shaking,
			    struct ferry_failure *f);

#endif
