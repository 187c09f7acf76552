#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""The units for systemd: do they name the installed program, and options that there are?"""
import os
import re
import shutil
import subprocess
import sys

from cli_support import Run, Skip, main, run

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
    sys.exit(main([they_start_what_is_installed, variables_have_a_file, systemd_finds_nothing_wrong]))
