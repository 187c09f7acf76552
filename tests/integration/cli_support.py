# SPDX-License-Identifier: Apache-2.0
"""What the tests of the pageferry program share: running it, and a process with memory to fill.

A test file is run with the program's path as its first argument, and calls main() with its tests.
"""
import ctypes
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from contextlib import contextmanager

PAGE = os.sysconf("SC_PAGESIZE")
LIMIT_S = 120  # how long anything may take before a test fails
PR_SET_PDEATHSIG = 1
CLONE_NEWNS, MS_REC, MS_PRIVATE = 0x20000, 0x4000, 0x40000

libc = ctypes.CDLL(None, use_errno=True)


class Skip(Exception):
    pass


def die_with_parent(sig=signal.SIGKILL):
    libc.prctl(PR_SET_PDEATHSIG, sig, 0, 0, 0)


class Run:
    """One run of the program. Its children end when the test does."""

    program = None

    def __init__(self, *args, **more):
        self.args = [str(a) for a in args]
        more.setdefault("stdout", subprocess.PIPE)
        more.setdefault("stderr", subprocess.PIPE)
        before = more.pop("before", None)

        def prepare():
            die_with_parent()
            if before:
                before()

        self.child = subprocess.Popen(
            [Run.program, *self.args], stdin=subprocess.DEVNULL, preexec_fn=prepare, **more
        )
        self.pid = self.child.pid
        self.out, self.err = b"", b""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.child.poll() is None:
            self.child.kill()
        self.child.wait()
        for f in (self.child.stdout, self.child.stderr):
            if f:
                f.close()

    def read_line(self):
        """The next line of standard output, or "" at its end."""
        fd = self.child.stdout.fileno()
        end = time.monotonic() + LIMIT_S
        while b"\n" not in self.out:
            left = end - time.monotonic()
            assert left > 0 and select.select([fd], [], [], left)[0], f"{self.args}: says nothing"
            got = os.read(fd, 65536)
            if not got:
                break
            self.out += got
        line, _, self.out = self.out.partition(b"\n")
        return line.decode()

    def event(self, name, **wanted):
        """Reads JSON lines up to one of this event (and members)."""
        end = time.monotonic() + LIMIT_S
        while True:
            assert time.monotonic() < end, f"{self.args}: no event '{name}' with {wanted} within {LIMIT_S} s"
            line = self.read_line()
            assert line, f"{self.args}: ended without the event '{name}': {self.rest()}"
            o = json.loads(line)
            if o["event"] == name and all(o.get(k) == v for k, v in wanted.items()):
                return o
            assert o["event"] not in ("completed", "failed"), f"before '{name}': {line}"

    def rest(self):
        """Waits for the end. Returns (exit status, standard output, standard error)."""
        out, err = self.child.communicate(timeout=LIMIT_S)
        return self.child.returncode, (self.out + (out or b"")).decode(), (err or b"").decode()

    def stop(self):
        self.child.send_signal(signal.SIGTERM)
        return self.rest()

    def end(self, status=0):
        """Waits for the end, which must be with this status. Returns the last JSON line."""
        got, out, err = self.rest()
        assert got == status, f"{self.args}: exit status {got}, not {status}: {out}{err}"
        last = json.loads(out.splitlines()[-1])
        assert last["event"] == ("completed" if status == 0 else "failed"), last
        assert last["exit"] == status, last
        return last


@contextmanager
def preloaded(library, **variables):
    """Programs that are started in here have a library that takes the place of some calls, and variables for it."""
    before = dict(os.environ)
    # A sanitizer's library wants to be the first, and need not be.
    asan = before.get("ASAN_OPTIONS", "") + ":verify_asan_link_order=0"
    os.environ.update(LD_PRELOAD=library, ASAN_OPTIONS=asan.lstrip(":"), **variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def run(*args, **more):
    """Runs the program to its end. Returns (exit status, standard output, standard error)."""
    with Run(*args, **more) as r:
        return r.rest()


def json_lines(text):
    return [json.loads(line) for line in text.splitlines()]


kept_ports = []


def address_of_ours():
    """Where one can listen after another: its port is given to nobody else in between, until the test ends."""
    s = socket.socket()
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind(("127.0.0.1", 0))
    kept_ports.append(s)
    return "127.0.0.1:%d" % s.getsockname()[1]


class Serve(Run):
    """pageferry serve --json, with the address that it listens on."""

    def __init__(self, *args, listen=None):
        super().__init__("serve", "--json", "--listen", listen or address_of_ours(), *args)
        self.address = self.event("listening")["address"]


# A process whose memory is filled. It reads commands (what, region, ...) and answers each by a line.
HOLDER = r"""
import ctypes, hashlib, mmap, os, sys
kind, name, *sizes = sys.argv[1:]
regions = []
for n in map(int, sizes):
    if kind == "memfd":
        fd = os.memfd_create(name)
        os.ftruncate(fd, n)
        m = mmap.mmap(fd, n)
    elif kind == "aligned":
        # Its addresses are those in the file, to a multiple of 2 MiB: the second try has the first one's place.
        fd = os.memfd_create(name)
        os.ftruncate(fd, n + 0x200000)
        m, at, place = None, 0, 1
        while (place - at) % 0x200000:
            at = place % 0x200000 if m else 0
            del m
            m = mmap.mmap(fd, n, offset=at)
            place = ctypes.addressof(ctypes.c_char.from_buffer(m))
    else:
        m = mmap.mmap(-1, n, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    regions.append(m)
    print(hex(ctypes.addressof(ctypes.c_char.from_buffer(m))), flush=True)
for line in sys.stdin:
    what, region, *args = line.split()
    m, args = regions[int(region)], [int(x) for x in args]
    if what == "hash":
        print(hashlib.sha256(m).hexdigest(), flush=True)
    elif what == "byte":
        print(m[args[0]], flush=True)
    elif what == "write":
        m[args[0]] = args[1]
        print("ok", flush=True)
    elif what == "discard":
        m.madvise(mmap.MADV_DONTNEED, args[0], args[1])
        print("ok", flush=True)
"""


class Holder:
    """
    Memory in a process of its own: kind "memfd" (with a name), "aligned" (the same, so that it can have large pages) or
    "anon", and the sizes of its regions.
    """

    def __init__(self, kind, *sizes, name="ferry-test"):
        self.child = subprocess.Popen(
            [sys.executable, "-c", HOLDER, kind, name, *map(str, sizes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            preexec_fn=die_with_parent,
        )
        self.pid = self.child.pid
        starts = [int(self.child.stdout.readline(), 16) for _ in sizes]
        self.ranges = [f"{a:#x}-{a + n:#x}" for a, n in zip(starts, sizes)]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.child.kill()
        self.child.wait()
        self.child.stdin.close()
        self.child.stdout.close()

    def send(self, what, *args, region=0):
        words = [what, region, *args]
        self.child.stdin.write((" ".join(str(w) for w in words) + "\n").encode())
        self.child.stdin.flush()

    def answers(self, seconds):
        return bool(select.select([self.child.stdout], [], [], seconds)[0])

    def answer(self):
        assert self.answers(LIMIT_S), "the process whose memory is filled hangs"
        return self.child.stdout.readline().decode().strip()

    def ask(self, what, *args, region=0):
        self.send(what, *args, region=region)
        return self.answer()


def content(n_pages, seed=1):
    """Pages of every kind: full, of zeros, and with one byte."""
    out = bytearray()
    for i in range(n_pages):
        if i % 7 == 3:
            out += bytes(PAGE)
        elif i % 7 == 5:
            out += bytes(PAGE - 1) + b"x"
        else:
            out += bytes((seed + i * 31 + k) & 255 for k in range(64)) * (PAGE // 64)
    return bytes(out)


def wait_for(what, test):
    """Polls for what nobody announces."""
    end = time.monotonic() + LIMIT_S
    while not test():
        assert time.monotonic() < end, f"waited too long until {what}"
        time.sleep(0.01)


def state_of(pid):
    with open(f"/proc/{pid}/stat", encoding="utf-8") as f:
        return f.read().rpartition(")")[2].split()[0]


def child_of(pid):
    found = []

    def has_child():
        with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as f:
            found[:] = f.read().split()
        return found

    wait_for("there is a child", has_child)
    return int(found[0])


def has_ended(pid):
    try:
        return state_of(pid) == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def need_root():
    if os.geteuid():
        raise Skip("not run as root")


def private_run():
    """A folder of control sockets that no other command of this machine is in."""
    if os.geteuid():
        return  # $XDG_RUNTIME_DIR is this test's own
    if libc.unshare(CLONE_NEWNS) or libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None):
        raise Skip("no mount namespace of its own: " + os.strerror(ctypes.get_errno()))
    assert not libc.mount(b"tmpfs", b"/run", b"tmpfs", 0, None)


def main(tests):
    Run.program = os.path.abspath(sys.argv[1])
    failed = skipped = 0
    os.environ.pop("XDG_RUNTIME_DIR", None)
    with tempfile.TemporaryDirectory(prefix="pageferry-") as folder:
        os.environ["XDG_RUNTIME_DIR"] = folder
        for test in tests:
            try:
                test(folder)
                print(f"ok {test.__name__}", flush=True)
            except Skip as e:
                skipped += 1
                print(f"SKIP: {test.__name__}: {e}", flush=True)
            except Exception:
                failed += 1
                traceback.print_exc()
                print(f"FAILED {test.__name__}", flush=True)
    if failed:
        return 1
    return 77 if skipped == len(tests) else 0
