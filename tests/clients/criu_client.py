# SPDX-License-Identifier: Apache-2.0
"""The client's side of CRIU's page-server protocol, as 'criu lazy-pages' speaks it: GET and CLOSE. Written from CRIU's
page-xfer.h and page-xfer.c; shares nothing with the implementation."""
import socket
import struct

PAGE = 4096
ADD_F, GET, CLOSE, OPEN2 = 6, 7, 0x1023, 4
PE_PRESENT = 4
# u32 cmd, u32 nr_pages, u64 vaddr, u64 dst_id; as of 4.2 nr_pages has 64 bits, and padding before it.
FORMS = {24: struct.Struct("=IIQQ"), 32: struct.Struct("=I4xQQQ")}


class CriuClient:
    def __init__(self, address, header, timeout=60):
        if address.startswith("unix:"):
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.connect(address[5:])
        else:
            host, port = address.rsplit(":", 1)
            self.sock = socket.create_connection((host, int(port)))
        self.sock.settimeout(timeout)
        self.form = FORMS[header]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.sock.close()

    def send(self, command, n_pages=0, address=0, pid=0):
        self.sock.sendall(self.form.pack(command, n_pages, address, pid))

    def read(self, n):
        data = b""
        while len(data) < n:
            got = self.sock.recv(n - len(data))
            if not got:
                raise EOFError(f"closed after {len(data)} of {n} bytes")
            data += got
        return data

    def pages(self, n_pages, address, pid):
        """The answer to a GET that was sent: its pages, from the first one on, but perhaps not all."""
        command, n, vaddr, who = self.form.unpack(self.read(self.form.size))
        assert command == ADD_F | PE_PRESENT << 16, hex(command)
        assert (vaddr, who) == (address, pid) and 1 <= n <= n_pages, (n, hex(vaddr), who)
        return self.read(n * PAGE)

    def fetch(self, n_pages, address, pid):
        """All of a range, as CRIU does: what an answer has not got is asked for again."""
        data = b""
        while len(data) < n_pages * PAGE:
            left = n_pages - len(data) // PAGE
            self.send(GET, left, address + len(data), pid)
            data += self.pages(left, address + len(data), pid)
        return data

    def close(self):
        self.send(CLOSE)
        assert self.read(4) == bytes(4)

    def is_closed(self):
        """The server has ended it, and gave nothing before."""
        try:
            return not self.sock.recv(1)
        except ConnectionError:
            return True
