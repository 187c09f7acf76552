#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""'pageferry criu' against an independent client of CRIU's page-server protocol."""
import os
import random
import signal
import sys
from contextlib import contextmanager

from cli_support import PAGE, Holder, Run, main, need_root, state_of, wait_for

sys.path.append(os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "clients"))
from criu_client import CLOSE, GET, OPEN2, CriuClient  # noqa: E402

N_PAGES = 1000


def memory_of(pid, start, n_pages):
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as f:
        f.seek(start)
        return f.read(n_pages * PAGE)


@contextmanager
def server(header=32, listen="127.0.0.1:0", n_pages=N_PAGES, more=(), kind="anon"):
    """A stopped process, and the server of one of its two mappings."""
    need_root()
    with Holder(kind, n_pages * PAGE, 4 * PAGE) as h:
        start = int(h.ranges[0].split("-")[0], 16)
        with open(f"/proc/{h.pid}/mem", "r+b", buffering=0) as f:
            for page in random.Random(1).sample(range(n_pages), n_pages * 2 // 3):
                f.seek(start + page * PAGE)
                f.write(page.to_bytes(8, "little") * (PAGE // 8))
        os.kill(h.pid, signal.SIGSTOP)
        wait_for("the process has stopped", lambda: state_of(h.pid) == "T")
        with Run("criu", "--json", "--pid", h.pid, "--match", h.ranges[0], "--listen", listen, "--header", header,
                 *more) as s:
            yield s, s.event("listening")["address"], h.pid, start


def pages_come_with_headers_of_both_sizes(_):
    for header in (24, 32):
        with server(header, more=["--once"]) as (s, address, pid, start):
            expected = memory_of(pid, start, N_PAGES)
            with CriuClient(address, header) as c:
                for first, n in ((0, 1), (N_PAGES - 1, 1), (5, 3), (0, N_PAGES)):
                    assert c.fetch(n, start + first * PAGE, pid) == expected[first * PAGE : (first + n) * PAGE], first
                # Past the end there is less than was asked for.
                c.send(GET, 100, start + (N_PAGES - 2) * PAGE, pid)
                assert c.pages(100, start + (N_PAGES - 2) * PAGE, pid) == expected[-2 * PAGE :]
                c.close()
            last = s.end()
            assert last["sessions_completed"] == 1 and last["pages_urgent"] == N_PAGES + 7, last


def requests_may_be_ahead_of_answers(folder):
    with server(listen="unix:" + os.path.join(folder, "criu.sock")) as (s, address, pid, start):
        expected = memory_of(pid, start, N_PAGES)
        with CriuClient(address, 32) as a, CriuClient(address, 32) as b:
            pages = random.Random(2).sample(range(N_PAGES), 30)
            for page in pages:
                a.send(GET, 1, start + page * PAGE, pid)
            # Another one does not wait for it.
            assert b.fetch(1, start, pid) == expected[:PAGE]
            for page in pages:
                assert a.pages(1, start + page * PAGE, pid) == expected[page * PAGE : (page + 1) * PAGE]
            a.close()
            b.close()
            assert s.stop()[0] == 0, "both are done"


def what_is_not_here_is_never_answered(_):
    with server() as (s, address, pid, start):
        end = start + N_PAGES * PAGE
        for wrong in ((GET, 1, end, pid), (GET, 1, start - PAGE, pid), (GET, 0, start, pid), (GET, 1, start + 1, pid),
                      (GET, 1, start, pid + 1), (GET, 1, (1 << 64) - PAGE, pid), (GET, 1, 0, pid),
                      (OPEN2, 0, 0, pid << 8 | 1), (0xFFFF, 1, start, pid)):
            with CriuClient(address, 32) as c:
                c.send(*wrong)
                assert c.is_closed(), wrong
        # More than there is, and more than fits.
        with CriuClient(address, 32) as c:
            c.send(GET, (1 << 64) - 1, start, pid)
            assert c.pages(1 << 64, start, pid) == memory_of(pid, start, 256)
        with CriuClient(address, 32) as c:
            c.sock.sendall(b"GET / HTTP/1.1\r\n\r\n" * 2)
            assert c.is_closed()
        # Half a request, and nobody there any more.
        with CriuClient(address, 32) as c:
            c.sock.sendall(bytes(7))
        with CriuClient(address, 32) as c:
            assert c.fetch(1, start, pid) == memory_of(pid, start, 1)
            c.close()


def one_too_many_is_turned_away(_):
    with server() as (s, address, pid, start):
        clients = [CriuClient(address, 32) for _ in range(16)]
        for c in clients:
            c.fetch(1, start, pid)
        with CriuClient(address, 32) as c:
            assert c.is_closed()
        clients[0].close()
        clients[0].sock.close()

        def is_let_in():
            try:
                with CriuClient(address, 32) as c:
                    return c.fetch(1, start, pid)
            except (EOFError, ConnectionError):
                return False

        wait_for("there is room again", is_let_in)
        assert s.stop()[0] == 3, "there are some that wait"
        for c in clients[1:]:
            assert c.is_closed()
            c.sock.close()


def a_process_that_runs_is_refused(_):
    need_root()
    with Holder("anon", 4 * PAGE) as h:
        with Run("criu", "--json", "--pid", h.pid, "--match", h.ranges[0], "--listen", "127.0.0.1:0") as s:
            assert "STOP" in s.end(1)["error"]


def a_process_that_runs_meanwhile_is_found_out(_):
    """From time to time, and before a client that is done is told so; nothing is lost where nothing was given."""
    for given, closes in ((False, False), (True, False), (True, True)):
        with server() as (s, address, pid, start), CriuClient(address, 32) as c:
            if given:
                c.fetch(3, start, pid)
            os.kill(pid, signal.SIGCONT)
            wait_for("it has run", lambda: state_of(pid) == "S")
            if closes:
                c.send(CLOSE)
                assert c.is_closed(), "it was told that all is well"
            last = s.end(4 if given else 1)
            assert "has run" in last["error"] and last["consequence"] == ("lost" if given else "refuse"), last


def who_is_done_is_not_harmed_by_what_runs_later(_):
    with server() as (s, address, pid, start), CriuClient(address, 32) as c:
        c.fetch(3, start, pid)
        c.close()
        os.kill(pid, signal.SIGCONT)
        last = s.end(1)
        assert last["consequence"] == "refuse" and "end what it has restored" not in last["error"], last


def a_process_that_has_ended_may_have_run(_):
    """Its shared memory is there still."""
    with server(kind="memfd") as (s, address, pid, start), CriuClient(address, 32) as c:
        c.fetch(3, start, pid)
        os.kill(pid, signal.SIGKILL)
        assert "ended" in s.end(4)["error"]
        assert c.is_closed()


def lost_process_gives_no_zeros(_):
    with server() as (s, address, pid, start):
        with CriuClient(address, 32) as c:
            c.fetch(1, start, pid)
            os.kill(pid, signal.SIGKILL)
            wait_for("it is gone", lambda: state_of(pid) in "ZX")
            c.send(GET, 1, start, pid)
            assert c.is_closed()


if __name__ == "__main__":
    sys.exit(
        main(
            [
                pages_come_with_headers_of_both_sizes,
                requests_may_be_ahead_of_answers,
                what_is_not_here_is_never_answered,
                one_too_many_is_turned_away,
                a_process_that_runs_is_refused,
                a_process_that_runs_meanwhile_is_found_out,
                who_is_done_is_not_harmed_by_what_runs_later,
                a_process_that_has_ended_may_have_run,
                lost_process_gives_no_zeros,
            ]
        )
    )
