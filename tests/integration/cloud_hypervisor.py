#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""'pageferry cloud-hypervisor' against an independent target of Cloud Hypervisor's migration protocol."""
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading

from cli_support import PAGE, Run, content, main, run, wait_for

SOURCE = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))
sys.path.append(os.path.join(SOURCE, "tests", "clients"))
from cloud_hypervisor_target import (  # noqa: E402
    COMPLETE, ERROR, HEADER, HUGE, MEMORY, OK, PAGE_FAULT, RANGE, CloudHypervisor, make_snapshot, mapping, read,
)

HIGH = 4 << 30  # where memory goes on above the devices
LOW_PAGES, HIGH_PAGES = 300, 200


def small(folder, name="snapshot", **more):
    """A snapshot whose upper memory is first in the file. Returns its path and memory by address."""
    path = os.path.join(folder, name)
    memory = [(HIGH, content(HIGH_PAGES, 9)), (0, content(LOW_PAGES))]
    make_snapshot(path, memory, **more)
    return path, dict(memory)


def Restore(path, target, *more):
    return Run("cloud-hypervisor", "--json", "--snapshot", path, "--to", getattr(target, "address", target), *more)


def check_memory(target, memory):
    for gpa, data in memory.items():
        assert target.content(gpa, len(data)) == data, hex(gpa)


def restores(path, memory, target, *more, size=PAGE):
    """A good target gets everything. Returns the last line."""
    with Restore(path, target, *more) as r:
        target.receive(size)
        last = r.end(0)
    check_memory(target, memory)
    n = sum(len(data) for data in memory.values()) // PAGE
    assert last["pages_known"] == last["pages_total"] == n, last
    assert last["requests"] == n * PAGE // size, last
    return last


def pages_come_in_any_order(folder):
    path, memory = small(folder)
    with CloudHypervisor() as t:
        restores(path, memory, t)
        assert t.is_running


def a_target_on_a_unix_socket_may_stay_paused(folder):
    path, memory = small(folder, "paused")
    with CloudHypervisor("unix:" + os.path.join(folder, "ch.sock")) as t:
        restores(path, memory, t, "--paused")
        assert t.is_running is False


def large_pages_come_whole(folder):
    path = os.path.join(folder, "large")
    memory = {0: content(3 * HUGE // PAGE), HIGH: content(HUGE // PAGE, 5)}
    make_snapshot(path, memory.items())
    with CloudHypervisor() as t:
        restores(path, memory, t, size=HUGE)


def the_target_is_told_what_the_snapshot_says(folder):
    path = os.path.join(folder, "told")
    memory = {0: content(LOW_PAGES)}
    wanted = make_snapshot(path, memory.items())
    with CloudHypervisor() as t:
        restores(path, memory, t)
        # To the last bit, also of numbers that have 64; versions after 53 go by the mode.
        assert t.config == {**wanted, "memory_mode": "Postcopy"}, t.config
        with open(os.path.join(path, "state.json"), "rb") as f:
            assert t.state == f.read()


def tls_context(folder):
    """As Cloud Hypervisor's: certificates of both, and no protocol is named."""
    subprocess.run([f"{SOURCE}/contrib/make-credentials", folder, "localhost=127.0.0.1"], check=True,
                   stdout=subprocess.DEVNULL)
    host = os.path.join(folder, "localhost")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(host + "/server-cert.pem", host + "/server-key.pem")
    context.load_verify_locations(host + "/ca-cert.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    return context, host


def over_tls_too(folder):
    path, memory = small(folder, "tls")
    context, host = tls_context(os.path.join(folder, "credentials"))
    _, other = tls_context(os.path.join(folder, "others"))
    with CloudHypervisor(tls=context) as t:
        restores(path, memory, t, "--tls", host)
    with CloudHypervisor(tls=context) as t, Restore(path, t, "--tls", other) as r:
        try:
            t.start()
        except (ssl.SSLError, ConnectionError):
            pass
        assert "is it signed by ca-cert.pem?" in r.end(1)["error"]


def a_target_that_is_none_for_post_copy_is_not_told_to_run(folder):
    """It would run on zeros. Version 53 drops the second connection; another might keep it."""
    path, _ = small(folder, "precopy")
    for drops in (True, False):
        with CloudHypervisor() as t, Restore(path, t) as r:
            t.start()
            t.answer()
            t.configure()
            t.answer()
            read(t.main, t.take_state())
            if drops:
                t.fault.shutdown(socket.SHUT_RDWR)
            t.answer()
            last = r.end(1)
            assert "memory_mode=postcopy" in last["error"] and last["requests"] == 0, last
            try:
                t.complete()
                assert False, "it was told to run"
            except EOFError:
                pass


STEPS = ["Start", "the VM's configuration", "the VM's state", "the end of the migration"]


def up_to(target, step):
    """The target has read this request, and has not answered."""
    target.start()
    if step:
        target.answer()
        target.configure()
    if step > 1:
        target.answer()
        target.state = read(target.main, target.take_state())
        target.fill(limit=3)
    if step > 2:
        target.answer()
        target.complete()


def refusals_are_told(folder):
    path, _ = small(folder, "refused")
    for step, name in enumerate(STEPS):
        for answer, says in ((HEADER.pack(ERROR, bytes(6), 0), f"refuses {name}; its log says why"),
                             (HEADER.pack(OK, bytes(6), 1), "is not Cloud Hypervisor"),
                             (b"HTTP/1.1 400 Bad", "is not Cloud Hypervisor"),
                             (b"", f"does not answer to {name}"), (bytes(7), f"does not answer to {name}")):
            with CloudHypervisor() as t, Restore(path, t) as r:
                up_to(t, step)
                t.main.sendall(answer)
                t.close()
                # Who was told to run the VM, and leaves without a word, may have done so.
                may_run = step == len(STEPS) - 1 and len(answer) < HEADER.size
                last = r.end(4 if may_run else 1)
                assert says in last["error"], (step, answer, last)


def a_refusal_is_told_also_when_an_answer_is_on_its_way(folder):
    path = os.path.join(folder, "on-its-way")
    make_snapshot(path, [(0, content(16 * HUGE // PAGE))])
    with CloudHypervisor() as t, Restore(path, t) as r:
        up_to(t, 2)
        t.ask(0, 16 * HUGE)
        read(t.fault, HEADER.size + PAGE)
        t.answer(ERROR)
        assert "refuses the VM's state" in r.end(1)["error"]


def nobody_there_is_told(folder):
    path, _ = small(folder, "nobody")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))  # and does not listen
        with Restore(path, "127.0.0.1:%d" % s.getsockname()[1]) as r:
            assert "refused" in r.end(1)["error"]


# Requests, and what is said of them. The lower memory is 0 to LOW_PAGES.
END = LOW_PAGES * PAGE
WRONG = [
    ((PAGE_FAULT, END, PAGE), "not in the snapshot"),
    ((PAGE_FAULT, END - PAGE, 2 * PAGE), "not in the snapshot"),
    # What follows in the file is other memory.
    ((PAGE_FAULT, HIGH + (HIGH_PAGES - 1) * PAGE, 2 * PAGE), "not in the snapshot"),
    ((PAGE_FAULT, HIGH - PAGE, PAGE), "not in the snapshot"),
    ((PAGE_FAULT, HIGH - PAGE, 2 * PAGE), "not in the snapshot"),
    ((PAGE_FAULT, HIGH + HIGH_PAGES * PAGE, PAGE), "not in the snapshot"),
    ((PAGE_FAULT, (1 << 64) - PAGE, 2 * PAGE), "not in the snapshot"),
    ((PAGE_FAULT, 0, 1 << 30), "not in the snapshot"),
    ((PAGE_FAULT, 0, 0), "no pages"),
    ((PAGE_FAULT, 0, 100), "no pages"),
    ((PAGE_FAULT, 8, PAGE), "no pages"),
    ((PAGE_FAULT, 0, (1 << 30) + PAGE), "no pages"),
    ((PAGE_FAULT, 0, (1 << 64) - PAGE), "no pages"),
    ((MEMORY, 0, PAGE), "none that asks for pages"),
    ((COMPLETE, 0, PAGE), "none that asks for pages"),
    ((0xFFFF, 0, PAGE), "none that asks for pages"),
]


def expect_error(target):
    """An answer that says no, and nothing behind it: above all, no zeros."""
    assert HEADER.unpack(read(target.fault, HEADER.size)) == (ERROR, bytes(6), 0)
    try:
        assert not target.fault.recv(1)
    except ConnectionError:
        pass


def what_is_not_there_is_never_answered(folder):
    path, _ = small(folder, "wrong")
    for (command, gpa, length), says in WRONG:
        with CloudHypervisor() as t, Restore(path, t) as r:
            t.up_to_running()
            t.fault.sendall(HEADER.pack(command, bytes(6), RANGE.size) + RANGE.pack(gpa, length))
            expect_error(t)
            last = r.end(4)
            assert says in last["error"] and last["consequence"] == "lost", last
    for garbage in (b"GET / HTTP/1.1\r\n\r\n" * 2, HEADER.pack(PAGE_FAULT, bytes(6), RANGE.size + 1) + bytes(17)):
        with CloudHypervisor() as t, Restore(path, t) as r:
            t.up_to_running()
            t.fault.sendall(garbage)
            expect_error(t)
            assert r.end(4)["pages_known"] == 1


def a_wrong_request_before_the_vm_runs_ends_it_too(folder):
    path, _ = small(folder, "early")
    with CloudHypervisor() as t, Restore(path, t) as r:
        up_to(t, 2)
        t.ask(END, PAGE)
        expect_error(t)
        assert "not in the snapshot" in r.end(1)["error"]


def a_target_that_closes_early_is_no_success(folder):
    path, memory = small(folder, "cut")
    request = HEADER.pack(PAGE_FAULT, bytes(6), RANGE.size) + RANGE.pack(0, PAGE)
    for cut in (0, 7, HEADER.size, len(request) - 1):
        with CloudHypervisor() as t, Restore(path, t) as r:
            t.up_to_running(5)
            t.fault.sendall(request[:cut])
            t.close()
            last = r.end(4)
            assert "had 5 of 500 pages" in last["error"] and last["pages_known"] == 5, last
    # All but one, and that one many times.
    with CloudHypervisor() as t, Restore(path, t) as r:
        t.up_to_running(499)
        for _ in range(3):
            t.page(t.pages(PAGE)[0], PAGE)
        t.close()
        assert "had 499 of 500 pages" in r.end(4)["error"]
    # In the middle of an answer: reset, since it was not read.
    big = os.path.join(folder, "big")
    make_snapshot(big, [(0, content(8 * HUGE // PAGE))])
    with CloudHypervisor() as t, Restore(big, t) as r:
        t.up_to_running()
        t.ask(0, 8 * HUGE)
        read(t.fault, HEADER.size + PAGE)
        t.close()
        assert "answering" in r.end(4)["error"]


def who_stops_in_the_middle_has_thirty_seconds(folder):
    path, _ = small(folder, "stalled")

    def silent():
        with CloudHypervisor() as t, Restore(path, t) as r:
            t.start()
            t.answer()
            t.configure()
            assert "does not answer to the VM's configuration" in r.end(1)["error"]

    def half():
        with CloudHypervisor() as t, Restore(path, t) as r:
            t.up_to_running()
            t.fault.sendall(bytes(5))
            assert "waiting for a request: Connection timed out" in r.end(4)["error"]

    def slow():
        """Takes its time with the state, and asks for pages meanwhile: that is no stall."""
        with CloudHypervisor() as t, Restore(path, t) as r:
            up_to(t, 2)
            for gpa in t.pages(PAGE)[:5]:
                threading.Event().wait(8)
                t.page(gpa, PAGE)
            t.answer()
            t.complete()
            t.answer()
            t.fill()
            t.close()
            r.end(0)

    failures = []

    def tell(f):
        try:
            f()
        except BaseException as e:
            failures.append((f.__name__, e))

    threads = [threading.Thread(target=tell, args=(f,)) for f in (silent, half, slow)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not failures, failures


def one_that_never_closes_can_be_left(folder):
    path, memory = small(folder, "open")
    with CloudHypervisor() as t, Restore(path, t) as r:
        t.up_to_running()
        t.fill()
        t.page(t.pages(PAGE)[0], PAGE)  # the last one is counted before this is answered
        check_memory(t, memory)
        r.child.send_signal(signal.SIGTERM)
        r.end(0)
    with CloudHypervisor() as t, Restore(path, t) as r:
        t.up_to_running(7)
        t.page(t.pages(PAGE)[0], PAGE)
        r.event("stage", stage="serve")
        r.child.send_signal(signal.SIGTERM)
        assert "had 7 of 500 pages" in r.end(4)["error"]
    with CloudHypervisor() as t, Restore(path, t) as r:
        up_to(t, 2)
        r.event("stage", stage="restore")
        r.child.send_signal(signal.SIGTERM)
        assert "before the VM was on the target" in r.end(1)["error"]


def a_snapshot_that_shrinks_gives_no_zeros(folder):
    path, _ = small(folder, "shrinks")
    with CloudHypervisor() as t, Restore(path, t) as r:
        t.up_to_running()
        os.truncate(os.path.join(path, "memory-ranges"), PAGE)
        t.ask(0, PAGE)
        assert not t.fault.recv(1)
        assert "can't be had any more" in r.end(4)["error"]


def snapshots_that_cannot_be_served_are_refused(folder):
    def refuses(name, says):
        with Restore(os.path.join(folder, name), "127.0.0.1:1") as r:
            last = r.end(1)
            assert says in last["error"], (name, last)

    refuses("nothing", "config.json: No such file")
    low = content(16)
    for name, says, more in (
        ("hot", "virtio-mem", {"mappings": [mapping(0, 0, len(low)), mapping(1, HIGH, PAGE, virtio_mem=True)]}),
        ("shared", "at 0x100000000 is not in the snapshot",
         {"mappings": [mapping(0, 0, len(low)), mapping(1, HIGH, PAGE)]}),
        ("longer", "is not in the snapshot", {"mappings": [mapping(0, 0, len(low) + PAGE)]}),
        ("prefault", "set prefault to false", {"memory_config": {"prefault": True}}),
        ("zone", "set prefault to false", {"memory_config": {"zones": [{"id": "a"}, {"id": "b", "prefault": True}]}}),
    ):
        make_snapshot(os.path.join(folder, name), [(0, low)], **more)
        refuses(name, says)
    for name, says in (("config.json", "config.json is no JSON"), ("state.json", "state.json is no JSON"),
                       ("memory-ranges", "the snapshot is not whole")):
        make_snapshot(os.path.join(folder, "broken-" + name), [(0, low)])
        path = os.path.join(folder, "broken-" + name, name)
        os.truncate(path, os.path.getsize(path) - 1)
        refuses("broken-" + name, says)
        os.unlink(path)
        refuses("broken-" + name, name + ": No such file")


def status_knows_of_it(folder):
    path, _ = small(folder, "status")
    with CloudHypervisor() as t, Restore(path, t) as r:
        t.up_to_running()
        r.event("stage", stage="serve")
        wait_for("it is told", lambda: "cloud-hypervisor" in run("status")[1])
        t.fill()
        t.close()
        r.end(0)


if __name__ == "__main__":
    sys.exit(
        main(
            [
                pages_come_in_any_order,
                a_target_on_a_unix_socket_may_stay_paused,
                large_pages_come_whole,
                the_target_is_told_what_the_snapshot_says,
                over_tls_too,
                a_target_that_is_none_for_post_copy_is_not_told_to_run,
                refusals_are_told,
                a_refusal_is_told_also_when_an_answer_is_on_its_way,
                nobody_there_is_told,
                what_is_not_there_is_never_answered,
                a_wrong_request_before_the_vm_runs_ends_it_too,
                a_target_that_closes_early_is_no_success,
                who_stops_in_the_middle_has_thirty_seconds,
                one_that_never_closes_can_be_left,
                a_snapshot_that_shrinks_gives_no_zeros,
                snapshots_that_cannot_be_served_are_refused,
                status_knows_of_it,
            ]
        )
    )
