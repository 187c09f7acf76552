#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Real moves of a real guest with cuts and kills at random, again and again: it is never lost, and never wrong.

    long_moves.py PAGEFERRY [--attempts N] [--seed S]

In each attempt a frame is held back, and then the link is cut or a command killed with -9; more of that
follows at random times. What was killed is started again, with --resume or --recover. An attempt ends
with the guest on the target, or still on the source; either way it then looks at every page, and has
run on one side only. Totals are printed in the end. The same seed disturbs in the same way, as far as
the machine's timing lets it.
"""
import random
import signal
import sys
import time

import vm_support
from vm_support import LIMIT_S

POINTS = ("Hello", "Prepare", "Prepared", "Layout", "Stopped", "DeviceState", "DeviceStateEnd", "Loaded", "Commit",
          "Running", "PageRequest", "PageRun", "PushDone", "Complete", "Released")
ACTIONS = ("cut", "kill migrate", "kill receive", "kill both")


class Totals:
    def __init__(self):
        self.moves = self.attempts = self.cuts = self.kills = self.bad_pages = self.lost = 0

    def __str__(self):
        return (f"{self.moves} moves in {self.attempts} attempts, {self.cuts} cuts, {self.kills} kills, "
                f"{self.bad_pages} bad pages, {self.lost} lost guests")


def ended(command):
    return command.process.poll() is not None


class Attempt:
    def __init__(self, lab, rng, totals):
        self.lab, self.rng, self.totals = lab, rng, totals
        self.source = lab.guest()
        self.target = lab.target(self.source)
        self.target.pages = self.source.pages
        self.receive = lab.receive(self.target)
        self.link = lab.forwarder(self.receive)
        self.n_more = rng.randrange(3)
        self.waited = 0
        self.limit = time.monotonic() + 2 * LIMIT_S

    def disturb(self, action):
        print(f"  -- {action}")
        if action == "cut":
            self.totals.cuts += 1
            self.link.cut()
        for command in (self.migrate, self.receive):
            if action in (f"kill {command.name}", "kill both") and not ended(command):
                self.totals.kills += 1
                command.kill()

    def begin(self):
        point, action = self.rng.choice(POINTS), self.rng.choice(ACTIONS)
        print(f"  -- at {point}")
        gate = self.link.hold(point, "bulk" if point == "PageRun" else None)
        self.migrate = self.lab.migrate(self.source, self.link.address)
        vm_support.wait_for(f"{point} came", lambda: gate.is_reached.is_set() or
                            (ended(self.migrate) and ended(self.receive)))
        self.disturb(action)
        gate.open(forward=False)

    def restart(self):
        """Whatever was killed, or left the guest waiting, goes on."""
        done = ended(self.receive) and self.receive.process.returncode == 0
        if ended(self.migrate) and self.migrate.process.returncode in (-signal.SIGKILL, 3) and not done:
            self.migrate = self.lab.run("migrate", "--qmp", self.source.qmp, "--resume", "--to", self.link.address)
        if ended(self.receive) and self.receive.process.returncode in (-signal.SIGKILL, 3):
            self.receive = self.lab.run("receive", "--qmp", self.target.qmp, "--recover")

    def statuses(self):
        return [c.process.returncode if ended(c) else None for c in (self.migrate, self.receive)]

    def run(self):
        """Returns whether the guest is on the target now."""
        self.totals.attempts += 1
        self.begin()
        while True:
            assert time.monotonic() < self.limit, f"no end comes: {self.statuses()}"
            self.restart()
            migrate, receive = self.statuses()
            if receive == 0 and migrate is None:
                # Killed between hearing that all is there and noting it: nobody is there to dial any more.
                self.waited += 1
                if self.waited == 100:
                    self.migrate.signal(signal.SIGINT)
            if receive == 0 and migrate in (0, 3, -signal.SIGKILL):
                return self.moved()
            if migrate == 1 and receive in (1, None) and self.source.status() == "running":
                return self.stayed()
            if migrate in (0, 1) and receive in (0, 1):
                # One of them was killed in the very end, when it had taken its record away.
                for command in (self.migrate, self.receive):
                    if command.process.returncode:
                        assert "there is nothing to re" in command.end(1)["error"], command.last
                return self.moved()
            assert 4 not in (migrate, receive), "the guest is said to be lost"
            if self.n_more and self.rng.random() < 0.1:
                self.n_more -= 1
                self.disturb(self.rng.choice(ACTIONS))
            time.sleep(0.05)

    def look_at(self, vm):
        """Every page, seen by the guest itself."""
        vm.works()
        try:
            vm.verify()
        except AssertionError as e:
            self.totals.bad_pages += 1
            raise AssertionError(f"{vm.name}: {e}") from e

    def moved(self):
        assert self.source.status() != "running", "the guest runs on both sides"
        assert self.target.status() == "running", self.target.status()
        self.look_at(self.target)
        self.totals.moves += 1
        self.lab.current = self.target
        self.lab.retire(self.source)
        return True

    def stayed(self):
        self.target.never_ran()
        self.look_at(self.source)
        self.receive.dispose()
        self.lab.retire(self.target)
        return False


def moves(lab):
    totals = Totals()
    rng = random.Random(lab.args.seed)
    try:
        while totals.attempts < lab.args.attempts:
            print(f"-- attempt {totals.attempts + 1}, {totals.moves} moves so far", flush=True)
            Attempt(lab, rng, totals).run()
    except Exception:
        totals.lost += 1
        raise
    finally:
        print(f"seed {lab.args.seed}: {totals}", flush=True)


def options(p):
    p.add_argument("--attempts", type=int, default=100)
    p.add_argument("--seed", type=int, default=1)


if __name__ == "__main__":
    sys.exit(vm_support.main({"long_moves": moves}, options, rest=0))
