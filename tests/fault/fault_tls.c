/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A connection with TLS, from the files with its secrets to the last byte, while a call fails, of
 * ours or an allocation of OpenSSL's: what arrives is what was sent, or the connection ends, one of
 * the two sides says why, and the next one works. What passes on the way is looked at: it is never
 * plain text.
 */
#include <openssl/crypto.h>
#include <openssl/err.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/net.h"
#include "driver.h"
#include "tls/gate.h"
#include "tls/tls.h"

#define DATA_BYTES (24u * 1024) /* each way: more than a record */
#define LIMIT_MS   20000
#define SECRET	   "a secret of the guest "

static char folder[] = "/var/tmp/pageferry-fault-XXXXXX";
static char credentials[64], keys[64];
static char data[2][DATA_BYTES]; /* of the one who dials, and of the other */

struct side {
	struct ferry_tls *tls;
	struct ferry_log log;
};

struct tap;

struct run {
	struct tap *tap;
	struct side dials, accepts;
	int listen_fd; /* owned */
	struct ferry_gate *gate;
	struct ferry_addr address; /* of the tap */
	bool is_crippled; /* OpenSSL does not say all that it had no memory for: each handshake does
			   */
	_Atomic unsigned int n_said;
	char story[160];
};

/* --- what passes on the way ----------------------------------------------------------------------
 */

struct tap {
	int listen_fd, stop_fd; /* owned */
	struct ferry_addr to;
	pthread_t thread;
	_Atomic bool busy, leaked;
};

/* Return: whether there was something. @tail: of what came before, as the secret may be in two. */
static bool pass_on(struct tap *t, int from, int to, char tail[64])
{
	char bytes[64 + 4096];
	ssize_t n = recv(from, bytes + 64, 4096, 0);

	if (n <= 0) {
		shutdown(to, SHUT_WR);
		return false;
	}
	memcpy(bytes, tail, 64);
	if (memmem(bytes, 64 + (size_t)n, SECRET, strlen(SECRET)))
		t->leaked = true;
	memmove(tail, bytes + n, 64);
	return ferry_net_write_all(to, bytes + 64, (size_t)n, LIMIT_MS, -1) == 0;
}

static void carry(struct tap *t, int a, int b)
{
	char tails[2][64] = {0};
	struct pollfd p[3] = {{a, POLLIN, 0}, {b, POLLIN, 0}, {t->stop_fd, POLLIN, 0}};

	while ((p[0].fd >= 0 || p[1].fd >= 0) && poll(p, 3, -1) > 0 && !p[2].revents) {
		if (p[0].revents && !pass_on(t, a, b, tails[0]))
			p[0].fd = -1;
		if (p[1].revents && !pass_on(t, b, a, tails[1]))
			p[1].fd = -1;
	}
	close(a);
	close(b);
}

static void *tap_main(void *arg)
{
	struct tap *t = arg;

	fault_exempt = true;
	while (!ferry_net_wait(t->listen_fd, POLLIN, -1, t->stop_fd)) {
		int a = ferry_net_accept(t->listen_fd);
		int b;

		t->busy = true;
		b = a < 0 ? -1 : ferry_net_dial(&t->to, LIMIT_MS, -1, NULL);

		if (b >= 0)
			carry(t, a, b);
		else
			ferry_close(a);
		t->busy = false;
	}
	return NULL;
}

static int listen_on_loopback(struct ferry_addr *a)
{
	struct ferry_addr any;
	int fd = -1;

	if (!ferry_addr_parse(&any, "127.0.0.1:0", NULL))
		fd = ferry_net_listen(&any, NULL);
	return fd >= 0 && !ferry_net_local(fd, &any, a) ? fd : -1;
}

static bool start_tap(struct tap *t, struct run *r)
{
	r->listen_fd = listen_on_loopback(&t->to);
	t->listen_fd = listen_on_loopback(&r->address);
	t->stop_fd = eventfd(0, EFD_CLOEXEC);
	return r->listen_fd >= 0 && t->listen_fd >= 0 && t->stop_fd >= 0 &&
	       !pthread_create(&t->thread, NULL, tap_main, t);
}

static void stop_tap(struct tap *t)
{
	eventfd_write(t->stop_fd, 1);
	pthread_join(t->thread, NULL);
	close(t->listen_fd);
	close(t->stop_fd);
}

/* --- what is told --------------------------------------------------------------------------------
 */

static bool is_told(int rc, const struct ferry_failure *f)
{
	return rc < 0 && f->err == rc && f->text[0] && f->consequence != FERRY_OK &&
	       !strchr(f->text, '\n');
}

static void note(void *ctx, enum ferry_log_level level, const char *line)
{
	struct run *r = ctx;

	(void)level;
	if (!r->n_said++)
		snprintf(r->story, sizeof(r->story), "%.150s", line);
}

/* --- one connection ------------------------------------------------------------------------------
 */

/* Return: 0 when they have arrived; an error when the connection ended. */
static int send_data(int from, int to, const char *bytes)
{
	static char got[DATA_BYTES];
	int rc;

	memset(got, 0, sizeof(got));
	rc = ferry_net_write_all(from, bytes, DATA_BYTES, LIMIT_MS, -1);
	if (!rc)
		rc = ferry_net_read_all(to, got, DATA_BYTES, LIMIT_MS, -1);
	if (!rc && memcmp(got, bytes, DATA_BYTES) != 0)
		rc = -EILSEQ;
	return rc;
}

/* Wait for the other end to come in. It may have been refused after ours was believed in. */
static int accept_other(struct run *r, int dialed)
{
	struct pollfd p[2] = {{ferry_gate_fd(r->gate), POLLIN, 0}, {dialed, POLLIN, 0}};
	char name[FERRY_GATE_NAME_MAX];

	for (;;) {
		int fd;

		if (poll(p, 2, LIMIT_MS) <= 0)
			return -ETIMEDOUT;
		fd = WITH_FAULTS(ferry_gate_accept(r->gate, name));
		if (fd >= 0)
			return fd;
		if (p[1].revents)
			return -ECONNRESET;
	}
}

static int exchange(struct run *r, int dialed, int accepted)
{
	struct ferry_failure f = {0};
	int rc;

	WITH_FAULTS((ferry_tls_tune(r->dials.tls, dialed, FERRY_NET_BULK), 0));
	WITH_FAULTS((ferry_tls_tune(r->accepts.tls, accepted, FERRY_NET_URGENT), 0));
	rc = send_data(dialed, accepted, data[0]);
	if (!rc)
		rc = send_data(accepted, dialed, data[1]);
	if (rc < 0 && (ferry_tls_explain(r->dials.tls, dialed, &f) ||
		       ferry_tls_explain(r->accepts.tls, accepted, &f)))
		note(r, FERRY_LOG_WARN, f.text);
	return rc;
}

/* The end of a connection may be seen sooner than the other side says why. */
static bool is_said(const struct run *r)
{
	for (int i = 0; i < LIMIT_MS && !r->n_said; i++)
		usleep(1000);
	return r->n_said;
}

/* Return: 0, or why it could not be used, which was told. */
static int connect_once(struct run *r, char *why)
{
	_cleanup_close_ int dialed = -1, accepted = -1;
	struct ferry_failure f = {0};
	int rc;

	r->n_said = 0;
	dialed = WITH_FAULTS(
		ferry_tls_dial(r->dials.tls, &r->address, FERRY_NET_CONTROL, LIMIT_MS, -1, &f));
	if (dialed < 0 && !is_told(dialed, &f)) {
		snprintf(why, 256, "dial: %d, %d, '%.100s'", dialed, f.consequence, f.text);
		return -EILSEQ;
	}
	if (dialed < 0) {
		note(r, FERRY_LOG_WARN, f.text);
		return dialed;
	}
	accepted = accept_other(r, dialed);
	rc = accepted < 0 ? accepted : exchange(r, dialed, accepted);
	if (rc == -ETIMEDOUT || rc == -EILSEQ) {
		snprintf(why, 256, "%s",
			 rc == -EILSEQ ? "other bytes came than were sent" : "it hangs");
		return -EILSEQ;
	}
	/* A reset of the pair means that who is to be told is gone. */
	if (rc < 0 && !fault_has_struck_with(ECONNRESET) && !is_said(r)) {
		ferry_tls_explain(r->dials.tls, dialed, &f);
		snprintf(why, 256, "the connection ended (%s), and nobody says why: %.100s",
			 strerror(-rc), f.text);
		return -EILSEQ;
	}
	return rc;
}

/* --- one run -------------------------------------------------------------------------------------
 */

static int new_side(struct side *s, struct run *r, const struct ferry_tls_config *secrets,
		    bool accepts, struct ferry_failure *f)
{
	struct ferry_tls_config config = *secrets;

	s->log = (struct ferry_log){FERRY_LOG_WARN, note, r};
	config.accepts = accepts;
	config.log = &s->log;
	return WITH_FAULTS(ferry_tls_new(&s->tls, &config, f));
}

static int set_up(struct run *r, const struct ferry_tls_config *secrets, struct ferry_failure *f)
{
	int rc = new_side(&r->accepts, r, secrets, true, f);

	if (!rc)
		rc = new_side(&r->dials, r, secrets, false, f);
	if (!rc)
		rc = WITH_FAULTS(ferry_gate_open(&r->gate, r->listen_fd, r->accepts.tls,
						 &r->accepts.log, f));
	return rc;
}

static void let_go_of_others(struct run *r)
{
	char name[FERRY_GATE_NAME_MAX];
	int fd;

	while ((fd = ferry_gate_accept(r->gate, name)) >= 0)
		close(fd);
}

/* Both ends are let go, whether or not the other one came in. Return: whether both ended. */
static bool settle(struct run *r)
{
	for (int i = 0; i < LIMIT_MS && r->tap->busy; i++) {
		let_go_of_others(r);
		usleep(1000);
	}
	let_go_of_others(r);
	return !r->tap->busy;
}

static enum fault_outcome use(struct run *r, char *why)
{
	char first[sizeof(r->story)];
	int rc = connect_once(r, why);

	if (!rc || rc == -EILSEQ)
		return rc ? FAULT_WRONG : FAULT_SURVIVED;
	memcpy(first, r->story, sizeof(first));
	if (!settle(r))
		return WRONG("after '%.80s' one side does not end", first);
	rc = connect_once(r, why);
	if (rc == -EILSEQ)
		return FAULT_WRONG;
	if (rc < 0 && !r->is_crippled)
		return WRONG("after '%.80s' the next one does not work: %.100s", first, r->story);
	snprintf(why, 256, "%s", first);
	return FAULT_GIVEN_UP;
}

static enum fault_outcome run(const void *arg, char why[256])
{
	struct ferry_failure f = {0};
	struct tap tap = {0};
	struct run r = {.tap = &tap, .listen_fd = -1};
	enum fault_outcome outcome;
	int rc;

	if (!start_tap(&tap, &r))
		return WRONG("the tap");
	rc = set_up(&r, arg, &f);
	r.is_crippled = fault_has_struck_with(ENOMEM);
	if (rc < 0 && !is_told(rc, &f))
		return WRONG("%d, %d, '%.100s'", rc, f.consequence, f.text);
	outcome = rc < 0 ? FAULT_REFUSED : use(&r, why);
	if (rc < 0)
		snprintf(why, 256, "%.200s", f.text);
	if (outcome == FAULT_WRONG)
		return outcome;
	stop_tap(&tap);
	WITH_FAULTS((ferry_gate_close(r.gate), 0));
	WITH_FAULTS((ferry_tls_free(r.dials.tls), 0));
	WITH_FAULTS((ferry_tls_free(r.accepts.tls), 0));
	close(r.listen_fd);
	return tap.leaked ? WRONG("plain text was on the way") : outcome;
}

/* --- all of it -----------------------------------------------------------------------------------
 */

static bool make_secrets(void)
{
	char command[512];
	FILE *file;

	if (!mkdtemp(folder))
		return false;
	snprintf(credentials, sizeof(credentials), "%s/localhost", folder);
	snprintf(command, sizeof(command), "'%s' '%s' localhost=127.0.0.1 >/dev/null",
		 MAKE_CREDENTIALS, folder);
	if (system(command) != 0)
		return false;
	snprintf(keys, sizeof(keys), "%s/keys", folder);
	file = fopen(keys, "w");
	if (!file || chmod(keys, 0600) < 0)
		return false;
	fprintf(file, "alice:%s\nbob:%s\n", "0123456789abcdef0123456789abcdef",
		"fedcba9876543210fedcba9876543210");
	return !fclose(file);
}

static void remove_secrets(void)
{
	char command[128];

	snprintf(command, sizeof(command), "rm -rf '%s'", folder);
	if (system(command) != 0)
		printf("%s is left\n", folder);
}

int main(int argc, char **argv)
{
	static const struct ferry_tls_config by_certificates = {.dir = credentials},
					     by_key = {.psk = keys};
	static const struct fault_scenario scenarios[] = {
		{"certificates", run, &by_certificates},
		{"a key", run, &by_key},
	};
	char why[256];
	int rc = 1;

	fault_exempt = true;
	CRYPTO_set_mem_functions(fault_openssl_malloc, fault_openssl_realloc, fault_openssl_free);
	for (size_t i = 0; i < DATA_BYTES; i++) {
		data[0][i] = SECRET[i % strlen(SECRET)];
		data[1][i] = (char)(SECRET[i % strlen(SECRET)] ^ (i >= DATA_BYTES / 2 ? 1 : 0));
	}
	/* What OpenSSL makes once is made here. */
	if (make_secrets() && run(&by_certificates, why) == FAULT_SURVIVED &&
	    run(&by_key, why) == FAULT_SURVIVED)
		rc = fault_main(argc, argv, scenarios, 2);
	else
		printf("WRONG: %s\n", why);
	remove_secrets();
	return rc;
}
