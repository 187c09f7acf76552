#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""
The units for systemd: do they name the installed program, and options that there are? And does what they say about
killed processes hold? What systemd would do is done in its place, as the unit has it; units_systemd.py has it do that.
"""
import os
import re
import shutil
import signal
import subprocess
import sys

from cli_support import PAGE, Holder, Run, Serve, Skip, child_of, content, has_ended, main, need_root, run, wait_for

BINDIR, *UNITS = sys.argv[2:]


def lines_of(path):
    with open(path, encoding="utf-8") as f:
        return [line for line in f.read().splitlines() if line and not line.startswith("#")]


def services():
    return [unit for unit in UNITS if unit.endswith(".service")]


def they_start_what_is_installed(_):
    assert len(services()) == 3
    for unit in services():
        (start,) = [line.split("=", 1)[1].split() for line in lines_of(unit) if line.startswith("ExecStart=")]
        assert start[0] == f"{BINDIR}/pageferry", (unit, start)
        code, text, _ = run(start[1], "--help")
        assert code == 0
        for option in (word for word in start if word.startswith("--")):
            assert re.search(rf"{option}\b", text), (unit, option)


def variables_have_a_file(_):
    for unit in services():
        lines = lines_of(unit)
        uses = any("$" in line for line in lines if line.startswith("ExecStart="))
        assert uses == any(line.startswith("EnvironmentFile=") for line in lines), unit


def settings_of(name):
    (unit,) = [unit for unit in UNITS if os.path.basename(unit) == name]
    return dict(line.split("=", 1) for line in lines_of(unit) if "=" in line)


def command_of(settings, **variables):
    """The words of ExecStart=, as systemd makes them of these variables."""
    words = []
    for word in settings["ExecStart"].split()[1:]:
        if word.startswith("${"):
            words.append(variables[word[2:-1]])
        elif word.startswith("$"):
            words += variables.get(word[1:], "").split()
        else:
            words.append(word)
    return words


def is_started_again(settings, status):
    """By Restart=on-abnormal, or RestartForceExitStatus=. Source: systemd.service(5)"""
    assert settings["Restart"] == "on-abnormal"
    return status < 0 or str(status) in settings.get("RestartForceExitStatus", "").split()


N_PAGES = 1500
LAST = N_PAGES - 1


class Attached:
    """What the unit of attach starts, for a process whose memory is filled slowly."""

    def __init__(self, folder):
        need_root()
        self.settings = settings_of("pageferry-attach@.service")
        self.data = content(N_PAGES, seed=4)
        path = os.path.join(folder, "memory")
        with open(path, "wb") as f:
            f.write(self.data)
        self.holder = Holder("anon", len(self.data))
        self.serve = Serve("--file", path, "--max-rate", "64K")
        self.runs = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for r in (*self.runs, self.serve, self.holder):
            r.__exit__()

    def start(self):
        words = command_of(self.settings, PID=str(self.holder.pid), MATCH=self.holder.ranges[0],
                           FROM=self.serve.address, OPTIONS="--json")
        self.runs.append(Run(*words))
        return self.runs[-1]

    def parent_is_killed(self):
        """Returns its child, which is at work."""
        first = self.start()
        first.event("progress")
        child = child_of(first.pid)
        first.child.kill()
        first.child.wait()
        assert is_started_again(self.settings, first.child.returncode)
        return child

    def reads(self, page):
        return int(self.holder.ask("byte", page * PAGE)) == self.data[page * PAGE]


def killed_parent_takes_its_child_along_and_both_are_started_again(folder):
    """As without KillMode=: systemd sends SIGTERM to what is left of the group, and SIGKILL to what stays."""
    for sig in (signal.SIGTERM, signal.SIGKILL):
        with Attached(folder) as a:
            assert "KillMode" not in a.settings and "KillSignal" not in a.settings
            child = a.parent_is_killed()
            os.kill(child, sig)
            wait_for("its child has ended", lambda pid=child: has_ended(pid))
            a.holder.send("byte", LAST * PAGE)
            assert not a.holder.answers(0), "a missing page was read without its content"
            again = a.start()
            assert int(a.holder.answer()) == a.data[LAST * PAGE]
            again.event("progress")
            again.child.send_signal(signal.SIGTERM)
            assert is_started_again(a.settings, again.rest()[0]), "3: the process waits"


def child_that_is_left_alone_goes_on(folder):
    """As with KillMode=process: who is started meanwhile leaves it the work, and is not started again."""
    with Attached(folder) as a:
        child = a.parent_is_killed()
        assert a.reads(LAST)
        last = (second := a.start()).end(1)
        assert "another pageferry is at work" in last["error"], last
        assert not is_started_again(a.settings, second.child.returncode)
        assert not has_ended(child) and a.reads(LAST - 300)
        os.kill(child, signal.SIGTERM)
        wait_for("it has ended", lambda: has_ended(child))
        again = a.start()
        assert a.reads(LAST - 600)
        again.stop()


def systemd_finds_nothing_wrong(folder):
    if not shutil.which("systemd-analyze"):
        raise Skip("systemd-analyze (package systemd) is not installed")
    here = [shutil.copy(unit, folder) for unit in UNITS]
    for path in here:
        with open(path, encoding="utf-8") as f:
            text = f.read()
        with open(path, "w", encoding="utf-8") as f:
            f.write(text.replace(f"{BINDIR}/pageferry", Run.program))
    got = subprocess.run(["systemd-analyze", "verify", "--man=no", *here], capture_output=True, text=True, check=False)
    ours = [line for line in (got.stdout + got.stderr).splitlines() if "pageferry" in line]
    assert not ours, ours


if __name__ == "__main__":
    sys.exit(main([they_start_what_is_installed, variables_have_a_file,
                   killed_parent_takes_its_child_along_and_both_are_started_again, child_that_is_left_alone_goes_on,
                   systemd_finds_nothing_wrong]))
