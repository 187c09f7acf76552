#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Firecracker's side of mem_backend "Uffd", by system calls alone: maps guest memory, makes a userfaultfd with only
MISSING and EVENT_REMOVE, registers, connects, sends the one message, and then runs a "guest" told by lines on standard
input. One line is answered by one. It checks all it reads against the snapshot file, and what it has written since.

    vmm_stand_in.py SOCKET SNAPSHOT SIZE[,SIZE...] [key=value ...]

page=2097152        guest memory in huge pages
old=1               only the older key page_size_kib, as before Firecracker 1.12
keys=many           unknown keys, and another order
fds=3               more descriptors than the userfaultfd
unregistered=1      no memory is registered
wrong=1             an address where nothing is
late=1              the message comes in two parts, the descriptor with the second
late=told           the same; it says {"late": PID} after the first, and waits for a line before the second
uid=65534           is this user's from before it connects
first=1             touches a page at once, and tells how long it took from before the message to the end of that
"""
import ctypes
import ctypes.util
import json
import mmap
import os
import random
import socket
import struct
import sys
import threading
import time

PAGE = 4096
HUGE = 2 << 20
SYS_USERFAULTFD = 323
UFFD_API = 0xAA
UFFD_FEATURE_EVENT_REMOVE = 1 << 3
USERFAULTFD_IOC_NEW = 0xAA00
UFFDIO_API = 0xC018AA3F
UFFDIO_REGISTER = 0xC020AA00
UFFDIO_REGISTER_MODE_MISSING = 1
MADV_DONTNEED = 4
MAP_NORESERVE = 0x4000
MAP_HUGETLB = 0x40000

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.memcmp.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]


def check(rc, what):
    if rc in (-1, ctypes.c_void_p(-1).value):
        raise OSError(ctypes.get_errno(), what)
    return rc


def ioctl(fd, number, data):
    buffer = ctypes.create_string_buffer(data, len(data))
    check(libc.ioctl(fd, ctypes.c_ulong(number), buffer), hex(number))
    return buffer.raw


class Region:
    def __init__(self, size, offset, page):
        self.size, self.offset, self.page = size, offset, page
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE | (MAP_HUGETLB if page == HUGE else 0)
        self.base = check(libc.mmap(None, size, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0), "mmap")


class Vmm:
    def __init__(self, path, snapshot, sizes, options):
        self.page = int(options.get("page", PAGE))
        fd = os.open(snapshot, os.O_RDONLY)
        self.snapshot = check(
            libc.mmap(None, os.stat(fd).st_size, mmap.PROT_READ, mmap.MAP_PRIVATE, fd, 0), "mmap")
        self.regions, offset = [], int(options.get("offset", 0))
        for size in sizes:
            self.regions.append(Region(size, offset, self.page))
            offset += size
        self.pages = [(r, i) for r in self.regions for i in range(r.size // self.page)]
        self.discarded = set()
        self.written = {}  # (offset of the region, page) -> what is in it
        self.zero_page = ctypes.create_string_buffer(self.page)
        self.zeroes = ctypes.addressof(self.zero_page)
        self.random = random.Random(int(options.get("seed", 1)))
        self.open_uffd(options)
        self.connect(path, options)
        self.first_ms = self.first_touch() if options.get("first") else None

    def new_uffd(self):
        """From the device; the system call is for kernels that have none, and not for who may not open it."""
        flags = os.O_CLOEXEC | os.O_NONBLOCK
        try:
            device = os.open("/dev/userfaultfd", os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return check(libc.syscall(SYS_USERFAULTFD, flags), "userfaultfd")
        try:
            return check(libc.ioctl(device, ctypes.c_ulong(USERFAULTFD_IOC_NEW), ctypes.c_long(flags)), "/dev/userfaultfd")
        finally:
            os.close(device)

    def open_uffd(self, options):
        fd = self.new_uffd()
        ioctl(fd, UFFDIO_API, struct.pack("QQQ", UFFD_API, UFFD_FEATURE_EVENT_REMOVE, 0))
        for r in [] if options.get("unregistered") else self.regions:
            ioctl(fd, UFFDIO_REGISTER, struct.pack("QQQQ", r.base, r.size, UFFDIO_REGISTER_MODE_MISSING, 0))
        self.uffd = fd

    def describe(self, r, options):
        o = {"base_host_virt_addr": r.base, "size": r.size, "offset": r.offset}
        if options.get("wrong"):
            o["base_host_virt_addr"] = 1 << 16
        if options.get("keys") == "many":
            o = {"gpa_start": (1 << 64) - 1, "is_guest_memfd": False, "x": {"y": [1.5, None], "z": "\0"}, **dict(reversed(o.items()))}
        if not options.get("old"):
            o["page_size"] = r.page
        o["page_size_kib"] = r.page
        return o

    def connect(self, path, options):
        text = json.dumps([self.describe(r, options) for r in self.regions], separators=(",", ":")).encode()
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        if options.get("uid"):
            os.setuid(int(options["uid"]))
        self.socket.connect(path)
        fds = [self.uffd] + [os.memfd_create("extra") for _ in range(int(options.get("fds", 1)) - 1)]
        self.sent_at = time.perf_counter()
        if options.get("late"):
            self.socket.sendall(text[:20])
            if options["late"] == "told":
                print(json.dumps({"late": os.getpid()}), flush=True)
                sys.stdin.readline()
            else:
                time.sleep(0.05)
            text = text[20:]
        socket.send_fds(self.socket, [text], fds)

    def is_good(self, r, i, n_bytes=None):
        """Reads a page. A function of the C library does it, without Python's lock, as it may wait."""
        return not libc.memcmp(r.base + i * self.page, self.expected(r, i), n_bytes or self.page)

    def expected(self, r, i):
        """Where there are the bytes that a page must have."""
        if (r.offset, i) in self.written:
            return ctypes.addressof(self.written[r.offset, i])
        return self.zeroes if (r.offset, i) in self.discarded else self.snapshot + r.offset + i * self.page

    def write(self, r, i, rnd):
        """Writes to a part of a page: the rest of it must stay."""
        if (r.offset, i) not in self.written:
            self.written[r.offset, i] = (ctypes.c_char * self.page).from_buffer_copy(
                ctypes.string_at(self.expected(r, i), self.page))
        first, value = rnd.randrange(self.page - 64), rnd.randrange(1, 256)
        ctypes.memset(ctypes.addressof(self.written[r.offset, i]) + first, value, 64)
        ctypes.memset(r.base + i * self.page + first, value, 64)

    def first_touch(self):
        """Reads a page; returns the milliseconds from before the message was sent until the page was there."""
        r, i = self.random.choice(self.pages)
        self.is_good(r, i, 1)
        took = (time.perf_counter() - self.sent_at) * 1e3
        assert self.is_good(r, i), f"page {i} is wrong"
        return took

    def touch(self, n, threads=1, seed=None):
        """Reads n pages at random; returns how many were wrong, and the waits in microseconds."""
        bad, waits = [], []

        def run(rnd):
            for _ in range(n // threads):
                r, i = rnd.choice(self.pages)
                begin = time.perf_counter()
                self.is_good(r, i, 1)
                waits.append((time.perf_counter() - begin) * 1e6)
                if not self.is_good(r, i):
                    bad.append((r.offset, i))

        run_all(run, [random.Random(self.random.random() if seed is None else seed + k) for k in range(threads)])
        waits.sort()
        return {"bad": len(bad), "p50": waits[len(waits) // 2], "p99": waits[len(waits) * 99 // 100]}

    def each(self, first, n):
        """Reads every second page from this one on, n of them, each in a thread of its own."""
        pages, bad = self.pages[first : first + 2 * n : 2], []

        def run(page):
            if not self.is_good(*page):
                bad.append(page[1])

        run_all(run, pages)
        return {"bad": len(bad)}

    def verify(self):
        return {"bad": sum(not self.is_good(r, i) for r, i in self.pages)}

    def discard(self, r, first, n):
        for i in range(first, first + n):
            self.discarded.add((r.offset, i))
            self.written.pop((r.offset, i), None)
        check(libc.madvise(r.base + first * self.page, n * self.page, MADV_DONTNEED), "madvise")

    def storm(self, n, threads):
        """A balloon that inflates here and there, and a guest that writes to what it has taken and to what it has not, in
        several threads, each in pages of its own: what was taken must read as zeros at once, and its neighbours as what
        they are. The pages that are not looked at here are 'verify's."""
        bad = []
        run_pages = 16 if self.page == PAGE else 1

        def run(k):
            rnd = random.Random(k)
            mine = [
                (r, first)
                for r in self.regions
                for first in range(0, r.size // self.page - run_pages + 1, run_pages)
                if first // run_pages % threads == k
            ]
            for _ in range(n // threads):
                r, first = rnd.choice(mine)
                if rnd.random() < 0.5:
                    self.discard(r, first, run_pages)
                i = first + rnd.randrange(run_pages)
                if rnd.random() < 0.5:
                    self.write(r, i, rnd)
                    i = first + rnd.randrange(run_pages)
                if not self.is_good(r, i):
                    bad.append((r.offset, i))

        run_all(run, range(threads))
        return {"bad": len(bad), "discarded": len(self.discarded), "written": len(self.written)}

    def drop(self, percent):
        """Discards so much of each region in one piece, from its start."""
        for r in self.regions:
            self.discard(r, 0, r.size // self.page * percent // 100)
        return {}

    def zeros(self, percent):
        """Reads so much of what was discarded."""
        pages = [(r, i) for r in self.regions for i in range(r.size // self.page * percent // 100)]
        assert all((r.offset, i) in self.discarded for r, i in pages)
        return {"bad": sum(not self.is_good(r, i) for r, i in pages)}

    def dirty(self):
        """Writes to a page of each region, and reads it again."""
        for r in self.regions:
            ctypes.memset(r.base, 0x77, 8)
        return {"bad": sum(ctypes.string_at(r.base, 8) != b"w" * 8 for r in self.regions)}


def run_all(run, args):
    """Runs in threads; the first error ends all."""
    errors = []

    def guarded(arg):
        try:
            run(arg)
        except BaseException as e:  # told by the main thread
            errors.append(e)

    threads = [threading.Thread(target=guarded, args=(a,)) for a in args]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    if errors:
        raise errors[0]


def run(args):
    path, snapshot, sizes, *rest = args
    options = dict(word.split("=", 1) for word in rest)
    libc.prctl(1, 9, 0, 0, 0)  # die with the parent
    vmm = Vmm(path, snapshot, [int(s) for s in sizes.split(",")], options)
    print(json.dumps({"connected": os.getpid(), "first_ms": vmm.first_ms}), flush=True)
    for line in sys.stdin:
        what, *args = line.split()
        print(json.dumps(getattr(vmm, what)(*map(int, args))), flush=True)


if __name__ == "__main__":
    run(sys.argv[1:])
