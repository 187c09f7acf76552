#!/usr/bin/python3 -B
# SPDX-License-Identifier: Apache-2.0
"""The benchmark runs, and its table, its JSON and its picture agree. What it measures is not looked at.

    bench_smoke.py BENCH-RUN BUILD
"""
import json
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree

LIMIT_S = 250
CHEAP = ("idle.service", "stream.shared")


def run(*args):
    return subprocess.run([sys.argv[1], *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          timeout=LIMIT_S)


def cheap_rows(folder):
    done = run("--quick", "--rounds", "2", "--build", sys.argv[2], "--out", folder, "--only", *CHEAP)
    assert done.returncode == 0, done.stdout + done.stderr
    with open(os.path.join(folder, "bench.json"), encoding="utf-8") as f:
        results = json.load(f)
    with open(os.path.join(folder, "table.txt"), encoding="utf-8") as f:
        assert f.read() == done.stdout
    assert [r["name"] for r in results["rows"]] == list(CHEAP), results["rows"]
    assert not results["not_measured"]
    for r, line in zip(results["rows"], done.stdout.splitlines()[1:]):
        check_row(r, line.split())
        assert len(results["rounds"][r["name"].split(".")[0]]) == 2
    text = "".join(xml.etree.ElementTree.parse(os.path.join(folder, "bench.svg")).getroot().itertext())
    assert all(name in text for name in CHEAP), text


def check_row(r, words):
    """@words: the row's line in the table."""
    ratio, goal = r["ratio"], r["goal"]
    assert words[0] == r["name"] and r["verdict"] in words, words
    for a, b, c in zip(ratio["values"], r["ours"]["values"], r["against"]["values"]):
        assert b > 0 and c > 0 and abs(a - b / c) <= 1e-9 * a, r
    assert ratio["min"] <= ratio["median"] <= ratio["max"] and len(ratio["values"]) == 2, r

    def holds(x):
        return x <= goal["ratio"] if goal["is"] == "<=" else x >= goal["ratio"]
    assert r["verdict"].startswith("met") == holds(ratio["median"]), r
    assert r["verdict"].endswith("?") == (holds(ratio["min"]) != holds(ratio["max"])), r


def names(folder):
    assert "idle" in run("--list").stdout
    for wrong in ("nothing", "idle.nothing"):
        done = run("--quick", "--build", sys.argv[2], "--out", folder, "--only", wrong)
        assert done.returncode == 1 and wrong in done.stdout + done.stderr, (done.returncode, done.stdout, done.stderr)


def main():
    for test in (names, cheap_rows):
        with tempfile.TemporaryDirectory(prefix="ferry-bench-") as folder:
            test(folder)
            print(f"ok {test.__name__}", flush=True)
    return 0


if __name__ == "__main__":
    if os.geteuid():
        print("SKIP: bench_smoke: not run as root")
        sys.exit(77)
    sys.exit(main())
