#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""A running guest moves between processes over the public API.

    microvm_moves.py MICROVM CASE CPU

CASE: moves      with each workload and kind of memory, back and forth
      many       ten times, several vCPUs
      faults     nothing is pushed: each page comes by a fault, which the tracer has counted
      stopped    stopped while every vCPU waits for a page, and moved on from there
      cut        the connection is cut in the middle, and opened again
      killed     the target's process is killed: the source still has the guest's memory
      told       what the vCPUs waited for and what the tracer saw are told side by side
      corrupt    one bit is changed under way, and the guest notices
CPU:  native, kvm, or kvm-irqchip (exits with 77 where that can't be used)
"""
import os
import re
import subprocess
import sys
import tempfile
import time

from microvm_support import Failed, Forwarder, Monitor, has_cpu

MIB = 1 << 20
# A kernel of before 6.2 is not interrupted in a fault that KVM takes on the vCPU's own thread.
INTERRUPTIBLE = (6, 2)
PATIENCE_S = 30


def check(what, said):
    if not what:
        raise Failed(said)


def start(program, cpu, *options):
    return Monitor(program, "--cpu", cpu, *options)


def verify(vm, bad="0"):
    said = vm.tell("verify")
    check(said["bad"] == bad, f"expected {bad} bad pages: {said}")


def move(source, target, via=None):
    port = int(source.tell("serve 127.0.0.1:0")["address"].rsplit(":", 1)[1])
    forwarder = via(port) if via else None
    target.tell(f"take 127.0.0.1:{forwarder.here if forwarder else port}")
    return forwarder


def finish(source, target):
    said = target.tell("complete")
    source.tell("complete")
    source.tell("release")
    return said


def case_moves(program, cpu):
    for workload in ("sequential", "random", "writes", "hot"):
        for backing in ("anon", "memfd"):
            options = ("--workload", workload, "--backing", backing, "--memory", "24M")
            a, b = start(program, cpu, *options), start(program, cpu, *options)
            a.tell("boot")
            for source, target in ((a, b), (b, a)):
                source.tell("reach 2000")
                move(source, target)
                target.tell("reach 2000")
                finish(source, target)
            verify(a)
            stats = a.tell("stats")
            check(int(stats["ops"]) >= 8000, stats)
            check(a.end() == 0 and b.end() == 0, "exit status")
            print(f"{workload} {backing}: {stats}")


def case_many(program, cpu):
    done = subprocess.run(
        [program, "--cpu", cpu, "--moves", "10", "--memory", "32M", "--vcpus", "3", "--ops", "1000"],
        check=False)
    check(done.returncode == 0, done.returncode)


def case_told(program, cpu):
    with tempfile.TemporaryDirectory() as tmp:
        done = subprocess.run(
            [program, "--cpu", cpu, "--moves", "2", "--memory", "32M", "--ops", "1000",
             "--trace", os.path.join(tmp, "trace")], check=False, stdout=subprocess.PIPE)
    said = done.stdout.decode()
    print(said)
    check(done.returncode == 0, done.returncode)
    check("stalls=" not in said and "faults=" not in said, "lists that are not for people")
    table = said.split("while it moved:\n")[1].splitlines()
    check(re.fullmatch(r" +stalls of vCPUs +faults traced", table[0]), table[0])
    rows = [re.fullmatch(r" *(\d[\d to]* us(?: or more)?|less than 1 us|all)  +(\d+)  +(\d+)", line) for line in table[1:]]
    check(all(rows) and len(rows) > 2, "a line is no bucket")
    names = ["less than 1 us", "1 us"] + [f"{1 << b} to {(2 << b) - 1} us" for b in range(1, 18)] + ["262144 us or more"]
    first = names.index(rows[0][1])
    check([r[1] for r in rows] == names[first:first + len(rows) - 1] + ["all"], "the labels")
    for column in (2, 3):
        counts = [int(r[column]) for r in rows]
        check(counts[-1] > 0 and sum(counts[:-1]) == counts[-1], f"column {column}: {counts}")


def case_faults(program, cpu):
    options = ("--memory", "16M")
    a, b = start(program, cpu, *options), start(program, cpu, *options)
    a.tell("boot")
    address = a.tell("serve 127.0.0.1:0")["address"]
    b.tell(f"lazy {address}")
    verify(b)
    # It has looked at all that is behind the first MiB, its table and its data; and used its code and
    # the control page. Its stack it may use only once it has answered; and what is served is counted
    # before it is traced.
    touched = 15 * MIB // 4096 + 3
    until = time.monotonic() + PATIENCE_S
    while True:
        said = {key: int(value) for key, value in b.tell("faults").items()}
        is_settled = touched <= said["urgent"] <= said["traced"] <= min(said["urgent"] + 1, said["faults"])
        if is_settled or time.monotonic() > until:
            break
        time.sleep(0.01)
    print(said)
    check(said["urgent"] >= touched and said["pushed"] == 0, "they did not come one by one")
    # The thread that obeys our lines may have waited for the control page as well.
    check(0 <= said["traced"] - said["urgent"] <= 1, "what was served is not what was traced")
    check(said["faults"] >= said["traced"], "more was traced than the kernel told of")
    b.tell("push")
    done = finish(a, b)
    check(int(done["pushed"]) + int(done["zero"]) > 0, "nothing was left for the push")
    verify(b)
    check(a.end() == 0 and b.end() == 0, "exit status")


def case_stopped(program, cpu):
    if cpu == "kvm" and tuple(map(int, os.uname().release.split(".")[:2])) < INTERRUPTIBLE:
        print("SKIP: Linux before 6.2: a vCPU that waits for a page can't be stopped")
        return 77
    vcpus = 2
    a, b, c = (start(program, cpu, "--vcpus", str(vcpus)) for _ in range(3))
    a.tell("boot")
    forwarder = move(a, b, via=lambda port: Forwarder(port, 8 * MIB))
    check(forwarder.was_cut.wait(60), "the link was not cut")
    b.tell("lost")
    # With interrupt controllers the vCPU is halted while a thread of KVM's own waits.
    b.await_blocked(vcpus, "kvm_vcpu_block" if cpu == "kvm-irqchip" else "handle_userfault")
    print(b.tell("stop"))
    check(forwarder.was_cut.is_set(), "the link was there again")
    forwarder.open(1 << 40)
    print(finish(a, b))
    move(b, c)
    c.tell("reach 1000")
    finish(b, c)
    verify(c)
    check(a.end() == 0 and b.end() == 0 and c.end() == 0, "exit status")
    return 0


def case_cut(program, cpu):
    a, b = start(program, cpu), start(program, cpu)
    a.tell("boot")
    forwarder = move(a, b, via=lambda port: Forwarder(port, 8 * MIB))
    check(forwarder.was_cut.wait(60), "the link was not cut")
    print(b.tell("lost"))
    # The guest will want a page that is not there: it waits, and is given nothing else.
    b.send("verify")
    check(b.is_silent(0.3), "all pages were looked at while the link was down")
    forwarder.open(8 * MIB)
    check(forwarder.was_cut.wait(60), "the link was not cut again")
    check(b.is_silent(0), "all pages were looked at before they can have come")
    forwarder.open(1 << 40)
    said = b.answer()
    check(said["bad"] == "0", said)
    said = finish(a, b)
    check(int(said["resumes"]) >= 2, said)
    verify(b)
    check(a.end() == 0 and b.end() == 0, "exit status")
    print(said)


def case_killed(program, cpu):
    a, b = start(program, cpu), start(program, cpu)
    a.tell("boot")
    forwarder = move(a, b, via=lambda port: Forwarder(port, 8 * MIB))
    check(forwarder.was_cut.wait(60), "the link was not cut")
    b.kill()
    # Another target takes the same memory. What the guest did on the first is gone with it.
    c = start(program, cpu)
    forwarder.open(1 << 40)
    c.tell(f"take 127.0.0.1:{forwarder.here}")
    c.tell("complete")
    verify(c)
    check(c.end() == 0, "exit status")
    a.end()


def case_corrupt(program, cpu):
    a, b = start(program, cpu), start(program, cpu)
    a.tell("boot")
    a.tell("stop")
    a.tell("corrupt 1234 4095")
    move(a, b)
    finish(a, b)
    verify(b, bad="1")
    verify(b, bad="1")
    check(a.end() == 0 and b.end() == 0, "exit status")


def main():
    program, case, cpu = sys.argv[1:4]
    if not has_cpu(program, cpu):
        return 77
    try:
        return globals()["case_" + case](program, cpu) or 0
    except Failed as e:
        print(f"FAILED: {e}")
        return 1


sys.exit(main())
