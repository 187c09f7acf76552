# SPDX-License-Identifier: Apache-2.0
"""A micro-VM's processes, driven by lines, and a forwarder between them that can be cut."""
import contextlib
import ctypes
import glob
import random
import select
import signal
import socket
import subprocess
import threading
import time

ANSWER_S = 150
ANSWER_MIB_S = 0.31  # both a little more than the micro-VM itself waits
PIECE = 65536
PORTS = (20000, 32768)  # below what Linux gives to connections
PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None)


def die_with_parent():
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class Failed(Exception):
    pass


def has_cpu(program, cpu):
    """Can the micro-VM be had with that? If not, says why as a test that is skipped does."""
    probe = subprocess.run([program, "--cpu", cpu, "--require-cpu", "--memory", "16M", "--moves", "0"], check=False,
                           stdout=subprocess.PIPE, text=True)
    if probe.returncode == 77:
        print(probe.stdout, end="", flush=True)
    return probe.returncode != 77


def bytes_of(text):
    return int(text[:-1]) << (30 if text[-1] == "G" else 20)


class Monitor:
    """One process's end: see guest-test-vm/microvm/monitor.h for its lines."""

    def __init__(self, *command):
        self.child = subprocess.Popen(
            [*command, "--monitor"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            bufsize=0, preexec_fn=die_with_parent)
        self.rest = b""
        memory = command[command.index("--memory") + 1] if "--memory" in command else "64M"
        self.patience = ANSWER_S + ANSWER_MIB_S * (bytes_of(memory) >> 20)

    def send(self, line):
        self.child.stdin.write(line.encode() + b"\n")

    def answer(self):
        """The words behind "ok", those with "=" as a dictionary. Nothing in time is a failure."""
        while b"\n" not in self.rest:
            if not select.select([self.child.stdout], [], [], self.patience)[0]:
                raise Failed("no answer in time")
            data = self.child.stdout.read(PIECE)
            if not data:
                raise Failed(f"the process has ended: {self.child.wait()}")
            self.rest += data
        line, self.rest = self.rest.split(b"\n", 1)
        text = line.decode()
        if not text.startswith("ok"):
            raise Failed(text)
        return dict(w.split("=", 1) for w in text.split() if "=" in w)

    def tell(self, line):
        self.send(line)
        return self.answer()

    def is_silent(self, seconds):
        """Does no answer come for so long?"""
        return b"\n" not in self.rest and not select.select([self.child.stdout], [], [], seconds)[0]

    def await_blocked(self, n_vcpus, where):
        """Until every vCPU stands still for a page that is not there. @where: in which function of the kernel"""
        limit = time.monotonic() + self.patience
        while sorted(self.vcpus_in(where)) != [f"vcpu{i}" for i in range(n_vcpus)]:
            if time.monotonic() > limit:
                raise Failed("its vCPUs don't wait for pages")
            time.sleep(0.01)

    def vcpus_in(self, function):
        for task in glob.glob(f"/proc/{self.child.pid}/task/*"):
            # One that is no vCPU may have ended.
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                with open(task + "/comm", encoding="ascii") as name, open(task + "/wchan", encoding="ascii") as where:
                    if where.read() == function:
                        yield name.read().strip()

    def end(self):
        self.send("quit")
        self.child.stdin.close()
        return self.child.wait(self.patience)

    def kill(self):
        self.child.kill()
        self.child.wait()


class Forwarder:
    """Forwards TCP connections to a port, until so many bytes have come back from there."""

    def __init__(self, port, cut_after):
        self.port = port
        self.left = cut_after
        self.was_cut = threading.Event()
        self.lock = threading.Lock()
        self.pairs = []
        self.here = None
        self.n_opened = 0
        self.open(None)

    def listen(self):
        """
        On the port of before, which is ours until accept() has returned. It is none that the kernel gives to
        connections: then it might be taken meanwhile.
        """
        end = time.monotonic() + ANSWER_S
        while True:
            try:
                return socket.create_server(("127.0.0.1", self.here or random.randrange(*PORTS)))
            except OSError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.01)

    def open(self, cut_after):
        listener = self.listen()
        with self.lock:
            self.left = self.left if cut_after is None else cut_after
            self.listener = listener
            self.here = listener.getsockname()[1]
            self.was_cut.clear()
            n = self.n_opened = self.n_opened + 1
        threading.Thread(target=self.accept, args=(listener, n), daemon=True).start()

    def accept(self, listener, n):
        while True:
            try:
                a, _ = listener.accept()
            except OSError:
                return
            b = socket.create_connection(("127.0.0.1", self.port))
            with self.lock:
                is_late = n != self.n_opened or self.was_cut.is_set()
                if not is_late:
                    self.pairs += [a, b]
            if is_late:
                a.close()
                b.close()
                return
            for x, y, counts in ((a, b, False), (b, a, True)):
                threading.Thread(target=self.pump, args=(x, y, counts, n), daemon=True).start()

    def pump(self, a, b, counts, n):
        try:
            while data := a.recv(PIECE):
                b.sendall(data)
                if counts:
                    with self.lock:
                        self.left -= len(data) if n == self.n_opened else 0
                        over = self.left <= 0
                    if over:
                        self.cut(n)
        except OSError:
            pass
        for s in (a, b):
            try:
                s.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def cut(self, n=None):
        """Break all connections, and take no new ones until open(). @n: only those since it was opened so often."""
        with self.lock:
            if self.was_cut.is_set() or n not in (None, self.n_opened):
                return
            ends, self.pairs = [self.listener, *self.pairs], []
            self.was_cut.set()
        # A listener is woken from accept() by shutdown() only.
        for s in ends:
            try:
                s.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            s.close()
