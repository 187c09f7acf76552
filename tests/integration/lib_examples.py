#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""The two examples of examples/, one against the other: lib_examples.py SERVE LAZY"""
import subprocess
import sys

from microvm_support import die_with_parent


def main():
    serve = subprocess.Popen([sys.argv[1], "127.0.0.1:0", "32"], stdout=subprocess.PIPE, text=True,
                             preexec_fn=die_with_parent)
    words = serve.stdout.readline().split()
    if words[:2] != ["listening", "on"]:
        print(f"serve says {words}")
        return 1
    lazy = subprocess.run([sys.argv[2], words[2], "32"], check=False, preexec_fn=die_with_parent)
    print(serve.stdout.read(), end="")
    return lazy.returncode or serve.wait(60)


sys.exit(main())
