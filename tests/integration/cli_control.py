#!/usr/bin/python3 -B
# SPDX-License-Identifier: Apache-2.0
"""The control socket and 'pageferry status': running commands are found, and nobody disturbs them."""
import json
import os
import socket
import stat
import sys

from cli_support import PAGE, Holder, Run, Serve, Skip, content, json_lines, main, need_root, run, wait_for


def default_folder():
    return "/run/pageferry" if os.geteuid() == 0 else os.environ["XDG_RUNTIME_DIR"] + "/pageferry"


def memory_file(folder):
    path = os.path.join(folder, "memory")
    with open(path, "wb") as f:
        f.write(content(600))
    return path


def dial(path):
    s = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    s.settimeout(30)
    s.connect(path)
    return s


def read_line(s):
    got = b""
    while not got.endswith(b"\n"):
        part = s.recv(65536)
        if not part:
            break
        got += part
    return got


def ask(path, request=b'{"get":"status"}\n'):
    with dial(path) as s:
        s.sendall(request)
        return json.loads(read_line(s))


def status_json(*args):
    code, out, err = run("status", "--json", *args)
    return code, json_lines(out), err


def running_commands_are_listed(folder):
    with Serve("--file", memory_file(folder)) as s, Holder("anon", 600 * PAGE) as h:
        path = f"{default_folder()}/serve-{s.pid}.sock"
        info = os.stat(path)
        assert stat.S_ISSOCK(info.st_mode) and stat.S_IMODE(info.st_mode) == 0o600, info
        assert stat.S_IMODE(os.stat(default_folder()).st_mode) == 0o700
        with Run("attach", "--json", "--pid", h.pid, "--match", h.ranges[0], "--from", s.address,
                 "--max-rate", "64K") as a:
            a.event("progress")
            # What a command says of itself is as old as its last look.
            wait_for("the server counts the session", lambda: any(
                o.get("sessions") for o in status_json()[1] if o.get("pid") == s.pid))
            code, lines, _ = status_json()
            assert code == 0 and lines[-1]["event"] == "completed", lines
            mine = {o["pid"]: o for o in lines[:-1] if o["pid"] in (a.pid, s.pid)}
            assert len(mine) == 2 and lines[-1]["running"] == len(lines) - 1, lines
            assert mine[s.pid]["command"] == "serve" and mine[s.pid]["address"] == s.address
            assert mine[s.pid]["sessions"] == 1, mine
            assert mine[a.pid]["stage"] == "push" and mine[a.pid]["link"] == "up", mine
            assert mine[a.pid]["pages_total"] == 600 > mine[a.pid]["pages_known"], mine
            code, out, _ = run("status")
            assert code == 0 and out.startswith("COMMAND"), out
            rows = {int(r.split()[1]): r.split() for r in out.splitlines()[1:]}
            assert rows[s.pid][0] == "serve" and rows[s.pid][-1] == s.address, rows
            assert rows[a.pid][0] == "attach" and rows[a.pid][2] == "push", rows
        s.child.terminate()
        s.rest()
        assert not os.path.exists(path), "the socket was left behind"


def one_command_is_asked_by_its_socket(folder):
    path = os.path.join(folder, "here.sock")
    with Serve("--file", memory_file(folder), "--control", path) as s:
        code, (o, last), _ = status_json("--control", path)
        assert code == 0 and o["pid"] == s.pid and last["running"] == 1, o
        with Run("serve", "--file", memory_file(folder), "--listen", "127.0.0.1:0", "--control", path) as other:
            code, _, err = other.rest()
            assert code == 1 and "control socket" in err and "in use" in err, err
        assert ask(path)["pid"] == s.pid
        assert s.stop()[0] == 0
    assert not os.path.exists(path)
    code, (last,), err = status_json("--control", path)
    assert code == 1 and last["event"] == "failed" and "cannot connect" in err, err
    code, _, err = run("serve", "--file", memory_file(folder), "--listen", "127.0.0.1:0", "--control", folder + "/x" * 60)
    assert code == 1 and "longer than a socket's may be" in err, err


def what_ended_commands_left_is_removed(folder):
    with Serve("--file", memory_file(folder)) as s:
        path = f"{default_folder()}/serve-{s.pid}.sock"
        s.child.kill()
        s.rest()
    assert os.path.exists(path)
    code, out, _ = run("status")
    assert code == 0 and str(s.pid) not in out
    assert not os.path.exists(path)


def what_is_no_command_is_told_and_left_alone(folder):
    path = os.path.join(folder, "deaf.sock")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as deaf:
        deaf.bind(path)
        deaf.listen(1)
        code, (last,), err = status_json("--control", path)
        assert code == 1 and "gives no answer" in last["error"], last
    assert os.path.exists(path)


def other_requests_are_refused(folder):
    path = os.path.join(folder, "c.sock")
    with Serve("--file", memory_file(folder), "--control", path):
        for request in (b"\n", b"nonsense\n", b"[]\n", b"{}\n", b'{"get":3}\n', b'{"get":"x"}\n',
                        b"\xff\xfe\n", b'{"get":"status"\n', b"[" * 4000 + b"\n", b"\0\0\n"):
            assert list(ask(path, request)) == ["error"], request
        # Several on one connection, in one piece and in small ones.
        with dial(path) as s:
            s.sendall(b'{"get":"status"}\nnonsense\n{"get":"status"}\n')
            f = s.makefile("rb")
            assert [list(json.loads(f.readline()))[0] for _ in range(3)] == ["command", "error", "command"]
            for byte in b'{"get":"status"}\n':
                s.sendall(bytes([byte]))
            assert json.loads(f.readline())["command"] == "serve"
        # A client that says nothing more after its request still gets the answer.
        with dial(path) as s:
            s.sendall(b'{"get":"status"}\n')
            s.shutdown(socket.SHUT_WR)
            assert json.loads(read_line(s))["command"] == "serve"


def requests_have_a_length_limit(folder):
    path = os.path.join(folder, "c.sock")
    with Serve("--file", memory_file(folder), "--control", path):
        for length, is_answered in ((4095, True), (4096, False), (4097, False)):
            with dial(path) as s:
                s.sendall(b'{"get":"status"}'.ljust(length) + b"\n")
                got = json.loads(read_line(s))
                assert ("command" in got) == is_answered, (length, got)
                if not is_answered:
                    try:
                        assert s.recv(1) == b""
                    except ConnectionResetError:
                        pass


def many_slow_and_greedy_clients_disturb_nobody(folder):
    data = content(600)
    path = os.path.join(folder, "c.sock")
    with Serve("--file", memory_file(folder), "--control", path, "--once") as s, Holder("anon", len(data)) as h:
        held = []
        for i in range(40):
            held.append(dial(path))
            held[-1].sendall(b'{"get":' if i % 2 else b"")
        for i in range(20):
            greedy = dial(path)
            greedy.setblocking(False)
            held.append(greedy)
            try:
                while True:
                    greedy.send(b'{"get":"status"}\n' * 100)  # answers are never read
            except (BlockingIOError, BrokenPipeError, ConnectionResetError):
                pass
            assert ask(path)["pid"] == s.pid
        files = len(os.listdir(f"/proc/{s.pid}/fd")) if os.geteuid() == 0 else 0
        assert files < 40, files
        with Run("attach", "--json", "--pid", h.pid, "--match", h.ranges[0], "--from", s.address) as a:
            a.end(0)
        s.end(0)
        for c in held:
            c.close()


def other_users_get_no_answer(folder):
    need_root()
    path = os.path.join(folder, "c.sock")
    os.chmod(folder, 0o755)
    with Serve("--file", memory_file(folder), "--control", path) as s:
        os.chmod(path, 0o666)
        r, w = os.pipe()
        child = os.fork()
        if child == 0:
            os.setgid(65534)
            os.setuid(65534)
            try:
                got = ask(path)
                os.write(w, json.dumps(got).encode())
            except (json.JSONDecodeError, ConnectionError):
                os.write(w, b"nothing")
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        assert os.read(r, 4096) == b"nothing"
        assert ask(path)["pid"] == s.pid
        os.close(r)
        os.close(w)


def an_unsafe_folder_is_not_used(folder):
    if os.geteuid() == 0:
        raise Skip("root's folder is /run/pageferry, which this test leaves alone")
    os.chmod(default_folder(), 0o777)
    with Serve("--file", memory_file(folder)) as s:
        code, _, err = s.stop()
        assert code == 0 and "'pageferry status' won't find this command" in err, err
    os.chmod(default_folder(), 0o700)


if __name__ == "__main__":
    sys.exit(
        main(
            [
                running_commands_are_listed,
                one_command_is_asked_by_its_socket,
                what_ended_commands_left_is_removed,
                what_is_no_command_is_told_and_left_alone,
                other_requests_are_refused,
                requests_have_a_length_limit,
                many_slow_and_greedy_clients_disturb_nobody,
                other_users_get_no_answer,
                an_unsafe_folder_is_not_used,
            ]
        )
    )
