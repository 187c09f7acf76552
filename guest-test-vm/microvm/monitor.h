/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One process's end of a micro-VM, driven by lines of text:
 *
 *   boot                 make the guest and let it run
 *   reach N              every vCPU does N more operations
 *   stop                 stop the vCPUs
 *   corrupt PAGE BYTE    flip one bit of a data page of the stopped guest
 *   serve ADDR           stop it if it runs, and serve its memory and registers
 *   take ADDR            make memory lazy, take registers, and run at once
 *   lazy ADDR            the same, but each page comes when it is touched, until "push"
 *   push                 have the source send the rest
 *   faults               (target) how many there were so far
 *   lost                 wait until the link is lost
 *   complete             wait until all memory has moved
 *   release              (source) let the memory go
 *   save FILE            write the stopped guest's memory to FILE, its state to FILE.state
 *   restore FILE SOCKET  run a saved guest at once; a userfaultfd handler at SOCKET has its memory
 *   verify               the guest looks at all of its pages
 *   stats                what the guest has seen so far
 *   quit
 *
 * The answer is one line: "ok", with "key=value" behind it, or "error: ...". The guest's stalls and
 * the faults of a completed target are lists by bucket, for programs: "stalls=64418,3987,0,...".
 */
#ifndef MICROVM_MONITOR_H
#define MICROVM_MONITOR_H

#include <stdio.h>

#include "machine.h"

/* Obey lines of @in until its end or "quit". Return: 0, or 1 when a line failed. */
int monitor_run(const struct machine_config *config, FILE *in, FILE *out);

#endif
