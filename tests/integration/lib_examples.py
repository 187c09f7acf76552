#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""The two examples of examples/, one against the other.

    lib_examples.py SERVE LAZY                          as they were built
    lib_examples.py --installed BUILD CC...             built here from the sources that BUILD installs, against the library
                                                        that it does, as its pkg-config file says: shared, then static
"""
import os
import subprocess
import sys
import tempfile

from microvm_support import die_with_parent


def together(serve, lazy, **env):
    env = {**os.environ, **env}
    serve = subprocess.Popen([serve, "127.0.0.1:0", "32"], stdout=subprocess.PIPE, text=True, env=env,
                             preexec_fn=die_with_parent)
    words = serve.stdout.readline().split()
    if words[:2] != ["listening", "on"]:
        print(f"serve says {words}")
        return 1
    lazy = subprocess.run([lazy, words[2], "32"], check=False, env=env, preexec_fn=die_with_parent)
    print(serve.stdout.read(), end="")
    return lazy.returncode or serve.wait(60)


def only(folder, name):
    """The one file of that name below a folder, wherever the prefix and the machine's name put it."""
    found = [os.path.join(at, name) for at, _, files in os.walk(folder) if name in files]
    assert len(found) == 1, f"{name}: {found}"
    return found[0]


def installed(build, *cc):
    with tempfile.TemporaryDirectory(prefix="pageferry-") as folder:
        root = os.path.join(folder, "root")
        subprocess.run(["meson", "install", "-C", build, "--no-rebuild", "--quiet"], check=True,
                       env={**os.environ, "DESTDIR": root})
        shared = only(root, "libpageferry.so")
        libraries = os.path.dirname(shared)
        find = {**os.environ, "PKG_CONFIG_SYSROOT_DIR": root,
                "PKG_CONFIG_PATH": os.path.dirname(only(root, "libpageferry.pc"))}

        def build_both(kind, *how):
            flags = subprocess.run(["pkg-config", *how, "--cflags", "--libs", "libpageferry"], check=True, text=True,
                                   stdout=subprocess.PIPE, env=find).stdout.split()
            programs = [os.path.join(folder, f"{name}-{kind}") for name in ("serve", "lazy")]
            for program, name in zip(programs, ("serve.c", "lazy.c")):
                subprocess.run([*cc, "-Werror", "-o", program, only(root, name), *flags], check=True)
            return programs

        if together(*build_both("shared"), LD_LIBRARY_PATH=libraries):
            return 1
        os.unlink(shared)  # so that the linker takes the other one
        return together(*build_both("static", "--static"), LD_LIBRARY_PATH="")


def main():
    if sys.argv[1] == "--installed":
        return installed(*sys.argv[2:])
    return together(*sys.argv[1:])


sys.exit(main())
