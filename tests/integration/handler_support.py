# SPDX-License-Identifier: Apache-2.0
"""What the tests of 'pageferry handler' share: the handler, VMMs, and snapshots."""
import json
import os
import random
import select
import signal
import sys
import traceback

from cli_support import LIMIT_S, Run, content, wait_for

sys.path.append(os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "clients"))
import vmm_stand_in  # noqa: E402

MIB = 1 << 20


def snapshot(folder, n_bytes, seed=1, name="snapshot.mem"):
    """A memory file with data, pages of zeros and a hole."""
    path = os.path.join(folder, name)
    part = content(256, seed)
    rnd = random.Random(seed)
    with open(path, "wb") as f:
        for at in range(0, n_bytes, len(part)):
            f.seek(at)
            if rnd.random() < 0.8:
                f.write(at.to_bytes(8, "little") + part[8:])
        f.truncate(n_bytes)
    return path


class Handler(Run):
    """pageferry handler --json, once it listens."""

    def __init__(self, folder, *args, name="vmm.sock", listens=True):
        self.socket = os.path.join(folder, name)
        self.control = self.socket + ".control"
        super().__init__("handler", "--json", "--socket", self.socket, "--control", self.control, *args)
        if listens:
            assert self.event("listening")["address"] == "unix:" + self.socket

    def events(self, *names):
        """Reads JSON lines up to where all of these events have come, in whatever order. Returns them by name."""
        missing, out = list(names), {}
        while missing:
            line = self.read_line()
            assert line, f"ended without {missing}: {self.rest()}"
            o = json.loads(line)
            if o["event"] in missing:
                missing.remove(o["event"])
                out.setdefault(o["event"], []).append(o)
        return out

    def status(self):
        """What it says of itself. While a worker is replaced nobody answers, and on a busy machine not in time."""
        answers = []

        def is_told():
            with Run("status", "--json", "--control", self.control) as s:
                answers[:] = [json.loads(s.rest()[1].splitlines()[0])]
            return answers[0]["event"] == "running"

        wait_for("it says how it is", is_told)
        return answers[0]

    def kill_worker(self, n_discarded):
        """Kills it once it has noted that so many pages were discarded in its time. Between reading that and
        noting it there are microseconds in which a kill would have it forgotten."""
        wait_for("discards are noted", lambda: self.status()["pages_discarded"] >= n_discarded)
        os.kill(self.worker(), signal.SIGKILL)
        return self.event("restarted")

    def worker(self):
        pid = self.status()["pid"]
        assert pid != self.pid
        return pid


class HandedOver(Run):
    """pageferry handler --json, on a socket that listens already, as systemd's do."""

    def __init__(self, listener, path, *args):
        def hand_over():
            os.dup2(listener.fileno(), 3)
            os.set_inheritable(3, True)
            os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1")

        self.socket = path
        super().__init__("handler", "--json", "--socket", path, *args, close_fds=False, before=hand_over)


class Vmm:
    """A VMM in a process of its own: forked, as it takes half a second to start Python."""

    def __init__(self, handler, path, *sizes, **options):
        words = [f"{k}={v}" for k, v in options.items()]
        from_us, to_vmm = os.pipe()
        from_vmm, to_us = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            os.dup2(from_us, 0)
            os.dup2(to_us, 1)
            sys.stdin, sys.stdout = os.fdopen(0), os.fdopen(1, "w")
            try:
                vmm_stand_in.run([getattr(handler, "socket", handler), path, ",".join(map(str, sizes)), *words])
            except BaseException:  # must not go on in the test's place
                traceback.print_exc()
            os._exit(1)
        os.close(from_us)
        os.close(to_us)
        self.to, self.answers = to_vmm, os.fdopen(from_vmm)
        self.first_ms = None  # see vmm_stand_in's first=1

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill()
        os.waitpid(self.pid, 0)
        os.close(self.to)
        self.answers.close()

    def kill(self):
        os.kill(self.pid, signal.SIGKILL)

    def connected(self):
        said = self.answer()
        assert said["connected"] == self.pid
        self.first_ms = said["first_ms"]
        return self

    def send(self, *words):
        os.write(self.to, (" ".join(map(str, words)) + "\n").encode())

    def is_silent(self, seconds):
        return not select.select([self.answers], [], [], seconds)[0]

    def answer(self):
        assert not self.is_silent(LIMIT_S), f"the VM {self.pid} hangs"
        line = self.answers.readline()
        assert line, f"the VMM {self.pid} has ended"
        return json.loads(line)

    def ask(self, *words):
        self.send(*words)
        return self.answer()

    def good(self, *words):
        said = self.ask(*words)
        assert said["bad"] == 0, said
        return said
