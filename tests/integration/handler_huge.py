#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""VMs with memory of 2 MiB pages, restored by 'pageferry handler' from a file, and from afar."""
import os
import signal
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.realpath(__file__)), ".."))
from huge_pages import HugePages  # noqa: E402  pylint: disable=wrong-import-position
from cli_support import Serve, Skip, main, need_root, wait_for  # noqa: E402  pylint: disable=wrong-import-position
from handler_support import MIB, Handler, Vmm, snapshot  # noqa: E402  pylint: disable=wrong-import-position

HUGE = 2 * MIB
N = 24


def restore(folder, path, *source):
    with HugePages(N, Skip), Handler(folder, *source) as h, Vmm(h, path, 8 * HUGE, 2 * HUGE, page=HUGE) as vm:
        vm.connected().good("touch", 3)
        vm.ask("drop", 25)
        vm.good("touch", 3)
        vm.good("storm", 40, 2)
        os.kill(h.worker(), signal.SIGKILL)
        h.event("restarted")
        vm.good("storm", 40, 2)
        vm.good("verify")
        wait_for("the VM is left", lambda: not h.status()["vm_list"])
        vm.good("verify")
        assert h.stop()[0] == 0


def from_a_file(folder):
    need_root()
    path = snapshot(folder, 10 * HUGE)
    restore(folder, path, "--file", path, "--max-rate", "1M")


def from_afar(folder):
    need_root()
    path = snapshot(folder, 10 * HUGE)
    with Serve("--file", path, "--max-rate", "1M") as s:
        restore(folder, path, "--from", s.address, "--plaintext")


if __name__ == "__main__":
    sys.exit(main([from_a_file, from_afar]))
