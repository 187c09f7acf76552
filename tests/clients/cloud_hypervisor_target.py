# SPDX-License-Identifier: Apache-2.0
"""The target's side of Cloud Hypervisor's migration protocol in post-copy, and a snapshot such as it makes. Written
from Cloud Hypervisor's vm-migration/src/protocol.rs, vmm/src/lib.rs, vmm/src/migration/transport.rs, vmm/src/uffd.rs
and vmm/src/memory_manager.rs; shares nothing with the implementation."""
import json
import os
import random
import socket
import struct
import threading

PAGE, HUGE = 4096, 2 << 20
START, CONFIG, STATE, MEMORY, COMPLETE, ABANDON, MEMORY_FD, COMPLETE_PAUSED, PAGE_FAULT = range(1, 10)
OK, ERROR = 1, 2
ROLE_FAULT = 2
HEADER = struct.Struct("<H6sQ")
RANGE = struct.Struct("<QQ")
TIMEOUT_S = 60


def read(sock, n):
    data = b""
    while len(data) < n:
        got = sock.recv(min(n - len(data), 1 << 20))
        if not got:
            raise EOFError(f"closed after {len(data)} of {n} bytes")
        data += got
    return data


def mapping(slot, gpa, size, offset=0, virtio_mem=False):
    return {"slot": slot, "gpa": gpa, "size": size, "zone_id": "mem0", "virtio_mem": virtio_mem, "file_offset": offset}


def make_snapshot(folder, memory, mappings=None, memory_config=None):
    """@memory: (gpa, bytes) in the order of the file. Holes where there are zeros, as Cloud Hypervisor leaves them."""
    os.makedirs(folder)
    ranges = [{"gpa": gpa, "length": len(data)} for gpa, data in memory]
    manager = {
        "memory_ranges": {"data": ranges},
        "guest_ram_mappings": mappings or [mapping(i, gpa, len(data)) for i, (gpa, data) in enumerate(memory)],
        "start_of_device_area": 0xE_0000_0000,
        "boot_ram": sum(len(data) for _, data in memory),
        # As it is in real ones, and more than a signed number of 64 bits.
        "arch_mem_regions": [{"base": 0, "size": (1 << 64) - 1, "r_type": "Ram"}],
        "hotplug_slots": [],
    }
    cpuid = {"function": 0x80000001, "index": 0, "flags": 0, "eax": 0xFFFFFFFF, "ebx": 0, "ecx": 1, "edx": 2}
    vm = {"clock": {"clock": 123456789012345678, "flags": 0}, "common_cpuid": [cpuid]}
    config = {"cpus": {"boot_vcpus": 2}, "payload": {"cmdline": 'a "quoted" \\ and \u00fc'},
              "memory": {"size": manager["boot_ram"], "prefault": False, "zones": None, **(memory_config or {})}}
    node = lambda state, **below: {"snapshots": below, "snapshot_data": {"state": json.dumps(state)}}  # noqa: E731
    state = node(vm, **{"memory-manager": node(manager), "cpu-manager": {"snapshots": {}, "snapshot_data": None}})
    for name, content in (("config.json", config), ("state.json", state)):
        with open(os.path.join(folder, name), "w", encoding="utf-8") as f:
            json.dump(content, f)
    with open(os.path.join(folder, "memory-ranges"), "wb") as f:
        for _, data in memory:
            start = f.tell()
            for at in range(0, len(data), PAGE):
                if any(data[at : at + PAGE]):
                    f.seek(start + at)
                    f.write(data[at : at + PAGE])
            f.seek(start + len(data))
        f.truncate()
    return {"vm_config": config, "common_cpuid": vm["common_cpuid"], "memory_manager_data": manager}


class CloudHypervisor:
    """One target that receives a migration. What it is told is kept; its memory is what pages brought."""

    def __init__(self, address="127.0.0.1:0", tls=None):
        if address.startswith("unix:"):
            self.listener = socket.socket(socket.AF_UNIX)
            self.listener.bind(address[5:])
            self.address = address
        else:
            self.listener = socket.create_server(("127.0.0.1", int(address.rsplit(":", 1)[1])))
            self.address = "127.0.0.1:%d" % self.listener.getsockname()[1]
        self.listener.listen(5)
        self.listener.settimeout(TIMEOUT_S)
        self.tls = tls
        self.socks, self.main, self.fault = [], None, None
        self.config, self.state, self.regions, self.memory = None, None, [], {}
        self.is_running = None
        self.failure = None
        self.has_fault = threading.Event()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
        try:
            self.listener.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self.listener.close()

    def close(self):
        for s in self.socks:
            try:
                s.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            s.close()
        self.socks = []

    def accept(self):
        s, _ = self.listener.accept()
        s.settimeout(TIMEOUT_S)
        if self.tls:
            s = self.tls.wrap_socket(s, server_side=True)
        self.socks.append(s)
        return s

    def answer(self, status=OK, length=0, sock=None):
        (sock or self.main).sendall(HEADER.pack(status, bytes(6), length))

    def request(self, command, version=bytes(6)):
        """The next request, which must be this one. Returns the length of what follows."""
        got, headers, length = HEADER.unpack(read(self.main, HEADER.size))
        assert got == command, f"command {got} and not {command}"
        assert headers == version, headers
        return length

    # --- the states of the receiver, in their order ---

    def start(self):
        self.main = self.accept()
        assert self.request(START, struct.pack("<H4x", 0)) == 0

    def configure(self):
        self.config = json.loads(read(self.main, self.request(CONFIG)))
        for m in self.config["memory_manager_data"]["guest_ram_mappings"]:
            self.regions.append((m["gpa"], m["size"]))
        threading.Thread(target=self.accept_more, daemon=True).start()

    def accept_more(self):
        """The other connection is let in from the configuration on; others than for faults are dropped."""
        try:
            s = self.accept()
            if struct.unpack("<H", read(s, 2)) == (ROLE_FAULT,):
                self.fault = s
                self.has_fault.set()
        except (OSError, EOFError):
            pass

    def take_state(self):
        """Faults are served from before the state is read. Returns its length."""
        length = self.request(STATE)
        assert self.has_fault.wait(30), "Timed out waiting for postcopy fault connection"
        return length

    def complete(self):
        command, headers, length = HEADER.unpack(read(self.main, HEADER.size))
        assert command in (COMPLETE, COMPLETE_PAUSED) and headers == bytes(6) and length == 0, command
        self.is_running = command == COMPLETE

    # --- memory ---

    def ask(self, gpa, length):
        self.fault.sendall(HEADER.pack(PAGE_FAULT, bytes(6), RANGE.size) + RANGE.pack(gpa, length))

    def page(self, gpa, length):
        """One page, as the handler of faults gets it: asked for, and waited for."""
        self.ask(gpa, length)
        status, _, got = HEADER.unpack(read(self.fault, HEADER.size))
        if status != OK:
            raise ValueError(f"status {status}")
        assert got == length, f"{got} bytes, and not {length}"
        self.memory[gpa] = read(self.fault, length)

    def pages(self, size):
        """All that there are, of this size, in random order."""
        every = [gpa + at for gpa, n in self.regions for at in range(0, n, size)]
        random.Random(size).shuffle(every)
        return every

    def fill(self, size=PAGE, limit=None):
        for gpa in self.pages(size)[:limit]:
            self.page(gpa, size)

    def content(self, gpa, n):
        """A region's bytes, as they came."""
        return b"".join(data for at, data in sorted(self.memory.items()) if gpa <= at < gpa + n)

    # --- all of it ---

    def receive(self, size=PAGE):
        """Up to the end: a good target."""
        self.start()
        self.answer()
        self.configure()
        self.answer()
        length = self.take_state()
        filler = threading.Thread(target=self.fill_all, args=(size,))
        filler.start()
        self.state = read(self.main, length)
        self.answer()
        self.complete()
        self.answer()
        filler.join()
        assert not self.failure, self.failure
        self.fault.shutdown(socket.SHUT_RDWR)

    def fill_all(self, size):
        try:
            self.fill(size)
        except Exception as e:  # told by the thread that waits for it
            self.failure = e

    def up_to_running(self, n_pages=1):
        """The VM is there, and has this many pages."""
        self.start()
        self.answer()
        self.configure()
        self.answer()
        self.state = read(self.main, self.take_state())
        self.fill(limit=n_pages)
        self.answer()
        self.complete()
        self.answer()
