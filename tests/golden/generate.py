#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Makes the golden wire vectors, with Python's protobuf and nothing of our C code.

    generate.py --proto PROTO --check VECTORS --doc PAGE
                                                  are the vectors what this makes, and do the numbers
                                                  and bytes in docs/protocol.md agree? (a test)
    generate.py --proto PROTO --write VECTORS     write them
    generate.py --proto PROTO --corpus DIR        seeds for tests/fuzz, in a folder a target

The text form is described at its own top.
"""
import argparse
import ctypes
import importlib
import os
import re
import struct
import subprocess
import sys
import tempfile

HEAD = """\
# Golden vectors of the Pageferry protocol, version 1. docs/protocol.md explains every byte.
#
# name:    of the vector
# is:      "exact": both ways; encoding the values gives these bytes, decoding these bytes the values
#          "decode": must be understood, although nobody has to write it in this form
#          "header": refused as soon as the header's 16 bytes are there
#          "message": the frame is one, what is in it is refused; "why" is part of the explanation
#          "incomplete": the beginning of something; more bytes are awaited
# values:  what it says (exact and decode)
# hex:     the frame; "(xx)*n" means n times xx. Field "software" of Hello and Welcome, which is for
#          people, is left out of the exact ones.
"""

TYPE = dict(
    Hello=1, Welcome=2, Error=3, Layout=10, LayoutOk=11, Resident=12, PushStart=13, Discarded=14,
    Complete=15, Released=16, Ping=17, Pong=18, PageRequest=20, PageRun=21, PushDone=22,
    DigestRequest=24, Digests=25, Prepare=30,
    Prepared=31, Stopped=32, DeviceState=33, DeviceStateEnd=34, Loaded=35, Commit=36, Running=37,
    Abort=38)

MAX_PAGES = (1 << 32) - 1
SESSION = bytes(range(16))
U64 = (1 << 64) - 1


def checksum(region, first_page, n_pages, encoding, payload):
    """Of a PageRun, as docs/protocol.md has it."""
    xxh = ctypes.CDLL("libxxhash.so.0").XXH3_64bits_withSeed
    xxh.restype = ctypes.c_uint64
    seed = first_page ^ n_pages << 32 ^ region << 58 ^ encoding << 56
    return xxh(payload, ctypes.c_size_t(len(payload)), ctypes.c_uint64(seed & U64))


class Bytes:
    """Bytes with repetitions, so that long ones stay readable."""

    def __init__(self, *parts):
        self.parts = [p if isinstance(p, tuple) else (p, 1) for p in parts]

    def raw(self):
        return b"".join(p * n for p, n in self.parts)

    def __len__(self):
        return sum(len(p) * n for p, n in self.parts)

    def hex(self):
        return [p.hex(" ") if n == 1 else f"({p.hex(' ')})*{n}" for p, n in self.parts if p]


def header(type_, msg_len, payload_len, magic=b"PFRY", flags=0, reserved=0):
    return magic + struct.pack("<BBHII", type_, flags, msg_len, payload_len, reserved)


class Vectors:
    def __init__(self, pb):
        self.pb = pb
        self.all = []

    def add(self, name, is_, detail, *parts):
        self.all.append((name, is_, detail, Bytes(*parts)))

    def message(self, name, is_, detail, type_, msg=b"", payload=b""):
        """A whole frame. @msg: bytes, Bytes, or keyword arguments for the message."""
        if isinstance(msg, dict):
            msg = getattr(self.pb, type_)(**msg).SerializeToString(deterministic=True)
        msg = msg if isinstance(msg, Bytes) else Bytes(msg)
        payload = payload if isinstance(payload, Bytes) else Bytes(payload)
        self.add(name, is_, detail, header(TYPE[type_], len(msg), len(payload)), *msg.parts,
                 *payload.parts)

    def text(self):
        out = [HEAD]
        for name, is_, detail, data in self.all:
            key = "values" if is_ in ("exact", "decode") else "why"
            out.append(f"name: {name}\nis: {is_}\n{key}: {detail}")
            out += [f"hex: {line}" for line in data.hex()]
            out.append("")
        return "\n".join(out) + "\n"


def varint(v):
    out = b""
    while v > 0x7f:
        out += bytes([v & 0x7f | 0x80])
        v >>= 7
    return out + bytes([v])


def add_exact(v):
    ex = lambda name, values, type_, msg=b"", payload=b"": v.message(
        name, "exact", values, type_, msg, payload)
    hello = dict(version_min=1, version_max=1, features=1, session_id=SESSION, index=0)
    ex("hello_target_control",
       "versions 1 to 1, features 1, session 00..0f, target, control, index 0, epoch 0 (absent)",
       "Hello", dict(hello, side=2, role=1))
    ex("hello_source_last_bulk_resumed",
       "versions 1 to 1, features 1, session 00..0f, source, bulk, index 15, epoch 4294967295",
       "Hello", dict(hello, side=1, role=3, index=15, epoch=(1 << 32) - 1))
    ex("hello_source_switchover", "the same, source, switchover, index 0, epoch 1",
       "Hello", dict(hello, side=1, role=4, epoch=1))
    ex("welcome", "version 1, features 1", "Welcome", dict(version=1, features=1))
    ex("welcome_without_features", "version 1, features 0", "Welcome", dict(version=1, features=0))
    ex("error_busy", "code 3 (busy), text \"being served\"", "Error",
       dict(code=3, text="being served"))
    ex("error_longest_text", "code 7 (internal), text of 399 x", "Error",
       Bytes(b"\x08\x07\x12" + varint(399), (b"x", 399)))
    ex("layout_smallest", "region 0 \"ram\" of 1 page of 4096 bytes; no state", "Layout",
       dict(regions=[v.pb.Region(id=0, name="ram", n_pages=1, page_bytes=4096)]))
    ex("layout_limits_with_state",
       "region 0, name of 63 a, 2^32 - 1 pages of 4096; region 1 \"b\", 3 pages of 2097152; state 01 02 03",
       "Layout",
       dict(regions=[v.pb.Region(id=0, name="a" * 63, n_pages=MAX_PAGES, page_bytes=4096),
                     v.pb.Region(id=1, name="b", n_pages=3, page_bytes=2097152)]), b"\1\2\3")
    ex("layout_of_known_memory", "memory 1122334455667788, region 0 \"ram\" of 1 page of 4096 bytes", "Layout",
       dict(regions=[v.pb.Region(id=0, name="ram", n_pages=1, page_bytes=4096)], memory_id=0x1122334455667788))
    ex("layout_ok", "nothing more", "LayoutOk")
    ex("resident_one_page", "region 0, pages 0+1, bitmap 01", "Resident",
       dict(region=0, first_page=0, n_pages=1), b"\1")
    ex("resident_odd_size", "region 31, pages 64+65, bitmap with pages 64, 71 and 128", "Resident",
       dict(region=31, first_page=64, n_pages=65), b"\x81" + bytes(7) + b"\1")
    ex("resident_largest", "region 1, pages 524288+524288, all resident", "Resident",
       dict(region=1, first_page=524288, n_pages=524288), Bytes((b"\xff", 65536)))
    ex("push_start", "1000000000 bytes a second at most", "PushStart",
       dict(max_bytes_per_second=10**9))
    ex("discarded", "region 2, pages 5+7", "Discarded", dict(region=2, first_page=5, n_pages=7))
    ex("discarded_last_page", "region 0, page 2^32 - 2", "Discarded",
       dict(region=0, first_page=MAX_PAGES - 1, n_pages=1))
    ex("complete", "nothing more", "Complete")
    ex("released", "nothing more", "Released")
    ex("ping", "sent at 0x0102030405060708 ns", "Ping", dict(sent_ns=0x0102030405060708))
    ex("pong", "ping sent at 1, received at 2, sent at 2^64 - 1 ns", "Pong",
       dict(ping_sent_ns=1, received_ns=2, sent_ns=U64))
    ex("page_request_one_page", "id 1, region 0, page 7", "PageRequest",
       dict(request_id=1, region=[0], first_page=[7], n_pages=[1]))
    ex("page_request_batch",
       "id 2^64 - 1: region 0 pages 300+2, region 0 page 5, region 31 pages (2^32 - 1025)+1024",
       "PageRequest",
       dict(request_id=U64, region=[0, 0, 31], first_page=[300, 5, MAX_PAGES - 1024],
            n_pages=[2, 1, 1024]))
    ex("page_run_raw_answer", "answers request 1: region 0, page 7, raw, a page of 5a", "PageRun",
       dict(region=0, first_page=7, n_pages=1, encoding=0, request_id=1), Bytes((b"\x5a", 4096)))
    ex("page_run_raw_answer_with_times",
       "answers request 2: region 1, pages 300+2, raw, pages of 11 and 22; received at 1000, "
       "answered at 2000 ns", "PageRun",
       dict(region=1, first_page=300, n_pages=2, encoding=0, request_id=2, received_ns=1000,
            answered_ns=2000), Bytes((b"\x11", 4096), (b"\x22", 4096)))
    ex("page_run_raw_largest", "pushed: region 0, pages 0+2 of 2 MiB, raw, ee", "PageRun",
       dict(region=0, first_page=0, n_pages=2, encoding=0, request_id=0),
       Bytes((b"\xee", 4 * 1024 * 1024)))
    ex("page_run_zero_pushed", "pushed: region 3, pages 0+4294967295, zero", "PageRun",
       dict(region=3, first_page=0, n_pages=MAX_PAGES, encoding=1, request_id=0))
    ex("page_run_raw_with_checksum", "pushed: region 1, pages 3+2, raw, pages of 11 and 22, with its checksum",
       "PageRun", dict(region=1, first_page=3, n_pages=2, encoding=0, request_id=0,
                       checksum=checksum(1, 3, 2, 0, b"\x11" * 4096 + b"\x22" * 4096)),
       Bytes((b"\x11", 4096), (b"\x22", 4096)))
    ex("page_run_zero_with_checksum", "pushed: region 1, pages 5+600, zero, with its checksum", "PageRun",
       dict(region=1, first_page=5, n_pages=600, encoding=1, request_id=0, checksum=checksum(1, 5, 600, 1, b"")))
    ex("page_run_lost", "answers request 3: region 0, pages 9+4 are lost", "PageRun",
       dict(region=0, first_page=9, n_pages=4, encoding=2, request_id=3))
    ex("push_done", "nothing more", "PushDone")
    ex("digest_request", "region 1, pages 512+65000, 256 pages each", "DigestRequest",
       dict(region=1, first_page=512, n_pages=65000, pages_each=256))
    ex("digest_request_one_page", "region 0, page 2^32 - 2", "DigestRequest",
       dict(region=0, first_page=MAX_PAGES - 1, n_pages=1, pages_each=1))
    ex("digests", "region 1, pages 7+2, one page each: 0 and 0x1111111111111111", "Digests",
       dict(region=1, first_page=7, n_pages=2, pages_each=1), bytes(8) + b"\x11" * 8)
    ex("digests_most", "region 0, pages 0+262144, 1024 pages each: all 2^64 - 1", "Digests",
       dict(region=0, first_page=0, n_pages=262144, pages_each=1024), Bytes((b"\xff", 2048)))
    ex("error_damaged", "code 8 (damaged), text \"page 7\"", "Error", dict(code=8, text="page 7"))
    ex("prepare", "vm \"web-1\", VMM \"7.2.22\", machine \"pc-i440fx-7.2\", 2 bulk connections, "
       "region 0 \"pc.ram\" of 65536 pages of 4096", "Prepare",
       dict(vm="web-1", vmm_version="7.2.22", machine="pc-i440fx-7.2", n_bulk=2,
            regions=[v.pb.Region(id=0, name="pc.ram", n_pages=65536, page_bytes=4096)]))
    ex("prepare_paused", "vm \"\", VMM \"\", machine \"\", 1 bulk connection, paused, region 0 \"r\" of 1 page "
       "of 4096", "Prepare",
       dict(vm="", vmm_version="", machine="", n_bulk=1, paused=True,
            regions=[v.pb.Region(id=0, name="r", n_pages=1, page_bytes=4096)]))
    ex("prepare_dense", "vm \"\", VMM \"\", machine \"\", 1 bulk connection, region 0 \"r\" of 2048 pages of "
       "4096, dense: region 0, blocks 0+1 and 2+2", "Prepare",
       dict(vm="", vmm_version="", machine="", n_bulk=1, dense=[0, 0, 1, 0, 2, 2],
            regions=[v.pb.Region(id=0, name="r", n_pages=2048, page_bytes=4096)]))
    ex("prepared", "nothing more", "Prepared")
    ex("stopped", "nothing more", "Stopped")
    ex("device_state", "a piece: 51 45 56 4d", "DeviceState", b"", b"QEVM")
    ex("device_state_largest", "a piece of 65536 bytes 00", "DeviceState", b"",
       Bytes((b"\0", 65536)))
    ex("device_state_end", "4 bytes in all", "DeviceStateEnd", dict(total_bytes=4))
    ex("loaded", "nothing more", "Loaded")
    ex("commit", "stopped for 9000000 ns", "Commit", dict(stopped_for_ns=9000000))
    ex("running", "downtime of 9500000 ns", "Running", dict(downtime_ns=9500000))
    ex("abort", "reason \"the operator said so\"", "Abort", dict(reason="the operator said so"))


def add_decode(v):
    de = lambda name, values, type_, msg=b"", payload=b"": v.message(
        name, "decode", values, type_, msg, payload)
    hello = v.pb.Hello(version_min=1, version_max=9, features=U64, session_id=SESSION, side=2,
                       role=2, index=0, epoch=2, software="other 9.0").SerializeToString()
    de("hello_of_a_later_version",
       "versions 1 to 9, all features, session 00..0f, target, urgent, index 0, epoch 2; a text field "
       "99 and a number field 100 that version 1 does not know",
       "Hello", hello + b"\x9a\x06\x03new" + b"\xa0\x06\x01")
    de("welcome_with_software", "version 1, features 0", "Welcome",
       dict(version=1, features=0, software="other 1.2"))
    de("error_of_a_later_version", "code 99, taken as 7 (internal), text \"new\"", "Error",
       b"\x08\x63\x12\x03new")
    de("error_text_made_harmless",
       "code 1, text \"a?[2Jb?c?d\": an escape character, a C1 control character and a byte that is "
       "not UTF-8 are replaced", "Error",
       b"\x08\x01\x12\x0b" b"a\x1b[2Jb\xc2\x9b" b"c\xff" b"d")
    de("error_text_cut_between_characters", "code 1, text of 398 x: what follows does not fit",
       "Error", Bytes(b"\x08\x01\x12" + varint(400), (b"x", 398), "é".encode()))
    de("layout_ok_with_unknown_field", "nothing more", "LayoutOk", b"\xf8\x07\x05")
    de("push_start_without_limit", "no limit (absent)", "PushStart")
    de("prepare_without_optional_fields", "vm \"\", 1 bulk connection, region 0 \"r\" of 1 page of 4096",
       "Prepare", dict(vm="", regions=[v.pb.Region(id=0, name="r", n_pages=1, page_bytes=4096)]))
    de("page_request_lists_not_packed", "id 9, region 1, pages 2+3 and region 1 pages 8+1",
       "PageRequest", b"\x09\x09" + bytes(7) + b"\x10\x01\x18\x02\x20\x03\x10\x01\x18\x08\x20\x01")
    de("ping_field_twice", "sent at 2 ns: of a field that comes twice the last one counts", "Ping",
       b"\x09\x01" + bytes(7) + b"\x09\x02" + bytes(7))
    de("discarded_fields_out_of_order", "region 1, pages 2+3", "Discarded",
       b"\x18\x03\x08\x01\x10\x02")
    de("resident_bits_past_the_end", "region 0, pages 0+1, bitmap ff: only the first bit counts",
       "Resident", dict(region=0, first_page=0, n_pages=1), b"\xff")


def add_header(v):
    hd = lambda name, why, *parts: v.add(name, "header", why, *parts)
    hd("bad_magic", "the first four bytes", header(17, 9, 0, magic=b"PFRZ"))
    hd("http_request", "not this protocol at all", b"GET / HTTP/1.1\r\n\r\n")
    hd("flags_set", "byte 5 is not zero", header(17, 9, 0, flags=1))
    hd("reserved_set", "bytes 12 to 15 are not zero", header(17, 9, 0, reserved=1 << 31))
    for t in (0, 4, 9, 19, 23, 29, 39, 63, 64, 255):
        hd(f"unknown_type_{t}", "no such type", header(t, 0, 0))
    hd("message_over_limit", "16385 bytes of message", header(3, 16385, 0))
    hd("message_length_largest", "65535 bytes of message", header(3, 65535, 0))
    hd("page_run_over_limit", "4194305 bytes of payload", header(21, 30, 4 * 1024 * 1024 + 1))
    hd("page_run_payload_largest", "4294967295 bytes of payload", header(21, 30, (1 << 32) - 1))
    for name in ("Layout", "Resident", "DeviceState"):
        hd(f"{name.lower()}_over_limit", "65537 bytes of payload", header(TYPE[name], 20, 65537))
    hd("digests_over_limit", "2049 bytes of payload", header(25, 20, 2049))
    for name in TYPE:
        if name not in ("PageRun", "Layout", "Resident", "DeviceState", "Digests"):
            hd(f"payload_of_{name.lower()}", "it has none", header(TYPE[name], 0, 1))


def region(id_=0, name=b"r", n_pages=1, page_bytes=4096):
    body = (b"\x08" + varint(id_) + b"\x12" + varint(len(name)) + name + b"\x18" + varint(n_pages) +
            b"\x20" + varint(page_bytes))
    return varint(len(body)) + body


def add_message(v):
    def bad(name, why, type_, msg=b"", payload=b""):
        v.message(name, "message", why, type_, msg, payload)

    hello = dict(version_min=1, version_max=1, features=0, session_id=SESSION, side=1, role=1, index=0)
    bad("hello_empty", "not a valid message", "Hello")
    bad("hello_version_range_reversed", "version range 2 to 1", "Hello", dict(hello, version_min=2))
    bad("hello_session_id_short", "session id of 15 bytes", "Hello",
        dict(hello, session_id=SESSION[:15]))
    bad("hello_session_id_long", "session id of 17 bytes", "Hello",
        dict(hello, session_id=SESSION + b"x"))
    raw = v.pb.Hello(**hello).SerializeToString()
    assert raw.endswith(b"\x28\x01\x30\x01\x38\x00")
    for value, text in ((0, "0"), (3, "3"), ((1 << 32) - 1, "-1")):
        bad(f"hello_side_{value}", f"unknown side {text}", "Hello",
            raw[:-6] + b"\x28" + varint(value) + b"\x30\x01\x38\x00")
    for value, text in ((0, "0"), (5, "5")):
        bad(f"hello_role_{value}", f"unknown role {text}", "Hello",
            raw[:-6] + b"\x28\x01\x30" + varint(value) + b"\x38\x00")
    bad("hello_second_control", "connection index 1 is too high", "Hello", dict(hello, index=1))
    bad("hello_bulk_16", "connection index 16 is too high", "Hello", dict(hello, role=3, index=16))

    bad("layout_without_regions", "0 regions", "Layout")
    bad("layout_33_regions", "33 regions", "Layout",
        Bytes(*[b"\x0a" + region(i) for i in range(33)]))
    bad("layout_ids_not_in_order", "region 0 has id 1", "Layout", b"\x0a" + region(1))
    bad("layout_name_empty", "its name is empty or too long", "Layout", b"\x0a" + region(name=b""))
    bad("layout_name_too_long", "its name is empty or too long", "Layout",
        b"\x0a" + region(name=b"a" * 64))
    bad("layout_no_pages", "impossible size", "Layout", b"\x0a" + region(n_pages=0))
    bad("layout_too_many_pages", "impossible size", "Layout", b"\x0a" + region(n_pages=MAX_PAGES + 1))
    for n in (0, 2048, 4095, 4097, 6144, 4 * 1024 * 1024):
        bad(f"layout_page_size_{n}", f"impossible page size {n}", "Layout",
            b"\x0a" + region(page_bytes=n))
    bad("layout_region_empty", "not a valid message", "Layout", b"\x0a\x00")
    bad("layout_region_longer_than_message", "not a valid message", "Layout", b"\x0a\x7f\x08\x00")
    bad("layout_wrong_wire_type", "not a valid message", "Layout", b"\x0d\1\2\3\4")

    bad("resident_not_word_aligned", "for 64 pages from 32", "Resident",
        dict(region=0, first_page=32, n_pages=64), bytes(8))
    bad("resident_bitmap_short", "bitmap of 8 bytes for 65 pages", "Resident",
        dict(region=0, first_page=0, n_pages=65), bytes(8))
    bad("resident_bitmap_long", "bitmap of 9 bytes for 64 pages", "Resident",
        dict(region=0, first_page=0, n_pages=64), bytes(9))
    bad("resident_no_pages", "impossible pages 0+0", "Resident",
        dict(region=0, first_page=0, n_pages=0))
    bad("discarded_region_32", "of region 32", "Discarded", dict(region=32, first_page=0, n_pages=1))
    bad("discarded_no_pages", "impossible pages 0+0", "Discarded",
        dict(region=0, first_page=0, n_pages=0))
    bad("discarded_past_the_end", "impossible pages", "Discarded",
        dict(region=0, first_page=MAX_PAGES, n_pages=1))
    bad("discarded_sum_overflows", "impossible pages", "Discarded",
        dict(region=0, first_page=U64, n_pages=2))

    digests = dict(region=0, first_page=0, n_pages=1, pages_each=1)
    bad("digest_request_of_no_pages", "impossible pages 0+0", "DigestRequest", dict(digests, n_pages=0))
    bad("digest_request_past_the_end", "impossible pages", "DigestRequest", dict(digests, first_page=MAX_PAGES))
    bad("digest_request_of_none_each", "of 0 pages each", "DigestRequest", dict(digests, pages_each=0))
    bad("digest_request_of_1025_each", "of 1025 pages each", "DigestRequest", dict(digests, pages_each=1025))
    bad("digest_request_for_257", "digests of 257 pages, of 1 pages each", "DigestRequest",
        dict(digests, n_pages=257))
    bad("digests_region_32", "of region 32", "Digests", dict(digests, region=32), bytes(8))
    bad("digests_too_few", "8 bytes for 2 digests", "Digests", dict(digests, n_pages=3, pages_each=2), bytes(8))
    bad("digests_too_many", "16 bytes for 1 digests", "Digests", digests, bytes(16))
    bad("digests_cut_short", "7 bytes for 1 digests", "Digests", digests, bytes(7))

    req = dict(request_id=1, region=[0], first_page=[0], n_pages=[1])
    bad("request_id_0", "request id 0", "PageRequest", dict(req, request_id=0))
    bad("request_of_nothing", "request of 0/0/0 runs", "PageRequest", dict(request_id=1))
    bad("request_lists_differ", "request of 2/1/2 runs", "PageRequest",
        dict(req, region=[0, 0], n_pages=[1, 1]))
    bad("request_n_pages_missing", "request of 1/1/0 runs", "PageRequest", dict(req, n_pages=[]))
    bad("request_513_runs", "request of 513/513/513 runs", "PageRequest",
        dict(request_id=1, region=[0] * 513, first_page=list(range(513)), n_pages=[1] * 513))
    bad("request_run_of_no_pages", "impossible pages 0+0", "PageRequest", dict(req, n_pages=[0]))
    bad("request_run_of_1025_pages", "request for 1025 pages", "PageRequest", dict(req, n_pages=[1025]))
    bad("request_region_32", "of region 32", "PageRequest", dict(req, region=[32]))
    bad("request_past_the_end", "impossible pages", "PageRequest", dict(req, first_page=[MAX_PAGES]))
    bad("request_packed_list_cut_short", "not a valid message", "PageRequest",
        b"\x09\x01" + bytes(7) + b"\x12\x02\x80\x80")

    run = dict(region=0, first_page=0, n_pages=1, encoding=0, request_id=0)
    bad("run_of_no_pages", "impossible pages 0+0", "PageRun", dict(run, n_pages=0))
    bad("run_of_no_pages_zero", "impossible pages 0+0", "PageRun", dict(run, n_pages=0, encoding=1))
    bad("run_without_its_page", "0 bytes for 1 pages", "PageRun", run)
    bad("run_page_too_short", "4095 bytes for 1 pages", "PageRun", run, Bytes((b"\0", 4095)))
    bad("run_not_whole_pages", "8193 bytes for 2 pages", "PageRun", dict(run, n_pages=2),
        Bytes((b"\0", 8193)))
    bad("run_zero_with_payload", "pages without content with 4096 bytes", "PageRun", dict(run, encoding=1),
        Bytes((b"\0", 4096)))
    bad("run_lost_with_payload", "pages without content with 4096 bytes", "PageRun", dict(run, encoding=2),
        Bytes((b"\0", 4096)))
    bad("run_encoding_3", "unknown encoding 3", "PageRun", dict(run, encoding=3), Bytes((b"\0", 4096)))
    bad("run_encoding_largest", "unknown encoding 4294967295", "PageRun",
        dict(run, encoding=(1 << 32) - 1), Bytes((b"\0", 4096)))
    bad("run_region_largest", "of region 4294967295", "PageRun", dict(run, region=(1 << 32) - 1),
        Bytes((b"\0", 4096)))
    bad("run_past_the_end", "impossible pages", "PageRun", dict(run, first_page=U64),
        Bytes((b"\0", 4096)))
    raw = v.pb.PageRun(**run).SerializeToString()
    bad("run_message_cut_short", "not a valid message", "PageRun", raw[:-1], Bytes((b"\0", 4096)))
    bad("run_field_missing", "not a valid message", "PageRun", raw[:-9], Bytes((b"\0", 4096)))
    bad("run_wrong_wire_type", "not a valid message", "PageRun", b"\x08\x00" + raw[5:],
        Bytes((b"\0", 4096)))

    bad("device_state_of_nothing", "an empty piece", "DeviceState")
    bad("prepare_without_regions", "0 regions", "Prepare", dict(vm="x"))
    one = [v.pb.Region(id=0, name="r", n_pages=1, page_bytes=4096)]
    for n in (0, 17):
        bad(f"prepare_{n}_bulk_connections", f"{n} bulk connections", "Prepare",
            dict(vm="x", regions=one, n_bulk=n))
    four = [v.pb.Region(id=0, name="r", n_pages=2048, page_bytes=4096)]
    bad("prepare_dense_not_in_threes", "4 numbers", "Prepare",
        dict(vm="x", regions=four, dense=[0, 0, 1, 0]))
    bad("prepare_dense_too_many", "771 numbers", "Prepare",
        dict(vm="x", regions=four, dense=[0, 0, 1] * 257))
    for what, runs in (("region", [1, 0, 1]), ("none", [0, 0, 0]), ("end", [0, 3, 2]),
                       ("wrap", [0, 0xffffffff, 0xffffffff])):
        bad(f"prepare_dense_{what}", "impossible dense blocks", "Prepare",
            dict(vm="x", regions=four, dense=runs))
    for name in ("Ping", "Pong", "Commit", "Running", "Abort", "DeviceStateEnd", "Welcome", "Error",
                 "Discarded", "Prepare", "PageRequest", "PageRun"):
        bad(f"{name.lower()}_empty", "not a valid message", name)

    bad("varint_of_11_bytes", "not a valid message", "PushStart", b"\x08" + b"\xff" * 10 + b"\x01")
    bad("field_number_0", "not a valid message", "LayoutOk", b"\x00\x01")
    bad("group", "not a valid message", "LayoutOk", b"\xfb\x07\xfc\x07")
    bad("length_past_the_end", "not a valid message", "Abort", b"\x0a\xff\xff\xff\xff\x0f")
    # Floods: what a few bytes may make us hold is bounded by the arena, not by the sender.
    bad("flood_of_unknown_fields", "not a valid message", "LayoutOk", Bytes((b"\xf8\x07\x00", 5461)))
    bad("flood_of_empty_unknown_fields", "not a valid message", "Complete",
        Bytes((b"\xfa\x07\x00", 5461)))
    bad("flood_of_repeated_texts", "not a valid message", "Abort", Bytes((b"\x0a\x01a", 5461)))
    tiny = b"\x0a" + region()
    bad("flood_of_regions", "not a valid message", "Layout", Bytes((tiny, 16384 // len(tiny))))
    bad("flood_of_list_entries", "not a valid message", "PageRequest",
        Bytes(b"\x09\x01" + bytes(7), (b"\x10\x00", 8187)))


def add_incomplete(v):
    ping = header(17, 9, 0) + b"\x09" + bytes(8)
    v.add("header_cut_short", "incomplete", "15 of 16 bytes", ping[:15])
    v.add("message_cut_short", "incomplete", "8 of 9 bytes", ping[:-1])
    v.add("payload_cut_short", "incomplete", "3 of 4 bytes", header(33, 0, 4) + b"QEV")


def fuzz_seeds(vectors):
    """The vectors as inputs of tests/fuzz/fuzz_TARGET.c: (target, name, bytes)."""
    source_sends = {TYPE[n] for n in (
        "Layout", "Released", "PageRun", "PushDone", "Digests", "Prepare", "Stopped", "DeviceState",
        "DeviceStateEnd", "Commit")}
    for name, _, _, data in vectors:
        raw = data.raw()
        if len(raw) > 1 << 16:
            continue
        type_ = raw[4]
        role = 3 if type_ >= 30 else 0 if type_ < 20 or type_ in (24, 25) else 1 if type_ == 20 else 2
        how = (1 if type_ in source_sends else 0) | role << 1 | (8 if type_ > 3 else 0) | 12 << 4
        yield "stream", name, raw + bytes([how])
        # Unchanged handshakes, and then the vector.
        yield "connection", name, bytes([how & 7, 0]) + raw
    for i, at in enumerate((4, 5, 6, 17, 19, 21, 30, 39, 41, 49, 51, 53)):
        yield "connection", f"changed_hello_{i}", bytes([i, 1, at, 3])
        yield "connection", f"changed_welcome_{i}", bytes([i, 0x10, at, 3])


def load_pb(proto, tmp):
    subprocess.run(["protoc", f"--proto_path={os.path.dirname(os.path.abspath(proto))}",
                    f"--python_out={tmp}", os.path.basename(proto)], check=True)
    sys.path.insert(0, tmp)
    return importlib.import_module("pageferry_pb2")


def check_doc(path, vectors):
    """The table of messages and the byte dump of the page against ours. Returns complaints."""
    with open(path, encoding="utf-8") as f:
        text = f.read()
    out = []
    rows = {name: int(n) for n, name in re.findall(r"^\| (\d+) \| `([A-Z][a-z]\w*)` \|", text, re.MULTILINE)}
    if rows != TYPE:
        out.append(f"{path}: its table of messages differs: {set(rows.items()) ^ set(TYPE.items())}")
    dump = b""
    for line in re.search(r"```\n(50 46 52 59.*?)```", text, re.DOTALL).group(1).splitlines():
        m = re.match(r"(?:[0-9a-f]{2} ?)+", line)
        dump += bytes.fromhex(m.group(0)) if m else b""
    want = vectors["page_request_one_page"] + vectors["page_run_raw_answer"]
    if dump != want[:len(dump)] or len(want) - len(dump) > 4096:
        out.append(f"{path}: its byte dump is not that of the vectors")
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--proto", required=True)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--check", metavar="FILE")
    what.add_argument("--write", metavar="FILE")
    what.add_argument("--corpus", metavar="DIR")
    parser.add_argument("--doc", metavar="PAGE")
    parser.add_argument("--stamp", metavar="FILE", help="made when the corpus is there")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as tmp:
        v = Vectors(load_pb(args.proto, tmp))
    for step in (add_exact, add_decode, add_header, add_message, add_incomplete):
        step(v)
    names = [name for name, *_ in v.all]
    assert len(set(names)) == len(names), "a name is there twice"
    if args.write:
        with open(args.write, "w", encoding="ascii") as f:
            f.write(v.text())
    elif args.check:
        with open(args.check, encoding="ascii") as f:
            if f.read() != v.text():
                print(f"{args.check} is not what {os.path.basename(__file__)} makes from {args.proto}")
                return 1
        complaints = check_doc(args.doc, {n: d.raw() for n, _, _, d in v.all}) if args.doc else []
        for c in complaints:
            print(c)
        if complaints:
            return 1
        print(f"{len(names)} vectors are as Python's protobuf encodes them")
    else:
        for target, name, data in fuzz_seeds(v.all):
            os.makedirs(os.path.join(args.corpus, target), exist_ok=True)
            with open(os.path.join(args.corpus, target, name), "wb") as f:
                f.write(data)
        if args.stamp:
            open(args.stamp, "w", encoding="ascii").close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
