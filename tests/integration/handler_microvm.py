#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""A running guest that checks its own memory, restored from its snapshot by 'pageferry handler'.

    handler_microvm.py PAGEFERRY MICROVM CPU

CPU: native, kvm, or kvm-irqchip (exits with 77 where that can't be used)
"""
import os
import signal
import sys

from cli_support import Serve, main, need_root
from handler_support import Handler
from microvm_support import Monitor, has_cpu

MEMORY = "32M"


def start(*options):
    return Monitor(os.path.abspath(sys.argv[2]), "--cpu", sys.argv[3], "--memory", MEMORY, "--vcpus", "2", *options)


def save(path):
    first = start()
    first.tell("boot")
    first.tell("reach 2000")
    first.tell("stop")
    first.tell(f"save {path}")
    first.kill()


def guests_that_wait_can_end(folder):
    need_root()
    path = os.path.join(folder, "guest.mem")
    save(path)
    with Serve("--file", path) as s, Handler(folder, "--from", s.address, "--plaintext") as h:
        s.child.send_signal(signal.SIGSTOP)
        asked, killed = start(), start()
        for vm in (asked, killed):
            vm.tell(f"restore {path} {h.socket}")
            # With interrupt controllers a thread of KVM's own waits, and an end of the VM would wait for that.
            vm.await_blocked(2, "kvm_vcpu_block" if sys.argv[3] == "kvm-irqchip" else "handle_userfault")
        assert asked.end() == 0
        killed.kill()
        h.events("vm-gone", "vm-gone")
        s.child.send_signal(signal.SIGCONT)
        assert h.stop()[0] == 0


def guest_is_restored_remotely(folder):
    need_root()
    path = os.path.join(folder, "guest.mem")
    save(path)
    with Serve("--file", path, "--max-rate", "2M") as s, Handler(folder, "--from", s.address, "--plaintext") as h:
        clones = [start() for _ in range(3)]
        for vm in clones:
            vm.tell(f"restore {path} {h.socket}")
        for vm in clones:
            vm.send("reach 3000")
        os.kill(h.worker(), signal.SIGKILL)
        h.event("restarted")
        for vm in clones:
            assert vm.answer()
            said = vm.tell("verify")
            assert said["bad"] == "0", said
        h.events(*["vm-complete"] * len(clones))
        for vm in clones:
            # It is on its own now.
            vm.tell("reach 4000")
            assert vm.tell("verify")["bad"] == "0"
            assert vm.end() == 0
        assert h.stop()[0] == 0


if __name__ == "__main__":
    sys.exit(main([guest_is_restored_remotely, guests_that_wait_can_end]) if has_cpu(*sys.argv[2:4]) else 77)
