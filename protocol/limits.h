/* SPDX-License-Identifier: Apache-2.0 */
/* Limits on what a peer can make us hold. docs/protocol.md repeats them for other implementations. */
#ifndef FERRY_PROTOCOL_LIMITS_H
#define FERRY_PROTOCOL_LIMITS_H

#define FERRY_VERSION_MIN 1u
#define FERRY_VERSION_MAX 1u

#define FERRY_SESSION_ID_BYTES 16

#define FERRY_MAX_MESSAGE_BYTES 16384u		  /* a protobuf message */
#define FERRY_MAX_RUN_BYTES	(4u * 1024 * 1024) /* the pages of one PageRun */
#define FERRY_MAX_CONTROL_BYTES (64u * 1024)	  /* the payload of any other frame */

#define FERRY_MAX_REGIONS	   32
#define FERRY_MAX_REGION_NAME	   64 /* bytes, with the closing NUL */
#define FERRY_MAX_REGION_PAGES	   ((1ull << 32) - 1)
#define FERRY_MIN_PAGE_BYTES	   4096u
#define FERRY_MAX_PAGE_BYTES	   (2u * 1024 * 1024)
#define FERRY_MAX_REQUEST_RUNS	   512
#define FERRY_MAX_REQUEST_RUN_PAGES 1024u /* pages in one run of a request */
#define FERRY_MAX_BULK		   16
#define FERRY_MAX_DIGESTS	   256	 /* in one answer */
#define FERRY_MAX_DIGEST_PAGES	   1024u /* pages of one digest */
#define FERRY_MAX_STATE_BYTES	   FERRY_MAX_CONTROL_BYTES
#define FERRY_MAX_TEXT		   400 /* bytes of an error's or reason's text, with the NUL */
#define FERRY_MAX_DENSE_RUNS	   256	 /* in Prepare; blocks are of FERRY_DENSE_BLOCK_BYTES */
#define FERRY_DENSE_BLOCK_BYTES	   (2ull * 1024 * 1024)
#define FERRY_MAX_DEVICE_STATE	   (1ull << 30) /* bytes in all */

/* What an arena for decoding one message must hold, whatever the message. */
#define FERRY_ARENA_BYTES (96u * 1024)

#endif
