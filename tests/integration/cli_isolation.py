#!/usr/bin/python3 -B
# SPDX-License-Identifier: Apache-2.0
"""What a running command may still do: nothing that it doesn't need."""
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys

from cli_support import PAGE, Holder, Run, Serve, Skip, content, main, need_root, state_of, wait_for
from handler_support import Handler, Vmm

sys.path.append(os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "clients"))
from cloud_hypervisor_target import CloudHypervisor, make_snapshot  # noqa: E402

CAP = {"dac_override": 1, "dac_read_search": 2, "kill": 5, "net_bind_service": 10, "sys_ptrace": 19, "sys_admin": 21, "sys_nice": 23}
FILES_LIMIT = 65536  # of tools/isolation.c


def mask(*names):
    return sum(1 << CAP[n] for n in names)


def memory_file(folder):
    path = os.path.join(folder, "memory")
    with open(path, "wb") as f:
        f.write(content(600))
    return path


def is_sanitized():
    """Such builds run without a seccomp filter."""
    libraries = subprocess.run(["ldd", Run.program], stdout=subprocess.PIPE, text=True, check=True).stdout
    return any(name in libraries for name in ("libasan", "libtsan", "libubsan"))


def be_generous():
    """Commands begin with more than they need, and with core dumps."""
    resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 4 * FILES_LIMIT))
    except (OSError, ValueError):
        print("cannot raise the limit of open files: whether commands lower it is not seen")


def check_limits(pid):
    """No core dump has the guest's memory in it, and nobody takes descriptors without end."""
    with open(f"/proc/{pid}/limits", encoding="ascii") as f:
        limit = {line[:26].strip(): line[26:].split()[:2] for line in f}
    assert limit["Max core file size"] == ["0", "0"], limit
    assert all(n != "unlimited" and int(n) <= FILES_LIMIT for n in limit["Max open files"]), limit
    # As high as they may be.
    for name in ("Max locked memory", "Max nice priority"):
        assert limit[name][0] == limit[name][1], (name, limit[name])


def check_threads(pid, allowed, bound=None, confined=True, in_effect=None):
    """Every thread has just these capabilities, and no way to others; limits are set. @bound: of a root's exec.

    @in_effect: where they are not all of @allowed.
    """
    check_limits(pid)
    for task in os.listdir(f"/proc/{pid}/task"):
        try:
            with open(f"/proc/{pid}/task/{task}/status", encoding="ascii", errors="replace") as f:
                field = dict(line.split(":", 1) for line in f.read().splitlines() if ":" in line)
        except (FileNotFoundError, ProcessLookupError):
            assert task != str(pid), "it has ended"
            continue  # the kernel's own for io_uring come and go
        for name, wanted in (("CapPrm", allowed), ("CapEff", allowed if in_effect is None else in_effect)):
            assert int(field[name], 16) == wanted, (name, field[name], field["Name"])
        assert bound is None or int(field["CapBnd"], 16) == bound, field["CapBnd"]
        assert int(field["CapInh"], 16) == 0 and int(field["CapAmb"], 16) == 0
        assert field["NoNewPrivs"].strip() == "1"
        assert not confined or is_sanitized() or field["Seccomp"].strip() == "2", (field["Name"], field["Seccomp"])


def n_threads(pid):
    return len(os.listdir(f"/proc/{pid}/task"))


def serving_a_file_takes_nothing(folder):
    need_root()
    with Serve("--file", memory_file(folder)) as s:
        s.event("stage", stage="serve")
        assert n_threads(s.pid) > 1
        check_threads(s.pid, 0, bound=0)


def serving_a_process_takes_access_to_it(_):
    need_root()
    with Holder("anon", 64 * PAGE) as h:
        os.kill(h.pid, signal.SIGSTOP)
        wait_for("the process has stopped", lambda: state_of(h.pid) == "T")
        for command in ("serve", "criu"):
            with Run(command, "--json", "--pid", h.pid, "--match", h.ranges[0], "--listen", "127.0.0.1:0") as s:
                s.event("stage", stage="serve")
                assert n_threads(s.pid) > 1
                check_threads(s.pid, mask("sys_ptrace"))


def restoring_a_snapshot_takes_nothing(folder):
    """But for the target's socket, when that is another user's."""
    need_root()
    snapshot, path = os.path.join(folder, "snapshot"), os.path.join(folder, "ch.sock")
    make_snapshot(snapshot, [(0, content(16))])
    for owner, allowed in ((0, 0), (65534, mask("dac_override"))):
        with CloudHypervisor("unix:" + path) as t:
            os.chown(path, owner, owner)
            with Run("cloud-hypervisor", "--json", "--snapshot", snapshot, "--to", t.address) as r:
                t.up_to_running()
                r.event("stage", stage="serve")
                assert n_threads(r.pid) > 2
                check_threads(r.pid, allowed)
        os.unlink(path)


def attaching_takes_access_to_the_process(folder):
    need_root()
    with Holder("anon", 600 * PAGE) as h, Serve("--file", memory_file(folder)) as s:
        with Run("attach", "--json", "--pid", h.pid, "--match", h.ranges[0], "--from", s.address,
                 "--max-rate", "64K") as a:
            a.event("progress")
            assert n_threads(a.pid) > 3
            check_threads(a.pid, mask("sys_ptrace"))


def a_foreign_socket_takes_one_capability_more(folder):
    need_root()
    path = os.path.join(folder, "pages.sock")
    with Holder("anon", 600 * PAGE) as h, Serve("--file", memory_file(folder), listen="unix:" + path) as s:
        os.chown(path, 65534, 65534)
        with Run("attach", "--json", "--pid", h.pid, "--match", h.ranges[0], "--from", s.address,
                 "--max-rate", "64K") as a:
            a.event("progress")
            check_threads(a.pid, mask("sys_ptrace", "dac_override"))


def a_switchover_takes_access_to_qemu(folder):
    need_root()
    path = os.path.join(folder, "qmp.sock")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as qmp:
        qmp.bind(path)
        qmp.listen(5)  # a QEMU that never says anything
        with Run("receive", "--json", "--qmp", path, "--listen", "127.0.0.1:0") as r:
            to = r.event("listening")["address"]
            check_threads(r.pid, mask("sys_ptrace", "dac_read_search", "sys_admin", "sys_nice"))
            with Run("migrate", "--json", "--qmp", path, "--to", to, "--postcopy") as m:
                m.event("stage")
                check_threads(m.pid, mask("sys_ptrace", "dac_read_search"))
                m.child.send_signal(signal.SIGTERM)
                m.end(1)
            r.child.send_signal(signal.SIGTERM)
            r.end(1)


def child_of(pid):
    with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as f:
        children = f.read().split()
    return int(children[0]) if children else 0


def check_supervisor(pid, *names):
    """It forks and waits: what its children may need is there, and nothing of it in effect."""
    assert n_threads(pid) == 1
    check_threads(pid, mask(*names), bound=mask(*names), confined=False, in_effect=0)
    assert os.stat(f"/proc/{pid}/mem").st_uid == 0


def the_parent_of_a_supervised_command_does_nothing_but_wait(folder):
    need_root()
    path = os.path.join(folder, "supervised-qmp.sock")
    with Holder("anon", 600 * PAGE) as h, Serve("--file", memory_file(folder)) as s:
        with Run("attach", "--json", "--pid", h.pid, "--match", h.ranges[0], "--from", s.address,
                 "--max-rate", "64K", "--supervise") as a:
            for _ in range(2):
                a.event("progress")
                check_supervisor(a.pid, "sys_ptrace", "dac_read_search", "sys_admin", "dac_override", "kill",
                                 "net_bind_service")
                check_threads(child_of(a.pid), mask("sys_ptrace"))
                os.kill(child_of(a.pid), signal.SIGKILL)
                assert a.event("restarted")["signal"] == signal.SIGKILL
            a.event("progress")
            assert a.stop()[0] == 3
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as qmp:
        qmp.bind(path)
        qmp.listen(5)  # a QEMU that never says anything
        with Run("receive", "--json", "--qmp", path, "--listen", "127.0.0.1:0", "--supervise") as r:
            to = r.event("listening")["address"]
            check_supervisor(r.pid, "sys_ptrace", "dac_read_search", "sys_admin", "sys_nice", "dac_override",
                             "net_bind_service")
            check_threads(child_of(r.pid), mask("sys_ptrace", "dac_read_search", "sys_admin", "sys_nice"))
            with Run("migrate", "--json", "--qmp", path, "--to", to, "--postcopy", "--supervise") as m:
                m.event("stage")
                check_supervisor(m.pid, "sys_ptrace", "dac_read_search", "dac_override", "net_bind_service")
                check_threads(child_of(m.pid), mask("sys_ptrace", "dac_read_search"))
                m.child.send_signal(signal.SIGTERM)
                m.end(1)
            r.child.send_signal(signal.SIGTERM)
            r.end(1)


def privileged_port():
    """One that nobody has now. The kernel chooses none of these, and another run of this test hardly the same."""
    for port in random.sample(range(513, 1024), 511):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as s:
            try:
                s.bind(("127.0.0.1", port))
                return port
            except OSError:
                continue
    raise Skip("no port below 1024 is free")


def a_supervised_command_begins_with_what_it_needs(folder):
    """A key that is another user's, and a port that is not everybody's."""
    need_root()
    path, key = os.path.join(folder, "private"), os.path.join(folder, "private", "psk")
    os.mkdir(path, 0o700)
    with open(key, "w", encoding="ascii") as f:
        f.write("one:" + "5a" * 32 + "\n")
    os.chmod(key, 0o600)
    for name in (key, path):
        os.chown(name, 65534, 65534)
    port = privileged_port()
    with Holder("anon", 600 * PAGE) as h, Serve("--file", memory_file(folder), "--psk", key) as s:
        with Run("attach", "--json", "--pid", h.pid, "--match", h.ranges[0], "--from", s.address, "--psk", key,
                 "--metrics", f"127.0.0.1:{port}", "--supervise") as a:
            assert a.event("metrics")["address"].endswith(f":{port}")
            a.end(0)


def a_handler_takes_a_look_at_who_connects(folder):
    need_root()
    path, n_bytes = memory_file(folder), 600 * PAGE
    with Serve("--file", path) as s:
        for source in (["--file", path], ["--from", s.address]):
            with Handler(folder, *source, "--max-rate", "64K") as h, Vmm(h, path, n_bytes) as vm:
                vm.connected().good("touch", 10)
                check_threads(h.worker(), mask("sys_ptrace", "dac_read_search"))
                # It accepts and forks, and understands nothing of what comes.
                assert n_threads(h.pid) == 1
                check_threads(h.pid, mask("sys_ptrace", "dac_read_search", "dac_override"), confined=False)
                os.kill(h.worker(), signal.SIGKILL)
                h.event("restarted")
                vm.good("touch", 10)
                check_threads(h.worker(), mask("sys_ptrace", "dac_read_search"))
                vm.good("verify")
                assert h.stop()[0] == 0


def memory_stays_out_of_core_dumps_and_reach(folder):
    """A process that can't be dumped belongs to root in /proc, also when another user runs it."""
    need_root()
    program = os.path.join(folder, "pageferry")
    shutil.copy(Run.program, program)
    os.chmod(folder, 0o755)
    path = memory_file(folder)
    os.chmod(path, 0o644)

    def be_nobody():
        os.setgid(65534)
        os.setuid(65534)
        resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    Run.program, ours = program, Run.program
    try:
        with Run("serve", "--json", "--file", path, "--listen", "127.0.0.1:0", before=be_nobody) as s:
            s.event("stage", stage="serve")
            with open(f"/proc/{s.pid}/status", encoding="ascii") as f:
                assert "Uid:\t65534\t65534" in f.read()
            assert os.stat(f"/proc/{s.pid}/mem").st_uid == 0
            check_threads(s.pid, 0)
            status, _, err = s.stop()
            assert status == 0, err
            # Without a folder for it, there is no control socket, and that is said.
            assert "'pageferry status' won't find this command" in err, err
    finally:
        Run.program = ours


if __name__ == "__main__":
    be_generous()
    sys.exit(
        main(
            [
                serving_a_file_takes_nothing,
                serving_a_process_takes_access_to_it,
                restoring_a_snapshot_takes_nothing,
                attaching_takes_access_to_the_process,
                a_foreign_socket_takes_one_capability_more,
                a_switchover_takes_access_to_qemu,
                the_parent_of_a_supervised_command_does_nothing_but_wait,
                a_supervised_command_begins_with_what_it_needs,
                a_handler_takes_a_look_at_who_connects,
                memory_stays_out_of_core_dumps_and_reach,
            ]
        )
    )
