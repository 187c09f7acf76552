# SPDX-License-Identifier: Apache-2.0
"""Moves a running guest between two QEMUs on this machine and shows what happens, live."""
import argparse
import json
import os
import queue
import shutil
import subprocess
import sys
import threading
import time

import ferryvm

HERE = os.path.dirname(os.path.realpath(__file__))
OUT = os.path.normpath(os.path.join(HERE, "..", "out", "demo"))
PLOT = os.path.join(OUT, "plot.svg")
BEFORE_S = 3.0   # how long the guest is watched before the move
AFTER_S = 3.0    # and after it
SHOW_EVERY = 5   # guest lines: one in so many is shown, all are read
MOVE_LIMIT_S = 120


class DemoError(Exception):
    pass


class Screen:
    """Lines with the time since the start in front."""

    def __init__(self):
        self.start = time.monotonic()
        self.lock = threading.Lock()

    def say(self, who, text):
        with self.lock:
            print(f"{time.monotonic() - self.start:7.2f}  {who:<8} {text}", flush=True)


class Guest(threading.Thread):
    """Follows one QEMU's console."""

    def __init__(self, screen, who, record):
        super().__init__(daemon=True)
        self.screen, self.who = screen, who
        self.console = ferryvm.Console(record)
        self.reports = []  # (time of arrival, report)
        self.bad_lines = []
        self.found = queue.Queue()  # verified lines
        self.over = False

    def run(self):
        n = 0
        while not self.over:
            for line in self.console.lines():
                m = ferryvm.REPORT.search(line)
                if m:
                    self.reports.append((time.monotonic(), {k: float(v) for k, v in m.groupdict().items()}))
                    if n % SHOW_EVERY == 0:
                        self.screen.say(self.who, line)
                    n += 1
                elif "ferry-guest" in line:
                    self.screen.say(self.who, line)
                    if ferryvm.BAD.search(line):
                        self.bad_lines.append(line)
                    v = ferryvm.VERIFIED.search(line)
                    if v:
                        self.found.put({k: int(x) for k, x in v.groupdict().items()})
            time.sleep(0.01)


class Command(threading.Thread):
    """A pageferry command with --json; shows its events."""

    def __init__(self, screen, name, argv):
        super().__init__(daemon=True)
        self.screen, self.label = screen, name
        self.process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.events = []
        self.listening = queue.Queue()
        self.errors = threading.Thread(target=self.show_errors, daemon=True)
        self.errors.start()
        self.start()

    def show_errors(self):
        for line in self.process.stderr:
            self.screen.say(self.label, line.rstrip())

    def run(self):
        for line in self.process.stdout:
            e = json.loads(line)
            self.events.append(e)
            if e["event"] == "listening":
                self.listening.put(e["address"])
                self.screen.say(self.label, f"listening on {e['address']}")
            elif e["event"] == "stage":
                self.screen.say(self.label, f"stage {e['stage']}")
            elif e["event"] == "progress":
                self.screen.say(self.label, "{percent:5.1f} %  {mib:7.0f} MiB/s  {faults} faults, p50 {p50_us} us, "
                                "p99 {p99_us} us".format(mib=e["rate"] / 2**20, **e))

    def finish(self, timeout):
        try:
            status = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise DemoError(f"pageferry {self.label} did not end within {timeout} s") from None
        self.join()
        self.errors.join()
        last = self.events[-1] if self.events else {}
        if status != 0 or last.get("event") != "completed":
            raise DemoError(f"pageferry {self.label} ended with {status}: {last.get('error', 'no result')}")
        return last


def start_guest(args, name, role):
    argv = [os.path.join(HERE, "start"), "--dir", OUT, "--name", name, "--role", role, "--mem", args.mem,
            "--ws", args.ws, "--accel", args.accel, "--daemon", "--die-with", str(os.getpid())]
    if role == "source":
        argv += ["--wait-ready", "60"]
    done = subprocess.run(argv, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise DemoError(f"the {role} QEMU did not start; see {OUT}/{name}.log")
    return ferryvm.Record(OUT, name), json.loads(done.stdout)


def rate(reports):
    """Page operations a second over some reports of the guest."""
    if len(reports) < 2:
        return 0
    (_, a), (_, b) = reports[0], reports[-1]
    return (b["ops"] - a["ops"]) / max(b["t"] - a["t"], 1e-3)


def move(screen, receive_argv, migrate_argv):
    receive = Command(screen, "receive", receive_argv)
    try:
        address = receive.listening.get(timeout=10)
    except queue.Empty:
        raise DemoError("pageferry receive does not listen") from None
    migrate = Command(screen, "migrate", migrate_argv + ["--to", address])
    try:
        return migrate.finish(MOVE_LIMIT_S), receive.finish(MOVE_LIMIT_S)
    finally:
        for c in (migrate, receive):
            if c.process.poll() is None:
                c.process.kill()


def demo(args):
    screen = Screen()
    shutil.rmtree(OUT, ignore_errors=True)
    os.makedirs(OUT)
    records = []
    try:
        screen.say("demo", f"booting a Linux guest with {args.mem} of memory, {args.ws} of it in constant use")
        record_a, a = start_guest(args, "source", "source")
        records.append(record_a)
        screen.say("demo", f"the guest runs in QEMU {a['qemu_pid']}, accelerator {a.get('accel', '?')}")
        before = Guest(screen, "guest", record_a)
        before.start()
        record_b, b = start_guest(args, "target", "target")
        records.append(record_b)
        screen.say("demo", f"a second QEMU, {b['qemu_pid']}, waits with empty memory")
        time.sleep(BEFORE_S)
        old_rate = rate(before.reports[-20:])
        after = Guest(screen, "guest", record_b)
        after.start()
        ferry = os.path.abspath(args.pageferry)
        trace = os.path.join(OUT, "trace.pft")
        migrated, received = move(
            screen, [ferry, "receive", "--qmp", b["qmp"], "--listen", "127.0.0.1:0", "--json", "--trace", trace],
            [ferry, "migrate", "--qmp", a["qmp"], "--postcopy", "--json"])
        before.over = True
        screen.say("demo", "everything is resident: the source QEMU is ended, the guest goes on without it")
        ferryvm.stop(record_a)
        time.sleep(AFTER_S)
        new_rate = rate(after.reports[-20:])
        screen.say("demo", "the guest is asked to check every page once more")
        after.console.send("verify")
        try:
            verified = after.found.get(timeout=120)
        except queue.Empty:
            raise DemoError("the guest did not answer 'verify'") from None
        after.over = True
        plot(ferry, trace)
        return summary(before, after, migrated, received, verified, old_rate, new_rate)
    finally:
        for r in records:
            ferryvm.stop(r)


def plot(ferry, trace):
    done = subprocess.run([ferry, "trace", "plot", trace, "-o", PLOT], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True)
    if done.returncode:
        raise DemoError(f"pageferry trace plot: {done.stdout.strip()}")


def summary(before, after, migrated, received, verified, old_rate, new_rate):
    gap = after.reports[0][0] - before.reports[-1][0] if after.reports and before.reports else None
    bad = int(max([r["bad"] for _, r in before.reports + after.reports] + [verified["bad"]]))
    s = {k: received[k] for k in ("ram_bytes", "pages_total", "pages_urgent", "pages_pushed", "pages_zero",
                                  "wire_bytes", "total_ms", "downtime_ms", "resumes", "fault_us")}
    s.update({
        "downtime_ms_source": migrated.get("downtime_ms"),
        "console_gap_ms": round(gap * 1000, 1) if gap is not None else None,
        "ops_per_s_before": round(old_rate), "ops_per_s_after": round(new_rate),
        "stall_max_us_after": int(max((r["stall_max_us"] for _, r in after.reports), default=0)),
        "pages_verified": verified["pages"], "bad_pages": bad, "lost_writes": verified["lost_writes"],
    })
    with open(os.path.join(OUT, "summary.json"), "w", encoding="ascii") as f:
        json.dump(s, f, indent=2)
        f.write("\n")
    f = s["fault_us"]
    print()
    print(f"  downtime            {s['downtime_ms']:.1f} ms")
    print(f"  total               {s['total_ms'] / 1000:.2f} s for {s['ram_bytes'] / 2**20:.0f} MiB of guest memory, "
          f"{s['wire_bytes'] / 2**20:.0f} MiB on the wire")
    print(f"  faults served       {f['n']}: p50 {f['p50']} us, p99 {f['p99']} us, longest {f['max']} us")
    print(f"  pages               {s['pages_urgent']} on demand, {s['pages_pushed']} pushed, {s['pages_zero']} zero, "
          f"of {s['pages_total']}")
    print(f"  guest               {s['ops_per_s_before']} page operations a second before, {s['ops_per_s_after']} after")
    print(f"  pages verified      {s['pages_verified']} by the guest itself")
    print(f"  bad pages {bad}")
    print(f"  summary             {os.path.relpath(os.path.join(OUT, 'summary.json'))}")
    print(f"  every fault, drawn  {os.path.relpath(PLOT)}")
    if bad or s["lost_writes"] or after.bad_lines:
        raise DemoError("the guest found its memory damaged")
    if not after.reports or new_rate <= 0:
        raise DemoError("the guest does not work after the move")
    return 0


def main():
    p = argparse.ArgumentParser(prog="demo", description=__doc__)
    p.add_argument("--pageferry", required=True, help=argparse.SUPPRESS)
    p.add_argument("--mem", default="600M", help="guest RAM (default: 600M)")
    p.add_argument("--ws", default="400M", help="memory in constant use (default: 400M)")
    p.add_argument("--accel", default="auto", choices=("auto", "tcg", "kvm"))
    args = p.parse_args()
    try:
        return demo(args)
    except (DemoError, ferryvm.VmError) as e:
        print(f"demo: {e}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
