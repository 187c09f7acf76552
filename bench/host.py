# SPDX-License-Identifier: Apache-2.0
"""Memory that a virtual machine's host keeps back.

With free page reporting (virtio-balloon), memory that lies free goes back to the host, some seconds after it was
freed. Its next use then costs a fault in the host: 8 us a page of 4 KiB were seen in place of 0.9, and so what was
measured was which side of a ratio had run before. So memory is not reported while we measure, and is used once before.
"""
import contextlib
import mmap
import os
import signal

ORDER = "/sys/module/page_reporting/parameters/page_reporting_order"
NEVER = "11"  # above any order that the kernel's free lists have
PIECE = 1 << 20


def _write(value):
    with open(ORDER, "w", encoding="ascii") as f:
        f.write(value)


def _end(*_):
    raise SystemExit(1)


def fetch(n_bytes):
    """Use memory once, and free it."""
    fd = os.memfd_create("bench-fetch", os.MFD_CLOEXEC)
    try:
        with mmap.mmap(-1, PIECE) as piece:
            for at in range(0, n_bytes, PIECE):
                os.pwrite(fd, piece, at)
    except OSError:
        pass  # less of it than asked for
    finally:
        os.close(fd)


@contextlib.contextmanager
def kept_memory(n_bytes):
    """
    Free memory stays with this machine until the end. Yields False where we may not see to that, or where nothing
    is reported.
    """
    try:
        with open(ORDER, encoding="ascii") as f:
            before = f.read().strip()
        _write(NEVER)
    except OSError:
        yield False
        return
    # Asked to end, we put it back as well.
    old = signal.signal(signal.SIGTERM, _end)
    try:
        fetch(n_bytes)
        yield True
    finally:
        signal.signal(signal.SIGTERM, old)
        _write(before)
