# SPDX-License-Identifier: Apache-2.0
"""What one measurement is made of: memory with known content, servers of it, and processes to fill."""
import ctypes
import json
import os
import signal
import subprocess
import threading
import time

MIB, GIB = 1 << 20, 1 << 30
LIMIT_S = 180  # how long one process may take
PR_SET_PDEATHSIG = 1
ATTACH_STOPPED = 3  # its exit status when it is ended before everything is there
libc = ctypes.CDLL(None, use_errno=True)


class Failed(Exception):
    """Something to tell in one line."""


def die_with_parent():
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def private_kib(pid):
    """Memory of a process that is its own: neither the guest's shared memory nor its files."""
    try:
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as f:
            return sum(int(line.split()[1]) for line in f if line.startswith("RssAnon:"))
    except (FileNotFoundError, ProcessLookupError):
        return 0


class Child:
    """A process that says JSON lines. It ends when the block or the benchmark does."""

    def __init__(self, *args):
        self.args = [str(a) for a in args]
        self.process = subprocess.Popen(self.args, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=subprocess.PIPE, text=True, preexec_fn=die_with_parent)
        self.errors, self.watcher = [], None
        self.reader = threading.Thread(target=lambda: self.errors.extend(self.process.stderr), daemon=True)
        self.reader.start()
        # What hangs is to fail and not to stay.
        self.limit = threading.Timer(LIMIT_S, self.process.kill)
        self.limit.daemon = True
        self.limit.start()
        self.pid = self.process.pid

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.limit.cancel()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.reader.join()
        for f in (self.process.stdin, self.process.stdout, self.process.stderr):
            f.close()

    def fail(self):
        self.process.wait()
        self.reader.join()
        last = self.errors[-1].strip() if self.errors else f"ended with {self.process.returncode}"
        raise Failed(f"{' '.join(self.args[:3])}: {last}")

    def event(self, **wanted):
        """The next JSON line with these members."""
        for line in self.process.stdout:
            o = json.loads(line)
            if all(o.get(k) == v for k, v in wanted.items()):
                return o
        return self.fail()

    def say(self, line):
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self.event()

    def terminate(self):
        self.process.send_signal(signal.SIGTERM)

    def finish(self, status=0):
        """The last JSON line, when the process has ended, which must be with this status."""
        lines = self.process.stdout.read().splitlines()
        if self.process.wait() != status or not lines:
            self.fail()
        return json.loads(lines[-1])


class Peak(threading.Thread):
    """The most private memory that a process has while the block runs, KiB."""

    def __init__(self, pid):
        super().__init__(daemon=True)
        self.pid, self.before, self.kib, self.over = pid, private_kib(pid), 0, threading.Event()

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.join()

    def run(self):
        while not self.over.wait(0.005):
            self.kib = max(self.kib, private_kib(self.pid))


class Parts:
    """Where the programs are, and what measurements share."""

    def __init__(self, build, quick):
        self.program = os.path.join(build, "tools", "pageferry")
        self.helper = os.path.join(build, "bench", "ferry-bench")
        self.quick = quick
        self.memory = {}

    def run(self, *args):
        """One run of our own program, to its end."""
        with Child(self.helper, *args) as c:
            return c.finish()

    def content(self, n_bytes, every=1):
        """The path of shared memory with content; kept until another is asked for, since it may be large."""
        if (n_bytes, every) not in self.memory:
            self.forget()
            fd = os.memfd_create("ferry-bench-source")
            path = f"/proc/{os.getpid()}/fd/{fd}"
            done = subprocess.run([self.helper, "content", "--file", path, "--bytes", str(n_bytes), "--every",
                                   str(every)], stderr=subprocess.PIPE, text=True)
            if done.returncode:
                os.close(fd)
                raise Failed(done.stderr.strip())
            self.memory[n_bytes, every] = fd
        return f"/proc/{os.getpid()}/fd/{self.memory[n_bytes, every]}"

    def forget(self):
        while self.memory:
            os.close(self.memory.popitem()[1])

    def serve(self, path, *more):
        c = Child(self.program, "serve", "--json", "--file", path, "--listen", "127.0.0.1:0", *more)
        c.address = self.address_of(c)
        return c

    def plain_serve(self, path):
        c = Child(self.helper, "plain-serve", "--file", path)
        c.address = self.address_of(c)
        return c

    def forward(self, to, delay_us):
        c = Child(self.helper, "forward", "--to", to, "--delay-us", delay_us)
        c.address = self.address_of(c)
        return c

    @staticmethod
    def address_of(child):
        try:
            return child.event(event="listening")["address"]
        except Failed:
            child.__exit__()
            raise

    def lazy(self, server, n_bytes, *more, every=1):
        return self.run("target", "--via", "lazy", "--from", server.address, "--bytes", n_bytes, "--every", every,
                        *more)

    def plain(self, server, n_bytes, *more):
        return self.run("target", "--via", "plain", "--from", server.address, "--bytes", n_bytes, *more)

    def attach(self, server, n_bytes, *more, every=1, push):
        """A process filled by 'pageferry attach'. @push: to the end; else only what its threads touch.

        Returns the summary of attach, with what the threads saw and the private memory of attach.
        """
        with Child(self.helper, "target", "--via", "outside", "--memory", "shared", "--bytes", n_bytes, "--every",
                   every, *more) as target:
            ready = target.event(event="ready")
            with Child(self.program, "attach", "--json", "--pid", ready["pid"], "--match", ready["match"], "--from",
                       server.address) as attach, Peak(attach.pid) as peak:
                attach.event(event="stage", stage="push")
                seen = target.say("go")
                if not push:
                    attach.terminate()
                result = attach.finish(0 if push else ATTACH_STOPPED)
            if push:
                target.say("check")
        return {**result, **seen, "private_kib": peak.kib}


def busy_share(seconds):
    """How much of the processors is in use, 0 to 1."""
    def look():
        with open("/proc/stat", encoding="ascii") as f:
            n = [int(x) for x in f.readline().split()[1:9]]
        return n[3] + n[4], sum(n)
    idle, total = look()
    time.sleep(seconds)
    idle_now, total_now = look()
    return 1 - (idle_now - idle) / max(total_now - total, 1)


def available_bytes():
    with open("/proc/meminfo", encoding="ascii") as f:
        return next(int(line.split()[1]) << 10 for line in f if line.startswith("MemAvailable:"))
