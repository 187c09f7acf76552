# SPDX-License-Identifier: Apache-2.0
"""What is measured, and what it is held against.

A group has sides, each one short measurement, which alternate within every round. A row takes from the sides of
one round "ours" and "against", whose ratio is held against the goal: at most ("<=") or at least (">=") that.
A row without a goal is told for comparison only.
"""
import argparse
from dataclasses import dataclass
from typing import Callable

import vm
from parts import GIB, MIB, Failed, Peak, available_bytes

GROUPS = {}


@dataclass
class Row:
    name: str
    what: str
    unit: str
    ours: Callable  # of the figures of one round, by side
    against: Callable
    goal: tuple = None  # ("<=" or ">=", ratio)
    sides: tuple = ()   # that it needs


class Group:
    rounds, quick_rounds = 5, 3
    warms = True  # a round that does not count comes first
    note = ""  # what was done because of this machine

    def __init__(self, parts):
        self.parts = parts
        self.quick = parts.quick
        self.prepare()

    def prepare(self):
        """Before its first round."""

    def sides(self):
        """Name and function of each. A function returns figures."""
        raise NotImplementedError

    def rows(self):
        raise NotImplementedError


def group(name):
    def register(cls):
        cls.name = name
        GROUPS[name] = cls
        return cls
    return register


def rate(side):
    """GB/s of a side that filled or streamed."""
    return lambda f: f[side]["bytes"] / f[side].get("fill_seconds", f[side].get("seconds")) / 1e9


def get(side, *keys):
    def value(figures):
        v = figures[side]
        for k in keys:
            v = v[k]
        return v
    return value


def total(*values):
    return lambda f: sum(v(f) for v in values)


@group("floors")
class Floors(Group):
    """What this machine takes by itself."""

    RATES = ("copy-anon-4k", "copy-anon-256k", "copy-shared-4k", "copy-shared-256k", "move-256k", "continue-256k",
             "pwrite-256k")

    def sides(self):
        p, n = self.parts, (64 if self.quick else 512) * MIB
        sides = {
            "round trip": lambda: p.run("link", "--faults", 3000),
            "fault": lambda: p.run("floor", "--faults", 3000),
            "fault-shared": lambda: p.run("floor", "--faults", 3000, "--memory", "shared"),
            "stream": lambda: p.run("link", "--what", "stream", "--bytes", 4 * n),
        }
        for r in self.RATES:
            sides[r] = lambda r=r: p.run("floor", "--what", r, "--bytes", n)
        return sides

    def rows(self):
        us = {"round trip": "loopback, 32 bytes there and 4 KiB back, p50",
              "fault": "fault served in the same process, private memory, p50",
              "fault-shared": "fault served in the same process, shared memory, p50"}
        rows = [Row(s.replace(" ", "-"), what, "us", get(s, "us", "p50"), None, sides=(s,)) for s, what in us.items()]
        return rows + [Row(s, f"{s}: rate", "GB/s", rate(s), None, sides=(s,)) for s in ("stream", *self.RATES)]


@group("idle")
class Idle(Group):
    """A fault that the source has to answer, while nothing else is on the link."""

    def sides(self):
        p, n, faults = self.parts, 64 * MIB, 1500 if self.quick else 4000
        path = p.content(n)
        few = ("--threads", 1, "--faults", faults)

        def lazy():
            with p.serve(path) as s:
                return p.lazy(s, n, *few)

        def attach():
            with p.serve(path, "--max-rate", "4K") as s:
                return p.attach(s, n, *few, push=False)

        def plain():
            with p.plain_serve(path) as s:
                return p.plain(s, n, *few)

        return {"round trip": lambda: p.run("link", "--faults", faults),
                "fault": lambda: p.run("floor", "--faults", faults),
                "fault-shared": lambda: p.run("floor", "--faults", faults, "--memory", "shared"),
                "lazy": lazy, "attach": attach, "plain": plain}

    def rows(self):
        floor = total(get("round trip", "us", "p50"), get("fault", "us", "p50"))
        shared = total(get("round trip", "us", "p50"), get("fault-shared", "us", "p50"))
        return [
            Row("service", "fault service p50, library, against fault + round trip floors", "us",
                get("lazy", "service_us", "p50"), floor, ("<=", 1.25), ("round trip", "fault", "lazy")),
            Row("service-attach", "fault service p50, pageferry attach to shared memory, against the floors", "us",
                get("attach", "fault_us", "p50"), shared, ("<=", 1.25), ("round trip", "fault-shared", "attach")),
            Row("thread", "what the faulting thread waits p50, library, against the same floors", "us",
                get("lazy", "touch_us", "p50"), floor, None, ("round trip", "fault", "lazy")),
            Row("plain-service", "fault service p50, library, against the plain handler's", "us",
                get("lazy", "service_us", "p50"), get("plain", "service_us", "p50"), None, ("lazy", "plain")),
            Row("plain", "what the faulting thread waits p50, against the plain handler's", "us",
                get("lazy", "touch_us", "p50"), get("plain", "touch_us", "p50"), None, ("lazy", "plain")),
            Row("plain-p99", "what the faulting thread waits p99, against the plain handler's", "us",
                get("lazy", "touch_us", "p99"), get("plain", "touch_us", "p99"), None, ("lazy", "plain")),
        ]


@group("push")
class Push(Group):
    """Faults while everything else streams in as fast as it can."""

    def sides(self):
        p, n = self.parts, (256 if self.quick else 1024) * MIB
        path = p.content(n)
        plain_n = n // 16  # it takes long
        idle = ("--threads", 1, "--faults", 1500)
        busy = ("--threads", 1, "--push")

        def lazy(*args):
            with p.serve(path) as s:
                return p.lazy(s, n, *args)

        def attach_idle():
            with p.serve(path, "--max-rate", "4K") as s:
                return p.attach(s, n, *idle, push=False)

        def attach():
            with p.serve(path) as s:
                return p.attach(s, n, *busy, push=True)

        def plain():
            with p.plain_serve(path) as s:
                return p.plain(s, plain_n, *busy)

        return {"idle": lambda: lazy(*idle), "lazy": lambda: lazy(*busy), "attach-idle": attach_idle,
                "attach": attach, "plain": plain}

    def rows(self):
        idle, attach_idle = get("idle", "service_us", "p50"), get("attach-idle", "fault_us", "p50")
        return [
            Row("p50", "fault service p50 beside the push, against idle p50, library", "us",
                get("lazy", "service_us", "p50"), idle, ("<=", 2), ("idle", "lazy")),
            Row("p99", "fault service p99 beside the push, against idle p50, library", "us",
                get("lazy", "service_us", "p99"), idle, ("<=", 5), ("idle", "lazy")),
            Row("p50-attach", "fault service p50 beside the push, against idle p50, pageferry attach", "us",
                get("attach", "fault_us", "p50"), attach_idle, ("<=", 2), ("attach-idle", "attach")),
            Row("p99-attach", "fault service p99 beside the push, against idle p50, pageferry attach", "us",
                get("attach", "fault_us", "p99"), attach_idle, ("<=", 5), ("attach-idle", "attach")),
            Row("plain", "what the faulting thread waits beside the push p50, against the plain handler's", "us",
                get("lazy", "touch_us", "p50"), get("plain", "touch_us", "p50"), None, ("lazy", "plain")),
            Row("plain-p99", "what the faulting thread waits beside the push p99, against the plain handler's", "us",
                get("lazy", "touch_us", "p99"), get("plain", "touch_us", "p99"), None, ("lazy", "plain")),
        ]


@group("stream")
class Stream(Group):
    """The push alone, from its start until all is there."""

    def sides(self):
        p, n = self.parts, (128 if self.quick else 1024) * MIB
        path = p.content(n)

        def lazy(kind):
            with p.serve(path) as s:
                return {**p.lazy(s, n, "--push", "--memory", kind), "bytes": n}

        def plain():
            with p.plain_serve(path) as s:
                return {**p.plain(s, n // 16, "--push"), "bytes": n // 16}

        return {"link": lambda: p.run("link", "--what", "stream", "--bytes", n),
                "shared": lambda: lazy("shared"), "anon": lambda: lazy("anon"), "plain": plain}

    def rows(self):
        return [
            Row("shared", "push to shared memory, against the loopback stream", "GB/s", rate("shared"), rate("link"),
                (">=", 0.8), ("shared", "link")),
            Row("anon", "push to private memory in-process, against the loopback stream", "GB/s", rate("anon"),
                rate("link"), (">=", 0.9), ("anon", "link")),
            Row("plain", "push to private memory, against the plain handler's", "GB/s", rate("anon"), rate("plain"),
                None, ("anon", "plain")),
        ]


@group("threads")
class Threads(Group):
    """Faults a second of 1, 4, 16 and 64 threads at once."""

    COUNTS = (1, 4, 16, 64)

    def sides(self):
        p, n = self.parts, 256 * MIB
        path = p.content(n)
        faults = 4000 if self.quick else 16000

        def lazy(k):
            with p.serve(path) as s:
                return p.lazy(s, n, "--threads", k, "--faults", faults)

        def plain():
            with p.plain_serve(path) as s:
                return p.plain(s, n, "--threads", 16, "--faults", faults // 2)

        return {**{f"{k}": lambda k=k: lazy(k) for k in self.COUNTS}, "plain": plain}

    def rows(self):
        rows = [Row(f"{b}", f"faults a second, {b} threads against {a}", "1/s", get(f"{b}", "touches_per_s"),
                    get(f"{a}", "touches_per_s"), (">=", 1), (f"{a}", f"{b}"))
                for a, b in zip(self.COUNTS, self.COUNTS[1:])]
        return rows + [Row("plain", "faults a second, 16 threads, against the plain handler's", "1/s",
                           get("16", "touches_per_s"), get("plain", "touches_per_s"), None, ("16", "plain"))]


@group("memory")
class Memory(Group):
    """What the engine itself needs, at most: private memory of attach and of serve."""

    rounds, quick_rounds, warms = 3, 1, False

    def sides(self):
        p, n, every = self.parts, (4 if self.quick else 16) * GIB, 64 if self.quick else 16
        path = p.content(n, every)
        self.note = f"{n // GIB} GiB of guest, one stripe of 2 MiB in {every} has data"

        def fill():
            with p.serve(path) as s, Peak(s.pid) as served:
                got = p.attach(s, n, "--threads", 1, "--faults", 200, every=every, push=True)
            return {"attach": got["private_kib"], "serve": served.kib, "limit": 32 * 1024 + n * 0.0005 / 1024}

        return {"fill": fill}

    def rows(self):
        return [Row(side, f"private memory of pageferry {side}, against 32 MiB + 0.05 % of the guest's", "KiB",
                    get("fill", side), get("fill", "limit"), ("<=", 1), ("fill",)) for side in ("attach", "serve")]


@group("size")
class Size(Group):
    """Does a larger guest cost more for each GiB, or each fault?"""

    rounds, quick_rounds = 3, 1

    def prepare(self):
        self.gib = (1, 2, 4) if self.quick else (1, 4, 16)
        # Both sides have the data in memory; half of what there is stays free.
        room = available_bytes() // 4
        self.every = 16 if self.quick else 1
        while self.gib[-1] * GIB // self.every > room:
            self.every *= 2
        self.note = f"one stripe of 2 MiB in {self.every} has data, the same for all sizes; time is for each GiB of data"

    def sides(self):
        p = self.parts

        def one(gib):
            n = gib * GIB
            with p.serve(p.content(n, self.every)) as s:
                idle = p.lazy(s, n, "--threads", 1, "--faults", 1500, every=self.every)
                fill = p.lazy(s, n, "--push", every=self.every)
            return {"p50": idle["service_us"]["p50"], "s_per_gib": fill["fill_seconds"] / (gib / self.every)}

        return {f"{gib}": lambda gib=gib: one(gib) for gib in self.gib}

    def rows(self):
        names = tuple(map(str, self.gib))
        return [Row(name, f"{what}, {'/'.join(names)} GiB, slowest against fastest", unit,
                    lambda f, key=key: max(f[s][key] for s in names), lambda f, key=key: min(f[s][key] for s in names),
                    ("<=", 1.1), names)
                for name, what, unit, key in (("time", "time of the push for each GiB", "s/GiB", "s_per_gib"),
                                              ("p50", "fault service p50, idle", "us", "p50"))]


@group("clients")
class Clients(Group):
    """Many targets filled from one page server at once."""

    rounds, quick_rounds = 3, 1

    def sides(self):
        p = self.parts
        self.n = 256
        n, stream_n = (2 if self.quick else 16) * MIB, (256 if self.quick else 1024) * MIB

        def run(clients, n):
            with p.serve(p.content(n), "--max-sessions", self.n) as s, Peak(s.pid) as peak:
                got = p.run("clients", "--from", s.address, "--clients", clients, "--bytes", n)
            return {**got, "server_kib_each": (peak.kib - peak.before) / clients}

        return {"one": lambda: run(1, stream_n), "many": lambda: run(self.n, n)}

    def rows(self):
        return [
            Row("rate", "256 clients of one server together, against one client's stream", "GB/s", rate("many"),
                rate("one"), (">=", 0.9), ("one", "many")),
            Row("server", "the server's private memory for each of them, against 256 KiB", "KiB",
                get("many", "server_kib_each"), lambda f: 256, ("<=", 1), ("many",)),
            Row("target", "a target's private memory, against 256 KiB", "KiB", get("many", "private_kib_each"),
                lambda f: 256, None, ("many",)),
        ]


class Delay(Group):
    """A long link: our forwarder passes every byte on so much later."""

    rounds, quick_rounds = 3, 1
    ms = 0

    def sides(self):
        p, n = self.parts, (128 if self.quick else 512) * MIB
        path = p.content(n)
        each_way_us, faults = self.ms * 500, 600 // self.ms + 40

        def lazy(*args):
            with p.serve(path) as s, p.forward(s.address, each_way_us) as f:
                return {**p.lazy(f, n, *args), "bytes": n}

        link = ("link", "--delay-us", each_way_us)
        return {"round trip": lambda: p.run(*link, "--faults", faults),
                "stream": lambda: p.run(*link, "--what", "stream", "--bytes", n),
                "faults": lambda: lazy("--threads", 1, "--faults", faults), "push": lambda: lazy("--push")}

    def rows(self):
        return [
            Row("p50", f"fault service p50 at {self.ms} ms of round trip, against that of a bare request", "us",
                get("faults", "service_us", "p50"), get("round trip", "us", "p50"), ("<=", 1.1),
                ("round trip", "faults")),
            Row("stream", "push to private memory, against a bare stream over the same link", "GB/s", rate("push"),
                rate("stream"), (">=", 0.8), ("push", "stream")),
        ]


@group("delay-1ms")
class Delay1(Delay):
    ms = 1


@group("delay-20ms")
class Delay20(Delay):
    ms = 20


@group("vm")
class Guest(Group):
    """The same Linux guest, moved by Pageferry and by QEMU's own post-copy, as the guest sees it."""

    rounds, quick_rounds, warms = 4, 1, False  # each guest is booted anew

    def prepare(self):
        why = vm.missing()
        if why:
            raise Failed(why)
        self.args = argparse.Namespace(pageferry=self.parts.program, mem="600M", ws="400M", accel="auto", backend="file", transport="tcp",
                                       window_s=5.0 if self.quick else vm.WINDOW_S)
        self.note = "600 MiB of guest with 400 MiB in constant use; CPU seconds are all but those of the guest itself"

    def sides(self):
        return {m: lambda m=m: vm.run_mode(self.args, m) for m in vm.MODES}

    def rows(self):
        def better(key):
            return lambda f: min(f[m][key] for m in vm.PEERS)
        rows = [
            ("lost", "guest's work lost", "ms", "work_lost_ms", ("<=", 0.1)),
            ("stall", "guest's longest stall", "ms", "longest_stall_ms", ("<=", 0.05)),
            ("full-speed", "until the guest works at full speed", "ms", "full_speed_ms", None),
            ("total", "time of the whole move", "ms", "total_ms", ("<=", 1 / 3)),
            ("downtime", "guest's downtime", "ms", "downtime_ms", None),
            ("cpu", "CPU seconds for each GiB", "s/GiB", "cpu_s_per_gib", ("<=", 0.5)),
        ]
        own, peers = "pageferry", ("pageferry", *vm.PEERS)
        result = [Row(name, f"{what}, against QEMU's better mode", unit, get(own, key), better(key), goal, peers)
                  for name, what, unit, key, goal in rows]
        return result + [Row(f"{name}-floor", f"{what}, against a move of device state alone", unit, get(own, key),
                             get("floor", key), None, (own, "floor"))
                         for name, what, unit, key, _ in rows if name in ("lost", "stall", "full-speed", "downtime")]
