# SPDX-License-Identifier: Apache-2.0
"""The machine's pool of huge pages, made larger for a while."""

POOL = "/proc/sys/vm/nr_hugepages"


class HugePages:
    """@n more pages of 2 MiB in the pool, or else @skip is raised."""

    def __init__(self, n, skip):
        self.n, self.skip = n, skip

    def __enter__(self):
        with open(POOL, encoding="ascii") as f:
            self.before = int(f.read())
        self.set(self.before + self.n)
        with open(POOL, encoding="ascii") as f:
            if int(f.read()) < self.before + self.n:
                self.set(self.before)
                raise self.skip(f"no {self.n} huge pages to be had")

    def __exit__(self, *_):
        self.set(self.before)

    def set(self, n):
        with open(POOL, "w", encoding="ascii") as f:
            f.write(str(n))
