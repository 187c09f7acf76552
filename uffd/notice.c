/* SPDX-License-Identifier: Apache-2.0 */
#include "uffd/notice.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/util.h"

#define AWAKE_NS     20000u /* a poll that took less did not sleep, or hardly */
#define SAMPLE_EVERY 16u

void ferry_notice_init(struct ferry_notice *n, bool samples)
{
	*n = (struct ferry_notice){.schedstat = -1};
	if (samples)
		n->schedstat = open("/proc/thread-self/schedstat", O_RDONLY | O_CLOEXEC);
}

void ferry_notice_fini(struct ferry_notice *n)
{
	ferry_close(n->schedstat);
}

/* How long this thread has waited for a CPU, ever. Source: Documentation/scheduler/sched-stats.rst
 */
static bool read_delay(int schedstat, uint64_t *ns)
{
	char text[96];
	ssize_t n = schedstat < 0 ? -1 : pread(schedstat, text, sizeof(text) - 1, 0);
	char *second;

	if (n <= 0)
		return false;
	text[n] = '\0';
	second = strchr(text, ' ');
	if (!second)
		return false;
	*ns = strtoull(second, NULL, 10);
	return true;
}

void ferry_notice_poll(struct ferry_notice *n)
{
	n->has_fault = false;
	n->sampling = n->schedstat >= 0 && n->n_polls++ % SAMPLE_EVERY == 0 &&
		      read_delay(n->schedstat, &n->delay_ns);
	n->poll_ns = ferry_now_ns();
}

void ferry_notice_read(const struct ferry_notice *n, struct ferry_pending_message *m)
{
	if (m->read_ns - n->poll_ns >= AWAKE_NS)
		return;
	m->flags |= FERRY_FAULT_F_BUSY;
	m->notice_ns = (uint32_t)FERRY_MIN(m->read_ns - n->empty_ns, (uint64_t)UINT32_MAX);
}

void ferry_notice_fault(struct ferry_notice *n, const struct ferry_pending_message *m)
{
	if (!n->sampling || n->has_fault || m->flags & FERRY_FAULT_F_BUSY)
		return;
	n->has_fault = true;
	n->region = m->region;
	n->page = m->page;
}

void ferry_notice_end(struct ferry_notice *n, struct ferry_pending *p)
{
	uint64_t ns;

	if (n->has_fault && read_delay(n->schedstat, &ns))
		ferry_pending_woken(p, n->region, n->page, ns - n->delay_ns);
}
