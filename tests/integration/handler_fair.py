#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""VMs of one 'pageferry handler' share what gives them pages. Counted, at a source that answers when it is told to; and of
a file, in the order in which pages are looked for in it.

    handler_fair.py PAGEFERRY PROTO ORDER_OF_READS
"""
import mmap
import os
import random
import struct
import sys
from contextlib import contextmanager

from cli_support import LIMIT_S, main, need_root, preloaded, wait_for
from handler_support import MIB, Handler, Vmm, snapshot

import ferry_client  # noqa: E402  from ../clients, which handler_support has put on the path
from held_source import HeldSource  # noqa: E402

HALF = 16 * MIB
SECOND = HALF // 4096  # first page of the other VM's half
# Of one VM, what may be outstanding at the source: 128 KiB, and a run that was begun below that.
WINDOW = 32 + 16
# Of one VM, what is answered from a file before others have their turn: 64 KiB.
TURN = 16


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
        h.stop()
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


class Order:
    """What order_of_reads.c writes down. It is held until it is told to go on."""

    def __init__(self, folder):
        self.path = os.path.join(folder, "order")
        with open(self.path, "w+b") as f:
            f.truncate(8 + 8 * 4096)
            self.memory = mmap.mmap(f.fileno(), 0)
        self.hold(True)

    def hold(self, held):
        self.memory[:4] = struct.pack("I", held)

    def pages(self):
        n = struct.unpack_from("I", self.memory, 4)[0]
        assert n <= 4096, n
        return [offset // 4096 for offset in struct.unpack_from(f"{n}Q", self.memory, 8)]


def in_order(folder, n_greedy, n_other):
    """Two clones wait for so many pages of a file, the greedy one first. Returns for each page that is given, whether it
    is the other one's."""
    path, order = os.path.join(folder, "full.mem"), Order(folder)
    with open(path, "wb") as f:
        f.write(random.Random(1).randbytes(HALF))
    # Nothing is pushed for 10 s then.
    sets = ("--record", os.path.join(folder, "fair.set"), "--max-rate", "4K")
    with preloaded(os.path.abspath(sys.argv[3]), ORDER_OF_READS=order.path):
        h = Handler(folder, "--file", path, *sets)
    with h, Vmm(h, path, HALF) as greedy, Vmm(h, path, HALF) as other:
        greedy.connected()
        other.connected()
        h.events("vm-filling", "vm-filling")
        half = HALF // 4096 // 2

        def wait(n):
            def all_do():
                s = h.status()
                return s.get("faults_in_flight", 0) >= n - s.get("pages_pushed", 0)

            wait_for("all threads wait", all_do)

        greedy.send("each", 0, n_greedy)
        wait(n_greedy)
        other.send("each", half, n_other)
        wait(n_greedy + n_other)
        order.hold(False)
        for vm in (greedy, other):
            assert vm.answer()["bad"] == 0
        pages = list(dict.fromkeys(order.pages()))  # by the first look at each
        assert len(pages) > n_greedy + n_other - 10, len(pages)
        for vm in (greedy, other):
            vm.kill()
        h.stop()
    return [page >= half for page in pages]


def fair(folder, n_greedy, n_other, looks):
    """On a busy machine a VM may be late to ask, or to take what it is sent, and is passed over then. So one time will do."""
    for _ in range(10):
        why = looks(in_order(folder, n_greedy, n_other))
        if not why:
            return
    raise AssertionError(why)


def greedy_vm_does_not_keep_another_from_a_file(folder):
    need_root()

    def looks(order):
        # A turn that had begun, and two while the other's request is read.
        first = order.index(True)
        return first > 3 * TURN and f"{first} of the greedy VM's pages come first"

    fair(folder, 300, 1, looks)


def clones_take_turns_at_a_file(folder):
    need_root()

    def looks(order):
        for n in range(3 * TURN, 301, 10):
            share = sum(order[:n])
            if share < n // 2 - 3 * TURN:
                return f"of the first {n} pages the VM that came later was given {share}"
        return None

    fair(folder, 300, 150, looks)


if __name__ == "__main__":
    ferry_client.load_proto(sys.argv[2])
    sys.exit(
        main(
            [
                greedy_vm_stands_before_another_with_a_few_pages,
                vms_get_the_same_share,
                greedy_vm_does_not_keep_another_from_a_file,
                clones_take_turns_at_a_file,
            ]
        )
    )
