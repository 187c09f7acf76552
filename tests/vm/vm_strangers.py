#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Who else connects to the port of 'receive', before and during a move, is turned away and harms nothing."""
import contextlib
import random
import socket
import sys

import vm_support
from forwarder import HEADER, TYPES
from vm_support import LIMIT_S

NO_PROTOCOL = "not the Pageferry protocol"


def connect(receive):
    host, _, port = receive.address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=LIMIT_S)


def answer(s):
    """All that comes until the other side closes."""
    data = b""
    try:
        while more := s.recv(65536):
            data += more
    except ConnectionResetError:
        pass
    return data


def turned_away(receive, said, words):
    """Somebody who says this gets an Error frame, and the connection is closed."""
    n = len(receive.errors)
    with connect(receive) as s:
        s.sendall(said)
        got = answer(s)
    assert got[:5] == b"PFRY" + bytes([TYPES["Error"]]), got
    assert words.encode() in got, got
    # It may still tell of one before.
    vm_support.wait_for("'receive' tells of it",
                        lambda: any("127.0.0.1" in e and words in e for e in receive.errors[n:]))


def header(kind, n_message, n_payload=0, magic=b"PFRY"):
    return HEADER.pack(magic, kind, 0, n_message, n_payload, 0)


def bother(receive):
    """Everything that comes by on an open port."""
    rng = random.Random(7)
    for said in (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
                 b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + rng.randbytes(500),
                 rng.randbytes(100_000),
                 header(TYPES["Hello"], 0xffff),
                 header(TYPES["Hello"], 16, 0xffffffff),
                 header(TYPES["Commit"], 0),
                 header(TYPES["Hello"], 16, magic=b"pfry")):
        turned_away(receive, said, NO_PROTOCOL)
    turned_away(receive, header(TYPES["Hello"], 40) + rng.randbytes(40), "")
    turned_away(receive, header(TYPES["Hello"], 0), "")
    for said in (b"", b"PFRY", header(TYPES["Hello"], 40) + bytes(39)):
        with connect(receive) as s:  # who leaves in the middle of it
            s.sendall(said)


def rubbish_at_every_stage(lab):
    source = lab.guest()
    target = lab.target(source)
    receive = lab.receive(target)
    bother(receive)
    link = lab.forwarder(receive)
    gates = [link.hold(name, role) for name, role in
             (("Prepared", None), ("Stopped", None), ("PageRun", "bulk"))]
    migrate = lab.migrate(source, link.address)
    for gate in gates:
        gate.wait(LIMIT_S)
        bother(receive)
        gate.open()
    _, received = lab.arrived(source, target, migrate, receive)
    assert received["resumes"] == 0, received


def silent_ones_do_not_keep_the_source_out(lab):
    """More connections than there is room for, that say nothing or a byte."""
    source = lab.guest()
    target = lab.target(source)
    receive = lab.receive(target)
    silent = [connect(receive) for _ in range(100)]
    for s in silent[::2]:
        s.sendall(b"P")
    migrate = lab.migrate(source, receive.address)
    lab.arrived(source, target, migrate, receive)
    for s in silent:
        s.close()


def slow_one_is_not_waited_for(lab):
    """It sends its Hello a byte at a time, for as long as it is let."""
    source = lab.guest()
    target = lab.target(source)
    receive = lab.receive(target)
    with connect(receive) as s:
        s.settimeout(0.2)
        said = iter(header(TYPES["Hello"], 1000) + bytes(900))
        got = b""
        while not got:
            with contextlib.suppress(ConnectionError):  # what it had to say is read all the same
                s.sendall(bytes([next(said)]))
            try:
                got = s.recv(65536)
            except TimeoutError:
                pass
    assert b"no Hello came" in got, got
    lab.arrived(source, target, lab.migrate(source, receive.address), receive)


def another_source(lab):
    """While one is served, another is told so, and its guest goes on. It may come when the seat is free."""
    source = lab.guest()
    other = lab.new_guest(fill="32M", ws="16M")
    target = lab.target(source)
    receive = lab.receive(target)
    link = lab.forwarder(receive)
    gates = [link.hold(name, role) for name, role in (("Prepared", None), ("PageRun", "bulk"))]
    migrate = lab.migrate(source, link.address)
    for gate in gates:
        gate.wait(LIMIT_S)
        lab.migrate(other, receive.address).refuses("serves another source")
        lab.untouched(other)
        gate.open()
    lab.arrived(source, target, migrate, receive)


def source_that_left_makes_room(lab):
    """One that came, and went before it wanted anything."""
    source = lab.guest()
    target = lab.target(source)
    receive = lab.receive(target)
    link = lab.forwarder(receive)
    gate = link.hold("Prepare")
    first = lab.migrate(source, link.address)
    gate.wait(LIMIT_S)
    first.kill()
    gate.open(forward=False)
    vm_support.wait_for("'receive' has noticed", lambda: any("left again" in e for e in receive.errors))
    lab.arrived(source, target, lab.migrate(source, receive.address), receive)


CASES = {f.__name__: f for f in (
    rubbish_at_every_stage, silent_ones_do_not_keep_the_source_out, slow_one_is_not_waited_for,
    another_source, source_that_left_makes_room)}


if __name__ == "__main__":
    sys.exit(vm_support.main(CASES))
