#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""VMs restored by 'pageferry handler' from a page server elsewhere."""
import json
import sys
from contextlib import ExitStack

from cli_support import Serve, main, need_root
from handler_support import MIB, Handler, Vmm, snapshot
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
    with Serve("--file", path, "--max-rate", "4M") as s:
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


if __name__ == "__main__":
    sys.exit(
        main(
            [
                clones_share_what_crosses_the_network,
                link_breaks_and_comes_back,
                killed_worker_is_replaced,
                page_server_must_have_the_snapshot,
            ]
        )
    )
