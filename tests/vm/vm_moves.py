#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Moves in which nothing goes wrong, between all kinds of QEMUs that are supported.

    vm_moves.py PAGEFERRY --moves 20 --mem 2G back_and_forth      the long form of one case
"""
import os
import sys

import vm_support
from vm_support import MIB, Skip

sys.path.insert(0, os.path.join(os.path.dirname(os.path.realpath(__file__)), ".."))
from huge_pages import HugePages  # noqa: E402  pylint: disable=wrong-import-position

PAGE = 4096
RECEIVE_COUNTS = ("pages_known", "pages_urgent", "pages_pushed", "pages_zero", "wire_bytes", "faults",
                  "requests")
MIGRATE_COUNTS = ("pages_sent", "pages_pushed", "pages_zero", "wire_bytes", "device_state_bytes")


def moves_and_keeps_its_memory(lab):
    source = lab.guest()
    target = lab.target(source)
    migrated, received = lab.move(source, target, receive=("--verify",))
    ram_bytes = source.info["mem_bytes"]
    # The guest writes all the while, and what QEMU had in its memory before is not ours to tell.
    v = received["verify"]
    assert v["complete"] and not v["wrong"] and v["pages"] + v["unknown"] == ram_bytes // PAGE, v
    assert v["pages"] == received["pages_urgent"] + received["pages_pushed"] + received["pages_zero"], received
    for said in (migrated, received):
        assert said["ram_bytes"] == ram_bytes, said
        assert said["pages_total"] == ram_bytes // PAGE, said
        assert said["resumes"] == 0, said
        assert 0 < said["downtime_ms"] < said["total_ms"] < vm_support.LIMIT_S * 1000, said
    check_received(received)
    for key in MIGRATE_COUNTS:
        assert migrated[key] > 0, (key, migrated)
    assert migrated["stop_ms"] + migrated["device_state_ms"] < migrated["downtime_ms"], migrated
    assert migrated["sessions_completed"] == 1, migrated


def check_received(s):
    assert all(s[key] > 0 for key in RECEIVE_COUNTS), s
    assert s["pages_known"] == s["pages_total"], s
    # Every page came on demand, by the push, or as word of a zero page, and none in two of these ways.
    assert s["pages_urgent"] + s["pages_pushed"] + s["pages_zero"] == s["pages_total"], s
    assert s["wire_bytes"] >= (s["pages_urgent"] + s["pages_pushed"]) * PAGE, s
    f = s["fault_us"]
    assert 0 < f["n"] <= s["faults"] and 0 < f["p50"] <= f["p99"] <= f["p999"] <= f["max"], s


def each_stage_is_told_in_order(lab):
    source = lab.guest()
    target = lab.target(source)
    receive = lab.receive(target)
    migrate = lab.migrate(source, receive.address)
    lab.arrived(source, target, migrate, receive)
    stages = ["check", "attach", "stop", "device-state", "confirm", "run", "push", "release"]
    assert migrate.stages == stages, migrate.stages
    assert receive.stages == stages, receive.stages


def source_never_runs_again(lab):
    source = lab.guest()
    target = lab.target(source)
    receive = lab.receive(target)
    migrate = lab.migrate(source, receive.address)
    migrate.end(0)
    receive.end(0)
    source.look()
    said = len(source.reports)
    target.pages = source.pages
    target.works(reports=10)
    source.look()
    assert len(source.reports) == said, "the guest went on at the source"
    assert source.status() == "postmigrate"
    assert source.events()[-1] == "STOP", source.events()
    again = lab.migrate(source, "127.0.0.1:1")
    again.refuses("was moved away", "cont")
    assert source.status() == "postmigrate"
    lab.current = target


def back_and_forth(lab):
    source = lab.guest()
    for _ in range(lab.args.moves):
        target = lab.target(source)
        lab.move(source, target)
        source = target


def backend_memfd_and_two_cpus(lab):
    source = lab.new_guest(backend="memfd", cpus=2)
    lab.move(source, lab.target(source))


def backends_of_two_kinds(lab):
    source = lab.guest()
    lab.move(source, lab.target(source, backend="memfd"))


def huge_pages(lab):
    """In pages of 2 MiB, there and back; a target with small ones is refused."""
    with HugePages(2 * int(lab.args.mem[:-1]) // 2 + 16, Skip):
        source = lab.new_guest(backend="hugetlb")
        for _ in range(2):
            target = lab.target(source)
            _, received = lab.move(source, target, receive=("--verify",))
            assert received["verify"]["complete"] and not received["verify"]["wrong"], received
            source = target
        small = lab.target(source, backend="memfd")
        receive = lab.receive(small)
        lab.migrate(source, receive.address).refuses("use huge pages on both sides or on neither")
        lab.stayed(source)
        for vm in (small, source):
            lab.retire(vm)


def machine_microvm(lab):
    source = lab.new_guest(machine="microvm")
    for _ in range(2):
        target = lab.target(source)
        lab.move(source, target)
        source = target


def several_bulk_connections(lab):
    source = lab.guest()
    lab.move(source, lab.target(source), migrate=("--bulk", "4"))


def push_of_limited_rate(lab):
    """Most pages are then fetched on demand."""
    source = lab.guest()
    lab.move(source, lab.target(source), receive=("--max-rate", "64M"))


def paused_guest_stays_paused(lab):
    source = lab.guest()
    source.monitor.command("stop")
    target = lab.target(source)
    receive = lab.receive(target)
    migrate = lab.migrate(source, receive.address)
    migrate.end(0)
    receive.end(0)
    assert target.status() == "paused", target.status()
    assert "RESUME" not in target.events(), target.events()
    target.monitor.command("cont")
    target.pages = source.pages
    target.works()
    target.verify()
    lab.current = target


def qemus_own_postcopy_is_set_aside(lab):
    source = lab.guest()
    target = lab.target(source)
    for vm in (source, target):
        vm.monitor.command("migrate-set-capabilities",
                           capabilities=[{"capability": "postcopy-ram", "state": True}])
    lab.move(source, target)
    assert target.settings()[0]["postcopy-ram"], "QEMU's settings were not put back"
    assert not target.settings()[0]["x-ignore-shared"], "QEMU's settings were not put back"


def memory_stays_small(lab):
    source = lab.guest()
    target = lab.target(source)
    receive = lab.receive(target)
    link = lab.forwarder(receive)
    gate = link.hold("Complete")
    migrate = lab.migrate(source, link.address)
    gate.wait(vm_support.LIMIT_S)
    # Everything is there, both are still alive.
    used = {c.name: c.memory_kib("VmHWM") for c in (receive, migrate)}
    gate.open()
    lab.arrived(source, target, migrate, receive)
    limit = (64 * MIB + source.info["mem_bytes"] // 1000) // 1024
    print(f"memory in KiB, of {limit}: {used}")
    assert max(used.values()) < limit, f"{used}, limit {limit} KiB"


def zero_pages_in_file(path):
    """Runs of pages (offset, bytes) that are present and all zero. Holes are not touched."""
    runs = []
    with open(path, "rb") as f:
        size, at = os.fstat(f.fileno()).st_size, 0
        while at < size:
            try:
                at = os.lseek(f.fileno(), at, os.SEEK_DATA)
            except OSError:
                break
            end = os.lseek(f.fileno(), at, os.SEEK_HOLE)
            for page in range(at, end, PAGE):
                if os.pread(f.fileno(), PAGE, page) == bytes(PAGE):
                    runs.append((page, PAGE))
            at = end
    return runs


def discarded_pages_are_zero_again(lab):
    """What a balloon does on the host, while the push is under way: pages that came go again."""
    source = lab.guest()
    target = lab.target(source)
    receive = lab.receive(target)
    link = lab.forwarder(receive)
    migrate = lab.migrate(source, link.address)
    link.hold("PushStart").wait(vm_support.LIMIT_S)
    target.works()
    # The guest stands still meanwhile, and nobody needs what is zero.
    target.monitor.command("stop")
    runs = zero_pages_in_file(target.info["ram_file"])
    assert runs, "no page of zeros has come"
    with open(target.info["ram_file"], "r+b") as f:
        for offset, length in runs:
            vm_support.punch_hole(f.fileno(), offset, length)
    target.monitor.command("cont")
    target.works()
    link.gates[0].open()
    lab.arrived(source, target, migrate, receive)


CASES = {f.__name__: f for f in (
    moves_and_keeps_its_memory, each_stage_is_told_in_order, source_never_runs_again, back_and_forth,
    several_bulk_connections, push_of_limited_rate, paused_guest_stays_paused, qemus_own_postcopy_is_set_aside,
    memory_stays_small, discarded_pages_are_zero_again, backends_of_two_kinds, backend_memfd_and_two_cpus,
    machine_microvm, huge_pages)}


if __name__ == "__main__":
    sys.exit(vm_support.main(CASES, lambda p: p.add_argument("--moves", type=int, default=4), rest=0))
