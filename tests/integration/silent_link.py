#!/usr/bin/python3 -B
# SPDX-License-Identifier: Apache-2.0
"""What is between the two stays open, and passes nothing on any more, on one connection or on all.

    silent_link.py PAGEFERRY PROTO
"""
import os
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "clients"))
import ferry_client as fc  # noqa: E402
from cli_support import LIMIT_S, PAGE, Holder, Run, Serve, content, main, need_root, wait_for  # noqa: E402
from handler_support import MIB, Handler, Vmm, snapshot  # noqa: E402
from held_source import HeldSource  # noqa: E402
from raw_forwarder import Forwarder  # noqa: E402

N_PAGES = 2048
NOTICED_S = 20  # 10 s of silence, and what the way back takes
PATIENT_S = 14
ROLES = {fc.CONTROL: "control", fc.URGENT: "urgent", fc.BULK: "bulk"}


class FreezingForwarder(Forwarder):
    """Once told to, passes nothing on of those connections of these roles that are there: the first frame tells its role."""

    def __init__(self, address):
        self.role_of, self.frozen = {}, set()
        super().__init__(address)

    def freeze(self, roles):
        self.frozen = {pair for pair, role in self.role_of.items() if role in roles}
        assert {self.role_of[pair] for pair in self.frozen} == roles, self.role_of

    def pump(self, x, y, pair):
        try:
            while data := x.recv(65536):
                if x is pair[0] and pair not in self.role_of:
                    n = int.from_bytes(data[6:8], "little")
                    self.role_of[pair] = ROLES[fc.pb.Hello.FromString(data[16 : 16 + n]).role]
                if pair not in self.frozen:
                    y.sendall(data)
        except OSError:
            pass
        # Who is frozen does not pass on the end either.
        if pair not in self.frozen:
            self.end(pair)


def a_silent_connection_is_noticed(folder):
    path, memory = os.path.join(folder, "memory"), content(N_PAGES)
    with open(path, "wb") as f:
        f.write(memory)
    for roles in ({"urgent"}, {"control"}, {"bulk"}, {"control", "urgent", "bulk"}):
        # The push would take hours.
        with Holder("anon", len(memory)) as h, Serve("--file", path, "--max-rate", "2000", "--once") as s:
            with FreezingForwarder(s.address) as between:
                with Run("attach", "--json", "--pid", h.pid, "--match", h.ranges[0], "--from", between.address) as a:
                    a.event("stage", stage="push")
                    assert h.ask("byte", 100 * PAGE) == str(memory[100 * PAGE])
                    between.freeze(roles)
                    begun = time.monotonic()
                    h.send("byte", 1000 * PAGE + 1)
                    if roles != {"bulk"}:
                        assert h.answers(NOTICED_S), f"{roles}: a thread waits"
                    assert h.answer() == str(memory[1000 * PAGE + 1])
                    lost = a.event("link-lost")
                    assert time.monotonic() - begun < NOTICED_S, f"{roles}: not noticed"
                    print(f"{sorted(roles)}: after {time.monotonic() - begun:.1f} s: {lost}", flush=True)
                    for page in range(0, N_PAGES, 97):
                        assert h.ask("byte", page * PAGE) == str(memory[page * PAGE]), page


def one_that_takes_its_time_is_not_silent(folder):
    """One that answers pings, and one that knows of none."""
    path, memory = os.path.join(folder, "memory"), content(64)
    with open(path, "wb") as f:
        f.write(memory)
    for features in (fc.ALIVE, 0):
        source = HeldSource(path, features=features)
        with Holder("anon", len(memory)) as h:
            with Run("attach", "--json", "--pid", h.pid, "--match", h.ranges[0], "--from", source.address) as a:
                a.event("stage", stage="push")
                for page in (5, 8):
                    h.send("byte", page * PAGE)
                    source.wait("the page is asked for", lambda: source.waiting, LIMIT_S)
                    if page == 5:
                        time.sleep(PATIENT_S)
                    source.answer()
                    assert h.answer() == str(memory[page * PAGE])
                out, err = a.stop()[1:]
                assert '"link-lost"' not in out and "nothing heard" not in err, (out, err)
                assert bool(source.n_pings) == bool(features), source.n_pings
        source.close()


def a_source_that_waits_itself_is_not_silent(folder):
    """Its own source takes its time, and knows of no pings."""
    need_root()
    path = snapshot(folder, 4 * MIB)
    source = HeldSource(path)
    with Handler(folder, "--from", source.address, "--plaintext") as h, Vmm(h, path, 4 * MIB) as vm:
        vm.connected()
        vm.send("touch", 256, 256)
        wait_for("its threads wait", lambda: h.status().get("faults_in_flight", 0) >= 200)
        time.sleep(PATIENT_S)
        while vm.is_silent(0.01):
            while source.waiting:
                source.answer()
        assert vm.answer()["bad"] == 0
        vm.kill()
        h.event("vm-gone")
        err = h.stop()[2]
        assert "nothing heard" not in err, err
    source.close()


if __name__ == "__main__":
    fc.load_proto(sys.argv.pop(2))
    sys.exit(main([a_silent_connection_is_noticed, one_that_takes_its_time_is_not_silent,
                   a_source_that_waits_itself_is_not_silent]))
