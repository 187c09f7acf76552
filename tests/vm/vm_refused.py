#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Moves that can't be: refused before anything is done to the guest, with a word on what to change."""
import os
import socket
import subprocess
import sys
import threading

import vm_support
from vm_support import Command, ferryvm


def refused_source(lab, source, *texts, to="127.0.0.1:1", status="running"):
    """'migrate' says no by itself."""
    lab.migrate(source, to).refuses(*texts)
    if status == "running":
        lab.untouched(source)
    else:
        assert source.status() == status, source.status()


def refused_target(lab, target, *texts):
    """'receive' says no by itself, and nobody can have listened."""
    lab.run("receive", "--qmp", target.qmp, "--listen", "127.0.0.1:0").refuses(*texts)
    return target


def refused_by_target(lab, source, target, *texts):
    """Both say why: the two QEMUs don't fit."""
    receive = lab.receive(target)
    lab.migrate(source, receive.address).refuses("the target gave up", *texts)
    receive.refuses(*texts)
    lab.untouched(source)
    assert target.status() == "inmigrate", target.status()


def private_ram_at_source(lab):
    options = {"native-ram": True, "fill": "32M", "ws": "16M"}
    refused_source(lab, lab.new_guest(**options), "private to QEMU", "memory-backend-memfd", "share=on")


def private_ram_at_target(lab):
    target = lab.start("target", {"mem": "128M", "native-ram": True})
    refused_target(lab, target, "private to QEMU", "memory-backend-memfd", "share=on")


def ram_of_another_size(lab):
    source = lab.guest()
    refused_by_target(lab, source, lab.target(source, mem="288M"), "128 MiB on the source",
                      "288 MiB on the target", "-m")


def machine_of_another_type(lab):
    source = lab.guest()
    refused_by_target(lab, source, lab.target(source, machine="microvm"), "microvm", "-machine")


def target_that_waits_for_nobody(lab):
    """A QEMU started without -incoming."""
    refused_target(lab, lab.guest(), "does not wait for a guest", "-incoming defer")
    lab.current.works()


def target_that_is_used_already(lab):
    source = lab.guest()
    target = lab.target(source)
    target.monitor.command("migrate-incoming", uri="tcp:127.0.0.1:0")
    refused_target(lab, target, "another migration", "-incoming defer")


def target_with_pages(lab):
    """They would hide those of the source."""
    source = lab.guest()
    target = lab.target(source)
    with open(target.info["ram_file"], "r+b") as f:
        f.seek(100 << 20)
        f.write(b"x")
    refused_target(lab, target, "has pages already", "start QEMU anew")


def source_that_is_a_target(lab):
    source = lab.guest()
    refused_source(lab, lab.target(source), "waits for a guest", "pageferry receive", status="inmigrate")


def source_that_has_given_its_guest_away(lab):
    source = lab.guest()
    share_ram(source, True)
    source.monitor.command("migrate", uri="exec:cat >/dev/null")
    vm_support.wait_for("QEMU has saved the guest", lambda: source.status() == "postmigrate")
    share_ram(source, False)
    refused_source(lab, source, "was moved away", "cont", status="postmigrate")
    source.monitor.command("cont")
    source.works()


def share_ram(vm, state):
    """QEMU's own migration then leaves the RAM where it is, and takes no time."""
    vm.monitor.command("migrate-set-capabilities",
                       capabilities=[{"capability": "x-ignore-shared", "state": state}])


def no_monitor_there(lab):
    source = lab.guest()
    path = os.path.join(lab.folder, "nothing.qmp")
    for name, more in (("migrate", ("--to", "127.0.0.1:1", "--postcopy")),
                       ("receive", ("--listen", "127.0.0.1:0"))):
        lab.run(name, "--qmp", path, *more).refuses(path, "-qmp")
    source.works()


def monitor_of_somebody_else(lab):
    """The other end is no QMP monitor."""
    path = os.path.join(lab.folder, "junk.qmp")
    with JunkServer(socket.AF_UNIX, path, b"SSH-2.0-OpenSSH_9.2\r\n" * 8):
        lab.run("migrate", "--qmp", path, "--to", "127.0.0.1:1", "--postcopy").refuses("not QMP")


def monitor_that_is_taken(lab):
    """QEMU serves one client of a monitor at a time."""
    source = lab.guest()
    client = ferryvm.Qmp(source.qmp, timeout=vm_support.LIMIT_S)
    refused_source(lab, source, "another program holds this monitor", "of its own")
    client.close()


def nobody_listens(lab):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))  # and does not listen
        port = s.getsockname()[1]
        refused_source(lab, lab.guest(), f"127.0.0.1:{port}", "refused", to=f"127.0.0.1:{port}")


def target_is_a_page_server(lab):
    source = lab.guest()
    path = os.path.join(lab.folder, "pages")
    with open(path, "wb") as f:
        f.write(bytes(1 << 20))
    serve = lab.run("serve", "--file", path, "--listen", "127.0.0.1:0")
    refused_source(lab, source, "both ends are the source", to=serve.event("listening")["address"])


class JunkServer:
    """Accepts connections and says the same to all."""

    def __init__(self, family, address, answer):
        self.socket = socket.socket(family)
        self.socket.bind(address)
        self.socket.listen()
        self.answer = answer
        self.clients = []

    def __enter__(self):
        threading.Thread(target=self.accept, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.socket.shutdown(socket.SHUT_RDWR)
        for s in (self.socket, *self.clients):
            s.close()

    def accept(self):
        while True:
            try:
                client = self.socket.accept()[0]
                self.clients.append(client)
                client.sendall(self.answer)
            except OSError:
                return

    def address(self):
        return "%s:%d" % self.socket.getsockname()


def target_talks_rubbish(lab):
    with JunkServer(socket.AF_INET, ("127.0.0.1", 0), b"HTTP/1.1 400 Bad Request\r\n\r\n" * 20) as server:
        refused_source(lab, lab.guest(), "not the Pageferry protocol", to=server.address())


def target_says_nothing(lab):
    with JunkServer(socket.AF_INET, ("127.0.0.1", 0), b"") as server:
        refused_source(lab, lab.guest(), "no answer", "a pageferry command?", to=server.address())


def postcopy_must_be_asked_for(lab):
    source = lab.guest()
    done = subprocess.run([Command.program, "migrate", "--qmp", source.qmp, "--to", "127.0.0.1:1"],
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2, done
    assert "--postcopy" in done.stderr, done
    source.works()


def port_is_taken(lab):
    target = lab.target(lab.guest())
    with socket.create_server(("127.0.0.1", 0)) as s:
        address = "127.0.0.1:%d" % s.getsockname()[1]
        lab.run("receive", "--qmp", target.qmp, "--listen", address).refuses(address, "in use")


def and_then_it_works(lab):
    """None of the above has spoiled the guest."""
    source = lab.guest()
    lab.move(source, lab.target(source))


CASES = {f.__name__: f for f in (
    private_ram_at_source, private_ram_at_target, ram_of_another_size, machine_of_another_type,
    target_that_waits_for_nobody, target_that_is_used_already, target_with_pages, source_that_is_a_target,
    source_that_has_given_its_guest_away, no_monitor_there, monitor_of_somebody_else, monitor_that_is_taken,
    nobody_listens, target_is_a_page_server, target_talks_rubbish, target_says_nothing,
    postcopy_must_be_asked_for, port_is_taken, and_then_it_works)}


if __name__ == "__main__":
    sys.exit(vm_support.main(CASES))
