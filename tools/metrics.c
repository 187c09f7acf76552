// SPDX-License-Identifier: Apache-2.0
/*
 * libmicrohttpd answers on a socket of ours: so errors of the address read as everywhere else, and
 * a privileged port can be had before the privileges go. Its one thread serves few clients at a
 * time; the command waits for none of them.
 *
 * Whoever can connect may do so, and say nothing. So a newcomer always gets in: where there are too
 * many, of its address or of all, the one that has been idle for longest goes. A request is
 * answered within milliseconds; who waits for longer than that is not kept waiting by us.
 */
#include "tools/metrics.h"

#include <errno.h>
#include <microhttpd.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/net.h"
#include "tools/json.h"

#define CLIENTS_MAX    16u
#define OF_ADDRESS_MAX 8u
#define CLIENT_S       2u /* without a byte */
/* libmicrohttpd's own: one that goes has a place until it has been looked at once more. */
#define PLACES	    (2 * CLIENTS_MAX)
#define CLIENT_ROOM 16384u /* of the memory that a client's request and headers may take */

struct client {
	struct MHD_Connection *connection; /* borrowed; NULL: nobody is here */
	struct sockaddr_storage from;	   /* without the port; zeros for a UNIX socket */
	uint64_t active;		   /* ->n_moves at its last request, or when it came */
	bool goes;			   /* its socket is shut down */
};

struct metrics {
	struct report *report;
	struct ferry_addr local;
	int listen_fd;		   /* owned until the daemon has it */
	struct MHD_Daemon *daemon; /* owned; NULL until _start */
	/* The daemon's thread only. */
	struct client clients[PLACES];
	uint64_t n_moves;
};

static int socket_of(const struct client *k)
{
	const union MHD_ConnectionInfo *info =
		MHD_get_connection_info(k->connection, MHD_CONNECTION_INFO_CONNECTION_FD);

	return info ? info->connect_fd : -1;
}

/* Who they are, without the port. */
static void read_address(struct client *k)
{
	const union MHD_ConnectionInfo *info =
		MHD_get_connection_info(k->connection, MHD_CONNECTION_INFO_CLIENT_ADDRESS);
	const struct sockaddr *a = info ? info->client_addr : NULL;

	memset(&k->from, 0, sizeof(k->from));
	if (a && a->sa_family == AF_INET)
		((struct sockaddr_in *)&k->from)->sin_addr =
			((const struct sockaddr_in *)a)->sin_addr;
	else if (a && a->sa_family == AF_INET6)
		((struct sockaddr_in6 *)&k->from)->sin6_addr =
			((const struct sockaddr_in6 *)a)->sin6_addr;
}

/* The one that has been idle for longest goes when there are more than @max, of @of's address or
 * all. */
static void make_room(struct metrics *m, const struct client *of, unsigned int max)
{
	struct client *oldest = NULL;
	unsigned int n = 0;

	for (struct client *k = m->clients; k < m->clients + PLACES; k++) {
		if (!k->connection || k->goes ||
		    (of && memcmp(&k->from, &of->from, sizeof(k->from)) != 0))
			continue;
		n++;
		if (!oldest || k->active < oldest->active)
			oldest = k;
	}
	if (n <= max)
		return;
	oldest->goes = true;
	/* Its end is read, and it is closed. */
	shutdown(socket_of(oldest), SHUT_RDWR);
}

static void on_connection(void *ctx, struct MHD_Connection *c, void **state,
			  enum MHD_ConnectionNotificationCode what)
{
	struct client *k = *state;
	struct metrics *m = ctx;

	if (what == MHD_CONNECTION_NOTIFY_CLOSED) {
		if (k)
			k->connection = NULL;
		return;
	}
	/* There are as many places as connections. */
	for (k = m->clients; k < m->clients + PLACES - 1 && k->connection;)
		k++;
	*k = (struct client){.connection = c, .active = ++m->n_moves};
	read_address(k);
	*state = k;
	make_room(m, k, OF_ADDRESS_MAX);
	make_room(m, NULL, CLIENTS_MAX);
}

static void note_request(struct metrics *m, struct MHD_Connection *c)
{
	const union MHD_ConnectionInfo *info =
		MHD_get_connection_info(c, MHD_CONNECTION_INFO_SOCKET_CONTEXT);
	struct client *k = info ? info->socket_context : NULL;

	if (k)
		k->active = ++m->n_moves;
}

static enum MHD_Result send_text(struct MHD_Connection *c, unsigned int status, const char *type,
				 const char *text, size_t len)
{
	struct MHD_Response *r =
		MHD_create_response_from_buffer(len, (void *)text, MHD_RESPMEM_MUST_COPY);
	enum MHD_Result rc;

	if (!r)
		return MHD_NO;
	MHD_add_response_header(r, MHD_HTTP_HEADER_CONTENT_TYPE, type);
	if (status == MHD_HTTP_METHOD_NOT_ALLOWED)
		MHD_add_response_header(r, MHD_HTTP_HEADER_ALLOW, "GET, HEAD");
	rc = MHD_queue_response(c, status, r);
	MHD_destroy_response(r);
	return rc;
}

static enum MHD_Result send_error(struct MHD_Connection *c, unsigned int status, const char *text)
{
	return send_text(c, status, "text/plain; charset=utf-8", text, strlen(text));
}

static enum MHD_Result send_metrics(const struct metrics *m, struct MHD_Connection *c)
{
	const char *accept =
		MHD_lookup_connection_value(c, MHD_HEADER_KIND, MHD_HTTP_HEADER_ACCEPT);
	bool openmetrics = accept && strstr(accept, "application/openmetrics-text");
	_cleanup_free_ struct report_snapshot *s = malloc(sizeof(*s));
	_cleanup_free_ char *text = malloc(METRICS_TEXT_MAX);
	size_t len;

	if (!s || !text)
		return MHD_NO;
	report_snapshot(m->report, s);
	len = metrics_render(s, openmetrics, text, METRICS_TEXT_MAX);
	if (!len)
		return send_error(c, MHD_HTTP_INTERNAL_SERVER_ERROR, "too many figures\n");
	return send_text(c, MHD_HTTP_OK, openmetrics ? METRICS_TYPE_OPENMETRICS : METRICS_TYPE_TEXT,
			 text, len);
}

static enum MHD_Result handle(void *ctx, struct MHD_Connection *c, const char *url,
			      const char *method, const char *version, const char *body,
			      size_t *body_bytes, void **state)
{
	(void)version;
	(void)body;
	/* The first call is before the body, the last behind it; what lies between is not wanted.
	 */
	if (!*state) {
		note_request(ctx, c);
		*state = ctx;
		return MHD_YES;
	}
	if (*body_bytes) {
		*body_bytes = 0;
		return MHD_YES;
	}
	if (strcmp(method, MHD_HTTP_METHOD_GET) && strcmp(method, MHD_HTTP_METHOD_HEAD))
		return send_error(c, MHD_HTTP_METHOD_NOT_ALLOWED, "only GET and HEAD\n");
	if (strcmp(url, "/metrics"))
		return send_error(c, MHD_HTTP_NOT_FOUND, "the figures are at /metrics\n");
	return send_metrics(ctx, c);
}

int metrics_open(struct metrics **out, const struct ferry_addr *addr, struct report *report,
		 struct ferry_failure *f)
{
	struct metrics *m = calloc(1, sizeof(*m));
	struct ferry_addr a = *addr;
	int rc;

	if (!m)
		return ferry_fail_errno(f, FERRY_REFUSE, -ENOMEM, "--metrics");
	/* What runs on this host is nobody else's business unless the user says so. */
	if (!a.is_unix && !a.host[0])
		strcpy(a.host, "127.0.0.1");
	m->report = report;
	m->listen_fd = ferry_net_listen(&a, f);
	if (m->listen_fd < 0) {
		rc = m->listen_fd;
		ferry_fail_prefix(f, "--metrics");
		free(m);
		return rc;
	}
	rc = ferry_net_local(m->listen_fd, &a, &m->local);
	if (rc < 0) {
		metrics_free(m);
		return ferry_fail_errno(f, FERRY_REFUSE, rc, "--metrics");
	}
	*out = m;
	return 0;
}

int metrics_start(struct metrics *m, struct ferry_failure *f)
{
	char address[FERRY_ADDR_TEXT_MAX], text[FERRY_ADDR_TEXT_MAX + 32];
	json_t *o;

	if (!m)
		return 0;
	m->daemon = MHD_start_daemon(
		MHD_USE_INTERNAL_POLLING_THREAD | MHD_USE_POLL, 0, NULL, NULL, handle, m,
		MHD_OPTION_LISTEN_SOCKET, m->listen_fd, MHD_OPTION_CONNECTION_LIMIT, PLACES,
		MHD_OPTION_CONNECTION_TIMEOUT, CLIENT_S, MHD_OPTION_NOTIFY_CONNECTION,
		on_connection, m, MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)CLIENT_ROOM,
		MHD_OPTION_END);
	if (!m->daemon)
		return ferry_fail(f, FERRY_REFUSE, -EIO, "--metrics: cannot serve HTTP");
	m->listen_fd = -1;
	ferry_addr_format(&m->local, address);
	snprintf(text, sizeof(text), "metrics on %s", address);
	o = json_object();
	json_put(o, "address", json_text(address));
	report_event(m->report, "metrics", o, text);
	return 0;
}

void metrics_free(struct metrics *m)
{
	if (!m)
		return;
	if (m->daemon)
		MHD_stop_daemon(m->daemon);
	if (m->local.is_unix)
		unlink(m->local.path);
	ferry_close(m->listen_fd);
	free(m);
}
