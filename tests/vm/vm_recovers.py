#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Commands that are killed with -9 are started again, by hand or by a supervisor: the guest goes on, whole."""
import os
import signal
import socket
import statistics
import sys
import time

import vm_support
from vm_move import Move
from vm_support import LIMIT_S


def killed_while_pushing(lab):
    """A move whose 'receive' was killed; the guest waits. Returns it and the gate of the push."""
    move = Move(lab)
    gate = move.until_pushing()
    move.receive.kill()
    gate.open(forward=False)
    move.waits()
    return move


def receive_is_recovered(lab):
    """The monitor's socket is all that has to be said; it listens where the source dials."""
    move = killed_while_pushing(lab)
    refused = lab.run("receive", "--qmp", move.target.qmp, "--listen", "127.0.0.1:0")
    assert "--recover" in refused.end(3)["error"], refused.last
    move.waits()
    before = move.receive.address
    move.receive = lab.recover(move.target, "--recover")
    assert move.receive.address == before, (move.receive.address, before)
    move.arrived(resumes=None)


def receive_is_recovered_again_and_again(lab):
    move = killed_while_pushing(lab)
    for _ in range(3):
        gate = move.link.hold("PageRun", "bulk")
        move.receive = lab.recover(move.target, "--recover")
        gate.wait(LIMIT_S)
        move.receive.kill()
        gate.open(forward=False)
    move.receive = lab.recover(move.target, "--recover")
    move.arrived(resumes=None)


def migrate_is_resumed(lab):
    move = Move(lab)
    gate = move.until_pushing()
    move.migrate.kill()
    gate.open(forward=False)
    move.waits()
    refused = lab.run("migrate", "--qmp", move.source.qmp, "--to", move.link.address, "--postcopy")
    assert "--resume" in refused.end(3)["error"], refused.last
    move.waits()
    move.migrate = lab.run("migrate", "--qmp", move.source.qmp, "--resume")
    move.arrived(resumes=None)


def kill_both(move):
    """In the push."""
    gate = move.until_pushing()
    move.migrate.kill()
    move.receive.kill()
    gate.open(forward=False)


def record_of(vm):
    st = os.stat(vm.qmp)
    return os.path.join(os.environ["RUNTIME_DIRECTORY"], f"migrate-{st.st_dev:x}-{st.st_ino:x}")


def killed_once_all_is_there(lab):
    """
    A move whose 'migrate' was killed after it had learnt that the target has everything, and before it took its
    record away: it is too quick in that to be met there, so its last record is kept by another link, and put back.
    """
    move = Move(lab)
    complete, released = move.link.hold("Complete"), move.link.hold("Released")
    move.begin()
    complete.wait(LIMIT_S)
    record = record_of(move.source)
    os.link(record, record + "-kept")
    complete.open()
    released.wait(LIMIT_S)
    move.migrate.kill()
    if os.path.exists(record):
        os.unlink(record + "-kept")
    else:
        os.rename(record + "-kept", record)
    return move, released


def migrate_killed_once_the_target_is_released(lab):
    """There is nobody left to dial. The record says that all is well."""
    move, released = killed_once_all_is_there(lab)
    released.open()
    move.receive.end(0)
    move.link.close()
    lab.run("migrate", "--qmp", move.source.qmp, "--resume").end(0)
    move.target.works()
    move.target.verify()
    assert move.source.status() == "postmigrate", move.source.status()
    lab.current = move.target
    lab.retire(move.source)
    # And nothing is left of it.
    assert "nothing to resume" in lab.run("migrate", "--qmp", move.target.qmp, "--resume").end(1)["error"]


def another_guest_behind_the_monitor_is_not_taken_for_the_one_that_was_moved(lab):
    """Its socket may have the number of the one before, by which a record is found."""
    move, released = killed_once_all_is_there(lab)
    released.open()
    move.receive.end(0)
    move.link.close()
    record = record_of(move.source)
    lab.current = move.target
    lab.retire(move.source)
    os.rename(record, record_of(move.target))
    nobody = "127.0.0.1:1"
    begun = lab.run("migrate", "--supervise", "--qmp", move.target.qmp, "--to", nobody, "--postcopy")
    assert nobody in begun.end(1)["error"], begun.last
    move.target.works()
    move.target.verify()


def receive_killed_once_the_source_knows_that_it_has_all(lab):
    """The source has ended, and comes no more: there is nothing to wait for."""
    move, released = killed_once_all_is_there(lab)
    move.receive.kill()
    released.open(forward=False)
    lab.run("migrate", "--qmp", move.source.qmp, "--resume").end(0)
    lab.recover(move.target, "--recover").end(0)
    move.target.works()
    move.target.verify()
    assert move.source.status() == "postmigrate", move.source.status()
    lab.current = move.target
    lab.retire(move.source)


def resume_beside_another(move, status):
    """Somebody else talks to the monitor, and QEMU can't be asked. Returns what is said."""
    other = vm_support.ferryvm.Qmp(move.source.qmp, timeout=LIMIT_S)
    error = move.lab.run("migrate", "--qmp", move.source.qmp, "--resume").end(status)["error"]
    other.close()
    return error


def both_are_killed_and_recovered(lab):
    """Also where QEMU could not be asked at first: what was recorded is kept."""
    move = Move(lab)
    kill_both(move)
    move.waits()
    assert "never resume the guest here" in resume_beside_another(move, 3)
    move.receive = lab.recover(move.target, "--recover")
    move.migrate = lab.run("migrate", "--qmp", move.source.qmp, "--resume")
    move.arrived(resumes=None)


def what_cannot_begin_says_that_the_guest_waits(lab):
    """Status 1 would say that it runs on the source, and a supervisor would not try again."""
    move = Move(lab)
    kill_both(move)
    recover, resume = ("receive", "--qmp", move.target.qmp), ("migrate", "--qmp", move.source.qmp, "--resume")
    assert "No such file" in lab.run(*recover, "--recover", "--tls", "/nonexistent").end(3)["error"]
    assert "No such file" in lab.run(*resume, "--tls", "/nonexistent").end(3)["error"]
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        busy = "127.0.0.1:%d" % taken.getsockname()[1]
        for how in (("--recover",), ("--supervise",)):
            assert "in use" in lab.run(*recover, *how, "--listen", busy).end(3)["error"]
    move.receive = lab.recover(move.target, "--recover")
    move.migrate = lab.run(*resume)
    move.arrived(resumes=None)


def a_source_that_was_resumed_serves_no_more(lab):
    """Its memory is another one since, whether it runs or stands still again."""
    move = Move(lab, receive=("--max-rate", "4M"))
    kill_both(move)
    qmp = vm_support.ferryvm.Qmp(move.source.qmp, timeout=LIMIT_S)
    qmp.command("cont")
    qmp.command("stop")
    qmp.close()
    move.receive = lab.recover(move.target, "--recover")
    resumed = lab.run("migrate", "--qmp", move.source.qmp, "--resume").end(3)
    assert "has been resumed here since" in resumed["error"] and "--source-lost" in resumed["error"], resumed
    assert move.target.status() in ("running", "paused"), move.target.status()
    move.receive.kill()
    monitor = move.source.qmp + ".kept"
    os.link(move.source.qmp, monitor)
    os.kill(move.source.pid, signal.SIGKILL)
    vm_support.wait_for("the source's QEMU has ended", lambda: not os.path.exists(f"/proc/{move.source.pid}"))
    gone = lab.run("migrate", "--qmp", monitor, "--resume").end(3)
    assert "has ended, and with it the memory" in gone["error"], gone
    given_up = lab.run("receive", "--qmp", move.target.qmp, "--recover", "--source-lost", "--on-lost", "poison")
    # Where a guest is on KVM it gets a machine check; under emulation QEMU itself meets its end there.
    while given_up.next():
        pass
    assert given_up.last["exit"] in (0, 4) and given_up.last["pages_poisoned"] > 0, given_up.last
    lab.retire(move.target)
    lab.retire(move.source)


def migrate_killed_between_commit_and_its_answer(lab):
    """Nobody at the source knows whether Commit was read. It never runs the guest again."""
    move = Move(lab)
    gate = move.link.hold("Commit")
    move.begin()
    gate.wait(LIMIT_S)
    move.migrate.kill()
    gate.open(forward=False)
    assert move.source.status() == "postmigrate"
    move.migrate = lab.run("migrate", "--qmp", move.source.qmp, "--resume")
    move.arrived(resumes=None)


def receive_killed_before_commit_is_read(lab):
    """It holds a guest that may be its own, and asks: it is."""
    move = Move(lab)
    gate = move.link.hold("Commit")
    move.begin()
    gate.wait(LIMIT_S)
    move.receive.kill()
    gate.open(forward=False)
    move.receive = lab.recover(move.target, "--recover")
    move.arrived(resumes=None)


def migrate_killed_before_the_commit_runs_the_guest_on(lab):
    move = Move(lab)
    gate = move.link.hold("Loaded")
    move.begin()
    gate.wait(LIMIT_S)
    move.migrate.kill()
    gate.open(forward=False)
    assert move.source.status() != "running"
    assert "run the same command again" in resume_beside_another(move, 1)
    resumed = lab.run("migrate", "--qmp", move.source.qmp, "--resume")
    assert "runs on here" in resumed.end(1)["error"], resumed.last
    assert move.source.status() == "running"
    move.source.works()


def nothing_to_go_on_with_is_refused(lab):
    source = lab.guest()
    target = lab.target(source)
    resumed = lab.run("migrate", "--qmp", source.qmp, "--resume")
    assert "nothing to resume" in resumed.end(1)["error"], resumed.last
    recovered = lab.run("receive", "--qmp", target.qmp, "--recover")
    assert "nothing to recover" in recovered.end(1)["error"], recovered.last
    lab.move(source, target)


def a_second_migration_is_refused(lab):
    move = Move(lab)
    gate = move.until_pushing()
    second = lab.run("migrate", "--qmp", move.source.qmp, "--to", move.link.address, "--postcopy")
    assert "another pageferry is at work" in second.end(1)["error"], second.last
    second = lab.run("receive", "--qmp", move.target.qmp, "--recover")
    assert "another pageferry is at work" in second.end(1)["error"], second.last
    gate.open()
    move.arrived(resumes=0)


def cancelling_after_the_commit_is_refused(lab):
    move = Move(lab)
    gate = move.until_pushing()
    assert "given away" in lab.steer(move.migrate, "--cancel", status=1)["error"]
    gate.open()
    move.arrived(resumes=0)


def a_paused_push_waits_and_the_guest_works(lab):
    move = Move(lab, receive=("--max-rate", "16M"))
    gate = move.until_pushing()
    lab.steer(move.migrate, "--pause")
    gate.open()
    while True:  # what was on its way
        gate = move.link.hold("PageRun", "bulk")
        if not gate.is_reached.wait(5):
            break
        gate.open()
    move.target.works()
    assert not gate.is_reached.is_set(), "pages were pushed although that was paused"
    lab.steer(move.migrate, "--continue")
    gate.wait(LIMIT_S)
    gate.open()
    move.arrived(resumes=0)


def child_of(command):
    """The one that does the work; the one before may have been killed just now."""
    found = []

    def has_child():
        with open(f"/proc/{command.pid}/task/{command.pid}/children", encoding="ascii") as f:
            found[:] = f.read().split()
        return found

    vm_support.wait_for("there is a child", has_child)
    return int(found[0])


def kill_child(command):
    os.kill(child_of(command), signal.SIGKILL)


def following_push(move, gate, kill):
    """What is at work is killed. Returns the gate of the first page that is pushed over a new link, and how long it took."""
    before = list(move.link.links)
    hello = move.link.hold("Hello", "bulk")
    begin = time.monotonic()
    kill()
    gate.open(forward=False)
    hello.wait(LIMIT_S)
    for link in before:
        link.cut()  # nobody has it any more; what is still in it is no pushed page
    gate = move.link.hold("PageRun", "bulk")
    hello.open()
    gate.wait(LIMIT_S)
    return gate, time.monotonic() - begin


def supervised_commands_go_on_by_themselves(lab):
    """Killed in turn, five times each. How long it takes is told, and the machine's matter."""
    move = Move(lab, receive=("--supervise",), migrate=("--supervise",))
    gate = move.until_pushing()
    commands = (move.receive, move.migrate)
    took = {command: [] for command in commands}
    for command in 5 * commands:
        gate, seconds = following_push(move, gate, lambda killed=command: kill_child(killed))
        assert command.event("restarted")["signal"] == signal.SIGKILL
        took[command].append(seconds)
    for command in commands:
        median = statistics.median(took[command])
        print(f"  {command.name}: from the kill to the next pushed page: median {median:.2f} s of {len(took[command])}")
    gate.open()
    move.arrived(resumes=None)


def receive_is_started_again_with_its_parent(lab):
    """Its parent is killed, and what systemd does then: without KillMode= in the unit, the child ends too; see units.py."""
    for sig in (signal.SIGTERM, signal.SIGKILL):
        move = Move(lab, receive=("--supervise",))
        gate = move.until_pushing()
        listen = ("--listen", move.receive.address)
        child = child_of(move.receive)
        move.receive.signal(signal.SIGKILL)
        os.kill(child, sig)
        move.receive.kill()
        gate.open(forward=False)
        move.waits()
        # The same command, as the unit has it, and no other option.
        move.receive = lab.recover(move.target, "--supervise", *listen)
        move.arrived(resumes=None)


def receive_goes_on_without_its_parent(lab):
    """As with KillMode=process: who is started meanwhile leaves it the work."""
    move = Move(lab, receive=("--supervise",))
    gate = move.until_pushing()
    child = child_of(move.receive)
    move.receive.signal(signal.SIGKILL)
    second = lab.run("receive", "--supervise", "--qmp", move.target.qmp, "--listen", move.receive.address)
    last = second.end(1)
    assert "another pageferry is at work" in last["error"], last
    os.kill(child, 0)  # is there
    gate.open()
    move.receive.event("completed")
    move.migrate.end(0)
    move.target.works()
    move.target.verify()
    lab.current = move.target
    lab.retire(move.source)


CASES = {f.__name__: f for f in (
    receive_is_recovered, receive_is_recovered_again_and_again, migrate_is_resumed, both_are_killed_and_recovered,
    migrate_killed_once_the_target_is_released, receive_killed_once_the_source_knows_that_it_has_all,
    another_guest_behind_the_monitor_is_not_taken_for_the_one_that_was_moved,
    what_cannot_begin_says_that_the_guest_waits,
    migrate_killed_between_commit_and_its_answer, receive_killed_before_commit_is_read,
    migrate_killed_before_the_commit_runs_the_guest_on, nothing_to_go_on_with_is_refused,
    a_second_migration_is_refused, cancelling_after_the_commit_is_refused,
    a_paused_push_waits_and_the_guest_works, supervised_commands_go_on_by_themselves,
    receive_is_started_again_with_its_parent, receive_goes_on_without_its_parent,
    a_source_that_was_resumed_serves_no_more)}


if __name__ == "__main__":
    sys.exit(vm_support.main(CASES))
