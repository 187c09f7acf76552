# SPDX-License-Identifier: Apache-2.0
"""A forwarder between 'migrate' and 'receive' that knows where frames begin.

It holds a frame back, so that a stage of a switchover stands still for as long as a test wants, and
cuts the link at a frame or after a number of bytes. Each direction of each connection has a thread.
"""
import socket
import struct
import threading

HEADER = struct.Struct("<4sBBHII")
HELLO = 1
TYPES = {
    "Hello": 1, "Welcome": 2, "Error": 3, "Layout": 10, "LayoutOk": 11, "Resident": 12, "PushStart": 13,
    "Complete": 15, "Released": 16, "PageRequest": 20, "PageRun": 21, "PushDone": 22,
    "DigestRequest": 24, "Digests": 25, "Prepare": 30,
    "Prepared": 31, "Stopped": 32, "DeviceState": 33, "DeviceStateEnd": 34, "Loaded": 35, "Commit": 36,
    "Running": 37, "Abort": 38}
ROLES = {1: "control", 2: "urgent", 3: "bulk", 4: "switchover"}
ROLE_FIELD = 6
CHUNK = 1 << 20


def varint(data, at):
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, at


def role_of(hello):
    """The role in the protobuf message of a Hello."""
    at = 0
    while at < len(hello):
        tag, at = varint(hello, at)
        if tag & 7 == 1:
            at += 8
        elif tag & 7 == 2:
            length, at = varint(hello, at)
            at += length
        else:
            value, at = varint(hello, at)
            if tag >> 3 == ROLE_FIELD:
                return ROLES[value]
    raise ValueError("a Hello without a role")


class Gate:
    """A frame that waits."""

    def __init__(self, what):
        self.what = what
        self.is_reached, self.is_open = threading.Event(), threading.Event()
        self.forwards = True

    def wait(self, limit_s):
        assert self.is_reached.wait(limit_s), f"no {self.what} came within {limit_s} s"

    def open(self, forward=True):
        """Lets the frame go on, or drops it; what follows it goes on in any case."""
        self.forwards = forward
        self.is_open.set()

    def __call__(self):
        self.is_reached.set()
        self.is_open.wait()
        return self.forwards


class Link:
    """One connection: both its ends, and what it is for."""

    def __init__(self, dialer, acceptor):
        self.dialer, self.acceptor = dialer, acceptor
        self.role = None
        self.is_cut = False  # what was received before is dropped, and no rule is for it

    def cut(self):
        self.is_cut = True
        for s in (self.dialer, self.acceptor):
            try:
                s.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass


class Forwarder:
    def __init__(self, to):
        host, _, port = to.rpartition(":")
        self.to = (host, int(port))
        self.lock = threading.Lock()
        self.links, self.rules, self.gates = [], [], []
        self.cut_points = []  # bytes from the dialers, ascending
        self.bytes_from_dialers = 0
        self.n_cuts = self.n_turned_away = 0
        self.is_down = False
        self.n_to_damage = 0  # pushed runs
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = "127.0.0.1:%d" % self.listener.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    # --- what a test does ---

    def hold(self, name, role=None):
        """The next frame of this kind waits. Returns its gate."""
        gate = Gate(f"{name} of {role}" if role else name)
        with self.lock:
            self.gates.append(gate)
            self.rules.append((TYPES[name], role, gate))
        return gate

    def cut_at(self, name, role=None):
        """The next frame of this kind does not get through, and all connections end there."""
        def action():
            self.cut()
            return False

        with self.lock:
            self.rules.append((TYPES[name], role, action))

    def cut_after(self, *counts):
        """All connections end when so many bytes went through from the dialers, wherever in a frame."""
        with self.lock:
            self.cut_points = sorted(counts)

    def cut(self):
        with self.lock:
            links, self.links = self.links, []
            self.n_cuts += 1
            for link in links:
                link.is_cut = True
        for link in links:
            link.cut()

    def go_down(self):
        """All connections end, and new ones do so at once."""
        self.is_down = True
        self.cut()

    def come_up(self):
        self.is_down = False

    def close(self):
        """The link is gone for good: connections are refused."""
        try:
            self.listener.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # it was closed before
        self.listener.close()
        self.cut()
        for gate in self.gates:
            gate.open(forward=False)

    # --- the threads ---

    def accept(self):
        while True:
            try:
                dialer = self.listener.accept()[0]
            except OSError:
                return
            try:
                acceptor = None if self.is_down else socket.create_connection(self.to)
            except OSError:
                acceptor = None
            if not acceptor:
                dialer.close()
                self.n_turned_away += 1
                continue
            for s in (dialer, acceptor):
                s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            link = Link(dialer, acceptor)
            with self.lock:
                self.links.append(link)
            for ends in ((dialer, acceptor), (acceptor, dialer)):
                threading.Thread(target=self.pump, args=(link, *ends), daemon=True).start()

    def pump(self, link, source, sink):
        buffer = memoryview(bytearray(CHUNK))
        try:
            while self.forward_frame(link, source, sink, buffer):
                pass
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            link.cut()

    def forward_frame(self, link, source, sink, buffer):
        """False at the end of the stream."""
        if not read(source, buffer[:HEADER.size]):
            return False
        magic, kind, _, n_message, n_payload, _ = HEADER.unpack(buffer[:HEADER.size])
        assert magic == b"PFRY", "the forwarder has lost its place in the stream"
        assert n_message <= CHUNK - HEADER.size
        have = HEADER.size + n_message
        if not read(source, buffer[HEADER.size:have]):
            return False
        if kind == HELLO:
            link.role = role_of(bytes(buffer[HEADER.size:have]))
        forwards = self.apply_rules(kind, link)
        left = n_payload
        while True:
            if forwards:
                self.send(link, source, sink, buffer[:have])
            if not left:
                return True
            have = min(left, CHUNK)
            left -= have
            if not read(source, buffer[:have]):
                return False
            if self.n_to_damage and kind == TYPES["PageRun"] and link.role == "bulk":
                self.n_to_damage -= 1
                buffer[have // 2] ^= 4

    def apply_rules(self, kind, link):
        with self.lock:
            if link.is_cut:
                return False
            found = [r for r in self.rules if r[0] == kind and r[1] in (None, link.role)][:1]
            for rule in found:
                self.rules.remove(rule)
        return all(action() for _, _, action in found)

    def send(self, link, source, sink, data):
        """Up to the next point where the link is to be cut, or all of it."""
        room = None
        if source is link.dialer:
            with self.lock:
                if self.cut_points and self.bytes_from_dialers + len(data) >= self.cut_points[0]:
                    room = self.cut_points.pop(0) - self.bytes_from_dialers
                self.bytes_from_dialers += len(data) if room is None else room
        sink.sendall(data[:room])
        if room is not None:
            self.cut()


def read(source, into):
    """Fills a buffer. False when the stream ends before."""
    while into:
        n = source.recv_into(into)
        if not n:
            return False
        into = into[n:]
    return True
