#!/usr/bin/python3 -B
# SPDX-License-Identifier: Apache-2.0
"""What does tracing cost a fault? Seen by the thread that faults, not by the trace itself.

    trace_cost.py PAGEFERRY [PAIRS [--record]]

One process has two mappings, which two attach commands fill from one server: one traces (and with
--record another process copies its records to a file), one does not. A thread touches a page of each,
in random order, again and again, so that whatever else the machine does hits both alike. Printed are the
medians, their ratio and its 95 % interval (bootstrap over the pairs). With --record also how long a fault
took before its message was read, as the trace has it, and after its threads had been woken: both sides
have one clock here. The first and the last are the kernel's, and in no trace.
"""
import csv
import json
import mmap
import os
import random
import signal
import subprocess
import sys
import tempfile
import time

PAGE = 4096
FIRST = 200  # pairs that warm up


def start(args, event):
    p = subprocess.Popen(args, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    for line in p.stdout:
        o = json.loads(line)
        if all(o.get(k) == v for k, v in event.items()):
            return p, o
    sys.exit(f"{args}: ended early")


def touch(m, page):
    before = time.monotonic_ns()
    m[page * PAGE]
    return before, time.monotonic_ns()


def percentile(v, permille):
    return sorted(v)[max(-(-len(v) * permille // 1000), 1) - 1]


def interval(pairs):
    ratios = []
    for _ in range(400):
        some = random.choices(pairs, k=len(pairs))
        ratios.append(percentile([a for a, _ in some], 500) / percentile([b for _, b in some], 500))
    return percentile(ratios, 25), percentile(ratios, 975)


def measure(maps, n):
    pages = random.sample(range(n), n)
    pairs, traced = [], {}
    for page in pages:
        took = [0, 0]
        for which in random.sample((0, 1), 2):
            before, after = touch(maps[which], page)
            took[which] = after - before
            if which == 0:
                traced[page] = before, after
        pairs.append(tuple(took))
    return pairs[FIRST:], traced


def parts(program, path, traced):
    """Medians of what comes before, in and behind the time that the trace has."""
    out = subprocess.run([program, "trace", "report", "--csv", path], stdout=subprocess.PIPE, check=True,
                         text=True).stdout  # fmt: skip
    before, within, behind = [], [], []
    for row in csv.DictReader(out.splitlines()):
        begin, end = traced.get(int(row["page"]), (0, 0))
        read, placed = int(row["read_ns"]), int(row["placed_ns"])
        if row["kind"] == "fault" and begin < read < end and row["received_ns"] != "0":
            before.append(read - begin)
            within.append(placed - read)
            behind.append(max(end - placed, 0))
    return {
        what + "_us": percentile(v, 500) / 1e3
        for what, v in (("before_read", before), ("in_the_trace", within), ("behind", behind))
    }


def main():
    program, n = sys.argv[1], FIRST + int(sys.argv[2] if len(sys.argv) > 2 else 10000)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_RUNTIME_DIR"] = folder
        with open(folder + "/memory", "wb") as f:
            for i in range(n):
                f.write((i + 1).to_bytes(8, "little") * (PAGE // 8))
        children, maps = [], []
        server, o = start([program, "serve", "--json", "--file", folder + "/memory", "--listen",
                           "127.0.0.1:0", "--max-rate", "4K"], {"event": "listening"})  # fmt: skip
        children.append(server)
        for name, more in (("ferry-traced", []), ("ferry-plain", ["--no-trace"])):
            fd = os.memfd_create(name)
            os.ftruncate(fd, n * PAGE)
            maps.append(mmap.mmap(fd, n * PAGE))
            # It stops this very process for a moment, and so someone else must wait for it.
            children.append(start([program, "attach", "--json", "--pid", str(os.getpid()), "--match",
                                   name, "--from", o["address"], "--control", f"{folder}/{name}",
                                   *more], {"event": "stage", "stage": "push"})[0])  # fmt: skip
        if "--record" in sys.argv:
            children.append(subprocess.Popen([program, "trace", "record", "--json", "-o", folder + "/trace",
                                              "--control", folder + "/ferry-traced"], stdout=subprocess.DEVNULL))  # fmt: skip
        pairs, times = measure(maps, n)
        # The recorder ends with its command.
        for c in children[1:3]:
            c.send_signal(signal.SIGTERM)
            c.wait()
        server.send_signal(signal.SIGTERM)
        for c in children:
            c.wait()
        more = parts(program, folder + "/trace", times) if "--record" in sys.argv else {}
    traced, plain = zip(*pairs)
    low, high = interval(pairs)
    print(json.dumps({
        "pairs": len(pairs),
        "traced_us": {p: percentile(traced, p) / 1e3 for p in (500, 900, 990)},
        "plain_us": {p: percentile(plain, p) / 1e3 for p in (500, 900, 990)},
        "ratio_of_medians": round(percentile(traced, 500) / percentile(plain, 500), 4),
        "interval_95": [round(low, 4), round(high, 4)],
        **more,
    }))  # fmt: skip


if __name__ == "__main__":
    main()
