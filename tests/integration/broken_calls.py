#!/usr/bin/python3 -B
# SPDX-License-Identifier: Apache-2.0
"""What a running command does when the kernel gives it no process, or its io_uring breaks.

    broken_calls.py PAGEFERRY LIBRARY
"""
import hashlib
import os
import signal
import sys

from cli_support import Holder, Run, Serve, content, main, need_root, preloaded, wait_for
from handler_support import MIB, Handler, Vmm, snapshot

LIBRARY = os.path.abspath(sys.argv.pop(2))
FORK, RING = 0, 1
N_PAGES = 1500


class Calls:
    """Those of the programs that are started with it."""

    def __init__(self, folder, name):
        self.path = os.path.join(folder, name)
        with open(self.path, "wb") as f:
            f.write(bytes(2))

    def preloaded(self):
        # What is in flight in an io_uring that broke stays the kernel's.
        return preloaded(LIBRARY, BROKEN_CALLS=self.path, LSAN_OPTIONS="detect_leaks=0")

    def set(self, which, value):
        with open(self.path, "r+b", buffering=0) as f:
            f.seek(which)
            f.write(bytes([value]))

    def get(self, which):
        with open(self.path, "rb") as f:
            return f.read()[which]


def child_of(pid):
    with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as f:
        children = f.read().split()
    return int(children[0]) if children else 0


def tells_of_trying(a):
    wait_for("it tells", lambda: b"tried again" in os.read(a.child.stderr.fileno(), 4096))


def a_worker_whose_io_uring_breaks_is_replaced(folder):
    need_root()
    path, calls = snapshot(folder, 32 * MIB), Calls(folder, "handler")
    with calls.preloaded():
        h = Handler(folder, "--file", path, "--max-rate", "2M")
    with h, Vmm(h, path, 32 * MIB) as vm:
        vm.connected().good("touch", 50)
        before = h.worker()
        calls.set(RING, 1)
        vm.send("touch", 300, 2)
        said = h.events("failed", "restarted")
        assert "page server" in said["failed"][0]["error"] and said["restarted"][0]["restarts"] == 1, said
        assert vm.answer()["bad"] == 0
        assert h.worker() != before
        vm.good("verify")
        h.event("vm-complete", vmm_pid=vm.pid)
        assert h.stop()[0] == 0


def a_page_server_that_breaks_without_vms_is_replaced(folder):
    """There would be nobody for whom another worker is started, and no handler for the next VM."""
    need_root()
    path, calls = snapshot(folder, 4 * MIB), Calls(folder, "idle")
    with calls.preloaded():
        h = Handler(folder, "--file", path)
    with h:
        worker = h.worker()
        for again in (False, True):
            with Vmm(h, path, 4 * MIB) as vm:
                vm.connected().good("verify")
                h.event("vm-complete", vmm_pid=vm.pid)
            if not again:
                wait_for("the VM has left", lambda: not h.status()["vm_list"])
                calls.set(RING, 1)
                wait_for("it has broken", lambda: not calls.get(RING))
        assert h.worker() == worker
        assert h.stop()[0] == 0


def a_serve_whose_io_uring_breaks_ends_and_is_resumed(folder):
    os.environ["RUNTIME_DIRECTORY"] = folder  # others would sweep the record
    data, calls, idle_calls = content(N_PAGES), Calls(folder, "serve"), Calls(folder, "idle-serve")
    path = os.path.join(folder, "memory")
    with open(path, "wb") as f:
        f.write(data)
    with idle_calls.preloaded():
        idle = Serve("--file", path)
    with idle:
        idle_calls.set(RING, 1)
        last = idle.end(1)
        assert "io_uring" in last["error"] and last["consequence"] == "refuse", last
    with calls.preloaded():
        s = Serve("--file", path)
    with s, Holder("anon", len(data)) as h:
        with Run("attach", "--json", "--pid", h.pid, "--match", h.ranges[0], "--from", s.address, "--max-rate",
                 "256K") as a:
            a.event("progress")
            calls.set(RING, 1)
            last = s.end(3)
            assert "--resume" in last["error"] and last["consequence"] == "link", last
            with Run("serve", "--json", "--file", path, "--listen", s.address, "--resume") as again:
                again.event("listening")
                assert int(h.ask("byte", 1400 * 4096)) == data[1400 * 4096]
                a.child.send_signal(signal.SIGTERM)
                a.end(3)


def a_supervisor_waits_until_it_can_start_a_process(folder):
    data, calls = content(N_PAGES), Calls(folder, "attach")
    path = os.path.join(folder, "memory")
    with open(path, "wb") as f:
        f.write(data)
    with Holder("anon", len(data)) as h, Serve("--file", path) as s:
        begin = ("attach", "--json", "--pid", h.pid, "--match", h.ranges[0], "--from", s.address, "--max-rate", "256K",
                 "--supervise")
        for goes_on in (True, False):
            with calls.preloaded():
                a = Run(*begin)
            with a:
                a.event("progress")
                calls.set(FORK, 1)
                os.kill(child_of(a.pid), signal.SIGKILL)
                a.event("restarted")
                tells_of_trying(a)
                assert not child_of(a.pid)
                if goes_on:
                    calls.set(FORK, 0)
                    assert int(h.ask("byte", 900 * 4096)) == data[900 * 4096]
                    a.event("progress")
                    a.child.send_signal(signal.SIGTERM)
                    a.end(3)
                else:
                    h.send("byte", (N_PAGES - 2) * 4096)
                    assert not h.answers(0.3), "a page came from nowhere"
                    a.child.send_signal(signal.SIGTERM)
                    last = a.end(3)
                    assert "same command again" in last["error"] and last["consequence"] == "link", last
                    # Also one that has never started any, and was not told that there is something to recover.
                    with calls.preloaded():
                        a = Run(*begins)
                    with a:
                        tells_of_trying(a)
                        a.child.send_signal(signal.SIGTERM)
                        assert "same command again" in a.end(3)["error"]
            begins = begin
            begin = ("attach", "--json", "--pid", h.pid, "--recover", "--max-rate", "256K", "--supervise")
        with Run("attach", "--json", "--pid", h.pid, "--recover") as a:
            a.end(0)
        assert int(h.answer()) == data[(N_PAGES - 2) * 4096]
        assert h.ask("hash") == hashlib.sha256(data).hexdigest()


def a_supervisor_that_never_started_any_says_so(folder):
    calls = Calls(folder, "none")
    calls.set(FORK, 1)
    qmp = os.path.join(folder, "none.qmp")
    with Holder("anon", 4096) as h, calls.preloaded():
        for status, args in (
            (1, ("attach", "--pid", h.pid, "--match", h.ranges[0], "--from", "127.0.0.1:9")),
            (3, ("attach", "--pid", h.pid, "--recover")),
            (1, ("receive", "--qmp", qmp, "--listen", "127.0.0.1:0")),
            (1, ("migrate", "--qmp", qmp, "--to", "127.0.0.1:9", "--postcopy")),
        ):
            with Run(*args, "--json", "--supervise") as a:
                tells_of_trying(a)
                a.child.send_signal(signal.SIGTERM)
                last = a.end(status)
                assert "stopped by the user" in last["error"], last
                assert ("same command again" in last["error"]) == (status == 3), last


if __name__ == "__main__":
    sys.exit(
        main(
            [
                a_worker_whose_io_uring_breaks_is_replaced,
                a_page_server_that_breaks_without_vms_is_replaced,
                a_serve_whose_io_uring_breaks_ends_and_is_resumed,
                a_supervisor_waits_until_it_can_start_a_process,
                a_supervisor_that_never_started_any_says_so,
            ]
        )
    )
