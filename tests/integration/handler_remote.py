#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""VMs restored by 'pageferry handler' from a page server elsewhere."""
import json
import os
import select
import signal
import socket
import sys
from contextlib import ExitStack

from cli_support import LIMIT_S, Serve, main, need_root, run, wait_for
from handler_support import MIB, HandedOver, Handler, Vmm, snapshot
from microvm_support import Forwarder


def clones_share_what_crosses_the_network(folder):
    need_root()
    path = snapshot(folder, 16 * MIB)
    n = 8
    with Serve("--file", path, "--max-rate", "1M") as s, ExitStack() as stack:
        h = stack.enter_context(Handler(folder, "--from", s.address, "--plaintext"))
        vms = [stack.enter_context(Vmm(h, path, 12 * MIB, 4 * MIB, seed=i)) for i in range(n)]
        for vm in vms:
            vm.connected().send("touch", 400, 2)
        for vm in vms:
            assert vm.answer()["bad"] == 0
        vms[0].good("storm", 2000, 4)
        for vm in vms:
            vm.good("verify")
        h.events(*["vm-complete"] * n)
        code, out, err = h.stop()
        last = json.loads(out.splitlines()[-1])
        assert code == 0 and last["vms_complete"] == n, (out, err)
        source = last["source"]
        assert source["pages_urgent"], source
        # Each page once; some that are asked for may be on their way in the push already.
        assert source["wire_bytes"] < 16 * MIB * 1.5, source


def handler_that_ends_early_leaves_its_place(folder):
    """Nobody else can go on with what it had."""
    need_root()
    path = snapshot(folder, 16 * MIB)
    with Serve("--file", path, "--max-rate", "1M", "--max-sessions", "1") as s:
        for _ in range(2):
            with Handler(folder, "--from", s.address, "--plaintext") as h:
                with Vmm(h, path, 16 * MIB) as vm:
                    vm.connected().good("touch", 50)
                assert h.stop()[0] == 0


def link_breaks_and_comes_back(folder):
    need_root()
    path = snapshot(folder, 32 * MIB)
    with Serve("--file", path, "--max-rate", "8M") as s:
        forwarder = Forwarder(int(s.address.rsplit(":", 1)[1]), 4 * MIB)
        with Handler(folder, "--from", f"127.0.0.1:{forwarder.here}", "--plaintext") as h:
            with Vmm(h, path, 32 * MIB) as a, Vmm(h, path, 32 * MIB) as b:
                a.connected()
                b.connected()
                assert forwarder.was_cut.wait(60)
                h.event("link-lost")
                for vm in (a, b):
                    vm.send("verify")
                # They will want a page that is not there: they wait, and are given nothing else.
                assert a.is_silent(0.3) and b.is_silent(0), "all pages were there without a link"
                forwarder.open(1 << 40)
                for vm in (a, b):
                    assert vm.answer()["bad"] == 0
                h.events("vm-complete", "vm-complete")
            assert h.stop()[0] == 0


def killed_worker_is_replaced(folder):
    need_root()
    path = snapshot(folder, 32 * MIB)
    # One worker after the other is the same target there, and has its place.
    with Serve("--file", path, "--max-rate", "1M", "--max-sessions", "1") as s:
        with Handler(folder, "--from", s.address, "--plaintext") as h, Vmm(h, path, 32 * MIB) as vm:
            vm.connected()
            for i in range(2):
                vm.good("touch", 50)
                vm.ask("drop", 10 + 10 * i)
                vm.send("touch", 300, 4)
                h.kill_worker(32 * MIB // 4096 * (10 + 10 * i) // 100)
                assert vm.answer()["bad"] == 0
            vm.good("verify")
            h.event("vm-complete")
            assert h.stop()[0] == 0


def page_server_must_have_the_snapshot(folder):
    need_root()
    path = snapshot(folder, 8 * MIB)
    with Serve("--file", path) as s:
        with Handler(folder, "--from", s.address, "--plaintext") as h, Vmm(h, path, 4 * MIB, 8 * MIB) as vm:
            vm.connected()
            assert "snapshot" in h.event("vm-refused")["error"]


def vm_that_waits_keeps_the_handler_trying(folder):
    """The VM was there before the handler, which comes up before the page server."""
    need_root()
    path, there = snapshot(folder, 8 * MIB), "unix:" + os.path.join(folder, "pages.sock")
    # Nobody waits: it says why, and ends.
    code, _, err = run("handler", "--socket", os.path.join(folder, "none.sock"), "--from", there)
    assert code == 1 and "pages.sock" in err, (code, err)
    with socket.socket(socket.AF_UNIX) as s:
        name = os.path.join(folder, "early.sock")
        s.bind(name)
        s.listen()
        with Vmm(name, path, 8 * MIB) as vm:
            assert select.select([s], [], [], LIMIT_S)[0], "the VMM does not connect"
            with HandedOver(s, name, "--from", there) as h:
                vm.connected().send("touch", 100)
                assert "pages.sock" in h.event("link-lost")["error"]
                assert h.event("vm-trouble")["vmm_pid"] == vm.pid
                assert vm.is_silent(0)
                with Serve("--file", path, listen=there):
                    assert vm.answer()["bad"] == 0
                    vm.good("verify")
                    h.event("vm-complete")
                assert h.stop()[0] == 0


def vm_outlives_a_first_worker_that_fails(folder):
    """The VM connects while the worker waits for a page server that breaks off then."""
    need_root()
    path, name = snapshot(folder, 8 * MIB), os.path.join(folder, "breaks.sock")
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(name)
        s.listen()
        with Handler(folder, "--from", "unix:" + name, listens=False) as h:
            first, _ = s.accept()
            with Vmm(h, path, 8 * MIB) as vm:
                vm.connected().send("touch", 100)
                os.unlink(name)
                first.close()
                # The keeper says it by the next worker.
                wait_for("the next one", lambda: json.loads(h.read_line())["event"] == "restarted")
                with Serve("--file", path, listen="unix:" + name):
                    assert vm.answer()["bad"] == 0
                    h.event("vm-complete")
                assert h.stop()[0] == 0


def what_needs_no_page_server_goes_on_without(folder):
    """The worker is killed while the page server is not there."""
    need_root()
    path, there = snapshot(folder, 32 * MIB), "unix:" + os.path.join(folder, "gone.sock")
    with ExitStack() as stack:
        with Serve("--file", path, "--max-rate", "1M", listen=there):
            h = stack.enter_context(Handler(folder, "--from", there))
            vm, other = (stack.enter_context(Vmm(h, path, 32 * MIB)) for _ in range(2))
            for v in (vm, other):
                v.connected().good("touch", 20)
            vm.ask("drop", 10)
            vm.good("zeros", 5)
        h.event("link-lost")
        h.kill_worker(32 * MIB // 4096 * 10 // 100)
        # What was discarded before is zero, also where nobody touched it; and more may be discarded.
        vm.good("zeros", 10)
        vm.ask("drop", 20)
        vm.good("zeros", 20)
        other.kill()
        h.event("vm-gone", vmm_pid=other.pid)
        vm.send("touch", 200, 2)
        assert vm.is_silent(0.2)
        # A third one comes only now, and another worker dies.
        third = stack.enter_context(Vmm(h, path, 32 * MIB)).connected()
        third.ask("drop", 10)
        third.good("zeros", 10)
        os.kill(h.worker(), signal.SIGKILL)
        third.good("zeros", 10)
        with Serve("--file", path, listen=there):
            assert vm.answer()["bad"] == 0
            for v in (vm, third):
                v.good("verify")
            h.events("vm-complete", "vm-complete")
        assert h.stop()[0] == 0


if __name__ == "__main__":
    sys.exit(
        main(
            [
                handler_that_ends_early_leaves_its_place,
                clones_share_what_crosses_the_network,
                link_breaks_and_comes_back,
                killed_worker_is_replaced,
                page_server_must_have_the_snapshot,
                vm_that_waits_keeps_the_handler_trying,
                vm_outlives_a_first_worker_that_fails,
                what_needs_no_page_server_goes_on_without,
            ]
        )
    )
