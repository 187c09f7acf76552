#!/usr/bin/python3 -B
# SPDX-License-Identifier: Apache-2.0
"""A guest moves, and nobody has a privilege: QEMU, migrate and receive are an ordinary user's, without capabilities.

The test's root makes a mount namespace in which /dev/userfaultfd is the user's, and becomes the user.
"""
import argparse
import ctypes
import os
import shutil
import stat
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.realpath(__file__))
TREE = os.path.normpath(os.path.join(HERE, "..", ".."))
sys.path.insert(0, HERE)

import vm_support  # noqa: E402

DEVICE = "/dev/userfaultfd"
NOBODY = 65534
CLONE_NEWNS = 0x20000
MS_BIND, MS_REC, MS_PRIVATE = 0x1000, 0x4000, 0x40000
libc = ctypes.CDLL(None, use_errno=True)


def fields_of(pid):
    with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as f:
        return dict(line.split(":\t", 1) for line in f.read().splitlines() if ":\t" in line)


def unprivileged(*pids):
    for pid in pids:
        fields = fields_of(pid)
        assert fields["Uid"].split() == [str(NOBODY)] * 4, fields["Uid"]
        for name in ("CapPrm", "CapEff"):
            assert int(fields[name], 16) == 0, (fields["Name"], name, fields[name])


def a_guest_moves_and_every_page_is_right(lab):
    source = lab.guest()
    target = lab.target(source)
    receive = lab.receive(target, "--verify")
    migrate = lab.migrate(source, receive.address)
    migrate.stage("check")
    unprivileged(os.getpid(), source.pid, target.pid, migrate.pid, receive.pid)
    _, received = lab.arrived(source, target, migrate, receive)
    v = received["verify"]
    assert v["complete"] and v["pages"] and not v["wrong"], v


CASES = {f.__name__: f for f in (a_guest_moves_and_every_page_is_right,)}


def missing():
    why = vm_support.missing()
    if why or not os.path.exists(DEVICE):
        return why or "no /dev/userfaultfd: it takes Linux 6.1"
    try:
        with open("/proc/sys/kernel/yama/ptrace_scope", encoding="ascii") as f:
            if int(f.read()):
                return "kernel.yama.ptrace_scope is not 0: a user may not attach to its own QEMU"
    except FileNotFoundError:
        pass
    return None


def call(name, *args):
    if getattr(libc, name)(*args):
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")


def run_as_user(folder, program):
    """This file again, from a copy that the user can read. Returns its results, as TAP."""
    tree, own, node = (os.path.join(folder, name) for name in ("tree", "own", "device"))
    for part in ("tests/vm", "guest-test-vm"):
        shutil.copytree(os.path.join(TREE, part), os.path.join(tree, part), ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(program, os.path.join(tree, "pageferry"))
    image = os.environ.get("PAGEFERRY_IMAGE_DIR") or os.path.join(TREE, "out", "guest-image")
    shutil.copytree(image, os.path.join(tree, "image"))
    os.mkdir(own)
    os.chown(own, NOBODY, NOBODY)
    os.mknod(node, stat.S_IFCHR | 0o600, os.stat(DEVICE).st_rdev)
    os.chown(node, NOBODY, NOBODY)
    for path, _, _ in os.walk(tree):
        os.chmod(path, 0o755)
    os.chmod(folder, 0o755)

    def become():
        call("unshare", CLONE_NEWNS)
        call("mount", b"none", b"/", None, MS_REC | MS_PRIVATE, None)
        call("mount", node.encode(), DEVICE.encode(), None, MS_BIND, None)
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        vm_support.die_with_parent()

    tap = os.path.join(own, "tap")
    subprocess.run([sys.executable, "-B", os.path.join(tree, "tests", "vm", os.path.basename(__file__)), "--tap", tap,
                    os.path.join(tree, "pageferry")],
                   env={**os.environ, "FERRY_TEST_INSIDE": "1", "TMPDIR": own, "HOME": own,
                        "PAGEFERRY_IMAGE_DIR": os.path.join(tree, "image")},
                   cwd=own, preexec_fn=become)
    try:
        with open(tap, encoding="utf-8") as f:
            return f.read()
    except FileNotFoundError:
        return ""


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--tap", help="file for the results")
    p.add_argument("program")
    args = p.parse_args()
    why = missing()
    if why:
        results = f"1..{len(CASES)}\n" + "".join(f"ok - vm::{name} # SKIP {why}\n" for name in CASES)
    else:
        with tempfile.TemporaryDirectory(prefix="ferry-user-") as folder:
            results = run_as_user(folder, os.path.abspath(args.program))
    if args.tap:
        with open(args.tap, "w", encoding="utf-8") as f:
            f.write(results)
    return 0 if results and "not ok" not in results else 1


if __name__ == "__main__":
    if "FERRY_TEST_INSIDE" in os.environ:
        vm_support.missing = lambda: None
        sys.exit(vm_support.main(CASES))
    sys.exit(main())
