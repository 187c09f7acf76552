#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""A guest moves over TLS; who has no credentials changes nothing; a stream that is cut is resumed."""
import os
import subprocess
import sys

import vm_support

HERE = os.path.dirname(os.path.realpath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "integration"))
from raw_forwarder import Forwarder  # noqa: E402


def credentials(lab, name):
    """A folder of 127.0.0.1's, of an authority of this name."""
    folder = os.path.join(lab.folder, name)
    subprocess.run([os.path.join(HERE, "..", "..", "contrib", "make-credentials"), folder, "localhost=127.0.0.1"],
                   check=True, stdout=subprocess.DEVNULL)
    return ["--tls", os.path.join(folder, "localhost")]


def moves_over_tls_and_others_are_turned_away(lab):
    source = lab.guest()
    target = lab.target(source)
    ours, theirs = credentials(lab, "ours"), credentials(lab, "theirs")
    receive = lab.receive(target, *ours, "--tls-peer", "localhost")
    for args, text in ((theirs, "is it signed by ca-cert.pem?"), ((), "--tls"),
                       ([*ours, "--tls-hostname", "elsewhere"], "is for another name")):
        lab.migrate(source, receive.address, *args).refuses(text)
        lab.untouched(source)
    with Forwarder(receive.address) as f:
        f.cut_after = 40 << 20  # in the middle of the push
        migrate = lab.migrate(source, f.address, *ours)
        _, received = lab.arrived(source, target, migrate, receive)
        assert f.n_cut == 1 and received["resumes"] >= 1, received


def what_was_encrypted_does_not_go_on_without(lab):
    source = lab.guest()
    target = lab.target(source)
    ours = credentials(lab, "again")
    receive = lab.receive(target, *ours, "--max-rate", "8M")
    migrate = lab.migrate(source, receive.address, *ours)
    migrate.event("stage", stage="push")
    migrate.kill()
    receive.kill()
    recover, resume = ("receive", "--qmp", target.qmp, "--recover"), ("migrate", "--qmp", source.qmp, "--resume")
    for args in (recover, resume):
        assert "were encrypted" in lab.run(*args).end(3)["error"], args
    receive = lab.recover(target, "--recover", *ours)
    lab.arrived(source, target, lab.run(*resume, *ours), receive)


def a_qemu_with_a_sandbox_is_attached_to(lab):
    """As libvirt starts it. Its filter is set aside for one thread and a moment; in the end nothing is left in it."""
    source = lab.new_guest(sandbox=True)
    target = lab.target(source)
    receive = lab.receive(target)
    lab.arrived(source, target, lab.migrate(source, receive.address), receive)
    fds = f"/proc/{target.pid}/fd"
    assert not [f for f in os.listdir(fds) if "userfaultfd" in os.readlink(os.path.join(fds, f))]
    assert any("seccomp filter" in line for line in receive.errors), receive.errors


CASES = {case.__name__: case for case in (
    moves_over_tls_and_others_are_turned_away,
    what_was_encrypted_does_not_go_on_without,
    a_qemu_with_a_sandbox_is_attached_to,
)}

if __name__ == "__main__":
    sys.exit(vm_support.main(CASES))
