# SPDX-License-Identifier: Apache-2.0
"""A page server in Python that answers when it is told to, one page at a time, in the order in which pages were
asked for, and pushes nothing. Without ALIVE it is one that knows no pings there. Written from docs/protocol.md, as ferry_client.py, whose frames it uses."""
import collections
import socket
import threading
import time

import ferry_client as fc

ROLES = {fc.CONTROL, fc.URGENT, fc.BULK}


class HeldSource:
    def __init__(self, path, name="memory", features=0):
        with open(path, "rb") as f:
            self.data = f.read()
        self.name, self.features, self.n_pings = name, features, 0
        self.news = threading.Condition()
        self.waiting = collections.deque()  # (connection, request, page)
        self.asked = []  # pages, in order
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self.serve, args=(sock,), daemon=True).start()

    def serve(self, sock):
        c = fc.Connection.__new__(fc.Connection)
        c.sock, c.features = sock, self.features
        try:
            name, hello, _ = c.receive()
            assert name == "Hello" and hello.side == fc.TARGET and hello.role in ROLES, hello
            c.send("Welcome", version=1, features=self.features)
            if hello.role == fc.CONTROL:
                self.control(c)
            elif hello.role == fc.URGENT:
                self.urgent(c)
            else:
                while self.features & fc.ALIVE:  # it never ends
                    c.send("Ping", sent_ns=time.monotonic_ns())
                    time.sleep(2)
                c.receive()
        except fc.LinkLost:
            pass

    def control(self, c):
        n = len(self.data) // 4096
        c.send("Layout", regions=[fc.pb.Region(id=0, name=self.name, n_pages=n, page_bytes=4096)])
        while True:
            name, msg, _ = c.receive()
            if name == "Complete":
                c.send("Released")
            elif name not in ("LayoutOk", "PushStart"):
                c.handle_ping(name, msg, f"{name} on the control connection")

    def urgent(self, c):
        while True:
            name, r, _ = c.receive()
            if name == "Ping" and self.features & fc.ALIVE:
                self.n_pings += 1
                c.handle_ping(name, r, "")
                continue
            assert name == "PageRequest", name
            with self.news:
                for first, n in zip(r.first_page, r.n_pages):
                    for page in range(first, first + n):
                        self.waiting.append((c, r.request_id, page))
                        self.asked.append(page)
                self.news.notify_all()

    def wait(self, what, condition, seconds):
        """Until @condition() holds of ->waiting and ->asked."""
        with self.news:
            assert self.news.wait_for(condition, seconds), what

    def answer(self):
        """The page that was asked for first, of those that wait. Returns which it was."""
        with self.news:
            c, request, page = self.waiting.popleft()
        c.send("PageRun", self.data[page * 4096 : (page + 1) * 4096], region=0, first_page=page, n_pages=1,
               encoding=fc.RAW, request_id=request)
        return page

    def close(self):
        # An accept() that is begun again would be one of whoever has the descriptor's number by then.
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
