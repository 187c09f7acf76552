#!/usr/bin/python3 -B
# SPDX-License-Identifier: Apache-2.0
"""Shared memory that attach has filled is in large pages, where that can be, and is right."""
import hashlib
import os
import re
import signal
import sys

from cli_support import PAGE, Holder, Run, Serve, main

BLOCK = 2 << 20
PAGES = BLOCK // PAGE
N_BLOCKS = 12
FEW_ZEROS = PAGES // 8


def data_page(i):
    return i.to_bytes(8, "little") * (PAGE // 8)


def memory():
    """All kinds of blocks: whole, with one zero page, with as many as may be filled in the end, with more, all zero."""
    pages = [data_page(i + 1) for i in range(N_BLOCKS * PAGES)]
    for block, n_zero in ((2, 1), (4, FEW_ZEROS), (5, FEW_ZEROS + 1), (7, PAGES)):
        for i in range(n_zero):
            pages[block * PAGES + 2 * i % PAGES + 2 * i // PAGES] = bytes(PAGE)
    return pages


def attach(folder, holder, pages, *args):
    path = os.path.join(folder, "memory")
    with open(path, "wb") as f:
        f.write(b"".join(pages))
    with Serve("--file", path, "--once") as s:
        with Run("attach", "--json", "--pid", holder.pid, "--match", holder.ranges[0], "--from", s.address, *args) as a:
            last = a.end(0)
        s.end(0)
    assert holder.ask("hash") == hashlib.sha256(b"".join(pages)).hexdigest()
    return last


def large_blocks(holder, pages):
    """How many blocks of 2 MiB the kernel can have in large pages: by the addresses, and by what is zero."""
    start = int(holder.ranges[0].split("-")[0], 16)
    first = -start % BLOCK // PAGE
    blocks = [pages[i:i + PAGES] for i in range(first, len(pages) - PAGES + 1, PAGES)]
    return sum(b.count(bytes(PAGE)) <= FEW_ZEROS for b in blocks)


def mapped_kib(holder):
    """What of the memory its process has mapped by large entries."""
    start = holder.ranges[0].split("-")[0][2:]
    with open(f"/proc/{holder.pid}/smaps", encoding="ascii") as f:
        text = f.read()
    return int(re.search(rf"^{start}-.*?^ShmemPmdMapped: *(\d+) kB", text, re.M | re.S).group(1))


def what_has_come_is_in_large_pages(folder):
    is_in_large_pages(folder, memory())


def blocks_are_those_of_the_file(folder):
    """What is no multiple of 2 MiB lies anywhere, and its first block begins in its midst."""
    start = is_in_large_pages(folder, memory() + [data_page(i) for i in range(1, 6)])
    assert start % BLOCK, "the kernel aligned what is no multiple of 2 MiB"


def is_in_large_pages(folder, pages):
    with Holder("aligned", len(pages) * PAGE) as h:
        last = attach(folder, h, pages)
        wanted = large_blocks(h, pages)
        assert wanted >= N_BLOCKS - 5, wanted
        assert last["large_pages"] == wanted, (last["large_pages"], wanted)
        assert mapped_kib(h) == wanted * BLOCK >> 10, (mapped_kib(h), wanted)
        return int(h.ranges[0].split("-")[0], 16)


def it_can_be_written_and_discarded(folder):
    with Holder("aligned", N_BLOCKS * BLOCK) as h:
        attach(folder, h, memory())
        assert h.ask("write", 9 * BLOCK + 5, 77) == "ok" and h.ask("byte", 9 * BLOCK + 5) == "77"
        assert h.ask("discard", 9 * BLOCK, PAGE) == "ok"
        assert h.ask("byte", 9 * BLOCK + 5) == "77"  # of a file: it keeps what was written


def lost_pages_are_not_filled_with_zeros(folder):
    """They are holes of the file, and have to stay poisoned."""
    path = os.path.join(folder, "memory")
    n_lost = 20
    with open(path, "wb") as f:
        f.write(b"".join(data_page(i + 1) for i in range(4 * PAGES)))
    with Holder("aligned", 4 * BLOCK) as h, Serve("--file", path, "--max-rate", "1M") as s:
        with Run("attach", "--json", "--pid", h.pid, "--match", h.ranges[0], "--from", s.address,
                 "--on-lost", "poison") as a:
            a.event("progress")
            os.truncate(path, 4 * BLOCK - n_lost * PAGE)
            last = a.end(0)
        assert last["pages_poisoned"] == n_lost and last["large_pages"] > 0, last
        assert int(h.ask("byte", 4 * BLOCK - (n_lost + 1) * PAGE)) == data_page(4 * PAGES - n_lost)[0]
        h.send("byte", 4 * BLOCK - PAGE)
        assert h.child.wait(60) == -signal.SIGBUS, h.child.returncode


def small_pages_stay_where_they_are_wanted(folder):
    with Holder("aligned", N_BLOCKS * BLOCK) as h:
        last = attach(folder, h, memory(), "--no-large-pages")
        assert last["large_pages"] == 0 and mapped_kib(h) == 0, last


def memory_at_odd_addresses_stays_in_small_pages(folder):
    with Holder("memfd", N_BLOCKS * BLOCK + PAGE) as h:
        assert int(h.ranges[0].split("-")[0], 16) % BLOCK, "the kernel aligned what is no multiple of 2 MiB"
        last = attach(folder, h, memory() + [data_page(1)])
        assert last["large_pages"] == 0 and mapped_kib(h) == 0, last


if __name__ == "__main__":
    sys.exit(
        main(
            [
                what_has_come_is_in_large_pages,
                blocks_are_those_of_the_file,
                it_can_be_written_and_discarded,
                lost_pages_are_not_filled_with_zeros,
                small_pages_stay_where_they_are_wanted,
                memory_at_odd_addresses_stays_in_small_pages,
            ]
        )
    )
