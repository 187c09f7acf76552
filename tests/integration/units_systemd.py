#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""The units under systemd itself: what is killed, stopped, or of no use is started again, or is not, and no page is lost."""
import hashlib
import os
import signal
import socket
import sys
import time
from contextlib import ExitStack

from cli_support import PAGE, Holder, Serve, address_of_ours, child_of, content, has_ended, main, wait_for
from handler_support import MIB, Vmm, snapshot
from systemd_support import FILES, Systemd

BINDIR, *UNITS = sys.argv[2:]
N_PAGES = 1500


class Attached:
    """A unit of attach at work, for a process whose memory is filled slowly."""

    def __init__(self, manager, match=None):
        self.manager, self.unit = manager, "pageferry-attach@test.service"
        self.data = content(N_PAGES, seed=4)
        self.path = os.path.join(FILES, "memory")
        with open(self.path, "wb") as f:
            f.write(self.data)
        self.holder, self.address, self.serve = Holder("anon", len(self.data)), address_of_ours(), None
        self.serve_at("64K")
        self.next_page = N_PAGES - 1
        manager.options("attach-test.env", f"PID={self.holder.pid}\nMATCH={match or self.holder.ranges[0]}\n"
                                          f"FROM={self.address}\nOPTIONS=--json\n")
        # Of what ends at once 'start' may say so.
        manager.ctl("start", self.unit, check=not match)
        if not match:
            wait_for("the memory is registered", self.is_registered)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.serve.__exit__()
        self.holder.__exit__()

    def is_registered(self):
        """With a userfaultfd: from then on threads wait for missing pages."""
        with open(f"/proc/{self.holder.pid}/smaps", encoding="utf-8") as f:
            return any(line.startswith("VmFlags:") and " um" in line for line in f)

    def serve_at(self, rate):
        if self.serve:
            self.serve.__exit__()
        self.serve = Serve("--file", self.path, "--max-rate", rate, listen=self.address)

    def touch(self):
        """Has a thread read a page that is not there yet. Returns what it must read."""
        page = self.next_page
        self.next_page -= 100
        self.holder.send("byte", page * PAGE)
        return self.data[page * PAGE]

    def reads(self):
        wanted = self.touch()
        got = int(self.holder.answer())
        assert got == wanted, f"a page begins with {got}, not with {wanted}"

    def pids(self):
        """Of the parent, and of its child at work."""
        main_pid = self.manager.main_pid(self.unit)
        assert main_pid
        child = child_of(main_pid)
        wait_for("both are there", lambda: sorted(self.manager.processes(self.unit)) == sorted((main_pid, child)))
        return main_pid, child

    def goes_on_without(self, what, *pids, sig=signal.SIGKILL):
        """
        They are killed. A thread that waits for a page, once nobody is at work, gets the right one. Returns how often
        systemd has started the unit again.
        """
        child = self.pids()[1]
        begin = time.monotonic()
        for pid in pids:
            os.kill(pid, sig)
        wait_for("what was at work has ended", lambda: has_ended(child))
        gone = time.monotonic()
        self.reads()
        print(f"  {what}: the work ended after {gone - begin:.3f} s, the next page was there after "
              f"{time.monotonic() - begin:.3f} s", flush=True)
        return int(self.manager.show(self.unit)["NRestarts"])


def killed_attach_goes_on(_):
    with Systemd(UNITS, BINDIR) as manager, Attached(manager) as a:
        a.reads()
        main_pid, child = a.pids()
        assert a.goes_on_without("the child killed", child) == 0
        assert a.pids()[0] == main_pid and a.pids()[1] != child
        assert a.goes_on_without("the parent killed", main_pid) == 1
        assert a.pids()[0] != main_pid
        assert a.goes_on_without("both killed", *a.pids()) == 2
        # It says 3 then: the process waits.
        assert a.goes_on_without("told to stop, and not by systemd", a.pids()[0], sig=signal.SIGTERM) == 3
        a.reads()


def stopped_attach_goes_on_when_started(_):
    with Systemd(UNITS, BINDIR) as manager, Attached(manager) as a:
        a.reads()
        a.pids()
        manager.ctl("stop", a.unit)
        said = manager.end(a.unit)
        assert said["ExecMainStatus"] == "3" and not manager.processes(a.unit), said
        wanted = a.touch()
        assert not a.holder.answers(0.3), "a missing page was read without its content"
        a.serve_at("100M")
        manager.ctl("start", a.unit)
        assert int(a.holder.answer()) == wanted
        said = manager.end(a.unit)
        assert (said["ActiveState"], said["Result"]) == ("inactive", "success"), said
        assert not manager.processes(a.unit)
        assert a.holder.ask("hash") == hashlib.sha256(a.data).hexdigest()


def attach_that_cannot_work_is_not_started_again(_):
    with Systemd(UNITS, BINDIR) as manager, Attached(manager, match="no-such-memory") as a:
        said = manager.end(a.unit)
        assert (said["ActiveState"], said["ExecMainStatus"]) == ("failed", "1"), said


class Restoring:
    """A socket of the handler's units, and VMs that connect to it."""

    def __init__(self, manager, stack):
        self.manager, self.stack = manager, stack
        self.service, self.listener = "pageferry-handler@test.service", "pageferry-handler@test.socket"
        self.path, self.socket = snapshot(FILES, 16 * MIB), "/run/pageferry-handler/test.sock"
        # So slowly that none is complete before it is looked at.
        manager.options("handler-test.conf", f"file {self.path}\nmax-rate 64K\n")
        manager.ctl("start", self.listener)

    def vm(self):
        """One that has begun."""
        vm = self.stack.enter_context(Vmm(self.socket, self.path, 16 * MIB)).connected()
        vm.good("touch", 10)
        return vm

    def server(self):
        """The parent, and its child that serves."""
        wait_for("the service runs", lambda: self.manager.show(self.service)["SubState"] == "running")
        main_pid = self.manager.main_pid(self.service)
        return main_pid, child_of(main_pid)


def completes(vm, worker):
    """All of its memory is right, and who served it ends then."""
    assert not has_ended(worker), "a process that serves a VM was ended"
    vm.good("verify")
    wait_for("who served it has ended", lambda: has_ended(worker))


def handler_is_replaced_and_its_vms_complete(_):
    with Systemd(UNITS, BINDIR) as manager, ExitStack() as stack:
        r = Restoring(manager, stack)
        assert manager.show(r.service)["ActiveState"] == "inactive" and os.stat(r.socket).st_mode & 0o777 == 0o600
        first = r.vm()
        main_pid, worker = r.server()

        begin = time.monotonic()
        os.kill(main_pid, signal.SIGKILL)
        second = r.vm()
        print(f"  the parent killed: the next VM had its pages after {time.monotonic() - begin:.2f} s", flush=True)
        new_main, new_worker = r.server()
        assert new_main != main_pid and new_worker != worker
        restarts = manager.show(r.service)["NRestarts"]
        assert restarts == "1", f"{restarts}: it was the VM that had it started, and not systemd"
        first.good("touch", 10)
        completes(first, worker)

        manager.ctl("restart", r.service)
        assert manager.main_pid(r.service) not in (new_main, 0)
        third = r.vm()
        completes(second, new_worker)

        worker = r.server()[1]
        manager.ctl("stop", r.service)
        assert manager.main_pid(r.service) == 0
        said = manager.show(r.service)
        assert said["ActiveState"] == "inactive", said
        third.good("touch", 10)
        fourth = r.vm()  # the socket is there, and has it started
        completes(third, worker)

        worker = r.server()[1]
        manager.ctl("stop", r.listener, r.service)
        with socket.socket(socket.AF_UNIX) as s:
            assert s.connect_ex(r.socket), "somebody listens"
        completes(fourth, worker)
        assert manager.main_pid(r.service) == 0


if __name__ == "__main__":
    sys.exit(main([killed_attach_goes_on, stopped_attach_goes_on_when_started,
                   attach_that_cannot_work_is_not_started_again, handler_is_replaced_and_its_vms_complete]))
