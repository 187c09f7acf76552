#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""What checksums cost: the same memory is filled with and without them, in pairs.

    checksum.py PAGEFERRY [--size MIB] [--pairs N]

Each pair attaches twice to a fresh process, over loopback: once with --checksum on and once with off, the
first of the two in turn. Printed are each pair's times and the median of their ratios. Run it on a quiet machine.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.realpath(__file__)), "..", "tests", "integration"))

from cli_support import Holder, Run  # noqa: E402


def fill_ms(path, n_bytes, checksum):
    with Holder("memfd", n_bytes, name="bench") as h:
        with Run("serve", "--json", "--file", path, "--listen", "127.0.0.1:0", "--checksum", checksum) as s:
            address = s.event("listening")["address"]
            with Run("attach", "--json", "--pid", h.pid, "--match", h.ranges[0], "--from", address,
                     "--no-trace", "--checksum", checksum) as a:
                return a.end(0)["total_ms"]


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("program")
    p.add_argument("--size", type=int, default=512, metavar="MIB")
    p.add_argument("--pairs", type=int, default=9)
    args = p.parse_args()
    Run.program = os.path.abspath(args.program)
    ratios = []
    with tempfile.TemporaryDirectory(prefix="pageferry-bench-", dir="/dev/shm") as folder:
        os.environ["XDG_RUNTIME_DIR"] = folder
        path = os.path.join(folder, "memory")
        subprocess.run(["dd", "if=/dev/urandom", f"of={path}", "bs=1M", f"count={args.size}", "status=none"],
                       check=True)
        for i in range(args.pairs):
            order = ("on", "off") if i % 2 else ("off", "on")
            ms = {c: fill_ms(path, args.size << 20, c) for c in order}
            ratios.append(ms["on"] / ms["off"])
            print(f"pair {i + 1}: on {ms['on']:.0f} ms, off {ms['off']:.0f} ms", flush=True)
    print(json.dumps({"what": "checksum", "mib": args.size, "pairs": args.pairs,
                      "cost_percent": round(100 * (statistics.median(ratios) - 1), 2)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
