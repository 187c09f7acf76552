#!/usr/bin/python3 -B
# SPDX-License-Identifier: Apache-2.0
"""Who else connects to a page server can't join, starve, slow down or stop the session of another.

    strangers.py PAGEFERRY PROTO
"""
import os
import socket
import subprocess
import sys
import threading
import time
import types

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "clients"))
import ferry_client  # noqa: E402
from cli_support import LIMIT_S, PAGE, Holder, Run, Serve, content, main, need_root, wait_for  # noqa: E402

N_PAGES = 1000
SLOW = "512K"  # a rate of the push at which there is time for strangers


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

    def __init__(self, folder, *args):
        self.data = content(N_PAGES, seed=9)
        self.path = os.path.join(folder, "memory")
        with open(self.path, "wb") as f:
            f.write(self.data)
        self.holder = Holder("anon", len(self.data))
        self.serve = Serve("--file", self.path, "--max-rate", SLOW, *args)
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


class Flood:
    """A session that asks for one page, again and again, as fast as answers come."""

    def __init__(self, args):
        self.session = ferry_client.Session(args).open()
        self.sock = self.session.urgent.sock
        self.sock.settimeout(None)
        message = ferry_client.pb.PageRequest(request_id=1, region=[0], first_page=[1], n_pages=[1])
        body = message.SerializeToString()
        header = ferry_client.HEADER.pack(b"PFRY", ferry_client.TYPES["PageRequest"], 0, len(body), 0, 0)
        self.request = (header + body) * 200
        self.n_bytes = 0
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
        try:
            while data := self.sock.recv(1 << 20):
                self.n_bytes += len(data)
        except OSError:
            pass

    def end(self):
        self.sock.shutdown(socket.SHUT_RDWR)
        for t in self.threads:
            t.join()
        self.session.close()


def a_flood_for_one_page_does_not_slow_others(folder):
    with Victim(folder) as v:
        floods = [Flood(v.args) for _ in range(3)]
        wait_for("the floods are answered", lambda: all(f.n_bytes > 100 * PAGE for f in floods))
        before, begin = sum(f.n_bytes for f in floods), time.monotonic()
        last = v.ends_well()
        answered, seconds = sum(f.n_bytes for f in floods) - before, time.monotonic() - begin
        for f in floods:
            f.end()
        assert answered > 0
        # Of the server's time each has its share: a page waits for a round of the others, not for all
        # that they have asked for. What a share is in milliseconds is the machine's business.
        faults = last["fault_us"]
        print(f"  {faults['n']} faults, p50 {faults['p50']} us, max {faults['max']} us, "
              f"during {answered // PAGE} answers to others in {seconds:.1f} s")
        assert faults["n"] > 100 and faults["p50"] < 100_000, faults


if __name__ == "__main__":
    ferry_client.load_proto(sys.argv.pop(2))
    sys.exit(
        main(
            [
                guessed_sessions_are_not_joined,
                silent_ones_are_dropped_and_keep_nobody_out,
                another_user_is_not_let_in_by_a_unix_socket,
                a_flood_for_one_page_does_not_slow_others,
            ]
        )
    )
