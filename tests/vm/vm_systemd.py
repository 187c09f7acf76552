#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""A guest moves to where systemd itself has started the unit of receive, and starts it again when all of it is killed."""
import os
import signal
import sys
import time

import vm_support

sys.path.append(os.path.join(vm_support.HERE, "..", "integration"))
import cli_support  # noqa: E402
import systemd_support  # noqa: E402

UNIT = "pageferry-receive@test.service"


def start_systemd(args):
    cli_support.Run.program = vm_support.Command.program
    try:
        return systemd_support.Systemd([args.unit], args.bindir, shares_tmp=True)
    except cli_support.Skip as e:
        raise vm_support.Skip(str(e)) from None


def listens(address):
    """As the kernel says: whoever connects would be served."""
    port = "%04X" % int(address.rpartition(":")[2])
    with open("/proc/net/tcp", encoding="ascii") as f:
        return any(words[1].endswith(":" + port) and words[3] == "0A" for words in map(str.split, f))


def both_of(manager):
    """The parent, and its child at work."""
    main_pid = manager.main_pid(UNIT)
    assert main_pid, "the unit does not run"
    child = cli_support.child_of(main_pid)
    vm_support.wait_for("both are there", lambda: sorted(manager.processes(UNIT)) == sorted((main_pid, child)))
    return main_pid, child


def receive_is_started_again_and_the_guest_goes_on(lab):
    with start_systemd(lab.args) as manager:
        source = lab.guest()
        target = lab.target(source)
        target.pages = source.pages
        address = cli_support.address_of_ours()
        manager.options("receive-test.env", f"QMP={target.qmp}\nLISTEN={address}\nOPTIONS=--json --max-rate 8M\n")
        manager.ctl("start", UNIT)
        vm_support.wait_for("it listens", lambda: listens(address))
        migrate = lab.migrate(source, address)
        migrate.stage("push")
        target.works()

        killed = both_of(manager)
        begin = time.monotonic()
        for pid in killed:
            os.kill(pid, signal.SIGKILL)
        vm_support.wait_for("they have ended", lambda: all(map(cli_support.has_ended, killed)))
        migrate.event("resumed")
        print(f"  both killed: the link was back after {time.monotonic() - begin:.2f} s", flush=True)
        assert not set(both_of(manager)) & set(killed)
        target.works()
        restarts = int(manager.show(UNIT)["NRestarts"])
        assert restarts > 0 and not manager.has_ended(UNIT, restarts), "there is nothing left to see"

        migrate.end(0)
        said = manager.end(UNIT, restarts)
        assert (said["ActiveState"], said["Result"]) == ("inactive", "success"), said
        target.works()
        target.verify()
        assert source.status() == "postmigrate", source.status()
        assert source.events()[-1] == "STOP", source.events()
        lab.current = target
        lab.retire(source)


CASES = {f.__name__: f for f in (receive_is_started_again_and_the_guest_goes_on,)}


def options(p):
    p.add_argument("--bindir", required=True, help="where the unit looks for the program")
    p.add_argument("--unit", required=True, help="pageferry-receive@.service, as it is installed")


if __name__ == "__main__":
    sys.exit(vm_support.main(CASES, options))
