#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""VMs of one 'pageferry handler' share what gives them pages. Counted, at a source that answers when it is told to.

    handler_fair.py PAGEFERRY PROTO
"""
import sys
from contextlib import contextmanager

from cli_support import LIMIT_S, main, need_root, wait_for
from handler_support import MIB, Handler, Vmm, snapshot

import ferry_client  # noqa: E402  from ../clients, which handler_support has put on the path
from held_source import HeldSource  # noqa: E402

HALF = 16 * MIB
SECOND = HALF // 4096  # first page of the other VM's half
# Of one VM, what may be outstanding at the source: 128 KiB, and a run that was begun below that.
WINDOW = 32 + 16


@contextmanager
def two_vms(folder):
    """VMs of the two halves of a snapshot, whose source answers only when it is told to."""
    path = snapshot(folder, 2 * HALF)
    source = HeldSource(path)
    with Handler(folder, "--from", source.address, "--plaintext") as h:
        with Vmm(h, path, HALF) as a, Vmm(h, path, HALF, offset=HALF, seed=2) as b:
            a.connected()
            b.connected()
            yield h, source, a, b
        source.close()


def of(pages, second):
    return sum((page >= SECOND) == second for page in pages)


def greedy_vm_stands_before_another_with_a_few_pages(folder):
    need_root()
    with two_vms(folder) as (h, source, greedy, other):
        greedy.send("touch", 256, 256)
        wait_for("the greedy VM's threads wait", lambda: h.status().get("faults_in_flight", 0) >= 200)
        source.wait("some of its pages are asked for", lambda: of(source.asked, False), LIMIT_S)
        other.send("touch", 1)
        source.wait("the other VM's page is asked for", lambda: of(source.asked, True), LIMIT_S)
        before = [page for page in source.asked if page < SECOND]
        assert 1 <= len(before) <= WINDOW, f"{len(before)} of the greedy VM's pages come first"
        while source.answer() < SECOND:
            pass
        assert other.answer()["bad"] == 0
        assert greedy.is_silent(0), "its other threads still wait"


def vms_get_the_same_share(folder):
    need_root()
    with two_vms(folder) as (h, source, greedy, other):
        greedy.send("touch", 2560, 256)
        wait_for("the greedy VM's threads wait", lambda: h.status().get("faults_in_flight", 0) >= 200)
        other.send("touch", 640, 32)
        answered = []
        for _ in range(300):
            # Each of them would have more at any time.
            source.wait(
                "both wait",
                lambda: all(of((w[2] for w in source.waiting), second) >= 20 for second in (False, True)),
                LIMIT_S)
            answered.append(source.answer())
        share = of(answered[100:], True) / 200
        assert share > 0.35, f"the VM with fewer threads was given {share:.0%}"


if __name__ == "__main__":
    ferry_client.load_proto(sys.argv[2])
    sys.exit(main([greedy_vm_stands_before_another_with_a_few_pages, vms_get_the_same_share]))
