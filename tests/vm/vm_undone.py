#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Everything that can break, at every stage before the confirmation: the guest runs on at the source.

A stage stands still because a frame is held back on its way; then something breaks.

    vm_undone.py PAGEFERRY [--all] [CASE...]
"""
import signal
import sys

import vm_support
from vm_support import LIMIT_S

SOON_S = 25  # less than any time-out that would end 'receive' otherwise

# The frame that waits, the stage of 'migrate' by then, and what the source's guest has seen in the end.
STOPPED_AND_RESUMED = ["STOP", "RESUME"]
POINTS = {
    "Hello": ("check", []),
    "Prepare": ("attach", []),
    "Prepared": ("attach", []),
    "Layout": ("attach", []),
    "Stopped": ("device-state", STOPPED_AND_RESUMED),
    "DeviceState": ("device-state", STOPPED_AND_RESUMED),
    "DeviceStateEnd": ("device-state", STOPPED_AND_RESUMED),
    "Loaded": ("device-state", STOPPED_AND_RESUMED),
}


class Attempt:
    """A move that has come to a point."""

    def __init__(self, lab, point):
        self.lab, self.point = lab, point
        stage, self.seen = POINTS[point]
        self.source = lab.guest()
        self.target = lab.target(self.source)
        self.receive = lab.receive(self.target)
        self.link = lab.forwarder(self.receive)
        self.gate = self.link.hold(point)
        self.migrate = lab.migrate(self.source, self.link.address)
        self.gate.wait(LIMIT_S)
        self.migrate.stage(stage)

    def undone(self, *texts):
        self.migrate.refuses(*texts)
        self.ran_on()

    def ran_on(self):
        self.lab.stayed(self.source)
        seen = self.source.events()[self.source.n_events:]
        assert seen == self.seen, f"{seen}, not {self.seen}"

    def receive_ends(self, status, *texts):
        last = self.receive.end(status, SOON_S)
        for text in texts:
            assert text in last["error"], f"no '{text}' in: {last['error']}"



def receive_killed(a):
    a.receive.kill()
    a.gate.open(forward=False)
    a.undone()


def receive_interrupted(a):
    a.receive.signal(signal.SIGINT)
    if a.point == "Loaded":
        # It can't know whether the source has given the guest up.
        a.receive_ends(3, "stopped by the user", "loaded here")
    else:
        a.receive_ends(1, "stopped by the user")
    a.gate.open(forward=False)
    a.undone()


def migrate_interrupted(a):
    a.migrate.signal(signal.SIGINT)
    a.undone("stopped by the user")
    a.gate.open()
    if a.point == "Hello":
        a.receive.signal(signal.SIGINT)
    a.receive_ends(1)


def migrate_killed(a):
    """The guest may stand still, and QEMU's settings are ours. Whoever resumes the move puts both right."""
    a.migrate.kill()
    a.gate.open(forward=False)
    last = a.lab.run("migrate", "--qmp", a.source.qmp, "--resume").end(1)
    assert "it runs on here" in last["error"], last
    a.ran_on()
    if a.point in ("Hello", "Prepare"):
        # It waits for another source.
        a.receive.signal(signal.SIGINT)
    a.receive_ends(1)


def migrate_cancelled(a):
    a.lab.steer(a.migrate, "--cancel")
    a.undone("by the user")
    a.gate.open()
    if a.point == "Hello":
        a.receive.signal(signal.SIGINT)
    a.receive_ends(1)


def link_cut(a):
    """It can be opened again at once, for the target's sake: it may wait for the source's word."""
    a.link.cut()
    a.gate.open(forward=False)
    a.undone()
    if a.point in ("Hello", "Prepare"):
        # It waits for another source.
        a.receive.signal(signal.SIGINT)
    a.receive_ends(1)


def link_gone(a):
    a.link.close()
    a.undone()
    if a.point in ("Hello", "Prepare", "Loaded"):
        a.receive.signal(signal.SIGINT)
    a.receive_ends(3 if a.point == "Loaded" else 1)


def undone_and_told_later(lab):
    """The target can't be reached when the source gives up. It waits, and the next migrate tells it."""
    a = Attempt(lab, "Loaded")
    a.link.go_down()
    a.gate.open(forward=False)
    a.undone()
    assert a.receive.process.poll() is None
    a.link.come_up()
    again = lab.migrate(a.source, a.link.address)
    a.receive_ends(1, "runs at the source")
    again.end(1)
    a.target.never_ran()
    lab.stayed(a.source)


def target_qemu_killed(a):
    a.target.kill()
    a.receive.end(1)
    a.gate.open(forward=False)
    a.undone()


def case(fault, point):
    def run(lab):
        a = Attempt(lab, point)
        fault(a)
        a.target.never_ran()
    return run


def second_attempt(fault):
    def run(lab):
        a = Attempt(lab, "Loaded")
        fault(a)
        a.target.never_ran()
        lab.retire(a.target)
        lab.move(a.source, lab.target(a.source))
    return run


FAULTS = (receive_killed, migrate_killed, link_cut)
# Without --all, at every other point: what they share with the ones above is seen there.
MORE_FAULTS = (receive_interrupted, migrate_interrupted, migrate_cancelled, link_gone, target_qemu_killed)
CASES = {}
SHORT = []
for i, f in enumerate(FAULTS + MORE_FAULTS):
    for k, p in enumerate(POINTS):
        name = f"{f.__name__}_at_{p}" + ("_then_second_attempt" if p == "Loaded" else "")
        CASES[name] = second_attempt(f) if p == "Loaded" else case(f, p)
        if f in FAULTS or (i + k) % 2 == 0:
            SHORT.append(name)
CASES["undone_and_told_later"] = undone_and_told_later
SHORT.append("undone_and_told_later")


if __name__ == "__main__":
    if "--all" in sys.argv:
        sys.argv.remove("--all")
        SHORT = list(CASES)
    names = [a for a in sys.argv[1:] if a in CASES]
    sys.exit(vm_support.main({n: CASES[n] for n in names or SHORT}))
