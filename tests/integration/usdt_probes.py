#!/usr/bin/python3 -B
# SPDX-License-Identifier: Apache-2.0
"""The static probes are in the program, and the bpftrace script measures faults by them."""
import os
import re
import signal
import subprocess
import sys

from cli_support import LIMIT_S, PAGE, Holder, Run, Serve, Skip, content, main, need_root

SOURCE = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))
SDT_HEADER = "/usr/include/sys/sdt.h"
PROBES = {
    "fault_read": 3,
    "fault_ask": 2,
    "page_received": 4,
    "page_placed": 3,
    "request_received": 2,
    "request_answered": 5,
}
N_PAGES = 600


def probes():
    """Name to number of arguments, as the program's notes have them."""
    got = subprocess.run(["readelf", "-n", "--wide", Run.program], capture_output=True, text=True)
    assert got.returncode == 0, got.stderr
    found = re.findall(r"Provider: pageferry\s+Name: (\w+)\n[^\n]*\n\s+Arguments: ([^\n]*)", got.stdout)
    return {name: len(arguments.split()) for name, arguments in found}


def every_probe_is_in_the_program(_):
    found = probes()
    if not found and not os.path.exists(SDT_HEADER):
        raise Skip("sys/sdt.h (package systemtap-sdt-dev) is not installed")
    assert found == PROBES, found


def the_header_names_every_probe(_):
    with open(os.path.join(SOURCE, "trace", "usdt.h"), encoding="utf-8") as f:
        listed = re.findall(r"^ \*   (\w+)\(([^)]*)\)", f.read(), re.M)
    assert {name: len(arguments.split(",")) for name, arguments in listed} == PROBES, listed


def the_script_measures_faults(folder):
    need_root()
    if not probes():
        raise Skip("the program has no probes")
    path = os.path.join(folder, "memory")
    with open(path, "wb") as f:
        f.write(content(N_PAGES))
    with Serve("--file", path) as s, Holder("anon", N_PAGES * PAGE) as h:
        with Run("attach", "--json", "--pid", h.pid, "--match", h.ranges[0], "--from", s.address,
                 "--max-rate", "16K") as a:  # fmt: skip
            a.event("progress")
            check(h, a.pid)


def check(h, pid):
    script = os.path.join(SOURCE, "contrib", "bpftrace", "fault-latency.bt")
    try:
        b = subprocess.Popen(["bpftrace", "-p", str(pid), script], stdout=subprocess.PIPE,
                             stderr=subprocess.STDOUT, text=True)  # fmt: skip
    except FileNotFoundError:
        raise Skip("bpftrace is not installed") from None
    try:
        said = []
        for line in b.stdout:
            said.append(line)
            if line.startswith("Measuring"):
                break
        else:
            raise Skip("this kernel refuses bpftrace: " + " ".join(said).strip())
        for page in range(N_PAGES - 1, N_PAGES - 401, -1):
            h.ask("byte", page * PAGE)
        b.send_signal(signal.SIGINT)
        out, _ = b.communicate(timeout=LIMIT_S)
    finally:
        b.kill()
        b.wait()
    print("".join(said) + out)
    for name in ("@faults", "@read_to_placed_us", "@received_to_placed_us"):
        assert name in out, out
    assert re.search(r"^\[\d+K?, \d+K?\)\s+\d+ \|", out, re.M), out


if __name__ == "__main__":
    sys.exit(main([every_probe_is_in_the_program, the_header_names_every_probe, the_script_measures_faults]))
