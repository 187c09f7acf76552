#!/usr/bin/python3 -B
# SPDX-License-Identifier: Apache-2.0
"""A source that is who it should be, taken over: it sends what was not asked for, to where there is nothing.

    hostile_source.py PAGEFERRY PROTO
"""
import os
import socket
import sys
import threading

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "clients"))
import ferry_client as fc  # noqa: E402
from cli_support import LIMIT_S, PAGE, Holder, Run, content, main  # noqa: E402
from held_source import HeldSource  # noqa: E402

N_PAGES = 64
BAD = {  # region, first page, pages, bytes
    "a region that there is not": (1, 0, 1, PAGE),
    "the page behind the last": (0, N_PAGES, 1, PAGE),
    "a run that goes beyond the end": (0, N_PAGES - 1, 2, 2 * PAGE),
    "a page far away": (0, 1 << 30, 1, PAGE),
    "zeros far away": (0, 1 << 30, 512, 0),
    "pages of another size": (0, 0, 1, 2 * PAGE),
}


class HostileSource(HeldSource):
    """Sends one run of its own choice on a connection of this role."""

    def __init__(self, path, role, bad):
        self.role, self.bad = role, bad
        self.begun = threading.Event()
        super().__init__(path)

    def send_bad(self, c):
        region, first, n_pages, n_bytes = self.bad
        c.send("PageRun", b"\xa5" * n_bytes, region=region, first_page=first, n_pages=n_pages,
               encoding=fc.RAW if n_bytes else fc.pb.ENCODING_ZERO, request_id=1 if self.role == fc.URGENT else 0)

    def control(self, c):
        c.send("Layout", regions=[fc.pb.Region(id=0, name=self.name, n_pages=N_PAGES, page_bytes=PAGE)])
        while True:
            name, msg, _ = c.receive()
            if name == "PushStart":
                self.begun.set()
            elif name != "LayoutOk":
                c.handle_ping(name, msg, f"{name} on the control connection")

    def serve(self, sock):
        c = fc.Connection.__new__(fc.Connection)
        c.sock, c.features = sock, 0
        try:
            _, hello, _ = c.receive()
            c.send("Welcome", version=1, features=0)
            if hello.role == fc.CONTROL:
                self.control(c)
            elif hello.role == self.role:
                self.begun.wait(LIMIT_S)
                if self.role == fc.URGENT:
                    c.receive()  # what a thread has touched
                self.send_bad(c)
            while True:
                c.receive()
        except (fc.LinkLost, fc.Refused, OSError):
            pass


def nothing_is_placed_outside_of_the_layout(folder):
    path = os.path.join(folder, "memory")
    with open(path, "wb") as f:
        f.write(content(N_PAGES))
    for role in (fc.BULK, fc.URGENT):
        for what, bad in BAD.items():
            source = HostileSource(path, role, bad)
            # What lies behind the memory that is filled is the process's own.
            with Holder("anon", 2 * N_PAGES * PAGE) as h:
                start = int(h.ranges[0].split("-")[0], 16)
                h.ask("write", N_PAGES * PAGE, 7)
                with Run("attach", "--json", "--pid", h.pid, "--match", f"{start:#x}-{start + N_PAGES * PAGE:#x}",
                         "--from", source.address) as a:
                    a.event("stage", stage="push")
                    if role == fc.URGENT:
                        h.send("byte", 5 * PAGE)
                    said = a.end(3)["error"]
                    assert "layout" in said, (what, said)
                assert not h.answers(0), what
                with open(f"/proc/{h.pid}/mem", "rb") as f:
                    f.seek(start + N_PAGES * PAGE)
                    assert f.read(N_PAGES * PAGE) == b"\7".ljust(N_PAGES * PAGE, b"\0"), what
            source.close()


class ForgetfulSource(HeldSource):
    """Does not know the session any more, once, on a connection of this role: its control connection was cut before."""

    def __init__(self, path, role):
        self.role, self.n_forgotten = role, 0
        self.begun = threading.Event()
        super().__init__(path)

    def forget(self, c):
        self.n_forgotten += 1
        c.send("Error", code=fc.SESSION, text="there is no such session here; open its control connection first")
        c.sock.shutdown(socket.SHUT_WR)
        while True:
            c.receive()

    def control(self, c):
        c.send("Layout", regions=[fc.pb.Region(id=0, name=self.name, n_pages=N_PAGES, page_bytes=PAGE)])
        while True:
            name, msg, _ = c.receive()
            if name == "PushStart":
                self.begun.set()
            elif name == "Ping":
                c.handle_ping(name, msg, "")

    def serve(self, sock):
        c = fc.Connection.__new__(fc.Connection)
        c.sock, c.features = sock, 0
        try:
            hello = c.receive()[1]
            c.send("Welcome", version=1, features=0)
            if hello.role == fc.CONTROL:
                self.control(c)
            elif hello.role == self.role and not self.n_forgotten:
                self.begun.wait(LIMIT_S)
                self.forget(c)
            elif hello.role == fc.URGENT:
                self.urgent(c)
            c.receive()
        except (fc.LinkLost, fc.Refused, OSError):
            pass


def a_session_that_the_source_has_forgotten_is_resumed(folder):
    """The next epoch has a control connection of its own: that one was lost is no reason to give up."""
    path, data = os.path.join(folder, "memory"), content(N_PAGES)
    with open(path, "wb") as f:
        f.write(data)
    for role in (fc.URGENT, fc.BULK):
        source = ForgetfulSource(path, role)
        with Holder("anon", N_PAGES * PAGE) as h:
            with Run("attach", "--json", "--pid", h.pid, "--match", h.ranges[0], "--from", source.address) as a:
                a.event("link-lost")
                h.send("byte", 5 * PAGE)
                source.wait("it is not asked", lambda s=source: s.waiting, LIMIT_S)
                assert source.answer() == 5
                assert int(h.answer()) == data[5 * PAGE]
                assert source.n_forgotten == 1
        source.close()


if __name__ == "__main__":
    fc.load_proto(sys.argv.pop(2))
    sys.exit(main([nothing_is_placed_outside_of_the_layout, a_session_that_the_source_has_forgotten_is_resumed]))
