#!/usr/bin/python3 -B
# SPDX-License-Identifier: Apache-2.0
"""serve and attach over TLS: who is let in, who is not, and what both are told."""
import hashlib
import os
import shutil
import socket
import ssl
import subprocess
import sys

from cli_support import LIMIT_S, PAGE, Holder, Run, Serve, content, json_lines, main, run, wait_for
from raw_forwarder import Forwarder

SOURCE = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))
N_PAGES = 1200
PSK_A = "alice:" + "0123456789abcdef" * 4
PSK_B = "alice:" + "fedcba9876543210" * 4
MAGIC = b"PFRY"


def sha(data):
    return hashlib.sha256(data).hexdigest()


def make(folder, *args):
    """Credentials of an authority of its own. Returns the folder of the only host."""
    subprocess.run([f"{SOURCE}/contrib/make-credentials", *args[:-1], folder, args[-1]], check=True,
                   stdout=subprocess.DEVNULL)
    return os.path.join(folder, args[-1].split("=")[0])


def good(folder):
    """Credentials of 127.0.0.1, made once for each test."""
    path = os.path.join(folder, "good")
    return os.path.join(path, "localhost") if os.path.exists(path) else make(path, "localhost=127.0.0.1")


def write(folder, name, text, mode=0o600):
    path = os.path.join(folder, name)
    with open(path, "wb") as f:
        f.write(text if isinstance(text, bytes) else text.encode())
    os.chmod(path, mode)
    return path


def Attach(holder, address, *args, **more):
    return Run("attach", "--json", "--pid", holder.pid, "--match", holder.ranges[0], "--from", address,
               *args, **more)


def moves(folder, server, client, listen="127.0.0.1:0"):
    """Memory goes over such a connection. Returns the server's log."""
    data = content(N_PAGES)
    path = write(folder, "memory", data)
    with Holder("anon", len(data)) as h, Serve("--file", path, "--once", "-v", *server, listen=listen) as s:
        with Attach(h, s.address, *client) as a:
            assert a.end(0)["resumes"] == 0
        assert h.ask("hash") == sha(data)
        status, out, err = s.rest()
        assert status == 0, (out, err)
        return err


def is_refused(folder, server, client, says, logs=None):
    """attach ends with status 1 and says so; the server goes on, and its log has the reason."""
    path = write(folder, "memory", content(16))
    with Holder("anon", 16 * PAGE) as h, Serve("--file", path, *server) as s:
        with Attach(h, s.address, *client) as a:
            error = a.end(1)["error"]
            assert says in error, error
        status, _, err = s.stop()
        assert status == 0, status
        assert not logs or logs in err, err


def does_not_start(says, *args):
    status, _, err = run(*args)
    assert status == 1 and says in err, (status, err)


# --- certificates -------------------------------------------------------------------------------


def with_certificates_of_one_authority_memory_moves(folder):
    tls = ["--tls", good(folder)]
    moves(folder, tls, tls)
    # More connections, and others than TCP: there a certificate names the host by --tls-hostname.
    moves(folder, tls, [*tls, "--bulk", "4"])
    listen = "unix:" + os.path.join(folder, "pages.sock")
    moves(folder, tls, [*tls, "--tls-hostname", "localhost"], listen=listen)
    with Holder("anon", PAGE) as h, Serve("--file", write(folder, "page", bytes(PAGE)), *tls, listen=listen) as s:
        with Attach(h, listen, *tls) as a:
            assert "add --tls-hostname" in a.end(1)["error"]
        s.stop()


def nothing_is_readable_on_the_way(folder):
    """What passes has no frame of ours in it, and none of the pages."""
    data = (b"a secret of the guest " * 200)[:PAGE] * 64
    path = write(folder, "memory", data)
    tls = ["--tls", good(folder)]
    with Holder("anon", len(data)) as h, Serve("--file", path, *tls) as s, Forwarder(s.address) as f:
        with Attach(h, f.address, *tls) as a:
            a.end(0)
        assert h.ask("hash") == sha(data)
    seen = b"".join(f.seen)
    assert len(seen) > len(data) and b"secret" not in seen and MAGIC not in seen


def strangers_certificates_are_refused(folder):
    tls = ["--tls", good(folder)]
    other = ["--tls", make(os.path.join(folder, "other"), "localhost=127.0.0.1")]
    is_refused(folder, tls, other, "is it signed by ca-cert.pem?")
    # A client that believes us, and that we don't.
    mixed = os.path.join(folder, "mixed")
    shutil.copytree(other[1], mixed)
    bundle = open(other[1] + "/ca-cert.pem", "rb").read() + open(tls[1] + "/ca-cert.pem", "rb").read()
    write(mixed, "ca-cert.pem", bundle)
    is_refused(folder, tls, ["--tls", mixed], "doesn't know who signed our client-cert.pem",
               "was refused: TLS: the peer's certificate is not accepted")


def a_certificate_for_another_name_is_refused(folder):
    tls = ["--tls", good(folder)]
    is_refused(folder, tls, [*tls, "--tls-hostname", "elsewhere"], "is for another name")
    moves(folder, tls, [*tls, "--tls-hostname", "localhost"])
    both = os.path.join(folder, "good")
    hostb = ["--tls", make(both, "hostb")]
    is_refused(folder, hostb, tls, "--tls-hostname")
    # And the other way round.
    moves(folder, [*tls, "--tls-peer", "hostb"], hostb)
    is_refused(folder, [*tls, "--tls-peer", "hostb"], tls, "does not accept our client-cert.pem",
               "is not that of 'hostb'")


def unusable_credentials_are_named(folder):
    serve = ["serve", "--file", write(folder, "memory", bytes(PAGE)), "--listen", "127.0.0.1:0", "--tls"]
    tls = good(folder)
    does_not_start("no credentials folder", *serve, os.path.join(folder, "nothing"))
    for name in ("ca-cert.pem", "server-cert.pem", "server-key.pem"):
        for how in ("missing", "garbage"):
            broken = os.path.join(folder, f"{how}-{name}")
            shutil.copytree(tls, broken)
            if how == "missing":
                os.unlink(os.path.join(broken, name))
            else:
                write(broken, name, "garbage")
            does_not_start(name, *serve, broken)
    public = os.path.join(folder, "public-key")
    shutil.copytree(tls, public)
    os.chmod(public + "/server-key.pem", 0o644)
    does_not_start("others may read; chmod 600", *serve, public)
    shutil.copy(tls + "/client-key.pem", public + "/server-key.pem")
    does_not_start("it is not the key of", *serve, public)
    # Good for a client, and not for a server.
    shutil.copy(tls + "/client-cert.pem", public + "/server-cert.pem")
    does_not_start("is not signed by ca-cert.pem for the server", *serve, public)
    expired = make(os.path.join(folder, "expired"), "-d", "-1", "localhost=127.0.0.1")
    does_not_start("server-cert.pem: certificate has expired", *serve, expired)


def an_expired_or_revoked_client_is_refused(folder):
    """By a server whose own credentials are in order."""
    tls = good(folder)
    data = write(folder, "memory", content(16))
    ca = os.path.join(folder, "good", "ca")
    old = make(os.path.join(folder, "good"), "-d", "-1", "old")
    with Serve("--file", data, "--tls", tls) as s:
        says = handshake(s.address, old)
        assert says and "expired" in says, says
        assert not handshake(s.address, tls)
        _, _, err = s.stop()
        assert "certificate has expired" in err, err
    write(folder, "ca.cnf", f"[ca]\ndefault_ca=d\n[d]\ndatabase={folder}/index\ndefault_md=sha256\n"
          f"certificate={ca}/ca-cert.pem\nprivate_key={ca}/ca-key.pem\ndefault_crl_days=9\n")
    write(folder, "index", "")
    revoked = make(os.path.join(folder, "good"), "revoked")
    openssl = ["openssl", "ca", "-config", folder + "/ca.cnf"]
    for args in (["-revoke", revoked + "/client-cert.pem"], ["-gencrl", "-out", tls + "/ca-crl.pem"]):
        subprocess.run([*openssl, *args], check=True, stderr=subprocess.DEVNULL)
    with Serve("--file", data, "--tls", tls) as s:
        says = handshake(s.address, revoked)
        assert says and "revoked" in says, says
        assert not handshake(s.address, make(os.path.join(folder, "good"), "fresh"))


def handshake(address, folder):
    """An independent client's Hello. Returns None when it was answered, or the alert."""
    context = ssl.create_default_context(cafile=folder + "/ca-cert.pem")
    context.load_cert_chain(folder + "/client-cert.pem", folder + "/client-key.pem")
    context.set_alpn_protocols(["pageferry"])
    host, port = address.rsplit(":", 1)
    try:
        with socket.create_connection((host, int(port)), timeout=60) as raw:
            with context.wrap_socket(raw, server_hostname=host) as s:
                assert s.version() == "TLSv1.3", s.version()
                s.sendall(b"PFRY not a frame")
                assert s.recv(4) == MAGIC
                return None
    except (ssl.SSLError, ConnectionError) as e:
        return str(e)


# --- keys ---------------------------------------------------------------------------------------


def with_the_same_key_memory_moves(folder):
    one = write(folder, "one", f"# a comment\n\n{PSK_A}\n")
    many = write(folder, "many", f"bob:{'00' * 16}\n{PSK_A}\n")
    moves(folder, ["--psk", many], ["--psk", one])
    listen = "unix:" + os.path.join(folder, "pages.sock")
    moves(folder, ["--psk", one], ["--psk", one], listen=listen)


def what_was_encrypted_does_not_go_on_without(folder):
    key = write(folder, "one", f"{PSK_A}\n")
    data = content(N_PAGES)
    path = write(folder, "memory", data)
    with Holder("anon", len(data)) as h, Serve("--file", path, "--psk", key) as s:
        with Attach(h, s.address, "--psk", key, "--max-rate", "256K") as a:
            a.event("progress")
            a.child.kill()
            a.rest()
        with Run("attach", "--json", "--pid", h.pid, "--recover") as a:
            assert "were encrypted" in a.end(3)["error"]
        with Run("attach", "--json", "--pid", h.pid, "--recover", "--psk", key) as a:
            a.end(0)
        assert h.ask("hash") == sha(data)


def other_keys_are_refused(folder):
    a, b = write(folder, "a", PSK_A), write(folder, "b", PSK_B)
    unknown = write(folder, "unknown", "carol" + PSK_A[5:])
    is_refused(folder, ["--psk", a], ["--psk", b], "has another key for this name")
    is_refused(folder, ["--psk", a], ["--psk", unknown], "doesn't know our key's name", "no key that the --psk")
    is_refused(folder, ["--psk", a], ["--tls", good(folder)], "both --psk")
    is_refused(folder, ["--tls", good(folder)], ["--psk", a], "both --tls")


def unusable_keys_are_named(folder):
    serve = ["serve", "--file", write(folder, "memory", bytes(PAGE)), "--listen", "127.0.0.1:0", "--psk"]
    does_not_start("No such file", *serve, os.path.join(folder, "nothing"))
    does_not_start("others may read; chmod 600", *serve, write(folder, "public", PSK_A, 0o644))
    for text, says in (
        ("", "there is no key in it"),
        ("# nothing\n", "there is no key in it"),
        ("\n" + PSK_A + "\nbob\n", "line 3: write NAME:KEY"),
        ("bob:" + "0" * 31, "line 1: write the key as"),
        ("bob:" + "0" * 30, "line 1: write the key as"),
        ("bob:" + "0" * 130, "line 1: write the key as"),
        ("bob:" + "g" * 32, "line 1: write the key as"),
        (":" + "0" * 32, "line 1: write NAME:KEY"),
        ("b" * 129 + ":" + "0" * 32, "line 1: write NAME:KEY"),
    ):
        does_not_start(says, *serve, write(folder, "bad", text))


# --- one side only ------------------------------------------------------------------------------


def one_side_without_tls_is_told(folder):
    tls = ["--tls", good(folder)]
    is_refused(folder, [], tls, "the peer doesn't speak it; give both ends --tls")
    is_refused(folder, tls, [], "--tls", "the peer doesn't speak it; give both ends --tls")


# --- the way between ----------------------------------------------------------------------------


def a_cut_stream_is_a_lost_link(folder):
    """In the middle of a record, and with a FIN: the session is resumed, and the memory is right."""
    data = content(N_PAGES)
    path = write(folder, "memory", data)
    tls = ["--tls", good(folder)]
    with Holder("anon", len(data)) as h, Serve("--file", path, *tls, "-v") as s, Forwarder(s.address) as f:
        f.cut_after = 1000000
        with Attach(h, f.address, *tls) as a:
            status, out, err = a.rest()
            last = json_lines(out)[-1]
            assert status == 0 and last["resumes"] >= 1 and f.n_cut == 1, (last, err)
            assert "TLS: the connection was cut" in err, err  # at this end, where it was cut
        assert h.ask("hash") == sha(data)
        assert s.stop()[0] == 0


def connect(address):
    host, port = address.rsplit(":", 1)
    return socket.create_connection((host, int(port)), timeout=LIMIT_S)


def ended(s):
    """Whether the other side has closed by now."""
    s.setblocking(False)
    try:
        while s.recv(65536):
            pass
        return True
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


def slow_handshakes_are_dropped_and_keep_nobody_out(folder):
    """More than there is room for, that say nothing, or a byte at a time."""
    data = content(200)
    tls = ["--tls", good(folder)]
    hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100000)
    with Holder("anon", len(data)) as h, Serve("--file", write(folder, "memory", data), *tls) as s:
        slow = [connect(s.address) for _ in range(100)]
        with Attach(h, s.address, *tls) as a:
            a.end(0)
        assert h.ask("hash") == sha(data)
        slow += [connect(s.address) for _ in range(10)]
        left = {c: iter(hello) for c in slow[-10:]}

        def all_are_dropped():
            for c, said in left.items():
                try:
                    c.send(bytes([next(said)]))
                except OSError:
                    pass
            return all(ended(c) for c in slow)

        wait_for("all are dropped", all_are_dropped)
        for c in slow:
            c.close()
        status, _, err = s.stop()
        # Of the first, most have made room for others before their time was over.
        assert status == 0 and 10 <= err.count("TLS: no handshake within 5 s") <= 16 + 10, err


if __name__ == "__main__":
    sys.exit(
        main(
            [
                with_certificates_of_one_authority_memory_moves,
                nothing_is_readable_on_the_way,
                strangers_certificates_are_refused,
                a_certificate_for_another_name_is_refused,
                unusable_credentials_are_named,
                an_expired_or_revoked_client_is_refused,
                what_was_encrypted_does_not_go_on_without,
                with_the_same_key_memory_moves,
                other_keys_are_refused,
                unusable_keys_are_named,
                one_side_without_tls_is_told,
                a_cut_stream_is_a_lost_link,
                slow_handshakes_are_dropped_and_keep_nobody_out,
            ]
        )
    )
