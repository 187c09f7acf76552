#!/usr/bin/python3 -B
# SPDX-License-Identifier: Apache-2.0
"""--metrics: are the figures right, well-formed, and served to nobody who should not have them?"""
import http.client
import json
import os
import re
import socket
import subprocess
import sys
import time

from cli_support import PAGE, Holder, Run, Skip, content, main, run, wait_for

SOURCE = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))
N_PAGES = 600
SILENT_S = 2  # CLIENT_S of tools/metrics.c
TRIES = 5
TEXT = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"


class Measured(Run):
    """A command with --metrics, and the address where they are."""

    def __init__(self, *args, metrics=":0"):
        super().__init__(*args, "--json", "--metrics", metrics)
        self.metrics = self.event("metrics")["address"]


class Pair:
    """A source and a target, of which touched pages are asked for and others come slowly."""

    def __init__(self, folder):
        path = os.path.join(folder, "memory")
        self.data = content(N_PAGES)
        with open(path, "wb") as f:
            f.write(self.data)
        self.serve = Measured("serve", "--file", path, "--listen", "127.0.0.1:0")
        address = self.serve.event("listening")["address"]
        self.holder = Holder("anon", len(self.data))
        self.attach = Measured(
            "attach", "--pid", self.holder.pid, "--match", self.holder.ranges[0], "--from", address,
            "--max-rate", "64K",
        )  # fmt: skip
        self.attach.event("progress")
        # Until then there is little but their versions.
        for of, figure in ((self.attach, "pageferry_faults_total"), (self.serve, "pageferry_sessions_total")):
            wait_for("it has counted", lambda of=of, figure=figure: figure in get(of.metrics))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for one in (self.attach, self.holder, self.serve):
            one.__exit__()


def request(address, method="GET", url="/metrics", **headers):
    host, port = address.rsplit(":", 1)
    c = http.client.HTTPConnection(host, int(port), timeout=30)
    c.request(method, url, headers={k.replace("_", "-"): v for k, v in headers.items()})
    r = c.getresponse()
    body = r.read().decode()
    c.close()
    return r.status, r.getheader("Content-Type"), body


def get(address, **headers):
    status, kind, body = request(address, **headers)
    assert status == 200, (status, body)
    assert kind == (OPENMETRICS if headers else TEXT), kind
    return body


def values(text):
    """Series (with its labels as written) to its value."""
    got = {}
    for line in text.splitlines():
        if not line.startswith("#"):
            series, _, value = line.rpartition(" ")
            assert series and series not in got, line
            got[series] = float(value)
    return got


def promtool(text):
    try:
        got = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True)
    except FileNotFoundError:
        raise Skip("promtool (package prometheus) is not installed") from None
    assert got.returncode == 0 and not got.stderr, got.stderr


def figures_agree_with_what_happened(folder):
    with Pair(folder) as p:
        # From the end, where the push comes last; the last one is for later.
        for page in range(N_PAGES - 10, N_PAGES // 2, -10):
            p.holder.ask("byte", page * PAGE)

        def seen():
            return values(get(p.attach.metrics))

        wait_for("the faults are counted", lambda: seen()["pageferry_faults_total"] >= 20)
        now = seen()
        bucket = 'pageferry_fault_latency_seconds_bucket{path="source",le="%s"}'
        counts = [v for k, v in now.items() if k.startswith(bucket.split(",")[0])]
        assert 20 <= len(counts) <= 24 and counts == sorted(counts), counts
        assert counts[-1] == now[bucket % "+Inf"]
        assert counts[-1] == now['pageferry_fault_latency_seconds_count{path="source"}'] > 0
        assert now['pageferry_fault_latency_seconds_sum{path="source"}'] > 0
        assert now["pageferry_memory_pages"] == N_PAGES > now["pageferry_resident_pages"] > 0
        ratio = now["pageferry_resident_pages"] / N_PAGES
        assert abs(now["pageferry_resident_ratio"] - ratio) < 1e-9
        assert now["pageferry_link_up"] == 1 and now["pageferry_link_losses_total"] == 0

        def served():
            return values(get(p.serve.metrics))

        wait_for("the source has counted as well",
                 lambda: served()['pageferry_served_pages_total{path="urgent"}'] > 0)
        source = served()
        assert source["pageferry_open_sessions"] == 1
        assert source["pageferry_served_requests_total"] > 0
        assert source["pageferry_sent_bytes_total"] > 0

        # A source that is gone: the link is down, and a thread that touches a page waits.
        p.serve.child.kill()
        wait_for("the link is lost", lambda: seen()["pageferry_link_up"] == 0)
        p.holder.send("byte", (N_PAGES - 1) * PAGE)
        wait_for("the wait is seen", lambda: seen()["pageferry_faults_stalled"] == 1)
        now = seen()
        assert now["pageferry_faults_in_flight"] == 1 and now["pageferry_oldest_wait_seconds"] > 0.1
        assert now["pageferry_link_losses_total"] == 1


def prometheus_accepts_both_formats(folder):
    with Pair(folder) as p:
        for address in (p.attach.metrics, p.serve.metrics):
            promtool(get(address))
            text = get(address, Accept="application/openmetrics-text;version=1.0.0,text/plain;q=0.5")
            assert text.endswith("\n# EOF\n") and text.count("# EOF") == 1
            families = re.findall(r"^# TYPE (\S+) (\S+)$", text, re.M)
            assert len(families) == len({name for name, _ in families}), families
            for name, kind in families:
                assert not (kind == "counter" and name.endswith("_total")), name


def every_figure_of_the_dashboard_is_there(folder):
    path = os.path.join(SOURCE, "contrib", "grafana", "pageferry.json")
    with open(path, encoding="utf-8") as f:
        dashboard = json.load(f)
    ids = [p["id"] for p in dashboard["panels"]]
    assert len(ids) == len(set(ids)) > 8
    used = set()
    for panel in dashboard["panels"]:
        assert panel["title"] and panel["targets"] and panel["gridPos"]["w"] <= 24, panel
        for target in panel["targets"]:
            used |= set(re.findall(r"pageferry_\w+", target["expr"]))
    for variable in dashboard["templating"]["list"]:
        used |= set(re.findall(r"pageferry_\w+", json.dumps(variable["query"])))
    with Pair(folder) as p:
        text = get(p.attach.metrics) + get(p.serve.metrics)
    there = set(re.findall(r"^(pageferry_\w+)", text, re.M))
    assert used and used <= there, used - there
    # And the dashboard leaves nothing out but the parts of the histogram that it has no use for.
    unused = {n for n in there - used if not n.startswith("pageferry_fault_latency_seconds")}
    assert not unused, unused


def every_figure_is_documented(folder):
    with open(os.path.join(SOURCE, "docs", "metrics.md"), encoding="utf-8") as f:
        listed = re.findall(r"^\| `(\w+)` \| (\w+) \| (\w+) ", f.read(), re.M)
    with Pair(folder) as p:
        for side, text in (("target", get(p.attach.metrics)), ("source", get(p.serve.metrics))):
            there = set(re.findall(r"^# TYPE (\w+) (\w+)", text, re.M))
            assert there == {(name, kind) for name, kind, of in listed if of in (side, "both")}, there


def only_this_host_is_listened_to(folder):
    path = os.path.join(folder, "memory")
    with open(path, "wb") as f:
        f.write(content(2))
    serve = ["serve", "--file", path, "--listen", "127.0.0.1:0"]
    with Measured(*serve) as s:
        assert s.metrics.startswith("127.0.0.1:"), s.metrics
        code, _, err = run(*serve, "--metrics", s.metrics)
        assert code == 1 and "--metrics: cannot listen on " + s.metrics in err, err
        assert "already" in err and err.count("\n") == 1, err
        assert get(s.metrics)
        assert s.stop()[0] == 0
    with Measured(*serve, metrics="0.0.0.0:0") as s:
        assert s.metrics.startswith("0.0.0.0:"), s.metrics
    code, _, err = run(*serve, "--metrics", "192.0.2.1:0")
    assert code == 1 and "--metrics: " in err and "192.0.2.1" in err, err
    # Nothing listens that was not asked for.
    with Run(*serve, "--json") as s:
        s.event("listening")
        if os.geteuid() == 0:
            fds = f"/proc/{s.pid}/fd"
            sockets = [n for n in os.listdir(fds) if os.readlink(f"{fds}/{n}").startswith("socket:")]
            assert len(sockets) == 2, sockets  # --listen, and the control socket


def other_requests_are_refused_and_nobody_is_locked_out(folder):
    with Pair(folder) as p:
        address = p.attach.metrics
        assert request(address, "HEAD")[::2] == (200, "")
        assert request(address, "POST")[0] == 405
        assert request(address, "DELETE")[0] == 405
        for url in ("/", "/metrics/", "/metrics.txt", "/../metrics", "/" + "x" * 3000):
            assert request(address, url=url)[0] == 404, url
        host, port = address.rsplit(":", 1)
        for junk in (b"\r\n\r\n", b"GET\r\n\r\n", b"\0" * 100, b"GET /metrics HTTP/1.1\r\n" + b"a: b\r\n" * 9000):
            with socket.create_connection((host, int(port)), timeout=30) as s:
                s.settimeout(30)
                try:
                    s.sendall(junk)
                    s.shutdown(socket.SHUT_WR)
                    while s.recv(65536):
                        pass
                except OSError:  # it may have closed at any moment
                    pass
        assert get(address)
        # Silent connections leave room for others.
        held = [socket.create_connection((host, int(port)), timeout=30) for _ in range(15)]
        assert get(address)
        assert int(p.holder.ask("byte", 0)) == p.data[0]
        for s in held:
            s.close()


def knock(address, source=None):
    host, port = address.rsplit(":", 1)
    return socket.create_connection((host, int(port)), timeout=30, source_address=source)


def answer(s):
    got = b""
    while chunk := s.recv(65536):
        got += chunk
    return got


def five_answers(address, said):
    """How long they take while many others have said no more than this."""
    held = [knock(address) for _ in range(200)]
    for s in held:
        try:
            s.sendall(said)
        except OSError:
            pass  # it had to go already
    begin = time.monotonic()
    for _ in range(5):
        assert get(address)
    took = time.monotonic() - begin
    for s in held:
        s.close()
    return took


def silent_connections_keep_nobody_waiting(folder):
    """Those that say nothing, and those that never come to the end of what they say."""
    with Pair(folder) as p:
        for said in (b"", b"GET /metrics HTTP/1.1\r\na: "):
            # A machine may stand still for some seconds. So one time will do.
            assert any(five_answers(p.attach.metrics, said) < 2 for _ in range(TRIES)), "five answers take 2 s"
        assert int(p.holder.ask("byte", 0)) == p.data[0]


def many_of_one_address_leave_another_alone(folder):
    with Pair(folder) as p:
        address = p.attach.metrics
        for _ in range(TRIES):
            begin = time.monotonic()
            with knock(address, ("127.0.0.2", 0)) as other:
                other.sendall(b"GET /metrics HTTP/1.1\r\n")
                held = [knock(address) for _ in range(100)]
                assert get(address)  # so all of them were let in by now
                try:
                    other.sendall(b"Connection: close\r\nHost: x\r\n\r\n")
                    got = answer(other)
                except ConnectionError:
                    got = b""
                for s in held:
                    s.close()
            if got.startswith(b"HTTP/1.1 200 "):
                return
            # Only on a machine that stood still it was silent for too long itself.
            assert time.monotonic() - begin >= SILENT_S, "it had to go for another's sake"
        raise AssertionError("it had to go each time")


def silent_s(address):
    with knock(address) as s:
        begin = time.monotonic()
        answer(s)
        return time.monotonic() - begin


def a_silent_connection_is_ended_soon(folder):
    with Pair(folder) as p:
        assert any(silent_s(p.attach.metrics) < 6 for _ in range(TRIES))


if __name__ == "__main__":
    sys.exit(
        main(
            [
                figures_agree_with_what_happened,
                prometheus_accepts_both_formats,
                every_figure_of_the_dashboard_is_there,
                every_figure_is_documented,
                only_this_host_is_listened_to,
                other_requests_are_refused_and_nobody_is_locked_out,
                silent_connections_keep_nobody_waiting,
                many_of_one_address_leave_another_alone,
                a_silent_connection_is_ended_soon,
            ]
        )
    )
