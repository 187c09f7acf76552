#!/usr/bin/python3 -B
# SPDX-License-Identifier: Apache-2.0
"""serve and attach end to end: memory of a running process becomes that of a file or of another process."""
import contextlib
import ctypes
import hashlib
import os
import pty
import re
import signal
import sys

from cli_support import PAGE, Holder, Run, Serve, content, json_lines, main, run, state_of, wait_for

N_PAGES = 1500
FEW = "64K"  # a rate at which a push takes long


def sha(data):
    return hashlib.sha256(data).hexdigest()


def write_file(folder, data, name="memory"):
    path = os.path.join(folder, name)
    with open(path, "wb") as f:
        f.write(data)
    return path


def Attach(holder, address, *args, match=None, **more):
    return Run(
        "attach", "--json", "--pid", holder.pid, "--match", match or holder.ranges[0],
        "--from", address, *args, **more
    )


def check_summary(last, size):
    pages = size // PAGE
    assert last["ram_bytes"] == size and last["pages_total"] == pages, last
    assert last["pages_known"] == pages, last
    for key in ("pages_urgent", "pages_pushed", "pages_zero", "wire_bytes", "resumes"):
        assert isinstance(last[key], int) and last[key] >= 0, (key, last)
    assert last["pages_urgent"] + last["pages_pushed"] + last["pages_zero"] <= pages, last
    assert last["total_ms"] > 0, last
    for key in ("n", "p50", "p99", "p999", "max"):
        assert last["fault_us"][key] >= 0, last


def a_memfd_becomes_the_file(folder):
    data = content(N_PAGES)
    path = write_file(folder, data)
    with Holder("memfd", len(data), name="ferry-one") as h, Serve("--file", path, "--once") as s:
        with Attach(h, s.address, match="ferry-one") as a:
            stages = []
            lines = json_lines(a.rest()[1])
            for o in lines:
                assert o["command"] == "attach" and o["ms"] >= 0, o
                if o["event"] == "stage":
                    stages.append(o["stage"])
            assert stages == ["attach", "connect", "push"], stages
            assert lines[-1]["event"] == "completed" and lines[-1]["exit"] == 0, lines[-1]
            check_summary(lines[-1], len(data))
        assert h.ask("hash") == sha(data)
        last = s.end(0)
        assert last["ram_bytes"] == len(data) and last["sessions_completed"] == 1, last
        assert last["pages_total"] == N_PAGES and last["wire_bytes"] > 0, last


def anonymous_memory_becomes_the_file_while_it_is_touched(folder):
    data = content(N_PAGES, seed=2)
    path = write_file(folder, data)
    with Holder("anon", len(data)) as h, Serve("--file", path, "--max-rate", FEW) as s:
        with Attach(h, s.address) as a:
            a.event("stage", stage="push")
            for page in range(N_PAGES - 1, 0, -97):
                assert int(h.ask("byte", page * PAGE + 5)) == data[page * PAGE + 5], page
            assert h.ask("hash") == sha(data)
            last = a.end(0)
            check_summary(last, len(data))
            assert last["pages_urgent"] > 0 and last["fault_us"]["n"] > 0, last
            assert 0 < last["fault_us"]["p50"] <= last["fault_us"]["p99"] <= last["fault_us"]["max"]
        assert h.ask("hash") == sha(data)
        status, out, err = s.stop()
        assert status == 0, (out, err)


def several_files_are_several_regions_over_a_unix_socket(folder):
    one, two = content(300, seed=3), content(200, seed=4)
    paths = [write_file(folder, one, "one"), write_file(folder, two, "two")]
    listen = "unix:" + os.path.join(folder, "pages.sock")
    sizes = [len(one), len(two)]
    with Holder("anon", *sizes) as h, Serve("--file", paths[0], "--file", paths[1], listen=listen) as s:
        assert s.address == listen
        with Attach(h, s.address) as a:
            assert "region" in a.end(1)["error"]
        with Attach(h, s.address, "--match", h.ranges[1]) as a:
            check_summary(a.end(0), sum(sizes))
        assert [h.ask("hash", region=i) for i in (0, 1)] == [sha(one), sha(two)]
    # One text that two mappings match: in order of address.
    with Holder("memfd", *sizes, name="ferry-two") as h:
        by_address = [p for _, p in sorted(zip(h.ranges, paths))]
        files = [x for p in by_address for x in ("--file", p)]
        with Serve(*files, "--once", listen=listen) as s, Attach(h, s.address, match="ferry-two") as a:
            check_summary(a.end(0), sum(sizes))
            s.end(0)
        assert [h.ask("hash", region=i) for i in (0, 1)] == [sha(one), sha(two)]


def a_stopped_process_is_served(_):
    with Holder("anon", 200 * PAGE) as source, Holder("anon", 200 * PAGE) as target:
        for page in range(0, 200, 3):
            source.ask("write", page * PAGE + 9, page + 1)
        want = source.ask("hash")
        status, _, err = run("serve", "--pid", source.pid, "--match", source.ranges[0], "--listen", "127.0.0.1:0")
        assert status == 1 and "kill -STOP" in err, err
        stop(source)
        with Serve("--pid", source.pid, "--match", source.ranges[0], "--once") as s:
            with Attach(target, s.address) as a:
                a.end(0)
            s.end(0)
        assert target.ask("hash") == want


def stop(holder):
    os.kill(holder.pid, signal.SIGSTOP)
    wait_for("the process has stopped", lambda: state_of(holder.pid) == "T")


def a_process_that_runs_while_it_is_served_is_found_out(_):
    """Its targets are told, get nothing more, and aren't told that they have everything."""
    for kind, ends in (("anon", False), ("memfd", False), ("memfd", True)):
        with Holder(kind, N_PAGES * PAGE) as source, Holder("anon", N_PAGES * PAGE) as target:
            for page in range(N_PAGES):
                source.ask("write", page * PAGE + 9, page % 255 + 1)
            stop(source)
            with Serve("--pid", source.pid, "--match", source.ranges[0], "--max-rate", FEW) as s:
                with Attach(target, s.address) as a:
                    a.event("progress")
                    if ends:
                        source.child.kill()
                    else:
                        os.kill(source.pid, signal.SIGCONT)
                        source.ask("write", (N_PAGES - 1) * PAGE + 9, 0)
                        stop(source)
                    said = "has ended" if ends else "has run meanwhile"
                    assert said in s.event("memory-changed")["error"]
                    last = a.end(3)
                    assert said in last["error"], last
                    # Who comes late hears it too, or finds nobody.
                    with Holder("anon", N_PAGES * PAGE) as late, Attach(late, s.address) as b:
                        b.end(1)
                    last = s.end(4)
                    assert said in last["error"] and last["consequence"] == "lost", last
                target.send("byte", (N_PAGES - 1) * PAGE + 9)
                assert not target.answers(0.2), "it got a page that was written meanwhile"


def who_has_everything_is_not_harmed_by_what_runs_later(_):
    with Holder("anon", 64 * PAGE) as source, Holder("anon", 64 * PAGE) as target:
        source.ask("write", 9, 7)
        want = source.ask("hash")
        stop(source)
        with Serve("--pid", source.pid, "--match", source.ranges[0]) as s:
            with Attach(target, s.address) as a:
                a.end(0)
            s.event("session-completed")
            os.kill(source.pid, signal.SIGCONT)
            assert s.event("memory-changed")
            assert s.end(1)["consequence"] == "refuse"
        assert target.ask("hash") == want


def failing_to_begin_changes_nothing(folder):
    path = write_file(folder, content(64))
    with Holder("anon", 32 * PAGE) as h, Serve("--file", path) as s:
        h.ask("write", 5, 77)
        before = h.ask("hash")
        with Attach(h, s.address) as a:
            last = a.end(1)
            assert last["consequence"] == "refuse" and "region" in last["error"], last
        with Attach(h, "unix:" + os.path.join(folder, "nobody.sock")) as a:
            last = a.end(1)
            assert last["consequence"] == "link" and "cannot connect" in last["error"], last
        with Attach(h, s.address, match="no such mapping") as a:
            assert "no mapping whose name contains" in a.end(1)["error"]
        with Attach(h, s.address, match="0x1000") as a:
            assert "no memory at 0x1000" in a.end(1)["error"]
        with Attach(h, s.address, match=h.ranges[0][:-3] + "123") as a:
            assert "not part of one mapping" in a.end(1)["error"]
        with Attach(h, s.address, "--match", h.ranges[0]) as a:
            assert "overlap" in a.end(1)["error"]
        with Attach(h, s.address, "--recover") as a:
            assert "attach without --recover" in a.end(1)["error"]
        assert h.ask("hash") == before
        assert uffds_of(h.pid) == 0


def no_such_process_and_ordinary_files_are_refused(folder):
    path = write_file(folder, content(4))
    status, _, err = run("attach", "--pid", 2**22 + 1, "--match", "x", "--from", "127.0.0.1:1")
    assert status == 1 and "there is no process" in err, err
    with Holder("anon", PAGE) as h:
        status, _, err = run("attach", "--pid", h.pid, "--match", "/libc", "--from", "127.0.0.1:1")
        assert status == 1 and "ordinary file" in err, err
    for what, text in [(folder, "--file"), (path + ".none", "No such file")]:
        status, _, err = run("serve", "--file", what, "--listen", "127.0.0.1:0")
        assert status == 1 and text in err, err
        assert len(err.splitlines()) == 2, err  # the stage and the error


def uffds_of(pid):
    folder = f"/proc/{pid}/fd"
    return sum("userfaultfd" in os.readlink(f"{folder}/{fd}") for fd in os.listdir(folder))


def attach_is_stopped_and_recovered(folder):
    data = content(N_PAGES, seed=5)
    path = write_file(folder, data)
    with Holder("anon", len(data)) as h, Serve("--file", path) as s:
        resume = []
        for page, end in [(1400, signal.SIGTERM), (1100, signal.SIGINT), (800, signal.SIGKILL)]:
            with Attach(h, s.address, "--max-rate", FEW, *resume) as a:
                a.event("progress")
                a.child.send_signal(end)
                if end == signal.SIGKILL:
                    assert a.rest()[0] == -end
                else:
                    last = a.end(3)
                    assert "--recover" in last["error"] and last["consequence"] == "link", last
            resume = ["--recover"]
            h.send("byte", page * PAGE)
            assert not h.answers(0.3), "a missing page was read without its content"
            with Attach(h, s.address, "--max-rate", FEW, *resume) as a:
                assert int(h.answer()) == data[page * PAGE]
                a.child.send_signal(signal.SIGTERM)
                a.end(3)
        with Attach(h, s.address, *resume) as a:
            last = a.end(0)
            assert last["pages_present"] > 0, last
        assert h.ask("hash") == sha(data)
        assert uffds_of(h.pid) == 0


def what_an_earlier_attach_left_is_not_attached_to_again(folder):
    data = content(N_PAGES)
    path = write_file(folder, data)
    with Holder("anon", len(data)) as h, Serve("--file", path) as s:
        with Attach(h, s.address, "--max-rate", FEW) as a:
            a.event("progress")
            a.child.send_signal(signal.SIGTERM)
            a.end(3)
        with Attach(h, s.address) as a:
            last = a.end(1)
            assert "add --recover" in last["error"] and last["consequence"] == "refuse", last
        h.send("byte", 1400 * PAGE)
        assert not h.answers(0.3), "a missing page was read without its content"


def recovery_needs_only_the_process(folder):
    data = content(N_PAGES, seed=5)
    path = write_file(folder, data)
    with Holder("anon", len(data)) as h, Serve("--file", path) as s:
        with Attach(h, s.address, "--max-rate", FEW) as a:
            a.event("progress")
            with Run("attach", "--json", "--pid", h.pid, "--recover") as second:
                assert "another pageferry is at work" in second.end(1)["error"]
            a.child.kill()
            a.rest()
        h.send("byte", 1400 * PAGE)
        assert not h.answers(0.3), "a missing page was read without its content"
        with Run("attach", "--json", "--pid", h.pid, "--recover") as a:
            assert a.end(0)["pages_present"] > 0
        assert int(h.answer()) == data[1400 * PAGE]
        assert h.ask("hash") == sha(data)
        with Run("attach", "--json", "--pid", h.pid, "--recover") as a:
            assert "nothing to recover" in a.end(1)["error"]


def nothing_is_recovered_for_a_process_that_has_ended(folder):
    """Whether its parent has waited for it or not, and whether the command that filled it is supervised or not."""
    os.environ["RUNTIME_DIRECTORY"] = folder  # others would sweep the record
    data = content(N_PAGES, seed=5)
    path = write_file(folder, data)
    for reaped in (False, True):
        with Holder("anon", len(data)) as h, Serve("--file", path) as s:
            with Attach(h, s.address, "--max-rate", FEW) as a:
                a.event("progress")
                a.child.kill()
                a.rest()
            h.child.kill()
            wait_for("the process has ended", lambda: state_of(h.pid) == "Z")
            if reaped:
                h.child.wait()
            for how in (("--recover",), ("--recover", "--supervise"),
                        ("--supervise", "--match", h.ranges[0], "--from", s.address)):
                with Run("attach", "--json", "--pid", h.pid, *how) as a:
                    last = a.end(4)
                assert f"process {h.pid} has ended" in last["error"] and last["consequence"] == "lost", last


def what_was_discarded_does_not_come_back(folder):
    """The process gives pages up, some that had come and some that had not; then attach is killed."""
    data = os.urandom(N_PAGES * PAGE)
    path = write_file(folder, data)
    with Holder("anon", len(data)) as h, Serve("--file", path) as s:
        with Attach(h, s.address, "--max-rate", FEW) as a:
            a.event("progress")
            assert h.ask("byte", 1400 * PAGE + 5) == str(data[1400 * PAGE + 5])
            for page in (1400, 1300):
                h.ask("discard", page * PAGE, 2 * PAGE)
            assert h.ask("byte", 1401 * PAGE) == "0"
            a.child.kill()
            a.rest()
        with Run("attach", "--json", "--pid", h.pid, "--recover") as a:
            a.end(0)
        for page in (1300, 1400):
            data = data[:page * PAGE] + bytes(2 * PAGE) + data[(page + 2) * PAGE:]
        assert h.ask("hash") == sha(data), "what was discarded has come back"


def child_of(pid):
    with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as f:
        children = f.read().split()
    return int(children[0]) if children else 0


def a_supervised_attach_goes_on_by_itself(folder):
    data = content(N_PAGES, seed=5)
    path = write_file(folder, data)
    with Holder("anon", len(data)) as h, Serve("--file", path) as s:
        with Attach(h, s.address, "--max-rate", FEW, "--supervise") as a:
            for page in (1400, 1100, 800):
                a.event("progress")
                wait_for("there is a child", lambda: child_of(a.pid))
                os.kill(child_of(a.pid), signal.SIGKILL)
                assert a.event("restarted")["signal"] == signal.SIGKILL
                assert int(h.ask("byte", page * PAGE)) == data[page * PAGE]
            a.event("progress")
            a.child.send_signal(signal.SIGTERM)
            a.end(3)
        with Run("attach", "--json", "--pid", h.pid, "--recover", "--supervise") as a:
            a.end(0)
        assert h.ask("hash") == sha(data)
        assert uffds_of(h.pid) == 0


def a_killed_server_is_resumed_with_the_same_memory_only(folder):
    """Of a process that runs on meanwhile, nothing more is had."""
    os.environ["RUNTIME_DIRECTORY"] = folder  # without what earlier runs left on some port
    data = content(N_PAGES, seed=6)
    path = write_file(folder, data, "first")
    other = write_file(folder, content(N_PAGES, seed=7), "second")
    with Holder("anon", len(data)) as h, Serve("--file", path) as s:
        with Run("serve", "--json", "--file", path, "--listen", "127.0.0.1:0", "--resume") as r:
            assert "nothing to resume" in r.end(1)["error"]
        with Attach(h, s.address, "--max-rate", FEW) as a:
            a.event("progress")
            wait_for("the server has noted the target", lambda: os.path.getsize(record_of(s.address)))
            s.child.kill()
            s.rest()
            with Run("serve", "--json", "--file", other, "--listen", s.address, "--resume") as r:
                last = r.end(1)
                assert "another guest" in last["error"], last
            with Serve("--file", path, "--resume", listen=s.address):
                a.event("resumed")
                assert h.ask("hash") == sha(data)
                a.end(0)


def what_a_killed_server_left_goes_with_its_file(folder):
    os.environ["RUNTIME_DIRECTORY"] = folder
    data = content(N_PAGES, seed=6)
    path = write_file(folder, data, "first")
    other = write_file(folder, data, "second")
    with Serve("--file", path) as s, Serve("--file", path) as idle:
        with Holder("anon", len(data)) as h, Attach(h, s.address, "--max-rate", FEW) as a:
            a.event("progress")
            wait_for("the server has noted the target", lambda: os.path.getsize(record_of(s.address)))
            for one in (s, idle):
                one.child.kill()
                one.rest()
    assert os.path.exists(record_of(s.address)) and os.path.exists(record_of(idle.address))
    for gone in (False, True):
        if gone:
            os.unlink(path)
        with Serve("--file", other) as again:
            assert os.path.exists(record_of(s.address)) != gone
            assert not os.path.exists(record_of(idle.address)) or again.address == idle.address
            assert again.stop()[0] == 0


def read(path):
    with open(path, "rb") as f:
        return f.read()


def what_is_left_of_other_memory_is_replaced(folder):
    """A serve was killed and never resumed; another one takes its address, and is killed as well."""
    os.environ["RUNTIME_DIRECTORY"] = folder  # without what earlier runs left on some port
    data = content(N_PAGES, seed=8)
    path = write_file(folder, data, "first")
    other = write_file(folder, content(N_PAGES, seed=9), "second")
    with Holder("anon", len(data)) as h, Serve("--file", other) as s:
        with Attach(h, s.address, "--max-rate", FEW) as a:
            a.event("progress")
            wait_for("the server has noted the target", lambda: os.path.getsize(record_of(s.address)))
            s.child.kill()
            s.rest()
    left = read(record_of(s.address))
    with Holder("anon", len(data)) as h, Serve("--file", path, listen=s.address) as again:
        with Attach(h, s.address, "--max-rate", FEW) as a:
            a.event("progress")
            wait_for("the server has noted its own", lambda: read(record_of(s.address)) != left)
            again.child.kill()
            again.rest()
            with Serve("--file", path, "--resume", listen=s.address):
                a.event("resumed")
                assert h.ask("hash") == sha(data)
                a.end(0)


def record_of(address):
    """Where a serve keeps its record, which is empty while no target is incomplete."""
    xxh = ctypes.CDLL("libxxhash.so.0").XXH3_64bits
    xxh.restype = ctypes.c_uint64
    folder = os.environ["RUNTIME_DIRECTORY"]
    return f"{folder}/serve-{xxh(address.encode(), ctypes.c_size_t(len(address))):016x}"


def a_killed_server_is_waited_for(folder):
    data = content(N_PAGES, seed=6)
    path = write_file(folder, data)
    with Holder("anon", len(data)) as h, Serve("--file", path) as s:
        with Attach(h, s.address, "--max-rate", FEW) as a:
            a.event("progress")
            s.child.kill()
            s.rest()
            lost = a.event("link-lost")
            assert lost["error"], lost
            with Serve("--file", path, listen=s.address):
                assert a.event("resumed")["resumes"] >= 1
                assert int(h.ask("byte", (N_PAGES - 1) * PAGE)) == data[(N_PAGES - 1) * PAGE]
                assert h.ask("hash") == sha(data)
                last = a.end(0)
                assert last["resumes"] >= 1, last


def niceness(pid):
    """Of each thread, sorted."""
    out = []
    for task in os.listdir(f"/proc/{pid}/task"):
        # The kernel's own for io_uring come and go.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            with open(f"/proc/{pid}/task/{task}/stat", encoding="utf-8") as f:
                out.append(int(f.read().rpartition(")")[2].split()[16]))
    return sorted(out)


def threads_that_others_wait_for_come_first_on_the_processor(folder):
    """The push comes after what is urgent: that is raised, or, where it may not be, the push is lowered."""
    data = content(N_PAGES)
    path = write_file(folder, data)
    with Holder("anon", len(data)) as h, Serve("--file", path) as s:
        without = len(niceness(s.pid))
        with Attach(h, s.address, "--max-rate", FEW) as a:
            a.event("stage", stage="push")
            wait_for("the push has a thread", lambda: len(niceness(s.pid)) > without)
            wait_for("the push has its priority", lambda: len(set(niceness(s.pid))) > 1)
            source, target = niceness(s.pid), niceness(a.pid)
            assert source[0] in (0, -10) and target[0] == source[0] and target[1] >= 0, (source, target)


def the_end_of_the_process_is_told(folder):
    data = content(N_PAGES)
    path = write_file(folder, data)
    with Holder("anon", len(data)) as h, Serve("--file", path) as s:
        with Attach(h, s.address, "--max-rate", FEW) as a:
            a.event("progress")
            h.child.kill()
            last = a.end(4)
            assert last["consequence"] == "lost", last


def a_server_that_is_stopped_under_a_target_says_so(folder):
    data = content(N_PAGES)
    path = write_file(folder, data)
    with Holder("anon", len(data)) as h, Serve("--file", path, "--once") as s:
        with Attach(h, s.address, "--max-rate", FEW) as a:
            a.event("progress")
            s.child.send_signal(signal.SIGTERM)
            last = s.end(3)
            assert "--resume" in last["error"], last
    with Serve("--file", path, "--once") as s:
        s.child.send_signal(signal.SIGINT)
        assert "before any target" in s.end(1)["error"]


def plain_output_is_for_people(folder):
    data = content(N_PAGES)
    path = write_file(folder, data)
    with Holder("anon", len(data)) as h, Run("serve", "--file", path, "--listen", "127.0.0.1:0", "--once") as s:
        address = re.fullmatch(r"listening on (127\.0\.0\.1:\d+)", s.read_line()).group(1)
        status, out, err = run("attach", "--pid", h.pid, "--match", h.ranges[0], "--from", address)
        assert status == 0, err
        assert err == "".join(f"pageferry attach: {x}\n" for x in ("attach", "connect", "push")), err
        assert re.match(r"5\.9 MiB in .*\npages: 1500, of which .*\nfaults: .*\n$", out), out
        status, out, err = s.rest()
        assert status == 0 and "sessions: 1, completed: 1" in out, out
        assert "session 1 is complete" in err, err


def a_terminal_gets_a_bar_that_is_cleared(folder):
    data = content(N_PAGES)
    path = write_file(folder, data)
    ours, theirs = pty.openpty()
    with Holder("anon", len(data)) as h, Serve("--file", path, "--max-rate", "4M") as s:
        with Run("attach", "--pid", h.pid, "--match", h.ranges[0], "--from", s.address, stderr=theirs) as a:
            os.close(theirs)
            text = b""
            while True:
                try:
                    got = os.read(ours, 65536)
                except OSError:
                    break
                text += got
            status, out, _ = a.rest()
            assert status == 0, (out, text)
    os.close(ours)
    assert re.search(rb"attach: push \[#*\.*\] [0-9.]+ %  [0-9.]+ [KM]iB/s", text), text
    assert text.endswith(b"\r\x1b[K"), text
    assert b"\n" not in text, text


def a_reader_that_sleeps_holds_nothing_up(folder):
    data = content(N_PAGES, seed=8)
    path = write_file(folder, data)
    with Holder("anon", len(data)) as h, Serve("--file", path) as s:
        r, w = os.pipe()
        fill = b"x" * 4096
        os.set_blocking(w, False)
        try:
            while os.write(w, fill):
                pass
        except BlockingIOError:
            pass
        os.set_blocking(w, True)
        with Attach(h, s.address, stdout=w) as a:
            os.close(w)
            s.event("session-completed")
            assert h.ask("hash") == sha(data)
            got = b""
            while True:
                part = os.read(r, 65536)
                if not part:
                    break
                got += part
            os.close(r)
            assert a.rest()[0] == 0
            lines = json_lines(got.lstrip(b"x").decode())
            assert lines[0]["event"] == "stage" and lines[-1]["event"] == "completed", lines


if __name__ == "__main__":
    sys.exit(
        main(
            [
                a_memfd_becomes_the_file,
                anonymous_memory_becomes_the_file_while_it_is_touched,
                several_files_are_several_regions_over_a_unix_socket,
                a_stopped_process_is_served,
                a_process_that_runs_while_it_is_served_is_found_out,
                who_has_everything_is_not_harmed_by_what_runs_later,
                failing_to_begin_changes_nothing,
                no_such_process_and_ordinary_files_are_refused,
                attach_is_stopped_and_recovered,
                what_an_earlier_attach_left_is_not_attached_to_again,
                recovery_needs_only_the_process,
                nothing_is_recovered_for_a_process_that_has_ended,
                what_was_discarded_does_not_come_back,
                a_supervised_attach_goes_on_by_itself,
                a_killed_server_is_waited_for,
                a_killed_server_is_resumed_with_the_same_memory_only,
                what_is_left_of_other_memory_is_replaced,
                what_a_killed_server_left_goes_with_its_file,
                threads_that_others_wait_for_come_first_on_the_processor,
                the_end_of_the_process_is_told,
                a_server_that_is_stopped_under_a_target_says_so,
                plain_output_is_for_people,
                a_terminal_gets_a_bar_that_is_cleared,
                a_reader_that_sleeps_holds_nothing_up,
            ]
        )
    )
