# SPDX-License-Identifier: Apache-2.0
"""What start, stop and selftest share: QMP, the guest's console, and the record of a started guest.

Files of a guest NAME in its run directory:
  NAME.json     record: pids, sockets, RAM file (written by start, removed when QEMU is gone)
  NAME.qmp      QMP socket; QEMU serves one client at a time
  NAME.serial   serial console as a socket; takes the guest's commands
  NAME.console  serial console as a log
  NAME.log      what QEMU wrote on stderr
  NAME.pid      QEMU's pid
"""
import json
import os
import re
import select
import signal
import socket
import time


class VmError(Exception):
    """Something to tell the user in one line."""


class Record:
    """Where the parts of the guest NAME in RUNDIR are."""

    def __init__(self, rundir, name):
        self.name = name
        self.base = os.path.join(os.path.abspath(rundir), name)

    def path(self, kind):
        return f"{self.base}.{kind}"

    def load(self):
        try:
            with open(self.path("json"), encoding="ascii") as f:
                return json.load(f)
        except FileNotFoundError:
            return None

    def save(self, content):
        with open(self.path("json.new"), "w", encoding="ascii") as f:
            json.dump(content, f)
        os.rename(self.path("json.new"), self.path("json"))

    def remove(self):
        """Removes all that makes no sense without a running QEMU; the logs stay."""
        content = self.load() or {}
        if content.get("ram_file_owned"):
            unlink(content["ram_file"])
        for kind in ("qmp", "serial", "pid", "json"):
            unlink(self.path(kind))


def unlink(path):
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


def start_time(pid):
    """Start time of a process in clock ticks, which with the pid names it for good; None if it is gone."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as f:
            fields = f.read().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def open_pid(pid, started):
    """A pidfd of the process that had this pid and start time; None if it is gone."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    if start_time(pid) != started:
        os.close(fd)
        return None
    return fd


def wait_gone(pidfd, timeout):
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(int(timeout * 1000)))


def wait_process(pid, started, timeout):
    """Whether a process has ended, or does so in time."""
    fd = open_pid(pid, started)
    if fd is None:
        return True
    try:
        return wait_gone(fd, timeout)
    finally:
        os.close(fd)


def end(pid, started, signals, timeout):
    """Sends the signals one after the other, until the process is gone. False if it was gone already."""
    fd = open_pid(pid, started)
    if fd is None:
        return False
    try:
        for sig in signals:
            signal.pidfd_send_signal(fd, sig)
            if wait_gone(fd, timeout):
                break
    except ProcessLookupError:
        pass
    finally:
        os.close(fd)
    return True


def stop(record, timeout=5.0):
    """Ends the guest's QEMU, first politely, and removes its files. False if there was none."""
    content = record.load()
    if not content:
        return False
    # A QEMU that waits for a page that nobody brings does not obey SIGTERM.
    found = end(content["qemu_pid"], content["qemu_started"], (signal.SIGTERM, signal.SIGKILL), timeout)
    # The supervisor ends by itself, after its QEMU; 0 only asks whether it is there.
    end(content["supervisor_pid"], content["supervisor_started"], (0, signal.SIGKILL), timeout)
    record.remove()
    return found


class Qmp:
    """A QMP client. Events that come by are kept with the time of their arrival."""

    def __init__(self, path, timeout=10.0):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(timeout)
        self.sock.connect(path)
        self.buffer = b""
        self.events = []
        greeting = self._read()
        if "QMP" not in greeting:
            raise VmError(f"{path}: not a QMP greeting: {greeting}")
        self.command("qmp_capabilities")

    def close(self):
        self.sock.close()

    def _read(self):
        while b"\n" not in self.buffer:
            data = self.sock.recv(65536)
            if not data:
                raise VmError("QMP connection closed by QEMU")
            self.buffer += data
        line, _, self.buffer = self.buffer.partition(b"\n")
        return json.loads(line)

    def command(self, name, **arguments):
        """Runs a command; dashes in argument names are written as underscores."""
        request = {"execute": name}
        if arguments:
            request["arguments"] = {k.replace("_", "-"): v for k, v in arguments.items()}
        self.sock.sendall(json.dumps(request).encode() + b"\n")
        while True:
            reply = self._read()
            if "event" in reply:
                self.events.append((time.monotonic(), reply))
            elif "error" in reply:
                raise VmError(f"{name}: {reply['error']['desc']}")
            else:
                return reply["return"]


REPORT = re.compile(r"ferry-guest t=(?P<t>[\d.]+) ops=(?P<ops>\d+) stall_max_us=(?P<stall_max_us>\d+) "
                    r"stalls_100us=(?P<stalls_100us>\d+) bad=(?P<bad>\d+) pass=(?P<passes>\d+)$")
READY = re.compile(r"ferry-guest ready pages=(?P<pages>\d+) ws_pages=(?P<ws_pages>\d+) "
                   r"threads=(?P<threads>\d+) seed=(?P<seed>\d+) clocksource=(?P<clocksource>\S+)$")
VERIFIED = re.compile(r"ferry-guest verified pages=(?P<pages>\d+) bad=(?P<bad>\d+) "
                      r"lost_writes=(?P<lost_writes>-?\d+)$")
BAD = re.compile(r"ferry-guest BAD page=(?P<page>\d+) expected version=(?P<version>\d+) got (?P<got>.*)$")


class Console:
    """Follows a guest's console log, line by line."""

    def __init__(self, record):
        self.record = record
        self.offset = 0
        self.partial = ""

    def lines(self):
        """The lines complete since the last call."""
        try:
            with open(self.record.path("console"), "rb") as f:
                f.seek(self.offset)
                data = f.read()
        except FileNotFoundError:
            return []
        self.offset += len(data)
        whole, newline, rest = (self.partial + data.decode("ascii", "replace")).rpartition("\n")
        self.partial = rest
        return [line.rstrip("\r") for line in whole.split("\n")] if newline else []

    def wait(self, pattern, timeout, each=None):
        """The first match of a compiled pattern in lines from now on; each(line) sees every line."""
        deadline = time.monotonic() + timeout
        while True:
            # Asked first, so that the last words of a QEMU that ends meanwhile are read.
            content = self.record.load()
            alive = content and start_time(content["qemu_pid"]) == content["qemu_started"]
            found = None
            for line in self.lines():
                if each:
                    each(line)
                found = found or pattern.search(line)
            if found:
                return found
            if not alive:
                raise VmError(f"{self.record.name}: QEMU has ended; see {self.record.path('log')}")
            if time.monotonic() > deadline:
                raise VmError(f"{self.record.name}: no '{pattern.pattern}' on the console "
                              f"in {timeout:.0f} s; see {self.record.path('console')}")
            time.sleep(0.02)

    def send(self, command):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(self.record.path("serial"))
            sock.sendall(command.encode() + b"\n")
            # Held until the guest has taken all of it, for what its UART has no room for goes with the
            # client; and until a pause, for QEMU writes the character that it sends to a client which goes
            # into the log a second time.
            output = b""
            deadline = time.monotonic() + 30
            while time.monotonic() < deadline:
                poll = select.poll()
                poll.register(sock, select.POLLIN)
                if poll.poll(20):
                    if not (data := sock.recv(4096)):
                        break
                    output += data
                elif output.count(b"\n") >= 2 and output.endswith(b"\n"):
                    break
