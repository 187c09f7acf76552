#!/usr/bin/python3 -B
# SPDX-License-Identifier: Apache-2.0
"""Who else connects to a page server can't join, starve, slow down, push out or stop the session of another.

    strangers.py PAGEFERRY PROTO
"""
import bisect
import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import types

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "clients"))
import ferry_client  # noqa: E402
from cli_support import LIMIT_S, PAGE, Holder, Run, Serve, content, main, need_root, wait_for  # noqa: E402

N_PAGES = 1000
N_FLOODS = 3
TURN = 64  # the answers that a connection gets at most before it is another's turn
SLOW = "64K"  # a rate of the push at which there is time for strangers


def connect(address):
    host, port = address.rsplit(":", 1)
    return socket.create_connection((host, int(port)), timeout=LIMIT_S)


def ended(s):
    """Whether the other side has closed by now; drops what comes before."""
    s.setblocking(False)
    try:
        while s.recv(65536):
            pass
        return True
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


class Victim:
    """A page server, and an attach to it that is to end well, whatever happens in between."""

    def __init__(self, folder, *args, rate=SLOW):
        self.data = content(N_PAGES, seed=9)
        self.path = os.path.join(folder, "memory")
        with open(self.path, "wb") as f:
            f.write(self.data)
        self.holder = Holder("anon", len(self.data))
        self.serve = Serve("--file", self.path, "--max-rate", rate, *args)
        self.args = types.SimpleNamespace(addr=self.serve.address, compare=self.path)
        self.attach = None

    def __enter__(self):
        self.attach = Run("attach", "--json", "--pid", self.holder.pid, "--match", self.holder.ranges[0],
                          "--from", self.serve.address)
        self.attach.event("stage", stage="push")
        return self

    def __exit__(self, *_):
        for r in (self.attach, self.serve, self.holder):
            r.__exit__()

    def touches(self, pages):
        for page in pages:
            assert int(self.holder.ask("byte", page * PAGE + 5)) == self.data[page * PAGE + 5], page

    def ends_well(self):
        self.touches(range(N_PAGES))  # sooner than the push would
        last = self.attach.end(0)
        assert last["resumes"] == 0, last
        return last


def guessed_sessions_are_not_joined(folder):
    with Victim(folder) as v:
        for epoch in (0, 1, 1 << 31):
            for role in (ferry_client.URGENT, ferry_client.BULK):
                stranger = ferry_client.Session(v.args)
                stranger.epoch = epoch
                ferry_client.refused(ferry_client.SESSION, lambda: stranger.dial(role))
        # What strangers may have is a session of their own, whose end is nobody else's.
        own = ferry_client.Session(v.args).open()
        own.fetch([[(0, 1)]], depth=1)
        own.urgent.send_bytes(b"and now for something else")
        v.touches(range(0, N_PAGES, 50))
        own.close()
        v.ends_well()


def taken_by_a_stranger(args):
    """A session of a stranger's that has taken the layout, or None where there is no place for one, and why."""
    try:
        return ferry_client.Session(args).open(), None
    except ferry_client.Refused as e:
        assert e.code == ferry_client.BUSY, e
        return None, str(e)


def a_lost_session_keeps_its_place(folder):
    """Its guest waits; nobody else gets its place, and who goes on with it does."""
    with Victim(folder, "--max-sessions", "3") as v:
        v.attach.event("progress")
        v.attach.child.kill()
        v.attach.rest()
        v.serve.event("link-lost")
        v.holder.send("byte", (N_PAGES - 1) * PAGE + 5)
        taken = [taken_by_a_stranger(v.args) for _ in range(5)]
        assert [s is None for s, _ in taken] == [False, False, True, True, True], taken
        assert "(3), of which 1 lost" in taken[-1][1] and "--max-sessions" in taken[-1][1], taken
        assert not v.holder.answers(0), "a missing page was read without its content"
        v.attach.__exit__()
        v.attach = Run("attach", "--json", "--pid", v.holder.pid, "--recover")
        assert int(v.holder.answer()) == v.data[(N_PAGES - 1) * PAGE + 5]
        v.ends_well()
        # A target that has everything leaves its place.
        wait_for("there is a place", lambda: taken_by_a_stranger(v.args)[0])


def who_comes_back_too_late_waits_for_a_place(folder):
    """A page server that was started again knows nobody: a stranger has the only place."""
    with Victim(folder, "--max-sessions", "1") as v:
        v.attach.event("progress")
        os.kill(v.attach.pid, signal.SIGSTOP)
        v.serve.child.kill()
        v.serve.rest()
        v.serve.__exit__()
        v.serve = Serve("--file", v.path, "--max-sessions", "1", listen=v.serve.address)
        stranger = ferry_client.Session(v.args).dial(ferry_client.CONTROL)
        os.kill(v.attach.pid, signal.SIGCONT)
        wait_for("it was refused", lambda: b"as many sessions as it takes" in os.read(v.attach.child.stderr.fileno(), 65536))
        stranger.close()
        v.touches(range(N_PAGES))
        assert v.attach.end(0)["resumes"] == 1


def who_takes_no_layout_has_no_place(folder):
    """Lost, it goes at once; else after some seconds. A target that is there stays."""
    with Victim(folder, "--max-sessions", "2", rate="4K") as v:  # which is there all the time
        ferry_client.Session(v.args).dial(ferry_client.CONTROL).close()
        v.serve.event("link-lost")
        silent = ferry_client.Session(v.args).dial(ferry_client.CONTROL)

        def there_is_a_place():
            with contextlib.suppress(ferry_client.LinkLost):
                silent.send("Ping", sent_ns=1)  # else it would be lost
            return taken_by_a_stranger(v.args)[0]

        wait_for("the silent one is given up", there_is_a_place)
        wait_for("its connection ends", lambda: ended(silent.sock))
        v.ends_well()


def a_process_that_ends_leaves_its_place(folder):
    with Victim(folder, "--max-sessions", "1") as v:
        v.attach.event("progress")
        assert taken_by_a_stranger(v.args)[0] is None
        v.holder.child.kill()
        assert v.attach.end(4)["consequence"] == "lost"
        assert "has ended" in v.serve.event("session-failed")["error"]
        assert taken_by_a_stranger(v.args)[0]


def silent_ones_are_dropped_and_keep_nobody_out(folder):
    """Also those that say a byte now and then."""
    with Victim(folder) as v:
        silent = [connect(v.serve.address) for _ in range(300)]
        stop = threading.Event()

        def drip():
            while not stop.wait(0.05):
                for s in silent[::10]:
                    try:
                        s.send(b"P")
                    except OSError:
                        pass

        thread = threading.Thread(target=drip)
        thread.start()
        own = ferry_client.Session(v.args).open()  # one more target gets in
        own.fetch([[(0, 1)]], depth=1)
        own.close()
        wait_for("all silent ones are dropped", lambda: all(ended(s) for s in silent))
        stop.set()
        thread.join()
        for s in silent:
            s.close()
        v.ends_well()


def another_user_is_not_let_in_by_a_unix_socket(folder):
    """Neither by its mode, nor when somebody has changed that."""
    need_root()
    path = os.path.join(folder, "pages.sock")
    os.chmod(folder, 0o755)
    code = ("import os, socket, sys; os.setuid(65534); s = socket.socket(socket.AF_UNIX)\n"
            "try: s.connect(sys.argv[1]); s.settimeout(60); print('end' if not s.recv(1) else 'answer')\n"
            "except PermissionError: print('refused')")
    memory = os.path.join(folder, "page")
    with open(memory, "wb") as f:
        f.write(bytes(PAGE))
    with Serve("--file", memory, listen="unix:" + path) as s:
        assert os.stat(path).st_mode & 0o777 == 0o600
        ask = [sys.executable, "-c", code, path]
        assert subprocess.run(ask, stdout=subprocess.PIPE, check=True).stdout == b"refused\n"
        os.chmod(path, 0o666)
        assert subprocess.run(ask, stdout=subprocess.PIPE, check=True).stdout == b"end\n"
        assert "it belongs to user 65534" in s.stop()[2]


class Flooder(ferry_client.Session):
    """A stranger's session, whose answers all have the same form."""

    def dial(self, role, **changes):
        return super().dial(role, features=ferry_client.SOURCE_TIMES, **changes)


class Flood:
    """A session that asks for one page, again and again, as fast as answers come; it notes when each was given."""

    def __init__(self, args):
        self.session = Flooder(args).open()
        self.sock = self.session.urgent.sock
        self.sock.settimeout(None)
        n = ferry_client.MAX_RUNS  # of that page, with one request: more than there is time to answer
        message = ferry_client.pb.PageRequest(request_id=1, region=[0] * n, first_page=[1] * n, n_pages=[1] * n)
        body = message.SerializeToString()
        header = ferry_client.HEADER.pack(b"PFRY", ferry_client.TYPES["PageRequest"], 0, len(body), 0, 0)
        self.request = (header + body) * 20
        self.answered_ns = []
        self.threads = [threading.Thread(target=f, daemon=True) for f in (self.ask, self.take)]
        for t in self.threads:
            t.start()

    def ask(self):
        try:
            while True:
                self.sock.sendall(self.request)
        except OSError:
            pass

    def take(self):
        taken, size, at = bytearray(), 0, 0
        try:
            while data := self.sock.recv(1 << 20):
                taken += data
                if not size:
                    size, at = self.form(taken)
                end = len(taken) - len(taken) % size if size else 0
                for frame in range(0, end, size):
                    assert taken[frame:frame + 4] == b"PFRY"
                    self.answered_ns += struct.unpack_from("<Q", taken, frame + at)
                del taken[:end]
        except OSError:
            pass

    @staticmethod
    def form(taken):
        """Bytes of an answer, and where in it its time is."""
        if len(taken) < 256:
            return 0, 0
        n, payload = struct.unpack_from("<6xHI", taken)
        run = ferry_client.pb.PageRun.FromString(bytes(taken[16:16 + n]))
        return 16 + n + payload, taken.index(struct.pack("<Q", run.answered_ns))

    def end(self):
        self.sock.shutdown(socket.SHUT_RDWR)
        for t in self.threads:
            t.join()
        self.session.close()


def waited_for(session, page, floods):
    """Asks for a page. Returns from when until when it was waited for, by the source's clock, which is ours."""
    for s in (session, *(f.session for f in floods)):
        s.control.send("Ping", sent_ns=1)  # who is silent is lost
    session.requests.send(session.urgent, [(page, 1)])
    sent_ns = time.monotonic_ns()
    name = "Ping"
    while name != "PageRun":
        name, run, _ = session.urgent.receive()
    return sent_ns, run.answered_ns


def a_flood_for_one_page_does_not_slow_others(folder):
    """Counted: how many of the flood's answers are given while another's page is waited for."""
    with Victim(folder) as v:
        floods = [Flood(v.args) for _ in range(N_FLOODS)]
        wait_for("the floods are answered", lambda: all(len(f.answered_ns) > 1000 for f in floods))
        other = ferry_client.Session(v.args).open()
        waits = [waited_for(other, page, floods) for page in range(200)]
        v.ends_well()
        for f in floods:
            f.end()
        other.close()
        given = sorted(ns for f in floods for ns in f.answered_ns)
        ahead = sorted(bisect.bisect(given, end) - bisect.bisect(given, begin) for begin, end in waits)
        print(f"  of {len(given)} answers to the flood, ahead of another's page: median {ahead[100]}, most {ahead[-1]}")
        # A page waits for a turn of each of the others, not for all that they have asked for.
        assert 0 < ahead[-1] and ahead[100] <= N_FLOODS * TURN, ahead


if __name__ == "__main__":
    ferry_client.load_proto(sys.argv.pop(2))
    sys.exit(
        main(
            [
                guessed_sessions_are_not_joined,
                a_lost_session_keeps_its_place,
                who_comes_back_too_late_waits_for_a_place,
                who_takes_no_layout_has_no_place,
                a_process_that_ends_leaves_its_place,
                silent_ones_are_dropped_and_keep_nobody_out,
                another_user_is_not_let_in_by_a_unix_socket,
                a_flood_for_one_page_does_not_slow_others,
            ]
        )
    )
