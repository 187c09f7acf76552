#!/usr/bin/python3 -B
# SPDX-License-Identifier: Apache-2.0
"""Traces of real faults: is time attributed to where it was spent, and do all outputs agree?

    trace_tool.py PAGEFERRY SLOW_PREAD_SO
"""
import collections
import csv
import io
import json
import math
import os
import random
import struct
import subprocess
import sys
import xml.dom.minidom
import zlib

from cli_support import PAGE, Holder, Run, Serve, content, main, preloaded, private_run, run, wait_for
from delay_forwarder import Forwarder

N_PAGES = 3000
SLOW_PUSH = "64K"  # nearly all pages are asked for
TRIES = 5
STAGES = ["queue", "outage", "out", "source", "back", "net", "remote", "push", "place", "local"]


def full(n_pages):
    """Pages that are all data, each of its own."""
    return b"".join(struct.pack("<Q", i + 1) * (PAGE // 8) for i in range(n_pages))


def write_file(folder, data, name="memory"):
    path = os.path.join(folder, name)
    with open(path, "wb") as f:
        f.write(data)
    return path


class SlowServe(Serve):
    """A page server whose disk takes a while for each page."""

    def __init__(self, so, us, *args):
        with preloaded(so, SLOW_PREAD_US=str(us)):
            super().__init__(*args)


def touch(h, data, pages):
    for page in pages:
        assert int(h.ask("byte", page * PAGE)) == data[page * PAGE], page


def traced(folder, data, address, pages, name, *args, to_the_end=False):
    """Attaches a new process, touches pages one after the other, and stops. Returns the trace's path."""
    path = os.path.join(folder, name)
    with Holder("memfd", len(data), name="ferry-trace") as h:
        with Run("attach", "--json", "--pid", h.pid, "--match", "ferry-trace", "--from", address,
                 "--trace", path, *args) as a:  # fmt: skip
            a.event("stage", stage="push")
            touch(h, data, pages)
            if to_the_end:
                a.end(0)
            else:
                a.stop()
    return path


def rows_of(path, kind="fault"):
    status, out, err = run("trace", "report", path, "--csv")
    assert status == 0, err
    rows = []
    for row in csv.DictReader(io.StringIO(out)):
        for key, value in row.items():
            if key not in ("kind", "thread_name", "flags", "before_read"):
                row[key] = int(value) if value else None
        if row["kind"] == kind:
            rows.append(row)
    return rows


def report_of(path):
    status, out, err = run("trace", "report", path, "--json")
    assert status == 0, err
    return json.loads(out.splitlines()[-1])


def asked(rows):
    """Faults with the source's times and both directions."""
    got = [r for r in rows if r["out_ns"] is not None]
    assert got, "no fault was answered by the source"
    return got


def stages_of(row):
    return {s: row[s + "_ns"] for s in STAGES if row[s + "_ns"] is not None}


def median(values):
    values = sorted(values)
    return values[(len(values) - 1) // 2]


def check_sums(rows):
    for r in rows:
        if "unanswered" not in r["flags"].split():
            assert sum(stages_of(r).values()) == r["total_ns"], r
            assert r["total_ns"] == r["placed_ns"] - r["read_ns"], r


def check_directions(rows):
    """Both sides have the same clock here, so that what each direction really took is known."""
    for r in asked(rows):
        out = r["source_received_ns"] - r["sent_ns"]
        back = r["received_ns"] - r["source_answered_ns"]
        assert abs(r["out_ns"] - out) <= r["uncertainty_ns"] + 1, (out, r)
        assert abs(r["back_ns"] - back) <= r["uncertainty_ns"] + 1, (back, r)
        assert r["out_ns"] + r["back_ns"] == out + back, r
        assert r["source_ns"] == r["source_answered_ns"] - r["source_received_ns"], r


def small_rest(measure):
    """On a busy machine the rest may be as long as what is measured. So one time will do, for what @measure returns."""
    figures = []
    while len(figures) < TRIES:
        rest, whole = measure()
        if rest * 4 < whole:
            return
        figures.append((rest, whole))
    raise AssertionError(figures)


def a_delay_of_the_network_is_the_networks(folder):
    data = full(N_PAGES)
    pages = random.Random(1).sample(range(N_PAGES), 25)

    def measure(s, there, back):
        with Forwarder(s.address, there, back) as f:
            path = traced(folder, data, f.address, pages, "net.trace")
        rows = asked(rows_of(path))
        assert len(rows) >= len(pages) // 2, len(rows)
        check_sums(rows)
        check_directions(rows)
        for r in rows:
            assert r["out_ns"] + r["back_ns"] >= 40e6, r
            # What was really added in a direction is within the uncertainty.
            assert r["out_ns"] + r["uncertainty_ns"] >= there * 1e9, r
            assert r["back_ns"] + r["uncertainty_ns"] >= back * 1e9, r
        net = median([r["out_ns"] + r["back_ns"] for r in rows])
        return median([r["total_ns"] - r["out_ns"] - r["back_ns"] for r in rows]), net

    with Serve("--file", write_file(folder, data), "--max-rate", SLOW_PUSH) as s:
        # As long in one direction as in the other; then all of it in one.
        for there, back in ((0.020, 0.020), (0.0, 0.040), (0.040, 0.0)):
            small_rest(lambda there=there, back=back: measure(s, there, back))


def a_slow_source_is_the_sources(folder):
    data = full(N_PAGES)
    pages = random.Random(2).sample(range(N_PAGES), 25)
    slow_us = 30000
    file = write_file(folder, data)

    def measure():
        path = traced(folder, data, s.address, pages, "source.trace")
        rows = asked(rows_of(path))
        assert len(rows) >= len(pages) // 2, len(rows)
        check_sums(rows)
        check_directions(rows)
        for r in rows:
            assert r["source_ns"] >= slow_us * 1000, r
        return median([r["total_ns"] - r["source_ns"] for r in rows]), slow_us * 1000

    with SlowServe(SLOW_PREAD, slow_us, "--file", file, "--max-rate", SLOW_PUSH) as s:
        small_rest(measure)


def nearest_rank(values, permille):
    """Written from the definition, not from the program's source."""
    return sorted(values)[max(math.ceil(len(values) * permille / 1000), 1) - 1]


def check_series(got, values, what):
    assert got["n"] == len(values), (what, got, len(values))
    if not values:
        return
    for key, permille in (("p50", 500), ("p90", 900), ("p99", 990), ("p999", 999), ("max", 1000)):
        assert round(got[key] * 1000) == nearest_rank(values, permille), (what, key, got)
    assert abs(got["mean"] * 1000 - sum(values) / len(values)) <= 1, (what, got)


def the_report_agrees_with_figures_made_from_the_csv(folder):
    data = content(N_PAGES)
    pages = random.Random(3).sample(range(N_PAGES), 700)
    with Serve("--file", write_file(folder, data), "--max-rate", "1M") as s:
        path = traced(folder, data, s.address, pages, "all.trace")
    rows, joins, report = rows_of(path), rows_of(path, "join"), report_of(path)
    check_sums(rows)
    check_directions(rows)
    done = [r for r in rows if "unanswered" not in r["flags"].split()]
    remote = [r for r in done if "local" not in r["flags"].split()]
    check_series(report["total_us"], [r["total_ns"] for r in remote], "total")
    waits = [r["total_ns"] for r in done + joins if r["total_ns"] is not None]
    check_series(report["messages_us"], waits, "messages")
    for stage in STAGES:
        values = [stages_of(r)[stage] for r in done if stage in stages_of(r)]
        assert bool(values) == (stage in report["stages_us"]), stage
        if values:
            check_series(report["stages_us"][stage], values, stage)
    assert len(report["slowest"]) == 10
    slowest = sorted((r["total_ns"] for r in done), reverse=True)[:10]
    assert [round(x["total_us"] * 1000) for x in report["slowest"]] == slowest
    assert report["faults"]["messages"] == len(rows) + len(joins)
    assert report["lost_records"] == 0 and report["whole"] is True
    (thread,) = report["threads"]
    assert thread["thread"] > 0 and thread["name"].startswith("python"), thread
    assert [r["name"] for r in report["regions"]] == ["memory"], report["regions"]
    # In the text the same figures, and lost records nowhere.
    status, out, err = run("trace", "report", path)
    assert status == 0 and not err and "LOST" not in out and "WARNING" not in out, (out, err)
    assert f"Fault messages: {len(rows) + len(joins)}," in out, out


def a_lost_connection_is_an_outage(folder):
    data = full(N_PAGES)
    path = os.path.join(folder, "outage.trace")
    with Serve("--file", write_file(folder, data), "--max-rate", SLOW_PUSH) as s:
        with Forwarder(s.address) as f, Holder("memfd", len(data), name="ferry-trace") as h:
            with Run("attach", "--json", "--pid", h.pid, "--match", "ferry-trace", "--from",
                     f.address, "--trace", path) as a:  # fmt: skip
                a.event("stage", stage="push")
                touch(h, data, [2000])
                f.hold.set()
                h.send("byte", 2500 * PAGE)
                assert not h.answers(2)
                f.hold.clear()
                f.cut()
                assert int(h.answer()) == data[2500 * PAGE]
                a.stop()
    (row,) = [r for r in rows_of(path) if r["page"] == 2500]
    assert "resent" in row["flags"].split() and "outage" in stages_of(row), row
    assert row["outage_ns"] > row["total_ns"] / 2, row
    check_sums([row])
    report = report_of(path)
    assert report["faults"]["asked_again"] >= 1, report["faults"]


def a_running_command_is_recorded_from_outside(folder):
    data = full(N_PAGES)
    pages = random.Random(4).sample(range(N_PAGES), 200)
    path, sock = os.path.join(folder, "live.trace"), os.path.join(folder, "attach.sock")
    private_run()
    status, _, err = run("trace", "record", "-o", path)
    assert status == 1 and "no running command" in err, err
    with Serve("--file", write_file(folder, data), "--max-rate", SLOW_PUSH) as s:
        status, _, err = run("trace", "record", "-o", path)
        assert status == 1 and "no running command" in err, "a server has no faults: " + err
        with Holder("memfd", len(data), name="ferry-trace") as h:
            with Run("attach", "--json", "--pid", h.pid, "--match", "ferry-trace", "--from",
                     s.address, "--control", sock) as a:  # fmt: skip
                a.event("stage", stage="push")
                touch(h, data, pages[:100])
                status, out, err = run("trace", "record", "--json", "-o", path, "--control", sock,
                                       "--duration", "1")  # fmt: skip
                assert status == 0, err
                last = json.loads(out.splitlines()[-1])
                assert last["records"] > 50 and last["lost_records"] == 0, last
                before = len(rows_of(path))
                assert 50 < before <= 100, before
                # It ends with the command, and has what came meanwhile.
                path = os.path.join(folder, "rest.trace")
                with Run("trace", "record", "--json", "-o", path, "--control", sock) as r:
                    wait_for("the recorder began", lambda: os.path.exists(path))
                    touch(h, data, pages[100:])
                    a.stop()
                    r.end(0)
                got = rows_of(path)
                assert before < len(got) <= 200, (before, len(got))
                assert len({r["id"] for r in got}) == len(got)
                check_sums(got)
                assert report_of(path)["whole"]


def without_records_there_is_nothing_to_trace(folder):
    data = full(100)
    path, sock = os.path.join(folder, "none.trace"), os.path.join(folder, "none.sock")
    with Serve("--file", write_file(folder, data), "--max-rate", "4K") as s:
        with Holder("memfd", len(data), name="ferry-trace") as h:
            with Run("attach", "--json", "--pid", h.pid, "--match", "ferry-trace", "--from",
                     s.address, "--control", sock, "--no-trace") as a:  # fmt: skip
                a.event("stage", stage="push")
                touch(h, data, [50])
                status, _, err = run("trace", "record", "-o", path, "--control", sock)
                assert status == 1 and "no records of faults" in err, err
                a.stop()


# --- the file, read by a program that knows docs/trace-format.md only --------------------------------


def read_trace(path):
    with open(path, "rb") as f:
        data = f.read()
    magic, version, endian, header, entry = struct.unpack_from("<8sIIII", data)
    assert magic == b"PFRYTRCE" and version == 1 and endian == 0x0A0B0C0D, (magic, version, endian)
    records = []
    for at in range(header, len(data), entry):
        ring, check = struct.unpack_from("<II", data, at)
        record = data[at + 8 : at + entry]
        assert check == zlib.crc32(struct.pack("<I", ring) + record), at
        kind, flags, region, time_ns = struct.unpack_from("<HHIQ", record)
        records.append((kind, flags, region, time_ns, record[16:]))
    return records


def an_independent_reader_understands_the_file(folder):
    data = content(N_PAGES)
    pages = random.Random(5).sample(range(N_PAGES), 100)
    with Serve("--file", write_file(folder, data), "--max-rate", "2M") as s:
        path = traced(folder, data, s.address, pages, "format.trace", to_the_end=True)
    records = read_trace(path)
    kinds = collections.Counter(r[0] for r in records)
    rows = rows_of(path)
    assert kinds[1] == len(rows) and kinds[3] > 0 and kinds[4] > 0, kinds
    assert records[-1][0] == 35
    assert struct.unpack_from("<Q", records[-1][4])[0] == len(records) - 1
    by_id = {r["id"]: r for r in rows}
    for kind, _, region, time_ns, body in records:
        if kind != 1:
            continue
        words = struct.unpack_from("<9Q8I", body)
        row = by_id[words[0]]
        assert row["page"] == words[1] and row["region"] == region and row["read_ns"] == time_ns
        assert row["placed_ns"] == words[7] and row["thread"] == words[9], (row, words)


def a_cut_file_is_reported_up_to_there(folder):
    path = os.path.join(folder, "format.trace")
    cut = os.path.join(folder, "cut.trace")
    with open(path, "rb") as f:
        whole = f.read()
    with open(cut, "wb") as f:
        header, entry = struct.unpack_from("<II", whole, 16)
        faults = [at for at in range(header, len(whole), entry) if struct.unpack_from("<H", whole, at + 8)[0] == 1]
        f.write(whole[: faults[len(faults) // 2] + 5])  # in the middle of one
    status, out, err = run("trace", "report", cut)
    assert status == 0 and out.startswith("WARNING: the file is cut off"), (out, err)
    got = report_of(cut)
    assert got["whole"] is False and "cut off" in got["warning"], got
    assert 0 < len(rows_of(cut)) < len(rows_of(path))
    for junk, text in ((b"", "is not a trace"), (whole[:20], "ends after 20 bytes"), (b"x" * 999, "is not a trace")):
        with open(cut, "wb") as f:
            f.write(junk)
        for what in (["report", cut], ["plot", cut, "-o", "/dev/null"]):
            status, out, err = run("trace", *what)
            assert status == 1 and not out and text in err and cut in err, (out, err)


def other_tools_read_what_is_exported(folder):
    path = os.path.join(folder, "all.trace")
    out = os.path.join(folder, "out.json")
    rows = rows_of(path)
    assert run("trace", "export", path, "--format", "perfetto", "-o", out)[0] == 0
    with open(out, encoding="utf-8") as f:
        events = json.load(f)["traceEvents"]
    tracks = collections.defaultdict(list)
    for e in events:
        assert {"name", "ph", "ts", "pid", "tid"} <= e.keys(), e
        if e["ph"] == "X":
            tracks[e["pid"], e["tid"]].append((round(e["ts"] * 1000), round(e["dur"] * 1000), e))
    n_faults = 0
    for slices in tracks.values():
        stack = []
        for ts, dur, e in sorted(slices, key=lambda s: (s[0], -s[1])):
            while stack and stack[-1] <= ts:
                stack.pop()
            assert not stack or ts + dur <= stack[-1], f"slices cross: {e}"
            if dur:
                stack.append(ts + dur)
            n_faults += e["name"] == "fault"
    assert n_faults == len([r for r in rows if "unanswered" not in r["flags"].split()])
    assert run("trace", "export", path, "--format", "qemu", "-o", out)[0] == 0
    with open(out, encoding="utf-8") as f:
        q = json.load(f)
    totals = [r["total_ns"] for r in rows if not {"local", "unanswered"} & set(r["flags"].split())]
    dist = [0] * 24
    for ns in totals:
        dist[min(max((ns // 1000).bit_length() - 1, 0), 23)] += 1
    assert q["postcopy-latency-dist"] == dist, (q, dist)
    assert abs(q["postcopy-latency"] - sum(totals) / len(totals)) <= 1, q
    assert len(q["postcopy-vcpu-blocktime"]) == 1
    assert abs(q["postcopy-vcpu-blocktime"][0] - q["postcopy-blocktime"]) <= 1, q


def a_plot_is_sound_xml_of_bounded_size(folder):
    path, out = os.path.join(folder, "all.trace"), os.path.join(folder, "out.svg")
    status, _, err = run("trace", "plot", path, "-o", out)
    assert status == 0 and not err, err
    with open(out, encoding="utf-8") as f:
        text = f.read()
    svg = xml.dom.minidom.parseString(text)
    words = " ".join(t.firstChild.data for t in svg.getElementsByTagName("text"))
    for wanted in ("Latency of faults", "Residency", "Where pages", "How long each stage", "p99"):
        assert wanted in words, wanted
    assert "nan" not in text and "inf" not in text
    assert len(text) < 2 << 20, len(text)
    try:
        png = subprocess.run(["rsvg-convert", out], capture_output=True)
    except FileNotFoundError:
        print("rsvg-convert is not installed: the plot was not rendered")
        return
    assert png.returncode == 0 and png.stdout.startswith(b"\x89PNG"), png.stderr


if __name__ == "__main__":
    SLOW_PREAD = os.path.abspath(sys.argv[2])
    sys.exit(
        main(
            [
                a_delay_of_the_network_is_the_networks,
                a_slow_source_is_the_sources,
                the_report_agrees_with_figures_made_from_the_csv,
                a_lost_connection_is_an_outage,
                a_running_command_is_recorded_from_outside,
                without_records_there_is_nothing_to_trace,
                an_independent_reader_understands_the_file,
                a_cut_file_is_reported_up_to_there,
                other_tools_read_what_is_exported,
                a_plot_is_sound_xml_of_bounded_size,
            ]
        )
    )
