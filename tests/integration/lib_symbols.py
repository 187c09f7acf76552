#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""What the library exports, its header declares, its manual names and has a page of is the same.
Each page has all the types and constants that it names.

    lib_symbols.py LIBRARY HEADER MANUAL PAGE...
"""
import os
import re
import subprocess
import sys


def not_told(page, code):
    """Types and constants of the header's that the page names, and lacks."""
    with open(page, encoding="utf-8") as f:
        text = f.read()
    defined = re.compile(r"(?:(?:struct|enum) (\w+) \{|typedef [^;]*\(\*(\w+)\)|#define (PAGEFERRY_\w+) )")

    def names(where):
        return {name for found in defined.findall(where) for name in found if name}

    # A function may have the name of a struct.
    named = re.findall(r"(?:(?<=struct )|(?<=enum ))\w+|pageferry_\w+_fn|PAGEFERRY_\w+", text)
    return sorted((names(code) & set(named)) - names(text))


def main():
    library, header, manual = sys.argv[1:4]
    listed = subprocess.run(["nm", "-D", "--defined-only", library], check=True, text=True,
                            stdout=subprocess.PIPE).stdout
    exported = {w[2].split("@")[0] for w in map(str.split, listed.splitlines())
                if w[1] not in "Aa" and not re.match(r"_(init|fini)$", w[2])}
    with open(header, encoding="utf-8") as f:
        code = re.sub(r"/\*.*?\*/", "", f.read(), flags=re.S)
    declared = set(re.findall(r"^[a-z].*?\b(pageferry_\w+)\(", code, re.M))
    with open(manual, encoding="utf-8") as f:
        named = set(re.findall(r"\b(pageferry_\w+) \(\)", f.read()))
    pages = {os.path.basename(p).removesuffix(".3") for p in sys.argv[4:]}
    for page in sys.argv[4:]:
        said = subprocess.run(["groff", "-man", "-ww", "-Tutf8", "-z", page], check=True, text=True,
                              stderr=subprocess.PIPE).stderr
        if said:
            print(f"{page}: {said}")
            return 1
        lacks = not_told(page, code)
        if lacks:
            print(f"{page} names {lacks} and doesn't say what they are")
            return 1
    for what, names in (("exported", exported), ("named in the manual", named), ("with a page", pages)):
        if names != declared:
            print(f"only declared: {sorted(declared - names)}; only {what}: {sorted(names - declared)}")
            return 1
    print(f"{len(declared)} functions")
    return 0


sys.exit(main())
