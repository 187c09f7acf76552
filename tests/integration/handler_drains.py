#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""The end of 'pageferry handler': its first signal lets the VMs that it has become complete, the second one does not.

The push is slow, so that a VM is complete when it has touched all of its pages, and not before.
"""
import json
import os
import select
import signal
import socket
import sys
from contextlib import contextmanager

from cli_support import Run, Serve, address_of_ours, main, need_root, state_of, wait_for
from handler_support import MIB, HandedOver, Handler, Vmm, snapshot

SIZE = 8 * MIB
SLOW = ("--max-rate", "64K")


@contextmanager
def handler(folder, *more):
    need_root()
    path = snapshot(folder, SIZE)
    with Handler(folder, "--file", path, *SLOW, *more) as h:
        yield h, path


def drain(h, n_vms, *pids, sig=signal.SIGTERM):
    for pid in pids or [h.pid]:
        os.kill(pid, sig)
    assert h.event("draining")["vms_filling"] == n_vms


def connects(name):
    with socket.socket(socket.AF_UNIX) as s:
        try:
            s.connect(name)
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        return True


def is_filled(vm):
    """To the end, and served until then."""
    vm.good("touch", 50)
    vm.good("verify")


def vms_become_complete(folder):
    with handler(folder) as (h, path), Vmm(h, path, SIZE) as vm, Vmm(h, path, SIZE) as other:
        for v in (vm, other):
            v.connected().good("touch", 20)
        assert connects(h.socket)
        drain(h, 2)
        assert not connects(h.socket), "another VM is let in"
        assert h.status()["stage"] == "drain"
        with Run("status", "--control", h.control) as s:
            assert " drain " in s.rest()[1]
        other.kill()
        h.event("vm-gone", vmm_pid=other.pid)
        assert h.status()["stage"] == "drain", "it has not ended"
        is_filled(vm)
        h.event("vm-complete", vmm_pid=vm.pid)
        last = h.end(0)
        assert (last["vms_complete"], last["vms_gone"], last["vms_filling"]) == (1, 1, 0), last
        vm.good("verify")


def without_vms_it_ends(folder):
    with handler(folder) as (h, path):
        with Vmm(h, path, SIZE) as vm:
            vm.connected().good("verify")
            h.event("vm-complete")
        h.child.send_signal(signal.SIGINT)
        assert h.end(0)["vms_complete"] == 1
        assert not os.path.exists(h.socket)


def second_signal_ends_at_once(folder):
    with handler(folder) as (h, path), Vmm(h, path, SIZE) as vm:
        vm.connected().good("touch", 20)
        drain(h, 1)
        h.child.send_signal(signal.SIGINT)
        last = h.end(3)
        assert "1 VM is not complete" in last["error"] and last["vms_filling"] == 1, last
        vm.send("verify")
        assert vm.is_silent(0.3), "pages that nobody has served were given out"


def signal_of_a_terminal_counts_once(folder):
    """It goes to both processes; and either may be told alone."""
    with handler(folder) as (h, path), Vmm(h, path, SIZE) as vm:
        vm.connected().good("touch", 20)
        drain(h, 1, h.worker(), sig=signal.SIGINT)
        wait_for("nobody is let in", lambda: not connects(h.socket))
        os.kill(h.pid, signal.SIGINT)
        is_filled(vm)
        assert h.end(0)["vms_complete"] == 1
    with handler(folder) as (h, path), Vmm(h, path, SIZE) as vm:
        vm.connected().good("touch", 20)
        worker = h.worker()
        drain(h, 1, worker)
        wait_for("nobody is let in", lambda: not connects(h.socket))
        os.kill(worker, signal.SIGTERM)
        assert "1 VM is not complete" in h.end(3)["error"]


def who_had_connected_is_let_in(folder):
    with handler(folder, "--max-vms", 1) as (h, path):
        with Vmm(h, path, SIZE) as first, Vmm(h, path, SIZE) as second:
            filling = h.events("vm-filling", "vm-waits")["vm-filling"][0]["vmm_pid"]
            if filling != first.pid:
                first, second = second, first
            for vm in (first, second):
                vm.connected()
            drain(h, 1)
            assert not connects(h.socket)
            for vm in (first, second):
                vm.good("verify")
                h.event("vm-complete", vmm_pid=vm.pid)
            assert h.end(0)["vms_complete"] == 2


def who_connects_before_the_snapshot_is_there_is_let_in(folder):
    """The page server says nothing at first, and is another one later."""
    need_root()
    path, address = snapshot(folder, SIZE), address_of_ours()
    host, port = address.split(":")
    with socket.create_server((host, int(port))) as silent, Handler(folder, "--from", address, listens=False) as h:
        wait_for("it is dialed", lambda: select.select([silent], [], [], 0)[0])
        with silent.accept()[0], Vmm(h, path, SIZE) as vm:
            vm.connected()
            os.kill(h.pid, signal.SIGTERM)
            wait_for("its socket is gone", lambda: not os.path.exists(h.socket))
            silent.shutdown(socket.SHUT_RDWR)  # the VMM's process has it as well
            with Serve("--file", path, listen=address):
                is_filled(vm)
                assert h.end(0)["vms_complete"] == 1


def half_a_message_counts(folder):
    """It is completed after the signal."""
    with handler(folder) as (h, path), Vmm(h, path, SIZE) as vm, Vmm(h, path, SIZE, late="told") as late:
        vm.connected()
        h.event("vm-filling", vmm_pid=vm.pid)
        assert late.answer()["late"] == late.pid
        drain(h, 1)
        is_filled(vm)
        h.event("vm-complete", vmm_pid=vm.pid)
        late.send("go")
        late.connected().good("verify")
        assert h.end(0)["vms_complete"] == 2


def killed_worker_is_replaced(folder):
    with handler(folder) as (h, path), Vmm(h, path, SIZE) as vm:
        vm.connected().good("touch", 20)
        drain(h, 1)
        os.kill(h.worker(), signal.SIGKILL)
        h.event("restarted")
        assert h.event("draining")["vms_filling"] == 1
        is_filled(vm)
        h.event("vm-complete", vmm_pid=vm.pid)
        assert h.end(0)["vms_complete"] == 1


def worker_goes_on_alone(folder):
    """The process that holds the descriptors is killed: there is nobody to end it but the worker's own last VM."""
    with handler(folder) as (h, path), Vmm(h, path, SIZE) as vm:
        vm.connected().good("touch", 20)
        worker = h.worker()
        drain(h, 1)
        os.kill(h.pid, signal.SIGKILL)
        h.event("alone")
        assert h.status()["stage"] == "drain"
        is_filled(vm)
        h.event("vm-complete", vmm_pid=vm.pid)
        wait_for("it ends", lambda: not os.path.exists(f"/proc/{worker}") or state_of(worker) == "Z")
        last = json.loads(h.rest()[1].splitlines()[-1])
        assert last["event"] == "completed" and last["exit"] == 0, last


def worker_that_is_alone_counts_for_itself(folder):
    with handler(folder) as (h, path), Vmm(h, path, SIZE) as vm:
        vm.connected().good("touch", 20)
        worker = h.worker()
        os.kill(h.pid, signal.SIGKILL)
        h.event("alone")
        drain(h, 1, worker)
        vm.good("touch", 20)
        os.kill(worker, signal.SIGTERM)
        last = json.loads(h.rest()[1].splitlines()[-1])
        assert last["exit"] == 3 and "1 VM is not complete" in last["error"], last


def next_handler_takes_over_the_socket(folder):
    """systemd's: it stays, and who comes while the old one drains is the next one's."""
    need_root()
    path, name = snapshot(folder, SIZE), os.path.join(folder, "handed.sock")
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(name)
        s.listen()
        with HandedOver(s, name, "--file", path, *SLOW) as old, Vmm(name, path, SIZE) as vm:
            vm.connected()
            old.event("vm-filling", vmm_pid=vm.pid)
            drain(old, 1)
            with Vmm(name, path, SIZE) as other:
                other.connected().send("verify")
                assert other.is_silent(0.3), "the one that drains has taken it"
                with HandedOver(s, name, "--file", path) as new:
                    assert other.answer()["bad"] == 0
                    new.event("vm-complete", vmm_pid=other.pid)
                    is_filled(vm)
                    assert old.end(0)["vms_complete"] == 1
                    assert new.stop()[0] == 0


def path_is_free_for_the_next_one(folder):
    """Where there is no systemd: it is started while the old one drains, and keeps its socket when that ends."""
    with handler(folder) as (old, path), Vmm(old, path, SIZE) as vm:
        vm.connected()
        old.event("vm-filling")
        drain(old, 1)
        with Run("handler", "--json", "--socket", old.socket, "--file", path) as new:
            new.event("listening")
            is_filled(vm)
            assert old.end(0)["vms_complete"] == 1
            with Vmm(old, path, SIZE) as other:
                other.connected().good("verify")
                new.event("vm-complete", vmm_pid=other.pid)
            assert new.stop()[0] == 0


if __name__ == "__main__":
    sys.exit(
        main(
            [
                vms_become_complete,
                without_vms_it_ends,
                second_signal_ends_at_once,
                signal_of_a_terminal_counts_once,
                who_had_connected_is_let_in,
                who_connects_before_the_snapshot_is_there_is_let_in,
                half_a_message_counts,
                killed_worker_is_replaced,
                worker_goes_on_alone,
                worker_that_is_alone_counts_for_itself,
                next_handler_takes_over_the_socket,
                path_is_free_for_the_next_one,
            ]
        )
    )
