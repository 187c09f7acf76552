# SPDX-License-Identifier: Apache-2.0
"""Stands between two commands, sees bytes, and knows nothing of what they mean."""
import socket
import threading


class Forwarder:
    """Between the two: sees what passes, and cuts it."""

    def __init__(self, address):
        host, port = address.rsplit(":", 1)
        self.to = (host, int(port))
        self.seen, self.pairs, self.cut_after = [], [], None
        self.n_cut = 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = "127.0.0.1:%d" % self.listener.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for pair in self.pairs:
            self.end(pair)

    @staticmethod
    def end(pair):
        """Orderly for TCP: nobody but TLS can know that more was to come."""
        for s in pair:
            try:
                s.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def accept(self):
        while True:
            try:
                a, _ = self.listener.accept()
                b = socket.create_connection(self.to)
            except OSError:
                return
            self.pairs.append((a, b))
            for x, y in ((a, b), (b, a)):
                threading.Thread(target=self.pump, args=(x, y, (a, b)), daemon=True).start()

    def pump(self, x, y, pair):
        n = 0
        try:
            while data := x.recv(65536):
                n += len(data)
                if self.cut_after is not None and n > self.cut_after:
                    self.n_cut += 1
                    self.cut_after = None
                    y.sendall(data[: len(data) // 2])
                    # The sender learns of it from the receiver, who is to be the first to see it.
                    y.shutdown(socket.SHUT_WR)
                    return
                self.seen.append(data)
                y.sendall(data)
        except OSError:
            pass
        self.end(pair)
