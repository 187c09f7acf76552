#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""The independent client against the real page server: protocol_python.py CLIENT PROTO [PAGEFERRY]

PAGEFERRY is the program, or the environment variable of that name is.
"""
import ctypes
import json
import os
import random
import signal
import subprocess
import sys
import tempfile

PAGE = 4096
LIMIT_S = 120
libc = ctypes.CDLL(None)


def die_with_parent():
    libc.prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG


def make_file(path, n_pages, rng):
    """Pages of every kind: unlike each other, all zero, nearly all zero, and holes large and small."""
    with open(path, "wb") as f:
        hole = range(n_pages // 4, n_pages // 2)
        for i in range(n_pages):
            kind = rng.randrange(8)
            f.seek(i * PAGE)
            if i in hole or kind == 0:
                continue
            if kind == 1:
                f.write(bytes(PAGE))
            elif kind == 2:
                page = bytearray(PAGE)
                page[rng.choice((0, 1, PAGE // 2, PAGE - 1))] = 1
                f.write(page)
            else:
                f.write(rng.randbytes(64) * (PAGE // 64))
        f.truncate(n_pages * PAGE)


def serve(program, path, addr, log):
    """Starts the page server. Returns it and the address that it listens on."""
    child = subprocess.Popen([program, "serve", "--file", path, "--listen", addr, "--json"],
                             stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True,
                             preexec_fn=die_with_parent)
    for line in child.stdout:
        event = json.loads(line)
        if event.get("event") == "listening":
            return child, event["address"]
    status = child.wait()
    log.seek(0)
    raise SystemExit(f"the page server ended with {status} before it listened: {log.read().strip()}")


def run_client(client, proto, addr, path, *more):
    done = subprocess.run([client, "--proto", proto, "--from", addr, "--compare", path, *more],
                          check=False, timeout=LIMIT_S, preexec_fn=die_with_parent, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    return done.returncode, done.stdout


def finds_a_wrong_byte(client, proto, addr, path, n_pages):
    """A client that finds nothing would prove nothing."""
    page, byte = n_pages - 1, 1234
    with open(path, "rb") as f:
        data = bytearray(f.read())
    data[page * PAGE + byte] ^= 0xff
    with open(path + ".wrong", "wb") as f:
        f.write(data)
    rc, out = run_client(client, proto, addr, path + ".wrong", "push")
    if rc == 1 and f"page {page}: byte {byte} is" in out:
        return True
    print(f"a byte that differs was not found; the client ended with {rc}:\n{out}")
    return False


def check_once(client, proto, program, path, listen, n_pages):
    with tempfile.TemporaryFile("w+") as log:
        child, addr = serve(program, path, listen, log)
        try:
            rc, out = run_client(client, proto, addr, path, "--seed", str(n_pages))
            print(out, end="", flush=True)
            good = finds_a_wrong_byte(client, proto, addr, path, n_pages)
            alive = child.poll() is None
        finally:
            child.kill()
            child.wait()
            child.stdout.close()
        if not alive:
            print("the page server did not live to the end")
        good &= rc == 0 and alive
        if not good:
            log.seek(0)
            print(log.read())
        return good


def main():
    client, proto = sys.argv[1:3]
    program = sys.argv[3] if len(sys.argv) > 3 else os.environ.get("PAGEFERRY")
    if not program:
        print(__doc__, file=sys.stderr)
        return 2
    good = True
    with tempfile.TemporaryDirectory(prefix="ferry-python-") as tmp:
        path = os.path.join(tmp, "memory")
        unix = "unix:" + os.path.join(tmp, "s")
        # One page; sizes around a byte and a word of the bitmap; and enough to be cut in the middle.
        for n_pages, listen in ((1, unix), (63, unix), (65, "127.0.0.1:0"), (4097, "127.0.0.1:0")):
            make_file(path, n_pages, random.Random(n_pages))
            print(f"-- {n_pages} pages, {listen}", flush=True)
            good &= check_once(client, proto, program, path, listen, n_pages)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
