#!/usr/bin/python3 -B
# SPDX-License-Identifier: Apache-2.0
"""pageferry trace live: as a log, as JSON, and on a terminal, which is given back as it was."""
import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time

from cli_support import (
    LIMIT_S, PAGE, Holder, Run, Serve, content, die_with_parent, main, private_run, run, state_of, wait_for,
)

N_PAGES = 900


class Pair:
    """A source and an attach that its limit keeps busy for long, with the path of its control socket."""

    def __init__(self, folder, *args):
        self.path = os.path.join(folder, "attach.sock")
        memory = os.path.join(folder, "memory")
        self.data = content(N_PAGES)
        with open(memory, "wb") as f:
            f.write(self.data)
        self.serve_path = os.path.join(folder, "serve.sock")
        self.serve = Serve("--file", memory, "--control", self.serve_path)
        self.holder = Holder("anon", len(self.data))
        self.attach = Run(
            "attach", "--json", "--pid", self.holder.pid, "--match", self.holder.ranges[0],
            "--from", self.serve.address, "--max-rate", "64K", "--control", self.path, *args,
        )  # fmt: skip
        self.attach.event("progress")

    def touch(self, pages):
        for page in pages:
            assert int(self.holder.ask("byte", page * PAGE)) == self.data[page * PAGE]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for one in (self.attach, self.holder, self.serve):
            one.__exit__()


class Terminal:
    """'trace live' on a terminal of its own. What it writes is kept in ->seen."""

    def __init__(self, *args, columns=80, rows=24):
        self.master, self.slave = pty.openpty()
        self.resize(columns, rows)
        self.before = termios.tcgetattr(self.slave)
        self.seen = b""

        def prepare():
            die_with_parent()
            os.setsid()
            fcntl.ioctl(self.slave, termios.TIOCSCTTY, 0)

        self.child = subprocess.Popen(
            [Run.program, "trace", "live", *args], stdin=self.slave, stdout=self.slave,
            stderr=subprocess.PIPE, preexec_fn=prepare,
            env={**os.environ, "TERM": "xterm", "LC_ALL": "C.UTF-8"},
        )  # fmt: skip

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.child.kill()
        self.child.wait()
        self.child.stderr.close()
        os.close(self.master)
        os.close(self.slave)

    def resize(self, columns, rows):
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def read_some(self, seconds):
        if select.select([self.master], [], [], seconds)[0]:
            self.seen += os.read(self.master, 65536)
            return True
        return False

    def wait_for(self, text, since=0):
        end = time.monotonic() + LIMIT_S
        while text not in self.seen[since:]:
            assert time.monotonic() < end and self.child.poll() is None, (text, self.seen[-2000:])
            self.read_some(0.1)

    def type(self, text):
        os.write(self.master, text)

    def end(self):
        """Waits for the end. Returns what it wrote behind the screen."""
        end = time.monotonic() + LIMIT_S
        while self.child.poll() is None:
            assert time.monotonic() < end, "it does not end"
            self.read_some(0.05)
        while self.read_some(0):
            pass
        assert self.child.returncode == 0, (self.child.returncode, self.child.stderr.read())
        assert termios.tcgetattr(self.slave) == self.before, "the terminal is not what it was"
        screen, _, rest = self.seen.rpartition(b"\x1b[?1049l")
        assert b"\x1b[?1049h" in screen, "no screen of its own"
        # The cursor is seen again.
        assert b"\x1b[?25h" in self.seen[self.seen.rindex(b"\x1b[?25l") :], self.seen[-200:]
        return re.sub(r"\x1b(\[[0-9;?]*[a-zA-Z]|[=>])", "", rest.decode())


def samples(path, *args):
    """A running 'trace live --json'."""
    return Run("trace", "live", "--json", "--control", path, *args)


def a_log_has_a_line_an_interval(folder):
    with Pair(folder) as p, Run("trace", "live", "--plain", "--control", p.path) as live:
        line = live.read_line()
        assert line.startswith("attach ") and "   push   link up   " in line, line
        page = iter(range(N_PAGES - 1, 0, -1))
        # A line may be of a moment in which a page is touched.
        while not all(wanted in line for wanted in ("p50 ", "in flight 0", "stalled 0")):
            p.touch([next(page) for _ in range(3)])
            line = live.read_line()
        for wanted in ("faults ", "/s", "p99.9 ", "max ", " %   ", " left"):
            assert wanted in line, (wanted, line)
        status, _, _ = p.attach.stop()
        assert status == 3, status
        status, out, err = live.rest()
        assert status == 0 and not err, (status, err)
        assert f"attach (process {p.attach.pid}) has ended; " in out.splitlines()[-1], out


def samples_agree_with_what_happened(folder):
    with Pair(folder) as p, samples(p.path) as live:
        # The push may bring the neighbours of a page before they are touched.
        p.touch(range(N_PAGES - 1, 0, -25))
        p.touch(range(N_PAGES - 40, N_PAGES))
        o = live.event("sample")
        while o["faults"] < 10 or o["fault_us"]["n"] < 10:
            o = live.event("sample")
        after = live.event("sample")
        assert o["watched"] == "attach" and o["pid"] == p.attach.pid and o["lost_records"] == 0, o
        assert o["fault_us"]["n"] <= after["faults"], (o, after)
        assert {"queue", "source", "place"} <= set(o["stages_us"]), o
        for figures in [o["fault_us"], *o["stages_us"].values()]:
            assert figures["p50"] <= figures["p90"] <= figures["p99"] <= figures["p999"] <= figures["max"]
        status, out, _ = run("status", "--json", "--control", p.path)
        cells = json.loads(out.splitlines()[0])["residency"]
        assert len(cells) == 64 and all(0 <= c <= 1000 for c in cells), cells
        assert cells[-1] == 1000 and min(cells) < 1000, cells
        live.child.send_signal(signal.SIGTERM)
        assert live.end()["ended"] is False


def a_source_that_stands_still_is_seen(folder):
    with Pair(folder) as p, samples(p.path) as live:
        live.event("sample", faults_stalled=0)
        p.serve.child.send_signal(signal.SIGSTOP)
        wait_for("the source stands still", lambda: state_of(p.serve.pid) == "T")
        page = N_PAGES - 2  # not the last one, which is a hole, and may be known to be one
        p.holder.send("byte", page * PAGE)
        o = live.event("sample", faults_stalled=1)
        assert o["faults_in_flight"] == 1 and o["oldest_wait_us"] > 100000, o
        p.serve.child.send_signal(signal.SIGCONT)
        assert int(p.holder.answer()) == p.data[page * PAGE]
        live.event("sample", faults_stalled=0)


def a_source_is_watched_too(folder):
    with Pair(folder) as p, samples(p.serve_path) as live:
        p.touch(range(N_PAGES - 1, 0, -25))
        while live.event("sample")["requests"] < 5:
            pass
        o = live.event("sample", watched="serve")
        assert "fault_us" not in o and "faults" not in o and o["stages_us"] == {}, o
    with Pair(folder, "--no-trace") as p, samples(p.path) as live:
        assert "fault_us" not in live.event("sample", watched="attach")


def the_screen_shows_all_and_q_ends_it(folder):
    with Pair(folder) as p, Terminal("--control", p.path) as t:
        p.touch(range(N_PAGES - 20, N_PAGES))
        for text in ("pageferry attach", "resident", "in flight", "bandwidth", "address space",
                     "p99.9", "total", "source", "q: quit", "\u2588"):  # fmt: skip
            t.wait_for(text.encode())
        assert b"LOST" not in t.seen
        t.type(b"xyz")  # nothing
        t.type(b"q")
        assert t.end().strip() == ""
        assert p.attach.child.poll() is None, "the watched command ended"


def a_resized_terminal_is_filled_anew(folder):
    with Pair(folder) as p:
        p.touch(range(N_PAGES - 20, N_PAGES))
        narrow_then_wide(p)


def narrow_then_wide(p):
    with Terminal("--control", p.path, columns=40, rows=10) as t:
        # With stages to show there is no room for the rest.
        t.wait_for(b"queue")
        assert b"address space" not in t.seen and b"q: quit" not in t.seen, t.seen
        for columns, rows in ((80, 24), (60, 20), (20, 3), (1, 1), (132, 50)):
            at = len(t.seen)
            t.resize(columns, rows)
            t.wait_for(b"\x1b[2J", at)
        t.wait_for(b"q: quit", at)
        t.type(b"q")
        t.end()


def the_terminal_is_given_back_whatever_ends_it(folder):
    with Pair(folder) as p:
        for how in ("\x03", signal.SIGTERM):
            with Terminal("--control", p.path) as t:
                t.wait_for(b"in flight")
                if isinstance(how, str):
                    t.type(how.encode())
                else:
                    t.child.send_signal(how)
                assert t.end().strip() == ""
        with Terminal("--control", p.path) as t:
            t.wait_for(b"in flight")
            p.attach.stop()
            assert f"attach (process {p.attach.pid}) has ended; " in t.end()


def what_is_no_terminal_is_told(folder):
    with Pair(folder) as p:
        status, out, err = run("trace", "live", "--control", p.path)
        assert status == 1 and not out and "add --plain" in err and err.count("\n") == 1, err
        master, slave = pty.openpty()
        try:
            got = subprocess.run([Run.program, "trace", "live", "--control", p.path], stdin=slave,
                                 stdout=slave, stderr=subprocess.PIPE, timeout=LIMIT_S,
                                 env={**os.environ, "TERM": "nonsense"})  # fmt: skip
        finally:
            os.close(master)
            os.close(slave)
        assert got.returncode == 1 and b"'nonsense' is not known; set TERM" in got.stderr, got.stderr


def the_only_command_is_found_and_of_several_one_is_to_be_chosen(folder):
    private_run()
    memory = os.path.join(folder, "memory")
    with open(memory, "wb") as f:
        f.write(content(10))
    status, _, err = run("trace", "live", "--plain")
    assert status == 1 and "no command of this user is running" in err, err
    with Serve("--file", memory) as one:
        with Run("trace", "live", "--json") as live:
            live.event("sample", pid=one.pid)
        with Serve("--file", memory) as two:
            status, _, err = run("trace", "live", "--plain")
            assert status == 1 and "choose one: add --control with " in err, err
            assert f"serve-{one.pid}.sock or " in err or f"serve-{two.pid}.sock or " in err, err
    status, _, err = run("trace", "live", "--plain", "--control", os.path.join(folder, "none.sock"))
    assert status == 1 and "none.sock" in err and err.count("\n") == 1, err


if __name__ == "__main__":
    sys.exit(
        main(
            [
                a_log_has_a_line_an_interval,
                samples_agree_with_what_happened,
                a_source_that_stands_still_is_seen,
                a_source_is_watched_too,
                the_screen_shows_all_and_q_ends_it,
                a_resized_terminal_is_filled_anew,
                the_terminal_is_given_back_whatever_ends_it,
                what_is_no_terminal_is_told,
                the_only_command_is_found_and_of_several_one_is_to_be_chosen,
            ]
        )
    )
