/* SPDX-License-Identifier: Apache-2.0 */
/* A session that begins before its target: for one whose memory is made after the source's layout.
 */
#include <errno.h>
#include <stdlib.h>
#include <sys/random.h>

#include "uffd/engine.h"

int ferry_target_place_new(struct ferry_target_place *out)
{
	struct ferry_target_place p = {0};

	if (getrandom(p.session.bytes, sizeof(p.session.bytes), 0) != sizeof(p.session.bytes))
		return -errno;
	*out = p;
	return 0;
}

struct ferry_target_place ferry_target_place_of(const struct ferry_session_id *session, uint32_t n)
{
	return (struct ferry_target_place){.session = *session,
					   .epoch = n << FERRY_TARGET_EPOCHS_EACH_BITS};
}

int ferry_target_meet(struct ferry_target_meeting **out, const struct ferry_addr *from,
		      const struct ferry_target_place *place, struct ferry_tls *tls, int stop_fd,
		      struct ferry_failure *f)
{
	struct ferry_target_meeting *m = calloc(1, sizeof(*m));
	struct ferry_hello hello = {.side = FERRY_SIDE_TARGET,
				    .role = FERRY_ROLE_CONTROL,
				    .session = place->session,
				    .epoch = place->epoch};
	int rc;

	if (!m)
		return ferry_fail_errno(f, FERRY_REFUSE, -ENOMEM, "session");
	m->control.fd = -1;
	m->place = *place;
	rc = ferry_channel_dial(&m->control, tls, from, &hello, FERRY_ENGINE_DIAL_MS, stop_fd, f);
	if (!rc)
		rc = ferry_engine_receive_layout(&m->control, &m->m, stop_fd, f);
	if (rc < 0)
		ferry_target_meeting_end(m);
	else
		*out = m;
	return rc;
}

const struct ferry_layout *ferry_target_meeting_layout(const struct ferry_target_meeting *m)
{
	return &m->m.layout;
}

void ferry_target_meeting_end(struct ferry_target_meeting *m)
{
	if (!m)
		return;
	ferry_channel_close(&m->control);
	free(m);
}
