#!/usr/bin/python3 -B
# SPDX-License-Identifier: Apache-2.0
"""Pages that are damaged on their way, that the source has lost, or that are another memory's are not placed."""
import hashlib
import os
import select
import signal
import socket
import sys
import threading

from cli_support import PAGE, Holder, Run, Serve, content, main, need_root, run, state_of, wait_for

N_PAGES = 1500
FEW = "64K"  # a rate at which a push takes long


class Corrupter:
    """A forwarder that flips one bit of what comes from the server, @every so many bytes, @n times."""

    def __init__(self, to, every, n):
        self.to, self.every, self.left, self.n_flipped = to, every, n, 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = "127.0.0.1:%d" % self.listener.getsockname()[1]
        self.seen = 0
        self.lock = threading.Lock()
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                a, _ = self.listener.accept()
            except OSError:
                return
            host, _, port = self.to.rpartition(":")
            b = socket.create_connection((host, int(port)))
            threading.Thread(target=self.forward, args=(a, b), daemon=True).start()

    def damage(self, data):
        with self.lock:
            before, self.seen = self.seen, self.seen + len(data)
            # Only in what is surely the content of pages: frames around it break by themselves.
            if self.left and len(data) > 8192 and before // self.every != self.seen // self.every:
                self.left -= 1
                self.n_flipped += 1
                data = bytearray(data)
                data[len(data) // 2] ^= 4
        return data

    def forward(self, a, b):
        try:
            while True:
                for s in select.select([a, b], [], [])[0]:
                    data = s.recv(65536)
                    if not data:
                        return
                    (a if s is b else b).sendall(self.damage(data) if s is b else data)
        except OSError:
            pass
        finally:
            a.close()
            b.close()

    def close(self):
        self.listener.shutdown(socket.SHUT_RDWR)  # else its thread stays in accept()
        self.listener.close()


def write_file(folder, data, name):
    path = os.path.join(folder, name)
    with open(path, "wb") as f:
        f.write(data)
    return path


def attach(holder, address, *args):
    return Run("attach", "--json", "--pid", holder.pid, "--match", holder.ranges[0], "--from", address, *args)


def moved_through_damage(folder, *options):
    """What attach says in the end, whether all is as in the file, and how many bits were flipped."""
    data = os.urandom(N_PAGES * PAGE)
    path = write_file(folder, data, "damaged")
    with Holder("anon", len(data)) as h, Serve("--file", path) as s:
        c = Corrupter(s.address, 1 << 20, 3)
        with attach(h, c.address, *options) as a:
            last = a.end(0)
        c.close()
        return last, h.ask("hash") == hashlib.sha256(data).hexdigest(), c.n_flipped


def damaged_pages_are_asked_for_again(folder):
    last, is_right, n = moved_through_damage(folder)
    assert is_right, "a damaged page was placed"
    assert n and 1 <= last["checksum_errors"] <= n and last["resumes"] >= last["checksum_errors"], (n, last)


def without_checksums_they_are_not_noticed(folder):
    """So that the test above shows something."""
    last, is_right, n = moved_through_damage(folder, "--checksum", "off")
    assert n and not is_right and not last["checksum_errors"], (n, last)


def differing(h, data):
    """The pages of a process that are not as in @data."""
    with open(f"/proc/{h.pid}/mem", "rb") as f:
        f.seek(int(h.ranges[0].partition("-")[0], 16))
        got = f.read(len(data))
    return {i for i in range(len(data) // PAGE) if got[i * PAGE : (i + 1) * PAGE] != data[i * PAGE : (i + 1) * PAGE]}


def pages_of(runs):
    return {p for r in runs for p in range(r["first_page"], r["first_page"] + r["n_pages"])}


def verify_names_the_pages_that_are_wrong(folder):
    data = os.urandom(N_PAGES * PAGE)
    path = write_file(folder, data, "named")
    with Holder("anon", len(data)) as h, Serve("--file", path) as s:
        c = Corrupter(s.address, 1 << 20, 3)
        with attach(h, c.address, "--checksum", "off", "--verify") as a:
            last = a.end(5)
        c.close()
        wrong = differing(h, data)
        assert wrong and pages_of(last["verify"]["wrong_runs"]) == wrong, (wrong, last)
        assert last["verify"]["wrong"] == len(wrong) and last["verify"]["pages"] == N_PAGES - len(wrong), last
        assert f"page {min(wrong)}" in last["error"], last
        _, out, err = s.stop()
        assert '"sessions_completed":0' in out.replace(" ", "") and "not what the source has" in err.lower(), (out, err)


def verify_passes_while_the_process_writes(folder):
    data = content(N_PAGES)
    path = write_file(folder, data, "verified")
    with Holder("memfd", len(data)) as h, Serve("--file", path, "--max-rate", "2M") as s:
        with attach(h, s.address, "--verify") as a:
            a.event("progress")
            for page in range(0, N_PAGES, 100):
                h.ask("write", page * PAGE, 77)
            last = a.end(0)
        want = {"complete": True, "pages": N_PAGES, "read_back": 0, "unknown": 0, "wrong": 0, "wrong_runs": []}
        assert last["verify"] == want, last


def stopped(h):
    os.kill(h.pid, signal.SIGSTOP)
    wait_for("the process stands still", lambda: state_of(h.pid) == "T")


def verify_reads_a_stopped_process_back(folder):
    data = content(N_PAGES)
    n_data = sum(any(data[i * PAGE : (i + 1) * PAGE]) for i in range(N_PAGES))
    path = write_file(folder, data, "back")
    for kind in ("anon", "memfd"):
        with Holder(kind, len(data)) as h, Serve("--file", path) as s:
            stopped(h)
            with attach(h, s.address, "--verify") as a:
                last = a.end(0)
            assert last["verify"]["read_back"] == n_data and last["verify"]["pages"] == N_PAGES, last


def changed(h, at):
    try:
        with open(f"/proc/{h.pid}/mem", "r+b", buffering=0) as f:
            f.seek(int(h.ranges[0].partition("-")[0], 16) + at)
            return f.write(b"!") == 1
    except OSError:  # the page is missing
        return False


def verify_finds_what_changed_after_its_placement(folder):
    need_root()
    data = content(N_PAGES)
    path = write_file(folder, data, "later")
    with Holder("anon", len(data)) as h, Serve("--file", path, "--max-rate", "1M") as s:
        stopped(h)
        with attach(h, s.address, "--verify") as a:
            a.event("progress")
            wait_for("the page is there and changed", lambda: changed(h, 6 * PAGE + 100))
            last = a.end(5)
        assert pages_of(last["verify"]["wrong_runs"]) == {6} and "after they were placed" in last["error"], last


def lose_half(path, a):
    """The server's file loses its second half while it is served."""
    a.event("progress")
    os.truncate(path, N_PAGES // 2 * PAGE)


def lost_pages_are_waited_for(folder):
    data = content(N_PAGES)
    path = write_file(folder, data, "lost")
    when = os.stat(path)
    with Holder("anon", len(data)) as h, Serve("--file", path) as s:
        with attach(h, s.address, "--max-rate", FEW) as a:
            lose_half(path, a)
            h.send("byte", (N_PAGES - 2) * PAGE)
            assert "can't be had" in a.event("pages-lost")["error"]
            assert not h.answers(0.3), "a lost page was read"
            s.child.kill()
            s.rest()
            write_file(folder, data, "lost")
            os.utime(path, ns=(when.st_atime_ns, when.st_mtime_ns))
            with Serve("--file", path, listen=s.address):
                assert int(h.answer()) == data[(N_PAGES - 2) * PAGE]
                a.child.send_signal(signal.SIGTERM)
                assert a.end(3)["pages_lost"] > 0
                with Run("attach", "--json", "--pid", h.pid, "--recover") as rest:
                    rest.end(0)
                assert h.ask("hash") == hashlib.sha256(data).hexdigest()


def lost_pages_are_poisoned(folder):
    """Whoever touches one gets a memory error. All others are right."""
    data = content(N_PAGES)
    path = write_file(folder, data, "poisoned")
    with Holder("anon", len(data)) as h, Serve("--file", path, "--max-rate", "512K") as s:
        with attach(h, s.address, "--on-lost", "poison") as a:
            lose_half(path, a)
            last = a.end(0)
            assert last["pages_poisoned"] == last["pages_lost"] > 0, last
        for page in (0, 5, N_PAGES // 2 - 1):
            assert int(h.ask("byte", page * PAGE)) == data[page * PAGE]
        h.send("byte", (N_PAGES - 2) * PAGE)
        assert h.child.wait(60) == -signal.SIGBUS, h.child.returncode


def what_a_lost_source_had_is_poisoned(folder):
    """Server and attach are gone. Only when it is said that the source is lost does nobody wait any more."""
    data = content(N_PAGES)
    path = write_file(folder, data, "gone")
    with Holder("anon", len(data)) as h:
        with Serve("--file", path, "--max-rate", FEW) as s, attach(h, s.address) as a:
            a.event("stage", stage="push")
            assert int(h.ask("byte", 6 * PAGE)) == data[6 * PAGE]
            a.child.kill()
            a.rest()
        recover = ("attach", "--json", "--pid", h.pid, "--recover", "--source-lost")
        for args in (recover, (*recover, "--on-lost", "stop"), (*recover, "--on-lost", "poison", "--verify")):
            status, out, err = run(*args)
            assert status == 2 and "--source-lost" in out + err, (status, out, err)
        h.send("byte", (N_PAGES - 2) * PAGE)
        assert not h.answers(0.3), "a page came from nowhere"
        # The memory error ends it, which may be before all pages are poisoned: it stands still meanwhile.
        h.child.send_signal(signal.SIGSTOP)
        with Run(*recover, "--on-lost", "poison") as a:
            last = a.end(0)
        h.child.send_signal(signal.SIGCONT)
        assert last["pages_poisoned"] == last["pages_lost"] > 0, last
        assert last["pages_known"] == N_PAGES and last["pages_present"] > 0, last
        assert h.child.wait(60) == -signal.SIGBUS, h.child.returncode


def the_process_is_stopped_where_pages_are_lost(folder):
    data = content(N_PAGES)
    path = write_file(folder, data, "stopped")
    with Holder("anon", len(data)) as h, Serve("--file", path, "--max-rate", "512K") as s:
        with attach(h, s.address, "--on-lost", "stop") as a:
            lose_half(path, a)
            a.event("pages-lost")
            wait_for("the process stands still", lambda: state_of(h.pid) == "T")
            a.child.send_signal(signal.SIGTERM)
            a.end(3)


def the_memory_of_another_is_not_mixed_in(folder):
    """Neither by the same attach nor by the one that recovers it; what was served first is taken again."""
    data = content(N_PAGES)
    path = write_file(folder, data, "one")
    other = write_file(folder, content(N_PAGES, seed=9), "another")
    with Holder("anon", len(data)) as h, Serve("--file", path) as s:
        with attach(h, s.address, "--max-rate", FEW) as a:
            a.event("progress")
            s.child.kill()
            s.rest()
            with Serve("--file", other, listen=s.address):
                assert "another guest" in a.end(3)["error"]
        h.send("byte", (N_PAGES - 2) * PAGE)
        with Serve("--file", other, listen=s.address):
            with Run("attach", "--json", "--pid", h.pid, "--recover") as a:
                assert "another guest" in a.end(3)["error"]
        assert not h.answers(0.3), "a page of another memory was placed"
        with Serve("--file", path, listen=s.address):
            with Run("attach", "--json", "--pid", h.pid, "--recover") as a:
                a.end(0)
        assert int(h.answer()) == data[(N_PAGES - 2) * PAGE]
        assert h.ask("hash") == hashlib.sha256(data).hexdigest()


if __name__ == "__main__":
    sys.exit(
        main(
            [
                damaged_pages_are_asked_for_again,
                without_checksums_they_are_not_noticed,
                verify_names_the_pages_that_are_wrong,
                verify_passes_while_the_process_writes,
                verify_reads_a_stopped_process_back,
                verify_finds_what_changed_after_its_placement,
                lost_pages_are_waited_for,
                lost_pages_are_poisoned,
                what_a_lost_source_had_is_poisoned,
                the_process_is_stopped_where_pages_are_lost,
                the_memory_of_another_is_not_mixed_in,
            ]
        )
    )
