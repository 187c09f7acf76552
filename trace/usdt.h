/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Static probes for bpftrace, perf and SystemTap: one no-op instruction each, and a note in the
 * program that says where it is and where its arguments are. Without <sys/sdt.h> there are none.
 *
 *   fault_read(region, page, thread)         a message of the userfaultfd was read
 *   fault_ask(request, runs)                 a PageRequest is about to be sent
 *   page_received(request, region, page, n)  the answer's last bytes were read
 *   page_placed(region, page, n)             the answer is placed, and its threads are awake
 *   request_received(request, runs)          the source read a PageRequest
 *   request_answered(request, region, page, n, bytes)  a piece of its answer is about to be sent
 *
 * Numbers of requests count from 1 in each session. contrib/bpftrace/ has a script that uses them.
 */
#ifndef FERRY_TRACE_USDT_H
#define FERRY_TRACE_USDT_H

#if defined(__has_include)
#if __has_include(<sys/sdt.h>)
#include <sys/sdt.h>
#define FERRY_HAS_PROBES 1
#endif
#endif

#ifdef FERRY_HAS_PROBES
#define FERRY_PROBE2(name, a, b)	  DTRACE_PROBE2(pageferry, name, a, b)
#define FERRY_PROBE3(name, a, b, c)	  DTRACE_PROBE3(pageferry, name, a, b, c)
#define FERRY_PROBE4(name, a, b, c, d)	  DTRACE_PROBE4(pageferry, name, a, b, c, d)
#define FERRY_PROBE5(name, a, b, c, d, e) DTRACE_PROBE5(pageferry, name, a, b, c, d, e)
#else
#define FERRY_PROBE2(name, a, b)	  ((void)0)
#define FERRY_PROBE3(name, a, b, c)	  ((void)0)
#define FERRY_PROBE4(name, a, b, c, d)	  ((void)0)
#define FERRY_PROBE5(name, a, b, c, d, e) ((void)0)
#endif

#endif
