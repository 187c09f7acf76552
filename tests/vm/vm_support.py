# SPDX-License-Identifier: Apache-2.0
"""What the tests that move real guests share.

A test file is run as a Criterion program is: [--tap=FILE] PAGEFERRY [OPTION...] [CASE...]. Its cases
share a booted guest, which after each move is in another QEMU; a case that fails takes it along.
"""
import argparse
import contextlib
import ctypes
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback

HERE = os.path.dirname(os.path.realpath(__file__))
GUESTS = os.path.normpath(os.path.join(HERE, "..", "..", "guest-test-vm"))
sys.path.insert(0, GUESTS)

import ferryvm  # noqa: E402
import kvm  # noqa: E402
from forwarder import Forwarder  # noqa: E402

LIMIT_S = 120  # how long anything may take before its case fails
PR_SET_PDEATHSIG = 1
FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE = 1, 2
MIB = 1 << 20

libc = ctypes.CDLL(None)


class Skip(Exception):
    pass


def wait_for(what, test):
    """Polls for what nobody announces."""
    end = time.monotonic() + LIMIT_S
    while not test():
        assert time.monotonic() < end, f"waited too long until {what}"
        time.sleep(0.01)


def die_with_parent():
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def punch_hole(fd, offset, n_bytes):
    mode = FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE
    assert not libc.fallocate64(fd, mode, ctypes.c_int64(offset), ctypes.c_int64(n_bytes)), "fallocate"


class Command:
    """A pageferry command with --json. What it says on standard error becomes part of our output."""

    program = None

    def __init__(self, name, *args):
        self.name = name
        self.stages, self.errors = [], []
        self.process = subprocess.Popen([Command.program, name, *map(str, args), "--json"],
                                        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                        stderr=subprocess.PIPE, text=True, preexec_fn=die_with_parent)
        self.pid = self.process.pid
        self.lines = queue.Queue()
        self.last = None
        self.threads = [threading.Thread(target=f, daemon=True) for f in (self.read_lines, self.read_errors)]
        for t in self.threads:
            t.start()

    def read_lines(self):
        for line in self.process.stdout:
            self.lines.put(json.loads(line))
        self.lines.put(None)

    def read_errors(self):
        for line in self.process.stderr:
            self.errors.append(line.rstrip())
            sys.stdout.write(f"  {line.rstrip()}\n")

    def next(self):
        """The next event; None at the end."""
        try:
            e = self.lines.get(timeout=LIMIT_S)
        except queue.Empty:
            raise AssertionError(f"{self.name}: says nothing for {LIMIT_S} s") from None
        if e and e["event"] == "stage":
            self.stages.append(e["stage"])
        self.last = e or self.last
        return e

    def event(self, name, **wanted):
        """Reads events up to this one."""
        while True:
            e = self.next()
            assert e, f"{self.name}: ended without the event '{name}': {self.last}"
            if e["event"] == name and all(e.get(k) == v for k, v in wanted.items()):
                return e

    def stage(self, name):
        while name not in self.stages:
            assert self.next(), f"{self.name}: ended before stage '{name}': {self.last}"

    def end(self, status, limit_s=LIMIT_S):
        """Waits for the end, which must be with this status. Returns the last event."""
        deadline = time.monotonic() + limit_s
        while self.next():
            assert time.monotonic() < deadline, f"{self.name}: does not end within {limit_s} s: {self.last}"
        assert time.monotonic() < deadline, f"{self.name}: ended after more than {limit_s} s: {self.last}"
        got = self.process.wait(LIMIT_S)
        for t in self.threads:
            t.join()
        assert got == status, f"{self.name}: exit status {got}, not {status}: {self.last}"
        assert self.last["event"] == ("failed" if status else "completed"), self.last
        assert self.last["exit"] == status, self.last
        return self.last

    def refuses(self, *texts):
        """Ends with 1 and one line that has these texts, the same for people and for programs."""
        last = self.end(1)
        for text in texts:
            assert text in last["error"], f"no '{text}' in: {last['error']}"
        assert "\n" not in last["error"]
        assert self.errors and self.errors[-1].endswith(last["error"]), self.errors
        return last

    def signal(self, sig):
        self.process.send_signal(sig)

    def kill(self):
        self.process.kill()
        self.process.wait()
        for t in self.threads:
            t.join()

    def dispose(self):
        if self.process.poll() is None:
            # One that is supervised outlives its supervisor.
            with open(f"/proc/{self.pid}/task/{self.pid}/children", encoding="ascii") as f:
                children = [int(pid) for pid in f.read().split()]
            self.process.kill()
            for pid in children:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.kill()
        self.process.stdout.close()
        self.process.stderr.close()

    def memory_kib(self, key):
        """A figure of /proc/PID/status."""
        with open(f"/proc/{self.pid}/status", encoding="ascii") as f:
            return int(next(line.split()[1] for line in f if line.startswith(key + ":")))


class Monitor(ferryvm.Qmp):
    def catch_up(self):
        """Reads the events so far; all that there were when QEMU has ended."""
        try:
            self.command("query-status")  # they came before its answer
        except (OSError, ferryvm.VmError):
            self.read_last_words()

    def answers(self):
        """Whether an answer comes at once; the events before it are read."""
        self.sock.settimeout(1)
        try:
            self.command("query-status")
            return True
        except (OSError, ferryvm.VmError):
            return False
        finally:
            self.sock.settimeout(LIMIT_S)

    def read_last_words(self):
        try:
            while True:
                self.events.append((time.monotonic(), self._read()))
        except (OSError, ferryvm.VmError):
            return


class Vm:
    """One QEMU with or without a guest in it. A second monitor tells what happens to the guest."""

    def __init__(self, folder, name, role, options, ready_s=None):
        self.record = ferryvm.Record(folder, name)
        self.name, self.options = name, options
        watch = os.path.join(folder, f"{name}.watch")
        argv = [sys.executable, os.path.join(GUESTS, "start"), "--dir", folder, "--name", name, "--role", role,
                "--daemon", "--die-with", str(os.getpid())]
        for key, value in options.items():
            argv += [f"--{key}"] if value is True else [f"--{key}", str(value)]
        if ready_s:
            argv += ["--wait-ready", str(ready_s)]
        argv += ["--", "-qmp", f"unix:{watch},server=on,wait=off"]
        done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert done.returncode == 0, f"QEMU '{name}' did not start: {done.stderr}"
        self.info = json.loads(done.stdout)
        self.qmp, self.pid = self.info["qmp"], self.info["qemu_pid"]
        self.monitor = Monitor(watch, timeout=LIMIT_S)
        self.console = ferryvm.Console(self.record)
        self.reports = []
        self.pages = None  # that its guest checks
        self.n_events = 0  # that were there when an attempt began
        if ready_s:
            self.pages = int(self.console.wait(ferryvm.READY, 1)["pages"])

    # --- seen from inside ---

    def watch(self, line):
        assert not ferryvm.BAD.search(line) and "FATAL" not in line, f"{self.name}: {line}"
        m = ferryvm.REPORT.search(line)
        if m:
            self.reports.append({k: float(v) for k, v in m.groupdict().items()})
            assert self.reports[-1]["bad"] == 0, f"{self.name}: {line}"

    def never_ran(self):
        """No guest has run here. Its QEMU may wait for a page that won't come, and answer to nothing."""
        self.look()
        assert not self.reports, "the guest ran at the target"
        wait_for("the target's QEMU answers, ends or waits for a page",
                 lambda: self.monitor.answers() or not self.is_alive() or self.waits_for_pages())
        assert "RESUME" not in self.events_so_far(), self.events_so_far()

    def look(self):
        """Reads what the guest has said so far."""
        for line in self.console.lines():
            self.watch(line)

    def works(self, reports=3):
        """The guest makes progress from now on, and all memory that it sees is right."""
        self.look()
        n = len(self.reports)
        while len(self.reports) < n + reports or self.reports[-1]["ops"] <= self.reports[n]["ops"]:
            self.console.wait(ferryvm.REPORT, LIMIT_S, self.watch)

    def verify(self):
        """The guest looks at every page."""
        self.look()
        self.console.send("verify")
        found = self.console.wait(ferryvm.VERIFIED, LIMIT_S, self.watch)
        assert int(found["bad"]) == 0 and int(found["lost_writes"]) == 0, found[0]
        assert int(found["pages"]) == self.pages, f"{found[0]}: not {self.pages} pages"

    # --- seen from outside ---

    def status(self):
        return self.monitor.command("query-status")["status"]

    def events(self):
        """The names of what happened to the guest since this QEMU was started."""
        self.monitor.catch_up()
        return self.events_so_far()

    def events_so_far(self):
        return [e["event"] for _, e in self.monitor.events if e.get("event") in ("STOP", "RESUME", "SHUTDOWN")]

    def settings(self):
        """What Pageferry changes of QEMU's migration settings, and puts back."""
        capabilities = self.monitor.command("query-migrate-capabilities")
        parameters = self.monitor.command("query-migrate-parameters")
        return ({c["capability"]: c["state"] for c in capabilities},
                {k: parameters.get(k) for k in ("max-bandwidth", "tls-creds")})

    def is_alive(self):
        return ferryvm.start_time(self.pid) == self.info["qemu_started"]

    def kill(self):
        """As a crash would."""
        ferryvm.end(self.pid, self.info["qemu_started"], (signal.SIGKILL,), LIMIT_S)

    def waits_for_pages(self):
        """How many of QEMU's threads wait for a page. What the guest saw until now was right."""
        self.look()
        n = 0
        for task in os.listdir(f"/proc/{self.pid}/task"):
            try:
                with open(f"/proc/{self.pid}/task/{task}/stack", encoding="ascii") as f:
                    n += "handle_userfault" in f.read()
            except (FileNotFoundError, ProcessLookupError):
                pass
        return n

    def dispose(self):
        self.monitor.close()
        if self.is_alive():
            self.kill()
        ferryvm.stop(self.record)


class Lab:
    """Where the cases of a file find guests, commands and forwarders, and leave none behind."""

    def __init__(self, folder, args, rest):
        self.folder, self.args, self.rest = folder, args, rest
        self.n = 0
        self.vms, self.others = [], []
        self.current = None  # a guest for the next case
        self.settings = None  # of the source, when the attempt began

    # --- guests ---

    def start(self, role, options, ready_s=None):
        self.n += 1
        vm = Vm(self.folder, f"{role[0]}{self.n}", role, options, ready_s)
        self.vms.append(vm)
        return vm

    def new_guest(self, **options):
        return self.start("source", {"mem": self.args.mem, "cpus": 1, "rest": self.rest, **options}, LIMIT_S)

    def guest(self):
        """A guest that works: the one of the case before if it still does."""
        if not self.current:
            self.current = self.new_guest()
        self.current.works(reports=1)
        return self.current

    def target(self, source, **changes):
        """A QEMU that waits for the guest of another."""
        return self.start("target", {**source.options, **changes})

    def retire(self, vm):
        vm.dispose()
        self.vms.remove(vm)
        if self.current is vm:
            self.current = None

    # --- commands ---

    def run(self, name, *args):
        self.n += 1
        control = os.path.join(self.folder, f"{self.n}.control")
        command = Command(name, *args, "--control", control)
        command.control = control
        self.others.append(command)
        return command

    def steer(self, migrate, what, status=0):
        """migrate --pause, --continue or --cancel. Returns what that says in the end."""
        command = Command("migrate", what, "--control", migrate.control)
        self.others.append(command)
        return command.end(status)

    def receive(self, target, *args):
        return self.recover(target, "--listen", "127.0.0.1:0", *args)

    def recover(self, target, *args):
        command = self.run("receive", "--qmp", target.qmp, *args)
        command.address = command.event("listening")["address"]
        return command

    def migrate(self, source, to, *args):
        self.settings = source.settings()
        source.n_events = len(source.events())
        return self.run("migrate", "--qmp", source.qmp, "--to", to, "--postcopy", *args)

    def forwarder(self, receive):
        f = Forwarder(receive.address)
        self.others.append(f)
        return f

    # --- how it ends ---

    def arrived(self, source, target, migrate, receive):
        """The move has succeeded, and the source is over. Returns what migrate and receive say."""
        said = migrate.end(0), receive.end(0)
        target.pages = source.pages
        target.works()
        assert target.status() == "running"
        target.verify()
        assert source.status() == "postmigrate", source.status()
        assert source.events()[-1] == "STOP", source.events()
        self.current = target
        self.retire(source)
        return said

    def move(self, source, target, receive=(), migrate=()):
        """A move in which nothing goes wrong."""
        r = self.receive(target, *receive)
        return self.arrived(source, target, self.migrate(source, r.address, *migrate), r)

    def stayed(self, source):
        """The guest works where it was, and QEMU's settings are as they were."""
        assert source.status() == "running", source.status()
        assert source.settings() == self.settings, f"{source.settings()}, not {self.settings}"
        source.works()

    def untouched(self, source):
        """And it was not stopped for a moment either."""
        self.stayed(source)
        assert source.events()[source.n_events:] == [], source.events()

    def tidy(self, keep):
        """Ends what a case has left, but the guest for the next one."""
        for o in self.others:
            o.dispose() if isinstance(o, Command) else o.close()
        self.others = []
        for vm in list(self.vms):
            if not keep or vm is not self.current:
                self.retire(vm)


def missing():
    """Why no guest can be moved here."""
    image = os.environ.get("PAGEFERRY_IMAGE_DIR") or os.path.join(GUESTS, "..", "out", "guest-image")
    if os.geteuid():
        return "not run as root"
    if not shutil.which("qemu-system-x86_64"):
        return "no qemu-system-x86_64"
    if not os.path.exists(os.path.join(image, "vmlinuz")):
        return "no guest image: run guest-test-vm/build-image"
    return None


def choose_accel():
    """Once for all: on a busy host KVM may seem to be slow at one start, and a guest doesn't move between two kinds."""
    if os.environ.get("PAGEFERRY_GUEST_ACCEL", "auto") == "auto":
        os.environ["PAGEFERRY_GUEST_ACCEL"] = "kvm" if kvm.runs_kernels() else "tcg"


def run_case(lab, name, case):
    """What TAP says of it."""
    print(f"-- {name}", flush=True)
    begin, keep = time.monotonic(), False
    try:
        case(lab)
        keep = True
        result = f"ok - vm::{name}"
    except Skip as e:
        keep = True
        result = f"ok - vm::{name} # SKIP {e}"
    except Exception:
        traceback.print_exc()
        result = f"not ok - vm::{name}"
    finally:
        lab.tidy(keep)
    print(f"{result} ({time.monotonic() - begin:.1f} s)", flush=True)
    return result


def main(cases, options=None, rest=5000):
    """Runs all cases, or those that are named. Guests rest, so that several can work on few processors (us, 0: never)."""
    p = argparse.ArgumentParser()
    p.add_argument("--tap", help="file for the results")
    p.add_argument("--mem", default="128M", help="guest RAM")
    p.add_argument("program")
    p.add_argument("names", nargs="*", metavar="CASE")
    if options:
        options(p)
    args = p.parse_intermixed_args()
    Command.program = os.path.abspath(args.program)
    if args.names:
        cases = {name: cases[name] for name in args.names}
    sys.stdout.reconfigure(line_buffering=True)
    why = missing()
    if not why:
        choose_accel()
    with tempfile.TemporaryDirectory(prefix="ferry-vm-") as folder:
        os.environ["RUNTIME_DIRECTORY"] = folder
        lab = Lab(folder, args, rest)
        try:
            results = [f"ok - vm::{name} # SKIP {why}" if why else run_case(lab, name, case)
                       for name, case in cases.items()]
        finally:
            lab.tidy(keep=False)
    if args.tap:
        with open(args.tap, "w", encoding="utf-8") as f:
            f.write(f"1..{len(results)}\n" + "".join(r + "\n" for r in results))
    return 1 if any(r.startswith("not ok") for r in results) else 0
