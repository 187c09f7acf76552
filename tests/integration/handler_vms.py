#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""VMs restored from a snapshot file by 'pageferry handler'."""
import json
import os
import shutil
import signal
import socket
import sys
from contextlib import ExitStack

from cli_support import Run, main, need_root, run
from handler_support import MIB, HandedOver, Handler, Vmm, snapshot, vmm_stand_in

SLOW = "8M"  # of the push: some seconds for what is restored here


def vm_is_restored_and_left(folder):
    need_root()
    path = snapshot(folder, 24 * MIB)
    with Handler(folder, "--file", path) as h:
        with Vmm(h, path, 16 * MIB, 8 * MIB) as vm:
            vm.connected()
            vm.good("touch", 2000)
            assert h.event("vm-complete")["vmm_pid"] == vm.pid
            vm.good("verify")
            # It was left: what is discarded now is the kernel's matter.
            vm.ask("drop", 50)
            vm.good("verify")
        assert h.stop()[0] == 0


def messages_of_all_versions_are_understood(folder):
    need_root()
    path = snapshot(folder, 16 * MIB)
    many = [MIB // 2] * 32  # some 4 KiB of text
    with Handler(folder, "--file", path) as h:
        for sizes, options in (
            ([16 * MIB], {"old": 1}),
            ([8 * MIB, 8 * MIB], {"keys": "many", "fds": 3}),
            ([16 * MIB], {"late": 1}),
            ([4 * MIB], {"offset": 8 * MIB}),
            (many, {}),
        ):
            with Vmm(h, path, *sizes, **options) as vm:
                vm.connected().good("verify")
                h.event("vm-complete", vmm_pid=vm.pid)
        assert h.stop()[0] == 0


def what_is_no_vm_is_turned_away(folder):
    need_root()
    path = snapshot(folder, 4 * MIB)
    region = {"base_host_virt_addr": 1 << 40, "size": MIB, "offset": 0, "page_size": 4096}
    fds = [os.open("/dev/null", os.O_RDONLY)]
    with Handler(folder, "--file", path) as h:

        def send(text, fds):
            s = socket.socket(socket.AF_UNIX)
            s.connect(h.socket)
            socket.send_fds(s, [text], fds)
            return s

        for text in (b"GET / HTTP/1.1\r\n\r\n", b"[" + b" " * 70000):
            send(text, fds)
            h.event("turned-away")
        send(b"[", []).close()
        assert "complete" in h.event("turned-away")["error"]
        for text in (b"[]", b"[1]", b'["]"]', json.dumps([region]).encode()):
            s = send(text, fds)
            said = h.event("vm-refused")
            assert said["error"] and said["vmm_pid"] == os.getpid(), (text, said)
            s.close()
        # Where the message says is no memory.
        with Vmm(h, path, MIB, wrong=1) as vm:
            vm.connected()
            said = h.event("vm-refused")
            assert said["vmm_pid"] == vm.pid
            assert "base_host_virt_addr 0x10000" in said["error"] and "region 0" in said["error"], said
        # One that asks for more than the snapshot has.
        with Vmm(h, path, 8 * MIB) as vm:
            vm.connected()
            said = h.event("vm-refused")
            assert said["vmm_pid"] == vm.pid and "snapshot" in said["error"], said
            vm.send("touch", 1)
            assert vm.is_silent(0.3), "a VM that is not served was given something"
        with Vmm(h, path, 4 * MIB) as vm:
            vm.connected().good("verify")
            h.event("vm-complete")
        assert h.stop()[0] == 0


def file_must_be_one(folder):
    empty = os.path.join(folder, "empty.mem")
    with open(empty, "wb"):
        pass
    for path, why in ((folder, "a folder"), ("/dev/null", "no ordinary file"), (empty, "is empty")):
        name = os.path.join(folder, "none.sock")
        code, _, err = run("handler", "--socket", name, "--file", path)
        assert code == 1 and why in err and path in err and len(err.splitlines()) == 1, (code, err)
        assert not os.path.exists(name)


def there_is_nothing_to_record_but_to_watch(folder):
    need_root()
    path = snapshot(folder, 4 * MIB)
    with Handler(folder, "--file", path) as h:
        code, _, err = run("trace", "record", "-o", os.path.join(folder, "no.pft"), "--control", h.control)
        assert code == 1 and "'handler' keeps no records" in err and "trace live" in err, err
        with Run("trace", "live", "--json", "--control", h.control) as live:
            assert json.loads(live.read_line())["watched"] == "handler"
        assert h.stop()[0] == 0


def discarded_pages_are_zero(folder):
    need_root()
    path = snapshot(folder, 32 * MIB)
    with Handler(folder, "--file", path, "--max-rate", SLOW) as h:
        with Vmm(h, path, 32 * MIB) as vm:
            vm.connected()
            assert vm.good("storm", 4000, 6)["written"] > 200
            # The balloon goes on while the VM becomes complete, and is left.
            vm.send("storm", 20000, 6)
            h.event("vm-complete")
            assert vm.answer()["bad"] == 0
            vm.good("verify")
        assert h.stop()[0] == 0


def vmms_that_die_make_room(folder):
    need_root()
    path = snapshot(folder, 16 * MIB)
    with Handler(folder, "--file", path, "--max-rate", "1M", "--max-vms", "2") as h:
        for _ in range(3):
            with Vmm(h, path, 16 * MIB) as a, Vmm(h, path, 16 * MIB) as b, Vmm(h, path, 16 * MIB) as c:
                for vm in (a, b, c):
                    vm.connected()
                # The third one's turn comes when another has ended.
                events = h.events("vm-filling", "vm-filling", "vm-waits")
                first, second = (e["vmm_pid"] for e in events["vm-filling"])
                h_vms = {vm.pid: vm for vm in (a, b, c)}
                h_vms.pop(first).kill()
                events = h.events("vm-gone", "vm-filling")
                third = events["vm-filling"][0]["vmm_pid"]
                assert events["vm-gone"][0]["vmm_pid"] == first
                h_vms.pop(second)
                assert h_vms.pop(third).good("touch", 20)
            h.events("vm-gone", "vm-gone")
        assert h.stop()[0] == 0


def vmms_that_die_leave_their_places(folder):
    """More of them than sessions that the handler's page server has room for."""
    need_root()
    path = snapshot(folder, 16 * MIB)
    with Handler(folder, "--file", path, "--max-rate", "1M", "--max-vms", "1") as h:
        for _ in range(24):
            with Vmm(h, path, 16 * MIB) as vm:
                vm.connected().good("touch", 1)
            h.event("vm-gone", vmm_pid=vm.pid)
        assert h.stop()[0] == 0


def vmm_of_another_user_is_turned_away(folder):
    """Also where the socket's mode would let it in. The others don't notice."""
    need_root()
    os.chmod(folder, 0o755)
    path = snapshot(folder, 16 * MIB)
    with Handler(folder, "--file", path, "--max-rate", "512K", "--user", "65533") as h:
        made = os.stat(h.socket)
        assert (made.st_uid, made.st_mode & 0o777) == (65533, 0o600), made
        os.chmod(h.socket, 0o666)
        with Vmm(h, path, 16 * MIB, uid=65533) as vm:
            vm.connected()
            h.event("vm-filling", vmm_pid=vm.pid)
            with Vmm(h, path, 16 * MIB, uid=65534) as other:
                said = h.event("turned-away")["error"]
                assert f"process {other.pid} of user 65534 may not connect; see --user" in said, said
            assert [v["vmm_pid"] for v in h.status()["vm_list"]] == [vm.pid]
            vm.good("verify")
            h.event("vm-complete", vmm_pid=vm.pid)
        with Vmm(h, path, MIB) as vm:
            vm.connected().good("verify")
            h.event("vm-complete", vmm_pid=vm.pid)
        assert h.stop()[0] == 0


def vmms_that_die_at_once_are_gone(folder):
    """Not refused: their memory has gone, their connection is open still."""
    need_root()
    path = snapshot(folder, 4 * MIB)
    with Handler(folder, "--file", path) as h:
        for _ in range(6):
            pid = os.fork()
            if not pid:
                ballast = b"x" * (256 * MIB)  # takes some time to go
                vmm_stand_in.Vmm(h.socket, path, [4 * MIB], {})
                os._exit(len(ballast) & 1)
            os.waitpid(pid, 0)
            while (said := json.loads(h.read_line()))["event"] != "vm-gone":
                assert said["event"] != "vm-refused", said
            assert said["vmm_pid"] == pid
        assert h.stop()[0] == 0


def memory_that_was_not_registered_is_told(folder):
    need_root()
    path = snapshot(folder, 4 * MIB)
    with Handler(folder, "--file", path) as h:
        with Vmm(h, path, 2 * MIB, 2 * MIB, unregistered=1) as vm:
            said = h.event("vm-trouble", vmm_pid=vm.pid)
            assert "2 of its 2 regions were not registered" in said["error"], said
            h.event("vm-complete")
        with Vmm(h, path, 2 * MIB, 2 * MIB) as vm:
            while (said := json.loads(h.read_line()))["event"] != "vm-complete":
                assert said["event"] != "vm-trouble", said
        assert h.stop()[0] == 0


def many_at_once(folder):
    need_root()
    path = snapshot(folder, 4 * MIB)
    n = 64
    with Handler(folder, "--file", path, "--max-vms", n) as h, ExitStack() as stack:
        vms = [stack.enter_context(Vmm(h, path, 3 * MIB, MIB, seed=i)) for i in range(n)]
        for vm in vms:
            vm.connected()
        for vm in vms:
            vm.send("touch", 300, 2)
        for vm in vms:
            assert vm.answer()["bad"] == 0
        for vm in vms:
            vm.good("verify")
        h.events(*["vm-complete"] * n)
        code, out, err = h.stop()
        last = json.loads(out.splitlines()[-1])
        assert code == 0 and last["vms_complete"] == n, (out, err)


def many_more_than_fit(folder):
    need_root()
    path = snapshot(folder, 4 * MIB)
    n = 48
    with Handler(folder, "--file", path, "--max-vms", 6) as h, ExitStack() as stack:
        vms = [stack.enter_context(Vmm(h, path, 4 * MIB, seed=i)) for i in range(n)]
        for vm in vms:
            vm.connected().send("touch", 50)
        for vm in vms:
            assert vm.answer()["bad"] == 0
        h.events(*["vm-complete"] * n)
        for vm in vms:
            vm.good("verify")
        assert h.stop()[0] == 0


def snapshot_that_changes_is_told(folder):
    """By who fills a VM from it, and to who comes later; what is cut off is given to nobody."""
    need_root()
    path = snapshot(folder, 8 * MIB)
    same = shutil.copy(path, os.path.join(folder, "same.mem"))

    def write_to_it():
        with open(path, "r+b") as f:
            f.write(b"another")

    for change, is_cut in (
        (lambda: os.truncate(path, MIB), True),
        (lambda: os.truncate(path, 9 * MIB), False),
        (write_to_it, False),
    ):
        shutil.copy(same, path)
        with Handler(folder, "--file", path, "--max-rate", "64K") as h:
            with Vmm(h, same, 8 * MIB) as vm:
                vm.connected().good("touch", 10)
                change()
                vm.send("verify")
                with Vmm(h, same, 8 * MIB) as other:
                    # The push may find out before anybody touches it.
                    said = h.events("vm-refused", "vm-trouble", *(() if is_cut else ("vm-complete",)))
                    refused, trouble = (said[name][0] for name in ("vm-refused", "vm-trouble"))
                    assert refused["vmm_pid"] == other.connected().pid, said
                assert "written to, or cut" in refused["error"], said
                assert trouble["vmm_pid"] == vm.pid, said
                if is_cut:
                    assert "can't be had any more" in trouble["error"], said
                    assert vm.is_silent(0.2), "what is not there was given out"
                else:
                    assert "of two moments" in trouble["error"], said
            code, out, err = h.stop()
            assert code == 0, (code, err)
            assert (json.loads(out.splitlines()[-1])["pages_lost"] > 0) == is_cut, out


def killed_worker_is_replaced(folder):
    need_root()
    path = snapshot(folder, 64 * MIB)
    with Handler(folder, "--file", path, "--max-rate", "1M") as h:
        with Vmm(h, path, 64 * MIB) as vm:
            vm.connected()
            for i in range(4):
                vm.good("touch", 50)
                vm.ask("drop", 5 + 5 * i)
                vm.good("touch", 50)
                vm.ask("drop", 7 + 5 * i)
                # In the middle of it all.
                vm.send("touch", 300, 4)
                assert h.kill_worker(64 * MIB // 4096 * (12 + 10 * i) // 100 - 1)["restarts"] == i + 1
                assert vm.answer()["bad"] == 0
                vm.good("storm", 100, 4)
            vm.good("verify")
            h.event("vm-complete", vmm_pid=vm.pid)
            vm.good("verify")
        assert h.stop()[0] == 0


def socket_may_be_handed_over(folder):
    need_root()
    path, name = snapshot(folder, 4 * MIB), os.path.join(folder, "systemd.sock")
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(name)
        s.listen()
        with HandedOver(s, name, "--file", path) as h:
            with Vmm(name, path, 4 * MIB) as vm:
                vm.connected().good("verify")
            assert h.stop()[0] == 0
    assert os.path.exists(name), "the socket is systemd's"


def replaced_handler_finishes_its_vms(folder):
    """As systemd ends one and starts the next: with the unit's signal, of which the worker hears nothing."""
    need_root()
    path, name = snapshot(folder, 16 * MIB), os.path.join(folder, "replaced.sock")
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(name)
        s.listen()
        with HandedOver(s, name, "--file", path, "--max-rate", "8M") as old:
            with Vmm(name, path, 16 * MIB) as vm:
                vm.connected().good("touch", 10)
                os.kill(old.pid, signal.SIGKILL)
                with HandedOver(s, name, "--file", path) as new:
                    with Vmm(name, path, 16 * MIB) as other:
                        other.connected().good("verify")
                        assert new.event("vm-complete")["vmm_pid"] == other.pid
                    vm.good("storm", 20, 2)
                    vm.good("verify")
                    assert old.event("vm-complete")["vmm_pid"] == vm.pid
                    assert new.stop()[0] == 0


if __name__ == "__main__":
    sys.exit(
        main(
            [
                vm_is_restored_and_left,
                messages_of_all_versions_are_understood,
                what_is_no_vm_is_turned_away,
                file_must_be_one,
                there_is_nothing_to_record_but_to_watch,
                discarded_pages_are_zero,
                vmms_that_die_make_room,
                vmms_that_die_leave_their_places,
                vmm_of_another_user_is_turned_away,
                vmms_that_die_at_once_are_gone,
                memory_that_was_not_registered_is_told,
                many_at_once,
                many_more_than_fit,
                snapshot_that_changes_is_told,
                killed_worker_is_replaced,
                socket_may_be_handed_over,
                replaced_handler_finishes_its_vms,
            ]
        )
    )
