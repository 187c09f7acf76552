#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""A small target in Python: fetches pages from a page server and compares them with a file.

    ferry_client.py --proto PATH --from ADDR --compare FILE [--seed N] [SCENARIO...]

ADDR is HOST:PORT or unix:PATH. Without a scenario, all are run:
SCENARIOS
It was written from docs/protocol.md and shares no code with the C implementation. Exits with 0 when
every byte was right and every rule was kept; else it says what differs, and exits with 1.
"""
import argparse
import ctypes
import collections
import importlib
import os
import random
import select
import socket
import struct
import subprocess
import sys
import tempfile
import time

pb = None  # the module that protoc makes of pageferry.proto

TYPES = dict(
    Hello=1, Welcome=2, Error=3, Layout=10, LayoutOk=11, Resident=12, PushStart=13, Discarded=14,
    Complete=15, Released=16, Ping=17, Pong=18, PageRequest=20, PageRun=21, PushDone=22,
    DigestRequest=24, Digests=25)
NAMES = {number: name for name, number in TYPES.items()}
HEADER = struct.Struct("<4sBBHII")
MAX_MESSAGE, MAX_RUN, MAX_OTHER = 16384, 4 * 1024 * 1024, 65536
MAX_RUNS, MAX_RUN_PAGES = 512, 1024
RESIDENT_PAGES = MAX_OTHER * 8
SOURCE, TARGET = 1, 2
CONTROL, URGENT, BULK, SWITCHOVER = 1, 2, 3, 4
RAW, ZERO = 0, 1
CHECKSUMS = 2
DIGESTS = 8
ALIVE = 16
MAX_DIGESTS, MAX_DIGEST_PAGES = 256, 1024
SOURCE_TIMES = 1
PROTOCOL, VERSION, BUSY, SESSION = 1, 2, 3, 4
SILENCE_S = 10


class Mismatch(Exception):
    """The source broke a rule, or sent other bytes than the file has."""


class LinkLost(Exception):
    pass


class Refused(Exception):
    def __init__(self, error):
        super().__init__(f"the source says: {error.text} (code {error.code})")
        self.code = error.code


def check(condition, text):
    if not condition:
        raise Mismatch(text)


xxh3 = ctypes.CDLL("libxxhash.so.0").XXH3_64bits_withSeed
xxh3.restype = ctypes.c_uint64


class Connection:
    """One connection, framed. Blocking, with the protocol's time limits."""

    def __init__(self, addr):
        if addr.startswith("unix:"):
            self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self.sock.connect(addr[5:])
        else:
            host, _, port = addr.rpartition(":")
            self.sock = socket.create_connection((host.strip("[]"), int(port)), timeout=5)
        self.sock.settimeout(SILENCE_S)
        self.features = 0

    def close(self):
        self.sock.close()

    def fileno(self):
        return self.sock.fileno()

    def send_bytes(self, data):
        try:
            self.sock.sendall(data)
        except OSError as e:
            raise LinkLost(str(e)) from e

    def send(self, name, payload=b"", **fields):
        msg = getattr(pb, name)(**fields).SerializeToString()
        self.send_bytes(HEADER.pack(b"PFRY", TYPES[name], 0, len(msg), len(payload), 0) + msg + payload)

    def read(self, n):
        data = bytearray(n)
        at = 0
        while at < n:
            try:
                got = self.sock.recv_into(memoryview(data)[at:])
            except OSError as e:
                raise LinkLost(str(e)) from e
            if not got:
                raise LinkLost("closed by the source")
            at += got
        return bytes(data)

    def receive(self):
        """The next frame: name, message, payload. An Error raises Refused."""
        magic, type_, flags, msg_len, payload_len, reserved = HEADER.unpack(self.read(HEADER.size))
        check(magic == b"PFRY" and not flags and not reserved, "not a frame header")
        check(type_ in NAMES, f"unknown type {type_}")
        name = NAMES[type_]
        limit = MAX_RUN if name == "PageRun" else MAX_OTHER if name in ("Layout", "Resident") else (
            8 * MAX_DIGESTS if name == "Digests" else 0)
        check(msg_len <= MAX_MESSAGE, f"{name} of {msg_len} bytes")
        check(payload_len <= limit, f"{name} with a payload of {payload_len} bytes")
        msg = getattr(pb, name).FromString(self.read(msg_len))
        payload = self.read(payload_len)
        if name == "Error":
            raise Refused(msg)
        return name, msg, payload

    def expect(self, wanted):
        """Receives up to a frame of this name; pings are answered and pongs dropped on the way."""
        while True:
            name, msg, payload = self.receive()
            if name == wanted:
                return msg, payload
            self.handle_ping(name, msg, f"{name} instead of {wanted}")

    def handle_ping(self, name, msg, otherwise):
        if name == "Ping":
            now = time.monotonic_ns()
            self.send("Pong", ping_sent_ns=msg.sent_ns, received_ns=now, sent_ns=time.monotonic_ns())
        else:
            check(name == "Pong", otherwise)

    def is_alive(self, name):
        """A Ping of the source on a connection for pages, or a Pong: it says no more than that, and is not answered."""
        if name not in ("Ping", "Pong"):
            return False
        check(self.features & ALIVE, f"{name} on a page connection, which was not agreed")
        return True

    def hello(self, **fields):
        self.send("Hello", **fields)
        name, msg, _ = self.receive()
        check(name == "Welcome", f"{name} instead of Welcome")
        check(msg.version == 1, f"version {msg.version} was not offered")
        check(not msg.features & ~fields["features"], f"features {msg.features:#x} were not offered")
        self.features = msg.features


def check_sum(run, payload, agreed):
    """A run's checksum, where they were agreed on, is that of its payload and its place."""
    if not agreed:
        check(not run.HasField("checksum"), "a checksum that was not agreed")
        return
    check(run.HasField("checksum"), "a run without the checksum that was agreed")
    seed = run.first_page ^ run.n_pages << 32 ^ run.region << 58 ^ run.encoding << 56
    got = xxh3(payload, ctypes.c_size_t(len(payload)), ctypes.c_uint64(seed & (1 << 64) - 1))
    if got != run.checksum:
        raise Mismatch(f"pages {run.first_page}+{run.n_pages}: checksum {run.checksum:x}, not {got:x}")


class Memory:
    """What the target has so far of one region, against what the file has."""

    def __init__(self, path, region):
        self.page = region.page_bytes
        self.n_pages = region.n_pages
        with open(path, "rb") as f:
            self.file = f.read()
        check(len(self.file) == self.n_pages * self.page,
              f"the region has {self.n_pages} pages of {self.page} bytes, the file {len(self.file)} bytes")
        self.present = bytearray(self.n_pages)
        self.n_present = 0
        self.n_zero = 0

    def place(self, run, payload):
        """Checks every byte of a run. Returns how many of its pages were there already."""
        end = run.first_page + run.n_pages
        check(run.n_pages and end <= self.n_pages, f"pages {run.first_page}+{run.n_pages} don't exist")
        want = self.file[run.first_page * self.page:end * self.page]
        if run.encoding == ZERO:
            check(not payload, "zero pages with a payload")
            got = bytes(len(want))
            self.n_zero += run.n_pages
        else:
            check(run.encoding == RAW, f"encoding {run.encoding} was never agreed")
            got = payload
        check(len(got) == len(want), f"{len(got)} bytes for {run.n_pages} pages")
        if got != want:
            at = next(i for i in range(len(want)) if got[i] != want[i])
            raise Mismatch(f"page {run.first_page + at // self.page}: byte {at % self.page} is "
                           f"{got[at]:02x}, in the file it is {want[at]:02x}")
        known = self.present[run.first_page:end].count(1)
        self.present[run.first_page:end] = b"\1" * run.n_pages
        self.n_present += run.n_pages - known
        return known

    def missing(self):
        return [i for i in range(self.n_pages) if not self.present[i]]

    def bitmaps(self):
        """(first page, number of pages, bitmap) for Resident frames."""
        for first in range(0, self.n_pages, RESIDENT_PAGES):
            n = min(RESIDENT_PAGES, self.n_pages - first)
            bits = bytearray((n + 7) // 8)
            for i in range(n):
                bits[i // 8] |= self.present[first + i] << i % 8
            yield first, n, bytes(bits)


class Requests:
    """Requests that are outstanding: each of their pages is answered exactly once."""

    def __init__(self):
        self.next_id = 1
        self.open = {}  # id -> Counter of pages
        self.n_answers = 0
        self.out_of_order = 0

    def send(self, connection, runs):
        """@runs: (first page, number of pages) each."""
        pages = collections.Counter()
        for first, n in runs:
            pages.update(range(first, first + n))
        connection.send("PageRequest", request_id=self.next_id, region=[0] * len(runs),
                        first_page=[r[0] for r in runs], n_pages=[r[1] for r in runs])
        self.open[self.next_id] = pages
        self.next_id += 1

    def answer(self, run, times_agreed):
        check(run.request_id in self.open, f"an answer to request {run.request_id}, which is not open")
        check(run.region == 0, f"an answer with region {run.region}")
        if not times_agreed:
            check(not run.HasField("received_ns") and not run.HasField("answered_ns"),
                  "times that were not agreed")
        elif run.received_ns and run.answered_ns:
            check(run.received_ns <= run.answered_ns, "answered before it was received")
        if run.request_id != min(self.open):
            self.out_of_order += 1
        left = self.open[run.request_id]
        for page in range(run.first_page, run.first_page + run.n_pages):
            check(left[page] > 0, f"page {page} is no part of request {run.request_id}, or came twice")
            left[page] -= 1
            if not left[page]:
                del left[page]
        if not left:
            del self.open[run.request_id]
        self.n_answers += 1


class Session:
    """A target's session: all of its connections, over any number of epochs."""

    def __init__(self, args, n_bulk=1):
        self.args = args
        self.id = os.urandom(16)
        self.epoch = 0
        self.n_bulk = n_bulk
        self.requests = Requests()
        self.memory = None
        self.control = self.urgent = None
        self.bulk = []
        self.state = b""

    def dial(self, role, **changes):
        fields = dict(version_min=1, version_max=1, features=SOURCE_TIMES | CHECKSUMS | DIGESTS | ALIVE, session_id=self.id,
                      side=TARGET, role=role, index=0, software="ferry_client.py")
        if self.epoch:
            fields["epoch"] = self.epoch
        fields.update(changes)
        c = Connection(self.args.addr)
        try:
            c.hello(**fields)
        except Exception:
            c.close()
            raise
        return c

    def open(self):
        """Opens an epoch, up to LayoutOk and the Resident frames."""
        self.control = self.dial(CONTROL)
        layout, self.state = self.control.expect("Layout")
        check(len(layout.regions) == 1, f"{len(layout.regions)} regions, one file")
        region = layout.regions[0]
        check(region.id == 0 and region.name, "region 0 has another id or no name")
        if not self.memory:
            self.memory = Memory(self.args.compare, region)
        self.urgent = self.dial(URGENT)
        self.bulk = [self.dial(BULK, index=i) for i in range(self.n_bulk)]
        self.control.send("LayoutOk")
        if self.memory.n_present:
            for first, n, bits in self.memory.bitmaps():
                self.control.send("Resident", bits, region=0, first_page=first, n_pages=n)
        return self

    def close(self):
        for c in [self.control, self.urgent, *self.bulk]:
            if c:
                c.close()

    def resume(self):
        self.close()
        self.requests.open.clear()
        self.epoch += 1
        return self.open()

    def answer_pings(self):
        """Who reads its control connection too seldom is taken for lost."""
        while select.select([self.control], [], [], 0)[0]:
            name, msg, _ = self.control.receive()
            self.control.handle_ping(name, msg, f"{name} while pages are asked for")

    def fetch(self, batches, depth):
        """Requests each batch of runs, with @depth requests outstanding, until all are answered."""
        waiting = collections.deque(batches)
        while waiting or self.requests.open:
            while waiting and len(self.requests.open) < depth:
                self.requests.send(self.urgent, waiting.popleft())
            self.answer_pings()
            name, run, payload = self.urgent.receive()
            if self.urgent.is_alive(name):
                continue
            check(name == "PageRun", f"{name} on the urgent connection")
            self.requests.answer(run, self.urgent.features & SOURCE_TIMES)
            check_sum(run, payload, self.urgent.features & CHECKSUMS)
            self.memory.place(run, payload)

    def push(self, until=None, rate=0, ask=None):
        """
        Receives the push to its end (returns True), or until so many pages came by it (False).
        @ask: called after each run; may send requests, whose answers are received as well.
        """
        had = bytes(self.memory.present)
        self.control.send("PushStart", max_bytes_per_second=rate)
        running = set(self.bulk)
        pushed = 0
        while running or self.requests.open:
            ready, _, _ = select.select([self.control, self.urgent, *running], [], [], SILENCE_S)
            if not ready:
                raise LinkLost("nothing came for 10 s")
            for c in ready:
                name, msg, payload = c.receive()
                if c is self.control:
                    c.handle_ping(name, msg, f"{name} during the push")
                elif name == "PushDone" and c is not self.urgent:
                    running.remove(c)
                elif not c.is_alive(name):
                    check(name == "PageRun", f"{name} on a page connection")
                    pushed += self.take(c, msg, payload, had)
                if until is not None and pushed >= until:
                    return False
            if ask:
                ask()
        return True

    def take(self, c, run, payload, had):
        """A run of any connection. Returns how many pages were pushed."""
        check_sum(run, payload, c.features & CHECKSUMS)
        if c is self.urgent:
            self.requests.answer(run, c.features & SOURCE_TIMES)
            self.memory.place(run, payload)
            return 0
        check(run.request_id == 0, f"request {run.request_id} is answered on a bulk connection")
        check(not run.received_ns and not run.answered_ns, "a pushed run with times")
        known = had[run.first_page:run.first_page + run.n_pages].count(1)
        check(not known, f"pages {run.first_page}+{run.n_pages} are pushed, {known} of which were resident")
        self.memory.place(run, payload)
        return run.n_pages

    def complete(self):
        missing = self.memory.missing()
        check(not missing, f"{len(missing)} pages never came; the first is {missing[:1]}")
        self.control.send("Complete")
        self.control.expect("Released")
        self.close()


def refused(code, dial):
    """@dial must be refused with this error."""
    try:
        dial()
    except Refused as e:
        check(e.code == code, f"refused with {e.code} instead of {code}: {e}")
        return
    raise Mismatch(f"was not refused with error {code}")


# --- scenarios: the text behind each name is part of the help ------------------------------------


def single(args):
    """pages one by one, the first and the last among them"""
    s = Session(args).open()
    n = s.memory.n_pages
    pages = {0, n - 1} | {args.random.randrange(n) for _ in range(50)}
    s.fetch([[(p, 1)] for p in pages], depth=1)
    s.close()
    return f"{len(pages)} pages"


def batched(args):
    """as many runs in a request as are allowed, and runs as long as are allowed"""
    s = Session(args).open()
    n = s.memory.n_pages
    singles = [(p, 1) for p in args.random.sample(range(n), min(n, MAX_RUNS))]
    s.fetch([singles, [(0, min(n, MAX_RUN_PAGES))], [(n - 1, 1), (0, 1)]], depth=1)
    check(s.memory.n_present >= len(singles), "fewer pages than were asked for")
    s.close()
    return f"{s.memory.n_present} pages in {s.requests.n_answers} runs"


def pipelined(args):
    """many requests at a time, also for the same pages; answers in any order"""
    s = Session(args).open()
    n = s.memory.n_pages
    batches = []
    for _ in range(400):
        first = args.random.randrange(n)
        batches.append([(first, args.random.randint(1, min(32, n - first)))])
    s.fetch(batches + batches[:50], depth=128)
    s.close()
    return f"{len(batches) + 50} requests, {s.requests.out_of_order} runs out of order"


def early(args):
    """a request before LayoutOk is answered"""
    s = Session(args)
    s.control = s.dial(CONTROL)
    layout, _ = s.control.expect("Layout")
    s.memory = Memory(args.compare, layout.regions[0])
    s.urgent = s.dial(URGENT)
    s.fetch([[(0, 1)]], depth=1)
    s.close()
    return "answered"


def push(args):
    """everything by the push, over three bulk connections, to Released"""
    s = Session(args, n_bulk=3).open()
    s.push()
    s.complete()
    return f"{s.memory.n_pages} pages, {s.memory.n_zero} of them zero"


def mixed(args):
    """requests while the push runs, and after it has ended"""
    s = Session(args, n_bulk=2).open()
    n = s.memory.n_pages
    left = [200]

    def ask():
        if left[0] and len(s.requests.open) < 16:
            left[0] -= 1
            s.requests.send(s.urgent, [(args.random.randrange(n), 1)])

    s.push(ask=ask)
    s.fetch([[(0, 1)]], depth=1)
    s.complete()
    return f"{200 - left[0]} requests"


def discarded(args):
    """pages that were discarded are not waited for"""
    s = Session(args).open()
    n = (s.memory.n_pages + 1) // 2
    s.control.send("Discarded", region=0, first_page=0, n_pages=n)
    s.push()
    missing = s.memory.missing()
    check(all(p < n for p in missing), f"page {missing[-1:]} never came, and was not discarded")
    s.control.send("Complete")
    s.control.expect("Released")
    s.close()
    return f"{n - len(missing)} of {n} came nevertheless"


def resume(args):
    """the link is cut twice in the middle of the push, with requests outstanding"""
    s = Session(args, n_bulk=2).open()
    n = s.memory.n_pages
    size = n * s.memory.page
    if n < 32:
        s.close()
        return "too few pages to be cut in the middle"
    for _ in range(2):
        pages = args.random.sample(s.memory.missing(), 8)
        for p in pages:
            s.requests.send(s.urgent, [(p, 1)])
        check(not s.push(until=n // 8, rate=size), "the push ended before it could be cut")
        s.resume()
        s.fetch([[(p, 1)] for p in pages], depth=4)
    had = s.memory.n_present
    check(0 < had < n, f"{had} of {n} pages after two cuts")
    s.push()
    s.complete()
    return f"{had} of {n} pages when the last epoch began"


def takeover(args):
    """a higher epoch closes the connections of the one before, which was not lost"""
    s = Session(args).open()
    s.fetch([[(0, 1)]], depth=1)
    old = [s.control, s.urgent, *s.bulk]
    s.control = s.urgent = None
    s.bulk = []
    s.resume()
    for c in old:
        try:
            while True:
                c.receive()
        except (LinkLost, Refused):
            c.close()
    s.push()
    s.complete()
    return "the old ones were closed"


def digests(args):
    """of pages alone, of many together, and of all: those of the file; also while pages are requested"""
    s = Session(args).open()
    check(s.control.features & DIGESTS, "digests are not offered")
    n = s.memory.n_pages

    def of(page):
        data = s.memory.file[page * s.memory.page:(page + 1) * s.memory.page]
        return xxh3(data, ctypes.c_size_t(len(data)), ctypes.c_uint64(page)) if any(data) else 0

    for first, count, each in ((0, 1, 1), (n - 1, 1, 1024), (0, min(n, 256), 1), (n // 3, n - n // 3, 1024), (0, n, 17)):
        s.requests.send(s.urgent, [(first, 1)])
        s.control.send("DigestRequest", region=0, first_page=first, n_pages=count, pages_each=each)
        got, payload = s.control.expect("Digests")
        check((got.region, got.first_page, got.n_pages, got.pages_each) == (0, first, count, each),
              "digests of other pages")
        want = [sum(of(p) for p in range(i, min(i + each, first + count))) & (1 << 64) - 1
                for i in range(first, first + count, each)]
        check(list(struct.unpack(f"<{len(payload) // 8}Q", payload)) == want,
              f"the digests of {first}+{count}, {each} each, are not the file's")
    s.close()
    return f"of {n} pages"


def ping(args):
    """a ping is answered with its own time"""
    s = Session(args).open()
    s.control.send("Ping", sent_ns=12345)
    name, pong, _ = s.control.receive()
    check(name == "Pong" and pong.ping_sent_ns == 12345, f"{name} to a ping")
    check(0 < pong.received_ns <= pong.sent_ns, "the pong's times are not in order")
    s.requests.send(s.urgent, [(0, 1)])
    s.urgent.send("Ping", sent_ns=54321)
    name = None
    while name != "Pong":
        name, pong, _ = s.urgent.receive()
        check(name in ("Pong", "PageRun"), f"{name} on the urgent connection")
    check(pong.ping_sent_ns == 54321 and 0 < pong.received_ns <= pong.sent_ns, "not a pong to that ping")
    s.close()
    return "answered"


def idle(args):
    """a push that has nothing to send is heard of, where that was agreed"""
    s = Session(args).open()
    if s.memory.n_pages < 32:
        s.close()
        return "too few pages to wait for"
    s.control.send("PushStart", max_bytes_per_second=1)
    name = None
    while name != "Ping":
        name, _, _ = s.bulk[0].receive()
        check(name in ("Ping", "PageRun"), f"{name} on a bulk connection")
    s.close()
    return "pinged"


def refusals(args):
    """what must be refused is refused, with the right code"""
    s = Session(args)
    refused(SESSION, lambda: s.dial(URGENT))
    refused(SESSION, lambda: s.dial(BULK))
    refused(PROTOCOL, lambda: s.dial(CONTROL, side=SOURCE))
    refused(PROTOCOL, lambda: s.dial(CONTROL, session_id=b"short"))
    refused(PROTOCOL, lambda: s.dial(BULK, index=16))
    refused(VERSION, lambda: s.dial(CONTROL, version_min=2, version_max=9))
    s.open()
    refused(SESSION, lambda: s.dial(CONTROL))
    refused(SESSION, lambda: s.dial(URGENT))
    refused(SESSION, lambda: s.dial(URGENT, epoch=1))
    s.fetch([[(0, 1)]], depth=1)
    s.requests.send(s.urgent, [(s.memory.n_pages, 1)])
    refused(PROTOCOL, lambda: s.urgent.receive())
    s.resume()
    s.control.send("PageRequest", request_id=1000, region=[0], first_page=[0], n_pages=[1])
    refused(PROTOCOL, lambda: s.control.expect("nothing"))
    s.resume()
    s.urgent.send_bytes(b"GET / HTTP/1.0\r\n\r\n")
    refused(PROTOCOL, lambda: s.urgent.receive())
    # And after all that, it still serves.
    s.resume()
    s.push()
    s.complete()
    return "all of them"


def versions(args):
    """a client of later versions, with features nobody knows, is served as version 1"""
    s = Session(args)
    c = s.dial(CONTROL, version_max=7, features=(1 << 64) - 1)
    c.expect("Layout")
    c.close()
    return "version 1"


SCENARIOS = [single, batched, pipelined, early, push, mixed, discarded, resume, takeover, digests, ping, idle, refusals,
             versions]


def load_proto(path):
    global pb
    with tempfile.TemporaryDirectory(prefix="ferry-client-") as tmp:
        subprocess.run(["protoc", f"--proto_path={os.path.dirname(os.path.abspath(path))}",
                        f"--python_out={tmp}", os.path.basename(path)], check=True)
        sys.path.insert(0, tmp)
        pb = importlib.import_module("pageferry_pb2")
        sys.path.remove(tmp)


def main():
    texts = "".join(f"    {f.__name__:10} {f.__doc__}\n" for f in SCENARIOS)
    parser = argparse.ArgumentParser(description=__doc__.replace("SCENARIOS\n", texts),
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--proto", required=True, help="protocol/pageferry.proto")
    parser.add_argument("--from", required=True, dest="addr", metavar="ADDR")
    parser.add_argument("--compare", required=True, metavar="FILE", help="what the server serves")
    parser.add_argument("--seed", type=int, default=1, help="of the pages that are chosen (default: 1)")
    parser.add_argument("scenario", nargs="*", metavar="SCENARIO")
    args = parser.parse_args()
    by_name = {f.__name__: f for f in SCENARIOS}
    unknown = set(args.scenario) - set(by_name)
    if unknown:
        parser.error(f"no such scenario: {', '.join(sorted(unknown))}")
    load_proto(args.proto)
    failed = 0
    for name in args.scenario or by_name:
        args.random = random.Random(args.seed)
        try:
            print(f"{name}: {by_name[name](args)}", flush=True)
        except (Mismatch, LinkLost, Refused, OSError) as e:
            failed += 1
            print(f"{name}: FAILED: {type(e).__name__}: {e}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
