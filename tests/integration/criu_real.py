#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""'pageferry criu' feeds a process that CRIU itself has dumped and restores lazily, in another PID namespace.

    criu_real.py PAGEFERRY PROGRAM CRIU

PROGRAM is criu_dumped, CRIU one of version 4.2 or later; older ones fail on kernels whose vDSO they don't know.
"""
import os
import socket
import subprocess
import sys
from contextlib import ExitStack, contextmanager

from cli_support import LIMIT_S, Run, Skip, die_with_parent, main, need_root, state_of, wait_for

PROGRAM, CRIU = (os.path.abspath(word) for word in sys.argv[2:4])
N_PAGES, N_ZERO = 4096, 585  # of the program's memory; what is zero is not dumped


@contextmanager
def started(*args, **more):
    """Ends with us: it is killed, and what it has in its PID namespace with it."""
    with subprocess.Popen(args, stdin=subprocess.DEVNULL, preexec_fn=die_with_parent, **more) as child:
        try:
            yield child
        finally:
            child.kill()


@contextmanager
def criu_ready(images, before, what, *args):
    """A CRIU, once it says that it is ready."""
    here, there = os.pipe()
    command = (*before, CRIU, what, *args, "-D", images, "-W", images, "-o", what + ".log", "--status-fd", str(there))
    with started(*command, pass_fds=[there]) as child:
        os.close(there)
        got = os.read(here, 1)
        os.close(here)
        assert got == b"\0", story(images, what)
        yield child


def story(images, what):
    with open(os.path.join(images, what + ".log"), encoding="utf-8", errors="replace") as f:
        return "".join(f.readlines()[-20:])


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as s:
        return str(s.getsockname()[1])


def looks(said):
    """What the program has found so far: how many words are wrong, each time."""
    try:
        with open(said, encoding="ascii") as f:
            return [int(line) for line in f.read().splitlines()]
    except FileNotFoundError:
        return []


def dumped_one(said):
    """The process that runs the program for this file, and its number in its own namespace."""
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as f:
                if f.read().split(b"\0")[:2] != [PROGRAM.encode(), said.encode()]:
                    continue
            with open(f"/proc/{pid}/status", encoding="utf-8") as f:
                return int(pid), next(line.split()[-1] for line in f if line.startswith("NSpid:"))
        except OSError:
            continue
    raise AssertionError("the program does not run")


def lazy_mappings(pid):
    """Private memory without a file, as CRIU takes it: the stack as well."""
    with open(f"/proc/{pid}/maps", encoding="utf-8") as f:
        lines = [line.split() for line in f]
    return [word for line in lines if line[1] == "rw-p" and line[4] == "0" for word in ("--match", "0x" + line[0].split("-")[0])]


def process_is_restored_lazily(folder):
    need_root()
    if subprocess.run([CRIU, "check"], capture_output=True, check=False).returncode:
        raise Skip("this CRIU can't work on this kernel: see 'criu check'")
    images, said = os.path.join(folder, "images"), os.path.join(folder, "looks")
    os.mkdir(images)
    with ExitStack() as stack:
        stack.enter_context(started("unshare", "-p", "-f", "--kill-child", "--mount-proc", "sh", "-c",
                                    'setsid "$0" "$1" & exec sleep 1000', PROGRAM, said))
        wait_for("it has looked", lambda: len(looks(said)) >= 2)
        pid, inner = dumped_one(said)
        # The process stays as it is, since nobody asks this one for its pages.
        stack.enter_context(criu_ready(images, ("nsenter", "-t", str(pid), "-p", "-m"), "dump", "-t", inner,
                                       "--lazy-pages", "--address", "127.0.0.1", "--port", free_port()))
        assert state_of(pid) == "t"
        os.unlink(said)
        s = stack.enter_context(Run("criu", "--json", "--pid", pid, *lazy_mappings(pid), "--listen", "127.0.0.1:0",
                                    "--once"))
        port = s.event("listening")["address"].split(":")[1]
        lazy = stack.enter_context(criu_ready(images, (), "lazy-pages", "--page-server", "--address", "127.0.0.1",
                                              "--port", port))
        restore = stack.enter_context(started("unshare", "-p", "-m", "-f", "--kill-child", "--mount-proc", CRIU,
                                              "restore", "--lazy-pages", "-D", images, "-W", images, "-o",
                                              "restore.log"))
        wait_for("it has looked there", lambda: len(looks(said)) >= 2 or restore.poll() is not None)
        assert restore.poll() is None, story(images, "restore")
        assert not any(looks(said)), looks(said)
        assert lazy.wait(LIMIT_S) == 0, story(images, "lazy-pages")
        last = s.end(0)
        assert last["sessions_completed"] == 1 and last["pages_urgent"] >= N_PAGES - N_ZERO, last


if __name__ == "__main__":
    sys.exit(main([process_is_restored_lazily]))
