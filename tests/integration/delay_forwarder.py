# SPDX-License-Identifier: Apache-2.0
"""A TCP forwarder that adds a known delay in each direction, and can break all connections at once."""
import socket
import threading
import time


class Forwarder:
    """there_s: of what goes to @to; back_s: of what comes back. Seconds; what is lost is only time."""

    def __init__(self, to, there_s=0.0, back_s=0.0):
        host, _, port = to.rpartition(":")
        self.to = (host.strip("[]"), int(port))
        self.there_s, self.back_s = there_s, back_s
        self.lock = threading.Lock()
        self.socks = []
        self.hold = threading.Event()  # set: nothing is passed on
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self.accept, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.listener.shutdown(socket.SHUT_RDWR)  # else its thread stays in accept()
        self.listener.close()
        self.cut()

    def accept(self):
        while True:
            try:
                near, _ = self.listener.accept()
                far = socket.create_connection(self.to)
            except OSError:
                return
            for s in (near, far):
                s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self.lock:
                self.socks += [near, far]
            self.pump(near, far, self.there_s)
            self.pump(far, near, self.back_s)

    def pump(self, a, b, delay_s):
        """One thread takes and stamps, the other passes on when its time has come."""
        queue, ready = [], threading.Condition()

        def take():
            data = b"x"
            while data:
                try:
                    data = a.recv(65536)
                except OSError:
                    data = b""
                with ready:
                    queue.append((time.monotonic() + delay_s, data))
                    ready.notify()

        def give():
            while True:
                with ready:
                    ready.wait_for(lambda: queue)
                    at, data = queue.pop(0)
                time.sleep(max(0.0, at - time.monotonic()))
                if self.hold.is_set():
                    return
                try:
                    if not data:
                        b.shutdown(socket.SHUT_WR)
                        return
                    b.sendall(data)
                except OSError:
                    return

        for f in (take, give):
            threading.Thread(target=f, daemon=True).start()

    def cut(self):
        """Breaks every connection that there is."""
        with self.lock:
            socks, self.socks = self.socks, []
        for s in socks:
            try:
                s.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            s.close()
