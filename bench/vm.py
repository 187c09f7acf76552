#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""The same Linux guest moved by Pageferry and by QEMU's own post-copy, alternating, in one run.

What counts is what the guest sees: work lost (how much longer its operations took than without the
move), the longest stall, the time until it works at full speed again; and the total time and CPU
seconds of all processes. Medians over the rounds, and each round in the JSON.

A third way is the floor: both QEMUs share one RAM file, and nothing but device state is moved, so that
no page is ever missing. What the guest loses then is the target QEMU's start itself, which without
KVM translates all of the guest's code anew.

    bench/vm.py --pageferry build/tools/pageferry [--rounds 5] [--json FILE]
"""
import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.realpath(__file__))
GUEST = os.path.normpath(os.path.join(HERE, "..", "guest-test-vm"))
sys.path.insert(0, GUEST)
sys.path.insert(0, HERE)
import ferryvm  # noqa: E402  pylint: disable=wrong-import-position
import host  # noqa: E402  pylint: disable=wrong-import-position

MODES = ("pageferry", "qemu", "qemu-preempt", "floor")
PEERS = ("qemu", "qemu-preempt")
WARM_S = 3.0     # steady work before the move
WINDOW_S = 8.0   # from the move on the guest is watched; more when the move takes longer
LIMIT_S = 60.0   # for a move
WEIGHT_NICE = -10  # of a session: 9.3 times the processor time of others, where all want it
STEADY_S = 2.0   # at the end of the window: the rate after
SETTLED_S = 0.5  # from full speed on: all that the move cost has been seen
TICK = os.sysconf("SC_CLK_TCK")


class Failed(Exception):
    pass


def missing():
    """Why no guest can be moved here, or None."""
    image = os.environ.get("PAGEFERRY_IMAGE_DIR") or os.path.join(GUEST, "..", "out", "guest-image")
    if os.geteuid():
        return "not run as root"
    if not shutil.which("qemu-system-x86_64"):
        return "no qemu-system-x86_64: run tests/setup demo"
    if not os.path.exists(os.path.join(image, "vmlinuz")):
        return "no guest image: run guest-test-vm/build-image"
    return None


def cpu_s(pid):
    with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as f:
        fields = f.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def children_cpu_s():
    """CPU seconds of all processes that we have waited for."""
    r = resource.getrusage(resource.RUSAGE_CHILDREN)
    return r.ru_utime + r.ru_stime


class Cost:
    """CPU seconds of QEMUs since now, without what their guests' processors used: those work all the time."""

    def __init__(self, *vms):
        self.vms = []
        for v in vms:
            q = ferryvm.Qmp(v["qmp"])
            self.vms.append((v["qemu_pid"], [c["thread-id"] for c in q.command("query-cpus-fast")]))
            q.close()
        self.before = self.now()

    def now(self):
        s = 0
        for pid, guest in self.vms:
            s += cpu_s(pid)
            for thread in guest:
                with open(f"/proc/{pid}/task/{thread}/schedstat", encoding="ascii") as f:
                    s -= int(f.read().split()[0]) / 1e9
        return s

    def seconds(self):
        return max(self.now() - self.before, 0)


def start(args, rundir, name, role, options):
    argv = [os.path.join(GUEST, "start"), "--dir", rundir, "--name", name, "--role", role, "--mem", args.mem,
            "--ws", args.ws, "--accel", args.accel, "--daemon", "--die-with", str(os.getpid()),
            "--backend", args.backend]
    argv += options
    argv += ["--wait-ready", "90"] if role == "source" else []
    done = subprocess.run(argv, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise Failed(f"the {role} QEMU did not start")
    return ferryvm.Record(rundir, name), json.loads(done.stdout)


class Watch:
    """Collects a console's reports with the time of their arrival."""

    def __init__(self, record):
        self.console = ferryvm.Console(record)
        self.reports = []

    def poll(self):
        now = time.monotonic()
        for line in self.console.lines():
            m = ferryvm.REPORT.search(line)
            if m:
                self.reports.append((now, {k: float(v) for k, v in m.groupdict().items()}))
            if ferryvm.BAD.search(line):
                raise Failed(f"the guest's memory is damaged: {line}")

    def watch(self, seconds, until=lambda: False):
        end = time.monotonic() + seconds
        while time.monotonic() < end and not until():
            self.poll()
            time.sleep(0.005)


def weigh():
    """What CPUWeight= of the units in contrib/ gives the commands, for one that no systemd has started."""
    os.setsid()
    try:
        with open("/proc/self/autogroup", "w", encoding="ascii") as f:
            f.write(str(WEIGHT_NICE))
    except OSError:
        pass  # a kernel without such groups


def socket_path(a):
    return os.path.join(os.path.dirname(a["qmp"]), "move.sock")


def move_pageferry(args, a, b):
    listen = "127.0.0.1:0" if args.transport == "tcp" else "unix:" + socket_path(a)
    receive = subprocess.Popen([args.pageferry, "receive", "--qmp", b["qmp"], "--listen", listen, "--json"],
                               stdout=subprocess.PIPE, text=True, preexec_fn=weigh)
    address = json.loads(receive.stdout.readline())["address"]
    cpu = children_cpu_s()
    started = time.monotonic()
    migrate = subprocess.Popen([args.pageferry, "migrate", "--qmp", a["qmp"], "--to", address, "--postcopy", "--json"],
                               stdout=subprocess.PIPE, text=True, preexec_fn=weigh)

    def over():
        return migrate.poll() is not None and receive.poll() is not None

    def finish():
        out = [json.loads(line) for p in (migrate, receive) for line in p.stdout.read().splitlines()]
        for p in (migrate, receive):
            if p.wait():
                raise Failed(f"pageferry ended with {p.returncode}: {out[-1]}")
        last = [e for e in out if e["event"] == "completed" and e["command"] == "receive"][-1]
        return {"total_ms": last["total_ms"], "downtime_ms": last["downtime_ms"], "engine_cpu_s": children_cpu_s() - cpu}

    return started, over, finish


def move_qemu(args, a, b, mode):
    qa, qb = ferryvm.Qmp(a["qmp"]), ferryvm.Qmp(b["qmp"])
    names = {"floor": ["x-ignore-shared"], "qemu": ["postcopy-ram"],
             "qemu-preempt": ["postcopy-ram", "postcopy-preempt"]}[mode]
    caps = [{"capability": n, "state": True} for n in (*names, "events")]
    for q in (qa, qb):
        q.command("migrate-set-capabilities", capabilities=caps)
        q.command("migrate-set-parameters", max_bandwidth=1 << 40, max_postcopy_bandwidth=0)
    uri = "unix:" + socket_path(a)
    qb.command("migrate-incoming", uri=uri if args.transport == "unix" else "tcp:127.0.0.1:0")
    if args.transport == "tcp":
        at = qb.command("query-migrate")["socket-address"][0]
        uri = f"tcp:{at['host']}:{at['port']}"
    started = time.monotonic()
    qa.command("migrate", uri=uri)
    if mode != "floor":
        while qa.command("query-migrate").get("status") != "active":
            pass
        qa.command("migrate-start-postcopy")

    def over():
        return qa.command("query-migrate")["status"] in ("completed", "failed", "cancelled")

    def finish():
        while not over():
            time.sleep(0.01)
        r = qa.command("query-migrate")
        if r["status"] != "completed":
            raise Failed(f"QEMU's migration {r['status']}")
        qa.close()
        qb.close()
        return {"total_ms": r["total-time"], "downtime_ms": r.get("downtime", 0), "engine_cpu_s": 0}

    return started, over, finish


def ram_bytes(text):
    return int(text[:-1]) << {"M": 20, "G": 30}[text[-1]]


def rate_of(reports):
    (_, first), (_, last) = reports[0], reports[-1]
    return (last["ops"] - first["ops"]) / (last["t"] - first["t"])


def measure(before, after, started, result):
    """
    What the guest saw. Each QEMU's own steady rate is its yardstick: two of the same kind differ by up to half, with
    the memory that they happened to get. Nothing is counted of the time after, where noise is all that there is.
    """
    old = [r for r in before.reports if started - WARM_S < r[0] < started]
    new = [r for r in after.reports if r[0] > started]
    if len(old) < 5 or len(new) < 20:
        raise Failed("the guest said too little")
    end = new[-1][0]
    steady = [r for r in new if r[0] > end - STEADY_S]
    rate = rate_of(steady)
    full = next((r[0] for p, r in zip(new, new[1:])
                 if (r[1]["ops"] - p[1]["ops"]) >= 0.9 * rate * (r[1]["t"] - p[1]["t"])), end)
    lost = 0
    last = old[-1]
    for reports, usual in ((before.reports, rate_of(old)), (after.reports, rate)):
        for r in reports:
            if last[0] < r[0] < full + SETTLED_S:
                lost += (r[0] - last[0]) - (r[1]["ops"] - last[1]["ops"]) / usual
                last = r
    result.update({
        "work_lost_ms": max(0, lost) * 1000,
        "longest_stall_ms": max(r[1]["stall_max_us"] for r in new if r[0] <= full + 0.2) / 1000,
        "full_speed_ms": (full - started) * 1000,
        "stall_before_ms": statistics.median(r[1]["stall_max_us"] for r in old) / 1000,
        "bad": max(r[1]["bad"] for r in old + new),
        "ops_per_s": rate,
    })
    return result


def native_options(args):
    """QEMU's own way is best with private memory, but that has no huge pages of hugetlbfs."""
    return [] if args.backend == "hugetlb" else ["--native-ram"]


def one_round(args, mode, base):
    rundir = os.path.join(base, mode)
    shutil.rmtree(rundir, ignore_errors=True)
    os.makedirs(rundir)
    ram = os.path.join("/dev/shm", f"ferry-bench-{os.getpid()}.ram")
    options = {"pageferry": [], "floor": ["--ram-file", ram]}.get(mode, native_options(args))
    records = []
    try:
        if mode == "floor":
            with open(ram, "wb") as f:
                f.truncate(ram_bytes(args.mem))
        ra, a = start(args, rundir, "a", "source", options)
        records.append(ra)
        rb, b = start(args, rundir, "b", "target", options)
        records.append(rb)
        before, after = Watch(ra), Watch(rb)
        before.watch(WARM_S)
        cost = Cost(a, b)
        started, over, finish = move_pageferry(args, a, b) if mode == "pageferry" else move_qemu(args, a, b, mode)
        end, limit, look = started + args.window_s, started + LIMIT_S, started
        ended = False
        # A move that takes longer is watched until the guest has settled: its rate then is the yardstick.
        while (now := time.monotonic()) < end or (not ended and now < limit):
            before.poll()
            after.poll()
            if not ended and now >= look:
                look = now + 0.1
                ended = over()
                end = max(end, now + 1.5 * STEADY_S)
            time.sleep(0.005)
        result = finish()
        result["qemu_cpu_s"] = cost.seconds()
        result["cpu_s_per_gib"] = (result["engine_cpu_s"] + result["qemu_cpu_s"]) / (ram_bytes(args.mem) / (1 << 30))
        return measure(before, after, started, result)
    finally:
        for r in records:
            ferryvm.stop(r)
        if mode == "floor":
            os.unlink(ram)


def run_mode(args, mode):
    """One move in this mode, in a folder of its own. Returns its figures; raises Failed."""
    with tempfile.TemporaryDirectory(prefix="ferry-bench-") as base:
        try:
            return one_round(args, mode, base)
        except ferryvm.VmError as e:
            raise Failed(str(e)) from None


def table(rounds, modes):
    keys = ("work_lost_ms", "longest_stall_ms", "full_speed_ms", "total_ms", "downtime_ms", "cpu_s_per_gib",
            "stall_before_ms", "ops_per_s", "bad")
    lines = [f"{'median (spread)':<20}" + "".join(f"{m:>26}" for m in modes)]
    medians = {}
    for k in keys:
        cells = []
        for m in modes:
            v = [r[k] for r in rounds if r["mode"] == m]
            medians[m, k] = statistics.median(v)
            cells.append(f"{medians[m, k]:.1f} ({min(v):.1f}-{max(v):.1f})")
        lines.append(f"{k:<20}" + "".join(f"{c:>26}" for c in cells))
    for k in ("work_lost_ms", "longest_stall_ms", "total_ms", "cpu_s_per_gib"):
        ours, floor = medians.get(("pageferry", k), 0), medians.get(("floor", k), 0)
        peer = min((medians[m, k] for m in PEERS if m in modes), default=0)
        lines.append(f"{k} against QEMU's better mode: {ours / peer:.3f}" if peer else "")
        if "floor" in modes and peer > floor:
            lines.append(f"{k} above the floor, against QEMU's better mode: {(ours - floor) / (peer - floor):.3f}")
    return "\n".join(lines)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--pageferry", required=True)
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--mem", default="600M")
    p.add_argument("--ws", default="400M")
    p.add_argument("--accel", default="auto", choices=("auto", "tcg", "kvm"))
    p.add_argument("--backend", default="file", choices=("file", "memfd", "hugetlb"),
                   help="the guest's RAM; hugetlb: pages of 2 MiB on all sides, which must be free")
    p.add_argument("--transport", default="tcp", choices=("tcp", "unix"),
                   help="what both ways move the guest over: TCP over loopback, or a UNIX socket")
    p.add_argument("--modes", nargs="+", default=MODES, choices=MODES, help="these ways only")
    p.add_argument("--json", help="where to write every round")
    p.add_argument("--window-s", type=float, default=WINDOW_S, help="how long the guest is watched, seconds")
    args = p.parse_args()
    modes = [m for m in args.modes if m != "floor" or args.backend == "file"]  # the floor shares a file
    rounds = []
    with host.kept_memory(4 * ram_bytes(args.mem)):
        for i in range(args.rounds):
            for mode in modes[i % len(modes):] + modes[:i % len(modes)]:
                try:
                    r = run_mode(args, mode)
                except Failed as e:
                    print(f"bench: round {i}, {mode}: {e}", file=sys.stderr)
                    return 1
                r.update({"mode": mode, "round": i})
                rounds.append(r)
                print(f"round {i} {mode:<13} lost {r['work_lost_ms']:.0f} ms, longest stall "
                      f"{r['longest_stall_ms']:.1f} ms, full speed after {r['full_speed_ms']:.0f} ms, "
                      f"total {r['total_ms']:.0f} ms", file=sys.stderr, flush=True)
    print(table(rounds, modes))
    if args.json:
        with open(args.json, "w", encoding="ascii") as f:
            json.dump({"mem": args.mem, "ws": args.ws, "rounds": rounds}, f, indent=1)
    return 1 if any(r["bad"] for r in rounds) else 0


if __name__ == "__main__":
    sys.exit(main())
