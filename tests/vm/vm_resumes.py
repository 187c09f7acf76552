#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""What breaks from the confirmation on: the guest is the target's, sees no wrong memory, runs only there."""
import random
import signal
import sys

import vm_support
from vm_move import Move
from vm_support import LIMIT_S, MIB


def link_cut_while_pushing(lab):
    """Three times; in between, the guest works on what it gets on demand."""
    move = Move(lab)
    gate = move.until_pushing()
    for n in range(3):
        following = move.link.hold("PageRun", "bulk")
        move.link.cut()
        gate.open(forward=False)
        move.receive.event("resumed")
        following.wait(LIMIT_S)
        move.target.works()
        gate = following
    gate.open()
    move.arrived(resumes=3)


def link_cut_anywhere(lab):
    """At byte counts that have nothing to do with frames."""
    move = Move(lab)
    rng = random.Random(4)
    # Most of what goes through comes after the confirmation; device state is well under a megabyte.
    counts = [rng.randrange(8 * MIB, 100 * MIB) for _ in range(5)]
    move.link.cut_after(*counts)
    move.begin()
    move.arrived(resumes=5)
    assert move.link.n_cuts == 5


def link_down_for_a_while(lab):
    """Longer than several attempts to dial. The guest waits, and goes on by itself."""
    move = Move(lab)
    gate = move.until_pushing()
    move.link.go_down()
    gate.open(forward=False)
    move.receive.event("link-lost")
    vm_support.wait_for("the source has tried to dial again", lambda: move.link.n_turned_away >= 4)
    vm_support.wait_for("a thread of the guest waits for a page", move.target.waits_for_pages)
    move.link.come_up()
    move.arrived(resumes=1)


def lost_on_its_way(name, resumes):
    def run(lab):
        move = Move(lab)
        move.link.cut_at(name)
        move.begin()
        move.arrived(resumes)
        assert move.link.n_cuts == 1
    return run


def commit_lost_and_the_next_dialing_too(lab):
    """The target has seen a connection that the source never got an answer on."""
    move = Move(lab)
    gate = move.link.hold("Commit")
    move.begin()
    gate.wait(LIMIT_S)
    move.link.cut_at("Welcome", "switchover")
    move.link.cut()
    gate.open(forward=False)
    vm_support.wait_for("the answer is lost", lambda: move.link.n_cuts == 2)
    move.arrived(resumes=None)


def link_cut_at_each_page_request(lab):
    """What was asked for is asked for again after each resume, and comes in the end."""
    move = Move(lab)
    gate = move.until_pushing()
    for _ in range(3):
        move.link.cut_at("PageRequest")
    vm_support.wait_for("a request is lost", lambda: move.link.n_cuts > 0)
    gate.open(forward=False)
    move.arrived(resumes=3)


def receive_killed(lab):
    move = Move(lab)
    gate = move.until_pushing()
    move.receive.kill()
    gate.open(forward=False)
    move.waits()
    move.migrate.signal(signal.SIGINT)
    move.ends_waiting(move.migrate, "the guest is the target's")
    move.waits()


def migrate_killed(lab):
    move = Move(lab)
    gate = move.until_pushing()
    move.migrate.kill()
    gate.open(forward=False)
    move.waits()
    move.receive.signal(signal.SIGINT)
    move.ends_waiting(move.receive, "pages are missing")
    move.waits()


def migrate_interrupted(lab):
    move = Move(lab)
    gate = move.until_pushing()
    move.migrate.signal(signal.SIGINT)
    move.ends_waiting(move.migrate, "never resume the guest here")
    gate.open(forward=False)
    move.waits()


def receive_interrupted(lab):
    move = Move(lab)
    gate = move.until_pushing()
    move.receive.signal(signal.SIGINT)
    move.ends_waiting(move.receive, "pages are missing")
    gate.open(forward=False)
    move.waits()


def both_killed(lab):
    move = Move(lab)
    gate = move.until_pushing()
    move.migrate.kill()
    move.receive.kill()
    gate.open(forward=False)
    move.waits()


def source_qemu_killed(lab):
    """'migrate' has its memory, and needs no more."""
    move = Move(lab)
    gate = move.until_pushing()
    move.source.kill()
    gate.open()
    move.migrate.end(0)
    move.receive.end(0)
    move.target.works()
    move.target.verify()
    lab.current = move.target


def target_qemu_killed(lab):
    """The guest is lost, and both say so; the source does not run what is old."""
    move = Move(lab)
    gate = move.until_pushing()
    move.target.kill()
    assert "QEMU has ended" in move.receive.end(4)["error"]
    gate.open(forward=False)
    assert "as it was when it stopped" in move.migrate.end(4)["error"]
    assert move.source.status() == "postmigrate"
    assert move.source.events()[-1] == "STOP"
    lab.current = None


def verify_finds_what_was_damaged(lab):
    """Both sides say so. The guest, which is paused, does not run on it."""
    move = Move(lab, receive=("--checksum", "off", "--verify"))
    lab.current = None
    move.source.monitor.command("stop")
    move.link.n_to_damage = 1
    move.begin()
    received, migrated = move.receive.end(5), move.migrate.end(5)
    v = received["verify"]
    assert v["complete"] and v["wrong"] == 1 and len(v["wrong_runs"]) == 1, v
    page = f"page {v['wrong_runs'][0]['first_page']}"
    for said in (received, migrated):
        assert page in said["error"] and "NOT WHAT THE SOURCE HAS" in said["error"], said
    assert migrated["sessions_completed"] == 0, migrated
    assert move.source.status() == "postmigrate" and move.target.status() == "paused"


CASES = {f.__name__: f for f in (
    link_cut_while_pushing, link_cut_anywhere, link_down_for_a_while, link_cut_at_each_page_request)}
for name, n in (("Commit", 1), ("Running", 1), ("Complete", 1), ("Released", 0)):
    CASES[f"{name}_lost_on_its_way"] = lost_on_its_way(name, n)
CASES.update({f.__name__: f for f in (
    commit_lost_and_the_next_dialing_too, source_qemu_killed, receive_killed, migrate_killed, both_killed,
    migrate_interrupted, receive_interrupted, target_qemu_killed,
    verify_finds_what_was_damaged)})


if __name__ == "__main__":
    sys.exit(vm_support.main(CASES))
