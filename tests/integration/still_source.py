#!/usr/bin/python3 -B
# SPDX-License-Identifier: Apache-2.0
"""A process that runs at the very end, once its target has everything and before it is released.

    still_source.py PAGEFERRY PROTO
"""
import os
import signal
import sys
import types

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "clients"))
import ferry_client  # noqa: E402
from cli_support import PAGE, Holder, Serve, main, state_of, wait_for  # noqa: E402

N_PAGES = 64


def a_target_is_not_released_when_the_process_has_run(folder):
    path = os.path.join(folder, "memory")
    with open(path, "wb") as f:
        f.write((b"\0" * 9 + b"\7").ljust(N_PAGES * PAGE, b"\0"))
    for runs in (False, True):
        with Holder("anon", N_PAGES * PAGE) as h:
            h.ask("write", 9, 7)
            os.kill(h.pid, signal.SIGSTOP)
            wait_for("the process has stopped", lambda: state_of(h.pid) == "T")
            with Serve("--pid", h.pid, "--match", h.ranges[0], "--once") as s:
                session = ferry_client.Session(types.SimpleNamespace(addr=s.address, compare=path)).open()
                session.push()
                if not runs:
                    session.complete()
                    s.end(0)
                    continue
                # It is looked at once a second as well, which is too late for this.
                os.kill(h.pid, signal.SIGCONT)
                h.ask("write", 9, 8)
                os.kill(h.pid, signal.SIGSTOP)
                try:
                    session.complete()
                    raise AssertionError("the target was released")
                except ferry_client.Refused as e:
                    assert "has run meanwhile" in str(e), e
                finally:
                    session.close()
                assert s.end(4)["consequence"] == "lost"


if __name__ == "__main__":
    ferry_client.load_proto(sys.argv.pop(2))
    sys.exit(main([a_target_is_not_released_when_the_process_has_run]))
