#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""A running micro-VM moves from process to process while links are cut and targets are killed at random.

    microvm_disturbed.py MICROVM [--moves N] [--seed S] [--memory SIZE] [--cpu auto|kvm|kvm-irqchip|native]

Each move goes through a forwarder that is cut after a random number of bytes, up to three times, and opened
again a moment later; the target resumes. Up to two times the target's process is killed with -9, and another one
takes the guest from the source, which still has all of its memory. Each move ends with every page looked at by
the guest itself. Only the source is not killed: until the end it is the only one that has the memory.

Totals are printed in the end. The same seed disturbs in the same way, as far as the machine's timing lets it.
1000 moves of 64 MiB take about a quarter of an hour.
"""
import argparse
import random
import sys
import time

from microvm_support import Failed, Forwarder, Monitor, bytes_of

MIB = 1 << 20
NEVER = 1 << 60
WORKLOADS = ("sequential", "random", "writes", "hot")


class Totals:
    def __init__(self):
        self.moves = self.cuts = self.kills = self.resumes = self.bad_pages = self.lost = 0

    def __str__(self):
        return (f"{self.moves} moves, {self.cuts} cuts, {self.kills} kills, {self.resumes} resumes, "
                f"{self.bad_pages} bad pages, {self.lost} lost guests")


class Move:
    """One move of the guest of process @source; what the new processes are told is in @start."""

    def __init__(self, rng, totals, start, source, size):
        self.rng, self.totals, self.start, self.source, self.size = rng, totals, start, source, size
        port = int(source.tell("serve 127.0.0.1:0")["address"].rsplit(":", 1)[1])
        self.n_cuts, self.n_kills = rng.randrange(4), rng.choice((0, 0, 1, 1, 2))
        self.link = Forwarder(port, self.next_cut())

    def next_cut(self):
        return self.rng.randrange(self.size) if self.n_cuts else NEVER

    def mend(self):
        """The link was cut: a moment later it is there again."""
        if not self.link.was_cut.is_set():
            return
        self.totals.cuts += 1
        self.n_cuts -= 1
        time.sleep(self.rng.random() / 20)
        self.link.open(self.next_cut())

    def await_answer(self, target, kill_at):
        """Returns the next answer of @target, or None when it was killed before."""
        limit = time.monotonic() + target.patience
        while target.is_silent(0.005):
            self.mend()
            if time.monotonic() > limit:
                raise Failed("no answer in time: the guest is lost")
            if time.monotonic() > kill_at:
                self.totals.kills += 1
                target.kill()
                return None
        return target.answer()

    def attempt(self, target):
        """Returns what the target tells in the end, or None when it was killed."""
        kill_at = float("inf")
        if self.n_kills:
            self.n_kills -= 1
            kill_at = time.monotonic() + self.rng.random() ** 2 * self.size / (128 * MIB)
        for line in (f"take 127.0.0.1:{self.link.here}", "reach 200", "complete"):
            target.send(line)
        try:
            answers = [self.await_answer(target, kill_at)]
        except Failed as e:
            # The link was cut while it was being opened: the guest has not run there.
            if "connection" not in str(e):
                raise
            target.kill()
            return None
        for _ in range(2):
            if answers[-1] is None:
                return None
            answers.append(self.await_answer(target, kill_at))
        return answers[-1]

    def run(self, target):
        """Returns the process that has the guest now."""
        said = self.attempt(target)
        while said is None:
            target = self.start()
            said = self.attempt(target)
        self.totals.resumes += int(said["resumes"])
        self.source.tell("complete")
        self.source.tell("release")
        self.link.cut()
        bad = int(target.tell("verify")["bad"])
        self.totals.bad_pages += bad
        self.totals.moves += 1
        if bad:
            raise Failed(f"{bad} bad pages")
        return target


def moves(args, totals):
    rng = random.Random(args.seed)
    options = ("--cpu", args.cpu, "--memory", args.memory, "--vcpus", "2", "--seed", str(args.seed))
    while totals.moves < args.moves:
        # A new guest now and then, so that all kinds of work and of memory come.
        how = (*options, "--workload", rng.choice(WORKLOADS), "--backing", rng.choice(("anon", "memfd")))

        def start(how=how):
            return Monitor(args.microvm, *how)

        here, other = start(), start()
        here.tell("boot")
        for _ in range(min(10, args.moves - totals.moves)):
            here.tell("reach 500")
            source = here
            here = Move(rng, totals, start, source, bytes_of(args.memory)).run(other)
            other = source
        for process in (here, other):
            if process.end():
                raise Failed("exit status")
        print(f"  {totals}", flush=True)


def main():
    p = argparse.ArgumentParser()
    p.add_argument("microvm")
    p.add_argument("--moves", type=int, default=1000)
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--memory", default="64M")
    p.add_argument("--cpu", default="auto")
    args = p.parse_args()
    totals, begun = Totals(), time.monotonic()
    try:
        moves(args, totals)
    except Failed as e:
        totals.lost += 1
        print(f"FAILED: {e}")
    print(f"seed {args.seed}: {totals}, {time.monotonic() - begun:.0f} s")
    return 1 if totals.lost or totals.bad_pages else 0


sys.exit(main())
