/* SPDX-License-Identifier: Apache-2.0 */
#include "tools/secure.h"

#include <errno.h>

int secure_check(const struct options *o, const struct ferry_addr *addr, struct ferry_failure *f)
{
	char text[FERRY_ADDR_TEXT_MAX];

	if (!!o->tls + !!o->psk + o->plaintext > 1)
		return ferry_fail(
			f, FERRY_REFUSE, -EINVAL,
			"--tls, --psk and --plaintext exclude each other; give one of them");
	if ((o->tls_hostname || o->tls_peer) && !o->tls)
		return ferry_fail(f, FERRY_REFUSE, -EINVAL,
				  "--tls-%s is about a certificate; add --tls DIR",
				  o->tls_hostname ? "hostname" : "peer");
	if (o->tls || o->psk || o->plaintext || !addr || ferry_addr_is_local(addr))
		return 0;
	ferry_addr_format(addr, text);
	return ferry_fail(f, FERRY_REFUSE, -EINVAL,
			  "'%.200s' is not on this host alone, and a guest's memory would be sent "
			  "openly; add --tls DIR (certificates) or --psk FILE (a shared key), or "
			  "--plaintext if the network is trusted",
			  text);
}

int secure_open(struct ferry_tls **out, const struct options *o, bool accepts,
		const struct ferry_log *log, struct ferry_failure *f)
{
	struct ferry_tls_config config = {
		.dir = o->tls,
		.psk = o->psk,
		.accepts = accepts,
		.hostname = o->tls_hostname,
		.peer = o->tls_peer,
		.log = log,
	};
	int rc;

	*out = NULL;
	if (!o->tls && !o->psk)
		return 0;
	rc = ferry_tls_new(out, &config, f);
	if (rc < 0)
		ferry_fail_prefix(f, o->tls ? "--tls" : "--psk");
	return rc;
}
