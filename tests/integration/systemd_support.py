# SPDX-License-Identifier: Apache-2.0
"""A service manager of a test's own: 'systemd --user' as root, with our units and nothing else. It has a /run of its own,
which is the test's too from then on, and a control group, with which all that it has started ends."""
import os
import signal
import subprocess
import time
from contextlib import suppress

from cli_support import CLONE_NEWNS, LIMIT_S, Run, Skip, die_with_parent, libc, need_root, private_run, wait_for

PROGRAM = "/lib/systemd/systemd"
GROUPS = "/sys/fs/cgroup"
# What units depend on by default.
TARGETS = ["basic.target", "default.target", "shutdown.target", "sockets.target"]
INSTANCE = "test"  # of the units, pageferry-attach@test.service
FILES = "/run/files"
ETC = "/run/etc"


def group_folders():
    """Where this process is among the control groups that systemd looks at, v2 or both kinds."""
    kinds = {"": GROUPS} if os.path.exists(f"{GROUPS}/cgroup.controllers") else {
        "": f"{GROUPS}/unified", "name=systemd": f"{GROUPS}/systemd"}
    with open("/proc/self/cgroup", encoding="ascii") as f:
        for line in f.read().splitlines():
            _, kind, path = line.split(":", 2)
            if kind in kinds and os.path.exists(kinds[kind]):
                yield kinds[kind] + path


def processes_in(folder):
    """Of one control group, without those below it."""
    try:
        with open(f"{folder}/cgroup.procs", encoding="ascii") as f:
            return [int(pid) for pid in f.read().split()]
    except OSError:
        return []


class Group:
    """A control group. It is emptied and removed by a process that waits for the end of the test, however that comes."""

    def __init__(self):
        self.folders = [os.path.join(folder, f"pageferry-test-{os.getpid()}") for folder in group_folders()]
        if not self.folders:
            raise Skip("no control groups that systemd could use")
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
        parent = os.getpid()
        self.cleaner = os.fork()
        if not self.cleaner:
            os.setsid()
            os.closerange(3, os.sysconf("SC_OPEN_MAX"))
            die_with_parent(signal.SIGUSR1)
            if os.getppid() == parent:
                signal.sigwait({signal.SIGUSR1})
            self.clean()
            os._exit(0)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
        try:
            for folder in self.folders:
                os.mkdir(folder)
        except OSError as e:
            self.close()
            raise Skip(f"no control group of its own: {e.strerror}") from None

    def enter(self):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
        for folder in self.folders:
            with open(f"{folder}/cgroup.procs", "w", encoding="ascii") as f:
                f.write(str(os.getpid()))

    def clean(self):
        end = time.monotonic() + LIMIT_S
        while any(os.path.exists(folder) for folder in self.folders) and time.monotonic() < end:
            for folder in self.folders:
                for path, _, _ in os.walk(folder, topdown=False):
                    for pid in processes_in(path):
                        with suppress(ProcessLookupError):
                            os.kill(pid, signal.SIGKILL)
                    with suppress(OSError):
                        os.rmdir(path)
            time.sleep(0.01)

    def close(self):
        os.kill(self.cleaner, signal.SIGUSR1)
        os.waitpid(self.cleaner, 0)
        assert not any(os.path.exists(folder) for folder in self.folders), self.folders


def own_tmp():
    """Where PrivateTmp= makes folders, which stay when systemd itself is killed."""
    assert not libc.unshare(CLONE_NEWNS)
    for folder in (b"/tmp", b"/var/tmp"):
        assert not libc.mount(b"tmpfs", folder, b"tmpfs", 0, None)


class Systemd:
    """@units: paths of unit files that name the program in @bindir. What they start sees the test's /tmp only where that is
    shared."""

    def __init__(self, units, bindir, shares_tmp=False):
        need_root()
        if not os.path.exists(PROGRAM):
            raise Skip("systemd is not installed")
        private_run()
        here = "/run/units"
        # It is only for hosts that it has booted.
        for folder in (ETC, FILES, here, "/run/systemd/system"):
            os.makedirs(folder, 0o700)
        # What another unit names is not forgotten when it has ended.
        ours = " ".join(os.path.basename(unit).replace("@", f"@{INSTANCE}") for unit in units)
        for name in TARGETS:
            with open(os.path.join(here, name), "w", encoding="ascii") as f:
                f.write(f"[Unit]\nAfter={ours if name == 'default.target' else ''}\n")
        # The program may be in /tmp.
        program = os.path.join(FILES, "pageferry")
        with open(Run.program, "rb") as f, open(program, "wb") as to:
            to.write(f.read())
        os.chmod(program, 0o755)
        for unit in units:
            with open(unit, encoding="utf-8") as f:
                text = f.read()
            text = text.replace(f"{bindir}/pageferry", program).replace("/etc/pageferry", ETC)
            with open(os.path.join(here, os.path.basename(unit)), "w", encoding="utf-8") as f:
                f.write(text)
        self.env = {k: v for k, v in os.environ.items() if not k.startswith(("DBUS_", "XDG_", "SYSTEMD_"))}
        self.env.update(XDG_RUNTIME_DIR="/run", SYSTEMD_UNIT_PATH=here, SYSTEMD_PAGER="")
        self.env.pop("NOTIFY_SOCKET", None)
        self.env.pop("RUNTIME_DIRECTORY", None)
        self.group = Group()

        def prepare():
            die_with_parent()
            self.group.enter()
            if not shares_tmp:
                own_tmp()

        # Its log would go to the machine's console. What units say comes among what we say.
        self.child = subprocess.Popen(
            [PROGRAM, "--user", "--unit=default.target", "--log-target=null", "--default-standard-output=inherit",
             "--default-standard-error=inherit"], env=self.env, stdin=subprocess.DEVNULL, stderr=subprocess.STDOUT,
            preexec_fn=prepare)
        try:
            wait_for("systemd is up", self.is_up)
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.child.kill()
        self.child.wait()
        self.group.close()

    def is_up(self):
        if self.child.poll() is not None:
            raise Skip(f"systemd does not start here: status {self.child.returncode}")
        return self.ctl("is-active", "default.target", check=False) == "active"

    def options(self, name, text):
        """A file of /etc/pageferry."""
        with open(os.path.join(ETC, name), "w", encoding="utf-8") as f:
            f.write(text)

    def ctl(self, *words, check=True):
        got = subprocess.run(["systemctl", "--user", *words], env=self.env, capture_output=True, text=True, check=False,
                             timeout=LIMIT_S)
        assert not check or not got.returncode, f"systemctl {words}: {got.stderr}"
        return got.stdout.strip()

    def show(self, unit):
        """All that systemd says of it."""
        return dict(line.split("=", 1) for line in self.ctl("show", unit).splitlines() if "=" in line)

    def main_pid(self, unit):
        return int(self.show(unit)["MainPID"])

    def processes(self, unit):
        group = self.show(unit).get("ControlGroup")
        root = GROUPS if os.path.exists(f"{GROUPS}/cgroup.controllers") else f"{GROUPS}/unified"
        return processes_in(root + group) if group else []

    def has_ended(self, unit, restarts=0):
        """For good. Meanwhile it is not started again."""
        said = self.show(unit)
        assert int(said["NRestarts"]) == restarts, f"{unit} was started again: {said['NRestarts']}"
        return said["ActiveState"] in ("inactive", "failed")

    def end(self, unit, restarts=0):
        """Waits for that. Returns what is said of it then."""
        wait_for(f"{unit} has ended", lambda: self.has_ended(unit, restarts))
        return self.show(unit)
