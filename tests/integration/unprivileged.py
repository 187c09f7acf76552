#!/usr/bin/python3 -B
# SPDX-License-Identifier: Apache-2.0
"""serve and attach without any privilege: a user with access to /dev/userfaultfd, as docs/security.md says.

The test's root makes a mount namespace in which that device is the user's, and becomes the user.
"""
import ctypes
import hashlib
import os
import shutil
import stat
import subprocess
import sys
import tempfile

import cli_support
from cli_support import PAGE, Holder, Run, Serve, Skip, content, main, need_root

DEVICE = "/dev/userfaultfd"
NOBODY = 65534
PR_SET_DUMPABLE = 4
CLONE_NEWNS, CLONE_NEWUSER = 0x20000, 0x10000000
MS_BIND, MS_REC, MS_PRIVATE = 0x1000, 0x4000, 0x40000
libc = ctypes.CDLL(None, use_errno=True)


def call(name, *args):
    if getattr(libc, name)(*args):
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")


def memory_moves(folder):
    """Run as the user: all of a serve and an attach, and what they may do."""
    data = content(500)
    path = os.path.join(folder, "memory")
    with open(path, "wb") as f:
        f.write(data)
    with open("/proc/self/status", encoding="ascii") as f:
        fields = dict(line.split(":\t", 1) for line in f.read().splitlines() if ":\t" in line)
    if os.environ["FERRY_TEST_INSIDE"] == "user":
        assert int(fields["CapEff"], 16) == 0, fields["CapEff"]
    for more in ((), ("--supervise",)):
        with Holder("memfd", len(data)) as h, Serve("--file", path, "--once") as s:
            with Run("attach", "--json", "--pid", h.pid, "--match", "ferry-test", "--from", s.address, *more) as a:
                assert a.end(0)["pages_known"] == 500
            assert h.ask("hash") == hashlib.sha256(data).hexdigest()
            s.end(0)


def without_access_it_says_what_to_do(_):
    """The user may not open the device: nothing is changed, and the way out is told."""
    with Holder("memfd", 16 * PAGE) as h:
        with Run("attach", "--json", "--pid", h.pid, "--match", "ferry-test", "--from", "127.0.0.1:1") as a:
            assert "/dev/userfaultfd" in a.end(1)["error"]
        assert h.ask("byte", 5) == "0"


def run_inside(folder, kind, tests):
    """This file again, as an ordinary user; @kind "namespace": who is root of a user namespace."""
    node = os.path.join(folder, "device")
    shutil.copy(Run.program, os.path.join(folder, "pageferry"))
    for f in (__file__, cli_support.__file__):
        shutil.copy(f, folder)
    os.chmod(folder, 0o755)
    if not os.path.exists(node):
        os.mknod(node, stat.S_IFCHR | 0o600, os.stat(DEVICE).st_rdev)
    os.chown(node, NOBODY if "memory_moves" in tests else 0, 0)

    def become():
        call("unshare", CLONE_NEWNS)
        call("mount", b"none", b"/", None, MS_REC | MS_PRIVATE, None)
        call("mount", node.encode(), DEVICE.encode(), None, MS_BIND, None)
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        cli_support.die_with_parent()
        if kind == "namespace":
            libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)  # else our own files in /proc are root's
            call("unshare", CLONE_NEWUSER)
            for name, text in (("setgroups", "deny"), ("uid_map", f"0 {NOBODY} 1"), ("gid_map", f"0 {NOBODY} 1")):
                with open(f"/proc/self/{name}", "w", encoding="ascii") as f:
                    f.write(text)

    # What the user makes is the user's.
    with tempfile.TemporaryDirectory(prefix="pageferry-user-") as own:
        os.chown(own, NOBODY, NOBODY)
        done = subprocess.run(
            [sys.executable, "-B", os.path.join(folder, os.path.basename(__file__)), os.path.join(folder, "pageferry")],
            env={**os.environ, "FERRY_TEST_INSIDE": kind, "FERRY_TEST_NAMES": " ".join(tests), "TMPDIR": own},
            preexec_fn=become)
    assert done.returncode == 0, done.returncode


def need_device():
    need_root()
    if not os.path.exists(DEVICE):
        raise Skip("no /dev/userfaultfd: it takes Linux 6.1")


def an_ordinary_user_needs_the_device_only(folder):
    need_device()
    run_inside(folder, "user", ["memory_moves"])


def the_root_of_a_user_namespace_does_too(folder):
    need_device()
    try:
        with open("/proc/sys/user/max_user_namespaces", encoding="ascii") as f:
            if not int(f.read()):
                raise Skip("user namespaces are turned off")
    except FileNotFoundError:
        raise Skip("the kernel has no user namespaces") from None
    run_inside(folder, "namespace", ["memory_moves"])


def a_user_without_it_is_told(folder):
    need_device()
    with open("/proc/sys/vm/unprivileged_userfaultfd", encoding="ascii") as f:
        if int(f.read()):
            raise Skip("vm.unprivileged_userfaultfd is 1: everybody has access")
    run_inside(folder, "user", ["without_access_it_says_what_to_do"])


if __name__ == "__main__":
    inside = [memory_moves, without_access_it_says_what_to_do]
    if "FERRY_TEST_INSIDE" in os.environ:
        names = os.environ["FERRY_TEST_NAMES"].split()
        sys.exit(main([t for t in inside if t.__name__ in names]))
    sys.exit(
        main(
            [
                an_ordinary_user_needs_the_device_only,
                the_root_of_a_user_namespace_does_too,
                a_user_without_it_is_told,
            ]
        )
    )
