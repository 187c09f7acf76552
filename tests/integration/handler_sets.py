#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Working sets: recorded while VMs start, and pushed first when they start again."""
import os
import sys
import urllib.request
from contextlib import ExitStack

from cli_support import PAGE, Run, Serve, main, need_root, run, wait_for
from handler_support import MIB, Handler, Vmm, snapshot

SIZE = 64 * MIB


def pages_of(path):
    with open(path, encoding="ascii") as f:
        *lines, end = list(f)[1:]
        assert end == "end\n"
        return sum(int(line.split()[2]) for line in lines) // PAGE


def record(folder, source, path, seed, into):
    with Handler(folder, *source, "--record", into) as h:
        with Vmm(h, path, SIZE // 2, SIZE // 2) as vm:
            vm.connected().good("touch", 600, 2, seed)
        h.event("vm-gone")
        assert h.stop()[0] == 0


def recordings_are_put_together(folder):
    need_root()
    path, into = snapshot(folder, SIZE), os.path.join(folder, "guest.set")
    record(folder, ["--file", path], path, 7, into)
    one = pages_of(into)
    assert 300 < one <= 600, one
    record(folder, ["--file", path], path, 99, into)
    assert one < pages_of(into) <= 1200
    record(folder, ["--file", path], path, 7, into)
    with open(into, encoding="ascii") as f:
        assert f.readline().split() == ["pageferry-working-set", "2", str(SIZE), "3"]


def recording_has_a_place_before_a_guest_starts(folder):
    path, into = snapshot(folder, SIZE), os.path.join(folder, "nowhere", "guest.set")
    code, _, err = run("handler", "--socket", os.path.join(folder, "none.sock"), "--file", path, "--record", into)
    assert code == 1 and "--record: " in err and into in err and len(err.splitlines()) == 1, (code, err)


def handlers_may_record_into_one_file(folder):
    need_root()
    path, into = snapshot(folder, SIZE), os.path.join(folder, "shared.set")
    with ExitStack() as stack:
        handlers = [stack.enter_context(Handler(folder, "--file", path, "--record", into, name=f"{i}.sock")) for i in range(3)]
        vms = [stack.enter_context(Vmm(h, path, SIZE)) for h in handlers]
        for i, vm in enumerate(vms):
            vm.connected().good("touch", 200, 1, 1000 * i)
        # They end at once.
        for vm in vms:
            vm.kill()
        for h in handlers:
            h.event("vm-gone")
            assert h.stop()[0] == 0
    with open(into, encoding="ascii") as f:
        assert f.readline().split()[3] == "3"
    assert pages_of(into) > 500
    assert not [name for name in os.listdir(folder) if name.startswith("shared.set.")]


def replay(folder, source, path, into):
    with Handler(folder, *source, "--replay", into) as h:
        with Vmm(h, path, SIZE // 2, SIZE // 2) as vm:
            vm.connected()
            n = pages_of(into)
            wait_for("the set is there", lambda: h.status().get("pages_pushed", 0) > n * 0.8)
            vm.good("touch", 600, 2, 7)
            faults = h.status()["faults"]
            assert faults < n * 0.1, f"{faults} faults in spite of {n} pages that were pushed first"
            vm.good("verify")
            h.event("vm-complete")
            said = h.status()["replay"]
            assert said["vms"] == 1 and said["hits"] and said["hit_rate"] > 0.5, said
            rate = f"working set: {said['hits'] * 100 // said['samples']} % of {said['samples']} samples were wanted, by 1 VM"
            assert rate in run("status", "--control", h.control)[1]
        assert h.stop()[0] == 0


def set_is_pushed_first(folder):
    need_root()
    path, into = snapshot(folder, SIZE), os.path.join(folder, "guest2.set")
    record(folder, ["--file", path], path, 7, into)
    replay(folder, ["--file", path, "--max-rate", "2M"], path, into)


def set_is_pushed_first_from_afar(folder):
    need_root()
    path, into = snapshot(folder, SIZE), os.path.join(folder, "guest3.set")
    with Serve("--file", path, "--max-rate", "3M") as s:
        source = ["--from", s.address, "--plaintext"]
        record(folder, source, path, 7, into)
        replay(folder, source, path, into)


def set_that_does_not_help_is_turned_down(folder):
    need_root()
    path, into = snapshot(folder, SIZE), os.path.join(folder, "guest4.set")
    record(folder, ["--file", path], path, 7, into)
    with Handler(folder, "--file", path, "--replay", into) as h:
        assert h.status()["replay"]["pushed_first"]
        for _ in range(12):
            with Vmm(h, path, SIZE // 2, SIZE // 2) as vm:
                vm.connected()
                h.event("vm-complete")
        said = h.status()["replay"]
        assert said["samples"] > 64 and not said["pushed_first"], said
        assert h.stop()[0] == 0


def set_is_turned_down_by_vms_that_end_early(folder):
    need_root()
    path, into = snapshot(folder, SIZE), os.path.join(folder, "guest6.set")
    with open(into, "w", encoding="ascii") as f:
        f.write(f"pageferry-working-set 2 {SIZE} 1\n0 0 {SIZE // 4} 1\nend\n")
    with Handler(folder, "--file", path, "--replay", into, "--max-rate", "2M") as h:
        for _ in range(3):  # these say nothing of it
            with Vmm(h, path, SIZE) as vm:
                vm.connected().good("touch", 1)
            h.event("vm-gone")
        said = h.status()["replay"]
        assert said["pushed_first"] and not said["vms"], said
        for _ in range(8):
            # What it has is in the other half.
            with Vmm(h, path, SIZE // 2, offset=SIZE // 2) as vm:
                vm.connected().good("touch", 1000, 2)
            h.event("vm-gone")
        said = h.status()["replay"]
        assert said["vms"] == 8 and not said["hits"] and not said["pushed_first"], said
        assert h.stop()[0] == 0


def set_is_spoken_of_to_people(folder):
    need_root()
    path, into = snapshot(folder, SIZE), os.path.join(folder, "guest7.set")
    with open(into, "w", encoding="ascii") as f:
        f.write(f"pageferry-working-set 2 {SIZE} 1\n0 0 {SIZE // 4} 1\nend\n")
    args = ["handler", "--socket", os.path.join(folder, "people.sock"), "--file", path, "--replay", into]
    with Run(*args) as h:
        assert "listening" in h.read_line()
        assert "working set: 4096 pages; no VM has said yet" in h.stop()[1]
    with Run(*args, "--json", "--metrics", ":0") as h:
        url = f"http://{h.event('metrics')['address']}/metrics"

        def has_figures():
            with urllib.request.urlopen(url, timeout=30) as answer:
                return b"\npageferry_working_set_pages 4096\n" in answer.read()

        wait_for("figures of the working set", has_figures)


def another_snapshots_set_is_refused(folder):
    need_root()
    path, into = snapshot(folder, SIZE), os.path.join(folder, "guest5.set")
    with open(into, "w", encoding="ascii") as f:
        f.write("pageferry-working-set 2 4096 1\n0 0 4096 1\nend\n")
    for option in ("--replay", "--record"):
        code, _, err = run("handler", "--socket", os.path.join(folder, "x"), "--file", path, option, into)
        # What it is about is named.
        assert code == 1 and "another size" in err and into in err, (code, err)


if __name__ == "__main__":
    sys.exit(
        main(
            [
                recordings_are_put_together,
                recording_has_a_place_before_a_guest_starts,
                handlers_may_record_into_one_file,
                set_is_pushed_first,
                set_is_pushed_first_from_afar,
                set_that_does_not_help_is_turned_down,
                set_is_turned_down_by_vms_that_end_early,
                set_is_spoken_of_to_people,
                another_snapshots_set_is_refused,
            ]
        )
    )
