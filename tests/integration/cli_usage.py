#!/usr/bin/python3 -B
# SPDX-License-Identifier: Apache-2.0
"""Wrong usage ends with status 2 and one line that says what to do; --help, man page and completion agree."""
import os
import re
import subprocess
import sys

from cli_support import json_lines, main, run

COMMANDS = ["probe", "serve", "attach", "handler", "criu", "cloud-hypervisor", "receive", "migrate", "status"]
PARTS = {"trace": ["live", "record", "report", "plot", "export"]}  # commands of several
SOURCE = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))

# Arguments, and what the message must say.
WRONG = [
    ("", "give a command"),
    ("nonsense", "unknown command 'nonsense'"),
    ("--nonsense", "unknown option '--nonsense'"),
    ("-x", "unknown option '-x'"),
    ("serve --listen :0", "add --file PATH, or --pid PID --match TEXT"),
    ("serve --file a", "add --listen ADDR"),
    ("serve --file a --listen", "--listen needs an argument"),
    ("serve --file a --listen x", "write HOST:PORT, [v6]:PORT or unix:PATH"),
    ("serve --file a --listen ::1:3", "an IPv6 address goes in brackets"),
    ("serve --file a --listen h:65536", "the port is not a number from 0 to 65535"),
    ("serve --file a --listen unix:", "the path is empty"),
    ("serve --file a --listen :0 --listen :0", "--listen was given twice"),
    ("serve --file a --pid 1 --match x --listen :0", "exclude each other"),
    ("serve --file a --match x --listen :0", "exclude each other"),
    ("serve --pid 1 --listen :0", "add --match TEXT"),
    ("serve --match x --listen :0", "add --pid PID"),
    ("serve --file= --listen :0", "--file is empty"),
    ("serve --file a --listen :0 --max-rate 1T", "give bytes a second"),
    ("serve --file a --listen :0 --max-rate -1", "give bytes a second"),
    ("serve --file a --listen :0 --max-sessions 0", "give a number from 1 to 1024"),
    ("serve --file a --listen :0 --max-sessions 1025", "give a number from 1 to 1024"),
    ("serve --file a --listen :0 --metrics 9100", "write HOST:PORT, [v6]:PORT or unix:PATH"),
    ("serve --file a --listen :0 --metrics :65536", "the port is not a number from 0 to 65535"),
    ("serve --file a --listen :0 --once=yes", "--once takes no argument"),
    ("serve --file a --listen :0", "add --tls DIR (certificates) or --psk FILE (a shared key), or --plaintext"),
    ("serve --file a --listen 192.0.2.1:0", "'192.0.2.1:0' is not on this host alone"),
    ("serve --file a --listen [::]:0", "'[::]:0' is not on this host alone"),
    ("receive --qmp s --listen 0.0.0.0:1", "'0.0.0.0:1' is not on this host alone"),
    ("attach --pid 1 --match x --from h:1", "'h:1' is not on this host alone"),
    ("migrate --qmp s --to [2001:db8::1]:1 --postcopy", "'[2001:db8::1]:1' is not on this host alone"),
    ("serve --file a --listen :0 --tls d --psk f", "exclude each other"),
    ("serve --file a --listen :0 --tls d --plaintext", "exclude each other"),
    ("serve --file a --listen :0 --psk f --tls-peer n", "add --tls DIR"),
    ("attach --pid 1 --match x --from h:1 --tls-hostname n", "add --tls DIR"),
    ("attach --match x --from h:1", "add --pid PID"),
    ("attach --pid 1 --from h:1", "add --match TEXT"),
    ("attach --pid 1 --match x", "add --from ADDR"),
    ("attach --pid 0 --match x --from h:1", "'0' is no process"),
    ("attach --pid 1x --match x --from h:1", "'1x' is no process"),
    ("attach --pid 1 --match x --from h:0", "has no port"),
    ("attach --pid 1 --match x --from :1", "has no host"),
    ("attach --pid 1 --match x --from h:1 --bulk 0", "give a number from 1 to 16"),
    ("attach --pid 1 --match x --from h:1 --bulk 17", "give a number from 1 to 16"),
    ("handler --file x", "add --socket PATH"),
    ("handler --socket x", "--file PATH"),
    ("handler --socket x --file x --from h:1", "exclude each other"),
    ("handler --socket x --file x --max-vms 1025", "give a number from 1 to 1024"),
    ("criu --pid 1 --match x", "add --listen ADDR"),
    ("criu --pid 1 --match x --listen :0", "add --plaintext"),
    ("criu --pid 1 --match x --listen :0 --header 28", "give 32|24"),
    ("cloud-hypervisor --to h:1", "add --snapshot FOLDER"),
    ("cloud-hypervisor --snapshot s", "add --to ADDR"),
    ("cloud-hypervisor --snapshot s --to h:1", "add --tls DIR, or --plaintext"),
    ("cloud-hypervisor --snapshot s --to h:1 --tls d --plaintext", "exclude each other"),
    ("cloud-hypervisor --snapshot s --to h:1 --tls-hostname n", "add --tls DIR"),
    ("attach --pid 1 --match x --from h:1 more", "'more' is no option"),
    ("attach --listen :0", "unknown option '--listen'"),
    ("receive --listen :0", "add --qmp SOCK"),
    ("receive --qmp s", "add --listen ADDR"),
    ("migrate --to h:1 --postcopy", "add --qmp SOCK"),
    ("migrate --qmp s --postcopy", "add --to ADDR"),
    ("migrate --qmp s --to h:1", "only post-copy is there"),
    ("migrate --qmp s --to h:1", "add --postcopy"),
    ("status --control", "--control needs an argument"),
    ("probe --control x", "unknown option '--control'"),
    ("attach --pid 1 --match x --from h:1 --trace", "--trace needs an argument"),
    ("trace", "give a command"),
    ("trace nonsense", "unknown command 'nonsense'"),
    ("trace --nonsense", "unknown option '--nonsense'"),
    ("trace live --interval 0", "give a number from 1 to 3600"),
    ("trace live --interval 3601", "give a number from 1 to 3600"),
    ("trace live more", "'more' is no option"),
    ("trace record", "add --output FILE"),
    ("trace record -o x --duration 0", "give a number from 1 to"),
    ("trace record -o x more", "'more' is no option"),
    ("trace report", "FILE is missing"),
    ("trace report a b", "'b' is no option"),
    ("trace report a --slowest 1001", "give a number from 1 to 1000"),
    ("trace plot a", "add --output FILE"),
    ("trace export a -o x", "add --format FORMAT"),
    ("trace export a -o x --format svg", "give perfetto or qemu"),
]


def command_of(words):
    """The command that complains: the one that the arguments name."""
    if len(words) > 1 and words[1] in PARTS.get(words[0], []):
        return f"{words[0]} {words[1]}"
    return words[0] if words and words[0] in [*COMMANDS, *PARTS] else ""


def wrong_usage_is_told_in_one_line(_):
    for args, text in WRONG:
        status, out, err = run(*args.split())
        command = command_of(args.split())
        prefix = f"pageferry {command}: " if command else "pageferry: "
        assert status == 2, f"{args}: {status} {err}"
        assert not out, f"{args}: {out}"
        assert err.startswith(prefix) and text in err, f"{args}: {err}"
        assert err.count("\n") == 1 and err.endswith("\n"), f"{args}: {err}"


def wrong_usage_ends_the_json_too(_):
    for args, text in WRONG:
        words = args.split()
        n = len(command_of(words).split()) or 1
        status, out, err = run(*words[:n], "--json", *words[n:]) if words else run("x", "--json")
        (last,) = json_lines(out)
        assert status == 2 and last["event"] == "failed" and last["exit"] == 2, last
        assert last["error"] in err, (last, err)


def version_and_help_are_everywhere(_):
    parts = [[c, part] for c in PARTS for part in PARTS[c]]
    for args in [[]] + [[c] for c in [*COMMANDS, *PARTS]] + parts:
        for option in ("--version", "-V"):
            status, out, err = run(*args, option)
            assert status == 0 and re.fullmatch(r"pageferry \d+\.\d+\.\d+\n", out) and not err
        for option in ("--help", "-h"):
            status, out, err = run(*args, option)
            assert status == 0 and out.startswith("Usage: pageferry ") and not err
            assert max(map(len, out.splitlines())) < 100, args
    for c in [*COMMANDS, *PARTS]:
        assert re.search(rf"^  {c} ", run("--help")[1], re.M), c
    for c, part in parts:
        assert re.search(rf"^  {c} {part} ", run(c, "--help")[1], re.M), (c, part)


def help_options(*command):
    return set(re.findall(r"^  (?:-\w, |    )(--[a-z-]+)", run(*command, "--help")[1], re.M))


def man_text(name):
    with open(os.path.join(SOURCE, "man", name), encoding="utf-8") as f:
        return f.read().replace("\\-", "-")


def man_options(command):
    text = man_text(f"pageferry-{command}.1")
    options = text[text.index(".SH OPTIONS") :]
    options = options[: options.index(".SH ", 5)]
    return set(re.findall(r"^\.(?:B|BI|BR) (?:-\w \", \" )?\"?(--[a-z-]+)", options, re.M))


def complete(*words):
    script = """
        . "$1"; shift
        COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
        _pageferry
        printf '%s\\n' "${COMPREPLY[@]}"
    """
    source = os.path.join(SOURCE, "contrib", "completion", "pageferry.bash")
    got = subprocess.run(
        ["bash", "-c", script, "bash", source, "pageferry", *words], capture_output=True, text=True
    )
    assert got.returncode == 0 and not got.stderr, got.stderr
    return got.stdout.split()


def every_option_is_in_help_man_page_and_completion(_):
    for c in COMMANDS:
        wanted = help_options(c)
        assert {"--json", "--help", "--version"} <= wanted, (c, wanted)
        assert man_options(c) == wanted, (c, man_options(c) ^ wanted)
        assert set(complete(c, "")) == wanted, (c, set(complete(c, "")) ^ wanted)
    for c, parts in PARTS.items():
        every = set()
        for part in parts:
            wanted = help_options(c, part)
            assert {"--json", "--help", "--version"} <= wanted, (c, part, wanted)
            assert set(complete(c, part, "x", "")) == wanted, (c, part, complete(c, part, "x", ""))
            every |= wanted
        assert man_options(c) == every, (c, man_options(c) ^ every)
        assert {w for w in complete(c, "") if w[0] != "-"} == set(parts), complete(c, "")


def every_command_is_in_help_man_page_and_completion(_):
    out = run("--help")[1]
    listed = re.findall(r"^  ([a-z-]+) ", out[out.index("Commands:") :], re.M)
    commands = [*COMMANDS, *PARTS]
    assert sorted(listed) == sorted(commands), listed
    assert sorted(w for w in complete("") if w[0] != "-") == sorted(commands)
    text = man_text("pageferry.1")
    for c in commands:
        assert f".BR pageferry-{c} (1)" in text, c
    pages = [n for n in os.listdir(os.path.join(SOURCE, "man")) if n.endswith(".1")]
    assert sorted(pages) == sorted(["pageferry.1"] + [f"pageferry-{c}.1" for c in commands])


def help_shows_defaults_and_units(_):
    text = {c: " ".join(run(c, "--help")[1].split()) for c in COMMANDS}
    for c, words in [
        ("serve", "(default: 64)"),
        ("serve", "bytes a second"),
        ("serve", "(default: serve on)"),
        ("attach", "(default: 1)"),
        ("attach", "(default: 0, no limit)"),
        ("status", "(default: "),
    ]:
        assert words in text[c], (c, words)


def every_exit_status_is_in_help_and_man_page(_):
    for c in COMMANDS:
        said = run(c, "--help")[1].partition("Exit status:")[2].replace("\n", " ")
        listed = set(re.findall(r"(?:^|[; ])(\d) [a-z]", said))
        page = man_text(f"pageferry-{c}.1").partition(".SH EXIT STATUS")[2].partition(".SH ")[0]
        there = set(re.findall(r"^\.B (\d)$", page, re.M))
        assert there and there <= listed, (c, sorted(there - listed))


def completion_knows_values(folder):
    open(os.path.join(folder, "memory-file"), "w").close()
    assert complete("serve", "--file", folder + "/mem") == [folder + "/memory-file"]
    assert str(os.getpid()) in complete("attach", "--pid", "")
    assert complete("attach", "--from", "") == []
    assert complete("att") == ["attach"]


def man_pages_are_sound_roff(_):
    for c in [""] + ["-" + c for c in [*COMMANDS, *PARTS]]:
        path = os.path.join(SOURCE, "man", f"pageferry{c}.1")
        try:
            got = subprocess.run(
                ["groff", "-man", "-Tutf8", "-ww", path], capture_output=True, text=True
            )
        except FileNotFoundError:
            print("groff is not installed: man pages not formatted")
            return
        assert got.returncode == 0 and not got.stderr, (path, got.stderr)
        for section in ("NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "EXIT STATUS", "SEE ALSO"):
            assert f".SH {section}" in man_text(f"pageferry{c}.1"), (path, section)


if __name__ == "__main__":
    sys.exit(
        main(
            [
                wrong_usage_is_told_in_one_line,
                wrong_usage_ends_the_json_too,
                version_and_help_are_everywhere,
                every_option_is_in_help_man_page_and_completion,
                every_command_is_in_help_man_page_and_completion,
                help_shows_defaults_and_units,
                every_exit_status_is_in_help_and_man_page,
                completion_knows_values,
                man_pages_are_sound_roff,
            ]
        )
    )
